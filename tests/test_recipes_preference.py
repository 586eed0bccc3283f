"""Settings of preferences between segments: DPO's beta, and what no paper states."""

from typing import Any

import pytest

from offrl.agents import Preference, PreferenceConfig
from offrl.envs.references import families
from offrl.errors import ConfigError
from offrl.plans import configure
from offrl.registry import find_recipe
from offrl.training import TrainConfig


def settings(name: str) -> dict[str, Any]:
    """Of agent and training together, with the recipe of an environment or dataset."""
    recipe = find_recipe(Preference, "auto", families(name))[1]
    train, config = configure(TrainConfig(), PreferenceConfig(), recipe)
    return {**vars(train), **vars(config)}


@pytest.mark.parametrize("name", ["hopper-medium-v2", "halfcheetah-medium-replay-v2", "Ant-v5"])
def test_locomotion(name: str) -> None:
    found = settings(name)
    expected = {
        **{"loss": "dpo", "beta": 0.1, "batch_size": 4, "steps": 100_000, "bc_weight": 10.0},
        **{"segment": 100, "clone": 0.3, "flip": 0.0},
    }
    assert {key: found[key] for key in expected} == expected


def test_elsewhere_there_is_none() -> None:
    assert find_recipe(Preference, "auto", families("Pendulum-v1")) == ("none", {})


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"beta": 0.0}, r"beta is 0\.0.*\(0, inf\)"),
        ({"wrong": 0.5}, r"wrong is 0\.5.*\[0, 0\.5\)"),
        ({"flip": 0.6}, r"flip is 0\.6.*\[0, 0\.5\]"),
        ({"clone": 1.5}, r"clone is 1\.5.*\[0, 1\]"),
        ({"segment": 0}, r"segment is 0"),
        ({"temperature": 0.0}, r"temperature is 0\.0"),
        ({"margin": -1.0}, r"margin is -1\.0"),
        ({"bc_weight": -1.0}, r"bc_weight is -1\.0"),
    ],
    ids=str,
)
def test_what_makes_no_sense_is_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        PreferenceConfig(**changes)
