"""Small tasks with known answers, under Gymnasium ids that begin with `offrl/`.

They are registered when `offrl.envs.make` first meets such an id, so that importing the package
changes nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import gymnasium

from offrl.envs.memory import Recall
from offrl.errors import ConfigError, near

NAMESPACE = "offrl/"


@dataclass(frozen=True)
class Task:
    """The class of a task, the arguments that make this variant, and its steps."""

    entry_point: str
    steps: int
    kwargs: Mapping[str, Any] = field(default_factory=dict)


TASKS = {
    "offrl/MultiReach-v0": Task("offrl.envs.reaching:MultiReach", 60),
    "offrl/MultiReachFour-v0": Task("offrl.envs.reaching:MultiReach", 60, {"walls": 2}),
    "offrl/Recall-v0": Task("offrl.envs.memory:Recall", Recall.limit()),
    "offrl/RecallLong-v0": Task("offrl.envs.memory:Recall", Recall.limit(24), {"delay": 24}),
    "offrl/GoalReach-v0": Task("offrl.envs.goal_reaching:GoalReach", 60),
    # One step, which ends the episode: a limit of one would look like the end by time.
    "offrl/LuckyBandit-v0": Task("offrl.envs.luck:Bandit", 2),
    "offrl/LuckierBandit-v0": Task("offrl.envs.luck:Bandit", 2, {"p": 0.3}),
    "offrl/SlipperyLake-v0": Task("offrl.envs.luck:Lake", 100),
    "offrl/FirmLake-v0": Task("offrl.envs.luck:Lake", 100, {"slip": 0.0}),
    "offrl/NoisyReacher-v0": Task("offrl.envs.noisy_reacher:NoisyReacher", 50),
    "offrl/StillReacher-v0": Task("offrl.envs.noisy_reacher:NoisyReacher", 50, {"noise": 0.0}),
}


def register(env_id: str) -> None:
    """Make the tasks known to Gymnasium, once. Raises ConfigError where `env_id` is none."""
    if env_id not in TASKS:
        raise ConfigError(
            f"unknown environment {env_id!r}{near(env_id, TASKS) or ';'} the tasks of offrl are "
            f"{', '.join(TASKS)}"
        )
    for name, task in TASKS.items():
        if name not in gymnasium.registry:
            gymnasium.register(
                name,
                task.entry_point,
                max_episode_steps=task.steps,
                kwargs=dict(task.kwargs),
            )


def arguments(env_id: str, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """`kwargs` with the steps of an episode, which in Recall follow from the delay."""
    task = TASKS[env_id]
    if not task.entry_point.endswith(":Recall"):
        return dict(kwargs)
    return {"max_episode_steps": Recall.limit(**{**task.kwargs, **kwargs})} | dict(kwargs)
