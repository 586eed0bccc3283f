"""What determines a run, resolved from names: agent, data, recipe, environment and settings."""

import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

from offrl.agent import Agent
from offrl.checks import as_declared
from offrl.datasets.corruption import families_of_data
from offrl.datasets.loading import SHIPPED, load_dataset, locate
from offrl.datasets.names import named_sets
from offrl.datasets.offline import OfflineDataset, Reference
from offrl.datasets.screening import bounded, screen_object
from offrl.envs.references import reference_for
from offrl.errors import ConfigError, near
from offrl.registry import find_agent, find_recipe
from offrl.training import TrainConfig
from offrl.versions import source_commit, versions

DataLike = str | os.PathLike[str] | Mapping[str, Any] | OfflineDataset
EnvLike = str | Callable[..., Any] | None
NO_ENV = "none"
VALIDATION_WITHOUT_ENV = 0.1
FEW = 5  # episodes of which a tenth rounds to none
OFF = (False, 0, None, "none", ())  # values of settings that change nothing
RUN_SETTINGS = {"agent", "dataset", "env", "recipe", "out", "wandb", "resume", "callbacks"}


@dataclass(frozen=True)
class DataConfig:
    """How a dataset is read and split."""

    # what is done with actions outside the stated bounds
    out_of_bounds: Literal["refuse", "clip", "keep"] = "refuse"
    time_limit: int | Literal["keep"] | None = None  # steps: terminals there are truncations
    data_dir: str | None = None  # folder to look for named datasets in first
    # share of episodes held out; without an environment 0.1, but one of a few and not the only one
    validation: float | None = None
    split_seed: int = 0  # of the episodes held out
    action_bounds: tuple[float, float] | None = None  # low and high of actions, for flat files


@dataclass(frozen=True)
class Plan:
    """Everything that a run is determined by, all names resolved."""

    agent: str
    cls: type[Agent]
    agent_config: Any
    train: TrainConfig
    data: DataConfig
    dataset: OfflineDataset
    source: str | None  # the dataset's name or absolute path; None for one passed as an object
    env: EnvLike
    recipe: str
    recipe_values: Mapping[str, Any]

    def __post_init__(self) -> None:
        """Settings that name a dataset hold in every working directory, as `source` does."""
        named = {name: getattr(self.agent_config, name) for name in self.cls.datasets}
        lasting = {name: _lasting(text, self.data.data_dir) for name, text in named.items() if text}
        if lasting:
            object.__setattr__(self, "agent_config", replace(self.agent_config, **lasting))

    @property
    def reference(self) -> Reference | None:
        """Of the environment played in: the dataset's own, unless another was asked for."""
        own = self.dataset.reference
        if isinstance(self.env, str) and (own is None or self.env != self.dataset.env_id):
            return reference_for(self.env)
        return own

    def record(self) -> dict[str, Any]:
        """What is stored as config.json."""
        returns = self.dataset.returns()
        env = self.env
        if callable(env):
            env = f"{env.__module__}:{getattr(env, '__qualname__', type(env).__qualname__)}"
        reference = self.reference
        return {
            "agent": self.agent,
            "agent_config": asdict(self.agent_config),
            "recipe": self.recipe,
            "recipe_values": dict(self.recipe_values),
            "train": asdict(self.train),
            "data": asdict(self.data),
            "dataset": {
                "name": self.dataset.name,
                "source": self.source,
                "fingerprint": self.dataset.fingerprint,
                "env_id": self.dataset.env_id,
                "steps": self.dataset.num_steps,
                "episodes": self.dataset.num_episodes,
                "behaviour_return_mean": float(returns.mean()),
                "behaviour_return_max": float(returns.max()),
                "reference": None if reference is None else asdict(reference),
            },
            "env": env,
            "env_is_callable": callable(self.env),
            "versions": versions(),
            "commit": source_commit(),
        }


