"""Where a name is looked for, and what is said about names and paths that lead nowhere."""

from pathlib import Path

import numpy as np
import pytest
from dataset_files import box, d4rl_arrays, write_d4rl, write_minari_folder

import offrl
from offrl.datasets import loading
from offrl.datasets.loading import load_dataset, local_sets
from offrl.errors import ConfigError, DataError

FILE = "hopper_medium_replay-v2.hdf5"
NAME = "hopper-medium-replay-v2"


@pytest.fixture(autouse=True)
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No folder of this machine is looked into."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("OFFRL_CACHE", str(tmp_path / "cache"))
    for variable in ("OFFRL_DATASETS", "D4RL_DATASET_DIR", "MINARI_DATASETS_PATH"):
        monkeypatch.delenv(variable, raising=False)


def _file(folder: Path, steps: int, name: str = FILE, size: int | None = None) -> Path:
    """A file of `steps` steps; the count tells which one was found."""
    folder.mkdir(parents=True, exist_ok=True)
    arrays = d4rl_arrays([(steps, "timeout")], obs_dim=11, act_dim=3)
    return write_d4rl(folder / name, arrays)


@pytest.fixture
def any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand-ins are smaller than the published files."""
    monkeypatch.setattr("offrl.datasets.download._require_size", lambda named, path: None)


def test_the_order_in_which_a_name_is_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, any_size: None
) -> None:
    def steps() -> int:
        return load_dataset(NAME, download=False).num_steps

    with pytest.raises(DataError, match=f"Put the file {FILE} from http"):
        steps()
    _file(tmp_path / "cache" / "d4rl", 5)
    assert steps() == 5
    _file(tmp_path / "home" / ".d4rl" / "datasets", 6)
    assert steps() == 6
    _file(tmp_path / "d4rl", 7)
    monkeypatch.setenv("D4RL_DATASET_DIR", str(tmp_path / "d4rl"))
    assert steps() == 7
    _file(tmp_path / "own", 8)
    monkeypatch.setenv("OFFRL_DATASETS", str(tmp_path / "own"))
    assert steps() == 8
    _file(tmp_path / "given", 9, f"{NAME}.hdf5")
    assert load_dataset(NAME, data_dir=tmp_path / "given").num_steps == 9
    assert load_dataset(NAME, data_dir=tmp_path / "cache", download=False).num_steps == 7


def test_a_named_set_has_its_environment_references_and_limit(
    tmp_path: Path, any_size: None
) -> None:
    dataset = load_dataset(NAME, data_dir=_file(tmp_path / "own", 8).parent)
    assert (dataset.name, dataset.env_id, dataset.time_limit) == (NAME, "Hopper-v4", 1000)
    assert dataset.reference is not None and dataset.reference.max == 3234.3
    assert dataset.provenance["url"].endswith(FILE)
    by_path = load_dataset(tmp_path / "own" / FILE)
    assert (by_path.env_id, by_path.name) == ("Hopper-v4", NAME)


def test_where_todays_environment_differs_it_is_named_but_not_assumed(
    tmp_path: Path, any_size: None
) -> None:
    arrays = d4rl_arrays([(5, "timeout")], obs_dim=29, act_dim=8)
    name = "Ant_maze_u-maze_noisy_multistart_False_multigoal_False_sparse_fixed.hdf5"
    write_d4rl(tmp_path / name, arrays)
    dataset = load_dataset("antmaze-umaze-v2", data_dir=tmp_path)
    assert dataset.env_id is None
    assert dataset.provenance["nearest_environment"] == "AntMaze_UMaze-v4"
    assert "29 numbers" in dataset.provenance["differs"]
    assert dataset.reference is not None and dataset.reference.max == 1.0


def _folder(path: Path, steps: int) -> Path:
    episode = {
        "observations": np.zeros((steps + 1, 3)),
        "actions": np.zeros((steps, 2), np.float32),
        "rewards": np.arange(steps, dtype=np.float64),
        "terminations": np.zeros(steps, bool),
        "truncations": np.arange(steps) == steps - 1,
    }
    return write_minari_folder(path, [episode], box([3], -1.0, 1.0), box([2], -1.0, 1.0))


def test_shipped_sets_and_the_users_own_of_the_same_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "SHIPPED", tmp_path / "shipped")
    _folder(tmp_path / "shipped" / "hopper-medium-replay", 4)
    assert loading.shipped_names() == ["hopper-medium-replay"]
    dataset = offrl.load_dataset("hopper-medium-replay")
    assert (dataset.name, dataset.num_steps) == ("hopper-medium-replay", 4)
    _folder(tmp_path / "own" / "hopper-medium-replay", 6)
    assert load_dataset("hopper-medium-replay", data_dir=tmp_path / "own").num_steps == 6
    with pytest.raises(DataError, match="did you mean 'hopper-medium-replay'"):
        load_dataset("hopper-medium-reply")


def test_local_sets(tmp_path: Path) -> None:
    own = tmp_path / "own"
    _file(own, 5)
    _file(own, 5, "mine.h5")
    _folder(own / "a-folder", 3)
    _file(tmp_path / "cache" / "d4rl", 5, "hopper_expert-v2.hdf5")
    _folder(tmp_path / "home" / ".minari" / "datasets" / "some" / "set-v0", 3)
    assert local_sets(own) == {
        NAME: own / FILE,
        "hopper-expert-v2": tmp_path / "cache" / "d4rl" / "hopper_expert-v2.hdf5",
        "a-folder": own / "a-folder",
        "mine": own / "mine.h5",
        "some/set-v0": tmp_path / "home" / ".minari" / "datasets" / "some" / "set-v0",
    }


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("hopper-medum-v2", r"unknown dataset 'hopper-medum-v2', did you mean 'hopper-medium-v2'"),
        ("zzz", "unknown dataset 'zzz'. `offrl data list`"),
        ("no/such/file.hdf5", "does not exist"),
        ("/no/such/folder", "does not exist"),
    ],
)
def test_names_and_paths_that_lead_nowhere(asked: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_dataset(asked, download=False)


@pytest.mark.usefixtures("unchecked")
def test_what_is_neither_a_name_nor_a_path_is_refused() -> None:
    with pytest.raises(DataError, match=r"a name, a path, or D4RL's dictionary .* this is 5"):
        load_dataset(5)  # type: ignore[arg-type]


def test_a_folder_that_is_no_dataset(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(DataError, match=r"no data/metadata.json\); it holds notes.txt"):
        load_dataset(tmp_path)


def test_a_data_folder_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"local datasets .* does not exist"):
        load_dataset(NAME, data_dir=tmp_path / "nothing")


def test_facts_for_flat_files_are_refused_where_a_file_states_them(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="are for flat files"):
        load_dataset(_folder(tmp_path / "set", 3), env_id="Hopper-v5")


def test_a_stated_environment(tmp_path: Path) -> None:
    path = write_d4rl(tmp_path / "mine.hdf5", d4rl_arrays([(5, "terminal")], obs_dim=3, act_dim=1))
    dataset = load_dataset(path, env_id="Pendulum-v1")
    assert (dataset.env_id, dataset.time_limit) == ("Pendulum-v1", 200)
    assert dataset.spec.action_high == (2.0,)
    with pytest.raises(DataError, match=r"Hopper-v5 does not .* actions: 3 entries, dataset 1"):
        load_dataset(path, env_id="Hopper-v5")
    with pytest.raises(DataError, match="actions: 2 discrete ones, dataset a vector of 1 entries"):
        load_dataset(path, env_id="CartPole-v1")
    with pytest.raises(ConfigError, match="unknown environment 'Pendulum-v11'"):
        load_dataset(path, env_id="Pendulum-v11")
