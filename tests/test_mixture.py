"""Sets of mostly bad episodes with a few of the best, by hand; and a page that is run and drawn."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_env import ENV_ID, LIMIT, Drift

sys.path.append(str(Path(__file__).resolve().parents[1] / "scripts"))

import cells
import mixture
from results_page import Cell

from offrl.datasets.offline import OfflineDataset, Reference
from offrl.datasets.staged import spec_of
from offrl.errors import ConfigError, DataError
from offrl.files import read_json, write_json

SPEC = spec_of(Drift())


def source(returns: list[float], length: int = 4, **fields: Any) -> OfflineDataset:
    """Episodes of the same length whose rewards sum to these returns."""
    return OfflineDataset.from_episodes(
        [
            {
                "obs": np.full((length + 1, 2), value),
                "action": np.zeros((length, 1)),
                "reward": np.full(length, value / length),
                "terminated": False,
                "truncated": True,
            }
            for value in returns
        ],
        **{"spec": SPEC, "name": "tiny", "env_id": ENV_ID, **fields},
    )


@pytest.fixture(autouse=True)
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for module in (cells, mixture):
        monkeypatch.setattr(module, "WORK", tmp_path / "work")
        monkeypatch.setattr(module, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(mixture, "PAGE", tmp_path / "results" / "mixture")
    return tmp_path / "work"


def test_the_lowest_and_the_best_by_hand() -> None:
    data = source([3.0, -1.0, 8.0, 5.0, 0.0, 2.0], reference=Reference(0.0, 10.0, "none"))
    # A quarter of 16 steps is one episode of four, the best; the rest are the three lowest.
    found = mixture.mixture(data, "lowest", 0.25, 16, 0)
    assert found.returns().tolist() == [-1.0, 0.0, 2.0, 8.0]
    assert found.num_steps == 16 and found.reference == data.reference
    assert found.obs[:, 0].tolist() == [v for v in (-1.0, 0.0, 2.0, 8.0) for _ in range(4)]
    assert found.marks["best"][found.step_rows].tolist() == [False] * 12 + [True] * 4
    facts = found.provenance["mixture"]
    assert facts["best"]["score"] == {"mean": 80.0, "least": 80.0, "greatest": 80.0}
    assert facts["poor"]["return"]["mean"] == pytest.approx(1 / 3)
    # A step more, and one episode more of either kind.
    assert mixture.mixture(data, "lowest", 0.3, 17, 0).num_steps == 4 * (2 + 3)


def test_random_actions_are_played_in_the_environment_and_kept(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = source([3.0, 8.0])
    found = mixture.made(data, "random", 0.1, 40, 5)
    good = found.marks["best"][found.step_rows]
    assert good.sum() == 4 and found.returns()[-1] == 8.0
    assert 36 <= (~good).sum() < 36 + LIMIT and found.env_id == ENV_ID
    played = found.action[~good, 0]
    assert played.min() < -1.0 < 1.0 < played.max() and np.abs(played).max() <= 2.0
    assert found.name == "tiny-random-0.1-40-5" and found.provenance["mixture"]["poor"]["seed"] == 5
    again = mixture.mixture(data, "random", 0.1, 40, 5)
    assert again.fingerprint == found.fingerprint
    assert mixture.mixture(data, "random", 0.1, 40, 6).fingerprint != found.fingerprint
    monkeypatch.setattr(mixture, "mixture", None)
    assert mixture.made(data, "random", 0.1, 40, 5).fingerprint == found.fingerprint


def test_the_random_part_is_the_same_when_it_is_collected_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = source([3.0])
    first = mixture.random_part(data, 30, 2)
    monkeypatch.setattr(mixture, "WORK", tmp_path / "elsewhere")
    assert mixture.random_part(data, 30, 2).fingerprint == first.fingerprint


@pytest.mark.parametrize(
    ("data", "poor", "best", "size", "message"),
    [
        (source([1.0, 2.0]), "lowest", 1.0, 8, "--best is 1.0"),
        (source([1.0, 2.0]), "lowest", 1 / 3, 12, "4 steps of which 8 were to be taken"),
        (source([1.0, 2.0]), "lowest", 0.5, 40, "8 steps of which 20 were to be taken"),
        (source([1.0], env_id=None), "random", 0.5, 8, "no environment"),
        (source([1.0], spec=replace(SPEC, action_high=(1.0,))), "random", 0.5, 8, "--poor lowest"),
    ],
    ids=["share", "poor", "best", "environment", "spaces"],
)
def test_what_cannot_be_mixed(
    data: OfflineDataset, poor: str, best: float, size: int, message: str
) -> None:
    with pytest.raises((ConfigError, DataError), match=message):
        mixture.mixture(data, poor, best, size, 0)


@pytest.mark.parametrize("good", [1, 7, 48])
def test_percent_bc_imitates_as_many_episodes_as_are_good(good: int) -> None:
    data = source([float(i) for i in range(49)], length=1)
    data = replace(data, provenance={"mixture": {"best": {"episodes": good}}})
    assert mixture.settings_of("td3_bc", data) == {}
    share = mixture.settings_of("percent_bc", data)["top_fraction"]
    assert sorted(data.top(share).returns()) == [float(i) for i in range(49 - good, 49)]


def test_the_difference_by_hand(tmp_path: Path) -> None:
    config = {"dataset": {"reference": {"min": 10.0, "max": 30.0}}}
    found = [Cell(a, 0.0, None, None, 0.0, 2, 1.0, {}, config) for a in mixture.CLAIM]
    for agent, returns in {"a2pr": [[14, 16], [16, 18]], "td3_bc": [[10, 12], [12, 14]]}.items():
        seeds = [{"final": {"returns": r}} for r in returns]
        (tmp_path / agent).mkdir()
        write_json(tmp_path / agent / "cell.json", {"seeds": seeds})
    # Four of the twenty between the references, at every start: no spread, though returns have.
    said = "`a2pr` less `td3_bc`, start by start: 20.0 (20.0 to 20.0)."
    assert mixture.difference(tmp_path, found) == ["", said]
    assert mixture.difference(tmp_path, found[:1]) == []
    write_json(tmp_path / "a2pr" / "cell.json", {"seeds": seeds[:1]})
    assert mixture.difference(tmp_path, found) == []


def test_cells_are_run_skipped_and_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = source([3.0, 8.0, 1.0], reference=Reference(0.0, 10.0, "none"))
    monkeypatch.setattr(
        mixture, "load_dataset", lambda name: data if name == "tiny" else kept(name)
    )
    kept, played = cells.load_dataset, cells.evaluate
    scored = {"reference": data.reference}  # which no table has of this environment
    monkeypatch.setattr(cells, "evaluate", lambda *a: replace(played(*a), **scored))
    words = ["--datasets", "tiny", "--agents", "td3_bc", "percent_bc", "--size", "40"]
    words += ["--steps", "2", "--seeds", "2", "--backend", "eager", "--matmul", "float32"]
    monkeypatch.setattr(sys, "argv", ["mixture.py", *words])
    monkeypatch.setattr(cells, "FINAL_EPISODES", 2)
    mixture.main()
    page = tmp_path / "results" / "mixture"
    folder = page / "tiny-random-0.1-40-0"
    assert {p.name for p in folder.iterdir()} == {"td3_bc", "percent_bc", "mixture.json"}
    assert len(read_json(folder / "td3_bc" / "cell.json")["seeds"]) == 2
    text = (page / "README.md").read_text()
    assert "Best of tiny: 4 steps in 1 episodes, scores 80.0 to 80.0, mean 80.0." in text
    assert "of a policy with uniform actions" in text and "| `percent_bc` |" in text
    assert "Not by the recipe: `percent_bc` with top_fraction 0." in text
    config = read_json(folder / "percent_bc" / "seed-0" / "config.json")
    share = config["agent_config"]["top_fraction"]
    assert int(share * config["dataset"]["episodes"]) == 1
    assert (page / f"{folder.name}.png").read_bytes().startswith(b"\x89PNG")
    capsys.readouterr()
    mixture.main()
    assert capsys.readouterr().out.count("finished already") == 2
