"""Terms that hold a policy near a reference, or its entropy near a target.

Where a test's docstring begins with "Identity", it is one of the numerical identities of the
specification of language-model losses, in its words.
"""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from offrl.divergences import kl_full
from offrl.lm.losses import token_regularizers as tr
from offrl.lm.losses.masks import lowest_probability
from offrl.lm.losses.policy_gradient import clipped, importance_weighted
from offrl.multipliers import Multiplier
from offrl.networks import Learners
from offrl.regularizers import relative_support


def doubles(values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


def gradient(f: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    x = at.clone().requires_grad_()
    return torch.autograd.grad(f(x).sum(), x)[0]


BASE, START = normal(6).log_softmax(0), normal(6, seed=1)
P = START.softmax(0)


# -- towards a reference ------------------------------------------------------------------------


def test_dph_forward_is_supervised_learning_on_the_bases_answers() -> None:
    """Identity: E_base[swapped k3] grad == SFT grad."""
    weight = BASE.exp()
    found = gradient(lambda z: weight * tr.dph_forward(z.log_softmax(0), BASE), START)
    expected = gradient(lambda z: -weight * z.log_softmax(0), START)
    torch.testing.assert_close(found, expected)


def test_dph_forward_has_no_variance_at_the_base() -> None:
    assert not gradient(lambda x: tr.dph_forward(x, BASE), BASE).any()
    assert gradient(lambda x: -x, BASE).all()


def test_dph_js_is_twice_the_divergence() -> None:
    """Identity: E_Q[JS generator] == 2 JSD."""
    q = BASE.exp()
    middle = (P + q) / 2
    expected = (P * (P / middle).log()).sum() + (q * (q / middle).log()).sum()
    torch.testing.assert_close((q * tr.dph_js(P.log(), BASE)).sum(), expected)


def test_dph_alpha_is_the_authors_formula() -> None:
    w, a = P / BASE.exp(), 0.2
    expected = (w ** (1 - a) - (1 - a) * w - a) / (a * (a - 1))
    torch.testing.assert_close(tr.dph_alpha(P.log(), BASE), expected)


@pytest.mark.parametrize("term", [tr.dph_forward, tr.dph_js, tr.dph_alpha, tr.absolute_ratio])
def test_no_gradient_reaches_a_reference(term: Callable[[Tensor, Tensor], Tensor]) -> None:
    logp, ref = P.log().requires_grad_(), BASE.clone().requires_grad_()
    loss = term(logp, ref).sum()
    to_policy, to_ref = torch.autograd.grad(loss, (logp, ref), allow_unused=True)
    assert to_policy is not None and to_policy.any()
    assert to_ref is None


def test_the_convex_anchor_descends_both_divergences() -> None:
    other = normal(6, seed=2).log_softmax(0)

    def sampled(z: Tensor) -> Tensor:
        return P * tr.convex_anchor(z.log_softmax(0), BASE, other, weight=0.3)

    def exact(z: Tensor) -> Tensor:
        return 0.3 * kl_full(z, BASE, "reverse") + 0.7 * kl_full(z, other, "reverse")

    torch.testing.assert_close(gradient(sampled, START), gradient(exact, START))
    torch.testing.assert_close(sampled(START).sum(), exact(START))


def test_correlated_proxies_by_hand() -> None:
    # Sequence ratios 2 and 1/2: w + 1/w - 2 = 1/2 both; the token outside the mask is not seen.
    logp = doubles([[math.log(4), -math.log(2), math.nan], [-math.log(2), 0.0, 0.0]])
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    found = tr.correlated_proxies(logp, torch.zeros(2, 3).double(), mask)
    assert found.item() == pytest.approx(math.sqrt(0.5), rel=1e-12)


def test_the_filter_by_hand() -> None:
    # Probabilities .6 .39 .01: with a share of .02 the last goes, and .6 becomes .6 / .99.
    logits = doubles([[0.6, 0.39, 0.01]]).log().expand(3, 3)
    found = tr.filtered_logp(logits, torch.tensor([0, 1, 2]))
    expected = doubles([0.6 / 0.99, 0.39 / 0.99, 0.0]).log()
    torch.testing.assert_close(found, expected)
    whole = tr.filtered_logp(logits, torch.tensor([0, 1, 2]), share=0.0)
    torch.testing.assert_close(whole, doubles([0.6, 0.39, 0.01]).log())


def test_support_is_relative_to_the_likeliest() -> None:
    law = doubles([[0.5, 0.15, 0.14, 0.21], [1.0, 0.0, 0.0, 0.0]]).log()
    found = relative_support(law, 0.3)
    assert found.tolist() == [[True, True, False, True], [True, False, False, False]]
    assert relative_support(law, 0.0).all()


def test_lp_reg_acts_where_it_is_chosen_and_below_the_filter() -> None:
    # Below, above, below but not chosen, removed by the filter.
    logp = doubles([[-3.0, -1.0, -3.0, -9.0]])
    proxy = doubles([[-2.0, -1.5, -2.0, -math.inf]])
    chosen = torch.tensor([[1, 1, 0, 1]])
    e = math.e
    torch.testing.assert_close(tr.lp_reg(logp, proxy, chosen), doubles([[e - 2, 0.0, 0.0, 0.0]]))
    found = gradient(lambda x: tr.lp_reg(x, proxy, chosen), logp)
    torch.testing.assert_close(found, doubles([[1 - e, 0.0, 0.0, 0.0]]))


def test_lp_reg_with_a_share_of_zero_is_grpo() -> None:
    logits, old = normal(2, 3, 5), normal(2, 3, seed=3)
    labels = torch.tensor([[0, 1, 2], [3, 4, 0]])
    logp = logits.log_softmax(-1).gather(-1, labels[..., None])[..., 0]
    advantage, mask = doubles([[1.0], [-1.0]]), torch.ones(2, 3)
    plain = clipped(logp - old, advantage)
    for share, kappa in ((0.0, 0.02), (1.0, 0.0)):
        chosen = lowest_probability(logp, advantage, mask, share=share)
        proxy = tr.filtered_logp(logits, labels, share=kappa)
        acts = tr.lp_acts(logp, proxy, chosen)
        unclipped = importance_weighted(logp - old, advantage) + tr.lp_reg(logp, proxy, chosen)
        torch.testing.assert_close(torch.where(acts, unclipped, plain), plain)


# -- entropy ------------------------------------------------------------------------------------


def test_entropy_by_hand() -> None:
    logits = doubles([[0.0, 0.0, -math.inf], [0.5, 0.3, 0.2]])
    logits[1] = logits[1].log()
    found = tr.token_entropy(logits)
    second = -sum(p * math.log(p) for p in (0.5, 0.3, 0.2))
    torch.testing.assert_close(found, doubles([math.log(2), second]))
    # The nucleus of .6 is .5 and .3: 5/8 and 3/8; that of .4 is one token, without entropy.
    nucleus = tr.token_entropy(logits[1], top_p=0.6)
    assert nucleus.item() == pytest.approx(-sum(p * math.log(p) for p in (5 / 8, 3 / 8)))
    assert tr.token_entropy(logits[1], top_p=0.4).item() == pytest.approx(0.0, abs=1e-12)


def test_entropys_gradient_is_finite_and_right() -> None:
    logits = doubles([0.3, -1.0, 2.0, -math.inf])
    found = gradient(lambda z: tr.token_entropy(z), logits)
    law = logits.softmax(0)
    entropy = tr.token_entropy(logits)
    expected = -law * (law.log().nan_to_num(neginf=0.0) + entropy)
    torch.testing.assert_close(found, expected)
    nucleus = gradient(lambda z: tr.token_entropy(z, top_p=0.9), logits)
    assert nucleus.isfinite().all() and nucleus[0] > 0.1 and abs(nucleus[1]) < 1e-15


def test_siren_pulls_to_its_anchor_from_both_sides() -> None:
    entropy = doubles([[0.1, 0.2, 0.3, 0.4, 9.0], [1.0, 3.0, 2.0, 9.0, 9.0]])
    mask = torch.tensor([[1, 1, 1, 1, 0], [1, 1, 1, 0, 0]])
    # The upper quarter: at or above .325 and at or above 2.5: .4 and 3, of mean 1.7.
    level = tr.siren_level(entropy, mask, share=0.25)
    assert level.item() == pytest.approx(1.7)
    for anchor, sign in ((1.0, 1.0), (2.0, -1.0)):
        slope = gradient(lambda h, a=anchor: tr.siren(h, doubles(a), mask, share=0.25), entropy)
        expected = 2 * (1.7 - anchor) / 2
        assert slope[0].tolist() == pytest.approx([0, 0, 0, expected, 0])
        assert sign * slope[1, 1] > 0
    assert tr.siren(entropy, level, mask, share=0.25).item() == 0.0


def test_the_band_has_a_gradient_outside_and_none_inside() -> None:
    entropy, history = doubles([0.1, 0.9, 2.0]), doubles(1.0)
    found = tr.entropy_band(entropy, history, low=0.5, high=1.5)
    torch.testing.assert_close(found, doubles([0.4, 0.0, 0.5]))
    slope = gradient(lambda h: tr.entropy_band(h, history, low=0.5, high=1.5), entropy)
    assert slope.tolist() == [-1.0, 0.0, 1.0]


def test_the_constrained_optimum_is_a_saddle_point() -> None:
    # max r p subject to H(p) >= h over two choices: the multiplier is the temperature at which the
    # softmax policy r / w has the entropy h.
    reward, target = doubles([1.0, 0.0]), 0.5
    low, high = 0.0, 10.0
    for _ in range(60):
        gap = (low + high) / 2
        above = tr.token_entropy(gap * reward).item() > target
        low, high = (gap, high) if above else (low, gap)
    multiplier = Multiplier(Learners()).double()
    with torch.no_grad():
        multiplier.log.fill_(-math.log(gap))
    for sharper, sign in ((1.0, 0.0), (1.2, -1.0)):
        logits = (sharper * gap * reward).requires_grad_()
        term, dual = tr.constrained(target - tr.token_entropy(logits), multiplier)
        objective = term - (logits.softmax(0) * reward).sum()
        (policy,) = torch.autograd.grad(objective, logits)
        (rise,) = torch.autograd.grad(dual, multiplier.log)
        if sign:  # too sharp: the policy is pulled back, the multiplier up
            assert policy[0] > 1e-3 and rise < -1e-3
        else:
            assert policy.abs().max() < 1e-12 and abs(rise) < 1e-12


def test_the_multiplier_and_the_policy_see_each_other_as_constants() -> None:
    violation = torch.tensor(0.3, requires_grad=True)
    multiplier = Multiplier(Learners())
    term, dual = tr.constrained(violation, multiplier)
    assert torch.autograd.grad(term, multiplier.log, allow_unused=True, retain_graph=True) == (
        None,
    )
    assert torch.autograd.grad(dual, violation, allow_unused=True) == (None,)


def test_the_adaptive_coefficient_by_hand() -> None:
    now, entropy = doubles([0.1, 0.1, 0.0]), doubles([0.1, 0.3, 0.3])
    moved, applied = tr.adaptive_coefficient(now, entropy)
    torch.testing.assert_close(moved, doubles([0.105, 0.095, 0.0]))
    torch.testing.assert_close(applied, doubles([0.1, 0.0, 0.0]))


def test_a_policy_of_low_entropy_is_sampled_hot() -> None:
    assert tr.aepo_temperature(doubles([0.4, 0.5, 0.6])).tolist() == [1.2, 1.2, 0.8]
