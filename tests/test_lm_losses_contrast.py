"""Losses of pairs against flat transcriptions, numbers worked by hand, and each other.

A docstring that begins with "Identity" names one of the numerical identities of the sheet that
lists these methods.
"""

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lm_cases import altered, draw, faulty, gradients, padded, ragged, single, slope, tracked
from torch import Tensor

from offrl.divergences import at_least_float32, f_prime, kl_full
from offrl.errors import ConfigError
from offrl.lm.losses import contrast, margins
from offrl.lm.losses.scores import Scores
from offrl.losses import huber_loss

LS = F.logsigmoid
BETA, E = 0.3, 0.15
B = 7
LW, LL, RW, RL = (-draw(i, B).abs() * 5 - 1 for i in range(4))
W, L = single(LW, RW), single(LL, RL)
GAP = (LW - RW) - (LL - RL)


def doubles(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def dpo(d: Tensor, beta: float = BETA) -> Tensor:
    return -LS(beta * d)


def cdpo(d: Tensor, e: float) -> Tensor:
    return -(1 - e) * LS(BETA * d) - e * LS(-BETA * d)


# -- flat transcriptions, of sequences with several tokens ---------------------------------------


def total(x: Tensor, scores: Scores) -> Tensor:
    return (x * scores.mask).sum(-1)


def size(scores: Scores) -> Tensor:
    return scores.mask.sum(-1)


def u(scores: Scores) -> Tensor:
    assert scores.ref_logp is not None
    return total(scores.logp - scores.ref_logp, scores)


def v(scores: Scores) -> Tensor:
    assert scores.prev_logp is not None
    return total(scores.logp - scores.prev_logp, scores)


def big(scores: Scores) -> Tensor:
    return total(scores.logp, scores)


def shortened(scores: Scores, other: Scores, alpha: float) -> Tensor:
    """By a loop over tokens: what lies beyond the shorter one's length counts alpha."""
    assert scores.ref_logp is not None
    ratio = scores.logp - scores.ref_logp
    rows = []
    for i in range(len(ratio)):
        inside = ratio[i][scores.mask[i] != 0]
        n = int(min(size(scores)[i], size(other)[i]))
        rows.append(inside[:n].sum() + alpha * inside[n:].sum())
    return torch.stack(rows)


def span(scores: Scores) -> Tensor:
    return (torch.arange(scores.mask.shape[-1]) % 2 == 0).long().expand_as(scores.mask)


def spanned(scores: Scores) -> Tensor:
    assert scores.ref_logp is not None
    return total((scores.logp - scores.ref_logp) * span(scores), scores)


CALIBRATION = ragged(60, B)
BARE = ragged(70, B), ragged(80, B)
P = torch.sigmoid(draw(5, B))

Loss = Callable[[Any, Scores, Scores], Tensor]
Flat = Callable[[Scores, Scores], Tensor]

# name -> (of the module that is tested, flat); both of a chosen and a rejected completion
PAIRS: dict[str, tuple[Loss, Flat]] = {
    "dpo": (
        lambda m, c, r: m.dpo(c, r, beta=0.3, margin=0.2, smoothing=0.1),
        lambda c, r: -0.9 * LS(0.3 * (u(c) - u(r)) - 0.2) - 0.1 * LS(0.2 - 0.3 * (u(c) - u(r))),
    ),
    "ln_dpo": (
        lambda m, c, r: m.ln_dpo(c, r, beta=2.0),
        lambda c, r: -LS(2.0 * (u(c) / size(c) - u(r) / size(r))),
    ),
    "ld_dpo": (
        lambda m, c, r: m.ld_dpo(c, r, beta=0.3, alpha=0.2),
        lambda c, r: -LS(0.3 * (shortened(c, r, 0.2) - shortened(r, c, 0.2))),
    ),
    "simpo": (
        lambda m, c, r: m.simpo(c, r, beta=2.0, gamma=0.7),
        lambda c, r: -LS(2.0 * (big(c) / size(c) - big(r) / size(r)) - 0.7),
    ),
    "cdpo": (
        lambda m, c, r: m.cdpo(c, r, beta=0.3, smoothing=0.2),
        lambda c, r: -0.8 * LS(0.3 * (u(c) - u(r))) - 0.2 * LS(-0.3 * (u(c) - u(r))),
    ),
    "rdpo": (
        lambda m, c, r: m.rdpo(c, r, beta=0.3, flip=0.2),
        lambda c, r: (-0.8 * LS(0.3 * (u(c) - u(r))) + 0.2 * LS(-0.3 * (u(c) - u(r)))) / 0.6,
    ),
    "cream": (
        lambda m, c, r: m.cream(c, r, consistency=doubles(0.7), beta=0.3),
        lambda c, r: -0.7 * LS(0.3 * (u(c) - u(r))) - 0.3 * LS(-0.3 * (u(c) - u(r))),
    ),
    "exo": (
        lambda m, c, r: m.exo(c, r, beta=0.3, smoothing=0.1),
        lambda c, r: (
            torch.sigmoid(0.3 * (u(c) - u(r))) * (LS(0.3 * (u(c) - u(r))) - math.log(0.9))
            + torch.sigmoid(0.3 * (u(r) - u(c))) * (LS(0.3 * (u(r) - u(c))) - math.log(0.1))
        ),
    ),
    "f_dpo": (
        lambda m, c, r: m.f_dpo(c, r, divergence="alpha", alpha=0.3, beta=0.3),
        lambda c, r: -LS(0.3 / -0.7 * ((-0.7 * u(c)).exp() - (-0.7 * u(r)).exp())),
    ),
    "chi_po": (
        lambda m, c, r: m.chi_po(c, r, beta=0.3, gamma=0.5, max_reward=0.4),
        lambda c, r: (
            -LS((0.3 * (0.5 * u(c).exp() + u(c) - 0.5 * u(r).exp() - u(r))).clamp(-0.8, 0.8))
        ),
    ),
    "rpo": (
        lambda m, c, r: m.rpo(c, r, beta=0.3, eta=0.02),
        lambda c, r: -LS(0.3 * (u(c) - u(r))) - 0.02 * big(c),
    ),
    "iterative_rpo": (
        lambda m, c, r: m.iterative_rpo(c, r, beta=0.3, alpha=0.8),
        lambda c, r: -LS(0.3 * (u(c) - u(r))) - 0.8 * big(c) / size(c),
    ),
    "cpo": (
        lambda m, c, r: m.cpo(c, r, beta=0.3, alpha=0.8),
        lambda c, r: -LS(0.3 * (big(c) - big(r))) - 0.8 * big(c) / size(c),
    ),
    "vpo": (
        lambda m, c, r: m.vpo(c, r, calibration=c, sign=-1, alpha=0.05, beta=0.3),
        lambda c, r: -LS(0.3 * (u(c) - u(r))) - 0.05 * 0.3 * big(c),
    ),
    "xpo": (
        lambda m, c, r: m.xpo(c, r, reference_answer=r, alpha=0.05, beta=0.3),
        lambda c, r: -LS(0.3 * (u(c) - u(r))) + 0.05 * big(r),
    ),
    "rrpo": (
        lambda m, c, r: m.rrpo(
            c,
            r,
            chosen_span=span(c),
            rejected_span=span(r),
            chosen_kl=at_least_float32(c.ref_logp).square(),
            beta=0.3,
            alpha=0.2,
        ),
        lambda c, r: -LS(0.3 * (spanned(c) - spanned(r))) + 0.2 * total(c.ref_logp.square(), c),
    ),
    "bvpo": (
        lambda m, c, r: m.bvpo(c, r, bare_chosen=r, bare_rejected=c, alpha=0.8, beta=0.3),
        lambda c, r: -0.8 * LS(0.3 * (u(c) - u(r))) - 0.2 * LS(0.3 * (u(r) - u(c))),
    ),
}
MARGINS: dict[str, tuple[Loss, Flat]] = {
    "ipo": (
        lambda m, c, r: m.ipo(c, r, tau=0.2),
        lambda c, r: (u(c) - u(r) - 1 / (2 * 0.2)).square(),
    ),
    "ipo_mean": (
        lambda m, c, r: m.ipo(c, r, tau=0.2, length="mean"),
        lambda c, r: (u(c) / size(c) - u(r) / size(r) - 1 / (2 * 0.2)).square(),
    ),
    "online_ipo": (
        lambda m, c, r: m.online_ipo(
            c, r, preference=torch.full_like(at_least_float32(u(c)), 0.8), tau=0.2
        ),
        lambda c, r: 0.8 * (u(c) - u(r) - 2.5).square() + 0.2 * (u(c) - u(r) + 2.5).square(),
    ),
    "inpo": (
        lambda m, c, r: m.inpo(c, r, eta=0.4, tau=0.1, preference=0.9),
        lambda c, r: (
            0.9 * (0.25 * (u(c) - u(r)) + 0.75 * (v(c) - v(r)) - 1.25).square()
            + 0.1 * (0.25 * (u(c) - u(r)) + 0.75 * (v(c) - v(r)) + 1.25).square()
        ),
    ),
    "hinge": (
        lambda m, c, r: m.hinge(c, r, beta=0.3),
        lambda c, r: (1 - 0.3 * (u(c) - u(r))).clamp(min=0),
    ),
    "slic": (
        lambda m, c, r: m.slic(c, r, delta=0.7, weight=0.1),
        lambda c, r: (0.7 - big(c) + big(r)).clamp(min=0) - 0.1 * big(c),
    ),
}
LOSSES = {name: (contrast, *pair) for name, pair in PAIRS.items()}
LOSSES |= {name: (margins, *pair) for name, pair in MARGINS.items()}


def agree(name: str, module: Any = None) -> None:
    """Value and gradients of the loss and of its transcription."""
    real, loss, flat = LOSSES[name]
    chosen, rejected = tracked(ragged(10, B)), tracked(ragged(30, B))
    found, expected = loss(module or real, chosen, rejected), flat(chosen, rejected)
    torch.testing.assert_close(found, expected)
    inputs = [chosen.logp, rejected.logp]
    for a, b in zip(gradients(found, inputs), gradients(expected, inputs), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("name", LOSSES)
def test_each_loss_is_its_transcription(name: str) -> None:
    agree(name)


FAULTS = [
    ("dpo", "dpo", ") - margin", ") + margin"),
    ("dpo", "gap", "- seq_score", "+ seq_score"),
    ("dpo", "logistic", "(1.0 - smoothing) *", "1.0 *"),
    ("dpo", "logistic", "F.logsigmoid(-z)", "F.logsigmoid(z)"),
    ("ln_dpo", "ln_dpo", '"mean"', '"sum"'),
    ("ld_dpo", "_cut", "cumsum(-1) >", "cumsum(-1) >="),
    ("ld_dpo", "ld_dpo", "torch.minimum", "torch.maximum"),
    ("ld_dpo", "_cut", "(1.0 - alpha)", "alpha"),
    ("simpo", "simpo", '"none"', '"ref"'),
    ("simpo", "simpo", '"mean"', '"sum"'),
    ("rdpo", "rdpo", "- flip * logistic", "+ flip * logistic"),
    ("rdpo", "rdpo", "/ (1.0 - 2.0 * flip)", "/ (1.0 - flip)"),
    ("cream", "cream", "1.0 - consistency", "consistency"),
    ("exo", "exo", "math.log1p(-smoothing)", "math.log(smoothing)"),
    ("exo", "exo", "kept + turned", "kept - turned"),
    ("f_dpo", "f_dpo", "alpha=alpha)", "alpha=0.5)"),
    ("chi_po", "chi_po", "gamma=gamma, ", ""),
    ("chi_po", "chi_po", "z.clamp(-2.0 * max_reward", "z.clamp(-1.0 * max_reward"),
    ("chi_po", "chi_po", 'kind="chi2_mix"', 'kind="chi2"'),
    ("rpo", "rpo", "+ eta", "- eta"),
    ("rpo", "rpo", "bc_term(chosen", "bc_term(rejected"),
    ("iterative_rpo", "iterative_rpo", '"mean"', '"sum"'),
    ("cpo", "cpo", '"none"', '"ref"'),
    ("vpo", "vpo", "- sign", "+ sign"),
    ("vpo", "vpo", "alpha * beta * bc", "alpha * bc"),
    ("xpo", "xpo", "- alpha", "+ alpha"),
    ("rrpo", "rrpo", "chosen.within(chosen_span)", "chosen"),
    ("rrpo", "rrpo", "+ alpha * kl", "- alpha * kl"),
    ("bvpo", "bvpo", "(1.0 - alpha)", "alpha"),
    ("ipo", "ipo", "0.5 / tau", "1.0 / tau"),
    ("ipo_mean", "ipo", ", length)", ")"),
    ("online_ipo", "_judged", "h + target", "h - target"),
    ("online_ipo", "online_ipo", "0.5 / tau", "2.0 * tau"),
    ("inpo", "inpo", "share = tau / eta", "share = eta / tau"),
    ("inpo", "inpo", 'against="prev"', 'against="ref"'),
    ("hinge", "hinge", "1.0 - beta", "1.0 + beta"),
    ("slic", "slic", '"none"', '"ref"'),
]


@pytest.mark.parametrize(("name", "function", "old", "new"), FAULTS)
def test_every_slip_is_noticed(name: str, function: str, old: str, new: str) -> None:
    module = LOSSES[name][0].__name__.rpartition(".")[2]
    with pytest.raises(AssertionError):
        agree(name, faulty(module, function, old, new))


def test_every_loss_is_transcribed() -> None:
    parts = {"gap", "logistic", "bvpo_weight"}
    for module, table in ((contrast, PAIRS), (margins, MARGINS)):
        public = {
            name
            for name, value in vars(module).items()
            if getattr(value, "__module__", "") == module.__name__ and not name.startswith("_")
        }
        assert public - parts - {"Residual"} <= set(table)


# -- what holds of every loss of pairs -----------------------------------------------------------


def named(name: str) -> Callable[[Scores, Scores], Tensor]:
    module, loss, _ = LOSSES[name]
    return partial(loss, module)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("value", [math.nan, -math.inf, 3.0])
def test_padding_does_not_count(name: str, value: float) -> None:
    chosen, rejected = ragged(10, B), ragged(30, B)
    longer = tracked(padded(chosen, 2, 3, value)), tracked(padded(rejected, 2, 0, value))
    loss = named(name)(*longer)
    torch.testing.assert_close(loss, named(name)(chosen, rejected))
    for gradient, scores in zip(gradients(loss, [x.logp for x in longer]), longer, strict=True):
        assert gradient.isfinite().all()
        assert not gradient[scores.mask == 0].any()


@pytest.mark.parametrize("name", LOSSES)
def test_pairs_do_not_see_each_other(name: str) -> None:
    chosen, rejected = ragged(10, B), ragged(30, B)
    order = torch.tensor([3, 0, 6, 1, 5, 2, 4])

    def shuffle(scores: Scores) -> Scores:
        return altered(scores, lambda x: x[order])

    loss = named(name)(chosen, rejected)
    torch.testing.assert_close(named(name)(shuffle(chosen), shuffle(rejected)), loss[order])
    seeds = [altered(x, lambda y: torch.stack([y, y.roll(1, 0)])) for x in (chosen, rejected)]
    torch.testing.assert_close(named(name)(*seeds)[0], loss)


@pytest.mark.parametrize("name", LOSSES)
def test_an_empty_completion_gives_a_finite_loss(name: str) -> None:
    chosen, rejected = tracked(ragged(10, B)), tracked(ragged(30, B))
    empty = dataclasses.replace(rejected, mask=torch.zeros_like(rejected.mask))
    for pair in ((chosen, empty), (empty, chosen), (empty, empty)):
        loss = named(name)(*pair)
        assert loss.isfinite().all()
        assert all(g.isfinite().all() for g in gradients(loss, [chosen.logp, empty.logp]))


AT_REFERENCE = {
    "ln_dpo": math.log(2),
    "ld_dpo": math.log(2),
    "cdpo": math.log(2),
    "rdpo": math.log(2),
    "cream": math.log(2),
    "exo": -0.5 * math.log(0.9 * 0.1) - math.log(2),
    "f_dpo": math.log(2),
    "chi_po": math.log(2),
    "bvpo": math.log(2),
    "ipo": 2.5**2,
    "ipo_mean": 2.5**2,
    "online_ipo": 2.5**2,
    "inpo": 1.25**2,
    "hinge": 1.0,
}


@pytest.mark.parametrize("name", AT_REFERENCE)
def test_where_the_policy_is_the_reference_the_loss_is_known(name: str) -> None:
    still = [
        dataclasses.replace(s, ref_logp=s.logp, prev_logp=s.logp)
        for s in (ragged(10, B), ragged(30, B))
    ]
    torch.testing.assert_close(named(name)(*still), torch.full((B,), AT_REFERENCE[name]).double())


@pytest.mark.parametrize("name", LOSSES)
def test_half_precision_is_summed_in_single(name: str) -> None:
    coarse = [altered(s, lambda x: x.bfloat16()) for s in (ragged(10, B), ragged(30, B))]
    exact = [altered(s, lambda x: x.double()) for s in coarse]
    loss = named(name)(*coarse)
    torch.testing.assert_close(loss.double(), named(name)(*exact), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float32])
def test_a_mask_may_have_any_type(dtype: torch.dtype) -> None:
    pair = [dataclasses.replace(s, mask=s.mask.to(dtype)) for s in (ragged(10, B), ragged(30, B))]
    expected = contrast.ld_dpo(ragged(10, B), ragged(30, B), alpha=0.2)
    torch.testing.assert_close(contrast.ld_dpo(*pair, alpha=0.2), expected)


def test_long_answers_stay_finite_in_single_precision() -> None:
    w, r = single(torch.tensor([300.0, -300.0])), single(torch.zeros(2))
    w = dataclasses.replace(w, ref_logp=torch.zeros(2, 1))
    r = dataclasses.replace(r, ref_logp=torch.zeros(2, 1))
    for kind in ("reverse_kl", "forward_kl", "js", "alpha", "chi2_mix"):
        x = tracked(w)
        loss = contrast.f_dpo(x, r, divergence=kind)  # type: ignore[arg-type]
        assert loss.isfinite().all() and gradients(loss, [x.logp])[0].isfinite().all()


# -- numbers worked by hand ----------------------------------------------------------------------


def test_dpo_by_hand() -> None:
    # u: -1 + 3 = 2 and -5 + 4 = -1, D = 3; -log S(0.5 * 3) = log(1 + e^-1.5).
    loss = contrast.dpo(
        single(doubles(-1), doubles(-3)), single(doubles(-5), doubles(-4)), beta=0.5
    )
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-1.5)), abs=1e-12)
    assert loss.item() == pytest.approx(0.201413, abs=1e-6)


