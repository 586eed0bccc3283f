"""Segments of episodes: what happened before now, and what from now on.

A segment has up to `past` steps before now, then the step of now and those after it, `future` of
them at most, none beyond the episode's end. Missing steps are padding, in front and behind.
Rewards and returns are standardised by their own moments in the data, so that no scale of theirs
is a setting; nothing is copied but one number for each row.

Source: Dichotomy of Control (arXiv:2210.13435), which forms a latent of a segment's future.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from offrl.checks import check_intervals
from offrl.datasets.offline import OfflineDataset
from offrl.datasets.replay import STD_EPS, Replay, action_maps
from offrl.datasets.sequences import returns_to_go
from offrl.errors import DataError
from offrl.types import SegmentBatch

SMALLEST_STD = 1e-6  # of rewards and of returns, below which they count as constant


@dataclass(frozen=True, kw_only=True)
class Segments(Replay):
    """A view of segments; `index` holds the rows of now.

    `sample` gives segments, and `batch` the transitions of now, rewards standardised in both.
    """

    past: int  # steps before now, at most
    future: int  # steps from now on, at most
    to_go: Float[Tensor, " rows"]  # in the environment's units
    first: Int[Tensor, " episodes"]  # row of each episode's first step
    last: Int[Tensor, " episodes"]  # row of the last one whose next observation is known
    return_mean: float
    return_std: float

    def __post_init__(self) -> None:
        check_intervals(self, past="[0, inf)", future="[1, inf)")

    def to(self, where: torch.device | str | torch.dtype) -> "Segments":
        moved = super().to(where)
        assert isinstance(moved, Segments)
        moved = replace(moved, to_go=self.to_go.to(where))
        if isinstance(where, torch.dtype):
            return moved
        return replace(moved, first=self.first.to(where), last=self.last.to(where))

    def sample(
        self, row: Int[Tensor, "*lead batch"], drawn: Mapping[str, Tensor] | None = None
    ) -> SegmentBatch:
        """The segments whose now is at these rows."""
        episode = torch.searchsorted(self.first, row.contiguous(), right=True) - 1
        first, last = self.first[episode][..., None], self.last[episode][..., None]
        wanted = row[..., None] + torch.arange(-self.past, self.future, device=row.device)
        there = wanted.maximum(first).minimum(last)
        inside = there == wanted
        real = inside.to(self.rows.dtype)
        found = self.batch(there)
        return SegmentBatch(
            obs=found.obs * real[..., None],
            action=found.action * real[..., None],
            reward=found.reward * real,
            next_obs=found.next_obs * real[..., None],
            time=(there - first) * inside,
            real=real,
            to_go=(self.to_go[row] - self.return_mean) / self.return_std,
            index=row,
        )


def segments(
    dataset: OfflineDataset, *, past: int, future: int, normalize_obs: bool = False
) -> Segments:
    """The view of every step as now, with up to `past` steps before it and `future` from it on.

    `normalize_obs` standardises observations by the dataset's own moments. Raises ConfigError for
    a past below 0 or a future below 1, DataError where no step's next observation is known.
    """
    usable = dataset.transition_rows()
    if not len(usable):
        raise DataError(
            f"{dataset.name} has no transition to learn from: no step's next observation is known"
        )
    o = dataset.obs_dim
    mean, std = np.zeros(o), np.ones(o)
    if normalize_obs:
        mean, deviation = dataset.obs_moments()
        std = deviation + STD_EPS
    middle, half = action_maps(dataset)
    to_go = returns_to_go(dataset)
    reward = dataset.rows[usable, -3].astype(np.float64)
    spread = max(float(reward.std()), SMALLEST_STD)
    ends = dataset.starts + dataset.lengths - 1
    return Segments(
        rows=torch.from_numpy(dataset.rows),
        index=torch.from_numpy(usable),
        obs_mean=torch.tensor(mean, dtype=torch.float32),
        obs_std=torch.tensor(std, dtype=torch.float32),
        action_mid=torch.tensor(middle, dtype=torch.float32),
        action_half=torch.tensor(half, dtype=torch.float32),
        reward_scale=1.0 / spread,
        reward_shift=-float(reward.mean()) / spread,
        fingerprint=f"{dataset.fingerprint}/segments {past}/{future}/{normalize_obs}",
        next_obs=None if dataset.next_obs is None else torch.from_numpy(dataset.next_obs),
        past=past,
        future=future,
        to_go=torch.tensor(to_go, dtype=torch.float32),
        first=torch.from_numpy(dataset.starts),
        last=torch.from_numpy(ends - ~np.isin(ends, usable)),
        return_mean=float(to_go[usable].mean()),
        return_std=max(float(to_go[usable].std()), SMALLEST_STD),
    )
