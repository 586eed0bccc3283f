"""Making environments, and checking that one fits a dataset."""

import contextlib
import io
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np

from offrl.datasets.offline import Spec
from offrl.envs import adroit, tasks
from offrl.envs.goals import FlattenKeys
from offrl.envs.layout import ObsKeys
from offrl.errors import ConfigError, MissingDependencyError, near

Env = gymnasium.Env[Any, Any]

# Where gymnasium-robotics is absent, ids that begin so are explained rather than called unknown.
ROBOTICS = (
    *("AdroitHand", "AntMaze", "PointMaze", "FrankaKitchen"),
    *("Fetch", "HandManipulate", "HandReach"),
)


def make(env: str | Callable[..., Env], *, obs_keys: ObsKeys | None = None, **kwargs: Any) -> Env:
    """An environment from a Gymnasium id (`"Hopper-v5"`, `"module:Id-v0"`) or from a function.

    `kwargs` go to `gymnasium.make` or to the function. `obs_keys`, from a dataset's spec, lays
    dictionary observations out as the dataset's vector. AdroitHandDoor-v1, Hammer-v1 and
    Relocate-v1 are given D4RL's reward, and door D4RL's 300 steps (`max_episode_steps` changes
    them): see `offrl.envs.adroit`. Ids that begin with `offrl/` are those of `offrl.envs.tasks`.

    Raises ConfigError for an unknown id, or where something other than an environment comes
    back; MissingDependencyError where the id needs gymnasium-robotics.
    """
    if isinstance(env, gymnasium.Env) or not (isinstance(env, str) or callable(env)):
        kind = "an environment" if isinstance(env, gymnasium.Env) else type(env).__name__
        raise ConfigError(
            f"env is {env!r}, {kind}; pass a function that makes it, since several of it are "
            "needed, or a Gymnasium id"
        )
    made = _from_id(env, kwargs) if isinstance(env, str) else env(**kwargs)
    if not isinstance(made, gymnasium.Env):
        raise ConfigError(f"{env!r} returned {type(made).__name__}, not a gymnasium.Env")
    return made if obs_keys is None else FlattenKeys(made, obs_keys)


def _from_id(env_id: str, kwargs: dict[str, Any]) -> Env:
    if env_id.startswith(tasks.NAMESPACE):
        tasks.register(env_id)
        return _gymnasium_make(env_id, tasks.arguments(env_id, kwargs))
    if ":" not in env_id and env_id not in gymnasium.registry:
        _register_robotics(env_id)
    if env_id in adroit.TASKS:
        kind, name, steps = adroit.TASKS[env_id]
        made = _gymnasium_make(env_id, {"max_episode_steps": steps} | kwargs)
        if kwargs.get("reward_type", "dense") == "dense":
            made = adroit.D4RLReward(made, kind, name)
        return made
    return _gymnasium_make(env_id, kwargs)


def _register_robotics(env_id: str) -> None:
    try:
        # It prints advice about Adroit's rewards that `offrl.envs.adroit` makes needless.
        with contextlib.redirect_stderr(io.StringIO()):
            import gymnasium_robotics
    except ImportError as e:
        if env_id.startswith(ROBOTICS):
            raise MissingDependencyError(
                f"environment {env_id!r} needs gymnasium-robotics: pip install 'offrl[robot]'"
            ) from e
    else:
        gymnasium.register_envs(gymnasium_robotics)
    if env_id not in gymnasium.registry:
        raise ConfigError(
            f"unknown environment {env_id!r}{near(env_id, gymnasium.registry) or '.'} "
            "Give a registered Gymnasium id, 'module:Id-v0' where `module` registers it, or a "
            "function that returns an environment"
        )


def _gymnasium_make(env_id: str, kwargs: dict[str, Any]) -> Env:
    try:
        return gymnasium.make(env_id, **kwargs)
    except gymnasium.error.DependencyNotInstalled as e:
        raise MissingDependencyError(f"environment {env_id!r} cannot be made: {e}") from e
    except (gymnasium.error.Error, ImportError, TypeError) as e:
        raise ConfigError(f"environment {env_id!r} cannot be made: {e}") from e


def shaped(action: Any, space: gymnasium.Space[Any]) -> Any:
    """An action as the space has it: policies give vectors, and a box may be of matrices."""
    if isinstance(space, gymnasium.spaces.Box) and np.shape(action) != space.shape:
        entries = int(np.prod(space.shape))
        return np.reshape(action, space.shape) if np.size(action) == entries else action
    return action


def spaces_match(env: Env, spec: Spec) -> None:
    """Refuse an environment whose observations or actions are not those of the dataset.

    Compares the sizes, the kind of action, the bounds of the actions, and those bounds of the
    observations that are finite on both sides. Raises ConfigError naming what differs.
    """
    obs, action = env.observation_space, env.action_space
    differences = []
    if isinstance(obs, gymnasium.spaces.Box):
        size = int(np.prod(obs.shape))
        if size != len(spec.obs_low):
            differences.append(f"observations: {size} entries, dataset {len(spec.obs_low)}")
        else:
            differences += _bounds("observation", obs, spec.obs_low, spec.obs_high, finite=True)
    else:
        differences.append(f"observations: {obs}, dataset a vector of {len(spec.obs_low)} entries")

    size = len(spec.action_low)
    if spec.action_kind == "discrete":
        if not (isinstance(action, gymnasium.spaces.Discrete) and action.n == size):
            differences.append(f"actions: {action}, dataset {size} discrete actions")
    elif not isinstance(action, gymnasium.spaces.Box):
        differences.append(f"actions: {action}, dataset a vector of {size} entries")
    elif int(np.prod(action.shape)) != size:
        differences.append(f"actions: {int(np.prod(action.shape))} entries, dataset {size}")
    else:
        differences += _bounds("action", action, spec.action_low, spec.action_high, finite=False)

    if differences:
        name = env.spec.id if env.spec else type(env.unwrapped).__name__
        remedy = "Choose the environment that the data came from, with --env"
        if any(said.startswith(("action low", "action high")) for said in differences):
            remedy += (
                ", or state the bounds of the data's actions (--action-bounds LOW HIGH for a flat "
                "file, the spec of a dataset in memory)"
            )
        raise ConfigError(
            f"environment {name} does not match the dataset: {'; '.join(differences)}. {remedy}"
        )


def _bounds(
    what: str, box: gymnasium.spaces.Box, low: Any, high: Any, *, finite: bool
) -> list[str]:
    """Sentences for the bounds that differ; `finite` skips those where either side has none."""
    sentences = []
    for side, ours, theirs in (("low", box.low, low), ("high", box.high, high)):
        a, b = np.ravel(ours).astype(np.float64), np.asarray(theirs, np.float64)
        differ = ~np.isclose(a, b, rtol=1e-5, atol=1e-6)
        if finite:
            differ &= np.isfinite(a) & np.isfinite(b)
        where = np.flatnonzero(differ)
        if where.size:
            i = int(where[0])
            more = f" (and {where.size - 1} more)" if where.size > 1 else ""
            sentences.append(f"{what} {side}[{i}] is {a[i]:g}, dataset {b[i]:g}{more}")
    return sentences
