"""The exact nearest state-action pair of the data, for PRDC's constraint (arXiv:2306.06569, eq. 5).

    a_hat(s, a) = action of argmin_i | [beta s; a] - [beta s_i; a_i] |_2

A query of training has the state s_i of a data row, so its own action bounds the distance, and no
row whose state is further than that bound over beta can win. With a list of the states nearest to
s_i, complete to a radius r, the best pair of the list is *certified* where beta r exceeds its
distance. Lists are filled as rows are asked and kept on disk; what they cannot certify is searched
in full. What is filled therefore decides the speed and never the answer.
"""

import itertools
import weakref
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from offrl.errors import ConfigError, DataError
from offrl.nearest_search import (
    TRIAL,
    BlockedSearch,
    KeySearch,
    lowest_minimum,
    square_distance,
)
from offrl.nearest_table import SLACK, NeighbourTable, note_if_slow, rungs

PATIENCE = 4.0  # a list is grown where that costs less than this many full searches

_searches: "weakref.WeakValueDictionary[int, NearestAction]" = weakref.WeakValueDictionary()
_handles = itertools.count()


@torch.library.custom_op("offrl::nearest_action", mutates_args=())
def _nearest_action(
    obs: Tensor, action: Tensor, index: Tensor | None, handle: int
) -> tuple[Tensor, Tensor]:
    return _searches[handle]._search(obs, action, index)


@_nearest_action.register_fake
def _(obs: Tensor, action: Tensor, index: Tensor | None, handle: int) -> tuple[Tensor, Tensor]:
    return torch.empty_like(action), action.new_empty(action.shape[:-1])


