"""Each recipe against the table of its source, by the names of environments and datasets."""

from collections.abc import Mapping
from typing import Any, ClassVar

import pytest

from offrl.agents import (
    AGENTS,
    BC,
    IQL,
    PRDC,
    TD3BC,
    BCConfig,
    IQLConfig,
    PRDCConfig,
    ReBRAC,
    ReBRACConfig,
    TD3BCConfig,
)
from offrl.datasets.corruption import ELEMENTS, MODES
from offrl.datasets.names import named_sets
from offrl.envs.references import families
from offrl.envs.tasks import TASKS
from offrl.errors import ConfigError
from offrl.plans import configure
from offrl.registry import find_agent, find_recipe
from offrl.training import TrainConfig

HOPPER = ["hopper-medium-v2", "hopper-medium-replay-v0", "Hopper-v5", "Hopper-v4"]
WALKER = ["walker2d-medium-expert-v2", "walker2d-random-v0", "Walker2d-v5"]
CHEETAH = ["halfcheetah-medium-v2", "halfcheetah-expert-v0", "HalfCheetah-v5", "HalfCheetah-v4"]
ANT_MAZE = ["antmaze-umaze-v0", "antmaze-medium-play-v2", "antmaze-large-diverse-v2"]
KITCHEN = ["kitchen-complete-v0", "kitchen-mixed-v0", "FrankaKitchen-v1"]
ADROIT = ["pen-human-v1", "door-human-v1", "hammer-cloned-v1", "relocate-expert-v1"]
ADROIT += ["AdroitHandDoor-v1", "AdroitHandPen-v1"]


def settings(cls: Any, config: Any, name: str) -> dict[str, Any]:
    """All settings that training on `name` would begin with."""
    _, recipe = find_recipe(cls, "auto", families(name))
    return {**vars(config), **recipe}


def assert_has(found: dict[str, Any], **wanted: Any) -> None:
    assert {key: found[key] for key in wanted} == wanted


# PRDC, the authors' settings: alpha, beta, reward scale and shift by environment.
PRDC_TABLE = [
    (CHEETAH, (40.0, 2.0, 1.0, 0.0)),
    (HOPPER, (2.5, 2.0, 1.0, 0.0)),
    (WALKER, (2.5, 2.0, 1.0, 0.0)),
    (ANT_MAZE, (7.5, 7.5, 10_000.0, -1.0)),
]


@pytest.mark.parametrize(
    ("name", "row"), [(n, row) for names, row in PRDC_TABLE for n in names], ids=str
)
def test_prdc(name: str, row: tuple[float, ...]) -> None:
    alpha, beta, scale, shift = row
    found = settings(PRDC, PRDCConfig(), name)
    assert_has(found, alpha=alpha, beta=beta, reward_scale=scale, reward_shift=shift)
    assert_has(found, normalize_obs=True)


# IQL, the paper's appendix and the authors' code: expectile, beta, dropout of the policy, rewards.
IQL_TABLE = [
    (HOPPER + WALKER + CHEETAH, (0.7, 3.0, 0.0, True, 0.0)),
    (ANT_MAZE, (0.9, 10.0, 0.0, False, -1.0)),
    (KITCHEN + ADROIT, (0.7, 0.5, 0.1, False, 0.0)),
]


@pytest.mark.parametrize(
    ("name", "row"), [(n, row) for names, row in IQL_TABLE for n in names], ids=str
)
def test_iql(name: str, row: tuple[Any, ...]) -> None:
    expectile, beta, dropout, by_range, shift = row
    found = settings(IQL, IQLConfig(), name)
    assert_has(found, expectile=expectile, beta=beta, dropout=dropout)
    assert_has(found, reward_by_return_range=by_range, reward_shift=shift, reward_scale=1.0)
    assert_has(found, actor_schedule="cosine", max_weight=100.0, normalize_obs=False)


