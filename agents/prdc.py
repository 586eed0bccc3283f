"""Policy regularisation with dataset constraint (PRDC; Ran et al., ICML 2023, arXiv:2306.06569).

TD3 whose policy is pulled to the action of the dataset's nearest neighbour, distance taken over
(beta s, a) with standardised s:

    a_hat = action of argmin_{(s_i, a_i) in D} |beta (s - s_i)|^2 + |pi(s) - a_i|^2
    y     = r + gamma (1 - terminated) min_i Q_i'(s', clip(pi'(s') + clip(0.2 N, -0.5, 0.5)))
    L_Q   = sum_i E[ (Q_i(s, a) - y)^2 ]
    L_pi  = -lambda E[ Q_1(s, pi(s)) ] + E[ |pi(s) - a_hat|^2 ],  lambda = alpha / E|Q_1(s, pi(s))|

|.|^2 in L_pi is averaged over the components of the action, as in the authors' code; a_hat and
lambda are constants for the gradient. Order within an update: the critic; on every second update
also the policy, with the new critic, then the targets of both. The search is exact, over every
transition of the view. Where the nearest row is always the query's own (`own_row` is 1), the
method is TD3+BC. The paper's one neighbour is the only choice offered: the `k` of the authors'
code returns the k-th neighbour alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from offrl.actors import DeterministicActor
from offrl.agent import Agent
from offrl.checks import check_intervals
from offrl.critics import Critic
from offrl.datasets.offline import Spec
from offrl.datasets.replay import Replay
from offrl.files import cache_folder
from offrl.losses import action_error
from offrl.nearest import NearestAction
from offrl.networks import Learners
from offrl.regularizers import q_scale
from offrl.representation import held_out_error
from offrl.td3 import (
    TD3Config,
    target_noise,
    td3_critic_loss,
    update_targets,
    with_target,
)
from offrl.types import Batch, Metrics, Noise


@dataclass(frozen=True)
class PRDCConfig(TD3Config):
    """Settings of the paper on Hopper and Walker2d; see the recipes for the others."""

    alpha: float = 2.5  # multiplies Q, over its mean size; 40 on HalfCheetah, 7.5 on AntMaze
    beta: float = 2.0  # weight of the state in the distance; 7.5 on AntMaze

    def __post_init__(self) -> None:
        super().__post_init__()
        check_intervals(self, alpha="[0, inf)", beta="[0, inf)")


class PRDC(Agent):
    """TD3 with a pull to the nearest state-action pair of the dataset."""

    config: PRDCConfig
    config_class = PRDCConfig
    suits = "dense rewards, mixed data"
    nearest: NearestAction
    recipes: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "halfcheetah": {"alpha": 40.0, "beta": 2.0},
        "locomotion": {"alpha": 2.5, "beta": 2.0},
        "antmaze": {"alpha": 7.5, "beta": 7.5, "reward_scale": 10000.0, "reward_shift": -1.0},
    }

    def __init__(self, spec: Spec, config: PRDCConfig, learners: Learners) -> None:
        super().__init__(spec, config, learners)
        self.period = config.policy_delay
        actor = DeterministicActor(self.obs_dim, self.act_dim, config.hidden, learners)
        critic = Critic(self.obs_dim, self.act_dim, config.hidden, learners)
        self.actor, self.actor_target, self.actor_opt = with_target(actor, config.lr)
        self.critic, self.critic_target, self.critic_opt = with_target(critic, config.lr)

    def prepare(self, replay: Replay) -> None:
        super().prepare(replay)
        data = replay.batch(replay.index)
        self.nearest = NearestAction(
            data.obs.cpu(),
            data.action.cpu(),
            self.config.beta,
            rows=replay.index.cpu(),
            cache_dir=cache_folder() / "neighbours",
            device=self.obs_mean.device,
        )

    def noise(self, batch_size: int) -> dict[str, tuple[int, ...]]:
        return target_noise(self, batch_size)

    def update(self, batch: Batch, noise: Noise, phase: int) -> Metrics:
        metrics = self.minimize(self.critic_opt, self.critic_loss, batch, noise["target_action"])
        if phase == self.period - 1:
            metrics |= self.minimize(self.actor_opt, self.actor_loss, batch)
            update_targets(self)
        return metrics

    def critic_loss(self, batch: Batch, noise: Tensor) -> tuple[Tensor, Metrics]:
        return td3_critic_loss(self, batch, noise)

    def actor_loss(self, batch: Batch) -> tuple[Tensor, Metrics]:
        action = self.actor(batch.obs)
        q = self.critic.first(batch.obs, action)
        neighbour, own = self.nearest.with_own(batch.obs, action, batch.index)
        constraint = action_error(action, neighbour).mean(-1)
        q_loss = -q_scale(q, self.config.alpha) * q.mean(-1)
        metrics = {"q": q.mean(-1), "constraint": constraint, "own_row": own.mean(-1)}
        return q_loss + constraint, metrics

    def validate(self, batch: Batch) -> Metrics:
        loss = self.critic_loss(batch, torch.zeros_like(batch.action))
        return {**super().validate(batch), **held_out_error(loss)}

    def fingerprints(self) -> dict[str, str]:
        lists = self.nearest.fingerprint()
        return {} if lists is None else {"nearest": lists}

    def performance(self) -> dict[str, float]:
        return self.nearest.statistics()

    def save_caches(self) -> None:
        self.nearest.save()
