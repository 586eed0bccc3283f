"""Demonstrators that know their task: policies with a state, as trained ones have it.

What one decides at the start of an episode (a way around, a goal) and the noise that it adds to
its actions follow from the seed, the episode's number and the step alone, so that an episode is
the same whatever is played beside it, and a collection that was killed resumes to the same bits.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import gymnasium
import numpy as np
from numpy.typing import NDArray

from offrl.datasets.offline import Spec
from offrl.datasets.staged import spec_of
from offrl.envs.making import make
from offrl.envs.tasks import TASKS
from offrl.errors import ConfigError
from offrl.streams import Stream

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]

_ADVANCE = 1 << 10  # counter positions between two steps: more than any action draws


@runtime_checkable
class Script(Protocol):
    """One episode of a demonstrator; what it keeps in mind is passed along, never changed."""

    noise: float

    def begin(self, generator: np.random.Generator) -> Any: ...
    def act(self, obs: F32, memory: Any, step: int) -> tuple[F64, Any]: ...


class FetchReaching:
    """Heads for the goal in a straight line: action = 10 (goal - gripper) a metre, hand still.

    For FetchReach of gymnasium-robotics, whose actions move the gripper by 0.05 m at most.
    """

    noise = 0.1
    gain = 10.0

    def begin(self, generator: np.random.Generator) -> None:
        """It has nothing to decide."""

    def act(self, obs: F32, memory: None, step: int) -> tuple[F64, None]:
        """The action for `[achieved_goal | desired_goal | observation]`."""
        way = obs[3:6].astype(np.float64) - obs[:3]
        return np.array([*(self.gain * way), 0.0]), None


OTHERS = {"FetchReach-v4": FetchReaching}


@dataclass(frozen=True)
class Minds:
    """Of each slot: its episode's number, the steps so far, and what the script keeps."""

    episodes: tuple[int, ...]
    steps: tuple[int, ...]
    memories: tuple[Any, ...]


class Demonstrator:
    """A script as a policy: actions in the environment's units, within its bounds.

    Deterministic actions lack the noise; what is decided at the start stays random, because the
    demonstrator is that mixture.
    """

    def __init__(self, script: Script, spec: Spec, seed: int = 0) -> None:
        self.script, self.spec, self.seed = script, spec, seed
        self._low = np.asarray(spec.action_low, np.float32)
        self._high = np.asarray(spec.action_high, np.float32)
        self._choices = Stream(seed, "scripted/choices")
        self._noise = Stream(seed, "scripted/noise")

    def start(self, n: int, goal: Any = None, target_return: float | None = None) -> Minds:
        """The state of n episodes, numbered from 0. Raises ConfigError for a goal or a return."""
        if goal is not None or target_return is not None:
            raise ConfigError("a demonstrator takes its goal from the observation alone")
        episodes = range(n)
        return Minds(tuple(episodes), (0,) * n, tuple(self._begin(e) for e in episodes))

    def restart(
        self, state: Minds, slots: Sequence[int], episodes: Sequence[int] | None = None
    ) -> Minds:
        """The state in which `slots` begin new episodes, with these numbers or the next free."""
        if episodes is None:
            first = max(state.episodes) + 1
            episodes = range(first, first + len(slots))
        numbers, steps, memories = map(list, (state.episodes, state.steps, state.memories))
        for slot, episode in zip(slots, episodes, strict=True):
            numbers[slot], steps[slot], memories[slot] = episode, 0, self._begin(episode)
        return Minds(tuple(numbers), tuple(steps), tuple(memories))

    def act(
        self, obs: Any, state: Minds, reward: Any = None, deterministic: bool = True
    ) -> tuple[F32, Minds]:
        """Actions (n, act) for observations (n, obs), and the state that follows."""
        actions, memories = [], []
        rows = np.asarray(obs, np.float32)
        for row, episode, step, memory in zip(
            rows, state.episodes, state.steps, state.memories, strict=True
        ):
            action, after = self.script.act(row, memory, step)
            if not deterministic:
                action = action + self.script.noise * self._draw(episode, step, len(action))
            actions.append(np.clip(action, self._low, self._high).astype(np.float32))
            memories.append(after)
        steps = tuple(step + 1 for step in state.steps)
        return np.stack(actions), Minds(state.episodes, steps, tuple(memories))

    def _begin(self, episode: int) -> Any:
        return self.script.begin(self._choices.block(episode))

    def _draw(self, episode: int, step: int, size: int) -> F64:
        generator = self._noise.block(episode)
        generator.bit_generator.advance(step * _ADVANCE)  # type: ignore[attr-defined]
        return generator.standard_normal(size)


def demonstrator(env: str | gymnasium.Env[Any, Any], seed: int = 0) -> Demonstrator:
    """The demonstrator that comes with an environment, given by its id or as made.

    Raises ConfigError for an environment without one.
    """
    made = make(env) if isinstance(env, str) else env
    try:
        name = made.spec.id if made.spec else type(made.unwrapped).__name__
        base: Any = made.unwrapped
        if name in OTHERS:
            script: Script = OTHERS[name]()
        elif hasattr(base, "script"):
            script = base.script()
        else:
            raise ConfigError(
                f"no demonstrator comes with {name}; those that have one are "
                f"{', '.join((*TASKS, *OTHERS))}"
            )
        return Demonstrator(script, spec_of(made), seed)
    finally:
        if isinstance(env, str):
            made.close()
