"""CQL's, EDAC's, SAC-N's and AWAC's settings against the tables of their sources."""

from typing import Any

import pytest

from offrl.agents import AWAC, CQL, EDAC, SACN, AWACConfig, CQLConfig, EDACConfig, SACNConfig
from offrl.envs.references import families
from offrl.registry import find_recipe

LOCOMOTION = [
    f"{body}-{kind}-v2"
    for body in ("halfcheetah", "hopper", "walker2d")
    for kind in ("medium", "medium-replay", "medium-expert")
]
ANT_MAZE = ["antmaze-umaze-v2", "antmaze-medium-play-v2", "antmaze-large-diverse-v2"]
ADROIT = ["pen-human-v1", "pen-cloned-v1", "door-human-v1", "hammer-cloned-v1"]


def settings(cls: Any, config: Any, name: str) -> dict[str, Any]:
    return {**vars(config), **find_recipe(cls, "auto", families(name))[1]}


def has(found: dict[str, Any], **wanted: Any) -> bool:
    return {key: found[key] for key in wanted} == wanted


# The tables of EDAC's paper as CORL's configurations have them: N of SAC-N, N and eta of EDAC.
ENSEMBLES = {
    "halfcheetah-medium-v2": (10, 10, 1.0),
    "halfcheetah-medium-replay-v2": (10, 10, 1.0),
    "halfcheetah-medium-expert-v2": (10, 10, 5.0),
    "hopper-medium-v2": (500, 50, 1.0),
    "hopper-medium-replay-v2": (200, 50, 1.0),
    "hopper-medium-expert-v2": (200, 50, 1.0),
    "walker2d-medium-v2": (20, 10, 1.0),
    "walker2d-medium-replay-v2": (20, 10, 1.0),
    "walker2d-medium-expert-v2": (20, 10, 5.0),
    "pen-human-v1": (100, 20, 1000.0),
    "pen-cloned-v1": (100, 20, 10.0),
    "pen-expert-v1": (100, 20, 10.0),
    "door-human-v1": (100, 50, 200.0),
    "door-cloned-v1": (100, 50, 200.0),
    "hammer-expert-v1": (100, 50, 200.0),
    "relocate-human-v1": (100, 50, 200.0),
}


@pytest.mark.parametrize("name", ENSEMBLES)
def test_sac_n_and_edac(name: str) -> None:
    n, members, eta = ENSEMBLES[name]
    assert has(settings(SACN, SACNConfig(), name), ensemble=n)
    assert has(settings(EDAC, EDACConfig(), name), ensemble=members, eta=eta)


@pytest.mark.parametrize("config", [SACNConfig(), EDACConfig()], ids=["sac_n", "edac"])
def test_the_settings_that_both_have_everywhere(config: Any) -> None:
    assert has(vars(config), gamma=0.99, lr=3e-4, actor_lr=3e-4, polyak=0.005)
    assert has(vars(config), hidden=(256, 256, 256), target_entropy=-1.0, normalize_obs=False)
    assert has(vars(config), reward_scale=1.0, reward_shift=0.0)


# CORL's configurations of CQL: alpha, tau or no multiplier, lowest gap, best of ten in the target,
# layers of the critics, rate of the policy, observations, rewards.
CQL_TABLE = [
    (LOCOMOTION, (10.0, None, -float("inf"), False, 3, 3e-5, True, 1.0, 0.0)),
    (ANT_MAZE, (5.0, 0.8, -200.0, True, 5, 1e-4, False, 10.0, -5.0)),
    (ADROIT, (1.0, None, -float("inf"), False, 3, 1e-4, True, 1.0, 0.0)),
]


@pytest.mark.parametrize(
    ("name", "row"), [(n, r) for names, r in CQL_TABLE for n in names], ids=str
)
def test_cql(name: str, row: tuple[Any, ...]) -> None:
    alpha, tau, low, best, layers, actor_lr, normalize, scale, shift = row
    found = settings(CQL, CQLConfig(), name)
    assert has(found, alpha=alpha, clip_low=low, max_target_backup=best, actor_lr=actor_lr)
    assert has(found, normalize_obs=normalize, reward_scale=scale, reward_shift=shift)
    assert found["lagrange"] == (tau is not None)
    assert tau is None or found["target_gap"] == tau
    assert len(found["hidden"]) + found["extra_critic_layers"] == layers
    assert has(found, hidden=(256, 256, 256), samples=10, lse_temperature=1.0, lr=3e-4)
    assert has(found, importance_sampling=True, backup_entropy=False, bc_steps=0)
    assert has(found, gamma=0.99, polyak=0.005, clip_high=float("inf"))
    assert has(found, reward_by_return_range=name == "hopper-medium-v2")


# CORL's configurations of AWAC: lambda is 0.3333 or 0.1; AntMaze's rewards are lowered by one.
AWAC_TABLE = [(LOCOMOTION, (3.0, 0.0)), (ANT_MAZE, (10.0, -1.0)), (ADROIT, (10.0, 0.0))]


@pytest.mark.parametrize(
    ("name", "row"), [(n, r) for names, r in AWAC_TABLE for n in names], ids=str
)
def test_awac(name: str, row: tuple[float, float]) -> None:
    beta, shift = row
    found = settings(AWAC, AWACConfig(), name)
    assert has(found, beta=beta, reward_shift=shift, reward_scale=1.0, normalize_obs=True)
    assert has(found, max_weight=100.0, gamma=0.99, lr=3e-4, polyak=0.005)
    assert found["hidden"] == (256, 256, 256)
