"""D4RL's layout: flat columns `observations`, `actions`, `rewards`, `terminals` and more.

Files may lack `timeouts` (then the environment's time limit ends episodes) and
`next_observations`; columns may be (steps, 1) and flags may be floats. The `d4rl` package is not
needed; who has it can pass the dictionary of `env.get_dataset()`.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from offrl.datasets.archives import Archive, opened
from offrl.datasets.flat import ArrayColumn, FlatColumns
from offrl.datasets.offline import OfflineDataset
from offrl.datasets.origin import Origin
from offrl.errors import DataError, near

REQUIRED = ("observations", "actions", "rewards", "terminals")
OPTIONAL = ("timeouts", "next_observations")


def load_d4rl_file(path: Path, origin: Origin) -> OfflineDataset:
    """The dataset of a file in D4RL's layout, HDF5 or npz; not yet screened.

    Raises DataError for a damaged file, a missing or unfit column, and values not finite.
    """
    with opened(path) as archive:
        present = (*REQUIRED, *(key for key in OPTIONAL if key in archive.names))
        columns: dict[str, Any] = {key: archive.column(key) for key in present}
        infos = [name.removeprefix("infos/") for name in archive.names if name.startswith("infos/")]
        origin = replace(
            origin,
            infos=tuple(infos),
            provenance={**origin.provenance, "format": "d4rl", **_policy_record(archive)},
        )
        return origin.read(FlatColumns(str(path), **columns))


def load_d4rl_mapping(arrays: Mapping[str, Any], origin: Origin) -> OfflineDataset:
    """The dataset of D4RL's dictionary of arrays (`env.get_dataset()`); not yet screened."""
    for key in REQUIRED:
        if key not in arrays:
            raise DataError(
                f"{origin.name}: the dictionary has no {key!r}{near(key, arrays)} (it has: "
                f"{', '.join(map(str, arrays))})"
            )
    columns: dict[str, Any] = {
        k: ArrayColumn(k, np.asarray(arrays[k])) for k in (*REQUIRED, *OPTIONAL) if k in arrays
    }
    infos = tuple(k.removeprefix("infos/") for k in arrays if k.startswith("infos/"))
    origin = replace(
        origin, infos=infos, provenance={**origin.provenance, "format": "d4rl dictionary"}
    )
    return origin.read(FlatColumns(origin.name, **columns))


def _policy_record(archive: Archive) -> dict[str, Any]:
    """What the file says about the policy that made it."""
    record: dict[str, Any] = {}
    for key in ("algorithm", "iteration"):
        value = archive.scalar(f"metadata/{key}")
        if value is not None:
            record[f"policy_{key}"] = value
    return record
