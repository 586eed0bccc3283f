"""How much better than its group an answer was: rewards of G answers to a prompt -> advantages.

    p = mean of the group,  s = its standard deviation,  A = what a policy-gradient loss weighs with

Every function takes rewards (..., group) and, where groups have fewer members than the widest,
`member`, which is 1 on those that exist; the others count for nothing, whatever their reward, and
have the advantage 0. None passes a gradient on: advantages are data. A trajectory's return among
those from one start is the same thing, so all of it holds for control.
"""

import math

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from offrl.divergences import at_least_float32
from offrl.lm.losses.scores import masked
from offrl.regularizers import advantage_weight


def centred(
    rewards: Float[Tensor, "*batch group"], member: Shaped[Tensor, "*batch group"] | None = None
) -> Float[Tensor, "*batch group"]:
    """r - p: REINFORCE with the group's mean as baseline. A group of one has the advantage 0.

    Source: Dr. GRPO (arXiv:2503.20783), REC (arXiv:2509.24203); read in TRL and Trinity. Twin: a
    return less the mean return from that state.
    """
    rewards, member = _group(rewards, member)
    return masked(rewards - _mean(rewards, member)[..., None], member)


def standardised(
    rewards: Float[Tensor, "*batch group"],
    member: Shaped[Tensor, "*batch group"] | None = None,
    *,
    eps: float = 1e-4,
    correction: int = 1,
) -> Float[Tensor, "*batch group"]:
    """(r - p) / (s + eps): GRPO. `correction` 1 divides by G - 1 in s, 0 by G.

    A group whose rewards agree has the advantage 0. Source: GRPO (arXiv:2402.03300), read in TRL
    (eps 1e-4, correction 1) and verl (1e-6). Twin: normalising advantages in PPO.
    """
    rewards, member = _group(rewards, member)
    spread = _deviation(rewards, member, correction)
    return centred(rewards, member) / (spread[..., None] + eps)


def batch_scaled(
    rewards: Float[Tensor, "*seed batch group"],
    member: Shaped[Tensor, "*seed batch group"] | None = None,
    *,
    eps: float = 1e-4,
) -> Float[Tensor, "*seed batch group"]:
    """(r - p) / (S + eps), S the deviation over all rewards of the batch.

    The prompt on which answers differ little then counts little, unlike in GRPO. The value depends
    on what else is in the batch: give it the gathered one. Source: read in TRL (scale_rewards
    "batch", after arXiv:2508.08221). Twin: normalising advantages in PPO.
    """
    rewards, member = _group(rewards, member)
    flat = rewards.flatten(-2), member.flatten(-2)
    return centred(rewards, member) / (_deviation(*flat, 1)[..., None, None] + eps)


def leave_one_out(
    rewards: Float[Tensor, "*batch group"], member: Shaped[Tensor, "*batch group"] | None = None
) -> Float[Tensor, "*batch group"]:
    """r - mean of the others = (r - p) G / (G - 1): RLOO; a group of one has the advantage 0.

    Source: arXiv:2402.14740, read in TRL; OREAL (arXiv:2502.06781) shapes its rewards so. Twin: a
    return less that of other trajectories.
    """
    rewards, member = _group(rewards, member)
    count = _count(member).to(rewards)
    return centred(rewards, member) * (count / (count - 1.0).clamp(min=1.0))[..., None]


def fixed_baseline(
    rewards: Float[Tensor, "*batch group"],
    member: Shaped[Tensor, "*batch group"] | None = None,
    *,
    baseline: float = 0.5,
) -> Float[Tensor, "*batch group"]:
    """r - c, the same c for all prompts: 1/2 makes right and wrong in {0, 1} weigh the same.

    Of rewards +-1, a share q of them right, the right ones have q (1 - c) / (1 + (1 - 2 q) c) of
    the weight. Source: TOPR (arXiv:2503.14286), which moves c to set that share; derived. Twin: a
    fixed baseline.
    """
    rewards, member = _group(rewards, member)
    return masked(rewards - baseline, member)


