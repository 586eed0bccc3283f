"""Flat columns (one row a step, episodes one after another) into the rows of a dataset.

Columns are read in blocks of about a megabyte, straight to their place, so that beside the
result only flags of a byte a step are held.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NoReturn, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from offrl.datasets.rows import F32, I64, allocate, contradicts, unmarked_ends
from offrl.errors import DataError

BLOCK_BYTES, BLOCK_ROWS = 1 << 20, 1 << 13
Bools = NDArray[np.bool_]


@runtime_checkable
class Column(Protocol):
    """A named array that can be read from its beginning, as often as needed, in blocks of rows."""

    @property
    def name(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> np.dtype[Any]: ...
    @property
    def granule(self) -> int:
        """Rows that are stored together: blocks of a multiple of it are read once."""
        ...

    def blocks(self, rows: int) -> Iterator[NDArray[Any]]: ...


@dataclass(frozen=True)
class ArrayColumn:
    """A column that is in memory already."""

    name: str
    array: NDArray[Any]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.array.dtype

    @property
    def granule(self) -> int:
        return 1

    def blocks(self, rows: int) -> Iterator[NDArray[Any]]:
        for begin in range(0, len(self.array), rows):
            yield self.array[begin : begin + rows]


@dataclass(frozen=True)
class FlatColumns:
    """The columns of one file. `ends` marks ends of episodes that need no flag of their own."""

    source: str  # file or object, for messages
    observations: Column
    actions: Column
    rewards: Column
    terminals: Column | None = None
    timeouts: Column | None = None
    next_observations: Column | None = None
    ends: Bools | None = None


@dataclass(frozen=True)
class Episodes:
    """What reading gives: the parts of an OfflineDataset, and what was noticed."""

    rows: F32
    starts: I64
    lengths: I64
    final_known: Bools
    problems: tuple[str, ...]


def read_flat(columns: FlatColumns, time_limit: int | None = None) -> Episodes:
    """Episodes of flat columns.

    An episode ends at a terminal or a time-out; in a file without time-outs after `time_limit`
    steps (None: unknown); where a stored next observation is not the observation of the next
    row (an end that the file does not mark, so that no false transition is learnt from); and at
    the last row. Raises DataError for columns of unequal length, of a wrong shape or type, and
    for values that are not finite.
    """
    _check_shapes(columns)
    problems: list[str] = []
    total = columns.observations.shape[0]
    terminal = _flags(columns, columns.terminals, total)
    timeout = _flags(columns, columns.timeouts, total)
    recorded = terminal | timeout
    if columns.ends is not None:
        recorded |= columns.ends
        timeout |= columns.ends & ~terminal
    if columns.timeouts is None and columns.ends is None:
        cut = _cut_at_limit(columns, recorded, time_limit, problems)
        timeout |= cut
        recorded |= cut
    ends = recorded
    if columns.next_observations is not None:
        ends = recorded | _contradictions(columns)
        unmarked = int((ends & ~recorded)[:-1].sum())
        if unmarked:
            problems += unmarked_ends(unmarked)
    if not ends[-1]:
        problems.append("the last episode has no end flag: it was cut where the file ends")
    ends[-1] = True
    lengths = np.diff(np.flatnonzero(ends), prepend=-1).astype(np.int64)
    rows, starts, known = _fill(columns, ends, lengths)
    _set_flags(rows, ends, terminal, timeout)
    return Episodes(rows, starts, lengths, known, tuple(problems))


def refuse(columns: FlatColumns, what: str) -> NoReturn:
    """Raise DataError about these columns."""
    raise DataError(f"{columns.source}: {what}")


def _check_shapes(columns: FlatColumns) -> None:
    named = {
        "observations": columns.observations,
        "actions": columns.actions,
        "rewards": columns.rewards,
        "terminals": columns.terminals,
        "timeouts": columns.timeouts,
        "next_observations": columns.next_observations,
    }
    present = {role: c for role, c in named.items() if c is not None}
    for role, column in present.items():
        if column.dtype.kind not in "fiub":
            refuse(columns, f"column {column.name!r} is of type {column.dtype}; expected numbers")
        wide = role in ("observations", "next_observations")
        narrow = role in ("rewards", "terminals", "timeouts")
        discrete = role == "actions" and column.dtype.kind in "iu" and len(column.shape) == 1
        fits = len(column.shape) == 2 and (not narrow or column.shape[1] == 1)
        if not (fits or discrete or (narrow and len(column.shape) == 1)):
            expected = "(steps,) or (steps, 1)" if narrow else "(steps, components)"
            hint = "; images are not supported" if wide and len(column.shape) > 3 else ""
            refuse(
                columns,
                f"column {column.name!r} has shape {column.shape}; expected {expected}{hint}",
            )
    sizes = {c.name: c.shape[0] for c in present.values()}
    if len(set(sizes.values())) != 1:
        listed = ", ".join(f"{name} {size}" for name, size in sizes.items())
        refuse(columns, f"columns of unequal length: {listed}; each must have one row a step")
    if columns.observations.shape[0] == 0:
        refuse(columns, "the columns are empty: there is no step to learn from")
    following = columns.next_observations
    if following is not None and following.shape != columns.observations.shape:
        refuse(
            columns,
            f"{following.name!r} has shape {following.shape} but {columns.observations.name!r} "
            f"{columns.observations.shape}",
        )


def _block_rows(column: Column) -> int:
    """Rows in a block of at most about a megabyte, in whole granules."""
    row_bytes = column.dtype.itemsize * int(np.prod(column.shape[1:], dtype=np.int64))
    rows = min(BLOCK_ROWS, BLOCK_BYTES // max(1, row_bytes))
    return max(1, rows // column.granule) * column.granule


def _flags(columns: FlatColumns, column: Column | None, total: int) -> Bools:
    flags = np.zeros(total, np.bool_)
    if column is None:
        return flags
    begin = 0
    for block in column.blocks(_block_rows(column)):
        _require_finite(columns, column, block, begin)
        values = block.reshape(-1)
        other = np.flatnonzero((values != 0) & (values != 1))
        if len(other):
            refuse(
                columns,
                f"column {column.name!r} has {values[other[0]]} in row {begin + int(other[0])}; "
                "flags are 0 or 1",
            )
        flags[begin : begin + len(block)] = values != 0
        begin += len(block)
    return flags


def _cut_at_limit(
    columns: FlatColumns, recorded: Bools, time_limit: int | None, problems: list[str]
) -> Bools:
    """Ends that a time limit makes where the file has no column for them."""
    cut = np.zeros_like(recorded)
    if time_limit is None:
        if columns.next_observations is None:
            problems.append(
                "there is no column 'timeouts' and no known time limit: ends without a terminal "
                "cannot be seen; give the limit as time_limit (--time-limit)"
            )
        return cut
    begin = 0
    for end in [*np.flatnonzero(recorded).tolist(), len(recorded) - 1]:
        cut[begin + time_limit - 1 : end + 1 : time_limit] = True
        begin = end + 1
    cut &= ~recorded
    if cut.any():
        problems.append(
            f"there is no column 'timeouts': {int(cut.sum())} episodes were cut after the time "
            f"limit of {time_limit} steps"
        )
    return cut


def _contradictions(columns: FlatColumns) -> Bools:
    """True at rows whose stored next observation is not the observation of the next row."""
    assert columns.next_observations is not None
    size = _block_rows(columns.observations)
    found = np.zeros(columns.observations.shape[0], np.bool_)
    begin = 0
    last: NDArray[Any] | None = None
    pairs = zip(
        columns.observations.blocks(size), columns.next_observations.blocks(size), strict=True
    )
    for obs, following in pairs:
        if last is not None:
            found[begin - 1] = contradicts(last, obs[:1])[0]
        found[begin : begin + len(obs) - 1] = contradicts(following[:-1], obs[1:])
        last = following[-1:].copy()
        begin += len(obs)
    return found


def _fill(columns: FlatColumns, ends: Bools, lengths: I64) -> tuple[F32, I64, Bools]:
    obs_dim = columns.observations.shape[1]
    act_dim = 1 if len(columns.actions.shape) == 1 else columns.actions.shape[1]
    rows, starts = allocate(lengths, obs_dim, act_dim)
    actions = slice(obs_dim, obs_dim + act_dim)
    for place, column in (
        (slice(0, obs_dim), columns.observations),
        (actions, columns.actions),
        (slice(actions.stop, actions.stop + 1), columns.rewards),
    ):
        for block, at in _placed(columns, column, ends):
            rows[at, place] = block.reshape(len(block), -1)
    known = np.full(len(lengths), columns.next_observations is not None)
    if columns.next_observations is not None:
        episode = 0
        begin = 0
        for block in columns.next_observations.blocks(_block_rows(columns.next_observations)):
            finals = block[ends[begin : begin + len(block)]]
            last = (
                starts[episode : episode + len(finals)] + lengths[episode : episode + len(finals)]
            )
            rows[last, :obs_dim] = finals
            episode, begin = episode + len(finals), begin + len(block)
    return rows, starts, known


def _placed(
    columns: FlatColumns, column: Column, ends: Bools
) -> Iterator[tuple[NDArray[Any], I64]]:
    """Blocks of a column, checked, each with the rows that it goes to."""
    begin, episode = 0, 0
    for block in column.blocks(_block_rows(column)):
        _require_finite(columns, column, block, begin)
        passed = np.cumsum(ends[begin : begin + len(block)])
        at = np.arange(begin, begin + len(block), dtype=np.int64) + episode
        at[1:] += passed[:-1]
        yield block, at
        begin, episode = begin + len(block), episode + int(passed[-1])


def _set_flags(rows: F32, ends: Bools, terminal: Bools, timeout: Bools) -> None:
    marked = np.flatnonzero(terminal | timeout)
    at = marked + np.searchsorted(np.flatnonzero(ends), marked)
    rows[at, -2], rows[at, -1] = terminal[marked], timeout[marked]


def _require_finite(columns: FlatColumns, column: Column, block: NDArray[Any], begin: int) -> None:
    if block.dtype.kind != "f" or np.isfinite(block).all():
        return
    row = begin + int(np.argwhere(~np.isfinite(block))[0][0])
    count = sum(int((~np.isfinite(b)).sum()) for b in column.blocks(_block_rows(column)))
    refuse(
        columns,
        f"column {column.name!r} has {count} values that are not finite (NaN or infinite), the "
        f"first at row {row}; repair or remove these steps",
    )
