"""ODICE's settings against its authors' code, by the names of datasets and environments."""

from typing import Any

import pytest

from offrl.agents import ODICE, ODICEIL, ODICEConfig, ODICEILConfig
from offrl.envs.references import families
from offrl.registry import find_recipe

# configs/offline_RL.yaml and the defaults of main_odice_rl.py; hidden layers as in its networks.
CODE = {
    "dual_weight": 0.6,
    "eta": 1.0,
    "gradient": "orthogonal",
    "max_weight": 100.0,
    "twin": True,
    "layer_norm": True,
    "squash_mean": False,
    "weight_decay": 1e-4,
    "gamma": 0.99,
    "lr": 2e-4,
    "polyak": 0.005,
    "hidden": (256, 256),
    "actor_hidden": (1024, 1024),
    "normalize_obs": False,
    "reward_by_return_range": True,
    "reward_scale": 1.0,
    "reward_shift": 0.0,
}
# A step is worth -3 and the goal 0, of logged rewards 0 and 1.
MAZE = {"layer_norm": False, "reward_by_return_range": False}
MAZE |= {"reward_scale": 3.0, "reward_shift": -3.0}


def settings(name: str) -> dict[str, Any]:
    return {**vars(ODICEConfig()), **find_recipe(ODICE, "auto", families(name))[1]}


@pytest.mark.parametrize("name", ["hopper-medium-v2", "Walker2d-v5", "halfcheetah-expert-v0"])
def test_locomotion(name: str) -> None:
    assert settings(name) == CODE


@pytest.mark.parametrize(
    ("name", "twin"),
    [
        ("antmaze-umaze-v2", True),
        ("antmaze-umaze-diverse-v2", False),
        ("antmaze-medium-play-v2", True),
        ("antmaze-medium-diverse-v2", True),
        ("antmaze-large-play-v2", False),
        ("antmaze-large-diverse-v0", False),
        ("D4RL/antmaze/large-play-v1", False),
        ("D4RL/antmaze/umaze-v1", True),
    ],
)
def test_mazes(name: str, twin: bool) -> None:
    found = settings(name)
    assert found == {**CODE, **MAZE, "twin": twin}
    assert [found["reward_scale"] * r + found["reward_shift"] for r in (0.0, 1.0)] == [-3.0, 0.0]


def test_elsewhere_the_defaults_hold() -> None:
    assert settings("pen-human-v1") == CODE


# configs/offline_IL.yaml, the defaults of main_odice_il.py and run_offline_il.sh, but for lambda,
# which is 0.4 there and ours with mixed data. The classifier is SMODICE's.
IMITATION = {
    "eta": 1.0,
    "gradient": "orthogonal",
    "max_weight": 100.0,
    "twin": True,
    "layer_norm": False,
    "squash_mean": True,
    "gamma": 0.99,
    "lr": 1e-4,
    "polyak": 0.005,
    "hidden": (256, 256),
    "actor_hidden": (1024, 1024),
    "normalize_obs": True,
    "penalty": 10.0,
    "discriminator_lr": 3e-4,
    "dual_weight": 0.5,
    "expert": "",
    "expert_episodes": 1,
    "mixed": True,
}


@pytest.mark.parametrize(
    ("name", "decay"), [("hopper-expert-v2", 1e-5), ("Walker2d-v5", 1e-3), ("pen-human-v1", 1e-5)]
)
def test_imitation(name: str, decay: float) -> None:
    found = {**vars(ODICEILConfig()), **find_recipe(ODICEIL, "auto", families(name))[1]}
    assert found == {**IMITATION, "weight_decay": decay}
