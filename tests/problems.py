"""Small data and agents that the tests share."""

from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
import torch
from teachers import teacher

from offrl.agent import Agent
from offrl.agents import AGENTS
from offrl.datasets.offline import OfflineDataset, Spec
from offrl.datasets.replay import Replay
from offrl.feed import Feed
from offrl.networks import Learners
from offrl.types import Batch, Noise

OBS, ACT = 3, 2
HIDDEN = (16, 16)


def walk(episodes: int = 8, length: int = 25, seed: int = 0) -> OfflineDataset:
    """Random episodes; every third one terminates, the others are truncated."""
    rng = np.random.default_rng(seed)
    return OfflineDataset.from_episodes(
        [
            {
                "obs": rng.normal(1.0, 2.0, (length + 1, OBS)).astype(np.float32),
                "action": rng.uniform(-1, 1, (length, ACT)).astype(np.float32),
                "reward": rng.normal(size=length).astype(np.float32),
                "terminated": e % 3 == 0,
                "truncated": e % 3 != 0,
            }
            for e in range(episodes)
        ],
        name="walk",
        # Those that terminate are as long as the others: here that is no fault.
        provenance={"terminals_at_time_limit": {"treatment": "kept"}},
    )


class Drift(gymnasium.Env[Any, Any]):
    """A point that actions push; the reward is how near to the origin it stays."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (OBS,), np.float32)
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (ACT,), np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.t, self.x = 0, self.np_random.normal(size=OBS).astype(np.float32)
        return self.x, {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.t += 1
        self.x = (self.x + 0.1 * float(np.sum(action))).astype(np.float32)
        return self.x, -float(np.abs(self.x).sum()), False, self.t >= 5, {}


CHUNKS: dict[str, Any] = {  # of agents that plan: short plans by a narrow network that stacks
    **{"history": 2, "horizon": 4, "execute": 2, "backbone": "mlp", "width": 16, "depth": 2},
    **{"sampler_steps": 2, "warmup": 4, "candidates": 16, "negatives": 4},
    **{"heads": 2, "inner": 16, "latent": 4, "ahead": 2},
}


SEQUENCES: dict[str, Any] = {  # of agents that are asked for a return: a short context
    **{"context": 4, "layers": 1, "width": 8, "max_steps": 20, "warmup": 4},
}


ACTIONS: dict[str, Any] = {  # of agents that generate one action: few candidates, short chains
    **{"width": 16, "depth": 2, "candidates": 3, "flow_steps": 2, "levels": 2, "ema_start": 2},
}


TEACHER = teacher("GaussianActor", Spec.unbounded(OBS, ACT))  # there before any child process is


LATENTS: dict[str, Any] = {  # of agents that form latents of the future: few steps of it
    **{"future": 4, "hold": 2, "latent": 3, "features": 4},
}


def narrow(name: str) -> dict[str, Any]:
    """Settings under which every network of the agent is narrow."""
    fields = AGENTS[name][1].__dataclass_fields__
    settings: dict[str, Any] = {f: HIDDEN for f in fields if f.endswith("hidden")}
    settings |= {f: v for f, v in CHUNKS.items() if "history" in fields and f in fields}
    settings |= {f: v for f, v in SEQUENCES.items() if "context" in fields}
    settings |= LATENTS if "future" in fields else {}
    settings |= {"teacher": TEACHER} if "teacher" in fields else {}
    if "candidates" in fields or "flow_steps" in fields:
        settings = {f: v for f, v in ACTIONS.items() if f in fields} | settings
    return settings


def small_config(name: str, **changes: Any) -> Any:
    """The agent's settings with every network narrow."""
    _, default = AGENTS[name]
    values = {f: getattr(default, f) for f in default.__dataclass_fields__}
    return type(default)(**{**values, **narrow(name), **changes})


def stackable(name: str) -> bool:
    """Whether learners of the agent share kernels under its small settings."""
    return AGENTS[name][0].stacks(small_config(name))


def build(
    name: str,
    dataset: OfflineDataset,
    seeds: Sequence[int] = (0,),
    dtype: torch.dtype = torch.float64,
    config: Any = None,
) -> tuple[Agent, Replay]:
    """An agent that is ready to update, and its view of the data."""
    cls, _ = AGENTS[name]
    agent = cls(dataset.spec, config or small_config(name), Learners(seeds))
    replay = agent.view(dataset).to(dtype)
    agent.to(dtype)
    agent.prepare(replay)
    return agent, replay


def feed_of(agent: Agent, replay: Replay, batch_size: int = 32) -> Feed:
    return Feed(replay, agent.learners.seeds, batch_size, agent.noise(batch_size))


def updates(
    agent: Agent, replay: Replay, count: int, start: int = 0, total: int = 1_000
) -> list[dict[str, torch.Tensor]]:
    """`count` updates from step `start` on, as the trainer makes them."""
    feed = feed_of(agent, replay)
    metrics = []
    for step in range(start, start + count):
        batch, noise = feed.at(step)
        agent.schedule(step, total)
        metrics.append(agent.update(batch, noise, step % agent.period))
    return metrics


def inputs(agent: Agent, replay: Replay, step: int = 0) -> tuple[Batch, Noise]:
    return feed_of(agent, replay).at(step)