def test_simpo_by_hand() -> None:
    # -6 / 3 = -2 and -6 / 2 = -3: 2 * 1 - 0.5 = 1.5 again.
    chosen = Scores(doubles(-1, -2, -3)[None], None, torch.ones(1, 3))
    rejected = Scores(doubles(-2, -4, 9)[None], None, torch.tensor([[1, 1, 0]]))
    loss = contrast.simpo(chosen, rejected, beta=2.0, gamma=0.5)
    assert loss.item() == pytest.approx(0.201413, abs=1e-6)


def test_hinge_and_ipo_by_hand() -> None:
    # D = 3: max(0, 1 - 0.3) = 0.7, beyond 1 / beta nothing; (3 - 1 / 0.5)^2 = 1.
    w, r = single(doubles(-1), doubles(-3)), single(doubles(-5), doubles(-4))
    assert margins.hinge(w, r, beta=0.1).item() == pytest.approx(0.7)
    assert margins.hinge(w, r, beta=0.5).item() == 0.0
    assert margins.ipo(w, r, tau=0.25).item() == pytest.approx(1.0)
    # Huber with sigma = 2: beyond 1/4 linear, 1 - 1/8.
    robust = margins.ipo(w, r, tau=0.25, residual=partial(huber_loss, sigma=2.0))
    assert robust.item() == pytest.approx(0.875)


