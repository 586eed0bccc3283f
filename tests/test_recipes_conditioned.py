"""BESO and PTP with the settings of their authors' code."""

from typing import Any

import pytest
from test_recipes import KITCHEN, assert_has, settings

from offrl.agents import BESO, PTP, BESOConfig, PTPConfig


@pytest.mark.parametrize("name", KITCHEN)
def test_beso_in_the_kitchen(name: str) -> None:
    found = settings(BESO, BESOConfig(), name)
    assert_has(found, history=4, goal_length=2, goal_dropout=0.1, batch_size=1024)
    assert_has(found, steps=40_000)  # over which the learning rate falls
    assert_has(found, backbone="gpt", depth=6, width=360, heads=6)
    assert_has(found, sigma_data=0.5, sigma_min=0.005, sigma_max=1.0, sampler_steps=3)
    assert_has(found, lr=1e-4, lr_decay=0.99, ema=0.999, normalize="none", normalize_action=False)
    assert_has(found, process="edm", sampler="ddim", spacing="linear", goals="uniform")


def test_ptp_as_published() -> None:
    found = vars(PTPConfig())
    assert_has(found, history=16, horizon=32, execute=1, past_steps=-1, samples=1)
    assert_has(found, backbone="transformer", depth=8, width=256, levels=100, sampler_steps=100)
    assert_has(found, lr=1e-4, beta1=0.9, beta2=0.95, weight_decay=1e-3, warmup=1_000)
    assert_has(found, ema_power=0.75, ema_max=0.9999, sampler="ddpm", mask_padding=False)


@pytest.mark.parametrize(
    ("task", "memory"), [("Recall", 10), ("RecallLong", 26), ("GoalReach", 16)]
)
def test_ptp_remembers_as_far_as_the_cue(task: str, memory: int) -> None:
    found: dict[str, Any] = settings(PTP, PTPConfig(), f"offrl/{task}-v0")
    assert_has(found, history=memory, horizon=memory, samples=10, sampler="ddim", sampler_steps=8)
    PTPConfig(**{k: v for k, v in found.items() if k != "batch_size"})


def test_beso_on_the_tasks_of_offrl() -> None:
    found = settings(BESO, BESOConfig(), "offrl/GoalReach-v0")
    assert_has(found, history=1, goal_length=1, goals="geometric", goal_gamma=0.9)
    assert_has(found, sampler_steps=3, guidance=1.0, normalize="minmax", backbone="film")
    assert_has(found, steps=3_000, lr_decay=0.95)
