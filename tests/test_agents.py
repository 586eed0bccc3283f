"""What every agent must do, whichever it is."""

import dataclasses
import functools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from parity import METHODS
from problems import ACT, OBS, build, inputs, small_config, stackable, updates, walk

from offrl import checkpoints
from offrl.agent import Agent
from offrl.agents import AGENTS
from offrl.errors import ConfigError
from offrl.latent_policy import LatentPolicy
from offrl.networks import Learners
from offrl.optim import parameters_of
from offrl.policy import PlanPolicy
from offrl.sequence_policy import SequencePolicy

NAMES = sorted(AGENTS)


@pytest.mark.parametrize("seeds", [(0,), (0, 1, 2)], ids=["one", "three"])
@pytest.mark.parametrize("name", NAMES)
def test_metrics_are_one_finite_number_per_learner(name: str, seeds: tuple[int, ...]) -> None:
    if len(seeds) > 1 and not stackable(name):
        pytest.skip("its learners are trained in turn")
    agent, replay = build(name, walk(), seeds)
    for metrics in updates(agent, replay, 4):
        for key, value in metrics.items():
            assert value.shape == agent.learners.shape, key
            assert value.isfinite().all(), key
            assert not value.requires_grad, key


@pytest.mark.parametrize("name", NAMES)
def test_actions_are_in_bounds_and_shaped_as_asked(name: str) -> None:
    agent, replay = build(name, walk())
    updates(agent, replay, 4)
    policy = agent.policy()
    batch = policy.predict(100.0 * np.random.default_rng(0).normal(size=(7, OBS)))
    assert batch.shape == (7, ACT) and batch.dtype == np.float32
    assert np.abs(batch).max() <= 1.0
    assert policy.predict(np.zeros(OBS)).shape == (ACT,)


@pytest.mark.parametrize("name", NAMES)
def test_only_the_optimisers_own_parameters_move_by_gradient(name: str) -> None:
    agent, replay = build(name, walk())
    optimised = {id(p) for o in agent.optimizers().values() for p in parameters_of(o)}
    before = {k: v.clone() for k, v in agent.state_dict().items()}
    updates(agent, replay, agent.period)
    after = agent.state_dict()
    for key, parameter in agent.named_parameters():
        if id(parameter) in optimised:
            assert parameter.requires_grad and not torch.equal(before[key], after[key]), key
        else:
            assert not parameter.requires_grad and parameter.grad is None, key
    if hasattr(agent, "critic_target"):
        polyak = agent.config.polyak
        for key in (k for k in after if k.startswith("critic.")):
            target = key.replace("critic.", "critic_target.")
            moved = before[target] + polyak * (after[key] - before[target])
            torch.testing.assert_close(after[target], moved, rtol=0, atol=1e-12)


@pytest.mark.parametrize("seeds", [(3,), (3, 4)], ids=["one", "two"])
@pytest.mark.parametrize("name", NAMES)
def test_a_checkpoint_resumes_to_the_bit(name: str, seeds: tuple[int, ...], tmp_path: Path) -> None:
    if len(seeds) > 1 and not stackable(name):
        pytest.skip("its learners are trained in turn")
    straight, replay = build(name, walk(), seeds, torch.float32)
    updates(straight, replay, 8)

    first, replay = build(name, walk(), seeds, torch.float32)
    updates(first, replay, 4)
    folders = [tmp_path / str(s) for s in seeds]
    entries = checkpoints.agent_entries(first)
    checkpoints.save(folders, 4, entries, [{} for _ in seeds], keep=1)

    second, replay = build(name, walk(), seeds, torch.float32)
    checkpoints.load(folders, 4, checkpoints.agent_entries(second))
    updates(second, replay, 4, start=4)
    assert_equal_state(straight, second)


def assert_equal_state(a: Agent, b: Agent) -> None:
    left, right = checkpoints.agent_entries(a), checkpoints.agent_entries(b)
    assert left.keys() == right.keys()
    for key in left:
        assert torch.equal(left[key].tensor, right[key].tensor), key


