"""A2PR's settings against its authors' commands; recipes by dataset on the command line."""

from typing import Any

import pytest

from offrl import train_cli
from offrl.agents import A2PR, A2PRConfig
from offrl.cli import main
from offrl.envs.references import families
from offrl.errors import ConfigError
from offrl.plans import Plan
from offrl.registry import find_recipe

# alpha, weight of the CVAE's reconstruction, of the masked pull, and gamma.
TABLE = {
    "halfcheetah-medium-v2": (40.0, 1.0, 1.0, 0.99),
    "hopper-medium-v2": (2.5, 1.0, 0.4, 0.995),
    "walker2d-medium-v2": (2.5, 1.5, 1.0, 0.99),
}


def settings(name: str) -> dict[str, Any]:
    return {**vars(A2PRConfig()), **find_recipe(A2PR, "auto", families(name))[1]}


@pytest.mark.parametrize("name", TABLE)
def test_a2pr(name: str) -> None:
    for dataset in (name, name.replace("medium", "medium-replay"), name.replace("-v2", "-v0")):
        found = settings(dataset)
        row = (found["alpha"], found["cvae_weight"], found["mask_weight"], found["gamma"])
        assert row == TABLE[name]


def test_the_settings_that_a2pr_has_everywhere() -> None:
    found = settings("antmaze-umaze-v2")
    assert found == vars(A2PRConfig())
    for name, value in {
        **{"alpha": 2.5, "mask_weight": 0.5, "cvae_weight": 1.0, "gamma": 0.99},
        **{"lr": 3e-4, "cvae_lr": 1e-3, "polyak": 0.005, "policy_noise": 0.2, "noise_clip": 0.5},
        **{"policy_delay": 2, "normalize_obs": True, "detach_reference": False},
        **{"hidden": (256,) * 3, "critic_hidden": (256,) * 4, "cvae_hidden": (750, 750)},
    }.items():
        assert found[name] == value, name


@pytest.mark.parametrize("field", ["alpha", "mask_weight", "cvae_weight", "cvae_lr"])
def test_settings_that_cannot_be(field: str) -> None:
    with pytest.raises(ConfigError, match=rf"A2PRConfig\.{field} is -1"):
        A2PRConfig(**{field: -1.0})


@pytest.mark.parametrize(
    ("flags", "batch_size", "printed"),
    [
        ([], 1024, "recipe hopper-medium-replay (beta1=0.05, beta2=0.5, batch_size=1024)"),
        (["--batch-size", "256"], 256, "batch_size=256 instead of 1024"),
        (["--recipe", "hopper-expert"], 1024, "recipe hopper-expert (beta1=0.1, beta2=0.1,"),
        (["--recipe", "none"], 256, "its default settings, no recipe"),
    ],
    ids=["auto", "flag", "named", "none"],
)
def test_the_dataset_s_name_chooses_betas_and_batch_size(
    flags: list[str],
    batch_size: int,
    printed: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    started: list[Plan] = []
    monkeypatch.setattr(train_cli, "start_run", lambda plan, *_: started.append(plan))
    monkeypatch.setattr(train_cli, "_report", lambda run: None)
    common = ["train", "--agent", "rebrac", "--dataset", "hopper-medium-replay", "--env", "none"]
    assert main([*common, *flags]) == 0
    assert printed in capsys.readouterr().out
    record = started[0].record()
    assert record["train"]["batch_size"] == batch_size == started[0].train.batch_size
    if not flags:
        assert record["recipe"] == "hopper-medium-replay"
        assert record["recipe_values"] == {"beta1": 0.05, "beta2": 0.5, "batch_size": 1024}
