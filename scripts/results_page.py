"""The page of results, its curves, and what the package shows of them, from finished cells.

results/<dataset>/<agent>/cell.json is a cell. results/<dataset>/discussion.md, written by hand,
stands below that dataset's table on every page drawn.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import Any

import numpy as np

from offrl.agents import AGENTS
from offrl.curves import learners, lines, read_curve
from offrl.files import read_json, write_json
from offrl.plotting import SCORE, plot
from offrl.statistics import t_interval

ACTIONS = "actions.json"  # dataset -> agent -> time of a control step
COSTS = "costs.json"  # agent -> cost of an update
YARDSTICK = "td3_bc"  # whose update is the unit of cost
LAST = 10  # evaluations, whose mean a table has


@dataclass(frozen=True)
class Cell:
    """An agent's seeds on a dataset, summed up."""

    agent: str
    score: float  # normalised, of the last policies
    interval: tuple[float, float] | None  # Student's over seeds; None for one seed
    last: float | None  # mean of the last 10 evaluations; None where there were fewer
    best: float
    seeds: int
    rate: float  # updates a second, of all seeds together
    made: Mapping[str, Any]  # date, commit, machine
    config: Mapping[str, Any]  # of the first seed's run

    @property
    def mean_of_last(self) -> str:
        """`last` in a table."""
        return "" if self.last is None else f"{self.last:.1f}"


def draw(results: Path, measured: Path) -> None:
    """Write README.md and pictures into `results`, and the package's numbers to `measured`."""
    tables = {}
    for folder in sorted(p for p in results.iterdir() if p.is_dir()):
        # In the order of the agents, so that one has the same colour in every picture.
        names = [name for name in AGENTS if (folder / name / "cell.json").exists()]
        if names:
            tables[folder.name] = [read_cell(folder / name) for name in names]
    text = [INTRODUCTION]
    actions = read_json(results / ACTIONS) if (results / ACTIONS).exists() else {}
    for dataset, cells in tables.items():
        text += section(results / dataset, cells, actions.get(dataset, {}))
        runs = [run for cell in cells for run in learners(results / dataset / cell.agent)]
        plot(runs, results / f"{dataset}.png", log_steps=True, force=True)
        text += ["", f"![learning curves]({dataset}.png)"]
    found = costs(results)
    (results / "README.md").write_text("\n".join(text + cost_section(found)) + "\n")
    package = {name: {k: cost[k] for k in ("ratio", "dataset")} for name, cost in found.items()}
    write_json(measured, {"cost": package, "cells": package_cells(tables)})


INTRODUCTION = """\
# Results

Normalised score, 100 (return - min) / (max - min) with D4RL's references, of the last policies on
20 starts common to all agents; mean over seeds with its 95 % interval (Student's t over seeds), the
highest mean first. Best and mean of the last 10 are of the evaluations during training, 10 episodes
each; runs that had fewer than 10 have no such mean. Updates a second are those of all seeds
together, as the runs logged them; an action's time is the processor's, the median for one
observation on one thread. Of bfloat16 products a processor may round the factors; one without AMX
rounds none. Made by `python scripts/results.py`; each cell's `cell.json` has its command, commit,
machine and every return."""


def read_cell(folder: Path) -> Cell:
    """The cell in a folder."""
    stored, agent = read_json(folder / "cell.json"), folder.name
    seeds = stored["seeds"]
    scores = [s["final"]["score"] for s in seeds]
    interval = t_interval(scores)
    rates = [s["rate"] for s in seeds]
    config = read_json(learners(folder)[0] / "config.json")
    stacked = AGENTS[agent][0].stacks(SimpleNamespace(**config["agent_config"]))
    return Cell(
        agent,
        float(np.mean(scores)),
        None if interval is None else (interval.low, interval.high),
        _mean_of_last(seeds),
        float(np.mean([s["summary"]["best"]["eval/score"] for s in seeds])),
        len(seeds),
        # Learners of a stack advance together; looped ones have the machine to themselves.
        float(np.mean(rates)) * (len(seeds) if stacked else 1),
        {name: stored[name] for name in ("date", "commit", "machine")},
        config,
    )


def section(
    folder: Path, cells: list[Cell], actions: Mapping[str, Any] = MappingProxyType({})
) -> list[str]:
    """A dataset's part of the page, with the time of an action where it is known."""
    data = cells[0].config["dataset"]
    reference = data["reference"]
    span = reference["max"] - reference["min"]
    behaviour = 100 * (data["behaviour_return_mean"] - reference["min"]) / span
    lines = [
        "",
        f"## {folder.name}",
        "",
        f"{data['steps']:,} steps, {data['episodes']} episodes, mean behaviour score "
        f"{behaviour:.1f}. {_shared(cells)}",
        "",
        "| agent | final score | 95 % interval | mean of last 10 | best | seeds | updates | batch "
        "| updates/s |" + " ms/action |" * bool(actions),
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|" + "--:|" * bool(actions),
    ]
    for cell in sorted(cells, key=lambda cell: -cell.score):
        interval = "" if cell.interval is None else "{:.1f} to {:.1f}".format(*cell.interval)
        train = cell.config["train"]
        lines.append(
            f"| `{cell.agent}` | {cell.score:.1f} | {interval} | {cell.mean_of_last} "
            f"| {cell.best:.1f} | {cell.seeds} | {train['steps']:,} | {train['batch_size']} "
            f"| {cell.rate:.0f} |" + (f" {_milliseconds(actions, cell.agent)} |" if actions else "")
        )
    changed = [
        f"`{c.agent}` with {text}" for c in cells if (text := changed_settings(c.agent, c.config))
    ]
    if changed:
        lines += ["", f"Not by the recipe: {'; '.join(changed)}."]
    lines += at_equal_updates(folder, cells)
    discussion = folder / "discussion.md"
    if discussion.exists():
        lines += ["", discussion.read_text().strip()]
    return lines


