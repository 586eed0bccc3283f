"""From a folder of recorded episodes to a dataset: what environment, made how."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box
from numpy.typing import ArrayLike, NDArray

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

    What the environment said of them becomes marks: `success` of the steps that succeeded,
    `mode_k` of the episodes that took way k; the shares are added to the provenance. Raises
    DataError where there is no episode.
    """
    env = make(env_id)
    recorded = list(episodes)
    try:
        dataset = OfflineDataset.from_episodes(
            recorded,
            spec=spec_of(env),
            name=name,
            env_id=env_id,
            reference=reference_for(env_id),
            time_limit=None if env.spec is None else env.spec.max_episode_steps,
            provenance=provenance,
        )
    finally:
        env.close()
    marks = _marks(dataset, recorded)
    if not marks:
        return dataset
    outcomes = {k: float(_by_episode(dataset, mark).mean()) for k, mark in marks.items()}
    facts = {**dataset.provenance, "share_of_episodes": outcomes}
    return replace(dataset, marks=marks, provenance=facts)


def _marks(
    dataset: OfflineDataset, episodes: Sequence[Mapping[str, Any]]
) -> dict[str, NDArray[np.bool_]]:
    marks: dict[str, NDArray[np.bool_]] = {}

    def empty() -> NDArray[np.bool_]:
        return np.zeros(len(dataset.rows), np.bool_)

    for episode, start, length in zip(episodes, dataset.starts, dataset.lengths, strict=True):
        steps = slice(start, start + length)
        if "success" in episode:
            marks.setdefault("success", empty())[steps] = episode["success"]
        for way in range(int(episode.get("modes", 0))):
            marks.setdefault(f"mode_{way}", empty())[steps] = int(episode["mode"]) == way
    return marks


def _by_episode(dataset: OfflineDataset, mark: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """(episodes,) whether any step of each is marked."""
    return np.asarray(np.logical_or.reduceat(mark, dataset.starts))


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
