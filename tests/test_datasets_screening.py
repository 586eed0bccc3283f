"""Actions out of bounds, and terminals that stand for the time limit."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dataset_files import d4rl_arrays, write_d4rl

from offrl.datasets.loading import load_dataset
from offrl.datasets.minari import write_minari
from offrl.errors import ConfigError, DataError


def _out_of_bounds(tmp_path: Path) -> Path:
    arrays = d4rl_arrays([(5, "terminal"), (6, "timeout")])
    arrays["actions"][2, 1] = -5.25
    arrays["actions"][7] = (1.5, 3.5)
    return write_d4rl(tmp_path / "loud.hdf5", arrays)


def test_actions_out_of_bounds_are_refused_with_count_range_and_remedy(tmp_path: Path) -> None:
    with pytest.raises(DataError) as raised:
        load_dataset(_out_of_bounds(tmp_path))
    message = str(raised.value)
    for part in ("loud", "2 of 11 actions", "[-1, 1]", "-5.25 to 3.5", "--out-of-bounds clip|keep"):
        assert part in message


@pytest.mark.parametrize(
    ("treatment", "expected", "record"),
    [("clip", [[-1.0], [1.0, 1.0]], "clipped"), ("keep", [[-5.25], [1.5, 3.5]], "kept")],
)
def test_they_are_clipped_or_kept_and_that_is_recorded(
    tmp_path: Path, treatment: Any, expected: list[list[float]], record: str
) -> None:
    dataset = load_dataset(_out_of_bounds(tmp_path), out_of_bounds=treatment)
    assert dataset.action[2, 1:].tolist() == expected[0]
    assert dataset.action[7].tolist() == expected[1]
    assert dataset.provenance["out_of_bounds"] == {
        "treatment": record,
        "steps": 2,
        "least": -5.25,
        "greatest": 3.5,
    }
    assert any(record in problem for problem in dataset.problems)
    assert dataset.rows[dataset.starts + dataset.lengths, 3:5].max() == 0.0


def test_stated_bounds_replace_the_assumed_ones(tmp_path: Path) -> None:
    dataset = load_dataset(_out_of_bounds(tmp_path), action_bounds=(-6.0, 4.0))
    assert dataset.spec.action_low == (-6.0, -6.0)
    assert "out_of_bounds" not in dataset.provenance


def test_rounding_at_a_bound_is_no_fault(tmp_path: Path) -> None:
    arrays = d4rl_arrays([(5, "terminal")])
    arrays["actions"][0] = 1.0 + 1e-6
    assert load_dataset(write_d4rl(tmp_path / "a.hdf5", arrays)).num_steps == 5


def test_a_final_rows_zeros_are_no_action(tmp_path: Path) -> None:
    arrays = d4rl_arrays([(5, "terminal")])
    arrays["actions"] += 3.0
    path = write_d4rl(tmp_path / "a.hdf5", arrays)
    assert "out_of_bounds" not in load_dataset(path, action_bounds=(2.0, 4.0)).provenance
    clipped = load_dataset(path, action_bounds=(2.9, 3.1), out_of_bounds="clip")
    assert 2.9 <= round(float(clipped.action.min()), 6)
    assert clipped.rows[-1, 3:5].tolist() == [0.0, 0.0]


def test_a_kept_fault_is_not_asked_about_again_after_import(tmp_path: Path) -> None:
    arrays = d4rl_arrays([(5, "terminal"), (5, "terminal")])
    arrays["actions"][2, 1] = -5.25
    path = write_d4rl(tmp_path / "a.hdf5", arrays)
    dataset = load_dataset(path, out_of_bounds="keep", time_limit="keep")
    again = load_dataset(write_minari(dataset, tmp_path / "imported"))
    assert again.fingerprint == dataset.fingerprint
    assert again.provenance["out_of_bounds"] == dataset.provenance["out_of_bounds"]
    assert again.problems == dataset.problems


def _limited(tmp_path: Path, episodes: list[tuple[int, str]]) -> Path:
    return write_d4rl(tmp_path / "limited.hdf5", d4rl_arrays(episodes))


def test_terminals_that_all_fall_on_one_length_are_refused(tmp_path: Path) -> None:
    path = _limited(tmp_path, [(6, "terminal")] * 3)
    with pytest.raises(DataError, match=r"3 of the 3 terminals are at step 6.*--time-limit 6"):
        load_dataset(path)
    changed = load_dataset(path, time_limit=6)
    assert not changed.terminated.any()
    assert changed.truncated.nonzero()[0].tolist() == [5, 11, 17]
    assert changed.time_limit == 6
    assert changed.provenance["terminals_at_time_limit"] == {
        "treatment": "made truncations",
        "episodes": 3,
    }
    kept = load_dataset(path, time_limit="keep")
    assert kept.terminated.sum() == 3
    assert kept.provenance["terminals_at_time_limit"]["treatment"] == "kept"


@pytest.mark.parametrize(
    "episodes",
    [
        [(6, "terminal"), (5, "terminal"), (6, "terminal")],  # ends differ: they are real
        [(6, "terminal"), (9, "timeout"), (6, "terminal")],  # shorter than a time-out
        [(6, "terminal"), (6, "timeout")],  # one terminal says nothing
        [(1, "terminal")] * 5,  # one-step problems end at once
    ],
)
def test_terminals_that_may_be_real_are_read(tmp_path: Path, episodes: Any) -> None:
    dataset = load_dataset(_limited(tmp_path, episodes))
    assert dataset.terminated.sum() == sum(end == "terminal" for _, end in episodes)


def test_the_known_limit_of_an_environment_decides(tmp_path: Path) -> None:
    many = [(1000, "terminal")] + [(40, "timeout")] * 2
    arrays = d4rl_arrays(many, obs_dim=11, act_dim=3)
    path = write_d4rl(tmp_path / "hopper_medium-v2.hdf5", arrays)
    with pytest.raises(DataError, match=r"1 of the 1 terminals are at step 1000, Hopper-v4's"):
        load_dataset(path)
    two_of_three = [*many, (1000, "terminal"), (30, "terminal")]
    write_d4rl(path, d4rl_arrays(two_of_three, obs_dim=11, act_dim=3))
    with pytest.raises(DataError, match="2 of the 3 terminals"):
        load_dataset(path)
    arrays = d4rl_arrays([*many, (30, "terminal")], obs_dim=11, act_dim=3)
    dataset = load_dataset(write_d4rl(path, arrays))
    assert "1 of the 2 terminals" in dataset.problems[0]
    assert dataset.terminated.sum() == 2


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"out_of_bounds": "crop"}, "refuse, clip or keep"),
        ({"time_limit": 0}, "at least 1"),
    ],
)
def test_wrong_options(
    tmp_path: Path, option: dict[str, Any], message: str, unchecked: None
) -> None:
    with pytest.raises(ConfigError, match=message):
        load_dataset(_limited(tmp_path, [(3, "timeout")]), **option)


def test_the_public_experts_that_show_both_faults(outside_data: Path) -> None:
    path = outside_data / "mujoco_v4" / "hopper-expert.npz"
    with pytest.raises(DataError, match=r"1,389 of 2,000 actions \(69.5 %\)"):
        load_dataset(path)
    with pytest.raises(DataError, match="2 of the 2 terminals are at step 1000"):
        load_dataset(path, out_of_bounds="keep")
    dataset = load_dataset(path, out_of_bounds="keep", time_limit=1000)
    assert (dataset.num_episodes, int(dataset.truncated.sum())) == (2, 2)
    assert len(dataset.transition_rows()) == 2000
    np.testing.assert_allclose(dataset.returns(), 3717.5, atol=1.0)
