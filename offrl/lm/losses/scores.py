"""What every loss is given: log-probabilities of sequences, and how they become numbers.

    l_t = log pi(y_t | x, y_<t)     of the policy; of a reference, a sampler, a previous iterate
    L   = sum_t m_t l_t             m_t is 1 on the tokens of the completion y
    u   = L - L_ref                 the implicit reward of y, up to beta and a constant

A trajectory of a control policy is a sequence too: l_t = log pi(a_t | s_t) of its steps.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from offrl.divergences import at_least_float32
from offrl.errors import ConfigError

Anchor = Literal["ref", "old", "prev", "none"]
Reduce = Literal["sum", "mean"]
Mode = Literal["sequence_mean", "sequence_sum", "token_mean", "constant"]
Link = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Scores:
    """What a model says of each token of some completions; a loss takes what it needs of it.

    Values outside the mask count for nothing, whatever they are, infinities and NaN included.
    The leading axes are the batch, and for lists of completions `*batch list`.
    """

    logp: Float[Tensor, "*batch token"]  # l: of the policy that is trained
    ref_logp: Float[Tensor, "*batch token"] | None  # of the reference
    mask: Shaped[Tensor, "*batch token"]  # m: 1 on the completion, 0 on prompt and padding
    old_logp: Float[Tensor, "*batch token"] | None = None  # of the policy that sampled
    prev_logp: Float[Tensor, "*batch token"] | None = None  # of the previous iterate
    entropy: Float[Tensor, "*batch token"] | None = None  # of the policy's next-token law
    hidden: Float[Tensor, "*batch token width"] | None = None  # of the last layer

    @property
    def length(self) -> Float[Tensor, "*batch"]:
        """|y|, at least 1: a completion without tokens has the score 0 rather than 0 / 0."""
        return (self.mask != 0).sum(-1).clamp(min=1).to(at_least_float32(self.logp))

    def within(self, span: Shaped[Tensor, "*batch token"]) -> "Scores":
        """The same, of the tokens where the span is not 0 alone."""
        return replace(self, mask=(self.mask != 0) & (span != 0))


def masked(
    x: Float[Tensor, "*batch token"], mask: Shaped[Tensor, "*batch token"]
) -> Float[Tensor, "*batch token"]:
    """x inside the mask and 0 outside of it, in value and in gradient."""
    return torch.where(mask != 0, x, 0.0)


def log_ratio(scores: Scores, against: Anchor = "ref") -> Float[Tensor, "*batch token"]:
    """l_t - l_t of the anchor, 0 outside the mask; l_t itself against "none".

    Raises ConfigError where the anchor's log-probabilities are not given.
    """
    logp = at_least_float32(scores.logp)
    if against != "none":
        anchors = {"ref": scores.ref_logp, "old": scores.old_logp, "prev": scores.prev_logp}
        anchor = anchors[against]
        if anchor is None:
            raise ConfigError(
                f"this loss compares with {against}_logp, which is None: give the scores the "
                "log-probabilities of that policy, or take a loss that needs none"
            )
        logp = logp - at_least_float32(anchor)
    return masked(logp, scores.mask)


def seq_score(
    scores: Scores,
    reduce: Reduce = "sum",
    link: Link | None = None,
    against: Anchor = "ref",
) -> Float[Tensor, "*batch"]:
    """One number per sequence: link(sum_t m_t (l_t - l_t of the anchor)), or of their mean.

    Against the reference this is u, against "none" L. Sums are taken in float32 or wider.
    """
    score = log_ratio(scores, against).sum(-1)
    if reduce == "mean":
        score = score / scores.length
    return score if link is None else link(score)


def bc_term(scores: Scores, length: Reduce = "sum") -> Float[Tensor, "*batch"]:
    """-L, or -L / |y|: behaviour cloning of the sequences, as a loss for each.

    Twin: the cloning term of TD3+BC and ReBRAC.
    """
    return -seq_score(scores, length, against="none")


def implicit_rewards(scores: Scores, *, beta: float) -> Float[Tensor, "*batch token"]:
    """beta (l_t - l_ref,t): the reward of each token that the policy is optimal for.

    They sum to beta u. Of a policy that is optimal under the reward r and KL control, beta u is
    the return less the value of the prompt. Twin: potential-based shaping, the soft advantage.
    Source: "From r to Q*" (arXiv:2404.12358); derived, and checked on a tree of choices.
    """
    return beta * log_ratio(scores)


def agg(
    loss: Float[Tensor, "*seed batch token"],
    mask: Shaped[Tensor, "*seed batch token"],
    mode: Mode,
    *,
    total: float | None = None,
    max_length: int = 1,
) -> Float[Tensor, "*seed"]:
    """One number per learner of a loss per token, in one of the ways that are in use.

        sequence_mean  sum_i (sum_t m l / |y_i|) / N        GRPO
        sequence_sum   sum_i sum_t m l / N                  the authors' BNPO; LUSPO, whose loss is
                                                            the same on all tokens of a sequence
        token_mean     sum_it m l / sum_it m                TRL's "bnpo"; DAPO with a global total
        constant       sum_it m l / (N max_length)          Dr. GRPO

    `total` stands for N, or for the number of tokens in token_mean: with the count of all
    processes and accumulation steps, the pieces of a batch add up to the whole. `max_length` is
    read by constant alone. Source: read in TRL 1.10's GRPO trainer.
    """
    inside = mask != 0
    per_sequence = masked(at_least_float32(loss), mask).sum(-1)
    count = torch.full_like(per_sequence.sum(-1), per_sequence.shape[-1])
    if mode == "sequence_mean":
        per_sequence = per_sequence / inside.sum(-1).clamp(min=1)
    elif mode == "token_mean":
        count = inside.sum((-2, -1)).clamp(min=1).to(per_sequence)
    elif mode == "constant":
        per_sequence = per_sequence / max_length
    return per_sequence.sum(-1) / (count if total is None else total)
