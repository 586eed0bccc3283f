"""Problems small enough to know the answer, and broken copies of the agents that miss it."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import plant_faults
import pytest
import torch
from plant_faults import Fault
from torch import Tensor

from offrl.agent import Agent
from offrl.agents import AGENTS
from offrl.datasets.offline import OfflineDataset
from offrl.feed import Feed
from offrl.networks import Learners

FAST = {"hidden": (24, 24), "lr": 3e-3}
TD3 = {**FAST, "polyak": 0.05, "normalize_obs": False}
IQL = {**TD3, "reward_by_return_range": False, "actor_schedule": "constant"}
Step = tuple[Sequence[float], float, float]  # observation, action, reward


def episodes(
    runs: Sequence[tuple[Sequence[Step], Sequence[float] | None]], name: str
) -> OfflineDataset:
    """From runs of steps, each with the observation at its time limit, or None: it terminated."""
    return OfflineDataset.from_episodes(
        [
            {
                "obs": np.array([s[0] for s in steps] + [final or steps[-1][0]], np.float32),
                "action": np.array([[s[1]] for s in steps], np.float32),
                "reward": np.array([s[2] for s in steps], np.float32),
                "terminated": final is None,
                "truncated": final is not None,
            }
            for steps, final in runs
        ],
        name=name,
    )


def fit(
    agent: str,
    dataset: OfflineDataset,
    settings: dict[str, Any],
    count: int,
    *,
    fault: Fault | None = None,
    seed: int = 0,
    batch_size: int = 64,
) -> Agent:
    """Train the agent, or a copy with a fault in it, in float64."""
    _, default = AGENTS[agent]
    config = type(default)(**{**vars(default), **settings})
    with plant_faults.planted(fault, agent) as cls:
        learner = cls(dataset.spec, config, Learners((seed,))).to(torch.float64)
        replay = learner.view(dataset).to(torch.float64)
        learner.prepare(replay)
        feed = Feed(replay, (seed,), batch_size, learner.noise(batch_size))
        for step in range(count):
            batch, noise = feed.at(step)
            learner.schedule(step, count)
            learner.update(batch, noise, step % learner.period)
    return learner


def column(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)[:, None]


def action_at(agent: Agent, *obs: float) -> float:
    return float(agent.mode(torch.tensor([obs], dtype=torch.float64))[0, 0].detach())


# -- a bandit: two kinds of action, one of which pays ---------------------------------------------

GOOD, BAD = 0.6, -0.6


def bandit(share: float = 0.5) -> OfflineDataset:
    """One state, one step; a share of the actions is near the one that pays 1, the others pay 0."""
    rng = np.random.default_rng(0)
    runs = []
    for i in range(200):
        good = i < 200 * share
        action = float((GOOD if good else BAD) + rng.uniform(-0.05, 0.05))
        runs.append(([([1.0], action, float(good))], None))
    return episodes(runs, "bandit")


FLIPPED = Fault("losses.td_target", "return reward", "return -reward", ())
BANDIT: dict[str, dict[str, Any]] = {
    "td3_bc": {**TD3, "alpha": 2.5},
    "prdc": {**TD3, "alpha": 2.5},
    "iql": {**IQL, "beta": 10.0},
}


@pytest.mark.parametrize("agent", BANDIT)
def test_the_action_that_pays_is_chosen(agent: str) -> None:
    learner = fit(agent, bandit(), BANDIT[agent], 300)
    assert action_at(learner, 1.0) > 0.5
    broken = fit(agent, bandit(), BANDIT[agent], 300, fault=FLIPPED)
    assert action_at(broken, 1.0) < 0.0


def test_cloning_plays_the_mean_and_cloning_the_better_half_what_pays() -> None:
    # A quarter is good: the mean action is 0.25 * 0.6 - 0.75 * 0.6 = -0.3.
    data = bandit(0.25)
    settings = {**FAST, "normalize_obs": False}
    cloned = fit("bc", data, settings, 300)
    assert action_at(cloned, 1.0) == pytest.approx(-0.3, abs=0.1)
    best = fit("percent_bc", data, {**settings, "top_fraction": 0.25}, 300)
    assert action_at(best, 1.0) == pytest.approx(GOOD, abs=0.05)
    everything = Fault("agents.bc.BC.view", "self.config.top_fraction < 1.0", "False", ())
    broken = fit("percent_bc", data, {**settings, "top_fraction": 0.25}, 300, fault=everything)
    assert action_at(broken, 1.0) == pytest.approx(-0.3, abs=0.1)


# -- chains whose values are known ----------------------------------------------------------------

GAMMA = 0.8


def chain() -> OfflineDataset:
    """First -> second -> end, rewards 1 and 2; and a third state that repeats itself, reward 1.

    Q(second) = 2, Q(first) = 1 + 0.8 * 2 = 2.6, and Q(third) = 1 / (1 - 0.8) = 5, since its
    episodes are cut by a time limit and never end.
    """
    rng = np.random.default_rng(0)
    first, second, third = np.eye(3).tolist()
    runs: list[tuple[Sequence[Step], Sequence[float] | None]] = []
    for _ in range(40):
        a, b, c, d = rng.uniform(-1, 1, 4).tolist()
        runs.append(([(first, a, 1.0), (second, b, 2.0)], None))
        runs.append(([(third, c, 1.0), (third, d, 1.0)], third))
    return episodes(runs, "chain")


def values(agent: Agent) -> list[float]:
    """Mean Q of each state over actions from -0.5 to 0.5."""
    obs = torch.eye(3, dtype=torch.float64).repeat_interleave(5, 0)
    action = torch.linspace(-0.5, 0.5, 5, dtype=torch.float64).repeat(3)[:, None]
    critic: Any = agent.critic
    found: list[float] = critic(obs, action).mean(0).reshape(3, 5).mean(1).tolist()
    return found


CHAIN: dict[str, dict[str, Any]] = {
    "td3_bc": {**TD3, "gamma": GAMMA, "polyak": 0.1, "lr": 1e-2},
    "prdc": {**TD3, "gamma": GAMMA, "polyak": 0.1, "lr": 1e-2},
    "iql": {**IQL, "gamma": GAMMA, "polyak": 0.1, "lr": 1e-2, "expectile": 0.5},
}
UNMASKED = Fault("losses.td_target", "gamma * mask * next_value", "gamma * next_value", ())
TRUNCATION_ENDS = Fault(
    "losses.td_target", "gamma * mask * next_value", "gamma * 0.0 * next_value", ()
)


@pytest.mark.parametrize("agent", CHAIN)
def test_values_of_a_chain(agent: str) -> None:
    learner = fit(agent, chain(), CHAIN[agent], 400)
    assert values(learner) == pytest.approx([2.6, 2.0, 5.0], abs=0.35)


@pytest.mark.parametrize("agent", CHAIN)
@pytest.mark.parametrize("fault", [UNMASKED, TRUNCATION_ENDS], ids=["unmasked", "never on"])
def test_a_chain_shows_a_wrong_mask(agent: str, fault: Fault) -> None:
    learner = fit(agent, chain(), CHAIN[agent], 400, fault=fault)
    assert values(learner) != pytest.approx([2.6, 2.0, 5.0], abs=0.35)


# -- IQL's two closed forms -----------------------------------------------------------------------


def coin() -> OfflineDataset:
    """One state; action 1 pays 1 and action -1 pays 0, as often."""
    return episodes([([([1.0], a, (a + 1) / 2)], None) for a in (1.0, -1.0) * 50], "coin")


COIN = {**IQL, "lr": 1e-2, "polyak": 0.2, "beta": 1.0}


@pytest.mark.parametrize("expectile", [0.3, 0.8])
def test_iqls_value_is_the_expectile(expectile: float) -> None:
    # Of {0, 1} in equal parts the tau-expectile v has tau (1 - v) = (1 - tau) v, so v = tau.
    learner: Any = fit("iql", coin(), {**COIN, "expectile": expectile}, 300)
    assert learner.value(column(1.0)).item() == pytest.approx(expectile, abs=0.1)
    flipped = Fault("losses.expectile_loss", "(diff < 0)", "(diff > 0)", ())
    broken: Any = fit("iql", coin(), {**COIN, "expectile": expectile}, 300, fault=flipped)
    assert broken.value(column(1.0)).item() == pytest.approx(1 - expectile, abs=0.1)


@pytest.mark.parametrize("beta", [0.0, 1.0])
def test_iqls_policy_is_the_weighted_mean(beta: float) -> None:
    # The weights of 1 and -1 are as e^beta to 1, so their mean is (e^beta - 1) / (e^beta + 1).
    learner = fit("iql", coin(), {**COIN, "beta": beta}, 400)
    assert action_at(learner, 1.0) == pytest.approx(math.tanh(beta / 2), abs=0.12)


def test_an_advantage_of_the_wrong_sign_is_seen() -> None:
    fault = Fault("regularizers.advantage_weight", "(beta * advantage)", "(-beta * advantage)", ())
    learner = fit("iql", coin(), COIN, 400, fault=fault)
    assert action_at(learner, 1.0) == pytest.approx(-math.tanh(0.5), abs=0.12)


# -- limits of TD3+BC and PRDC --------------------------------------------------------------------


def scattered(seed: int = 0) -> OfflineDataset:
    rng = np.random.default_rng(seed)
    return OfflineDataset.from_episodes(
        [
            {
                "obs": rng.normal(size=(6, 2)).astype(np.float32),
                "action": rng.uniform(-1, 1, (5, 1)).astype(np.float32),
                "reward": rng.normal(size=5).astype(np.float32),
                "terminated": e % 2 == 0,
            }
            for e in range(20)
        ],
        name="scattered",
    )


def assert_same(left: Agent, right: Agent, part: str) -> None:
    mine, other = (getattr(x, part).state_dict() for x in (left, right))
    for key, value in other.items():
        torch.testing.assert_close(mine[key], value, rtol=0, atol=1e-12)


def test_without_alpha_td3_bc_is_bc() -> None:
    cloned = fit("bc", scattered(), FAST, 30)
    regularised = fit("td3_bc", scattered(), {**FAST, "alpha": 0.0, "policy_delay": 1}, 30)
    assert_same(regularised, cloned, "actor")
    with_q = fit("td3_bc", scattered(), {**FAST, "alpha": 0.1, "policy_delay": 1}, 30)
    with pytest.raises(AssertionError):
        assert_same(with_q, cloned, "actor")


def test_with_a_large_beta_prdc_is_td3_bc() -> None:
    pulled = fit("td3_bc", scattered(), FAST, 30)
    own_row = fit("prdc", scattered(), {**FAST, "beta": 1e6}, 30)
    for part in ("actor", "critic", "actor_target", "critic_target"):
        assert_same(own_row, pulled, part)
    with pytest.raises(AssertionError):
        assert_same(fit("prdc", scattered(), {**FAST, "beta": 1.0}, 30), pulled, "actor")


def test_without_beta_the_state_does_not_matter() -> None:
    agent: Any = fit("prdc", scattered(), {**FAST, "beta": 0.0}, 1)
    data = scattered().action[:, 0].astype(np.float64)
    asked = torch.linspace(-1, 1, 21, dtype=torch.float64)[:, None]
    for obs in (torch.zeros(21, 2), torch.full((21, 2), 5.0)):
        found = agent.nearest(obs.double(), asked)[:, 0].numpy()
        nearest = data[np.abs(asked.numpy() - data).argmin(1)]
        np.testing.assert_array_equal(found, nearest)


def modes() -> OfflineDataset:
    """One state, no reward, and two actions, 0.5 and -0.5, of which the first is rarer."""
    return episodes([([([1.0], a, 0.0)], None) for a in (0.5, -0.5, -0.5) * 30], "modes")


@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_prdc_takes_the_nearest_mode_and_td3_bc_the_mean(seed: int) -> None:
    # Without the Q term the first action decides: the pull is to whichever mode is nearer.
    settings = {**TD3, "alpha": 0.0, "policy_delay": 1}
    begun = action_at(fit("prdc", modes(), settings, 0, seed=seed), 1.0)
    nearest = math.copysign(0.5, begun)
    trained = fit("prdc", modes(), settings, 120, seed=seed)
    assert action_at(trained, 1.0) == pytest.approx(nearest, abs=0.02)
    if seed == 0:
        mean = fit("td3_bc", modes(), settings, 120, seed=seed)
        assert action_at(mean, 1.0) == pytest.approx(-1 / 6, abs=0.1)
        own = Fault(
            "agents.prdc.PRDC.actor_loss",
            "action_error(action, neighbour)",
            "action_error(action, batch.action)",
            (),
        )
        broken = fit("prdc", modes(), settings, 120, seed=seed, fault=own)
        assert action_at(broken, 1.0) == pytest.approx(-1 / 6, abs=0.1)


@pytest.mark.parametrize(("alpha", "leaves"), [(20.0, True), (1e-3, False)])
@pytest.mark.parametrize("agent", ["td3_bc", "prdc"])
def test_the_data_are_left_only_when_told_to(agent: str, alpha: float, leaves: bool) -> None:
    # The reward rises beyond the logged actions, which end at -0.4.
    rng = np.random.default_rng(0)
    logged = rng.uniform(-0.6, -0.4, 200).tolist()
    data = episodes([([([1.0], a, -((a - 0.5) ** 2))], None) for a in logged], "slope")
    learner = fit(agent, data, {**TD3, "alpha": alpha}, 300)
    action = action_at(learner, 1.0)
    assert action > -0.35 if leaves else -0.65 < action < -0.35
