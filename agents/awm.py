"""Advantage-weighted matching (AWM; Xue et al., 2025, arXiv:2509.25050).

The policy gradient of a diffusion or flow model can keep the loss that the model was trained with:
the matching loss of each clean sample, weighed by the sample's advantage. The paper shows that the
usual alternative, the likelihood of each denoising step, is the same with noisier targets. It is
about images, whose model is asked for new samples in groups; what follows is ours, the weight in
the form that logged data allows, on IQL's values:

    q    = min_i Q_i'(s, a),  A = q - V(s)
    L_V  = E[ |tau - 1(q - V(s) < 0)| (q - V(s))^2 ]
    L_pi = E[ w(A) |v(s, x_t, t) - (a - x)|^2 ],  x_t = (1 - t) x + t a,  x from N(0, I)
    L_Q  = sum_i E[ (r + gamma (1 - terminated) V(s') - Q_i(s, a))^2 ]

    w(A) = min(exp(beta A), 100)         exponential
    w(A) = 1(A > 0)                      filter

|.|^2 is averaged over the components of the action. Order within an update as in IQL: V, the
model with the new V, Q with the new V, then the model's average and Q'. Acting: an action from the
average; with more than one candidate the best by min_i Q_i'. With `process` "diffusion" the same
weights are on the noise-prediction loss.

Departures from the paper: its advantages are those of a group of samples, (R - mean) / std, cut and
of either sign. Samples of either sign need its ratio to the model that made them, its clipping and
its penalties |v - v_ref|^2, since a negative weight has no lower bound; logged data comes without
such a model, and a weight that is never negative needs none of the three. With it the loss is
advantage-weighted regression (arXiv:1910.00177) on a matching loss; IDQL's code has the same for
its diffusion model as "exp_adv". The paper's weights of time are not taken over, t is uniform. The
settings of the values are IQL's, the network is IDQL's; the paper has no results in control.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.optim import Adam

from offrl.agent import Agent
from offrl.backbones import MLPDenoiser
from offrl.checks import check_choice, check_intervals
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
from offrl.regularizers import advantage_weight
from offrl.types import Batch, Metrics, Noise


@dataclass(frozen=True)
class AWMConfig(ImplicitGeneratorConfig):
    """Ours for locomotion: IQL's of the values and weights; see the recipes for the others."""

    process: Literal["diffusion", "flow"] = "flow"
    levels: int = 10  # Euler's steps; of diffusion T, of noise, and steps of the sampler
    candidates: int = 1  # actions of which the best is taken when acting
    weights: Literal["exponential", "filter"] = "exponential"  # w
    beta: float = 3.0  # inverse temperature of exponential weights; 10 on AntMaze
    max_weight: float = 100.0  # at which those weights are cut
    dropout: float = 0.0  # before each block's norm

    def __post_init__(self) -> None:
        super().__post_init__()
        check_intervals(self, beta="[0, inf)", max_weight="(0, inf)")
        check_choice(self, "weights", ("exponential", "filter"))


class AWM(Agent):
    """Implicit values, and a flow trained on what is better than them."""

    config: AWMConfig
    config_class = AWMConfig
    suits = "several ways to act, mixed data"
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
        "locomotion": {"expectile": 0.7, "beta": 3.0, "reward_by_return_range": True},
        "antmaze": {
            **{"expectile": 0.9, "beta": 10.0, "reward_by_return_range": False},
            "reward_shift": -1.0,
        },
        "kitchen": {"expectile": 0.7, "beta": 0.5, "reward_by_return_range": False},
        "adroit": {"expectile": 0.7, "beta": 0.5, "reward_by_return_range": False},
    }

    def __init__(self, spec: Spec, config: AWMConfig, learners: Learners) -> None:
        super().__init__(spec, config, learners)
        equip(self)

    def noise(self, batch_size: int) -> dict[str, tuple[int, ...]]:
        return {**matching_noise(self, batch_size), **self.net.noise(batch_size)}

    def schedule(self, step: int, steps: int) -> None:
        if self.config.actor_schedule == "cosine":
            set_lr(self.net_opt, cosine_rate(self.config.lr, step, steps))

    def update(self, batch: Batch, noise: Noise, phase: int) -> Metrics:
        q = self.compute(self.target_q, batch)
        metrics = self.minimize(self.value_opt, self.value_loss, batch, q)
        metrics |= self.minimize(self.net_opt, self.policy_loss, batch, q, noise)
        metrics |= self.minimize(self.critic_opt, self.critic_loss, batch)
        self.average.update(self.net)
        polyak_update(self.critic, self.critic_target, self.config.polyak)
        return metrics

    def target_q(self, batch: Batch) -> Tensor:
        return logged_value(self, batch)

    def value_loss(self, batch: Batch, q: Tensor) -> tuple[Tensor, Metrics]:
        return value_regression(self, batch, q)

    def weight(self, advantage: Tensor) -> Tensor:
        """w of an advantage (*seed, batch)."""
        if self.config.weights == "filter":
            return (advantage > 0).to(advantage)
        return advantage_weight(advantage, self.config.beta, self.config.max_weight)

    def policy_loss(self, batch: Batch, q: Tensor, noise: Noise) -> tuple[Tensor, Metrics]:
        with torch.no_grad():
            advantage = q - self.value(batch.obs)
        error = cloning_error(self, partial(self.net, noise=noise), batch, noise)
        weight = self.weight(advantage)
        metrics = {"advantage": advantage.mean(-1), "weight": weight.mean(-1)}
        return (weight * error).mean(-1), {**metrics, "bc_loss": error.mean(-1)}

    def critic_loss(self, batch: Batch) -> tuple[Tensor, Metrics]:
        return td_regression(self.critic(batch.obs, batch.action), implicit_target(self, batch))

    def validate(self, batch: Batch) -> Metrics:
        return held_out_measures(self, batch)

    def policy(self, learner: int = 0, provenance: Mapping[str, Any] | None = None) -> PlanPolicy:
        return best_action_policy(self, self.average.net, learner, provenance)
