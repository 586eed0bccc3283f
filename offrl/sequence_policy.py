"""A policy that is asked for a return: it acts by what it has seen, done and still has to earn.

What it looks at are the last steps of the episode, at most `context` of them, each with the return
that was then still to come. A step is added to the network's memory, keys and values or a
recurrent state, and never computed again. When the context is full, the network goes on from a
memory that began later, with `keep` steps in it:

    steps seen:  1, 2, .., context, keep + 1, keep + 2, .., context, keep + 1, ..

So that this memory is there, one begins every context - keep steps, and each step is added to all
that have begun: two of them where keep is half of the context. Every action is then exactly that
of the network on a sequence which begins `steps seen` - 1 steps ago, as sequences did in training,
and all control steps cost the same: one step for each memory, side by side. Of the context only
what attention reads and its cache grow; a recurrent state does not. With keep = context - 1 the
window slides by one step, as the authors of Decision Transformer evaluate, and there are as many
memories as steps in the context.

Dropping the oldest step from a cache instead would not be the same as looking at the newest ones:
what the others know, in every layer but the first, was formed with that step in sight.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from offrl.checks import as_declared, check_intervals
from offrl.datasets.offline import Spec
from offrl.datasets.rows import F64
from offrl.errors import ConfigError, DataError, RunError
from offrl.policy import Policy
from offrl.policy_base import F32, I64, Observation, Slots, given_rewards, given_targets
from offrl.policy_format import PolicyFile
from offrl.sequence_models import Memory, Steps


@dataclass(frozen=True)
class Conditioning:
    """What such a policy looks at and asks for; part of its saved file."""

    context: int  # K, steps that the network was trained on
    keep: int  # newest ones that are still looked at when the context is full
    target_return: float  # of an episode, unless another is asked for; the environment's units
    return_scale: float = 1.0  # by which returns are divided for the network

    def __post_init__(self) -> None:
        check_intervals(self, context="[1, inf)", return_scale="(0, inf)")
        check_intervals(self, keep=f"[0, {self.context - 1}]", target_return="(-inf, inf)")

    @property
    def stride(self) -> int:
        """Steps from the beginning of one memory to that of the next."""
        return self.context - self.keep

    @property
    def memories(self) -> int:
        """Those that a context overlaps, its own among them."""
        return -(-self.context // self.stride)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> "Conditioning":
        """From `to_json`; TypeError or ConfigError where entries are unknown or wrong."""
        made = cls(**raw)
        for field in fields(cls):
            as_declared(made, field, getattr(made, field.name))
        return made


@dataclass(frozen=True)
class SequenceState(Slots):
    """What n episodes side by side remember, one entry per slot.

    A slot's memories lie one after another, that which acts first and each next one begun `stride`
    steps later: of memory j, `held` - j stride steps are known.
    """

    target: F64  # (n,) return that each episode is to have
    to_go: F64  # (n,) what is left of it, in the environment's units
    held: I64  # (n,) steps in the memory that acts
    memory: Memory  # of n memories rows
    action: F32  # (n, act) the last one, in [-1, 1]


@runtime_checkable
class SequenceModel(Protocol):
    """A network that a `SequencePolicy` can hold: any `nn.Module` with these methods.

    `advance` gives the action (n, act) in [-1, 1] of the last of some steps, which follow `held`
    ones that the memory knows, and the memory with them in it; where `held` is 0 the memory counts
    as empty. `empty` makes one for `context` steps: tensors whose rows are the slots.
    """

    def empty(self, batch: int, context: int) -> Memory: ...
    def advance(self, steps: Steps, memory: Memory, held: Tensor) -> tuple[Tensor, Memory]: ...
    def spec(self) -> dict[str, Any]: ...


class SequencePolicy(Policy):
    """A policy with a memory of steps that is conditioned on a return.

    `start` says which return to aim at, for all episodes or for each; the policy's own target
    unless told. `act` needs the reward of the previous step, which is then no longer to come. The
    network always sees all memories of all slots, those too that have yet to begin, so that what it
    answers for one slot does not depend on how far the others are. Raises ConfigError for discrete
    actions.
    """

    _kind = SequenceModel
    _methods = "empty, advance and spec"

    def __init__(
        self,
        actor: nn.Module,
        spec: Spec,
        obs_mean: ArrayLike | Tensor | None = None,
        obs_std: ArrayLike | Tensor | None = None,
        provenance: Mapping[str, Any] | None = None,
        seed: int = 0,
        *,
        conditioning: Conditioning,
    ) -> None:
        super().__init__(actor, spec, obs_mean, obs_std, provenance, seed)
        if spec.action_kind != "box":
            raise ConfigError(
                f"a policy conditioned on returns takes continuous actions; these are "
                f"{spec.action_kind}"
            )
        self.conditioning = conditioning

    def start(
        self, n: int, goal: Any = None, target_return: float | ArrayLike | None = None
    ) -> SequenceState:
        """The state of n episodes, numbered 0 to n - 1, before their first action.

        `target_return` is in the environment's units, one number or (n,). Raises ConfigError for a
        goal.
        """
        if goal is not None:
            raise ConfigError("this policy is conditioned on a return: it takes no goal")
        target = self._targets(target_return, n)
        rows = n * self.conditioning.memories
        return SequenceState(
            episode=np.arange(n, dtype=np.int64),
            step=np.zeros(n, np.int64),
            target=target,
            to_go=target.copy(),
            held=np.zeros(n, np.int64),
            memory=self.actor.empty(rows, self.conditioning.context),
            action=np.zeros((n, self.act_dim), np.float32),
        )

    def restart(
        self,
        state: Slots,
        slots: Sequence[int],
        episodes: Sequence[int] | None = None,
        target_return: float | ArrayLike | None = None,
    ) -> SequenceState:
        """The state in which `slots` begin new episodes, with these numbers or the next free.

        Nothing is left of their old episodes but the target, unless there is a new one, of a shape
        as in `start` for n = len(slots).
        """
        fresh, chosen = self._own(super().restart(self._own(state), slots, episodes)), list(slots)
        target, to_go, held = fresh.target.copy(), fresh.to_go.copy(), fresh.held.copy()
        if target_return is not None:
            target[chosen] = self._targets(target_return, len(chosen))
        # A slot that holds nothing never looks at what stands in its memories.
        to_go[chosen], held[chosen] = target[chosen], 0
        return replace(fresh, target=target, to_go=to_go, held=held)

    def act(
        self,
        obs: Observation,
        state: Slots,
        reward: ArrayLike | None = None,
        deterministic: bool = True,
    ) -> tuple[NDArray[Any], SequenceState]:
        """Actions (n, act) for observations (n, obs), one per slot, and the state that follows.

        `reward` (n,) is that of the previous step, in the environment's units; in an episode's
        first step it is not looked at. Raises DataError where it is needed and missing.
        """
        state = self._own(state)
        after = self._after(self._observed(obs, state), self._earned(state, reward))
        return self._to_units(after.action), after

    def _forward(self, obs: F32, noise: F32 | None) -> F32:
        """The first action of episodes that begin with these observations."""
        return self._after(obs, self.start(len(obs))).action

    def _earned(self, state: SequenceState, reward: ArrayLike | None) -> SequenceState:
        later = state.step > 0
        if reward is None:
            if later.any():
                raise DataError(
                    "this policy counts what is still to be earned; give act() the reward of the "
                    "previous step"
                )
            return state
        given = given_rewards(reward, state.step)
        return replace(state, to_go=np.where(later, state.to_go - given, state.to_go))

    @torch.no_grad()
    def _after(self, x: F32, state: SequenceState) -> SequenceState:
        """The state after one more step: its action, and what is remembered of it."""
        c, like = self.conditioning, next(self.actor.parameters())
        full = state.held == c.context
        held = np.where(full, c.keep, state.held)
        memory = state.memory
        if full.any():
            moved = torch.from_numpy(full).to(like.device)
            memory = tuple(_next_first(moved, part, c.memories) for part in memory)
        known = np.maximum(held[:, None] - c.stride * np.arange(c.memories), 0)
        asked = (state.to_go / c.return_scale).astype(np.float32)
        past, to_go, obs, time = (
            torch.from_numpy(np.repeat(part, c.memories, 0)[:, None]).to(like.device)
            for part in (state.action, asked, x, state.step)
        )
        steps = Steps(past.to(like), to_go.to(like), obs.to(like), time)
        # A memory that has yet to begin takes the step too, and counts as empty in the next one.
        action, memory = self.actor.advance(
            steps, memory, torch.from_numpy(known.reshape(-1)).to(like.device)
        )
        return replace(
            state,
            step=state.step + 1,
            held=held + 1,
            memory=memory,
            action=action[:: c.memories].to("cpu", torch.float32).numpy(),
        )

    def _targets(self, target_return: float | ArrayLike | None, n: int) -> F64:
        if target_return is None:
            target_return = self.conditioning.target_return
        return given_targets(target_return, n)

    def _own(self, state: Slots) -> SequenceState:
        if not isinstance(state, SequenceState):
            raise DataError(
                "the state is not that of a policy conditioned on returns; begin with start()"
            )
        return state

    def _file(self) -> PolicyFile:
        return replace(super()._file(), conditioning=self.conditioning.to_json())


def _next_first(moved: Tensor, part: Tensor, memories: int) -> Tensor:
    """Memories of which the second acts, the third is second, ..., in the slots that `moved`."""
    each = part.reshape(len(moved), memories, *part.shape[1:])
    chosen = moved.reshape(-1, *[1] * part.ndim)
    return torch.where(chosen, each.roll(-1, 1), each).flatten(0, 1)


def sequence_policy(saved: PolicyFile, actor: nn.Module, seed: int = 0) -> SequencePolicy:
    """The policy that a file holds. Raises RunError where what it says of returns is damaged."""
    try:
        conditioning = Conditioning.from_json(saved.conditioning or {})
    except (TypeError, ConfigError) as e:
        raise RunError(f"{saved.path}: the entry 'conditioning' is damaged: {e}") from e
    maps = saved.obs_mean, saved.obs_std
    return SequencePolicy(
        actor, saved.spec, *maps, saved.provenance, seed, conditioning=conditioning
    )
