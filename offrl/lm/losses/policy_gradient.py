"""Policy-gradient losses of tokens: what multiplies A grad l, and what is held fixed.

    l_t = log pi(y_t),   lo_t = the same of the policy that sampled,   d_t = l_t - lo_t,   w = e^d

Each function takes d and the advantage A, of any shapes that broadcast, and returns one loss per
token; `agg` of `scores` reduces it under a mask. Let gradients flow through d alone, so
`d = l - lo.detach()`. Where no sampler was recorded, d = l is right for the functions that say
"any data": they use d for its gradient only. What a method calls a coefficient is detached inside:

    grad loss = -c A grad l,    c = 1 for `reinforce`, clip(w) for `topr`, ...

For one ratio per sequence give `sequence_ratio(d, mask)` instead of d. A control policy's
log-probabilities of logged actions, and its advantages, are as good as tokens.
"""

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from offrl.divergences import safe_exp
from offrl.lm.losses.scores import masked
from offrl.regularizers import advantage_weight


def sequence_ratio(
    log_ratio: Float[Tensor, "*batch token"],
    mask: Shaped[Tensor, "*batch token"],
    *,
    mean: bool = True,
) -> Float[Tensor, "*batch 1"]:
    """The mean of d over a sequence's tokens, GSPO's log-ratio; or its sum, the exact one.

    Source: GSPO (arXiv:2507.18071), read in TRL; TOPR's paper sums.
    """
    total = masked(log_ratio, mask).sum(-1, keepdim=True)
    return total / (mask != 0).sum(-1, keepdim=True).clamp(min=1) if mean else total


def reinforce(
    log_ratio: Float[Tensor, "*any"], advantage: Float[Tensor, "*adv"]
) -> Float[Tensor, "*out"]:
    """-A d, c = 1: REINFORCE, on any data.

    With `centred` advantages it is group-relative REINFORCE, which its authors show to be sound
    off-policy; with `shifted` AsymRE (arXiv:2506.20520), with `positive_only` filtered cloning.
    Source: REC (arXiv:2509.24203), read in Trinity. Twin: advantage-weighted cloning.
    """
    return -advantage.detach() * log_ratio


def clipped(
    log_ratio: Float[Tensor, "*any"],
    advantage: Float[Tensor, "*adv"],
    *,
    low: float = 0.2,
    high: float = 0.2,
    bound: float = float("inf"),
) -> Float[Tensor, "*out"]:
    """-min(min(w, bound) A, clip(w, 1 - low, 1 + high) A): PPO, GRPO; c = w, 0 where clipped.

    DAPO has high = .28 (arXiv:2503.14476), GSPO the sequence's mean ratio with 3e-4 and 4e-4
    (arXiv:2507.18071); `bound` limits what a negative advantage can do where w is large (TRL's
    delta). At w = 1 the gradient is that of `reinforce`. Source: PPO (arXiv:1707.06347), GRPO
    (arXiv:2402.03300), read in TRL. Twin: PPO, BPPO.
    """
    advantage, ratio = advantage.detach(), log_ratio.exp()
    inside = ratio.clamp(1.0 - low, 1.0 + high)
    return -torch.minimum(ratio.clamp(max=bound) * advantage, inside * advantage)


def dual_clipped(
    log_ratio: Float[Tensor, "*any"],
    advantage: Float[Tensor, "*adv"],
    *,
    low: float = 0.2,
    high: float = 0.2,
    bound: float = 3.0,
) -> Float[Tensor, "*out"]:
    """`clipped`, but at most -bound A where A < 0: no gradient from w > bound there.

    Source: dual-clip PPO (arXiv:1912.09729), read in verl (clip_ratio_c 3). Twin: PPO.
    """
    loss = clipped(log_ratio, advantage, low=low, high=high)
    ceiling = -bound * advantage.detach()
    return torch.where(advantage < 0, torch.minimum(loss, ceiling), loss)


def cispo(
    log_ratio: Float[Tensor, "*any"],
    advantage: Float[Tensor, "*adv"],
    *,
    high: float = 5.0,
) -> Float[Tensor, "*out"]:
    """-stop(min(w, high)) A d: CISPO; the clipped ratio is a weight, no token loses its gradient.

    Source: MiniMax-M1 (arXiv:2506.13585), read in TRL. Twin: V-trace's truncated weight.
    """
    return -log_ratio.detach().exp().clamp(max=high) * advantage.detach() * log_ratio


