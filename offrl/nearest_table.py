"""Lists of each data row's nearest states, complete to a known radius and grown on demand.

A list is complete to its radius: every state that is not in it is at least that far away. That is
all that a search needs to certify an answer, so a list is never grown beyond the radius that was
asked of it (in 17 dimensions finding everything within 1.0 costs a tenth of finding the 8 nearest
states, which lie at 2.1), and never beyond `neighbours` entries.
"""

import hashlib
import os
import sys
import threading
import time
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from offrl.errors import DataError

FORMAT = 1
SLACK = 1e-9  # relative; a thousand times what rounding can do to a float64 distance
STALE_SECONDS = 3600.0  # a temporary file this old has no living writer


def rounded_down(x: NDArray[np.float64]) -> NDArray[np.float32]:
    """The nearest float32 below: a bound stays a bound in half the memory."""
    return np.nextafter(x.astype(np.float32), np.float32(0.0))


class Costs:
    """Processor seconds that one item lately took, by the rung of its radius.

    A cost falls at once and rises slowly, since an interrupted call looks dear and none looks too
    cheap; one that was found too dear fades, so that it is tried again some day.
    """

    def __init__(self) -> None:
        self._seconds: dict[int, float] = {}

    def get(self, rung: int) -> float | None:
        return self._seconds.get(rung)

    def seen(self, rung: int, seconds: float) -> None:
        old = self._seconds.get(rung, seconds)
        self._seconds[rung] = min(seconds, old + 0.3 * (seconds - old))

    def refused(self, rung: int) -> None:
        self._seconds[rung] *= 0.995


def rungs(radius: NDArray[np.float64]) -> NDArray[np.int64]:
    """Radii on a ladder of powers of the square root of two, each rounded up to its rung."""
    rung: NDArray[np.int64] = np.ceil(2.0 * np.log2(np.clip(radius, 1e-6, 1e6))).astype(np.int64)
    return rung


@contextmanager
def note_if_slow(what: str, seconds: float = 2.0) -> Iterator[None]:
    """Tell the user on stderr what is going on, but only once it has taken a while."""
    start = time.perf_counter()
    timer = threading.Timer(seconds, lambda: print(f"{what} ...", file=sys.stderr, flush=True))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        took = time.perf_counter() - start
        if took > seconds:
            print(f"{what}: {took:.0f} s", file=sys.stderr, flush=True)


