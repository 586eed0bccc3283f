"""Settings of Diffusion-QL, IDQL, FQL and AWM against the tables of their sources."""

from typing import Any

import pytest

from offrl.agents import (
    AGENTS,
    AWM,
    FQL,
    IDQL,
    AWMConfig,
    DiffusionQL,
    DiffusionQLConfig,
    FQLConfig,
    IDQLConfig,
    IQLConfig,
)
from offrl.datasets.names import named_sets
from offrl.envs.references import families
from offrl.errors import ConfigError
from offrl.registry import find_recipe


def settings(cls: Any, config: Any, name: str) -> dict[str, Any]:
    return {"batch_size": 256, **vars(config), **find_recipe(cls, "auto", families(name))[1]}


def assert_has(found: dict[str, Any], **wanted: Any) -> None:
    assert {key: found[key] for key in wanted} == wanted


# Diffusion-QL, the authors' table: eta, actions in the backup, norm of gradients, learning rate of
# the policy, scale and shift of rewards, by dataset.
RAW, SHIFTED = (1.0, 0.0), (4.0, -2.0)
DQL_TABLE: dict[str, tuple[Any, ...]] = {
    "halfcheetah-medium-v2": (1.0, 1, 9.0, 3e-4, *RAW),
    "hopper-medium-v2": (1.0, 1, 9.0, 3e-4, *RAW),
    "walker2d-medium-v2": (1.0, 1, 1.0, 3e-4, *RAW),
    "halfcheetah-medium-replay-v2": (1.0, 1, 2.0, 3e-4, *RAW),
    "hopper-medium-replay-v2": (1.0, 1, 4.0, 3e-4, *RAW),
    "walker2d-medium-replay-v2": (1.0, 1, 4.0, 3e-4, *RAW),
    "halfcheetah-medium-expert-v2": (1.0, 1, 7.0, 3e-4, *RAW),
    "hopper-medium-expert-v2": (1.0, 1, 5.0, 3e-4, *RAW),
    "walker2d-medium-expert-v2": (1.0, 1, 5.0, 3e-4, *RAW),
    "antmaze-umaze-v0": (0.5, 1, 2.0, 3e-4, *SHIFTED),
    "antmaze-umaze-diverse-v0": (2.0, 10, 3.0, 3e-4, *SHIFTED),
    "antmaze-medium-play-v0": (2.0, 10, 2.0, 1e-3, *SHIFTED),
    "antmaze-medium-diverse-v0": (3.0, 10, 1.0, 3e-4, *SHIFTED),
    "antmaze-large-play-v0": (4.5, 10, 10.0, 3e-4, *SHIFTED),
    "antmaze-large-diverse-v0": (3.5, 10, 7.0, 3e-4, *SHIFTED),
    "pen-human-v1": (0.15, 1, 7.0, 3e-5, *RAW),
    "pen-cloned-v1": (0.1, 1, 8.0, 3e-5, *RAW),
    "kitchen-complete-v0": (0.005, 1, 9.0, 3e-4, *RAW),
    "kitchen-partial-v0": (0.005, 1, 10.0, 3e-4, *RAW),
    "kitchen-mixed-v0": (0.005, 1, 10.0, 3e-4, *RAW),
}


@pytest.mark.parametrize("name", DQL_TABLE)
def test_diffusion_ql(name: str) -> None:
    eta, backup, norm, lr, scale, shift = DQL_TABLE[name]
    found = settings(DiffusionQL, DiffusionQLConfig(), name)
    assert_has(found, eta=eta, backup=backup, grad_norm=norm, lr=lr)
    assert_has(found, reward_scale=scale, reward_shift=shift)
    assert_has(found, standardize_reward=name.startswith("pen"))


def test_the_settings_that_diffusion_ql_has_everywhere() -> None:
    found = vars(DiffusionQLConfig())
    assert_has(found, levels=5, candidates=50, temperature=1.0, gamma=0.99, polyak=0.005)
    assert_has(found, ema=0.995, ema_start=1000, ema_every=5, critic_lr=3e-4)
    assert_has(found, width=256, depth=3, critic_hidden=(256, 256, 256))
    assert_has(found, normalize_obs=False, lr_schedule="constant")
    other = settings(DiffusionQL, DiffusionQLConfig(), "Hopper-v5")
    assert_has(other, eta=1.0, grad_norm=5.0, backup=1)


