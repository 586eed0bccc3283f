"""How a plan of several actions is carried out: what is remembered, and which action comes next.

A policy that plans sees the last `history` observations and answers with `horizon` actions, the
first of them for the time of the first observation; `ahead` = horizon - history + 1 are for now
and later. Either the first `execute` of these are taken before the next plan (receding horizon,
arXiv:2303.04137), or a plan is made at each step and the action is the mean of what all plans say
of that step (temporal ensembling, arXiv:2304.13705).
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from offrl.checks import as_declared, check_choice, check_intervals
from offrl.errors import ConfigError
from offrl.policy_base import F32, I64, Slots


@dataclass(frozen=True)
class Execution:
    """What a policy that plans remembers and carries out; part of its saved file."""

    horizon: int  # Tp, actions of a plan
    history: int = 1  # To, observations that it looks at
    execute: int = 1  # Ta, actions taken before the next plan
    ensemble: float | None = None  # m, a plan for each step, averaged with exp(-m i), oldest i = 0
    pad: str = "repeat"  # or zero: what stands for observations before the episode's first
    goal: int = 0  # G, observations in a goal; 0 where the policy knows none

    def __post_init__(self) -> None:
        check_intervals(self, horizon="[1, inf)", goal="[0, inf)")
        check_intervals(self, history=f"[1, {self.horizon}]", execute=f"[1, {self.ahead}]")
        check_choice(self, "pad", ("repeat", "zero"))
        if self.ensemble is not None:
            check_intervals(self, ensemble="[0, inf)")
            if self.execute != 1:
                raise ConfigError(
                    f"Execution.execute is {self.execute}; with an ensemble a plan is made at each "
                    "step, so it must be 1"
                )

    @property
    def ahead(self) -> int:
        """Actions of a plan that are for now and later."""
        return self.horizon - self.history + 1

    @property
    def kept(self) -> int:
        """Plans that are remembered."""
        return 1 if self.ensemble is None else self.ahead

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> "Execution":
        """From `to_json`; TypeError or ConfigError where entries are unknown or wrong."""
        made = cls(**raw)
        for field in fields(cls):
            as_declared(made, field, getattr(made, field.name))
        return made


@dataclass(frozen=True)
class PlanState(Slots):
    """What n episodes side by side remember: arrays with one entry per slot, the newest last.

    How much of it is real follows from the step within the episode. Observations and goals are
    normalised, actions in [-1, 1].
    """

    obs: F32  # (n, history, obs)
    past: F32  # (n, history - 1, act) as executed
    plans: F32  # (n, kept, ahead, act)
    goal: F32  # (n, times, goal)
    goal_real: F32  # (n,) 1 where a goal was given


def remembered(obs: F32, state: PlanState, pad: str) -> F32:
    """The observations (n, history, obs) with this one at the end.

    An episode's first observation also stands for those before it, unless these are zero.
    """
    history = np.concatenate([state.obs[:, 1:], obs[:, None]], 1)
    first = state.step == 0
    if pad == "repeat":
        history[first] = obs[first, None]
    return history


def real_of(step: I64, count: int) -> F32:
    """(n, count) 1 where the last `count` entries have been, after `step` of them; newest last."""
    age = np.arange(count)[::-1]
    real: F32 = (age < step[:, None]).astype(np.float32)
    return real


def due(step: I64, execution: Execution) -> NDArray[np.bool_]:
    """(n,) whether a plan is to be made before the action of this step."""
    return np.asarray(step % execution.execute == 0)


def next_action(plans: F32, step: I64, execution: Execution) -> F32:
    """(n, act) for this step of each episode, from the plans remembered (n, kept, ahead, act).

    Receding horizon: the plan's action number `step mod execute`. Ensembling: `ensembled`.
    """
    if execution.ensemble is not None:
        return ensembled(plans, step, execution.ensemble)
    action: F32 = plans[np.arange(len(step)), -1, step % execution.execute]
    return action


def ensembled(plans: F32, step: I64, rate: float) -> F32:
    """sum_i w_i u_i / sum_i w_i,  w_i = exp(-rate i),  i = 0 the oldest plan that reaches now.

    A plan made j steps ago says u = plans[:, -1 - j, j]; the oldest of an episode is that of its
    first step, so that min(step + 1, ahead) plans count. Whether a plan was made is known from the
    step and not from its numbers: an action of zero counts like any other.
    Source: arXiv:2304.13705, algorithm 2.
    """
    kept = plans.shape[1]
    oldest_first = np.arange(kept)
    said = plans[:, oldest_first, kept - 1 - oldest_first]  # (n, kept, act)
    made = real_of(step + 1, kept).astype(np.float64)
    place = np.maximum(oldest_first - (kept - made.sum(1, keepdims=True)), 0.0)
    weight = made * np.exp(-rate * place)
    mean = (weight[..., None] * said).sum(1) / weight.sum(1, keepdims=True)
    action: F32 = mean.astype(np.float32)
    return action