# -- identities ----------------------------------------------------------------------------------


def test_rdpo_and_cdpo_without_noise_are_dpo() -> None:
    """Identity: rDPO(eps=0)==DPO; cDPO(eps=0)==DPO."""
    clean = contrast.dpo(W, L, beta=BETA)
    torch.testing.assert_close(clean, dpo(GAP))
    torch.testing.assert_close(contrast.rdpo(W, L, beta=BETA, flip=0.0), clean)
    torch.testing.assert_close(contrast.cdpo(W, L, beta=BETA, smoothing=0.0), clean)


def test_rdpo_and_cdpo_lean_to_opposite_sides() -> None:
    """Identity: rDPO==DPO - eps/(1-2eps)*beta*mean(Delta); cDPO==DPO + eps*beta*mean(Delta)."""
    lean = BETA * GAP
    robust = contrast.rdpo(W, L, beta=BETA, flip=E)
    torch.testing.assert_close(robust, dpo(GAP) - E / (1 - 2 * E) * lean)
    conservative = contrast.cdpo(W, L, beta=BETA, smoothing=E)
    torch.testing.assert_close(conservative, dpo(GAP) + E * lean)


def test_rdpo_is_unbiased_under_flips_and_unbounded() -> None:
    """Identity: rDPO unbiased under flips."""
    right = contrast.rdpo(W, L, beta=BETA, flip=E)
    turned = contrast.rdpo(L, W, beta=BETA, flip=E)
    torch.testing.assert_close((1 - E) * right + E * turned, dpo(GAP))
    far = contrast.rdpo(single(doubles(1e4), doubles(0)), single(doubles(0), doubles(0)))
    assert far.item() < -100


