"""Logged episodes in memory, from whose rows (offrl.datasets.rows) every view is gathered.

A transition is the rows i and i + 1 and a window is the rows i .. i + h, with nothing stored
twice. Only where data contradicts itself, as corrupted data does, is the observation that
followed a step a column of its own.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import isfinite
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from offrl.datasets.rows import CHUNK, F32, F64, I64, rows_of_columns, rows_of_episodes
from offrl.errors import DataError
from offrl.streams import Stream


@dataclass(frozen=True)
class Reference:
    """Returns that a normalised score calls 0 and 100, and where they are from."""

    min: float
    max: float
    source: str

    def __post_init__(self) -> None:
        if not (isfinite(self.min) and isfinite(self.max) and self.min != self.max):
            raise DataError(
                f"reference returns of {self.min:g} for score 0 and {self.max:g} for score 100 "
                f"({self.source}); they must be finite and differ"
            )

    def score(self, value: float | ArrayLike) -> F64:
        """100 (return - min) / (max - min)."""
        share = (np.asarray(value, np.float64) - self.min) / (self.max - self.min)
        return np.asarray(100.0 * share)


@dataclass(frozen=True)
class Spec:
    """What an observation and an action are: bounds per component, and names of the parts.

    Raises DataError for a low bound above its high one, and for as many of one as not of the other.
    """

    obs_low: tuple[float, ...]
    obs_high: tuple[float, ...]
    action_low: tuple[float, ...]
    action_high: tuple[float, ...]
    action_kind: Literal["box", "discrete"] = "box"
    obs_keys: Mapping[str, tuple[int, int]] | None = (
        None  # part of a dict observation -> [start, stop)
    )

    def __post_init__(self) -> None:
        for what in ("obs", "action"):
            low, high = getattr(self, f"{what}_low"), getattr(self, f"{what}_high")
            if len(low) != len(high):
                raise DataError(
                    f"{what}_low has {len(low)} entries and {what}_high {len(high)}; give both "
                    "bounds of each component"
                )
            for i, (least, most) in enumerate(zip(low, high, strict=True)):
                if not least <= most:
                    raise DataError(
                        f"{what}_low[{i}] is {least:g} and {what}_high[{i}] {most:g}; a low bound "
                        "must not be above the high one"
                    )

    @classmethod
    def unbounded(
        cls, obs_dim: int, act_dim: int, action_bounds: tuple[float, float] | None = None
    ) -> "Spec":
        """Any observation; actions in [-1, 1], the convention of robot data, unless told."""
        inf = float("inf")
        low, high = action_bounds or (-1.0, 1.0)
        return cls((-inf,) * obs_dim, (inf,) * obs_dim, (low,) * act_dim, (high,) * act_dim)


@dataclass(frozen=True, eq=False)
class OfflineDataset:
    """Episodes of logged interaction; `terminated` and `truncated` are kept apart.

    `final_known[e]` is false where the observation after episode e's last action was never
    recorded; the extra row then repeats the last observation, and the last transition is left
    out of training unless it is terminal, where the next observation has no weight.
    Rewards are per step in the environment's own units, actions in the environment's own bounds.
    """

    rows: F32  # (num_steps + num_episodes, obs_dim + act_dim + 3)
    starts: I64  # (num_episodes,) first row of each episode
    lengths: I64  # (num_episodes,) steps
    final_known: NDArray[np.bool_]  # (num_episodes,)
    spec: Spec
    name: str = "arrays"
    env_id: str | None = None
    reference: Reference | None = None
    time_limit: int | None = None  # steps after which the environment truncates
    provenance: Mapping[str, Any] = field(default_factory=dict)  # where from, and what was changed
    problems: tuple[str, ...] = ()  # found while reading; a sentence each
    next_obs: F32 | None = None  # (rows, obs) what followed each step, if not the row after it
    marks: Mapping[str, NDArray[np.bool_]] = field(default_factory=dict)  # (rows,) steps, by name
    reading: Mapping[str, Any] = field(default_factory=dict)  # options for data that join these

    def __post_init__(self) -> None:
        if self.num_episodes == 0:
            raise DataError(
                f"{self.name}: no complete step was found; there is nothing to learn from"
            )
        width = self.obs_dim + self.act_dim + 3
        if self.rows.shape != (self.num_steps + self.num_episodes, width):
            raise DataError(
                f"{self.name}: rows have shape {self.rows.shape}, but the spec and the episodes' "
                f"lengths ask for {(self.num_steps + self.num_episodes, width)}"
            )
        following = {} if self.next_obs is None else {"next_obs": self.next_obs}
        for what, column in {**self.marks, **following}.items():
            shape = (len(self.rows), *((self.obs_dim,) if what in following else ()))
            if column.shape != shape:
                raise DataError(f"{self.name}: {what} has shape {column.shape} instead of {shape}")
        self._repeat_unknown_finals()
        self._refuse_non_finite()

    def _repeat_unknown_finals(self) -> None:
        last = (self.starts + self.lengths)[~self.final_known]
        self.rows[last, : self.obs_dim] = self.rows[last - 1, : self.obs_dim]

    def _refuse_non_finite(self) -> None:
        if self.next_obs is not None and not np.isfinite(self.next_obs).all():
            raise DataError(f"{self.name}: next_obs has values that are not finite")
        for begin in range(0, len(self.rows), CHUNK):
            bad = ~np.isfinite(self.rows[begin : begin + CHUNK])
            if not bad.any():
                continue
            row, column = (int(x) for x in np.argwhere(bad)[0])
            row += begin
            episode = int(np.searchsorted(self.starts, row, side="right") - 1)
            total = sum(
                int((~np.isfinite(self.rows[b : b + CHUNK])).sum())
                for b in range(begin, len(self.rows), CHUNK)
            )
            raise DataError(
                f"{self.name}: {total} values are not finite; the first is "
                f"{self.rows[row, column]} in {self._column_name(column)} at step "
                f"{row - int(self.starts[episode])} of episode {episode}. "
                "Remove or repair these episodes before training"
            )

    def _column_name(self, column: int) -> str:
        if column < self.obs_dim:
            return f"observations[{column}]"
        if column < self.obs_dim + self.act_dim:
            return f"actions[{column - self.obs_dim}]"
        return ("rewards", "terminated", "truncated")[column - self.obs_dim - self.act_dim]

    @property
    def obs_dim(self) -> int:
        return len(self.spec.obs_low)

    @property
    def act_dim(self) -> int:
        """Columns that an action takes in `rows`: a discrete action takes one."""
        return 1 if self.spec.action_kind == "discrete" else len(self.spec.action_low)

    @property
    def num_episodes(self) -> int:
        return len(self.lengths)

    @property
    def num_steps(self) -> int:
        return int(self.lengths.sum())

    @cached_property
    def step_rows(self) -> I64:
        """(num_steps,) the row of each step, in order."""
        keep = np.ones(len(self.rows), np.bool_)
        keep[self.starts + self.lengths] = False
        return np.flatnonzero(keep).astype(np.int64)

    @property
    def obs(self) -> F32:
        """(num_steps, obs) observations at which actions were taken."""
        return self.rows[self.step_rows, : self.obs_dim]

    @property
    def action(self) -> F32:
        """(num_steps, act) in the environment's units."""
        return self.rows[self.step_rows, self.obs_dim : self.obs_dim + self.act_dim]

    @property
    def reward(self) -> F32:
        """(num_steps,)."""
        reward: F32 = self.rows[self.step_rows, -3]
        return reward

    @property
    def terminated(self) -> NDArray[np.bool_]:
        """(num_steps,) the environment ended: no value follows."""
        flag: NDArray[np.bool_] = self.rows[self.step_rows, -2] > 0
        return flag

    @property
    def truncated(self) -> NDArray[np.bool_]:
        """(num_steps,) the recording was cut, by a time limit for instance."""
        flag: NDArray[np.bool_] = self.rows[self.step_rows, -1] > 0
        return flag

    def episode(self, e: int) -> dict[str, F32]:
        """Columns of one episode; `obs` has one entry more than the others if its end is known."""
        start, length = int(self.starts[e]), int(self.lengths[e])
        body = self.rows[start : start + length]
        stop = start + length + int(self.final_known[e])
        o, a = self.obs_dim, self.act_dim
        return {
            "obs": self.rows[start:stop, :o],
            "action": body[:, o : o + a],
            "reward": body[:, -3],
            "terminated": body[:, -2],
            "truncated": body[:, -1],
        }

    def returns(self) -> F64:
        """(num_episodes,) undiscounted sum of rewards of each episode."""
        rewards = self.rows[:, -3].astype(np.float64)
        return np.add.reduceat(rewards, self.starts)

    def transition_rows(self) -> I64:
        """Rows i for which (rows[i], rows[i + 1]) is a transition to learn from."""
        last = self.starts + self.lengths - 1
        unusable = last[~self.final_known & (self.rows[last, -2] == 0)]
        return np.setdiff1d(self.step_rows, unusable, assume_unique=True)

    def following(self, rows: I64) -> F32:
        """(len(rows), obs) the observations after the steps of these rows."""
        if self.next_obs is not None:
            return self.next_obs[rows]
        following: F32 = self.rows[rows + 1, : self.obs_dim]
        return following

    def obs_moments(self, with_next: bool = False) -> tuple[F64, F64]:
        """Mean and population standard deviation of the observations that actions were taken at.

        `with_next` takes those that followed as well, so that most observations count twice.
        """
        rows = self.transition_rows()
        total, square = np.zeros(self.obs_dim), np.zeros(self.obs_dim)
        count = len(rows) * (2 if with_next else 1)
        for chunk in self._observed(rows, with_next):
            total += chunk.sum(0, np.float64)
        mean = total / count
        for chunk in self._observed(rows, with_next):
            square += np.square(chunk - mean).sum(0)
        return mean, np.sqrt(square / count)

    def _observed(self, rows: I64, with_next: bool) -> Iterator[F32]:
        for begin in range(0, len(rows), CHUNK):
            part = rows[begin : begin + CHUNK]
            yield self.rows[part, : self.obs_dim]
            if with_next:
                yield self.following(part)

    def d4rl_transitions(self) -> dict[str, NDArray[Any]]:
        """The arrays of D4RL's `qlearning_dataset`, with its quirks.

        The next observation is the next row of the file even across the end of an episode, the
        last row of the file is left out, a row whose time-out flag is set is dropped, and in a
        file without such flags time-outs are guessed by a counter that runs one step fast after
        a terminal.
        Source: Farama-Foundation/D4RL 89141a6, d4rl/__init__.py.
        """
        rows = self.step_rows
        timed_out = self.truncated
        if not self.provenance.get("timeouts_in_file", True):
            timed_out = self._guessed_timeouts()
        kept = np.flatnonzero(~timed_out[:-1])
        o, a = self.obs_dim, self.act_dim
        return {
            "observations": self.rows[rows[kept], :o],
            "actions": self.rows[rows[kept], o : o + a],
            "next_observations": (
                self.rows[rows[kept + 1], :o]
                if self.next_obs is None
                else self.next_obs[rows[kept]]
            ),
            "rewards": self.rows[rows[kept], -3],
            "terminals": self.rows[rows[kept], -2] > 0,
        }

    def _guessed_timeouts(self) -> NDArray[np.bool_]:
        if self.time_limit is None:
            raise DataError(
                f"{self.name}: the file has no 'timeouts' and the environment's time limit is "
                "unknown; give it as time_limit (--time-limit on the command line)"
            )
        timed_out = np.zeros(self.num_steps, np.bool_)
        counter = 0
        for i, terminal in enumerate(self.terminated):
            if counter == self.time_limit - 1:
                timed_out[i] = True
                counter = 0
            else:
                counter = 1 if terminal else counter + 1
        return timed_out

    def select(self, episodes: Sequence[int] | I64, note: str) -> "OfflineDataset":
        """These episodes alone, in the order given; `note` is added to the provenance."""
        chosen = np.asarray(episodes, np.int64)
        sizes = self.lengths[chosen] + 1
        starts = np.cumsum(sizes) - sizes
        rows = np.arange(sizes.sum()) + np.repeat(self.starts[chosen] - starts, sizes)
        history = [*self.provenance.get("selections", []), note]
        return replace(
            self,
            rows=self.rows[rows],
            starts=starts,
            lengths=self.lengths[chosen],
            final_known=self.final_known[chosen],
            next_obs=None if self.next_obs is None else self.next_obs[rows],
            marks={name: mark[rows] for name, mark in self.marks.items()},
            provenance={**self.provenance, "selections": history},
        )

    def split(self, fraction: float, seed: int) -> tuple["OfflineDataset", "OfflineDataset"]:
        """Training and validation episodes; `fraction` of the episodes, drawn by seed, validate."""
        if not 0.0 < fraction < 1.0:
            raise DataError(
                f"{self.name}: a validation fraction of {fraction} is not between 0 and 1"
            )
        count = round(fraction * self.num_episodes)
        if self.num_episodes == 1:
            raise DataError(
                f"{self.name} has a single episode, and both parts of a split need an episode; "
                "hold out none, with validation=0 (--validation 0)"
            )
        if count == 0 or count == self.num_episodes:
            other = "smaller one" if count else f"validation of {1 / self.num_episodes:.2g} or more"
            raise DataError(
                f"{self.name}: {fraction} of {self.num_episodes} episodes rounds to {count}, and "
                f"both parts of a split need an episode; give a {other} (--validation), or 0 to "
                "hold out none"
            )
        order = Stream(seed, "split").block(0).permutation(self.num_episodes)
        held_out, kept = np.sort(order[:count]), np.sort(order[count:])
        note = f"of a split by episode, validation {fraction}, seed {seed}"
        return self.select(kept, f"training part {note}"), self.select(
            held_out, f"validation part {note}"
        )

    def top(self, fraction: float) -> "OfflineDataset":
        """The `fraction` of episodes with the highest returns, at least one, in recorded order."""
        count = max(1, int(fraction * self.num_episodes))
        best = np.sort(np.argsort(-self.returns(), kind="stable")[:count])
        return self.select(best, f"the {count} of {self.num_episodes} episodes of highest return")

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of what is learnt from: rows, and where episodes begin and end."""
        digest = hashlib.sha256()
        for array in (self.rows, self.starts, self.lengths, self.final_known):
            digest.update(np.ascontiguousarray(array).data)
        if self.next_obs is not None:
            digest.update(np.ascontiguousarray(self.next_obs).data)
        return digest.hexdigest()

    def __len__(self) -> int:
        return self.num_steps

    def __repr__(self) -> str:
        returns = self.returns()
        return (
            f"OfflineDataset({self.name!r}: {self.num_steps:,} steps in {self.num_episodes:,} "
            f"episodes, obs {self.obs_dim}, action {self.act_dim}, env {self.env_id}, return "
            f"{returns.mean():.1f} mean, {returns.max():.1f} best)"
        )

    @classmethod
    def from_episodes(
        cls,
        episodes: Sequence[Mapping[str, ArrayLike]],
        *,
        spec: Spec | None = None,
        action_bounds: tuple[float, float] | None = None,
        **fields: Any,
    ) -> "OfflineDataset":
        """From a mapping per episode: `obs`, `action`, `reward`, `terminated`, `truncated`.

        `obs` is (T + 1, obs), or (T, obs) where the last one is not known; `action` (T, act),
        `reward` (T,). The two flags are one value for the whole episode or (T,), whose last
        entry counts; absent, the episode counts as truncated. `action_bounds` (low, high) are
        those of every component where there is no `spec`; without either [-1, 1]. Further keyword
        arguments are fields of the dataset. Raises DataError where lengths disagree.
        """
        name = fields.get("name", "episodes")
        made, sizes = rows_of_episodes(name, episodes)
        spec = spec or Spec.unbounded(*sizes, action_bounds)
        return cls(*made, spec, **fields)

    @classmethod
    def from_arrays(
        cls,
        observations: ArrayLike,
        actions: ArrayLike,
        rewards: ArrayLike,
        terminals: ArrayLike,
        timeouts: ArrayLike | None = None,
        next_observations: ArrayLike | None = None,
        *,
        spec: Spec | None = None,
        action_bounds: tuple[float, float] | None = None,
        **fields: Any,
    ) -> "OfflineDataset":
        """From flat columns, one row a step, episodes one after another (D4RL's layout).

        An episode ends where `terminals` or `timeouts` is set, at the last row, and where
        `next_observations` contradicts the row that follows, beyond rounding, which `problems`
        then reports. `spec`, `action_bounds` and further keyword arguments are as in
        `from_episodes`. Raises DataError where lengths disagree.
        """
        name = fields.get("name", "arrays")
        columns = (observations, actions, rewards, terminals, timeouts, next_observations)
        made, sizes, found = rows_of_columns(name, *columns)
        spec = spec or Spec.unbounded(*sizes, action_bounds)
        provenance = {"timeouts_in_file": timeouts is not None, **fields.pop("provenance", {})}
        problems = (*fields.pop("problems", ()), *found)
        return cls(*made, spec, provenance=provenance, problems=problems, **fields)
