"""The policy that training evaluates, saves and hands over: what is scored is what is deployed.

`Policy` acts on the observation alone. `PlanPolicy` remembers some, plans several actions and
carries them out one by one, towards a goal if it knows goals.
"""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any, Protocol, cast, runtime_checkable

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from offrl import policy_format
from offrl.actors import actor_from_spec
from offrl.datasets.offline import Spec
from offrl.datasets.windows import goal_parts
from offrl.envs.layout import numbers
from offrl.errors import ConfigError, DataError, RunError
from offrl.execution import Execution, PlanState, due, next_action, real_of, remembered
from offrl.planners import planner_from_spec
from offrl.policy_base import F32, MOST_NOISE, BasePolicy, Observation, Slots
from offrl.policy_format import PolicyFile
from offrl.sequence_models import sequence_model_from_spec
from offrl.types import Context, Noise

UNMAKEABLE = (  # what networks raise for sizes and types that they cannot have
    *(ArithmeticError, LookupError, MemoryError, RuntimeError, TypeError, ValueError),
)
COMPARED = 1_000_000  # weights too many that are made all the same, to say which do not fit


@runtime_checkable
class Actor(Protocol):
    """A network that a policy can hold: any `nn.Module` with these methods.

    Observations are normalised, (n, obs); actions (n, act) in [-1, 1]; noise standard normal.
    `spec` describes the network in JSON, with its class name as `type`.
    """

    def mode(self, obs: Tensor) -> Tensor: ...
    def sample(self, obs: Tensor, noise: Tensor) -> Tensor: ...
    def spec(self) -> dict[str, Any]: ...


class Policy(BasePolicy):
    """Observation normaliser, actor and action bounds; `provenance` says where it is from.

    The actor is held, not copied: while it trains, the policy is always its newest state.
    `obs_mean` and `obs_std` (obs,) default to no normalisation. Raises ConfigError where the
    actor lacks a method, or the sizes of its spec are not those of the dataset's.
    """

    _kind: type = Actor  # of network that it holds, and the names of its methods
    _methods = "mode, sample and spec"

    def __init__(
        self,
        actor: nn.Module,
        spec: Spec,
        obs_mean: ArrayLike | Tensor | None = None,
        obs_std: ArrayLike | Tensor | None = None,
        provenance: Mapping[str, Any] | None = None,
        seed: int = 0,
        action_range: tuple[ArrayLike, ArrayLike] | None = None,
    ) -> None:
        super().__init__(spec, _array(obs_mean), _array(obs_std), provenance, seed, action_range)
        if not isinstance(actor, self._kind):
            raise ConfigError(
                f"{type(actor).__name__} cannot be a policy's actor: it needs the methods "
                f"{self._methods}"
            )
        described = cast(Any, actor).spec()
        for name, size in (("obs_dim", self.obs_dim), ("act_dim", self.act_dim)):
            if described.get(name, size) != size:
                raise ConfigError(
                    f"the actor's {name} is {described[name]}, and the dataset's is {size}"
                )
        self.actor: Any = actor

    @torch.no_grad()
    def _forward(self, obs: F32, noise: F32 | None) -> F32:
        like = next(self.actor.parameters())
        x = torch.from_numpy(obs).to(like)
        u = (
            self.actor.mode(x)
            if noise is None
            else self.actor.sample(x, torch.from_numpy(noise).to(like))
        )
        action: F32 = u.to("cpu", torch.float32).numpy()
        return action

    def save(self, path: str | os.PathLike[str], overwrite: bool = False) -> None:
        """Write the directory `path` (policy.json, policy.safetensors), whole or not at all.

        Raises RunError where something stands there already; `overwrite` replaces a policy.
        """
        policy_format.write(path, self._file(), overwrite)

    def _file(self) -> PolicyFile:
        state = self.actor.state_dict()
        weights = {k: v.detach().to("cpu").contiguous().numpy() for k, v in state.items()}
        return PolicyFile(
            self.actor.spec(), self.spec, self.obs_mean, self.obs_std, weights, self.provenance
        )


