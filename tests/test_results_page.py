"""The page of results, drawn from cells that are made up."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "scripts"))

import results_page  # noqa: E402
from results_page import draw, read_cell  # noqa: E402

from offrl.agents import BC  # noqa: E402

REFERENCE = {"min": 0.0, "max": 200.0, "source": "a table"}


def cell(
    folder: Path,
    scores: list[float],
    *,
    rate: float = 100.0,
    machine: str = "2 cores",
    config: dict[str, Any] | None = None,
    batch_size: int = 256,
    evaluations: int = 10,
    steps: tuple[int, ...] = (1000, 2000),
) -> None:
    """A finished cell: seeds that end with these scores."""
    dataset, agent = folder.parts[-2:]
    seeds = []
    for seed, score in enumerate(scores):
        path = folder / f"seed-{seed}" if len(scores) > 1 else folder
        path.mkdir(parents=True)
        train = {"steps": steps[-1], "batch_size": batch_size, "seed": seed, "seeds": 1}
        train |= {"backend": "eager", "precision": "float32", "matmul": "float32"}
        record = {
            "agent": agent,
            "agent_config": config or {},
            "recipe_values": {"alpha": 40.0},
            "train": train,
            "dataset": {
                **{"name": dataset, "steps": 5000, "episodes": 10, "reference": REFERENCE},
                **{"behaviour_return_mean": 50.0},
            },
        }
        (path / "config.json").write_text(json.dumps(record))
        rows = "".join(f"{s},eval/score,{score + s / 1000}\n" for s in steps)
        (path / "metrics.csv").write_text(f"step,name,value\n{rows}")
        summary = {
            "best": {"step": 1000, "eval/score": score + 3},
            f"mean of last {evaluations}": {"eval/score": score - 1},
        }
        seeds.append({"summary": summary, "final": {"score": score}, "rate": rate})
    made = {"date": "2026-01-01", "commit": "abc", "machine": machine}
    (folder / "cell.json").write_text(json.dumps({**made, "seeds": seeds}))


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    def picture(runs: list[Path], out: Path, *, log_steps: bool, force: bool) -> None:
        assert log_steps and force and all((run / "metrics.csv").exists() for run in runs)
        out.write_text(" ".join(str(run.relative_to(out.parent)) for run in runs))

    monkeypatch.setattr(results_page, "plot", picture)  # which has tests of its own
    hopper, walker = tmp_path / "results" / "hopper", tmp_path / "results" / "walker"
    cell(hopper / "bc", [10.0, 12.0], rate=400.0)
    cell(hopper / "td3_bc", [50.0, 60.0], rate=100.0, config={"alpha": 40.0, "gamma": 0.9})
    cell(hopper / "iql", [30.0, 40.0], rate=50.0, machine="a GPU")
    cell(hopper / "prdc", [70.0], rate=50.0, batch_size=512)
    cell(walker / "bc", [20.0, 20.0], rate=300.0, evaluations=3)
    cell(walker / "td3_bc", [60.0, 62.0], rate=100.0)
    cell(walker / "of_another_time", [60.0, 62.0])
    (hopper / "discussion.md").write_text("Said by hand.\n")
    return tmp_path / "results"


def test_the_page(results: Path, tmp_path: Path) -> None:
    draw(results, tmp_path / "measured.json")
    text = (results / "README.md").read_text()
    hopper, walker = text.split("\n## ")[1:]
    assert [line.split("`")[1] for line in hopper.splitlines() if line.startswith("| `")] == [
        *("prdc", "td3_bc", "iql", "bc")
    ]
    # Scores 50 and 60: 55 +- 12.7 * 5, Student's with one degree of freedom.
    assert "| `td3_bc` | 55.0 | -8.5 to 118.5 | 54.0 | 58.0 | 2 | 2,000 | 256 | 200 |" in hopper
    assert "| `prdc` | 70.0 |  | 69.0 | 73.0 | 1 | 2,000 | 512 | 50 |" in hopper
    assert "mean behaviour score 25.0" in hopper
    # Of three evaluations there is no mean of ten.
    assert "| `bc` | 20.0 | 20.0 to 20.0 |  | 23.0 |" in walker
    assert "eager, float32 products, a GPU (`iql`)" in hopper
    assert (
        "2 cores (`bc`, `td3_bc`, `prdc`)" in hopper
        and "eager, float32 products, 2 cores." in walker
    )
    assert "Not by the recipe: `td3_bc` with gamma 0.9 instead of 0.99." in hopper
    assert "Said by hand." in hopper and "by hand" not in walker
    assert "of_another_time" not in text
    drawn = (results / "hopper.png").read_text()
    assert drawn.split()[:3] == ["hopper/bc/seed-0", "hopper/bc/seed-1", "hopper/td3_bc/seed-0"]
    assert "hopper/prdc" in drawn and "walker" not in drawn
    draw(results, tmp_path / "measured.json")
    assert (results / "README.md").read_text() == text


def test_runs_of_other_lengths_are_set_side_by_side_where_both_were_evaluated(
    results: Path, tmp_path: Path
) -> None:
    def table() -> list[str]:
        draw(results, tmp_path / "measured.json")
        walker = (results / "README.md").read_text().split("\n## ")[2]
        return walker.split("Runs differ in length")[1:]

    assert table() == []
    cell(results / "walker" / "iql", [40.0, 50.0], steps=(1000, 3000))
    cell(results / "walker" / "dt", [90.0, 99.0], steps=(500, 1000))
    lines = [line for line in table()[0].splitlines() if line.startswith("|")]
    assert lines == [  # no other agent was evaluated after 3,000
        "| agent | 1,000 | 2,000 |",
        "|---|--:|--:|",
        "| `dt` | 95.5 |  |",
        "| `td3_bc` | 62.0 | 63.0 |",
        "| `iql` | 46.0 |  |",
        "| `bc` | 21.0 | 22.0 |",
    ]


def test_the_time_of_an_action_where_it_was_measured(results: Path, tmp_path: Path) -> None:
    (results / "actions.json").write_text(json.dumps({"hopper": {"bc": {"median": 0.126}}}))
    draw(results, tmp_path / "measured.json")
    hopper, walker = (results / "README.md").read_text().split("\n## ")[1:]
    assert "| updates/s | ms/action |" in hopper and "ms/action" not in walker
    assert "| 256 | 800 | 0.13 |" in hopper and "| 256 | 200 |  |" in hopper


def test_what_the_package_gets(results: Path, tmp_path: Path) -> None:
    measured = {"ratio": 0.29, "extremes": [0.2, 0.3], "milliseconds": 2.54, "dataset": "hopper"}
    measured["batch_size"] = 256
    (results / "costs.json").write_text(json.dumps({"of_another_time": measured, "bc": measured}))
    draw(results, tmp_path / "measured.json")
    found = json.loads((tmp_path / "measured.json").read_text())
    assert found["cost"] == {"bc": {"ratio": 0.29, "dataset": "hopper"}}
    assert "\n| `bc` | 0.29 | 0.20 to 0.30 | 2.5 | 256 |\n" in (results / "README.md").read_text()
    assert found["cells"]["hopper"]["td3_bc"] == {
        **{"score": 55.0, "interval": [-8.53, 118.53], "mean_of_last_10": 54.0, "best": 58.0},
        **{"seeds": 2, "updates": 2000, "updates_per_second": 200.0},
        **{"changed": "gamma 0.9 instead of 0.99"},
        **{"date": "2026-01-01", "commit": "abc", "machine": "2 cores"},
    }


def test_seeds_in_turn_share_no_speed(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert read_cell(results / "hopper" / "bc").rate == 800
    monkeypatch.setattr(BC, "stacked", False)
    assert read_cell(results / "hopper" / "bc").rate == 400
