"""Settings of distillation, which no paper states: those that are this library's."""

from typing import Any

import pytest

from offrl.agents import Distill, DistillConfig
from offrl.envs.references import families
from offrl.errors import ConfigError
from offrl.plans import configure
from offrl.registry import find_recipe
from offrl.training import TrainConfig


def settings(name: str) -> dict[str, Any]:
    """Of agent and training together, with the recipe of an environment or dataset."""
    recipe = find_recipe(Distill, "auto", families(name))[1]
    train, config = configure(TrainConfig(), DistillConfig(), recipe)
    return {**vars(train), **vars(config)}


@pytest.mark.parametrize("name", ["hopper-medium-v2", "halfcheetah-medium-replay-v2", "Ant-v5"])
def test_locomotion(name: str) -> None:
    found = settings(name)
    expected = {"loss": "adpo", "anchor": "teacher", "tau": 1.0, "temperature": 1.0}
    expected |= {"candidates": 16, "scale": 1.0, "teacher_std": 0.1, "steps": 50_000}
    assert {key: found[key] for key in expected} == expected


def test_elsewhere_there_is_none() -> None:
    assert find_recipe(Distill, "auto", families("Pendulum-v1")) == ("none", {})


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"tau": 0.0}, r"tau is 0\.0.*\(0, inf\)"),
        ({"temperature": 0.0}, r"temperature is 0\.0.*\(0, inf\)"),
        ({"candidates": 1}, r"candidates is 1.*\[2, inf\)"),
        ({"scale": 0.0}, r"scale is 0\.0"),
        ({"teacher_std": 0.0}, r"teacher_std is 0\.0"),
        ({"clone": 1.5}, r"clone is 1\.5.*\[0, 1\]"),
        ({"polyak": 0.0}, r"polyak is 0\.0.*\(0, 1\]"),
    ],
    ids=str,
)
def test_what_makes_no_sense_is_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        DistillConfig(**changes)