def sapo(
    log_ratio: Float[Tensor, "*any"],
    advantage: Float[Tensor, "*adv"],
    *,
    positive: float = 1.0,
    negative: float = 1.05,
) -> Float[Tensor, "*out"]:
    """-(4 / k) sigmoid(k (w - 1)) A, k by the sign of A: SAPO's gate instead of a clip.

    c = 4 s (1 - s) w with s the sigmoid: 1 at w = 1, falling on both sides. Source: SAPO
    (arXiv:2511.20347), read in TRL. Twin: a soft trust region.
    """
    k = _by_sign(log_ratio, advantage > 0, positive, negative)
    gate = torch.sigmoid(k * (log_ratio.exp() - 1.0)) * 4.0 / k
    return -gate * advantage.detach()


def vespo(
    log_ratio: Float[Tensor, "*batch token"],
    advantage: Float[Tensor, "*batch 1"],
    mask: Shaped[Tensor, "*batch token"],
    *,
    positive: tuple[float, float] = (2.0, 3.0),
    negative: tuple[float, float] = (3.0, 2.0),
) -> Float[Tensor, "*batch token"]:
    """-stop(e^g W^k e^(-g W)) A d, W the exact ratio of the sequence, (k, g) by the sign of A.

    The weight is 1 at W = 1, 0 at both ends. Source: read in TRL ("vespo"). Twin: a soft truncation
    of importance weights.
    """
    total = sequence_ratio(log_ratio.detach().clamp(-20.0, 20.0), mask, mean=False)
    total = total.clamp(-18.420681, 20.0)  # W >= 1e-8
    up = advantage >= 0
    k, g = (_by_sign(total, up, p, n) for p, n in zip(positive, negative, strict=True))
    weight = (g + k * total - g * total.exp()).exp()
    return -weight * advantage.detach() * log_ratio


def gmpo(
    log_ratio: Float[Tensor, "*batch token"],
    advantage: Float[Tensor, "*batch 1"],
    mask: Shaped[Tensor, "*batch token"],
    *,
    low: float = 0.4,
    high: float = 0.4,
) -> Float[Tensor, "*batch 1"]:
    """-A e^(mean_t d'_t): GMPO, the geometric mean of a sequence's clipped ratios; one loss each.

    d' is min(d, clip(d, -low, high)) where A > 0 and the greater of the two elsewhere: PPO's clip
    in logarithms, token by token, so that one outlier moves the mean little. Source: GMPO
    (arXiv:2507.20673), read in TRL. Twin: PPO with a robust mean.
    """
    inside = log_ratio.clamp(-low, high)
    up = torch.minimum(log_ratio, inside)
    kept = torch.where(advantage > 0, up, torch.maximum(log_ratio, inside))
    return -advantage.detach() * sequence_ratio(kept, mask).exp()


def topr(
    log_ratio: Float[Tensor, "*any"],
    advantage: Float[Tensor, "*adv"],
    *,
    positive: tuple[float, float] = (1.0, 1.0),
    negative: tuple[float, float] = (0.0, 1.0),
) -> Float[Tensor, "*out"]:
    """-stop(clip(w, bounds by the sign of A)) A d: TOPR; by default c = 1 or min(w, 1).

    What was good is learned wherever it came from; what was bad is unlearned only as far as the
    policy still does it, so that no term is unbounded and no KL is needed. Bounds [0, inf) on both
    sides are importance sampling, (0, 0) for the negative ones is filtered cloning. The paper's w
    is of the whole sequence (`sequence_ratio(mean=False)`), Trinity's of each token. Source: TOPR
    (arXiv:2503.14286), read in Trinity. Twin: V-trace and Retrace, with two truncations.
    """
    ratio = log_ratio.detach().exp()
    weight = torch.where(advantage >= 0, ratio.clamp(*positive), ratio.clamp(*negative))
    return -weight * advantage.detach() * log_ratio


def one_side_clipped(
    log_ratio: Float[Tensor, "*any"],
    advantage: Float[Tensor, "*adv"],
    *,
    low: float = 0.2,
    high: float = 0.2,
    weighted: bool = False,
) -> Float[Tensor, "*out"]:
    """-A d, or -stop(w) A d where `weighted`, but 0 where w has gone far enough the way of A.

    Far enough: w > 1 + high with A > 0, w < 1 - low with A < 0. Weighted it has the gradient of
    `clipped`; its authors find that the clip does the work and the weight may go. Source: REC
    one-side (arXiv:2509.24203), read in Trinity. Twin: PPO without its ratio.
    """
    ratio = log_ratio.detach().exp()
    far = ((advantage > 0) & (ratio > 1.0 + high)) | ((advantage < 0) & (ratio < 1.0 - low))
    return _rec(log_ratio, advantage, ~far, weighted)


