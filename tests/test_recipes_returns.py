"""Settings of Decision Transformer and Decision Mamba against their authors' code."""

from typing import Any

import pytest

from offrl.agents import DT, DecisionMamba, DecisionMambaConfig, DTConfig
from offrl.envs.references import families
from offrl.errors import ConfigError
from offrl.plans import configure
from offrl.registry import find_recipe
from offrl.training import TrainConfig

# By environment, the first of the authors' targets; on all of them the scale is 1000.
TARGETS = {"hopper": 3600.0, "halfcheetah": 12000.0, "walker2d": 5000.0}
# Decision Transformer: arguments of experiment.py for Gym; 10 iterations of 10,000 updates.
DT_TABLE = {
    **{"context": 20, "layers": 3, "heads": 1, "width": 128, "activation": "relu"},
    **{"lr": 1e-4, "weight_decay": 1e-4, "warmup": 10_000, "grad_norm": 0.25, "batch_size": 64},
    **{"steps": 100_000, "return_scale": 1000.0, "max_steps": 1000, "normalize_obs": True},
}
# Decision Mamba: run.sh and run_gym.sh; 40 iterations of 2,500 updates.
MAMBA_TABLE = {
    **{"context": 20, "lr": 1e-4, "weight_decay": 1e-5, "warmup": 2_500, "grad_norm": 0.25},
    **{"batch_size": 64, "steps": 100_000, "return_scale": 1000.0, "max_steps": 1000},
    **{"action_weight": 0.9, "obs_weight": 0.05, "return_weight": 0.05, "max_share": 0.5},
    **{"normalize_obs": True},
}


def settings(cls: Any, default: Any, name: str) -> dict[str, Any]:
    """Of agent and training together, with the recipe of an environment or dataset."""
    train, config = configure(TrainConfig(), default, find_recipe(cls, "auto", families(name))[1])
    return {**vars(train), **vars(config)}


@pytest.mark.parametrize("kind", ["medium", "medium-replay", "medium-expert"])
@pytest.mark.parametrize("environment", TARGETS)
def test_decision_transformer(environment: str, kind: str) -> None:
    found = settings(DT, DTConfig(), f"{environment}-{kind}-v2")
    expected = {**DT_TABLE, "target_return": TARGETS[environment]}
    assert {name: found[name] for name in expected} == expected


@pytest.mark.parametrize("environment", TARGETS)
def test_decision_mamba(environment: str) -> None:
    found = settings(DecisionMamba, DecisionMambaConfig(), f"{environment}-medium-v2")
    embed = "linear" if environment == "hopper" else "mlp"
    expected = {**MAMBA_TABLE, "target_return": TARGETS[environment], "embed": embed}
    assert {name: found[name] for name in expected} == expected


@pytest.mark.parametrize(("cls", "default"), [(DT, DTConfig()), (DecisionMamba, None)])
def test_elsewhere_the_target_is_the_best_of_the_data(cls: Any, default: Any) -> None:
    default = default or DecisionMambaConfig()
    assert settings(cls, default, "Ant-v5")["target_return"] is None
    assert settings(cls, default, "Ant-v5")["return_scale"] == 1000.0
    assert default.return_scale is None
    assert settings(cls, default, "Ant-v5")["batch_size"] == 64
    assert find_recipe(cls, "auto", families("Pendulum-v1")) == ("none", {})


@pytest.mark.parametrize(
    ("make", "changes", "message"),
    [
        (DTConfig, {"context": 0}, r"DTConfig.context is 0; it must be in \[1, inf\)"),
        (DTConfig, {"heads": 0}, r"DTConfig.heads is 0; it must be in \[1, inf\)"),
        (DTConfig, {"return_scale": 0.0}, r"return_scale is 0.0; it must be in \(0, inf\)"),
        (DTConfig, {"target_return": float("nan")}, r"DTConfig.target_return is nan"),
        (DecisionMambaConfig, {"max_share": 1.5}, r"max_share is 1.5; it must be in \[0, 1\]"),
        (DecisionMambaConfig, {"obs_weight": -1.0}, r"obs_weight is -1.0; it must be in \[0, inf"),
    ],
)
def test_settings_that_cannot_be(make: Any, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make(**changes)
