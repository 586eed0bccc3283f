"""The tables of what agents keep on corrupted data, from made-up cells; and which cells are run."""

import json
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from problems import Drift, walk

sys.path.append(str(Path(__file__).resolve().parents[1] / "scripts"))

import cells
import corruption
import corruption_page
from corruption_cells import CLEAN, ROWS, Trained, clean_score, read_trained, way_of

from offrl.agents import AGENTS
from offrl.datasets.corruption import Corruption, corrupt, masks_of
from offrl.datasets.offline import Reference
from offrl.plans import DataConfig, Plan, plan

HOPPER = "hopper-medium-replay"
TRAIN = {"steps": 100, "batch_size": 256, "backend": "eager"}
TRAIN |= {"precision": "float32", "matmul": "float32"}
ATTACKER = {
    "agent": "edac",
    "critics": 10,
    "steps": 7_000,
    "seed": 0,
    "weights": "abcdef0123456789",
}
OWN = {"iql": {"reward_by_return_range": False}, "edac": {"ensemble": 10}}


def cell(
    folder: Path,
    scores: list[float],
    element: str | None = None,
    mode: str = "random",
    train: dict[str, Any] | None = None,
    **settings: Any,
) -> None:
    """A finished cell of the agent and the seed that end `folder`, with the row's settings."""
    agent = folder.name if element is None else folder.parent.name
    recipe = "hopper" if agent == "edac" else "locomotion"
    if agent == "riql" and element is not None:
        recipe = f"hopper-{mode}-{element}"
    agent, first = agent.removesuffix("-clean"), 0
    stored: dict[str, Any] = {"hash": "h", "seeds": [{"final": {"score": s}} for s in scores]}
    if element is not None:
        first = int(folder.name.removeprefix("seed-"))
        stored["corruption"] = {"mode": mode, "elements": [element], "rate": 0.3, "scale": 1.0}
        stored["corruption"] |= {"seed": first, "clean": {"name": HOPPER}}
        stored["corruption"] |= {"attacker": ATTACKER if mode == "adversarial" else None}
    used = {**asdict(AGENTS[agent][1]), **OWN.get(agent, {}), **settings}
    for k, _ in enumerate(scores):
        path = folder / f"seed-{k}" if len(scores) > 1 else folder
        path.mkdir(parents=True)
        config = {
            "agent": agent,
            "agent_config": used,
            "recipe": recipe,
            "train": {**TRAIN, "seed": first + k, "seeds": 1, **(train or {})},
            "dataset": {"name": HOPPER if element is None else f"{HOPPER}-{mode}-{element}"},
            "env": "Hopper-v5",
        }
        (path / "config.json").write_text(json.dumps(config))
    (folder / "cell.json").write_text(json.dumps(stored))


def draw(page: Path, results: Path) -> list[str]:
    corruption_page.draw(page, results)
    return (page / "README.md").read_text().splitlines()


