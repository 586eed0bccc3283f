"""ReBRAC and A2PR on problems with known answers, and where they become TD3+BC or TD3."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from fault import Fault
from known import (
    BAD,
    FAST,
    FLIPPED,
    GAMMA,
    GOOD,
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
from problems import build, inputs, small_config, updates, walk

from offrl.agent import Agent
from offrl.agents import TD3BC
from offrl.datasets.offline import OfflineDataset
from offrl.errors import DataError

NARROW = {"critic_hidden": (24, 24), "cvae_hidden": (24, 24), "cvae_lr": 3e-3}
BANDIT: dict[str, dict[str, Any]] = {
    "rebrac": {**TD3, "critic_lr": 3e-3, "beta1": 0.05, "beta2": 0.1},
    "a2pr": {**TD3, **NARROW, "mask_weight": 1.0},
}


@pytest.mark.parametrize("agent", BANDIT)
def test_the_action_that_pays_is_chosen(agent: str) -> None:
    learner = fit(agent, bandit(), BANDIT[agent], 200)
    assert action_at(learner, 1.0) > 0.45
    broken = fit(agent, bandit(), BANDIT[agent], 200, fault=FLIPPED)
    assert action_at(broken, 1.0) < 0.0


CHAIN: dict[str, dict[str, Any]] = {
    "rebrac": {**TD3, "gamma": GAMMA, "polyak": 0.1, "critic_lr": 1e-2, "beta2": 0.0},
    "a2pr": {**TD3, **NARROW, "gamma": GAMMA, "polyak": 0.1, "lr": 1e-2},
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


# -- ReBRAC ---------------------------------------------------------------------------------------


def loop() -> OfflineDataset:
    """One state that repeats itself, reward 1; actions 0.5 and -0.5 in turn, in either order."""
    runs = []
    for first in (0.5, -0.5) * 20:
        runs.append(([([1.0], a, 1.0) for a in (first, -first, first)], [1.0]))
    return episodes(runs, "loop")


def test_the_penalty_lowers_the_value_by_the_distance_to_the_next_action() -> None:
    # The policy is cloned, so it plays the mean, 0, which is 0.5 from every next action:
    # Q = (1 - gamma beta_2 0.25) / (1 - gamma) = (1 - 0.8 * 0.25) / 0.2 = 4, and 5 without.
    settings = {**TD3, "gamma": GAMMA, "polyak": 0.2, "lr": 1e-2, "critic_lr": 1e-2}
    settings |= {"beta1": 100.0, "beta2": 1.0, "policy_noise": 0.0}
    found = []
    for fault in (None, Fault("agents.rebrac.ReBRAC.critic_loss", "self.config.beta2", "0.0", ())):
        learner: Any = fit("rebrac", loop(), settings, 400, fault=fault)
        q = learner.critic(column(1.0, 1.0), column(0.5, -0.5))
        found.append(float(q.mean().detach()))
    assert found == pytest.approx([4.0, 5.0], abs=0.15)


@pytest.mark.parametrize(("beta1", "leaves"), [(1e-3, True), (10.0, False)])
def test_rebrac_leaves_the_data_only_when_told_to(beta1: float, leaves: bool) -> None:
    # The reward rises beyond the logged actions, which end at -0.4.
    rng = np.random.default_rng(0)
    logged = rng.uniform(-0.6, -0.4, 200).tolist()
    data = episodes([([([1.0], a, -((a - 0.5) ** 2))], None) for a in logged], "slope")
    action = action_at(fit("rebrac", data, {**BANDIT["rebrac"], "beta1": beta1}, 300), 1.0)
    assert action > -0.35 if leaves else -0.65 < action < -0.35


def test_the_last_step_before_a_time_limit_has_no_next_action() -> None:
    data = walk(episodes=3, length=4)  # the first terminates, the others are cut
    agent, replay = build("rebrac", data)
    assert replay.index.tolist() == [0, 1, 2, 3, 5, 6, 7, 10, 11, 12]
    assert replay.fingerprint != build("td3_bc", data)[1].fingerprint
    batch = replay.batch(replay.index)
    going_on = batch.mask > 0
    following = replay.batch(replay.index[going_on] + 1).action
    assert torch.equal(batch.next_action[going_on], following)
    assert int((~going_on).sum()) == 1
    short = OfflineDataset.from_episodes(
        [{"obs": np.zeros((2, 1)), "action": np.zeros((1, 1)), "reward": np.zeros(1)}], name="short"
    )
    with pytest.raises(DataError, match="short has no transition whose next action is known"):
        agent.view(short)


@pytest.mark.parametrize("alpha", [0.5, 2.5])
def test_without_beta2_rebracs_objectives_are_td3_bcs(alpha: float) -> None:
    # alpha beta_1 |a - b|^2 summed over A components is |a - b|^2 averaged where beta_1 =
    # 1 / (alpha A), and alpha L_pi = L_TD3+BC where the critics agree, so that min Q = Q_1.
    config = small_config("rebrac", beta1=1 / (alpha * 2), beta2=0.0, normalize_obs=True)
    agent: Any
    agent, replay = build("rebrac", walk(), config=config)
    updates(agent, replay, 6)
    with torch.no_grad():
        for parameter in agent.critic.parameters():
            parameter[1].copy_(parameter[0])
    batch, noise = inputs(agent, replay)
    settings = SimpleNamespace(**{**vars(agent.config), "alpha": alpha, "beer": 0.0})
    names = ("actor", "critic", "actor_target", "critic_target")
    parts = {name: getattr(agent, name) for name in names}
    other: Any = SimpleNamespace(config=settings, act_dim=agent.act_dim, **parts)
    theirs, _ = TD3BC.actor_loss(other, batch)
    torch.testing.assert_close(alpha * agent.actor_loss(batch)[0], theirs)
    critic_loss, metrics = agent.critic_loss(batch, noise["target_action"])
    theirs, others = TD3BC.critic_loss(other, batch, noise["target_action"])
    torch.testing.assert_close(critic_loss, theirs)
    torch.testing.assert_close(metrics["target"], others["target"])
    assert metrics["penalty"] == 0


# -- A2PR -----------------------------------------------------------------------------------------

MIXED = {**TD3, **NARROW, "alpha": 0.05, "mask_weight": 1.0, "policy_delay": 1}


def test_a2pr_takes_the_better_mode_where_td3_bc_takes_the_mean() -> None:
    # A quarter of the actions is good: their mean is 0.25 * 0.6 - 0.75 * 0.6 = -0.3.
    learner: Any = fit("a2pr", bandit(0.25), MIXED, 300)
    assert action_at(learner, 1.0) == pytest.approx(GOOD, abs=0.12)
    assert float(learner.value(column(1.0)).detach()) == pytest.approx(0.25, abs=0.1)
    mean = fit("td3_bc", bandit(0.25), {**TD3, "alpha": 0.05, "policy_delay": 1}, 300)
    assert action_at(mean, 1.0) == pytest.approx(-0.3, abs=0.12)
    worse = Fault("regularizers.dual_reference", ">=", "<", ())
    assert action_at(fit("a2pr", bandit(0.25), MIXED, 300, fault=worse), 1.0) < 0.2


def test_the_behaviour_model_knows_what_is_better_than_average_alone() -> None:
    latent = torch.randn(50, 2, generator=torch.Generator().manual_seed(0)).double()
    flipped = Fault("agents.a2pr.A2PR.cvae_loss", "> value", "< value", ())
    for fault, near in ((None, GOOD), (flipped, BAD)):
        learner: Any = fit("a2pr", bandit(), MIXED, 200, fault=fault)
        decoded = learner.cvae.decode(torch.ones(50, 1).double(), latent).detach()
        assert float((decoded - near).abs().mean()) < 0.15


def assert_same(left: Agent, right: Agent) -> None:
    for part in ("actor", "critic", "actor_target", "critic_target"):
        mine, other = (getattr(x, part).state_dict() for x in (left, right))
        for key, value in other.items():
            torch.testing.assert_close(mine[key], value, rtol=0, atol=1e-12)


LIMIT: dict[str, Any] = {**FAST, "alpha": 1.3}


def test_without_mask_weight_a2pr_is_td3() -> None:
    alone = Fault("agents.td3_bc.TD3BC.actor_loss", "q_loss + bc_loss", "q_loss", ())
    td3 = fit("td3_bc", walk(), LIMIT, 20, fault=alone)
    assert_same(fit("a2pr", walk(), {**LIMIT, **NARROW, "mask_weight": 0.0}, 20), td3)
    with pytest.raises(AssertionError):
        assert_same(fit("a2pr", walk(), {**LIMIT, **NARROW, "mask_weight": 0.1}, 20), td3)


def test_with_no_mask_and_the_data_s_action_a2pr_is_td3_bc() -> None:
    settings = {**LIMIT, **NARROW, "mask_weight": 1.0}
    logged = Fault(
        "agents.a2pr.A2PR.actor_loss",
        "(mask * action_error(action, goal))",
        "action_error(action, batch.action)",
        (),
    )
    td3_bc = fit("td3_bc", walk(), LIMIT, 20)
    assert_same(fit("a2pr", walk(), settings, 20, fault=logged), td3_bc)
    with pytest.raises(AssertionError):
        assert_same(fit("a2pr", walk(), settings, 20), td3_bc)


def test_the_pull_is_weaker_where_its_gradient_flows_through_the_model() -> None:
    # A model that gives back what it is given moves with the policy, and pulls it nowhere.
    agents: dict[bool, Any] = {}
    for detach in (False, True):
        config = small_config("a2pr", detach_reference=detach, alpha=0.0, mask_weight=1.0)
        agents[detach], replay = build("a2pr", walk(), config=config)
    batch, noise = inputs(agents[False], replay)
    low = torch.full_like(batch.reward, -100.0)  # both advantages are positive, the mask is 1
    losses, slopes = {}, {}
    for detach, agent in agents.items():
        loss, metrics = agent.actor_loss(batch, low, noise["policy_latent"])
        losses[detach], weights = loss, list(agent.actor.parameters())
        slopes[detach] = torch.cat([g.flatten() for g in torch.autograd.grad(loss, weights)])
        assert metrics["mask"] == 1.0
    torch.testing.assert_close(losses[False], losses[True])
    assert not torch.allclose(slopes[False], slopes[True])
