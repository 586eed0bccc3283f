"""Losses of language-model methods: pure functions of tensors that need torch alone.

A control trajectory is a sequence of log-probabilities as well, so agents use them too. What all
take is in `scores`; one number per learner is made last, by `agg`. One function is one method, and
METHODS finds it by family and name:

    pair      f(chosen: Scores, rejected: Scores, **options) -> (*batch)
    list      f(scores: Scores, rewards or target, member=None, **options) -> (*batch)
    unary     f(scores: Scores, label or preference, **options) -> (*batch)
    token     f(logits, labels, mask, ..., **options) -> (*batch, token)
    value     f(q, value, labels, mask, rewards, target_q, **options) -> (*batch, token)

A policy-gradient loss is put together of four, its weights first:

    advantage        f(rewards, member=None, **options) -> (*batch, group)
    policy_gradient  f(log_ratio, advantage, **options) -> (*batch, token)
    mask             f(..., mask, **options) -> (*batch, token), to multiply the mask with
    regularizer      f(logp, anchor's logp, ..., **options) -> (*batch, token), to be added

and what comes before any loss is a transform of rewards or samples, or a reward_model.

A gradient is stopped inside a loss where the method defines a weight, a baseline or a ratio as a
constant, which its docstring writes sg[.], and nowhere else; reference log-probabilities come
without a gradient.

A docstring gives the equation, the data that it needs, its twin among control methods, and its
source: whether the equation was read in code, derived and checked, or is from memory. LEFT_OUT
names what was not built, and why.
"""

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from types import MappingProxyType

from torch import Tensor

from offrl.divergences import kl_k2, kl_k3, kl_k3_straight
from offrl.errors import ConfigError, near
from offrl.lm.losses import advantages, masks, policy_gradient, reward_models, transforms
from offrl.lm.losses import token_regularizers as regularizers
from offrl.lm.losses.contrast import (
    bvpo,
    cdpo,
    chi_po,
    cpo,
    cream,
    dpo,
    exo,
    f_dpo,
    iterative_rpo,
    ld_dpo,
    ln_dpo,
    rdpo,
    rpo,
    rrpo,
    simpo,
    vpo,
    xpo,
)
from offrl.lm.losses.lists import a_star_po, adpo, copg, copg_square, info_nca, nca
from offrl.lm.losses.margins import hinge, inpo, ipo, online_ipo, slic
from offrl.lm.losses.tokens import asft, dft, ilql, otr, sft
from offrl.lm.losses.unary import apo_zero_unpaired, kto, nash_md

Method = Callable[..., Tensor]


def _named(*functions: Method) -> MappingProxyType[str, Method]:
    return MappingProxyType({function.__name__: function for function in functions})


_PAIRS = (dpo, ln_dpo, ld_dpo, simpo, cdpo, rdpo, cream, exo, f_dpo, chi_po, rpo, iterative_rpo)
_MORE_PAIRS = (cpo, vpo, xpo, ipo, online_ipo, inpo, hinge, slic, rrpo, bvpo)

METHODS: MappingProxyType[str, MappingProxyType[str, Method]] = MappingProxyType(
    {
        "pair": _named(*_PAIRS, *_MORE_PAIRS),
        "list": _named(adpo, info_nca, nca, copg, copg_square, a_star_po),
        "unary": _named(kto, apo_zero_unpaired, nash_md),
        "token": _named(sft, dft, asft, otr),
        "value": _named(ilql),
        "advantage": _named(
            advantages.centred,
            advantages.standardised,
            advantages.batch_scaled,
            advantages.leave_one_out,
            advantages.fixed_baseline,
            advantages.shifted,
            advantages.log_mean_exp,
            advantages.balanced,
            advantages.exponential,
            advantages.positive_only,
            advantages.negative_only,
            advantages.weighted_reinforce,
            advantages.beta_normalised,
            advantages.range_value_at_risk,
            advantages.process_rewards,
        ),
        "policy_gradient": _named(
            policy_gradient.reinforce,
            policy_gradient.clipped,
            policy_gradient.dual_clipped,
            policy_gradient.cispo,
            policy_gradient.sapo,
            policy_gradient.vespo,
            policy_gradient.gmpo,
            policy_gradient.topr,
            policy_gradient.one_side_clipped,
            policy_gradient.two_side_clipped,
            policy_gradient.ring_clipped,
            policy_gradient.opmd,
            policy_gradient.nft,
            policy_gradient.rover,
            policy_gradient.oreal,
            policy_gradient.advantage_weighted,
            policy_gradient.importance_weighted,
        ),
        "mask": _named(
            masks.clip_cov,
            masks.kl_cov,
            masks.high_entropy,
            masks.lowest_probability,
            masks.gtpo_weights,
            masks.low_entropy_answers,
            masks.own_tokens,
            masks.near_policy,
        ),
        "regularizer": _named(
            kl_k2,
            kl_k3,
            kl_k3_straight,
            regularizers.absolute_ratio,
            regularizers.convex_anchor,
            regularizers.correlated_proxies,
            regularizers.dph_forward,
            regularizers.dph_js,
            regularizers.dph_alpha,
            regularizers.lp_reg,
            regularizers.siren,
            regularizers.entropy_band,
        ),
        "transform": _named(
            transforms.par,
            transforms.lsc,
            transforms.log_and,
            transforms.unbiased_reward,
            transforms.forward_weights,
            transforms.mixed_advantage,
            transforms.rejection_sampled,
            transforms.power_weights,
            transforms.best_worst_weights,
            transforms.best_random_weights,
            transforms.ches,
        ),
        "reward_model": _named(
            reward_models.prime,
            reward_models.token_outcome,
            reward_models.rto,
            reward_models.density_ratio,
            reward_models.pal,
            reward_models.pal_product,
        ),
    }
)

