"""How good a policy is: the same starts for every policy, each played once to its end.

Start i is `env.reset(seed=s_i)`, where s_i follows from the evaluation's seed and i alone.
Episodes are played side by side in slots, and start i always in slot i mod slots: the batch has
the same shape in every step, so that the result of a start does not depend on what is played
beside it, not even in the last bit. Keeping the first n episodes to finish instead would favour
short ones.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import gymnasium
import numpy as np
from numpy.typing import NDArray

from offrl.datasets.offline import Reference, Spec
from offrl.envs.goals import FlattenKeys
from offrl.envs.making import Env, make, shaped, spaces_match
from offrl.envs.outcomes import Outcome
from offrl.envs.references import reference_for
from offrl.errors import ConfigError, OffrlError, RunError
from offrl.statistics import Interval, mode_coverage, t_interval, wilson_interval
from offrl.streams import Stream

SLOTS = 10
ENDLESS = 100_000  # steps after which an episode without a time limit is taken to have no end


@runtime_checkable
class StatefulPolicy(Protocol):
    """What `offrl.Policy` offers: a state per slot, and actions for all slots at once."""

    spec: Spec

    def start(self, n: int, goal: Any = None, target_return: float | None = None) -> Any: ...
    def restart(
        self, state: Any, slots: Sequence[int], episodes: Sequence[int] | None = None
    ) -> Any: ...
    def act(
        self, obs: Any, state: Any, reward: Any = None, deterministic: bool = True
    ) -> tuple[Any, Any]: ...


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Undiscounted return and length in steps of each episode, in the order of the starts.

    Where the environment says so (`offrl.envs.outcomes`), also whether each episode succeeded and
    which of several ways it took.
    """

    returns: NDArray[np.float64]  # (episodes,)
    lengths: NDArray[np.int64]  # (episodes,)
    starts: NDArray[np.int64]  # (episodes,) the seed that each was reset with
    env_id: str
    seed: int
    reference: Reference | None = None
    success: NDArray[np.bool_] | None = None  # (episodes,) at any step
    modes: NDArray[np.int64] | None = None  # (episodes,) the way taken, -1 for none
    ways: int | None = None  # how many there are

    @property
    def mean(self) -> float:
        return float(self.returns.mean())

    @property
    def std(self) -> float:
        """Sample standard deviation over episodes; 0 for a single one."""
        return float(self.returns.std(ddof=1)) if len(self.returns) > 1 else 0.0

    @property
    def ci95(self) -> Interval | None:
        """Student's 95 % interval of the mean over starts; None for one episode."""
        return t_interval(self.returns)

    @property
    def score(self) -> float | None:
        """100 (mean - min) / (max - min), where the environment has reference returns."""
        return None if self.reference is None else float(self.reference.score(self.mean))

    @property
    def score_ci95(self) -> Interval | None:
        """The interval of the score: that of the mean, on the reference's scale."""
        if self.reference is None or self.ci95 is None:
            return None
        low, high = self.reference.score(np.array([self.ci95.low, self.ci95.high]))
        return Interval(float(low), float(high))

    @property
    def success_rate(self) -> float | None:
        """Share of the episodes that succeeded."""
        return None if self.success is None else float(self.success.mean())

    @property
    def success_ci95(self) -> Interval | None:
        """Wilson's 95 % interval of the probability of success."""
        if self.success is None:
            return None
        return wilson_interval(int(self.success.sum()), len(self.success))

    @property
    def mode_coverage(self) -> float | None:
        """Entropy of the ways of the episodes that succeeded, 0 to 1 (`mode_coverage`)."""
        taken = self._ways_of_success()
        return None if taken is None or self.ways is None else mode_coverage(taken, self.ways)

    def _ways_of_success(self) -> NDArray[np.int64] | None:
        if self.modes is None or self.ways is None:
            return None
        successful = True if self.success is None else self.success
        return self.modes[successful & (self.modes >= 0)]

    def to_json(self) -> dict[str, Any]:
        """Every number, for a file: only JSON's own types."""

        def bounds(interval: Interval | None) -> list[float] | None:
            return None if interval is None else [interval.low, interval.high]

        ref = self.reference
        return {
            "env": self.env_id,
            "episodes": len(self.returns),
            "seed": self.seed,
            "mean": self.mean,
            "std": self.std,
            "ci95": bounds(self.ci95),
            "score": self.score,
            "score_ci95": bounds(self.score_ci95),
            "reference": ref and {"min": ref.min, "max": ref.max, "source": ref.source},
            "success_rate": self.success_rate,
            "success_ci95": bounds(self.success_ci95),
            "mode_coverage": self.mode_coverage,
            "length": float(self.lengths.mean()),
            "returns": self.returns.tolist(),
            "lengths": self.lengths.tolist(),
            "starts": self.starts.tolist(),
            "success": None if self.success is None else self.success.tolist(),
            "modes": None if self.modes is None else self.modes.tolist(),
        }

    def __str__(self) -> str:
        def within(interval: Interval | None) -> str:
            return "" if interval is None else f"   95 % interval {interval}"

        n = len(self.returns)
        spread = "" if n == 1 else f" ± {self.std:.1f}"
        lines = [
            f"{self.env_id}, {n} episode{'s' * (n > 1)}, starts of seed {self.seed}",
            f"  return  {self.mean:.1f}{spread}{within(self.ci95)}",
        ]
        if self.reference is not None:
            low, high, source = self.reference.min, self.reference.max, self.reference.source
            lines += [
                f"  score   {self.score:.1f}{within(self.score_ci95)}",
                f"          (0 is a return of {low:.1f}, 100 of {high:.1f}: {source})",
            ]
        if self.success is not None and (rate := self.success_ci95) is not None:
            percent = Interval(100 * rate.low, 100 * rate.high)
            lines.append(
                f"  success {100 * self.success.mean():.1f} % ({int(self.success.sum())} of {n})"
                f"{within(percent)}"
            )
        taken = self._ways_of_success()
        if taken is not None and self.ways is not None:
            counts = ", ".join(map(str, np.bincount(taken, minlength=self.ways)))
            lines.append(f"  modes   coverage {self.mode_coverage:.2f} (episodes by way: {counts})")
        lines.append(f"  length  {self.lengths.mean():.1f} steps")
        return "\n".join(lines)


