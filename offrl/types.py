"""The values that pass between every part of the library.

Axes are written `*seed batch ...`: one learner has no seed axis, n learners trained at once have
one, and the same code serves both, because every mean runs over the batch axis alone.
"""

from dataclasses import dataclass, fields

import torch
from jaxtyping import Float, Int
from torch import Tensor

Metrics = dict[str, Tensor]
Noise = dict[str, Tensor]


@dataclass(frozen=True)
class Batch:
    """One minibatch of transitions.

    `mask` is 1 - terminated: a time-limit truncation keeps it at one. `next_action` is the logged
    action of the following row; at the last row of an episode there is none and it is zero.
    `index` is the row of each transition in its replay, so that what an agent has derived from
    the data can be looked up by row.
    """

    obs: Float[Tensor, "*seed batch obs"]
    action: Float[Tensor, "*seed batch act"]
    reward: Float[Tensor, "*seed batch"]
    mask: Float[Tensor, "*seed batch"]
    next_obs: Float[Tensor, "*seed batch obs"]
    next_action: Float[Tensor, "*seed batch act"]
    index: Int[Tensor, "*seed batch"]

    def to(self, where: torch.device | str | torch.dtype) -> "Batch":
        """The same batch on another device or in another float type; indices stay integers."""
        moved = {f.name: getattr(self, f.name) for f in fields(self)}
        for name, value in moved.items():
            if name == "index" and isinstance(where, torch.dtype):
                continue
            moved[name] = value.to(where)
        return Batch(**moved)
