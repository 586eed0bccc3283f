"""The page of sequence policies, drawn from cells that are made up."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))
import sequences

from offrl.datasets.staged import spec_of
from offrl.envs import make

BEST = 400.0


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(sequences, "RESULTS", tmp_path)
    monkeypatch.setattr(sequences, "PAGE", tmp_path / "sequences")
    (tmp_path / "sequences").mkdir()
    asked = [share * BEST for share in sequences.SHARES]
    told: list[dict[str, Any]] = [
        {"asked": asked, "earned": [x + add for x in asked]} for add in (0.0, 20.0)
    ]
    for agent, seeds in {"dt": told, "decision_mamba": [{"final": {}}]}.items():
        folder = tmp_path / sequences.SHIPPED[0] / agent
        folder.mkdir(parents=True)
        (folder / "cell.json").write_text(json.dumps({"seeds": seeds}))
    return tmp_path / "sequences"


def test_the_page(results: Path) -> None:
    (results / "discussion.md").write_text("Said by hand.\n")
    row = {"agent": "dt", "what": "context 20", "parameters": 730_000}
    row |= {"median": 1.6, "p99": 4.25, "longest": 90.0, "mean": 2.0}
    stored = {"machine": "a machine", "load": 0.5, "rows": [row]}
    (results / sequences.CONTROL).write_text(json.dumps(stored))
    sequences.draw()
    text = (results / "README.md").read_text()
    assert "| hopper-medium-replay | `dt` | 400 | 110 | 210 | 310 | 410 |" in text
    # A cell of another script does not say what was asked for.
    assert "decision_mamba` |" not in text and (results / "asked.png").stat().st_size > 5_000
    assert "| `dt` | context 20 | 0.73 M | 1.6 | 4.2 | 90.0 | 2.0 |" in text
    assert "Said by hand." in text


def test_a_control_step_is_timed_when_the_context_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sequences, "CONTEXTS", (4,))
    monkeypatch.setattr(sequences, "SETTLED", 6)
    env = make("InvertedPendulum-v5")
    spec = spec_of(env)
    env.close()
    size = {"layers": 1, "width": 8, "context": 4}
    found = sequences.control_step(spec, "dt", size, "context 4")
    assert 0.0 < found["median"] <= found["p99"] <= found["longest"] and found["parameters"] > 0


@pytest.mark.parametrize("published", [False, True])
def test_the_best_return_of_the_data_is_asked_for(
    published: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Any] = []
    monkeypatch.setattr(sequences, "run_cell", lambda planned, *_, **__: made.append(planned))
    options = argparse.Namespace(
        **{"agents": ["dt", "act"], "published": published, "warmup": 5, "steps": 6},
        **{"seeds": 1, "backend": "eager", "matmul": "float32"},
    )
    sequences.run_cells("hopper-medium-replay", options)
    dt, act = made
    assert dt.agent_config.target_return is None and dt.train.steps == 6
    assert dt.agent_config.warmup == (10_000 if published else 5)
    assert act.agent_config.width == (512 if published else 128)
