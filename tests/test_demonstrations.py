"""Which transitions count as the expert's, where they are from, and how a run comes to them."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from dataset_files import d4rl_arrays, write_d4rl
from methods.odice_il import expert_file
from problems import HIDDEN, walk

from offrl import train
from offrl.agents import ODICEIL, ODICEILConfig
from offrl.cli import main
from offrl.datasets.demonstrations import (
    EXPERT,
    Demonstrations,
    demonstrations,
    end_log_ratio,
    joined,
)
from offrl.datasets.minari import write_minari
from offrl.datasets.offline import OfflineDataset, Spec
from offrl.datasets.replay import transitions
from offrl.errors import ConfigError, DataError, RunError
from offrl.files import read_json
from offrl.networks import Learners
from offrl.plans import DataConfig, plan
from offrl.policy import load_policy
from offrl.training import TrainConfig, Trainer
from offrl.types import Batch

SMALL: dict[str, Any] = {"hidden": HIDDEN, "actor_hidden": HIDDEN, "batch_size": 8}


def runs(*returns: float, ends: tuple[bool, ...] | None = None) -> OfflineDataset:
    """One episode of two steps a return; observation and action say which."""
    return OfflineDataset.from_episodes(
        [
            {
                "obs": np.full((3, 1), float(e), np.float32),
                "action": np.full((2, 1), e / 10, np.float32),
                "reward": np.array([value, 0.0], np.float32),
                "terminated": ends is not None and ends[e],
            }
            for e, value in enumerate(returns)
        ],
        name="runs",
    )


def expert_batch(view: Demonstrations) -> Batch:
    assert view.expert is not None
    return view.batch(view.expert)


def test_the_best_episodes_of_the_data_are_the_experts() -> None:
    view = demonstrations(runs(1.0, 7.0, 3.0, 7.0), episodes=2)
    assert expert_batch(view).obs.flatten().tolist() == [1.0, 1.0, 3.0, 3.0]
    assert len(view) == 8
    # Of equal returns the first.
    assert expert_batch(demonstrations(runs(1.0, 7.0, 7.0))).obs.flatten().tolist() == [1.0, 1.0]


def test_without_mixed_data_the_expert_is_all_there_is() -> None:
    data = runs(1.0, 7.0, 3.0)
    view = demonstrations(data, mixed=False, normalize_obs=True)
    assert len(view) == 2 and view.obs_mean.tolist() == [1.0]
    assert torch.equal(expert_batch(view).action, view.batch(view.index).action)


def test_an_expert_of_its_own_joins_the_data() -> None:
    data, path = walk(), expert_file()
    view = demonstrations(data, path, 1, normalize_obs=True)
    assert len(view) == len(transitions(data)) + len(view.expert if view.expert is not None else [])
    own = walk(episodes=2, seed=9)
    best = own.episode(int(np.argmax(own.returns())))
    raw = expert_batch(view).obs * view.obs_std + view.obs_mean
    np.testing.assert_allclose(raw.numpy(), best["obs"][: len(raw)], rtol=0, atol=1e-5)
    # The same fingerprint for the same data, another for other marks.
    prints = {
        demonstrations(data, *arguments).fingerprint
        for arguments in (("", 1), ("", 2), (path, 1), (path, 2), ("", 1))
    }
    assert len(prints) == 4


def test_what_followed_a_step_survives_the_join() -> None:
    data = runs(1.0, 2.0)
    rows = np.zeros((len(data.rows), 1), np.float32)
    rows[data.step_rows] = 0.5
    corrupted = replace(data, next_obs=rows)
    for first, second in ((corrupted, data), (data, corrupted)):
        both = joined(first, second)
        view = transitions(both)
        batch = view.batch(view.index)
        half = len(batch.obs) // 2
        for part, of in ((slice(None, half), first), (slice(half, None), second)):
            alone = transitions(of)
            expected = alone.batch(alone.index)
            assert torch.equal(batch.next_obs[part], expected.next_obs)
            assert torch.equal(batch.obs[part], expected.obs)
    assert both.marks[EXPERT].sum() == 4 and both.provenance["expert"]["name"] == "runs"


def test_too_few_episodes_and_other_tasks_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"runs has 2 episodes.*to be 3.*--expert-episodes"):
        demonstrations(runs(1.0, 2.0), episodes=3)
    with pytest.raises(DataError, match=r"expert runs has obs_dim 1, but walk has 3"):
        joined(walk(), runs(1.0))
    wide = Spec((-np.inf,), (np.inf,), (-2.0,), (2.0,))
    other = OfflineDataset.from_episodes(
        [{"obs": np.zeros((2, 1)), "action": np.zeros((1, 1)), "reward": np.zeros(1)}],
        spec=wide,
        name="wide",
    )
    with pytest.raises(DataError, match=r"expert wide has action_low \(-2.0,\), but runs has"):
        joined(runs(1.0), other)
    with pytest.raises(DataError, match="does not exist"):
        demonstrations(walk(), str(tmp_path / "nothing.hdf5"))


def test_the_ratio_of_ends_by_hand() -> None:
    # Six transitions of which two terminate: rate 1/3. The expert's two, none of which does:
    # log(((0 + 1/3) / 3) / (1/3)) = log(1/3). With one that does: log((4/3) / 3 / (1/3)).
    none = demonstrations(runs(9.0, 1.0, 1.0, ends=(False, True, True)))
    assert end_log_ratio(none) == pytest.approx(math.log(1 / 3), rel=1e-12)
    one = demonstrations(runs(9.0, 1.0, 1.0, ends=(True, True, False)))
    assert end_log_ratio(one) == pytest.approx(math.log(4 / 3), rel=1e-12)
    # Alone the expert is as often at an end as everyone; without ends there is nothing to say.
    alone = demonstrations(runs(9.0, 1.0, ends=(True, False)), mixed=False)
    assert end_log_ratio(alone) == pytest.approx(0.0, abs=1e-12)
    assert end_log_ratio(demonstrations(runs(9.0, 1.0))) == 0.0


def test_held_out_episodes_are_measured_on_without_the_expert(tmp_path: Path) -> None:
    data = walk(12)
    for mixed in (True, False):
        settings = {"expert": expert_file(), "mixed": mixed, "hidden": (8,), "actor_hidden": (8,)}
        planned = plan(
            "odice_il", data, "none", settings=settings, data=DataConfig(validation=0.25)
        )
        agent = ODICEIL(data.spec, planned.agent_config, Learners())
        training, held_out = data.split(0.25, 0)
        trainer = Trainer(
            agent, training, held_out, TrainConfig(device="cpu"), [tmp_path], tmp_path
        )
        assert trainer.best_by == "none"
        assert trainer.validation is not None
        seen, alone = trainer.validation, transitions(held_out)
        raw = seen.batch(seen.index).obs * seen.obs_std + seen.obs_mean
        torch.testing.assert_close(raw, alone.batch(alone.index).obs, rtol=0, atol=1e-5)
        assert torch.equal(seen.obs_mean, agent.obs_mean)


def test_without_an_environment_nothing_is_held_out_unless_asked_for(tmp_path: Path) -> None:
    settings: dict[str, Any] = {**SMALL, "env": None, "steps": 2, "expert_episodes": 3}
    run = train("odice_il", walk(20), out=tmp_path / "a", **settings)
    assert read_json(tmp_path / "a" / "config.json")["data"]["validation"] == 0.0
    assert run.summaries[0]["best_by"] == "none"
    # The held-out part has two episodes, of which none has to be an expert's.
    train("odice_il", walk(20), out=tmp_path / "b", validation=0.1, **settings)
    lines = (tmp_path / "b" / "metrics.csv").read_text()
    assert "validation/action_error" in lines
    with pytest.raises(ConfigError, match="no episodes are held out"):
        train("odice_il", walk(), out=tmp_path / "c", best_by="validation/action_error", **settings)


def loud(path: Path, seed: int) -> Path:
    """A flat file whose actions reach to twice the bounds that are assumed."""
    arrays = d4rl_arrays([(12, "timeout"), (9, "timeout")], seed=seed)
    return write_d4rl(path, {**arrays, "actions": 2.0 * arrays["actions"]})


@pytest.mark.parametrize(
    "reading", [{"out_of_bounds": "clip"}, {"action_bounds": (-2.0, 2.0)}], ids=str
)
def test_the_expert_is_read_as_the_data_is(reading: dict[str, Any], tmp_path: Path) -> None:
    mixed, expert = (str(loud(tmp_path / f"{n}.hdf5", s)) for n, s in (("mixed", 0), ("best", 1)))
    settings: dict[str, Any] = {**SMALL, "env": None, "steps": 2, "expert": expert}
    with pytest.raises(DataError, match=r"mixed: .* actions .* are outside"):
        train("odice_il", mixed, out=tmp_path / "run", **settings)
    train("odice_il", mixed, out=tmp_path / "run", **settings, **reading)
    found = load_policy(tmp_path / "run")
    assert found.spec.action_high == ((2.0,) * 2 if "action_bounds" in reading else (1.0,) * 2)


def test_an_expert_of_minari_states_its_own_bounds(tmp_path: Path) -> None:
    write_minari(walk(3, seed=4), tmp_path / "best")
    mixed = loud(tmp_path / "mixed.hdf5", 0)
    settings: dict[str, Any] = {**SMALL, "env": None, "steps": 2, "action_bounds": (-2.0, 2.0)}
    with pytest.raises(DataError, match=r"expert walk has action_low \(-1.0, -1.0\), but mixed"):
        train("odice_il", mixed, out=tmp_path / "run", expert=str(tmp_path / "best"), **settings)


def test_an_expert_s_name_is_looked_for_where_the_data_s_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf, here = tmp_path / "shelf", tmp_path / "here"
    for folder in (shelf, here):
        folder.mkdir()
    for path in (shelf / "mixed.hdf5", shelf / "best.hdf5", here / "other.hdf5"):
        write_d4rl(path, d4rl_arrays([(12, "timeout"), (9, "timeout")], seed=len(path.name)))
    monkeypatch.chdir(here)
    settings: dict[str, Any] = {**SMALL, "env": None, "steps": 2, "data_dir": "../shelf"}
    for name, expert in (("best", shelf / "best.hdf5"), ("other.hdf5", here / "other.hdf5")):
        out = tmp_path / name
        stopped = train("odice_il", "mixed", out=out, expert=name, **settings)
        assert read_json(out / "config.json")["agent_config"]["expert"] == str(expert)
        monkeypatch.chdir(tmp_path)
        assert train(resume=out).summaries == stopped.summaries
        monkeypatch.chdir(here)
    words = "--agent odice_il --dataset mixed --data-dir ../shelf --expert other.hdf5 --env none"
    small = "--steps 2 --hidden 8 --actor-hidden 8 --out ../cli"
    assert main(["train", *words.split(), *small.split()]) == 0
    stored = read_json(tmp_path / "cli" / "config.json")["agent_config"]["expert"]
    assert stored == str(here / "other.hdf5")
    with pytest.raises(DataError, match="unknown dataset 'bets'"):
        train("odice_il", "mixed", out=tmp_path / "none", expert="bets", **settings)
    assert not (tmp_path / "none").exists()


def test_a_run_finds_its_expert_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = tmp_path / "here"
    here.mkdir()
    (here / "expert.hdf5").write_bytes(Path(expert_file()).read_bytes())
    monkeypatch.chdir(here)
    settings = {**SMALL, "expert": "./expert.hdf5", "env": None, "checkpoint_every": 3}
    data, out = walk(), tmp_path / "run"
    stopped = train("odice_il", data, out=out, steps=3, validation=0.25, **settings)
    assert read_json(out / "config.json")["agent_config"]["expert"] == str(here / "expert.hdf5")
    monkeypatch.chdir(tmp_path)
    assert train(resume=out, dataset=data).summaries == stopped.summaries
    # Another expert under the same name is noticed.
    (here / "expert.hdf5").unlink()
    with pytest.raises(DataError, match="does not exist"):
        train(resume=out, dataset=data)


def test_a_resumed_run_has_the_same_bits(tmp_path: Path) -> None:
    data = walk()
    settings = {**SMALL, "expert": expert_file(), "env": None, "validation": 0.25}
    straight = train("odice_il", data, out=tmp_path / "a", steps=6, checkpoint_every=3, **settings)
    # The same run, killed after its first checkpoint.
    train("odice_il", data, out=tmp_path / "b", steps=6, checkpoint_every=3, **settings)
    for done in (tmp_path / "b" / "checkpoints").glob("*6"):
        for file in done.iterdir():
            file.unlink()
        done.rmdir()
    resumed = train(resume=tmp_path / "b", dataset=data)
    weights = [
        (folder / "policy" / "policy.safetensors").read_bytes()
        for folder in (straight.folders[0], resumed.folders[0])
    ]
    assert weights[0] == weights[1]
    # Data with other marks is not the data that the run began with.
    other = walk(seed=5)
    with pytest.raises(RunError, match="other data"):
        train(resume=tmp_path / "b", dataset=other)


def test_settings_and_views_that_cannot_work_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"expert_episodes is 0"):
        ODICEILConfig(expert_episodes=0)
    data = walk()
    agent = ODICEIL(data.spec, ODICEILConfig(hidden=(8,), actor_hidden=(8,)), Learners())
    with pytest.raises(DataError, match="needs a view with an expert"):
        agent.prepare(transitions(data))
