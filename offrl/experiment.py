"""From names to a run: finds the agent, the data, the recipe and the environment, then trains."""

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import offrl
from offrl.agent import Agent
from offrl.agents import AGENTS
from offrl.callbacks import Callback
from offrl.checks import as_declared
from offrl.datasets.corruption import families_of_data
from offrl.datasets.loading import SHIPPED, load_dataset, locate
from offrl.datasets.names import named_sets
from offrl.datasets.offline import OfflineDataset, Reference
from offrl.datasets.screening import screen_object
from offrl.envs.making import make, spaces_match
from offrl.envs.references import reference_for
from offrl.errors import ConfigError, RunError, near
from offrl.files import new_folder, read_json, write_json
from offrl.networks import Learners
from offrl.policy import Policy
from offrl.registry import find_agent, find_recipe
from offrl.training import TrainConfig, Trainer
from offrl.versions import source_commit, versions

DataLike = str | os.PathLike[str] | Mapping[str, Any] | OfflineDataset
EnvLike = str | Callable[..., Any] | None
NO_ENV = "none"
VALIDATION_WITHOUT_ENV = 0.1
FEW = 5  # episodes of which a tenth rounds to none
OFF = (False, 0, None, "none", "", ())  # values of settings that change nothing
RUN_SETTINGS = {"agent", "dataset", "env", "recipe", "out", "wandb", "resume", "callbacks"}
RECORDED = {
    **{"agent": str, "recipe": str, "env_is_callable": bool},
    **dict.fromkeys(("agent_config", "recipe_values", "train", "data", "dataset"), dict),
}


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
class Run:
    """A finished run: its folders, one per learner, and what each reached."""

    folders: tuple[Path, ...]
    policies: tuple[Policy, ...]
    summaries: tuple[Mapping[str, Any], ...]

    @property
    def policy(self) -> Policy:
        """The first learner's policy."""
        return self.policies[0]

    def predict(self, obs: Any, deterministic: bool = True) -> Any:
        """The first learner's action."""
        return self.policy.predict(obs, deterministic=deterministic)


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
    source = None
    if isinstance(dataset, OfflineDataset):
        if data.action_bounds is not None:
            raise ConfigError(
                f"action_bounds is {data.action_bounds}, but {dataset.name} is a dataset already; "
                "make it with these bounds, as its spec"
            )
        dataset = screen_object(dataset, data.out_of_bounds, data.time_limit)
    else:
        asked = dataset
        stated = env if isinstance(env, str) and env not in ("auto", NO_ENV) else None
        dataset = load_dataset(
            asked,
            out_of_bounds=data.out_of_bounds,
            time_limit=data.time_limit,
            default_env=stated,
            action_bounds=data.action_bounds,
            data_dir=data.data_dir,
        )
        source = None if isinstance(asked, Mapping) else _lasting(asked, data.data_dir)
    env = dataset.env_id if env == "auto" else None if env == NO_ENV else env
    if env is None and data.validation is None:
        data = replace(data, validation=_held_out(dataset.num_episodes))
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


def train(
    agent: str | type[Agent] | None = None,
    dataset: DataLike | None = None,
    *,
    env: EnvLike = "auto",
    out: str | Path | None = None,
    recipe: str = "auto",
    resume: str | Path | None = None,
    validation: float | None = None,
    split_seed: int = 0,
    out_of_bounds: Literal["refuse", "clip", "keep"] = "refuse",
    time_limit: int | Literal["keep"] | None = None,
    data_dir: str | None = None,
    action_bounds: tuple[float, float] | None = None,
    callbacks: Sequence[Callback] = (),
    **settings: Any,
) -> Run:
    """Train an agent on logged data.

    `agent` is a name, `package.module:Class`, or a subclass of `Agent`; `dataset` a name, a path,
    D4RL's dictionary of arrays, or an `OfflineDataset`; `env` a Gymnasium id, a function that makes
    the environment, 'auto' (the one that the dataset names) or None. `settings` are fields of
    `TrainConfig` (steps, seed, seeds, ...) and of the agent's config.

    `resume` continues the run in that folder with the settings that it began with, on another
    `device` if told; agent, dataset and env are given again only where they were passed as objects.
    Raises OffrlError, before anything is written, for what cannot work.
    """
    data = DataConfig(out_of_bounds, time_limit, data_dir, validation, split_seed, action_bounds)
    if resume is not None:
        device = settings.pop("device", None)
        if settings or out is not None or recipe != "auto" or data != DataConfig():
            raise ConfigError(
                "resume takes no other setting than a device: a run goes on with those that it "
                "began with"
            )
        return resume_run(
            Path(resume),
            agent=agent,
            dataset=dataset,
            env=env,
            callbacks=callbacks,
            device=device,
        )
    if agent is None:
        raise ConfigError(f"no agent was given: pass one of {', '.join(AGENTS)}, or a class")
    if dataset is None:
        raise ConfigError("no dataset was given: pass a name, a path or an OfflineDataset")
    return start_run(plan(agent, dataset, env, recipe, data, settings), out, callbacks)