@pytest.mark.parametrize("name", NAMES)
def test_a_checkpoint_holds_everything_that_changes(name: str, tmp_path: Path) -> None:
    agent, replay = build(name, walk())
    updates(agent, replay, 2)
    saved = {e.tensor.data_ptr() for e in checkpoints.agent_entries(agent).values()}
    unsaved = {
        path: value
        for path, value in reachable(agent, "agent").items()
        if isinstance(value, torch.Tensor) and value.data_ptr() not in saved
    }
    # The gradients of the last update are formed anew by the next one before they are read.
    unsaved = {k: v for k, v in unsaved.items() if not k.endswith(".grad")}
    # The neighbour search is derived from the data alone, and a fingerprint stands for it; what
    # it counts is reported as speed and is no part of the results.
    unsaved = {k: v for k, v in unsaved.items() if not k.startswith("agent.nearest.")}
    assert not unsaved
    generators = [
        path
        for path, value in reachable(agent, "agent").items()
        if isinstance(value, torch.Generator | np.random.Generator)
    ]
    # The streams of initial numbers are spent when the networks stand.
    assert all(path.startswith("agent.learners.") for path in generators)


def reachable(value: Any, path: str, seen: set[int] | None = None) -> dict[str, Any]:
    """Every object that can be reached through attributes and containers, by path."""
    seen = set() if seen is None else seen
    if id(value) in seen or isinstance(value, type) or (callable(value) and not _is_state(value)):
        return {}
    seen.add(id(value))
    found = {path: value}
    if isinstance(value, torch.Tensor):
        if value.grad is not None:
            found[f"{path}.grad"] = value.grad
        return found
    if isinstance(value, dict):
        for key, item in value.items():
            found |= reachable(item, f"{path}.{key}", seen)
    elif isinstance(value, list | tuple | set):
        for i, item in enumerate(value):
            found |= reachable(item, f"{path}.{i}", seen)
    elif hasattr(value, "__dict__"):
        for key, item in vars(value).items():
            found |= reachable(item, f"{path}.{key}", seen)
    return found


def _is_state(value: Any) -> bool:
    return isinstance(value, torch.nn.Module) or type(value).__module__.startswith("offrl")


@pytest.mark.parametrize("name", NAMES)
def test_a_saved_policy_acts_the_same_in_a_fresh_process(name: str, tmp_path: Path) -> None:
    agent, replay = build(name, walk(), dtype=torch.float32)
    updates(agent, replay, 6)
    policy = agent.policy()
    policy.save(tmp_path / "policy")
    obs = np.random.default_rng(1).normal(size=(5, OBS)).astype(np.float32)
    np.save(tmp_path / "obs.npy", obs)
    code = (
        "import sys, json, numpy as np\n"
        "module = __import__(sys.argv[2], fromlist=['load_policy'])\n"
        "policy = module.load_policy(sys.argv[1] + '/policy')\n"
        "print(json.dumps(policy.predict(np.load(sys.argv[1] + '/obs.npy')).tolist()))\n"
    )
    expected = policy.predict(obs)
    modules = [("offrl", 0.0), ("offrl.runtime", 1e-5)]
    # Plans and memories need torch: offrl.runtime says so (tests/test_execution.py).
    remembers = isinstance(policy, PlanPolicy | SequencePolicy | LatentPolicy)
    for module, tolerance in modules[: 1 if remembers else 2]:
        command = [sys.executable, "-c", code, str(tmp_path), module]
        result = subprocess.run(command, capture_output=True, text=True, check=True)
        found = np.array(json.loads(result.stdout), np.float32)
        np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance)


@pytest.mark.compiled
@pytest.mark.parametrize("name", NAMES)
def test_compiled_graphs_equal_eager(name: str) -> None:
    trained = {}
    for backend in ("eager", "aot_eager"):
        agent, replay = build(name, walk())
        agent.backend = backend
        updates(agent, replay, 6)
        trained[backend] = agent
    for key, value in trained["eager"].state_dict().items():
        torch.testing.assert_close(
            trained["aot_eager"].state_dict()[key], value, rtol=0, atol=1e-9, msg=key
        )


@pytest.mark.compiled
def test_a_process_can_compile_any_number_of_agents() -> None:
    limit = torch._dynamo.config.recompile_limit
    for _ in range(limit + 1):
        agent, replay = build("bc", walk(episodes=2))
        agent.backend = "aot_eager"
        updates(agent, replay, 1)


