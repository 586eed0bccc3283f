"""Batches and noise for each update, drawn in blocks, the same on every device.

What update t receives is a function of the seed and of t, so the feed has no state to save. What
kind of batch it is, and what chance decides in it beside its rows, is the view's affair.
"""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from offrl.datasets.replay import Replay, Sampler
from offrl.devices import sent
from offrl.streams import BLOCK, NoiseStream, Stream
from offrl.types import Noise


class Feed:
    """`at(step)` gives the batch and the noise of an update, for one learner or a stack.

    The batch is of the type that the view makes: `Batch` for transitions. It is put together where
    the view's rows are, and lies on `device`, which is there too unless given.
    """

    def __init__(
        self,
        replay: Replay,
        seeds: Sequence[int],
        batch_size: int,
        noise_shapes: Mapping[str, tuple[int, ...]],
        device: torch.device | None = None,
    ) -> None:
        self._replay = replay
        self._device = replay.rows.device if device is None else device
        self._samplers = [Sampler(seed, len(replay), batch_size) for seed in seeds]
        self._chance = [Stream(seed, "view") for seed in seeds]
        self._batch_size = batch_size
        self._noise = [NoiseStream(seed, dict(noise_shapes)) for seed in seeds]
        self._block = -1
        self._batches: list[Any] = []
        self._noises: list[Noise] = []

    def at(self, step: int) -> tuple[Any, Noise]:
        block, place = divmod(step, BLOCK)
        if block != self._block:
            self._draw(block)
        return self._batches[place], self._noises[place]

    def _draw(self, block: int) -> None:
        home, dtype = self._replay.rows.device, self._replay.rows.dtype
        places = sent(_stack([s.block(block) for s in self._samplers]), home)
        shape = (BLOCK, self._batch_size)
        chances = [self._replay.draw(stream.block(block), shape) for stream in self._chance]
        drawn = {name: sent(_stack([c[name] for c in chances]), home) for name in chances[0]}
        batch = self._replay.sample(self._replay.index[places], drawn)
        columns = {f.name: sent(getattr(batch, f.name), self._device) for f in fields(batch)}
        kind = type(batch)
        apart = {name: column.unbind(0) for name, column in columns.items()}
        self._batches = [kind(**{k: v[i] for k, v in apart.items()}) for i in range(BLOCK)]

        normals = [stream.block(block) for stream in self._noise]
        noise = {
            name: sent(_stack([n[name] for n in normals]).to(dtype), self._device).unbind(0)
            for name in normals[0]
        }
        self._noises = [{k: v[i] for k, v in noise.items()} for i in range(BLOCK)]
        self._block = block


def _stack(arrays: list[NDArray[Any]]) -> Tensor:
    """(BLOCK, *seed, ...): learners along axis 1, or no such axis for a single one."""
    return torch.from_numpy(arrays[0] if len(arrays) == 1 else np.stack(arrays, axis=1))
