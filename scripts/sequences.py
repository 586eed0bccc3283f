"""Policies that act on a history or plan ahead: scores, what was asked and earned, control steps.

    python scripts/sequences.py                     # missing cells, then page and pictures
    python scripts/sequences.py --datasets hopper-medium-replay --agents dt
    python scripts/sequences.py --control-steps     # measure the time of a control step anew
    python scripts/sequences.py --draw              # page and pictures of what exists

Scores go to the table of scripts/results.py, where they stand beside the other agents'; the page
here has what that table cannot say. Transformers of these sizes take a CPU a second for some
updates, so that --steps is small and the learning rate rises over --warmup updates instead of the
recipe's, and ACT has the small network of offrl's tasks; the table names each such setting. With
a GPU, --published leaves all of it to the recipes, but for the return that is asked for: that is
always the best of the data, which D4RL's targets exceed by far. Finished cells are skipped and
unfinished ones resumed, as by scripts/results.py.
"""

import argparse
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from cells import (
    FINAL_SEED,
    RESULTS,
    SHIPPED,
    add_training_arguments,
    machine,
    run_cell,
    training_settings,
)
from latency import stepped
from matplotlib.figure import Figure
from results_page import draw as draw_results

import offrl
from offrl.agents import AGENTS
from offrl.datasets.loading import load_dataset
from offrl.datasets.offline import OfflineDataset, Spec
from offrl.evaluation import evaluate
from offrl.files import read_json, write_json
from offrl.networks import Learners
from offrl.plans import plan
from offrl.policy import load_policy
from offrl.style_plans import SMALL_STYLES
from results import MEASURED, time_actions

PAGE = RESULTS / "sequences"
COMPARED = ("dt", "decision_mamba", "act")
CONDITIONED = ("dt", "decision_mamba")  # on a return
SHARES = (0.25, 0.5, 0.75, 1.0)  # of the best return of the data, which are asked for
STEPS = 3_000  # updates, where the recipes are not followed
EPISODES = 10  # starts for each return that is asked for
CONTROL = "control-steps.json"
CONTEXTS = (20, 200)
SETTLED = 400  # control steps that are timed, after as many as fill the context
COLOURS = {"dt": "#d55e00", "decision_mamba": "#0072b2"}  # told apart by all eyes


def main() -> int:
    """Run missing cells, then draw."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--datasets", nargs="+", default=list(SHIPPED))
    parser.add_argument("--agents", nargs="+", default=list(COMPARED), choices=list(COMPARED))
    parser.add_argument("--warmup", type=int, default=500, help="of the learning rate (500)")
    parser.add_argument("--published", action="store_true", help="the recipes as they are")
    parser.add_argument("--control-steps", action="store_true", help="measure them anew")
    add_training_arguments(parser)
    parser.set_defaults(steps=None, backend="eager")
    options = parser.parse_args()
    torch.set_num_threads(1)
    PAGE.mkdir(parents=True, exist_ok=True)
    if not options.draw:
        if options.control_steps or not (PAGE / CONTROL).exists():
            write_json(PAGE / CONTROL, control_steps(load_dataset(SHIPPED[0]).spec))
        for dataset in options.datasets:
            run_cells(dataset, options)
        time_actions(anew=False)
    draw()
    draw_results(RESULTS, MEASURED)
    return 0


def run_cells(dataset: str, options: argparse.Namespace) -> None:
    """The missing cells of a dataset."""
    data = load_dataset(dataset)
    settings = {k: v for k, v in training_settings(options).items() if v is not None}
    for agent in options.agents:
        changed: dict[str, Any] = {}
        if not options.published:
            steps = options.steps or STEPS
            changed = {"steps": steps, "eval_every": max(steps // 3, 1)}
            changed |= {"warmup": options.warmup} if agent in CONDITIONED else SMALL_STYLES
        if agent in CONDITIONED:
            # The recipes ask for returns that these data do not come near.
            changed["target_return"] = None
        planned = plan(agent, dataset, settings={**settings, **changed})
        measure = partial(earned, env=str(planned.env), asked=asked_returns(data))
        run_cell(
            planned,
            f"{planned.dataset.name}/{agent}",
            measure=measure if agent in CONDITIONED else None,
        )


def asked_returns(data: OfflineDataset) -> list[float]:
    """Shares of the best return of the data."""
    best = float(data.returns().max())
    return [round(share * best, 1) for share in SHARES]


def earned(path: Path, env: str, asked: Sequence[float]) -> dict[str, Any]:
    """Mean returns of a run's policy by the return that it is asked for."""
    policy = load_policy(path)
    found = [
        evaluate(policy, env, EPISODES, FINAL_SEED, target_return=target).mean for target in asked
    ]
    return {"asked": list(asked), "earned": found}


def control_steps(spec: Spec) -> dict[str, Any]:
    """Times of a control step of untrained networks, on which they depend as on trained ones."""
    rows = []
    for agent in CONDITIONED:
        for context in CONTEXTS:
            rows.append(control_step(spec, agent, {"context": context}, f"context {context}"))
    for ensemble, what in ((0.01, "a plan at each step"), (-1.0, "a plan in 100 steps")):
        rows.append(control_step(spec, "act", {"ensemble": ensemble}, what))
    return {"machine": machine(), "load": os.getloadavg()[0], "rows": rows}


