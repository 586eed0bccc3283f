"""Losses as pure functions of tensors.

Each returns one value per sample; the caller takes the mean over the batch, the last axis, so
that learners stacked along a seed axis never mix. None of them detaches: gradients are stopped
where a target is computed, in the agent, in plain sight.
"""

from jaxtyping import Float
from torch import Tensor
from torch.distributions import Distribution


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


def ensemble_quantile(
    q: Float[Tensor, "ensemble *seed batch"], level: float
) -> Float[Tensor, "*seed batch"]:
    """The `level` quantile over the members: 0 is the least, 1 the greatest, 0.5 the median.

    Between two members it is interpolated along a line, as torch.quantile does by default. One
    sort of the few members, and no more: torch.quantile is slower and breaks a compiled graph.
    Source: RIQL (arXiv:2310.12955).
    """
    place = level * (len(q) - 1)
    below = int(place)
    above = min(below + 1, len(q) - 1)
    ordered = q.sort(0).values
    return ordered[below].lerp(ordered[above], place - below)


def huber_loss(error: Float[Tensor, "*any"], sigma: float) -> Float[Tensor, "*any"]:
    """H_sigma(x) = sigma^2 x^2 / 2 where |x| < 1 / sigma^2, else |x| - 1 / (2 sigma^2).

    The slope is at most 1, whatever sigma: a small sigma gives a parabola of which nearly all
    errors see only the inside, a large one the absolute error.
    Source: RIQL (arXiv:2310.12955), in the form of its authors' code.
    """
    size = error.abs()
    linear = size - 0.5 / sigma**2
    return (0.5 * sigma**2 * error.square()).where(size < 1.0 / sigma**2, linear)


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


def action_distance(
    action: Float[Tensor, "*seed batch act"], goal: Float[Tensor, "*seed batch act"]
) -> Float[Tensor, "*seed batch"]:
    """Squared distance of two actions, summed over their components (ReBRAC's penalties)."""
    return (action - goal).square().sum(-1)


def cloning_loss(
    policy: Tensor | Distribution, goal: Float[Tensor, "*seed batch act"]
) -> Float[Tensor, "*seed batch"]:
    """How far a policy is from a logged action: -log pi(a | s) of a distribution.

    Of an action, which has no likelihood, the squared distance summed over the components: up
    to a factor and a constant the same with a fixed spread. Weighted by exp(beta A) this is
    advantage-weighted regression (arXiv:1910.00177).
    """
    if isinstance(policy, Tensor):
        return action_distance(policy, goal)
    loss: Tensor = -policy.log_prob(goal)
    return loss


def chi_square_conjugate(x: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
    """f*(x) = x w - (w - 1)^2 with w = max(x / 2 + 1, 0): x + x^2 / 4 down to x = -2, then -1.

    The convex conjugate of Pearson's f(w) = (w - 1)^2 over density ratios w >= 0; its derivative
    is the best ratio w. Source: ODICE (arXiv:2402.00348).
    """
    ratio = (x / 2 + 1).clamp(min=0.0)
    return x * ratio - (ratio - 1).square()


def pseudo_huber(
    error: Float[Tensor, "*seed batch features"], width: float
) -> Float[Tensor, "*seed batch"]:
    """sqrt(|d|^2 + c^2) - c of the whole vector d: a parabola below c, the distance above.

    Source: improved consistency training (arXiv:2310.14189), where c = 0.00054 sqrt(features).
    """
    return (error.square().sum(-1) + width**2).sqrt() - width


def contrastive_bound(
    pair: Float[Tensor, "*any"], score: Float[Tensor, "*any others"], real: Tensor
) -> Float[Tensor, "*any"]:
    """u(x, y) - log mean_j exp u(x, y_j): at most the information that x and y share, in mean.

    `pair` is u of what belongs together, `score` u of x with each y_j of a reference that does not
    depend on x, `real` (of score's shape, or one that expands to it) 0 where y_j is to be left
    out. Tight at u = log p(y | x) / p(y), up to a term without x where the reference is another
    distribution than that of y; with n others it is at most log n where y is one of them.
    Source: the bound of Donsker and Varadhan taken for each x, as in Dichotomy of Control
    (arXiv:2210.13435); with the batch as reference it is InfoNCE (arXiv:1807.03748).
    """
    known = score.masked_fill(real == 0, -1e30)
    count = real.expand_as(score).sum(-1).clamp(min=1.0)
    return pair - known.logsumexp(-1) + count.log()