@runtime_checkable
class Planner(Protocol):
    """A network that a `PlanPolicy` can hold: any `nn.Module` with these methods.

    `plan` gives actions (n, horizon, act) in [-1, 1], the first for the time of the first
    observation of the context. `noise` names the standard normal numbers that one plan takes, with
    their shapes; `plan` is given them as tensors (n, *shape). `spec` as for an `Actor`.
    """

    def plan(self, context: Context, noise: Noise) -> Tensor: ...
    def noise(self) -> dict[str, tuple[int, ...]]: ...
    def spec(self) -> dict[str, Any]: ...


class PlanPolicy(Policy):
    """A policy with a memory: it plans several actions and carries them out (`Execution`).

    Plans are drawn with numbers that depend on `seed`, the episode and the step, whether actions
    are to be deterministic or not: an episode is the same whenever it is played again. The network
    always sees all slots, also those whose plan is not yet carried out, so that what it answers
    for one does not depend on how far the others are, not even in the last bit.

    `action_range` are the environment's actions that -1 and 1 stand for, the spec's bounds unless
    given. A goal has the units of observations; it is given to `start` or `restart`, or read from
    the observation where that has a desired goal. Raises ConfigError for discrete actions, and
    for a planner that takes more random numbers than a step has.
    """

    _kind = Planner
    _methods = "plan, noise and spec"

    def __init__(
        self,
        actor: nn.Module,
        spec: Spec,
        obs_mean: ArrayLike | Tensor | None = None,
        obs_std: ArrayLike | Tensor | None = None,
        provenance: Mapping[str, Any] | None = None,
        seed: int = 0,
        action_range: tuple[ArrayLike, ArrayLike] | None = None,
        *,
        execution: Execution,
    ) -> None:
        super().__init__(actor, spec, obs_mean, obs_std, provenance, seed, action_range)
        if spec.action_kind != "box":
            raise ConfigError(f"a plan is of continuous actions; these are {spec.action_kind}")
        self.execution = execution
        self._noise_size = sum(math.prod(shape) for shape in self.actor.noise().values())
        if self._noise_size > MOST_NOISE:
            raise ConfigError(
                f"a plan of {type(actor).__name__} takes {self._noise_size:,} random numbers, and "
                f"a step has {MOST_NOISE:,}; plan with fewer candidates, restarts or rounds"
            )
        self._achieved, desired = goal_parts(spec)
        self._desired = desired if execution.goal else None

    def start(self, n: int, goal: Any = None, target_return: float | None = None) -> PlanState:
        """The state of n episodes, numbered 0 to n - 1, before their first action.

        `goal` is (goal,) or (times, goal) for all, or (n, times, goal). Raises ConfigError for a
        target return, and for a goal where the policy knows none.
        """
        if target_return is not None:
            raise ConfigError("this policy takes no target return")
        e, size = self.execution, self.obs_mean[self._achieved].size
        zeros = np.zeros((n, e.goal, size), np.float32)
        return PlanState(
            episode=np.arange(n, dtype=np.int64),
            step=np.zeros(n, np.int64),
            obs=np.zeros((n, e.history, self.obs_dim), np.float32),
            past=np.zeros((n, e.history - 1, self.act_dim), np.float32),
            plans=np.zeros((n, e.kept, e.ahead, self.act_dim), np.float32),
            goal=zeros if goal is None else self._goal(goal, n),
            goal_real=np.full(n, goal is not None, np.float32),
        )

    def restart(
        self,
        state: Slots,
        slots: Sequence[int],
        episodes: Sequence[int] | None = None,
        goal: Any = None,
    ) -> PlanState:
        """The state in which `slots` begin new episodes, with these numbers or the next free.

        Nothing is left of their old episodes but the goal, unless there is a new one, of a shape
        as in `start` for n = len(slots).
        """
        fresh = super().restart(self._own(state), slots, episodes)
        chosen = list(slots)
        arrays = {n: getattr(fresh, n).copy() for n in ("obs", "past", "plans")}
        for array in arrays.values():
            array[chosen] = 0.0
        if goal is not None:
            arrays |= {n: getattr(fresh, n).copy() for n in ("goal", "goal_real")}
            arrays["goal"][chosen] = self._goal(goal, len(chosen))
            arrays["goal_real"][chosen] = 1.0
        return replace(self._own(fresh), **arrays)

    def act(
        self,
        obs: Observation,
        state: Slots,
        reward: ArrayLike | None = None,
        deterministic: bool = True,
    ) -> tuple[NDArray[Any], PlanState]:
        """Actions (n, act) for observations (n, obs), one per slot, and the state that follows."""
        state, e = self._own(state), self.execution
        x = self._observed(obs, state)
        state, goal = self._seen(x, state)
        plans, asked = state.plans, due(state.step, e)
        if asked.any():
            noise = np.zeros((len(x), self._noise_size), np.float32)
            for k in np.flatnonzero(asked):
                noise[k] = self._draw(int(state.episode[k]), int(state.step[k]))
            made = self._plan(state, goal, noise)
            newest = np.concatenate([plans[:, 1:], made[:, None, e.history - 1 :]], 1)
            plans = np.where(asked[:, None, None, None], newest, plans)
        action = self._to_units(next_action(plans, state.step, e))
        past = np.concatenate([state.past, self._from_units(action)[:, None]], 1)[:, 1:]
        return action, replace(state, past=past, plans=plans, step=state.step + 1)

    def _forward(self, obs: F32, noise: F32 | None) -> F32:
        """The first action of episodes that begin with these observations."""
        if noise is None:
            noise = np.tile(self._draw(-1, 0), (len(obs), 1))
        state, goal = self._seen(obs, self.start(len(obs)))
        made = self._plan(state, goal, noise)
        first: F32 = made[:, self.execution.history - 1]
        return first

    @torch.no_grad()
    def _plan(self, state: PlanState, goal: tuple[F32, F32], noise: F32) -> F32:
        e, like = self.execution, next(self.actor.parameters())

        def there(array: F32) -> Tensor:
            return torch.from_numpy(array).to(like)

        context = Context(
            obs=there(state.obs),
            obs_real=there(real_of(state.step + 1, e.history)),
            past_action=there(state.past),
            past_real=there(real_of(state.step, e.history - 1)),
            goal=there(goal[0]),
            goal_real=there(goal[1]),
        )
        shapes = self.actor.noise()
        ends = np.cumsum([math.prod(shape) for shape in shapes.values()])[:-1]
        parts = zip(shapes.items(), np.split(noise, ends, axis=1), strict=True) if shapes else ()
        normals = {name: there(part.reshape(-1, *shape)) for (name, shape), part in parts}
        u = self.actor.plan(context, normals)
        expected = (len(noise), e.horizon, self.act_dim)
        if u.shape != expected:
            raise ConfigError(
                f"{type(self.actor).__name__} plans actions {tuple(u.shape)}, but the policy's "
                f"execution asks for {expected}"
            )
        made: F32 = u.to("cpu", torch.float32).numpy()
        return made

    def _seen(self, x: F32, state: PlanState) -> tuple[PlanState, tuple[F32, F32]]:
        """The state that remembers x, and the goals: given ones first, else what x asks for."""
        goal = state.goal, state.goal_real
        if self._desired is not None:
            asked = x[:, None, self._desired].repeat(self.execution.goal, 1)
            given = state.goal_real[:, None, None] > 0
            goal = np.where(given, state.goal, asked), np.ones_like(state.goal_real)
            x = x.copy()
            x[:, self._desired] = 0.0
        return replace(state, obs=remembered(x, state, self.execution.pad)), goal

    def _goal(self, goal: ArrayLike, n: int) -> F32:
        """Normalised goals (n, times, goal)."""
        if not self.execution.goal:
            raise ConfigError("this policy was trained without goals: it takes none")
        mean, std = self.obs_mean[self._achieved], self.obs_std[self._achieved]
        raw, shape = numbers("the goal", goal), (n, self.execution.goal, mean.size)
        if raw.shape not in (shape[2:], shape[1:], shape) or not np.isfinite(raw).all():
            raise DataError(
                f"the goal has shape {raw.shape}; expected finite numbers of shape {shape[2:]}, "
                f"{shape[1:]} or {shape}"
            )
        with np.errstate(over="ignore"):
            scaled: F32 = ((np.broadcast_to(raw, shape) - mean) / std).astype(np.float32)
        if not np.isfinite(scaled).all():
            raise DataError(
                f"the goal has values up to {np.abs(raw).max():g}, which are too large: normalised "
                "like the data they are not finite. Are its units those of the data?"
            )
        return scaled

    def _from_units(self, action: NDArray[Any]) -> F32:
        """In [-1, 1], of actions as they were executed; 0 where the range is a single number."""
        middle, half = 0.5 * (self._most + self._least), 0.5 * (self._most - self._least)
        u = np.divide(action - middle, half, out=np.zeros_like(action), where=half > 0)
        return np.asarray(u, np.float32)

    def _own(self, state: Slots) -> PlanState:
        if not isinstance(state, PlanState):
            raise DataError("the state is not that of a policy that plans; begin with start()")
        return state

    def _file(self) -> PolicyFile:
        return replace(
            super()._file(),
            execution=self.execution.to_json(),
            action_range=(self._least.tolist(), self._most.tolist()),
        )