def evaluate(
    policy: StatefulPolicy | Callable[[Any], Any] | Any,
    env: str | Callable[[], Env] | Env,
    episodes: int = 20,
    seed: int = 0,
    slots: int | None = None,
    *,
    deterministic: bool = True,
    reference: Reference | None = None,
    target_return: float | None = None,
) -> Evaluation:
    """Play `episodes` starts, each once, and return what every one of them gave.

    `policy` is an `offrl.Policy`; or an object whose `predict` takes one observation (its first
    result counts, as in stable-baselines3); or a function of one observation. `env` is a
    Gymnasium id, a function that makes environments, or one environment. `slots` episodes are
    played at once (10 unless told): results are compared to the last bit for the same number
    alone. `reference` gives the score; by default D4RL's for the environment's id, if any.
    `target_return` is what a policy conditioned on returns is to aim at, instead of its own.

    Raises ConfigError where the environment does not fit the policy or it takes no target, RunError
    where the environment gives a reward that is not finite, or states no time limit and does not
    end an episode in 100,000 steps.
    """
    if episodes < 1 or (slots is not None and slots < 1):
        raise ConfigError(f"episodes ({episodes}) and slots ({slots}) must be at least 1")
    width = slots or SLOTS
    driver = _driver(policy, width, deterministic, target_return)
    spec = getattr(policy, "spec", None)
    spec = spec if isinstance(spec, Spec) else None
    starts = [start_seed(seed, i) for i in range(episodes)]
    count = 1 if isinstance(env, gymnasium.Env) else min(width, episodes)
    envs: list[Env] = []
    try:
        for _ in range(count):
            envs.append(_environment(env, spec))
        if spec is not None:
            spaces_match(envs[0], spec)
        if isinstance(env, gymnasium.Env):
            turns = [({i % width: [i]}, {i % width: envs[0]}) for i in range(episodes)]
        else:
            turns = [
                ({k: list(range(k, episodes, width)) for k in range(count)}, dict(enumerate(envs)))
            ]
        results: dict[int, _Played] = {}
        for queues, places in turns:
            results |= _play(driver, places, queues, starts)
        env_id = _name(env, envs[0])
    finally:
        if not isinstance(env, gymnasium.Env):
            for made in envs:
                made.close()
    if reference is None and isinstance(env, str):
        reference = reference_for(env)
    played = [results[i] for i in range(episodes)]
    outcomes = [p.outcome for p in played]
    success = [o.success for o in outcomes if o.success is not None]
    modes = [o.mode for o in outcomes if o.mode is not None]
    return Evaluation(
        np.array([p.total for p in played], np.float64),
        np.array([p.steps for p in played], np.int64),
        np.array(starts, np.int64),
        env_id,
        seed,
        reference,
        np.array(success, np.bool_) if len(success) == episodes else None,
        np.array(modes, np.int64) if len(modes) == episodes else None,
        outcomes[0].modes,
    )


