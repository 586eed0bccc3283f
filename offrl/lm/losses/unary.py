"""Losses of single completions with a label or a preference of their own.

    u = sum_t m_t (l_t - l_ref,t)

Each function takes `Scores` and returns one value per completion. S is the logistic function.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from offrl.lm.losses.scores import Scores, log_ratio, seq_score


def kto_baseline(mismatched: Scores) -> Float[Tensor, "*seed 1"]:
    """z_0 = max(0, mean over the batch of u), of completions under prompts of others; detached.

    An estimate of KL(pi || ref) that is never below 0. It needs more than one sequence, and over
    several processes the mean over all of them. Source: read in TRL 1.10's code.
    """
    return seq_score(mismatched).mean(-1, keepdim=True).clamp(min=0.0).detach()


def kto(
    scores: Scores,
    label: Bool[Tensor, "*batch"],
    *,
    baseline: float | Float[Tensor, "*#batch"],
    beta: float = 0.1,
    desirable: float = 1.0,
    undesirable: float = 1.0,
) -> Float[Tensor, "*batch"]:
    """Kahneman-Tversky optimisation: w_D (1 - S(beta (u - z_0))) or w_U (1 - S(beta (z_0 - u))).

    The first where the completion is desirable, the second where it is not; z_0 is `kto_baseline`.
    The paper balances w_D n_D : w_U n_U between 1 : 1 and 4 : 3. With z_0 = 0 it is
    apo_zero_unpaired.
    Data: single labels, reference. Twin: cloning of successes with failures as negatives.
    Source: arXiv:2402.01306, eq. 7; read in TRL 1.10's code.
    """
    z = beta * (seq_score(scores) - baseline)
    return torch.where(label, desirable * torch.sigmoid(-z), undesirable * torch.sigmoid(z))


def apo_zero_unpaired(
    scores: Scores, label: Bool[Tensor, "*batch"], *, beta: float = 0.1
) -> Float[Tensor, "*batch"]:
    """APO-zero of single labels: 1 - S(beta u) of a desirable completion, S(beta u) of another.

    Data: single labels, reference. Twin: cloning of successes with failures as negatives.
    Source: arXiv:2408.06266, eq. 7; read in TRL 1.10's code.
    """
    return kto(scores, label, baseline=0.0, beta=beta)


def nash_md(
    scores: Scores, preference: Float[Tensor, "*batch"], *, beta: float = 0.1
) -> Float[Tensor, "*batch"]:
    """Nash mirror descent: -(p - 1/2) L + beta sum_t sg[l_t - l_ref,t] l_t, p = P(y > y').

    y is a sample of the policy, y' one of the geometric mixture pi^(1 - m) pi_ref^m, which the
    caller draws (m = 0.5 in TRL); with m = 0 it is self-play. Both terms are score functions: their
    values say nothing.
    Data: completions sampled online, a judge against y', reference. Twin: regularised self-play.
    Source: arXiv:2312.00886; read in TRL 1.10's code.
    """
    control = (log_ratio(scores).detach() * log_ratio(scores, "none")).sum(-1)
    return beta * control - (preference - 0.5) * seq_score(scores, against="none")
