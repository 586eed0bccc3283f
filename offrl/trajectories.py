"""Pieces of episodes as tensors: what a model of whole trajectories learns from and makes.

    x_t = [o_t, artanh(a_t), r_t, d_t],  standardised channel by channel,  t = 0 .. n

with a in [-1, 1], kept in [-0.999, 0.999], and d = 1 where step t terminated. A piece of n + 1 rows
holds n transitions: its last row gives the observation that followed, and no more. Pieces begin
every `stride` rows, and one ends with each episode, so that how episodes end is seen; none crosses
an end. What never varies in the data does not vary in what is made of them: where no step
terminated, none does. Source: policy-guided diffusion (arXiv:2404.06356), whose pieces end with a
step and not with the observation after it, which leaves terminations out of what is made of them.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from offrl.datasets.offline import OfflineDataset
from offrl.datasets.replay import action_maps
from offrl.errors import DataError

INSIDE = 0.999  # actions are kept this far in, where artanh is finite

ROUNDING = 1e-6  # the deviation of what never varies, relative to its mean, is below this


@dataclass(frozen=True)
class Trajectories:
    """The pieces of a dataset, standardised, and the way back."""

    x: Float[Tensor, "pieces time channels"]
    mean: Float[Tensor, " channels"]
    std: Float[Tensor, " channels"]  # 0 of what never varies
    obs_dim: int
    act_dim: int

    @property
    def actions(self) -> slice:
        return slice(self.obs_dim, self.obs_dim + self.act_dim)

    def raw(self, x: Float[Tensor, "batch time channels"]) -> Float[Tensor, "batch time channels"]:
        """In the data's units, actions in [-1, 1]."""
        y = x * self.std.to(x) + self.mean.to(x)
        o, a = self.obs_dim, self.act_dim
        return torch.cat([y[..., :o], torch.tanh(y[..., o : o + a]), y[..., o + a :]], -1)


def begins(dataset: OfflineDataset, length: int, stride: int) -> Int[np.ndarray, " pieces"]:
    """First rows of all pieces of `length` rows."""
    firsts = []
    rows = dataset.lengths + dataset.final_known
    for start, count in zip(dataset.starts, rows, strict=True):
        last = count - length
        if last >= 0:
            firsts.append(start + np.union1d(np.arange(0, last + 1, stride), [last]))
    if not firsts:
        raise DataError(
            f"{dataset.name} has no episode of {length - 1} steps, which is what a trajectory "
            f"has; the longest has {int(dataset.lengths.max())}: ask for shorter ones"
        )
    return np.concatenate(firsts).astype(np.int64)


def trajectories(dataset: OfflineDataset, length: int = 32, stride: int = 8) -> Trajectories:
    """The pieces of `length` rows.

    Raises DataError where there are none, for discrete actions, and for corrupted data.
    """
    if dataset.spec.action_kind != "box":
        raise DataError(f"{dataset.name} has {dataset.spec.action_kind} actions, not continuous")
    if dataset.next_obs is not None:
        raise DataError(
            f"{dataset.name} says of its steps that something else followed than the next row; "
            "trajectories are of data that was not corrupted"
        )
    o, a = dataset.obs_dim, dataset.act_dim
    middle, half = (torch.tensor(x, dtype=torch.float32) for x in action_maps(dataset))
    first = torch.from_numpy(begins(dataset, length, stride))
    rows = torch.from_numpy(dataset.rows)[first[:, None] + torch.arange(length)]
    action = ((rows[..., o : o + a] - middle) / half).clamp(-INSIDE, INSIDE)
    # The row after an episode's last step has no action, and none is learned of it.
    final = torch.from_numpy(dataset.starts + dataset.lengths)
    there = torch.isin(first[:, None] + torch.arange(length), final)
    action = torch.atanh(torch.where(there[..., None], torch.zeros_like(action), action))
    x = torch.cat([rows[..., :o], action, rows[..., -3:-1]], -1)
    mean, std = x.mean((0, 1)), x.std((0, 1))
    std = torch.where(std > ROUNDING * mean.abs(), std, 0.0)
    return Trajectories((x - mean) / torch.where(std > 0.0, std, 1.0), mean, std, o, a)


def episodes_of(
    raw: Float[Tensor, "batch time channels"], like: Trajectories, dataset: OfflineDataset
) -> list[dict[str, Any]]:
    """Episodes of raw trajectories, in the environment's units: cut where they terminate."""
    o, a = like.obs_dim, like.act_dim
    middle, half = action_maps(dataset)
    made = []
    for piece in raw.cpu().numpy():
        ends = np.flatnonzero(piece[:-1, -1] > 0.5)
        steps = int(ends[0]) + 1 if len(ends) else len(piece) - 1
        action = piece[:steps, o : o + a] * half + middle
        made.append(
            {
                "obs": piece[: steps + 1, :o].astype(np.float32),
                "action": action.astype(np.float32),
                "reward": piece[:steps, -2].astype(np.float32),
                "terminated": bool(len(ends)),
                "truncated": not len(ends),
            }
        )
    return made