def test_minimum_of_cdpo_and_exo() -> None:
    """Identity: cDPO minimiser sigma(beta D)=1-eps; EXO minimiser == cDPO minimiser."""
    best = doubles(math.log((1 - E) / E) / BETA)
    zero = single(doubles(0), doubles(0))
    for loss in (contrast.cdpo, contrast.exo):

        def at(d: Tensor, loss: Callable[..., Tensor] = loss) -> Tensor:
            return loss(single(d, doubles(0)), zero, beta=BETA, smoothing=E)

        assert slope(at, best).abs().item() < 1e-12
        assert slope(at, best + 0.1).item() > 1e-5


def test_cream_is_cdpo() -> None:
    """Identity: CREAM(C)==cDPO(eps=1-C)."""
    agreed = contrast.cream(W, L, consistency=doubles(0.7).expand(B), beta=BETA)
    torch.testing.assert_close(agreed, cdpo(GAP, 0.3))
    whole = contrast.cream(W, L, consistency=doubles(1.0), beta=BETA)
    torch.testing.assert_close(whole, dpo(GAP))


def evenly(total: Tensor, ref: Tensor, n: int) -> Scores:
    parts = (total[:, None] / n).expand(-1, n), (ref[:, None] / n).expand(-1, n)
    return Scores(*parts, torch.ones(len(total), n))


