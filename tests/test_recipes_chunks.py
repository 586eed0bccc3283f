"""Settings of policies of action chunks against the tables of their sources."""

from typing import Any

import pytest

from offrl.agents import (
    AGENTS,
    ChunkBC,
    ConsistencyBC,
    ConsistencyBCConfig,
    DiffusionPolicy,
    DiffusionPolicyConfig,
    FlowBC,
    FlowBCConfig,
)
from offrl.envs.references import families
from offrl.envs.tasks import TASKS
from offrl.errors import ConfigError
from offrl.registry import find_recipe

NAMES = ("chunk_bc", "diffusion_policy", "flow_bc", "consistency_bc")
# Of the authors' configurations for states: the U-Net's, and what the transformer's change in it.
UNET = {
    **{"history": 2, "execute": 8, "horizon": 16, "backbone": "unet", "width": 256, "depth": 3},
    **{"levels": 100, "sampler_steps": 100, "prediction": "epsilon", "sampler": "ddpm"},
    **{"lr": 1e-4, "beta1": 0.95, "beta2": 0.999, "weight_decay": 1e-6, "warmup": 500},
    **{"ema_power": 0.75, "ema_max": 0.9999, "normalize": "minmax", "normalize_action": True},
    "mask_padding": False,
}
KITCHEN = {
    **{"backbone": "transformer", "width": 768, "depth": 8, "history": 4},
    **{"beta1": 0.9, "beta2": 0.95, "weight_decay": 1e-3, "warmup": 1000},
}
CONSISTENCY = {
    **{"sigma_data": 0.5, "sigma_min": 0.002, "first_levels": 10, "huber": 0.00054},
}


def settings(cls: Any, config: Any, name: str) -> dict[str, Any]:
    return {**vars(config), **find_recipe(cls, "auto", families(name))[1]}


@pytest.mark.parametrize("name", ["hopper-medium-v2", "pen-human-v1"])
def test_diffusion_policy_is_the_authors_u_net_where_no_recipe_is_stated(name: str) -> None:
    found = settings(DiffusionPolicy, DiffusionPolicyConfig(), name)
    assert {key: found[key] for key in UNET} == UNET


@pytest.mark.parametrize("name", ["kitchen-complete-v0", "kitchen-mixed-v0"])
def test_diffusion_policy_is_the_authors_transformer_in_the_kitchen(name: str) -> None:
    found = settings(DiffusionPolicy, DiffusionPolicyConfig(), name)
    expected = {**UNET, **KITCHEN}
    assert {key: found[key] for key in expected} == expected


@pytest.mark.parametrize("cls", [FlowBC, ConsistencyBC, ChunkBC])
def test_the_others_have_diffusion_policy_s_chunks_network_and_optimiser(cls: Any) -> None:
    own = vars(cls.config_class())
    shared = own.keys() & UNET.keys() - {"sampler", "sampler_steps"}
    assert len(shared) == 16 and all(own[key] == UNET[key] for key in shared)


def test_the_numbers_of_consistency_training_and_of_ten_euler_steps() -> None:
    own = vars(ConsistencyBCConfig())
    assert {key: own[key] for key in CONSISTENCY} == CONSISTENCY
    flow = FlowBCConfig()
    assert (flow.sampler, flow.sampler_steps) == ("euler", 10)


@pytest.mark.parametrize("agent", NAMES)
def test_tasks_of_short_episodes_have_short_chunks_and_the_same_network(agent: str) -> None:
    cls, config = AGENTS[agent]
    for task in TASKS:
        found = settings(cls, config, task)
        chunks = (found["history"], found["horizon"], found["execute"])
        assert chunks == (2, 8, 4)
        assert (found["backbone"], found["width"], found["depth"]) == ("film", 128, 3)
        if agent == "diffusion_policy":
            few = found["prediction"], found["sampler"], found["sampler_steps"]
            assert few == ("x0", "ddim", 8)


@pytest.mark.parametrize(
    ("agent", "changes", "message"),
    [
        ("diffusion_policy", {"levels": 10}, "sampler_steps is 100.* [1, 10]"),
        ("diffusion_policy", {"beta2": 1.0}, "beta2 is 1.0"),
        ("flow_bc", {"sampler": "midpoint", "sampler_steps": 3}, "even number of steps"),
        ("consistency_bc", {"last_levels": 5}, "last_levels is 5.* [10, inf)"),
        ("consistency_bc", {"sigma_max": 0.001}, "sigma_max is 0.001"),
        ("chunk_bc", {"execute": 16}, "execute is 16"),
    ],
)
def test_settings_that_cannot_be(agent: str, changes: dict[str, Any], message: str) -> None:
    words = message.split(".* ")
    with pytest.raises(ConfigError) as caught:
        type(AGENTS[agent][1])(**changes)
    assert all(word in str(caught.value) for word in words)
