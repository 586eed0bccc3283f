"""A policy that chooses what to do next from its own latents of the future, and keeps to it.

At the first step of an episode, and again every `hold` steps, latents are drawn from the prior
given what has happened; the one whose value is greatest, or nearest to a return that was asked
for, is kept, and actions are those of the policy network under it. The past that the network sees
begins `past` steps before the latent was drawn, as in training; a step in which none is due costs
one pass of the policy network.

Draws depend on seed, episode and step, whether actions are to be deterministic or not: an episode
is the same whenever it is played again.
"""

import math
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
from offrl.latent_models import Segment
from offrl.policy import Policy
from offrl.policy_base import F32, Observation, Slots, given_rewards, given_targets
from offrl.policy_format import PolicyFile


@dataclass(frozen=True)
class Choosing:
    """How latents are chosen; part of a policy's saved file."""

    past: int  # steps before a latent is drawn that are looked at
    hold: int  # steps for which it is kept
    candidates: int  # draws of the prior, where it is Gaussian
    mass: float  # of the prior, onto whose ball outer draws are pulled
    least: float  # probability of a code that may be taken

    def __post_init__(self) -> None:
        check_intervals(self, past="[0, inf)", hold="[1, inf)", candidates="[1, inf)")
        check_intervals(self, mass="(0, 1]", least="[0, 1]")

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> "Choosing":
        """From `to_json`; TypeError or ConfigError where entries are unknown or wrong."""
        made = cls(**raw)
        for field in fields(cls):
            as_declared(made, field, getattr(made, field.name))
        return made


@dataclass(frozen=True)
class LatentState(Slots):
    """What n episodes side by side remember, one entry per slot, the newest step last.

    Observations and rewards are normalised, actions in [-1, 1].
    """

    target: F64  # (n,) return that is asked for, nan where the best is
    promised: F64  # (n,) value of the latent in use, in the environment's units
    latent: F32  # (n, latent)
    obs: F32  # (n, past + hold - 1, obs)
    action: F32  # (n, past + hold - 1, act)
    reward: F32  # (n, past + hold - 1)


@runtime_checkable
class LatentModel(Protocol):
    """A network that a `LatentPolicy` can hold: any `nn.Module` with these methods.

    `choose` gives latents (n, latent) and their values in the environment's units, `act` actions
    (n, act) in [-1, 1] of the last step of a segment. `reward_map` (2,) holds mean and deviation of
    rewards, `latents` says which noise its candidates want.
    """

    reward_map: Tensor
    latents: Any

    def choose(
        self, segment: Segment, noise: Tensor | None, target: Tensor, mass: float, least: float
    ) -> tuple[Tensor, Tensor]: ...
    def act(self, segment: Segment, z: Tensor) -> Tensor: ...
    def spec(self) -> dict[str, Any]: ...