def test_normalising_equal_lengths_divides_beta() -> None:
    """Identity: LN-DPO equal lengths==DPO(beta/n)."""
    normalised = contrast.ln_dpo(evenly(LW, RW, 13), evenly(LL, RL, 13), beta=BETA)
    torch.testing.assert_close(normalised, dpo(GAP, BETA / 13))


def test_partly_normalised_dpo_is_dpo_at_one() -> None:
    chosen, rejected = ragged(10, B), ragged(30, B)
    torch.testing.assert_close(
        contrast.ld_dpo(chosen, rejected, alpha=1.0), contrast.dpo(chosen, rejected)
    )


def test_simpo_has_a_reference_of_constant_probability() -> None:
    """Identity: SimPO(gamma=0)==LN-DPO with constant per-token ref."""
    chosen, rejected = ragged(10, B), ragged(30, B)
    flat = [
        dataclasses.replace(s, ref_logp=torch.full_like(s.logp, -2.3)) for s in (chosen, rejected)
    ]
    torch.testing.assert_close(
        contrast.simpo(chosen, rejected, beta=BETA, gamma=0.0), contrast.ln_dpo(*flat, beta=BETA)
    )


def test_hinge_starts_twice_as_steep_as_dpo() -> None:
    """Identity: hinge slope at Delta=0 is 2x DPO slope."""
    zero = single(torch.zeros(B).double(), torch.zeros(B).double())

    def at(loss: Callable[..., Tensor]) -> Tensor:
        return slope(
            lambda d: loss(single(d, torch.zeros_like(d)), zero, beta=BETA), torch.zeros(B).double()
        )

    torch.testing.assert_close(at(margins.hinge), 2 * at(contrast.dpo))


