"""Advantage-weighted actor critic (AWAC; Nair et al., 2020, arXiv:2006.09359).

    y    = r + gamma (1 - terminated) min_i Q_i'(s', a'),       a' ~ pi(s')
    L_Q  = sum_i E[ (Q_i(s, a) - y)^2 ]
    A    = min_i Q_i(s, a) - min_i Q_i(s, a~),                  a~ ~ pi(s)
    L_pi = E[ -min(exp(beta A), 100) log pi(a | s) ],           beta = 1 / lambda of the paper

Order within an update: the critics, the policy with the new critics, the target. The value of a
state is that of a single action of the policy, and the policy is a Gaussian cut at the bounds
whose spread does not depend on the state.

Settings and weights are those of the CORL library, in which the method has published scores on
D4RL. The authors' code normalises the weights by a softmax over the batch, so that their mean is
one whatever the advantages, forms both losses before the first step, decays the policy's weights
by 1e-4 and draws 1024 transitions; its experiments go on online. log std is in [-5, 2], in
CORL in [-20, 2]. At evaluation the mean is played.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from offrl.actors import GaussianActor
from offrl.agent import Agent
from offrl.checks import check_intervals
from offrl.critics import Critic
from offrl.datasets.offline import Spec
from offrl.losses import cloning_loss, td_target
from offrl.networks import Learners
from offrl.optim import adam, polyak_update, target_of
from offrl.regularizers import advantage_weight
from offrl.representation import critic_regression, held_out_error
from offrl.types import Batch, Metrics, Noise


@dataclass(frozen=True)
class AWACConfig:
    """Settings of the CORL library on locomotion; see the recipes for the others."""

    beta: float = 3.0  # 1 / lambda, of the policy's weights; 10 on AntMaze and Adroit
    max_weight: float = 100.0  # at which those weights are cut
    gamma: float = 0.99  # discount of a step
    lr: float = 3e-4  # learning rate
    polyak: float = 0.005  # share of the weights that targets take over in an update
    hidden: tuple[int, ...] = (256, 256, 256)  # units of each layer
    beer: float = 0.0  # weight of BEER's penalty on the critics' features; 1e-3 in its paper
    normalize_obs: bool = True  # by the mean and deviation of the data
    reward_scale: float = 1.0  # factor on rewards
    reward_shift: float = 0.0  # added to them after it

    def __post_init__(self) -> None:
        check_intervals(
            self,
            beta="[0, inf)",
            max_weight="(0, inf)",
            gamma="[0, 1)",
            lr="(0, inf)",
            polyak="(0, 1]",
            beer="[0, inf)",
        )


class AWAC(Agent):
    """Cloning of logged actions by how much better they are than the policy's."""

    config: AWACConfig
    config_class = AWACConfig
    actor: GaussianActor
    suits = "good data, or mixed with dense rewards"
    recipes: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "locomotion": {"beta": 3.0},
        "antmaze": {"beta": 10.0, "reward_shift": -1.0},
        "adroit": {"beta": 10.0},
    }

    def __init__(self, spec: Spec, config: AWACConfig, learners: Learners) -> None:
        super().__init__(spec, config, learners)
        sizes = self.obs_dim, self.act_dim, config.hidden
        self.actor = GaussianActor(*sizes, learners, squash_mean=False)
        self.critic = Critic(*sizes, learners)
        self.critic_target = target_of(self.critic)
        self.actor_opt = adam(self.actor.parameters(), config.lr)
        self.critic_opt = adam(self.critic.parameters(), config.lr)

    def noise(self, batch_size: int) -> dict[str, tuple[int, ...]]:
        shape = (batch_size, self.act_dim)
        return {"draw": shape, "next_draw": shape}

    def update(self, batch: Batch, noise: Noise, phase: int) -> Metrics:
        metrics = self.minimize(self.critic_opt, self.critic_loss, batch, noise["next_draw"])
        metrics |= self.minimize(self.actor_opt, self.actor_loss, batch, noise["draw"])
        polyak_update(self.critic, self.critic_target, self.config.polyak)
        return metrics

    def critic_loss(self, batch: Batch, noise: Tensor) -> tuple[Tensor, Metrics]:
        with torch.no_grad():
            action = self.actor.sample(batch.next_obs, noise)
            next_q = self.critic_target(batch.next_obs, action).amin(0)
            target = td_target(batch.reward, batch.mask, next_q, self.config.gamma)
        return critic_regression(self, batch, target)

    def actor_loss(self, batch: Batch, noise: Tensor) -> tuple[Tensor, Metrics]:
        with torch.no_grad():
            value = self.critic(batch.obs, self.actor.sample(batch.obs, noise)).amin(0)
            advantage = self.critic(batch.obs, batch.action).amin(0) - value
            weight = advantage_weight(advantage, self.config.beta, self.config.max_weight)
        error = cloning_loss(self.actor(batch.obs), batch.action)
        metrics = {"advantage": advantage.mean(-1), "log_prob": -error.mean(-1)}
        return (weight * error).mean(-1), metrics

    def validate(self, batch: Batch) -> Metrics:
        loss = self.critic_loss(batch, torch.zeros_like(batch.action))
        return {**super().validate(batch), **held_out_error(loss)}
