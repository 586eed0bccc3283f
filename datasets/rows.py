"""The matrix that holds logged episodes, and how it is filled.

    rows = [ obs | action | reward | terminated | truncated ]    float32, (steps + episodes, width)

An episode of T steps takes T + 1 rows, of which the last holds the observation after the last
action, if that is known.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from offrl.errors import DataError

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

CHUNK = 65_536  # rows read at once by reductions, so that they need no second copy of the data

TOLERANCE = 1e-6  # Euclidean distance, beyond rounding, of observations that are not the same

Filled = tuple[F32, I64, I64, NDArray[np.bool_]]  # rows, starts, lengths, final_known


def allocate(lengths: Sequence[int] | I64, obs_dim: int, act_dim: int) -> tuple[F32, I64]:
    """Zeroed rows for episodes of these lengths, and the first row of each.

    Readers fill slices of the result straight from a file, so that no column is held twice.
    """
    lengths = np.asarray(lengths, np.int64)
    ends = np.cumsum(lengths + 1)
    total = int(ends[-1]) if len(ends) else 0
    return np.zeros((total, obs_dim + act_dim + 3), np.float32), ends - lengths - 1


def rows_of_episodes(
    name: str, episodes: Sequence[Mapping[str, ArrayLike]]
) -> tuple[Filled, tuple[int, int]]:
    """Of episodes as `OfflineDataset.from_episodes` takes them; and sizes of obs and action.

    `name` is for messages. Raises DataError for what is not numbers, where lengths disagree, and
    where there is no episode.
    """
    columns = [_episode_columns(name, e, raw) for e, raw in enumerate(episodes)]
    if not columns:
        raise DataError(f"{name}: the list of episodes is empty")
    obs_dim, act_dim = columns[0]["obs"].shape[1], columns[0]["action"].shape[1]
    lengths = np.array([len(c["action"]) for c in columns], np.int64)
    rows, starts = allocate(lengths, obs_dim, act_dim)
    known = np.zeros(len(columns), np.bool_)
    for e, (c, begin) in enumerate(zip(columns, starts, strict=True)):
        if (c["obs"].shape[1], c["action"].shape[1]) != (obs_dim, act_dim):
            raise DataError(
                f"{name}: episode {e} has observations of {c['obs'].shape[1]} and actions of "
                f"{c['action'].shape[1]} components; episode 0 has {obs_dim} and {act_dim}"
            )
        end = begin + len(c["action"])
        rows[begin : begin + len(c["obs"]), :obs_dim] = c["obs"]
        rows[begin:end, obs_dim : obs_dim + act_dim] = c["action"]
        rows[begin:end, -3] = c["reward"]
        rows[end - 1, -2:] = c["terminated"], c["truncated"]
        known[e] = len(c["obs"]) == len(c["action"]) + 1
    return (rows, starts, lengths, known), (obs_dim, act_dim)


def rows_of_columns(
    name: str,
    observations: ArrayLike,
    actions: ArrayLike,
    rewards: ArrayLike,
    terminals: ArrayLike,
    timeouts: ArrayLike | None,
    next_observations: ArrayLike | None,
) -> tuple[Filled, tuple[int, int], tuple[str, ...]]:
    """Of flat columns as `OfflineDataset.from_arrays` takes them; and sizes of obs and action.

    Last come the problems that were found, a sentence each. `name` is for messages. Raises
    DataError for what is not numbers, for other shapes, and where lengths disagree.
    """
    given = {
        **{"observations": observations, "actions": actions, "rewards": rewards},
        **{"terminals": terminals, "timeouts": timeouts, "next_observations": next_observations},
    }
    columns = {k: _numbers(f"{name}: {k}", v) for k, v in given.items() if v is not None}
    for key in ("rewards", "terminals", "timeouts"):
        if key in columns:
            columns[key] = _narrow(f"{name}: {key}", columns[key])
    obs, action, following = columns["observations"], columns["actions"], None
    if obs.ndim != 2 or action.ndim != 2:
        raise DataError(
            f"{name}: observations {obs.shape} and actions {action.shape} must be "
            "(steps, components)"
        )
    if next_observations is not None:
        following = columns["next_observations"]
        if following.shape[1:] != obs.shape[1:]:
            raise DataError(
                f"{name}: next_observations have shape {following.shape}, and observations "
                f"{obs.shape}"
            )
    sizes = {key: len(column) for key, column in columns.items()}
    if len(set(sizes.values())) != 1:
        raise DataError(f"{name}: columns of unequal length: {sizes}")
    if not len(obs):
        raise DataError(f"{name}: the columns are empty: there is no step to learn from")
    reward, terminal = columns["rewards"], columns["terminals"] > 0
    timeout = columns["timeouts"] > 0 if timeouts is not None else np.zeros_like(terminal)
    lengths, unmarked = _episode_lengths(obs, terminal | timeout, following)
    rows, starts = allocate(lengths, obs.shape[1], action.shape[1])
    known = np.full(len(lengths), following is not None)
    dataset_rows = np.arange(len(obs)) + np.repeat(np.arange(len(lengths)), lengths)
    o, a = obs.shape[1], action.shape[1]
    rows[dataset_rows, :o] = obs
    rows[dataset_rows, o : o + a] = action
    rows[dataset_rows, -3], rows[dataset_rows, -2] = reward, terminal
    rows[dataset_rows, -1] = timeout
    if following is not None:
        rows[starts + lengths, :o] = following[np.cumsum(lengths) - 1]
    return (rows, starts, lengths, known), (o, a), (unmarked_ends(unmarked) if unmarked else ())


def contradicts(following: NDArray[Any], obs: NDArray[Any]) -> NDArray[np.bool_]:
    """(n,) whether stored next observations (n, obs) are others than these observations (n, obs).

    Rounding is no contradiction: both are compared in float32, as rows hold them, and a component
    may be off by the spacing of the coarsest type that it was stored in. What is left of the
    differences must not be longer than TOLERANCE.
    """
    floats = [x.dtype for x in (following, obs) if x.dtype.kind == "f"]
    spacing = max(float(np.finfo(t).eps) for t in (np.dtype(np.float32), *floats))
    with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is refused elsewhere
        a, b = (x.astype(np.float32).astype(np.float64) for x in (following, obs))
        left = np.abs(a - b) - spacing * np.maximum(np.abs(a), np.abs(b))
        return np.asarray(np.linalg.norm(np.maximum(left, 0.0), axis=1) > TOLERANCE)


def unmarked_ends(count: int) -> tuple[str]:
    """The problem of ends of episodes that only contradicting next observations show."""
    return (
        f"{count} ends of episodes are not marked: there the stored next observation is not the "
        "observation of the following row; episodes are split there",
    )


def _episode_lengths(
    obs: NDArray[Any], recorded: NDArray[np.bool_], next_obs: NDArray[Any] | None
) -> tuple[I64, int]:
    """Lengths of the episodes of flat columns, and how many ends only `next_obs` shows."""
    ends = recorded.copy()
    if next_obs is not None:
        for begin in range(0, len(obs) - 1, CHUNK):
            stop = min(begin + CHUNK, len(obs) - 1)
            ends[begin:stop] |= contradicts(next_obs[begin:stop], obs[begin + 1 : stop + 1])
    unmarked = int((ends & ~recorded).sum())
    ends[-1] = True
    return np.diff(np.flatnonzero(ends), prepend=-1).astype(np.int64), unmarked


def _episode_columns(name: str, e: int, raw: Mapping[str, ArrayLike]) -> dict[str, NDArray[Any]]:
    missing = {"obs", "action", "reward"} - set(raw)
    if missing:
        raise DataError(f"{name}: episode {e} has no {sorted(missing)}; it has {sorted(raw)}")
    obs, action, reward = (
        _numbers(f"{name}: {key} of episode {e}", raw[key]) for key in ("obs", "action", "reward")
    )
    reward = reward.reshape(-1)
    if obs.ndim != 2 or action.ndim != 2:
        raise DataError(
            f"{name}: episode {e} has obs {obs.shape} and action {action.shape}; expected "
            "(T + 1, obs) or (T, obs), and (T, act)"
        )
    steps = len(action)
    if len(reward) != steps or len(obs) - steps not in (0, 1):
        raise DataError(
            f"{name}: episode {e} has obs {obs.shape}, action {action.shape} and reward "
            f"{reward.shape}; expected (T + 1, obs) or (T, obs), (T, act) and (T,)"
        )
    if steps == 0:
        raise DataError(f"{name}: episode {e} has no step")
    terminated = _flag(f"{name}: terminated of episode {e}", raw.get("terminated", False))
    truncated = _flag(f"{name}: truncated of episode {e}", raw.get("truncated", not terminated))
    return {
        "obs": obs,
        "action": action,
        "reward": reward,
        "terminated": np.asarray(terminated),
        "truncated": np.asarray(truncated),
    }


def _numbers(what: str, value: Any) -> NDArray[Any]:
    """`value` as an array of real numbers, of whichever type."""
    try:
        array = np.asarray(value)
    except (TypeError, ValueError) as error:
        raise DataError(f"{what} cannot be made an array: {error}") from None
    if array.dtype.kind not in "fiub":
        raise DataError(f"{what} is of type {array.dtype}; expected numbers")
    return array


def _narrow(what: str, column: NDArray[Any]) -> NDArray[Any]:
    if column.ndim == 1 or (column.ndim == 2 and column.shape[1] == 1):
        return column.reshape(-1)
    raise DataError(f"{what} has shape {column.shape}; expected (steps,) or (steps, 1)")


def _flag(what: str, value: Any) -> bool:
    flags = _numbers(what, value).reshape(-1)
    if not len(flags):
        raise DataError(f"{what} is empty; expected one value, or one a step")
    return bool(flags[-1])