def test_f_dpo_leads_to_dpo() -> None:
    """Identity: alpha-DPO alpha->1 == DPO."""
    near = contrast.f_dpo(W, L, divergence="alpha", alpha=1 - 1e-7, beta=0.1)
    torch.testing.assert_close(near, dpo(GAP, 0.1), rtol=1e-5, atol=1e-6)
    exact = contrast.f_dpo(W, L, divergence="reverse_kl", beta=0.1)
    torch.testing.assert_close(exact, dpo(GAP, 0.1))


def test_chi_po_without_chi_is_dpo() -> None:
    """Identity: chiPO gamma=0 == DPO."""
    torch.testing.assert_close(contrast.chi_po(W, L, beta=BETA, gamma=0.0), dpo(GAP))


def test_chi_po_starts_twice_as_steep_as_dpo() -> None:
    """Identity: chiPO grad at init == 2x-beta DPO grad at init."""

    def at(loss: Callable[..., Tensor]) -> Tensor:
        return slope(lambda a, b: loss(single(a, RW), single(b, RL), beta=BETA), RW, RL)

    torch.testing.assert_close(at(contrast.chi_po), 2 * at(contrast.dpo))


def test_chi_po_has_no_gradient_beyond_the_greatest_reward() -> None:
    inside, beyond = doubles(0.9, 1.1)
    zero = single(doubles(0), doubles(0))

    def loss(x: Tensor) -> Tensor:
        return contrast.chi_po(
            single(x[None], doubles(0)), zero, gamma=0.0, beta=1.0, max_reward=0.5
        )

    assert slope(loss, inside).item() < -0.1
    assert slope(loss, beyond).item() == 0.0


