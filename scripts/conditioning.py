"""Policies of memories and of goals: past-token prediction, BESO, and what they are compared with.

    python scripts/conditioning.py                        # missing cells, then the page
    python scripts/conditioning.py --envs offrl/GoalReach-v0
    python scripts/conditioning.py --draw                 # the page of the cells that exist

Demonstrations are those of the tasks' own demonstrators, collected once. The networks of a task
are of one size and trained alike; a row of a table is one of them, or the same network asked in
another way (`CELLS`). Finished cells are skipped and unfinished ones resumed, as by
scripts/results.py.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cells import FINAL_SEED, RESULTS, add_training_arguments, run_cell, training_settings
from generative import demonstrations, folder_name, interval, percent

import offrl
from offrl.curves import learners
from offrl.envs.scripted import demonstrator
from offrl.evaluation import evaluate
from offrl.files import read_json, write_json
from offrl.planners import planner_from_spec
from offrl.plans import plan
from offrl.plotting import COLOURS, PAPER
from offrl.policy import Policy, load_policy

EPISODES = 100  # starts of the final evaluation
PAGE = RESULTS / "conditioning"
FACTS = "demonstrations.json"  # beside a task's cells


@dataclass(frozen=True)
class Way:
    """A row: how a trained network is asked. `changes` are of its planner's spec."""

    text: str
    evaluations: str  # of the network, for an action
    changes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def named(self) -> tuple[str, str]:
        return self.text, self.evaluations


@dataclass(frozen=True)
class Trained:
    """A network: the agent, what differs from its recipe, and how it is asked."""

    agent: str
    settings: Mapping[str, Any]
    ways: Sequence[Way]


@dataclass(frozen=True)
class Task:
    """A table: how many demonstrations and updates, and the cells by name."""

    demonstrations: int
    steps: int
    cells: Mapping[str, Trained]
    chance: float | None = None  # of success, for who does not know what matters


def sampler(name: str, steps: int) -> dict[str, Any]:
    """Changes of a planner's generation."""
    return {"sampler": name, "steps": steps}


def memory(context: int) -> dict[str, Trained]:
    """Two lengths of memory, with the past in the loss and without."""
    cells = {}
    for length, steps in (("short", 2), ("long", context)):
        shape = {"history": steps, "horizon": steps}
        many = f"{length} ({steps})"
        plain = Way(f"{many}, past not predicted", "8")
        told = Way(f"{many}, past predicted", "8", {"samples": 1})
        checked = Way(f"{many}, past predicted, best of 10", "80")
        without = {**shape, "past_steps": 0, "samples": 1}
        cells[length] = Trained("ptp", without, [plain])
        cells[f"{length}-ptp"] = Trained("ptp", shape, [told, checked])
    return cells


STEPS = {"process": "ddpm", "sampler_steps": 8}
TASKS = {
    "offrl/Recall-v0": Task(16, 2_000, memory(10), 0.25),
    "offrl/RecallLong-v0": Task(16, 2_000, memory(26), 0.25),
    "offrl/GoalReach-v0": Task(
        300,
        3_000,
        {
            "edm": Trained(
                "beso",
                {},
                [
                    Way("BESO, DDIM", "3"),
                    Way("BESO, Euler ancestral", "3", sampler("ancestral", 3)),
                    Way("BESO, Heun", "3", sampler("heun", 2)),
                    Way("BESO, DDIM, guided by 1.5", "6", {"guidance": 1.5}),
                    Way("BESO, DDIM, goal not told", "3", {"guidance": 0.0}),
                ],
            ),
            "ddpm": Trained(
                "beso",
                STEPS,
                [
                    Way("DDPM's process, DDPM", "100", sampler("ancestral", 100)),
                    Way("DDPM's process, DDIM", "8"),
                    Way("DDPM's process, DDIM", "3", sampler("ddim", 3)),
                ],
            ),
            "window": Trained(
                "beso",
                {"history": 2},
                [
                    Way("BESO, window of 2, past clean", "3"),
                    Way("BESO, window of 2, past noised", "3", {"noised_past": True}),
                ],
            ),
        },
    ),
}


def asked(path: Path, changes: Mapping[str, Any]) -> Policy:
    """The policy of a run, its planner with these changes."""
    spec = load_policy(path).actor.spec()
    own = {k: v for k, v in changes.items() if k in spec}
    generation = {k: v for k, v in changes.items() if k not in own}
    changed = {**spec, **own, "generation": {**spec["generation"], **generation}}
    return load_policy(path, actor=planner_from_spec(changed))


def measured(path: Path, env: str, ways: Sequence[Way]) -> dict[str, Any]:
    """Success of a run's network, asked in each of these ways."""
    found = []
    for way in ways:
        policy = asked(path, way.changes)
        rate = evaluate(policy, env, EPISODES, FINAL_SEED, slots=EPISODES).success_rate
        found.append({"text": way.text, "evaluations": way.evaluations, "success": rate})
    return {"ways": found}


def demonstrated(env: str) -> dict[str, Any]:
    """How the demonstrator does from the same starts, with its noise."""
    found = evaluate(demonstrator(env), env, EPISODES, FINAL_SEED, deterministic=False)
    return {"success": found.success_rate}


