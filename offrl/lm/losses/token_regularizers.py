"""What keeps a policy near its reference, or its entropy near a target, token by token.

    l = log pi(y_t),  lr, lo, lb = the same of the reference, the sampler, a base model
    H = the entropy of the next-token law

The KL penalties are the estimators of `offrl.divergences`, to which the authors' names lead here
where a method takes one on its own terms. Mind their gradients: k3 towards the reference, GRPO's
penalty, descends KL(ref || pi); `kl_k3_straight` has its value and descends KL(pi || ref). What has
one value per token goes through `agg`; the references are constants, so no gradient reaches them.
"""

import math

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from offrl.divergences import (
    at_least_float32,
    f_div,
    kl_k1,
    kl_k3,
    kl_k3_straight,
    root_chi2_est,
)
from offrl.lm.losses.scores import agg, masked
from offrl.multipliers import Multiplier
from offrl.regularizers import relative_support

# -- towards a reference ------------------------------------------------------------------------


def absolute_ratio(
    logp: Float[Tensor, "*any"], old_logp: Float[Tensor, "*any"]
) -> Float[Tensor, "*any"]:
    """|l - lo|: what KL-Cov adds on the tokens that `kl_cov` chooses, with coefficient 1.

    Source: arXiv:2505.22617, read in verl. Twin: an L1 trust region on outliers.
    """
    return kl_k1(logp, old_logp.detach()).abs()


def convex_anchor(
    logp: Float[Tensor, "*any"],
    base_logp: Float[Tensor, "*any"],
    prev_logp: Float[Tensor, "*any"],
    *,
    weight: float = 0.5,
) -> Float[Tensor, "*any"]:
    """weight KL(pi || base) + (1 - weight) KL(pi || previous), each as k3 with k2's gradient.

    ReMix, whose weights and schedule were not found in public code: the default is ours. Midway it
    makes the current policy its base, and goes on with weight 1 and fresh samples, which is GRPO.
    Source: arXiv:2507.06892, its abstract. Twin: two proximal terms, to the data's policy
    and to the last iterate.
    """
    base = kl_k3_straight(logp, base_logp.detach())
    return weight * base + (1.0 - weight) * kl_k3_straight(logp, prev_logp.detach())


def correlated_proxies(
    logp: Float[Tensor, "*seed batch token"],
    ref_logp: Float[Tensor, "*seed batch token"],
    mask: Shaped[Tensor, "*seed batch token"],
    *,
    cap: float = 10.0,
) -> Float[Tensor, "*seed"]:
    """sqrt(chi2(pi || ref)) of whole sequences: bounds how far the true reward lags the proxy.

    Add lambda times it, lambda = c times the deviation of the base's rewards, c from 1 to .01. It
    is one number per learner, since the root does not split over sequences. Source: Correlated
    Proxies (arXiv:2403.03185), read in the authors' code. Twin: the same of occupancies, which is
    what its control half uses.
    """
    return root_chi2_est(masked(kl_k1(logp, ref_logp.detach()), mask).sum(-1), cap=cap)


def dph_forward(
    logp: Float[Tensor, "*any"], base_logp: Float[Tensor, "*any"]
) -> Float[Tensor, "*any"]:
    """k3 with its roles exchanged on the base's own answers: KL(base || pi), DPH-RL forward.

    For prompts that the base model solves, instead of a reward; coefficient .01 to .05. Its
    expected gradient is that of supervised learning on those answers, and without variance as long
    as pi is the base. Source: DPH-RL (arXiv:2509.07430), read in the authors' code, which clamps.
    Twin: cloning of replayed behaviour.
    """
    return kl_k3(base_logp.detach(), logp)


