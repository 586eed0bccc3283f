"""What CQL, SAC-N, EDAC and AWAC must learn on problems with a known answer, and their limits."""

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
from offrl.regularizers import ensemble_diversity
from offrl.sac import value_and_slope

SAC = {**FAST, "actor_lr": 3e-3, "polyak": 0.05, "normalize_obs": False}
AWAC = {**FAST, "polyak": 0.05, "normalize_obs": False}

# -- a bandit: two kinds of action, one of which pays ---------------------------------------------

BANDIT: dict[str, dict[str, Any]] = {
    "cql": {**SAC, "alpha": 0.1, "samples": 5},
    "sac_n": {**SAC, "ensemble": 4},
    "edac": {**SAC, "ensemble": 4},
    "awac": {**AWAC, "beta": 10.0},
}


@pytest.mark.parametrize("agent", BANDIT)
def test_the_action_that_pays_is_chosen(agent: str) -> None:
    learner = fit(agent, bandit(), BANDIT[agent], 300)
    assert action_at(learner, 1.0) > 0.4
    broken = fit(agent, bandit(), BANDIT[agent], 300, fault=FLIPPED)
    assert action_at(broken, 1.0) < 0.0


# -- chains whose values are known ----------------------------------------------------------------

CHAIN: dict[str, dict[str, Any]] = {
    "cql": {**SAC, "alpha": 0.0, "samples": 1, "gamma": GAMMA},
    "awac": {**AWAC, "gamma": GAMMA},
}


@pytest.mark.parametrize("agent", CHAIN)
def test_values_of_a_chain(agent: str) -> None:
    learner = fit(agent, chain(), CHAIN[agent], 400)
    assert values(learner) == pytest.approx([2.6, 2.0, 5.0], abs=0.25)
    for fault in (UNMASKED, TRUNCATION_ENDS):
        broken = fit(agent, chain(), CHAIN[agent], 400, fault=fault)
        assert values(broken) != pytest.approx([2.6, 2.0, 5.0], abs=0.25)


# -- CQL: values outside the data -----------------------------------------------------------------


def slope() -> OfflineDataset:
    """One state; the logged actions end at -0.4, and the reward rises beyond them."""
    logged = np.random.default_rng(0).uniform(-0.6, -0.4, 200).tolist()
    return episodes([([([1.0], a, -((a - 0.5) ** 2))], None) for a in logged], "slope")


def excess(agent: Agent) -> float:
    """Q of actions far from the data, over that of the logged ones."""
    critic: Any = agent.critic
    inside, outside = (
        critic(torch.ones(5, 1).double(), column(*np.linspace(low, high, 5))).mean().detach()
        for low, high in ((-0.6, -0.4), (0.4, 0.9))
    )
    return float(outside - inside)


def test_values_outside_the_data_stay_below_those_inside() -> None:
    settings = {**SAC, "alpha": 2.0, "samples": 5}
    assert excess(fit("cql", slope(), settings, 200)) < -0.1
    assert excess(fit("cql", slope(), {**settings, "alpha": 0.0}, 200)) > 0.1
    reward = Fault("agents.cql.CQL.critic_loss", "loss + cfg.alpha", "loss - cfg.alpha", ())
    assert excess(fit("cql", slope(), settings, 200, fault=reward)) > 0.1


def test_the_multiplier_holds_the_gap_at_its_target() -> None:
    # Without a multiplier the gap falls as far as alpha takes it.
    settings = {**SAC, "alpha": 1.0, "samples": 5, "lagrange": True}
    found = {}
    for tau in (0.0, 30.0):
        learner: Any = fit("cql", slope(), {**settings, "target_gap": tau}, 200)
        found[tau] = float(learner.multiplier().detach())
    assert found[0.0] > 1.2 and found[30.0] < 0.8
    turned = Fault("agents.cql.CQL.multiplier_loss", "gap - self.config", "-gap + self.config", ())
    broken: Any = fit("cql", slope(), {**settings, "target_gap": 30.0}, 200, fault=turned)
    assert float(broken.multiplier().detach()) > 1.2


def test_cloning_at_the_start_leads_to_the_logged_actions() -> None:
    settings = {**SAC, "alpha": 0.0, "samples": 1, "bc_steps": 200}
    cloned = fit("cql", slope(), settings, 200)
    assert action_at(cloned, 1.0) == pytest.approx(-0.5, abs=0.1)
    assert action_at(fit("cql", slope(), {**settings, "bc_steps": 0}, 200), 1.0) > -0.3


