"""Demonstrations, cells, ways and latencies of generative policies: a page is run and drawn."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.append(str(Path(__file__).resolve().parents[1] / "scripts"))

import cells
import generative
import latency
import ways

from offrl.envs.scripted import demonstrator
from offrl.evaluation import evaluate
from offrl.files import read_json
from offrl.policy import PlanPolicy, load_policy

ENV = "offrl/MultiReach-v0"


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for module in (cells, generative):
        monkeypatch.setattr(module, "WORK", tmp_path / "work")
        monkeypatch.setattr(module, "RESULTS", tmp_path / "results")
    for name, value in {"PAGE": tmp_path / "results" / "generative", "EPISODES": 4}.items():
        monkeypatch.setattr(generative, name, value)
    monkeypatch.setattr(generative, "PICTURED", 2)
    monkeypatch.setattr(generative, "SAMPLERS", {"flow_bc": [("midpoint", 2)]})
    return tmp_path / "results" / "generative"


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency, "WARM_UP", 1)


def run(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    monkeypatch.setattr(sys, "argv", ["generative.py", *words])
    generative.main()


def test_cells_are_run_skipped_and_drawn(
    page: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = {"mlp": {**latency.BACKBONES["mlp"], "width": 8, "depth": 1}}
    monkeypatch.setattr(
        generative, "measure_latencies", lambda env: latency.measure_latencies(env, sizes, 3)
    )
    words = ["--agents", "chunk_bc", "flow_bc", "--steps", "4", "--seeds", "2", "--episodes", "3"]
    run(monkeypatch, *words)
    folder = page / "offrl-MultiReach-v0"
    assert {p.name for p in folder.iterdir()} == {"chunk_bc", "flow_bc", "demonstrations.json"}
    stored = read_json(folder / "flow_bc" / "cell.json")
    assert len(stored["seeds"]) == 2 and len(stored["seeds"][0]["final"]["success"]) == 4
    assert len(stored["seeds"][0]["ways"]) == 2
    assert stored["seeds"][0]["samplers"][0].keys() == {"sampler", "steps", "success", "coverage"}
    text = (page / "README.md").read_text()
    assert "3 demonstrations" in text and "| `chunk_bc` |" in text
    assert "| `flow_bc` | midpoint | 2 |" in text and "## Latency" in text
    assert (page / f"{folder.name}.png").read_bytes().startswith(b"\x89PNG")
    capsys.readouterr()
    run(monkeypatch, *words, "--skip-latency")
    assert capsys.readouterr().out.count("finished already") == 2
    run(monkeypatch, "--draw")
    assert (page / "README.md").read_text() == text


def test_the_evaluation_of_a_start_and_its_way_end_alike() -> None:
    script = demonstrator(ENV)
    found = evaluate(script, ENV, 6, 3, deterministic=False)
    assert found.success is not None and found.modes is not None
    for start in range(6):
        way = ways.way_of(script, ENV, start, 3, deterministic=False)
        assert way["success"] == found.success[start] and way["mode"] == found.modes[start]
        assert len(way["path"]) == found.lengths[start] + 1
        assert way["path"][0][0] < -0.5


def test_another_sampler_for_the_policy_of_a_run(tmp_path: Path) -> None:
    settings = {"width": 8, "depth": 1, "backbone": "mlp", "history": 1, "horizon": 4}
    spec = demonstrator(ENV).spec
    cls, default = generative.AGENTS["flow_bc"]
    config = type(default)(**{**vars(default), **settings, "execute": 2, "sampler_steps": 2})
    policy = cls(spec, config, latency.Learners((0,))).policy()
    policy.save(tmp_path / "policy")
    obs = np.zeros((1, 6), np.float32)
    same = generative.resampled(tmp_path / "policy", "euler", 2)
    other = generative.resampled(tmp_path / "policy", "midpoint", 2)
    assert np.array_equal(same.predict(obs), policy.predict(obs))
    assert not np.array_equal(other.predict(obs), policy.predict(obs))
    assert isinstance(load_policy(tmp_path / "policy"), PlanPolicy)


@pytest.mark.parametrize(
    ("agent", "sampler", "evaluations"),
    [
        ("chunk_bc", {}, 1),
        ("diffusion_policy", {"sampler": "ddim", "sampler_steps": 8}, 8),
        ("diffusion_policy", {"sampler": "ddpm", "sampler_steps": 100}, 100),
        ("flow_bc", {"sampler": "midpoint", "sampler_steps": 4}, 4),
        ("consistency_bc", {"sampler_steps": 2}, 2),
    ],
)
@pytest.mark.parametrize("backbone", ["mlp", "transformer"])
def test_evaluations_are_counted_where_the_network_is_called(
    agent: str, sampler: dict[str, Any], evaluations: int, backbone: str
) -> None:
    size = {**latency.BACKBONES[backbone], "width": 8, "depth": 1}
    found = latency.timed(demonstrator(ENV).spec, agent, {**size, **sampler}, 9)
    assert found["evaluations"] == evaluations and found["calls"] == 9
    assert 0 < found["processor"][0] <= found["processor"][1]


@pytest.mark.parametrize(
    ("clock", "processor", "says"),
    [
        ([1, 9], [1, 8], "p99"),
        ([5, 40], [4, 9], "p99 of processor time"),
        ([12, 40], [9, 11], "p50 of processor time"),
        ([12, 40], [11, 12], "no"),
    ],
)
def test_what_is_within_ten_milliseconds(
    clock: list[float], processor: list[float], says: str
) -> None:
    assert latency.within({"clock": clock, "processor": processor}) == says
