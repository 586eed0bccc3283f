"""Pairs of segments: by hand, and what holds of any dataset."""

from typing import Any

import numpy as np
import pytest
import torch
from problems import walk

from offrl.datasets.offline import OfflineDataset
from offrl.datasets.pairs import SegmentPairs, segment_pairs
from offrl.errors import ConfigError, DataError
from offrl.feed import Feed


def episode(e: int, length: int) -> dict[str, Any]:
    """Observation 10 e + t, action (10 e + t) / 100, reward t + 1."""
    count = 10.0 * e + np.arange(length + 1, dtype=np.float32)[:, None]
    return {"obs": count, "action": count[:-1] / 100, "reward": np.arange(length) + 1.0}


def three() -> OfflineDataset:
    parts = [episode(1, 3), episode(2, 1), episode(3, 4)]
    return OfflineDataset.from_episodes(parts, name="three")


def test_by_hand() -> None:
    view = segment_pairs(three(), length=2)
    # Two segments of episode 1, one of 2, which is shorter, and three of 3.
    batch = view.sample(view.index)
    assert batch.obs[:, 0, :, 0].tolist() == [
        *([10, 11], [11, 12]),
        [20, 0],
        *([30, 31], [31, 32], [32, 33]),
    ]
    assert batch.real[:, 0].tolist() == [[1, 1], [1, 1], [1, 0], [1, 1], [1, 1], [1, 1]]
    middle, half = float(view.action_mid[0]), float(view.action_half[0])
    first = batch.action[0, 0, :, 0] * half + middle
    np.testing.assert_allclose(first, [0.10, 0.11], rtol=1e-5)
    assert float(batch.action[2, 0, 1, 0]) == 0
    # The second of a held-out pair is three places on.
    assert torch.equal(batch.obs[:3, 1], batch.obs[3:, 0])
    assert torch.equal(batch.obs[3:, 1], batch.obs[:3, 0])
    returns = np.array([3.0, 5, 1, 3, 5, 7])
    score = (returns - returns.mean()) / returns.std()
    np.testing.assert_allclose(batch.score[:, 0], score, rtol=1e-5)
    np.testing.assert_allclose(batch.score[:, 1], np.roll(score, 3), rtol=1e-5)
    assert torch.equal(batch.index, view.index)


def test_wrong_labels_exchange_the_scores_and_nothing_else() -> None:
    view = segment_pairs(three(), length=2)
    drawn = {"second": torch.tensor([4, 5]), "wrong": torch.tensor([False, True])}
    right = view.sample(view.index[:2], {**drawn, "wrong": torch.tensor([False, False])})
    batch = view.sample(view.index[:2], drawn)
    assert torch.equal(batch.obs, right.obs) and torch.equal(batch.action, right.action)
    assert torch.equal(batch.score[0], right.score[0])
    assert torch.equal(batch.score[1], right.score[1].flip(-1))


def test_observations_are_normalised_where_asked() -> None:
    data = walk()
    plain, scaled = (segment_pairs(data, length=3, normalize_obs=n) for n in (False, True))
    a, b = (v.sample(v.index[:5]).obs for v in (plain, scaled))
    torch.testing.assert_close(b, (a - scaled.obs_mean) / scaled.obs_std)
    assert plain.fingerprint != scaled.fingerprint


@pytest.mark.parametrize("flip", [0.0, 0.2, 0.5])
def test_the_share_of_wrong_labels_is_as_asked(flip: float) -> None:
    view = segment_pairs(walk(), length=4, flip=flip)
    drawn = view.draw(np.random.default_rng(0), (50, 100))
    assert abs(drawn["wrong"].mean() - flip) < 4 * np.sqrt(0.25 / 5000)
    # The second segment is any of all, apart from the label.
    assert drawn["second"].min() == 0 and drawn["second"].max() == len(view) - 1


def test_a_learner_is_given_the_same_pairs_alone_and_beside_others() -> None:
    view = segment_pairs(walk(), length=4, flip=0.3)
    alone, beside = Feed(view, (7,), 6, {}), Feed(view, (3, 7), 6, {})
    for step in (0, 1, 70):
        one, two = alone.at(step)[0], beside.at(step)[0]
        for name, value in vars(one).items():
            assert torch.equal(value, getattr(two, name)[1]), name
    # Update 70 asked for first, as after an interruption.
    assert torch.equal(Feed(view, (7,), 6, {}).at(70)[0].score, alone.at(70)[0].score)


def test_a_segment_never_leaves_its_episode() -> None:
    data = walk(episodes=5, length=7)
    view = segment_pairs(data, length=5)
    assert len(view) == 5 * 3
    batch = view.sample(view.index)
    assert bool(batch.real.all())
    rows = torch.from_numpy(data.rows)
    for k, row in enumerate(view.index.tolist()):
        assert torch.equal(batch.obs[k, 0], rows[row : row + 5, :3])
    returns = torch.stack([rows[r : r + 5, -3].sum() for r in view.index.tolist()])
    expected = (returns - returns.mean()) / returns.std(correction=0)
    torch.testing.assert_close(batch.score[:, 0], expected, rtol=1e-4, atol=1e-5)


def test_held_out_pairs_are_the_same_for_each_learner() -> None:
    view = segment_pairs(walk(), length=4, flip=0.5)
    alone = view.sample(view.index)
    stacked = view.sample(view.index.expand(3, -1))
    for name, value in vars(alone).items():
        assert all(torch.equal(one, value) for one in getattr(stacked, name)), name


def test_equal_returns_give_equal_scores() -> None:
    flat = [{**episode(e, 4), "reward": np.ones(4)} for e in range(3)]
    view = segment_pairs(OfflineDataset.from_episodes(flat, name="flat"), length=4)
    assert view.sample(view.index).score.abs().max() == 0


def test_float64_moves_what_is_a_number() -> None:
    view = segment_pairs(walk(), length=4).to(torch.float64)
    assert isinstance(view, SegmentPairs)
    batch = view.sample(view.index[:2])
    assert batch.score.dtype == batch.obs.dtype == batch.real.dtype == torch.float64
    assert batch.index.dtype == torch.int64


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"length": 0}, r"SegmentPairs\.length is 0"),
        ({"length": 2, "flip": 0.7}, r"SegmentPairs\.flip is 0\.7.*\[0, 0\.5\]"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        segment_pairs(three(), **settings)


def test_one_segment_is_no_pair() -> None:
    one = OfflineDataset.from_episodes([episode(1, 3)], name="one")
    with pytest.raises(DataError, match=r"one has one segment of 5 steps.*shorter segments"):
        segment_pairs(one, length=5)