def load_policy(
    path: str | os.PathLike[str],
    *,
    actor: nn.Module | type[nn.Module] | None = None,
    device: str | torch.device = "cpu",
    seed: int = 0,
) -> Policy:
    """The policy in `path`: its own directory, a run's, or that of one seed of a run.

    An actor that offrl does not have is passed as `actor`: an instance, whose weights are
    replaced, or its class, which is called with the saved spec's entries except `type`. `seed` is
    for actions drawn with `deterministic=False`.

    Raises RunError where files are missing, damaged or newer, or the weights do not fit the
    actor; ConfigError for an unknown type of actor.
    """
    saved = policy_format.read(path)
    network = _network(saved, actor)
    state = {k: torch.from_numpy(np.array(v)) for k, v in saved.weights.items()}
    expected = {k: tuple(v.shape) for k, v in network.state_dict().items()}
    found = {k: tuple(v.shape) for k, v in state.items()}
    if expected != found:
        wrong = sorted(set(expected.items()) ^ set(found.items()))[0][0]
        raise RunError(
            f"{saved.path}: the weights do not fit {type(network).__name__}: {wrong!r} is "
            f"{found.get(wrong, 'missing')} in the file and {expected.get(wrong, 'absent')} in "
            "the network"
        )
    # Assigned rather than copied, so that the policy keeps the precision it was trained in.
    network.load_state_dict(state, assign=True)
    network.eval().requires_grad_(False).to(device)
    if saved.conditioning is not None:
        # Its policy is one of this module's: it can be imported once this module is.
        from offrl.latent_policy import LatentModel, latent_policy
        from offrl.sequence_policy import sequence_policy

        if isinstance(network, LatentModel):
            return latent_policy(saved, network, seed)
        return sequence_policy(saved, network, seed)
    held = network, saved.spec, saved.obs_mean, saved.obs_std, saved.provenance, seed
    if saved.execution is None:
        return Policy(*held)
    try:
        execution = Execution.from_json(saved.execution)
    except (TypeError, ConfigError) as e:
        raise RunError(f"{saved.path}: the entry 'execution' is damaged: {e}") from e
    return PlanPolicy(*held, saved.action_range, execution=execution)


