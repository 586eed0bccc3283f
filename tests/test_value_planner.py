"""Planners of single actions: the best of some by the critics, and a student's own."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from offrl.backbones import MLPDenoiser, backbone_from_spec
from offrl.critics import Critic
from offrl.datasets.offline import Spec
from offrl.errors import ConfigError
from offrl.execution import Execution
from offrl.fields import Field
from offrl.generation import Generation
from offrl.networks import MLP, Learners
from offrl.planners import ChunkPlanner
from offrl.policy import PlanPolicy, load_policy
from offrl.processes import DDPM, Flow
from offrl.types import Context
from offrl.value_planner import StudentPlanner, ValuePlanner

OBS, ACT, N = 3, 2, 5
SPEC = Spec((-math.inf,) * OBS, (math.inf,) * OBS, (-1.0,) * ACT, (1.0,) * ACT)
GENERATIONS = {
    "diffusion": Generation(DDPM(5, "vp"), "ddpm", 5),
    "flow": Generation(Flow(), "euler", 4, clip=None),
}


def planner(kind: str = "diffusion", candidates: int = 4, **settings: Any) -> ValuePlanner:
    net = MLPDenoiser(1, ACT, OBS, Learners((3,)), hidden=8, depth=2)
    critic = Critic(OBS, ACT, [8], Learners((4,)), norm="after", activation="mish")
    return ValuePlanner(net, critic, GENERATIONS[kind], OBS, ACT, candidates, **settings)


def context(obs: Tensor) -> Context:
    n = len(obs)
    none = torch.zeros(n, 0)
    past, goal = torch.zeros(n, 0, ACT), torch.zeros(n, 0, OBS)
    return Context(obs[:, None], torch.ones(n, 1), past, none, goal, torch.zeros(n))


def given(made: Any, rows: int = N, seed: int = 0) -> tuple[Context, dict[str, Tensor]]:
    g = torch.Generator().manual_seed(seed)
    obs = torch.randn(rows, OBS, generator=g)
    return context(obs), {
        k: torch.randn(rows, *shape, generator=g) for k, shape in made.noise().items()
    }


@pytest.mark.parametrize("kind", GENERATIONS)
def test_the_best_of_the_candidates_by_hand(kind: str) -> None:
    made = planner(kind)
    known, noise = given(made)
    single = ChunkPlanner(made.net, made.generation, OBS, ACT, 1)
    candidates = []
    for k in range(4):
        one = {"start": noise["start"][:, k]}
        one |= {"steps": noise["steps"][:, :, k]} if "steps" in noise else {}
        candidates.append(single.plan(known, one)[:, 0])
    values = torch.stack([made.critic(known.obs[:, 0], a).amin(0) for a in candidates])
    best = torch.stack(candidates)[values.argmax(0), torch.arange(N)]
    assert values.argmax(0).unique().numel() > 1
    torch.testing.assert_close(made.plan(known, noise)[:, 0], best)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_one_candidate_is_the_generator_alone(temperature: float) -> None:
    made = planner(candidates=1, temperature=temperature)
    known, noise = given(made)
    alone = {"start": noise["start"][:, 0], "steps": noise["steps"][:, :, 0]}
    plain = ChunkPlanner(made.net, made.generation, OBS, ACT, 1).plan(known, alone)
    torch.testing.assert_close(made.plan(known, noise), plain)


def test_the_best_depends_on_the_rank_of_values_alone() -> None:
    made = planner()
    known, noise = given(made)
    before = made.plan(known, noise)
    with torch.no_grad():
        made.critic.head.weight.mul_(3.0)
        made.critic.head.bias.mul_(3.0).add_(7.0)
    torch.testing.assert_close(made.plan(known, noise), before)


def test_the_softmax_over_candidates_has_its_probabilities() -> None:
    made = planner(candidates=3, temperature=0.3)
    known, noise = given(made, rows=1)
    many = {k: v.repeat_interleave(4000, 0) for k, v in noise.items()}
    many["choice"] = torch.randn(4000, 3, generator=torch.Generator().manual_seed(1))
    chosen = made.plan(context(known.obs[:, 0].repeat(4000, 1)), many)[:, 0]
    first = ChunkPlanner(made.net, made.generation, OBS, ACT, 1)
    actions = [
        first.plan(known, {"start": noise["start"][:, k], "steps": noise["steps"][:, :, k]})[:, 0]
        for k in range(3)
    ]
    values = torch.stack([made.critic(known.obs[:, 0], a).amin(0)[0] for a in actions])
    expected = (values / 0.3).softmax(0).detach()
    share = torch.stack([(chosen - a).abs().amax(1) < 1e-5 for a in actions]).float().mean(1)
    assert float(expected.min()) > 0.01
    torch.testing.assert_close(share, expected, rtol=0, atol=0.03)


def test_a_student_is_one_pass_kept_in_bounds() -> None:
    net = Field(1, ACT, OBS, Learners(), hidden=[8], timed=False)
    with torch.no_grad():
        net.net[-1].weight.mul_(10.0)
    made = StudentPlanner(net, OBS, ACT)
    known, noise = given(made)
    x = torch.cat([known.obs[:, 0], noise["start"][:, 0]], -1)
    raw = net.net(x)
    assert (raw.abs() > 1.0).any()
    torch.testing.assert_close(made.plan(known, noise)[:, 0], raw.clamp(-1.0, 1.0))


def test_a_field_sees_its_level_as_a_number() -> None:
    net = Field(2, ACT, OBS, Learners((1, 2)), hidden=[8, 8])
    assert isinstance(net.net, MLP) and net.net.sizes[0] == OBS + 2 * ACT + 1
    x, level, obs = torch.randn(2, 6, 2, ACT), torch.rand(2, 6), torch.randn(2, 6, OBS)
    expected = net.net(torch.cat([obs, x.flatten(-2), level[..., None]], -1)).reshape(x.shape)
    torch.testing.assert_close(net(x, level, obs), expected)
    assert backbone_from_spec(net.spec()).spec() == net.spec()


@pytest.mark.parametrize("kind", ["best", "drawn", "student"])
def test_a_saved_policy_plans_the_same(kind: str, tmp_path: Path) -> None:
    made: Any = planner(temperature=1.0 if kind == "drawn" else 0.0)
    if kind == "student":
        net = Field(1, ACT, OBS, Learners(), hidden=[8, 4], timed=False)
        made = StudentPlanner(net, OBS, ACT)
    policy = PlanPolicy(made, SPEC, execution=Execution(horizon=1))
    policy.save(tmp_path / "policy")
    obs = np.random.default_rng(0).normal(size=(4, OBS))
    loaded = load_policy(tmp_path / "policy")
    assert type(loaded.actor) is type(made)
    np.testing.assert_array_equal(loaded.predict(obs), policy.predict(obs))


@pytest.mark.parametrize("change", [{"candidates": 0}, {"temperature": -1.0}])
def test_settings_that_cannot_be(change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=rf"ValuePlanner\.{next(iter(change))} is"):
        planner(**change)
