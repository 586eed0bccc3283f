"""Losses of pairs: a chosen completion against a rejected one of the same prompt.

    D = s(y_w) - s(y_l),    s(y) = u(y) = sum_t m_t (l_t - l_ref,t) unless a method says otherwise

Each function takes the `Scores` of both and returns one value per pair. S is the logistic function.
Losses that aim at a gap instead, IPO and its kin, are in `offrl.lm.losses.margins`.
"""

import math
from functools import partial

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor

from offrl.divergences import FKind, at_least_float32, f_prime
from offrl.errors import ConfigError
from offrl.lm.losses.scores import (
    Anchor,
    Link,
    Reduce,
    Scores,
    bc_term,
    log_ratio,
    masked,
    seq_score,
)


def gap(
    chosen: Scores,
    rejected: Scores,
    length: Reduce = "sum",
    link: Link | None = None,
    against: Anchor = "ref",
) -> Float[Tensor, "*batch"]:
    """D = s(y_w) - s(y_l), with the scores of `seq_score`."""
    return seq_score(chosen, length, link, against) - seq_score(rejected, length, link, against)


def logistic(
    z: Float[Tensor, "*batch"], smoothing: float | Float[Tensor, "*#batch"] = 0.0
) -> Float[Tensor, "*batch"]:
    """-(1 - e) log S(z) - e log S(-z): cross-entropy under labels of which e are wrong."""
    return -(1.0 - smoothing) * F.logsigmoid(z) - smoothing * F.logsigmoid(-z)


# -- logistic losses ----------------------------------------------------------------------------


def dpo(
    chosen: Scores,
    rejected: Scores,
    *,
    beta: float = 0.1,
    length: Reduce = "sum",
    link: Link | None = None,
    against: Anchor = "ref",
    margin: float | Float[Tensor, "*#batch"] = 0.0,
    smoothing: float | Float[Tensor, "*#batch"] = 0.0,
) -> Float[Tensor, "*batch"]:
    """Direct preference optimisation: -log S(beta D - margin), with smoothed labels if asked.

    Under Bradley-Terry labels it is stationary at pi_ref e^(r / beta); under hard labels it has no
    finite minimum. `length`, `link` and `against` say what s(y) is, for the methods below.
    Data: pairs, reference. Twin: contrastive preference learning of trajectories.
    Source: arXiv:2305.18290; read in TRL 1.10's code.
    """
    return logistic(beta * gap(chosen, rejected, length, link, against) - margin, smoothing)


def ln_dpo(chosen: Scores, rejected: Scores, *, beta: float = 5.0) -> Float[Tensor, "*batch"]:
    """Length-normalised DPO: -log S(beta (u_w / |y_w| - u_l / |y_l|)).

    With equal lengths n it is DPO with beta / n, hence the larger beta.
    Data: pairs, reference. Twin: returns averaged over the steps.
    Source: Tulu 3 (arXiv:2411.15124); read in TRL 1.10's code, the beta in Tulu 3's commands.
    """
    return dpo(chosen, rejected, beta=beta, length="mean")


def ld_dpo(
    chosen: Scores, rejected: Scores, *, alpha: float, beta: float = 0.1
) -> Float[Tensor, "*batch"]:
    """Length-desensitised DPO: tokens beyond the shorter completion's length count alpha.

    alpha = 1 is DPO; alpha = 0 compares equally many tokens of both.
    Data: pairs, reference. Twin: returns over a common horizon.
    Source: arXiv:2409.06411; read in TRL 1.10's code, where alpha has no default either.
    """
    shorter = torch.minimum(chosen.length, rejected.length)
    return logistic(beta * (_cut(chosen, shorter, alpha) - _cut(rejected, shorter, alpha)))


def _cut(scores: Scores, length: Tensor, alpha: float) -> Tensor:
    """u, with the tokens after the first `length` counted alpha times."""
    tail = (scores.mask != 0).cumsum(-1) > length[..., None]
    return seq_score(scores) - (1.0 - alpha) * masked(log_ratio(scores), tail).sum(-1)


