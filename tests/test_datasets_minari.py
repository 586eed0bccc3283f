"""Minari datasets: folders written by hand are read; what we write, minari reads."""

import json
from pathlib import Path
from typing import Any

import gymnasium
import h5py
import minari
import numpy as np
import pytest
from dataset_files import box, env_spec, memory_growth, write_minari_folder
from minari.data_collector import EpisodeBuffer

from offrl.datasets.loading import load_dataset
from offrl.datasets.minari import load_minari, write_minari
from offrl.datasets.offline import OfflineDataset, Reference, Spec
from offrl.errors import DataError

RNG = np.random.default_rng(0)


def _episode(steps: int, terminated: bool, obs: Any = None) -> dict[str, Any]:
    flags = np.zeros((2, steps), bool)
    flags[0 if terminated else 1, -1] = True
    return {
        "observations": RNG.normal(size=(steps + 1, 3)) if obs is None else obs,
        "actions": RNG.uniform(-1, 1, (steps, 2)).astype(np.float32),
        "rewards": RNG.normal(size=steps),
        "terminations": flags[0],
        "truncations": flags[1],
        "infos": {"x": RNG.normal(size=steps + 1)},
    }


def test_a_folder_of_boxes(tmp_path: Path) -> None:
    episodes = [_episode(4, True), _episode(6, False), _episode(1, True)]
    path = write_minari_folder(
        tmp_path / "set",
        episodes,
        box([3], -np.inf, np.inf),
        box([2], -2.0, 2.0, "float32"),
        env_spec=env_spec("Walker2d-v5", 500),
        algorithm_name="SAC",
    )
    dataset = load_dataset(path)
    assert dataset.lengths.tolist() == [4, 6, 1]
    for e, episode in enumerate(episodes):
        ours = dataset.episode(e)
        np.testing.assert_array_equal(ours["obs"], episode["observations"].astype(np.float32))
        np.testing.assert_array_equal(ours["action"], episode["actions"])
        np.testing.assert_array_equal(ours["reward"], episode["rewards"].astype(np.float32))
        np.testing.assert_array_equal(ours["terminated"] > 0, episode["terminations"])
        np.testing.assert_array_equal(ours["truncated"] > 0, episode["truncations"])
    assert dataset.final_known.all()
    assert (dataset.env_id, dataset.time_limit) == ("Walker2d-v5", 500)
    assert dataset.spec.action_high == (2.0, 2.0)
    assert dataset.reference is not None and dataset.reference.max == 4592.3
    assert dataset.provenance["algorithm_name"] == "SAC"
    assert load_dataset(path / "data").fingerprint == dataset.fingerprint


def test_the_files_own_references_come_first(tmp_path: Path) -> None:
    path = write_minari_folder(
        tmp_path / "set",
        [_episode(4, True)],
        box([3], -1e9, 1e9),
        box([2], -1.0, 1.0),
        env_spec=env_spec("Hopper-v5", 1000),
        ref_min_score=1.0,
        ref_max_score=3.0,
    )
    assert load_dataset(path).reference == Reference(1.0, 3.0, "the dataset's own metadata")
    metadata = path / "data" / "metadata.json"
    metadata.write_text(json.dumps(json.loads(metadata.read_text()) | {"ref_min_score": [1.0]}))
    with pytest.raises(DataError, match=r"ref_min_score is \[1.0\] and ref_max_score 3.0; both"):
        load_dataset(path)


