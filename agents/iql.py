"""Implicit Q-learning (IQL; Kostrikov, Nair and Levine, ICLR 2022, arXiv:2110.06169).

    L_V  = E[ |tau - 1(u < 0)| u^2 ],  u = min_i Q_i'(s, a) - V(s)
    L_pi = E[ -min(exp(beta (min_i Q_i'(s, a) - V(s))), 100) log pi(a | s) ]
    L_Q  = sum_i E[ (r + gamma (1 - terminated) V(s') - Q_i(s, a))^2 ]

tau is `expectile` here, since `polyak` is the rate of the target. The paper leaves the order
within an update open; it follows the authors' code: V, then pi with the new V, then Q with the new
V, then Q'. As in that code the policy is a Gaussian whose mean is squashed (the distribution is
not), its spread does not depend on the state, its learning rate falls to zero along a cosine, and
locomotion rewards are scaled so that best and worst return are 1000 apart. At evaluation the mean
is played.

With `cocoa` every network sees a state as an anchor near the data and a difference from it
(offrl.cocoa); `hidden` are then the layers after the bilinear product, two of 100 in that paper.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from offrl.actors import GaussianActor
from offrl.agent import Agent
from offrl.checks import check_choice, check_intervals
from offrl.cocoa import CocoaConfig, Composition, policy_trunk, value_trunk
from offrl.critics import Critic, Value
from offrl.datasets.offline import Spec
from offrl.datasets.replay import Replay
from offrl.implicit import implicit_target, logged_value, value_regression
from offrl.losses import cloning_loss
from offrl.networks import Learners
from offrl.optim import adam, cosine_rate, polyak_update, set_lr, target_of
from offrl.regularizers import advantage_weight
from offrl.representation import critic_regression, held_out_error
from offrl.types import Batch, Metrics, Noise


@dataclass(frozen=True)
class IQLConfig(CocoaConfig):
    """Settings of the paper on locomotion; see the recipes for the others."""

    expectile: float = 0.7  # tau of L_V; 0.9 on AntMaze
    beta: float = 3.0  # inverse temperature of the policy's weights; 10 on AntMaze
    max_weight: float = 100.0  # at which those weights are cut
    dropout: float = 0.0  # of the policy's hidden layers; 0.1 on Adroit and Kitchen
    actor_schedule: Literal["cosine", "constant"] = "cosine"  # of the policy's learning rate
    gamma: float = 0.99  # discount of a step
    lr: float = 3e-4  # learning rate
    polyak: float = 0.005  # share of the weights that targets take over in an update
    hidden: tuple[int, ...] = (256, 256)  # units of each layer
    beer: float = 0.0  # weight of BEER's penalty on the critics' features; 1e-3 in its paper
    normalize_obs: bool = False  # by the mean and deviation of the data
    reward_by_return_range: bool = True  # scale by 1000 / (best - worst return)
    reward_scale: float = 1.0  # factor on rewards
    reward_shift: float = 0.0  # added to them after it

    def __post_init__(self) -> None:
        super().__post_init__()
        check_intervals(
            self,
            expectile="(0, 1)",
            beta="[0, inf)",
            max_weight="(0, inf)",
            dropout="[0, 1)",
            gamma="[0, 1)",
            lr="(0, inf)",
            polyak="(0, 1]",
            beer="[0, inf)",
        )
        check_choice(self, "actor_schedule", ("cosine", "constant"))


class IQL(Agent):
    """Expectile values, then a policy by weighted regression."""

    config: IQLConfig
    config_class = IQLConfig
    suits = "sparse rewards, stitching, mixed data"
    actor: GaussianActor
    recipes: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "locomotion": {"expectile": 0.7, "beta": 3.0, "reward_by_return_range": True},
        "antmaze": {
            "expectile": 0.9,
            "beta": 10.0,
            "reward_by_return_range": False,
            "reward_shift": -1.0,
        },
        "kitchen": {
            "expectile": 0.7,
            "beta": 0.5,
            "dropout": 0.1,
            "reward_by_return_range": False,
        },
        "adroit": {
            "expectile": 0.7,
            "beta": 0.5,
            "dropout": 0.1,
            "reward_by_return_range": False,
        },
    }

    def __init__(self, spec: Spec, config: IQLConfig, learners: Learners) -> None:
        super().__init__(spec, config, learners)
        obs_dim, act_dim, hidden = self.obs_dim, self.act_dim, config.hidden
        trunk = policy_trunk(config, obs_dim, act_dim, learners)
        self.actor = GaussianActor(obs_dim, act_dim, hidden, learners, config.dropout, trunk=trunk)
        critics = value_trunk(config, obs_dim, act_dim, hidden, learners, (2,))
        self.critic = Critic(obs_dim, act_dim, hidden, learners, trunk=critics)
        values = value_trunk(config, obs_dim, 0, hidden, learners)
        self.value = Value(obs_dim, hidden, learners, trunk=values)
        self.composition = Composition(self.actor)
        self.critic_target = target_of(self.critic)
        self.actor_opt = adam(self.actor.parameters(), config.lr)
        self.critic_opt = adam(self.critic.parameters(), config.lr)
        self.value_opt = adam(self.value.parameters(), config.lr)

    def prepare(self, replay: Replay) -> None:
        super().prepare(replay)
        self.composition.prepare(lambda: replay.batch(replay.index))

    def fingerprints(self) -> dict[str, str]:
        return self.composition.fingerprints()

    def noise(self, batch_size: int) -> dict[str, tuple[int, ...]]:
        return self.actor.net.noise(batch_size)

    def schedule(self, step: int, steps: int) -> None:
        if self.config.actor_schedule == "cosine":
            set_lr(self.actor_opt, cosine_rate(self.config.lr, step, steps))

    def update(self, batch: Batch, noise: Noise, phase: int) -> Metrics:
        batch = self.composition.rows(batch)
        q = self.compute(self.target_q, batch)
        metrics = self.minimize(self.value_opt, self.value_loss, batch, q)
        metrics |= self.minimize(self.actor_opt, self.actor_loss, batch, q, noise)
        metrics |= self.minimize(self.critic_opt, self.critic_loss, batch)
        polyak_update(self.critic, self.critic_target, self.config.polyak)
        return metrics

    def target_q(self, batch: Batch) -> Tensor:
        return logged_value(self, batch)

    def value_loss(self, batch: Batch, q: Tensor) -> tuple[Tensor, Metrics]:
        return value_regression(self, batch, q)

    def actor_loss(self, batch: Batch, q: Tensor, noise: Noise) -> tuple[Tensor, Metrics]:
        with torch.no_grad():
            advantage = q - self.value(batch.obs)
            weight = advantage_weight(advantage, self.config.beta, self.config.max_weight)
        error = cloning_loss(self.actor(batch.obs, noise), batch.action)
        metrics = {"advantage": advantage.mean(-1), "log_prob": -error.mean(-1)}
        return (weight * error).mean(-1), metrics

    def critic_loss(self, batch: Batch) -> tuple[Tensor, Metrics]:
        return critic_regression(self, batch, implicit_target(self, batch))

    def validate(self, batch: Batch) -> Metrics:
        batch = self.composition.anew(batch)
        return {**super().validate(batch), **held_out_error(self.critic_loss(batch))}