def start_run(plan: Plan, out: str | Path | None = None, callbacks: Sequence[Callback] = ()) -> Run:
    """Train from the first step in a new folder, which stays only if a step was taken."""
    folder = _free_folder(plan) if out is None else Path(out)
    refuse_existing(folder)
    first = _trainers(plan, folder, callbacks)[0]()  # refuses before anything is written
    while True:
        try:
            _make_folder(plan, folder)
            break
        except OSError as error:
            if out is None and os.path.lexists(folder):  # another run took the name meanwhile
                folder = _free_folder(plan)
                continue
            refuse_existing(folder)
            raise RunError(f"the run's folder {folder} cannot be made: {error}") from None
    first.root, first.folders = folder, learner_folders(folder, plan.train)[: len(first.folders)]
    later = _trainers(plan, folder, callbacks)[1:]
    try:
        return _finished([lambda: first, *later], resume=False)
    except BaseException:
        if first.step == 0:
            shutil.rmtree(folder, ignore_errors=True)
        raise


def _make_folder(plan: Plan, folder: Path) -> None:
    """The folder of a run with the records of all its learners; OSError where it cannot be."""
    with new_folder(folder) as fresh:
        for path, single in zip(learner_folders(fresh, plan.train), _singles(plan), strict=True):
            path.mkdir(exist_ok=True)
            write_json(path / "config.json", single.record())
        if plan.train.seeds > 1:
            write_json(fresh / "config.json", plan.record())


def refuse_existing(folder: Path) -> None:
    """Raise RunError where something stands in the place of a new run, or nothing can."""
    try:
        exists = os.path.lexists(folder)
    except OSError as error:
        raise RunError(f"the run's folder {folder} cannot be made: {error}") from None
    if exists:
        raise RunError(
            f"{folder} exists already and is not overwritten; choose another --out, or continue "
            f"it with --resume {folder}"
        )


def resume_run(
    folder: Path,
    *,
    agent: str | type[Agent] | None = None,
    dataset: DataLike | None = None,
    env: EnvLike = "auto",
    callbacks: Sequence[Callback] = (),
    device: str | None = None,
) -> Run:
    """Continue the run in this folder from its newest checkpoint, on its device unless told.

    A dataset or environment that was passed as an object must be passed again, and so must an
    agent whose class cannot be imported. Raises RunError where the folder is not that of a run, and
    ConfigError for an environment that is not the run's.
    """
    record = recorded(folder)
    if record["env_is_callable"] and not callable(env):
        raise RunError(
            f"{folder} was evaluated in an environment made by {record['env']}; pass that "
            "function as env="
        )
    asked, own = (NO_ENV if e is None else e for e in (env, record.get("env")))
    if isinstance(asked, str) and asked not in ("auto", own):
        raise ConfigError(
            f"{folder} is evaluated in {own!r}, not in {asked!r}; leave env out, and play its "
            "policies elsewhere with offrl.evaluate"
        )
    if agent is not None and find_agent(agent)[0] != record["agent"]:
        raise RunError(f"{folder} is a run of {record['agent']}, not of {find_agent(agent)[0]}")
    moved = {} if device is None else {"device": device}
    if dataset is None:
        dataset = record["dataset"].get("source")
    if dataset is None:
        raise RunError(f"{folder} was trained on a dataset in memory; pass it as dataset=")
    try:
        stored: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in record["data"].items()
        }
        data = DataConfig(**stored)
    except TypeError as error:
        raise RunError(f"{folder / 'config.json'} is not of this version: {error}") from None
    resumed = plan(
        agent or record["agent"],
        dataset,
        env if callable(env) else record.get("env") or NO_ENV,
        "none",
        data,
        {**record["train"], **record["agent_config"], **moved},
    )
    for part, config in (("train", resumed.train), ("agent_config", resumed.agent_config)):
        _check_complete(folder / "config.json", part, config, record[part])
    resumed = replace(resumed, recipe=record["recipe"], recipe_values=record["recipe_values"])
    return _finished(_trainers(resumed, folder, callbacks), resume=True)


