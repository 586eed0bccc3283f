"""Adroit hand tasks with the dense reward of D4RL.

The dense rewards of door, hammer and relocate charge the distance from palm to object, -0.1 a
metre (Rajeswaran et al. 2018; D4RL, Fu et al. 2020). gymnasium-robotics 1.2.1 to 1.4.2 pays +0.1
instead, so that a policy is rewarded for staying away. Pen has no such term.
"""

from typing import Any, SupportsFloat

import gymnasium
import numpy as np

from offrl.errors import ConfigError

D4RL_COEFFICIENT = -0.1  # reward per metre between palm and object

# environment id -> (kind of the object's frame, its name in the model, steps in an episode).
# Human door demonstrations last up to 300 steps, 100 more than the environment's own limit.
TASKS = {
    "AdroitHandDoor-v1": ("site", "S_handle", 300),
    "AdroitHandHammer-v1": ("body", "Object", 200),
    "AdroitHandRelocate-v1": ("body", "Object", 200),
}


class D4RLReward(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Reward r + (-0.1 - c) ||palm - object||, where c is the coefficient that the task uses.

    c is measured, not assumed: the palm is a massless site, so moving it changes the reward by
    c times the change of distance and nothing else. An installed version that has the right sign
    is therefore left as it is. Raises ConfigError where c is neither 0.1 nor -0.1.
    """

    def __init__(self, env: gymnasium.Env[Any, Any], kind: str, name: str) -> None:
        super().__init__(env)
        self._frame = (kind, name)
        self.coefficient = self._measure()

    def distance(self) -> float:
        """||palm - object|| in metres, at the last step."""
        data: Any = self.env.unwrapped.data  # type: ignore[attr-defined]
        kind, name = self._frame
        position = data.site(name).xpos if kind == "site" else data.body(name).xpos
        return float(np.linalg.norm(data.site("S_grasp").xpos - position))

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        obs, reward, terminated, truncated, info = self.env.step(action)
        change = (D4RL_COEFFICIENT - self.coefficient) * self.distance()
        return obs, float(reward) + change, terminated, truncated, info

    def _measure(self) -> float:
        base: Any = self.env.unwrapped
        palm = base.model.site("S_grasp")
        rest = palm.pos.copy()
        seen = []
        # The environment's own reset would use up its random numbers; its state does not.
        for offset in (0.0, 1.0):
            base.set_state(base.init_qpos, base.init_qvel)
            palm.pos[:] = rest + offset
            reward = base.step(np.zeros(base.action_space.shape, np.float32))[1]
            seen.append((float(reward), self.distance()))
        palm.pos[:] = rest
        (reward_near, near), (reward_far, far) = seen
        measured = (reward_far - reward_near) / (far - near)
        if abs(abs(measured) - abs(D4RL_COEFFICIENT)) > 1e-6:
            raise ConfigError(
                f"the reward of {base.spec.id if base.spec else base} changes by {measured:.4g} a "
                "metre between palm and object, neither 0.1 nor -0.1: this version of "
                "gymnasium-robotics has another reward than D4RL; install 1.4.2"
            )
        return round(measured, 6)
