"""The page of preferences: cells are run on tiny sizes, skipped, taken from elsewhere and drawn."""

import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from problems import Drift, walk

sys.path.append(str(Path(__file__).resolve().parents[1] / "scripts"))

import cells
import preferences
from preferences import Row

from offrl.datasets.offline import Reference
from offrl.files import read_json

NARROW = {"hidden": (4,), "eval_every": 2, "eval_episodes": 1}
CALL = ["--steps", "4", "--seeds", "2", "--backend", "eager", "--matmul", "float32"]


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    data = replace(walk(episodes=4, length=8), reference=Reference(-20.0, 0.0, "none"))
    monkeypatch.setattr(preferences.offrl, "load_dataset", lambda name: data)
    monkeypatch.setattr(cells, "WORK", tmp_path / "work")
    for module in (cells, preferences):
        monkeypatch.setattr(module, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(preferences, "PAGE", tmp_path / "results" / "preferences")
    own, planned = preferences.training_settings, preferences.plan
    monkeypatch.setattr(preferences, "training_settings", lambda o: {**own(o), **NARROW})
    monkeypatch.setattr(preferences, "plan", lambda *a, **k: planned(*a, env=Drift, **k))
    kept = ("dpo", "dpo-20", "clone", "bc")
    short = {"segment": 2, "batch_size": 4}
    rows = {
        name: replace(row, settings={**row.settings, **short}) if row.agent != "bc" else row
        for name, row in preferences.ROWS.items()
        if name in kept
    }
    monkeypatch.setattr(preferences, "ROWS", rows)

    class Evaluated:
        def to_json(self) -> dict[str, Any]:
            return {"score": 3.0}

    monkeypatch.setattr(cells, "evaluate", lambda *a: Evaluated())
    return tmp_path / "results"


def run(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    monkeypatch.setattr(sys, "argv", ["preferences.py", *words])
    preferences.main()


def test_cells_are_run_skipped_and_drawn(
    results: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--datasets", "tiny", *CALL]
    run(monkeypatch, *words)
    (folder,) = (p for p in (results / "preferences").iterdir() if p.is_dir())
    flips = {
        name: read_json(folder / name / "preference" / "seed-1" / "config.json")["agent_config"]
        for name in ("dpo", "dpo-20", "clone")
    }
    assert [c["flip"] for c in flips.values()] == [0.0, 0.2, 0.0] and flips["clone"]["clone"] == 1.0
    page = results / "preferences" / "README.md"
    text = page.read_text()
    for part in ("4 labels an update", "segments of 2 steps", "first 50 % of the updates"):
        assert part in text
    assert "| DPO | order of two segments, 20 % wrong | 3.0 | 3.0 to 3.0 |" in text
    assert "| BC | nothing | 3.0 |" in text
    assert (results / "preferences" / f"{folder.name}.png").read_bytes().startswith(b"\x89PNG")
    capsys.readouterr()
    run(monkeypatch, *words)
    assert capsys.readouterr().out.count("finished already") == 4
    # Another page has the same run of BC.
    home = results / folder.name / "bc"
    home.parent.mkdir()
    shutil.move(folder / "bc" / "bc", home)
    run(monkeypatch, *words)
    assert f"bc: as in {folder.name}/bc" in capsys.readouterr().out
    (folder / "discussion.md").write_text("What it means.")
    run(monkeypatch, "--draw")
    assert page.read_text() == text.replace("\n![", "\nWhat it means.\n\n![")


def test_runs_of_another_length_or_with_other_settings_are_not_taken(
    results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(monkeypatch, "--datasets", "tiny", "--rows", "bc", *CALL)
    folder = next(results.glob("preferences/*/bc/bc"))
    for changes, same in (({}, True), ({"steps": 6}, False), ({"lr": 1e-3}, False)):
        asked = {"steps": 4, "seeds": 2, **NARROW, **changes}
        data = preferences.offrl.load_dataset("tiny")
        assert preferences.same_run(folder, preferences.plan("bc", data, settings=asked)) == same
    assert not preferences.same_run(folder / "none", preferences.plan("bc", data, settings=asked))
    # There is no preference beside which it would stand.
    assert preferences.cells_of(folder.parents[1], results / "none") == {}


def test_what_is_told_is_in_the_settings() -> None:
    rows: dict[str, Row] = preferences.ROWS
    for name, row in rows.items():
        assert row.settings.get("flip", 0.0) == (0.2 if name.endswith("-20") else 0.0)
    assert rows["rdpo-20"].settings["wrong"] == rows["rdpo-20"].settings["flip"]
