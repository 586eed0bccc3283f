"""Segments of episodes: by hand, and what holds of any dataset."""

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from offrl.datasets.offline import OfflineDataset
from offrl.datasets.segments import Segments, segments
from offrl.errors import ConfigError, DataError
from offrl.types import SegmentBatch


def episode(e: int, length: int, terminated: bool = True) -> dict[str, Any]:
    """Observation 10 e + t, action (10 e + t) / 100, reward t + 1."""
    count = 10.0 * e + np.arange(length + 1, dtype=np.float32)[:, None]
    ends = {"terminated": terminated, "truncated": not terminated}
    return {"obs": count, "action": count[:-1] / 100, "reward": np.arange(length) + 1.0, **ends}


def three(**fields: Any) -> OfflineDataset:
    parts = [episode(1, 3), episode(2, 1), episode(3, 4, terminated=False)]
    return OfflineDataset.from_episodes(parts, name="three", **fields)


def everything(view: Segments) -> SegmentBatch:
    return view.sample(view.index)


def plain(view: Segments, batch: SegmentBatch) -> dict[str, NDArray[Any]]:
    """In the environment's units, padding as it is."""
    reward = (batch.reward - view.reward_shift) / view.reward_scale * batch.real
    to_go = batch.to_go * view.return_std + view.return_mean
    found = {"reward": reward, "to_go": to_go, "obs": batch.obs[..., 0]}
    return {name: value.numpy().round(4) for name, value in found.items()}


def test_by_hand() -> None:
    view = segments(three(), past=1, future=2)
    batch = everything(view)
    found = plain(view, batch)
    # Eight steps: of episode 1 its three, of 2 its one, of 3 its four.
    assert found["obs"].tolist() == [
        *([0, 10, 11], [10, 11, 12], [11, 12, 0]),
        [0, 20, 0],
        *([0, 30, 31], [30, 31, 32], [31, 32, 33], [32, 33, 0]),
    ]
    np.testing.assert_array_equal(batch.real.numpy(), found["obs"] > 0)
    assert batch.next_obs[..., 0].tolist()[:4] == [
        [0, 11, 12],
        [11, 12, 13],
        [12, 13, 0],
        [0, 21, 0],
    ]
    assert found["reward"].tolist()[:4] == [[0, 1, 2], [1, 2, 3], [2, 3, 0], [0, 1, 0]]
    assert batch.time.tolist()[:3] == [[0, 0, 1], [0, 1, 2], [1, 2, 0]]
    assert found["to_go"].tolist() == [6, 5, 3, 1, 10, 9, 7, 4]
    middle = three().spec
    half = (middle.action_high[0] - middle.action_low[0]) / 2
    mid = (middle.action_high[0] + middle.action_low[0]) / 2
    torch.testing.assert_close(batch.action[2, 0, 0] * half + mid, torch.tensor(0.11))


def test_rewards_and_returns_are_standardised() -> None:
    view = segments(three(), past=0, future=1)
    batch = everything(view)
    for values in (batch.reward[:, 0], batch.to_go):
        assert float(values.mean()) == pytest.approx(0.0, abs=1e-6)
        assert float(values.std(correction=0)) == pytest.approx(1.0, abs=1e-6)
    constant = [{**episode(e, 2), "reward": np.ones(2)} for e in range(3)]
    batch = everything(segments(OfflineDataset.from_episodes(constant), past=0, future=2))
    assert (batch.reward == 0).all() and batch.to_go.isfinite().all()


def test_a_step_whose_successor_is_unknown_is_left_out() -> None:
    parts = [{**episode(1, 3, terminated=False)}, episode(2, 2)]
    parts[0]["obs"] = parts[0]["obs"][:-1]
    data = OfflineDataset.from_episodes(parts)
    batch = everything(segments(data, past=0, future=3))
    assert batch.obs[..., 0].tolist() == [[10, 11, 0], [11, 0, 0], [20, 21, 0], [21, 0, 0]]


def test_types_devices_and_stacks() -> None:
    view = segments(three(), past=2, future=2, normalize_obs=True).to(torch.float64)
    assert view.to_go.dtype == torch.float64 and view.first.dtype == torch.long
    rows = view.index.reshape(2, 4)
    stacked = view.sample(rows)
    for k in range(2):
        for name, value in vars(view.sample(rows[k])).items():
            assert torch.equal(getattr(stacked, name)[k], value), name
    assert segments(three(), past=2, future=3).fingerprint != view.fingerprint


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ConfigError, match="future is 0"):
        segments(three(), past=0, future=0)
    lone = {**episode(1, 1, terminated=False)}
    lone["obs"] = lone["obs"][:-1]
    with pytest.raises(DataError, match="no transition to learn from"):
        segments(OfflineDataset.from_episodes([lone]), past=0, future=1)
