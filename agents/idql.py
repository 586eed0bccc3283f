"""Implicit diffusion Q-learning (IDQL; Hansen-Estruch et al., 2023, arXiv:2304.10573).

Values from IQL, which asks about no action but logged ones; a diffusion model that clones, and
knows of no value; and a policy that is put together only when it acts:

    L_V  = E[ |tau - 1(u < 0)| u^2 ],  u = min_i Q_i'(s, a) - V(s)
    L_Q  = sum_i E[ (r + gamma (1 - terminated) V(s') - Q_i(s, a))^2 ]
    L_pi = E[ |eps(sqrt(abar_k) a + sqrt(1 - abar_k) e, k, s) - e|^2 ]
    a    = the best by min_i Q_i' of N actions from the average of the model

with k one of T levels, e standard normal, and |.|^2 averaged over the components of the action.
Order within an update, as in the authors' code: the model, V, Q with the new V, then the model's
average and Q'. The model's learning rate falls along a cosine to the end of the run, which is
3,000,000 updates long in that code; that of the values does not.

With `process` "flow" the model is a straight flow walked by Euler, trained on |v - (a - x)|^2: the
method that FQL's authors compare with as IFQL (arXiv:2502.02538). The agent named `ifql` has their
settings: 10 steps, 32 actions, tau 0.9, no average, rewards as they are, where no recipe says
otherwise. The networks stay those of this file; theirs, for model and values alike, are of four
GELU layers of 512, and their critics, not the targets of these, choose.

The network is `MLPResNet` with LayerNorm of the authors' published code, `MLPResNetV3` in another
version of it, with the same layers; neither critics nor V have LayerNorm. An update takes one step
of the model and one of the values, all on the whole batch; that code splits it for two steps of the
model, the second of them on no rows, and trains values on its first 256.

Departures: where DDPM here clips the estimate of a and adds the posterior's noise, the authors'
code clips each x_k and adds noise of variance beta_k; the loss is summed over components and
averaged over critics there, which Adam does not notice. The paper's quantile and exponential
values, and its acting by tau and 1 - tau, are not built. N is swept over 16, 64 and 256 in their
scripts: 64 is the one they train with.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from torch import Tensor
from torch.optim import Adam

from offrl.agent import Agent
from offrl.backbones import MLPDenoiser
from offrl.critics import Critic, Value, td_regression
from offrl.datasets.offline import Spec
from offrl.ema import Average
from offrl.generated_actions import (
    ImplicitGeneratorConfig,
    best_action_policy,
    cloning_error,
    equip,
    held_out_measures,
    matching_noise,
)
from offrl.implicit import implicit_target, logged_value, value_regression
from offrl.networks import Learners
from offrl.optim import cosine_rate, polyak_update, set_lr
from offrl.policy import PlanPolicy
from offrl.types import Batch, Metrics, Noise


@dataclass(frozen=True)
class IDQLConfig(ImplicitGeneratorConfig):
    """The authors' settings on locomotion, where batches are of 512; see the recipes."""


class IDQL(Agent):
    """Implicit values, a cloning diffusion model, and the best of its actions."""

    config: IDQLConfig
    config_class = IDQLConfig
    suits = "several ways to act, sparse rewards"
    measure = "bc_loss"
    net: MLPDenoiser
    average: Average[MLPDenoiser]
    critic: Critic
    critic_target: Critic
    value: Value
    net_opt: Adam
    critic_opt: Adam
    value_opt: Adam
    recipes: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "locomotion": {"expectile": 0.7, "reward_by_return_range": True, "batch_size": 512},
        "antmaze": {
            **{"expectile": 0.9, "reward_by_return_range": False, "reward_shift": -1.0},
            "batch_size": 512,
        },
    }

    def __init__(self, spec: Spec, config: IDQLConfig, learners: Learners) -> None:
        super().__init__(spec, config, learners)
        equip(self)

    def noise(self, batch_size: int) -> dict[str, tuple[int, ...]]:
        return {**matching_noise(self, batch_size), **self.net.noise(batch_size)}

    def schedule(self, step: int, steps: int) -> None:
        if self.config.actor_schedule == "cosine":
            set_lr(self.net_opt, cosine_rate(self.config.lr, step, steps))

    def update(self, batch: Batch, noise: Noise, phase: int) -> Metrics:
        q = self.compute(self.target_q, batch)
        metrics = self.minimize(self.net_opt, self.policy_loss, batch, noise)
        metrics |= self.minimize(self.value_opt, self.value_loss, batch, q)
        metrics |= self.minimize(self.critic_opt, self.critic_loss, batch)
        self.average.update(self.net)
        polyak_update(self.critic, self.critic_target, self.config.polyak)
        return metrics

    def target_q(self, batch: Batch) -> Tensor:
        return logged_value(self, batch)

    def policy_loss(self, batch: Batch, noise: Noise) -> tuple[Tensor, Metrics]:
        net = partial(self.net, noise=noise)
        return cloning_error(self, net, batch, noise).mean(-1), {}

    def value_loss(self, batch: Batch, q: Tensor) -> tuple[Tensor, Metrics]:
        return value_regression(self, batch, q)

    def critic_loss(self, batch: Batch) -> tuple[Tensor, Metrics]:
        return td_regression(self.critic(batch.obs, batch.action), implicit_target(self, batch))

    def validate(self, batch: Batch) -> Metrics:
        return held_out_measures(self, batch)

    def policy(self, learner: int = 0, provenance: Mapping[str, Any] | None = None) -> PlanPolicy:
        return best_action_policy(self, self.average.net, learner, provenance)