def _network(saved: PolicyFile, actor: nn.Module | type[nn.Module] | None) -> nn.Module:
    if actor is None:
        make: Callable[[Mapping[str, Any]], nn.Module] = sequence_model_from_spec
        if saved.conditioning is None:
            make = actor_from_spec if saved.execution is None else planner_from_spec
        try:
            _refuse_wider(saved)
            return make(saved.actor)
        except UNMAKEABLE as e:
            raise RunError(f"{saved.path}: the entry 'actor' is damaged: {e!r}") from e
    if isinstance(actor, nn.Module):
        return actor
    arguments = {k: v for k, v in saved.actor.items() if k != "type"}
    try:
        return actor(**arguments)
    except TypeError as e:
        raise ConfigError(
            f"{actor.__name__} cannot be made from the saved spec {arguments}: {e}; pass an "
            "instance instead"
        ) from e


def _refuse_wider(saved: PolicyFile) -> None:
    """Raise ValueError for hidden layers far beyond the file's weights, before they are made."""
    hidden = saved.actor.get("hidden")
    if isinstance(hidden, list) and all(isinstance(units, int) for units in hidden):
        needed = sum(hidden) + sum(a * b for a, b in pairwise(hidden))
        held = sum(int(w.size) for w in saved.weights.values())
        if needed > held + COMPARED:
            raise ValueError(f"hidden {hidden} has more than the {held:,} weights of the file")


def _array(value: ArrayLike | Tensor | None) -> ArrayLike | None:
    return value.detach().cpu().numpy() if isinstance(value, Tensor) else value