def start_seed(seed: int, i: int) -> int:
    """The seed that start i of an evaluation is reset with."""
    return int(Stream(seed, "eval").block(i).integers(2**31))


def _environment(env: str | Callable[[], Env] | Env, spec: Spec | None) -> Env:
    made = env if isinstance(env, gymnasium.Env) else make(env)
    dictionary = isinstance(made.observation_space, gymnasium.spaces.Dict)
    if spec is not None and spec.obs_keys is not None and dictionary:
        return FlattenKeys(made, spec.obs_keys)
    return made


def _name(env: str | Callable[[], Env] | Env, made: Env) -> str:
    if isinstance(env, str):
        return env
    return made.spec.id if made.spec else type(made.unwrapped).__name__


@dataclass(frozen=True)
class _Played:
    total: float
    steps: int
    outcome: Outcome


def _play(
    driver: "_Stateful | _Stateless",
    envs: dict[int, Env],
    queues: dict[int, list[int]],
    starts: Sequence[int],
) -> dict[int, _Played]:
    """What each episode in `queues` gave, which slot k plays in `envs[k]`."""
    results: dict[int, _Played] = {}
    current: dict[int, int] = {}
    observations: dict[int, Any] = {}
    rewards: dict[int, float] = {}
    total: dict[int, float] = {}
    steps: dict[int, int] = {}
    sizes = {slot: _size(env) for slot, env in envs.items()}
    outcomes: dict[int, Outcome] = {}

    def place(slot: int) -> str:
        return f"step {steps[slot]} of start {current[slot]} (seed {starts[current[slot]]})"

    def begin(slot: int) -> None:
        episode = current[slot] = queues[slot].pop(0)
        steps[slot] = 0
        try:
            observations[slot], _ = envs[slot].reset(seed=starts[episode])
        except Exception as error:
            raise _failed(error, place(slot)) from error
        if np.size(observations[slot]) != sizes[slot]:
            raise _misshapen(observations[slot], envs[slot], place(slot))
        rewards[slot], total[slot] = 0.0, 0.0
        outcomes[slot] = Outcome()
        driver.begin(slot, episode)

    queues = {slot: list(queue) for slot, queue in queues.items()}
    for slot in queues:
        begin(slot)
    while observations:
        actions = driver.actions(observations, rewards)
        for slot, action in actions.items():
            steps[slot] += 1
            action = shaped(action, envs[slot].action_space)
            try:
                obs, reward, terminated, truncated, info = envs[slot].step(action)
                rewards[slot] = float(reward)
            except Exception as error:
                raise _failed(error, place(slot)) from error
            if not np.isfinite(rewards[slot]):
                raise RunError(f"the environment gave the reward {reward} at {place(slot)}")
            if np.size(obs) != sizes[slot]:
                raise _misshapen(obs, envs[slot], place(slot))
            observations[slot] = obs
            outcomes[slot] = outcomes[slot].after(info)
            total[slot] += rewards[slot]
            if terminated or truncated:
                results[current[slot]] = _Played(total[slot], steps[slot], outcomes[slot])
                if queues[slot]:
                    begin(slot)
                else:
                    del observations[slot]
            elif steps[slot] >= ENDLESS and not _time_limit(envs[slot]):
                raise RunError(
                    f"the environment did not end the episode until {place(slot)}, and states no "
                    "time limit; give it one: max_episode_steps where it is registered, or "
                    "gymnasium.wrappers.TimeLimit"
                )
    return results


