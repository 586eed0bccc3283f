"""D4RL's layout: reading, its quirks, our own transitions and `qlearning_dataset`'s."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dataset_files import Arrays, d4rl_arrays, memory_growth, write_d4rl

from offrl.datasets.flat import ArrayColumn, FlatColumns, read_flat
from offrl.datasets.loading import load_dataset
from offrl.errors import DataError

TERMINAL, TIMEOUT, BOTH, NONE = "terminal", "timeout", "both", "none"


def qlearning_transcription(arrays: Arrays, max_episode_steps: int) -> dict[str, np.ndarray]:
    """What d4rl.qlearning_dataset does, a step at a time, with terminate_on_end=False."""
    kept: dict[str, list[Any]] = {
        k: [] for k in ("observations", "actions", "next_observations", "rewards", "terminals")
    }
    step = 0
    for i in range(len(arrays["rewards"]) - 1):
        done = bool(arrays["terminals"][i])
        if "timeouts" in arrays:
            final = bool(arrays["timeouts"][i])
        else:
            final = step == max_episode_steps - 1
        if final:
            step = 0
            continue
        if done:
            step = 0
        kept["observations"].append(arrays["observations"][i].astype(np.float32))
        kept["next_observations"].append(arrays["observations"][i + 1].astype(np.float32))
        kept["actions"].append(arrays["actions"][i].astype(np.float32))
        kept["rewards"].append(arrays["rewards"][i].astype(np.float32))
        kept["terminals"].append(done)
        step += 1
    return {k: np.array(v) for k, v in kept.items()}


QUIRKS = {
    "timeouts alone": [(5, TIMEOUT), (5, TIMEOUT), (5, TIMEOUT)],
    "terminals and timeouts": [
        (4, TERMINAL),
        (7, TIMEOUT),
        (1, TERMINAL),
        (1, TERMINAL),
        (6, TIMEOUT),
    ],
    "terminal and timeout together": [(3, BOTH), (5, TERMINAL), (2, BOTH)],
    "a tail without a flag": [(4, TERMINAL), (6, TIMEOUT), (3, NONE)],
    "a terminal in the last row": [(4, TIMEOUT), (3, TERMINAL)],
    "an end that no flag marks": [(4, NONE), (5, TERMINAL), (3, NONE), (6, TIMEOUT)],
    "one-step episodes": [(1, TIMEOUT), (1, TERMINAL), (1, NONE), (2, TIMEOUT)],
}


@pytest.mark.parametrize("next_observations", [True, False])
@pytest.mark.parametrize("timeouts", [True, False])
@pytest.mark.parametrize("episodes", QUIRKS.values(), ids=QUIRKS.keys())
def test_d4rl_transitions_are_qlearning_datasets_to_the_byte(
    tmp_path: Path, episodes: list[tuple[int, str]], timeouts: bool, next_observations: bool
) -> None:
    arrays = d4rl_arrays(episodes, next_observations=next_observations)
    if not timeouts:
        del arrays["timeouts"]
    path = write_d4rl(tmp_path / "a.hdf5", arrays)
    ours = (
        load_dataset(path, time_limit=4).d4rl_transitions()
        if not timeouts
        else (load_dataset(path, time_limit="keep").d4rl_transitions())
    )
    if not timeouts:
        # Loading with a time limit turns terminals at that step into truncations, so D4RL is
        # given the same flags.
        arrays["terminals"] = _terminals_without(arrays["terminals"], ends_of(arrays), 4)
    theirs = qlearning_transcription(arrays, 4)
    assert ours.keys() == theirs.keys()
    for key, expected in theirs.items():
        assert ours[key].dtype == expected.dtype, key
        assert ours[key].tobytes() == expected.tobytes(), key


def ends_of(arrays: Arrays) -> np.ndarray:
    """Rows at which our reader ends an episode, in a file without time-outs and limit 4."""
    ends, step = [], 0
    obs, following = arrays["observations"], arrays.get("next_observations")
    for i, terminal in enumerate(arrays["terminals"]):
        step += 1
        limit = step == 4 and not terminal
        if terminal or limit:
            step = 0
        contradicted = (
            following is not None
            and i + 1 < len(obs)
            and np.linalg.norm(following[i].astype(float) - obs[i + 1]) > 1e-6
        )
        ends.append(terminal or limit or contradicted or i + 1 == len(obs))
    return np.array(ends)


def _terminals_without(terminals: np.ndarray, ends: np.ndarray, limit: int) -> np.ndarray:
    lengths = np.diff(np.flatnonzero(ends), prepend=-1)
    last = np.flatnonzero(ends)
    changed = terminals.copy()
    changed[last[lengths == limit]] = False
    return changed


def test_every_flag_and_neighbour_is_where_the_file_has_it(tmp_path: Path) -> None:
    arrays = d4rl_arrays([(4, TERMINAL), (3, TIMEOUT), (2, BOTH)])
    dataset = load_dataset(write_d4rl(tmp_path / "a.hdf5", arrays))
    assert dataset.lengths.tolist() == [4, 3, 2]
    assert dataset.problems == ()
    np.testing.assert_array_equal(dataset.obs, arrays["observations"])
    np.testing.assert_array_equal(dataset.action, arrays["actions"])
    np.testing.assert_array_equal(dataset.reward, arrays["rewards"])
    np.testing.assert_array_equal(dataset.terminated, arrays["terminals"])
    np.testing.assert_array_equal(dataset.truncated, arrays["timeouts"])
    np.testing.assert_array_equal(
        dataset.rows[dataset.step_rows + 1, :3], arrays["next_observations"]
    )
    assert len(dataset.transition_rows()) == 9  # time-limit rows too: their successor is known


def test_without_next_observations_a_cut_episodes_last_step_is_not_learnt_from(
    tmp_path: Path,
) -> None:
    arrays = d4rl_arrays([(4, TERMINAL), (3, TIMEOUT), (2, NONE)], next_observations=False)
    dataset = load_dataset(write_d4rl(tmp_path / "a.hdf5", arrays), time_limit="keep")
    assert not dataset.final_known.any()
    assert len(dataset.transition_rows()) == 4 + 2 + 1


def test_an_unmarked_end_is_split_where_next_observations_contradict(tmp_path: Path) -> None:
    arrays = d4rl_arrays([(4, NONE), (5, TERMINAL), (3, TIMEOUT)])
    dataset = load_dataset(write_d4rl(tmp_path / "a.hdf5", arrays))
    assert dataset.lengths.tolist() == [4, 5, 3]
    assert "1 ends of episodes are not marked" in dataset.problems[0]
    followed = dataset.rows[dataset.transition_rows() + 1, :3]
    np.testing.assert_array_equal(followed, arrays["next_observations"])


@pytest.mark.parametrize(("shift", "split"), [(0.0, 1), (9e-7, 1), (2e-6, 2)])
def test_the_tolerance_of_a_contradiction(tmp_path: Path, shift: float, split: int) -> None:
    arrays = d4rl_arrays([(6, TERMINAL)])
    arrays = {k: v.astype(np.float64) if v.dtype == np.float32 else v for k, v in arrays.items()}
    arrays["next_observations"][2, 1] += shift
    dataset = load_dataset(write_d4rl(tmp_path / "a.hdf5", arrays))
    assert dataset.num_episodes == split


def test_a_contradiction_between_two_blocks_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("offrl.datasets.flat.BLOCK_ROWS", 4)
    arrays = d4rl_arrays([(8, NONE), (7, TERMINAL), (4, TIMEOUT)])
    columns: dict[str, Any] = {k: ArrayColumn(k, v) for k, v in arrays.items()}
    episodes = read_flat(FlatColumns("memory", **columns))
    assert episodes.lengths.tolist() == [8, 7, 4]
    followed = np.delete(episodes.rows, episodes.starts, 0)[:, :3]
    np.testing.assert_array_equal(followed, arrays["next_observations"])
    steps = np.delete(episodes.rows, episodes.starts + episodes.lengths, 0)
    np.testing.assert_array_equal(steps[:, :3], arrays["observations"])
    np.testing.assert_array_equal(steps[:, -3], arrays["rewards"])


def test_a_small_contradiction_between_two_blocks_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("offrl.datasets.flat.BLOCK_ROWS", 4)
    arrays = d4rl_arrays([(12, TERMINAL)])
    arrays["next_observations"][3, 0] += 1e-3
    columns: dict[str, Any] = {k: ArrayColumn(k, v) for k, v in arrays.items()}
    assert read_flat(FlatColumns("memory", **columns)).lengths.tolist() == [4, 8]


def test_a_terminal_at_the_limit_of_a_file_without_timeouts_is_no_timeout() -> None:
    arrays = d4rl_arrays([(4, TERMINAL), (6, TERMINAL), (4, TERMINAL)])
    del arrays["timeouts"]
    columns: dict[str, Any] = {k: ArrayColumn(k, v) for k, v in arrays.items()}
    episodes = read_flat(FlatColumns("memory", **columns), 4)
    assert episodes.lengths.tolist() == [4, 4, 2, 4]
    last = episodes.rows[episodes.starts + episodes.lengths - 1]
    assert last[:, -2].tolist() == [1.0, 0.0, 1.0, 1.0]
    assert last[:, -1].tolist() == [0.0, 1.0, 0.0, 0.0]


def test_columns_with_a_trailing_one_and_float_flags(tmp_path: Path) -> None:
    arrays = d4rl_arrays([(4, TERMINAL), (3, TIMEOUT)])
    plain = load_dataset(write_d4rl(tmp_path / "plain.hdf5", arrays))
    for key in ("rewards", "terminals", "timeouts"):
        arrays[key] = arrays[key].astype(np.float32)[:, None]
    assert load_dataset(write_d4rl(tmp_path / "odd.hdf5", arrays)).fingerprint == plain.fingerprint


@pytest.mark.parametrize("chunks", [(1, 1), (3, 2), (50, 1), (50, 3)])
def test_compressed_chunks_of_any_shape(tmp_path: Path, chunks: tuple[int, int]) -> None:
    arrays = d4rl_arrays([(13, TERMINAL), (29, TIMEOUT), (8, TERMINAL)])
    plain = load_dataset(write_d4rl(tmp_path / "plain.hdf5", arrays))
    import h5py

    with h5py.File(tmp_path / "chunked.hdf5", "w") as file:
        for key, values in arrays.items():
            shape = (chunks[0], min(chunks[1], values.shape[1])) if values.ndim == 2 else chunks[:1]
            file.create_dataset(key, data=values, chunks=shape, compression="gzip")
    assert load_dataset(tmp_path / "chunked.hdf5").fingerprint == plain.fingerprint


def test_without_timeouts_episodes_end_at_the_environments_limit(tmp_path: Path) -> None:
    arrays = d4rl_arrays([(1000, TIMEOUT), (700, TERMINAL), (1000, TIMEOUT)], obs_dim=11, act_dim=3)
    del arrays["timeouts"], arrays["next_observations"]
    path = write_d4rl(tmp_path / "hopper_medium.hdf5", arrays)  # the file of hopper-medium-v0
    dataset = load_dataset(path)
    assert (dataset.env_id, dataset.time_limit) == ("Hopper-v4", 1000)
    assert dataset.lengths.tolist() == [1000, 700, 1000]
    assert dataset.truncated.nonzero()[0].tolist() == [999, 2699]


def test_a_file_that_marks_no_ends_says_so(tmp_path: Path) -> None:
    arrays = d4rl_arrays([(8, TIMEOUT)], next_observations=False)
    del arrays["timeouts"]
    dataset = load_dataset(write_d4rl(tmp_path / "a.hdf5", arrays))
    assert "no known time limit" in dataset.problems[0]
    with pytest.raises(DataError, match="--time-limit"):
        dataset.d4rl_transitions()


def test_d4rls_own_dictionary_is_read_like_its_file(tmp_path: Path) -> None:
    arrays = d4rl_arrays([(4, TERMINAL), (3, TIMEOUT)])
    from_file = load_dataset(write_d4rl(tmp_path / "a.hdf5", arrays))
    assert load_dataset(arrays).fingerprint == from_file.fingerprint
    with pytest.raises(DataError, match=r"no 'terminals', did you mean 'terminal'"):
        load_dataset({"terminal": arrays.pop("terminals"), **arrays})


def test_an_adroit_file_is_known_by_its_infos(tmp_path: Path) -> None:
    arrays = d4rl_arrays([(210, TIMEOUT), (250, TIMEOUT)], obs_dim=39, act_dim=28)
    infos = {"door_body_pos": np.zeros((460, 3), np.float32)}
    dataset = load_dataset(write_d4rl(tmp_path / "mine.hdf5", arrays, infos))
    assert (dataset.env_id, dataset.time_limit) == ("AdroitHandDoor-v1", 300)
    assert "action_bounds" not in dataset.provenance
    assert load_dataset(write_d4rl(tmp_path / "other.hdf5", arrays)).env_id is None


def test_the_rebuilt_door_demonstrations(outside_data: Path) -> None:
    dataset = load_dataset(outside_data / "adroit" / "door-human-rebuilt.hdf5")
    assert (dataset.num_episodes, dataset.num_steps) == (25, 6729)
    assert (dataset.env_id, dataset.time_limit) == ("AdroitHandDoor-v1", 300)
    assert dataset.reference is not None
    assert dataset.reference.score(dataset.returns().mean()) == pytest.approx(29.0, abs=0.05)


@pytest.mark.parametrize("compression", [None, pytest.param("gzip", marks=pytest.mark.slow)])
def test_peak_memory_is_within_a_fifth_of_the_raw_arrays(
    tmp_path: Path, compression: str | None
) -> None:
    arrays = d4rl_arrays([(1000, TIMEOUT)] * 800, obs_dim=17, act_dim=6, next_observations=False)
    raw = sum(a.nbytes for a in arrays.values())
    path = write_d4rl(tmp_path / "a.hdf5", arrays, compression=compression)
    small = write_d4rl(tmp_path / "small.hdf5", d4rl_arrays([(9, TIMEOUT)], obs_dim=17, act_dim=6))
    grown, steps = memory_growth(small, path)
    assert steps == 800_000
    assert grown <= 1.2 * raw
