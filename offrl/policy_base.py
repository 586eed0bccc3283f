"""What every deployed policy does around its network, with or without torch.

Observations are checked and normalised, actions in [-1, 1] are mapped to the environment's units,
and random numbers are drawn by episode and step. A subclass supplies the network alone.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from offrl.datasets.offline import Spec
from offrl.datasets.rows import F64
from offrl.envs.layout import flatten, numbers
from offrl.errors import ConfigError, DataError, RunError
from offrl.streams import Stream

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]
Observation = ArrayLike | Mapping[str, Any]


SHOWN = ("agent", "dataset", "seed", "step")  # of the provenance, when a policy is printed


@dataclass(frozen=True)
class Slots:
    """Where each of n episodes played side by side stands: its number, and its steps so far."""

    episode: I64
    step: I64


class BasePolicy(ABC):
    """A policy in the environment's own units: `predict` for one call, `act` for episodes.

    x = (obs - mean) / std;  action = low + (u + 1) (high - low) / 2 with u in [-1, 1] from the
    network; for a discrete action space, action = argmax u. `low` and `high` are the bounds of the
    spec unless an `action_range` is given, and actions always stay within those bounds.

    Actions are deterministic unless asked otherwise. Random ones depend on `seed`, the number of
    the episode and the step within it, so that an episode is the same whatever is played
    beside it.
    """

    def __init__(
        self,
        spec: Spec,
        obs_mean: ArrayLike | None = None,
        obs_std: ArrayLike | None = None,
        provenance: Mapping[str, Any] | None = None,
        seed: int = 0,
        action_range: tuple[ArrayLike, ArrayLike] | None = None,
    ) -> None:
        self.spec = spec
        self.provenance = dict(provenance or {})
        self.seed = seed
        self.obs_dim, self.act_dim = len(spec.obs_low), len(spec.action_low)
        self.obs_mean = self._moment("obs_mean", obs_mean, 0.0)
        self.obs_std = self._moment("obs_std", obs_std, 1.0)
        if (self.obs_std <= 0).any():
            i = int(np.argmax(self.obs_std <= 0))
            raise ConfigError(f"obs_std[{i}] is {self.obs_std[i]}; it must be positive")
        self._low = np.asarray(spec.action_low, np.float32)
        self._high = np.asarray(spec.action_high, np.float32)
        self._noise_size = self.act_dim  # standard normals that an action takes
        if action_range is None:
            action_range = self._low, self._high
        self._least, self._most = (np.asarray(x, np.float32) for x in action_range)
        if spec.action_kind == "box" and not np.isfinite([self._least, self._most]).all():
            raise ConfigError(
                "the dataset's action bounds are not finite, so actions in [-1, 1] cannot be "
                "mapped to them; give the bounds in the dataset's spec"
            )
        self._noise = Stream(seed, "policy")
        self._predictions = self._noise.block(0)

    @abstractmethod
    def _forward(self, obs: F32, noise: F32 | None) -> F32:
        """u (n, act) for normalised observations, the mode without noise; the caller clips it."""

    def start(self, n: int, goal: Any = None, target_return: float | None = None) -> Slots:
        """The state of n episodes, numbered 0 to n - 1, before their first action.

        Raises ConfigError for a goal or a target return: an observation is all that a policy of
        this kind looks at.
        """
        if goal is not None or target_return is not None:
            raise ConfigError(
                "this policy looks at the observation alone: it takes no goal and no target return"
            )
        return Slots(np.arange(n, dtype=np.int64), np.zeros(n, np.int64))

    def restart(
        self, state: Slots, slots: Sequence[int], episodes: Sequence[int] | None = None
    ) -> Slots:
        """The state in which `slots` begin new episodes, with these numbers or the next free."""
        if episodes is None:
            first = int(state.episode.max()) + 1
            episodes = range(first, first + len(slots))
        episode, step = state.episode.copy(), state.step.copy()
        episode[list(slots)] = list(episodes)
        step[list(slots)] = 0
        return replace(state, episode=episode, step=step)

    def act(
        self,
        obs: Observation,
        state: Slots,
        reward: ArrayLike | None = None,
        deterministic: bool = True,
    ) -> tuple[NDArray[Any], Slots]:
        """Actions (n, act) for observations (n, obs), one per slot, and the state that follows.

        `reward` is that of the previous step; this kind of policy has no use for it.
        """
        x = self._observed(obs, state)
        noise = None
        if not deterministic:
            noise = np.stack([self._draw(e, t) for e, t in zip(*_lists(state), strict=True)])
        return self._to_units(self._forward(x, noise)), replace(state, step=state.step + 1)

    def predict(self, obs: Observation, deterministic: bool = True) -> NDArray[Any]:
        """The action (act,) for one observation (obs,), or (n, act) for a batch (n, obs).

        A policy trained on dictionary observations takes dictionaries with the same keys.
        Actions are float32 within the environment's bounds (int64 where they are discrete).
        Raises DataError for an observation of the wrong shape or with a value that is not finite.
        """
        x, batched = self._observation(obs)
        noise = None
        if not deterministic:
            shape = len(x), self._noise_size
            noise = self._predictions.standard_normal(shape, dtype=np.float32)
        action = self._to_units(self._forward(x, noise))
        return action if batched else np.asarray(action[0])

    def __repr__(self) -> str:
        facts = {"obs": self.obs_dim, "action": self.act_dim}
        facts |= {k: self.provenance[k] for k in SHOWN if k in self.provenance}
        return f"{type(self).__name__}({', '.join(f'{k} {v}' for k, v in facts.items())})"

    def _draw(self, episode: int, step: int) -> F32:
        # Block 0 belongs to `predict`; an episode has the stream's numbers from its own block on.
        generator = self._noise.block(episode + 1)
        generator.bit_generator.advance(step * _ADVANCE)  # type: ignore[attr-defined]
        return generator.standard_normal(self._noise_size, dtype=np.float32)

    def _moment(self, name: str, value: ArrayLike | None, default: float) -> F32:
        if value is None:
            return np.full(self.obs_dim, default, np.float32)
        moment = np.array(value, np.float32).reshape(-1)
        if moment.shape != (self.obs_dim,):
            raise ConfigError(f"{name} has {moment.size} entries, observations {self.obs_dim}")
        return moment

    def _observation(self, obs: Observation, batched: bool | None = None) -> tuple[F32, bool]:
        """Normalised observations (n, obs), and whether a batch was given."""
        if isinstance(obs, Mapping):
            raw = self._flat(obs, batched)
        else:
            raw = numbers("the observation", obs)
        many = raw.ndim == 2 if batched is None else batched
        if raw.shape[-1:] != (self.obs_dim,) or raw.ndim != 1 + many:
            wanted = f"(n, {self.obs_dim})" if many else f"({self.obs_dim},)"
            either = f" or (n, {self.obs_dim})" if batched is None and not many else ""
            raise DataError(f"the observation has shape {raw.shape}; expected {wanted}{either}")
        with np.errstate(over="ignore", invalid="ignore"):
            x = (raw - self.obs_mean) / self.obs_std
        if not np.isfinite(x).all():
            self._refuse_non_finite(raw)
            index = _first(~np.isfinite(x))
            raise DataError(
                f"{self._place(index)} is {raw[index]:g}, which is too large: normalised with the "
                f"data's mean {self.obs_mean[index[-1]]:g} and deviation "
                f"{self.obs_std[index[-1]]:g} it is not finite. Are its units those of the data?"
            )
        return np.atleast_2d(x), many

    def _observed(self, obs: Observation, state: Slots) -> F32:
        """Normalised observations (n, obs), one for each slot of the state."""
        x, _ = self._observation(obs, batched=True)
        if len(x) != len(state.step):
            raise DataError(f"{len(x)} observations for {len(state.step)} slots; give one each")
        return x

    def _flat(self, obs: Mapping[str, Any], batched: bool | None) -> F32:
        if self.spec.obs_keys is None:
            raise DataError(
                f"the observation is a dictionary with the keys {sorted(obs)}, but this policy "
                f"was trained on vectors of {self.obs_dim} entries"
            )
        return flatten(obs, self.spec.obs_keys, batched)

    def _refuse_non_finite(self, raw: F32) -> None:
        if np.isfinite(raw).all():
            return
        index = _first(~np.isfinite(raw))
        raise DataError(f"{self._place(index)} is {raw[index]}; a policy needs finite numbers")

    def _place(self, index: tuple[int, ...]) -> str:
        """The entry of an observation, or of a batch of them, as its user calls it."""
        column = index[-1]
        for key, (start, stop) in (self.spec.obs_keys or {}).items():
            if start <= column < stop:
                return f"observation[{key!r}], entry {column - start}"
        return f"observation[{', '.join(map(str, index))}]"

    def _to_units(self, action: F32) -> NDArray[Any]:
        if not np.isfinite(action).all():
            raise RunError(
                "the policy's actions are not finite numbers: training diverged, and an earlier "
                "checkpoint is needed, or the observation is too large for it (check its units)"
            )
        if self.spec.action_kind == "discrete":
            return np.asarray(np.argmax(action, -1))
        scaled = self._least + (action + 1.0) * (0.5 * (self._most - self._least))
        clipped: F32 = np.clip(scaled, self._low, self._high)
        return clipped.astype(np.float32)


def given_rewards(reward: ArrayLike, step: I64) -> F32:
    """Rewards (n,) of the previous step; those of slots at their first step are not looked at.

    Raises DataError for another shape, and for a number that is not finite.
    """
    given = numbers("the reward", reward)
    if given.shape != step.shape or not np.isfinite(given[step > 0]).all():
        raise DataError(
            f"the reward has shape {given.shape}; expected finite numbers of shape {step.shape}, "
            "one per slot"
        )
    return given


def given_targets(target_return: float | ArrayLike, n: int) -> F64:
    """Returns (n,) that n episodes are to have, from one number or (n,). Raises ConfigError."""
    raw = numbers("the target return", target_return)
    if raw.shape not in ((), (n,)) or not np.isfinite(raw).all():
        raise ConfigError(
            f"the target return is {target_return!r}; expected a finite number, or {n} of them, "
            "one per episode"
        )
    return np.broadcast_to(raw, (n,)).astype(np.float64)


_ADVANCE = 1 << 20  # counter positions between two steps
# Numbers that an action may take, so that those of two steps are not the same ones: a position
# gives eight, of which the normal numbers' rejections take a few per cent.
MOST_NOISE = 7 * _ADVANCE


def _first(where: NDArray[np.bool_]) -> tuple[int, ...]:
    return tuple(int(i) for i in np.argwhere(where)[0])


def _lists(state: Slots) -> tuple[list[int], list[int]]:
    return state.episode.tolist(), state.step.tolist()
