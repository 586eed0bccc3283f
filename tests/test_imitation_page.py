"""The page of imitation: what its rows learn from, and cells that are run, skipped and drawn."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_env import ENV_ID, Drift

sys.path.append(str(Path(__file__).resolve().parents[1] / "scripts"))

import cells
import imitation

from offrl.agents import AGENTS
from offrl.datasets.minari import write_minari
from offrl.datasets.offline import OfflineDataset, Reference
from offrl.datasets.staged import spec_of
from offrl.errors import DataError
from offrl.files import read_json
from offrl.networks import Learners

REFERENCE = Reference(0.0, 10.0, "none")


def data(name: str, returns: list[float], **fields: Any) -> OfflineDataset:
    """Episodes of four steps whose rewards sum to these returns."""
    return OfflineDataset.from_episodes(
        [
            {
                "obs": np.full((5, 2), value / 10),
                "action": np.zeros((4, 1)),
                "reward": np.full(4, value / 4),
                "terminated": False,
                "truncated": True,
            }
            for value in returns
        ],
        **{"spec": spec_of(Drift()), "name": name, "env_id": ENV_ID, "reference": REFERENCE},
        **fields,
    )


@pytest.fixture
def sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    """Paths of mixed data and of an expert's, the results in a folder of their own."""
    monkeypatch.setattr(cells, "WORK", tmp_path / "work")
    monkeypatch.setattr(cells, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(imitation, "PAGE", tmp_path / "results" / "imitation")
    for name, returns in (("mixed", [3.0, 5.0, 1.0]), ("wise", [8.0, 9.0, 7.0])):
        write_minari(data(name, returns), tmp_path / name)
    return str(tmp_path / "mixed"), str(tmp_path / "wise")


def test_rows_differ_in_what_they_learn_from_and_by(sets: tuple[str, str]) -> None:
    mixed, wise = sets
    for expert, best, home in (("", 5.0, "mixed"), (wise, 9.0, "mixed-wise")):
        folder, facts, runs = imitation.plans(mixed, expert, {"steps": 4})
        assert folder == home and list(runs) == list(imitation.ROWS)
        assert facts["data"] == {"mean": pytest.approx(30.0), "best": pytest.approx(50.0)}
        assert facts["expert"]["score"] == pytest.approx(10 * best)
        assert facts["expert"]["steps"] == 4
        configs = {row: run.agent_config for row, run in runs.items()}
        policy = configs["all/odice_il"]
        for row in ("expert/percent_bc", "all/bc"):
            assert (configs[row].hidden, configs[row].lr) == (policy.actor_hidden, policy.lr)
        assert len({run.train.batch_size for run in runs.values()}) == 1
        assert {run.env for run in runs.values()} == {ENV_ID}
        # Each episode has an observation of its own.
        seen = {}
        for row, run in runs.items():
            agent = AGENTS[run.agent][0](run.dataset.spec, run.agent_config, Learners())
            view = agent.view(run.dataset)
            seen[row] = sorted(view.batch(view.index).obs[:, 0].unique().tolist())
        assert len(seen["expert/odice_il"]) == len(seen["expert/percent_bc"]) == 1
        assert len(seen["all/bc"]) == 3 and len(seen["all/odice_il"]) == (4 if expert else 3)


def test_scores_need_a_reference() -> None:
    with pytest.raises(DataError, match="mixed has no reference returns"):
        imitation.facts(replace(data("mixed", [1.0]), reference=None), data("wise", [1.0]))


def test_cells_are_run_skipped_and_drawn(
    sets: tuple[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    played = cells.evaluate
    # No table has references of this environment.
    monkeypatch.setattr(cells, "evaluate", lambda *a: replace(played(*a), reference=REFERENCE))
    monkeypatch.setattr(cells, "FINAL_EPISODES", 2)
    words = ["--datasets", sets[0], "--expert", sets[1], "--steps", "2", "--seeds", "2"]
    words += ["--backend", "eager", "--matmul", "float32"]
    monkeypatch.setattr(sys, "argv", ["imitation.py", *words])
    imitation.main()
    page = tmp_path / "results" / "imitation"
    folder = page / "mixed-wise"
    for row in imitation.ROWS:
        assert len(read_json(folder / row / "cell.json")["seeds"]) == 2
    (folder / "discussion.md").write_text("Seen by eye.\n")
    capsys.readouterr()
    imitation.main()
    assert capsys.readouterr().out.count("finished already") == 4
    text = (page / "README.md").read_text()
    assert "Scores of the data: 30.0 mean, 50.0 best episode." in text
    assert "The expert's episode, of wise: 90.0 in 4 steps." in text
    assert all(f"| {name} | " in text for name in imitation.ROWS.values())
    assert text.index("![learning curves](mixed-wise.png)") < text.index("Seen by eye.")
    assert (page / "mixed-wise.png").read_bytes().startswith(b"\x89PNG")
