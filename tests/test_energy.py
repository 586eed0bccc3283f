"""Descent, search and losses of energies, by closed forms and finite differences."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from offrl.energy import (
    Energy,
    descend,
    info_nce,
    polynomial,
    resampled,
    search,
    settle,
    slope,
    steepness,
)
from offrl.energy_nets import MLPEnergy, TransformerEnergy
from offrl.errors import ConfigError
from offrl.networks import Learners


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def number(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def quadratic(k: Any = 1.0, c: Any = 0.0) -> Energy:
    """k |x - c|^2 / 2 over all components of a row."""
    return lambda x: (0.5 * k * (x - c).square()).flatten(-2).sum(-1)


# -- slopes and steps ------------------------------------------------------------------------------


def test_a_slope_is_the_derivative_and_the_energies_there() -> None:
    x = draw(2, 5, 3, 2)
    gradient, energy = slope(quadratic(3.0, 0.5), x)
    torch.testing.assert_close(gradient, 3.0 * (x - 0.5), rtol=0, atol=1e-12)
    torch.testing.assert_close(energy, quadratic(3.0, 0.5)(x), rtol=0, atol=0)
    assert energy.shape == (2, 5)


@pytest.mark.parametrize(("rate", "k"), [(0.1, 3.0), (0.5, 1.0), (0.6, 3.0)])
def test_descent_of_a_parabola_shrinks_by_one_minus_rate_times_curvature(
    rate: float, k: float
) -> None:
    x, c = draw(4, 3, 2), 0.7
    found = descend(quadratic(k, c), x, [rate] * 6)
    assert found.evaluations == 6 and len(found.points) == len(found.energies) == 6
    for i, point in enumerate(found.points):
        expected = c + (1.0 - rate * k) ** (i + 1) * (x - c)
        torch.testing.assert_close(point, expected, rtol=0, atol=1e-12)
    before = x
    for point, energy in zip(found.points, found.energies, strict=True):
        torch.testing.assert_close(energy, quadratic(k, c)(before), rtol=0, atol=1e-12)
        before = point


def test_rates_may_differ_by_step_and_by_row() -> None:
    x = draw(3, 1, 1)
    rates = [torch.tensor([0.1, 0.2, 0.3]).double()[:, None, None], number(0.5)]
    expected = x * (1.0 - rates[0]) * 0.5
    torch.testing.assert_close(descend(quadratic(), x, rates).x, expected, rtol=0, atol=1e-12)


def test_what_a_step_changes_and_where_it_ends_are_bounded() -> None:
    x = torch.tensor([[[2.0, -0.5]]]).double()
    moved = descend(quadratic(), x, [0.5], limit=0.3).x
    torch.testing.assert_close(moved, torch.tensor([[[1.7, -0.25]]]).double())
    moved = descend(quadratic(), x, [0.5], [torch.full_like(x, 3.0)], limit=0.3, bound=1.0).x
    torch.testing.assert_close(moved, torch.tensor([[[1.0, -0.8]]]).double())


def test_detached_steps_forget_the_ones_before() -> None:
    # y2 = y1 - r k (y1 - c): in c, r k alone where y1 is given, else 1 - (1 - r k)^2.
    rate, k = 0.2, 2.0
    for detach, expected in ((True, rate * k), (False, 1.0 - (1.0 - rate * k) ** 2)):
        c = number(0.3).requires_grad_()
        end = descend(quadratic(k, c), draw(1, 1, 1), [rate] * 2, detach=detach).x
        (found,) = torch.autograd.grad(end.sum(), c)
        assert found.item() == pytest.approx(expected, abs=1e-12)


def test_without_gradients_slopes_are_taken_all_the_same() -> None:
    c = number(0.3).requires_grad_()
    with torch.no_grad():
        found = descend(quadratic(1.0, c), draw(2, 1, 1), [0.5])
    assert not found.x.requires_grad
    assert not torch.equal(found.x, draw(2, 1, 1))


# -- gradients through descent against finite differences -----------------------------------------


def transformer() -> Any:
    sizes = {"layers": 2, "heads": 2, "width": 8}
    return TransformerEnergy(4, 2, 2, 3, Learners((3,)), **sizes).double()


def resnet(learners: Learners | None = None, **changes: Any) -> Any:
    settings = {"hidden": 8, "depth": 4, **changes}
    net = MLPEnergy(4, 2, 6, learners or Learners((3,)), **settings).double()
    with torch.no_grad():  # louder than at first, so that derivatives are not of rounding's size
        for p in net.parameters():
            p.mul_(6.0)
    return net


class Descending(nn.Module):
    """An energy with a rate of its own, and what becomes of it after two steps."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.rate = net, nn.Parameter(number(0.4))
        self.inputs = draw(6, 4, 2), draw(6, 4, 2, seed=1), draw(6, 2, 3, seed=2)

    def loss(self, detach: bool) -> Tensor:
        x, goal, condition = self.inputs
        net: Any = self.net
        found = descend(net.under(condition), x, [self.rate, self.rate], detach=detach)
        return torch.stack([(p - goal).square().mean() for p in found.points]).mean()


