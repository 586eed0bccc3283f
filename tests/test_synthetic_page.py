"""Synthetic data beside the simulator and on its page: errors by hand, and a tiny run of it all."""

import functools
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

sys.path.append(str(Path(__file__).resolve().parents[1] / "scripts"))

import cells
import fidelity
import synthetic
import synthetic_page
from problems import walk

from offrl.datasets.loading import load_dataset
from offrl.datasets.offline import OfflineDataset
from offrl.dynamics import DynamicsConfig
from offrl.errors import DataError, RunError
from offrl.files import read_json

SETS = ("hopper-medium-replay", "halfcheetah-medium-replay", "walker2d-medium-replay")
A = np.array([[0.9, 0.2], [-0.1, 0.8]], np.float32)
B = np.array([[0.5], [0.3]], np.float32)


shipped_set = functools.cache(load_dataset)


# -- the simulator --------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=SETS)
def shipped(request: pytest.FixtureRequest) -> OfflineDataset:
    whole = shipped_set(str(request.param))
    return whole.select(np.arange(2) + whole.num_episodes // 2, "two episodes")


def test_logged_transitions_are_those_of_the_simulator(shipped: OfflineDataset) -> None:
    sim, (scale, spread) = fidelity.Simulator(shipped.env_id), fidelity.one_step_scale(shipped)
    rows = shipped.transition_rows()[:200]
    o, a = shipped.obs_dim, shipped.act_dim
    obs, action = shipped.rows[rows, :o], shipped.rows[rows, None, o : o + a]
    true, reward = sim.play(obs, action)
    known = sim.known(obs)
    assert known.mean() > 0.3
    assert np.array_equal(known, np.isfinite(true).all((1, 2)))
    errors = fidelity.error(shipped.following(rows), true[:, 0], scale)[known]
    assert errors.max() < 1e-4
    assert np.abs(shipped.rows[rows, -3] - reward[:, 0])[known].max() < 1e-3 * spread
    # A wrong action, and the reward of another step, are seen.
    wrong, _ = sim.play(obs, -action)
    assert np.median(fidelity.error(shipped.following(rows), wrong[:, 0], scale)[known]) > 0.05


def test_a_path_is_its_steps_one_after_another() -> None:
    data = shipped_set(SETS[1])
    sim = fidelity.Simulator(data.env_id)
    found = fidelity.pieces(data, 5, 3, 0)
    path, _ = sim.play(found["start"], found["action"])
    np.testing.assert_allclose(path, found["obs"], atol=1e-3)
    assert found["start"].shape == (3, 17) and found["obs"].shape == (3, 5, 17)
    np.testing.assert_array_equal(found["start"], fidelity.pieces(data, 5, 3, 0)["start"])
    assert not np.array_equal(found["start"], fidelity.pieces(data, 5, 3, 1)["start"])


def test_states_that_are_not_known_and_environments_that_are_not() -> None:
    sim = fidelity.Simulator("Hopper-v5")
    obs = np.zeros((4, 11))
    obs[1, 5], obs[2, 4], obs[3, 0] = 9.6, 9.6, np.nan
    assert sim.known(obs).tolist() == [True, False, True, False]
    assert fidelity.Simulator("HalfCheetah-v5").known(np.full((1, 17), 9.9)).all()
    with pytest.raises(DataError, match=r"state of Reacher-v5 is not known.*Hopper, Walker2d"):
        fidelity.Simulator("Reacher-v5")


# -- the learned model ----------------------------------------------------------------------------


class Exact:
    """s' = A s + B a and r = s_0, as a model that has the reward as its last component."""

    def expected(self, start: Tensor, action: Tensor) -> Tensor:
        assert not start[:, -1].any()  # the reward before a step is no input
        obs = start[:, :-1]
        following = obs @ torch.from_numpy(A).T + action @ torch.from_numpy(B).T
        return torch.cat([following, obs[:, :1]], -1)


def test_an_exact_model_is_unrolled_without_error() -> None:
    rng = np.random.default_rng(0)
    start = rng.normal(size=(6, 2)).astype(np.float32)
    actions = rng.normal(size=(6, 5, 1)).astype(np.float32)
    model: Any = Exact()
    obs, reward = fidelity.unroll(model, start, actions)
    state = start
    for t in range(5):
        np.testing.assert_allclose(reward[:, t], state[:, 0], rtol=1e-5)
        state = state @ A.T + actions[:, t] @ B.T
        np.testing.assert_allclose(obs[:, t], state, rtol=1e-5, atol=1e-6)


def test_errors_and_their_summaries_by_hand() -> None:
    found = fidelity.error(np.array([[1.0, 5.0]]), np.array([[0.0, 1.0]]), np.array([1.0, 2.0]))
    assert found.tolist() == [pytest.approx(np.sqrt((1 + 4) / 2))]
    assert fidelity.medians(np.array([[1.0, np.nan], [3.0, np.nan], [np.nan, np.nan]])) == [2, None]
    assert fidelity.summary(np.array([1.0, 2.0, 6.0]))["mean"] == 3.0
    assert fidelity.summary(np.array([])) == {"median": None, "mean": None, "ninth": None}


def test_the_learned_model_is_kept(tmp_path: Path) -> None:
    data = walk(6, 20)
    config = DynamicsConfig(2, 1, (8,), (0.0, 0.0), epochs=1)
    path = tmp_path / "model" / "weights.safetensors"
    first = fidelity.learned_model(data, config, 0, path)
    again = fidelity.learned_model(data, replace(config, epochs=50), 0, path)
    for name, value in first.state_dict().items():
        assert torch.equal(value, again.state_dict()[name])
    assert first.mean.shape == (data.obs_dim + 1 + data.act_dim,)


# -- the page -------------------------------------------------------------------------------------


WORDS = ["--size", "40", "--generator-steps", "2", "--channels", "8", "--length", "8"]
WORDS += ["--sampler-steps", "2", "--model-epochs", "1", "--measured", "3", "--steps", "4"]
WORDS += ["--agents", "iql", "--seeds", "2", "--backend", "eager", "--matmul", "float32"]


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for module in (cells, synthetic):
        monkeypatch.setattr(module, "WORK", tmp_path / "work")
        monkeypatch.setattr(module, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(cells, "FINAL_EPISODES", 2)
    monkeypatch.setattr(synthetic, "PAGE", tmp_path / "results" / "synthetic")
    monkeypatch.setenv("OFFRL_CACHE", str(tmp_path / "cache"))
    whole = shipped_set(SETS[0])
    few = whole.select(np.arange(12), "twelve episodes")
    monkeypatch.setattr(synthetic, "load_dataset", lambda name: few)
    monkeypatch.setattr(sys, "argv", ["synthetic.py", *WORDS])
    return tmp_path / "results" / "synthetic"


def test_all_is_made_measured_kept_and_drawn(
    page: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert synthetic.main() == 0
    folder = page / "hopper-medium-replay"
    found = {f"{p.parent.parent.name}/{p.parent.name}" for p in folder.glob("*/*/cell.json")}
    assert found == {f"{kind}/iql" for kind in synthetic.KINDS}
    # Rewards are scaled alike whatever the episodes' lengths are.
    configs = [read_json(folder / k / "iql" / "seed-0" / "config.json") for k in synthetic.KINDS]
    assert len({c["agent_config"]["reward_scale"] for c in configs}) == 1
    assert len({c["dataset"]["fingerprint"] for c in configs}) == len(synthetic.KINDS)
    facts = read_json(folder / "data.json")
    assert list(facts["sets"]) == ["logged", "unguided", "guided, iql"]
    logged = facts["sets"]["logged"]
    assert logged["data"]["median"] < 1e-4 < logged["model"]["median"]
    assert logged["along"]["data"]["since"][0] < 1e-4 and len(logged["along"]["model"]["step"]) == 7
    text = (page / "README.md").read_text()
    assert text.count("| `iql` |") == 4
    assert "mean of last" not in text  # of fewer than ten evaluations
    head = text[text.index("| agent | data |") :].split("\n")
    assert {line.count("|") for line in head[:6]} == {8}
    for name in ("scores", "errors"):
        picture = page / f"hopper-medium-replay-{name}.png"
        assert picture.read_bytes().startswith(b"\x89PNG")
    capsys.readouterr()
    monkeypatch.setattr(synthetic, "generator_for", None)
    assert synthetic.main() == 0
    assert capsys.readouterr().out.count("finished already") == 4


def test_the_target_s_policy_must_still_be_there(page: Path) -> None:
    with pytest.raises(RunError, match=r"is gone.*delete the cell logged/iql"):
        synthetic.target_folder("iql", "0123")


def test_numbers_of_the_tables() -> None:
    assert [synthetic_page.number(v) for v in (None, 0.25, 2e-6)] == ["", "0.250", "2e-06"]
