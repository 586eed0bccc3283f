"""When a cell of the results is another one, and when it is the same."""

import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))
from cells import SETTINGS, cell_hash, published

import results
from offrl.agents import AGENTS
from offrl.plans import Plan
from results import COMPARED


def record(**changes: Any) -> dict[str, Any]:
    made: dict[str, Any] = {
        "agent": "td3_bc",
        "agent_config": {"alpha": 2.5, "hidden": [256, 256], "reward_shift": 0.0},
        "train": {"steps": 10, "seed": 0, "seeds": 3, "log_every": 1000},
        "data": {"validation": None},
        "dataset": {"fingerprint": "f", "name": "hopper"},
        "env": "Hopper-v5",
        "versions": {"torch": "2", "mujoco": "3", "gymnasium": "1", "python": "3.11"},
        "recipe": "locomotion",
        "commit": "c",
    }
    return {k: v | changes[k] if k in changes else v for k, v in made.items()}


def test_an_option_that_is_off_leaves_a_cell_as_it_was() -> None:
    new_option = record(agent_config={"beer": 0.0, "cocoa": False, "cocoa_rank": 4})
    assert cell_hash(new_option) == cell_hash(record())
    switched_on = record(agent_config={"beer": 0.0, "cocoa": True, "cocoa_rank": 4})
    other_rank = record(agent_config={"beer": 0.0, "cocoa": True, "cocoa_rank": 8})
    assert len({cell_hash(r) for r in (new_option, switched_on, other_rank)}) == 3


def test_a_teacher_counts_wherever_it_lies(tmp_path: Path) -> None:
    def of(name: str, weights: bytes) -> str:
        policy = tmp_path / name / "policy"
        policy.mkdir(parents=True)
        (policy / "policy.json").write_text("{}")
        (policy / "policy.safetensors").write_bytes(weights)
        return cell_hash(record(agent_config={"teacher": str(tmp_path / name)}))

    assert of("here", b"same") == of("there", b"same") != of("there-too", b"other")


def test_what_is_published_names_no_place_of_a_machine() -> None:
    text = '{"teacher": "/home/somebody/runs/iql", "env": "offrl/Recall-v0", "share": 1}'
    assert published(text) == '{"teacher": "iql", "env": "offrl/Recall-v0", "share": 1}'


@pytest.mark.parametrize("change", [{"log_every": 10}, {"keep_checkpoints": 5}])
def test_what_a_run_writes_is_no_part_of_its_numbers(change: dict[str, Any]) -> None:
    assert cell_hash(record(train=change)) == cell_hash(record())


@pytest.mark.parametrize(
    "changes",
    [
        {"agent_config": {"alpha": 0.0}},
        {"agent_config": {"beer": 1e-3}},
        {"agent_config": {"hidden": [256]}},
        {"train": {"steps": 20}},
        {"train": {"seeds": 1}},
        {"train": {"seed": 1}},
        {"data": {"validation": 0.1}},
        {"dataset": {"fingerprint": "g"}},
        {"versions": {"mujoco": "4"}},
    ],
    ids=str,
)
def test_what_determines_the_numbers_makes_another_cell(changes: dict[str, Any]) -> None:
    assert cell_hash(record(**changes)) != cell_hash(record())


def test_what_imitates_or_is_asked_for_a_return_is_left_to_other_scripts() -> None:
    left = {"odice_il", "chunk_bc", "diffusion_policy", "flow_bc", "consistency_bc", "beso", "ptp"}
    left |= {"ibc", "ebt", "act", "act_jepa", "distill", "dt", "decision_mamba", "doc"}
    assert set(AGENTS) - set(COMPARED) == left and {"bc", "percent_bc"} <= set(COMPARED)


def test_tables_change_the_settings_of_recipes_in_one_place(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert SETTINGS == {"edac": {"ensemble": 10}, "sac_n": {"ensemble": 10}}
    run: dict[str, Plan] = {}
    monkeypatch.setattr(results, "run_cell", lambda planned, name: run.update({name: planned}))
    monkeypatch.setattr(results, "time_actions", lambda **asked: None)
    monkeypatch.setattr(results, "draw", lambda *places: None)
    line = ["results.py", "--datasets", "hopper-medium-replay", "--agents", "edac", "sac_n", "iql"]
    monkeypatch.setattr(sys, "argv", line)
    results.main()
    edac, sac_n, iql = run.values()
    assert (edac.agent_config.ensemble, sac_n.agent_config.ensemble) == (10, 10)
    assert edac.recipe_values["ensemble"] == 50 and iql.agent_config.reward_by_return_range
