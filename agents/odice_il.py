"""ODICE as imitation (ODICE-IL; Mao, Xu, Zhang and Zhan, ICLR 2024, arXiv:2402.00348).

One expert's trajectory, and mixed data whose rewards nobody knows:

    c    = logistic D(s, a)
    L_D  = E_expert[ -log c ] + E_all[ -log(1 - c) ] + penalty E[ (|dD / d(s, a)| - 1)^2 ]
    r    = D(s, a),   which is log d_expert(s, a) / d_all(s, a) where L_D is least
    r   += gamma terminated D_end / (1 - gamma)
    then ODICE on r: see the page of `odice`

Maximising the sum of r under a divergence from the data is matching the expert's visits: the
reduction of SMODICE (arXiv:2202.02433) and DemoDICE (Kim et al., ICLR 2022). `expert` names a
dataset, of which the `expert_episodes` episodes of highest return are the expert's and the only
thing known to be good; empty, they are those of the data itself. All transitions, the expert's
among them, are d_all (DemoDICE's union), so that the ratio is bounded where the expert has been.
The classifier is trained beside the rest, as in DemoDICE; its rate, its penalty of 10 at points
between the expert's pairs and others, and its loss are SMODICE's, its ReLU layers DemoDICE's.
The data's own rewards are never read, but for the choice of the expert's episodes.

Without an environment no policy is called the best, since held-out episodes are of the mixed data:
an error on them says how near the policy is to what is to be left. So none are held out unless
`validation` asks for it; those are then measured on, and the expert's are of the others.

What ODICE's paper and code do is the case without `mixed`: the expert's trajectory is all the
data, the ratio is 1 and all rewards are 0, so that ODICE is a cloning of the trajectory weighted
by its own residuals. The code takes `dual_weight` 0.4 there, and keeps one transition that leads
from the end of an episode into the next, which we do not; a weight decay of 1e-3 on Walker2d.
Ours are two choices. With mixed data `dual_weight` is 0.5, for which the density ratio
max(e_f / 2 + 1, 0) has mean 1, so that the policy's weights are relu(ratio - 1) up to a factor.
And the end of an episode is a state like others: log-ratios are negative where the expert never
is, and if a terminal were worth 0 it would be the best way out. As with the absorbing states of
DAC (arXiv:1809.02925) and SMODICE it is worth D_end for ever, with D_end, the log-ratio of how
often a transition terminates, counted from the data and not learnt.

Order within an update: the classifier; rewards with it as it then is; then as in ODICE, the
policy's weights, the values, their targets, the policy. Without `mixed` there is no classifier.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from offrl.actors import GaussianActor
from offrl.agent import Agent
from offrl.checks import check_intervals
from offrl.datasets.demonstrations import Demonstrations, demonstrations, end_log_ratio
from offrl.datasets.offline import OfflineDataset, Spec
from offrl.datasets.replay import Replay, transitions
from offrl.dice import (
    DICEConfig,
    dice_networks,
    merged_gradient,
    policy_weight,
    value_losses,
    weighted_regression,
)
from offrl.discriminators import Discriminator, discrimination_loss, slope_penalty
from offrl.errors import DataError
from offrl.networks import Learners
from offrl.optim import adam, polyak_update, target_of
from offrl.types import Batch, Metrics, Noise


@dataclass(frozen=True)
class ODICEILConfig(DICEConfig):
    """Settings of the authors' code for imitation, but for those that it has no use for."""

    expert: str = ""  # dataset of the expert, by name or path; empty: the data's best episodes
    expert_episodes: int = 1  # of highest return in it, which are the expert's
    mixed: bool = True  # learn from all data; without, from the expert's alone, rewards 0
    penalty: float = 10.0  # of the classifier's slope
    discriminator_lr: float = 3e-4
    dual_weight: float = 0.5  # lambda; 0.4 in the authors' code, without mixed data
    layer_norm: bool = False
    squash_mean: bool = True
    weight_decay: float = 1e-5  # of the policy (L2); 1e-3 on Walker2d
    lr: float = 1e-4  # learning rate
    normalize_obs: bool = True  # by the mean and deviation of the data

    def __post_init__(self) -> None:
        super().__post_init__()
        check_intervals(
            self, expert_episodes="[1, inf)", penalty="[0, inf)", discriminator_lr="(0, inf)"
        )


