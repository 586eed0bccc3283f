"""Gymnasium's Reacher under noise that is correlated in time: `offrl/NoisyReacher-v0`.

    executed_t = clip(a_t + n_t, -1, 1)
    n_(t+1) = c n_t + sqrt(1 - c^2) sigma e_t,   e_t ~ N(0, I),   n_0 ~ N(0, sigma^2 I)

The noise is not observed, and it lasts: an episode may be good because it happened to help. It is
that of the experiments of Dichotomy of Control (arXiv:2210.13435), which state no numbers.
"""

from typing import Any

import numpy as np
from gymnasium.envs.mujoco.reacher_v5 import ReacherEnv
from numpy.typing import NDArray

from offrl.envs.layout import cut
from offrl.errors import ConfigError

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]

LENGTHS = (0.1, 0.11)  # m, from joint to joint and on to the fingertip


class NoisyReacher(ReacherEnv):
    """Reacher-v5 with noise of deviation `noise`, of full torque, and correlation c.

    Episodes have 50 steps. With the default noise of 0.3 the script earns -9.4 a mean episode
    when it heads for the target, -13 when it idles and -16 when it heads away; without
    (`offrl/StillReacher-v0`) -5.4, -12 and -15. What is best is not known. Raises ConfigError for
    negative noise or a correlation outside [0, 1).
    """

    def __init__(self, noise: float = 0.3, correlation: float = 0.9, **kwargs: Any) -> None:
        if noise < 0.0 or not 0.0 <= correlation < 1.0:
            raise ConfigError(
                f"noise is {noise} and correlation {correlation}; expected noise >= 0 and a "
                "correlation in [0, 1)"
            )
        self.noise, self.correlation = noise, correlation
        self.drift: F64 = np.zeros(2)
        super().__init__(**kwargs)

    def step(self, action: NDArray[Any]) -> Any:
        executed = np.clip(cut(action) + self.drift, -1.0, 1.0)
        result = super().step(executed.astype(np.float32))  # type: ignore[no-untyped-call]
        fresh = self.noise * self.np_random.standard_normal(2)
        kept = self.correlation
        self.drift = kept * self.drift + np.sqrt(1.0 - kept**2) * fresh
        return result

    def reset_model(self) -> F64:
        obs: F64 = super().reset_model()  # type: ignore[no-untyped-call]
        self.drift = self.noise * self.np_random.standard_normal(2)
        return obs

    def script(self) -> "Pulled":
        """The behaviour of this task."""
        return Pulled()


class Pulled:
    """A damped spring from the fingertip to the target: torque = k J' (target - tip) - d velocity.

    Its strength k is drawn at the start: towards the target, none, or away from it.
    """

    noise = 0.1  # standard deviation of what is added to each action
    strengths = (20.0, 0.0, -10.0)
    shares = (0.25, 0.5, 0.25)
    damping = 0.1

    def begin(self, generator: np.random.Generator) -> float:
        """The strength."""
        return float(generator.choice(self.strengths, p=self.shares))

    def act(self, obs: F32, memory: float, step: int) -> tuple[F64, float]:
        """Torques for cosines, sines, target, velocities and the way from target to tip."""
        c1, c2, s1, s2 = obs[:4].astype(np.float64)
        cosine, sine = c1 * c2 - s1 * s2, s1 * c2 + c1 * s2
        upper, lower = LENGTHS
        jacobian = np.array(
            [
                [-upper * s1 - lower * sine, -lower * sine],
                [upper * c1 + lower * cosine, lower * cosine],
            ]
        )
        velocity = obs[6:8].astype(np.float64)
        return -memory * jacobian.T @ obs[8:10] - self.damping * velocity, memory
