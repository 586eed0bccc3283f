"""The page of students: what it shows of its cells, and what it measures of a student."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from problems import ACT, OBS, TEACHER, walk
from teachers import teacher

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))
import cells
import distillation

from offrl.datasets.offline import Spec
from offrl.files import write_json


def cell(folder: Path, returns: list[float], error: float) -> None:
    for k in range(len(returns)):
        config: dict[str, Any] = {
            "env": "HalfCheetah-v5",
            "agent": "distill",
            "agent_config": {"teacher_std": 0.1},
            "train": {"steps": 50_000, "seed": k},
            "dataset": {"name": "replay", "steps": 202_000, "behaviour_return_mean": 1000.0},
        }
        path = folder / f"seed-{k}"
        path.mkdir(parents=True)
        write_json(path / "config.json", config)
        (path / "metrics.csv").write_text("step,name,value\n")
    seeds = [{"final": {"mean": r}, "error": error, "kl": 2.0} for r in returns]
    write_json(folder / "cell.json", {"seeds": seeds})


@pytest.mark.parametrize(
    ("std", "says"), [(0.25, "deviates by 0.250"), (None, "counts as deviating by 0.100")]
)
def test_the_page_shows_students_beside_their_teacher(
    tmp_path: Path, std: float | None, says: str
) -> None:
    folder = tmp_path / "replay-wise-0a1b2c"
    known = {"agent": "wise", "dataset": "replay", "seed": 0, "step": 100_000}
    final = {"mean": 5000.0, "returns": [4990.0, 5000.0, 5010.0]}
    cell(folder / "teacher", [4000.0, 5000.0], 0.01)
    cell(folder / "kl", [2000.0, 2000.0], 0.02)
    write_json(folder / "teacher.json", {"teacher": known, "std": std, "final": final})
    (folder / "discussion.md").write_text("Seen by eye.\n")
    cells.write_page(tmp_path, distillation.INTRODUCTION, distillation.section)
    text = (tmp_path / "README.md").read_text()
    assert "a teacher by `wise`" in text and says in text and "Seen by eye." in text
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert [row.split("|")[1].strip()[:5] for row in rows] == ["stude", "plain", "ADPO,"]
    assert "| 4500.0 | -1853.1 to 10853.1 | 90.0 | 0.0100 | 2.00 | 2 | 50,000 |" in rows[2]


def test_a_teacher_may_be_of_unknown_origin() -> None:
    nothing = {"agent": None, "dataset": None, "seed": None, "step": None}
    assert distillation._teacher(nothing) == "a teacher of unknown origin"
    assert distillation._teacher({**nothing, "agent": "iql"}) == "a teacher by `iql`"


def test_distances_are_of_the_actions_at_logged_observations() -> None:
    data = walk()
    other = Path(teacher("DeterministicActor", Spec.unbounded(OBS, ACT), "another", seed=41))
    same = distillation.distances(Path(TEACHER), data, 0.1, Path(TEACHER))
    assert same["error"] == 0.0 and same["kl"] == pytest.approx(0.0, abs=1e-6)
    found = distillation.distances(Path(TEACHER), data, 0.1, other)
    assert found["error"] > 0.0 and found["kl"] > 0.0
    assert len(distillation.seen(data)) == data.num_steps
    assert np.isfinite(distillation.seen(data)).all()


def test_a_cell_does_not_depend_on_where_the_checkout_lies() -> None:
    path = str(cells.ROOT / "runs" / "a")
    assert cells.portable(f'{{"teacher": "{path}"}}') == '{"teacher": "runs/a"}'