def recorded(folder: Path) -> Mapping[str, Any]:
    """The config.json of a run; RunError where it lacks an entry that a resumption needs."""
    path = folder / "config.json"
    if not path.is_file():
        raise RunError(f"{folder} is not a run: it has no config.json")
    record = read_json(path)
    for name, kind in RECORDED.items():
        if not isinstance(record, dict) or not isinstance(record.get(name), kind):
            raise RunError(f"{path} is damaged: it has no {name!r} that a run writes")
    return dict(record)


def _check_complete(path: Path, part: str, config: Any, record: Mapping[str, Any]) -> None:
    """Raise RunError where `config` has a setting in use that the record does not state.

    A setting that is off, with those that begin with its name, is one that the agent may not have
    had when the run began.
    """
    values = asdict(config)
    off = tuple(f"{name}_" for name, value in values.items() if value in OFF)
    for name, value in values.items():
        used = name == "seed" or (value not in OFF and not name.startswith(off))
        if used and name not in record:
            raise RunError(
                f"{path} is damaged: its {part!r} has no {name!r}. Restore it as it was, or start "
                "the run again"
            )


def learner_folders(folder: Path, config: TrainConfig) -> list[Path]:
    """The run's own folder for one learner, `seed-<s>` within it for several."""
    if config.seeds == 1:
        return [folder]
    return [folder / f"seed-{seed}" for seed in config.learner_seeds]


def _singles(plan: Plan) -> list[Plan]:
    """The plan of each learner alone."""
    seeds = plan.train.learner_seeds
    return [replace(plan, train=replace(plan.train, seed=seed, seeds=1)) for seed in seeds]


def _trainers(
    plan: Plan, folder: Path, callbacks: Sequence[Callback]
) -> list[Callable[[], Trainer]]:
    """What makes the trainers that fill a run's folder, one after another.

    One trains all learners side by side where the agent is stacked; else each has its own.
    """
    folders = learner_folders(folder, plan.train)
    if plan.cls.stacks(plan.agent_config):
        return [partial(_trainer, plan, folder, folders, callbacks)]
    return [
        partial(_trainer, single, folder, [path], callbacks)
        for single, path in zip(_singles(plan), folders, strict=True)
    ]


def _trainer(
    plan: Plan, root: Path, folders: Sequence[Path], callbacks: Sequence[Callback]
) -> Trainer:
    training, held_out = plan.dataset, None
    if plan.data.validation:
        training, held_out = plan.dataset.split(plan.data.validation, plan.data.split_seed)
    agent = plan.cls(plan.dataset.spec, plan.agent_config, Learners(plan.train.learner_seeds))
    return Trainer(
        agent,
        training,
        held_out,
        plan.train,
        folders,
        root,
        _env_factory(plan),
        plan.reference,
        callbacks,
        provenance={
            "agent": plan.agent,
            "dataset": plan.dataset.name,
            "fingerprint": plan.dataset.fingerprint,
            "env": plan.env if isinstance(plan.env, str) else None,
            "offrl": offrl.__version__,
        },
    )


def _env_factory(plan: Plan) -> Callable[[], Any] | None:
    """Makes the environment, after one was made and compared with the dataset."""
    env = plan.env
    if env is None:
        return None
    obs_keys = plan.dataset.spec.obs_keys

    def factory() -> Any:
        return make(env, obs_keys=obs_keys)

    try:
        made = factory()
    except ConfigError as error:
        reason = str(error).rstrip(".")
        raise ConfigError(f"{reason}. To train without evaluations, use --env none") from None
    try:
        spaces_match(made, plan.dataset.spec)
    finally:
        made.close()
    return factory


def _finished(trainers: Sequence[Callable[[], Trainer]], resume: bool) -> Run:
    folders: list[Path] = []
    policies: list[Policy] = []
    summaries: list[Mapping[str, Any]] = []
    for make_trainer in trainers:
        trainer = make_trainer()
        trainer.run(resume=resume)
        folders += trainer.folders
        for k in range(len(trainer.folders)):
            policies.append(trainer.policy(k))
            summaries.append(trainer.summary(k))
    return Run(tuple(folders), tuple(policies), tuple(summaries))


def _free_folder(plan: Plan) -> Path:
    name = f"{plan.dataset.name}-{plan.agent}-seed{plan.train.seed}".replace("/", "-")
    for attempt in range(1, 10_000):
        folder = Path("runs") / (name if attempt == 1 else f"{name}-{attempt}")
        if not folder.exists():
            return folder
    raise RunError(f"runs/{name} and its successors exist; choose --out")
