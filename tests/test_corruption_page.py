"""The table of what agents keep on corrupted data, from made-up cells; and a cell that is run."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from problems import Drift, walk

sys.path.append(str(Path(__file__).resolve().parents[1] / "scripts"))

import cells
import corruption

from offrl.datasets.corruption import Corruption, masks_of
from offrl.datasets.offline import Reference
from offrl.experiment import plan


def cell(folder: Path, scores: list[float], steps: int = 100) -> None:
    folder.mkdir(parents=True)
    stored = {"hash": "h", "seeds": [{"final": {"score": score}} for score in scores]}
    (folder / "cell.json").write_text(json.dumps(stored))
    train = {"steps": steps, "backend": "eager", "matmul": "float32"}
    (folder / "config.json").write_text(json.dumps({"train": train}))


def test_the_page_by_hand(tmp_path: Path) -> None:
    page = tmp_path / "corruption"
    for seed, score in enumerate((10.0, 20.0, 30.0)):
        cell(page / "hopper" / "random-dynamics" / "iql" / f"seed-{seed}", [score])
        cell(page / "hopper" / "random-dynamics" / "edac" / f"seed-{seed}", [5.0])
    cell(page / "hopper" / "random-rewards" / "iql" / "seed-0", [40.0])
    cell(tmp_path / "hopper" / "iql", [38.0, 42.0])
    cell(tmp_path / "hopper" / "edac", [38.0, 42.0], steps=7)
    (page / "hopper" / "discussion.md").write_text("It was to be expected.\n")
    corruption.draw(page, tmp_path)
    text = (page / "README.md").read_text()
    # Mean 20, deviation 10: 20 +- 4.303 * 10 / sqrt(3); 40 of 40 is all, 20 a half. On clean data
    # 40 +- 12.706 * 2.828 / sqrt(2). EDAC's was trained for another time.
    assert "| `iql` | 40.0 (14.6 to 65.4) |  |  | 40.0, 100 % | 20.0 (-4.8 to 44.8), 50 % |" in text
    assert "| `edac` |  |  |  |  | 5.0 (5.0 to 5.0) |" in text
    assert "Not by the recipe: `edac` with ensemble 10." in text
    assert "It was to be expected." in text and "adversarial" not in text
    assert (page / "hopper-random.png").read_bytes().startswith(b"\x89PNG")


def test_corrupted_data_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corruption, "WORK", tmp_path)
    data = walk(episodes=2, length=20)
    asked = Corruption(("dynamics",), seed=2)
    first = corruption.corrupted(data, asked, 1)
    monkeypatch.setattr(corruption, "write_minari", None)
    again = corruption.corrupted(data, asked, 1)
    assert first.fingerprint == again.fingerprint and masks_of(again)["dynamics"].any()


def test_a_cell_of_one_seed_is_kept_and_then_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cells, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(cells, "WORK", tmp_path / "work")

    class Evaluated:
        def to_json(self) -> dict[str, Any]:
            return {"score": 3.0}

    monkeypatch.setattr(cells, "evaluate", lambda *a: Evaluated())
    data = replace(walk(episodes=4, length=10), reference=Reference(-20.0, 0.0, "none"))
    settings = {"steps": 4, "eval_every": 2, "eval_episodes": 1, "hidden": (8,)}
    planned = plan("iql", data, env=Drift, settings=settings)
    cells.run_cell(planned, "corruption/walk/random-dynamics/iql/seed-0")
    folder = tmp_path / "results" / "corruption" / "walk" / "random-dynamics" / "iql" / "seed-0"
    assert {p.name for p in folder.iterdir()} == {"cell.json", "config.json", "metrics.csv"}
    score = corruption.read_score(folder.parent)
    assert score is not None and score.values == (3.0,)
    cells.run_cell(planned, "corruption/walk/random-dynamics/iql/seed-0")
    assert "finished already" in capsys.readouterr().out
