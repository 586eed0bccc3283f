"""Batches and noise for each update, drawn in blocks, the same on every device.

What update t receives is a function of the seed and of t, so the feed has no state to save.
"""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from offrl.datasets.replay import Replay, Sampler
from offrl.streams import BLOCK, NoiseStream
from offrl.types import Batch, Noise


class Feed:
    """`at(step)` gives the batch and the noise of an update, for one learner or a stack."""

    def __init__(
        self,
        replay: Replay,
        seeds: Sequence[int],
        batch_size: int,
        noise_shapes: Mapping[str, tuple[int, ...]],
    ) -> None:
        self._replay = replay
        self._samplers = [Sampler(seed, len(replay), batch_size) for seed in seeds]
        self._noise = [NoiseStream(seed, dict(noise_shapes)) for seed in seeds]
        self._block = -1
        self._batches: list[Batch] = []
        self._noises: list[Noise] = []

    def at(self, step: int) -> tuple[Batch, Noise]:
        block, place = divmod(step, BLOCK)
        if block != self._block:
            self._draw(block)
        return self._batches[place], self._noises[place]

    def _draw(self, block: int) -> None:
        device, dtype = self._replay.rows.device, self._replay.rows.dtype
        places = _stack([s.block(block) for s in self._samplers]).to(device)
        batch = self._replay.batch(self._replay.index[places])
        columns = {f.name: getattr(batch, f.name).unbind(0) for f in fields(Batch)}
        self._batches = [Batch(**{k: v[i] for k, v in columns.items()}) for i in range(BLOCK)]

        drawn = [stream.block(block) for stream in self._noise]
        noise = {
            name: _stack([d[name] for d in drawn]).to(device, dtype).unbind(0) for name in drawn[0]
        }
        self._noises = [{k: v[i] for k, v in noise.items()} for i in range(BLOCK)]
        self._block = block


def _stack(arrays: list[NDArray[Any]]) -> Tensor:
    """(BLOCK, *seed, ...): learners along axis 1, or no such axis for a single one."""
    return torch.from_numpy(arrays[0] if len(arrays) == 1 else np.stack(arrays, axis=1))