class LatentPolicy(Policy):
    """A policy with a memory that acts under a latent of its own choice.

    `start` may say which return to aim at, for all episodes or for each; without one the best is
    looked for. `state.promised` is what the latent in use is good for. `act` needs the reward of
    the previous step where the past is looked at. Raises ConfigError for discrete actions.
    """

    _kind = LatentModel
    _methods = "choose, act and spec, with reward_map and latents"

    def __init__(
        self,
        actor: nn.Module,
        spec: Spec,
        obs_mean: ArrayLike | Tensor | None = None,
        obs_std: ArrayLike | Tensor | None = None,
        provenance: Mapping[str, Any] | None = None,
        seed: int = 0,
        *,
        choosing: Choosing,
    ) -> None:
        super().__init__(actor, spec, obs_mean, obs_std, provenance, seed)
        if spec.action_kind != "box":
            raise ConfigError(
                f"a policy with latents takes continuous actions; these are {spec.action_kind}"
            )
        self.choosing = choosing
        self._noise_shape = self.actor.latents.noise(choosing.candidates).get("latent")
        self._noise_size = math.prod(self._noise_shape or (0,))

    def start(
        self, n: int, goal: Any = None, target_return: float | ArrayLike | None = None
    ) -> LatentState:
        """The state of n episodes, numbered 0 to n - 1, before their first action.

        `target_return` is in the environment's units, one number or (n,). Raises ConfigError for a
        goal.
        """
        if goal is not None:
            raise ConfigError("this policy chooses by returns: it takes no goal")
        before = self.choosing.past + self.choosing.hold - 1
        return LatentState(
            episode=np.arange(n, dtype=np.int64),
            step=np.zeros(n, np.int64),
            target=self._targets(target_return, n),
            promised=np.zeros(n),
            latent=np.zeros((n, self.actor.latents.size), np.float32),
            obs=np.zeros((n, before, self.obs_dim), np.float32),
            action=np.zeros((n, before, self.act_dim), np.float32),
            reward=np.zeros((n, before), np.float32),
        )

    def restart(
        self,
        state: Slots,
        slots: Sequence[int],
        episodes: Sequence[int] | None = None,
        target_return: float | ArrayLike | None = None,
    ) -> LatentState:
        """The state in which `slots` begin new episodes, with these numbers or the next free.

        What is left of their old episodes is never looked at, but the target, unless there is a
        new one, of a shape as in `start` for n = len(slots).
        """
        fresh, chosen = self._own(super().restart(self._own(state), slots, episodes)), list(slots)
        if target_return is None:
            return fresh
        target = fresh.target.copy()
        target[chosen] = self._targets(target_return, len(chosen))
        return replace(fresh, target=target)

    def act(
        self,
        obs: Observation,
        state: Slots,
        reward: ArrayLike | None = None,
        deterministic: bool = True,
    ) -> tuple[NDArray[Any], LatentState]:
        """Actions (n, act) for observations (n, obs), one per slot, and the state that follows.

        `reward` (n,) is that of the previous step, in the environment's units; in an episode's
        first step it is not looked at. Raises DataError where it is needed and missing.
        """
        state = self._own(state)
        x = self._observed(obs, state)
        noise = np.zeros((len(x), self._noise_size), np.float32)
        for k in np.flatnonzero(state.step % self.choosing.hold == 0):
            noise[k] = self._draw(int(state.episode[k]), int(state.step[k]))
        action, after = self._after(x, self._earned(state, reward), noise)
        return self._to_units(action), after

    def _forward(self, obs: F32, noise: F32 | None) -> F32:
        """The first action of episodes that begin with these observations."""
        if noise is None:
            noise = np.tile(self._draw(-1, 0), (len(obs), 1))
        return self._after(obs, self.start(len(obs)), noise)[0]

    def _earned(self, state: LatentState, reward: ArrayLike | None) -> LatentState:
        later = state.step > 0
        if not (later.any() and state.reward.shape[1]):
            return state
        if reward is None:
            raise DataError("this policy looks back; give act() the reward of the previous step")
        given = given_rewards(reward, state.step)
        mean, std = self.actor.reward_map.tolist()
        known = state.reward.copy()
        known[later, -1] = (given[later] - mean) / std
        return replace(state, reward=known)

    @torch.no_grad()
    def _after(self, x: F32, state: LatentState, noise: F32) -> tuple[F32, LatentState]:
        """The action of one more step, and the state with that step in it."""
        c, like = self.choosing, next(self.actor.parameters())
        obs = np.concatenate([state.obs, x[:, None]], 1)
        now = np.zeros((len(x), 1), np.float32)
        reward = np.concatenate([state.reward, now], 1)
        unknown = np.zeros((len(x), 1, self.act_dim), np.float32)
        ages = np.arange(obs.shape[1])[::-1]
        due = state.step % c.hold == 0
        seen = np.minimum(state.step, c.past + state.step % c.hold)[:, None]
        real = (ages <= seen).astype(np.float32)

        def there(array: NDArray[Any]) -> Tensor:
            return torch.from_numpy(array).to(like)

        time = torch.from_numpy(np.maximum(state.step[:, None] - ages, 0)).to(like.device)
        mask = there(real)
        segment = Segment(
            there(obs) * mask[..., None],
            there(np.concatenate([state.action, unknown], 1)) * mask[..., None],
            there(reward) * mask,
            mask,
            time * mask.long(),
        )
        latent, promised = state.latent, state.promised
        if due.any():
            normals = None
            if self._noise_shape is not None:
                normals = there(noise).reshape(-1, *self._noise_shape)
            z, value = self.actor.choose(segment, normals, there(state.target), c.mass, c.least)
            latent = np.where(due[:, None], _host(z), latent)
            promised = np.where(due, _host(value).astype(np.float64), promised)
        action = _host(self.actor.act(segment, there(latent)))
        return action, replace(
            state,
            step=state.step + 1,
            promised=promised,
            latent=latent,
            obs=obs[:, 1:],
            action=np.concatenate([state.action, action[:, None]], 1)[:, 1:],
            reward=reward[:, 1:],
        )

    def _targets(self, target_return: float | ArrayLike | None, n: int) -> F64:
        if target_return is None:
            return np.full(n, np.nan)
        return given_targets(target_return, n)

    def _own(self, state: Slots) -> LatentState:
        if not isinstance(state, LatentState):
            raise DataError("the state is not that of a policy with latents; begin with start()")
        return state

    def _file(self) -> PolicyFile:
        return replace(super()._file(), conditioning=self.choosing.to_json())


def _host(x: Tensor) -> F32:
    array: F32 = x.to("cpu", torch.float32).numpy()
    return array


def latent_policy(saved: PolicyFile, actor: nn.Module, seed: int = 0) -> LatentPolicy:
    """The policy that a file holds. Raises RunError where what it says of latents is damaged."""
    try:
        choosing = Choosing.from_json(saved.conditioning or {})
    except (TypeError, ConfigError) as e:
        raise RunError(f"{saved.path}: the entry 'conditioning' is damaged: {e}") from e
    maps = saved.obs_mean, saved.obs_std
    return LatentPolicy(actor, saved.spec, *maps, saved.provenance, seed, choosing=choosing)
