"""Pairs of segments of episodes, with what each is worth, for learning from preferences.

    score = (sum of the segment's rewards - mean) / deviation        (undiscounted)

A segment has `length` steps of one episode; an episode that is shorter is one segment, padded
behind, so that no segment is cut by the end of a recording alone. Mean and deviation are those of
all segments. The first of a pair is drawn from all segments, the second likewise and apart from
it. With probability `flip` the two scores change places, and so does the preference that follows
from them: a wrong label. Every pair is drawn anew, from the stream of its learner and update, and
its label with it; nothing is copied but one number for each row.

Source: the labels of preference-based learning (arXiv:1706.03741) from a teacher who knows the
rewards and errs with a constant rate (B-Pref, arXiv:2111.03026).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from offrl.checks import check_intervals
from offrl.datasets.offline import OfflineDataset
from offrl.datasets.replay import STD_EPS, Replay, action_maps
from offrl.errors import DataError
from offrl.types import SegmentPairBatch

SMALLEST_STD = 1e-6  # of the segments' returns, below which they count as equal


@dataclass(frozen=True, kw_only=True)
class SegmentPairs(Replay):
    """A view of pairs of segments; `index` holds the rows at which a segment begins."""

    length: int  # steps of a segment
    flip: float  # share of the pairs whose label is wrong
    score: Float[Tensor, " rows"]  # of the segment that begins there
    last: Int[Tensor, " rows"]  # row of the last step of each row's episode

    def __post_init__(self) -> None:
        check_intervals(self, length="[1, inf)", flip="[0, 0.5]")

    def to(self, where: torch.device | str | torch.dtype) -> "SegmentPairs":
        moved = super().to(where)
        assert isinstance(moved, SegmentPairs)
        moved = replace(moved, score=self.score.to(where))
        return moved if isinstance(where, torch.dtype) else replace(moved, last=self.last.to(where))

    def draw(
        self, generator: np.random.Generator, shape: tuple[int, ...]
    ) -> dict[str, NDArray[Any]]:
        """The place of the second segment, and whether the label is wrong."""
        second = generator.integers(len(self), size=shape)
        return {"second": second, "wrong": generator.random(shape) < self.flip}

    def sample(
        self, row: Int[Tensor, "*lead batch"], drawn: Mapping[str, Tensor] | None = None
    ) -> SegmentPairBatch:
        """The pairs whose first segments begin at these rows.

        Held-out pairs are rightly labelled, the second segment half of all segments further on.
        """
        if drawn is None:
            place = torch.searchsorted(self.index, row.contiguous())
            second = (place + len(self) // 2) % len(self)
            drawn = {"second": second, "wrong": torch.zeros_like(second, dtype=torch.bool)}
        pair = torch.stack([row, self.index[drawn["second"]]], -1)
        wanted = pair[..., None] + torch.arange(self.length, device=row.device)
        last = self.last[pair][..., None]
        real = (wanted <= last).to(self.rows.dtype)
        found = self.rows[wanted.minimum(last)]
        o, a = len(self.obs_mean), len(self.action_mid)
        score = self.score[pair]
        return SegmentPairBatch(
            obs=(found[..., :o] - self.obs_mean) / self.obs_std * real[..., None],
            action=(found[..., o : o + a] - self.action_mid) / self.action_half * real[..., None],
            real=real,
            score=torch.where(drawn["wrong"][..., None], score.flip(-1), score),
            index=row,
        )


def segment_pairs(
    dataset: OfflineDataset, *, length: int, flip: float = 0.0, normalize_obs: bool = False
) -> SegmentPairs:
    """The view of pairs of segments of `length` steps, a share `flip` of them wrongly labelled.

    `normalize_obs` standardises observations by the dataset's own moments. Raises ConfigError for
    a length below 1 or a flip outside [0, 0.5], DataError where there is one segment alone.
    """
    steps = max(length, 1)  # below 1 the view itself refuses the length, by its name
    starts, lengths = dataset.starts, dataset.lengths
    choices = np.maximum(lengths - steps, 0) + 1
    first = np.repeat(starts, choices)
    index = first + np.arange(len(first)) - np.repeat(np.cumsum(choices) - choices, choices)
    if len(index) < 2:
        raise DataError(
            f"{dataset.name} has one segment of {length} steps, but a preference needs two: "
            "take shorter segments or more data"
        )
    last = np.repeat(starts + lengths - 1, lengths + 1)
    before = np.concatenate([[0.0], np.cumsum(dataset.rows[:, -3], dtype=np.float64)])
    returns = np.zeros(len(dataset.rows))
    returns[index] = before[np.minimum(index + steps - 1, last[index]) + 1] - before[index]
    spread = max(float(returns[index].std()), SMALLEST_STD)
    o = dataset.obs_dim
    mean, std = np.zeros(o), np.ones(o)
    if normalize_obs:
        mean, deviation = dataset.obs_moments()
        std = deviation + STD_EPS
    middle, half = action_maps(dataset)
    return SegmentPairs(
        rows=torch.from_numpy(dataset.rows),
        index=torch.from_numpy(index),
        obs_mean=torch.tensor(mean, dtype=torch.float32),
        obs_std=torch.tensor(std, dtype=torch.float32),
        action_mid=torch.tensor(middle, dtype=torch.float32),
        action_half=torch.tensor(half, dtype=torch.float32),
        reward_scale=1.0,
        reward_shift=0.0,
        fingerprint=f"{dataset.fingerprint}/pairs {length}/{flip!r}/{normalize_obs}",
        next_obs=None if dataset.next_obs is None else torch.from_numpy(dataset.next_obs),
        length=length,
        flip=flip,
        score=torch.tensor((returns - returns[index].mean()) / spread, dtype=torch.float32),
        last=torch.from_numpy(last),
    )