# ReBRAC, the paper's table and the authors' configurations: beta_1 and beta_2 by dataset.
LOCOMOTION_KINDS = "random medium expert medium-expert medium-replay full-replay"
ADROIT_KINDS = "human cloned expert"
REBRAC_TABLE = [
    ("halfcheetah", LOCOMOTION_KINDS, ".001,.1 .001,.01 .01,.01 .01,.1 .01,.001 .001,.1"),
    ("hopper", LOCOMOTION_KINDS, ".001,.01 .01,.01 .1,.1 .1,.01 .05,.5 .01,.01"),
    ("walker2d", LOCOMOTION_KINDS, ".01,0 .05,.1 .01,.5 .01,.01 .05,.01 .01,.01"),
    ("antmaze", "umaze umaze-diverse", ".003,.002 .003,.001"),
    ("antmaze", "medium-play medium-diverse", ".001,.0005 .001,0"),
    ("antmaze", "large-play large-diverse", ".002,.001 .002,.002"),
    ("pen", ADROIT_KINDS, ".1,.5 .05,.5 .01,.01"),
    ("door", ADROIT_KINDS, ".1,.1 .01,.1 .05,.01"),
    ("hammer", ADROIT_KINDS, ".01,.5 .1,.5 .01,.01"),
    ("relocate", ADROIT_KINDS, ".1,.01 .1,.01 .05,.01"),
]
# Learning rates of policy and critic, gamma, reward scale and batch size, by suite.
REBRAC_SUITES = {
    "locomotion": (1e-3, 1e-3, 0.99, 1.0, 1024),
    "antmaze": (3e-4, 5e-5, 0.999, 100.0, 256),
    "adroit": (3e-4, 3e-4, 0.99, 1.0, 256),
}


@pytest.mark.parametrize(("task", "kinds", "pairs"), REBRAC_TABLE, ids=str)
def test_rebrac(task: str, kinds: str, pairs: str) -> None:
    for kind, pair in zip(kinds.split(), pairs.split(), strict=True):
        name = f"{task}-{kind}-v1"
        assert name in named_sets() or f"{task}-{kind}-v2" in named_sets()
        found = {"batch_size": 256, **settings(ReBRAC, ReBRACConfig(), name)}
        beta1, beta2 = (float(x) for x in pair.split(","))
        lr, critic_lr, gamma, scale, batch_size = REBRAC_SUITES[families(name)[-1]]
        assert_has(found, beta1=beta1, beta2=beta2, lr=lr, critic_lr=critic_lr, gamma=gamma)
        assert_has(found, reward_scale=scale, batch_size=batch_size, reward_shift=0.0)
        assert_has(found, hidden=(256, 256, 256), normalize_obs=False, polyak=0.005)
        assert_has(found, policy_noise=0.2, noise_clip=0.5, policy_delay=2)


@pytest.mark.parametrize(
    ("name", "betas", "batch_size"),
    [
        ("mujoco/hopper/simple-v0", (0.01, 0.01), 1024),
        ("Hopper-v5", (0.01, 0.01), 1024),
        ("AntMaze_UMaze-v5", (0.002, 0.001), None),
        ("AdroitHandPen-v1", (0.01, 0.01), None),
    ],
)
def test_rebrac_on_data_that_its_table_lacks(
    name: str, betas: tuple[float, float], batch_size: int | None
) -> None:
    found = settings(ReBRAC, ReBRACConfig(), name)
    assert (found["beta1"], found["beta2"]) == betas
    assert found.get("batch_size") == batch_size


@pytest.mark.parametrize("name", [*HOPPER, *WALKER, *CHEETAH])
def test_td3_bc_is_the_same_everywhere(name: str) -> None:
    found = settings(TD3BC, TD3BCConfig(), name)
    assert_has(found, alpha=2.5, reward_scale=1.0, reward_shift=0.0, normalize_obs=True)


@pytest.mark.parametrize("name", ANT_MAZE)
def test_td3_bc_shifts_the_rewards_of_antmaze(name: str) -> None:
    found = settings(TD3BC, TD3BCConfig(), name)
    assert_has(found, alpha=2.5, reward_scale=1.0, reward_shift=-1.0)


