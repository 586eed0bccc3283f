"""An agent beside the flat transcription of its method: same weights, batches and noise.

The cases are those of the files in tests/methods.
"""

import importlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from parity_case import BATCH, TOTAL, Case, Layers, Trained
from problems import walk
from torch import Tensor, nn

from offrl.agent import Agent
from offrl.agents import AGENTS
from offrl.datasets.offline import OfflineDataset
from offrl.datasets.replay import Replay, transitions
from offrl.feed import Feed
from offrl.networks import Learners
from offrl.optim import parameters_of

TOLERANCE = 1e-9  # of parameters
METRICS_TOLERANCE = 1e-7  # they multiply what the parameters differ by, by data and by weights

METHODS: dict[str, ModuleType] = {
    path.stem: importlib.import_module(f"methods.{path.stem}")
    for path in sorted((Path(__file__).parent / "methods").glob("*.py"))
}
CASES: dict[str, Case] = {}
for _method in METHODS.values():
    CASES |= getattr(_method, "CASES", {})


def data() -> OfflineDataset:
    """Short episodes, so that a terminal is in nearly every batch."""
    return walk(episodes=30, length=3)


def ready(cls: type[Agent], case: Case, dataset: OfflineDataset) -> tuple[Agent, Feed]:
    seeds = (*case.beside, case.seed)
    agent = cls(dataset.spec, case.config, Learners(seeds))
    replay = agent.view(dataset).to(torch.float64)
    agent.to(torch.float64)
    agent.prepare(replay)
    return agent, Feed(replay, seeds, BATCH, agent.noise(BATCH))


def run(agent: Agent, feed: Feed, count: int) -> list[dict[str, Tensor]]:
    history = []
    for step in range(count):
        batch, noise = feed.at(step)
        agent.schedule(step, TOTAL)
        history.append(agent.update(batch, noise, step % agent.period))
    return history


def networks_of(agent: Agent, case: Case) -> dict[str, Layers]:
    """The last learner's networks as lists of weights and biases, each member by itself."""
    found: dict[str, Layers] = {}
    learner = (-1,) if agent.learners.shape else ()
    for name, net in agent.named_children():
        base, target = name.removesuffix("_target"), "_target" * name.endswith("_target")
        members = range(case.members.get(base, 0))
        short = "q" if base == "critic" else base
        places = {f"{short}{k + 1}{target}": (k,) for k in members} or {name: ()}
        for key, member in places.items():
            entries = {k: p.detach()[member + learner] for k, p in net.named_parameters()}
            found[key] = [p.clone() for k, p in entries.items() if not k.endswith("log_std")]
            if spread := [p.clone() for k, p in entries.items() if k.endswith("log_std")]:
                found[f"{name}_log_std" if "log_std" in found else "log_std"] = spread
    return found


def transition_view(case: Case, dataset: OfflineDataset) -> Replay:
    return transitions(dataset, normalize_obs=getattr(case.config, "normalize_obs", False))


def flat_run(case: Case, count: int) -> Trained:
    """The transcription's networks and metrics, from the agent's first weights and batches."""
    cls, _ = AGENTS[case.agent]
    dataset = case.chosen(case, data())
    agent = cls(dataset.spec, case.config, Learners((case.seed,))).to(torch.float64)
    view = (case.view or transition_view)(case, dataset).to(torch.float64)
    feed = Feed(view, (case.seed,), BATCH, case.noise)
    batches = []
    for step in range(count):
        batch, noise = feed.at(step)
        raw = torch.from_numpy(dataset.rows[batch.index.numpy(), -3]).double()
        batches.append({**vars(batch), **noise, "raw_reward": raw})
    return case.flat(case, networks_of(agent, case), batches, dataset, view)


def check(name: str, cls: type[Agent] | None = None, count: int = 24) -> None:
    """Assert that `count` updates of the class are those of the transcription.

    Compared are every metric of every update and, at the end, every network, to 1e-9 and by
    what the gradient of each objective can reach.
    """
    case = CASES[name]
    if not case.expected or len(case.expected[0][1]) != count:
        case.expected[:] = [flat_run(case, count)]
    nets, history = case.expected[0]
    cls = cls or AGENTS[case.agent][0]
    agent, feed = ready(cls, case, data())
    for step, (ours, theirs) in enumerate(zip(run(agent, feed, count), history, strict=True)):
        assert ours.keys() == theirs.keys(), f"metrics of update {step}: {sorted(ours)}"
        for key, value in theirs.items():
            assert ours[key].shape == agent.learners.shape, f"{key} of update {step}"
            error = float((ours[key].flatten()[-1] - value).abs() / (1.0 + value.abs()))
            assert error < METRICS_TOLERANCE, f"{key} of update {step} differs by {error:.1e}"
    found = networks_of(agent, case)
    assert found.keys() == nets.keys(), sorted(found)
    for key, layers in nets.items():
        for i, (mine, other) in enumerate(zip(found[key], layers, strict=True)):
            error = float((mine - other.detach().reshape(mine.shape)).abs().max())
            assert error < TOLERANCE, f"{key}, layer entry {i}, differs by {error:.1e}"
    check_reach(agent, feed, case)


def check_reach(agent: Agent, feed: Feed, case: Case) -> None:
    """Assert what each objective's gradient can reach, whether the optimiser asks for it or not."""
    reached: dict[str, frozenset[str]] = {}
    owner = {id(p): net for net, part in agent.named_children() for p in part.parameters()}
    minimize = agent.minimize

    def watch(optimizer: Any, objective: Callable[..., Any], *args: Any, **options: Any) -> Any:
        loss, _ = objective(*args)
        # A leaf that no network owns is an input by which the objective itself differentiates.
        found = [id(p) for p in leaves(loss)]
        reached[objective.__name__] = frozenset(owner[p] for p in found if p in owner)
        assert not any(p.grad is None for p in parameters_of(optimizer))
        return minimize(optimizer, objective, *args, **options)

    agent.minimize = watch  # type: ignore[method-assign]
    batch, noise = feed.at(0)
    agent.update(batch, noise, agent.period - 1)
    assert reached == case.reach, reached


def leaves(loss: Tensor) -> list[nn.Parameter]:
    """The parameters that a gradient of this loss would flow into."""
    found, seen, todo = [], set(), [loss.grad_fn]
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if isinstance(getattr(node, "variable", None), nn.Parameter):
            found.append(node.variable)
        todo.extend(next_node for next_node, _ in node.next_functions)
    return found
