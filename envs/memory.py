"""Going where a cue pointed that is no longer there: `offrl/Recall-v0`.

The first observation shows which of k pads pays. Then a gate holds the player in the middle for
`delay` steps, in which every observation is the same whatever it does, and then it may walk to a
pad; the first one reached ends the episode. Nothing that a player does while the cue is shown or
the gate is shut leaves a trace in what it observes. What a policy without memory does after the
gate opens is thus independent of the cue, and it succeeds with probability 1/k at most.
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

EDGE = 1.25  # bound of the player's coordinates; the pads lie at distance 1 of the middle
PAD = 0.3  # radius of a pad
STRIDE = 0.25  # distance of a step at full speed
WALK = 16  # steps after the gate has opened; four are needed


class Recall(gymnasium.Env[F32, F32]):
    """Observations: k entries of which the cue's is 1 while it is shown, 1 while the gate is
    shut, and the position (x, y). Actions: the step, as (x, y) in [-1, 1] times 0.25.

    Reaching the cue's pad pays 1. `info` has `success`, `mode` (the pad reached, or -1) and
    `modes` (k); `reset(options={"cue": i})` chooses the cue.

    Raises ConfigError for fewer than two pads or more than eight (they would overlap), a negative
    delay, or a cue that is shown for no step.
    """

    metadata = {"render_modes": []}  # noqa: RUF012

    def __init__(
        self, delay: int = 8, pads: int = 4, shown: int = 1, render_mode: str | None = None
    ) -> None:
        for name, value, low, high in (
            ("delay", delay, 0, None),
            ("pads", pads, 2, 8),
            ("shown", shown, 1, None),
        ):
            if value < low or (high is not None and value > high):
                most = "" if high is None else f" and at most {high}"
                raise ConfigError(f"{name} is {value}; it must be at least {low}{most}")
        self.delay, self.pads, self.shown = delay, pads, shown
        self.render_mode = render_mode
        angle = 2 * np.pi * np.arange(pads) / pads
        self.places = np.stack([np.cos(angle), np.sin(angle)], -1)  # (pads, 2)
        high_obs = np.array([*[1.0] * (pads + 1), EDGE, EDGE], np.float32)
        low_obs = np.array([*[0.0] * (pads + 1), -EDGE, -EDGE], np.float32)
        self.observation_space = Box(low_obs, high_obs)
        self.action_space = Box(-1.0, 1.0, (2,), np.float32)
        self.cue, self.position, self._t = 0, np.zeros(2), 0

    @staticmethod
    def limit(delay: int = 8, shown: int = 1, **_: Any) -> int:
        """Steps of an episode: the cue, the delay, and 16 to walk."""
        return shown + delay + WALK

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[F32, dict[str, Any]]:
        super().reset(seed=seed)
        self.cue = int(self.np_random.integers(self.pads))
        if options and "cue" in options:
            self.cue = int(options["cue"])
            if not 0 <= self.cue < self.pads:
                raise ConfigError(f"cue is {self.cue}; it must be from 0 to {self.pads - 1}")
        self.position, self._t = np.zeros(2), 0
        return self._observe(), self._info(-1)

    def step(self, action: NDArray[Any]) -> tuple[F32, float, bool, bool, dict[str, Any]]:
        if not self._shut:
            self.position = np.clip(self.position + STRIDE * cut(action), -EDGE, EDGE)
        self._t += 1
        near = np.linalg.norm(self.places - self.position, axis=-1)
        reached = int(near.argmin()) if near.min() < PAD else -1
        success = reached == self.cue
        return self._observe(), float(success), reached >= 0, False, self._info(reached)

    def script(self) -> "Remembering":
        """The demonstrator of this task."""
        return Remembering(self.places)

    @property
    def _shut(self) -> bool:
        return self._t < self.shown + self.delay

    def _observe(self) -> F32:
        cue = np.zeros(self.pads)
        cue[self.cue] = self._t < self.shown
        return np.array([*cue, self._shut, *self.position], np.float32)

    def _info(self, reached: int) -> dict[str, Any]:
        return {"success": reached == self.cue, "mode": reached, "modes": self.pads}


class Remembering:
    """Keeps the cue in mind; leans towards its pad while the gate is shut, then walks there.

    Leaning moves nothing, but it makes past and future actions depend on each other, which is
    what past-token prediction learns from.
    """

    noise = 0.1  # standard deviation of what is added to each action
    lean = 0.5  # of full speed, while the gate is shut

    def __init__(self, places: F64) -> None:
        self.places = places

    def begin(self, generator: np.random.Generator) -> int:
        """Nothing has been seen: -1."""
        return -1

    def act(self, obs: F32, memory: int, step: int) -> tuple[F64, int]:
        """The action, and the cue that is in mind now."""
        cues = obs[: len(self.places)]
        cue = int(cues.argmax()) if cues.any() else memory
        shut, position = bool(obs[-3]), obs[-2:].astype(np.float64)
        if shut:
            return self.lean * self.places[cue], cue
        way = self.places[cue] - position
        return way / max(float(np.linalg.norm(way)), STRIDE), cue
