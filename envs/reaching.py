"""Reaching a target behind walls that can be passed on either side: `offrl/MultiReach-v0`.

A puck starts left of a wall and wants to the right of it. Demonstrations pass above and below
with equal probability, from the same starts, so the action to take is not a function of the state
but a distribution of two modes. Their mean leads straight into the wall. With two walls in a row
there are four ways, with n walls 2^n.
"""

from typing import Any

import numpy as np
from gymnasium.spaces import Box
from numpy.typing import NDArray

from offrl.envs.puck import EDGE, F32, F64, FAST, RADIUS, Puck, bounded, towards
from offrl.errors import ConfigError

START = -0.55  # m, along x: so near that a hesitating puck meets the wall at once
TARGET = 0.8
SPEED = 2.0  # m/s at full action: two or three decisions are all that there are before the wall
WIDE = 0.15  # m, half the wall's extent across
THICK = 0.05  # m, half its extent along x
AROUND = 0.3  # m, from the wall's middle to the way past it
LEVEL = 0.23  # m across, from which the puck, touching at 0.2, may pass
# m along x, from the wall's middle to the corners of the way. The first lies so near that a puck
# which is not at the side of the wall meets it on the way there.
CORNERS = (-0.09, 0.15)
CLEAR = THICK + RADIUS  # m along x, beyond which the wall is passed
PLACES = {1: (-0.3,), 2: (-0.3, 0.3)}  # of the walls along x, by their number


class MultiReach(Puck):
    """Observations: position, velocity and target, two each, in m and m/s. Actions: velocity, m/s.

    A step that ends within 0.08 m of the target pays 1 and ends the episode, and touching a wall
    ends it too; every other step pays 0. `info` has `success`, `mode` (bit i is set where wall i
    was passed on the side of positive y; -1 until the last is passed) and `modes`, their number.

    Raises ConfigError for a number of walls other than 1 and 2.
    """

    def __init__(self, walls: int = 1, render_mode: str | None = None) -> None:
        if walls not in PLACES:
            raise ConfigError(f"walls is {walls}; MultiReach has {' or '.join(map(str, PLACES))}")
        self.walls = PLACES[walls]
        placed = tuple((x, 0.0, THICK, WIDE) for x in self.walls)
        super().__init__(placed, reach=0.08, speed=SPEED, render_mode=render_mode)
        high = np.array([EDGE, EDGE, FAST, FAST, EDGE, EDGE], np.float32)
        self.observation_space = Box(-high, high)
        self._sides: list[bool] = []

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[F32, dict[str, Any]]:
        super().reset(seed=seed)
        start = np.array([START, 0.0]) + self.np_random.uniform(-0.02, 0.02, 2)
        target = np.array([TARGET, self.np_random.uniform(-0.3, 0.3)])
        self.place(start, target)
        self._sides = []
        return self._observe(), self._info(False)

    def step(self, action: NDArray[Any]) -> tuple[F32, float, bool, bool, dict[str, Any]]:
        self.push(action)
        x, y = self.position
        if len(self._sides) < len(self.walls) and x > self.walls[len(self._sides)]:
            self._sides.append(bool(y > 0))
        success = self.distance < self.reach
        return self._observe(), float(success), success or self.touching, False, self._info(success)

    def script(self) -> "Passing":
        """The demonstrator of this task."""
        return Passing(self.walls, self.speed)

    def _observe(self) -> F32:
        parts = (bounded(self.position, EDGE), bounded(self.velocity, FAST))
        return np.concatenate([*parts, bounded(self.target, EDGE)])

    def _info(self, success: bool) -> dict[str, Any]:
        passed = len(self._sides) == len(self.walls)
        mode = sum(side << i for i, side in enumerate(self._sides)) if passed else -1
        return {"success": success, "mode": mode, "modes": 2 ** len(self.walls)}


class Passing:
    """Draws a side for each wall, then goes by the corners of that way to the target.

    Given the sides, the action is a function of the observation.
    """

    noise = 0.15  # standard deviation of what is added to each action

    def __init__(self, walls: tuple[float, ...], speed: float) -> None:
        self.walls, self.speed = walls, speed

    def begin(self, generator: np.random.Generator) -> F64:
        """(walls,) the side of each wall, +1 or -1, each with probability 1/2."""
        return generator.choice([-1.0, 1.0], len(self.walls))

    def act(self, obs: F32, memory: F64, step: int) -> tuple[F64, F64]:
        """The action of this way, and the sides unchanged."""
        position = obs[:2].astype(np.float64)
        goal = obs[4:6].astype(np.float64)
        for x, side in zip(self.walls, memory, strict=True):
            if position[0] < x + CLEAR:
                # To the corner, and once level with it, along the wall.
                level = bool(side * position[1] > LEVEL)
                goal = np.array([x + CORNERS[level], side * AROUND])
                break
        return towards(position, goal, self.speed), memory