def simpo(
    chosen: Scores, rejected: Scores, *, beta: float = 2.5, gamma: float = 1.375
) -> Float[Tensor, "*batch"]:
    """SimPO: -log S(beta (L_w / |y_w| - L_l / |y_l|) - gamma), without a reference.

    gamma = 0 is ln_dpo with a reference that gives every token the same probability.
    Data: pairs. Twin: ranking without a reference, with a margin.
    Source: arXiv:2405.14734; read in TRL 1.10's code and recipe.
    """
    return dpo(chosen, rejected, beta=beta, length="mean", against="none", margin=gamma)


def cdpo(
    chosen: Scores, rejected: Scores, *, beta: float = 0.1, smoothing: float = 0.1
) -> Float[Tensor, "*batch"]:
    """Conservative DPO: -(1 - e) log S(beta D) - e log S(-beta D) = dpo + e beta D.

    Its minimum is where S(beta D) = 1 - e, so that confidence stays bounded.
    Data: pairs, reference. Twin: conservative labels.
    Source: Mitchell's note of 2023; read in TRL 1.10's CPO trainer (DPO's ignores the option).
    """
    return dpo(chosen, rejected, beta=beta, smoothing=smoothing)


def rdpo(
    chosen: Scores, rejected: Scores, *, beta: float = 0.1, flip: float = 0.1
) -> Float[Tensor, "*batch"]:
    """Robust DPO: ((1 - e) dpo(D) - e dpo(-D)) / (1 - 2 e), unbiased where labels flip with rate e.

    It equals dpo - e / (1 - 2 e) beta D, which no D bounds from below: add a cloning term, or stop
    early. Raises ConfigError unless 0 <= e < 1 / 2.
    Data: pairs, reference, the rate of flips. Twin: corruption-robust offline learning.
    Source: arXiv:2403.00409; read in TRL 1.10's code.
    """
    if not 0.0 <= flip < 0.5:
        raise ConfigError(f"flip is {flip}, but labels flip with a rate in [0, 0.5)")
    z = beta * gap(chosen, rejected)
    return ((1.0 - flip) * logistic(z) - flip * logistic(-z)) / (1.0 - 2.0 * flip)


def cream(
    chosen: Scores, rejected: Scores, *, consistency: Float[Tensor, "*#batch"], beta: float = 0.1
) -> Float[Tensor, "*batch"]:
    """CREAM: C dpo(D) + (1 - C) dpo(-D), C the agreement of this iterate's ranks with the last's.

    cdpo with e = 1 - C; below C = 1 / 2 the preference turns round. C is `ranking_consistency`, of
    each pair or one mean of all.
    Data: pairs that the model itself has labelled, reference, previous iterate. Twin: weights by
    the agreement of an ensemble.
    Source: arXiv:2410.12735; read in its authors' code.
    """
    return dpo(chosen, rejected, beta=beta, smoothing=1.0 - consistency)


def exo(
    chosen: Scores, rejected: Scores, *, beta: float = 0.1, smoothing: float = 1e-3
) -> Float[Tensor, "*batch"]:
    """EXO on a pair: KL((q, 1 - q) || (1 - e, e)) with q = S(beta D), the reverse of cdpo's KL.

    Its minimum is cdpo's. Raises ConfigError unless 0 < e < 1.
    Data: pairs, reference. Twin: reverse against forward KL in policy projection.
    Source: arXiv:2402.00856, eq. 16; read in TRL 1.10's code.
    """
    if not 0.0 < smoothing < 1.0:
        raise ConfigError(f"smoothing is {smoothing}, but EXO needs one in (0, 1)")
    z = beta * gap(chosen, rejected)
    kept = torch.sigmoid(z) * (F.logsigmoid(z) - math.log1p(-smoothing))
    turned = torch.sigmoid(-z) * (F.logsigmoid(-z) - math.log(smoothing))
    return kept + turned


