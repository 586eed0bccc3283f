"""Datasets whose next observations are not those of the row after, and whose steps are marked."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from problems import OBS, walk

from offrl.datasets.loading import load_dataset
from offrl.datasets.minari import write_minari
from offrl.datasets.offline import OfflineDataset
from offrl.datasets.replay import transitions
from offrl.errors import DataError


def contradictory() -> OfflineDataset:
    """Two episodes of two steps; what followed step t is stated as 100 + t, marked where odd."""
    data = OfflineDataset.from_episodes(
        [
            {"obs": [[0.0], [1.0], [2.0]], "action": [[0.0], [0.0]], "reward": [1.0, 2.0]},
            {"obs": [[3.0], [4.0], [5.0]], "action": [[0.0], [0.0]], "reward": [3.0, 4.0]},
        ],
        name="contradictory",
    )
    following = np.zeros((6, 1), np.float32)
    following[[0, 1, 3, 4], 0] = 100, 101, 102, 103
    return replace(data, next_obs=following, marks={"odd": np.arange(6) % 2 == 1})


def test_what_is_said_to_follow_is_what_a_transition_sees() -> None:
    view = transitions(contradictory())
    batch = view.batch(view.index)
    assert batch.obs[:, 0].tolist() == [0.0, 1.0, 3.0, 4.0]
    assert batch.next_obs[:, 0].tolist() == [100.0, 101.0, 102.0, 103.0]
    assert batch.mask.tolist() == [1.0, 1.0, 1.0, 1.0]
    doubled = view.to(torch.float64).batch(view.index)
    assert doubled.next_obs[:, 0].tolist() == [100.0, 101.0, 102.0, 103.0]


def test_moments_with_the_observations_that_followed() -> None:
    # Of 0, 1, 3, 4: mean 2, variance (4 + 1 + 1 + 4) / 4 = 2.5. With 100 .. 103: mean
    # (8 + 406) / 8 = 51.75 and mean square (26 + 10000 + 10201 + 10404 + 10609) / 8 = 5155.
    data = contradictory()
    mean, std = data.obs_moments()
    assert mean[0] == 2.0 and std[0] == pytest.approx(np.sqrt(2.5), rel=1e-12)
    mean, std = data.obs_moments(with_next=True)
    assert mean[0] == 51.75 and std[0] == pytest.approx(np.sqrt(5155 - 51.75**2), rel=1e-9)
    seen = transitions(data, normalize_obs=True, normalize_with_next=True)
    assert seen.obs_mean.item() == pytest.approx(51.75)
    # Where the rows say what followed: 0 1 3 4 and 1 2 4 5.
    assert replace(data, next_obs=None).obs_moments(with_next=True)[0][0] == 2.5


def test_the_fingerprint_is_of_what_followed_too() -> None:
    data = contradictory()
    assert data.next_obs is not None
    assert replace(data, next_obs=data.next_obs + 1).fingerprint != data.fingerprint
    assert replace(data, next_obs=None).fingerprint != data.fingerprint
    assert replace(data, marks={}).fingerprint == data.fingerprint


def test_selected_episodes_keep_their_columns() -> None:
    chosen = contradictory().select([1], "the second")
    assert chosen.next_obs is not None and chosen.next_obs[:, 0].tolist() == [102.0, 103.0, 0.0]
    assert chosen.marks["odd"].tolist() == [True, False, True]
    assert chosen.obs[:, 0].tolist() == [3.0, 4.0]


def test_d4rls_arrays_have_what_followed() -> None:
    arrays = replace(contradictory(), time_limit=None).d4rl_transitions()
    # Two of the four steps are time-outs, which D4RL drops.
    assert arrays["next_observations"][:, 0].tolist() == [100.0, 102.0]


def test_columns_are_written_and_read_without_loss(tmp_path: Path) -> None:
    data = walk(episodes=5, length=4)
    rng = np.random.default_rng(0)
    steps = data.step_rows
    following = np.zeros((len(data.rows), OBS), np.float32)
    following[steps] = rng.normal(size=(len(steps), OBS))
    mark = np.zeros(len(data.rows), np.bool_)
    mark[steps] = rng.uniform(size=len(steps)) < 0.5
    data = replace(data, next_obs=following, marks={"corrupted_rewards": mark, "b": ~mark & mark})
    write_minari(data, tmp_path / "set")
    read = load_dataset(tmp_path / "set", time_limit="keep")
    assert read.name == "walk"
    assert read.fingerprint == data.fingerprint
    assert list(read.marks) == ["corrupted_rewards", "b"]
    for name, values in data.marks.items():
        np.testing.assert_array_equal(read.marks[name], values)


@pytest.mark.parametrize("what", ["next_obs", "marks"])
def test_a_column_of_another_length_is_refused(what: str) -> None:
    short = {"next_obs": np.zeros((3, 1), np.float32), "marks": {"odd": np.zeros(3, np.bool_)}}
    with pytest.raises(DataError, match=r"contradictory: (next_obs|odd) has shape .* instead of"):
        replace(contradictory(), **{what: short[what]})


def test_a_next_observation_that_is_not_finite_is_refused() -> None:
    following = np.full((6, 1), np.nan, np.float32)
    with pytest.raises(DataError, match="contradictory: next_obs has values that are not finite"):
        replace(contradictory(), next_obs=following)
