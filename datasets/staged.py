"""From a folder of recorded episodes to a dataset: what environment, made how."""

from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box

from offrl.datasets.offline import OfflineDataset, Reference, Spec
from offrl.datasets.staging import Staging
from offrl.envs import make
from offrl.envs.references import reference_for
from offrl.errors import DataError


def staged_dataset(
    staging: Staging,
    env_id: str,
    *,
    name: str,
    provenance: Mapping[str, Any],
    reference: Reference | None = None,
) -> OfflineDataset:
    """The episodes of `staging` in the order of recording, with the environment's own bounds.

    `reference` defaults to D4RL's for the environment. Raises DataError where no episode is
    there.
    """
    episodes = list(staging)
    if not episodes:
        raise DataError(f"{staging.folder} holds no finished episode")
    env = make(env_id)
    try:
        return OfflineDataset.from_episodes(
            episodes,
            spec=spec_of(env),
            name=name,
            env_id=env_id,
            reference=reference or reference_for(env_id),
            time_limit=None if env.spec is None else env.spec.max_episode_steps,
            provenance=provenance,
        )
    finally:
        env.close()


def spec_of(env: gymnasium.Env[Any, Any]) -> Spec:
    """The bounds of an environment of vectors. Raises DataError for other spaces."""
    bounds = []
    for space, what in ((env.observation_space, "observations"), (env.action_space, "actions")):
        if not isinstance(space, Box) or len(space.shape) != 1:
            raise DataError(f"{what} are {space}; data is collected where they are a vector (Box)")
        bounds += [tuple(np.asarray(b, np.float64).tolist()) for b in (space.low, space.high)]
    return Spec(*bounds)
