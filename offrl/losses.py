"""Losses as pure functions of tensors.

Each returns one value per sample; the caller takes the mean over the batch, the last axis, so
that learners stacked along a seed axis never mix. None of them detaches: gradients are stopped
where a target is computed, in the agent, in plain sight.
"""

from jaxtyping import Float
from torch import Tensor


def td_target(
    reward: Float[Tensor, "*seed batch"],
    mask: Float[Tensor, "*seed batch"],
    next_value: Float[Tensor, "*seed batch"],
    gamma: float,
) -> Float[Tensor, "*seed batch"]:
    """r + gamma (1 - terminated) V(s')."""
    return reward + gamma * mask * next_value


def smoothed_action(
    action: Float[Tensor, "*seed batch act"],
    noise: Float[Tensor, "*seed batch act"],
    scale: float,
    clip: float,
) -> Float[Tensor, "*seed batch act"]:
    """Target policy smoothing: a + clip(scale N, -clip, clip), kept in [-1, 1].

    Source: TD3 (arXiv:1802.09477, eq. 14).
    """
    return (action + (scale * noise).clamp(-clip, clip)).clamp(-1.0, 1.0)


def td_loss(
    q: Float[Tensor, "ensemble *seed batch"], target: Float[Tensor, "*seed batch"]
) -> Float[Tensor, "*seed batch"]:
    """Squared TD error (Q - y)^2, summed over the ensemble."""
    return (q - target).square().sum(0)


def expectile_loss(
    diff: Float[Tensor, "*seed batch"], expectile: float
) -> Float[Tensor, "*seed batch"]:
    """Asymmetric squared error |tau - 1(u < 0)| u^2 (IQL, arXiv:2110.06169, eq. 4)."""
    return (expectile - (diff < 0).to(diff)).abs() * diff.square()


def action_error(
    action: Float[Tensor, "*seed batch act"], goal: Float[Tensor, "*seed batch act"]
) -> Float[Tensor, "*seed batch"]:
    """Squared distance of two actions, averaged over their components (TD3+BC's BC term)."""
    return (action - goal).square().mean(-1)


def chi_square_conjugate(x: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
    """f*(x) = x w - (w - 1)^2 with w = max(x / 2 + 1, 0): x + x^2 / 4 down to x = -2, then -1.

    The convex conjugate of Pearson's f(w) = (w - 1)^2 over density ratios w >= 0; its derivative
    is the best ratio w. Source: ODICE (arXiv:2402.00348).
    """
    ratio = (x / 2 + 1).clamp(min=0.0)
    return x * ratio - (ratio - 1).square()
