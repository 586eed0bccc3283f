"""Runs: begun in a new folder from a plan (`offrl.plans`), or continued from what one holds."""

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import offrl
from offrl.agent import Agent
from offrl.agents import AGENTS
from offrl.callbacks import Callback
from offrl.envs.making import make, spaces_match
from offrl.errors import ConfigError, RunError
from offrl.files import new_folder, read_json, write_json
from offrl.networks import Learners
from offrl.plans import NO_ENV, OFF, DataConfig, DataLike, EnvLike, Plan, in_use, plan
from offrl.policy import Policy
from offrl.registry import find_agent
from offrl.training import TrainConfig, Trainer

RECORDED = {
    **{"agent": str, "recipe": str, "env_is_callable": bool},
    **dict.fromkeys(("agent_config", "recipe_values", "train", "data", "dataset"), dict),
}


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
    if asked not in ("auto", own) and not record["env_is_callable"]:
        raise ConfigError(
            f"{folder} is evaluated in {own!r}, not in {asked!r}; leave env out, and play its "
            "policies elsewhere with offrl.evaluate"
        )
    if agent is not None and find_agent(agent)[0] != record["agent"]:
        raise RunError(f"{folder} is a run of {record['agent']}, not of {find_agent(agent)[0]}")
    moved = {} if device is None else {"device": device}
    if dataset is None:
        source = record["dataset"].get("source")
        if source is not None and os.path.isabs(source) and not Path(source).exists():
            raise RunError(
                f"{folder} was trained on {source}, which does not exist; if it has moved, say "
                "where it is: dataset (--dataset PATH)"
            )
        dataset = source
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
    for name in ("seed", *in_use(asdict(config), (*OFF, ""))):
        if hasattr(config, name) and name not in record:
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
