"""Losses of language-model methods: pure functions of tensors that need torch alone.

A control trajectory is a sequence of log-probabilities as well, so agents use them too. What all
take is in `scores`; one number per learner is made last, by `agg`. One function is one method, and
METHODS finds it by family and name:

    pair      f(chosen: Scores, rejected: Scores, **options) -> (*batch)
    list      f(scores: Scores, rewards or target, member=None, **options) -> (*batch)
    unary     f(scores: Scores, label or preference, **options) -> (*batch)
    token     f(logits, labels, mask, ..., **options) -> (*batch, token)

A docstring gives the equation, the data that it needs, its twin among control methods, and its
source: whether the equation was read in code, derived and checked, or is from memory. LEFT_OUT
names what was not built, and why.
"""

from collections.abc import Callable
from types import MappingProxyType

from torch import Tensor

from offrl.errors import ConfigError, near
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
        "token": _named(sft, dft, asft, otr, ilql),
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
