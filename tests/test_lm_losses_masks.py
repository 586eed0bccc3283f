"""Masks of tokens by hand, their counts, and the limits at which they do nothing."""

import math

import pytest
import torch
from torch import Tensor

from offrl.lm.losses import masks
from offrl.lm.losses.policy_gradient import clipped
from offrl.lm.losses.scores import agg


def doubles(values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def draws(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)).double()


LOGP = doubles([[-1.0, -3.0, 9.0], [-2.0, 9.0, 9.0]])
ADVANTAGE = doubles([[2.0], [-1.0]])
MASK = torch.tensor([[1, 1, 0], [1, 0, 0]])


def test_covariance_by_hand() -> None:
    # l: -1, -3, -2, mean -2; A: 2, 2, -1, mean 1. Products (1)(1), (-1)(1), (0)(-2).
    found = masks.covariance(LOGP, ADVANTAGE, MASK)
    torch.testing.assert_close(found, doubles([[1.0, -1.0, 0.0], [0.0, 0.0, 0.0]]))


def test_kl_cov_takes_the_greatest() -> None:
    assert masks.kl_cov(LOGP, ADVANTAGE, MASK).tolist() == [[1, 0, 0], [0, 0, 0]]
    assert masks.kl_cov(LOGP, ADVANTAGE, MASK, share=0.7).tolist() == [[1, 0, 0], [1, 0, 0]]
    assert not masks.kl_cov(LOGP, ADVANTAGE, MASK, share=0.0).any()


@pytest.mark.parametrize("share", [0.0, 0.01, 0.1])
def test_how_many_tokens_the_covariance_masks_choose(share: float) -> None:
    logp, advantage = -draws(40, 50), draws(40, 1, seed=1) - 0.5
    mask = (draws(40, 50, seed=2) < 0.8).int()
    expected = max(math.floor(share * int(mask.sum())), int(share > 0))
    chosen = masks.kl_cov(logp, advantage, mask, share=share)
    assert int(chosen.sum()) == expected
    assert not (chosen * (1 - mask)).any()
    kept = masks.clip_cov(
        logp, advantage, mask, draws(40, 50, seed=3), share=share, low=0.0, high=9.0
    )
    assert int(mask.sum() - kept.sum()) == expected


def test_clip_cov_drops_candidates_by_chance() -> None:
    cov = [[0.5, 2.0, 3.0, 6.0, 2.0]]
    # With A = +-1 of mean 0 and l of mean 0, cov = A l.
    logp = doubles([*cov, [0.5, 2.0, 3.0, 6.0, 2.0]])
    logp[1] *= -1
    advantage, mask = doubles([[1.0], [-1.0]]), torch.ones(2, 5)
    torch.testing.assert_close(masks.covariance(logp, advantage, mask)[:1], doubles(cov))
    counts = torch.zeros(2, 5).double()
    for seed in range(300):
        kept = masks.clip_cov(logp, advantage, mask, draws(2, 5, seed=seed), share=0.1)
        assert int(kept.sum()) == 9
        counts += 1 - kept
    assert not counts[:, [0, 3]].any()  # outside (1, 5)
    expected, spread = 50.0, math.sqrt(300 * 5 / 36)
    assert ((counts[:, [1, 2, 4]] - expected).abs() < 4 * spread).all()


def test_clip_cov_leaves_out_what_is_clipped_anyway() -> None:
    logp = doubles([[2.0, 2.0], [-2.0, -2.0]])
    advantage, mask = doubles([[1.0], [-1.0]]), torch.ones(2, 2)
    old = logp - doubles([[1.0, 0.0], [0.0, -1.0]])  # ratios e, 1; 1, 1/e
    dropped = torch.zeros(2, 2).double()
    for seed in range(50):
        uniform = draws(2, 2, seed=seed)
        kept = masks.clip_cov(logp, advantage, mask, uniform, old_logp=old, share=0.25)
        dropped += 1 - kept
    assert not dropped[0, 0] and not dropped[1, 1]
    assert dropped[0, 1] and dropped[1, 0]
    none = masks.clip_cov(logp, advantage, mask, draws(2, 2), share=0.0)
    whole = agg(clipped(logp - old, advantage), none, "token_mean")
    torch.testing.assert_close(whole, agg(clipped(logp - old, advantage), mask, "token_mean"))


def test_high_entropy_is_the_quantile_of_the_batch() -> None:
    entropy = doubles([[0.1, 0.9, math.nan], [0.5, 0.3, 0.7]])
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    # Sorted .1 .3 .5 .7 .9; the quantile at .6 lies at place 2.4: .58.
    found = masks.high_entropy(entropy, mask, share=0.4)
    assert found.tolist() == [[0, 1, 0], [0, 0, 1]]
    assert torch.equal(masks.high_entropy(entropy, mask, share=1.0), mask.double())


