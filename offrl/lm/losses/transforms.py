"""What is done to rewards and samples before any loss: bounds, corrections, selection, pairs.

Rewards are (..., group), the answers to a prompt, with `member` 1 on those that exist where groups
differ in size. They are data, through which no gradient is meant to pass; what is chosen by chance
is chosen by `uniform`, which the caller draws.

What is documented and not built: RLUF (arXiv:2505.14946) and PUGC (arXiv:2506.04463) are recipes
for data, which need models of their makers; DPA (arXiv:2402.18571) is `best_worst` on rewards v . r
with v coded into the prompt; TR-DPO (arXiv:2404.09656) moves the reference by
`offrl.optim.polyak_update` with .6 every 512 steps.
"""

import math

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor
from torch.nn.functional import logsigmoid

from offrl.divergences import at_least_float32
from offrl.lm.losses.scores import masked

# -- rewards ------------------------------------------------------------------------------------


def par(
    rewards: Float[Tensor, "*batch"], references: Float[Tensor, "*batch refs"], *, k: float = 1.0
) -> Float[Tensor, "*batch"]:
    """mean_m sigmoid(k (r - r_m)): how often a proxy prefers this answer to the reference's, PAR.

    `references` are rewards of the SFT model's answers to the same prompt. In (0, 1), steepest
    where an answer is as good as they are. Source: PAR (arXiv:2502.18770), read in the authors'
    code. Twin: bounded reward shaping.
    """
    return torch.sigmoid(k * (rewards[..., None] - references)).mean(-1)


def lsc(
    rewards: Float[Tensor, "*batch"], reference: Float[Tensor, "*batch"]
) -> Float[Tensor, "*batch"]:
    """log sigmoid(r - r_ref), log-sigmoid centred: the log of PAR with one reference and k = 1.

    Has little to give beyond the reference and much to take below it. `gaussian_quantile` at .85
    is the reference in PAR's repository. Source: LSC (arXiv:2402.00742), read in that code.
    Twin: bounded reward shaping.
    """
    return logsigmoid(rewards - reference)


def log_and(
    rewards: Float[Tensor, "*batch models"], references: Float[Tensor, "*batch models"]
) -> Float[Tensor, "*batch"]:
    """sum_i log sigmoid(r_i - ref_i): the log of the probability that all models approve.

    Source: arXiv:2402.00742, from memory; the identity with LSC for one model is tested. Twin: a
    geometric mean of objectives.
    """
    return lsc(rewards, references).sum(-1)


def gaussian_quantile(
    references: Float[Tensor, "*batch refs"], *, level: float = 0.85
) -> Float[Tensor, "*batch"]:
    """mean + z_level deviation: a quantile of a prompt's rewards as if they were normal.

    Of one reference it is that reference. Source: read in PAR's repository (level .85).
    """
    z = torch.special.ndtri(references.new_tensor(level))
    gap = references - references.mean(-1, keepdim=True)
    spread = (gap.square().sum(-1) / max(references.shape[-1] - 1, 1)).sqrt()
    quantile: Tensor = references.mean(-1) + z * spread
    return quantile


def unbiased_reward(
    rewards: Float[Tensor, "*batch"], *, false_positive: float, false_negative: float
) -> Float[Tensor, "*batch"]:
    """(r - p0) / (1 - p0 - p1): of a noisy verdict in {0, 1} the estimate of the true one.

    p0 and p1 are the rates at which wrong answers pass and right ones fail, p0 + p1 < 1. Unbiased;
    outside [0, 1]. Source: backward correction (arXiv:2510.00915); derived. Twin: rewards of
    corrupted data, RIQL.
    """
    return (rewards - false_positive) / (1.0 - false_positive - false_negative)