def dph_js(logp: Float[Tensor, "*any"], base_logp: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
    """w log w - (w + 1) log((w + 1) / 2), w = pi / base, on the base's answers: DPH-RL with JS.

    Its mean is twice the Jensen-Shannon divergence; coefficient .05 to .2. Source: DPH-RL
    (arXiv:2509.07430), read in the authors' code ("js_low_var"). Twin: as of `dph_forward`.
    """
    return f_div(logp - base_logp.detach(), "js")


def dph_alpha(
    logp: Float[Tensor, "*any"], base_logp: Float[Tensor, "*any"], *, alpha: float = 0.2
) -> Float[Tensor, "*any"]:
    """(w^(1-a) - (1-a) w - a) / (a (a - 1)) on the base's answers: DPH-RL with alpha-divergence.

    That is `f_div` with alpha 1 - a. Coefficient .01 to .05. Source: DPH-RL (arXiv:2509.07430),
    read in the authors' code (a = .2). Twin: as of `dph_forward`.
    """
    return f_div(logp - base_logp.detach(), "alpha", alpha=1.0 - alpha)


def filtered_logp(
    logits: Float[Tensor, "*batch token vocab"],
    labels: Int[Tensor, "*batch token"],
    *,
    share: float = 0.02,
) -> Float[Tensor, "*batch token"]:
    """log of the policy without its noise: tokens below `share` of the likeliest are removed.

    The rest is normalised anew; -inf for a removed token, and detached. Source: Lp-Reg
    (arXiv:2510.03222), read in the authors' code (kappa .02). Twin: BCQ's support mask.
    """
    log_law = at_least_float32(logits).detach().log_softmax(-1)
    kept = relative_support(log_law, share)
    removed = log_law.exp().masked_fill(kept, 0.0).sum(-1, keepdim=True)
    log_law = torch.where(kept, log_law - torch.log1p(-removed), -math.inf)
    return log_law.gather(-1, labels.clamp(min=0)[..., None])[..., 0]


def lp_reg(
    logp: Float[Tensor, "*any"],
    proxy_logp: Float[Tensor, "*any"],
    chosen: Shaped[Tensor, "*any"],
) -> Float[Tensor, "*any"]:
    """k3 of l to the filtered policy, where `chosen` and l below it: Lp-Reg, coefficient 1.

    Keeps unlikely tokens that are not noise from being driven out; `chosen` is
    `lowest_probability`'s. There the ratio loss is not clipped:
    `torch.where(lp_acts(...), importance_weighted(d, A) + lp_reg(...), clipped(d, A))`. A token
    that the filter removed has no penalty. Source: Lp-Reg (arXiv:2510.03222), read in the authors'
    code. Twin: support-constrained policies.
    """
    acts = lp_acts(logp, proxy_logp, chosen)
    return torch.where(acts, kl_k3(logp, torch.where(acts, proxy_logp, logp).detach()), 0.0)


def lp_acts(
    logp: Float[Tensor, "*any"],
    proxy_logp: Float[Tensor, "*any"],
    chosen: Shaped[Tensor, "*any"],
) -> Shaped[Tensor, "*any"]:
    """Where `lp_reg` acts: chosen, and less likely than under the filtered policy.

    Source: Lp-Reg (arXiv:2510.03222), read in the authors' code. Twin: a support mask.
    """
    return (chosen != 0) & (logp < proxy_logp)


# -- entropy ------------------------------------------------------------------------------------


def token_entropy(
    logits: Float[Tensor, "*batch vocab"], *, top_p: float = 1.0
) -> Float[Tensor, "*batch"]:
    """-sum_v p log p, of the `top_p` nucleus alone where that is below 1; its gradient passes.

    The nucleus is the likeliest tokens up to the one with which their probability reaches top_p,
    normalised anew: SIREN takes .8, so that raising entropy does not raise the tail. Source: SIREN
    (arXiv:2509.25133), read in the authors' code.
    """
    log_law = at_least_float32(logits).log_softmax(-1)
    if top_p < 1.0:
        ordered, order = log_law.detach().exp().sort(-1, descending=True)
        inside = ordered.cumsum(-1) - ordered < top_p
        kept = torch.zeros_like(inside).scatter(-1, order, inside)
        log_law = torch.where(kept, log_law, -math.inf).log_softmax(-1)
    return -(log_law.exp() * log_law.masked_fill(log_law == -math.inf, 0.0)).sum(-1)


def siren(
    entropy: Float[Tensor, "*seed batch token"],
    anchor: Float[Tensor, "*seed"],
    mask: Shaped[Tensor, "*seed batch token"],
    *,
    share: float = 0.2,
) -> Float[Tensor, "*seed"]:
    """(mean H - anchor)^2 over the `share` of each sequence's tokens with the greatest entropy.

    `entropy` is `token_entropy(logits, top_p=.8)`; `anchor` what `siren_level` gave at the first
    step, kept; coefficient .005. It pulls entropy back up and down alike. Source: SIREN
    (arXiv:2509.25133), read in the authors' code. Twin: SAC's target entropy, as a square.
    """
    return (siren_level(entropy, mask, share=share) - anchor.detach()).square()


def siren_level(
    entropy: Float[Tensor, "*seed batch token"],
    mask: Shaped[Tensor, "*seed batch token"],
    *,
    share: float = 0.2,
) -> Float[Tensor, "*seed"]:
    """The mean that `siren` holds at its anchor: of what is above each sequence's quantile.

    Source: SIREN (arXiv:2509.25133), read in the authors' code. Twin: SAC's entropy estimate.
    """
    inside = mask != 0
    values = torch.where(inside, at_least_float32(entropy).detach(), math.nan)
    threshold = torch.nanquantile(values, 1.0 - share, dim=-1, keepdim=True)
    return agg(entropy, inside & (values >= threshold), "token_mean")


def entropy_band(
    entropy: Float[Tensor, "*any"], history: Float[Tensor, "*hist"], *, low: float, high: float
) -> Float[Tensor, "*any"]:
    """relu(H - high h) + relu(low h - H), h the entropy of earlier steps at this turn: EPO.

    Its authors' script has low .5 and high 1.5, their paper .8 and 1.2; coefficient .1, and an
    entropy bonus .001. In their code the penalty is a constant that a comparison chooses, and so
    has no gradient; this one has, which is a departure. Source: EPO (arXiv:2509.22576), read in
    that code. Twin: a band on SAC's entropy.
    """
    h = history.detach()
    return (entropy - high * h).clamp(min=0.0) + (low * h - entropy).clamp(min=0.0)


def constrained(
    violation: Float[Tensor, "*seed"], multiplier: Multiplier
) -> tuple[Float[Tensor, "*seed"], Float[Tensor, "*seed"]]:
    """w violation, to add to the policy's loss, and the loss of the multiplier w >= 0 itself.

    Holds violation <= 0: `target - H` for an entropy that must not fall below a target, `KL -
    target` for one that must not rise above it, `threshold - value` for a reward. w is a constant
    in the first and the violation in the second. Source: Lagrangian duality, derived; the saddle
    point is tested. Twin: SAC's temperature, CPQ, COptiDICE.
    """
    return multiplier().detach() * violation, multiplier.ascent(violation.detach())


def adaptive_coefficient(
    coefficient: Float[Tensor, "*seed"],
    entropy: Float[Tensor, "*seed"],
    *,
    target: float = 0.2,
    step: float = 0.005,
    least: float = 0.0,
    most: float = 1.0,
) -> tuple[Float[Tensor, "*seed"], Float[Tensor, "*seed"]]:
    """The next coefficient of an entropy bonus, and the one to apply now: 0 while H > target.

    The coefficient goes up by `step` where H <= target and down where it is above. Source: Skywork
    Open Reasoner 1 (arXiv:2505.22312), read in TRL (use_adaptive_entropy).
    """
    below = entropy.detach() <= target
    moved = torch.where(below, coefficient + step, coefficient - step).clamp(least, most)
    return moved, torch.where(below, coefficient, 0.0)


def aepo_temperature(
    entropy: Float[Tensor, "*seed"], *, target: float = 0.5, low: float = 0.8, high: float = 1.2
) -> Float[Tensor, "*seed"]:
    """At which temperature to sample the answers that are to move the entropy: AEPO.

    `high` where H <= target, else `low`. Of those answers the ones with A > 0, at most 60 and half
    as many where H is above, are learned by `reinforce` with advantage 1, beside GRPO. Source:
    AEPO, arbitrary entropy (arXiv:2510.08141), read in the authors' code.
    """
    return torch.where(entropy <= target, entropy.new_tensor(high), entropy.new_tensor(low))