@pytest.mark.parametrize("config", [TD3BCConfig(), PRDCConfig()], ids=["td3_bc", "prdc"])
def test_the_settings_of_td3(config: Any) -> None:
    found = vars(config)
    assert_has(found, gamma=0.99, polyak=0.005, lr=3e-4, hidden=(256, 256))
    assert_has(found, policy_noise=0.2, noise_clip=0.5, policy_delay=2)


def test_the_settings_that_iql_has_everywhere() -> None:
    assert_has(vars(IQLConfig()), gamma=0.99, polyak=0.005, lr=3e-4, hidden=(256, 256))


def test_ten_percent_cloning_is_of_ten_percent() -> None:
    _, cls, config = find_agent("percent_bc")
    assert cls is BC and config.top_fraction == 0.1
    assert find_agent("bc")[2].top_fraction == 1.0


@pytest.mark.parametrize("agent", AGENTS)
def test_every_recipe_is_of_a_known_family_and_makes_a_config(agent: str) -> None:
    cls, default = AGENTS[agent]
    names = (*named_sets(), *ANT_MAZE, *KITCHEN, *ADROIT, *TASKS)
    known = {f for n in names for f in families(n)}
    # Settings for corrupted data are named as the families of such data are.
    known |= {f"{f}-{mode}-{element}" for f in known for mode in MODES for element in ELEMENTS}
    assert set(cls.recipes) <= known
    for recipe in cls.recipes.values():
        train, made = configure(TrainConfig(), default, recipe)
        assert {k: {**vars(train), **vars(made)}[k] for k in recipe} == dict(recipe)


def test_the_most_specific_family_wins() -> None:
    assert families("HalfCheetah-v5") == ["halfcheetah", "locomotion"]
    assert find_recipe(PRDC, "auto", families("HalfCheetah-v5"))[0] == "halfcheetah"
    assert find_recipe(PRDC, "auto", families("Hopper-v5"))[0] == "locomotion"
    assert find_recipe(IQL, "auto", families("AdroitHandDoor-v1"))[0] == "adroit"


def test_a_dataset_s_kind_comes_before_its_environment() -> None:
    class Kinds(BC):
        recipes: ClassVar[Mapping[str, Mapping[str, Any]]] = {
            "hopper-medium": {"batch_size": 1024},
            "locomotion": {"batch_size": 512, "lr": 1e-3},
        }

    assert find_recipe(Kinds, "auto", families("hopper-medium-v2"))[0] == "hopper-medium"
    assert find_recipe(Kinds, "auto", families("hopper-medium-replay-v2"))[0] == "locomotion"
    _, recipe = find_recipe(Kinds, "auto", families("Hopper-v5"))
    train, config = configure(TrainConfig(), BCConfig(), recipe)
    assert (train.batch_size, config.lr) == (512, 1e-3)


@pytest.mark.parametrize("name", ["Pendulum-v1", "my-own-robot", "kitchen-complete-v0"])
def test_without_a_family_in_the_table_there_is_no_recipe(name: str) -> None:
    assert find_recipe(PRDC, "auto", families(name)) == ("none", {})


def test_a_recipe_by_name_whatever_the_environment() -> None:
    name, recipe = find_recipe(PRDC, "halfcheetah", families("Hopper-v5"))
    assert name == "halfcheetah" and recipe["alpha"] == 40.0
    assert find_recipe(PRDC, "none", families("HalfCheetah-v5")) == ("none", {})


def test_an_unknown_recipe_is_refused_with_near_ones() -> None:
    with pytest.raises(ConfigError, match=r"PRDC has no recipe 'halfchetah', did you mean 'halfch"):
        find_recipe(PRDC, "halfchetah", [])
    with pytest.raises(ConfigError, match=r"IQL has no recipe 'zzz'; it has locomotion, antmaze"):
        find_recipe(IQL, "zzz", [])
    with pytest.raises(ConfigError, match=r"BC has no recipe 'antmaze'; it has none"):
        find_recipe(BC, "antmaze", [])