def test_the_page_by_hand(tmp_path: Path) -> None:
    page = tmp_path / "corruption"
    where = page / HOPPER / "random-rate-0.3-scale-1"
    tuned = {"sigma": 1.0, "quantile": 0.5, "critics": 5}  # of RIQL for Hopper's dynamics
    for seed in range(3):
        name = f"seed-{seed}"
        cell(where / "dynamics" / "iql" / name, [10.0 * (1 + seed)], "dynamics")
        cell(where / "dynamics" / "riql" / name, [20.0 * (1 + seed)], "dynamics", **tuned)
        cell(where / "dynamics" / "riql-clean" / name, [15.0], "dynamics")
        cell(where / "dynamics" / "edac" / name, [5.0], "dynamics")
    cell(where / "rewards" / "iql" / "seed-0", [40.0], "rewards")
    cell(page / HOPPER / CLEAN / "iql", [38.0, 40.0, 42.0])
    cell(page / HOPPER / CLEAN / "edac", [-5.0, 5.0, 90.0])
    cell(tmp_path / HOPPER / "iql", [7.0, 7.0, 7.0], reward_by_return_range=True)
    cell(tmp_path / HOPPER / "riql", [30.0, 40.0, 50.0])
    (page / HOPPER / "discussion.md").write_text("It was to be expected.\n")
    lines = draw(page, tmp_path)
    text = "\n".join(lines)
    # Three seeds of mean m and deviation s: m +- 4.303 s / sqrt(3).
    scores, falls = "| `iql` | 40.0 (35.0 to 45.0; n = 3) |  |  |", "| `iql` |  |  |"
    assert f"{scores} 40.0 (n = 1) | 20.0 (-4.8 to 44.8; n = 3) |" in lines
    # 40 is 105 % of the first seed's 38; -28, -20 and -12 leave a half. EDAC's clean score may be
    # nothing: -5, 5 and 90.
    fall = "-20.0 (-39.9 to -0.1; n = 3), 50 % kept"
    assert f"{falls} +2.0 (n = 1), 105 % kept | {fall} |" in lines
    assert "| `edac` |  |  |  | -25.0 (-154.7 to +104.7; n = 3) |" in lines
    # RIQL is 10, 20 and 30 better, on clean data by -8, 0 and 8: 18, 20 and 22 more.
    gap = "| `riql` - `iql` | +0.0 (-19.9 to +19.9; n = 3) |"
    assert f"{gap}  |  |  | +20.0 (-4.8 to +44.8; n = 3) |" in lines
    more = "| `riql` - `iql`, less that on clean data |  |  |  |"
    assert f"{more}  | +20.0 (+15.0 to +25.0; n = 3) |" in lines
    clean = "| `riql-clean` | 40.0 (15.2 to 64.8; n = 3) |"
    assert f"{clean}  |  |  | 15.0 (15.0 to 15.0; n = 3) |" in lines
    assert any(line.startswith("| `riql-clean` - `iql` |") for line in lines)
    assert (
        "- `riql`: clean: sigma 1.0, quantile 0.25, critics 5; "
        "dynamics: sigma 1.0, quantile 0.5, critics 5." in lines
    )
    assert "- `riql-clean`: sigma 1.0, quantile 0.25, critics 5." in lines
    assert "reward_by_return_range False" in next(x for x in lines if x.startswith("- `iql`"))
    assert "- `edac`: ensemble 10, eta 1.0." in lines
    assert "with probability 0.3, scale 1; seeds of masks" in text and "Attacker" not in text
    assert "100 updates of batches of 256, eager, float32, float32 products." in text
    assert "It was to be expected." in text and "Left out" not in text
    picture = page / f"{HOPPER}-random-rate-0.3-scale-1.png"
    assert picture.read_bytes().startswith(b"\x89PNG") and picture.name in text


def test_seeds_that_were_trained_otherwise_are_left_out_and_named(tmp_path: Path) -> None:
    page = tmp_path / "corruption"
    where = page / HOPPER / "random-rate-0.3-scale-1" / "rewards"
    for seed, score in enumerate((10.0, 20.0)):
        cell(where / "iql" / f"seed-{seed}", [score], "rewards")
    cell(where / "iql" / "seed-2", [90.0], "rewards", train={"steps": 7})
    cell(where / "iql" / "seed-3", [90.0], "rewards", reward_by_return_range=True)
    cell(where / "riql" / "seed-0", [50.0], "rewards", critics=9)
    lines = draw(page, tmp_path)
    assert "| `iql` |  |  |  | 15.0 (-48.5 to 78.5; n = 2) |  |" in lines
    assert not any(line.startswith("| `riql` |") for line in lines)
    assert lines[-3] == (
        "Left out: `iql` on rewards, seed 2: 7 updates of batches of 256, eager, float32, float32 "
        "products; `iql` on rewards, seed 3: settings that are not the row's; "
        "`riql` on rewards, seed 0: settings that are not the row's."
    )


