"""Sequences with returns to go: by hand, and what holds of any dataset."""

from typing import Any

import numpy as np
import pytest
import torch

from offrl.datasets.offline import OfflineDataset, Spec
from offrl.datasets.sequences import Sequences, returns_to_go, sequences
from offrl.errors import ConfigError
from offrl.feed import Feed
from offrl.streams import BLOCK
from offrl.types import SequenceBatch


def episode(e: int, length: int) -> dict[str, Any]:
    """Observation 10 e + t, action (10 e + t) / 100, reward t + 1."""
    count = 10.0 * e + np.arange(length + 1, dtype=np.float32)[:, None]
    return {"obs": count, "action": count[:-1] / 100, "reward": np.arange(length) + 1.0}


def three() -> OfflineDataset:
    parts = [episode(1, 3), episode(2, 1), episode(3, 4)]
    return OfflineDataset.from_episodes(parts, name="three")


def many(count: int = 12) -> OfflineDataset:
    rng = np.random.default_rng(0)
    parts = [episode(e, int(n)) for e, n in enumerate(rng.integers(1, 10, count))]
    return OfflineDataset.from_episodes(parts)


def everything(view: Sequences) -> SequenceBatch:
    return view.sample(view.index)


def test_unless_told_the_largest_return_is_the_scale() -> None:
    # Returns 6, 1 and 10; then their negatives; then none.
    given = sequences(three(), length=3, return_scale=10.0)
    view = sequences(three(), length=3, return_scale=None)
    assert torch.equal(everything(view).to_go, everything(given).to_go)
    assert view.fingerprint == given.fingerprint
    for factor, scale in ((-2.0, 20.0), (0.0, 1.0)):
        parts = [episode(1, 3), episode(2, 1), episode(3, 4)]
        parts = [{**part, "reward": factor * part["reward"]} for part in parts]
        view = sequences(OfflineDataset.from_episodes(parts), length=3, return_scale=None)
        assert view.reward_scale == 1.0 / scale


def test_by_hand() -> None:
    batch = everything(sequences(three(), length=3, return_scale=2.0))
    # Rewards 1 2 3, then 1, then 1 2 3 4: returns to go 6 5 3, then 1, then 10 9 7 4; halved.
    assert batch.to_go.tolist() == [
        *[[3.0, 2.5, 1.5], [0, 2.5, 1.5], [0, 0, 1.5]],
        [0, 0, 0.5],
        *[[5.0, 4.5, 3.5], [4.5, 3.5, 2.0], [0, 3.5, 2.0], [0, 0, 2.0]],
    ]
    assert batch.obs[..., 0].tolist() == [
        *[[10, 11, 12], [0, 11, 12], [0, 0, 12]],
        [0, 0, 20],
        *[[30, 31, 32], [31, 32, 33], [0, 32, 33], [0, 0, 33]],
    ]
    torch.testing.assert_close(batch.action, batch.obs / 100)
    assert batch.time.tolist() == [
        *[[0, 1, 2], [0, 1, 2], [0, 0, 2]],
        [0, 0, 0],
        *[[0, 1, 2], [1, 2, 3], [0, 2, 3], [0, 0, 3]],
    ]
    full, two, one = [1, 1, 1], [0, 1, 1], [0, 0, 1]
    assert batch.real.tolist() == [full, two, one, one, full, full, two, one]


def test_returns_to_go_of_every_row() -> None:
    data = many()
    found = returns_to_go(data)
    for e in range(data.num_episodes):
        start, length = int(data.starts[e]), int(data.lengths[e])
        rewards = data.episode(e)["reward"].astype(np.float64)
        np.testing.assert_allclose(
            found[start : start + length], rewards[::-1].cumsum()[::-1], rtol=0, atol=1e-12
        )
        assert found[start + length] == 0.0
    assert sequences(data, length=2).best_return == data.returns().max()


def test_sequences_begin_at_every_step_and_stay_in_their_episode() -> None:
    data = many()
    view = sequences(data, length=4)
    assert view.index.tolist() == data.step_rows.tolist()
    batch = everything(view)
    remaining = np.concatenate([np.arange(n, 0, -1) for n in data.lengths])
    assert batch.real.sum(-1).int().tolist() == np.minimum(remaining, 4).tolist()
    number = (batch.obs[..., 0] // 10).long()
    assert (number[batch.real > 0] == number[:, -1:].expand(-1, 4)[batch.real > 0]).all()
    assert (batch.obs[..., 0] % 10)[batch.real > 0].tolist() == (
        batch.time[batch.real > 0].tolist()
    )
    # An episode is drawn in proportion to its length.
    drawn = Feed(view, (0,), 500, {}).at(0)[0]
    share = np.bincount(view.sample(drawn.index).obs[:, -1, 0].long() // 10, minlength=12) / 500
    np.testing.assert_allclose(share, data.lengths / data.num_steps, atol=0.05)


def test_padding_is_zero_after_the_maps_and_the_rest_is_standardised() -> None:
    data = many()
    spec = Spec((-np.inf,), (np.inf,), (0.0,), (2.0,))
    data = OfflineDataset(data.rows, data.starts, data.lengths, data.final_known, spec)
    batch = everything(sequences(data, length=5, normalize_obs=True))
    missing = batch.real == 0
    assert missing.any()
    for field in ("to_go", "obs", "action", "time"):
        assert not getattr(batch, field)[missing].any(), field
    single = everything(sequences(data, length=1, normalize_obs=True))
    seen = single.obs[:, 0, 0]
    torch.testing.assert_close(seen.mean(), torch.tensor(0.0), rtol=0, atol=1e-5)
    torch.testing.assert_close(seen.std(unbiased=False), torch.tensor(1.0), rtol=0, atol=1e-5)
    # Actions from [0, 2] to [-1, 1].
    np.testing.assert_allclose(single.action[:, 0], data.action - 1.0, rtol=0, atol=1e-6)


def test_integers_stay_integers_and_everything_else_is_moved() -> None:
    view = sequences(three(), length=2).to(torch.float64)
    batch = everything(view)
    assert batch.time.dtype == batch.index.dtype == torch.long
    for field in ("to_go", "obs", "action", "real"):
        assert getattr(batch, field).dtype == torch.float64, field
    lower = batch.to(torch.float32)
    assert lower.to_go.dtype == torch.float32 and lower.time.dtype == torch.long
    assert view.to(torch.device("cpu")).first.device.type == "cpu"


def test_learners_and_blocks_lead() -> None:
    feed = Feed(sequences(many(), length=3), (0, 1), 4, {})
    batch, noise = feed.at(BLOCK + 3)
    assert isinstance(batch, SequenceBatch) and noise == {}
    assert batch.obs.shape == (2, 4, 3, 1) and batch.to_go.shape == batch.time.shape == (2, 4, 3)


def test_what_is_seen_is_part_of_the_fingerprint() -> None:
    views = [
        sequences(three(), length=2),
        sequences(three(), length=3),
        sequences(three(), length=2, return_scale=10.0),
        sequences(three(), length=2, normalize_obs=True),
        sequences(many(), length=2),
    ]
    assert len({view.fingerprint for view in views}) == len(views)


def test_a_length_below_one_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"Sequences.length is 0; it must be in \[1, inf\)"):
        sequences(three(), length=0)
