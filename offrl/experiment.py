"""From names to a run: finds the agent, the data, the recipe and the environment, then trains."""

import platform
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import offrl
from offrl.agent import Agent
from offrl.callbacks import Callback
from offrl.datasets.loading import load_dataset
from offrl.datasets.offline import OfflineDataset, Reference
from offrl.envs.making import make, spaces_match
from offrl.envs.references import families, reference_for
from offrl.errors import ConfigError, RunError, near
from offrl.files import read_json, write_json
from offrl.networks import Learners
from offrl.policy import Policy
from offrl.registry import find_agent, find_recipe
from offrl.training import TrainConfig, Trainer

EnvLike = str | Callable[..., Any] | None
NO_ENV = "none"
VALIDATION_WITHOUT_ENV = 0.1


@dataclass(frozen=True)
class DataConfig:
    """How a dataset is read and split."""

    out_of_bounds: Literal["refuse", "clip", "keep"] = (
        "refuse"  # refuse, clip or keep actions outside the stated bounds
    )
    time_limit: int | Literal["keep"] | None = None  # steps: terminals there are truncations
    data_dir: str | None = None  # folder to look for named datasets in first
    validation: float | None = None  # share of episodes held out; 0.1 without an environment
    split_seed: int = 0  # of the episodes held out


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
    source: str | None  # how the dataset was named; None for one passed as an object
    env: EnvLike
    recipe: str
    recipe_values: Mapping[str, Any]

    @property
    def reference(self) -> Reference | None:
        if self.dataset.reference is not None:
            return self.dataset.reference
        return reference_for(self.env) if isinstance(self.env, str) else None

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
    dataset: str | Path | OfflineDataset,
    env: EnvLike = "auto",
    recipe: str = "auto",
    data: DataConfig | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Plan:
    """Resolve every name; `settings` are fields of the trainer's and the agent's configs.

    The order of precedence is: the class's defaults, the recipe, then `settings`.
    """
    name, cls, defaults = find_agent(agent)
    data = data or DataConfig()
    source = None
    if not isinstance(dataset, OfflineDataset):
        source = str(dataset)
        dataset = load_dataset(
            dataset,
            out_of_bounds=data.out_of_bounds,
            time_limit=data.time_limit,
            data_dir=data.data_dir,
        )
    env = dataset.env_id if env == "auto" else None if env == NO_ENV else env
    if env is None and data.validation is None:
        data = replace(data, validation=VALIDATION_WITHOUT_ENV)
    families_of = families(env if isinstance(env, str) else dataset.env_id or dataset.name)
    recipe, values = find_recipe(cls, recipe, families_of or families(dataset.name))
    train, agent_config = configure(TrainConfig(), defaults, {**values, **(settings or {})})
    return Plan(name, cls, agent_config, train, data, dataset, source, env, recipe, values)


def configure(
    train: TrainConfig, agent: Any, settings: Mapping[str, Any]
) -> tuple[TrainConfig, Any]:
    """Both configs with these settings; ConfigError for a name that neither has."""
    if not is_dataclass(agent) or isinstance(agent, type):
        raise ConfigError(f"an agent's settings must be a dataclass, not {agent!r}")
    known = {f.name: "train" for f in fields(train)} | {f.name: "agent" for f in fields(agent)}
    parts: dict[str, dict[str, Any]] = {"train": {}, "agent": {}}
    for key, value in settings.items():
        if key not in known:
            raise ConfigError(
                f"{type(agent).__name__} and TrainConfig have no setting {key!r}{near(key, known)}"
            )
        parts[known[key]][key] = tuple(value) if isinstance(value, list) else value
    return replace(train, **parts["train"]), replace(agent, **parts["agent"])


def train(
    agent: str | type[Agent] = "td3_bc",
    dataset: str | Path | OfflineDataset | None = None,
    *,
    env: EnvLike = "auto",
    out: str | Path | None = None,
    recipe: str = "auto",
    resume: str | Path | None = None,
    validation: float | None = None,
    out_of_bounds: Literal["refuse", "clip", "keep"] = "refuse",
    time_limit: int | Literal["keep"] | None = None,
    data_dir: str | None = None,
    callbacks: Sequence[Callback] = (),
    **settings: Any,
) -> Run:
    """Train an agent on logged data.

    `agent` is a name, `package.module:Class`, or a subclass of `Agent`; `dataset` a name, a path
    or an `OfflineDataset`; `env` a Gymnasium id, a function that makes the environment, 'auto'
    (the one that the dataset names) or None. `settings` are fields of `TrainConfig` (steps, seed,
    seeds, ...) and of the agent's config. `resume` continues the run in that folder.
    Raises OffrlError, before anything is written, for what cannot work.
    """
    if resume is not None:
        given = None if dataset is None else dataset
        return resume_run(Path(resume), dataset=given, env=env, callbacks=callbacks)
    if dataset is None:
        raise ConfigError("no dataset was given: pass a name, a path or an OfflineDataset")
    data = DataConfig(out_of_bounds, time_limit, data_dir, validation)
    return start_run(plan(agent, dataset, env, recipe, data, settings), out, callbacks)