def plan(
    agent: str | type[Agent],
    dataset: DataLike,
    env: EnvLike = "auto",
    recipe: str = "auto",
    data: DataConfig | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Plan:
    """Resolve every name; `settings` are fields of the trainer's and the agent's configs.

    Precedence, from the lowest: the class's defaults, the recipe, `settings`. Raises OffrlError
    for a name, a dataset or a setting that cannot be used.
    """
    name, cls, defaults = find_agent(agent)
    data = data or DataConfig()
    if data.data_dir is not None:
        data = replace(data, data_dir=os.path.abspath(data.data_dir))
    reading: dict[str, Any] = {
        "out_of_bounds": data.out_of_bounds,
        "time_limit": data.time_limit,
        "default_env": env if isinstance(env, str) and env not in ("auto", NO_ENV) else None,
        "action_bounds": data.action_bounds,
        "data_dir": data.data_dir,
    }
    source = None
    if isinstance(dataset, OfflineDataset):
        if data.action_bounds is not None:
            dataset = bounded(dataset, data.action_bounds)
        dataset = screen_object(dataset, data.out_of_bounds, data.time_limit)
    else:
        asked = dataset
        dataset = load_dataset(asked, **reading)
        source = None if isinstance(asked, Mapping) else _lasting(asked, data.data_dir)
    if cls.datasets:
        dataset = replace(dataset, reading=reading)
    env = dataset.env_id if env == "auto" else None if env == NO_ENV else env
    if env is None and data.validation is None:
        share = 0.0 if cls.measure is None else _held_out(dataset.num_episodes)
        data = replace(data, validation=share)
    played = env if isinstance(env, str) else dataset.env_id
    recipe, values = find_recipe(cls, recipe, families_of_data(played, dataset))
    train, agent_config = configure(TrainConfig(), defaults, {**values, **(settings or {})})
    return Plan(name, cls, agent_config, train, data, dataset, source, env, recipe, values)


def _held_out(episodes: int) -> float:
    """The share held out unless told: at least one of several episodes, never the only one."""
    if episodes == 1:
        return 0.0
    return 1 / episodes if episodes <= FEW else VALIDATION_WITHOUT_ENV


def _lasting(asked: str | os.PathLike[str], data_dir: str | None) -> str:
    """A dataset's name, or its path in the form that holds in every working directory."""
    text = os.fspath(asked)
    if text in named_sets():
        return text
    path, _ = locate(text, download=False, data_dir=data_dir)
    return text if path is None or path.parent == SHIPPED else os.path.abspath(path)


def check_names(agent_config: Any) -> None:
    """Raise ConfigError where an agent's setting has the name of one that every run has."""
    taken = {f.name for part in (TrainConfig, DataConfig) for f in fields(part)} | RUN_SETTINGS
    for field in fields(agent_config):
        if field.name in taken:
            raise ConfigError(
                f"{type(agent_config).__name__}.{field.name} has the name of a setting that every "
                "run has; rename it"
            )


def configure(
    train: TrainConfig, agent: Any, settings: Mapping[str, Any]
) -> tuple[TrainConfig, Any]:
    """Both configs with these settings; ConfigError for an unknown name or a wrong type."""
    check_names(agent)
    owner = {field.name: (config, field) for config in (train, agent) for field in fields(config)}
    values = {}
    for key, value in settings.items():
        if key not in owner:
            raise ConfigError(
                f"{type(agent).__name__} and TrainConfig have no setting {key!r}{near(key, owner)}"
            )
        values[key] = as_declared(*owner[key], value)

    def own(config: Any) -> dict[str, Any]:
        return {key: value for key, value in values.items() if owner[key][0] is config}

    return replace(train, **own(train)), replace(agent, **own(agent))


def in_use(settings: Mapping[str, Any], off: Collection[Any] = OFF) -> dict[str, Any]:
    """Settings without those that are off, and without those whose names begin with such a one."""
    idle = tuple(f"{name}_" for name, value in settings.items() if value in off)
    return {k: v for k, v in settings.items() if v not in off and not k.startswith(idle)}