def test_rows_that_were_trained_otherwise_are_not_compared(tmp_path: Path) -> None:
    page = tmp_path / "corruption"
    where = page / HOPPER / "random-rate-0.3-scale-1" / "rewards"
    for seed in range(2):
        cell(where / "iql" / f"seed-{seed}", [10.0], "rewards")
        cell(where / "riql" / f"seed-{seed}", [9.0], "rewards", critics=3)
        cell(where / "riql-clean" / f"seed-{seed}", [8.0], "rewards", train={"steps": 7})
    lines = draw(page, tmp_path)
    # On Hopper's rewards RIQL's table has three critics.
    assert "| `riql` - `iql` |  |  |  | -1.0 (-1.0 to -1.0; n = 2) |  |" in lines
    assert not any("`riql-clean` - `iql`" in line for line in lines)
    assert any(line.startswith("Trained for iql, riql: 100 updates") for line in lines)


def test_each_rate_and_each_attacker_has_tables_of_its_own(tmp_path: Path) -> None:
    page = tmp_path / "corruption"
    for condition, mode in (("random-rate-0.5-scale-1", "random"), ("random-x", "adversarial")):
        cell(page / HOPPER / condition / "actions" / "iql" / "seed-0", [1.0], "actions", mode)
    lines = draw(page, tmp_path)
    assert [x for x in lines if x.startswith("## ")] == [
        f"## {HOPPER}, random-rate-0.5-scale-1",
        f"## {HOPPER}, random-x",
    ]
    attacked = next(line for line in lines if "Attacker" in line)
    assert (
        "edac with 10 critics, 7,000 updates on the clean data, seed 0, weights abcdef0" in attacked
    )


