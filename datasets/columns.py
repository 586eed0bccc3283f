"""Any columns of an npz or HDF5 file, by the names that the user states."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from offrl.datasets.archives import opened
from offrl.datasets.flat import BLOCK_BYTES, Column, FlatColumns
from offrl.datasets.offline import OfflineDataset
from offrl.datasets.origin import Origin
from offrl.errors import DataError


@dataclass(frozen=True)
class Columns:
    """Names of the columns to read; a path such as `data/obs` in HDF5.

    Episodes are marked by flags (`terminals`, `timeouts`), by `episode_starts` (a flag at each
    first step), or by `lengths`, where the columns are padded: (episodes, longest, components).
    Where no `terminals` are named, every marked end counts as a truncation.
    """

    observations: str
    actions: str
    rewards: str
    terminals: str | None = None
    timeouts: str | None = None
    next_observations: str | None = None
    episode_starts: str | None = None
    lengths: str | None = None


def load_columns(path: Path, columns: Columns, origin: Origin) -> OfflineDataset:
    """The dataset of the named columns; not yet screened.

    Raises DataError for a damaged file, a name that it lacks, columns that do not fit, and
    where nothing marks the ends of episodes.
    """
    marks = (columns.terminals, columns.timeouts, columns.episode_starts, columns.lengths)
    if not any(marks) and columns.next_observations is None:
        raise DataError(
            f"{path}: nothing says where episodes end; name one of --terminals, --timeouts, "
            "--episode-starts, --lengths or --next-observations"
        )
    if columns.lengths is not None and columns.episode_starts is not None:
        raise DataError(f"{path}: padded columns (lengths) have no episode_starts; name one")
    with opened(path) as archive:
        ends = None
        found: dict[str, Any] = {
            role: archive.column(key)
            for role in (
                *("observations", "actions", "rewards"),
                *("terminals", "timeouts", "next_observations"),
            )
            if (key := getattr(columns, role)) is not None
        }
        if columns.lengths is not None:
            lengths = _lengths(archive.column(columns.lengths), found["observations"], path)
            found = {role: _unpadded(column, lengths, path) for role, column in found.items()}
            ends = np.zeros(int(lengths.sum()), np.bool_)
            ends[np.cumsum(lengths) - 1] = True
        elif columns.episode_starts is not None:
            ends = _ends(archive.column(columns.episode_starts), found["observations"], path)
        stated = {k: v for k, v in vars(columns).items() if v is not None}
        provenance = {**origin.provenance, "format": "columns", "columns": stated}
        if columns.terminals is None:
            provenance["ends"] = "no terminals are named: every end counts as a truncation"
        origin = replace(origin, provenance=provenance)
        return origin.read(FlatColumns(str(path), **found, ends=ends))


@dataclass(frozen=True)
class PaddedColumn:
    """A column (episodes, longest, ...) seen as (steps, ...): padding is passed over."""

    padded: Column
    lengths: NDArray[np.int64]

    @property
    def name(self) -> str:
        return self.padded.name

    @property
    def shape(self) -> tuple[int, ...]:
        return (int(self.lengths.sum()), *self.padded.shape[2:])

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.padded.dtype

    @property
    def granule(self) -> int:
        return 1

    def blocks(self, rows: int) -> Iterator[NDArray[Any]]:
        pending: list[NDArray[Any]] = []
        held, episode = 0, 0
        episodes = max(1, BLOCK_BYTES // (8 * max(1, int(np.prod(self.padded.shape[1:])))))
        for block in self.padded.blocks(episodes):
            for steps in block:
                pending.append(steps[: self.lengths[episode]])
                held += int(self.lengths[episode])
                episode += 1
            while held >= rows:
                whole = np.concatenate(pending)
                yield whole[:rows]
                pending, held = [whole[rows:]], held - rows
        if held:
            yield np.concatenate(pending)


def _unpadded(column: Column, lengths: NDArray[np.int64], path: Path) -> PaddedColumn:
    if len(column.shape) < 2 or column.shape[0] != len(lengths):
        raise DataError(
            f"{path}: column {column.name!r} has shape {column.shape}; padded columns are "
            f"(episodes, longest, ...), and there are {len(lengths)} lengths"
        )
    if column.shape[1] < int(lengths.max()):
        raise DataError(
            f"{path}: column {column.name!r} has room for {column.shape[1]} steps an episode, but "
            f"the longest has {int(lengths.max())}"
        )
    return PaddedColumn(column, lengths)


def _lengths(column: Column, observations: Column, path: Path) -> NDArray[np.int64]:
    lengths = _whole(column)
    if len(observations.shape) != 3:
        raise DataError(
            f"{path}: {observations.name!r} has shape {observations.shape}, but with lengths "
            "columns are padded: (episodes, longest, components)"
        )
    if lengths.ndim != 1 or lengths.dtype.kind not in "iu" or (lengths < 1).any():
        raise DataError(
            f"{path}: {column.name!r} must be whole numbers of at least 1, one an episode; it is "
            f"{lengths.dtype} of shape {lengths.shape}"
        )
    return lengths.astype(np.int64)


def _ends(column: Column, observations: Column, path: Path) -> NDArray[np.bool_]:
    starts: NDArray[np.bool_] = _whole(column).reshape(-1) != 0
    if len(starts) != observations.shape[0]:
        raise DataError(
            f"{path}: columns of unequal length: {column.name} {len(starts)}, "
            f"{observations.name} {observations.shape[0]}"
        )
    ends = np.ones_like(starts)
    ends[:-1] = starts[1:]
    return ends


def _whole(column: Column) -> NDArray[Any]:
    return np.concatenate(list(column.blocks(1 << 20)))
