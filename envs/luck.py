"""Tasks in which a return may be luck: a bandit and a lake that is slippery.

What the data earned by luck cannot be asked for. A policy that is conditioned on the return takes
in both tasks what was common among the lucky, which is what the behaviour preferred; the best
answer is another, and known.
"""

from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box
from numpy.typing import NDArray

from offrl.envs.layout import cut
from offrl.errors import ConfigError

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]

LAKE = ("FFFFFFFF", "FFFFFFFF", "FFFHHHFF", "SFFFFFFG")
MOVES = np.array([[0, 1], [-1, 0], [0, -1], [1, 0]])  # right, up, left, down as (row, column)
RIGHT, UP, LEFT, DOWN = range(4)


class Bandit(gymnasium.Env[F32, F32]):
    """Two arms that pay 1 with probability p and 1 - p, pulled once: `offrl/LuckyBandit-v0`.

    The observation is 1. An action a in [-1, 1] is a mixture of the arms: the one that pays with
    probability 1 - p is pulled with probability (1 + a) / 2, so that -1 and 1 are the arms
    themselves and a regression's mean is the mixture that it stands for. The expected return is
    p (1 - a) / 2 + (1 - p) (1 + a) / 2; the best is 1 - p for p < 1/2. The behaviour pulls the
    good arm with probability p alone: among the episodes that paid, both arms are then equally
    common, and asking for a return of 1 gives 1/2 whatever p is.

    `info` has `arm`, 1 for the good one. Raises ConfigError for p outside (0, 1/2].
    Source: Dichotomy of Control (arXiv:2210.13435), where the arms are two discrete actions.
    """

    metadata = {"render_modes": []}  # noqa: RUF012

    def __init__(self, p: float = 0.1, render_mode: str | None = None) -> None:
        if not 0.0 < p <= 0.5:
            raise ConfigError(f"p is {p}; it must be in (0, 0.5], the bad arm's probability")
        self.p, self.render_mode = p, render_mode
        self.observation_space = Box(0.0, 1.0, (1,), np.float32)
        self.action_space = Box(-1.0, 1.0, (1,), np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[F32, dict[str, Any]]:
        super().reset(seed=seed)
        return np.ones(1, np.float32), {}

    def step(self, action: NDArray[Any]) -> tuple[F32, float, bool, bool, dict[str, Any]]:
        share = (1.0 + float(cut(action)[0])) / 2.0
        arm = int(self.np_random.random() < share)
        paid = self.np_random.random() < (1.0 - self.p if arm else self.p)
        return np.ones(1, np.float32), float(paid), True, False, {"arm": arm}

    def script(self) -> "Pulling":
        """The behaviour of this task, which prefers the bad arm."""
        return Pulling(self.p)


class Pulling:
    """Decides for an arm at the start: the good one with probability p."""

    noise = 0.0

    def __init__(self, p: float) -> None:
        self.p = p

    def begin(self, generator: np.random.Generator) -> float:
        """The action: 1 for the good arm, -1 for the bad one."""
        return 1.0 if generator.random() < self.p else -1.0

    def act(self, obs: F32, memory: float, step: int) -> tuple[F64, float]:
        """The arm that was decided for."""
        return np.array([memory]), memory


class Lake(gymnasium.Env[F32, F32]):
    """From S to G over ice F, past holes H: `offrl/SlipperyLake-v0`.

    The observation has a 1 at the cell. An action is a direction (x, y) in the plane; its larger
    component says which of the four neighbours is meant (x first where they are equal), and with
    probability `slip` the player slides to one of the two sides instead, each as likely. The edge
    holds. Reaching G pays 1; G and the holes end the episode.

    The lake has a short way along its shore that passes under three holes, and a long one
    around. The behaviour takes the short one in 9 of 10 episodes. With slip 1/2 its three cells
    let through 8/27. What the short way earns in 100 steps is 0.221, the long way and the best
    policy 0.9999 and a little more; with slip 0 (`offrl/FirmLake-v0`) all three earn 1.

    `info` has `success`, `mode` (1 once the far row was visited, which is the long way) and
    `modes`. Raises ConfigError for a slip outside [0, 1].
    Source: Gymnasium's FrozenLake, with a map and a slip of our own.
    """

    metadata = {"render_modes": []}  # noqa: RUF012

    def __init__(self, slip: float = 0.5, render_mode: str | None = None) -> None:
        if not 0.0 <= slip <= 1.0:
            raise ConfigError(f"slip is {slip}; it is a probability, from 0 to 1")
        self.slip, self.render_mode = slip, render_mode
        self.cells = np.array([list(row) for row in LAKE])  # (rows, columns)
        self.observation_space = Box(0.0, 1.0, (self.cells.size,), np.float32)
        self.action_space = Box(-1.0, 1.0, (2,), np.float32)
        self.position = self.start = (3, 0)
        self._far = False

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[F32, dict[str, Any]]:
        super().reset(seed=seed)
        self.position, self._far = self.start, False
        return self._observe(), self._info(False)

    def step(self, action: NDArray[Any]) -> tuple[F32, float, bool, bool, dict[str, Any]]:
        move = meant(cut(action))
        chance = self.np_random.random()
        if chance < self.slip:
            move = (move + (1 if chance < self.slip / 2 else 3)) % 4
        self.position = self.after(self.position, move)
        self._far = self._far or self.position[0] == 0
        cell = self.cells[self.position]
        success = bool(cell == "G")
        over = success or bool(cell == "H")
        return self._observe(), float(success), over, False, self._info(success)

    def after(self, position: tuple[int, int], move: int) -> tuple[int, int]:
        """The cell that a move leads to, once it is decided whether the player slid."""
        row, column = np.array(position) + MOVES[move]
        rows, columns = self.cells.shape
        return int(np.clip(row, 0, rows - 1)), int(np.clip(column, 0, columns - 1))

    def script(self) -> "Crossing":
        """The behaviour of this task, which prefers the short way."""
        return Crossing(self.cells.shape)

    def _observe(self) -> F32:
        obs = np.zeros(self.cells.size, np.float32)
        obs[np.ravel_multi_index(self.position, self.cells.shape)] = 1.0
        return obs

    def _info(self, success: bool) -> dict[str, Any]:
        return {"success": success, "mode": int(self._far), "modes": 2}


def meant(action: F64) -> int:
    """Which of right, up, left and down a direction (x, y) means."""
    x, y = action
    if abs(x) >= abs(y):
        return RIGHT if x >= 0 else LEFT
    return UP if y > 0 else DOWN


class Crossing:
    """Decides at the start for the short way, with probability 0.9, or the long one."""

    noise = 0.1  # standard deviation of what is added to each action
    short = 0.9

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape

    def begin(self, generator: np.random.Generator) -> bool:
        """Whether the way is the short one."""
        return bool(generator.random() < self.short)

    def act(self, obs: F32, memory: bool, step: int) -> tuple[F64, bool]:
        """The direction of this way at the observed cell, and the way unchanged."""
        row, column = np.unravel_index(int(obs.argmax()), self.shape)
        way = shortly(int(row), int(column)) if memory else around(int(row), int(column))
        return np.array([MOVES[way][1], -MOVES[way][0]], np.float64), memory


def shortly(row: int, column: int) -> int:
    """The short way's move: to the shore, and along it."""
    if row == 3 or (row == 1 and 3 <= column <= 5):
        return RIGHT
    return DOWN


def around(row: int, column: int) -> int:
    """The long way's move: away from the shore before the holes, and back to it behind them.

    Where it could slide into a hole it steps back, so that it never falls into one.
    """
    if column >= 6:
        return RIGHT if column == 6 else DOWN
    if row >= 2 and 2 <= column <= 4:
        return LEFT
    if row >= 2 and column == 5:
        return RIGHT
    return RIGHT if row == 0 else UP
