"""Exact nearest keys by tree, by blocked products, and by blocks of static shape.

Every method ends in `square_distance`, float64 and the same bits for the same pair of keys
whatever else stands in the call, and takes the lowest entry among equals. So the methods agree to
the bit, and which of them answers may depend on speed alone.
"""

import time
from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from torch import Tensor

from offrl.nearest_table import SLACK, Costs, note_if_slow, rungs

BLOCK = 8192  # keys in a product: with 256 queries the scores stay in the second-level cache
CHUNK = 256  # queries in a product
TRIAL = 16  # items that try what was never timed
STATIC_BLOCK = 65536
KEPT = 32  # candidates that a search of static shapes re-ranks in float64

Keys = Float[np.ndarray, "entry key"]
Queries = Float[np.ndarray, "query key"]
Entries = Int[np.ndarray, " query"]


def square_distance(
    a: Float[np.ndarray, "pair key"], b: Float[np.ndarray, "pair key"]
) -> Float[np.ndarray, " pair"]:
    """|a - b|^2 in float64, the same bits for a pair however many stand beside it."""
    difference = a - b
    difference *= difference
    squared: NDArray[np.float64] = difference.sum(axis=1)
    return squared


def lowest_minimum(
    query: Int[np.ndarray, " pair"],
    entry: Int[np.ndarray, " pair"],
    squared: Float[np.ndarray, " pair"],
    best: Entries,
    best_squared: Float[np.ndarray, " query"],
) -> None:
    """Fold candidate pairs, grouped by ascending query, into the best so far, in place."""
    if not len(query):
        return
    starts = np.flatnonzero(np.r_[True, query[1:] != query[:-1]])
    owner = query[starts]
    smallest = np.minimum(np.minimum.reduceat(squared, starts), best_squared[owner])
    lengths = np.diff(np.r_[starts, len(query)])
    none = np.iinfo(np.int64).max
    attaining = np.where(squared == np.repeat(smallest, lengths), entry, none)
    lowest = np.minimum.reduceat(attaining, starts)
    kept = np.where((best_squared[owner] == smallest) & (best[owner] >= 0), best[owner], none)
    best[owner] = np.minimum(lowest, kept)
    best_squared[owner] = smallest


class KeySearch:
    """Nearest keys on the CPU: a k-d tree, or products where the tree prunes too little.

    A tree needs 10 microseconds a query near the data and milliseconds far from it; products
    always need one pass over the keys. Each is timed as it is used, by the size of the bound, and
    the next queries of that size go to the faster one.
    """

    def __init__(self, keys: Keys) -> None:
        self.keys = keys
        with note_if_slow(f"indexing {len(keys):,} state-action pairs"):
            self._tree = cKDTree(keys, balanced_tree=False)
            self._products = Products(keys)
        self._tree_costs = Costs()
        self._product_cost = 1e-9 * len(keys)  # a core's best, until it is measured

    def cost(self, rung: int) -> float | None:
        """Seconds that a query with this rung of bound has lately taken; None if never tried."""
        tree = self._tree_costs.get(rung)
        return None if tree is None else min(tree, self._product_cost)

    def nearest(self, query: Queries, best: Entries, squared: Float[np.ndarray, " query"]) -> None:
        """Improve `best` and its `squared` distance, a bound where `best` >= 0, to the minimum."""
        asked = rungs(np.sqrt(squared))
        by_products: list[NDArray[np.int64]] = []
        for rung in np.unique(asked).tolist():
            same = np.flatnonzero(asked == rung)
            while len(same):
                cost = self._tree_costs.get(rung)
                if cost is not None and cost > self._product_cost:
                    self._tree_costs.refused(rung)
                    by_products.append(same)
                    break
                take = TRIAL if cost is None else CHUNK
                each = self._timed(self.by_tree, same[:take], query, best, squared)
                self._tree_costs.seen(rung, each)
                same = same[take:]
        rest = np.concatenate([*by_products, np.zeros(0, np.int64)])
        for at in range(0, len(rest), CHUNK):
            each = self._timed(self.by_products, rest[at : at + CHUNK], query, best, squared)
            self._product_cost += 0.1 * (each - self._product_cost)

    @staticmethod
    def _timed(
        method: Callable[[Queries, Entries, NDArray[np.float64]], None],
        part: NDArray[np.int64],
        query: Queries,
        best: Entries,
        squared: NDArray[np.float64],
    ) -> float:
        found, nearer = best[part], squared[part]
        start = time.process_time()
        method(query[part], found, nearer)
        each = (time.process_time() - start) / len(part)
        best[part], squared[part] = found, nearer
        return each

    def by_tree(self, query: Queries, best: Entries, squared: Float[np.ndarray, " query"]) -> None:
        """Nearest by tree, then everything at that distance, so that ties are seen."""
        bound = float(np.sqrt(squared.max())) * (1.0 + SLACK) + 1e-300
        workers = torch.get_num_threads() if len(query) >= 64 else 1
        distance, _ = self._tree.query(query, distance_upper_bound=bound, workers=workers)
        radius = np.minimum(distance, np.sqrt(squared)) * (1.0 + SLACK)
        balls = self._tree.query_ball_point(query, radius, workers=workers, return_sorted=False)
        lengths = np.fromiter(map(len, balls), np.int64, len(balls))
        entry = np.fromiter((e for ball in balls for e in ball), np.int64, int(lengths.sum()))
        owner = np.repeat(np.arange(len(query)), lengths)
        lowest_minimum(owner, entry, square_distance(query[owner], self.keys[entry]), best, squared)

    def by_products(
        self, query: Queries, best: Entries, squared: Float[np.ndarray, " query"]
    ) -> None:
        """Every key by float32 products, those within the rounding error again in float64.

        |q - k|^2 = |q|^2 + s with s = |k|^2 - 2 q.k. A float32 sum of these n + 1 terms, in any
        order and from rounded factors, errs by less than c (|q|^2 + |k|^2), c = (n + 4) 2^-23.
        With |k|^2 (1 - c) for |k|^2 it is at most s + c |q|^2, so what exceeds the exact s of any
        key by more than c |q|^2 is out. Products are numpy's, which no reduced-precision setting or
        autocast reaches.
        """
        owner, entry = self._products.candidates(query, squared)
        lowest_minimum(owner, entry, square_distance(query[owner], self.keys[entry]), best, squared)