# FQL, the authors' commands: alpha and the critics in y.
FQL_TABLE = {
    **{f"antmaze-{n}-v2": (10.0, "mean") for n in ("umaze", "umaze-diverse")},
    **{f"antmaze-medium-{n}-v2": (10.0, "mean") for n in ("play", "diverse")},
    **{f"antmaze-large-{n}-v2": (3.0, "mean") for n in ("play", "diverse")},
    "pen-human-v1": (10_000.0, "min"),
    "pen-cloned-v1": (10_000.0, "min"),
    "pen-expert-v1": (3_000.0, "min"),
    "door-human-v1": (30_000.0, "min"),
    "door-cloned-v1": (30_000.0, "min"),
    "door-expert-v1": (30_000.0, "min"),
    "hammer-human-v1": (30_000.0, "min"),
    "hammer-cloned-v1": (10_000.0, "min"),
    "hammer-expert-v1": (30_000.0, "min"),
    "relocate-human-v1": (10_000.0, "min"),
    "relocate-cloned-v1": (30_000.0, "min"),
    "relocate-expert-v1": (30_000.0, "min"),
}


@pytest.mark.parametrize("name", FQL_TABLE)
def test_fql(name: str) -> None:
    assert name in named_sets() or families(name)
    alpha, agg = FQL_TABLE[name]
    found = settings(FQL, FQLConfig(), name)
    assert found["steps"] == 500_000
    assert_has(found, alpha=alpha, q_agg=agg, normalize_q=False)
    assert_has(found, reward_shift=-1.0 if name.startswith("antmaze") else 0.0)


def test_the_settings_that_fql_has_everywhere() -> None:
    found = vars(FQLConfig())
    assert_has(found, alpha=10.0, flow_steps=10, gamma=0.99, lr=3e-4, polyak=0.005)
    assert_has(found, hidden=(512,) * 4, critic_hidden=(512,) * 4, normalize_obs=False)
    # Ours, where the paper has no tasks: the authors' advice for new ones.
    assert_has(settings(FQL, FQLConfig(), "Hopper-v5"), normalize_q=True, alpha=1.0)


# IDQL, the paper and the authors' launcher: tau, batch size, rewards.
@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("hopper-medium-v2", (0.7, 512, True, 0.0)),
        ("Walker2d-v5", (0.7, 512, True, 0.0)),
        ("antmaze-large-diverse-v2", (0.9, 512, False, -1.0)),
    ],
)
def test_idql(name: str, row: tuple[Any, ...]) -> None:
    expectile, size, by_range, shift = row
    found = settings(IDQL, IDQLConfig(), name)
    assert_has(found, expectile=expectile, batch_size=size, reward_shift=shift)
    assert_has(found, reward_by_return_range=by_range, process="diffusion")


def test_the_settings_that_idql_and_ifql_have_everywhere() -> None:
    found = vars(IDQLConfig())
    assert_has(found, levels=5, candidates=64, temperature=0.0, width=256, depth=3, dropout=0.1)
    assert_has(found, ema=0.999, lr=3e-4, gamma=0.99, polyak=0.005, hidden=(256, 256))
    assert_has(found, actor_schedule="cosine")
    cls, ifql = AGENTS["ifql"]
    assert cls is IDQL
    assert_has(vars(ifql), process="flow", levels=10, candidates=32, expectile=0.9, ema=0.0)
    assert_has(vars(ifql), reward_by_return_range=False, actor_schedule="constant")


@pytest.mark.parametrize(
    "name", ["hopper-medium-v2", "antmaze-umaze-v2", "kitchen-mixed-v0", "pen-human-v1"]
)
def test_awm_has_the_values_and_weights_of_iql(name: str) -> None:
    iql = {**vars(IQLConfig()), **find_recipe(AGENTS["iql"][0], "auto", families(name))[1]}
    found = settings(AWM, AWMConfig(), name)
    same = ("expectile", "beta", "max_weight", "gamma", "lr", "polyak", "hidden")
    rewards = ("reward_by_return_range", "reward_scale", "reward_shift")
    assert {k: found[k] for k in (*same, *rewards)} == {k: iql[k] for k in (*same, *rewards)}
    assert_has(found, process="flow", levels=10, candidates=1, weights="exponential")


@pytest.mark.parametrize(
    ("config", "change"),
    [
        (DiffusionQLConfig, {"eta": -1.0}),
        (DiffusionQLConfig, {"backup": 0}),
        (DiffusionQLConfig, {"grad_norm": -1.0}),
        (DiffusionQLConfig, {"ema_every": 0}),
        (IDQLConfig, {"candidates": 0}),
        (IDQLConfig, {"temperature": -0.5}),
        (IDQLConfig, {"dropout": 1.0}),
        (FQLConfig, {"alpha": -1.0}),
        (FQLConfig, {"flow_steps": 0}),
        (AWMConfig, {"max_weight": 0.0}),
    ],
    ids=str,
)
def test_settings_that_cannot_be(config: Any, change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=rf"{config.__name__}\.{next(iter(change))} is"):
        config(**change)
