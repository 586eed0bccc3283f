"""Descents, strange states, and their page: cells are run on tiny sizes, skipped and drawn."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.append(str(Path(__file__).resolve().parents[1] / "scripts"))

import cells
import energy
import generative
import strangeness

from offrl.agents import AGENTS
from offrl.files import read_json
from offrl.networks import Learners
from offrl.policy import load_policy

ENV = "offrl/MultiReach-v0"
TINY: dict[str, Any] = {"width": 8, "depth": 2, "warmup": 2}


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for module in (cells, generative, energy):
        monkeypatch.setattr(module, "WORK", tmp_path / "work")
        monkeypatch.setattr(module, "RESULTS", tmp_path / "results")
    sizes = {"STEPS": (1, 3), "SETTLING": (1e9,), "EPISODES": 2, "STATES": 20, "UNSEEN": 2}
    for name, value in {"PAGE": tmp_path / "results" / "energy", **sizes}.items():
        monkeypatch.setattr(energy, name, value)
    searched = {"width": 8, "depth": 2, "negatives": 4, "candidates": 8}
    rows = {
        "ebt": ("ebt", TINY, "EBT"),
        "ibc": ("ibc", searched, "IBC"),
        "diffusion": ("diffusion_policy", TINY, "DDIM"),
        "flow": ("flow_bc", TINY, "Euler"),
        "regression": ("chunk_bc", TINY, "regression"),
    }
    monkeypatch.setattr(energy, "ROWS", rows)
    return tmp_path / "results" / "energy"


def test_cells_are_run_skipped_and_drawn(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--steps", "2", "--seeds", "1", "--episodes", "3", "--batch-size", "8"]
    energy.main(words)
    folder = page / "offrl-MultiReach-v0"
    (ebt,) = read_json(folder / "ebt" / "cell.json")["seeds"]
    assert [t["steps"] for t in ebt["steps"]] == [1, 3]
    # Any change counts as none: the second slope ends it.
    assert ebt["settling"][0]["evaluations"] == 2.0
    areas = ebt["detection"]["areas"]
    assert areas.keys() == set(strangeness.KINDS)
    assert all(0.0 <= a <= 1.0 for kind in areas.values() for a in kind.values())
    (ibc,) = read_json(folder / "ibc" / "cell.json")["seeds"]
    assert not ibc["steps"] and ibc["detection"]["evaluations"] == 3 * 8
    (regression,) = read_json(folder / "regression" / "cell.json")["seeds"]
    assert "detection" not in regression
    text = (page / "README.md").read_text()
    for part in ("3 demonstrations", "| policy | 1 | 3 |", "| DDIM |", "| EBT | 1e+09 | 2.0 |"):
        assert part in text
    assert "| IBC | moved |" in text and "| regression |" in text
    assert (page / f"{folder.name}.png").read_bytes().startswith(b"\x89PNG")
    capsys.readouterr()
    energy.main(words)
    assert capsys.readouterr().out.count("finished already") == 5
    energy.main(["--draw"])
    assert (page / "README.md").read_text() == text


def policy_of(name: str, tmp_path: Path, **changes: Any) -> Path:
    from offrl.envs.scripted import demonstrator

    cls, default = AGENTS[name]
    recipe = {k: v for k, v in cls.recipes["offrl"].items() if k in vars(default)}
    config = type(default)(**{**vars(default), **recipe, **changes})
    agent = cls(demonstrator(ENV).spec, config, Learners())
    agent.policy().save(tmp_path / "policy")
    return tmp_path / "policy"


def test_another_descent_for_the_policy_of_a_run(tmp_path: Path) -> None:
    path = policy_of("ebt", tmp_path, **TINY)
    obs = np.zeros((1, 6), np.float32)
    own, same, other = load_policy(path), energy.descended(path, 2), energy.descended(path, 9)
    assert np.array_equal(same.predict(obs), own.predict(obs))
    assert not np.array_equal(other.predict(obs), own.predict(obs))


def test_strange_states_are_as_far_as_they_say() -> None:
    generator = np.random.default_rng(0)
    ordinary = generator.standard_normal((30, 2, 4)).astype(np.float32)
    for kind, far in (("moved", 2.0), ("nudged", 0.5)):
        found = strangeness.strange(kind, ordinary, np.ones(4, np.float32), generator)
        step = found - ordinary
        np.testing.assert_allclose(np.linalg.norm(step, axis=-1), far, rtol=1e-5)
        np.testing.assert_allclose(step[:, 0], step[:, 1], atol=1e-5)
    shuffled = strangeness.strange("shuffled", ordinary, np.ones(4, np.float32), generator)
    assert not np.array_equal(shuffled, ordinary)
    for k in range(4):
        # Windows move together, and every component keeps its values.
        pairs = {tuple(p) for p in ordinary[..., k].tolist()}
        assert {tuple(p) for p in shuffled[..., k].tolist()} == pairs


def test_strange_states_are_in_the_units_of_the_data() -> None:
    learned = np.array([[[0.0, 7.1, 10.0]], [[2.0, 7.1, 30.0]]], np.float32)
    unit = strangeness.units(learned)
    np.testing.assert_array_equal(unit, [1.0, 0.0, 10.0])
    step = strangeness.strange("moved", learned, unit, np.random.default_rng(0)) - learned
    assert not step[..., 1].any()
    ones = np.ones(3, np.float32)
    same = strangeness.strange("moved", learned, ones, np.random.default_rng(0)) - learned
    np.testing.assert_allclose(step[..., [0, 2]], same[..., [0, 2]] * [1.0, 10.0], rtol=1e-4)


def test_strange_states_are_the_same_for_every_policy(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    judge = strangeness.judged

    def judged(policy: Any, obs: Any, noise: Any) -> Any:
        seen.append(obs.copy())
        return judge(policy, obs, noise)

    monkeypatch.setattr(strangeness, "judged", judged)
    data = energy.unseen(ENV)
    for name, own in (("ebt", TINY), ("ibc", {"width": 8, "depth": 2, "candidates": 8})):
        path = policy_of(name, tmp_path / name, **own)
        strangeness.detection(load_policy(path), data, data, 10)
    half = len(seen) // 2
    assert half == 1 + len(strangeness.KINDS)
    for first, second in zip(seen[:half], seen[half:], strict=True):
        np.testing.assert_array_equal(first[:, -1], second[:, -1])


def test_distances_to_what_was_learned_by_hand() -> None:
    learned = np.array([[[0.0, 0.0]], [[3.0, 4.0]]], np.float32)
    obs = np.array([[[0.0, 1.0]], [[3.0, 2.0]], [[3.0, 4.0]]], np.float32)
    np.testing.assert_allclose(strangeness.nearest(obs, learned), [1.0, 2.0, 0.0], atol=1e-6)


def test_every_row_names_an_agent_and_its_settings() -> None:
    for agent, own, _ in energy.ROWS.values():
        assert set(own) <= set(vars(AGENTS[agent][1]))
