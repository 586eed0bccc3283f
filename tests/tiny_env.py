"""An environment of ten steps or fewer, for collecting data in tests: `tiny_env:Drift-v0`."""

from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

ENV_ID = "Drift-v0"
LIMIT = 10


class Drift(gymnasium.Env[Any, Any]):
    """x moves by a fifth of the action; a step pays 1 - |x|; beyond |x| = 1 it is over."""

    observation_space = gymnasium.spaces.Box(-10.0, 10.0, (2,), np.float32)
    action_space = gymnasium.spaces.Box(-2.0, 2.0, (1,), np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        super().reset(seed=seed)
        self.x, self.t = float(self.np_random.uniform(-0.5, 0.5)), 0
        return self._observe(), {}

    def step(self, action: Any) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        self.x += float(action[0]) / 5
        self.t += 1
        return self._observe(), 1.0 - abs(self.x), abs(self.x) > 1.0, False, {}

    def _observe(self) -> NDArray[np.float32]:
        return np.array([self.x, self.t / LIMIT], np.float32)


if ENV_ID not in gymnasium.registry:
    gymnasium.register(ENV_ID, "tiny_env:Drift", max_episode_steps=LIMIT)