def rows_of(folder: Path, task: Task) -> list[tuple[str, str, list[float]]]:
    """Text, evaluations and the success of each seed, of the cells that exist, in their order."""
    rows = []
    for name, cell in task.cells.items():
        if not (folder / name / "cell.json").exists():
            continue
        seeds = read_json(folder / name / "cell.json")["seeds"]
        for way in cell.ways:
            place = [(w["text"], w["evaluations"]) for w in seeds[0]["ways"]].index(way.named)
            tried = [seed["ways"][place] for seed in seeds]
            rows.append((way.text, way.evaluations, [t["success"] for t in tried]))
    return rows


def section(page: Path, env: str) -> list[str]:
    """A task's part of the page."""
    folder, task = page / folder_name(env), TASKS[env]
    rows = rows_of(folder, task)
    if not rows:
        return []
    first = next(folder / name for name in task.cells if (folder / name).exists())
    runs, facts = learners(first), read_json(folder / FACTS)
    config = read_json(runs[0] / "config.json")
    data, own, train = config["dataset"], config["agent_config"], config["train"]
    chance = "" if task.chance is None else f" Chance: {percent(task.chance)} %."
    lines = [
        "",
        f"## {env}",
        "",
        f"{data['episodes']} demonstrations, {data['steps']:,} steps; the demonstrator, with its "
        f"noise, succeeds in {percent(facts['success'])} % of the starts.{chance} Backbone "
        f"`{own['backbone']}` of {own['depth']} blocks of {own['width']} units, "
        f"{train['steps']:,} updates of {train['batch_size']} windows, {len(runs)} seeds.",
        "",
        "| policy | evaluations an action | success, % | 95 % interval |",
        "|---|--:|--:|--:|",
    ]
    for text, evaluations, success in rows:
        lines.append(
            f"| {text} | {evaluations} | {percent(np.mean(success))} "
            f"| {interval(success, percent)} |"
        )
    lines += ["", f"![success]({folder.name}.png)"]
    discussion = folder / "discussion.md"
    return lines + (["", discussion.read_text().strip()] if discussion.exists() else [])


def draw_rows(rows: Sequence[tuple[str, str, list[float]]], task: Task, target: Path) -> None:
    """Mean success of each row as a bar, its seeds as dots, and chance as a line."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    with matplotlib.rc_context(PAPER):
        figure = Figure(figsize=(6.6, 0.6 + 0.27 * len(rows)), layout="constrained")
        axes = figure.subplots()
        places = np.arange(len(rows))[::-1]
        for place, (_, _, success) in zip(places, rows, strict=True):
            axes.barh(place, 100 * np.mean(success), 0.7, color=COLOURS[5], lw=0)
            dots = [place] * len(success)
            axes.plot(100 * np.array(success), dots, "o", ms=3, color=COLOURS[0], clip_on=False)
        if task.chance is not None:
            axes.axvline(100 * task.chance, color=COLOURS[1], lw=0.8, ls="--", label="chance")
            axes.legend(frameon=False, loc="upper right")
        axes.set_yticks(places, [f"{text} [{n}]" for text, n, _ in rows])
        axes.set(xlim=(0, 100), xlabel="success, %; dots are seeds [evaluations an action]")
        figure.savefig(target, dpi=160, metadata={"Software": None})


def draw(page: Path) -> None:
    """Write README.md and a picture for each task into `page`."""
    text = [INTRODUCTION]
    for env, task in TASKS.items():
        text += section(page, env)
        if rows := rows_of(page / folder_name(env), task):
            draw_rows(rows, task, page / f"{folder_name(env)}.png")
    (page / "README.md").write_text("\n".join(text) + "\n")


INTRODUCTION = f"""\
# Memories and goals

In `Recall` a cue is shown once, and what it says is to be done when a gate has opened, 8 steps
later or 24 (`RecallLong`). `ptp` sees two observations, or as many as reach back to the cue, and
its loss counts past actions or does not; best of 10 are the plans that agree best with the actions
executed. In `GoalReach` demonstrations are play, and what was reached later is the goal; `beso`
denoises the next action under it, with EDM's process in three evaluations or Diffusion Policy's
in as many as it takes. Success over {EPISODES} starts, common to all; means over seeds with their
95 % intervals (Student's t over seeds, cut at the ends of the range). Made by
`python scripts/conditioning.py`; each cell's `cell.json` has its command, commit and machine."""


def main() -> int:
    """Run missing cells, then draw."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--envs", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--demonstrations", type=int, help="instead of those of the table")
    add_training_arguments(parser)
    parser.set_defaults(steps=None, backend="eager", matmul="float32")
    options = parser.parse_args()
    torch.set_num_threads(1)
    PAGE.mkdir(parents=True, exist_ok=True)
    for env in () if options.draw else options.envs:
        task, folder = TASKS[env], folder_name(env)
        data = demonstrations(env, options.demonstrations or task.demonstrations)
        (PAGE / folder).mkdir(exist_ok=True)
        write_json(PAGE / folder / FACTS, demonstrated(env))
        steps = options.steps or task.steps
        settings = {**training_settings(options), "steps": steps, "eval_every": steps}
        for name, cell in task.cells.items():
            planned = plan(cell.agent, data, settings={**settings, **cell.settings})
            how = partial(measured, env=env, ways=cell.ways)
            run_cell(planned, f"conditioning/{folder}/{name}", 1, how)
    draw(PAGE)
    return 0


if __name__ == "__main__":
    print(f"offrl {offrl.__version__}, torch {torch.__version__}")
    sys.exit(main())
