"""Adaptive advantage-guided policy regularisation (A2PR; Liu, Li, Lan, Gao, Pan and Xu, ICML 2024,
arXiv:2405.19909).

TD3 whose policy is pulled to the better of two actions, the logged one and one that a model of
good behaviour makes of the policy's own, and to neither where neither is better than average:

    a'    = clip(pi'(s') + clip(0.2 N, -0.5, 0.5), -1, 1)
    y     = r + gamma (1 - terminated) min_i Q_i'(s', a')
    L_Q   = sum_i E[ (Q_i(s, a) - y)^2 ]
    L_V   = E[ (V(s) - min(y, r + gamma (1 - terminated) min_i Q_i(s', a')))^2 ]
    L_vae = w E[ 1(Q_1(s, a) > V(s)) |d(s, z) - a|^2 ] + KL / 2,  z from the encoder of (s, a)
    a^    = d(s, z),  z from the encoder of (s, pi(s))
    a_ref = a^ if A(a^) >= A(a) else a,  A(x) = Q_1(s, x) - V(s)
    m     = m_0 1(A(a^) >= 0 or A(a) > 0)
    L_pi  = -lambda E[ q ] + E[ m |pi(s) - a_ref|^2 ],  q = Q_1(s, pi(s)),  lambda = alpha / E|q|

|.|^2 is averaged over the components of the action, KL over those of the latent, of which there
are two for each component of the action. lambda, m and the choice of a_ref are constants for the
gradient.

Order within an update, as in the authors' code: the critic; V with the new critic in its second
target; the CVAE; on every second update also the policy, then the targets of both critic and
policy. The V in A and in the CVAE's gate is that from before this update's step.

a^ depends on the policy, and as published the gradient of the pull flows through encoder and
decoder into the policy: where the model gives back what it is given, the two terms of the
difference move together and the pull is weak. `detach_reference` makes a^ a constant. The authors
state alpha, w, m_0 and gamma for the three medium datasets of locomotion alone; each stands here
for all datasets of its environment, and the defaults are those of their command line.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from offrl.actors import DeterministicActor
from offrl.agent import Agent
from offrl.checks import check_intervals
from offrl.critics import Critic, Value
from offrl.cvae import CVAE
from offrl.datasets.offline import Spec
from offrl.losses import action_error
from offrl.networks import Learners
from offrl.optim import adam
from offrl.regularizers import advantage_mask, dual_reference, q_scale
from offrl.representation import critic_regression, held_out_error
from offrl.td3 import (
    TD3Config,
    next_action,
    target_noise,
    target_value,
    update_targets,
    with_target,
)
from offrl.types import Batch, Metrics, Noise


@dataclass(frozen=True)
class A2PRConfig(TD3Config):
    """The authors' settings where the recipes say nothing else."""

    alpha: float = 2.5  # multiplies Q, over its mean size; 40 on HalfCheetah
    mask_weight: float = 0.5  # m_0, of the pull; 1 on HalfCheetah and Walker2d, 0.4 on Hopper
    cvae_weight: float = 1.0  # w, of the CVAE's reconstruction; 1.5 on Walker2d
    cvae_lr: float = 1e-3
    detach_reference: bool = False  # whether a^ is a constant for the policy's gradient
    hidden: tuple[int, ...] = (256, 256, 256)  # of the policy
    critic_hidden: tuple[int, ...] = (256, 256, 256, 256)  # of the critics and of V
    cvae_hidden: tuple[int, ...] = (750, 750)  # of encoder and decoder

    def __post_init__(self) -> None:
        super().__post_init__()
        weights = dict.fromkeys(("alpha", "mask_weight", "cvae_weight"), "[0, inf)")
        check_intervals(self, **weights, cvae_lr="(0, inf)")


