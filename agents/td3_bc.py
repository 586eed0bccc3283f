"""TD3+BC (Fujimoto and Gu, NeurIPS 2021, arXiv:2106.06860).

TD3 with a behaviour-cloning term in the policy's loss:

    y    = r + gamma (1 - terminated) min_i Q_i'(s', clip(pi'(s') + clip(0.2 N, -0.5, 0.5)))
    L_Q  = sum_i E[ (Q_i(s, a) - y)^2 ]
    L_pi = -lambda E[ Q_1(s, pi(s)) ] + E[ |pi(s) - a|^2 ],  lambda = alpha / E|Q_1(s, pi(s))|

|.|^2 is averaged over the components of the action, as in the authors' code. Order within an
update: the critic; on every second update also the policy, with the new critic, then the targets
of both. lambda is a constant for the gradient.
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
from offrl.losses import action_error
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
class TD3BCConfig(TD3Config):
    """Settings of the paper, table 3."""

    alpha: float = 2.5  # multiplies Q, over its mean size

    def __post_init__(self) -> None:
        super().__post_init__()
        check_intervals(self, alpha="[0, inf)")


class TD3BC(Agent):
    """TD3 with a pull to the logged action."""

    config: TD3BCConfig
    config_class = TD3BCConfig
    suits = "dense rewards, fair to good data"
    recipes: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "locomotion": {},
        "antmaze": {"reward_shift": -1.0},  # not in the paper; as the CORL library runs it
    }

    def __init__(self, spec: Spec, config: TD3BCConfig, learners: Learners) -> None:
        super().__init__(spec, config, learners)
        self.period = config.policy_delay
        actor = DeterministicActor(self.obs_dim, self.act_dim, config.hidden, learners)
        critic = Critic(self.obs_dim, self.act_dim, config.hidden, learners)
        self.actor, self.actor_target, self.actor_opt = with_target(actor, config.lr)
        self.critic, self.critic_target, self.critic_opt = with_target(critic, config.lr)

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
        bc_loss = action_error(action, batch.action).mean(-1)
        q_loss = -q_scale(q, self.config.alpha) * q.mean(-1)
        return q_loss + bc_loss, {"q": q.mean(-1), "bc_loss": bc_loss}

    def validate(self, batch: Batch) -> Metrics:
        loss = self.critic_loss(batch, torch.zeros_like(batch.action))
        return {**super().validate(batch), **held_out_error(loss)}
