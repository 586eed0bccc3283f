"""Divergences from samples: exact over small laws, by hand, and at the ends of the exponential.

Where a test's docstring begins with "Identity", it is one of the numerical identities of the
specification of language-model losses.
"""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from offrl.divergences import (
    F_KINDS,
    FKind,
    at_least_float32,
    chi2_est,
    f_div,
    f_prime,
    kl_full,
    kl_k1,
    kl_k2,
    kl_k3,
    kl_k3_straight,
    root_chi2_est,
    safe_exp,
)


def law(n: int, seed: int) -> Tensor:
    """A random law over n outcomes."""
    return torch.randn(n, generator=torch.Generator().manual_seed(seed)).double().softmax(0)


P, R = law(6, 0), law(6, 1)


def slope(f: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    x = at.clone().requires_grad_()
    return torch.autograd.grad(f(x).sum(), x)[0]


def test_estimators_by_hand() -> None:
    # u = log 2: k1 = 0.693147, k2 = 0.240227, k3 = 1/2 + log 2 - 1; chi2: 2 + 1/2 - 2 = 1/2.
    p, r = torch.tensor(2.0).double().log(), torch.tensor(0.0).double()
    log2 = math.log(2)
    for found, expected in (
        (kl_k1(p, r), log2),
        (kl_k2(p, r), log2**2 / 2),
        (kl_k3(p, r), log2 - 0.5),
        (kl_k3_straight(p, r), log2 - 0.5),
        (chi2_est(p), 0.5),
    ):
        assert found.item() == pytest.approx(expected, rel=1e-12)


def test_k1_and_k3_estimate_kl() -> None:
    """Identity: E_pi[log rho + 1/rho - 1] == KL (k3)."""
    kl = (P * (P / R).log()).sum()
    torch.testing.assert_close((P * kl_k1(P.log(), R.log())).sum(), kl)
    torch.testing.assert_close((P * kl_k3(P.log(), R.log())).sum(), kl)


def sampled_gradient(estimator: Callable[[Tensor, Tensor], Tensor], weight: Tensor) -> Tensor:
    """Of the expected estimator under fixed weights, in the logits of the policy P."""
    return slope(lambda z: weight * estimator(z.log_softmax(0), R.log()), P.log())


def test_the_gradients_of_the_estimators() -> None:
    """Identity: E_pi[k2] score-path gradient == KL gradient (k1's and k3's are not it)."""
    reverse = slope(lambda z: kl_full(z, R.log(), "reverse"), P.log())
    forward = slope(lambda z: kl_full(z, R.log(), "forward"), P.log())
    torch.testing.assert_close(sampled_gradient(kl_k2, P), reverse)
    torch.testing.assert_close(sampled_gradient(kl_k3_straight, P), reverse)
    torch.testing.assert_close(sampled_gradient(kl_k3, P), forward)
    torch.testing.assert_close(sampled_gradient(kl_k1, P), torch.zeros(6).double())
    assert (forward - reverse).abs().max() > 1e-2


def test_swapped_k3_on_the_references_samples_is_supervised_learning() -> None:
    """Identity: E_base[swapped k3] grad == SFT grad."""
    found = sampled_gradient(lambda p, r: kl_k3(r, p), R)
    torch.testing.assert_close(found, slope(lambda z: -R * z.log_softmax(0), P.log()))


def test_k3_is_clamped_only_where_asked() -> None:
    p, r = torch.tensor([0.0, -50.0]).double(), torch.zeros(2).double()
    assert kl_k3(p, r)[1].item() == pytest.approx(math.exp(50) - 51, rel=1e-12)
    assert kl_k3(p, r, limit=20.0)[1].item() == pytest.approx(math.exp(20) - 21, rel=1e-12)


def test_full_kl_leaves_out_what_both_laws_exclude() -> None:
    inf = math.inf
    p, r = torch.tensor([0.0, 0.0, -inf]).double(), torch.tensor([0.0, math.log(3), -inf]).double()
    p.requires_grad_()
    forward, reverse = kl_full(p, r, "forward"), kl_full(p, r, "reverse")
    # r = (1/4, 3/4), p = (1/2, 1/2).
    assert forward.item() == pytest.approx(math.log(0.5) / 4 + math.log(1.5) * 3 / 4)
    assert reverse.item() == pytest.approx(math.log(2) / 2 + math.log(2 / 3) / 2)
    (gradient,) = torch.autograd.grad(forward, p)
    torch.testing.assert_close(gradient, torch.tensor([0.25, -0.25, 0.0]).double())


def test_chi2_is_unbiased_and_never_negative() -> None:
    """Identity: E_pi[rho+1/rho-2] == chi2(pi||pi0)."""
    u = (P / R).log()
    torch.testing.assert_close((P * chi2_est(u)).sum(), ((P - R).square() / R).sum())
    assert (chi2_est(torch.linspace(-30, 30, 61)) >= 0).all()
    assert chi2_est(torch.tensor(300.0)).isfinite()


def test_the_root_is_bounded_below_and_keeps_learners_apart() -> None:
    u = torch.tensor([[math.log(2), -math.log(2)], [0.0, 0.0]]).double().requires_grad_()
    root = root_chi2_est(u)
    torch.testing.assert_close(root, torch.tensor([math.sqrt(0.5), 0.01]).double())
    (gradient,) = torch.autograd.grad(root.sum(), u)
    assert gradient[0].abs().min() > 0.1
    assert not gradient[1].any()


def test_the_exponential_goes_on_along_its_tangent() -> None:
    z = torch.tensor([-3.0, 0.0, 9.99, 10.0, 10.5, 12.0, 400.0]).double()
    e = math.exp(10)
    expected = [*z[:4].exp().tolist(), 1.5 * e, 3 * e, 391 * e]
    torch.testing.assert_close(safe_exp(z), torch.tensor(expected).double())
    grown = torch.tensor([*z[:4].exp().tolist(), e, e, e]).double()
    # At the kink itself the subgradient of the clamps is the sum of both; it is left out.
    keep = torch.tensor([0, 1, 2, 4, 5, 6])
    torch.testing.assert_close(slope(safe_exp, z)[keep], grown[keep])


CLOSED = {
    "reverse_kl": (P * (P / R).log()).sum(),
    "forward_kl": (R * (R / P).log()).sum(),
    "js": (P * (2 * P / (P + R)).log() + R * (2 * R / (P + R)).log()).sum(),
    "alpha": 4 * (1 - (P * R).sqrt().sum()),
    "chi2": ((P - R).square() / R).sum() / 2,
    "chi2_mix": ((P - R).square() / R).sum() / 2 + (P * (P / R).log()).sum(),
}


@pytest.mark.parametrize("kind", F_KINDS)
def test_each_divergence_is_its_closed_form(kind: FKind) -> None:
    """Identity: E_Q[JS generator] == 2 JSD; and the same of the others."""
    torch.testing.assert_close((R * f_div((P / R).log(), kind)).sum(), CLOSED[kind])


@pytest.mark.parametrize("kind", F_KINDS)
def test_each_link_is_the_derivative_in_the_ratio(kind: FKind) -> None:
    w, one = torch.linspace(0.05, 8.0, 40).double(), torch.zeros(1).double()
    expected = f_prime(w.log(), kind) - f_prime(one, kind)  # up to f'(1), which a paper may keep
    torch.testing.assert_close(slope(lambda x: f_div(x.log(), kind), w), expected)
    assert f_div(one, kind).abs().item() < 1e-15
    assert (f_div(torch.linspace(-20, 20, 101).double(), kind) >= -1e-12).all()


@pytest.mark.parametrize("kind", F_KINDS)
def test_long_sequences_are_finite(kind: FKind) -> None:
    u = torch.tensor([-500.0, 500.0])
    assert f_prime(u, kind).isfinite().all()
    assert f_div(u, kind).isfinite().all()


def test_the_links_that_lead_to_dpo() -> None:
    """Identity: alpha-DPO alpha->1 == DPO; chiPO gamma=0 == DPO, and twice DPO at first."""
    u = torch.linspace(-3, 3, 13).double()
    torch.testing.assert_close(f_prime(u, "alpha", alpha=1 - 1e-7), u, rtol=1e-5, atol=1e-6)
    assert torch.equal(f_prime(u, "alpha", alpha=1.0), u)
    assert torch.equal(f_prime(u, "chi2_mix", gamma=0.0), u)
    assert slope(lambda z: f_prime(z, "chi2_mix"), torch.zeros(1).double()).item() == 2.0


def test_alpha_goes_from_forward_to_reverse_kl() -> None:
    u = torch.linspace(-3, 3, 13).double()
    for alpha, kind in ((0.0, "forward_kl"), (1.0, "reverse_kl")):
        exact = f_div(u, kind)  # type: ignore[arg-type]
        assert torch.equal(f_div(u, "alpha", alpha=alpha), exact)
        near = f_div(u, "alpha", alpha=abs(alpha - 1e-6))
        torch.testing.assert_close(near, exact, rtol=1e-4, atol=1e-4)


def test_half_precision_is_raised() -> None:
    assert at_least_float32(torch.zeros(1, dtype=torch.bfloat16)).dtype == torch.float32
    assert at_least_float32(torch.zeros(1, dtype=torch.float64)).dtype == torch.float64