def shifted(
    rewards: Float[Tensor, "*batch group"],
    member: Shaped[Tensor, "*batch group"] | None = None,
    *,
    shift: float = -0.1,
) -> Float[Tensor, "*batch group"]:
    """r - V with V = p + shift: AsymRE. A negative shift adds behaviour cloning to the data.

    On off-policy data a baseline is not free: for V < p the policy tends to (mu (r - V) - c)^+ /
    (p - V), with c such that it sums to one; for V >= p it collapses. V -> -inf is cloning of mu.
    Source: AsymRE (arXiv:2506.20520), read in Trinity; the limit is derived, and tested. Twin: CRR
    and the way from policy gradients to cloning.
    """
    rewards, member = _group(rewards, member)
    return masked(centred(rewards, member) - shift, member)


def log_mean_exp(
    rewards: Float[Tensor, "*batch group"],
    member: Shaped[Tensor, "*batch group"] | None = None,
    *,
    tau: float = 1.0,
) -> Float[Tensor, "*batch group"]:
    """r - tau log mean e^(r / tau): OPMD's baseline, the value of the KL-regularised problem.

    tau -> inf is the mean, tau -> 0 the best of the group. Source: read in Trinity ("logavgexp").
    Twin: the soft value of XQL, the temperature of MPO.
    """
    rewards, member = _group(rewards, member)
    scaled = torch.where(member, rewards / tau, -math.inf)
    value = tau * (scaled.logsumexp(-1) - _count(member).to(rewards).log())
    return masked(rewards - value[..., None], member)


def balanced(
    rewards: Float[Tensor, "*batch group"],
    uniform: Float[Tensor, "*batch group"],
    member: Shaped[Tensor, "*batch group"] | None = None,
) -> Float[Tensor, "*batch group"]:
    """r - p over a group that has lost its surplus of answers below p, chosen by `uniform`.

    Where more answers lie below the mean than at or above it, as many of those below are dropped
    as there are too many: those of the greatest `uniform`. The dropped have the advantage 0, and p
    is the mean of the kept. Source: RED-Drop (arXiv:2509.24203), read in Trinity. Twin: balanced
    replay of successes and failures.
    """
    rewards, member = _group(rewards, member)
    low = member & (rewards < _mean(rewards, member)[..., None])
    kept = member.sum(-1, keepdim=True) - low.sum(-1, keepdim=True)
    place = torch.where(low, uniform, math.inf).argsort(-1).argsort(-1)
    return centred(rewards, member & (~low | (place < kept)))


def exponential(
    rewards: Float[Tensor, "*batch group"],
    member: Shaped[Tensor, "*batch group"] | None = None,
    *,
    temperature: float = 1.0,
    max_weight: float = 100.0,
) -> Float[Tensor, "*batch group"]:
    """A e^(A / T) with A = r - p, the weight at most `max_weight`: good answers count more.

    Source: RED-Weight (arXiv:2509.24203), read in Trinity, which bounds nothing. Twin: AWR, whose
    weight this is.
    """
    advantage = centred(rewards, member)
    return advantage * advantage_weight(advantage, 1.0 / temperature, max_weight)


def positive_only(
    rewards: Float[Tensor, "*batch group"], member: Shaped[Tensor, "*batch group"] | None = None
) -> Float[Tensor, "*batch group"]:
    """r of rewards in {0, 1}: only what was right is learned, PSR. Twin: filtered cloning.

    Source: arXiv:2506.01347, read in the authors' code. PSR + NSR is REINFORCE with +-1.
    """
    rewards, member = _group(rewards, member)
    return masked((rewards > 0).to(rewards), member)


def negative_only(
    rewards: Float[Tensor, "*batch group"], member: Shaped[Tensor, "*batch group"] | None = None
) -> Float[Tensor, "*batch group"]:
    """r - 1 of rewards in {0, 1}: only what was wrong is unlearned, NSR.

    Source: arXiv:2506.01347, read in the authors' code. Twin: unlearning of failures.
    """
    rewards, member = _group(rewards, member)
    return masked((rewards > 0).to(rewards) - 1.0, member)


def weighted_reinforce(
    rewards: Float[Tensor, "*batch group"],
    member: Shaped[Tensor, "*batch group"] | None = None,
    *,
    positive: float = 0.1,
) -> Float[Tensor, "*batch group"]:
    """`positive` where the answer was right, -1 where it was wrong: W-REINFORCE.

    Source: arXiv:2506.01347, read in the authors' code (lambda 0.1). Twin: cloning of successes,
    failures as negatives.
    """
    return positive * positive_only(rewards, member) + negative_only(rewards, member)


