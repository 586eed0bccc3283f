"""The values that pass between every part of the library.

Axes are written `*seed batch ...`: one learner has no seed axis, n learners trained at once have
one, and the same code serves both, because every mean runs over the batch axis alone.
"""

from dataclasses import dataclass, fields
from typing import TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

Metrics = dict[str, Tensor]
Noise = dict[str, Tensor]

S = TypeVar("S", bound="Sample")


@dataclass(frozen=True)
class Sample:
    """What an update is given: named tensors, among them `index`, rows of the view."""

    def to(self: S, where: torch.device | str | torch.dtype) -> S:
        """The same on another device or in another float type; indices stay integers."""
        moved = {f.name: getattr(self, f.name) for f in fields(self)}
        for name, value in moved.items():
            if isinstance(where, torch.dtype) and not value.is_floating_point():
                continue
            moved[name] = value.to(where)
        return type(self)(**moved)


@dataclass(frozen=True)
class Batch(Sample):
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


@dataclass(frozen=True)
class TaughtBatch(Batch):
    """One minibatch of transitions, with what a teacher does at their observations.

    The teacher's action is `teacher_mean`, in [-1, 1], from which it deviates by `teacher_std`.
    """

    teacher_mean: Float[Tensor, "*seed batch act"]
    teacher_std: Float[Tensor, "*seed batch act"]


@dataclass(frozen=True)
class WindowBatch(Sample):
    """One minibatch of windows: what was seen up to now, and what was done around now.

    The observations are the first entries of the window, the last of them is that of now; the
    actions begin with the first observation too, so `past` of them were taken before now.
    `real` is 1 where the entry is a recorded step and 0 where it stands for one before the
    episode's first or after its last. `index` is the row of now.
    """

    obs: Float[Tensor, "*seed batch history obs"]
    action: Float[Tensor, "*seed batch horizon act"]
    real: Float[Tensor, "*seed batch horizon"]
    index: Int[Tensor, "*seed batch"]

    @property
    def past(self) -> int:
        """How many actions of the window were taken before now: history - 1."""
        return self.obs.shape[-2] - 1

    @property
    def past_action(self) -> Float[Tensor, "*seed batch past act"]:
        """The actions before now, oldest first."""
        return self.action[..., : self.past, :]

    @property
    def future_action(self) -> Float[Tensor, "*seed batch ahead act"]:
        """The action of now and those after it."""
        return self.action[..., self.past :, :]


@dataclass(frozen=True)
class FutureBatch(WindowBatch):
    """Windows with the observations that followed now, the next one first.

    `later_real` is 0 where the episode has none so late; its last one stands there.
    """

    later_obs: Float[Tensor, "*seed batch ahead obs"]
    later_real: Float[Tensor, "*seed batch ahead"]


@dataclass(frozen=True)
class GoalBatch(WindowBatch):
    """Windows with a goal from the future of the same episode: consecutive observations of it.

    `goal_real` is 0, and the goal zero, where it was dropped or where the episode has none.
    """

    goal: Float[Tensor, "*seed batch times goal"]
    goal_real: Float[Tensor, "*seed batch"]


@dataclass(frozen=True)
class SequenceBatch(Sample):
    """One minibatch of consecutive steps with the return that was still to come at each of them.

    `to_go` is the sum of the rewards from this step to the end of the episode, undiscounted and
    scaled; `time` is the number of the step within its episode. `real` is 1 where the entry is a
    recorded step; the others, which come first, pad what is shorter and are zero. `index` is the
    row of the first recorded step.
    """

    to_go: Float[Tensor, "*seed batch steps"]
    obs: Float[Tensor, "*seed batch steps obs"]
    action: Float[Tensor, "*seed batch steps act"]
    time: Int[Tensor, "*seed batch steps"]
    real: Float[Tensor, "*seed batch steps"]
    index: Int[Tensor, "*seed batch"]


@dataclass(frozen=True)
class SegmentBatch(Sample):
    """One minibatch of what happened before now and from now on, oldest first.

    The steps from now on are the last ones of the view's `future`. `real` is 1 where the entry is
    a recorded step, 0 where it stands for one before the episode's first or after its last, and
    all else is then zero. Rewards, and `to_go`, the undiscounted return from now to the episode's
    end, are standardised; `time` is the number of the step within its episode. `index` is the row
    of now.
    """

    obs: Float[Tensor, "*seed batch steps obs"]
    action: Float[Tensor, "*seed batch steps act"]
    reward: Float[Tensor, "*seed batch steps"]
    next_obs: Float[Tensor, "*seed batch steps obs"]
    time: Int[Tensor, "*seed batch steps"]
    real: Float[Tensor, "*seed batch steps"]
    to_go: Float[Tensor, "*seed batch"]
    index: Int[Tensor, "*seed batch"]


@dataclass(frozen=True)
class SegmentPairBatch(Sample):
    """One minibatch of pairs of segments, each of several consecutive steps of an episode.

    `score` says what each of the two is worth: the first is preferred where its score is not below
    the second's. `real` is 1 where the entry is a recorded step; the others, which come last, pad
    what is shorter and are zero. `index` is the row of the first segment's first step.
    """

    obs: Float[Tensor, "*seed batch 2 steps obs"]
    action: Float[Tensor, "*seed batch 2 steps act"]
    real: Float[Tensor, "*seed batch 2 steps"]
    score: Float[Tensor, "*seed batch 2"]
    index: Int[Tensor, "*seed batch"]


@dataclass(frozen=True)
class Context:
    """What a policy that plans knows when it does, for n episodes side by side.

    Observations and goals are normalised, actions in [-1, 1], oldest first; `past_action` is what
    was executed. `obs_real` and `past_real` are 0 where the episode had not begun, and `goal_real`
    where there is no goal.
    """

    obs: Float[Tensor, "n history obs"]
    obs_real: Float[Tensor, "n history"]
    past_action: Float[Tensor, "n past act"]
    past_real: Float[Tensor, "n past"]
    goal: Float[Tensor, "n times goal"]
    goal_real: Float[Tensor, " n"]