def test_lowest_probability_is_a_share_of_the_negatives() -> None:
    logp = doubles([[-9.0, -8.0], [-1.0, -5.0], [-3.0, -7.0]])
    advantage, mask = doubles([[1.0], [-1.0], [-1.0]]), torch.tensor([[1, 1], [1, 1], [1, 0]])
    one = masks.lowest_probability(logp, advantage, mask)
    assert one.tolist() == [[0, 0], [0, 1], [0, 0]]
    two = masks.lowest_probability(logp, advantage, mask, share=0.7)
    assert two.tolist() == [[0, 0], [0, 1], [1, 0]]
    assert not masks.lowest_probability(logp, advantage, mask, share=0.0).any()


def test_conflicts_by_hand() -> None:
    # Good: 1 2 3 9, bad: 1 2 5 9 and 1 4 9. First tokens 1, 2 are shared, the last 9 from the end.
    ids = torch.tensor([[1, 2, 3, 9], [1, 2, 5, 9], [1, 4, 9, 0]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 1, 0]])
    found = masks.gtpo_weights(ids, doubles([1.0, -1.0, -1.0]), mask)
    assert found.tolist() == [[2, 2, 1, 2], [0, 0, 1, 0], [0, 1, 0, 0]]


def test_no_conflict_where_all_agree_or_prompts_stand_before() -> None:
    ids = torch.tensor([[[7, 7, 1, 2], [7, 7, 1, 3]]])
    mask = torch.tensor([[[0, 0, 1, 1], [0, 0, 1, 1]]])
    good = masks.gtpo_weights(ids, doubles([[1.0, 2.0]]), mask)
    assert torch.equal(good, mask.double())  # REINFORCE
    both = masks.gtpo_weights(ids, doubles([[1.0, -2.0]]), mask)
    assert both.tolist() == [[[0, 0, 2, 1], [0, 0, 0, 1]]]
    neutral = masks.gtpo_weights(ids, doubles([[1.0, 0.0]]), mask)
    assert torch.equal(neutral, mask.double())


def test_a_run_ends_at_the_first_difference() -> None:
    ids = torch.tensor([[1, 2, 3, 4, 5], [1, 6, 3, 7, 8]])
    mask = torch.ones(2, 5, dtype=torch.int64)
    found = masks.gtpo_weights(ids, doubles([1.0, -1.0]), mask)
    assert found.tolist() == [[2, 1, 1, 1, 1], [0, 1, 1, 1, 1]]  # not the 3


def test_answers_of_high_entropy_are_dropped() -> None:
    entropy = doubles([[0.6, 0.7, math.nan], [0.8, 0.8, 0.8]])
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    assert masks.low_entropy_answers(entropy, mask).tolist() == [[1, 1, 0], [0, 0, 0]]
    assert torch.equal(masks.low_entropy_answers(entropy, mask, initial=0.9), mask.double())


def test_rolled_in_tokens_are_not_learned() -> None:
    mask = torch.tensor([[0, 1, 1, 1], [0, 1, 1, 0]])
    found = masks.own_tokens(mask, torch.tensor([2, 0]))
    assert found.tolist() == [[0, 0, 0, 1], [0, 1, 1, 0]]


def test_what_was_bad_and_is_over_is_left() -> None:
    old, logp = torch.zeros(3, 2).double(), doubles([[-1.0, -3.0], [-1.0, -3.0], [-0.1, 9.0]])
    mask = torch.tensor([[1, 1], [1, 1], [1, 0]])
    advantage = doubles([[-1.0], [1.0], [-1.0]])
    found = masks.near_policy(logp, old, advantage, mask, threshold=1.0)
    assert found.tolist() == [[0, 0], [1, 1], [1, 0]]


def test_learners_never_mix() -> None:
    logp, advantage, mask = -draws(2, 6, 7), draws(2, 6, 1, seed=1) - 0.5, torch.ones(2, 6, 7)
    uniform = draws(2, 6, 7, seed=2)
    stacked = (
        masks.kl_cov(logp, advantage, mask, share=0.1),
        masks.clip_cov(logp, advantage, mask, uniform, share=0.1, low=0.0),
        masks.high_entropy(-logp, mask),
        masks.lowest_probability(logp, advantage, mask, share=0.2),
    )
    for i in range(2):
        alone = (
            masks.kl_cov(logp[i], advantage[i], mask[i], share=0.1),
            masks.clip_cov(logp[i], advantage[i], mask[i], uniform[i], share=0.1, low=0.0),
            masks.high_entropy(-logp[i], mask[i]),
            masks.lowest_probability(logp[i], advantage[i], mask[i], share=0.2),
        )
        for both, one in zip(stacked, alone, strict=True):
            assert torch.equal(both[i], one)