def test_goal_dicts_are_laid_out_in_the_order_of_their_keys(tmp_path: Path) -> None:
    steps = 5
    parts = {
        "achieved_goal": RNG.normal(size=(steps + 1, 2)),
        "desired_goal": {
            "door": RNG.normal(size=(steps + 1, 1)),
            "kettle": RNG.normal(size=(steps + 1, 3)),
        },
        "observation": RNG.normal(size=(steps + 1, 4)),
    }
    space = {
        "type": "Dict",
        "subspaces": {
            "achieved_goal": box([2], -1.0, 1.0),
            "desired_goal": {
                "type": "Dict",
                "subspaces": {"door": box([1], -2.0, 2.0), "kettle": box([3], -3.0, 3.0)},
            },
            "observation": box([4], -np.inf, np.inf),
        },
    }
    episodes = [_episode(steps, False, parts)]
    path = write_minari_folder(tmp_path / "set", episodes, space, box([2], -1.0, 1.0))
    dataset = load_dataset(path)
    assert dataset.spec.obs_keys == {
        "achieved_goal": (0, 2),
        "desired_goal/door": (2, 3),
        "desired_goal/kettle": (3, 6),
        "observation": (6, 10),
    }
    assert dataset.spec.obs_high[:6] == (1.0, 1.0, 2.0, 3.0, 3.0, 3.0)
    goal = parts["desired_goal"]
    assert isinstance(goal, dict)
    whole = [parts["achieved_goal"], goal["door"], goal["kettle"], parts["observation"]]
    np.testing.assert_array_equal(
        dataset.episode(0)["obs"], np.concatenate(whole, 1).astype(np.float32)
    )
    again = write_minari(dataset, tmp_path / "again")
    read = load_dataset(again)
    assert read.fingerprint == dataset.fingerprint
    assert read.spec == dataset.spec
    theirs = minari.MinariDataset(again / "data")[0].observations
    np.testing.assert_array_equal(theirs["desired_goal"]["kettle"], dataset.rows[:, 3:6])


def test_discrete_actions(tmp_path: Path) -> None:
    episode = _episode(4, True) | {"actions": np.array([0, 3, 1, 2])}
    discrete = {"type": "Discrete", "dtype": "int64", "start": 0, "n": 4}
    path = write_minari_folder(tmp_path / "set", [episode], box([3], -9.0, 9.0), discrete)
    dataset = load_dataset(path)
    assert (dataset.spec.action_kind, len(dataset.spec.action_low)) == ("discrete", 4)
    assert dataset.action.ravel().tolist() == [0.0, 3.0, 1.0, 2.0]
    again = write_minari(dataset, tmp_path / "again")
    assert minari.MinariDataset(again / "data")[0].actions.tolist() == [0, 3, 1, 2]
    assert load_dataset(again).fingerprint == dataset.fingerprint


@pytest.mark.filterwarnings("ignore::UserWarning")  # of minari, about metadata that is left out
def test_a_local_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    space = gymnasium.spaces.Box(-np.inf, np.inf, (3,), np.float64)
    action = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)
    buffer = EpisodeBuffer(
        observations=list(RNG.normal(size=(5, 3))),
        actions=list(RNG.uniform(-1, 1, (4, 2)).astype(np.float32)),
        rewards=[1.0, 2.0, 3.0, 4.0],
        terminations=[False] * 4,
        truncations=[False] * 3 + [True],
        infos={},
    )
    minari.create_dataset_from_buffers(
        "mine/tiny-v0", [buffer], observation_space=space, action_space=action
    )
    for asked in ("mine/tiny-v0", "minari:mine/tiny-v0"):
        dataset = load_dataset(asked, download=False)
        assert dataset.returns().tolist() == [10.0]
        assert dataset.name == "mine/tiny-v0"
    with pytest.raises(DataError, match=r"'mine/tiny-v1' is not at .*Put its folder there"):
        load_dataset("mine/tiny-v1", download=False)
    with pytest.raises(DataError, match="not a Minari id"):
        load_dataset("minari:tiny", download=False)


