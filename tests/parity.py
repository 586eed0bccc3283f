"""An agent beside the flat transcription of its method: same weights, batches and noise."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import flat.bc
import flat.iql
import flat.prdc
import flat.td3_bc
import numpy as np
import torch
from problems import ACT, small_config, walk
from torch import Tensor, nn

from offrl.agent import Agent
from offrl.agents import AGENTS
from offrl.datasets.offline import OfflineDataset
from offrl.datasets.replay import transitions
from offrl.feed import Feed
from offrl.networks import Learners
from offrl.optim import parameters_of

BATCH = 16
TOTAL = 40  # length that the schedules are told
TOLERANCE = 1e-9  # of parameters
METRICS_TOLERANCE = 1e-7  # they multiply what the parameters differ by, by data and by weights
LR = 2.0**-10  # exact in float32, in which the optimisers hold it
# Of noise that is cut as often as not, of weights that are, of targets that move.
TD3 = {"policy_noise": 0.8, "noise_clip": 1.2, "gamma": 0.9, "lr": LR, "polyak": 0.1}
EXTRACTION = {
    "expectile": 0.8,
    "beta": 3.0,
    "max_weight": 1.05,
    "gamma": 0.9,
    "lr": LR,
    "polyak": 0.1,
}

Layers = list[Tensor]
Trained = tuple[dict[str, Layers], list[dict[str, Tensor]]]


@dataclass(frozen=True)
class Case:
    agent: str
    changes: Mapping[str, Any]
    # Of the agent's networks, what the gradient of each objective can reach.
    reach: Mapping[str, frozenset[str]]
    # One whose first critics or advantages have both signs, and either critic is the smaller.
    seed: int = 71
    beside: tuple[int, ...] = ()  # seeds of learners stacked with it; it is the last
    expected: list[Trained] = field(default_factory=list, compare=False)  # one, once worked out

    @property
    def config(self) -> Any:
        return small_config(self.agent, hidden=(8, 6), **self.changes)


def _reach(**objectives: str) -> dict[str, frozenset[str]]:
    return {name: frozenset(nets.split()) for name, nets in objectives.items()}


BC_REACH = _reach(actor_loss="actor")
TD3_REACH = _reach(critic_loss="critic", actor_loss="actor critic")
IQL_REACH = _reach(value_loss="value", actor_loss="actor", critic_loss="critic")

CASES = {
    "bc": Case("bc", {"lr": LR}, BC_REACH),
    "percent_bc": Case("percent_bc", {"lr": LR, "top_fraction": 0.5}, BC_REACH),
    "td3_bc": Case("td3_bc", {"alpha": 1.5, **TD3}, TD3_REACH),
    "td3_bc-delay": Case("td3_bc", {"policy_delay": 3, **TD3}, TD3_REACH),
    "prdc": Case("prdc", {"alpha": 1.5, "beta": 0.8, **TD3}, TD3_REACH),
    "prdc-actions": Case("prdc", {"beta": 0.0, "policy_delay": 1, **TD3}, TD3_REACH),
    "iql": Case("iql", EXTRACTION, IQL_REACH, seed=73),
    "iql-dropout": Case(
        "iql", {"dropout": 0.3, "actor_schedule": "constant", **EXTRACTION}, IQL_REACH, 88
    ),
    "bc-stacked": Case("bc", {"lr": LR}, BC_REACH, beside=(5,)),
    "td3_bc-stacked": Case("td3_bc", {"alpha": 1.5, **TD3}, TD3_REACH, beside=(5,)),
    "prdc-stacked": Case("prdc", {"alpha": 1.5, "beta": 0.8, **TD3}, TD3_REACH, beside=(5,)),
    "iql-stacked": Case("iql", EXTRACTION, IQL_REACH, seed=73, beside=(5,)),
}


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


def networks_of(agent: Agent) -> dict[str, Layers]:
    """The last learner's networks as lists of weights and biases, each critic by itself."""
    found: dict[str, Layers] = {}
    learner = (-1,) if agent.learners.shape else ()
    for name, net in agent.named_children():
        members: dict[str, tuple[int, ...]] = {name: ()}
        if name.startswith("critic"):
            members = {"q1": (0,), "q2": (1,)}
        for short, member in members.items():
            entries = {k: p.detach()[member + learner] for k, p in net.named_parameters()}
            key = name.replace("critic", short)
            found[key] = [p.clone() for k, p in entries.items() if not k.endswith("log_std")]
            if spread := [p.clone() for k, p in entries.items() if k.endswith("log_std")]:
                found["log_std"] = spread
    return found


def flat_run(case: Case, count: int) -> Trained:
    """The transcription's networks and metrics, from the agent's first weights and batches."""
    cls, _ = AGENTS[case.agent]
    config, dataset = case.config, data()
    if case.agent == "percent_bc":
        ranked = sorted(range(dataset.num_episodes), key=lambda e: -dataset.returns()[e])
        chosen = sorted(ranked[: int(config.top_fraction * len(ranked))])
        dataset = dataset.select(chosen, "chosen by hand")
    agent = cls(dataset.spec, config, Learners((case.seed,))).to(torch.float64)
    view = transitions(dataset, normalize_obs=config.normalize_obs).to(torch.float64)
    feed = Feed(view, (case.seed,), BATCH, _noise_shapes(case))
    batches = []
    for step in range(count):
        batch, noise = feed.at(step)
        raw = torch.from_numpy(dataset.rows[batch.index.numpy(), -3]).double()
        batches.append({**vars(batch), **noise, "raw_reward": raw})
    nets = networks_of(agent)
    settings = {k: getattr(config, k) for k in _flat_settings(case)}
    if case.agent in ("bc", "percent_bc"):
        return flat.bc.train(nets, batches, **settings)
    if case.agent == "td3_bc":
        return flat.td3_bc.train(nets, batches, **settings)
    if case.agent == "prdc":
        everything = view.batch(view.index)
        return flat.prdc.train(nets, batches, everything.obs, everything.action, **settings)
    returns = [float(e["reward"].astype(np.float64).sum()) for e in _episodes(dataset)]
    return flat.iql.train(nets, batches, returns, TOTAL, **settings)


def _episodes(dataset: OfflineDataset) -> list[dict[str, Any]]:
    return [dataset.episode(e) for e in range(dataset.num_episodes)]


def _noise_shapes(case: Case) -> dict[str, tuple[int, ...]]:
    if case.agent in ("td3_bc", "prdc"):
        return {"target_action": (BATCH, ACT)}
    if case.changes.get("dropout"):
        return {f"dropout{i}": (BATCH, n) for i, n in enumerate(case.config.hidden)}
    return {}


def _flat_settings(case: Case) -> list[str]:
    td3 = ["alpha", "policy_noise", "noise_clip", "policy_delay", "gamma", "lr", "polyak"]
    iql = ["expectile", "beta", "max_weight", "dropout", "actor_schedule", "gamma", "lr", "polyak"]
    return {
        "bc": ["lr"],
        "percent_bc": ["lr"],
        "td3_bc": td3,
        "prdc": [*td3, "beta"],
        "iql": iql,
    }[case.agent]


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
    found = networks_of(agent)
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

    def watch(optimizer: Any, objective: Callable[..., Any], *args: Any) -> Any:
        loss, _ = objective(*args)
        reached[objective.__name__] = frozenset(owner[id(p)] for p in leaves(loss))
        assert not any(p.grad is None for p in parameters_of(optimizer))
        return minimize(optimizer, objective, *args)

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
        if hasattr(node, "variable"):
            found.append(node.variable)
        todo.extend(next_node for next_node, _ in node.next_functions)
    return found
