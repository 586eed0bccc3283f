"""What robust methods are made of, by hand."""

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Independent, Normal

from offrl.losses import cloning_loss, ensemble_quantile, huber_loss
from offrl.optim import cosine_rate


def doubles(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_the_quantile_of_three_critics_by_hand() -> None:
    # Sorted: 1, 2, 4. Places 0, 1, 2; level 0.1 is place 0.2: 1 + 0.2 (2 - 1) = 1.2. Level 0.75 is
    # place 1.5: 2 + 0.5 (4 - 2) = 3.
    q = doubles(4, 1, 2)[:, None]
    levels = {0.0: 1.0, 0.1: 1.2, 0.25: 1.5, 0.5: 2.0, 0.75: 3.0, 1.0: 4.0}
    for level, expected in levels.items():
        assert ensemble_quantile(q, level).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("members", [1, 2, 3, 5, 10])
@pytest.mark.parametrize("level", [0.0, 0.1, 0.25, 0.3, 0.5, 0.9, 1.0])
def test_the_quantile_is_torchs(members: int, level: float) -> None:
    q = torch.randn(members, 2, 7, generator=torch.Generator().manual_seed(members)).double()
    torch.testing.assert_close(ensemble_quantile(q, level), torch.quantile(q, level, dim=0))


def test_the_ends_of_the_quantile_are_least_and_greatest() -> None:
    q = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(ensemble_quantile(q, 0.0), q.amin(0))
    assert torch.equal(ensemble_quantile(q, 1.0), q.amax(0))
    assert torch.equal(ensemble_quantile(q, 0.5), q.median(0).values)
    assert torch.equal(ensemble_quantile(q[:1], 0.3), q[0])


def test_the_quantile_keeps_learners_apart_and_passes_gradients() -> None:
    q = doubles(1, 10, 3, 30, 2, 20).reshape(3, 2, 1).requires_grad_()
    found = ensemble_quantile(q, 0.25)  # place 0.5 of 1, 2, 3 and of 10, 20, 30
    assert found.flatten().tolist() == [1.5, 15.0]
    torch.autograd.backward(found.sum())
    assert q.grad is not None
    assert q.grad.flatten().tolist() == [0.5, 0.5, 0.0, 0.0, 0.5, 0.5]


@pytest.mark.compiled
def test_quantile_and_huber_are_one_graph() -> None:
    def loss(q: Tensor) -> Tensor:
        return huber_loss(ensemble_quantile(q, 0.1), 1.5).sum()

    q = torch.randn(5, 8, generator=torch.Generator().manual_seed(0)).double()
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(q), loss(q))


def test_huber_loss_by_hand() -> None:
    # sigma = 2: the threshold is 1/4. Inside 2 x^2: 0.1 gives 0.02, beyond |x| - 1/8: -3 gives
    # 2.875. sigma = 1/2: the threshold is 4, x^2 / 8 inside and |x| - 2 beyond.
    torch.testing.assert_close(huber_loss(doubles(0, 0.1, -3), 2.0), doubles(0, 0.02, 2.875))
    torch.testing.assert_close(huber_loss(doubles(2, -4, 5), 0.5), doubles(0.5, 2, 3))


@pytest.mark.parametrize("sigma", [0.1, 0.5, 1.0, 3.0])
def test_both_sides_of_the_threshold_meet_in_value_and_slope(sigma: float) -> None:
    threshold = 1.0 / sigma**2
    x = doubles(threshold * (1 - 1e-9), threshold * (1 + 1e-9)).requires_grad_()
    loss = huber_loss(x, sigma)
    torch.testing.assert_close(loss.detach(), doubles(threshold / 2, threshold / 2))
    torch.autograd.backward(loss.sum())
    assert x.grad is not None
    torch.testing.assert_close(x.grad, doubles(1, 1))


def test_the_slope_is_never_above_one() -> None:
    x = torch.linspace(-50, 50, 1001, dtype=torch.float64, requires_grad=True)
    for sigma in (0.1, 1.0, 3.0):
        (slope,) = torch.autograd.grad(huber_loss(x, sigma).sum(), x)
        assert slope.abs().max() <= 1.0
        assert torch.equal(slope.sign(), x.detach().sign())


def test_the_limits_of_the_huber_loss() -> None:
    # A threshold that no error reaches: sigma^2 / 2 times the squared error. One that all exceed:
    # the absolute error.
    x = torch.linspace(-5, 5, 11, dtype=torch.float64)
    for sigma in (0.1, 0.01):
        torch.testing.assert_close(huber_loss(x, sigma), 0.5 * sigma**2 * x.square())
    torch.testing.assert_close(huber_loss(x, 1e4), x.abs())


def test_the_cloning_loss_of_an_action_by_hand() -> None:
    # (1, -1) - (0.5, 1): 0.25 + 4.
    found = cloning_loss(doubles(1, -1)[None], doubles(0.5, 1)[None])
    assert found.tolist() == [4.25]


def test_the_cloning_loss_of_a_gaussian_by_hand() -> None:
    # Two components of spread 1/2, one and two spreads away: 1/2 + 4/2 + 2 ln(1/2) + ln(2 pi).
    policy = Independent(Normal(doubles(0, 0)[None], doubles(0.5, 0.5)[None]), 1)
    expected = 2.5 + 2 * math.log(0.5) + math.log(2 * math.pi)
    assert cloning_loss(policy, doubles(0.5, -1)[None]).item() == pytest.approx(expected)


def test_with_a_fixed_spread_both_forms_have_the_same_gradient_up_to_a_factor() -> None:
    # -log N(a; m, s^2) = |m - a|^2 / (2 s^2) + constant: with s = 1 half the squared distance.
    mean, goal = torch.randn(2, 5, 3, dtype=torch.float64).unbind(0)
    mean.requires_grad_()
    gaussian = cloning_loss(Independent(Normal(mean, torch.ones_like(mean)), 1), goal)
    (one,) = torch.autograd.grad(gaussian.sum(), mean)
    (two,) = torch.autograd.grad(cloning_loss(mean, goal).sum(), mean)
    torch.testing.assert_close(one, two / 2)


def test_the_cosine_by_hand() -> None:
    rates = [cosine_rate(2.0, step, 4) for step in range(5)]
    half = math.sqrt(0.5)
    assert rates == pytest.approx([2.0, 1.0 + half, 1.0, 1.0 - half, 0.0])