def test_a_remote_id_is_downloaded_by_minari(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    spaces = box([3], -9.0, 9.0), box([2], -1.0, 1.0)
    asked: list[str] = []

    def download(dataset_id: str) -> None:
        asked.append(dataset_id)
        if len(asked) == 1:
            raise ConnectionError("no route to host")
        write_minari_folder(tmp_path / dataset_id, [_episode(4, True)], *spaces)

    monkeypatch.setattr(minari, "download_dataset", download)
    with pytest.raises(DataError, match=r"could not be downloaded \(ConnectionError: no route"):
        load_dataset("test/made-by-hand-v3")
    assert load_dataset("test/made-by-hand-v3").num_steps == 4
    assert load_dataset("test/made-by-hand-v3").num_steps == 4
    assert asked == ["test/made-by-hand-v3"] * 2


def _dataset(**fields: Any) -> OfflineDataset:
    rng = np.random.default_rng(1)
    episodes = [
        {
            "obs": rng.normal(size=(steps + known, 3)),
            "action": rng.uniform(-1, 1, (steps, 2)),
            "reward": rng.normal(size=steps),
            "terminated": terminated,
        }
        for steps, terminated, known in [(4, True, 1), (6, False, 1), (3, False, 0), (2, True, 0)]
    ]
    return OfflineDataset.from_episodes(episodes, name="four-episodes", **fields)


def test_what_is_written_comes_back_and_minari_reads_it(tmp_path: Path) -> None:
    dataset = _dataset(
        env_id="Hopper-v5",
        time_limit=77,
        reference=Reference(-5.0, 5.0, "a source"),
        provenance={"seeds": [0, 1]},
        problems=("something was odd",),
        spec=Spec((-9.0,) * 3, (np.inf,) * 3, (-1.0, -2.0), (1.0, 2.0)),
    )
    path = write_minari(dataset, tmp_path / "out", description="text", algorithm_name="SAC")
    again = load_minari(path)
    assert again.fingerprint == dataset.fingerprint
    for field in ("name", "env_id", "time_limit", "reference", "problems", "spec"):
        assert getattr(again, field) == getattr(dataset, field), field
    assert again.provenance["seeds"] == [0, 1]
    assert again.final_known.tolist() == [True, True, False, False]
    theirs = minari.MinariDataset(path / "data")
    assert (theirs.total_episodes, theirs.total_steps) == (4, 15)
    assert theirs.spec.dataset_id == "four-episodes-v0"
    assert theirs.env_spec is not None and theirs.env_spec.max_episode_steps == 77
    first = theirs[0]
    np.testing.assert_array_equal(first.observations, dataset.episode(0)["obs"])
    np.testing.assert_array_equal(first.rewards, dataset.episode(0)["reward"])
    assert first.observations.dtype == np.float32
    assert first.terminations.tolist() == [False] * 3 + [True]


def test_an_end_without_a_flag_is_written_as_truncated(tmp_path: Path) -> None:
    dataset = _dataset()
    dataset.rows[:, -2:] = 0.0
    with h5py.File(write_minari(dataset, tmp_path / "out") / "data" / "main_data.hdf5") as file:
        assert [bool(file[f"episode_{e}/truncations"][-1]) for e in range(4)] == [True] * 4


def test_an_episode_costs_under_three_kilobytes(tmp_path: Path) -> None:
    one_step = {"obs": np.zeros((2, 3)), "action": np.zeros((1, 2)), "reward": np.zeros(1)}
    dataset = OfflineDataset.from_episodes([one_step] * 200)
    path = write_minari(dataset, tmp_path / "out")
    assert (path / "data" / "main_data.hdf5").stat().st_size < 200 * 3000


def test_nothing_is_overwritten_or_half_written(tmp_path: Path) -> None:
    out = write_minari(_dataset(), tmp_path / "out")
    with pytest.raises(DataError, match="is not overwritten"):
        write_minari(_dataset(), out)
    with pytest.raises(DataError, match="not a Minari id"):
        write_minari(_dataset(), tmp_path / "bad", dataset_id="no version")
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written"):
        write_minari(_dataset(), tmp_path / "file" / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "out"]


def test_an_unknown_environment_keeps_its_id(tmp_path: Path) -> None:
    dataset = _dataset(env_id="Nowhere-v3", time_limit=12)
    again = load_minari(write_minari(dataset, tmp_path / "out"))
    assert (again.env_id, again.time_limit) == ("Nowhere-v3", 12)


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({"type": "Discrete", "dtype": "int64", "start": 0, "n": 3}, "must be vectors"),
        (box([64, 64, 3], 0, 255, "uint8"), "must be vectors"),
    ],
)
def test_observations_that_are_no_vectors_are_refused(
    tmp_path: Path, space: dict[str, Any], message: str
) -> None:
    path = write_minari_folder(tmp_path / "set", [_episode(4, True)], space, box([2], -1.0, 1.0))
    with pytest.raises(DataError, match=message):
        load_dataset(path)