def control_step(spec: Spec, agent: str, settings: Mapping[str, Any], what: str) -> dict[str, Any]:
    """The time of a policy's control step when its context is full, and its size."""
    cls, default = AGENTS[agent]
    policy: Any = cls(spec, replace(default, **settings), Learners((0,))).policy()
    found = stepped(policy, max(CONTEXTS), SETTLED)
    size = sum(p.numel() for p in policy.actor.parameters())
    return {"agent": agent, "what": what, **found, "parameters": size}


def stored_cells() -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Datasets and agents with what the finished cells of this script hold."""
    for dataset in SHIPPED:
        for agent in CONDITIONED:
            path = RESULTS / dataset / agent / "cell.json"
            cell = read_json(path) if path.exists() else {"seeds": []}
            if any("earned" in seed for seed in cell["seeds"]):
                yield dataset, agent, cell


def draw() -> None:
    """Write README.md and the picture."""
    lines = [INTRODUCTION, "", *consistency_lines()]
    if (PAGE / CONTROL).exists():
        lines += control_lines(read_json(PAGE / CONTROL))
    discussion = PAGE / "discussion.md"
    if discussion.exists():
        lines += ["", "## Reading", "", discussion.read_text().strip()]
    (PAGE / "README.md").write_text("\n".join(lines) + "\n")


def consistency_lines() -> list[str]:
    """What was asked for and what was earned: table and picture."""
    stored = list(stored_cells())
    if not stored:
        return []
    head = " | ".join(f"{share:.0%} of the best" for share in SHARES)
    lines = [
        "## Asked and earned",
        "",
        f"| dataset | agent | best of the data | {head} |",
        "|---|---|" + "--:|" * (1 + len(SHARES)),
    ]
    for dataset, agent, cell in stored:
        got = np.mean([seed["earned"] for seed in cell["seeds"]], axis=0)
        best = cell["seeds"][0]["asked"][-1]
        entries = " | ".join(f"{value:.0f}" for value in got)
        lines.append(f"| {dataset} | `{agent}` | {best:.0f} | {entries} |")
    picture(stored, PAGE / "asked.png")
    return [*lines, "", "![asked and earned](asked.png)"]


def picture(stored: Sequence[tuple[str, str, dict[str, Any]]], target: Path) -> None:
    """What was earned over what was asked for; a panel for each dataset."""
    datasets = list(dict.fromkeys(dataset for dataset, _, _ in stored))
    with matplotlib.rc_context({"font.size": 8}):
        figure = Figure(figsize=(2.9 * len(datasets), 2.9), layout="constrained")
        panels = figure.subplots(1, len(datasets), squeeze=False)[0]
        for panel, dataset in zip(panels, datasets, strict=True):
            for name, agent, cell in stored:
                if name != dataset:
                    continue
                asked = cell["seeds"][0]["asked"]
                got = np.array([seed["earned"] for seed in cell["seeds"]])
                colour = COLOURS[agent]
                panel.fill_between(asked, got.min(0), got.max(0), color=colour, alpha=0.2, lw=0)
                panel.plot(asked, got.mean(0), "o-", color=colour, ms=3, label=agent)
                panel.plot(asked, asked, ":", color="#999999", lw=0.8)
            panel.set(title=dataset, xlabel="asked for", ylabel="earned")
            panel.spines[["top", "right"]].set_visible(False)
            panel.legend(frameon=False)
        figure.savefig(target, dpi=160)


def control_lines(stored: Mapping[str, Any]) -> list[str]:
    """The table of control steps."""
    lines = [
        "",
        "## A control step",
        "",
        "Processor time of one control step for one observation on one thread, after the context "
        f"is full, over {SETTLED} steps. A memory that begins half a context later is filled "
        "beside the one that acts, and takes its place when it is full, so that no step is longer "
        "for it. ACT makes a new plan in its longest step, which the 99th percentile leaves out "
        "where it comes once in 100 steps. Networks have their recipes' sizes. Measured on "
        f"{stored['machine']}, at a load of {stored['load']:.1f}.",
        "",
        "| agent | | parameters | median, ms | p99 | longest | mean |",
        "|---|---|--:|--:|--:|--:|--:|",
    ]
    for row in stored["rows"]:
        lines.append(
            f"| `{row['agent']}` | {row['what']} | {row['parameters'] / 1e6:.2f} M "
            f"| {row['median']:.1f} | {row['p99']:.1f} | {row['longest']:.1f} "
            f"| {row['mean']:.1f} |"
        )
    return lines


INTRODUCTION = f"""\
# Sequence policies

Scores of these agents stand with all others in [the table of results](../README.md). Here are mean
returns over {EPISODES} starts and over seeds of policies that were asked for a share of the best
return of their data, and what a control step costs. Made by `python scripts/sequences.py`; each
cell's `cell.json` has its command, commit, machine and every return."""


if __name__ == "__main__":
    print(f"offrl {offrl.__version__}, torch {torch.__version__}")
    sys.exit(main())
