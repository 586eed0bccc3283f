"""The datasets in the package: within their size, what their cards say, and read by Minari."""

import json
from pathlib import Path
from typing import Any

import gymnasium
import h5py
import minari
import numpy as np
import pytest

from offrl.datasets.cards import BINS, card, card_text
from offrl.datasets.loading import SHIPPED, load_dataset, shipped_names
from offrl.datasets.offline import OfflineDataset, Spec
from offrl.datasets.packing import pack, write_with_card
from offrl.datasets.staged import latest
from offrl.errors import DataError

NAMES = shipped_names()
BUDGET = 15_000_000  # bytes in the working tree
LEAST = {"hopper": 60_000, "halfcheetah": 30_000, "walker2d": 30_000}  # steps


def test_all_sets_fit_the_budget() -> None:
    assert "halfcheetah-medium-replay" in NAMES
    assert sum(f.stat().st_size for f in SHIPPED.rglob("*") if f.is_file()) <= BUDGET


@pytest.mark.parametrize("name", NAMES)
def test_the_card_says_what_is_in_the_file(name: str) -> None:
    dataset = load_dataset(name)
    stated = json.loads((SHIPPED / name / "card.json").read_text())
    assert stated == json.loads(json.dumps(card(dataset)))
    assert (SHIPPED / name / "card.md").read_text() == card_text(stated)

    returns = dataset.returns()
    assert stated["steps"] == len(dataset.reward) >= LEAST[name.split("-")[0]]
    assert stated["returns"]["mean"] == pytest.approx(returns.mean())
    assert stated["lengths"]["max"] == dataset.lengths.max() <= 1_000
    assert stated["reference"]["max"] == dataset.reference.max  # type: ignore[union-attr]
    edges, counts = stated["histogram"]["edges"], stated["histogram"]["episodes"]
    assert (len(edges), sum(counts)) == (BINS + 1, dataset.num_episodes)
    inner = (returns >= edges[3]) & (returns < edges[4])
    assert counts[3] == inner.sum()


@pytest.mark.parametrize("name", NAMES)
def test_it_is_the_replay_up_to_the_first_medium_evaluation(name: str) -> None:
    dataset = load_dataset(name)
    made: Any = dataset.provenance
    *before, (steps, score) = made["evaluations"]
    target, least = made["target_return"], made["min_steps"]
    assert dataset.reference is not None
    assert target == pytest.approx(dataset.reference.max / 3, abs=1)
    assert score >= target and steps >= least
    assert all(earlier < target or at < least for at, earlier in before)
    left = steps - dataset.num_steps
    assert made["left_out"].startswith(f"{left} steps")
    if "capacity" in made:
        assert 0 <= made["capacity"] - dataset.num_steps < 2 * 1_000
        return
    assert 0 <= left < 1_000
    # The first thousand actions are uniform, before SAC has a gradient.
    first = dataset.action[: made["first_random_steps"]]
    assert first.std() == pytest.approx(1 / np.sqrt(3), abs=0.02)


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_wrong_with_it(name: str) -> None:
    dataset = load_dataset(name)
    assert dataset.final_known.all() and not dataset.problems
    assert np.abs(dataset.action).max() <= 1.0
    last = dataset.rows[dataset.starts + dataset.lengths - 1]
    assert (last[:, -2] + last[:, -1] == 1).all()  # each episode ends in one way, at its end
    assert dataset.terminated.sum() + dataset.truncated.sum() == dataset.num_episodes
    assert (dataset.lengths[last[:, -1] == 1] == 1_000).all()


@pytest.mark.parametrize("name", NAMES)
def test_a_recorded_step_is_the_environments(name: str) -> None:
    """A state rebuilt from an observation, stepped by the recorded action, gives what follows.

    The observation leaves out x, of which nothing depends, and is float32.
    """
    dataset = load_dataset(name)
    assert dataset.env_id is not None
    env = gymnasium.make(dataset.env_id)
    env.reset(seed=0)
    inside: Any = env.unwrapped
    checked = 0
    for e in np.linspace(0, dataset.num_episodes - 1, 8).astype(int):
        episode = dataset.episode(int(e))
        obs = episode["obs"].astype(np.float64)
        nq = inside.model.nq - 1
        for t in range(0, len(obs) - 1, 7):
            if np.abs(obs[t : t + 2, nq:]).max() > 9.9:
                continue  # Hopper and Walker2d clip velocities at 10: the state is not known
            inside.set_state(np.append(0.0, obs[t, :nq]), obs[t, nq:])
            seen, reward, *_ = inside.step(episode["action"][t])
            assert np.abs(seen - obs[t + 1]).max() < 1e-2
            assert abs(reward - episode["reward"][t]) < 1e-2
            checked += 1
    assert checked > 20


