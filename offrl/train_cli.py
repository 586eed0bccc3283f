"""`offrl train`: one flat parser of run, trainer and agent settings, made for the agent named."""

import io
import re
from collections.abc import Mapping
from contextlib import redirect_stderr
from dataclasses import asdict, dataclass, field, fields, make_dataclass, replace
from itertools import dropwhile, takewhile
from pathlib import Path
from typing import Any

import tyro

from offrl.agents import AGENTS
from offrl.arguments import Parser
from offrl.callbacks import Callback
from offrl.errors import ConfigError, near
from offrl.experiment import Run, recorded, refuse_existing, resume_run, start_run
from offrl.plans import DataConfig, Plan, check_names, plan
from offrl.registry import find_agent
from offrl.training import TrainConfig

USAGE = f"""usage: offrl train --agent NAME --dataset NAME_OR_PATH [settings]
       offrl train --resume DIR [--dataset PATH] [--device DEVICE] [--wandb PROJECT]

agents: {", ".join(AGENTS)}, or package.module:Class of your own

offrl train --agent NAME --help shows every setting of that agent.
offrl data list names the datasets."""

HINT = "offrl train --agent NAME --help shows all settings"


@dataclass(frozen=True)
class RunArguments:
    """What to train on what, and where it goes."""

    agent: str  # name of an agent, or package.module:Class
    dataset: str  # name or path of a dataset
    env: str = "auto"  # Gymnasium id; auto is the one that the dataset names; none
    recipe: str = "auto"  # the paper's settings by dataset and task, a recipe's name, or none
    out: str | None = None  # new folder of the run; runs/... by default
    wandb: str | None = None  # project on Weights & Biases to log to as well


def main(argv: list[str]) -> int:
    """Run `offrl train`."""
    first = Parser("offrl train", add_help=False, allow_abbrev=False)
    first.add_argument("--agent")
    first.add_argument("--resume")
    first.add_argument("--dataset")
    first.add_argument("--wandb")
    first.add_argument("--device")
    first.add_argument("-h", "--help", action="store_true")
    chosen, rest = first.parse_known_args(argv)
    if chosen.help and (chosen.agent is None or chosen.resume is not None):
        print(USAGE)
        return 0
    if chosen.resume is not None:
        if rest or chosen.agent:
            raise ConfigError(
                "--resume takes no other setting than --device, --wandb and, where its data has "
                "moved, --dataset: a run goes on with those that it began with"
            )
        folder = Path(chosen.resume)
        callbacks = _callbacks(chosen.wandb, recorded(folder))
        moved = chosen.dataset
        _report(resume_run(folder, dataset=moved, callbacks=callbacks, device=chosen.device))
        return 0
    if chosen.agent is None:
        if not argv:
            print(USAGE)
            return 0
        raise ConfigError(f"no agent was named: --agent is one of {', '.join(AGENTS)}")

    _, _, defaults = find_agent(chosen.agent)
    check_names(defaults)
    run, data, _, _ = _parse(argv, TrainConfig(), defaults)
    if run.out is not None:
        refuse_existing(Path(run.out))
    resolved = plan(run.agent, run.dataset, run.env, run.recipe, data)
    # Parsed again with the recipe's values as the defaults, so that a flag overrides them even
    # where it states the value that the class has.
    _, _, train, agent_config = _parse(argv, resolved.train, resolved.agent_config)
    resolved = replace(resolved, train=train, agent_config=agent_config)
    _announce(resolved)
    _report(start_run(resolved, run.out, _callbacks(run.wandb, resolved.record())))
    return 0


def _callbacks(wandb: str | None, record: Mapping[str, Any]) -> list[Callback]:
    if wandb is None:
        return []
    from offrl.wandb_callback import WandbCallback

    return [WandbCallback(wandb, record)]


def _parse(
    argv: list[str], train: TrainConfig, agent: Any
) -> tuple[RunArguments, DataConfig, TrainConfig, Any]:
    """All settings in one flat namespace; `train` and `agent` hold the defaults."""
    flat = make_dataclass(
        "Settings",
        [
            ("run", RunArguments),
            ("data", DataConfig, field(default=DataConfig())),
            ("train", TrainConfig, field(default=train)),
            ("agent_config", type(agent), field(default=agent)),
        ],
        frozen=True,
    )
    complaint = io.StringIO()
    try:
        with redirect_stderr(complaint):
            parsed: Any
            unknown: list[str]
            parsed, unknown = tyro.cli(
                flat,
                args=argv,
                prog="offrl train",
                config=(tyro.conf.OmitArgPrefixes,),
                return_unknown_args=True,
            )
    except SystemExit as stop:
        if not stop.code:
            raise  # of --help
        raise ConfigError(f"{_first_sentence(complaint.getvalue())}; {HINT}") from None
    if unknown:
        parts = (RunArguments, DataConfig, TrainConfig, type(agent))
        flags = [f"--{f.name.replace('_', '-')}" for part in parts for f in fields(part)]
        raise ConfigError(
            f"train: this agent has no setting {unknown[0]!r}"
            f"{near(unknown[0].replace('_', '-'), flags) or ';'} {HINT}"
        )
    return parsed.run, parsed.data, parsed.train, parsed.agent_config


def _first_sentence(boxed: str) -> str:
    """What a box of tyro's says beneath its title, up to the next rule or empty line."""
    lines = [" ".join(w for w in line.split() if w not in "│|") for line in boxed.splitlines()[1:]]
    spoken = dropwhile(lambda line: not re.search(r"\w", line), lines)
    said = takewhile(lambda line: re.search(r"\w", line), spoken)
    return " ".join(said).rstrip(". ")


def _announce(plan: Plan) -> None:
    """What is about to happen, before the bar."""
    print(repr(plan.dataset))
    if plan.recipe == "none":
        print(f"{plan.agent}: its default settings, no recipe")
    else:
        used = {**asdict(plan.train), **asdict(plan.agent_config)}
        values = ", ".join(
            f"{k}={used[k]}" + ("" if used[k] == v else f" instead of {v}")
            for k, v in plan.recipe_values.items()
        )
        values = values or "the defaults"
        print(f"{plan.agent}: recipe {plan.recipe} ({values})")
    if plan.env is None and not plan.data.validation:
        print("no environment, and no episode is held out: nothing is evaluated during training")
    elif plan.env is None:
        print(
            f"no environment: {plan.data.validation:.0%} of the episodes are held out, and "
            "validation errors are reported instead of returns"
        )


def _report(run: Run) -> None:
    for folder, summary in zip(run.folders, run.summaries, strict=True):
        print(f"{folder}: {_line(summary)}")


def _line(summary: Mapping[str, Any]) -> str:
    parts = []
    for name, part in summary.items():
        if isinstance(part, Mapping) and name != "reference":
            values = ", ".join(
                f"{k.split('/')[-1]} {v:.4g}" for k, v in part.items() if k != "step"
            )
            at = f" at step {part['step']:,}" if "step" in part else ""
            parts.append(f"{name} {values}{at}")
    return "; ".join(parts) or f"{summary['step']:,} steps"
