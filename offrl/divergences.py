"""How far a policy is from a reference, estimated from log-probabilities or whole distributions.

    u = log pi(y) - log pi_ref(y),      w = e^u

Pure functions of every shape: actions of a control policy, tokens of a language model, whole
sequences. Nothing is reduced, and nothing is detached but in the one function that says so.
"""

import math
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

FKind = Literal["reverse_kl", "forward_kl", "js", "alpha", "chi2", "chi2_mix"]
F_KINDS: tuple[FKind, ...] = get_args(FKind)


def at_least_float32(x: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
    """x, in float32 where it was in half precision: sums of hundreds of log ratios need it."""
    return x.float() if x.element_size() < 4 else x


def safe_exp(z: Float[Tensor, "*any"], cap: float = 10.0) -> Float[Tensor, "*any"]:
    """e^z up to the cap, above it the tangent e^cap (1 + z - cap): finite, and still rising.

    Log ratios of long answers reach hundreds. A clamp would end the gradient there; the tangent is
    to the exponential what Huber's loss is to the square. Source: the code of Correlated Proxies
    (arXiv:2403.03185), with its cap of 10.
    """
    return z.clamp(max=cap).exp() + math.exp(cap) * (z - cap).clamp(min=0.0)


# -- Kullback-Leibler ---------------------------------------------------------------------------


def kl_k1(log_pi: Float[Tensor, "*any"], log_ref: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
    """u: E_pi[u] = KL(pi || ref). As a loss on samples of pi its expected gradient is zero.

    Source: Schulman's note on approximating KL; the gradients of k1 to k3 are derived, and tested.
    """
    return log_pi - log_ref


def kl_k2(log_pi: Float[Tensor, "*any"], log_ref: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
    """u^2 / 2, biased; as a loss on samples of pi it has the gradient of KL(pi || ref).

    Source: Schulman's note; the gradient is derived, and tested. Twin: BRAC, SAC with a prior.
    """
    return 0.5 * (log_pi - log_ref).square()


def kl_k3(
    log_pi: Float[Tensor, "*any"],
    log_ref: Float[Tensor, "*any"],
    *,
    limit: float = math.inf,
) -> Float[Tensor, "*any"]:
    """e^-u + u - 1 >= 0: E_pi = KL(pi || ref), with less variance than k1.

    As a loss on samples of pi it has the gradient of the *other* direction, KL(ref || pi). With the
    arguments exchanged, on samples of ref, its value estimates KL(ref || pi) and its expected
    gradient is that of supervised learning on them, -E_ref[log pi]. `limit` clamps u to +-limit
    (verl's is 20), beyond which there is no gradient. Source: GRPO (arXiv:2402.03300, eq. 4), read
    in TRL, which does not clamp. Twin: KL penalties of BRAC and BEAR.
    """
    u = (log_pi - log_ref).clamp(-limit, limit)
    return torch.expm1(-u) + u


def kl_k3_straight(
    log_pi: Float[Tensor, "*any"],
    log_ref: Float[Tensor, "*any"],
    *,
    limit: float = math.inf,
) -> Float[Tensor, "*any"]:
    """The value of k3 with the gradient of k2, which is that of KL(pi || ref) on samples of pi.

    k2 + stop(k3 - k2): the one function here that stops a gradient. Source: read in verl ("k3+").
    Twin: BRAC, SAC with a prior.
    """
    k2 = kl_k2(log_pi, log_ref)
    return k2 + (kl_k3(log_pi, log_ref, limit=limit) - k2).detach()


def kl_full(
    logits: Float[Tensor, "*batch vocab"],
    ref_logits: Float[Tensor, "*batch vocab"],
    direction: Literal["forward", "reverse"],
) -> Float[Tensor, "*batch"]:
    """KL over all choices at each position: forward KL(ref || pi), reverse KL(pi || ref).

    A choice whose weight is zero, as one that both laws mask, adds nothing. Source: ASFT
    (arXiv:2509.23753) and RRPO (arXiv:2504.12083), both forward in their code.
    """
    log_pi = at_least_float32(logits).log_softmax(-1)
    log_ref = at_least_float32(ref_logits).log_softmax(-1)
    if direction == "forward":
        log_pi, log_ref = log_ref, log_pi
    weight = log_pi.exp()
    return (weight * (log_pi - log_ref).masked_fill(weight == 0, 0.0)).sum(-1)


def gaussian_kl(
    mean: Float[Tensor, "*any d"],
    std: Float[Tensor, "*#any #d"],
    ref_mean: Float[Tensor, "*any d"],
    ref_std: Float[Tensor, "*#any #d"],
) -> Float[Tensor, "*any"]:
    """KL(N(m, s^2) || N(m_ref, s_ref^2)), summed over the components, which are independent.

    sum_d [ log(s_ref / s) + (s^2 + (m - m_ref)^2) / (2 s_ref^2) - 1/2 ], in closed form.
    """
    spread = std.square() + (mean - ref_mean).square()
    return ((ref_std / std).log() + 0.5 * spread / ref_std.square() - 0.5).sum(-1)


# -- chi-square ---------------------------------------------------------------------------------


def chi2_est(u: Float[Tensor, "*any"], *, cap: float = 10.0) -> Float[Tensor, "*any"]:
    """w + 1 / w - 2 = 4 sinh(u / 2)^2 >= 0: on samples of pi unbiased for chi2(pi || ref).

    chi2(pi || ref) = E_ref[(w - 1)^2] = E_pi[w] - 1, and 1 / w, whose mean is 1, is the control
    variate that keeps every value above 0. Beyond |u| = cap it goes on as a parabola. Source: read
    in the code of Correlated Proxies (arXiv:2403.03185). Twin: the same on occupancies, DICE.
    """
    half = 0.5 * u
    return (safe_exp(half, 0.5 * cap) - safe_exp(-half, 0.5 * cap)).square()


def root_chi2_est(
    u: Float[Tensor, "*seed batch"], *, cap: float = 10.0, least: float = 1e-4
) -> Float[Tensor, "*seed"]:
    """sqrt(max(m, least)), m the mean of chi2_est over the batch.

    The root bounds how far the true reward falls behind the proxy. Where m is below `least` there
    is no gradient: that of the root is unbounded at 0. Source: read in the code of Correlated
    Proxies (arXiv:2403.03185).
    """
    return chi2_est(u, cap=cap).mean(-1).clamp(min=least).sqrt()


# -- f-divergences ------------------------------------------------------------------------------


def f_div(
    u: Float[Tensor, "*any"],
    kind: FKind,
    *,
    alpha: float = 0.5,
    gamma: float = 1.0,
    cap: float = 10.0,
) -> Float[Tensor, "*any"]:
    """f(e^u) >= 0, with f(1) = f'(1) = 0: on samples of ref its mean estimates D_f(pi || ref).

        reverse_kl  w u - w + 1                 forward_kl  w - 1 - u, k3 with exchanged arguments
        js          w u - (w + 1) log((w + 1) / 2), twice the Jensen-Shannon divergence
        alpha       (w^a - a w + a - 1) / (a (a - 1)), forward KL at a = 0, reverse at a = 1
        chi2        (w - 1)^2 / 2               chi2_mix    gamma chi2 + reverse_kl

    A paper's f differs from this by a multiple of w - 1, of which E_ref is zero. The options are
    those of `f_prime`. Source: js and alpha read in the code of DPH-RL (arXiv:2509.07430).
    """
    w = safe_exp(u, cap)
    if kind == "alpha" and alpha in (0.0, 1.0):
        kind = "reverse_kl" if alpha else "forward_kl"
    match kind:
        case "reverse_kl":
            return w * (u - 1.0) + 1.0
        case "forward_kl":
            return w - 1.0 - u
        case "js":
            # log((w + 1) / 2) is -log S(-u) - log 2, and u is log S(u) - log S(-u).
            return w * (F.logsigmoid(u) + math.log(2.0)) + F.logsigmoid(-u) + math.log(2.0)
        case "alpha":
            power = safe_exp(alpha * u, cap)
            return (power - alpha * w + alpha - 1.0) / (alpha * (alpha - 1.0))
        case "chi2":
            return 0.5 * (w - 1.0).square()
        case "chi2_mix":
            return gamma * 0.5 * (w - 1.0).square() + w * (u - 1.0) + 1.0


def f_prime(
    u: Float[Tensor, "*any"],
    kind: FKind,
    *,
    alpha: float = 0.5,
    gamma: float = 1.0,
    cap: float = 10.0,
) -> Float[Tensor, "*any"]:
    """f'(e^u): the reward, up to beta and a constant, whose optimum under D_f is pi.

        reverse_kl  u                              forward_kl  -e^-u
        js          log S(u) + log 2               alpha       (e^((a - 1) u) - 1) / (a - 1)
        chi2        e^u                            chi2_mix    gamma e^u + u

    Constants that cancel in differences are left out of forward_kl (1) and chi2 (-1). `alpha` is
    read by alpha alone and gives u at 1, `gamma` by chi2_mix alone; exponentials are `safe_exp`.
    Source: f-DPO (arXiv:2309.16240), in the parametrisation of TRL's code; chi2_mix is the link
    of chi-PO (arXiv:2407.13399).
    """
    match kind:
        case "reverse_kl":
            return u
        case "forward_kl":
            return -safe_exp(-u, cap)
        case "js":
            return F.logsigmoid(u) + math.log(2.0)
        case "alpha":
            return u if alpha == 1.0 else (safe_exp((alpha - 1.0) * u, cap) - 1.0) / (alpha - 1.0)
        case "chi2":
            return safe_exp(u, cap)
        case "chi2_mix":
            return gamma * safe_exp(u, cap) + u