LEFT_OUT: MappingProxyType[str, str] = MappingProxyType(
    {
        "f-SFT": "arXiv:2507.00018: its objectives could not be read; what is known are the slopes "
        "of two concave maps, and a loss made from those would be a reconstruction",
        "B-Coder": "arXiv:2310.03173: its conservative operator and the shift of its dueling heads "
        "could not be read; ilql is the value-based method that is built",
        "IPO-MD": "arXiv:2403.08635: online_ipo on samples of the geometric mixture of policy and "
        "reference; what differs is the sampling, which a trainer does",
        "RLUF, PUGC, DPA": "arXiv:2505.14946, 2506.04463, 2402.18571: recipes for data, which end "
        "in losses that are here",
        "T-PPO": "arXiv:2506.15050: needs a critic; how its advantages bootstrap at the cut was "
        "found in no public code",
        "OPRL": "arXiv:2509.19199: its rewards are implicit_rewards against the sampler; how steps "
        "are normalised and weighed is not in its repository, which has no code",
        "ReMix's schedule": "arXiv:2507.06892: convex_anchor has its two anchors; its weights and "
        "the step at which the base is replaced were found in no public code",
        "DR-PO's prefixes": "arXiv:2404.08495: own_tokens is its mask; how long prefixes are is "
        "decided in a package that could not be read",
        "OREAL's token weights": "arXiv:2502.06781: token_outcome is the model behind; how its "
        "values become weights could not be read",
        "ADPO's adaptive temperature": "arXiv:2510.18913: entropy and rewards of the whole batch, "
        "mixed by constants of one version of the code, for which no derivation was found",
    }
)


def find_method(family: str, name: str) -> Method:
    """The function of that family and name; raises ConfigError with what is close to them."""
    if family not in METHODS:
        raise ConfigError(
            f"there is no family of losses {family!r}{near(family, METHODS) or ':'} "
            f"the families are {', '.join(METHODS)}"
        )
    if name not in METHODS[family]:
        raise ConfigError(
            f"there is no {family} loss {name!r}{near(name, METHODS[family]) or ':'} "
            f"those of this family are {', '.join(METHODS[family])}"
        )
    return METHODS[family][name]


@dataclass(frozen=True)
class Card:
    """What a method's docstring says: its first sentence, and the lines that have a name."""

    summary: str  # what it is, and the equation
    data: str  # what it needs, besides the policy's log-probabilities
    twin: str  # what does the same for control
    source: str  # the paper, and how sure the equation is


def describe(method: Method) -> Card:
    """The card of a method; a line that its docstring lacks is empty."""
    text = inspect.getdoc(method) or ""
    summary, *rest = text.split("\n\n")
    parts = re.split(r"\b(Data|Twin|Source): ", " ".join(" ".join(rest).split()))
    found = dict(zip(parts[1::2], (part.strip().rstrip(".") for part in parts[2::2]), strict=True))
    lines = (found.get(name, "") for name in ("Data", "Twin", "Source"))
    return Card(" ".join(summary.split()), *lines)