def test_pessimism_on_the_chosen_answers_is_rpo() -> None:
    """Identity: VPO(offline pessimism, calib=chosen)==RPO(eta=alpha*beta)."""
    pessimist = contrast.vpo(W, L, calibration=W, sign=-1, alpha=0.02, beta=BETA)
    torch.testing.assert_close(pessimist, contrast.rpo(W, L, beta=BETA, eta=0.02 * BETA))
    torch.testing.assert_close(pessimist, dpo(GAP) - 0.02 * BETA * LW)


def test_optimism_on_samples_of_the_reference_is_xpo() -> None:
    """Identity: VPO(online optimism, calib=ref samples)==XPO(alpha_xpo=alpha*beta)."""
    sample = CALIBRATION
    optimist = contrast.vpo(W, L, calibration=sample, sign=1, alpha=0.02, beta=BETA)
    explored = contrast.xpo(W, L, reference_answer=sample, alpha=0.02 * BETA, beta=BETA)
    torch.testing.assert_close(optimist, explored)
    torch.testing.assert_close(optimist, dpo(GAP) + 0.02 * BETA * big(sample))


def test_the_first_iteration_of_inpo_is_ipo() -> None:
    """Identity: INPO pi_t=pi_ref, hard label == IPO(tau=eta)."""
    w, r = single(LW, RW, prev_logp=RW), single(LL, RL, prev_logp=RL)
    torch.testing.assert_close(margins.inpo(w, r, eta=0.4, tau=0.1), margins.ipo(W, L, tau=0.4))


