"""An expert's episodes beside mixed ones, and a view that tells them apart.

The expert's episodes carry a mark in the dataset. Learning from the whole is learning from the
union, which DemoDICE calls D^U; where the expert's are a part of it their density ratio is bounded.
"""

import hashlib
import math
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from jaxtyping import Int
from numpy.typing import NDArray
from torch import Tensor

from offrl.datasets.loading import load_beside
from offrl.datasets.offline import OfflineDataset
from offrl.datasets.replay import Replay, transitions
from offrl.errors import DataError

EXPERT = "expert"  # the mark of the steps of an expert's episodes


@dataclass(frozen=True)
class Demonstrations(Replay):
    """A view in which the rows of the expert's transitions are known."""

    expert: Int[Tensor, " expert"] | None = None

    def to(self, where: torch.device | str | torch.dtype) -> "Demonstrations":
        moved = super().to(where)
        assert isinstance(moved, Demonstrations) and self.expert is not None
        if isinstance(where, torch.dtype):
            return moved
        return replace(moved, expert=self.expert.to(where))


def demonstrations(
    dataset: OfflineDataset,
    expert: str = "",
    episodes: int = 1,
    *,
    mixed: bool = True,
    normalize_obs: bool = False,
) -> Demonstrations:
    """The transitions of `dataset` and of the expert together, or of the expert alone.

    The expert's are the `episodes` episodes of highest return (of equal ones, the first) in the
    dataset that `expert` names, read as `dataset` was, or in `dataset` itself where it is empty.
    Without `mixed` the view has no other. Observations are standardised by the moments of what the
    view has. Raises DataError where there are fewer episodes, or the two datasets are of different
    spaces.
    """
    if expert:
        marked = joined(dataset, _chosen(_marked(load_beside(dataset, expert), episodes)))
    else:
        marked = _marked(dataset, episodes)
    if not mixed:
        marked = _chosen(marked)
    view = transitions(marked, normalize_obs=normalize_obs)
    rows = view.index[torch.from_numpy(marked.marks[EXPERT])[view.index]]
    if not len(rows):
        raise DataError(
            f"{expert or dataset.name}: no transition of the expert's {episodes} episodes is "
            "complete; the observation after the last step of an episode of one step is unknown"
        )
    told_apart = hashlib.sha256(rows.numpy().tobytes()).hexdigest()[:16]
    values = {f.name: getattr(view, f.name) for f in fields(view)}
    values["fingerprint"] = f"{view.fingerprint}/expert {told_apart}"
    return Demonstrations(**values, expert=rows)


def joined(dataset: OfflineDataset, expert: OfflineDataset) -> OfflineDataset:
    """Both datasets' episodes, in this order; every step of the second is marked as expert's.

    Name, environment and references are the first one's. Raises DataError where observations or
    actions differ in size or bounds.
    """
    for what in ("obs_dim", "act_dim"):
        if getattr(dataset, what) != getattr(expert, what):
            raise DataError(
                f"the expert {expert.name} has {what} {getattr(expert, what)}, but {dataset.name} "
                f"has {getattr(dataset, what)}; they must be of one task"
            )
    ours, theirs = dataset.spec, expert.spec
    for bound in ("action_low", "action_high"):
        if not np.allclose(getattr(ours, bound), getattr(theirs, bound)):
            raise DataError(
                f"the expert {expert.name} has {bound} {getattr(theirs, bound)}, but "
                f"{dataset.name} has {getattr(ours, bound)}; they must be of one task"
            )
    next_obs = None
    if dataset.next_obs is not None or expert.next_obs is not None:
        next_obs = np.concatenate([_following(dataset), _following(expert)])
    mark = np.zeros(len(dataset.rows) + len(expert.rows), np.bool_)
    mark[len(dataset.rows) :][expert.step_rows] = True
    note = f"joined by {expert.num_episodes} of {expert.name} as the expert's"
    return replace(
        dataset,
        rows=np.concatenate([dataset.rows, expert.rows]),
        starts=np.concatenate([dataset.starts, len(dataset.rows) + expert.starts]),
        lengths=np.concatenate([dataset.lengths, expert.lengths]),
        final_known=np.concatenate([dataset.final_known, expert.final_known]),
        next_obs=next_obs,
        marks={EXPERT: mark},
        provenance={
            **dataset.provenance,
            "selections": [*dataset.provenance.get("selections", []), note],
            "expert": {"name": expert.name, "fingerprint": expert.fingerprint},
        },
    )


def end_log_ratio(view: Demonstrations) -> float:
    """log of how likely a transition of the expert terminates, over that of any transition.

    One transition's worth of the view's own rate is added to the expert's count, so that few
    demonstrations say little and none says nothing: 0 where the expert's are all there are.
    """
    assert view.expert is not None
    terminated = view.rows[:, -2] > 0
    rate = float(terminated[view.index].double().mean())
    if rate == 0.0:
        return 0.0
    ends = float(terminated[view.expert].sum())
    return math.log((ends + rate) / (len(view.expert) + 1)) - math.log(rate)


def _marked(dataset: OfflineDataset, count: int) -> OfflineDataset:
    """With the steps of the `count` episodes of highest return marked as the expert's."""
    if dataset.num_episodes < count:
        raise DataError(
            f"{dataset.name} has {dataset.num_episodes} episodes, and the expert's are to be "
            f"{count}; lower expert_episodes (--expert-episodes)"
        )
    best = np.argsort(-dataset.returns(), kind="stable")[:count]
    mark: NDArray[np.bool_] = np.zeros(len(dataset.rows), np.bool_)
    for e in best:
        mark[dataset.starts[e] : dataset.starts[e] + dataset.lengths[e]] = True
    return replace(dataset, marks={**dataset.marks, EXPERT: mark})


def _chosen(dataset: OfflineDataset) -> OfflineDataset:
    """The marked episodes alone."""
    episodes = np.flatnonzero(dataset.marks[EXPERT][dataset.starts])
    return dataset.select(episodes, f"the {len(episodes)} episodes of the expert")


def _following(dataset: OfflineDataset) -> NDArray[np.float32]:
    """(rows, obs) what followed each step; rows that are no step keep their own observation."""
    if dataset.next_obs is not None:
        return dataset.next_obs
    following = dataset.rows[:, : dataset.obs_dim].copy()
    following[dataset.step_rows] = dataset.following(dataset.step_rows)
    return following
