"""Dictionary observations as flat vectors, the layout that a dataset's spec names.

`obs_keys` maps a key to its columns `(start, stop)`; `a/b` names entry `b` of entry `a`.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from offrl.errors import DataError, near

F32 = NDArray[np.float32]
ObsKeys = Mapping[str, tuple[int, int]]


def flatten(observation: Mapping[str, Any], obs_keys: ObsKeys) -> F32:
    """One dictionary observation as (obs,), or a batch of them as (n, obs).

    Raises DataError for a key that is missing or of another size.
    """
    parts = []
    for key, (start, stop) in sorted(obs_keys.items(), key=lambda item: item[1]):
        part = numbers(f"observation[{key!r}]", _entry(observation, key, obs_keys))
        if part.ndim not in (1, 2) or part.shape[-1] != stop - start:
            raise DataError(
                f"observation[{key!r}] has shape {part.shape}; expected ({stop - start},) or "
                f"(n, {stop - start})"
            )
        parts.append(part)
    if len({part.shape[:-1] for part in parts}) != 1:
        shapes = ", ".join(str(part.shape) for part in parts)
        raise DataError(f"the observation's keys differ in their number of rows: {shapes}")
    return np.concatenate(parts, -1)


def _entry(observation: Mapping[str, Any], key: str, obs_keys: ObsKeys) -> Any:
    entry: Any = observation
    for name in key.split("/"):
        if not isinstance(entry, Mapping) or name not in entry:
            raise DataError(
                f"the observation has no key {key!r}{near(key, observation)} (it has "
                f"{sorted(observation)}; needed are {sorted(obs_keys)})"
            )
        entry = entry[name]
    return entry


def numbers(what: str, value: Any) -> F32:
    """`value` as float32. Raises DataError, naming `what`, where it is not numbers."""
    try:
        return np.asarray(value, np.float32)
    except (TypeError, ValueError) as e:
        raise DataError(f"{what} is {value!r}; expected numbers") from e


def cut(action: Any) -> NDArray[np.float64]:
    """An action cut to [-1, 1]. Raises DataError for one that is not finite."""
    value = np.asarray(action, np.float64)
    if not np.isfinite(value).all():
        raise DataError(f"the action is {value.tolist()}; an environment needs finite numbers")
    return np.clip(value, -1.0, 1.0)
