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
from corruption import Score

from offrl.datasets.corruption import Corruption, masks_of
from offrl.datasets.offline import Reference
from offrl.experiment import Plan, plan


def cell(folder: Path, scores: list[float], steps: int = 100, **settings: Any) -> None:
    folder.mkdir(parents=True)
    stored = {"hash": "h", "seeds": [{"final": {"score": score}} for score in scores]}
    (folder / "cell.json").write_text(json.dumps(stored))
    train = {"steps": steps, "backend": "eager", "matmul": "float32"}
    config = {"train": train, "agent_config": settings}
    (folder / "config.json").write_text(json.dumps(config))


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


def test_the_clean_score_is_of_the_same_length_and_settings(tmp_path: Path) -> None:
    homes = own, shared = (tmp_path / "own", tmp_path / "shared")
    row = {"rewards": Score((1.0,), {"train": {"steps": 100}}), "dynamics": None}
    assert corruption.clean_score(homes, "edac", row) is None
    cell(shared / "edac", [40.0], ensemble=50)
    assert corruption.clean_score(homes, "edac", row) is None
    cell(own / "edac", [30.0], ensemble=10)
    found = corruption.clean_score(homes, "edac", row)
    assert found is not None and found.values == (30.0,)
    cell(own / "iql", [7.0], steps=99)
    assert corruption.clean_score(homes, "iql", row) is None
    cell(shared / "iql", [8.0])
    found = corruption.clean_score(homes, "iql", row)
    assert found is not None and found.values == (8.0,)


@pytest.mark.parametrize(
    ("asked", "expected"),
    [([], ["edac", "td3_bc"]), (["--clean"], ["iql", "edac", "td3_bc"]), (["--no-clean"], [])],
    ids=["unless known", "always", "never"],
)
def test_clean_cells_are_run_unless_a_comparable_one_exists(
    asked: list[str], expected: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell(tmp_path / "hopper-medium-replay" / "iql", [8.0], steps=4)
    cell(tmp_path / "hopper-medium-replay" / "edac", [8.0], steps=4, ensemble=50)
    run: dict[str, Plan] = {}
    monkeypatch.setattr(corruption, "RESULTS", tmp_path)
    monkeypatch.setattr(corruption, "run_cell", lambda planned, name: run.update({name: planned}))
    monkeypatch.setattr(corruption, "run_mode", lambda *a: None)
    monkeypatch.setattr(corruption, "draw", lambda *a: None)
    line = ["corruption.py", "--agents", "iql", "edac", "td3_bc", "--steps", "4", "--seeds", "2"]
    monkeypatch.setattr(sys, "argv", [*line, *asked])
    corruption.main()
    assert list(run) == [f"corruption/hopper-medium-replay/clean/{agent}" for agent in expected]
    for planned in run.values():
        assert (planned.train.seeds, planned.train.steps) == (2, 4)
        assert planned.agent != "edac" or planned.agent_config.ensemble == 10


def test_corrupted_data_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corruption, "WORK", tmp_path)
    data = walk(episodes=2, length=20)
    asked = Corruption(("dynamics",), seed=2)
    first = corruption.corrupted(data, asked, 1)
    monkeypatch.setattr(corruption, "corrupt_with_bar", None)
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
