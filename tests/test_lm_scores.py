"""Scores of sequences: sums over the mask alone, and one number per learner at the end."""

import dataclasses
import math
import subprocess
import sys

import pytest
import torch
from torch import Tensor

from offrl.errors import ConfigError
from offrl.lm.losses.scores import Scores, agg, implicit_rewards, log_ratio, masked, seq_score


def doubles(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def example() -> Scores:
    logp = torch.stack([doubles(-1, -2, -4), doubles(-3, -1, -9)])
    ref = torch.stack([doubles(-2, -2, -1), doubles(-4, -3, -1)])
    old = torch.full_like(ref, -1.0)
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
    return Scores(logp, ref, mask, old_logp=old)


def test_scores_by_hand() -> None:
    # L: -7 and -4. u: 1 + 0 - 3 = -2 and 1 + 2 = 3; per token -2 / 3 and 3 / 2.
    scores = example()
    torch.testing.assert_close(seq_score(scores, against="none"), doubles(-7, -4))
    torch.testing.assert_close(seq_score(scores), doubles(-2, 3))
    torch.testing.assert_close(seq_score(scores, "mean"), doubles(-2 / 3, 1.5))
    torch.testing.assert_close(seq_score(scores, against="old"), doubles(-4, -2))
    torch.testing.assert_close(seq_score(scores, link=torch.exp), doubles(-2, 3).exp())


@pytest.mark.parametrize("padding", [math.nan, math.inf, -math.inf, 7.0])
def test_what_stands_in_the_padding_counts_for_nothing(padding: float) -> None:
    scores = example()
    logp = scores.logp.clone()
    logp[1, 2] = padding
    logp.requires_grad_()
    padded = dataclasses.replace(scores, logp=logp)
    torch.testing.assert_close(seq_score(padded), seq_score(scores))
    (gradient,) = torch.autograd.grad(seq_score(padded).sum(), logp)
    torch.testing.assert_close(gradient, scores.mask.double())


def test_an_empty_completion_has_the_score_zero() -> None:
    scores = dataclasses.replace(example(), mask=torch.zeros(2, 3))
    for reduce in ("sum", "mean"):
        torch.testing.assert_close(seq_score(scores, reduce), doubles(0, 0))


def test_sums_are_taken_in_single_precision() -> None:
    logp = torch.full((1, 600), -1.0, dtype=torch.bfloat16)
    score = seq_score(Scores(logp, None, torch.ones(1, 600)), against="none")
    assert score.dtype == torch.float32  # in bfloat16 the sum sticks at 256
    assert score.item() == -600.0


def test_a_missing_anchor_is_named() -> None:
    with pytest.raises(ConfigError, match="compares with prev_logp, which is None"):
        log_ratio(example(), "prev")


def test_token_rewards_telescope() -> None:
    """Identity: token implicit rewards telescope to sequence log-ratio."""
    scores = example()
    rewards = implicit_rewards(scores, beta=0.3)
    torch.testing.assert_close(rewards.sum(-1), 0.3 * seq_score(scores))
    assert rewards[1, 2] == 0.0


def test_each_aggregation_by_hand() -> None:
    # Sequences of 1 and 3 tokens with sums 2 and 9.
    loss = torch.stack([doubles(2, 5, 5), doubles(2, 3, 4)])
    mask = torch.tensor([[1, 0, 0], [1, 1, 1]])
    assert agg(loss, mask, "sequence_mean").item() == pytest.approx((2 + 3) / 2)
    assert agg(loss, mask, "sequence_sum").item() == pytest.approx(11 / 2)
    assert agg(loss, mask, "token_mean").item() == pytest.approx(11 / 4)
    assert agg(loss, mask, "constant", max_length=10).item() == pytest.approx(11 / 20)


@pytest.mark.parametrize("mode", ["sequence_mean", "sequence_sum", "token_mean", "constant"])
def test_pieces_of_a_batch_add_up_with_the_total_of_all(mode: str) -> None:
    generator = torch.Generator().manual_seed(0)
    loss = torch.randn(6, 5, generator=generator).double()
    mask = (torch.rand(6, 5, generator=generator) < 0.6).long()
    total = float(mask.sum()) if mode == "token_mean" else 6.0
    whole = agg(loss, mask, mode, max_length=5)  # type: ignore[arg-type]
    pieces = [
        agg(loss[i : i + 2], mask[i : i + 2], mode, total=total, max_length=5)  # type: ignore[arg-type]
        for i in (0, 2, 4)
    ]
    torch.testing.assert_close(torch.stack(pieces).sum(), whole)


@pytest.mark.parametrize("mode", ["sequence_mean", "sequence_sum", "token_mean", "constant"])
def test_learners_stay_apart_and_nothing_divides_by_zero(mode: str) -> None:
    loss, mask = torch.ones(2, 3, 4), torch.ones(2, 3, 4)
    mask[1] = 0.0
    value = agg(loss, mask, mode)  # type: ignore[arg-type]
    assert value.shape == (2,)
    assert value[0] > 0 and value[1] == 0


def test_masking_is_of_the_gradient_as_well() -> None:
    x = doubles(1, math.nan).requires_grad_()
    (gradient,) = torch.autograd.grad(masked(x, torch.tensor([1, 0])).sum(), x)
    assert gradient.tolist() == [1.0, 0.0]


def test_the_losses_need_torch_alone() -> None:
    code = (
        "import sys, offrl.lm.losses, offrl.lm.losses.scores\n"
        "heavy = {'transformers', 'trl', 'peft', 'datasets', 'gymnasium', 'h5py', 'mujoco'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
