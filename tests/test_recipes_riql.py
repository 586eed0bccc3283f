"""RIQL's settings against its authors' table, by environment and by what was corrupted."""

from dataclasses import replace
from typing import Any

import pytest
from problems import walk

from offrl.agents import RIQL, RIQLConfig
from offrl.datasets.corruption import Corruption, corrupt
from offrl.errors import ConfigError
from offrl.plans import plan
from offrl.registry import find_recipe

# The authors' configuration: (sigma, quantile, K) on halfcheetah, walker2d and hopper.
TABLE = {
    ("random", "observations"): [(0.1, 0.1, 5), (0.1, 0.25, 5), (0.1, 0.25, 3)],
    ("random", "actions"): [(0.5, 0.25, 3), (0.5, 0.1, 5), (0.1, 0.25, 5)],
    ("random", "rewards"): [(3.0, 0.25, 5), (3.0, 0.1, 5), (1.0, 0.25, 3)],
    ("random", "dynamics"): [(3.0, 0.25, 5), (1.0, 0.25, 3), (1.0, 0.5, 5)],
    ("adversarial", "observations"): [(0.1, 0.1, 5), (1.0, 0.25, 5), (1.0, 0.25, 5)],
    ("adversarial", "actions"): [(1.0, 0.1, 5), (1.0, 0.1, 5), (1.0, 0.25, 5)],
    ("adversarial", "rewards"): [(1.0, 0.1, 5), (3.0, 0.1, 5), (0.1, 0.25, 5)],
    ("adversarial", "dynamics"): [(1.0, 0.1, 5), (1.0, 0.25, 5), (1.0, 0.5, 5)],
}
CELLS = [
    (f"{environment}-{mode}-{element}", row)
    for (mode, element), rows in TABLE.items()
    for environment, row in zip(("halfcheetah", "walker2d", "hopper"), rows, strict=True)
]


def settings(**recipe: Any) -> dict[str, Any]:
    return {**vars(RIQLConfig()), **recipe}


@pytest.mark.parametrize(("name", "row"), CELLS, ids=[name for name, _ in CELLS])
def test_each_cell_of_the_table(name: str, row: tuple[float, float, int]) -> None:
    found = settings(**find_recipe(RIQL, name, [])[1])
    assert (found["sigma"], found["quantile"], found["critics"]) == row
    assert set(RIQL.recipes[name]) == {"sigma", "quantile", "critics"}


def test_the_table_and_nothing_else() -> None:
    assert set(RIQL.recipes) == {"locomotion", *(name for name, _ in CELLS)}


def test_the_settings_everywhere() -> None:
    found = settings(**find_recipe(RIQL, "auto", ["hopper", "locomotion"])[1])
    assert (found["sigma"], found["quantile"], found["critics"]) == (1.0, 0.25, 5)
    for name, value in {
        **{"expectile": 0.7, "beta": 3.0, "max_weight": 100.0, "gamma": 0.99, "polyak": 0.005},
        **{"lr": 3e-4, "hidden": (256, 256), "target_min": -100.0, "target_max": 1000.0},
        **{"actor": "deterministic", "actor_schedule": "cosine", "normalize_obs": True},
        **{"normalize_with_next": True, "reward_scale": 1.0, "reward_shift": 0.0},
    }.items():
        assert found[name] == value, name


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sigma": 0.0}, r"RIQLConfig.sigma is 0.0; it must be in \(0, inf\)"),
        ({"quantile": 1.5}, r"RIQLConfig.quantile is 1.5; it must be in \[0, 1\]"),
        ({"critics": 0}, r"RIQLConfig.critics is 0; it must be in \[1, inf\)"),
        (
            {"target_min": 5.0, "target_max": 1.0},
            r"RIQLConfig.target_min is 5.0 and target_max 1.0; the least target must be below",
        ),
    ],
)
def test_settings_that_cannot_be(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RIQLConfig(**changes)


@pytest.mark.parametrize(
    ("elements", "recipe"),
    [
        (("dynamics",), "walker2d-random-dynamics"),
        (("rewards", "dynamics"), "walker2d-random-rewards"),
        (("dynamics", "actions", "observations"), "walker2d-random-observations"),
        ((), "locomotion"),
    ],
)
def test_a_dataset_that_says_how_it_was_corrupted_gets_its_settings(
    elements: tuple[str, ...], recipe: str
) -> None:
    data = replace(walk(), name="walker2d-medium-replay")
    data = corrupt(data, Corruption(elements)) if elements else data
    found = plan("riql", data, env=None)
    assert found.recipe == recipe
    assert {k: getattr(found.agent_config, k) for k in found.recipe_values} == dict(
        found.recipe_values
    )
    # A method without such settings keeps those for the clean data.
    assert plan("iql", data, env=None).recipe == "locomotion"
    assert plan("riql", data, env=None, recipe="hopper-adversarial-rewards").recipe == (
        "hopper-adversarial-rewards"
    )