def _failed(error: Exception, place: str) -> Exception:
    """An error of the environment's own code as one of the run, which says where it arose."""
    if isinstance(error, OffrlError):
        return error
    said = str(error).strip().partition("\n")[0]
    return RunError(f"the environment failed at {place}: {type(error).__name__}: {said}")


def _misshapen(obs: Any, env: Env, place: str) -> RunError:
    return RunError(
        f"the environment gave an observation of shape {np.shape(obs)} at {place}; its "
        f"observation_space has shape {env.observation_space.shape}"
    )


def _size(env: Env) -> int:
    """Entries of an observation; a dictionary counts as one."""
    shape = env.observation_space.shape
    return 1 if shape is None else math.prod(shape)


def _time_limit(env: Env) -> int | None:
    return None if env.spec is None else env.spec.max_episode_steps


def _driver(
    policy: Any, width: int, deterministic: bool, target_return: float | None
) -> "_Stateful | _Stateless":
    if isinstance(policy, StatefulPolicy):
        return _Stateful(policy, width, deterministic, target_return)
    if target_return is not None:
        raise ConfigError(f"{type(policy).__name__} is not conditioned on a return")
    predict = getattr(policy, "predict", None)
    if callable(predict):
        return _Stateless(lambda obs: predict(obs, deterministic=deterministic))
    if callable(policy):
        return _Stateless(policy)
    raise ConfigError(
        f"{type(policy).__name__} is not a policy: it has neither act and start nor predict, and "
        "cannot be called"
    )


class _Stateful:
    """All slots in one batch; those that play nothing keep their last observation."""

    def __init__(
        self,
        policy: StatefulPolicy,
        width: int,
        deterministic: bool,
        target_return: float | None,
    ) -> None:
        self.policy, self.deterministic = policy, deterministic
        target = {} if target_return is None else {"target_return": target_return}
        self.state = policy.start(width, **target)
        self.obs = np.zeros((width, len(policy.spec.obs_low)), np.float32)
        self.reward = np.zeros(width, np.float32)

    def begin(self, slot: int, episode: int) -> None:
        self.state = self.policy.restart(self.state, [slot], [episode])

    def actions(self, observations: dict[int, Any], rewards: dict[int, float]) -> dict[int, Any]:
        for slot, obs in observations.items():
            self.obs[slot], self.reward[slot] = np.ravel(obs), rewards[slot]
        actions, self.state = self.policy.act(
            self.obs, self.state, self.reward, deterministic=self.deterministic
        )
        return {slot: actions[slot] for slot in observations}


class _Stateless:
    """One observation at a time, for policies of which nothing else is known."""

    def __init__(self, predict: Callable[[Any], Any]) -> None:
        self.predict = predict

    def begin(self, slot: int, episode: int) -> None:
        pass

    def actions(self, observations: dict[int, Any], rewards: dict[int, float]) -> dict[int, Any]:
        actions: dict[int, NDArray[Any]] = {}
        for slot, obs in observations.items():
            action = self.predict(obs)
            actions[slot] = action[0] if isinstance(action, tuple) else action
        return actions
