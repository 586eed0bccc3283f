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
from offrl.losses import action_error, smoothed_action, td_loss, td_target
from offrl.networks import Learners
from offrl.optim import adam, polyak_update, target_of
from offrl.regularizers import q_scale
from offrl.types import Batch, Metrics, Noise


@dataclass(frozen=True)
class TD3BCConfig:
    """Settings of the paper, table 3."""

    alpha: float = 2.5  # multiplies Q, over its mean size
    policy_noise: float = 0.2  # of the target action
    noise_clip: float = 0.5
    policy_delay: int = 2  # critic updates per policy update
    gamma: float = 0.99
    lr: float = 3e-4
    polyak: float = 0.005
    hidden: tuple[int, ...] = (256, 256)
    normalize_obs: bool = True
    reward_scale: float = 1.0
    reward_shift: float = 0.0

    def __post_init__(self) -> None:
        check_intervals(
            self,
            alpha="[0, inf)",
            policy_noise="[0, inf)",
            noise_clip="[0, inf)",
            policy_delay="[1, inf)",
            gamma="[0, 1)",
            lr="(0, inf)",
            polyak="(0, 1]",
        )


class TD3BC(Agent):
    """TD3 with a pull to the logged action."""

    config: TD3BCConfig
    config_class = TD3BCConfig
    recipes: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "locomotion": {},
        "antmaze": {"reward_shift": -1.0},  # not in the paper; as the CORL library runs it
    }

    def __init__(self, spec: Spec, config: TD3BCConfig, learners: Learners) -> None:
        super().__init__(spec, config, learners)
        self.period = config.policy_delay
        self.actor = DeterministicActor(self.obs_dim, self.act_dim, config.hidden, learners)
        self.critic = Critic(self.obs_dim, self.act_dim, config.hidden, learners)
        self.actor_target = target_of(self.actor)
        self.critic_target = target_of(self.critic)
        self.actor_opt = adam(self.actor.parameters(), config.lr)
        self.critic_opt = adam(self.critic.parameters(), config.lr)

    def noise(self, batch_size: int) -> dict[str, tuple[int, ...]]:
        return {"target_action": (batch_size, self.act_dim)}

    def update(self, batch: Batch, noise: Noise, phase: int) -> Metrics:
        metrics = self.minimize(self.critic_opt, self.critic_loss, batch, noise["target_action"])
        if phase == self.period - 1:
            metrics |= self.minimize(self.actor_opt, self.actor_loss, batch)
            polyak_update(self.actor, self.actor_target, self.config.polyak)
            polyak_update(self.critic, self.critic_target, self.config.polyak)
        return metrics

    def critic_loss(self, batch: Batch, noise: Tensor) -> tuple[Tensor, Metrics]:
        cfg = self.config
        with torch.no_grad():
            next_action = self.actor_target(batch.next_obs)
            next_action = smoothed_action(next_action, noise, cfg.policy_noise, cfg.noise_clip)
            next_q = self.critic_target(batch.next_obs, next_action).amin(0)
            target = td_target(batch.reward, batch.mask, next_q, cfg.gamma)
        q = self.critic(batch.obs, batch.action)
        return td_loss(q, target).mean(-1), {"q_data": q[0].mean(-1), "target": target.mean(-1)}

    def actor_loss(self, batch: Batch) -> tuple[Tensor, Metrics]:
        action = self.actor(batch.obs)
        q = self.critic.first(batch.obs, action)
        bc_loss = action_error(action, batch.action).mean(-1)
        q_loss = -q_scale(q, self.config.alpha) * q.mean(-1)
        return q_loss + bc_loss, {"q": q.mean(-1), "bc_loss": bc_loss}

    def validate(self, batch: Batch) -> Metrics:
        loss, metrics = self.critic_loss(batch, torch.zeros_like(batch.action))
        return {**super().validate(batch), "td_error": loss, "q": metrics["q_data"]}
