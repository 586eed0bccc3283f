"""Settings of Dichotomy of Control against its authors' code."""

from typing import Any

import pytest

from offrl.agents import DoC, DoCConfig
from offrl.envs.references import families
from offrl.envs.tasks import TASKS
from offrl.errors import ConfigError
from offrl.plans import configure
from offrl.registry import find_recipe
from offrl.training import TrainConfig

# The neural code's defaults: three GPT-2 stacks, a Gaussian latent, 10 iterations of 1,000 updates.
TABLE = {
    **{"layers": 3, "heads": 1, "width": 128, "latent": 32, "latents": "gaussian"},
    **{"backbone": "gpt", "context": 20, "future": 20, "hidden": (256, 256), "candidates": 100},
    **{"lr": 1e-4, "weight_decay": 1e-4, "warmup": 1_000, "grad_norm": 0.25, "batch_size": 64},
    **{"steps": 10_000, "information_weight": 1.0},
}


def settings(name: str) -> dict[str, Any]:
    """Of agent and training together, with the recipe of an environment or dataset."""
    recipe = find_recipe(DoC, "auto", families(name))[1]
    train, config = configure(TrainConfig(), DoCConfig(), recipe)
    return {**vars(train), **vars(config)}


@pytest.mark.parametrize("name", ["hopper-medium-v2", "halfcheetah-medium-replay-v2", "Ant-v5"])
def test_locomotion(name: str) -> None:
    found = settings(name)
    assert {key: found[key] for key in TABLE} == TABLE


@pytest.mark.parametrize("name", [n for n in TASKS if "Luck" in n or "Lake" in n or "Noisy" in n])
def test_tasks_of_luck_have_the_small_form(name: str) -> None:
    found = settings(name)
    assert found["backbone"] == "mlp" and found["latents"] == "categorical"
    assert (found["future"] == 1) == ("Bandit" in name)
    assert found["normalize_obs"] == ("Reacher" in name)
    steps = {"Bandit": 1, "Lake": 100, "Reacher": 50}
    assert found["max_steps"] == next(n for kind, n in steps.items() if kind in name)


def test_luck_or_none_makes_no_difference_to_a_recipe() -> None:
    for with_luck, without in (("Noisy", "Still"), ("Slippery", "Firm")):
        names = [name for name in TASKS if with_luck in name or without in name]
        assert len(names) == 2 and settings(names[0]) == settings(names[1])
    # 2 sigma^2 / m: the script's noise is 0.1, in each of two components.
    assert settings("offrl/StillReacher-v0")["information_weight"] == pytest.approx(0.1**2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hold": 30}, "hold is 30 and future 20"),
        ({"mass": 0.0}, r"mass is 0.0; it must be in \(0, 1\]"),
        ({"least_mass": 2.0}, "least_mass is 2.0"),
        ({"energy_steps": 0}, "energy_steps is 0"),
        ({"context": -1}, "context is -1"),
    ],
)
def test_settings_that_cannot_be(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        DoCConfig(**changes)