def penalised(net: Any) -> Tensor:
    """Implicit BC's loss with its penalty: a derivative of a slope as well."""
    x, others = draw(3, 4, 2), draw(6, 4, 2, seed=1)
    energy = net.under(draw(3, 2, 3, seed=2))
    loss = info_nce(energy(x), energy(others).unflatten(-1, (3, 2)))
    gradient, _ = slope(energy, others)
    return loss.mean() + steepness(gradient, margin=0.1).mean()


def relative_error(module: nn.Module, loss: Callable[[], Tensor]) -> float:
    """Of the gradient by all parameters, to central differences along directions of each."""
    parameters = list(module.parameters())
    gradients = torch.autograd.grad(loss(), parameters)
    worst, step = 0.0, 1e-5
    for i, (p, g) in enumerate(zip(parameters, gradients, strict=True)):
        direction = draw(*p.shape, seed=i)
        values = []
        for sign in (1.0, -1.0):
            with torch.no_grad():
                p.add_(sign * step * direction)
            values.append(loss().item())
            with torch.no_grad():
                p.sub_(sign * step * direction)
        numeric = (values[0] - values[1]) / (2.0 * step)
        exact = (g * direction).sum().item()
        # Of keys' biases neither energies nor slopes depend: both are 0, up to rounding.
        if abs(exact) > 1e-9:
            worst = max(worst, abs(numeric - exact) / abs(exact))
        else:
            assert abs(numeric) < 1e-8
    return worst


@pytest.mark.parametrize("make", [transformer, resnet])
def test_the_gradient_through_two_steps_is_that_of_finite_differences(
    make: Callable[[], Any],
) -> None:
    module = Descending(make())
    assert relative_error(module, lambda: module.loss(False)) < 1e-5
    # What is detached is another gradient, and not that of the loss.
    assert relative_error(module, lambda: module.loss(True)) > 1e-3


@pytest.mark.parametrize("make", [transformer, resnet])
def test_the_gradient_of_the_penalty_is_that_of_finite_differences(
    make: Callable[[], Any],
) -> None:
    module = make()
    assert relative_error(module, lambda: penalised(module)) < 1e-5