def beta_normalised(
    rewards: Float[Tensor, "*seed batch group"],
    member: Shaped[Tensor, "*seed batch group"] | None = None,
    *,
    low: float = 0.0,
    high: float = 1.0,
    shape: tuple[float, float] | None = None,
    max_weight: float = 1e6,
) -> Float[Tensor, "*seed batch group"]:
    """(r - p) / Beta(p; a, b), the rewards scaled from [low, high] to [0, 1]: BNPO.

    (a, b) = max(1, 1 + (a', b') / 3), where a' = k m and b' = k (1 - m), k = m (1 - m) / v - 1,
    match the mean m and variance v of the prompts' p in the batch; with fewer than two prompts they
    are (1, 1), plain REINFORCE. (3/2, 3/2) is pi/8 of GRPO. `shape` sets (a, b). Not what TRL calls
    "bnpo", which is a way to average. Source: BNPO (arXiv:2506.02864), read in the authors' code.
    Twin: normalising returns by what is known of their spread.
    """
    rewards, member = _group((rewards - low) / (high - low), member)
    p, some = _mean(rewards, member), member.any(-1)
    a, b = _beta_shape(p, some) if shape is None else (p.new_tensor(x) for x in shape)
    a, b = a[..., None], b[..., None]
    log_weight = torch.lgamma(a) + torch.lgamma(b) - torch.lgamma(a + b)
    log_weight = log_weight - torch.xlogy(a - 1.0, p) - torch.xlogy(b - 1.0, 1.0 - p)
    weight = log_weight.clamp(max=math.log(max_weight)).exp()
    return weight[..., None] * centred(rewards, member)


def range_value_at_risk(
    scores: Float[Tensor, "*batch group"],
    lower: Float[Tensor, "*batch"],
    upper: Float[Tensor, "*batch"],
    *,
    levels: tuple[float, float] = (0.2, 0.8),
    lower_tail: float = 0.0,
    upper_tail: float = 0.0,
) -> Float[Tensor, "*batch group"]:
    """(clamp(z, ql, qh) - qh) / (h - l), and tails: RiskPO on the scores z of bundles of prompts.

    ql and qh are the quantiles of z at the levels l and h: their values here, or what is tracked of
    them (`quantile_step`). The lower tail adds -w (ql - z)^+ / l and then divides by w + 1; the
    upper one adds w (z - qh)^+ / (1 - h). Without a tail no member is above 0: the middle of the
    distribution is lifted towards qh. Every answer of a bundle has the bundle's advantage, in the
    script over the deviation of its prompt's rewards. Source: RiskPO (arXiv:2510.00911), read in
    the authors' code, whose script has levels .2 and .8, upper tail 1.5 and no lower one. Twin:
    CVaR and range-VaR of returns.
    """
    ql, qh = lower.detach()[..., None], upper.detach()[..., None]
    z = at_least_float32(scores).detach()
    advantage = (torch.minimum(torch.maximum(z, ql), qh) - qh) / (levels[1] - levels[0])
    tail = -(ql - z).clamp(min=0.0) / levels[0]
    advantage = (lower_tail * tail + advantage) / (lower_tail + 1.0)
    return advantage + upper_tail * (z - qh).clamp(min=0.0) / (1.0 - levels[1])


def quantile_step(
    tracked: Float[Tensor, "*batch"],
    scores: Float[Tensor, "*batch group"],
    *,
    level: float,
    rate: float = 0.1,
) -> Float[Tensor, "*batch"]:
    """q + rate (level - share of scores at or below q): one step on the quantile loss.

    Stationary where that share is the level. Source: RiskPO (arXiv:2510.00911), read in the
    authors' script (rate .1). Twin: quantile regression of returns.
    """
    share = (scores <= tracked[..., None]).to(tracked).mean(-1)
    return tracked + rate * (level - share)


