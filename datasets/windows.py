"""Windows of a dataset: what was seen lately, what was done around it, and a goal that came later.

    obs      at rows now - history + 1 .. now
    action   at rows now - history + 1 .. now - history + horizon

clipped at the first and the last step of the episode that now is in. A window is a place in the
rows that every view shares: nothing is copied but one row number for each.

Source: arXiv:2303.04137 for windows and their padding, arXiv:2304.02532 for goals.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor

from offrl.checks import check_choice, check_intervals
from offrl.datasets.offline import OfflineDataset, Spec
from offrl.datasets.replay import Replay, action_maps
from offrl.datasets.rows import CHUNK, F64
from offrl.errors import ConfigError, DataError
from offrl.types import FutureBatch, GoalBatch, WindowBatch

# For the settings of agents that are passed on to `windows`.
Pad = Literal["repeat", "zero"]
Normalize = Literal["none", "zscore", "minmax"]

SMALLEST_RANGE = 1e-4  # a component of a smaller one is centred and not stretched
SMALLEST_STD = 1e-2  # to which a deviation is raised (ACT)


@dataclass(frozen=True)
class Goals:
    """Which later observations of an episode are its goal, counted from now.

    The goal is `length` observations in a row. The first of them is at now + gap + k, where k is
    drawn: uniformly among those that leave room for all (`uniform`); with probability
    (1 - gamma) gamma^k, and what would lie beyond the last such place on it (`geometric`); or the
    last (`final`). Where there is no room the sample has no goal, and neither has it, goal and all,
    with probability `dropout`.
    """

    kind: str = "uniform"  # or geometric, or final
    gamma: float = 0.99  # of the geometric distribution, whose mean is gamma / (1 - gamma)
    gap: int = 1  # steps from now to the earliest goal
    length: int = 1  # G, observations
    dropout: float = 0.0  # probability, per sample

    def __post_init__(self) -> None:
        check_choice(self, "kind", ("uniform", "geometric", "final"))
        check_intervals(self, gamma="(0, 1)", gap="[0, inf)", length="[1, inf)", dropout="[0, 1]")


@dataclass(frozen=True, kw_only=True)
class Windows(Replay):
    """A view of windows; `index` holds the rows of their nows.

    `sample` gives windows, and `batch` the single transitions that begin at the same rows.
    """

    history: int  # observations, up to now
    horizon: int  # actions, from the first of these observations on
    pad: str
    first: Int[Tensor, " episodes"]  # row of each episode's first step
    last: Int[Tensor, " episodes"]  # row of its last step
    last_obs: Int[Tensor, " episodes"]  # row of its last observation that is known

    def to(self, where: torch.device | str | torch.dtype) -> "Windows":
        moved = super().to(where)
        assert isinstance(moved, Windows)
        if isinstance(where, torch.dtype):
            return moved
        names = ("first", "last", "last_obs")
        return replace(moved, **{n: getattr(self, n).to(where) for n in names})

    def episode(self, row: Int[Tensor, "*lead batch"]) -> Int[Tensor, "*lead batch"]:
        """The number of the episode that each of these rows is in."""
        return torch.searchsorted(self.first, row.contiguous(), right=True) - 1

    def sample(
        self, row: Int[Tensor, "*lead batch"], drawn: Mapping[str, Tensor] | None = None
    ) -> WindowBatch:
        """The windows whose nows are at these rows."""
        o, a = len(self.obs_mean), len(self.action_mid)
        episode = self.episode(row)[..., None]
        steps = torch.arange(self.horizon, device=row.device) - (self.history - 1)
        wanted = row[..., None] + steps
        there = wanted.clamp(self.first[episode], self.last[episode])
        real = (there == wanted).to(self.rows.dtype)
        obs = self._normalised(there[..., : self.history])
        action = (self.rows[:, o : o + a][there] - self.action_mid) / self.action_half
        if self.pad == "zero":
            obs = obs * real[..., : self.history, None]
            action = action * real[..., None]
        return WindowBatch(obs=obs, action=action, real=real, index=row)

    def _normalised(self, row: Int[Tensor, "*lead time"]) -> Float[Tensor, "*lead time obs"]:
        observed = self.rows[:, : len(self.obs_mean)][row]
        return (observed - self.obs_mean) / self.obs_std


@dataclass(frozen=True, kw_only=True)
class FutureWindows(Windows):
    """Windows, each with the observations of the `ahead` steps after now."""

    ahead: int

    def sample(
        self, row: Int[Tensor, "*lead batch"], drawn: Mapping[str, Tensor] | None = None
    ) -> FutureBatch:
        """The windows whose nows are at these rows, and what was seen after them."""
        window = super().sample(row)
        wanted = row[..., None] + 1 + torch.arange(self.ahead, device=row.device)
        there = torch.minimum(wanted, self.last_obs[self.episode(row)][..., None])
        return FutureBatch(
            **{f.name: getattr(window, f.name) for f in fields(window)},
            later_obs=self._normalised(there),
            later_real=(there == wanted).to(self.rows.dtype),
        )


@dataclass(frozen=True, kw_only=True)
class GoalWindows(Windows):
    """Windows, each with a goal from the future of its episode."""

    goals: Goals
    achieved: slice  # columns of the observation that a goal consists of
    desired: slice | None  # those of a goal that the environment asks for

    def draw(
        self, generator: np.random.Generator, shape: tuple[int, ...]
    ) -> dict[str, NDArray[Any]]:
        """Where goals lie, and which samples go without."""
        drawn: dict[str, NDArray[Any]] = {}
        if self.goals.kind == "uniform":
            drawn["place"] = generator.random(shape)
        elif self.goals.kind == "geometric":
            drawn["place"] = generator.geometric(1.0 - self.goals.gamma, shape) - 1
        if self.goals.dropout:
            drawn["dropped"] = generator.random(shape) < self.goals.dropout
        return drawn

    def sample(
        self, row: Int[Tensor, "*lead batch"], drawn: Mapping[str, Tensor] | None = None
    ) -> GoalBatch:
        """The windows whose nows are at these rows, and their goals.

        Without `drawn` every goal is there, at the median of its distribution.
        """
        windows = super().sample(row)
        if self.desired is not None:
            windows.obs[..., self.desired] = 0.0
        start, fits = self._start(row, (drawn or {}).get("place"))
        steps = torch.arange(self.goals.length, device=row.device)
        # Where no goal fits its rows are never read, but they must be rows.
        start = torch.where(fits, start, row)
        goal_row = (start[..., None] + steps).clamp(max=len(self.rows) - 1)
        given = fits if drawn is None or "dropped" not in drawn else fits & ~drawn["dropped"]
        goal = self._normalised(goal_row)[..., self.achieved]
        return GoalBatch(
            **{f.name: getattr(windows, f.name) for f in fields(windows)},
            goal=torch.where(given[..., None, None], goal, torch.zeros_like(goal)),
            goal_real=given.to(self.rows.dtype),
        )

    def _start(
        self, row: Int[Tensor, "*lead batch"], place: Tensor | None
    ) -> tuple[Int[Tensor, "*lead batch"], Bool[Tensor, "*lead batch"]]:
        """The row of the goal's first observation, and whether there is room for the goal."""
        goals = self.goals
        begin = row + goals.gap
        room = self.last_obs[self.episode(row)] - goals.length + 1 - begin  # of k, from 0 on
        if goals.kind == "final":
            k = room
        elif goals.kind == "uniform":
            share = torch.full_like(row, 0.5, dtype=torch.float64) if place is None else place
            k = (share * (room + 1)).floor().to(row.dtype)
        else:
            median = max(math.ceil(math.log(0.5) / math.log(goals.gamma)) - 1, 0)
            k = torch.full_like(row, median) if place is None else place
        return begin + torch.minimum(k, room), room >= 0


