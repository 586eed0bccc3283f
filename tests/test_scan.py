"""The parallel scan against the recurrence that it stands for."""

import math

import pytest
import torch
from torch import Tensor

from offrl.scan import scan, selective_scan

LENGTHS = [1, 2, 3, 4, 5, 7, 8, 13, 60]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def recurrence(a: Tensor, b: Tensor, h: Tensor) -> Tensor:
    states = []
    for t in range(a.shape[1]):
        h = a[:, t] * h + b[:, t]
        states.append(h)
    return torch.stack(states, 1)


def test_by_hand() -> None:
    # 1, then 0.5 * 1 + 2, then -1 * 2.5 + 3, then 0 * 0.5 + 4: a decay of 0 forgets everything.
    a = torch.tensor([[7.0, 0.5, -1.0, 0.0]])
    b = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    assert scan(a, b).tolist() == [[1.0, 2.5, 0.5, 4.0]]
    # From h_0 = 2: 7 * 2 + 1 = 15 first.
    assert scan(a, b, torch.tensor([2.0])).tolist() == [[15.0, 9.5, -6.5, 4.0]]


@pytest.mark.parametrize("steps", LENGTHS)
def test_scan_is_the_recurrence_and_so_are_its_gradients(steps: int) -> None:
    a = torch.sigmoid(normal(3, steps, 4, 2)).requires_grad_()
    b, h = normal(3, steps, 4, 2, seed=1).requires_grad_(), normal(3, 4, 2, seed=2).requires_grad_()
    weight = normal(3, steps, 4, 2, seed=3)
    found, expected = scan(a, b, h), recurrence(a, b, h)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    ours = torch.autograd.grad((weight * found).sum(), (a, b, h))
    theirs = torch.autograd.grad((weight * expected).sum(), (a, b, h))
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-12)
    without = scan(a, b)
    torch.testing.assert_close(without, recurrence(a, b, torch.zeros_like(h)), rtol=0, atol=1e-12)


def test_a_long_scan_of_small_decays_stays_finite() -> None:
    # exp(-40) per step underflows when products are formed and divided again, as some scans do.
    a, b = torch.full((1, 100, 1), math.exp(-40.0)), torch.ones(1, 100, 1)
    assert torch.equal(scan(a, b), recurrence(a, b, torch.zeros(1, 1)))


def inputs(steps: int) -> dict[str, Tensor]:
    return {
        "x": normal(2, steps, 3),
        "delta": torch.nn.functional.softplus(normal(2, steps, 3, seed=1)),
        "rates": -normal(3, 4, seed=2).exp(),
        "b": normal(2, steps, 4, seed=3),
        "c": normal(2, steps, 4, seed=4),
        "skip": normal(3, seed=5),
    }


def test_the_selective_scan_by_hand() -> None:
    # One feature, one state: h = 0.5 h + 2 * 3 * x with exp(2 * rate) = 0.5, y = 5 h + 7 x.
    one = torch.ones(1, 2, 1)
    rates, x = torch.tensor([[-math.log(2.0) / 2]]), torch.tensor([[[1.0], [2.0]]])
    y, last = selective_scan(x, 2 * one, rates, 3 * one, 5 * one, torch.tensor([7.0]))
    torch.testing.assert_close(y[0, :, 0], torch.tensor([5 * 6.0 + 7, 5 * 15.0 + 14]))
    torch.testing.assert_close(last, torch.tensor([[15.0]])[None])


def test_selective_steps_one_by_one_are_the_whole() -> None:
    given = inputs(9)
    whole, last = selective_scan(**given)
    state = torch.zeros(2, 3, 4, dtype=torch.float64)
    for t in range(9):
        now = {k: v[:, t : t + 1] if v.ndim == 3 else v for k, v in given.items()}
        y, state = selective_scan(**now, state=state)
        torch.testing.assert_close(y[:, 0], whole[:, t], rtol=0, atol=1e-12)
    torch.testing.assert_close(state, last, rtol=0, atol=1e-12)


def test_a_step_of_length_zero_leaves_the_state() -> None:
    given = inputs(6)
    delta = given["delta"].clone()
    delta[0, :3] = 0.0
    y, last = selective_scan(**{**given, "delta": delta})
    later = {k: v[:1, 3:] if v.ndim == 3 else v for k, v in given.items()}
    alone, alone_last = selective_scan(**later)
    torch.testing.assert_close(y[:1, 3:], alone, rtol=0, atol=1e-12)
    torch.testing.assert_close(last[:1], alone_last, rtol=0, atol=1e-12)


def test_the_past_is_all_that_matters() -> None:
    a, b = torch.sigmoid(normal(1, 11, 2)), normal(1, 11, 2, seed=1)
    before = scan(a, b)
    changed = b.clone()
    changed[:, 6] += 1.0
    after = scan(a, changed)
    assert torch.equal(after[:, :6], before[:, :6]) and not torch.equal(after[:, 6], before[:, 6])


@pytest.mark.parametrize("cached", [1, 400, 1 << 19])
@pytest.mark.parametrize("steps", LENGTHS)
def test_the_gradient_without_states_is_that_of_the_equation(
    steps: int, cached: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("offrl.scan.CACHED", cached)  # rows together: one, some, all
    given = {k: v.requires_grad_() for k, v in inputs(steps).items()}
    state = normal(2, 3, 4, seed=6).requires_grad_()
    weight, last_weight = normal(2, steps, 3, seed=7), normal(2, 3, 4, seed=8)
    slopes = []
    for whole in (False, True):
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda whole=whole: whole)
        y, last = selective_scan(**given, state=state)
        loss = (weight * y).sum() + (last_weight * last).sum()
        slopes.append((loss, *torch.autograd.grad(loss, (*given.values(), state))))
    for mine, other in zip(*slopes, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-12, atol=1e-12)