class ODICEIL(Agent):
    """Density ratios for rewards, then values and policy as ODICE learns them."""

    config: ODICEILConfig
    config_class = ODICEILConfig
    suits = "one expert's trajectory, no rewards"
    measure = None
    datasets = ("expert",)
    actor: GaussianActor
    expert_obs: Tensor
    expert_action: Tensor
    end_value: Tensor
    recipes: ClassVar[Mapping[str, Mapping[str, Any]]] = {"walker2d": {"weight_decay": 1e-3}}

    def __init__(self, spec: Spec, config: ODICEILConfig, learners: Learners) -> None:
        super().__init__(spec, config, learners)
        self.actor, self.value = dice_networks(self.obs_dim, self.act_dim, config, learners)
        self.value_target = target_of(self.value)
        self.actor_opt = adam(self.actor.parameters(), config.lr, config.weight_decay)
        self.value_opt = adam(self.value.parameters(), config.lr)
        self.register_buffer("expert_obs", torch.zeros(1, self.obs_dim))
        self.register_buffer("expert_action", torch.zeros(1, self.act_dim))
        self.register_buffer("end_value", torch.zeros(()))
        if config.mixed:
            self.discriminator = Discriminator(self.obs_dim, self.act_dim, config.hidden, learners)
            self.discriminator_opt = adam(self.discriminator.parameters(), config.discriminator_lr)

    def view(self, dataset: OfflineDataset) -> Replay:
        cfg = self.config
        return demonstrations(
            dataset,
            cfg.expert,
            cfg.expert_episodes,
            mixed=cfg.mixed,
            normalize_obs=cfg.normalize_obs,
        )

    def held_out_view(self, dataset: OfflineDataset) -> Replay:
        return transitions(dataset, normalize_obs=self.config.normalize_obs)

    def prepare(self, replay: Replay) -> None:
        super().prepare(replay)
        if not isinstance(replay, Demonstrations) or replay.expert is None:
            raise DataError("odice_il needs a view with an expert's transitions, as `view` makes")
        pairs = replay.batch(replay.expert).to(self.obs_mean.device)
        self.expert_obs, self.expert_action = pairs.obs, pairs.action
        self.end_value.fill_(end_log_ratio(replay) / (1.0 - self.config.gamma))

    def noise(self, batch_size: int) -> dict[str, tuple[int, ...]]:
        return {"expert": (batch_size,), "between": (batch_size,)} if self.config.mixed else {}

    def update(self, batch: Batch, noise: Noise, phase: int) -> Metrics:
        metrics: Metrics = {}
        reward = torch.zeros_like(batch.reward)
        if self.config.mixed:
            metrics = self.minimize(self.discriminator_opt, self.discriminator_loss, batch, noise)
            reward = self.compute(self.log_ratio, batch)
        batch = replace(batch, reward=reward)
        weight = self.compute(self.weight, batch)
        metrics |= self.minimize(self.value_opt, self.value_loss, batch, combine=merged_gradient)
        polyak_update(self.value, self.value_target, self.config.polyak)
        metrics |= self.minimize(self.actor_opt, self.actor_loss, batch, weight)
        return metrics

    def discriminator_loss(self, batch: Batch, noise: Noise) -> tuple[Tensor, Metrics]:
        place = torch.special.ndtr(noise["expert"]) * len(self.expert_obs)
        row = place.long().clamp(max=len(self.expert_obs) - 1)
        expert = self.expert_obs[row], self.expert_action[row]
        everyone = batch.obs, batch.action
        logits = self.discriminator(*expert), self.discriminator(*everyone)
        share = torch.special.ndtr(noise["between"])
        slope = slope_penalty(self.discriminator, expert, everyone, share).mean(-1)
        loss = discrimination_loss(*logits).mean(-1) + self.config.penalty * slope
        names = ("expert_logit", "logit")
        return loss, {n: x.mean(-1) for n, x in zip(names, logits, strict=True)}

    def log_ratio(self, batch: Batch) -> Tensor:
        ratio: Tensor = self.discriminator(batch.obs, batch.action)
        return ratio + self.config.gamma * (1.0 - batch.mask) * self.end_value

    def weight(self, batch: Batch) -> Tensor:
        return policy_weight(self, batch)

    def value_loss(self, batch: Batch) -> tuple[Tensor, Metrics]:
        return value_losses(self, batch)

    def actor_loss(self, batch: Batch, weight: Tensor) -> tuple[Tensor, Metrics]:
        return weighted_regression(self, batch, weight)
