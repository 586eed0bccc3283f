"""Planners that descend or search an energy, and the policies that hold them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from problems import build, updates, walk
from torch import Tensor

from offrl.agents import EBTConfig, IBCConfig
from offrl.energy import descend, slope
from offrl.energy_nets import MLPEnergy
from offrl.energy_planners import (
    Descending,
    DescentPlanner,
    LearnedRate,
    RatedEnergy,
    Searching,
    SearchPlanner,
)
from offrl.errors import ConfigError, RunError
from offrl.files import read_json, write_json
from offrl.networks import Learners
from offrl.policy import load_policy
from offrl.types import Context

N, HORIZON, HISTORY, OBS, ACT = 5, 4, 2, 3, 2
SMALL: dict[str, Any] = {"hidden": 8, "depth": 2, "activation": "silu", "spread": None}


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def context(n: int = N) -> Context:
    one = torch.ones(n, HISTORY).double()
    return Context(
        obs=draw(n, HISTORY, OBS, seed=1),
        obs_real=one,
        past_action=draw(n, HISTORY - 1, ACT, seed=2).clamp(-1, 1),
        past_real=one[:, 1:],
        goal=torch.zeros(n, 0, OBS).double(),
        goal_real=one[:, 0] * 0,
    )


def noise_of(planner: Any, n: int = N) -> dict[str, Tensor]:
    return {k: draw(n, *shape, seed=3) for k, shape in planner.noise().items()}


def descending(**changes: Any) -> DescentPlanner:
    energy = MLPEnergy(HORIZON, ACT, HISTORY * OBS, Learners((3,)), **SMALL)
    net = RatedEnergy(energy, 1.5, Learners((3,))).double().requires_grad_(False)
    return DescentPlanner(net, Descending(**changes), OBS, ACT, HORIZON)


def searching(**changes: Any) -> SearchPlanner:
    ahead = HORIZON - HISTORY + 1
    energy = MLPEnergy(ahead, ACT, HISTORY * OBS, Learners((3,)), **SMALL)
    settings = {"candidates": 6, "rounds": 3, **changes}
    made = SearchPlanner(energy, Searching(**settings), OBS, ACT, HORIZON, HISTORY)
    return made.double().requires_grad_(False)


def test_a_rate_is_learned_at_three_times_the_first() -> None:
    made = LearnedRate(5.0, Learners((1, 2)))
    assert made().shape == (2, 1, 1, 1) and made().flatten().tolist() == pytest.approx([5.0, 5.0])
    # The share's gradient is the rate's, though the rate moves 15 times as far.
    (slope_of_share,) = torch.autograd.grad(made().sum(), made.share)
    assert slope_of_share.flatten().tolist() == pytest.approx([1.0, 1.0])
    with torch.no_grad():
        made.share += 1.0
    assert made().flatten().tolist() == pytest.approx([20.0, 20.0])
    with torch.no_grad():
        made.share.fill_(-1.0)
    assert made().flatten().tolist() == pytest.approx([1e-4, 1e-4])


# -- descent ---------------------------------------------------------------------------------------


def test_a_plan_is_a_descent_from_its_noise() -> None:
    planner = descending(steps=3, spread=0.5)
    noise = noise_of(planner)
    energy = planner.net.under(context().obs)
    expected = descend(energy, 0.5 * noise["start"][:, 0], [planner.net.rate()] * 3).x
    found = planner.plan(context(), noise)
    torch.testing.assert_close(found, expected.clamp(-1, 1), rtol=0, atol=1e-12)
    inspected = planner.inspect(context(), noise)
    assert torch.equal(inspected.x, found)
    assert inspected.evaluations.tolist() == [3] * N  # type: ignore[union-attr]
    gradient, value = slope(energy, expected)
    torch.testing.assert_close(inspected.energy, value, rtol=0, atol=1e-12)
    begun = energy(0.5 * noise["start"][:, 0])
    torch.testing.assert_close(inspected.fall, begun - value, rtol=0, atol=1e-12)
    steep = gradient.square().mean((1, 2)).sqrt()
    torch.testing.assert_close(inspected.steep, steep, rtol=0, atol=1e-12)


def test_of_restarts_the_one_of_least_energy_is_taken() -> None:
    planner, one = descending(restarts=3), descending()
    noise = noise_of(planner)
    energy = one.net.under(context().obs)
    tried = [one.plan(context(), {"start": noise["start"][:, k : k + 1]}) for k in range(3)]
    ends = [
        descend(energy, noise["start"][:, k], [one.net.rate()] * 2, ()).x.clone() for k in range(3)
    ]
    best = torch.stack([energy(x) for x in ends]).argmin(0)
    expected = torch.stack(tried)[best, torch.arange(N)]
    assert len(set(best.tolist())) > 1
    torch.testing.assert_close(planner.plan(context(), noise), expected, rtol=0, atol=1e-12)
    found = planner.inspect(context(), noise)
    torch.testing.assert_close(found.x, expected, rtol=0, atol=1e-12)
    assert found.evaluations.tolist() == [6] * N  # type: ignore[union-attr]


def test_plans_that_settle_early_are_counted_less() -> None:
    always, never = descending(steps=6, still=1e6), descending(steps=6)
    noise = noise_of(never)
    # The first slope has no other to be compared with.
    assert always.inspect(context(), noise).evaluations.tolist() == [2] * N  # type: ignore[union-attr]
    assert never.inspect(context(), noise).evaluations.tolist() == [6] * N  # type: ignore[union-attr]
    flat = descending(steps=6, flat=1e6)
    assert flat.inspect(context(), noise).evaluations.tolist() == [1] * N  # type: ignore[union-attr]
    begin = noise["start"][:, 0].clamp(-1, 1)
    torch.testing.assert_close(flat.plan(context(), noise), begin, rtol=0, atol=1e-12)


# -- search ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "evaluations"),
    [
        ({}, 3 * 6),
        ({"rounds": 1}, 6),
        ({"method": "langevin", "rounds": 4}, 5 * 6),
    ],
)
def test_searched_plans_go_on_from_what_was_done(changes: Any, evaluations: int) -> None:
    planner = searching(**changes)
    noise = noise_of(planner)
    found = planner.inspect(context(), noise)
    plan = planner.plan(context(), noise)
    assert torch.equal(found.x, plan) and plan.shape == (N, HORIZON, ACT)
    assert torch.equal(plan[:, : HISTORY - 1], context().past_action)
    assert found.evaluations == evaluations and (found.fall > 0).all()
    # An episode alone gets the same plan.
    alone = replace(context(), **{k: v[2:3] for k, v in vars(context()).items()})
    single = planner.plan(alone, {k: v[2:3] for k, v in noise.items()})
    torch.testing.assert_close(single[0], plan[2], rtol=0, atol=1e-12)


def test_more_rounds_find_less_energy() -> None:
    energies = [searching(rounds=rounds, candidates=32, temperature=0.01) for rounds in (1, 4)]
    first, last = (p.inspect(context(), noise_of(p)).energy.mean() for p in energies)
    assert last < first


def test_candidates_lie_in_the_box() -> None:
    made = Searching(bound=1.2)
    x = made.begin(draw(4_000))
    assert x.abs().max() < 1.2 and x.std().item() == pytest.approx(1.2 / 3**0.5, rel=0.03)


# -- settings and files ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ibc", "ebt"])
def test_a_policy_is_saved_with_its_energy(name: str, tmp_path: Path) -> None:
    agent, replay = build(name, walk(), dtype=torch.float32)
    updates(agent, replay, 3)
    policy = agent.policy()
    policy.save(tmp_path / "policy")
    loaded = load_policy(tmp_path / "policy")
    obs = np.random.default_rng(0).normal(size=(6, OBS)).astype(np.float32)
    state, other = policy.start(6), loaded.start(6)
    for _ in range(3):
        action, state = policy.act(obs, state)
        again, other = loaded.act(obs, other)
        np.testing.assert_array_equal(action, again)
    described = read_json(tmp_path / "policy" / "policy.json")
    part = "searching" if name == "ibc" else "descending"
    for place, key, value in (("net", "colour", 1), (part, "colour", 1), (part, "limit", "far")):
        wrong = {**described["actor"], place: {**described["actor"][place], key: value}}
        write_json(tmp_path / "policy" / "policy.json", {**described, "actor": wrong})
        with pytest.raises((RunError, ConfigError)):
            load_policy(tmp_path / "policy")


@pytest.mark.parametrize("changes", [{}, {"stage": "s2", "langevin": 0.1, "rate_spread": 2.0}])
def test_a_transformer_is_trained_and_plans(changes: dict[str, Any]) -> None:
    settings = {"history": 2, "horizon": 4, "execute": 2, "width": 8, "depth": 1, **changes}
    config = EBTConfig(**settings, backbone="transformer")
    agent: Any
    agent, replay = build("ebt", walk(), config=config)
    first = {k: v.clone() for k, v in agent.state_dict().items()}
    metrics = updates(agent, replay, 3)
    assert all(v.isfinite() for m in metrics for v in m.values())
    still = [k for k, v in agent.net.named_parameters() if torch.equal(v, first[f"net.{k}"])]
    still = [k for k in still if not k.endswith("key.bias")]  # on which attention does not depend
    assert not still
    assert np.abs(agent.policy().predict(np.zeros((3, OBS)))).max() <= 1.0
    assert not type(agent).stacks(config) and type(agent).stacks(
        replace(config, backbone="mlp", depth=2)
    )


@pytest.mark.compiled
def test_a_transformers_update_is_the_same_in_a_graph() -> None:
    sizes: dict[str, Any] = {"history": 2, "horizon": 4, "execute": 2, "width": 8, "depth": 1}
    config, trained = EBTConfig(**sizes, stage="s2"), []
    for backend in ("eager", "aot_eager"):
        agent, replay = build("ebt", walk(), config=config)
        agent.backend = backend
        updates(agent, replay, 3)
        trained.append(agent.state_dict())
    for key, value in trained[0].items():
        torch.testing.assert_close(trained[1][key], value, rtol=0, atol=1e-9, msg=key)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: EBTConfig(rate_spread=0.5), r"EBTConfig\.rate_spread is 0\.5.*\[1, inf\)"),
        (lambda: IBCConfig(candidates=0), r"candidates is 0.*\[1, inf\)"),
        (lambda: IBCConfig(shrink=0.0), r"shrink is 0\.0.*\(0, 1\]"),
        (lambda: Descending(steps=0), r"Descending\.steps is 0"),
    ],
)
def test_settings_that_cannot_be_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()