@pytest.mark.compiled
@pytest.mark.parametrize("make", [transformer, resnet])
def test_a_compiled_graph_holds_the_gradient_of_a_descent(make: Callable[[], Any]) -> None:
    torch._dynamo.config.trace_autograd_ops = True
    module = Descending(make())
    parameters = list(module.parameters())

    def gradients(parameters: Sequence[Tensor]) -> Any:
        return torch.autograd.grad(module.loss(False), parameters)

    compiled = torch.compile(gradients, backend="aot_eager", fullgraph=True, dynamic=False)
    for a, b in zip(gradients(parameters), compiled(parameters), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


# -- Langevin --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rate", "spread"), [(0.5, 0.3), (0.05, math.sqrt(2 * 0.05 * 0.2))])
def test_langevin_on_a_parabola_has_its_stationary_law(rate: float, spread: float) -> None:
    k, c, chains, steps = 2.0, 0.4, 20_000, 80
    x = torch.full((chains, 1, 1), -1.0).double()
    shakes = [spread * draw(chains, 1, 1, seed=i) for i in range(steps)]
    end = descend(quadratic(k, c), x, [rate] * steps, shakes).x.flatten()
    shrink = 1.0 - rate * k
    variance = spread**2 * (1.0 - shrink ** (2 * steps)) / (1.0 - shrink**2)
    mean = c + shrink**steps * (-1.0 - c)
    error = math.sqrt(variance / chains)
    assert end.mean().item() == pytest.approx(mean, abs=4 * error)
    assert end.var().item() == pytest.approx(variance, rel=4 * math.sqrt(2 / chains))
    if rate == 0.05:  # small: T / k, with T = spread^2 / (2 rate)
        assert variance == pytest.approx(0.2 / k, rel=0.06)


def test_polynomial_rates_by_hand() -> None:
    rates = polynomial(0.1, 1e-5, 5, 2.0)
    expected = [1e-5 + (0.1 - 1e-5) * s**2 for s in (1.0, 0.75, 0.5, 0.25, 0.0)]
    assert rates == pytest.approx(expected, abs=1e-15)
    assert polynomial(0.1, 1e-5, 1) == (0.1,)


# -- settling --------------------------------------------------------------------------------------


def test_rows_settle_one_by_one_where_their_energy_stands_still() -> None:
    # E_i = E_0 q^(2 i) with q = 1/2: E_0 = 8 and 0.02; a change below 0.1 ends it.
    x = torch.tensor([4.0, 0.2, 0.0]).double()[:, None, None]
    found = settle(quadratic(), x, 0.5, 10, still=0.1)
    # 8, 2, 0.5, 0.125, 0.03125: the fifth slope finds it, after four steps. 0.02, 0.005: second.
    assert found.evaluations.tolist() == [5, 2, 2]  # type: ignore[union-attr]
    torch.testing.assert_close(found.x.flatten(), torch.tensor([0.25, 0.1, 0.0]).double())
    first, last = found.energies
    torch.testing.assert_close(first, torch.tensor([8.0, 0.02, 0.0]).double())
    torch.testing.assert_close(last, torch.tensor([0.03125, 0.005, 0.0]).double())


def test_rows_settle_where_the_slope_is_flat() -> None:
    x = torch.tensor([4.0, 0.2, 0.0]).double()[:, None, None]
    found = settle(quadratic(), x, 0.5, 10, flat=0.3)
    # |slope| = 4, 2, 1, 0.5, 0.25; 0.2 and 0 at once.
    assert found.evaluations.tolist() == [5, 1, 1]  # type: ignore[union-attr]
    torch.testing.assert_close(found.x.flatten(), torch.tensor([0.25, 0.2, 0.0]).double())


def test_without_a_tolerance_settling_is_descent() -> None:
    x = draw(3, 4, 2)
    found, plain = settle(quadratic(0.7), x, 0.3, 5), descend(quadratic(0.7), x, [0.3] * 5)
    assert torch.equal(found.x, plain.x) and torch.equal(found.energies[1], plain.energies[-1])
    assert found.evaluations.tolist() == [5, 5, 5]  # type: ignore[union-attr]
    bounded = settle(quadratic(), 5 * torch.ones(1, 1, 1), 0.5, 2, limit=0.2)
    assert bounded.x.item() == pytest.approx(4.6)


def test_what_a_row_does_depends_on_no_other() -> None:
    net, x, condition = transformer(), draw(5, 4, 2), draw(5, 2, 3, seed=2)
    net.requires_grad_(False)
    energies = torch.stack(descend(net.under(condition), x, [2.0] * 4).energies)
    still = float(energies.diff(dim=0)[1].abs().median())  # for some rows now, for others later
    together = settle(net.under(condition), x, 2.0, 20, still=still)
    counts: Any = together.evaluations
    assert len(set(counts.tolist())) > 1
    for i in range(5):
        alone = settle(net.under(condition[i : i + 1]), x[i : i + 1], 2.0, 20, still=still)
        torch.testing.assert_close(alone.x[0], together.x[i], rtol=0, atol=1e-12)
        assert torch.equal(alone.evaluations, counts[i : i + 1])  # type: ignore[arg-type]


@pytest.mark.compiled
def test_settling_in_a_graph_is_settling() -> None:
    x = draw(4, 3, 2)

    def run(x: Tensor) -> Any:
        found = settle(partial(_parabola, 0.8), x, 0.4, 8, still=0.05)
        return found.x, found.evaluations, found.energies

    compiled = torch.compile(run, backend="aot_eager", fullgraph=True, dynamic=False)
    for a, b in zip(run(x), compiled(x), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def _parabola(k: float, x: Tensor) -> Tensor:
    return (0.5 * k * x.square()).sum((-1, -2))


# -- search ----------------------------------------------------------------------------------------


def test_search_finds_the_least_of_a_parabola_within_the_last_spread() -> None:
    n, rounds, goals = 256, 4, torch.tensor([0.6, -0.3, 0.9]).double()[:, None, None]
    centres = goals.expand(3, 1, 2).repeat_interleave(n, 0)
    x = 2.0 * torch.special.ndtr(draw(3 * n, 1, 2)) - 1.0
    shakes = [draw(3 * n, 1, 2, seed=i) for i in range(1, rounds)]
    draws = [draw(3 * n, seed=-i) for i in range(1, rounds)]
    # A sharp energy, so that the good ones multiply.
    found = search(quadratic(200.0, centres), x, n, shakes, draws, 0.33, bound=1.0)
    assert found.x.shape == (3, 1, 2) and found.evaluations == rounds * n
    assert (found.x - goals).abs().max() < 0.33 * 0.5 ** (rounds - 2)
    before = search(quadratic(200.0, centres), x, n, [], [], 0.33)
    assert (found.x - goals).norm() < (before.x - goals).norm()


def test_search_without_rounds_takes_the_best_of_each_sample() -> None:
    x = torch.tensor([3.0, -1.0, 2.0, 0.5, 0.2, -4.0]).double()[:, None, None]
    found = search(quadratic(), x, 3, [], [], 0.1)
    assert torch.equal(found.x, x[[1, 4]]) and found.evaluations == 3


def test_search_shakes_by_a_spread_that_shrinks_and_stays_inside() -> None:
    # One candidate is always drawn again: what is added is all that moves it.
    x, shakes = torch.zeros(1, 1, 1).double(), [torch.ones(1, 1, 1).double()] * 3
    draws = [torch.zeros(1).double()] * 3
    assert search(quadratic(), x, 1, shakes, draws, 0.4).x.item() == pytest.approx(0.7)
    bounded = search(quadratic(), x, 1, shakes, draws, 0.4, bound=0.5)
    assert bounded.x.item() == pytest.approx(0.5)
    with pytest.raises(ConfigError, match="3 shakes and 2 draws"):
        search(quadratic(), x, 1, shakes, draws[:2], 0.4)


def test_candidates_are_drawn_by_their_share() -> None:
    n = 4_000
    x = torch.arange(2.0).double().repeat(n // 2)[:, None, None].expand(n, 1, 1)
    x = torch.cat([x, 2.0 + x])
    score = math.log(3.0) * x.flatten()  # the odd one of each pair three times as likely
    uniform = torch.special.ndtr(draw(2 * n))
    kept = resampled(x, score, n, uniform).flatten()
    error = 4 * math.sqrt(0.25 * 0.75 / n)
    assert (kept[:n] == 1).double().mean().item() == pytest.approx(0.75, abs=error)
    assert (kept[n:] == 3).double().mean().item() == pytest.approx(0.75, abs=error)
    assert set(kept[:n].tolist()) == {0.0, 1.0} and set(kept[n:].tolist()) == {2.0, 3.0}
    hot = resampled(x[:2], torch.tensor([0.0, -1e9]).double(), 2, torch.tensor([0.0, 1.0]).double())
    assert hot.flatten().tolist() == [0.0, 0.0]


def test_stacked_searches_are_searches_alone() -> None:
    x, n = draw(2, 6, 4, 2), 3
    shakes, draws = [draw(2, 6, 4, 2, seed=1)], [draw(2, 6, seed=2)]
    together = search(quadratic(2.0), x, n, shakes, draws, 0.3)
    for k in range(2):
        alone = search(quadratic(2.0), x[k], n, [shakes[0][k]], [draws[0][k]], 0.3)
        assert torch.equal(together.x[k], alone.x)


# -- losses ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 7, 256])
def test_equal_energies_cost_the_log_of_their_number(n: int) -> None:
    loss = info_nce(torch.full((3,), 0.4).double(), torch.full((3, n), 0.4).double())
    torch.testing.assert_close(loss, torch.full((3,), math.log(1 + n)).double())


def test_info_nce_by_hand() -> None:
    logged, others = torch.tensor([1.0]).double(), torch.tensor([[2.0, 0.5]]).double()
    weights = [math.exp(-e / 0.5) for e in (1.0, 2.0, 0.5)]
    expected = -math.log(weights[0] / sum(weights))
    assert info_nce(logged, others, 0.5).item() == pytest.approx(expected, abs=1e-12)
    shifted = info_nce(logged + 7.0, others + 7.0, 0.5)
    assert shifted.item() == pytest.approx(expected, abs=1e-12)
    far = info_nce(torch.tensor([1e4]).double(), others)
    assert far.item() == pytest.approx(1e4 - 0.5 + math.log(1 + math.exp(-1.5)), rel=1e-9)


def test_steepness_is_of_the_largest_component_beyond_the_margin() -> None:
    gradient = torch.tensor([[[0.5, -3.0]], [[0.9, 0.2]]]).double()
    assert steepness(gradient).tolist() == [4.0, 0.0]
    assert steepness(gradient, margin=0.4)[1].item() == pytest.approx(0.25)
    assert steepness(gradient[:, 0], event=1).tolist() == [4.0, 0.0]
