"""Columns by stated names, in npz and HDF5; and what is no such file."""

import pickle
import zipfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from dataset_files import Arrays, d4rl_arrays, write_d4rl

from offrl.datasets.columns import Columns
from offrl.datasets.loading import load_dataset
from offrl.errors import DataError

NAMES = {
    "observations": "obs",
    "actions": "act",
    "rewards": "rew",
    "terminals": "dead",
    "timeouts": "cut",
    "next_observations": "then",
}
EPISODES = [(4, "terminal"), (3, "timeout"), (5, "terminal")]


def _save(path: Path, arrays: Arrays, compressed: bool = False) -> Path:
    if path.suffix == ".npz":
        (np.savez_compressed if compressed else np.savez)(path, **arrays)  # type: ignore[arg-type]
        return path
    return write_d4rl(path, arrays)


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("suffix", [".npz", ".h5"])
def test_stated_names_give_the_same_dataset(tmp_path: Path, suffix: str, compressed: bool) -> None:
    arrays = d4rl_arrays(EPISODES)
    expected = load_dataset(write_d4rl(tmp_path / "d4rl.hdf5", arrays))
    renamed = {NAMES[k]: v for k, v in arrays.items()}
    path = _save(tmp_path / f"own{suffix}", renamed, compressed)
    dataset = load_dataset(path, columns=Columns(**NAMES))
    assert dataset.fingerprint == expected.fingerprint
    assert dataset.provenance["columns"] == NAMES


def test_d4rls_names_need_not_be_stated_in_npz(tmp_path: Path) -> None:
    arrays = d4rl_arrays(EPISODES)
    expected = load_dataset(write_d4rl(tmp_path / "d4rl.hdf5", arrays))
    assert load_dataset(_save(tmp_path / "a.npz", arrays)).fingerprint == expected.fingerprint


def test_a_path_inside_an_hdf5_file(tmp_path: Path) -> None:
    arrays = d4rl_arrays(EPISODES)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        for key, values in arrays.items():
            file[f"run/0/{key}"] = values
    columns = Columns(*(f"run/0/{k}" for k in ("observations", "actions", "rewards", "terminals")))
    assert load_dataset(tmp_path / "a.h5", columns=columns).num_steps == 12
    with pytest.raises(DataError, match=r"no column 'run/0/action', did you mean 'run/0/actions'"):
        load_dataset(
            tmp_path / "a.h5",
            columns=Columns(
                "run/0/observations", "run/0/action", "run/0/rewards", "run/0/terminals"
            ),
        )


def test_episode_starts(tmp_path: Path) -> None:
    arrays = d4rl_arrays(EPISODES)
    starts = np.zeros(12, bool)
    starts[[0, 4, 7]] = True
    path = _save(tmp_path / "a.npz", {**arrays, "episode_starts": starts})
    columns = Columns("observations", "actions", "rewards", episode_starts="episode_starts")
    dataset = load_dataset(path, columns=columns)
    assert dataset.lengths.tolist() == [4, 3, 5]
    assert not dataset.terminated.any()
    assert dataset.truncated.nonzero()[0].tolist() == [3, 6, 11]
    assert "truncation" in dataset.provenance["ends"]


