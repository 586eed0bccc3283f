"""Settings of policies by energies against their sources."""

from typing import Any

from offrl.agents import EBT, IBC, EBTConfig, IBCConfig
from offrl.envs.references import families
from offrl.registry import find_recipe


def settings(cls: Any, config: Any, name: str) -> dict[str, Any]:
    return {**vars(config), **find_recipe(cls, "auto", families(name))[1]}


def test_implicit_bc_for_pushing_from_states() -> None:
    # google-research/ibc, configs/pushing_states/mlp_ebm_best.gin and defaults of its mcmc.py.
    found = vars(IBCConfig())
    for name, value in {
        **{"history": 2, "execute": 1, "width": 128, "depth": 8, "lr": 1e-3, "lr_decay": 0.99},
        **{"negatives": 256, "temperature": 1.0, "penalty": 0.0, "margin": 0.05, "method": "dfo"},
        **{"rounds": 3, "spread": 0.33, "shrink": 0.5},
        **{"rate": 0.1, "last_rate": 1e-5, "shake": 1.0, "limit": 0.1, "steep": 1.0},
    }.items():
        assert found[name] == value, name
    # One action is predicted; candidates are a sixteenth of what was published.
    assert found["horizon"] - found["history"] + 1 == 1 and 16 * found["candidates"] == 16_384


def test_implicit_bc_on_d4rls_hand() -> None:
    # google-research/ibc, configs/d4rl/mlp_ebm_langevin_best.gin.
    found = settings(IBC, IBCConfig(), "pen-human-v0")
    assert found["batch_size"] == 512
    for name, value in {
        **{"history": 1, "horizon": 1, "width": 512, "depth": 8, "lr": 5e-4, "negatives": 8},
        **{"method": "langevin", "candidates": 512, "rounds": 100, "penalty": 1.0, "steep": 1.0},
        **{"rate": 0.5, "shake": 0.5, "limit": 0.5, "last_rate": 1e-5},
        "steps": 100_000,
    }.items():
        assert found[name] == value, name


def test_energy_based_transformers_first_stage() -> None:
    # alexiglad/EBT: two steps, each from a given start; AdamW with decay 0.01, gradients cut at 1.
    found = vars(EBTConfig())
    for name, value in {
        **{"stage": "s1", "descent_steps": 2, "langevin": 0.0, "rate_spread": 1.0, "noised": 0.0},
        **{"weight_decay": 0.01, "beta1": 0.9, "beta2": 0.999, "grad_norm": 1.0},
        "sampler_steps": 2,
    }.items():
        assert found[name] == value, name


def test_small_tasks_have_plans_of_their_own() -> None:
    for name in ("offrl/MultiReach-v0", "offrl/GoalReach-v0"):
        found = settings(EBT, EBTConfig(), name)
        assert (found["history"], found["horizon"], found["execute"]) == (2, 8, 4)
        # The learning rate falls by the count of updates, so that their number is a setting too.
        assert settings(IBC, IBCConfig(), name)["steps"] == 100_000
