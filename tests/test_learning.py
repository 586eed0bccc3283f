"""Problems small enough to know the answer; broken copies of the agents miss it."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from fault import Fault
from known import (
    FAST,
    FLIPPED,
    GAMMA,
    GOOD,
    IQL,
    TD3,
    TRUNCATION_ENDS,
    UNMASKED,
    action_at,
    bandit,
    chain,
    column,
    episodes,
    fit,
    values,
)

from offrl.agent import Agent
from offrl.datasets.offline import OfflineDataset

# -- a bandit: two kinds of action, one of which pays ---------------------------------------------

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

CHAIN: dict[str, dict[str, Any]] = {
    "td3_bc": {**TD3, "gamma": GAMMA, "polyak": 0.1, "lr": 1e-2},
    "prdc": {**TD3, "gamma": GAMMA, "polyak": 0.1, "lr": 1e-2},
    "iql": {**IQL, "gamma": GAMMA, "polyak": 0.1, "lr": 1e-2, "expectile": 0.5},
}


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
