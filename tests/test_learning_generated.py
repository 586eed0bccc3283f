"""Diffusion-QL, IDQL, FQL and AWM on problems with known answers, and their limits."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from known import FLIPPED, GAMMA, GOOD, UNMASKED, bandit, chain, column, episodes, fit, values
from problems import build, inputs, small_config, updates, walk
from torch import Tensor

from offrl.agent import Agent
from offrl.generated_actions import held_out_draws, sampled
from offrl.types import Context

NARROW: dict[str, Any] = {"width": 24, "depth": 2, "lr": 3e-3, "polyak": 0.05}
DQL = {**NARROW, "critic_lr": 3e-3, "critic_hidden": (24, 24), "ema_start": 0, "ema_every": 1}
DQL |= {"ema": 0.9, "grad_norm": 5.0}
IMPLICIT = {**NARROW, "hidden": (24, 24), "dropout": 0.0, "ema": 0.9, "depth": 1}
IMPLICIT |= {"reward_by_return_range": False, "actor_schedule": "constant"}
FQL: dict[str, Any] = {"lr": 3e-3, "polyak": 0.05, "hidden": (32, 32), "critic_hidden": (24, 24)}
FQL |= {"flow_steps": 5}
AWM = {**IMPLICIT, "levels": 5}


def drawn(agent: Any, count: int = 300, **settings: Any) -> Tensor:
    """Actions of the policy at the only observation, 1, in as many episodes."""
    agent.config = replace(agent.config, **settings)
    planner = agent.policy().actor
    g = torch.Generator().manual_seed(0)
    none, ones = torch.zeros(count, 0).double(), torch.ones(count, 1).double()
    empty = torch.zeros(count, 0, 1).double()
    known = Context(ones[..., None], ones, empty, none, empty, torch.zeros(count).double())
    noise = {
        k: torch.randn(count, *shape, generator=g, dtype=torch.float64)
        for k, shape in planner.noise().items()
    }
    with torch.no_grad():
        action: Tensor = planner.plan(known, noise)[:, 0, 0]
    return action


def share(action: Tensor) -> float:
    return float((action > 0.0).double().mean())


def near(action: Tensor) -> float:
    """Share near either kind of action of the bandit."""
    return float(((action.abs() - GOOD).abs() < 0.2).double().mean())


# -- Diffusion-QL ---------------------------------------------------------------------------------


def test_more_weight_on_q_moves_more_of_the_chain_to_the_action_that_pays() -> None:
    shares = []
    for eta in (0.0, 0.1, 2.0):
        settings = {**DQL, "eta": eta, "levels": 3}
        agent = fit("diffusion_ql", bandit(), settings, 200, batch_size=32)
        shares.append(share(drawn(agent, candidates=1)))
    assert 0.3 < shares[0] < 0.7
    assert shares[0] + 0.03 < shares[1] < shares[2] and shares[2] > 0.95


def test_diffusion_ql_shows_a_reward_of_the_wrong_sign() -> None:
    settings = {**DQL, "eta": 2.0, "levels": 3}
    good = drawn(fit("diffusion_ql", bandit(), settings, 150, batch_size=32))
    broken = fit("diffusion_ql", bandit(), settings, 150, batch_size=32, fault=FLIPPED)
    assert share(good) > 0.95 and share(drawn(broken)) < 0.05


def test_the_gradient_of_q_passes_through_every_step_of_the_chain() -> None:
    # Central differences of the mean Q of its actions along one direction of its parameters.
    config = small_config("diffusion_ql", levels=5, eta=1.3)
    agent: Any
    agent, replay = build("diffusion_ql", walk(), config=config)
    batch, noise = inputs(agent, replay)
    parameters = list(agent.net.parameters())
    g = torch.Generator().manual_seed(0)
    way = [torch.randn(p.shape, generator=g, dtype=torch.float64) for p in parameters]

    def moved(step: float) -> float:
        with torch.no_grad():
            for p, d in zip(parameters, way, strict=True):
                p.add_(step * d)
            return float(agent.policy_loss(batch, noise)[1]["q"])

    slopes = torch.autograd.grad(agent.policy_loss(batch, noise)[1]["q"], parameters)
    exact = float(sum(float((s * d).sum()) for s, d in zip(slopes, way, strict=True)))
    h = 1e-6
    differences = (moved(h) - moved(-2 * h)) / (2 * h)
    assert abs(exact - differences) < 1e-5 * abs(exact)


# -- values of a chain ----------------------------------------------------------------------------

CHAIN: dict[str, dict[str, Any]] = {
    "diffusion_ql": {**DQL, "levels": 1, "critic_lr": 1e-2, "gamma": GAMMA, "polyak": 0.1},
    "fql": {**FQL, "lr": 1e-2, "gamma": GAMMA, "polyak": 0.1, "flow_steps": 1},
    "idql": {**IMPLICIT, "lr": 1e-2, "gamma": GAMMA, "polyak": 0.1, "levels": 1},
    "awm": {**AWM, "lr": 1e-2, "gamma": GAMMA, "polyak": 0.1, "levels": 1},
}


@pytest.mark.parametrize("agent", CHAIN)
def test_values_of_a_chain(agent: str) -> None:
    learner = fit(agent, chain(), CHAIN[agent], 300)
    assert values(learner) == pytest.approx([2.6, 2.0, 5.0], abs=0.4)
    broken = fit(agent, chain(), CHAIN[agent], 300, fault=UNMASKED)
    assert values(broken) != pytest.approx([2.6, 2.0, 5.0], abs=0.4)


# -- IDQL and IFQL --------------------------------------------------------------------------------


@pytest.mark.parametrize("agent", ["idql", "ifql"])
def test_the_best_of_clones_where_the_clones_are_of_both_kinds(agent: str) -> None:
    learner: Any = fit(agent, bandit(0.25), {**IMPLICIT, "levels": 5}, 400)
    clones = drawn(learner, candidates=1)
    assert near(clones) > 0.55 and 0.1 < share(clones) < 0.4
    assert share(drawn(learner, candidates=16)) > 0.9
    # A high temperature draws among the clones again.
    assert share(drawn(learner, candidates=16, temperature=100.0)) < 0.45


def test_idql_shows_a_reward_of_the_wrong_sign() -> None:
    learner = fit("idql", bandit(), {**IMPLICIT, "levels": 3}, 200, fault=FLIPPED)
    assert share(drawn(learner, candidates=16)) < 0.05


@pytest.mark.parametrize(("expectile", "value"), [(0.5, 0.25), (0.99, 0.95)])
def test_the_expectile_goes_from_the_mean_to_the_best(expectile: float, value: float) -> None:
    settings = {**IMPLICIT, "levels": 1, "expectile": expectile, "polyak": 0.2}
    learner: Any = fit("idql", bandit(0.25), settings, 300)
    assert float(learner.value(column(1.0)).detach()) == pytest.approx(value, abs=0.08)


# -- FQL ------------------------------------------------------------------------------------------


def test_a_large_alpha_makes_the_student_the_flow_s_own_map() -> None:
    agent: Any = fit("fql", bandit(), {**FQL, "alpha": 1000.0}, 500)
    obs = torch.ones(200, 1).double()
    z = torch.randn(200, 1, 1, generator=torch.Generator().manual_seed(0)).double()
    with torch.no_grad():
        flow = sampled(agent, agent.flow, obs, {"z_start": z}, "z")
        student = agent.student(z, None, obs).squeeze(-2)
    assert near(flow[:, 0]) > 0.6 and 0.3 < share(flow[:, 0]) < 0.7
    # For the same noise, and not for the noise of another.
    assert float((student - flow).square().mean()) < 0.1 * float(flow.square().mean())
    assert float((student - flow.roll(1, 0)).square().mean()) > 0.5 * float(flow.square().mean())


def test_without_alpha_the_student_climbs_a_known_q() -> None:
    rng = np.random.default_rng(0)
    logged = rng.uniform(-1, 1, 300).tolist()
    data = episodes([([([1.0], a, -((a - 0.3) ** 2))], None) for a in logged], "hill")
    settings = {**FQL, "alpha": 0.0, "normalize_q": True}
    for fault, expected in ((None, 0.3), (FLIPPED, -1.0)):
        agent = fit("fql", data, settings, 300, fault=fault)
        action = drawn(agent)
        assert float(action.mean()) == pytest.approx(expected, abs=0.12)
        assert float(action.std()) < 0.1


def test_fql_leaves_the_action_that_does_not_pay() -> None:
    agent = fit("fql", bandit(), {**FQL, "alpha": 0.3, "normalize_q": True}, 250)
    assert share(drawn(agent)) > 0.85


# -- AWM ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", ["exponential", "filter"])
def test_the_flow_learns_what_is_better_than_its_value(weights: str) -> None:
    settings = {**AWM, "weights": weights, "beta": 10.0}
    action = drawn(fit("awm", bandit(0.25), settings, 400))
    assert share(action) > 0.9 and near(action) > 0.8
    broken = fit("awm", bandit(0.25), settings, 400, fault=FLIPPED)
    assert share(drawn(broken)) < 0.1


def test_equal_weights_are_the_plain_matching_loss() -> None:
    # IDQL's flow, trained on the same numbers, has the same parameters to the last bit.
    common = {"process": "flow", "dropout": 0.0, "levels": 2, "width": 8, "depth": 1, "ema": 0.9}
    nets = []
    for name, more in (("awm", {"beta": 0.0}), ("idql", {})):
        agent: Any
        agent, replay = build(name, walk(), config=small_config(name, **{**common, **more}))
        updates(agent, replay, 12)
        nets.append(agent.average.net.state_dict())
    assert all(torch.equal(v, nets[1][k]) for k, v in nets[0].items())


def test_weights_of_zero_and_one_leave_samples_out() -> None:
    agent: Any
    agent, replay = build("awm", walk(), config=small_config("awm", weights="filter"))
    batch, noise = inputs(agent, replay)
    q = agent.value(batch.obs).detach() + torch.where(torch.arange(32) % 4 == 0, 1.0, -1.0)
    loss, metrics = agent.policy_loss(batch, q, noise)
    chosen = type(batch)(**{k: v[::4] for k, v in vars(batch).items()})
    few = {k: v[::4] for k, v in noise.items()}
    alone, _ = agent.policy_loss(chosen, q[::4], few)
    torch.testing.assert_close(loss, alone / 4)
    assert float(metrics["weight"]) == 0.25


# -- validation -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["diffusion_ql", "idql", "fql", "awm"])
def test_a_validation_can_be_repeated_and_is_each_learner_s_own(name: str) -> None:
    agent: Agent
    agent, replay = build(name, walk(), (3, 4))
    batch, _ = inputs(agent, replay)
    drawn_once, drawn_again = held_out_draws(agent, batch), held_out_draws(agent, batch)
    assert all(torch.equal(v, drawn_again[k]) for k, v in drawn_once.items())
    assert all(torch.equal(v[0], v[1]) for v in drawn_once.values())
    alone, _ = build(name, walk(), (4,))
    second = type(batch)(**{k: v[1] for k, v in vars(batch).items()})
    found, expected = agent.validate(batch), alone.validate(second)
    for key, value in expected.items():
        torch.testing.assert_close(found[key][1], value, rtol=0, atol=1e-9)
