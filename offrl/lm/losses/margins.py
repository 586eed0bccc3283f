"""Losses of pairs that aim at a gap: a square around it, or a hinge that rests beyond it.

    D = u_w - u_l,    u = sum_t m_t (l_t - l_ref,t)

Like those of `offrl.lm.losses.contrast` they take the `Scores` of both and return a value per pair.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from offrl.lm.losses.contrast import gap
from offrl.lm.losses.scores import Reduce, Scores, bc_term

Residual = Callable[[Tensor], Tensor]


def ipo(
    chosen: Scores,
    rejected: Scores,
    *,
    tau: float = 0.1,
    length: Reduce = "sum",
    residual: Residual = torch.square,
) -> Float[Tensor, "*batch"]:
    """Identity preference optimisation: (D - 1 / (2 tau))^2, a gap to reach and not to exceed.

    `length="mean"` averages u over each sequence, as TRL does with its authors' consent; the paper
    prints sums. `residual` may be robust: `partial(huber_loss, sigma=...)` of offrl.losses.
    Data: pairs, reference. Twin: soft Bellman residual on pairs.
    Source: arXiv:2310.12036, eq. 17; read in TRL 1.10's code.
    """
    return residual(gap(chosen, rejected, length) - 0.5 / tau)


def online_ipo(
    first: Scores,
    second: Scores,
    *,
    preference: Float[Tensor, "*batch"],
    tau: float = 0.1,
) -> Float[Tensor, "*batch"]:
    """IPO under a judge: p (D - c)^2 + (1 - p) (D + c)^2, c = 1 / (2 tau), p = P(first > second).

    On pairs sampled from the policy itself its gradient is -4 / tau times that of regularised
    self-play, preference - tau KL. On samples of the geometric mixture of policy and reference it
    is IPO-MD, which differs in the sampling alone.
    Data: pairs sampled online, judge, reference. Twin: regularised self-play.
    Source: arXiv:2403.08635, from memory; the gradient derived and checked over all answers.
    """
    return _judged(gap(first, second), preference, 0.5 / tau)


def inpo(
    first: Scores,
    second: Scores,
    *,
    eta: float,
    tau: float,
    preference: float | Float[Tensor, "*batch"] = 1.0,
) -> Float[Tensor, "*batch"]:
    """Iterative Nash policy optimisation: p (h - c)^2 + (1 - p) (h + c)^2, c = 1 / (2 eta).

    h = (tau / eta) D + (1 - tau / eta) D_prev, with D_prev the gap against the previous iterate,
    which sampled the pair. p = 1 says that the first is preferred. Its minimum is the step of
    mirror descent pi_ref^(tau / eta) pi_prev^(1 - tau / eta) e^(P / eta); with pi_prev = pi_ref it
    is ipo(tau=eta). The paper's values of eta and tau were not found.
    Data: pairs sampled from the previous iterate, judge, reference. Twin: mirror-descent policy
    iteration.
    Source: arXiv:2407.00617; read in two reimplementations, the minimum derived.
    """
    share = tau / eta
    h = share * gap(first, second) + (1.0 - share) * gap(first, second, against="prev")
    return _judged(h, preference, 0.5 / eta)


def _judged(h: Tensor, preference: float | Tensor, target: float) -> Tensor:
    return preference * (h - target).square() + (1.0 - preference) * (h + target).square()


def hinge(chosen: Scores, rejected: Scores, *, beta: float = 0.05) -> Float[Tensor, "*batch"]:
    """RSO's normalised hinge: max(0, 1 - beta D).

    At D = 0 its slope is twice DPO's, beyond D = 1 / beta it is 0.
    Data: pairs, reference. Twin: margin ranking.
    Source: arXiv:2309.06657; read in TRL 1.10's code.
    """
    return (1.0 - beta * gap(chosen, rejected)).relu()


def slic(
    chosen: Scores, rejected: Scores, *, delta: float = 1.0, weight: float = 0.5
) -> Float[Tensor, "*batch"]:
    """SLiC-HF: max(0, delta - L_w + L_l) - weight L_w, without a reference.

    The paper clones a target of supervised learning, which is the chosen answer here.
    Data: pairs. Twin: margin ranking with behaviour cloning.
    Source: arXiv:2305.10425, from memory, delta and weight included; read with a factor beta as
    TRL 1.10's CPO hinge.
    """
    ranking = (delta - gap(chosen, rejected, against="none")).relu()
    return ranking + weight * bc_term(chosen)
