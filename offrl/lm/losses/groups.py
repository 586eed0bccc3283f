"""Whole losses on scored groups: an advantage, a policy-gradient loss, a ratio and an average.

GROUP_METHODS names the methods; `group_loss` computes any of them, or one of your own, from the
scores of (..., prompt, answer, token) and the rewards of (..., prompt, answer). A method that is
right on any data takes log-probabilities for log-ratios where no sampler was recorded. What else
a paper has, masks of tokens or other regularisers, the caller multiplies or adds.
"""

from collections.abc import Callable
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from offrl.divergences import at_least_float32, kl_k3
from offrl.lm.losses import advantages as adv
from offrl.lm.losses import policy_gradient as pg
from offrl.lm.losses.scores import Anchor, Mode, Scores, agg, log_ratio, masked

Rule = Callable[[Tensor, Tensor | None], Tensor]
# Of log-ratio, advantage, reward and the group's mean reward, the last three with a token axis.
Loss = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def by_advantage(function: Callable[..., Tensor], **options: object) -> Loss:
    """A loss of `policy_gradient` that sees no reward but through the advantage."""

    def loss(ratio: Tensor, advantage: Tensor, reward: Tensor, mean: Tensor) -> Tensor:
        return function(ratio, advantage, **options)

    return loss


def _nft(ratio: Tensor, advantage: Tensor, reward: Tensor, mean: Tensor) -> Tensor:
    # Of its three weights of prompts the one that makes it GRPO on policy.
    return pg.nft_weight(mean, standardise=True) * pg.nft(ratio, reward, mean)


def _oreal(ratio: Tensor, advantage: Tensor, reward: Tensor, mean: Tensor) -> Tensor:
    return pg.oreal(ratio, reward, advantage)


@dataclass(frozen=True)
class GroupMethod:
    """What a method on scored groups is put together of."""

    paper: str
    advantage: Rule
    loss: Loss
    ratio: Literal["token", "mean", "sum"] = "token"  # d: of each token, or of the whole answer
    mode: Mode = "token_mean"
    any_data: bool = False  # right without the sampler's log-probabilities


_clip, _reinforce = by_advantage(pg.clipped), by_advantage(pg.reinforce)

GROUP_METHODS: MappingProxyType[str, GroupMethod] = MappingProxyType(
    {
        "grpo": GroupMethod("2402.03300", adv.standardised, _clip, mode="sequence_mean"),
        "dr_grpo": GroupMethod("2503.20783", adv.centred, _clip, mode="constant"),
        "dapo": GroupMethod("2503.14476", adv.standardised, by_advantage(pg.clipped, high=0.28)),
        "gspo": GroupMethod(
            "2507.18071",
            adv.standardised,
            by_advantage(pg.clipped, low=3e-4, high=4e-4),
            ratio="mean",
            mode="sequence_mean",
        ),
        "cispo": GroupMethod("2506.13585", adv.standardised, by_advantage(pg.cispo)),
        "sapo": GroupMethod(
            "2511.20347", adv.standardised, by_advantage(pg.sapo), mode="sequence_mean"
        ),
        "bnpo": GroupMethod(
            "2506.02864",
            adv.beta_normalised,
            by_advantage(pg.clipped, high=0.28),
            mode="sequence_sum",
        ),
        "rloo": GroupMethod("2402.14740", adv.leave_one_out, _clip, "sum", "sequence_sum"),
        "reinforce": GroupMethod("2509.24203", adv.centred, _reinforce, any_data=True),
        "asymre": GroupMethod("2506.20520", adv.shifted, _reinforce, any_data=True),
        "red_weight": GroupMethod("2509.24203", adv.exponential, _reinforce, any_data=True),
        "awr": GroupMethod(
            "1910.00177", adv.centred, by_advantage(pg.advantage_weighted), any_data=True
        ),
        "psr": GroupMethod("2506.01347", adv.positive_only, _clip),
        "nsr": GroupMethod("2506.01347", adv.negative_only, _clip),
        "w_reinforce": GroupMethod("2506.01347", adv.weighted_reinforce, _clip),
        "topr": GroupMethod(
            "2503.14286", adv.fixed_baseline, by_advantage(pg.topr), "sum", "sequence_sum"
        ),
        "topr_token": GroupMethod("2503.14286", adv.fixed_baseline, by_advantage(pg.topr)),
        "opmd": GroupMethod(
            "2501.12599", adv.centred, by_advantage(pg.opmd), "sum", "sequence_sum"
        ),
        "rec_one_side": GroupMethod("2509.24203", adv.centred, by_advantage(pg.one_side_clipped)),
        "rec_two_side": GroupMethod("2509.24203", adv.centred, by_advantage(pg.two_side_clipped)),
        "rec_ring": GroupMethod("2509.24203", adv.centred, by_advantage(pg.ring_clipped)),
        "nft": GroupMethod("2505.18116", adv.centred, _nft),
        "oreal": GroupMethod("2502.06781", adv.leave_one_out, _oreal, any_data=True),
    }
)


def group_loss(
    scores: Scores,
    rewards: Float[Tensor, "*seed batch group"],
    member: Shaped[Tensor, "*seed batch group"] | None = None,
    *,
    method: GroupMethod,
    kl: float = 0.0,
    total: float | None = None,
    max_length: int = 1,
) -> Float[Tensor, "*seed"]:
    """The loss of a method on a batch of groups: one number per learner.

    `member` is 1 on answers that exist, where groups differ in size. `kl` weighs k3 towards the
    reference on every token, GRPO's penalty, whose gradient is that of KL(ref || pi). `total` is
    what is divided by: the number of tokens of all processes and accumulation steps where the mode
    is token_mean, else the number of answers; `max_length` is read by the mode constant. Raises
    ConfigError where a method needs the sampler's log-probabilities, or `kl` the reference's, and
    has none.
    """
    member = torch.ones_like(rewards) if member is None else member
    mask = (scores.mask != 0) & (member != 0)[..., None]
    against: Anchor = "none" if method.any_data and scores.old_logp is None else "old"
    ratio, over = masked(log_ratio(scores, against), mask), mask
    if method.ratio != "token":
        ratio = pg.sequence_ratio(ratio, mask, mean=method.ratio == "mean")
        over = mask.any(-1, keepdim=True)
    reward = masked(at_least_float32(rewards).detach(), member)
    mean = reward - adv.centred(reward, member)
    advantage = method.advantage(reward, member)
    loss = method.loss(ratio, advantage[..., None], reward[..., None], mean[..., None])
    answers = (member != 0).sum((-2, -1)).clamp(min=1).to(reward)
    if method.mode == "token_mean" or total is not None:
        answers = torch.ones_like(answers)  # `agg` divides
    else:
        total = 1.0
    value = _agg(loss, over, method.mode, total, max_length)
    if kl:
        to_reference = masked(log_ratio(scores), mask)
        penalty = kl_k3(to_reference, torch.zeros_like(to_reference))
        value = value + kl * _agg(penalty, mask, method.mode, total, max_length)
    return value / answers


def _agg(loss: Tensor, mask: Tensor, mode: Mode, total: float | None, longest: int) -> Tensor:
    """`agg` over prompts and answers alike."""
    flat = loss.flatten(-3, -2), mask.flatten(-3, -2)
    return agg(*flat, mode, total=total, max_length=longest)
