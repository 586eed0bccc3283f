"""Sequences of steps with returns to go, for policies that are conditioned on a return.

    to_go_t = (r_t + r_(t+1) + ... + r_T) / scale                       (undiscounted)

A sequence begins at any step of an episode, each as likely as the others: an episode is drawn in
proportion to its length and then one of its steps. It goes on for `length` steps or to the
episode's end; what is shorter is padded in front. Nothing is copied but one number for each row.

Source: Decision Transformer (arXiv:2106.01345), with the sampling of its authors' code.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from offrl.checks import check_intervals
from offrl.datasets.offline import OfflineDataset
from offrl.datasets.replay import Replay, action_maps
from offrl.datasets.rows import F64
from offrl.types import SequenceBatch

STD_EPS = 1e-6  # added to the deviation of each component (Decision Transformer's code)


@dataclass(frozen=True, kw_only=True)
class Sequences(Replay):
    """A view of sequences; `index` holds the rows that they begin at.

    `sample` gives sequences, and `batch` the single transitions that begin at the same rows.
    Returns to go are multiplied by `reward_scale`, as rewards are.
    """

    length: int  # steps, at most
    to_go: Float[Tensor, " rows"]  # in the environment's units
    first: Int[Tensor, " episodes"]  # row of each episode's first step
    last: Int[Tensor, " episodes"]  # row of its last step
    best_return: float  # of the episodes, in the environment's units

    def __post_init__(self) -> None:
        check_intervals(self, length="[1, inf)")

    def to(self, where: torch.device | str | torch.dtype) -> "Sequences":
        moved = super().to(where)
        assert isinstance(moved, Sequences)
        moved = replace(moved, to_go=self.to_go.to(where))
        if isinstance(where, torch.dtype):
            return moved
        return replace(moved, first=self.first.to(where), last=self.last.to(where))

    def sample(
        self, row: Int[Tensor, "*lead batch"], drawn: Mapping[str, Tensor] | None = None
    ) -> SequenceBatch:
        """The sequences that begin at these rows."""
        o, a = len(self.obs_mean), len(self.action_mid)
        episode = torch.searchsorted(self.first, row.contiguous(), right=True) - 1
        count = (self.last[episode] - row + 1).clamp(max=self.length)[..., None]
        place = torch.arange(self.length, device=row.device) - (self.length - count)
        there = row[..., None] + place.clamp(min=0)
        real = (place >= 0).to(self.rows.dtype)
        now = self.rows[there]
        obs = (now[..., :o] - self.obs_mean) / self.obs_std
        action = (now[..., o : o + a] - self.action_mid) / self.action_half
        return SequenceBatch(
            to_go=self.to_go[there] * self.reward_scale * real,
            obs=obs * real[..., None],
            action=action * real[..., None],
            time=(there - self.first[episode][..., None]) * (place >= 0),
            real=real,
            index=row,
        )


def sequences(
    dataset: OfflineDataset,
    *,
    length: int,
    return_scale: float | None = 1.0,
    normalize_obs: bool = False,
) -> Sequences:
    """The view of up to `length` consecutive steps, with their returns to go over `return_scale`.

    None divides by the largest absolute return of an episode, or by 1 where all are 0.
    `normalize_obs` standardises observations by the dataset's own moments. Raises ConfigError for
    a length below 1.
    """
    if return_scale is None:
        # To the digits of a saved policy, which is to divide by the same number.
        return_scale = float(np.float32(np.abs(dataset.returns()).max())) or 1.0
    o = dataset.obs_dim
    mean, std = np.zeros(o), np.ones(o)
    if normalize_obs:
        mean, deviation = dataset.obs_moments()
        std = deviation + STD_EPS
    middle, half = action_maps(dataset)
    return Sequences(
        rows=torch.from_numpy(dataset.rows),
        index=torch.from_numpy(dataset.step_rows),
        obs_mean=torch.tensor(mean, dtype=torch.float32),
        obs_std=torch.tensor(std, dtype=torch.float32),
        action_mid=torch.tensor(middle, dtype=torch.float32),
        action_half=torch.tensor(half, dtype=torch.float32),
        reward_scale=1.0 / return_scale,
        reward_shift=0.0,
        fingerprint=f"{dataset.fingerprint}/sequences {length}/{return_scale!r}/{normalize_obs}",
        next_obs=None if dataset.next_obs is None else torch.from_numpy(dataset.next_obs),
        length=length,
        to_go=torch.tensor(returns_to_go(dataset), dtype=torch.float32),
        first=torch.from_numpy(dataset.starts),
        last=torch.from_numpy(dataset.starts + dataset.lengths - 1),
        best_return=float(dataset.returns().max()),
    )


def returns_to_go(dataset: OfflineDataset) -> F64:
    """(rows,) the sum of rewards from each row to the end of its episode, in double precision."""
    total = np.cumsum(dataset.rows[:, -3], dtype=np.float64)
    last = dataset.starts + dataset.lengths  # the row of the final observation: reward 0
    end = np.repeat(total[last], dataset.lengths + 1)
    to_go: F64 = end - total + dataset.rows[:, -3]
    return to_go
