"""Losses of single completions, by hand and against flat transcriptions."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from lm_cases import altered, draw, faulty, gradients, padded, ragged, single, slope, tracked
from torch import Tensor

from offrl.lm.losses import unary
from offrl.lm.losses.scores import Scores
from offrl.lm.losses.unary import apo_zero_unpaired, kto, kto_baseline, nash_md

B = 7
LABEL = torch.tensor([1, 0, 1, 1, 0, 0, 1]).bool()
P = torch.sigmoid(draw(5, B))


def doubles(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def ratio(s: Scores) -> Tensor:
    assert s.ref_logp is not None
    return (s.logp - s.ref_logp) * s.mask


def u(s: Scores) -> Tensor:
    return ratio(s).sum(-1)


LOSSES: dict[str, tuple[Callable[[Any, Scores], Tensor], Callable[[Scores], Tensor]]] = {
    "kto": (
        lambda m, s: m.kto(s, LABEL, baseline=0.4, beta=0.3, desirable=1.2, undesirable=0.7),
        lambda s: torch.where(
            LABEL,
            1.2 * (1 - torch.sigmoid(0.3 * (u(s) - 0.4))),
            0.7 * (1 - torch.sigmoid(0.3 * (0.4 - u(s)))),
        ),
    ),
    "apo_zero_unpaired": (
        lambda m, s: m.apo_zero_unpaired(s, LABEL, beta=0.3),
        lambda s: torch.where(LABEL, 1 - torch.sigmoid(0.3 * u(s)), torch.sigmoid(0.3 * u(s))),
    ),
    "nash_md": (
        lambda m, s: m.nash_md(s, P, beta=0.3),
        lambda s: (
            0.3 * (ratio(s).detach() * s.logp * s.mask).sum(-1)
            - (P - 0.5) * (s.logp * s.mask).sum(-1)
        ),
    ),
}


def agree(name: str, module: Any = unary) -> None:
    loss, flat = LOSSES[name]
    scores = tracked(ragged(20, B))
    found, expected = loss(module, scores), flat(scores)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(*(gradients(x, [scores.logp])[0] for x in (found, expected)))


@pytest.mark.parametrize("name", LOSSES)
def test_each_loss_is_its_transcription(name: str) -> None:
    agree(name)


@pytest.mark.parametrize(
    ("name", "function", "old", "new"),
    [
        ("kto", "kto", "- baseline", "+ baseline"),
        ("kto", "kto", "undesirable * torch.sigmoid(z)", "undesirable * torch.sigmoid(-z)"),
        ("kto", "kto", "desirable * torch.sigmoid(-z), un", "torch.sigmoid(-z), un"),
        ("apo_zero_unpaired", "apo_zero_unpaired", "baseline=0.0", "baseline=0.1"),
        ("nash_md", "nash_md", ".detach()", ""),
        ("nash_md", "nash_md", "preference - 0.5", "preference"),
        ("nash_md", "nash_md", "beta * control -", "beta * control +"),
    ],
)
def test_every_slip_is_noticed(name: str, function: str, old: str, new: str) -> None:
    with pytest.raises(AssertionError):
        agree(name, faulty("unary", function, old, new))


@pytest.mark.parametrize("name", LOSSES)
def test_padding_order_and_empty_completions(name: str) -> None:
    scores = ragged(20, B)
    loss, _ = LOSSES[name]
    expected = loss(unary, scores)
    torch.testing.assert_close(loss(unary, padded(scores, 1, 2, math.nan)), expected)
    assert loss(unary, altered(scores, torch.zeros_like)).isfinite().all()


def test_kto_with_baseline_zero_is_apo() -> None:
    """Identity: KTO(z0=0)==apo_zero_unpaired."""
    scores = ragged(20, B)
    zero = torch.zeros(1).double()
    torch.testing.assert_close(
        kto(scores, LABEL, baseline=zero, beta=0.3), apo_zero_unpaired(scores, LABEL, beta=0.3)
    )


def test_kto_by_hand() -> None:
    # u = 2 and -1, z0 = 1, beta = 1: 1 - S(1) and 1 - S(2).
    scores = single(doubles(-1, -3), doubles(-3, -2))
    loss = kto(scores, torch.tensor([True, False]), baseline=1.0, beta=1.0)
    expected = doubles(1 / (1 + math.e), 1 / (1 + math.exp(2)))
    torch.testing.assert_close(loss, expected)


def test_the_gradient_of_kto_is_that_of_a_bounded_utility() -> None:
    """Its weight is beta S (1 - S), largest where u is the baseline, the same on both sides."""
    ref = torch.zeros(3).double()

    def loss(x: Tensor) -> Tensor:
        return kto(single(x, ref), torch.ones(3).bool(), baseline=0.5, beta=2.0)

    gradient = slope(loss, doubles(-0.5, 0.5, 1.5))
    s = 1 / (1 + math.exp(-2.0))
    torch.testing.assert_close(gradient, doubles(-2 * s * (1 - s), -0.5, -2 * s * (1 - s)))


def test_the_baseline_is_never_negative_and_passes_no_gradient() -> None:
    rising = tracked(single(doubles(-1, -2), doubles(-2, -4)))
    baseline = kto_baseline(rising)
    assert baseline.tolist() == [1.5] and not baseline.requires_grad
    falling = single(doubles(-2, -4), doubles(-1, -2))
    assert kto_baseline(falling).tolist() == [0.0]


def test_each_learner_has_its_own_baseline() -> None:
    ref = torch.zeros(2, 3).double()
    scores = single(torch.stack([doubles(1, 2, 3), doubles(4, 5, 6)]), ref)
    baseline = kto_baseline(scores)
    assert baseline.tolist() == [[2.0], [5.0]]
    loss = kto(scores, torch.ones(2, 3).bool(), baseline=baseline, beta=1.0)
    torch.testing.assert_close(loss[0], loss[1])


def test_nash_md_against_itself_follows_the_regulariser_alone() -> None:
    scores = tracked(ragged(20, B))
    even = nash_md(scores, torch.full((B,), 0.5).double(), beta=1.0)
    (gradient,) = gradients(even, [scores.logp])
    torch.testing.assert_close(gradient, ratio(scores).detach())