def windows(
    dataset: OfflineDataset,
    *,
    history: int = 1,
    horizon: int = 1,
    before: int | None = None,
    after: int | None = None,
    pad: str = "repeat",
    normalize: str = "none",
    normalize_action: bool = False,
    goals: Goals | None = None,
    ahead: int = 0,
) -> Windows:
    """The view of `horizon` actions and of the observations at the first `history` of them.

    A window may begin up to `before` steps before its episode and end up to `after` steps behind
    it; unless told, as many as make every step the now of one window. Entries outside the episode
    repeat its first or last step, or are zero once normalised (`pad`). Diffusion Policy has
    before = To - 1 and after = Ta - 1. Repeated past actions of an episode's first window are that
    of now itself: what is to be told past actions takes `zero`.

    `normalize` maps observations: `zscore` to mean 0 and deviation 1, deviations below 0.01
    counting as that; `minmax` their range to [-1, 1], a range below 0.0001 being centred alone.
    Actions are mapped to [-1, 1] from the spec's bounds, or by `minmax` with `normalize_action`.
    With `goals` the view is of `GoalWindows`: a goal is later observations, or what they have
    achieved where the observation has such a part (`goal_parts`); the desired goal that was then
    in force is zero in the observations, so that it cannot contradict the other. With `ahead` it is
    of `FutureWindows`, which have so many observations after now as well. Raises ConfigError for
    sizes that do not fit together, DataError where no episode has a window.
    """
    before = history - 1 if before is None else before
    after = horizon - history if after is None else after
    _check_sizes(history, horizon, before, after)
    if ahead < 0 or (ahead and goals is not None):
        raise ConfigError(
            f"ahead is {ahead}{' beside goals' if goals else ''}; a window has goals, or 0 or more "
            "observations after now"
        )
    _check_choices(pad=(pad, get_args(Pad)), normalize=(normalize, get_args(Normalize)))
    counts = np.maximum(dataset.lengths - horizon + before + after + 1, 0)
    if not counts.sum():
        raise DataError(
            f"{dataset.name}: a window is {horizon} steps, of which {before} may lie before its "
            f"episode and {after} behind it, and the longest episode has "
            f"{dataset.lengths.max()}; shorten the horizon"
        )
    # Of each window its place among those of its episode, then the row of its now.
    place = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    now = np.repeat(dataset.starts + history - 1 - before, counts) + place

    o, a = dataset.obs_dim, dataset.act_dim
    mean, std = _obs_maps(dataset, normalize)
    achieved, desired = goal_parts(dataset.spec)
    if goals is not None and desired is not None:
        # Goals asked for and goals drawn are then of one scale.
        for fitted in (mean, std):
            fitted[desired] = fitted[achieved]
    middle, half = _range(dataset, o, o + a) if normalize_action else action_maps(dataset)
    last = dataset.starts + dataset.lengths - 1
    sizes = f"{history} of {horizon}, {before} before, {after} after, {pad}"
    view = Windows(
        rows=torch.from_numpy(dataset.rows),
        index=torch.from_numpy(now),
        obs_mean=torch.tensor(mean, dtype=torch.float32),
        obs_std=torch.tensor(std, dtype=torch.float32),
        action_mid=torch.tensor(middle, dtype=torch.float32),
        action_half=torch.tensor(half, dtype=torch.float32),
        reward_scale=1.0,
        reward_shift=0.0,
        fingerprint=f"{dataset.fingerprint}/windows {sizes}/{normalize}/{normalize_action}"
        + ("" if goals is None else f"/{goals}")
        + (f"/{ahead} ahead" if ahead else ""),
        next_obs=None if dataset.next_obs is None else torch.from_numpy(dataset.next_obs),
        history=history,
        horizon=horizon,
        pad=pad,
        first=torch.from_numpy(dataset.starts),
        last=torch.from_numpy(last),
        last_obs=torch.from_numpy(last + dataset.final_known),
    )
    values = {f.name: getattr(view, f.name) for f in fields(view)}
    if ahead:
        return FutureWindows(**values, ahead=ahead)
    if goals is None:
        return view
    return GoalWindows(**values, goals=goals, achieved=achieved, desired=desired)


