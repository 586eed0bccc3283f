"""Rolling a policy out into recorded episodes.

Episode i starts from the environment's reset with a seed, and draws its actions from numbers, that
follow from the collection's seed and i alone. A collection that was killed and resumed is
therefore the same, bit for bit, as one that ran through.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from offrl.datasets.foreign import load_arrays, load_sb3
from offrl.datasets.offline import Spec
from offrl.datasets.staging import Recorder, Staging
from offrl.envs import make
from offrl.envs.goals import flattened
from offrl.envs.making import spaces_match
from offrl.errors import ConfigError, RunError
from offrl.evaluation import StatefulPolicy
from offrl.policy_base import BasePolicy
from offrl.streams import Stream

Act = Callable[[NDArray[Any], float], NDArray[np.float32]]
KINDS = (
    "a run or policy directory of offrl, a .zip of stable-baselines3, or an .npz of plain arrays"
)


@runtime_checkable
class Behaviour(Protocol):
    """Something that acts: `episode(i)` gives the function from what is observed to actions.

    It is given the observation and the reward of the step before, which is 0 at first.
    """

    def episode(self, number: int) -> Act: ...


class Uniform:
    """Actions uniform within the bounds, as D4RL's `random`."""

    def __init__(self, spec: Spec, seed: int) -> None:
        self._low = np.asarray(spec.action_low, np.float32)
        self._high = np.asarray(spec.action_high, np.float32)
        if not np.isfinite([self._low, self._high]).all():
            raise ConfigError("the environment's actions have no bounds to be uniform within")
        self._stream = Stream(seed, "collect/uniform")

    def episode(self, number: int) -> Act:
        """One episode's actions, whatever the observations."""
        generator = self._stream.block(number)

        def act(obs: NDArray[Any], reward: float) -> NDArray[np.float32]:
            return generator.uniform(self._low, self._high).astype(np.float32)

        return act


class Rolled:
    """The actions of a policy, sampled from its distribution or its mode."""

    def __init__(self, policy: StatefulPolicy, deterministic: bool) -> None:
        self.policy, self.deterministic = policy, deterministic

    def episode(self, number: int) -> Act:
        """One episode's actions; the policy draws its noise by episode and step."""
        state = self.policy.restart(self.policy.start(1), [0], [number])

        def act(obs: NDArray[Any], reward: float) -> NDArray[np.float32]:
            nonlocal state
            batch, earned = np.asarray(obs, np.float32)[None], np.array([reward], np.float32)
            actions, state = self.policy.act(batch, state, earned, self.deterministic)
            return np.asarray(actions[0], np.float32)

        return act


def roll_out(
    env_id: str,
    behaviour: Behaviour,
    staging: Staging,
    steps: int,
    seed: int,
    part: str = "episodes",
    progress: Callable[[int, float], None] | None = None,
    *,
    episodes: int | None = None,
) -> None:
    """Append whole episodes to `staging` until it holds at least `steps` steps.

    Given `episodes`, until it holds that many instead. Observations that are dictionaries are
    laid out as vectors. `part` names a share of a collection, so that two shares begin at
    different starts. `progress` is told each finished episode's steps and return.
    """
    starts = Stream(seed, f"collect/{part}/starts")
    recorded = staging.steps()
    env = Recorder(flattened(make(env_id)), staging)
    try:
        while recorded < steps if episodes is None else len(staging) < episodes:
            number = len(staging)
            act = behaviour.episode(number)
            obs, _ = env.reset(seed=int(starts.block(number).integers(2**31)))
            length, total, reward, done = 0, 0.0, 0.0, False
            while not done:
                obs, earned, terminated, truncated, _ = env.step(act(obs, reward))
                reward = float(earned)
                length, total = length + 1, total + reward
                done = terminated or truncated
            recorded += length
            if progress is not None:
                progress(length, total)
    finally:
        env.close()


def load_any_policy(path: Path, env_id: str, spec: Spec, seed: int) -> BasePolicy:
    """A saved policy of any kind that offrl reads, checked against the environment's `spec`.

    Raises RunError for an unknown kind and a damaged file, ConfigError where it does not fit.
    """
    if path.suffix == ".npz":
        return load_arrays(path, spec, seed)
    if path.suffix == ".zip":
        return load_sb3(path, spec, seed)
    if path.is_file():
        raise RunError(f"{path}: not a policy that offrl reads, which is {KINDS}")
    from offrl.policy import load_policy

    policy = load_policy(path, seed=seed)
    env = flattened(make(env_id))
    try:
        spaces_match(env, policy.spec)
    finally:
        env.close()
    return policy


def digest(path: Path) -> str:
    """SHA-256 of a policy's file, or of the weights of a policy directory."""
    if path.is_dir():
        from offrl.policy_format import WEIGHTS, find

        path = find(path) / WEIGHTS
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error}") from error
