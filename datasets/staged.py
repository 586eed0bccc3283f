"""From a folder of recorded episodes to a dataset: what environment, made how."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box
from numpy.typing import ArrayLike

from offrl.datasets.offline import OfflineDataset, Spec
from offrl.envs import make
from offrl.envs.goals import FlattenKeys, flattened
from offrl.envs.references import reference_for
from offrl.errors import DataError


def staged_dataset(
    episodes: Iterable[Mapping[str, ArrayLike]],
    env_id: str,
    *,
    name: str,
    provenance: Mapping[str, Any],
) -> OfflineDataset:
    """Recorded episodes in their order, with the environment's own bounds, limit and reference.

    Raises DataError where there is no episode.
    """
    env = make(env_id)
    try:
        return OfflineDataset.from_episodes(
            list(episodes),
            spec=spec_of(env),
            name=name,
            env_id=env_id,
            reference=reference_for(env_id),
            time_limit=None if env.spec is None else env.spec.max_episode_steps,
            provenance=provenance,
        )
    finally:
        env.close()


def latest(episodes: Sequence[Mapping[str, Any]], capacity: int) -> Sequence[Mapping[str, Any]]:
    """What a buffer of `capacity` steps still holds whole: the last episodes that fit.

    Raises DataError where the last one alone does not.
    """
    lengths = np.array([len(episode["reward"]) for episode in episodes])
    fits = np.cumsum(lengths[::-1]) <= capacity
    if not fits.any():
        raise DataError(f"no episode fits a buffer of {capacity} steps; the last has {lengths[-1]}")
    return episodes[len(episodes) - int(fits.sum()) :]


def spec_of(env: gymnasium.Env[Any, Any]) -> Spec:
    """The bounds of an environment of vectors, or of dictionaries of them, which are laid out.

    Raises DataError for other spaces.
    """
    env = flattened(env)
    keys = dict(env.obs_keys) if isinstance(env, FlattenKeys) else None
    low_high = []
    for space, what in ((env.observation_space, "observations"), (env.action_space, "actions")):
        if not isinstance(space, Box) or len(space.shape) != 1:
            raise DataError(f"{what} are {space}; data is collected where they are a vector (Box)")
        low_high += [np.asarray(bound, np.float64).tolist() for bound in (space.low, space.high)]
    obs_low, obs_high, action_low, action_high = map(tuple, low_high)
    return Spec(obs_low, obs_high, action_low, action_high, obs_keys=keys)
