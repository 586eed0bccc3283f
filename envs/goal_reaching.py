"""Reaching goals anywhere in two rooms with a door between: `offrl/GoalReach-v0`.

Demonstrations are play: the demonstrator wanders between goals of its own choice before it goes
to the one that was asked for, so that what an episode reached later is, for most of its steps,
another goal than the one it was given. That is what relabelling with future goals learns from.
"""

from typing import Any

import numpy as np
from gymnasium.spaces import Box, Dict
from numpy.typing import ArrayLike, NDArray

from offrl.envs.puck import EDGE, F32, F64, FAST, Puck, bounded, towards

REACH = 0.1  # m
FREE = 0.85  # m, starts and goals have coordinates within
DOOR = 0.2  # m, half the width of the door, which is in the middle of the wall
THICK = 0.04  # m, half the wall's thickness
PLAY = 35  # steps, of 60, that the demonstrator spends on goals of its own


class GoalReach(Puck):
    """Observations: `observation` (position and velocity), `achieved_goal`, `desired_goal`.

    A step pays 1 while the puck is within 0.1 m of the desired goal, else 0, and the episode goes
    on. `info` has `success` of that step. `compute_reward` takes any goals, one or many, as the
    goal environments of gymnasium-robotics do; `reset(options={"goal": (x, y)})` chooses one.
    """

    def __init__(self, render_mode: str | None = None) -> None:
        half = (EDGE - DOOR) / 2
        walls = tuple((0.0, side * (DOOR + half), THICK, half) for side in (-1.0, 1.0))
        super().__init__(walls, reach=REACH, speed=1.5, render_mode=render_mode)
        high = np.array([EDGE, EDGE, FAST, FAST], np.float32)
        goal = Box(-EDGE, EDGE, (2,), np.float32)
        self.observation_space = Dict(
            {"achieved_goal": goal, "desired_goal": goal, "observation": Box(-high, high)}
        )

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, F32], dict[str, Any]]:
        super().reset(seed=seed)
        start, goal = (free_place(self.np_random) for _ in range(2))
        if options and "goal" in options:
            goal = np.clip(np.asarray(options["goal"], np.float64), -EDGE, EDGE)
        self.place(start, goal)
        return self._observe(), {"success": self.distance < REACH}

    def step(
        self, action: NDArray[Any]
    ) -> tuple[dict[str, F32], float, bool, bool, dict[str, Any]]:
        self.push(action)
        success = self.distance < REACH
        return self._observe(), float(success), False, False, {"success": success}

    def compute_reward(self, achieved: ArrayLike, desired: ArrayLike, info: Any = None) -> F64:
        """1 where achieved and desired goals (..., 2) are within 0.1 m of each other, else 0."""
        gap = np.linalg.norm(np.subtract(achieved, desired), axis=-1)
        return np.asarray(gap < REACH, np.float64)

    def script(self) -> "Playing":
        """The demonstrator of this task."""
        return Playing(self.speed)

    def _observe(self) -> dict[str, F32]:
        here = bounded(self.position, EDGE)
        return {
            "achieved_goal": here,
            "desired_goal": bounded(self.target, EDGE),
            "observation": np.concatenate([here, bounded(self.velocity, FAST)]),
        }


def free_place(generator: np.random.Generator) -> F64:
    """A place uniform over both rooms, clear of the walls."""
    x, y = generator.uniform([0.15, -FREE], [FREE, FREE])
    return np.array([x * generator.choice([-1.0, 1.0]), y])


class Playing:
    """Goes from goal to goal of its own for 35 steps, then to the one that was asked for."""

    noise = 0.15  # standard deviation of what is added to each action
    goals = 8  # drawn at the start, more than 35 steps reach

    def __init__(self, speed: float) -> None:
        self.speed = speed

    def begin(self, generator: np.random.Generator) -> tuple[F64, ...]:
        """The goals of its own that are still ahead."""
        return tuple(free_place(generator) for _ in range(self.goals))

    def act(self, obs: F32, memory: tuple[F64, ...], step: int) -> tuple[F64, tuple[F64, ...]]:
        """The action for `[achieved_goal | desired_goal | observation]`, and the goals ahead."""
        position = obs[:2].astype(np.float64)
        while len(memory) > 1 and np.linalg.norm(memory[0] - position) < REACH:
            memory = memory[1:]
        goal = memory[0] if step < PLAY else obs[2:4].astype(np.float64)
        return towards(position, _next_place(position, goal), self.speed), memory


def _next_place(position: F64, goal: F64) -> F64:
    """Where to head for `goal`: to it, or to the door on this side or through it."""
    side = 1.0 if position[0] > 0 else -1.0
    if side * goal[0] > 0 and abs(position[0]) > 0.12:
        return goal
    if abs(position[1]) > 0.1:
        return np.array([side * 0.2, 0.0])
    return np.array([np.sign(goal[0]) * 0.2, 0.0])
