"""Problems small enough to know the answer, and how an agent or a broken copy is put to them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import plant_faults
import torch
from fault import Fault
from torch import Tensor

from offrl.agent import Agent
from offrl.agents import AGENTS
from offrl.datasets.offline import OfflineDataset
from offrl.feed import Feed
from offrl.networks import Learners

FAST = {"hidden": (24, 24), "lr": 3e-3}
TD3 = {**FAST, "polyak": 0.05, "normalize_obs": False}
IQL = {**TD3, "reward_by_return_range": False, "actor_schedule": "constant"}
Step = tuple[Sequence[float], float, float]  # observation, action, reward


def episodes(
    runs: Sequence[tuple[Sequence[Step], Sequence[float] | None]], name: str
) -> OfflineDataset:
    """From runs of steps, each with the observation at its time limit, or None: it terminated."""
    return OfflineDataset.from_episodes(
        [
            {
                "obs": np.array([s[0] for s in steps] + [final or steps[-1][0]], np.float32),
                "action": np.array([[s[1]] for s in steps], np.float32),
                "reward": np.array([s[2] for s in steps], np.float32),
                "terminated": final is None,
                "truncated": final is not None,
            }
            for steps, final in runs
        ],
        name=name,
    )


def fit(
    agent: str,
    dataset: OfflineDataset,
    settings: dict[str, Any],
    count: int,
    *,
    fault: Fault | None = None,
    seed: int = 0,
    batch_size: int = 64,
) -> Agent:
    """Train the agent, or a copy with a fault in it, in float64."""
    _, default = AGENTS[agent]
    config = type(default)(**{**vars(default), **settings})
    with plant_faults.planted(fault, agent) as cls:
        learner = cls(dataset.spec, config, Learners((seed,))).to(torch.float64)
        replay = learner.view(dataset).to(torch.float64)
        learner.prepare(replay)
        feed = Feed(replay, (seed,), batch_size, learner.noise(batch_size))
        for step in range(count):
            batch, noise = feed.at(step)
            learner.schedule(step, count)
            learner.update(batch, noise, step % learner.period)
    return learner


def column(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)[:, None]


def action_at(agent: Agent, *obs: float) -> float:
    return float(agent.mode(torch.tensor([obs], dtype=torch.float64))[0, 0].detach())


# -- a bandit: two kinds of action, one of which pays ---------------------------------------------

GOOD, BAD = 0.6, -0.6


def bandit(share: float = 0.5) -> OfflineDataset:
    """One state, one step; a share of the actions is near the one that pays 1, the others pay 0."""
    rng = np.random.default_rng(0)
    runs = []
    for i in range(200):
        good = i < 200 * share
        action = float((GOOD if good else BAD) + rng.uniform(-0.05, 0.05))
        runs.append(([([1.0], action, float(good))], None))
    return episodes(runs, "bandit")


FLIPPED = Fault("losses.td_target", "return reward", "return -reward", ())


# -- chains whose values are known ----------------------------------------------------------------

GAMMA = 0.8


def chain() -> OfflineDataset:
    """First -> second -> end, rewards 1 and 2; and a third state that repeats itself, reward 1.

    Q(second) = 2, Q(first) = 1 + 0.8 * 2 = 2.6, and Q(third) = 1 / (1 - 0.8) = 5, since its
    episodes are cut by a time limit and never end.
    """
    rng = np.random.default_rng(0)
    first, second, third = np.eye(3).tolist()
    runs: list[tuple[Sequence[Step], Sequence[float] | None]] = []
    for _ in range(40):
        a, b, c, d = rng.uniform(-1, 1, 4).tolist()
        runs.append(([(first, a, 1.0), (second, b, 2.0)], None))
        runs.append(([(third, c, 1.0), (third, d, 1.0)], third))
    return episodes(runs, "chain")


def values(agent: Agent) -> list[float]:
    """Mean Q of each state over actions from -0.5 to 0.5."""
    obs = torch.eye(3, dtype=torch.float64).repeat_interleave(5, 0)
    action = torch.linspace(-0.5, 0.5, 5, dtype=torch.float64).repeat(3)[:, None]
    critic: Any = agent.critic
    found: list[float] = critic(obs, action).mean(0).reshape(3, 5).mean(1).tolist()
    return found


UNMASKED = Fault("losses.td_target", "gamma * mask * next_value", "gamma * next_value", ())
TRUNCATION_ENDS = Fault(
    "losses.td_target", "gamma * mask * next_value", "gamma * 0.0 * next_value", ()
)