def forward_weights(
    rewards: Float[Tensor, "*batch"], *, false_negative: float
) -> Float[Tensor, "*batch"]:
    """p1 - 1 where the verdict was 0, p1 where it was 1: advantages, for a verifier that errs.

    The expected policy gradient is 1 - p0 - p1 of the one with true verdicts, whatever p0: only the
    rate of wrong rejections has to be known. Source: forward correction (arXiv:2510.00915);
    derived. Twin: rewards of corrupted data, RIQL.
    """
    return torch.where(rewards > 0, false_negative, false_negative - 1.0).to(rewards)


def mixed_advantage(
    task: Float[Tensor, "*any"], constraint: Float[Tensor, "*any"], weight: Float[Tensor, "*w"]
) -> Float[Tensor, "*any"]:
    """(A + w A_c) / (1 + w): what a constrained policy climbs, w >= 0 the multiplier.

    With w = e^mu the share of A_c is sigmoid(mu), which is how the authors bound it; w = 0 leaves
    the task alone. w itself comes from `token_regularizers.constrained` with the violation
    `threshold - value of the constraint`. Source: constrained RLHF (arXiv:2310.04373), read in the
    authors' code (sigmoid_lagrange). Twin: CPQ, COptiDICE.
    """
    weight = weight.detach()
    return (task + weight * constraint) / (1.0 + weight)


# -- selection ----------------------------------------------------------------------------------


def rejection_sampled(
    rewards: Float[Tensor, "*batch group"],
    uniform: Float[Tensor, "*batch group"],
    member: Shaped[Tensor, "*batch group"] | None = None,
    *,
    beta: float = 0.5,
) -> Bool[Tensor, "*batch group"]:
    """Which samples of the SFT model to keep: with probability e^((r - best) / beta), RSO.

    Those kept are distributed as pi_sft e^(r / beta), the optimum of KL control; the best is always
    kept. beta -> inf keeps all, beta -> 0 the best. Source: RSO (arXiv:2309.06657), whose loop over
    one sample at a time, until there are enough, this replaces; derived. Twin: filtered cloning,
    AWR by resampling.
    """
    inside = _members(rewards, member)
    best = torch.where(inside, rewards, -math.inf).amax(-1, keepdim=True)
    return inside & (uniform <= ((rewards - best) / beta).exp())


def power_weights(rewards: Float[Tensor, "*batch"], *, power: float = 2.0) -> Tensor:
    """|r|^power, with which to sample answers again: PF-PPO.

    Source: PF-PPO (arXiv:2409.06957), read in verl. Twin: prioritised replay.
    """
    return rewards.abs() ** power


def best_worst_weights(
    rewards: Float[Tensor, "*batch group"], member: Shaped[Tensor, "*batch group"] | None = None
) -> Float[Tensor, "*batch group"]:
    """1 on the best and the worst of the group, ties included, 0 between: PF-PPO's BW.

    Source: PF-PPO (arXiv:2409.06957), read in verl. Twin: filtered cloning.
    """
    inside = _members(rewards, member)
    best, worst = _extremes(rewards, inside)
    return (inside & ((rewards == best) | (rewards == worst))).to(rewards)


def best_random_weights(
    rewards: Float[Tensor, "*batch group"],
    member: Shaped[Tensor, "*batch group"] | None = None,
    *,
    best: float = 0.4,
    other: float = 0.1,
) -> Float[Tensor, "*batch group"]:
    """`best` on the best of the group, `other` on the rest: PF-PPO's BR.

    Source: PF-PPO (arXiv:2409.06957), read in verl. Twin: filtered cloning.
    """
    inside = _members(rewards, member)
    top, _ = _extremes(rewards, inside)
    weights = torch.where(rewards == top, rewards.new_tensor(best), rewards.new_tensor(other))
    return masked(weights, inside)


def resampled(
    weights: Float[Tensor, "*batch group"], uniform: Float[Tensor, "*batch draws"]
) -> Int[Tensor, "*batch draws"]:
    """Places drawn with probabilities proportional to `weights`, one for each uniform number.

    Where all weights are zero, all are alike. Source: the inverse of a distribution, derived. Twin:
    prioritised replay.
    """
    some = weights.sum(-1, keepdim=True) > 0
    total = torch.where(some, weights, 1.0).cumsum(-1)
    place = torch.searchsorted(total.contiguous(), uniform * total[..., -1:], right=True)
    return place.clamp(max=weights.shape[-1] - 1)