@pytest.mark.slow
@pytest.mark.compiled
@pytest.mark.parametrize("name", ["prdc", "iql"])
def test_inductor_equals_eager(name: str) -> None:
    trained = {}
    for backend in ("eager", "inductor"):
        agent, replay = build(name, walk(), dtype=torch.float32)
        agent.backend = backend
        updates(agent, replay, 6)
        trained[backend] = agent
    for key, value in trained["eager"].state_dict().items():
        torch.testing.assert_close(
            trained["inductor"].state_dict()[key], value, rtol=0, atol=1e-5, msg=key
        )


# For each kind of field, a value that the default is not; files in tests/methods have others, by
# agent and field, with the settings under which the field acts: OTHER[agent, field] = value, {}.
OTHER_VALUES: dict[str, Any] = {
    "hidden": (16, 8),
    "policy_delay": 3,
    "top_fraction": 0.5,
    "actor_schedule": "constant",
    "expectile": 0.9,
    "polyak": 0.5,
    "dropout": 0.5,
    "noise_clip": 0.01,
    # Of agents that plan.
    **{"history": 3, "horizon": 8, "execute": 1, "ensemble": 0.1, "normalize": "zscore"},
    **{"backbone": "film", "width": 8, "depth": 3, "warmup": 8, "levels": 50, "prediction": "v"},
    **{"sampler": "ddim", "sampler_steps": 3},
}
OTHER: dict[tuple[str, str], tuple[Any, dict[str, Any]]] = {}
for _method in METHODS.values():
    OTHER |= getattr(_method, "OTHER", {})


@pytest.mark.parametrize(
    ("name", "field"),
    [(n, f.name) for n in NAMES for f in dataclasses.fields(AGENTS[n][1])],
    ids=lambda x: x,
)
def test_every_setting_has_an_effect(name: str, field: str) -> None:
    config = small_config(name)
    old = getattr(config, field)
    common: dict[str, Any] = {}
    if (name, field) in OTHER:
        new, common = OTHER[name, field]
    elif field in OTHER_VALUES:
        new = OTHER_VALUES[field]
    else:
        new = (not old) if isinstance(old, bool) else old * 0.5 + 0.25
    assert new != old
    changed = dataclasses.replace(config, **common, **{field: new})
    states, policies = zip(
        trained(name, dataclasses.replace(config, **common)), trained(name, changed), strict=True
    )
    different = policies[0] != policies[1] or states[0].keys() != states[1].keys()
    different = different or any(
        states[0][k].shape != states[1][k].shape or not torch.equal(states[0][k], states[1][k])
        for k in states[0]
    )
    assert different, f"{name}.{field} = {new!r} changes nothing"


@functools.cache
def trained(name: str, config: Any) -> tuple[dict[str, torch.Tensor], tuple[Any, ...]]:
    """Everything that 12 updates leave, and what a policy's file says beside its weights.

    Cached, since most settings are compared with the same others.
    """
    agent, replay = build(name, walk(), config=config)
    updates(agent, replay, 12, total=100)
    state = {k: v.detach().clone() for k, v in agent.state_dict().items()}
    file = agent.policy()._file()
    return state, (file.actor, file.execution, file.conditioning)


@pytest.mark.parametrize("name", NAMES)
def test_settings_out_of_range_are_refused_by_name(name: str) -> None:
    with pytest.raises(ConfigError, match=r"\.lr is -1.*\(0, inf\)"):
        small_config(name, lr=-1.0)


def test_discrete_actions_are_refused() -> None:
    spec = dataclasses.replace(walk().spec, action_kind="discrete")
    with pytest.raises(ConfigError, match="takes continuous actions"):
        AGENTS["bc"][0](spec, small_config("bc"), Learners())


@pytest.mark.parametrize("name", NAMES)
def test_validation_takes_no_gradient_and_moves_nothing(name: str) -> None:
    agent, replay = build(name, walk())
    batch, _ = inputs(agent, replay)
    before = {k: v.clone() for k, v in agent.state_dict().items()}
    measured = agent.validate(batch)
    assert agent.measure is None or agent.measure in measured
    assert all(v.shape == () and v.isfinite() for v in measured.values())
    assert all(torch.equal(v, before[k]) for k, v in agent.state_dict().items())
