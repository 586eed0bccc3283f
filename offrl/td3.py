"""What the methods built on TD3 have in common: settings, targets, the critic's regression.

    a'  = clip(pi'(s') + clip(sigma N, -c, c), -1, 1)
    y   = r + gamma (1 - terminated) (min_i Q_i'(s', a') - penalty)
    L_Q = sum_i E[ (Q_i(s, a) - y)^2 ]

without a penalty where a method has none. These are functions of an agent that has TD3's
networks; the agent says in which order they are used.
Source: TD3 (Fujimoto, van Hoof and Meger, ICML 2018, arXiv:1802.09477, algorithm 1).
"""

from dataclasses import dataclass
from typing import Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim import Adam

from offrl.checks import check_intervals
from offrl.critics import Critic
from offrl.losses import smoothed_action, td_target
from offrl.optim import adam, polyak_update, target_of
from offrl.representation import critic_regression
from offrl.types import Batch, Metrics

M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class TD3Config:
    """The settings of TD3, and of the view of the data; each agent adds its own."""

    policy_noise: float = 0.2  # of the target action
    noise_clip: float = 0.5
    policy_delay: int = 2  # critic updates per policy update
    gamma: float = 0.99  # discount of a step
    lr: float = 3e-4  # learning rate
    polyak: float = 0.005  # share of the weights that targets take over in an update
    hidden: tuple[int, ...] = (256, 256)  # units of each layer
    beer: float = 0.0  # weight of BEER's penalty on the critics' features; 1e-3 in its paper
    normalize_obs: bool = True  # by the mean and deviation of the data
    reward_scale: float = 1.0  # factor on rewards
    reward_shift: float = 0.0  # added to them after it

    def __post_init__(self) -> None:
        check_intervals(
            self,
            policy_noise="[0, inf)",
            noise_clip="[0, inf)",
            policy_delay="[1, inf)",
            gamma="[0, 1)",
            lr="(0, inf)",
            polyak="(0, 1]",
            beer="[0, inf)",
        )


@runtime_checkable
class TD3(Protocol):
    """An agent with a deterministic policy, an ensemble of critics, and targets of both."""

    act_dim: int

    @property
    def config(self) -> TD3Config: ...
    @property
    def actor(self) -> nn.Module: ...
    @property
    def critic(self) -> Critic: ...
    @property
    def actor_target(self) -> nn.Module: ...
    @property
    def critic_target(self) -> Critic: ...


def with_target(net: M, lr: float) -> tuple[M, M, Adam]:
    """The network, its target and its optimiser."""
    return net, target_of(net), adam(net.parameters(), lr)


def target_noise(agent: TD3, batch_size: int) -> dict[str, tuple[int, ...]]:
    """Of target policy smoothing, for one learner."""
    return {"target_action": (batch_size, agent.act_dim)}


def next_action(
    agent: TD3, batch: Batch, noise: Float[Tensor, "*seed batch act"]
) -> Float[Tensor, "*seed batch act"]:
    """The target policy's action at s', smoothed."""
    cfg = agent.config
    action = agent.actor_target(batch.next_obs)
    return smoothed_action(action, noise, cfg.policy_noise, cfg.noise_clip)


def target_value(
    agent: TD3,
    critic: nn.Module,
    batch: Batch,
    action: Float[Tensor, "*seed batch act"],
    penalty: Float[Tensor, "*seed batch"] | None = None,
) -> Float[Tensor, "*seed batch"]:
    """y, with this critic's values of this action at s'."""
    next_q = critic(batch.next_obs, action).amin(0)
    next_q = next_q if penalty is None else next_q - penalty
    return td_target(batch.reward, batch.mask, next_q, agent.config.gamma)


def td3_critic_loss(
    agent: TD3, batch: Batch, noise: Float[Tensor, "*seed batch act"]
) -> tuple[Tensor, Metrics]:
    """L_Q without a penalty, and with BEER's term where the settings have one."""
    with torch.no_grad():
        action = next_action(agent, batch, noise)
        y = target_value(agent, agent.critic_target, batch, action)
    return critic_regression(agent, batch, y)


def update_targets(agent: TD3) -> None:
    """Both targets move towards their networks as these are now."""
    polyak_update(agent.actor, agent.actor_target, agent.config.polyak)
    polyak_update(agent.critic, agent.critic_target, agent.config.polyak)
