"""Environments whose observations are dictionaries, seen as the dataset saw them."""

from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from offrl.envs.layout import ObsKeys, flatten
from offrl.errors import ConfigError, near


class FlattenKeys(gymnasium.ObservationWrapper[NDArray[np.float32], Any, Any]):
    """A dictionary of boxes as one float32 vector: key `k` fills columns `start:stop`.

    Raises ConfigError where a key is missing, is not a box, or has another size.
    """

    def __init__(self, env: gymnasium.Env[Any, Any], obs_keys: ObsKeys) -> None:
        super().__init__(env)
        space = env.observation_space
        if not isinstance(space, gymnasium.spaces.Dict):
            raise ConfigError(
                f"the dataset's observations have the keys {list(obs_keys)}, but the environment "
                f"gives {space}; choose the environment that the data came from"
            )
        self.obs_keys, parts = dict(obs_keys), _parts(space)
        size = max(stop for _, stop in self.obs_keys.values())
        low, high = np.full(size, -np.inf, np.float32), np.full(size, np.inf, np.float32)
        for key, (start, stop) in self.obs_keys.items():
            box = parts.get(key)
            if box is None:
                raise ConfigError(
                    f"the environment's observations have no key {key!r}{near(key, parts)} (it "
                    f"has {sorted(parts)})"
                )
            if not isinstance(box, gymnasium.spaces.Box):
                raise ConfigError(f"observation key {key!r} is {box}, and only boxes can be used")
            entries = int(np.prod(box.shape))
            if entries != stop - start:
                raise ConfigError(
                    f"observation key {key!r} has {entries} entries in the environment and "
                    f"{stop - start} in the dataset"
                )
            low[start:stop], high[start:stop] = box.low.ravel(), box.high.ravel()
        self.observation_space = gymnasium.spaces.Box(low, high, dtype=np.float32)

    def observation(self, observation: Any) -> NDArray[np.float32]:
        return flatten(observation, self.obs_keys, batched=False)


def flattened(env: gymnasium.Env[Any, Any]) -> gymnasium.Env[Any, Any]:
    """An environment of dictionaries as one of vectors, keys in the space's order; others as is.

    Raises ConfigError where an entry of the dictionary is not a box.
    """
    if not isinstance(env.observation_space, gymnasium.spaces.Dict):
        return env
    sizes = {
        key: int(np.prod(box.shape or 1)) for key, box in _parts(env.observation_space).items()
    }
    ends = np.cumsum(list(sizes.values())).tolist()
    keys = {key: (end - n, end) for (key, n), end in zip(sizes.items(), ends, strict=True)}
    return FlattenKeys(env, keys)


def _parts(space: gymnasium.Space[Any], key: str = "") -> dict[str, gymnasium.Space[Any]]:
    """The spaces of a nested dictionary by key, `a/b` for entry `b` of entry `a`."""
    if not isinstance(space, gymnasium.spaces.Dict):
        return {key: space}
    found: dict[str, gymnasium.Space[Any]] = {}
    for name, part in space.spaces.items():
        found |= _parts(part, f"{key}/{name}" if key else name)
    return found