class Products:
    """Float32 scores of all keys for some queries, and which keys they leave possible."""

    def __init__(self, keys: Keys) -> None:
        self.keys = keys
        self.centre = keys.mean(axis=0)
        centred = keys - self.centre
        length = (centred**2).sum(axis=1)
        self.error = (keys.shape[1] + 4) * 2.0**-23
        self.factors = np.empty((len(keys), keys.shape[1] + 1), np.float32)
        self.factors[:, :-1] = centred
        self.factors[:, -1] = length * (1.0 - self.error)

    def scores(self, factors: Float[np.ndarray, "query term"], block: int) -> NDArray[np.float32]:
        at = block * BLOCK
        product: NDArray[np.float32] = factors @ self.factors[at : at + BLOCK].T
        return product

    def candidates(
        self, query: Queries, squared: Float[np.ndarray, " query"]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Pairs of query and key that may be nearest, by ascending query."""
        moved = query - self.centre
        length = (moved**2).sum(axis=1)
        factors = np.ones((len(query), query.shape[1] + 1), np.float32)
        factors[:, :-1] = -2.0 * moved
        lows = np.empty((-(-len(self.factors) // BLOCK), len(query)))
        lowest = np.empty(lows.shape, np.int64)
        for block in range(len(lows)):
            scores = self.scores(factors, block)
            at = scores.argmin(axis=1)
            lows[block] = scores[np.arange(len(query)), at]
            lowest[block] = at + block * BLOCK
        likely = lowest[lows.argmin(axis=0), np.arange(len(query))]
        high = np.minimum(squared, square_distance(query, self.keys[likely])) - length
        high += self.error * length + SLACK * (1.0 + length)
        owners, entries = [], []
        for block in np.flatnonzero((lows <= high).any(axis=1)).tolist():
            some = np.flatnonzero(lows[block] <= high)
            q, e = np.nonzero(self.scores(factors[some], block) <= high[some, None])
            owners.append(some[q])
            entries.append(e + block * BLOCK)
        owner, entry = np.concatenate(owners), np.concatenate(entries)
        order = np.argsort(owner, kind="stable")
        return owner[order], entry[order]


class BlockedSearch:
    """Nearest keys by static shapes alone, for devices where a search must not wait for the host.

    Distances in float32 by differences, a block of keys at a time; the best `KEPT` are ranked
    again in float64. The answer is proven where the last kept one is further than the nearest by
    more than the rounding error. It fails only where more than `KEPT` keys lie within about 1e-6
    of the nearest; then one of those is returned, and counted as unproven.
    """

    def __init__(self, keys: Keys, device: torch.device, block: int = STATIC_BLOCK) -> None:
        self.keys = torch.from_numpy(keys).to(device)
        self.rounded = self.keys.to(torch.float32)
        self.block = block
        # Rounding the keys moves each by 2^-24 of its length, and the distance of n differences
        # errs by (n + 3) 2^-24 of itself.
        self.moved = 2.0**-23 * self.keys.norm(dim=1).amax()
        self.error = (keys.shape[1] + 3) * 2.0**-23

    def nearest(
        self, query: Float[Tensor, "query key"]
    ) -> tuple[Int[Tensor, " query"], Float[Tensor, " query"], Bool[Tensor, " query"]]:
        """The nearest entry, its squared distance, and whether that is proven."""
        size = len(self.keys)
        kept = min(KEPT, size)
        rounded = query.to(torch.float32)
        value = rounded.new_full((len(query), kept), torch.inf)
        entry = torch.zeros((len(query), kept), dtype=torch.int64, device=query.device)
        for at in range(0, size, self.block):
            distance = torch.cdist(
                rounded,
                self.rounded[at : at + self.block],
                compute_mode="donot_use_mm_for_euclid_dist",
            )
            near, found = distance.topk(min(kept, distance.shape[1]), largest=False)
            both = torch.cat([value, near], 1)
            value, chosen = both.topk(kept, largest=False)
            entry = torch.cat([entry, found + at], 1).gather(1, chosen)
        squared = (query[:, None] - self.keys[entry]).square().sum(-1)
        least = squared.amin(1)
        lowest = torch.where(squared == least[:, None], entry, size - 1).amin(1)
        moved = self.moved + 2.0**-23 * query.norm(dim=1)
        bound = (least.sqrt() + moved) * (1.0 + self.error)
        proven = value.amax(1).to(bound) * (1.0 - self.error) > bound + moved
        return lowest, least, proven | (kept == size)
