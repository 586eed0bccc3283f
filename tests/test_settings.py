"""Settings that no network or plan can have are refused by the fields that were written."""

from dataclasses import replace
from typing import Any

import pytest
from problems import build, small_config, walk

from offrl.agents import AGENTS
from offrl.errors import ConfigError


@pytest.mark.parametrize(
    ("agent", "changes", "message"),
    [
        ("ibc", {"depth": 3}, "IBCConfig.depth is 3; .* a multiple of 2"),
        ("ebt", {"width": 30}, "EBTConfig.width is 30; the transformer .* of 4"),
        ("ebt", {"backbone": "mlp", "depth": 5}, "EBTConfig.depth is 5; an mlp .* of 2"),
        ("dt", {"heads": 3}, "DTConfig.width is 128; attention of 3 heads .* of 3"),
        ("act", {"heads": 3}, "ACTConfig.width is 512; attention of 3 heads .* of 3"),
        ("act_jepa", {"heads": 1, "width": 9}, "ACTJEPAConfig.width is 9; .* of 2"),
        ("act", {"heads": 1, "width": 2}, r"ACTConfig.width is 2; .*\[4, inf"),
        ("act", {"latent": 0}, r"ACTConfig.latent is 0; .*\[1, inf"),
        ("act", {"kl_weight": -1.0}, r"ACTConfig.kl_weight is -1.0; .*\[0, inf"),
        ("chunk_bc", {"horizon": 18}, "ChunkBCConfig.horizon is 18; a U-Net of depth 3 .* of 4"),
        ("flow_bc", {"width": 12}, "FlowBCConfig.width is 12; the U-Net .* of 8"),
        ("flow_bc", {"backbone": "transformer", "width": 6}, "FlowBCConfig.width is 6; .* of 4"),
        (
            "diffusion_policy",
            {"horizon": 8},
            r"DiffusionPolicyConfig.execute is 8; .* horizon 8 and history 2 .* in \[1, 7\]",
        ),
        ("diffusion_policy", {"history": 17}, r"PolicyConfig.history is 17; .*\[1, 16\]"),
        ("consistency_bc", {"sigma_data": 0.0}, "ConsistencyBCConfig.sigma_data is 0.0"),
        ("beso", {"goal_gamma": 1.0}, "BESOConfig.goal_gamma is 1.0"),
        ("beso", {"goal_length": 0}, "BESOConfig.goal_length is 0"),
        ("beso", {"goal_dropout": 1.5}, "BESOConfig.goal_dropout is 1.5"),
        ("beso", {"sigma_max": 0.001}, r"BESOConfig.sigma_max is 0.001; .*\(0.005, inf"),
        ("beso", {"process": "ddpm", "levels": 2}, r"BESOConfig.sampler_steps is 3; .*\[1, 2\]"),
        ("beso", {"heads": 7}, "BESOConfig.width is 360; attention of 7 heads"),
        (
            "diffusion_ql",
            {"standardize_reward": True, "reward_scale": 2.0},
            "DiffusionQLConfig.reward_scale is 2.0; standardize_reward is set",
        ),
        (
            "diffusion_ql",
            {"standardize_reward": True, "reward_shift": -1.0},
            "DiffusionQLConfig.reward_shift is -1.0; standardize_reward is set",
        ),
    ],
)
def test_settings_that_cannot_be(agent: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        type(AGENTS[agent][1])(**changes)


def test_plans_that_are_averaged_need_no_number_to_execute() -> None:
    assert type(AGENTS["act"][1])(horizon=4, execute=100).execution().execute == 1


@pytest.mark.parametrize(
    ("agent", "field"), [("iql", "hidden"), ("td3_bc", "hidden"), ("diffusion_ql", "critic_hidden")]
)
def test_a_critic_without_layers_is_refused(agent: str, field: str) -> None:
    config: Any = replace(small_config(agent), **{field: ()})
    with pytest.raises(
        ConfigError, match=r"a critic's hidden layers are \[\]; it needs one or more"
    ):
        build(agent, walk(), config=config)
