"""Soft actor-critic as an agent: all of it but the critics' loss, in which its variants differ.

Order within an update: the policy on L_pi, its temperature on L_w with the same actions, the
critics on L_Q, their target. The losses are those of `offrl.sac`.
"""

from abc import abstractmethod
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from offrl.actors import SquashedGaussianActor
from offrl.agent import Agent
from offrl.cocoa import CocoaConfig
from offrl.critics import td_regression
from offrl.datasets.offline import Spec
from offrl.networks import Learners
from offrl.optim import adam, polyak_update
from offrl.representation import held_out_error
from offrl.sac import (
    SoftConfig,
    soft_actor_loss,
    soft_networks,
    soft_target,
    soft_temperature_loss,
)
from offrl.types import Batch, Metrics, Noise


class SoftAgent(Agent):
    """Policy, temperature and critics, and the steps that they take.

    A variant states `critic_loss`, and whatever else it does in its own way. `extra` and `cocoa`
    are those of `soft_networks`.
    """

    config: SoftConfig
    actor: SquashedGaussianActor

    def __init__(
        self,
        spec: Spec,
        config: SoftConfig,
        learners: Learners,
        critics: int,
        extra: int = 0,
        cocoa: CocoaConfig | None = None,
    ) -> None:
        super().__init__(spec, config, learners)
        self.actor, self.critic, self.temperature, self.critic_target = soft_networks(
            *(self.obs_dim, self.act_dim, config.hidden, learners), critics, extra, cocoa
        )
        self.actor_opt = adam(self.actor.parameters(), config.actor_lr)
        self.temperature_opt = adam(self.temperature.parameters(), config.actor_lr)
        self.critic_opt = adam(self.critic.parameters(), config.lr)

    def noise(self, batch_size: int) -> dict[str, tuple[int, ...]]:
        shape = (batch_size, self.act_dim)
        return {"draw": shape, "next_draw": shape}

    def update(self, batch: Batch, noise: Noise, phase: int) -> Metrics:
        metrics = self.policy_steps(batch, noise["draw"])
        return metrics | self.critic_steps(batch, noise["next_draw"])

    def policy_steps(self, batch: Batch, noise: Float[Tensor, "*seed batch act"]) -> Metrics:
        """A step of the policy, then one of its temperature with the same actions."""
        metrics = self.minimize(self.actor_opt, self.actor_loss, batch, noise)
        log_prob = metrics["log_prob"]
        return metrics | self.minimize(self.temperature_opt, self.temperature_loss, log_prob)

    def critic_steps(self, batch: Batch, noise: Any) -> Metrics:
        """A step of the critics, then one of their target towards them."""
        metrics = self.minimize(self.critic_opt, self.critic_loss, batch, noise)
        polyak_update(self.critic, self.critic_target, self.config.polyak)
        return metrics

    def actor_loss(self, batch: Batch, noise: Tensor) -> tuple[Tensor, Metrics]:
        """L_pi, with `log_prob` among the metrics."""
        return soft_actor_loss(self, batch, noise)

    def temperature_loss(self, log_prob: Tensor) -> tuple[Tensor, Metrics]:
        """L_w."""
        return soft_temperature_loss(self, log_prob)

    @abstractmethod
    def critic_loss(self, batch: Batch, noise: Any) -> tuple[Tensor, Metrics]:
        """L_Q, given what `update` hands to `critic_steps`."""

    def held_out_target(self, batch: Batch) -> Float[Tensor, "*seed batch"]:
        """y at a' = tanh of the policy's mean at s'."""
        return soft_target(self, batch, torch.zeros_like(batch.action))

    def validate(self, batch: Batch) -> Metrics:
        q = self.critic(batch.obs, batch.action)
        regression = td_regression(q, self.held_out_target(batch))
        return {**super().validate(batch), **held_out_error(regression)}
