"""Which tokens learn: masks and weights by token, to multiply a loss or a mask with.

Every function takes (..., sequence, token) tensors with a mask of the answers' tokens and returns
1 or 0 (`gtpo_weights` also another weight) per token, 0 outside the mask. Shares are of the tokens
of the whole batch, so give it the gathered one where that matters. Nothing passes a gradient on,
and what is chosen by chance is chosen by `uniform`, which the caller draws.
"""

import math

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from offrl.divergences import at_least_float32
from offrl.lm.losses.scores import masked


def covariance(
    logp: Float[Tensor, "*seed batch token"],
    advantage: Float[Tensor, "*seed batch adv"],
    mask: Shaped[Tensor, "*seed batch token"],
) -> Float[Tensor, "*seed batch token"]:
    """(A - mean A) (l - mean l), means over the batch's tokens: how much a token lowers entropy.

    Source: "The entropy mechanism" (arXiv:2505.22617), read in verl. Twin: the covariance of
    advantage and log-density that drives a policy's entropy down in natural policy gradients.
    """
    return masked(_gap(logp, mask) * _gap(advantage, mask), mask)


def clip_cov(
    logp: Float[Tensor, "*seed batch token"],
    advantage: Float[Tensor, "*seed batch adv"],
    mask: Shaped[Tensor, "*seed batch token"],
    uniform: Float[Tensor, "*seed batch token"],
    *,
    old_logp: Float[Tensor, "*seed batch token"] | None = None,
    share: float = 2e-4,
    low: float = 1.0,
    high: float = 5.0,
    clip: float = 0.2,
) -> Float[Tensor, "*seed batch token"]:
    """The mask less a random `share` of the tokens whose covariance is in (low, high): Clip-Cov.

    Those already clipped by `clipped` with `clip`, known where `old_logp` is given, are no
    candidates. At least one token is dropped if there is a candidate, unless share is 0, which is
    plain PPO. Source: arXiv:2505.22617, read in verl, which refuses a share of 0. Twin: a trust
    region on outliers.
    """
    cov = covariance(logp, advantage, mask)
    candidate = (mask != 0) & (cov > low) & (cov < high)
    if old_logp is not None:
        ratio = (logp - old_logp).detach().exp()
        candidate &= ~((advantage > 0) & (ratio > 1.0 + clip))
        candidate &= ~((advantage < 0) & (ratio < 1.0 - clip))
    dropped = _least(uniform, candidate, _count(mask != 0, share))
    return ((mask != 0) & ~dropped).to(cov)


def kl_cov(
    logp: Float[Tensor, "*seed batch token"],
    advantage: Float[Tensor, "*seed batch adv"],
    mask: Shaped[Tensor, "*seed batch token"],
    *,
    share: float = 2e-4,
) -> Float[Tensor, "*seed batch token"]:
    """1 on the `share` of the tokens with the greatest covariance: KL-Cov.

    There `absolute_ratio` of `token_regularizers` is added (coefficient 1), and nothing is clipped.
    Source: arXiv:2505.22617, read in verl, which refuses a share of 0; here it chooses none. Twin:
    a trust region on outliers.
    """
    cov = covariance(logp, advantage, mask)
    return _least(-cov, mask != 0, _count(mask != 0, share)).to(cov)


def high_entropy(
    entropy: Float[Tensor, "*seed batch token"],
    mask: Shaped[Tensor, "*seed batch token"],
    *,
    share: float = 0.2,
) -> Float[Tensor, "*seed batch token"]:
    """1 on the `share` of the tokens with the greatest entropy: where the text forks.

    The threshold is the interpolated quantile at 1 - share. Source: "Beyond the 80/20 rule"
    (arXiv:2506.01939), read in TRL (top_entropy_quantile). Twin: learning at states of decision.
    """
    inside = mask != 0
    values = torch.where(inside, at_least_float32(entropy).detach(), math.nan)
    threshold = torch.nanquantile(values.flatten(-2), 1.0 - share, dim=-1)[..., None, None]
    return (inside & (values >= threshold)).to(values)


def lowest_probability(
    logp: Float[Tensor, "*seed batch token"],
    advantage: Float[Tensor, "*seed batch adv"],
    mask: Shaped[Tensor, "*seed batch token"],
    *,
    share: float = 0.01,
) -> Float[Tensor, "*seed batch token"]:
    """1 on the `share` of the tokens with A < 0 that are least likely: where `lp_reg` acts.

    Source: Lp-Reg (arXiv:2510.03222), read in the authors' code (.01 for 14B, .005 for 32B), which
    leaves a single such token out. Twin: a support mask.
    """
    down = (mask != 0) & (advantage < 0)
    values = at_least_float32(logp).detach()
    return _least(values, down, _count(down, share)).to(values)


