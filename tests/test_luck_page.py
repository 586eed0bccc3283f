"""The page of luck: run and drawn on tiny sizes, and its numbers by hand."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.append(str(Path(__file__).resolve().parents[1] / "scripts"))

import cells
import luck
from problems import walk

from offrl.datasets.offline import OfflineDataset
from offrl.envs.tasks import TASKS
from offrl.files import read_json, write_json

ENV = "offrl/LuckyBandit-v0"


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for module in (cells, luck):
        monkeypatch.setattr(module, "WORK", tmp_path / "work")
        monkeypatch.setattr(module, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(luck, "PAGE", tmp_path / "results" / "luck")
    return tmp_path / "results" / "luck"


def run(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    monkeypatch.setattr(sys, "argv", ["luck.py", *words])
    assert luck.main() == 0


def test_the_page_is_made_and_finished_cells_are_kept(
    folders: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--envs", ENV, "--seeds", "2", "--steps", "4", "--episodes", "40", "--starts", "10"]
    run(monkeypatch, *words)
    page = (folders / "README.md").read_text()
    assert "## LuckyBandit-v0" in page and "40 episodes of the behaviour" in page
    assert page.count("| `dt` |") == page.count("| `doc` |") == 1
    assert (folders / "consistency.png").stat().st_size > 5_000
    for agent in luck.AGENTS:
        cell = read_json(folders / "offrl-LuckyBandit-v0" / agent / "cell.json")
        assert len(cell["seeds"]) == 2
        for seed in cell["seeds"]:
            found = seed["consistency"]
            assert found["asked"] == [0.0, 0.1667, 0.3333, 0.5, 0.6667, 0.8333, 1.0]
            assert len(found["got"]) == 7 and ("promised" in found) == (agent == "doc")
            assert len(seed["final"]["returns"]) == 10
    capsys.readouterr()
    run(monkeypatch, *words)
    assert capsys.readouterr().out.count("finished already") == 2


def test_numbers_of_the_page_by_hand(folders: Path) -> None:
    folder = folders / "offrl-LuckyBandit-v0" / "doc"
    data = {"episodes": 5, "behaviour_return_mean": 0.25, "behaviour_return_max": 1.0}
    made: dict[str, Any] = {
        "seeds": [
            {
                "final": {"mean": mean, "episodes": 8, "returns": [mean] * 8},
                "consistency": {"asked": [0, 1], "got": [0.1, mean], "promised": [0.1, 0.9]},
            }
            for mean in (0.8, 0.9, 1.0)
        ]
    }
    (folder / "seed-0").mkdir(parents=True)
    write_json(folder / "cell.json", made)
    write_json(folder / "seed-0" / "config.json", {"dataset": data, "train": {"steps": 1200}})
    # Starts do not differ: the deviation over seeds is 0.1, Student's factor 4.303 / sqrt(3).
    row = "| `doc` | 0.90 | 0.65 to 1.15 | 0.80, 0.90, 1.00 | 8 | 1,200 |"
    text = luck.section(ENV)
    assert text[-1] == row and "mean return 0.25, best 1.00" in text[3]
    assert luck.section("offrl/SlipperyLake-v0") == []
    for seed in made["seeds"]:
        seed["final"]["returns"] = [r - 0.3 for r in seed["final"]["returns"]]
    (folder.parent / "dt" / "seed-0").mkdir(parents=True)
    write_json(folder.parent / "dt" / "cell.json", made)
    (folder.parent / "dt" / "seed-0" / "config.json").write_text(
        (folder / "seed-0" / "config.json").read_text()
    )
    assert luck.section(ENV)[-1] == "`doc` less `dt`, start by start: 0.30 (0.30 to 0.30)."
    luck.draw(folders)
    assert "asked for and earned" in (folders / "README.md").read_text()


def test_returns_are_asked_from_the_least_to_the_best() -> None:
    data: OfflineDataset = walk(5, 4)
    asked = luck.asked_returns(data)
    returns = data.returns()
    assert len(asked) == luck.POINTS and asked == sorted(asked)
    np.testing.assert_allclose([asked[0], asked[-1]], [returns.min(), returns.max()], atol=1e-4)
    assert set(luck.TASKS) <= set(TASKS)
    assert luck.settings_of("dt", "offrl/StillReacher-v0")["return_scale"] == 10.0
    assert luck.settings_of("dt", ENV)["return_scale"] == 1.0 and not luck.settings_of("doc", ENV)