def two_side_clipped(
    log_ratio: Float[Tensor, "*any"],
    advantage: Float[Tensor, "*adv"],
    *,
    low: float = 0.2,
    high: float = 0.2,
    weighted: bool = False,
) -> Float[Tensor, "*out"]:
    """-A d, or -stop(w) A d, only where 1 - low <= w <= 1 + high: REC two-side.

    Source: REC (arXiv:2509.24203), read in Trinity. Twin: a hard trust region.
    """
    ratio = log_ratio.detach().exp()
    return _rec(log_ratio, advantage, (ratio >= 1.0 - low) & (ratio <= 1.0 + high), weighted)


def ring_clipped(
    log_ratio: Float[Tensor, "*any"],
    advantage: Float[Tensor, "*adv"],
    *,
    low: float = 0.2,
    high: float = 0.2,
    outer_low: float = 0.6,
    outer_high: float = 2.0,
    weighted: bool = False,
) -> Float[Tensor, "*out"]:
    """Two-side, and also where w is far out on the wrong side and A leads back: REC ring.

    That is w <= 1 - outer_low with A >= 0, or w >= 1 + outer_high with A <= 0. Source: REC
    (arXiv:2509.24203), read in Trinity. Twin: a trust region that lets the policy return.
    """
    ratio = log_ratio.detach().exp()
    near = (ratio >= 1.0 - low) & (ratio <= 1.0 + high)
    back = (advantage >= 0) & (ratio <= 1.0 - outer_low)
    back = back | ((advantage <= 0) & (ratio >= 1.0 + outer_high))
    return _rec(log_ratio, advantage, near | back, weighted)


def opmd(
    log_ratio: Float[Tensor, "*any"],
    advantage: Float[Tensor, "*adv"],
    *,
    tau: float = 1.0,
) -> Float[Tensor, "*out"]:
    """(A - tau d)^2 / (2 tau), c = 1 - tau d / A: online policy mirror descent, as a regression.

    It is -A d + tau d^2 / 2 and a constant: `reinforce` with k2 to the sampler, so sound on any
    data that has recorded log-probabilities. d is of the whole sequence in the paper
    (`sequence_ratio(mean=False)`). Source: Kimi k1.5 (arXiv:2501.12599), REC (arXiv:2509.24203),
    read in Trinity, whose k2 has no 1/2. Twin: path consistency, MPO's projection by least squares.
    """
    return (advantage.detach() - tau * log_ratio).square() / (2.0 * tau)


def nft(
    log_ratio: Float[Tensor, "*any"],
    correct: Shaped[Tensor, "*adv"],
    accuracy: Float[Tensor, "*acc"],
    *,
    negative: float = 1.0,
    floor: float = 1.0,
    limit: float = 10.0,
) -> Float[Tensor, "*out"]:
    """-log w where right, -negative log((1 - q w) / (1 - q)) where wrong: NFT, times a weight.

    q is the group's accuracy, kept in [.02, .98]; (1 - q w) / (1 - q) is the ratio of the law of
    wrong answers that pi implies, its value at least `floor` with the gradient going through. The
    prompt's weight is `nft_weight`'s. On policy the gradient is Dr. GRPO's or GRPO's. negative = 0
    is rejection fine-tuning. d is at most `limit`. Source: NFT (arXiv:2505.18116), read in the
    authors' code, where negative = 1 in the script (-1 in the defaults selects DAPO). Twin: cloning
    with an implicit law of failures.
    """
    q = accuracy.detach().clamp(0.02, 0.98)
    d = log_ratio.clamp(max=limit)
    ratio = (1.0 - q * d.exp()) / (1.0 - q)
    raised = ratio + (ratio.clamp(min=floor) - ratio).detach()
    return torch.where(correct > 0, -d, -negative * raised.log())


