"""ODICE (Mao, Xu, Zhang and Zhan, ICLR 2024, arXiv:2402.00348): values by an orthogonal gradient.

A DICE method: it learns the value whose residual is the density ratio of the best policy's visits
to the data's, under a chi-square penalty, and clones the logged actions by that ratio.

    e_f  = r + gamma (1 - terminated) min_k V_k'(s') - V(s)
    e_b  = r + gamma (1 - terminated) V(s') - min_k V_k'(s)
    g_0  = grad (1 - lambda) E[ V(s) ],  g_f = grad lambda E[ f*(e_f) ]
    g_b  = grad lambda eta E[ f*(e_b) ],  f*(x) = x w - (w - 1)^2,  w = max(x / 2 + 1, 0)
    g    = g_0 + g_f + (g_b - (<g_f, g_b> / |g_f|^2) g_f),  on which V steps
    L_pi = E[ -min(relu(e_f), 100) log pi(a | s) ]

The forward gradient g_f moves V(s), the backward one g_b moves V(s'); their sum lets them cancel
each other, so only the part of g_b orthogonal to g_f is kept, over all parameters of both value
functions as one vector. lambda is `dual_weight` here. Order within an update: the policy's weights
from the values as they are; the values; their targets; the policy. The weights are relu(e_f) as in
the authors' code, not the ratio max(e_f / 2 + 1, 0) itself: equal up to scale and a shift, but
zero where the residual is negative. `gradient` has their ablations: "semi" drops g_b (as eta = 0
does), "true" takes the gradient of one residual of each value function without targets.

The policy is a Gaussian with one spread per component of the action, its mean without tanh;
actions are cut at the bounds. The values have LayerNorm before each ReLU, but not on AntMaze,
where the large mazes and umaze-diverse also take a single value function. The paper gives lambda
and eta by dataset in a table of its appendix that was not at hand: all recipes take the defaults
of the authors' code, 0.6 and 1, which are those of its run on hopper-medium-replay. So on other
data they are ours, to be tuned first (lambda in 0.4 to 0.9, eta in 0.2 to 1): above some lambda
too few residuals are positive, and `weighted_share` among the metrics shows it.

The range of returns that scales rewards is over whole episodes; the authors' code cuts them by a
counter that drifts, since it leaves out the last step of each episode that timed out.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from offrl.actors import GaussianActor
from offrl.agent import Agent
from offrl.datasets.offline import Spec
from offrl.dice import (
    DICEConfig,
    dice_networks,
    merged_gradient,
    policy_weight,
    value_losses,
    weighted_regression,
)
from offrl.networks import Learners
from offrl.optim import adam, polyak_update, target_of
from offrl.types import Batch, Metrics, Noise


@dataclass(frozen=True)
class ODICEConfig(DICEConfig):
    """Settings of the authors' code on locomotion; see the recipes for AntMaze."""

    reward_by_return_range: bool = True  # scale by 1000 / (best - worst return)
    reward_scale: float = 1.0  # factor on rewards
    reward_shift: float = 0.0  # added to them after it


ANT_MAZE: Mapping[str, Any] = {
    "layer_norm": False,
    "reward_by_return_range": False,
    "reward_scale": 3.0,  # -3 on every step but the one at the goal, which gets 0
    "reward_shift": -3.0,
}


class ODICE(Agent):
    """Values by an orthogonal gradient, then a policy by weighted regression."""

    config: ODICEConfig
    config_class = ODICEConfig
    suits = "mixed data, dense or sparse rewards"
    actor: GaussianActor
    recipes: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "locomotion": {"dual_weight": 0.6, "eta": 1.0},
        "antmaze": ANT_MAZE,
        "antmaze-umaze-diverse": {**ANT_MAZE, "twin": False},
        "antmaze-large-play": {**ANT_MAZE, "twin": False},
        "antmaze-large-diverse": {**ANT_MAZE, "twin": False},
    }

    def __init__(self, spec: Spec, config: ODICEConfig, learners: Learners) -> None:
        super().__init__(spec, config, learners)
        self.actor, self.value = dice_networks(self.obs_dim, self.act_dim, config, learners)
        self.value_target = target_of(self.value)
        self.actor_opt = adam(self.actor.parameters(), config.lr, config.weight_decay)
        self.value_opt = adam(self.value.parameters(), config.lr)

    def update(self, batch: Batch, noise: Noise, phase: int) -> Metrics:
        weight = self.compute(self.weight, batch)
        metrics = self.minimize(self.value_opt, self.value_loss, batch, combine=merged_gradient)
        polyak_update(self.value, self.value_target, self.config.polyak)
        metrics |= self.minimize(self.actor_opt, self.actor_loss, batch, weight)
        return metrics

    def weight(self, batch: Batch) -> Tensor:
        return policy_weight(self, batch)

    def value_loss(self, batch: Batch) -> tuple[Tensor, Metrics]:
        return value_losses(self, batch)

    def actor_loss(self, batch: Batch, weight: Tensor) -> tuple[Tensor, Metrics]:
        return weighted_regression(self, batch, weight)

    def validate(self, batch: Batch) -> Metrics:
        losses, metrics = self.value_loss(batch)
        return {**super().validate(batch), "value_loss": losses.sum(0), "value": metrics["value"]}
