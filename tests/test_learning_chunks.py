"""Policies of action chunks on data of two modes, whose mean is neither; and their backbones."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fault import Fault
from known import bandit, fit
from problems import ACT, OBS, build, small_config, updates, walk

from offrl.agents import AGENTS
from offrl.consistency import grid_size
from offrl.policy import load_policy

NARROW: dict[str, Any] = {
    **{"history": 1, "horizon": 1, "execute": 1, "backbone": "film", "width": 32, "depth": 2},
    **{"lr": 3e-3, "warmup": 10, "weight_decay": 0.0, "normalize_action": False},
}
GENERATIVE: Mapping[str, dict[str, Any]] = {
    "diffusion_policy": {"sampler": "ddim", "sampler_steps": 16},
    "flow_bc": {},
    "consistency_bc": {"sampler_steps": 2},
}
# Slips of the pen after which the modes are lost.
BROKEN = {
    "diffusion_policy": Fault("processes.DDPM.target", "return noise", "return -noise", ()),
    "flow_bc": Fault("processes.Flow.target", "x0 - noise", "noise - x0", ()),
    "consistency_bc": Fault(
        "agents.consistency_bc.ConsistencyBC._inconsistency", ".x0.detach()", ".x0.detach() * 0", ()
    ),
}
NAMES = ("chunk_bc", *GENERATIVE)


def drawn(agent: Any, count: int = 400) -> Any:
    """Actions at the only observation, 1."""
    return agent.policy().predict(np.ones((count, 1)), deterministic=False)[:, 0]


def modes(actions: Any) -> list[float]:
    """Shares within 0.2 of the logged actions, 0.6 and -0.6."""
    return [float((np.abs(actions - mode) < 0.2).mean()) for mode in (0.6, -0.6)]


@pytest.mark.parametrize("name", GENERATIVE)
def test_both_ways_to_act_are_kept(name: str) -> None:
    settings = {**NARROW, **GENERATIVE[name]}
    up, down = modes(drawn(fit(name, bandit(), settings, 400)))
    assert up + down > 0.8 and min(up, down) > 0.3
    assert sum(modes(drawn(fit(name, bandit(), settings, 400, fault=BROKEN[name])))) < 0.5


def test_one_step_of_a_flow_is_the_mean_and_one_of_a_consistency_model_is_a_mode() -> None:
    # At t = 0 the velocity is E[A] - x, and x + v its mean; f(x, sigma_max) is an end of a path.
    flow = drawn(fit("flow_bc", bandit(), {**NARROW, "sampler_steps": 1}, 400))
    assert sum(modes(flow)) < 0.02
    single = fit("consistency_bc", bandit(), {**NARROW, "sampler_steps": 1}, 400)
    assert sum(modes(drawn(single))) > 0.8


def test_regression_takes_the_mean_of_both() -> None:
    actions = drawn(fit("chunk_bc", bandit(), NARROW, 400))
    assert np.abs(actions).max() < 0.1
    # Of one way alone the mean is that way.
    assert drawn(fit("chunk_bc", bandit(1.0), NARROW, 200)) == pytest.approx(0.6, abs=0.05)
    forgot = Fault("agents.chunk_bc.ChunkBC._error", "- batch.action", "+ batch.action", ())
    assert drawn(fit("chunk_bc", bandit(1.0), NARROW, 200, fault=forgot)).max() < 0.5


@pytest.mark.parametrize("backbone", ["unet", "transformer", "film"])
@pytest.mark.parametrize("name", NAMES)
def test_every_backbone_trains_and_is_saved(name: str, backbone: str, tmp_path: Path) -> None:
    config = small_config(name, backbone=backbone, width=8, depth=2)
    agent, replay = build(name, walk(), dtype=torch.float32, config=config)
    net: Any = agent.net
    before = [p.clone() for p in net.parameters()]
    history = updates(agent, replay, 6)
    assert all(m["loss"].isfinite() for m in history)
    moved = [not torch.equal(p, b) for p, b in zip(net.parameters(), before, strict=True)]
    # Biases of keys have no gradient, nor have weights of what is always zero.
    assert np.mean(moved) > 0.75
    policy = agent.policy()
    policy.save(tmp_path / "policy")
    loaded = load_policy(tmp_path / "policy")
    states = [p.start(3) for p in (policy, loaded)]
    for obs in np.random.default_rng(0).normal(size=(3, 3, OBS)):
        first, states[0] = policy.act(obs, states[0])
        second, states[1] = loaded.act(obs, states[1])
        assert first.shape == (3, ACT) and np.array_equal(first, second)


def test_the_grid_of_a_consistency_model_grows() -> None:
    agent, _ = build("consistency_bc", walk(), config=small_config("consistency_bc"))
    seen = []
    for step in (0, 19, 20, 99):
        agent.schedule(step, 100)
        seen.append(float(agent.levels))  # type: ignore[arg-type]
    assert seen == [grid_size(step, 100, 10, 160) for step in (0, 19, 20, 99)]
    assert seen == [11, 11, 21, 161]


def test_learners_cannot_share_the_kernels_of_convolutions_and_attention() -> None:
    for name in NAMES:
        cls, default = AGENTS[name]
        assert not cls.stacks(default)
        assert cls.stacks(small_config(name, backbone="film"))
