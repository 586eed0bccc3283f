"""Rewards that are log-ratios of language models, and the losses of what predicts rewards.

    u_t = l_t - lr_t, the implicit reward of a token (`scores.implicit_rewards`), which sums to u

OPRL's (iStar, arXiv:2509.19199) are u_t against the sampler (`log_ratio(scores, "old")`), its
trajectories' advantages plus alpha times its steps'; how the steps are normalised and what alpha is
was not found in public code, so its advantages are not here.
"""

import torch
from jaxtyping import Float, Shaped
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid

from offrl.divergences import at_least_float32, kl_k1
from offrl.lm.losses.scores import Scores, masked, seq_score


def prime(
    scores: Scores, outcome: Float[Tensor, "*batch"], *, beta: float = 0.05
) -> Float[Tensor, "*batch"]:
    """-o log S(beta u) - (1 - o) log S(-beta u): PRIME's reward model, from outcomes o in [0, 1].

    Trained beside the policy; its tokens' rewards beta u_t go to `process_rewards`. Data: answers
    and whether they were right. Source: PRIME (arXiv:2502.01456), read in the authors' code. Twin:
    return decomposition.
    """
    return binary_cross_entropy_with_logits(beta * seq_score(scores), outcome, reduction="none")


def token_outcome(
    logits: Float[Tensor, "*batch token"],
    mask: Shaped[Tensor, "*batch token"],
    outcome: Float[Tensor, "*batch"],
) -> Float[Tensor, "*batch"]:
    """Cross entropy of the outcome and the sigmoid of the mean logit: OREAL's model of tokens.

    Each token's value is what it adds to the answer's. How the authors turn them into weights of
    `oreal` was not established, so that is the caller's. Source: OREAL (arXiv:2502.06781), read in
    the authors' code. Twin: return decomposition by an average.
    """
    mean = masked(at_least_float32(logits), mask).sum(-1) / (mask != 0).sum(-1).clamp(min=1)
    return binary_cross_entropy_with_logits(mean, outcome, reduction="none")


def rto(
    logp: Float[Tensor, "*batch token"],
    dpo_logp: Float[Tensor, "*batch token"],
    ref_logp: Float[Tensor, "*batch token"],
    reward: Float[Tensor, "*batch"],
    mask: Shaped[Tensor, "*batch token"],
    *,
    scale: float = 0.05,
    clip: float = 0.05,
    kl: float = 0.01,
) -> Float[Tensor, "*batch token"]:
    """clip(scale (l_dpo - lr), +-clip) - kl (l - lr), and `reward` on the last token: RTO.

    A policy trained by DPO rewards the tokens of PPO. Detached, for `to_go` or a critic. Source:
    RTO (arXiv:2404.18922), read in the authors' code and script. Twin: potential-based shaping.
    """
    dense = (scale * kl_k1(dpo_logp, ref_logp)).clamp(-clip, clip) - kl * kl_k1(logp, ref_logp)
    inside = mask != 0
    places = torch.arange(mask.shape[-1], device=mask.device)
    last = inside & (places == torch.where(inside, places, -1).amax(-1, keepdim=True))
    dense = masked(at_least_float32(dense), mask) + last * reward[..., None]
    return dense.detach()


def density_ratio(
    strong_logp: Float[Tensor, "*batch token"],
    weak_logp: Float[Tensor, "*batch token"],
    mask: Shaped[Tensor, "*batch token"],
) -> Float[Tensor, "*batch"]:
    """sum_t log pi_strong - log pi_weak: CDR, a reward without preferences.

    The strong model is the better aligned one; where it is the weak one trained by DPO the reward
    is DPO's implicit one. Source: CDR, Dr.SoW (arXiv:2411.02481), its abstract. Twin: the density
    ratio of GAIL and DICE.
    """
    gap = at_least_float32(kl_k1(strong_logp, weak_logp))
    return masked(gap, mask).sum(-1).detach()


def ideal_point(
    user: Float[Tensor, "*batch prototypes"], prototypes: Float[Tensor, "prototypes width"]
) -> Float[Tensor, "*batch width"]:
    """softmax(w_user) P: what a user wants as a mixture of prototypes, PAL.

    A new user is learned by w alone; with one prototype it is an ordinary reward model. Source: PAL
    (arXiv:2406.08469), read in the authors' code (2 prototypes, width 512). Twin: rewards of
    several tasks.
    """
    return user.softmax(-1) @ prototypes


def pal(
    ideal: Float[Tensor, "*batch width"],
    chosen: Float[Tensor, "*batch width"],
    rejected: Float[Tensor, "*batch width"],
) -> Float[Tensor, "*batch"]:
    """-log S(|r - a|^2 - |c - a|^2): the chosen answer lies nearer the user's ideal point, PAL-A.

    Source: PAL (arXiv:2406.08469), read in the authors' code, where a hinge is the alternative.
    Twin: rewards of several tasks.
    """
    far, near = (rejected - ideal).square().sum(-1), (chosen - ideal).square().sum(-1)
    return -logsigmoid(far - near)


def pal_product(
    ideal: Float[Tensor, "*batch width"],
    chosen: Float[Tensor, "*batch width"],
    rejected: Float[Tensor, "*batch width"],
    *,
    scale: float = 1.0,
) -> Float[Tensor, "*batch"]:
    """-log S(scale <c - r, a>): PAL-B, by scalar products with the ideal point.

    Source: PAL (arXiv:2406.08469), read in the authors' code. Twin: rewards of several tasks.
    """
    return -logsigmoid(scale * ((chosen - rejected) * ideal).sum(-1))