# -- EDAC: critics that differ --------------------------------------------------------------------


def plane() -> OfflineDataset:
    """One state, actions in a square, and a reward that is the first component."""
    rng = np.random.default_rng(0)
    return OfflineDataset.from_episodes(
        [
            {
                "obs": np.ones((2, 1), np.float32),
                "action": (action := rng.uniform(-0.5, 0.5, (1, 2)).astype(np.float32)),
                "reward": action[:, 0],
                "terminated": True,
            }
            for _ in range(200)
        ],
        name="plane",
    )


def agreement(agent: Agent) -> float:
    """Twice the cosine between the slopes of two critics."""
    critic: Any = agent.critic
    action = torch.rand(50, 2, dtype=torch.float64) - 0.5
    _, found, _ = value_and_slope(critic, torch.ones(50, 1).double(), action)
    return float(ensemble_diversity(found).mean().detach())


def test_diversity_turns_critics_from_each_other() -> None:
    # With one component alone a direction is a sign, which no weight moves: it takes two.
    settings = {**SAC, "ensemble": 2, "eta": 1.0}
    assert agreement(fit("edac", plane(), settings, 150)) < -1.0
    assert agreement(fit("edac", plane(), {**settings, "eta": 0.0}, 150)) > 1.0
    praise = Fault("agents.edac.EDAC.critic_loss", "loss + self", "loss - self", ())
    assert agreement(fit("edac", plane(), settings, 150, fault=praise)) > 1.0


# -- AWAC: a mean whose weights are known ---------------------------------------------------------


def test_the_policy_is_the_weighted_mean_of_what_was_logged() -> None:
    # Values 1 and 0, half and half: 0.6 (e^beta - 1) / (e^beta + 1) = 0.6 tanh(beta / 2).
    learner = fit("awac", bandit(), {**AWAC, "beta": 2.0}, 400)
    assert action_at(learner, 1.0) == pytest.approx(GOOD * math.tanh(1.0), abs=0.1)
    unweighted = Fault("agents.awac.AWAC.actor_loss", "(weight * error)", "error", ())
    broken = fit("awac", bandit(), {**AWAC, "beta": 2.0}, 400, fault=unweighted)
    assert action_at(broken, 1.0) == pytest.approx(0.0, abs=0.1)


# -- limits ---------------------------------------------------------------------------------------


def scattered(reward: float = 1.0) -> OfflineDataset:
    rng = np.random.default_rng(0)
    return OfflineDataset.from_episodes(
        [
            {
                "obs": rng.normal(size=(6, 2)).astype(np.float32),
                "action": rng.uniform(-1, 1, (5, 1)).astype(np.float32),
                "reward": (reward * rng.normal(size=5)).astype(np.float32),
                "terminated": e % 2 == 0,
            }
            for e in range(20)
        ],
        name="scattered",
    )


def assert_same(left: Agent, right: Agent) -> None:
    mine, other = left.state_dict(), right.state_dict()
    for key in other:
        torch.testing.assert_close(mine[key], other[key], rtol=0, atol=1e-12, msg=key)


def test_edac_without_diversity_is_sac_n() -> None:
    settings = {**SAC, "ensemble": 3}
    plain = fit("sac_n", scattered(), settings, 30)
    assert_same(fit("edac", scattered(), {**settings, "eta": 0.0}, 30), plain)
    with pytest.raises(AssertionError):
        assert_same(fit("edac", scattered(), {**settings, "eta": 0.1}, 30), plain)


def test_cql_without_alpha_and_with_entropy_is_sac_with_two_critics() -> None:
    plain = fit("sac_n", scattered(), {**SAC, "ensemble": 2}, 30)
    settings = {**SAC, "alpha": 0.0, "samples": 2, "backup_entropy": True}
    assert_same(fit("cql", scattered(), settings, 30), plain)
    with pytest.raises(AssertionError):
        assert_same(fit("cql", scattered(), {**settings, "alpha": 0.1}, 30), plain)


def test_without_beta_awac_clones_whatever_the_rewards() -> None:
    def actor(beta: float, reward: float) -> list[float]:
        learner = fit("awac", scattered(reward), {**AWAC, "beta": beta}, 30)
        return [float(p.detach().sum()) for p in learner.actor.parameters()]

    assert actor(0.0, 1.0) == actor(0.0, -3.0)
    assert actor(1.0, 1.0) != actor(1.0, -3.0)
