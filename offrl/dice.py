"""What the methods built on ODICE have in common: settings, networks, losses of value and policy.

    e_f  = r + gamma (1 - terminated) min_k V_k'(s') - V(s)      forward: V(s) moves
    e_b  = r + gamma (1 - terminated) V(s') - min_k V_k'(s)      backward: V(s') moves
    L_0  = (1 - lambda) E[ V(s) ]
    L_f  = lambda E[ f*(e_f) ],   L_b = lambda eta E[ f*(e_b) ]
    g    = grad L_0 + grad L_f + (the part of grad L_b that is orthogonal to grad L_f)
    L_pi = E[ -w log pi(a | s) ],   w = min(relu(e_f), max_weight)

V' are the targets, f* the conjugate of chi square. These are functions of an agent that has the
networks; the agent says in which order they are used.
Source: ODICE (Mao et al., ICLR 2024, arXiv:2402.00348) and its authors' code.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from offrl.actors import GaussianActor
from offrl.checks import check_choice, check_intervals
from offrl.critics import Value
from offrl.losses import chi_square_conjugate, td_target
from offrl.networks import Learners
from offrl.optim import orthogonal_add
from offrl.types import Batch, Metrics


@dataclass(frozen=True)
class DICEConfig:
    """The settings of ODICE; each agent adds its own."""

    dual_weight: float = 0.6  # lambda: of f*, beside 1 - lambda of V
    eta: float = 1.0  # of the backward gradient, before it is projected
    gradient: Literal["orthogonal", "semi", "true"] = (
        "orthogonal"  # semi: no backward one; true: of one residual without targets
    )
    max_weight: float = 100.0  # at which the policy's weights are cut
    twin: bool = True  # two value functions, of whose targets the lesser counts
    layer_norm: bool = True  # before each ReLU of the value
    squash_mean: bool = False  # tanh of the policy's mean
    weight_decay: float = 1e-4  # of the policy, in its gradient (L2)
    gamma: float = 0.99
    lr: float = 2e-4
    polyak: float = 0.005
    hidden: tuple[int, ...] = (256, 256)
    actor_hidden: tuple[int, ...] = (1024, 1024)
    normalize_obs: bool = False

    def __post_init__(self) -> None:
        check_intervals(
            self,
            dual_weight="(0, 1)",
            eta="[0, inf)",
            max_weight="(0, inf)",
            weight_decay="[0, inf)",
            gamma="[0, 1)",
            lr="(0, inf)",
            polyak="(0, 1]",
        )
        check_choice(self, "gradient", ("orthogonal", "semi", "true"))


@runtime_checkable
class DICE(Protocol):
    """An agent with value functions, their targets, and a Gaussian policy."""

    @property
    def config(self) -> DICEConfig: ...
    @property
    def actor(self) -> nn.Module: ...
    @property
    def value(self) -> nn.Module: ...
    @property
    def value_target(self) -> nn.Module: ...


def dice_networks(
    obs_dim: int, act_dim: int, config: DICEConfig, learners: Learners
) -> tuple[GaussianActor, Value]:
    """The policy, and the ensemble of one or two value functions."""
    norm: Literal["before", "none"] = "before" if config.layer_norm else "none"
    members = 2 if config.twin else 1
    return (
        GaussianActor(
            obs_dim, act_dim, config.actor_hidden, learners, squash_mean=config.squash_mean
        ),
        Value(obs_dim, config.hidden, learners, ensemble=members, norm=norm),
    )


def forward_residual(
    agent: DICE, batch: Batch, value: Float[Tensor, "ensemble *seed batch"]
) -> Float[Tensor, "ensemble *seed batch"]:
    """e_f of each value function, of which `value` is V(s).

    With the true gradient V(s') is its own and moves as well.
    """
    if agent.config.gradient == "true":
        next_value = agent.value(batch.next_obs)
    else:
        next_value = agent.value_target(batch.next_obs).amin(0, keepdim=True)
    return _target(agent, batch, next_value) - value


def backward_residual(agent: DICE, batch: Batch) -> Float[Tensor, "ensemble *seed batch"]:
    """e_b of each value function."""
    next_value = agent.value(batch.next_obs)
    residual: Tensor = _target(agent, batch, next_value) - agent.value_target(batch.obs).amin(0)
    return residual


def _target(agent: DICE, batch: Batch, next_value: Tensor) -> Tensor:
    reward, mask = (x.expand_as(next_value) for x in (batch.reward, batch.mask))
    return td_target(reward, mask, next_value, agent.config.gamma)


def value_losses(agent: DICE, batch: Batch) -> tuple[Tensor, Metrics]:
    """L_0, L_f and, for the orthogonal gradient, L_b: (losses, *seed).

    Each is the mean over the value functions.
    """
    weight, eta = agent.config.dual_weight, agent.config.eta
    value = agent.value(batch.obs)
    forward = forward_residual(agent, batch, value)
    losses = [(1.0 - weight) * value, weight * chi_square_conjugate(forward)]
    if agent.config.gradient == "orthogonal":
        backward = backward_residual(agent, batch)
        losses.append(weight * eta * chi_square_conjugate(backward))
    metrics = {"value": _mean(value), "residual": _mean(forward)}
    return torch.stack([_mean(loss) for loss in losses]), metrics


def merged_gradient(
    gradients: Sequence[Sequence[Tensor]], seed_axes: Sequence[int | None]
) -> Sequence[Tensor]:
    """g, of the gradients of `value_losses`."""
    linear, forward, *backward = gradients
    if backward:
        forward = orthogonal_add(forward, backward[0], seed_axes)
    return [a + b for a, b in zip(linear, forward, strict=True)]


def policy_weight(agent: DICE, batch: Batch) -> Float[Tensor, "*seed batch"]:
    """w, the mean over the value functions."""
    residual = forward_residual(agent, batch, agent.value(batch.obs))
    return residual.clamp(0.0, agent.config.max_weight).mean(0)


def weighted_regression(
    agent: DICE, batch: Batch, weight: Float[Tensor, "*seed batch"]
) -> tuple[Tensor, Metrics]:
    """L_pi, with the share of transitions that have a weight among its metrics."""
    log_prob = agent.actor(batch.obs).log_prob(batch.action)
    metrics = {
        "log_prob": log_prob.mean(-1),
        "weight": weight.mean(-1),
        "weighted_share": (weight > 0).to(weight).mean(-1),
    }
    return -(weight * log_prob).mean(-1), metrics


def _mean(x: Float[Tensor, "ensemble *seed batch"]) -> Float[Tensor, "*seed"]:
    return x.mean(-1).mean(0)