def test_a_certain_judge_makes_online_ipo_offline() -> None:
    certain = margins.online_ipo(W, L, preference=torch.ones(B).double(), tau=0.4)
    torch.testing.assert_close(certain, margins.ipo(W, L, tau=0.4))


def test_rrpo_of_one_span_without_kl_is_dpo() -> None:
    """Identity: RRPO(alpha=0, one span)==DPO."""
    chosen, rejected = ragged(10, B), ragged(30, B)
    logits = draw(3, B, 6, 5), draw(4, B, 6, 5)
    loss = contrast.rrpo(
        chosen,
        rejected,
        chosen_span=torch.ones(B, 6),
        rejected_span=torch.ones(B, 6),
        chosen_kl=kl_full(*logits, "forward"),
        alpha=0.0,
    )
    torch.testing.assert_close(loss, contrast.dpo(chosen, rejected))


def test_bvpo_has_its_limits_and_its_best_weight() -> None:
    """Identity: BVPO alpha* stationary."""
    bare = {"bare_chosen": BARE[0], "bare_rejected": BARE[1]}
    chosen, rejected = ragged(10, B), ragged(30, B)
    for alpha, limit in ((1.0, (chosen, rejected)), (0.0, BARE)):
        mixed = contrast.bvpo(chosen, rejected, alpha=alpha, **bare)
        torch.testing.assert_close(mixed, contrast.dpo(*limit))

    bt, be, st, se, c = 0.1, 0.4, 2.0, 0.5, 0.1

    def mse(a: Tensor) -> Tensor:
        return (a * bt + (1 - a) * be) ** 2 + a**2 * st + (1 - a) ** 2 * se + 2 * a * (1 - a) * c

    best = contrast.bvpo_weight(bt, be, st, se, c)
    assert slope(mse, doubles(best)).abs().item() < 1e-12


def test_the_slopes_of_f_sft_at_the_reference_are_those_of_sft() -> None:
    """Identity: f-SFT chi2/SH slope at u=0 equals SFT slope.

    The method itself is left out; what is known of it are its concave maps v - v^2 / 4 and
    v / (1 + v), the first of which is -f*(-v) of the library's conjugate.
    """
    from offrl.losses import chi_square_conjugate

    zero = torch.zeros(3).double()
    assert slope(lambda v: -chi_square_conjugate(-v), zero).tolist() == [1.0] * 3
    assert slope(lambda v: v / (1 + v), zero).tolist() == [1.0] * 3
    x = torch.linspace(-1, 1, 9).double()
    torch.testing.assert_close(-chi_square_conjugate(-x), x - x.square() / 4)


# -- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda: contrast.rdpo(W, L, flip=0.5), r"flip is 0.5, .*\[0, 0.5\)"),
        (lambda: contrast.exo(W, L, smoothing=0.0), r"smoothing is 0.0, .*\(0, 1\)"),
        (lambda: contrast.vpo(W, L, calibration=W, sign=0), "sign is 0"),
        (lambda: contrast.f_dpo(W, L, divergence="chi2"), "use chi_po"),
        (lambda: contrast.dpo(single(LW), L), "compares with ref_logp, which is None"),
        (lambda: margins.inpo(W, L, eta=0.4, tau=0.1), "compares with prev_logp"),
    ],
)
def test_what_cannot_work_is_refused(loss: Callable[[], Tensor], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        loss()


def test_the_links_are_those_of_the_divergences() -> None:
    linked = contrast.f_dpo(W, L, divergence="js", beta=BETA)
    by_hand = dpo(f_prime(LW - RW, "js") - f_prime(LL - RL, "js"))
    torch.testing.assert_close(linked, by_hand)
