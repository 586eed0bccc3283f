"""Callbacks, and the one that logs to Weights & Biases."""

import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from dataset_files import d4rl_arrays, write_d4rl
from problems import Drift, walk

from offrl import checkpoints
from offrl.callbacks import Callback
from offrl.cli import main
from offrl.experiment import train
from offrl.wandb_callback import WandbCallback

SETTINGS = {
    **{"steps": 8, "batch_size": 4, "hidden": (4,), "log_every": 2, "eval_every": 4},
    **{"eval_episodes": 2, "checkpoint_every": 8, "validation": 0.25, "device": "cpu"},
}


class Diary(Callback):
    """Notes every call."""

    def __init__(self) -> None:
        self.entries: list[tuple[str, int, Path, Any]] = []

    def on_log(self, step: int, folder: Path, values: Mapping[str, float]) -> None:
        self.entries.append(("log", step, folder, dict(values)))

    def on_evaluation(
        self, step: int, folder: Path, values: Mapping[str, float], evaluation: Any
    ) -> None:
        self.entries.append(("evaluation", step, folder, (dict(values), evaluation)))

    def on_checkpoint(self, step: int, folder: Path) -> None:
        kept = checkpoints.steps_in(folder / "checkpoints")
        self.entries.append(("checkpoint", step, folder, kept))


class FakeRun:
    def __init__(self) -> None:
        self.rows: list[tuple[int, dict[str, float]]] = []

    def log(self, values: dict[str, float], step: int) -> None:
        assert not self.rows or step >= self.rows[-1][0]  # or wandb drops it
        self.rows.append((step, values))


class FakeWandb(ModuleType):
    """Takes what the package takes."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.started: list[dict[str, Any]] = []
        self.runs: list[FakeRun] = []

    def init(self, **options: Any) -> FakeRun:
        self.started.append(options)
        self.runs.append(FakeRun())
        return self.runs[-1]


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> FakeWandb:
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return fake


def test_a_callback_that_overrides_nothing_does_nothing(tmp_path: Path) -> None:
    train("bc", walk(), env=None, out=tmp_path / "run", callbacks=[Callback()], **SETTINGS)


def test_callbacks_are_called_for_every_learner(tmp_path: Path) -> None:
    diary, out = Diary(), tmp_path / "run"
    train("td3_bc", walk(), env=Drift, out=out, callbacks=[diary], seeds=2, **SETTINGS)
    folders = [out / "seed-0", out / "seed-1"]
    assert [(kind, step, folder) for kind, step, folder, _ in diary.entries] == [
        *(("log", 2, f) for f in folders),
        *(("log", 4, f) for f in folders),
        *(("evaluation", 4, f) for f in folders),
        *(("log", 6, f) for f in folders),
        *(("log", 8, f) for f in folders),
        *(("evaluation", 8, f) for f in folders),
        *(("checkpoint", 8, f) for f in folders),
    ]
    logged = [what for kind, _, _, what in diary.entries if kind == "log"]
    assert all("train/critic_loss" in values for values in logged)
    for kind, _, _, what in diary.entries:
        if kind == "evaluation":
            values, evaluation = what
            assert values["eval/return"] == evaluation.mean and len(evaluation.returns) == 2
            assert {"validation/action_error", "validation/td_error"} <= values.keys()
        if kind == "checkpoint":
            assert what == [8]


def test_without_an_environment_validation_is_what_they_hear(tmp_path: Path) -> None:
    diary = Diary()
    train("td3_bc", walk(), env=None, out=tmp_path / "run", callbacks=[diary], **SETTINGS)
    heard = [what for kind, _, _, what in diary.entries if kind == "evaluation"]
    assert len(heard) == 2
    for values, evaluation in heard:
        assert evaluation is None
        assert values.keys() == {f"validation/{n}" for n in ("action_error", "td_error", "q")}


def test_wandb_gets_one_run_per_learner(wandb: FakeWandb, tmp_path: Path) -> None:
    callback = WandbCallback("project", {"agent": "bc"})
    assert wandb.started == []  # nothing is sent before there is something to say
    train("bc", walk(), env=Drift, out=tmp_path / "run", seeds=2, callbacks=[callback], **SETTINGS)
    folders = [str(tmp_path / "run" / f"seed-{s}") for s in (0, 1)]
    assert [s["name"] for s in wandb.started] == folders == [s["dir"] for s in wandb.started]
    assert all(s["project"] == "project" for s in wandb.started)
    assert all(s["config"] == {"agent": "bc"} for s in wandb.started)
    for run in wandb.runs:
        assert [step for step, _ in run.rows] == [2, 4, 4, 6, 8, 8]
        names = {name for _, values in run.rows for name in values}
        assert names == {
            *("train/actor_loss", "validation/action_error"),
            *("eval/return", "eval/length"),
        }


def test_the_command_logs_to_wandb(wandb: FakeWandb, tmp_path: Path) -> None:
    data = write_d4rl(tmp_path / "d.hdf5", d4rl_arrays([(10, "timeout")] * 12))
    command = ["train", "--agent", "bc", "--dataset", str(data), "--wandb", "mine"]
    assert main([*command, "--steps", "4", "--hidden", "4", "--out", str(tmp_path / "run")]) == 0
    (started,) = wandb.started
    assert started["project"] == "mine" and started["config"]["train"]["steps"] == 4
    assert [step for step, _ in wandb.runs[0].rows] == [4, 4]
    (last,) = (tmp_path / "run" / "checkpoints").iterdir()
    last.rename(tmp_path / "lost")
    assert main(["train", "--resume", str(tmp_path / "run"), "--wandb", "mine"]) == 0
    assert wandb.started[1]["project"] == "mine" and wandb.runs[1].rows == wandb.runs[0].rows


def test_without_the_package_nothing_is_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)  # as if it were not installed
    data = write_d4rl(tmp_path / "d.hdf5", d4rl_arrays([(10, "timeout")] * 12))
    command = ["train", "--agent", "bc", "--dataset", str(data), "--wandb", "mine"]
    assert main([*command, "--out", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "pip install 'offrl[wandb]'" in error
    assert not (tmp_path / "run").exists()
