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


def flatten(observation: Mapping[str, Any], obs_keys: ObsKeys, batched: bool | None = None) -> F32:
    """One dictionary observation as (obs,), or a batch of them as (n, obs).

    An entry may have any shape of as many numbers as its columns, a matrix for instance or a single
    number; in a batch one more axis goes before. Unless told by `batched`, entries of the size of
    one observation are one, but for entries that are all of shape (1, size): a batch of one.
    Raises DataError for a key that is missing or of another size.
    """
    parts, sizes = [], []
    for key, (start, stop) in sorted(obs_keys.items(), key=lambda item: item[1]):
        part = numbers(f"observation[{key!r}]", _entry(observation, key, obs_keys))
        size = stop - start
        wanted = {False: part.size == size, True: _is_batch(part, size)}
        if not (any(wanted.values()) if batched is None else wanted[batched]):
            raise DataError(
                f"observation[{key!r}] has shape {part.shape}; expected ({size},) or (n, {size})"
            )
        parts.append(part)
        sizes.append(size)
    pairs = list(zip(parts, sizes, strict=True))
    if batched is None:
        batched = any(part.size != size for part, size in pairs) or all(
            part.shape == (1, size) for part, size in pairs
        )
    if not batched:
        return np.concatenate([part.reshape(-1) for part in parts])
    if not all(_is_batch(*pair) for pair in pairs) or len({len(part) for part in parts}) != 1:
        shapes = ", ".join(str(part.shape) for part in parts)
        raise DataError(f"the observation's keys differ in their number of rows: {shapes}")
    return np.concatenate([part.reshape(len(part), size) for part, size in pairs], 1)


def _is_batch(part: F32, size: int) -> bool:
    return part.ndim > 0 and part.size == len(part) * size


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
    """`value` as float32, also of a tensor, whatever its gradient and device.

    Raises DataError, naming `what`, for what is not real numbers, for masked values, and for a
    number that float32 cannot hold.
    """
    if np.ma.is_masked(value):
        raise DataError(
            f"{what} has masked values; expected numbers: fill them, or leave the step out"
        )
    try:
        raw = np.asarray(value.detach().cpu() if hasattr(value, "detach") else value)
    except (TypeError, ValueError, RuntimeError) as e:
        raise DataError(f"{what} is {value!r}; expected numbers") from e
    if raw.dtype.kind not in "fiub":
        raise DataError(f"{what} is {value!r}, of type {raw.dtype}; expected numbers")
    with np.errstate(over="ignore"):
        single = raw.astype(np.float32, copy=False)
    if raw.dtype.kind == "f" and raw.itemsize > single.itemsize:
        lost = np.isfinite(raw) & ~np.isfinite(single)
        if lost.any():
            raise DataError(f"{what} has the value {raw[lost][0]:g}, too large for float32")
    return np.asarray(single, np.float32)


def cut(action: Any) -> NDArray[np.float64]:
    """An action cut to [-1, 1]. Raises DataError for one that is not finite."""
    value = np.asarray(action, np.float64)
    if not np.isfinite(value).all():
        raise DataError(f"the action is {value.tolist()}; an environment needs finite numbers")
    return np.clip(value, -1.0, 1.0)