class NearestAction:
    """The data action whose key [beta s; a] is nearest to [beta obs; action], exactly.

    `obs` are normalised as the queries will be, `rows` the numbers by which `index` refers to the
    entries (their positions if not given). Distances are decided in float64, ties go to the lowest
    row, and no gradient passes. A query that is not finite gets NaN. The call is one operator that
    a compiler sees from outside.

    On the CPU the lists hold at most `neighbours` states a row, 8 bytes each, and are kept in
    `cache_dir` if given. On other
    devices the search is `BlockedSearch`, which has no lists.

    Raises `ConfigError` for a negative or infinite beta and `neighbours` below one, `DataError`
    for data that are empty, not finite, or of unequal length.
    """

    def __init__(
        self,
        obs: Float[np.ndarray, "entry obs"] | Float[Tensor, "entry obs"],
        action: Float[np.ndarray, "entry act"] | Float[Tensor, "entry act"],
        beta: float,
        *,
        rows: Int[np.ndarray, " entry"] | Int[Tensor, " entry"] | None = None,
        neighbours: int = 32,
        cache_dir: Path | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        if not 0.0 <= beta < np.inf:
            raise ConfigError(f"beta is {beta}: give a finite weight of zero or more")
        if neighbours < 1:
            raise ConfigError(f"neighbours is {neighbours}: give at least one")
        states, actions, numbers = _checked(obs, action, rows)
        self.beta = beta
        self.device = torch.device(device)
        self._handle = next(_handles)
        _searches[self._handle] = self

        # A key that occurs again can only tie, and the lowest row has it already.
        with note_if_slow(f"sorting {len(states):,} state-action pairs"):
            parts = [states, actions] if beta > 0 else [actions]
            first, entry = _distinct(np.concatenate(parts, axis=1))
        self._entry = np.full(int(numbers.max()) + 1, -1, np.int64)
        self._entry[numbers] = entry
        self._states = beta > 0
        self._actions = actions[first]
        self._keys = self.keys(states[first], actions[first])

        self._counts = torch.zeros(2, dtype=torch.int64, device=self.device)
        self._table: NeighbourTable | None = None
        self._blocked: BlockedSearch | None = None
        if self.device.type != "cpu":
            self._move(self.device)
            return
        self._full = KeySearch(self._keys)
        if beta > 0:
            unscaled = states[first].astype(np.float64)
            self._table = NeighbourTable(unscaled, neighbours, cache_dir)

    def __call__(
        self,
        obs: Float[Tensor, "*seed batch obs"],
        action: Float[Tensor, "*seed batch act"],
        index: Int[Tensor, "*seed batch"] | None = None,
    ) -> Float[Tensor, "*seed batch act"]:
        return self.with_own(obs, action, index)[0]

    def with_own(
        self,
        obs: Float[Tensor, "*seed batch obs"],
        action: Float[Tensor, "*seed batch act"],
        index: Int[Tensor, "*seed batch"] | None = None,
    ) -> tuple[Float[Tensor, "*seed batch act"], Float[Tensor, "*seed batch"]]:
        """The nearest action, and 1 where no pair is nearer than the query's own row, else 0.

        `index` is the row whose state each query has; without it, or where the number is not among
        the rows (-1), a query is free: answered exactly too, by a full search. A wrong row costs
        time and changes nothing.
        """
        found: tuple[Tensor, Tensor] = _nearest_action(
            obs.detach(), action.detach(), index, self._handle
        )
        return found

    def fingerprint(self) -> str | None:
        """What a checkpoint keeps of the lists: the hash of their content; None without lists."""
        return None if self._table is None else self._table.fingerprint()

    def save(self) -> None:
        """Write the lists to the cache directory, if there are new ones and one was given."""
        if self._table is not None:
            self._table.save()

    def statistics(self) -> dict[str, float]:
        """Shares since the last call: queries certified by lists, and rows that have a list.

        With `BlockedSearch` the first is the share of proven answers. They depend on what lists
        were there before, so they describe the search and not the training.
        """
        certified, queries = self._counts.tolist()
        self._counts.zero_()
        filled = 0.0 if self._table is None else self._table.filled()
        return {"certified": certified / max(queries, 1), "filled": filled}

    def keys(
        self, obs: NDArray[np.floating], action: NDArray[np.floating]
    ) -> Float[np.ndarray, "some key"]:
        """[beta s; a] in float64; only a where beta is 0."""
        if not self._states:
            return np.ascontiguousarray(action, np.float64)
        return np.concatenate([self.beta * obs.astype(np.float64), action], 1, dtype=np.float64)

    def _move(self, device: torch.device) -> None:
        self._blocked = BlockedSearch(self._keys, device)
        self._device_actions = torch.from_numpy(self._actions).to(device)
        self._device_entry = torch.from_numpy(self._entry).to(device)

    def _search(self, obs: Tensor, action: Tensor, index: Tensor | None) -> tuple[Tensor, Tensor]:
        flat = action.reshape(-1, action.shape[-1])
        states = obs.reshape(-1, obs.shape[-1])
        row = None if index is None else index.reshape(-1)
        if self._blocked is not None:
            answer, own = self._search_blocked(self._blocked, states, flat, row)
        else:
            answer, own = self._search_lists(states, flat, row)
        self._counts[1] += len(flat)
        return answer.to(action).reshape(action.shape), own.to(action).reshape(action.shape[:-1])

    def _search_blocked(
        self, blocked: BlockedSearch, obs: Tensor, action: Tensor, row: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        parts = [self.beta * obs.double(), action.double()] if self._states else [action.double()]
        query = torch.cat(parts, 1)
        best, squared, proven = blocked.nearest(query)
        self._counts[0] += proven.sum()
        own = torch.zeros_like(squared)
        if row is not None:
            known = (row >= 0) & (row < len(self._device_entry))
            entry = self._device_entry[torch.where(known, row, 0)]
            distance = (query - blocked.keys[entry]).square().sum(-1)
            own = (known & (entry >= 0) & (distance <= squared)).to(squared)
        finite = query.isfinite().all(1)
        answer = torch.where(finite[:, None], self._device_actions[best], torch.nan)
        return answer, own

    def _search_lists(
        self, obs: Tensor, action: Tensor, row: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        query = self.keys(obs.numpy(), action.numpy())
        finite = np.isfinite(query).all(axis=1)
        query[~finite] = 0.0
        entry = np.full(len(query), -1, np.int64)
        if row is not None:
            number = row.numpy()
            known = (number >= 0) & (number < len(self._entry)) & finite
            entry[known] = self._entry[number[known]]

        best, squared, open_ = entry.copy(), np.full(len(query), np.inf), finite
        mine = np.flatnonzero(entry >= 0)
        squared[mine] = square_distance(query[mine], self._keys[entry[mine]])
        own_squared = squared.copy()
        if self._table is not None and len(mine):
            open_ = finite & ~self._certify(self._table, query, entry, best, squared)
        self._counts[0] += int(finite.sum() - open_.sum())
        rest = np.flatnonzero(open_)
        if len(rest):
            found, nearer = best[rest], squared[rest]
            self._full.nearest(query[rest], found, nearer)
            best[rest], squared[rest] = found, nearer
        own = (entry >= 0) & (own_squared <= squared)
        answer = self._actions[best]
        answer[~finite] = np.nan
        return torch.from_numpy(answer), torch.from_numpy(own)

    def _certify(
        self,
        table: NeighbourTable,
        query: NDArray[np.float64],
        entry: NDArray[np.int64],
        best: NDArray[np.int64],
        squared: NDArray[np.float64],
    ) -> NDArray[np.bool_]:
        """Improve `best` by the lists, grow those that pay, and say which answers are certain."""
        certain = np.zeros(len(query), np.bool_)
        some = np.flatnonzero(entry >= 0)
        for may_grow in (True, False):
            state = query[some, : -self._actions.shape[1]]
            home = self._keys[entry[some], : -self._actions.shape[1]]
            away = np.sqrt(square_distance(state, home))  # zero, if obs are those of the row
            reach = (np.sqrt(squared[some]) * (1.0 + SLACK) + away) / self.beta
            q, slot = np.nonzero(table.distance[entry[some]] <= reach[:, None])
            owner, other = some[q], table.index[entry[some][q], slot].astype(np.int64)
            lowest_minimum(
                owner, other, square_distance(query[owner], self._keys[other]), best, squared
            )
            reach = (np.sqrt(squared[some]) * (1.0 + SLACK) + away) / self.beta
            certain[some] = table.radius[entry[some]] > reach
            some, reach = some[~certain[some]], reach[~certain[some]]
            if not may_grow or not len(some):
                break
            pays = self._pays(table, reach, np.sqrt(squared[some])) & ~table.full[entry[some]]
            some, reach = some[pays], reach[pays]
            if not len(some):
                break
            distinct, inverse = np.unique(entry[some], return_inverse=True)
            wanted = np.zeros(len(distinct))
            np.maximum.at(wanted, inverse, reach)
            table.grow(distinct, wanted * (1.0 + 1e-6))
        return certain

    def _pays(
        self, table: NeighbourTable, reach: NDArray[np.float64], distance: NDArray[np.float64]
    ) -> NDArray[np.bool_]:
        """Whether growing a list to `reach` is worth it beside the full search that it saves.

        Of either kind that was never timed, a few are tried.
        """
        rung = rungs(reach)
        worth = np.zeros(len(rung), np.bool_)
        for r in np.unique(rung):
            same = np.flatnonzero(rung == r)
            grow = table.costs.get(int(r))
            full = self._full.cost(int(rungs(distance[same]).max()))
            if grow is None:
                same = same[:TRIAL]
            elif full is None or grow > PATIENCE * full:
                table.costs.refused(int(r))
                continue
            worth[same] = True
        return worth


def _checked(
    obs: np.ndarray | Tensor, action: np.ndarray | Tensor, rows: np.ndarray | Tensor | None
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int64]]:
    """Arrays of one length, finite, by ascending row."""
    arrays = []
    for name, value in (("obs", obs), ("action", action)):
        host = value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
        array = host.astype(np.float32) + np.float32(0.0)  # -0 becomes 0: one key, one spelling
        if array.ndim != 2 or not len(array):
            raise DataError(f"{name} has shape {array.shape}: give one row for each entry")
        if not np.isfinite(array).all():
            bad = int(np.flatnonzero(~np.isfinite(array).all(axis=1))[0])
            raise DataError(f"{name} is not finite at entry {bad}: leave such rows out")
        arrays.append(array)
    states, actions = arrays
    if rows is None:
        numbers = np.arange(len(states))
    else:
        host = rows.cpu().numpy() if isinstance(rows, Tensor) else np.asarray(rows)
        numbers = host.astype(np.int64)
    if not len(states) == len(actions) == len(numbers):
        raise DataError(
            f"{len(states)} obs, {len(actions)} actions and {len(numbers)} rows: "
            "give one of each for every entry"
        )
    if numbers.min() < 0:
        raise DataError(f"row {numbers.min()} is negative: rows count from zero")
    if (np.diff(numbers) < 0).any():
        order = np.argsort(numbers, kind="stable")
        states, actions, numbers = states[order], actions[order], numbers[order]
    return states, actions, numbers


def _distinct(
    array: Float[np.ndarray, "entry feature"],
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First occurrences of equal rows in ascending order, and for each row the place of its own."""
    bytes_ = np.ascontiguousarray(array).view(np.dtype((np.void, array.shape[1] * 4))).ravel()
    _, first, inverse = np.unique(bytes_, return_index=True, return_inverse=True)
    order = np.argsort(first)
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    return first[order], place[inverse]
