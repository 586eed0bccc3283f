"""Losses of tokens and ILQL's values, by hand, by expectation, and by gradient.

A docstring that begins with "Identity" names one of the numerical identities of the sheet that
lists these methods.
"""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lm_cases import draw, faulty, gradients, slope
from torch import Tensor

from offrl.divergences import kl_full
from offrl.lm.losses import tokens
from offrl.lm.losses.tokens import (
    asft,
    dft,
    ilql,
    ilql_logits,
    next_values,
    otr,
    sft,
    token_logps,
)
from offrl.losses import expectile_loss

B, T, V = 3, 5, 7
LOGITS, REF = draw(0, B, T, V), draw(1, B, T, V)
LABELS = torch.randint(V, (B, T), generator=torch.Generator().manual_seed(2))
MASK = torch.tensor([[0, 1, 1, 1, 1], [0, 1, 1, 0, 0], [0, 1, 0, 0, 0]])
LABELS = torch.where(MASK == 1, LABELS, -100)
ONE = torch.ones(1, 1)


def doubles(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def one(logits: Tensor, label: int) -> tuple[Tensor, Tensor, Tensor]:
    """A sequence of one token."""
    return logits[None, None], torch.tensor([[label]]), ONE


def nll(logits: Tensor) -> Tensor:
    flat = F.cross_entropy(logits.flatten(0, 1), LABELS.flatten(), reduction="none")
    return flat.view(B, T)


def test_supervised_learning_is_the_cross_entropy() -> None:
    torch.testing.assert_close(sft(LOGITS, LABELS, MASK), nll(LOGITS))
    assert not sft(LOGITS, LABELS, MASK)[MASK == 0].any()


def test_dft_by_hand() -> None:
    # Probabilities 3/4 and 1/4: -3/4 log(3/4).
    loss = dft(*one(doubles(math.log(3), 0), 0))
    assert loss.item() == pytest.approx(-0.75 * math.log(0.75))


def test_the_gradient_of_dft_is_that_of_the_probability() -> None:
    """Identity: DFT grad == -grad pi(y)."""
    z = draw(3, V)
    found = slope(lambda x: dft(*one(x, 4)), z)
    torch.testing.assert_close(found, slope(lambda x: -x.softmax(-1)[4], z))


def test_anchored_learning_without_its_anchor_is_dft() -> None:
    """Identity: ASFT(lam=0)==DFT."""
    free = asft(LOGITS, LABELS, MASK, REF, weight=0.0)
    torch.testing.assert_close(free, dft(LOGITS, LABELS, MASK))


def test_the_anchor_is_the_forward_kl_and_still_at_the_reference() -> None:
    z = LOGITS.clone().requires_grad_()
    anchor = asft(z, LABELS, MASK, REF, weight=0.3) - dft(z, LABELS, MASK)
    expected = 0.3 * MASK * (REF.softmax(-1) * (REF.log_softmax(-1) - z.log_softmax(-1))).sum(-1)
    torch.testing.assert_close(anchor, expected)
    torch.testing.assert_close(anchor, 0.3 * MASK * kl_full(z, REF, "forward"))
    here = REF.clone().requires_grad_()
    (gradient,) = gradients(asft(here, LABELS, MASK, REF) - dft(here, LABELS, MASK), [here])
    assert gradient.abs().max() < 1e-12


def test_one_token_rollouts_expect_dft() -> None:
    """Identity: OTR exact expectation == (1-c)*DFT."""
    z, c, label = draw(3, V), -0.1, 4

    def expected(x: Tensor) -> Tensor:
        law = x.softmax(-1).detach()
        each = [
            otr(*one(x, label), sampled=torch.tensor([[[a]]]), wrong_reward=c) for a in range(V)
        ]
        return (law * torch.stack(each).flatten()).sum()

    torch.testing.assert_close(
        slope(expected, z), (1 - c) * slope(lambda x: dft(*one(x, label)), z)
    )


def test_sampled_one_token_rollouts_estimate_it() -> None:
    """Within four standard errors of 20000 samples."""
    z, c, label, n = draw(3, V), -0.1, 4, 20000
    sampled = torch.multinomial(
        z.softmax(-1), n, replacement=True, generator=torch.Generator().manual_seed(0)
    )
    found = slope(lambda x: otr(*one(x, label), sampled=sampled[None, None], wrong_reward=c), z)
    exact = (1 - c) * slope(lambda x: dft(*one(x, label)), z)
    law = z.softmax(-1)
    reward = torch.where(torch.arange(V) == label, 1.0, c)
    each = -reward[:, None] * (torch.eye(V) - law)
    error = ((law[:, None] * each.square()).sum(0) - exact.square()).div(n).sqrt()
    assert ((found - exact).abs() < 4 * error).all()


def test_a_rollout_by_hand() -> None:
    # Probabilities 3/4, 1/4, label 0; samples 0, 0, 1: -(2 log(3/4) - log(1/4) / 2) / 3.
    loss = otr(
        *one(doubles(math.log(3), 0), 0), sampled=torch.tensor([[[0, 0, 1]]]), wrong_reward=-0.5
    )
    expected = -(2 * math.log(0.75) - 0.5 * math.log(0.25)) / 3
    assert loss.item() == pytest.approx(expected)


@pytest.mark.parametrize("loss", [sft, dft, lambda *x: asft(*x, REF)])
def test_what_stands_outside_the_mask_does_not_count(loss: Any) -> None:
    wild = torch.where(MASK[..., None] == 1, LOGITS, torch.full_like(LOGITS, 1e9)).requires_grad_()
    value = loss(wild, LABELS, MASK)
    torch.testing.assert_close(value, loss(LOGITS, LABELS, MASK))
    (gradient,) = gradients(value, [wild])
    assert gradient.isfinite().all() and not gradient[MASK == 0].any()


def test_half_precision_is_widened_before_the_softmax() -> None:
    coarse = LOGITS.bfloat16()
    assert token_logps(coarse, LABELS).dtype == torch.float32
    torch.testing.assert_close(sft(coarse, LABELS, MASK), sft(coarse.float(), LABELS, MASK))


# -- ILQL ----------------------------------------------------------------------------------------

Q, TARGET = draw(4, 2, B, T, V), draw(5, 2, B, T, V)
VALUE, REWARDS = draw(6, B, T), draw(7, B, T)
SETTINGS = {"expectile": 0.8, "gamma": 0.9, "cql_weight": 0.3, "temperature": 0.5}


def flat_ilql(q: Tensor, value: Tensor) -> Tensor:
    """Token by token, in plain loops."""
    loss = torch.zeros(B, T).double()
    for i in range(B):
        for t in range(T):
            if not MASK[i, t]:
                continue
            y = LABELS[i, t]
            inside = t + 1 < T and MASK[i, t + 1]
            after = value[i, t + 1].detach() if inside else torch.zeros(()).double()
            target = REWARDS[i, t] + 0.9 * after
            d = torch.minimum(TARGET[0, i, t, y], TARGET[1, i, t, y]) - value[i, t]
            loss[i, t] += (0.8 if d >= 0 else 0.2) * d**2
            for head in q:
                loss[i, t] += (head[i, t, y] - target) ** 2
                loss[i, t] += 0.3 * F.cross_entropy(head[i, t] / 0.5, y)
    return loss


def ilql_agrees(module: Any = tokens) -> None:
    q, value = Q.clone().requires_grad_(), VALUE.clone().requires_grad_()
    found = module.ilql(q, value, LABELS, MASK, REWARDS, target_q=TARGET, **SETTINGS)
    expected = flat_ilql(q, value)
    torch.testing.assert_close(found, expected)
    for a, b in zip(gradients(found, [q, value]), gradients(expected, [q, value]), strict=True):
        torch.testing.assert_close(a, b)


def test_ilql_is_its_transcription() -> None:
    ilql_agrees()


@pytest.mark.parametrize(
    ("function", "old", "new"),
    [
        ("ilql", "gamma).detach()", "gamma)"),
        ("ilql", ".amin(0).detach()", ".amax(0).detach()"),
        ("ilql", "cql_weight / temperature", "cql_weight"),
        ("ilql", "- value, expectile", "- value, 1.0 - expectile"),
        ("ilql", "conservative.sum(0)", "conservative.mean(0)"),
        ("next_values", "[..., 1:]", "[..., :-1]"),
        ("next_values", "masked(value, mask)", "value"),
    ],
)
def test_every_slip_in_ilql_is_noticed(function: str, old: str, new: str) -> None:
    with pytest.raises(AssertionError):
        ilql_agrees(faulty("tokens", function, old, new))


@pytest.mark.parametrize(
    ("function", "old", "new"),
    [
        ("dft", ".detach()", ""),
        ("asft", '"forward"', '"reverse"'),
        ("asft", "+ weight * anchor", "- weight * anchor"),
        ("otr", "], 1.0)", "], 0.5)"),
        ("otr", "masked(-(", "masked(("),
    ],
)
def test_every_slip_in_tokens_is_noticed(function: str, old: str, new: str) -> None:
    z = draw(3, V)
    wrong, right = (getattr(m, function) for m in (faulty("tokens", function, old, new), tokens))

    def of(loss: Any) -> Tensor:
        def call(x: Tensor) -> Tensor:
            if function == "otr":
                sampled = torch.tensor([[[4, 1]]])
                return loss(*one(x, 4), sampled=sampled, wrong_reward=-0.5)
            return loss(*one(x, 4), *([REF[:1, :1]] if function == "asft" else []))

        return slope(call, z)

    assert (of(wrong) - of(right)).abs().max() > 1e-3


def test_next_values_by_hand() -> None:
    value, mask = doubles(1, 2, 3, 4)[None], torch.tensor([[0, 1, 1, 0]])
    assert next_values(value, mask).tolist() == [[2.0, 3.0, 0.0, 0.0]]


def test_the_middle_expectile_is_half_the_square() -> None:
    """Identity: ILQL expectile tau=.5 == MSE/2."""
    q, v = draw(8, 6), doubles(0.3)
    torch.testing.assert_close(
        slope(lambda x: expectile_loss(q - x, 0.5), v), slope(lambda x: 0.5 * (q - x).square(), v)
    )
    settings = SETTINGS | {"cql_weight": 0.0, "expectile": 0.5}
    loss = ilql(Q, VALUE, LABELS, MASK, REWARDS, target_q=TARGET, **settings)
    picked = LABELS.clamp(min=0)[None, ..., None].expand(2, -1, -1, -1)
    d = TARGET.gather(-1, picked)[..., 0].amin(0) - VALUE
    backup = REWARDS + 0.9 * next_values(VALUE, MASK)
    bellman = (Q.gather(-1, picked)[..., 0] - backup).square().sum(0)
    torch.testing.assert_close(loss, MASK * (bellman + 0.5 * d.square()))


def test_decoding_with_no_values_is_cloning() -> None:
    logits, q, value = LOGITS[0, 0], Q[:, 0, 0], VALUE[0, 0]
    torch.testing.assert_close(ilql_logits(logits, q, value, beta=0.0), logits.log_softmax(-1))
    tilted = ilql_logits(logits, q, value, beta=2.0)
    torch.testing.assert_close(tilted - logits.log_softmax(-1), 2.0 * (q.amin(0) - value))
