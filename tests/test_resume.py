"""A run that is killed and resumed ends with the bytes of one that never stopped."""

import json
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from children import Child, ended, forked
from problems import Drift, narrow, walk

from offrl import checkpoints
from offrl.agents import AGENTS
from offrl.errors import OffrlError
from offrl.experiment import resume_run, train
from offrl.files import read_json
from offrl.training import Interrupted

NAMES = sorted(AGENTS)
STEPS = 150
SETTINGS: dict[str, Any] = {
    **{"steps": STEPS, "batch_size": 8, "log_every": 15, "eval_every": 30},
    **{"eval_episodes": 2, "checkpoint_every": 10, "validation": 0.25, "device": "cpu"},
}


def begin(name: str, out: Path, seeds: int) -> None:
    train(name, walk(), env=Drift, out=out, seeds=seeds, **SETTINGS, **narrow(name))


def resume(name: str, out: Path, seeds: int) -> None:
    resume_run(out, dataset=walk(), env=Drift)


def killed_in_checkpoint(name: str, out: Path, seeds: int) -> None:
    """Resume, and die after the tensors of the second checkpoint are written, before its end."""
    written = 0
    write = checkpoints.write_json

    def deadly(path: Path, value: Any) -> None:
        nonlocal written
        written += 1
        if written == seeds + 1:
            os.kill(os.getpid(), signal.SIGKILL)
        write(path, value)

    checkpoints.write_json = deadly
    resume(name, out, seeds)


def in_child(run: Callable[[str, Path, int], None], *args: Any) -> Child:
    return forked(_quietly, run, *args)


def _quietly(run: Callable[..., None], *args: Any) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    run(*args)


def results(out: Path) -> dict[str, bytes]:
    """What must not depend on interruptions, by path within the run."""
    names = ("metrics.csv", "evaluations.csv", "summary.json", "state.safetensors")
    names += ("policy.safetensors",)
    return {
        str(p.relative_to(out)): p.read_bytes()
        for p in sorted(out.rglob("*"))
        if p.name in names and ("step-" not in str(p) or f"step-{STEPS:09d}" in str(p))
    }


def check(name: str, seeds: int, kills: int, kills_in_checkpoint: int, tmp_path: Path) -> None:
    straight, out = tmp_path / "straight", tmp_path / "killed"
    began = time.perf_counter()
    assert ended(in_child(begin, name, straight, seeds)) == 0
    length = time.perf_counter() - began
    expected = results(straight)
    assert len(expected) >= 5 * seeds

    rng = random.Random(f"{name}{seeds}")
    child = in_child(begin, name, out, seeds)
    deaths = 0
    for _ in range(kills):
        time.sleep(length * rng.uniform(0.3, 0.9) / (1 + kills / 4))
        child.kill()
        if ended(child) == -signal.SIGKILL:
            deaths += 1
        else:  # it was quicker than the first run, and the machine has less to do
            length *= 0.7
            _forget_the_end(out)
        started = (out / "config.json").exists()
        child = in_child(resume if started else begin, name, out, seeds)
    ended(child)
    for _ in range(kills_in_checkpoint):
        _forget_the_end(out)
        deaths += ended(in_child(killed_in_checkpoint, name, out, seeds)) == -signal.SIGKILL
    assert ended(in_child(resume, name, out, seeds)) == 0
    assert deaths >= max(1, kills // 2) + kills_in_checkpoint - 1
    assert results(out) == expected
    assert not list(out.rglob("*.partial"))


def _forget_the_end(out: Path) -> None:
    """So that the last checkpoint has to be reached, and saved, again."""
    for folder in out.rglob(f"step-{STEPS:09d}"):
        shutil.rmtree(folder)


@pytest.mark.parametrize("name", NAMES)
def test_killed_and_resumed_ends_with_the_same_bytes(name: str, tmp_path: Path) -> None:
    check(name, 1, 2, 0, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [1, 3])
@pytest.mark.parametrize("name", NAMES)
def test_ten_kills_three_of_them_inside_a_checkpoint(name: str, seeds: int, tmp_path: Path) -> None:
    check(name, seeds, 7, 3, tmp_path)


@pytest.mark.parametrize("which", [signal.SIGTERM, signal.SIGINT])
def test_a_polite_signal_saves_first(which: signal.Signals, tmp_path: Path) -> None:
    straight, out = tmp_path / "straight", tmp_path / "stopped"
    begin("iql", straight, 1)

    def stopped_midway() -> Any:
        os.kill(os.getpid(), which)
        return Drift()

    # The signal comes while the first evaluation makes its environments.
    calls = 0

    def make() -> Any:
        nonlocal calls
        calls += 1
        return stopped_midway() if calls == 2 else Drift()

    with pytest.raises(Interrupted, match=r"--resume") as stopped:
        train("iql", walk(), env=make, out=out, **SETTINGS, **narrow("iql"))
    assert stopped.value.exit_code == 130
    assert checkpoints.steps_in(out / "checkpoints")[-1] == SETTINGS["eval_every"]
    resume("iql", out, 1)
    assert results(out) == results(straight)


def test_resuming_a_finished_run_changes_nothing(tmp_path: Path) -> None:
    begin("bc", tmp_path / "run", 1)
    before = results(tmp_path / "run")
    resume("bc", tmp_path / "run", 1)
    assert results(tmp_path / "run") == before


def test_a_checkpoint_that_was_not_come_back_to_is_made_anew(tmp_path: Path) -> None:
    """A kill between two learners leaves one ahead; its tables then had other lengths."""
    begin("bc", tmp_path / "run", 2)
    ahead, behind = (tmp_path / "run" / f"seed-{s}" / "checkpoints" for s in (0, 1))
    newest, before = (f"step-{s:09d}" for s in (STEPS, STEPS - 10))
    shutil.rmtree(behind / newest)
    stale = ahead / newest / "state.json"
    state = read_json(stale)
    state["tables"] = dict.fromkeys(state["tables"], 10**9)
    stale.write_text(json.dumps(state))
    assert checkpoints.latest_common_step([ahead, behind]) == STEPS - 10
    resume("bc", tmp_path / "run", 2)
    assert (ahead / before).is_dir()
    lengths = read_json(stale)["tables"]
    assert lengths["performance.csv"] == (ahead.parent / "performance.csv").stat().st_size
    resume("bc", tmp_path / "run", 2)


def test_one_learner_of_a_stacked_run_resumes_alone(tmp_path: Path) -> None:
    begin("td3_bc", tmp_path / "run", 3)
    config = read_json(tmp_path / "run" / "seed-1" / "config.json")
    assert config["train"]["seed"] == 1 and config["train"]["seeds"] == 1
    resume("td3_bc", tmp_path / "run" / "seed-1", 1)


def test_other_data_are_refused(tmp_path: Path) -> None:
    begin("prdc", tmp_path / "run", 1)
    with pytest.raises(OffrlError, match="other data"):
        resume_run(tmp_path / "run", dataset=walk(seed=1), env=Drift)