@pytest.mark.parametrize("suffix", [".npz", ".h5"])
def test_padded_columns(tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("offrl.datasets.flat.BLOCK_ROWS", 5)
    monkeypatch.setattr("offrl.datasets.columns.BLOCK_BYTES", 300)
    lengths = np.array([4, 1, 7, 3], np.int32)
    rng = np.random.default_rng(0)
    obs, act = rng.normal(size=(4, 7, 3)), rng.uniform(-1, 1, (4, 7, 2))
    rew = rng.normal(size=(4, 7))
    for e, length in enumerate(lengths):
        obs[e, length:] = np.nan  # padding is never looked at
    path = _save(tmp_path / f"a{suffix}", {"o": obs, "a": act, "r": rew, "n": lengths})
    dataset = load_dataset(path, columns=Columns("o", "a", "r", lengths="n"))
    assert dataset.lengths.tolist() == [4, 1, 7, 3]
    for e, length in enumerate(lengths):
        np.testing.assert_array_equal(dataset.episode(e)["obs"], obs[e, :length].astype(np.float32))
        np.testing.assert_array_equal(
            dataset.episode(e)["reward"], rew[e, :length].astype(np.float32)
        )


def test_discrete_actions_are_whole_numbers_in_one_column(tmp_path: Path) -> None:
    arrays = d4rl_arrays(EPISODES) | {"actions": np.arange(12) % 3}
    dataset = load_dataset(_save(tmp_path / "a.npz", arrays))
    assert (dataset.spec.action_kind, len(dataset.spec.action_low)) == ("discrete", 3)
    assert dataset.action.ravel().tolist() == (np.arange(12) % 3).tolist()
    cartpole = load_dataset(
        _save(tmp_path / "b.npz", arrays | {"actions": np.arange(12) % 2}), env_id="CartPole-v1"
    )
    assert (len(cartpole.spec.action_low), cartpole.time_limit) == (2, 500)
    with pytest.raises(DataError, match=r"outside \{0, \.\.\., 1\}"):
        load_dataset(tmp_path / "a.npz", env_id="CartPole-v1")


def test_whole_numbers_with_bounds_are_those_of_one_actuator(tmp_path: Path) -> None:
    actions = np.arange(12) * 20 - 120
    path = _save(tmp_path / "a.npz", d4rl_arrays(EPISODES) | {"actions": actions})
    with pytest.raises(DataError, match=r"outside \{0, \.\.\., 100\}"):
        load_dataset(path)
    dataset = load_dataset(path, action_bounds=(-255.0, 255.0))
    assert dataset.spec.action_kind == "box"
    assert (dataset.spec.action_low, dataset.spec.action_high) == ((-255.0,), (255.0,))
    assert dataset.action.tolist() == actions[:, None].tolist()


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "unequal": ({"rewards": np.zeros(9)}, "unequal length: .*actions 12, rewards 9"),
    "flat observations": ({"observations": np.zeros(12)}, r"shape \(12,\); expected \(steps, comp"),
    "wide rewards": ({"rewards": np.zeros((12, 2))}, r"'rewards' has shape \(12, 2\)"),
    "text": ({"rewards": np.array(["a"] * 12)}, "type <U1; expected numbers"),
    "complex": ({"actions": np.zeros((12, 2), complex)}, "complex128; expected numbers"),
    "other next": ({"next_observations": np.zeros((12, 4))}, "'next_observations' has shape"),
    "odd flags": (
        {"terminals": np.repeat([0.0, 0.5], [7, 5])},
        "column 'terminals' has 0.5 in row 7; flags are 0 or 1",
    ),
    "images": ({"observations": np.zeros((12, 8, 8, 3))}, "images are not supported"),
}


@pytest.mark.parametrize(("change", "message"), BAD.values(), ids=BAD.keys())
def test_columns_that_do_not_fit(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    arrays = d4rl_arrays(EPISODES)
    path = _save(tmp_path / "a.npz", {**arrays, **change})
    with pytest.raises(DataError, match=message):
        load_dataset(path)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("key", ["observations", "actions", "rewards"])
def test_values_that_are_not_finite(tmp_path: Path, key: str, value: float) -> None:
    arrays = d4rl_arrays(EPISODES)
    arrays[key][7] = value
    arrays[key][9] = value
    count = 2 if key == "rewards" else 2 * arrays[key].shape[1]
    with pytest.raises(DataError, match=f"{key!r} has {count} values .* the first at row 7"):
        load_dataset(write_d4rl(tmp_path / "a.hdf5", arrays))


def test_the_row_of_a_value_is_counted_over_all_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("offrl.datasets.flat.BLOCK_ROWS", 4)
    arrays = d4rl_arrays(EPISODES)
    arrays["actions"][10, 1] = np.nan
    with pytest.raises(DataError, match=r"'actions' has 1 values .* the first at row 10"):
        load_dataset(write_d4rl(tmp_path / "a.hdf5", arrays))


def test_a_nan_in_a_final_next_observation_is_found_too(tmp_path: Path) -> None:
    arrays = d4rl_arrays(EPISODES)
    arrays["next_observations"][11, 1] = np.nan
    with pytest.raises(DataError, match="nan in observations"):
        load_dataset(write_d4rl(tmp_path / "a.hdf5", arrays))


def test_missing_columns_name_the_near_ones_and_the_remedy(tmp_path: Path) -> None:
    arrays = d4rl_arrays(EPISODES)
    arrays["reward"] = arrays.pop("rewards")
    with pytest.raises(
        DataError,
        match=r"no column 'rewards', did you mean 'reward'.*offrl data import FILE .*--actions KEY",
    ):
        load_dataset(write_d4rl(tmp_path / "a.hdf5", arrays))
    with pytest.raises(DataError, match="nothing says where episodes end"):
        load_dataset(tmp_path / "a.hdf5", columns=Columns("observations", "actions", "reward"))


@pytest.mark.parametrize("keep", [0.3, 0.9, 0.999])
@pytest.mark.parametrize("compression", [None, "gzip"])
def test_a_truncated_hdf5_file(tmp_path: Path, keep: float, compression: str | None) -> None:
    arrays = d4rl_arrays([(500, "timeout")] * 4)
    path = write_d4rl(tmp_path / "a.hdf5", arrays, compression=compression)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(keep * len(whole))])
    with pytest.raises(DataError, match=r"a\.hdf5"):
        load_dataset(path)