class NeighbourTable:
    """For every state the list of its nearest other states, each list complete to its radius.

    `index` holds entry numbers in order of distance, `distance` lower bounds of their Euclidean
    distances (infinite where the list is shorter), `radius` a lower bound of the distance of
    every state outside the list, `full` whether the list may not grow any more. Distances are
    between states alone, so one table serves every beta.
    """

    def __init__(
        self, states: Float[np.ndarray, "entry obs"], neighbours: int, cache_dir: Path | None
    ) -> None:
        size = len(states)
        self.neighbours = neighbours
        self.index = np.zeros((size, neighbours), np.int32)
        self.distance = np.full((size, neighbours), np.inf, np.float32)
        self.radius = np.zeros(size, np.float32)
        self.full = np.zeros(size, np.bool_)
        self._states = states
        self._tree: cKDTree | None = None
        self._fingerprint = self._hash()
        self._new = 0
        self.costs = Costs()
        self.path = (
            None if cache_dir is None else cache_dir / f"nearest-{self._fingerprint[:24]}.npz"
        )
        if self.path is not None and self.path.exists():
            self._load(self.path)

    def fingerprint(self) -> str:
        """Sha256 of the states, the list length and the file format: equal tables, equal text."""
        return self._fingerprint

    def _hash(self) -> str:
        head = f"offrl nearest states {FORMAT} {self.neighbours} {self._states.shape}"
        digest = hashlib.sha256(head.encode())
        digest.update(np.ascontiguousarray(self._states).data)
        return digest.hexdigest()

    def grow(self, entry: Int[np.ndarray, " some"], radius: Float[np.ndarray, " some"]) -> None:
        """Complete the lists of distinct entries to at least `radius`, or until they are full.

        Radii are rounded up to powers of the square root of two, so that a policy that moves a
        little asks nothing new, and entries of one radius share a call.
        """
        if self._tree is None:
            with note_if_slow(f"indexing {len(self._states):,} states"):
                self._tree = cKDTree(self._states, balanced_tree=False)
        size = len(self._states)
        wanted = min(self.neighbours + 2, size + 1)  # itself, the list, and the first one outside
        asked = rungs(radius)
        for rung in np.unique(asked):
            chosen = entry[asked == rung]
            limit = 2.0 ** (float(rung) / 2.0)
            start = time.process_time()
            distance, found = self._tree.query(
                self._states[chosen],
                k=wanted,
                distance_upper_bound=limit,
                workers=torch.get_num_threads() if len(chosen) >= 64 else 1,
            )
            self._store(chosen, distance, found, limit)
            self.costs.seen(int(rung), (time.process_time() - start) / len(chosen))
        self._new += len(entry)
        if 4 * self._new > size:
            self.save()

    def _store(
        self,
        entry: Int[np.ndarray, " some"],
        distance: Float[np.ndarray, "some found"],
        found: Int[np.ndarray, "some found"],
        limit: float,
    ) -> None:
        # The entry itself stands anywhere among the states that coincide with it, or nowhere if
        # those overflow the list; sorting it to the end keeps the order of the others.
        itself = found == entry[:, None]
        distance = np.where(itself, np.inf, distance)
        order = np.argsort(distance, axis=1, kind="stable")
        distance = np.take_along_axis(distance, order, 1)
        found = np.take_along_axis(found, order, 1)
        k = min(self.neighbours, distance.shape[1])
        listed = np.isfinite(distance[:, :k])
        self.index[entry, :k] = np.where(listed, found[:, :k], 0)
        self.distance[entry, :k] = np.where(listed, rounded_down(distance[:, :k]), np.inf)
        outside = np.full(len(entry), np.inf)
        if distance.shape[1] > k:
            outside = distance[:, k]
        self.full[entry] = np.isfinite(outside)
        self.radius[entry] = rounded_down(np.minimum(outside, limit) * (1.0 - SLACK))

    def filled(self) -> float:
        """Share of rows whose list has been asked for."""
        return float(((self.radius > 0) | self.full).mean())

    def save(self) -> None:
        """Write what is new to the cache directory, atomically; a full disk costs only the cache.

        Two runs on the same data may write in turn: each file is whole, and the later one stays.
        """
        if self.path is None or self._new == 0:
            return
        partial = self.path.with_name(f"{self.path.name}.{os.getpid()}.part")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            for old in self.path.parent.glob(f"{self.path.name}.*.part"):
                if time.time() - old.stat().st_mtime > STALE_SECONDS:
                    old.unlink(missing_ok=True)
            with open(partial, "wb") as file:
                np.savez(
                    file,
                    fingerprint=np.array(self._fingerprint),
                    index=self.index,
                    distance=self.distance,
                    radius=self.radius,
                    full=self.full,
                )
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, self.path)
        except OSError as error:
            with suppress(OSError):
                partial.unlink()
            warnings.warn(f"nearest states are not cached: {error}", stacklevel=2)
        self._new = 0

    def _load(self, path: Path) -> None:
        try:
            with open(path, "rb") as opened, np.load(opened, allow_pickle=False) as file:
                if str(file["fingerprint"]) != self._fingerprint:
                    raise DataError(f"{path} belongs to other data")
                arrays = {name: file[name] for name in ("index", "distance", "radius", "full")}
            for name, array in arrays.items():
                own: NDArray[np.generic] = getattr(self, name)
                if array.shape != own.shape or array.dtype != own.dtype:
                    raise DataError(f"{path}: {name} is {array.dtype} {array.shape}")
            if arrays["index"].min() < 0 or arrays["index"].max() >= len(self._states):
                raise DataError(f"{path}: index out of range")
        except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile, DataError) as error:
            warnings.warn(f"nearest states are found anew: {error}", stacklevel=2)
            return
        for name, array in arrays.items():
            setattr(self, name, array)