def start_run(plan: Plan, out: str | Path | None = None, callbacks: Sequence[Callback] = ()) -> Run:
    """Train from the first step in a new folder."""
    folder = _free_folder(plan) if out is None else Path(out)
    if folder.exists():
        raise RunError(
            f"{folder} exists already and is not overwritten; choose another --out, or continue "
            f"it with --resume {folder}"
        )
    folders = learner_folders(folder, plan.train)
    trainer = _trainer(plan, folders, callbacks)
    try:
        for path, seed in zip(folders, plan.train.learner_seeds, strict=True):
            path.mkdir(parents=True)
            single = replace(plan, train=replace(plan.train, seed=seed, seeds=1))
            write_json(path / "config.json", single.record())
        if len(folders) > 1:
            write_json(folder / "config.json", plan.record())
    except OSError as error:
        raise RunError(f"the run's folder {folder} cannot be made: {error}") from None
    return _finished(trainer, plan, folders, resume=False)


def resume_run(
    folder: Path,
    *,
    dataset: str | Path | OfflineDataset | None = None,
    env: EnvLike = "auto",
    callbacks: Sequence[Callback] = (),
) -> Run:
    """Continue the run in this folder from its newest checkpoint.

    A dataset or environment that was passed as an object must be passed again.
    """
    if not (folder / "config.json").exists():
        raise RunError(f"{folder} is not a run: it has no config.json")
    record = read_json(folder / "config.json")
    if record["env_is_callable"] and not callable(env):
        raise RunError(
            f"{folder} was evaluated in an environment made by {record['env']}; pass that "
            "function as env="
        )
    if dataset is None:
        dataset = record["dataset"]["source"]
    if dataset is None:
        raise RunError(f"{folder} was trained on a dataset in memory; pass it as dataset=")
    resumed = plan(
        record["agent"],
        dataset,
        env if callable(env) else record["env"] or NO_ENV,
        "none",
        DataConfig(**record["data"]),
        {**record["train"], **record["agent_config"]},
    )
    resumed = replace(resumed, recipe=record["recipe"], recipe_values=record["recipe_values"])
    folders = learner_folders(folder, resumed.train)
    return _finished(_trainer(resumed, folders, callbacks), resumed, folders, resume=True)


def learner_folders(folder: Path, config: TrainConfig) -> list[Path]:
    """The run's own folder for one learner, `seed-<s>` within it for several."""
    if config.seeds == 1:
        return [folder]
    return [folder / f"seed-{seed}" for seed in config.learner_seeds]


def _trainer(plan: Plan, folders: Sequence[Path], callbacks: Sequence[Callback]) -> Trainer:
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
        raise ConfigError(f"{error} To train without evaluations, use --env none") from None
    spaces_match(made, plan.dataset.spec)
    made.close()
    return factory


def _finished(trainer: Trainer, plan: Plan, folders: Sequence[Path], resume: bool) -> Run:
    trainer.run(resume=resume)
    learners = range(len(folders))
    return Run(
        tuple(folders),
        tuple(trainer.policy(k) for k in learners),
        tuple(trainer.summary(k) for k in learners),
    )


def _free_folder(plan: Plan) -> Path:
    name = f"{plan.dataset.name}-{plan.agent}-seed{plan.train.seed}".replace("/", "-")
    for attempt in range(1, 10_000):
        folder = Path("runs") / (name if attempt == 1 else f"{name}-{attempt}")
        if not folder.exists():
            return folder
    raise RunError(f"runs/{name} and its successors exist; choose --out")


def versions() -> dict[str, str]:
    """Of Python and of the packages that decide the numbers."""
    found = {"python": platform.python_version(), "offrl": offrl.__version__}
    for package in ("torch", "numpy", "gymnasium", "mujoco", "minari"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def source_commit() -> str | None:
    """The commit of the checkout that offrl is imported from, if it is one."""
    root = Path(offrl.__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    try:
        result = subprocess.run(
            ["git", "-C", str(root), "rev-parse", "HEAD"],
            capture_output=True, text=True, timeout=10, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip()
