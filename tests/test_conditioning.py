"""The page of memories and goals: run, skipped and drawn on tiny settings; its rows by hand."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).resolve().parents[1] / "scripts"))

import cells
import conditioning
import generative

from offrl.files import read_json
from offrl.policy import load_policy

RECALL, GOALS = "offrl/Recall-v0", "offrl/GoalReach-v0"
NARROW = {"width": 8, "depth": 1, "batch_size": 4}


@pytest.fixture(autouse=True)
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for module in (cells, generative):
        monkeypatch.setattr(module, "WORK", tmp_path / "work")
        monkeypatch.setattr(module, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(conditioning, "PAGE", tmp_path / "results" / "conditioning")
    monkeypatch.setattr(conditioning, "EPISODES", 2)
    own = conditioning.training_settings
    monkeypatch.setattr(conditioning, "training_settings", lambda o: {**own(o), "eval_episodes": 1})
    return tmp_path


def small(monkeypatch: pytest.MonkeyPatch, chosen: dict[str, tuple[str, ...]]) -> None:
    """Narrow networks, and of the tables these cells."""
    tasks = {}
    for env, names in chosen.items():
        task = conditioning.TASKS[env]
        kept = {n: task.cells[n] for n in names}
        made = {n: replace(c, settings={**c.settings, **NARROW}) for n, c in kept.items()}
        tasks[env] = replace(task, cells=made)
    monkeypatch.setattr(conditioning, "TASKS", tasks)


def run(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    monkeypatch.setattr(sys, "argv", ["conditioning.py", *words])
    conditioning.main()


def test_cells_are_run_skipped_and_drawn(
    work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small(monkeypatch, {RECALL: ("short-ptp",), GOALS: ("window",)})
    words = ("--steps", "2", "--seeds", "2", "--demonstrations", "2")
    run(monkeypatch, *words)
    page = work / "results" / "conditioning"
    cell = read_json(page / "offrl-GoalReach-v0" / "window" / "cell.json")
    assert [w["evaluations"] for w in cell["seeds"][0]["ways"]] == ["3", "3"]
    text = (page / "README.md").read_text()
    for line in (
        "| short (2), past predicted | 8 |",
        "| short (2), past predicted, best of 10 | 80 |",
        "| BESO, window of 2, past noised | 3 |",
        "2 demonstrations, 120 steps",
        "Chance: 25 %.",
    ):
        assert line in text, line
    for env in (RECALL, GOALS):
        picture = page / f"{generative.folder_name(env)}.png"
        assert picture.read_bytes().startswith(b"\x89PNG")
    capsys.readouterr()
    run(monkeypatch, *words)
    assert capsys.readouterr().out.count("finished already") == 2
    (page / "offrl-Recall-v0" / "discussion.md").write_text("Why this is so.")
    run(monkeypatch, "--draw")
    assert "Why this is so." in (page / "README.md").read_text()


def test_rows_are_means_with_intervals(work: Path) -> None:
    folder = work / "results" / "conditioning" / "offrl-Recall-v0" / "short"
    folder.mkdir(parents=True)
    text = conditioning.TASKS[RECALL].cells["short"].ways[0].text
    ways = [[{"text": text, "evaluations": "8", "success": s}] for s in (0.2, 0.4, 0.6)]
    cells.write_json(folder / "cell.json", {"seeds": [{"ways": w} for w in ways]})
    found = conditioning.rows_of(folder.parent, conditioning.TASKS[RECALL])
    assert found == [(text, "8", [0.2, 0.4, 0.6])]


def test_a_network_is_asked_in_another_way(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small(monkeypatch, {GOALS: ("window",)})
    words = ("--steps", "1", "--seeds", "1", "--demonstrations", "2", "--envs", GOALS)
    run(monkeypatch, *words)
    (path,) = (work / "work").glob("conditioning-offrl-GoalReach-v0-window-*")
    policy: Any = conditioning.asked(path, {"sampler": "heun", "steps": 2, "guidance": 0.5})
    own = load_policy(path)
    assert policy.actor.generation.sampler == "heun" and policy.actor.generation.steps == 2
    assert policy.actor.guidance == 0.5 and own.actor.guidance == 1.0
    assert own.actor.generation.steps == 3
    weights = own.actor.state_dict()
    assert all((v == weights[k]).all() for k, v in policy.actor.state_dict().items())
    noised = conditioning.asked(path, {"noised_past": True}).actor
    assert noised.noised_past and noised.generation == own.actor.generation
