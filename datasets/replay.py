"""Transitions of a dataset as an agent sees them, gathered on the device.

    s = (obs - obs_mean) / obs_std
    a = (action - action_mid) / action_half
    r = reward_scale reward + reward_shift

The raw rows stay as they are; every map is applied to the gathered batch, so memory is that of
the dataset.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from offrl.datasets.offline import OfflineDataset
from offrl.datasets.rows import F64
from offrl.errors import DataError
from offrl.streams import BLOCK, Stream
from offrl.types import Batch, Sample

STD_EPS = 1e-3  # added to the deviation of each component (TD3+BC, section 5)
SMALLEST_STD = 1e-12  # of rewards, below which they count as constant
RETURN_RANGE = 1000.0  # best return minus worst return after scaling (IQL, appendix A)


@dataclass(frozen=True)
class Replay:
    """A view of transitions; `index` holds the rows at which one can begin."""

    rows: Float[Tensor, "rows width"]
    index: Int[Tensor, " transitions"]
    obs_mean: Float[Tensor, " obs"]
    obs_std: Float[Tensor, " obs"]
    action_mid: Float[Tensor, " act"]
    action_half: Float[Tensor, " act"]
    reward_scale: float
    reward_shift: float
    fingerprint: str  # of the dataset and of every map above
    next_obs: Float[Tensor, "rows obs"] | None = None  # where it is not that of the row after

    def __len__(self) -> int:
        return len(self.index)

    @property
    def nbytes(self) -> int:
        """Of all tensors, wherever they are."""
        return sum(x.nbytes for x in vars(self).values() if isinstance(x, Tensor))

    def to(self, where: torch.device | str | torch.dtype) -> "Replay":
        """On another device or in another float type."""
        names = ["rows", "obs_mean", "obs_std", "action_mid", "action_half"]
        names += [] if self.next_obs is None else ["next_obs"]
        moved = {n: getattr(self, n).to(where) for n in names}
        if not isinstance(where, torch.dtype):
            moved["index"] = self.index.to(where)
        return replace(self, **moved)

    def batch(self, row: Int[Tensor, "*lead batch"]) -> Batch:
        """The transitions that begin at these rows."""
        o, a = len(self.obs_mean), len(self.action_mid)
        now, then = self.rows[row], self.rows[row + 1]
        following = then[..., :o] if self.next_obs is None else self.next_obs[row]
        return Batch(
            obs=(now[..., :o] - self.obs_mean) / self.obs_std,
            action=(now[..., o : o + a] - self.action_mid) / self.action_half,
            reward=now[..., -3] * self.reward_scale + self.reward_shift,
            mask=1.0 - now[..., -2],
            next_obs=(following - self.obs_mean) / self.obs_std,
            next_action=(then[..., o : o + a] - self.action_mid) / self.action_half,
            index=row,
        )

    def draw(
        self, generator: np.random.Generator, shape: tuple[int, ...]
    ) -> dict[str, NDArray[Any]]:
        """What this view leaves to chance in samples of this shape, by name: nothing here."""
        return {}

    def sample(
        self, row: Int[Tensor, "*lead batch"], drawn: Mapping[str, Tensor] | None = None
    ) -> Sample:
        """What an update is given for these rows; `drawn` is from `draw`, on the device.

        Without it, as for held-out data, the sample is the same each time.
        """
        return self.batch(row)


def transitions(
    dataset: OfflineDataset,
    *,
    normalize_obs: bool = False,
    normalize_with_next: bool = False,
    reward_scale: float = 1.0,
    reward_shift: float = 0.0,
    reward_by_return_range: bool = False,
    standardize_reward: bool = False,
) -> Replay:
    """The view that most agents use: one-step transitions.

    `normalize_obs` standardises observations by the dataset's own moments: of the observations at
    which actions were taken, and `normalize_with_next` of those that followed too. With
    `reward_by_return_range` rewards are first multiplied by 1000 / (best - worst return) of the
    episodes, with `standardize_reward` they are brought to mean 0 and deviation 1; then
    `reward_scale` and `reward_shift` apply, in this order. Raises DataError where there is no
    transition.
    """
    if not len(dataset.transition_rows()):
        raise DataError(
            f"{dataset.name} has no transition to learn from: no step's next observation is known"
        )
    o = dataset.obs_dim
    mean, std = np.zeros(o), np.ones(o)
    if normalize_obs:
        mean, deviation = dataset.obs_moments(normalize_with_next)
        std = deviation + STD_EPS
    if reward_by_return_range:
        returns = dataset.returns()
        spread = float(returns.max() - returns.min())
        reward_scale *= RETURN_RANGE / spread if spread > 0 else 1.0
    if standardize_reward:
        reward = dataset.rows[dataset.transition_rows(), -3].astype(np.float64)
        reward_scale /= max(float(reward.std(ddof=1)), SMALLEST_STD)
        reward_shift -= reward_scale * float(reward.mean())
    middle, half = action_maps(dataset)
    return Replay(
        rows=torch.from_numpy(dataset.rows),
        index=torch.from_numpy(dataset.transition_rows()),
        obs_mean=torch.tensor(mean, dtype=torch.float32),
        obs_std=torch.tensor(std, dtype=torch.float32),
        action_mid=torch.tensor(middle, dtype=torch.float32),
        action_half=torch.tensor(half, dtype=torch.float32),
        reward_scale=reward_scale,
        reward_shift=reward_shift,
        fingerprint=f"{dataset.fingerprint}/{normalize_obs}/{reward_scale!r}/{reward_shift!r}"
        + ("/with next" if normalize_obs and normalize_with_next else ""),
        next_obs=None if dataset.next_obs is None else torch.from_numpy(dataset.next_obs),
    )


def action_maps(dataset: OfflineDataset) -> tuple[F64, F64]:
    """The middle of each action's bounds, and half the distance between them.

    Where the bounds are one number, the half is 1, so that the action is 0 and not 0 / 0. Raises
    DataError for bounds that are not finite, which no action can be mapped from.
    """
    low, high = (np.array(x) for x in (dataset.spec.action_low, dataset.spec.action_high))
    unbounded = np.flatnonzero(~np.isfinite(low) | ~np.isfinite(high))
    if len(unbounded):
        i = int(unbounded[0])
        raise DataError(
            f"{dataset.name}: component {i} of the actions has the bounds [{low[i]:g}, "
            f"{high[i]:g}], which cannot be mapped to [-1, 1]; state them with action_bounds "
            "(--action-bounds LOW HIGH)"
        )
    return (high + low) / 2, np.where(high > low, (high - low) / 2, 1.0)


class Sampler:
    """Uniform batches with replacement for one learner, by step."""

    def __init__(self, seed: int, size: int, batch_size: int) -> None:
        self._stream = Stream(seed, "batch")
        self._size, self._batch_size = size, batch_size

    def block(self, i: int) -> np.ndarray[tuple[int, int], np.dtype[np.int64]]:
        """Places in the view for steps i BLOCK .. (i + 1) BLOCK - 1: (BLOCK, batch)."""
        return self._stream.block(i).integers(self._size, size=(BLOCK, self._batch_size))
