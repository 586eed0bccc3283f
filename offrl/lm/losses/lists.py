"""Losses of lists: several completions of one prompt with a score or reward each.

    u_k = sum_t m_t (l_t - l_ref,t) of the k-th completion

The list is the last axis of scores and rewards: `Scores` here are `*batch group token`, and every
loss returns one value per list. Where lists have fewer members than the widest, `member` is 1 on
those that exist, at least one of each; the others count for nothing. A list of one gives no
comparison, and no gradient where comparisons count.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor

from offrl.lm.losses.advantages import leave_one_out, log_mean_exp
from offrl.lm.losses.margins import Residual
from offrl.lm.losses.scores import Anchor, Scores, masked, seq_score


def _members(x: Tensor, member: Tensor | None) -> Tensor:
    return torch.ones_like(x, dtype=torch.bool) if member is None else member != 0


def _mean(x: Tensor, member: Tensor | None) -> Tensor:
    inside = _members(x, member)
    return masked(x, inside).sum(-1) / inside.sum(-1).clamp(min=1)


def _log_law(x: Tensor, member: Tensor | None) -> Tensor:
    """log softmax over the members, and 0 at the others."""
    inside = _members(x, member)
    return masked(x.masked_fill(~inside, -math.inf).log_softmax(-1), inside)


# -- listwise preferences -----------------------------------------------------------------------


def boltzmann(
    rewards: Float[Tensor, "*batch group"],
    member: Shaped[Tensor, "*batch group"] | None = None,
    *,
    temperature: float,
) -> Float[Tensor, "*batch group"]:
    """softmax(r / T) over the list: a target law of `adpo`, the weights of MPO and AWR."""
    return masked(_log_law(rewards / temperature, member).exp(), _members(rewards, member))


def adpo(
    scores: Scores,
    target: Float[Tensor, "*batch group"],
    member: Shaped[Tensor, "*batch group"] | None = None,
    *,
    tau: float = 0.8,
    against: Anchor = "ref",
) -> Float[Tensor, "*batch"]:
    """Anchored direct preference optimisation: -sum_k q_k log softmax(u / tau)_k.

    Up to the entropy of the target q, KL(q || softmax(u / tau)). Two members with q = (1, 0) and
    tau = 1 / beta are DPO, with q = (1 - e, e) cdpo; the whole vocabulary with a uniform anchor is
    supervised learning or distillation; q = softmax(r / beta) with tau = 1 is stationary at the
    KL-regularised optimum. The anchor is the reference, or `against` the policy that sampled. The
    authors' q is `boltzmann(standardised(r, eps=1e-8), temperature=0.5)`.
    Data: lists with scores or a teacher's law, reference. Twin: policy distillation, MPO's and
    V-MPO's projection.
    Source: arXiv:2510.18913, whose versions differ; read in its authors' code (tau 0.8, anchored to
    the sampler; its adaptive temperature is left out).
    """
    log_law = _log_law(seq_score(scores, against=against) / tau, member)
    return -(target * log_law).sum(-1)


def info_nca(
    scores: Scores,
    rewards: Float[Tensor, "*batch group"],
    member: Shaped[Tensor, "*batch group"] | None = None,
    *,
    alpha: float,
    beta: float = 0.1,
) -> Float[Tensor, "*batch"]:
    """InfoNCA: -sum_k softmax(r / alpha)_k log softmax(beta u)_k, adpo with tau = 1 / beta.

    Data: lists with rewards, reference. Twin: noise-contrastive energy estimation.
    Source: arXiv:2402.05369; read in its authors' code, where alpha is 1e-3 or 1e-4 of their
    rewards (the paper's alpha is 1 / alpha) and the first completion has 0.01 more.
    """
    return adpo(scores, boltzmann(rewards, member, temperature=alpha), member, tau=1.0 / beta)


def nca(
    scores: Scores,
    rewards: Float[Tensor, "*batch group"],
    member: Shaped[Tensor, "*batch group"] | None = None,
    *,
    alpha: float,
    beta: float = 0.1,
) -> Float[Tensor, "*batch"]:
    """NCA: -sum_k softmax(r / alpha)_k log S(beta u_k) - mean_k log S(-beta u_k).

    Each completion is told from noise by itself, so that the likelihood of the best does not fall
    with that of the others as under InfoNCA.
    Data: lists with rewards, reference. Twin: a discriminator's log-ratio as reward.
    Source: arXiv:2402.05369; read in its authors' code and, for pairs, in TRL 1.10's.
    """
    z = beta * seq_score(scores)
    better = (boltzmann(rewards, member, temperature=alpha) * F.logsigmoid(z)).sum(-1)
    return -better - _mean(F.logsigmoid(-z), member)


# -- regression on rewards ----------------------------------------------------------------------


def copg(
    scores: Scores,
    rewards: Float[Tensor, "*batch group"],
    member: Shaped[Tensor, "*batch group"] | None = None,
    *,
    beta: float,
    against: Anchor = "ref",
) -> Float[Tensor, "*batch"]:
    """Contrastive policy gradient: -2 / n sum_k A_k L_k, A = `leave_one_out` of R = r - beta sg[u].

    The mean over all pairs of -sg[R_i - R_j] (L_i - L_j): a policy gradient whose baseline is the
    other completions, right for samples of any law without an importance ratio, since it is
    stationary at pi_ref e^(r / beta) for each. Two members with r = 1/4 and -1/4 have beta / 2
    times the gradient of ipo(tau=beta); beta = 0 is twice RLOO. The value itself says nothing;
    `copg_square` has the same gradient and falls to 0.
    Data: groups with rewards from any source, reference. Twin: path consistency.
    Source: arXiv:2406.19185, with the form for groups of Command A's report; derived, and checked.
    No value of beta was found.
    """
    regularised = rewards - beta * seq_score(scores, against=against)
    logp = seq_score(scores, against="none")
    return -2.0 * _mean(leave_one_out(regularised, member) * logp, member)


def copg_square(
    scores: Scores,
    rewards: Float[Tensor, "*batch group"],
    member: Shaped[Tensor, "*batch group"] | None = None,
    *,
    beta: float,
    against: Anchor = "ref",
    residual: Residual = torch.square,
) -> Float[Tensor, "*batch"]:
    """CoPG as a regression: sum_k (R_k - mean R)^2 / ((n - 1) beta), R = r - beta u.

    For two members (R_1 - R_2)^2 / (2 beta): the value of the prompt cancels, which A*-PO has to
    estimate. Against "old" it is REBEL. `residual` stands for the square and may be robust.
    Data: groups with rewards from any source, reference. Twin: soft Bellman residual.
    Source: arXiv:2406.19185 and 2404.16767 (REBEL); derived, and checked against `copg`.
    """
    inside = _members(rewards, member)
    regularised = masked(rewards, inside) - beta * seq_score(scores, against=against)
    error = masked(residual(regularised - _mean(regularised, member)[..., None]), inside)
    return error.sum(-1) / (inside.sum(-1) - 1).clamp(min=1) / beta


def optimal_value(
    rewards: Float[Tensor, "*batch group"],
    member: Shaped[Tensor, "*batch group"] | None = None,
    *,
    temperature: float = 0.5,
) -> Float[Tensor, "*batch"]:
    """V* = T log mean_k e^(r_k / T) over samples of the reference: A*-PO's value of a prompt.

    T -> 0 is the greatest reward, T -> infinity their mean. Twin: the Gumbel value of XQL.
    Source: arXiv:2505.20686; read in TRL 1.10's code (T = beta_1 = 0.5, 8 samples).
    """
    return _mean(rewards - log_mean_exp(rewards, member, tau=temperature), member)


def a_star_po(
    scores: Scores,
    rewards: Float[Tensor, "*batch group"],
    member: Shaped[Tensor, "*batch group"] | None = None,
    *,
    value: Float[Tensor, "*batch"],
    beta: float = 1e-3,
) -> Float[Tensor, "*batch"]:
    """A*-PO: mean_k (beta u_k - (r_k - V*))^2, with V* the `optimal_value` of the prompt.

    A list of one, which the paper has, is a regression all the same.
    Data: completions with rewards, V* from samples of the reference. Twin: XQL's value and
    regression on advantages.
    Source: arXiv:2505.20686; read in TRL 1.10's code (beta = beta_2).
    """
    advantage = masked(rewards, _members(rewards, member)) - value[..., None]
    error = beta * seq_score(scores) - advantage
    return _mean(error.square(), member)


# -- what lists tell of a policy ----------------------------------------------------------------


def ranking_consistency(
    current: Float[Tensor, "*batch group"], previous: Float[Tensor, "*batch group"]
) -> Float[Tensor, "*batch"]:
    """C = (tau + 1) / 2, tau Kendall's correlation of two rankings of one list, in [0, 1].

    tau is the mean over pairs of sgn(a_i - a_j) sgn(b_i - b_j): a tie counts as no evidence, where
    the authors break it by position. Of a list of one it is 1/2.
    Source: CREAM (arXiv:2410.12735); read in its authors' code.
    """
    size = current.shape[-1]
    agreement = _signs(current) * _signs(previous)
    tau = agreement.sum((-2, -1)) / max(size * (size - 1), 1)
    return 0.5 * (tau + 1.0)


def _signs(x: Tensor) -> Tensor:
    return (x[..., :, None] - x[..., None, :]).sign()


def ratio_entropy(
    scores: Scores, member: Shaped[Tensor, "*batch group"] | None = None
) -> Float[Tensor, "*batch"]:
    """Entropy of softmax(u) over samples of the reference: the law of pi / pi_ref, normalised.

    Not a loss: what a policy has learnt over its reference is spread over many answers (high) or
    names one (low). Source: differential information (arXiv:2505.23761), its abstract; that DPO is
    exact when the rejected answers' law is pi_ref (pi_ref / pi)^beta is derived, and checked.
    """
    u = seq_score(scores)
    return -(boltzmann(u, member, temperature=1.0) * _log_law(u, member)).sum(-1)