def test_a_damaged_chunk(tmp_path: Path) -> None:
    arrays = d4rl_arrays([(500, "timeout")] * 4)
    path = write_d4rl(tmp_path / "a.hdf5", arrays, compression="gzip", fletcher32=True)
    with h5py.File(path) as file:
        where = file["observations"].id.get_chunk_info(0).byte_offset
    with path.open("r+b") as file:
        file.seek(where + 50)
        file.write(b"\0\1\2\3")
    with pytest.raises(DataError, match="column 'observations' is damaged"):
        load_dataset(path)


@pytest.mark.parametrize("keep", [0.5, 0.95])
def test_a_truncated_npz_file(tmp_path: Path, keep: float) -> None:
    path = _save(tmp_path / "a.npz", d4rl_arrays(EPISODES))
    whole = path.read_bytes()
    path.write_bytes(whole[: int(keep * len(whole))])
    with pytest.raises(DataError, match="not a whole npz file"):
        load_dataset(path)


@pytest.mark.parametrize("suffix", [".npz", ".hdf5"])
def test_random_damage_gives_data_or_one_clear_error(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    arrays = d4rl_arrays(EPISODES)
    if suffix == ".npz":
        _save(path, arrays, compressed=True)
    else:
        write_d4rl(path, arrays, compression="gzip")
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    outcomes = set()
    for _ in range(100):
        damaged = bytearray(whole)
        damaged[rng.integers(len(whole))] = rng.integers(256)
        path.write_bytes(damaged[: rng.integers(len(whole))] if rng.random() < 0.2 else damaged)
        try:
            outcomes.add(load_dataset(path, out_of_bounds="keep").num_steps > 0)
        except DataError as error:
            outcomes.add(str(path.name) in str(error) or "finite" in str(error))
    assert outcomes == {True}


def test_pickles_are_refused_and_never_opened(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "exploded",))

    for name in ("a.pkl", "unnamed"):
        (tmp_path / name).write_bytes(pickle.dumps(Bomb()))
        with pytest.raises(DataError, match=r"pickle file.*numpy\.savez"):
            load_dataset(str(tmp_path / name))
    objects = np.array([Bomb()], object)
    np.savez(tmp_path / "a.npz", **d4rl_arrays(EPISODES) | {"rewards": objects})  # type: ignore[arg-type]
    with pytest.raises(DataError, match="holds Python objects"):
        load_dataset(tmp_path / "a.npz")
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "git lfs pull"),
        (b"", "is empty"),
        (b"hello there", "neither HDF5 nor npz"),
    ],
)
def test_files_of_other_kinds(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.hdf5").write_bytes(content)
    with pytest.raises(DataError, match=message):
        load_dataset(tmp_path / "a.hdf5")


def test_an_npz_with_a_damaged_header_is_refused(tmp_path: Path) -> None:
    path = _save(tmp_path / "a.npz", d4rl_arrays(EPISODES))
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    header = members["rewards.npy"]
    members["rewards.npy"] = header.replace(b"(12,)", b"((12,")  # a parenthesis that never closes
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    with pytest.raises(DataError, match="column 'rewards' cannot be read"):
        load_dataset(path)


def test_public_files_in_these_layouts(outside_data: Path) -> None:
    pendulum = load_dataset(
        outside_data / "classic" / "pendulum-expert-sb2.npz",
        columns=Columns("obs", "actions", "rewards", episode_starts="episode_starts"),
        env_id="Pendulum-v1",
    )
    assert (pendulum.num_episodes, pendulum.num_steps) == (100, 20_000)
    assert pendulum.returns().mean() == pytest.approx(-149.9, abs=0.1)
    assert pendulum.spec.action_high == (2.0,)
    reacher = load_dataset(
        outside_data / "classic" / "reacher-v1-padded.h5",
        columns=Columns("obs_B_T_Do", "a_B_T_Da", "r_B_T", lengths="len_B"),
    )
    assert (reacher.num_episodes, reacher.num_steps) == (103, 5150)
    with pytest.raises(DataError, match="pickle"):
        load_dataset(outside_data / "mujoco_v4" / "hopper-expert.pkl")