def gtpo_weights(
    ids: Int[Tensor, "*batch group token"],
    advantage: Float[Tensor, "*batch group"],
    mask: Shaped[Tensor, "*batch group token"],
    *,
    weight: float = 2.0,
) -> Float[Tensor, "*batch group token"]:
    """What good and bad answers to a prompt share is only reinforced: GTPO's conflict tokens.

    A token is in conflict where the answers' first tokens up to it, or their last ones from it on,
    each occur at that place in an answer with A > 0 and in one with A < 0. There the weight is
    `weight` for A > 0 and 0 for A < 0; 1 elsewhere. Departures from the authors' code: a token in
    conflict from both ends has the weight once, and a sequence's loss is not divided by its number
    of such tokens. Source: GTPO (arXiv:2508.03772), read in that code. Twin: masking the credit of
    steps that successes and failures have in common.
    """
    inside = mask != 0
    up, down = advantage > 0, advantage < 0
    conflict = _common_start(ids, inside, up, down)
    back = _common_start(ids.flip(-1), inside.flip(-1), up, down).flip(-1)
    conflict = (conflict | back) & (up | down)[..., None]
    weights = torch.where(up[..., None], weight, 0.0).to(at_least_float32(advantage))
    return masked(torch.where(conflict, weights, 1.0), mask)


def low_entropy_answers(
    entropy: Float[Tensor, "*batch token"],
    mask: Shaped[Tensor, "*batch token"],
    *,
    initial: float = 0.0,
    threshold: float = math.log(2.0),
) -> Float[Tensor, "*batch token"]:
    """The mask of answers whose mean entropy is at most `threshold`; of all if `initial` is above.

    `initial` is the policy's mean entropy before training. GTPO's advantage also loses .1 of the
    answer's mean entropy. Source: GTPO (arXiv:2508.03772), read in the authors' code (.7 for the
    threshold). Twin: a filter of trajectories by the policy's own doubt.
    """
    total = masked(at_least_float32(entropy).detach(), mask).sum(-1, keepdim=True)
    mean = total / (mask != 0).sum(-1, keepdim=True).clamp(min=1)
    kept = (mean <= threshold) | (initial > threshold)
    return ((mask != 0) & kept).to(mean)


def own_tokens(
    mask: Shaped[Tensor, "*batch token"], rolled_in: Int[Tensor, "*batch"]
) -> Float[Tensor, "*batch token"]:
    """The mask less each answer's first `rolled_in` tokens, which come from the data: DR-PO.

    Generation starts from a prefix of a logged answer, and the loss is over the rest. A prefix of 0
    is PPO. How long the prefixes are is the caller's; the authors' law of them was not found.
    Source: DR-PO (arXiv:2404.08495), read in the authors' code. Twin: resets to states of the data.
    """
    inside = mask != 0
    place = inside.cumsum(-1)
    return (inside & (place > rolled_in[..., None])).float()


def near_policy(
    logp: Float[Tensor, "*batch token"],
    old_logp: Float[Tensor, "*batch token"],
    advantage: Float[Tensor, "*batch 1"],
    mask: Shaped[Tensor, "*batch token"],
    *,
    threshold: float,
) -> Float[Tensor, "*batch token"]:
    """The mask less answers with A < 0 whose mean of lo - l is above `threshold`.

    What was bad and is no longer done need not be unlearned. Source: DeepSeek-V3.2
    (arXiv:2512.02556), read in TRL (off_policy_mask_threshold). Twin: a trust region by trajectory.
    """
    gap = masked(at_least_float32(old_logp - logp).detach(), mask).sum(-1, keepdim=True)
    gap = gap / (mask != 0).sum(-1, keepdim=True).clamp(min=1)
    return ((mask != 0) & ((advantage >= 0) | (gap <= threshold))).to(gap)


def _gap(x: Tensor, mask: Tensor) -> Tensor:
    """What x is above its mean over the batch's tokens."""
    x = masked(at_least_float32(x).detach().expand(mask.shape), mask)
    count = (mask != 0).sum((-2, -1), keepdim=True).clamp(min=1)
    return x - x.sum((-2, -1), keepdim=True) / count


def _count(eligible: Tensor, share: float) -> Tensor:
    """How many tokens a share is: rounded down, but one at least where it is not 0."""
    count = (share * eligible.sum((-2, -1)).double()).floor()
    return count.clamp(min=1.0 if share > 0 else 0.0)[..., None]


def _least(values: Tensor, eligible: Tensor, count: Tensor) -> Tensor:
    """The `count` eligible entries of the last two axes with the least values."""
    ranked = torch.where(eligible, values, math.inf).flatten(-2)
    place = ranked.argsort(dim=-1, stable=True).argsort(-1)
    return (place < count).reshape(values.shape) & eligible


def _common_start(ids: Tensor, inside: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """Tokens up to which an answer begins with what some good and some bad answer has there."""
    order = (~inside).to(torch.uint8).argsort(dim=-1, stable=True)  # answers first, prompts after
    ids, here = ids.gather(-1, order), inside.gather(-1, order)
    same = ids[..., :, None, :] == ids[..., None, :, :]
    same = same & here[..., :, None, :] & here[..., None, :, :]
    good, bad = ((same & sign[..., None, :, None]).any(-2) for sign in (up, down))
    run = (good & bad).to(torch.uint8).cumprod(-1).bool()
    return torch.zeros_like(run).scatter(-1, order, run)