def nft_weight(accuracy: Float[Tensor, "*acc"], *, standardise: bool = False) -> Tensor:
    """1 - q, which makes `nft` Dr. GRPO on policy, or sqrt((1 - q) / q), which makes it GRPO.

    Source: NFT (arXiv:2505.18116), read in the authors' code, where 1 is a third choice. Twin: the
    normalisation of advantages.
    """
    q = accuracy.detach().clamp(0.02, 0.98)
    return ((1.0 - q) / q).sqrt() if standardise else 1.0 - q


def rover(
    log_ratio: Float[Tensor, "*batch token"],
    advantage: Float[Tensor, "*batch 1"],
    next_value: Float[Tensor, "*batch token"],
    *,
    scale: float = 1.0,
) -> Float[Tensor, "*batch token"]:
    """(c d_t - stop(A + V_(t+1)))^2: ROVER, the value of the uniform policy by regression.

    c d_t is the token's Q, `next_value` that of `uniform_value` one place on. With it at zero and
    on policy the gradient is twice REINFORCE's. Source: ROVER (arXiv:2509.24981), read in the
    authors' code, whose rewards are centred on the group in one of two programs, as preferred
    here. Twin: evaluation of a fixed policy, one step of improvement.
    """
    return (scale * log_ratio - (advantage + next_value).detach()).square()


def uniform_value(
    logits: Float[Tensor, "*batch token vocab"],
    old_logits: Float[Tensor, "*batch token vocab"],
    mask: Shaped[Tensor, "*batch token"],
    *,
    scale: float = 1.0,
) -> Float[Tensor, "*batch token"]:
    """c mean_v (log pi_v - log pi_old_v) at t + 1, detached; 0 at a sequence's end: ROVER's V.

    Source: ROVER (arXiv:2509.24981), read in the authors' code. Twin: the value of a random policy.
    """
    gap = logits.detach().log_softmax(-1) - old_logits.log_softmax(-1)
    value = masked(scale * gap.mean(-1), mask)
    return torch.cat([value[..., 1:], torch.zeros_like(value[..., :1])], -1)


def oreal(
    log_ratio: Float[Tensor, "*any"],
    correct: Shaped[Tensor, "*adv"],
    advantage: Float[Tensor, "*adv"],
    *,
    negative: float = 0.5,
) -> Float[Tensor, "*out"]:
    """-|A| d where right; `negative` |A| e^(d - stop(d)) where wrong: OREAL without its KL.

    What was right is cloned, what was wrong is a policy gradient. Weights of tokens, from a reward
    model of tokens, multiply A. The paper divides right tokens by their number, wrong ones by
    theirs, and adds .01 k3 to the reference on all: three calls of `agg`. Source: OREAL
    (arXiv:2502.06781), read in the authors' code (advantage `leave_one_out`). Twin: filtered
    cloning with a penalty on failures.
    """
    size = advantage.detach().abs()
    return torch.where(
        correct > 0, -size * log_ratio, negative * size * (log_ratio - log_ratio.detach()).exp()
    )


def advantage_weighted(
    log_prob: Float[Tensor, "*any"],
    advantage: Float[Tensor, "*adv"],
    *,
    beta: float = 1.0,
    max_weight: float = 100.0,
) -> Float[Tensor, "*out"]:
    """-e^(A / beta) l, the weight at most `max_weight`: AWR on sequences, on any data.

    On samples of the reference it is minimised by pi_ref e^(r / beta), the optimum of KL control.
    Source: AWR (arXiv:1910.00177); derived, and tested. Twin: AWR, IQL's extraction: the weight
    is theirs.
    """
    return -advantage_weight(advantage.detach(), 1.0 / beta, max_weight) * log_prob


def importance_weighted(
    log_ratio: Float[Tensor, "*any"], advantage: Float[Tensor, "*adv"], *, cap: float = 10.0
) -> Float[Tensor, "*out"]:
    """-e^d A, c = w: importance sampling without a bound but `safe_exp`'s.

    Source: derived. Twin: off-policy policy gradient.
    """
    return -safe_exp(log_ratio, cap) * advantage.detach()


def _by_sign(like: Tensor, up: Tensor, positive: float, negative: float) -> Tensor:
    return torch.where(up, like.new_tensor(positive), like.new_tensor(negative))


def _rec(log_ratio: Tensor, advantage: Tensor, counts: Tensor, weighted: bool) -> Tensor:
    weight = advantage.detach()
    if weighted:
        weight = weight * log_ratio.detach().exp()
    return torch.where(counts, -weight * log_ratio, 0.0)