def goal_parts(spec: Spec) -> tuple[slice, slice | None]:
    """Columns of the observation that a goal is of, and those where the environment asks for one.

    In Gymnasium's goal environments these are `achieved_goal` and `desired_goal`; elsewhere a goal
    is a whole observation, and none is asked for.
    """
    keys = spec.obs_keys or {}
    if {"achieved_goal", "desired_goal"} <= set(keys):
        return slice(*keys["achieved_goal"]), slice(*keys["desired_goal"])
    return slice(0, len(spec.obs_low)), None


def _check_sizes(history: int, horizon: int, before: int, after: int) -> None:
    if not 1 <= history <= horizon:
        raise ConfigError(
            f"a window has a history of {history} observations and {horizon} actions that begin "
            "with the first of them; it needs 1 <= history <= horizon"
        )
    # Beyond these the window's now would itself be outside the episode.
    for name, value, most in (("before", before, history - 1), ("after", after, horizon - history)):
        if not 0 <= value <= most:
            raise ConfigError(
                f"{name} is {value}; with a history of {history} and {horizon} actions it must be "
                f"in [0, {most}]"
            )


def _check_choices(**chosen: tuple[str, tuple[str, ...]]) -> None:
    for name, (value, choices) in chosen.items():
        if value not in choices:
            raise ConfigError(f"{name} is {value!r}; it must be one of {list(choices)}")


def _obs_maps(dataset: OfflineDataset, normalize: str) -> tuple[F64, F64]:
    """What is subtracted from an observation, and what it is then divided by."""
    o = dataset.obs_dim
    if normalize == "minmax":
        return _range(dataset, 0, o)
    if normalize == "zscore":
        mean, deviation = dataset.obs_moments()
        return mean, np.maximum(deviation, SMALLEST_STD)
    return np.zeros(o), np.ones(o)


def _range(dataset: OfflineDataset, begin: int, end: int) -> tuple[F64, F64]:
    """Middle and half of the range of these columns over all steps."""
    low, high = np.full(end - begin, np.inf), np.full(end - begin, -np.inf)
    for chunk in np.array_split(dataset.step_rows, -(-dataset.num_steps // CHUNK)):
        part = dataset.rows[chunk, begin:end]
        low, high = np.minimum(low, part.min(0)), np.maximum(high, part.max(0))
    return (high + low) / 2, np.where(high - low < SMALLEST_RANGE, 1.0, (high - low) / 2)