@pytest.mark.parametrize("name", NAMES)
def test_minari_reads_it(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    metadata = json.loads((SHIPPED / name / "data" / "metadata.json").read_text())
    target = tmp_path / metadata["dataset_id"]
    target.parent.mkdir(parents=True)
    target.symlink_to(SHIPPED / name)
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    theirs = minari.load_dataset(metadata["dataset_id"])
    ours = load_dataset(name)
    assert (theirs.total_steps, theirs.total_episodes) == (ours.num_steps, ours.num_episodes)
    for e in (0, ours.num_episodes - 1):
        read, kept = theirs[e], ours.episode(e)
        assert np.array_equal(read.observations, kept["obs"])
        assert np.array_equal(read.actions, kept["action"])
        assert np.array_equal(read.rewards, kept["reward"])
        assert np.array_equal(read.terminations, kept["terminated"] > 0)
        assert np.array_equal(read.truncations, kept["truncated"] > 0)
    env = theirs.recover_environment()
    assert env.spec is not None and env.spec.id == ours.env_id
    env.close()


# Making


def test_a_buffer_holds_the_latest_whole_episodes() -> None:
    episodes = [{"reward": np.full(steps, steps)} for steps in (5, 2, 4, 3)]

    def held(capacity: int) -> list[int]:
        return [len(e["reward"]) for e in latest(episodes, capacity)]

    assert [held(n) for n in (3, 6, 7, 9, 13, 14)] == [
        [3], [3], [4, 3], [2, 4, 3], [2, 4, 3], [5, 2, 4, 3]
    ]  # fmt: skip
    with pytest.raises(DataError, match="no episode fits a buffer of 2 steps; the last has 3"):
        latest(episodes, 2)


def _dataset() -> OfflineDataset:
    rng = np.random.default_rng(0)
    episodes = [
        {
            "obs": np.cumsum(rng.normal(size=(steps + 1, 3)), 0).astype(np.float32),
            "action": rng.uniform(-1, 1, (steps, 2)).astype(np.float32),
            "reward": np.round(rng.normal(size=steps)).astype(np.float32),
            "terminated": np.asarray(steps % 2 == 0),
        }
        for steps in (200, 1, 301)
    ]
    inf = (float("inf"),) * 3
    spec = Spec(tuple(-x for x in inf), inf, (-1.0,) * 2, (1.0,) * 2)
    return OfflineDataset.from_episodes(episodes, spec=spec, name="small")


def test_packing_loses_nothing(tmp_path: Path) -> None:
    dataset = _dataset()
    plain = write_with_card(dataset, tmp_path / "plain")
    packed = write_with_card(dataset, tmp_path / "packed", compress=True)
    assert np.array_equal(packed.rows, dataset.rows) and packed.spec == plain.spec
    files = [tmp_path / kind / "data" / "main_data.hdf5" for kind in ("plain", "packed")]
    assert files[1].stat().st_size < 0.95 * files[0].stat().st_size
    assert {p.name for p in files[1].parent.iterdir()} == {"main_data.hdf5", "metadata.json"}
    with h5py.File(files[0]) as a, h5py.File(files[1]) as b:
        assert list(a) == list(b) == ["episode_0", "episode_1", "episode_2"]
        for key in a:
            assert dict(a[key].attrs) == dict(b[key].attrs)
            for column in a[key]:
                assert a[key][column].dtype == b[key][column].dtype
                assert b[key][column].compression == "gzip"
                assert b[key][column].shuffle == (b[key][column].dtype.itemsize > 1)
    assert pack(tmp_path / "packed") == files[1].stat().st_size  # again: the same


def test_a_set_is_never_replaced(tmp_path: Path) -> None:
    write_with_card(_dataset(), tmp_path / "set")
    before = (tmp_path / "set" / "card.json").read_bytes()
    with pytest.raises(DataError, match="exists and is not overwritten"):
        write_with_card(_dataset(), tmp_path / "set")
    assert (tmp_path / "set" / "card.json").read_bytes() == before