def f_dpo(
    chosen: Scores,
    rejected: Scores,
    *,
    divergence: FKind,
    beta: float = 0.1,
    alpha: float = 0.5,
) -> Float[Tensor, "*batch"]:
    """DPO under an f-divergence: -log S(beta (f'(e^u_w) - f'(e^u_l))), `offrl.divergences.f_prime`.

    reverse_kl is DPO. f' must be unbounded below at 0, or the optimum may give up answers: that
    excludes total variation and chi2, for which it raises ConfigError. Exponentials go on as their
    tangent where TRL clamps them. `alpha` is read by alpha alone.
    Data: pairs, reference. Twin: f-divergence control, DICE.
    Source: arXiv:2309.16240; read in TRL 1.10's code.
    """
    if divergence == "chi2":
        raise ConfigError(
            "f_dpo cannot use chi2, whose f' is bounded below: use chi_po, its mix with KL"
        )
    link = partial(f_prime, kind=divergence, alpha=alpha)
    return dpo(chosen, rejected, beta=beta, link=link)


def chi_po(
    chosen: Scores,
    rejected: Scores,
    *,
    beta: float = 0.1,
    gamma: float = 1.0,
    max_reward: float = math.inf,
    cap: float = 10.0,
) -> Float[Tensor, "*batch"]:
    """chi-PO: -log S(clip(beta (phi(u_w) - phi(u_l)), -2 R, 2 R)), phi(u) = gamma e^u + u.

    The KL of DPO mixed with chi-square, which does not forget where the reference is rare.
    gamma = 0 is DPO; at the reference the gradient is that of DPO with (1 + gamma) beta. R bounds
    the rewards; beyond the clip there is no gradient. Above u = `cap` e^u goes on as its tangent.
    Data: pairs, reference. Twin: chi-square DICE, single-policy concentrability.
    Source: arXiv:2407.13399; the link read in a reimplementation's tests, stationarity derived.
    """
    link = partial(f_prime, kind="chi2_mix", gamma=gamma, cap=cap)
    z = beta * gap(chosen, rejected, link=link)
    return logistic(z.clamp(-2.0 * max_reward, 2.0 * max_reward))


# -- a logistic loss and a term of behaviour cloning --------------------------------------------


def rpo(
    chosen: Scores,
    rejected: Scores,
    *,
    beta: float = 0.01,
    eta: float = 0.005,
    length: Reduce = "sum",
) -> Float[Tensor, "*batch"]:
    """Regularised preference optimisation: dpo - eta L_w.

    The cloning term is the pessimism of a maximin problem. The paper's is of the whole sequence;
    TRL averages over the batch's tokens, so that its eta is another one. `length="mean"` divides
    by |y_w|.
    Data: pairs, reference. Twin: TD3+BC, ReBRAC.
    Source: arXiv:2405.16436, settings of appendix E.1; read in TRL 1.10's documentation.
    """
    return dpo(chosen, rejected, beta=beta) + eta * bc_term(chosen, length)


def iterative_rpo(
    chosen: Scores, rejected: Scores, *, beta: float = 0.1, alpha: float = 1.0
) -> Float[Tensor, "*batch"]:
    """Iterative reasoning preference optimisation: dpo - alpha L_w / |y_w|.

    Data: pairs of correct and wrong answers, reference. Twin: TD3+BC with a fixed weight.
    Source: arXiv:2404.19733; alpha and the normalised term from memory.
    """
    return rpo(chosen, rejected, beta=beta, eta=alpha, length="mean")


def cpo(
    chosen: Scores, rejected: Scores, *, beta: float = 0.1, alpha: float = 1.0
) -> Float[Tensor, "*batch"]:
    """Contrastive preference optimisation: -log S(beta (L_w - L_l)) - alpha L_w / |y_w|.

    TRL takes the mean of the cloning term over the batch's tokens rather than over each sequence's.
    Data: pairs. Twin: ranking with a cloning term.
    Source: arXiv:2401.08417; read in TRL 1.10's code.
    """
    loss = dpo(chosen, rejected, beta=beta, against="none")
    return loss + alpha * bc_term(chosen, "mean")