def ches(
    chosen: Float[Tensor, "*batch token width"],
    chosen_mask: Shaped[Tensor, "*batch token"],
    rejected: Float[Tensor, "*batch length width"],
    rejected_mask: Shaped[Tensor, "*batch length"],
    *,
    normalise: bool = False,
) -> Float[Tensor, "*batch"]:
    """<S+, S-> - |S+|^2, S = sum_t m_t h_t: which pairs make DPO unlearn what it should prefer.

    h_t is the last layer's state from which token t is predicted, so one place before it: from the
    last token of the prompt to the last but one of the answer. The greater, the more the likelihood
    of the chosen answer is displaced; 0 where both are the same. The paper keeps the lowest 5 %.
    `normalise` divides each S by its length. Source: CHES (arXiv:2410.08847), read in the authors'
    code. Twin: filters by the interference of gradients.
    """
    up = _total(chosen, chosen_mask, normalise)
    down = _total(rejected, rejected_mask, normalise)
    return (up * down).sum(-1) - up.square().sum(-1)


def _total(hidden: Tensor, mask: Tensor, normalise: bool) -> Tensor:
    inside = mask[..., None] != 0
    summed = torch.where(inside, at_least_float32(hidden).detach(), 0.0).sum(-2)
    return summed / inside.sum(-2).clamp(min=1) if normalise else summed


def lowest(scores: Float[Tensor, " n"], *, share: float = 0.05) -> Bool[Tensor, " n"]:
    """Which entries belong to the `share` of the lowest, one at least: CHES's filter.

    Source: arXiv:2410.08847, read in the authors' code (5 %). Twin: filters of transitions.
    """
    kept = max(1, math.floor(share * len(scores)))
    return scores.argsort(dim=0, stable=True).argsort() < kept


# -- pairs --------------------------------------------------------------------------------------


def best_worst(
    rewards: Float[Tensor, "*batch group"], member: Shaped[Tensor, "*batch group"] | None = None
) -> tuple[Int[Tensor, "*batch"], Int[Tensor, "*batch"], Float[Tensor, "*batch"]]:
    """Places of the best and the worst answer, and how far apart they are; 0 says: no pair.

    Of ties the first is taken. Source: derived; RLUF, PUGC, iterative DPO and DPA pair so. Twin:
    preferences from returns.
    """
    inside = _members(rewards, member)
    best, worst = _extremes(rewards, inside)
    up, down = (
        torch.where(inside & (rewards == x), 1, 0).argmax(-1)  # the first of equals
        for x in (best, worst)
    )
    return up, down, (best - worst)[..., 0].nan_to_num(nan=0.0, neginf=0.0)


def pairs_above(
    rewards: Float[Tensor, "*batch group"],
    member: Shaped[Tensor, "*batch group"] | None = None,
    *,
    margin: float = 0.0,
) -> Bool[Tensor, "*batch group group"]:
    """Entry (i, j): answer i is better than answer j by more than `margin`, both existing.

    Source: derived. Twin: preferences from returns.
    """
    inside = _members(rewards, member)
    better = rewards[..., :, None] - rewards[..., None, :] > margin
    return better & inside[..., :, None] & inside[..., None, :]


def _members(rewards: Tensor, member: Tensor | None) -> Tensor:
    return torch.ones_like(rewards, dtype=torch.bool) if member is None else member != 0


def _extremes(rewards: Tensor, inside: Tensor) -> tuple[Tensor, Tensor]:
    best = torch.where(inside, rewards, -math.inf).amax(-1, keepdim=True)
    return best, torch.where(inside, rewards, math.inf).amin(-1, keepdim=True)
