"""Conservative Q-learning (CQL; Kumar et al., NeurIPS 2020, arXiv:2006.04779).

Soft actor-critic whose critics are pushed down where actions have no data and up where they have:

    L_pi  = E[ w log pi(a|s) - min_i Q_i(s, a) ],              a ~ pi(s)
    L_w   = -log w (E[ log pi(a|s) ] + H),                     the same a, H = -dim(a)
    y     = r + gamma (1 - terminated) min_i Q_i'(s', a'),     a' ~ pi(s')
    gap_i = E[ T log sum_j exp((Q_i(s, a_j) - log p(a_j)) / T) - Q_i(s, a) ]
    L_Q   = sum_i E[ (Q_i(s, a) - y)^2 ] + alpha v sum_i gap_i
    L_v   = -log v alpha (mean_i gap_i - tau),                 with `lagrange`; else v = 1

a_j are n actions each of U(-1, 1), of pi(s) and of pi(s'), with the densities p that they were
drawn from: CQL(H) by importance sampling, appendix F. Order within an update: the policy, its
temperature w, the critics, their target, the multiplier v. L_Q has the policy and w as just
stepped, and v from before its step; L_w has the log pi of L_pi, and L_v the gap of L_Q.

The recipes are those of the CORL library, whose scores are on the v2 datasets and which scales the
rewards of locomotion on hopper-medium alone; the authors ran v0 with alpha 5 or 10, 1e-4 for the
policy and 40,000 steps of cloning, in which log pi(a|s) of the logged action stands for min Q in
L_pi (`bc_steps`). From the paper differ, in both codes as here: squared errors without 1/2, so that
alpha is twice the paper's at the same effect; actions of pi(s') beside those of pi(s); no division
of the sum by 3n, so that gap and tau are larger by T log 3n. From both codes: L_v is of v there and
not of log v, and has no slope beyond 1e6, where v stays for good; ours comes back. From the
authors' alone: there w is stepped before L_pi, and L_Q has the policy from before its step;
`max_target_backup` takes each critic's best, then the least; log pi has 1e-6 inside the logarithm
of tanh's slope, ours is exact. From CORL's alone: there L_pi, L_w and L_Q are all formed before the
first step; v begins at e, here at 1 as the authors' does (log v gets from one to the other in 3,300
steps of 3e-4); on AntMaze one critic has 5 layers and the other 3, here both 5; the critics' first
weights are orthogonal; log std is scaled and shifted by two numbers that are learned, from 1 and
-1, and cut to [-20, 2]; here to [-5, 2], as the authors' is.

With `cocoa` the networks see states as anchors and differences (offrl.cocoa). That paper's CQL has
other settings than the locomotion recipe: `--alpha 5 --actor-lr 1e-4 --no-normalize-obs`. At its
size f and g end in 8,192 units, for each of 31 actions a state: that takes a GPU, or a smaller
`cocoa_rank`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from offrl.checks import check_intervals
from offrl.cocoa import CocoaConfig, Composition
from offrl.critics import td_regression
from offrl.datasets.offline import Spec
from offrl.datasets.replay import Replay
from offrl.multipliers import Multiplier
from offrl.networks import Learners
from offrl.optim import adam
from offrl.regularizers import log_sum_exp_gap
from offrl.representation import with_beer
from offrl.sac import SoftConfig, best_target, proposals, values_of_many
from offrl.soft_agent import SoftAgent
from offrl.types import Batch, Metrics, Noise

LIMIT = 1e6  # of the multiplier


@dataclass(frozen=True)
class CQLConfig(SoftConfig, CocoaConfig):
    """Settings of the CORL library on locomotion; see the recipes for the others."""

    alpha: float = 10.0  # multiplies the gap; 5 on AntMaze, 1 on Adroit
    samples: int = 10  # n, of each of the three kinds of action
    lse_temperature: float = 1.0  # T
    importance_sampling: bool = True  # else p = 1 and the logged action joins the sum, CQL(rho)
    lagrange: bool = False  # learn v
    target_gap: float = 5.0  # tau of L_v; 0.8 on AntMaze
    clip_low: float = -math.inf  # of each sample's gap; -200 on AntMaze
    clip_high: float = math.inf
    max_target_backup: bool = False  # a' is the best of n, by min_i Q_i'
    backup_entropy: bool = False  # -w log pi(a'|s') in y, as in soft actor-critic
    bc_steps: int = 0  # of cloning at the start; 40,000 in the authors' code
    extra_critic_layers: int = 0  # that critics have more than the policy; 2 on AntMaze
    actor_lr: float = 3e-5  # of the policy and of its temperature; 1e-4 on AntMaze and Adroit
    normalize_obs: bool = True  # by the mean and deviation of the data
    reward_by_return_range: bool = False  # scale by 1000 / (best - worst return)
    cocoa_rank: int = 32  # d, products summed in each feature of COCOA's networks
    cocoa_hidden: tuple[int, ...] = (256, 256, 256)  # of f and g; the last counts the features

    def __post_init__(self) -> None:
        SoftConfig.__post_init__(self)
        CocoaConfig.__post_init__(self)
        check_intervals(
            self,
            alpha="[0, inf)",
            samples="[1, inf)",
            lse_temperature="(0, inf)",
            target_gap="(-inf, inf)",
            clip_low="[-inf, inf)",
            clip_high=f"({self.clip_low}, inf]",
            bc_steps="[0, inf)",
            extra_critic_layers="[0, inf)",
        )


class CQL(SoftAgent):
    """Soft actor-critic with values that are low where there are no data."""

    config: CQLConfig
    config_class = CQLConfig
    cloning: Tensor  # 1 while the policy is cloned, else 0
    suits = "dense rewards, any quality"
    recipes: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "locomotion": {"alpha": 10.0, "actor_lr": 3e-5, "normalize_obs": True},
        "hopper-medium": {
            "alpha": 10.0,
            "actor_lr": 3e-5,
            "normalize_obs": True,
            "reward_by_return_range": True,
        },
        "antmaze": {
            "alpha": 5.0,
            "lagrange": True,
            "target_gap": 0.8,
            "clip_low": -200.0,
            "max_target_backup": True,
            "extra_critic_layers": 2,
            "actor_lr": 1e-4,
            "normalize_obs": False,
            "reward_scale": 10.0,
            "reward_shift": -5.0,
        },
        "adroit": {"alpha": 1.0, "actor_lr": 1e-4, "normalize_obs": True},
    }

    def __init__(self, spec: Spec, config: CQLConfig, learners: Learners) -> None:
        super().__init__(spec, config, learners, 2, config.extra_critic_layers, config)
        self.composition = Composition(self.actor)
        if config.lagrange:
            self.multiplier = Multiplier(learners, LIMIT)
            self.multiplier_opt = adam(self.multiplier.parameters(), config.lr)
        self.register_buffer("cloning", torch.zeros(()))

    def prepare(self, replay: Replay) -> None:
        super().prepare(replay)
        self.composition.prepare(lambda: replay.batch(replay.index))

    def fingerprints(self) -> dict[str, str]:
        return self.composition.fingerprints()

    def noise(self, batch_size: int) -> dict[str, tuple[int, ...]]:
        one = (batch_size, self.act_dim)
        many = (self.config.samples, *one)
        best = many if self.config.max_target_backup else (1, *one)
        return {"draw": one, "next_draw": best, "random": many, "here": many, "then": many}

    def schedule(self, step: int, steps: int) -> None:
        self.cloning.fill_(float(step < self.config.bc_steps))

    def update(self, batch: Batch, noise: Noise, phase: int) -> Metrics:
        batch = self.composition.rows(batch)
        metrics = self.policy_steps(batch, noise["draw"])
        metrics |= self.critic_steps(batch, noise)
        if self.config.lagrange:
            gap = metrics["gap"]
            metrics |= self.minimize(self.multiplier_opt, self.multiplier_loss, gap)
        return metrics

    def actor_loss(self, batch: Batch, noise: Tensor) -> tuple[Tensor, Metrics]:
        loss, metrics = super().actor_loss(batch, noise)
        if self.config.bc_steps:
            log_prob = self.actor.log_prob(batch.obs, batch.action).mean(-1)
            loss = loss + self.cloning * (metrics["q"] - log_prob)
        return loss, metrics

    def critic_loss(self, batch: Batch, noise: Noise) -> tuple[Tensor, Metrics]:
        cfg = self.config
        with torch.no_grad():
            target = best_target(self, batch, noise["next_draw"], cfg.backup_entropy)
            action, log_density = proposals(self, batch, noise)
            weight = self.multiplier() if cfg.lagrange else 1.0
        features = self.critic.features(batch.obs, batch.action)
        data = self.critic.read(features)
        sampled = values_of_many(self.critic, batch.obs, action)
        if not cfg.importance_sampling:
            sampled = torch.cat([data.unsqueeze(-2), sampled], -2)
            log_density = torch.zeros_like(sampled[0])
        gap = log_sum_exp_gap(sampled, log_density, data, cfg.lse_temperature)
        gap = gap.clamp(cfg.clip_low, cfg.clip_high).mean(-1)
        loss, metrics = with_beer(self, batch, features, *td_regression(data, target))
        return loss + cfg.alpha * weight * gap.sum(0), {**metrics, "gap": gap.mean(0)}

    def multiplier_loss(self, gap: Tensor) -> tuple[Tensor, Metrics]:
        violation = self.config.alpha * (gap - self.config.target_gap)
        return self.multiplier.ascent(violation), {"multiplier": self.multiplier()}

    def held_out_target(self, batch: Batch) -> Tensor:
        mode = torch.zeros_like(batch.action).unsqueeze(-3)
        return best_target(self, batch, mode, self.config.backup_entropy)

    def validate(self, batch: Batch) -> Metrics:
        return super().validate(self.composition.anew(batch))