def test_the_page_of_no_cells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corruption, "PAGE", tmp_path / "results" / "corruption")
    monkeypatch.setattr(corruption, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(sys, "argv", ["corruption.py", "--draw"])
    assert corruption.main() == 0
    assert (tmp_path / "results" / "corruption" / "README.md").read_text().startswith("# Corrupted")


@pytest.mark.parametrize(
    "changed",
    [
        {"train": {"steps": 99}},
        {"train": {"batch_size": 1024}},
        {"train": {"backend": "inductor"}},
        {"train": {"precision": "float64"}},
        {"train": {"matmul": "bfloat16"}},
        {"ensemble": 50},
        {"eta": 5.0},
    ],
    ids=str,
)
def test_a_clean_score_is_compared_where_nothing_but_the_data_differs(
    changed: dict[str, Any], tmp_path: Path
) -> None:
    homes, row, way = (tmp_path / "own" / "edac", tmp_path / "edac"), ROWS["edac"], way_of(TRAIN)
    assert clean_score(homes, row, way, {0, 1}) is None
    cell(homes[0], [40.0, 41.0], **changed)
    assert clean_score(homes, row, way, {0, 1}) is None
    cell(homes[1], [30.0, 31.0])
    found = clean_score(homes, row, way, {0, 1})
    assert found is not None and found.values == {0: 30.0, 1: 31.0}
    assert clean_score(homes, row, way, {0, 2}) is None


def test_a_row_for_clean_data_shares_its_clean_cell() -> None:
    assert ROWS["riql-clean"].home == ROWS["riql"].home == "riql"
    assert {name: row.home for name, row in ROWS.items() if row.home != name} == {
        "riql-clean": "riql"
    }


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Plan]:
    """The cells that the script would run, by name."""
    planned: dict[str, Plan] = {}
    monkeypatch.setattr(corruption, "RESULTS", tmp_path)
    monkeypatch.setattr(corruption, "run_cell", lambda p, name: planned.update({name: p}))
    monkeypatch.setattr(corruption, "kept_dataset", lambda path, make: make())
    monkeypatch.setattr(corruption, "draw", lambda *places: None)
    return planned


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ([], ["iql", "riql", "edac"]),
        (["--clean"], ["iql", "riql", "edac", "td3_bc"]),
        (["--no-clean"], []),
    ],
    ids=["unless known", "always", "never"],
)
def test_clean_cells_are_run_unless_a_comparable_one_exists(
    asked: list[str],
    expected: list[str],
    tmp_path: Path,
    run: dict[str, Plan],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    train = {"steps": 4, "backend": "inductor", "matmul": "bfloat16"}
    cell(tmp_path / HOPPER / "iql", [8.0, 9.0], train=train, reward_by_return_range=True)
    cell(tmp_path / HOPPER / "edac", [8.0, 9.0], train=train, ensemble=50)
    cell(tmp_path / HOPPER / "riql", [8.0], train=train)  # one seed of two
    cell(tmp_path / HOPPER / "td3_bc", [8.0, 9.0], train=train)
    monkeypatch.setattr(corruption, "run_mode", lambda *a: None)
    rows = ["iql", "riql", "riql-clean", "edac", "td3_bc"]
    line = ["corruption.py", "--rows", *rows, "--steps", "4", "--seeds", "2", *asked]
    monkeypatch.setattr(sys, "argv", line)
    corruption.main()
    assert list(run) == [f"corruption/{HOPPER}/clean/{row}" for row in expected]
    for name, planned in run.items():
        assert (planned.train.seeds, planned.train.steps) == (2, 4)
        stored = json.loads(json.dumps(planned.record()))
        assert Trained(0.0, stored, None).fits(ROWS[Path(name).name])


def test_cells_are_named_by_rate_scale_and_attacker(
    run: dict[str, Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    line = ["corruption.py", "--rows", "iql", "riql", "riql-clean", "--elements", "rewards"]
    line += ["--modes", "random", "adversarial", "--rate", "0.5", "--seeds", "1", "--no-clean"]
    monkeypatch.setattr(sys, "argv", [*line, "--attacker-steps", "7"])
    corruption.main()
    conditions = ("random-rate-0.5-scale-1", "adversarial-rate-0.5-scale-1-attacker-7")
    expected = [
        f"corruption/{HOPPER}/{condition}/rewards/{row}/seed-0"
        for condition in conditions
        for row in ("iql", "riql", "riql-clean")
    ]
    assert list(run) == expected
    iql, riql, robust = (run[name].agent_config for name in expected[:3])
    assert not iql.reward_by_return_range  # or the temperature would be that of corrupted returns
    assert (riql.critics, robust.critics) == (3, 5)  # Hopper's random rewards; clean
    for name, planned in run.items():
        record = planned.dataset.provenance["corruption"]
        assert (record["rate"], record["scale"], record["seed"]) == (0.5, 1.0, 0)
        stored = json.loads(json.dumps(planned.record()))
        assert Trained(0.0, stored, record).fits(ROWS[name.split("/")[-2]])


def test_corrupted_data_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corruption, "WORK", tmp_path)
    data = walk(episodes=2, length=20)
    asked = Corruption(("dynamics",), seed=2)
    first = corruption.corrupted(data, asked, 1)
    monkeypatch.setattr(corruption, "corrupt_with_bar", None)
    again = corruption.corrupted(data, asked, 1)
    assert first.fingerprint == again.fingerprint and masks_of(again)["dynamics"].any()


def test_a_cell_says_how_its_data_was_corrupted_and_is_then_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cells, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(cells, "WORK", tmp_path / "work")

    class Evaluated:
        def to_json(self) -> dict[str, Any]:
            return {"score": 3.0}

    monkeypatch.setattr(cells, "evaluate", lambda *a: Evaluated())
    clean = replace(walk(episodes=4, length=10), reference=Reference(-20.0, 0.0, "none"))
    data = corrupt(clean, Corruption(("rewards",), rate=0.5, seed=3))
    settings = {"steps": 4, "eval_every": 2, "eval_episodes": 1, "hidden": (8,), "seed": 3}
    planned = plan("iql", data, Drift, data=DataConfig(time_limit="keep"), settings=settings)
    cells.run_cell(planned, "corruption/walk/random-rate-0.5-scale-1/rewards/iql/seed-3")
    row = tmp_path / "results/corruption/walk/random-rate-0.5-scale-1/rewards/iql"
    assert {p.name for p in (row / "seed-3").iterdir()} == {
        *("cell.json", "config.json", "metrics.csv")
    }
    (found,) = read_trained(row)
    assert (found.score, found.seed) == (3.0, 3) and found.corruption is not None
    assert found.corruption == json.loads(json.dumps(data.provenance["corruption"]))
    assert (found.corruption["rate"], found.corruption["seed"]) == (0.5, 3)
    cells.run_cell(planned, "corruption/walk/random-rate-0.5-scale-1/rewards/iql/seed-3")
    assert "finished already" in capsys.readouterr().out