def test_damaged_folders(tmp_path: Path) -> None:
    spaces = box([3], -9.0, 9.0), box([2], -1.0, 1.0)
    short = _episode(4, True)
    short["observations"] = short["observations"][:-1]
    path = write_minari_folder(tmp_path / "short", [_episode(3, True), short], *spaces)
    with pytest.raises(DataError, match=r"episode 1 has 4 observations for 4 steps"):
        load_dataset(path)

    wide = _episode(4, True)
    wide["observations"] = np.zeros((5, 7), np.float32)
    path = write_minari_folder(tmp_path / "wide", [_episode(3, True), wide], *spaces)
    with pytest.raises(DataError, match=r"episode 1 has observations of 7 components, .* space 3"):
        load_dataset(path)

    uneven = _episode(4, True)
    uneven["actions"] = uneven["actions"][:-1]
    path = write_minari_folder(tmp_path / "uneven", [uneven], *spaces)
    with pytest.raises(DataError, match=r"episode 0 says it has 4 steps"):
        load_dataset(path)

    path = write_minari_folder(tmp_path / "new", [_episode(3, True)], *spaces, minari_version="9.9")
    with pytest.raises(DataError, match=r"does not support the dataset generated by Minari 9\.9"):
        load_dataset(path)

    path = write_minari_folder(tmp_path / "cut", [_episode(3, True)], *spaces)
    main = path / "data" / "main_data.hdf5"
    main.write_bytes(main.read_bytes()[:500])
    with pytest.raises(DataError, match=r"cut: not a Minari dataset"):
        load_dataset(path)

    nan = _episode(4, True)
    nan["rewards"][2] = np.nan
    path = write_minari_folder(tmp_path / "nan", [_episode(2, True), nan], *spaces)
    with pytest.raises(DataError, match="nan in rewards at step 2 of episode 1"):
        load_dataset(path)

    path = write_minari_folder(tmp_path / "less", [_episode(2, True), _episode(4, True)], *spaces)
    with h5py.File(path / "data" / "main_data.hdf5", "r+") as file:
        del file["episode_1/rewards"]
    with pytest.raises(DataError, match=r"less: episode 1 cannot be read: .*rewards"):
        load_dataset(path)

    path = write_minari_folder(tmp_path / "unmarked", [_episode(2, True)], *spaces)
    metadata = path / "data" / "metadata.json"
    stated = {**json.loads(metadata.read_text()), "offrl": {"marks": ["odd"]}}
    metadata.write_text(json.dumps(stated))
    with pytest.raises(DataError, match="unmarked: episode 0 has no 'odd' among its infos"):
        load_dataset(path)

    metadata.write_text(json.dumps({"total_episodes": 2}))
    with pytest.raises(DataError, match="not a Minari dataset"):
        load_dataset(path)


def test_peak_memory_is_within_a_fifth_of_the_raw_arrays(tmp_path: Path) -> None:
    spaces = box([3], -np.inf, np.inf), box([2], -1.0, 1.0)
    small = write_minari_folder(tmp_path / "small", [_episode(4, True)], *spaces)
    wide = box([27], -np.inf, np.inf), box([2], -1.0, 1.0)
    obs = RNG.normal(size=(301, 27)).astype(np.float32)
    episode = _episode(300, False, obs)
    del episode["infos"]
    large = write_minari_folder(tmp_path / "large", [episode] * 1200, *wide)
    grown, steps = memory_growth(small, large)
    assert steps == 360_000
    assert grown <= 1.2 * 1200 * sum(column.nbytes for column in episode.values())