def at_equal_updates(folder: Path, cells: Sequence[Cell]) -> list[str]:
    """A table of scores in the course of training where the cells' lengths differ, else nothing.

    A column is a length of some cell, at which another was evaluated, too.
    """
    lengths = sorted({cell.config["train"]["steps"] for cell in cells})
    if len(lengths) == 1:
        return []
    courses = {cell.agent: _course(folder / cell.agent) for cell in cells}
    shown = [n for n in lengths if sum(n in course for course in courses.values()) > 1]
    text = ["", EQUAL_UPDATES, "", f"| agent | {' | '.join(f'{n:,}' for n in shown)} |"]
    text.append("|---|" + "--:|" * len(shown))
    for cell in sorted(cells, key=lambda cell: -cell.score):
        course = courses[cell.agent]
        scores = (f"{course[n]:.1f}" if n in course else "" for n in shown)
        text.append(f"| `{cell.agent}` | {' | '.join(scores)} |")
    return text


EQUAL_UPDATES = (
    "Runs differ in length. After equally many updates, by the evaluations during training, mean "
    "over seeds:"
)


def _course(folder: Path) -> dict[int, float]:
    """The score by step, mean over seeds."""
    (line,) = lines([read_curve(path, SCORE) for path in learners(folder)])
    return dict(zip(line.steps.tolist(), line.mean.tolist(), strict=True))


COST_INTRODUCTION = """\
## Cost of an update

How many times as long as one of TD3+BC an update of one learner takes, each agent by its recipe for
the data named in [costs.json](costs.json), its batch size among it, computed as `offrl train` does
by default: eager, float32. Median and extremes of pairs of turns in one process on one thread, of
the processor's time. PRDC finds its lists of neighbours on disk, as from its second run on the same
data; [making them](benchmark-training.md) costs its first one more. Made by `python
scripts/costs.py`.
"""


def _milliseconds(actions: Mapping[str, Any], agent: str) -> str:
    return f"{actions[agent]['median']:.2f}" if agent in actions else ""


def _shared(cells: list[Cell]) -> str:
    """How the runs were computed, and of which agents that is true where it is not of all."""
    ways: dict[str, list[str]] = {}
    for cell in cells:
        train = cell.config["train"]
        way = f"{train['backend']}, {train['matmul']} products, {cell.made['machine']}"
        ways.setdefault(way, []).append(f"`{cell.agent}`")
    if len(ways) == 1:
        return f"Computed with {next(iter(ways))}."
    parts = [f"{way} ({', '.join(agents)})" for way, agents in ways.items()]
    return f"Computed with {'; with '.join(parts)}."


def changed_settings(agent: str, config: Mapping[str, Any], but: Collection[str] = ()) -> str:
    """The settings of a run that differ from those of the agent's recipe, `but` for some."""
    stated = {**asdict(AGENTS[agent][1]), **config["recipe_values"]}
    stated = json.loads(json.dumps(stated))  # tuples are lists in a file
    used = config["agent_config"]
    return ", ".join(
        f"{name} {used[name]} instead of {stated[name]}"
        for name in stated
        if name not in but and name in used and used[name] != stated[name]
    )


def costs(results: Path) -> dict[str, Any]:
    """How many times as long as the yardstick's an update takes, as scripts/costs.py measured."""
    found = read_json(results / COSTS) if (results / COSTS).exists() else {}
    return {agent: found[agent] for agent in AGENTS if agent in found}


def cost_section(found: Mapping[str, Any]) -> list[str]:
    """The table of costs, the cheapest first; nothing where none is known."""
    if not found:
        return []
    lines = ["", COST_INTRODUCTION, "| agent | times | least to most | ms | batch |"]
    lines.append("|---|--:|--:|--:|--:|")
    for agent, cost in sorted(found.items(), key=lambda item: float(item[1]["ratio"])):
        least, most = cost["extremes"]
        times = f"{cost['ratio']:.2f} | {least:.2f} to {most:.2f}"
        lines.append(f"| `{agent}` | {times} | {cost['milliseconds']:.1f} | {cost['batch_size']} |")
    return lines


def package_cells(tables: Mapping[str, list[Cell]]) -> dict[str, Any]:
    """The numbers that an installed package shows."""
    return {
        dataset: {
            cell.agent: {
                "score": round(cell.score, 2),
                "interval": None if cell.interval is None else [round(v, 2) for v in cell.interval],
                "mean_of_last_10": None if cell.last is None else round(cell.last, 2),
                "best": round(cell.best, 2),
                "seeds": cell.seeds,
                "updates": cell.config["train"]["steps"],
                "updates_per_second": round(cell.rate, 1),
                "changed": changed_settings(cell.agent, cell.config),
                **cell.made,
            }
            for cell in cells
        }
        for dataset, cells in tables.items()
    }


def _mean_of_last(seeds: Sequence[Mapping[str, Any]]) -> float | None:
    name = f"mean of last {LAST}"
    if any(name not in seed["summary"] for seed in seeds):
        return None
    return float(np.mean([seed["summary"][name]["eval/score"] for seed in seeds]))
