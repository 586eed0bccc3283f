"""Random numbers that depend on a seed, a purpose and a position, and on nothing else.

A stream is a counter-based generator (numpy's Philox) keyed by its seed and its purpose. Numbers
are drawn in blocks; block i is a function of (seed, purpose, i), so a stream has no hidden state:
its position is two integers, the block and the place within it, and both follow from the step.
"""

import hashlib

import numpy as np
from numpy.typing import NDArray

BLOCK = 64  # steps whose batches and noise are drawn at once


class Stream:
    """Independent blocks of random numbers for one purpose of one learner."""

    def __init__(self, seed: int, purpose: str) -> None:
        self.seed, self.purpose = seed, purpose
        digest = hashlib.sha256(f"offrl/{purpose}/{seed}".encode()).digest()
        self._key = np.frombuffer(digest[:16], np.uint64)

    def block(self, i: int) -> np.random.Generator:
        """The generator of block i, always from its beginning."""
        counter = np.array([0, 0, 0, i], np.uint64)
        return np.random.Generator(np.random.Philox(key=self._key, counter=counter))


class NoiseStream:
    """Standard normal numbers for the updates of one learner, by step."""

    def __init__(self, seed: int, shapes: dict[str, tuple[int, ...]]) -> None:
        self.shapes = shapes
        self._streams = {name: Stream(seed, f"noise/{name}") for name in shapes}

    def block(self, i: int) -> dict[str, NDArray[np.float32]]:
        """For steps i BLOCK .. (i + 1) BLOCK - 1: arrays (BLOCK, *shape)."""
        return {
            name: self._streams[name].block(i).standard_normal((BLOCK, *shape), dtype=np.float32)
            for name, shape in self.shapes.items()
        }