def vpo(
    chosen: Scores,
    rejected: Scores,
    *,
    calibration: Scores,
    sign: int,
    alpha: float = 0.01,
    beta: float = 0.1,
) -> Float[Tensor, "*batch"]:
    """Value-incentivised preference optimisation: dpo + sign alpha beta L_cal.

    With the reward shifted to a mean of 0 over the calibration law, the optimal value is
    -beta E_cal[u]: sign -1 makes it small, which is pessimism from offline data and raises the
    calibration's likelihood; sign +1 is optimism online. On the chosen answers -1 is rpo with
    eta = alpha beta; on samples of the reference +1 is xpo. Raises ConfigError for another sign.
    Data: pairs, reference, calibration answers. Twin: CQL's data term; optimism.
    Source: arXiv:2405.19320; the value derived, the size of alpha from memory.
    """
    if sign not in (-1, 1):
        raise ConfigError(f"sign is {sign}, but it is -1 for pessimism or 1 for optimism")
    return dpo(chosen, rejected, beta=beta) - sign * alpha * beta * bc_term(calibration)


def xpo(
    chosen: Scores,
    rejected: Scores,
    *,
    reference_answer: Scores,
    alpha: float = 1e-5,
    beta: float = 0.1,
) -> Float[Tensor, "*batch"]:
    """Exploratory preference optimisation: dpo + alpha L(y_ref), y_ref a sample of the reference.

    One of each pair is a sample of the policy, the other one of the reference; the added term moves
    the policy off what the reference already does.
    Data: pairs sampled online, reference. Twin: optimistic exploration.
    Source: arXiv:2405.21046; read in TRL 1.10's code, whose alpha and beta these are.
    """
    return dpo(chosen, rejected, beta=beta) - alpha * bc_term(reference_answer)


# -- spans and traces ---------------------------------------------------------------------------


def rrpo(
    chosen: Scores,
    rejected: Scores,
    *,
    chosen_span: Shaped[Tensor, "*batch token"],
    rejected_span: Shaped[Tensor, "*batch other_token"],
    chosen_kl: Float[Tensor, "*batch token"],
    beta: float = 0.1,
    alpha: float = 0.1,
) -> Float[Tensor, "*batch"]:
    """Refined regularised preference optimisation: D over the spans that differ, and a KL.

    -log S(beta D) + alpha sum_t KL(ref || pi)_t, with D summed over the tokens where the spans are
    not 0 and the KL over the whole chosen answer; `chosen_kl` is `kl_full(..., "forward")` of
    offrl.divergences. With spans over everything and alpha = 0 it is DPO.
    Data: pairs with spans, reference, logits of both. Twin: DPO with BRAC's forward KL.
    Source: arXiv:2504.12083; read in its authors' code (the KL's direction too).
    """
    kl = masked(at_least_float32(chosen_kl), chosen.mask).sum(-1)
    return dpo(chosen.within(chosen_span), rejected.within(rejected_span), beta=beta) + alpha * kl


def bvpo(
    chosen: Scores,
    rejected: Scores,
    *,
    bare_chosen: Scores,
    bare_rejected: Scores,
    alpha: float,
    beta: float = 0.1,
) -> Float[Tensor, "*batch"]:
    """Bias-variance optimised preferences: alpha dpo(with trace) + (1 - alpha) dpo(bare answer).

    The gradient over sampled reasoning varies, that of the answer after an empty trace is biased;
    `bvpo_weight` is the alpha of least mean squared error.
    Data: pairs with and without a reasoning trace, reference. Twin: mixed return estimators.
    Source: arXiv:2510.05095, its abstract; no value of alpha was found there.
    """
    bare = dpo(bare_chosen, bare_rejected, beta=beta)
    return alpha * dpo(chosen, rejected, beta=beta) + (1.0 - alpha) * bare


def bvpo_weight(
    trace_bias: float, bare_bias: float, trace_var: float, bare_var: float, covariance: float
) -> float:
    """alpha* = (V_e - C + b_e (b_e - b_t)) / ((b_t - b_e)^2 + V_t + V_e - 2 C).

    It minimises the mean squared error of alpha X_t + (1 - alpha) X_e, two estimators with these
    biases, variances and covariance. Source: derived in one dimension, and checked.
    """
    difference = bare_bias - trace_bias
    spread = difference**2 + trace_var + bare_var - 2.0 * covariance
    return (bare_var - covariance + bare_bias * difference) / spread