class A2PR(Agent):
    """TD3 with a pull to what is better than average, logged or generated."""

    config: A2PRConfig
    config_class = A2PRConfig
    suits = "mixed data, much of it poor"
    recipes: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "halfcheetah": {"alpha": 40.0, "cvae_weight": 1.0, "mask_weight": 1.0, "gamma": 0.99},
        "hopper": {"alpha": 2.5, "cvae_weight": 1.0, "mask_weight": 0.4, "gamma": 0.995},
        "walker2d": {"alpha": 2.5, "cvae_weight": 1.5, "mask_weight": 1.0, "gamma": 0.99},
    }

    def __init__(self, spec: Spec, config: A2PRConfig, learners: Learners) -> None:
        super().__init__(spec, config, learners)
        self.period = config.policy_delay
        obs_dim, act_dim, lr = self.obs_dim, self.act_dim, config.lr
        self.latent_dim = 2 * act_dim
        actor = DeterministicActor(obs_dim, act_dim, config.hidden, learners)
        critic = Critic(obs_dim, act_dim, config.critic_hidden, learners)
        self.actor, self.actor_target, self.actor_opt = with_target(actor, lr)
        self.critic, self.critic_target, self.critic_opt = with_target(critic, lr)
        self.value = Value(obs_dim, config.critic_hidden, learners)
        self.cvae = CVAE(obs_dim, act_dim, config.cvae_hidden, learners, self.latent_dim)
        self.value_opt = adam(self.value.parameters(), lr)
        self.cvae_opt = adam(self.cvae.parameters(), config.cvae_lr)

    def noise(self, batch_size: int) -> dict[str, tuple[int, ...]]:
        latent = (batch_size, self.latent_dim)
        return {**target_noise(self, batch_size), "latent": latent, "policy_latent": latent}

    def update(self, batch: Batch, noise: Noise, phase: int) -> Metrics:
        action = self.compute(self.next_action, batch, noise["target_action"])
        target = self.compute(self.target, batch, action)
        value = self.compute(self.old_value, batch)
        metrics = self.minimize(self.critic_opt, self.critic_loss, batch, target)
        metrics |= self.minimize(self.value_opt, self.value_loss, batch, action, target)
        metrics |= self.minimize(self.cvae_opt, self.cvae_loss, batch, value, noise["latent"])
        if phase == self.period - 1:
            drawn = noise["policy_latent"]
            metrics |= self.minimize(self.actor_opt, self.actor_loss, batch, value, drawn)
            update_targets(self)
        return metrics

    def next_action(self, batch: Batch, noise: Tensor) -> Tensor:
        return next_action(self, batch, noise)

    def target(self, batch: Batch, action: Tensor) -> Tensor:
        return target_value(self, self.critic_target, batch, action)

    def old_value(self, batch: Batch) -> Tensor:
        value: Tensor = self.value(batch.obs)
        return value

    def critic_loss(self, batch: Batch, target: Tensor) -> tuple[Tensor, Metrics]:
        return critic_regression(self, batch, target)

    def value_loss(self, batch: Batch, action: Tensor, target: Tensor) -> tuple[Tensor, Metrics]:
        with torch.no_grad():
            online = target_value(self, self.critic, batch, action)
        value = self.value(batch.obs)
        loss = (value - torch.minimum(target, online)).square().mean(-1)
        return loss, {"value": value.mean(-1)}

    def cvae_loss(self, batch: Batch, value: Tensor, noise: Tensor) -> tuple[Tensor, Metrics]:
        with torch.no_grad():
            better = (self.critic.first(batch.obs, batch.action) > value).to(value)
        action, divergence = self.cvae(batch.obs, batch.action, noise)
        reconstruction = (better * action_error(action, batch.action)).mean(-1)
        kl = divergence.mean(-1)
        loss = self.config.cvae_weight * reconstruction + 0.5 * kl
        return loss, {"reconstruction": reconstruction, "kl": kl, "better": better.mean(-1)}

    def actor_loss(self, batch: Batch, value: Tensor, noise: Tensor) -> tuple[Tensor, Metrics]:
        action = self.actor(batch.obs)
        q = self.critic.first(batch.obs, action)
        generated, _ = self.cvae(batch.obs, action, noise)
        if self.config.detach_reference:
            generated = generated.detach()
        with torch.no_grad():
            generated_advantage = self.critic.first(batch.obs, generated) - value
            logged_advantage = self.critic.first(batch.obs, batch.action) - value
            mask = advantage_mask(generated_advantage, logged_advantage)
        goal = dual_reference(generated, batch.action, generated_advantage, logged_advantage)
        bc_loss = self.config.mask_weight * (mask * action_error(action, goal)).mean(-1)
        q_loss = -q_scale(q, self.config.alpha) * q.mean(-1)
        used = (generated_advantage >= logged_advantage).to(q)
        metrics = {"q": q.mean(-1), "bc_loss": bc_loss, "mask": mask.mean(-1)}
        return q_loss + bc_loss, {**metrics, "generated": used.mean(-1)}

    def validate(self, batch: Batch) -> Metrics:
        action = self.next_action(batch, torch.zeros_like(batch.action))
        loss = self.critic_loss(batch, self.target(batch, action))
        return {**super().validate(batch), **held_out_error(loss)}