def to_go(
    rewards: Float[Tensor, "*batch token"],
    mask: Shaped[Tensor, "*batch token"],
    *,
    gamma: float = 1.0,
) -> Float[Tensor, "*batch token"]:
    """sum_(k >= t) gamma^(k - t) m_k r_k: the return from each token on, 0 outside the mask.

    Source: derived. Twin: returns to go.
    """
    inside = masked(at_least_float32(rewards), mask).detach()
    if gamma == 1.0:
        returns = inside.flip(-1).cumsum(-1).flip(-1)
    else:
        steps = torch.arange(inside.shape[-1], device=inside.device)
        ahead = steps[None, :] - steps[:, None]
        decay = torch.where(ahead >= 0, gamma ** ahead.clamp(min=0).to(inside), 0.0)
        returns = inside @ decay.T
    return masked(returns, mask)


def whitened(
    values: Float[Tensor, "*seed batch token"],
    mask: Shaped[Tensor, "*seed batch token"],
    *,
    eps: float = 1e-8,
) -> Float[Tensor, "*seed batch token"]:
    """(A - mean) / sqrt(var + eps) over the batch's tokens inside the mask.

    Source: read in verl (masked_whiten). Twin: normalising advantages in PPO.
    """
    values, inside = _group(values.flatten(-2), mask.flatten(-2))
    spread = (_deviation(values, inside, 1).square() + eps).sqrt()
    return (centred(values, inside) / spread[..., None]).reshape(mask.shape)


def process_rewards(
    dense: Float[Tensor, "*seed batch group token"],
    outcome: Float[Tensor, "*seed batch group"],
    mask: Shaped[Tensor, "*seed batch group token"],
    *,
    dense_weight: float = 5.0,
    outcome_weight: float = 5.0,
    gamma: float = 1.0,
) -> Float[Tensor, "*seed batch group token"]:
    """Advantages of tokens from rewards of tokens and of the whole, each against the group: PRIME.

    To go, whitened, of  w_d G / (G - 1) (d_t - mean over the group of each answer's mean d)
    on every token, and  w_o (outcome less the mean of the others')  on the last. `dense` are the
    implicit rewards beta (l - l_ref) of a reward model that is itself trained by cross entropy on
    the outcomes. Source: PRIME (arXiv:2502.01456), read in the authors' code (beta .05, weights 5
    and 5). Twin: return decomposition.
    """
    inside = mask != 0
    dense = masked(at_least_float32(dense).detach(), mask)
    per_answer = dense.sum(-1) / inside.sum(-1).clamp(min=1)
    count = float(mask.shape[-2])
    scale = count / max(count - 1.0, 1.0)
    token = dense_weight * scale * (dense - per_answer.mean(-1)[..., None, None])
    places = torch.arange(mask.shape[-1], device=mask.device)
    last = inside & (places == torch.where(inside, places, -1).amax(-1, keepdim=True))
    token = token + last * outcome_weight * leave_one_out(outcome)[..., None]
    flat, flat_mask = to_go(token, mask, gamma=gamma).flatten(-3, -2), mask.flatten(-3, -2)
    return whitened(flat, flat_mask).reshape(mask.shape)


def _group(rewards: Tensor, member: Tensor | None) -> tuple[Tensor, Tensor]:
    rewards = at_least_float32(rewards).detach()
    if member is None:
        return rewards, torch.ones_like(rewards, dtype=torch.bool)
    member = member != 0
    return masked(rewards, member), member


def _count(member: Tensor) -> Tensor:
    return member.sum(-1).clamp(min=1)


def _mean(rewards: Tensor, member: Tensor) -> Tensor:
    return rewards.sum(-1) / _count(member)


def _deviation(rewards: Tensor, member: Tensor, correction: int) -> Tensor:
    squares = centred(rewards, member).square().sum(-1)
    return (squares / (_count(member) - correction).clamp(min=1)).sqrt()


def _beta_shape(p: Tensor, some: Tensor) -> tuple[Tensor, Tensor]:
    mean, spread = _mean(masked(p, some), some), _deviation(masked(p, some), some, 1)
    tightness = mean * (1.0 - mean) / spread.square().clamp(min=1e-6) - 1.0
    several = some.sum(-1) > 1
    a, b = ((1.0 + tightness * x / 3.0).clamp(min=1.0) for x in (mean, 1.0 - mean))
    return torch.where(several, a, 1.0), torch.where(several, b, 1.0)
