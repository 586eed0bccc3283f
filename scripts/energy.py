"""Policies by energies: success against steps of descent, beside DDIM; strange states found.

    python scripts/energy.py                            # missing cells, then the page
    python scripts/energy.py --rows ebt ebt-noised --steps 4000
    python scripts/energy.py --draw                     # the page of the cells that exist

All rows learn from the same demonstrations, those of scripts/generative.py, and have the recipes of
offrl's tasks. The policy of each is then tried with other numbers of steps, the same for descent,
DDIM and a flow; where there is an energy it is asked for states outside of the data
(scripts/strangeness.py). Finished cells are skipped and unfinished ones resumed, as by
scripts/results.py.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cells import FINAL_SEED, RESULTS, WORK, add_training_arguments, run_cell, training_settings
from generative import demonstrations, folder_name, interval, percent, resampled
from strangeness import KINDS, SCORES, detection, judged, states

import offrl
from offrl.curves import learners
from offrl.datasets.collection import Request, collect
from offrl.datasets.loading import load_dataset
from offrl.datasets.offline import OfflineDataset
from offrl.evaluation import evaluate
from offrl.files import read_json
from offrl.planners import planner_from_spec
from offrl.plans import plan
from offrl.plotting import COLOURS, PAPER
from offrl.policy import Policy, load_policy

ENVS = ("offrl/MultiReach-v0",)
ROWS: Mapping[str, tuple[str, Mapping[str, Any], str]] = {  # agent, settings, what it is
    "ebt": ("ebt", {}, "EBT, descents from noise alone"),
    "ebt-noised": ("ebt", {"noised": 1.0, "sampler_steps": 8}, "EBT, learned from noised chunks"),
    "ibc": ("ibc", {}, "Implicit BC"),
    "diffusion": ("diffusion_policy", {}, "Diffusion Policy, by DDIM"),
    "flow": ("flow_bc", {}, "flow matching, by Euler"),
    "regression": ("chunk_bc", {}, "regression of chunks"),
}
STEPS = (1, 2, 3, 4, 8, 16, 32)
SETTLING = (1e-3, 1e-2, 1e-1)  # changes of energy at which a descent of at most 32 steps may end
EPISODES, STATES = 100, 400  # starts of an evaluation, and ordinary states that are judged
UNSEEN = 50  # demonstrations that no policy learns from
PAGE = RESULTS / "energy"


def unseen(env: str) -> OfflineDataset:
    """Demonstrations that no policy learned from, collected once and kept."""
    path = WORK / "demonstrations" / f"{folder_name(env)}-unseen-{UNSEEN}"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        collect(Request(env, path, "scripted", episodes=UNSEEN, seed=1))
    return load_dataset(path)


def descended(path: Path, steps: int, still: float = 0.0) -> Policy:
    """The policy of a run with another descent."""
    spec = load_policy(path).actor.spec()
    descending = {**spec["descending"], "steps": steps, "still": still}
    return load_policy(path, actor=planner_from_spec({**spec, "descending": descending}))


def measured(path: Path, row: str, env: str, learned: OfflineDataset) -> dict[str, Any]:
    """How a run's policy does with so many steps, and what its energy finds."""
    agent, new = ROWS[row][0], unseen(env)
    stepped: Any = {"ebt": descended, "diffusion_policy": _ddim, "flow_bc": _euler}.get(agent)
    tried = [] if stepped is None else [_rates(stepped(path, n), env, steps=n) for n in STEPS]
    settling = []
    for still in SETTLING if agent == "ebt" else ():
        policy: Any = descended(path, STEPS[-1], still)
        ordinary = states(policy, new, STATES)
        counts = judged(policy, ordinary, np.random.default_rng(0))["evaluations"]
        settling.append(_rates(policy, env, still=still, evaluations=float(counts.mean())))
    found: dict[str, Any] = {"steps": tried, "settling": settling}
    if agent in ("ebt", "ibc"):
        found["detection"] = detection(load_policy(path), learned, new, STATES)
    return found


def _ddim(path: Path, steps: int) -> Policy:
    return resampled(path, "ddim", steps)


def _euler(path: Path, steps: int) -> Policy:
    return resampled(path, "euler", steps)


def _rates(policy: Policy, env: str, **facts: float) -> dict[str, Any]:
    found = evaluate(policy, env, EPISODES, FINAL_SEED)
    return {**facts, "success": found.success_rate, "coverage": found.mode_coverage}


def section(folder: Path) -> list[str]:
    """An environment's part of the page."""
    stored = {r: read_json(folder / r / "cell.json") for r in _rows(folder)}
    if not stored:
        return []
    configs = {r: read_json(learners(folder / r)[0] / "config.json") for r in stored}
    config = next(iter(configs.values()))
    data = config["dataset"]
    lines = [
        "",
        f"## {config['env']}",
        "",
        f"{data['episodes']} demonstrations, {data['steps']:,} steps.",
        "",
        "| policy | success, % | 95 % interval | coverage | steps of a plan | updates | seeds |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for row, cell in stored.items():
        finals = [seed["final"] for seed in cell["seeds"]]
        success = [f["success_rate"] for f in finals]
        own = configs[row]
        steps = own["agent_config"].get("sampler_steps", "")
        lines.append(
            f"| {ROWS[row][2]} | {percent(np.mean(success))} | {interval(success, percent)} "
            f"| {np.mean([f['mode_coverage'] for f in finals]):.2f} | {steps} "
            f"| {own['train']['steps']:,} | {len(finals)} |"
        )
    lines += ["", f"![steps and strange states]({folder.name}.png)"]
    lines += steps_table(stored) + settling_table(stored) + detection_table(stored)
    discussion = folder / "discussion.md"
    return lines + (["", discussion.read_text().strip()] if discussion.exists() else [])


def steps_table(stored: Mapping[str, Any]) -> list[str]:
    """Success and coverage by number of steps, means over seeds."""
    tried = {r: c for r, c in stored.items() if c["seeds"][0]["steps"]}
    if not tried:
        return []
    counts = [t["steps"] for t in next(iter(tried.values()))["seeds"][0]["steps"]]
    lines = ["", "Success in % (and coverage) of the same networks by steps of a plan:", ""]
    lines += ["| policy | " + " | ".join(map(str, counts)) + " |", "|---" + "|--:" * len(counts)]
    lines[-1] += "|"
    for row, cell in tried.items():
        entries = [
            f"{percent(_mean(cell, 'steps', k, 'success'))} "
            f"({_mean(cell, 'steps', k, 'coverage'):.2f})"
            for k in range(len(counts))
        ]
        lines.append(f"| {ROWS[row][2]} | " + " | ".join(entries) + " |")
    return lines


def settling_table(stored: Mapping[str, Any]) -> list[str]:
    """Descents that end where the energy changes less than so much in a step."""
    tried = {r: c for r, c in stored.items() if c["seeds"][0]["settling"]}
    if not tried:
        return []
    lines = [
        "",
        f"Descents of at most {STEPS[-1]} steps that end where the energy stands still; slopes are "
        "those of a plan at an ordinary state, means over states and seeds:",
        "",
        "| policy | change below | slopes | success, % |",
        "|---|--:|--:|--:|",
    ]
    for row, cell in tried.items():
        for k, first in enumerate(cell["seeds"][0]["settling"]):
            lines.append(
                f"| {ROWS[row][2]} | {first['still']:g} "
                f"| {_mean(cell, 'settling', k, 'evaluations'):.1f} "
                f"| {percent(_mean(cell, 'settling', k, 'success'))} |"
            )
    return lines


def detection_table(stored: Mapping[str, Any]) -> list[str]:
    """Areas under the receiver's curves, means over seeds."""
    tried = {r: c for r, c in stored.items() if "detection" in c["seeds"][0]}
    if not tried:
        return []
    lines = [
        "",
        "Areas under the receiver's curves of strange states among ordinary ones, means over "
        "seeds; 0.5 says nothing, below it the strange ones score lower:",
        "",
        "| policy | strange states | " + " | ".join(SCORES) + " |",
        "|---|---" + "|--:" * len(SCORES) + "|",
    ]
    for row, cell in tried.items():
        for kind in KINDS:
            areas = [
                np.mean([seed["detection"]["areas"][kind][score] for seed in cell["seeds"]])
                for score in SCORES
            ]
            lines.append(
                f"| {ROWS[row][2]} | {kind} | " + " | ".join(f"{a:.2f}" for a in areas) + " |"
            )
    return lines


def _mean(cell: Mapping[str, Any], table: str, k: int, name: str) -> float:
    return float(np.mean([seed[table][k][name] for seed in cell["seeds"]]))


def _rows(folder: Path) -> list[str]:
    return [row for row in ROWS if (folder / row / "cell.json").exists()]


def picture(stored: Mapping[str, Any], target: Path) -> None:
    """Success against steps, and each energy's curves of strange states, of the first seed."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    stepped = [r for r, c in stored.items() if c["seeds"][0]["steps"]]
    judged_by = [r for r, c in stored.items() if "detection" in c["seeds"][0]]
    with matplotlib.rc_context(PAPER):
        figure = Figure(figsize=(3.0 * (1 + len(judged_by)), 2.6), layout="constrained")
        panels = np.atleast_1d(figure.subplots(1, 1 + len(judged_by)))
        for row, colour in zip(stepped, COLOURS, strict=False):
            tried = stored[row]["seeds"][0]["steps"]
            means = [100 * _mean(stored[row], "steps", k, "success") for k in range(len(tried))]
            counts = [t["steps"] for t in tried]
            panels[0].plot(counts, means, "o-", color=colour, ms=3, lw=1, label=ROWS[row][2])
        panels[0].set_xscale("log", base=2)
        panels[0].set(xlabel="steps of a plan", ylabel="success, %", ylim=(-3, 103))
        for panel, row in zip(panels[1:], judged_by, strict=True):
            found = stored[row]["seeds"][0]["detection"]
            for kind, colour in zip(KINDS, COLOURS, strict=False):
                curve, area = found["curves"][kind], found["areas"][kind]["energy"]
                label = f"{kind}, {area:.2f}"
                panel.plot(curve["false_alarms"], curve["hits"], color=colour, lw=1, label=label)
            panel.plot([0, 1], [0, 1], ":", color="#999999", lw=0.8)
            panel.set(title=ROWS[row][2], xlabel="false alarms", ylabel="found", aspect="equal")
        for panel in panels:
            if panel.lines:
                panel.legend(frameon=False, fontsize=6)
        figure.savefig(target, dpi=160)


def draw(page: Path) -> None:
    """Write README.md and a picture for each environment into `page`."""
    text = [INTRODUCTION]
    for folder in sorted(p for p in page.iterdir() if p.is_dir()):
        text += section(folder)
        stored = {r: read_json(folder / r / "cell.json") for r in _rows(folder)}
        if stored:
            picture(stored, page / f"{folder.name}.png")
    (page / "README.md").write_text("\n".join(text) + "\n")


INTRODUCTION = f"""\
# Policies by energies

Success is the share of {EPISODES} starts, common to all, that reach the target; coverage is the
entropy of the ways that successful episodes took, 1 where all are equally common. Means over seeds
with their 95 % intervals (Student's t over seeds, cut at the ends of the range). A step of descent
costs a forward and a backward pass, a step of DDIM or of a flow a forward one. Strange states are
the same for all policies, and told from ordinary ones by what the energy says of the plan made
there (scripts/strangeness.py). Made by `python scripts/energy.py`; each cell's `cell.json` has its
command, commit, machine and every return."""


def main(words: Sequence[str] | None = None) -> int:
    """Run missing cells, then draw."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--envs", nargs="+", default=list(ENVS))
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=list(ROWS))
    parser.add_argument("--episodes", type=int, default=200, help="of the demonstrator (200)")
    parser.add_argument("--batch-size", type=int, default=128)
    add_training_arguments(parser)
    parser.set_defaults(steps=8_000, backend="eager", matmul="float32")
    options = parser.parse_args(words)
    torch.set_num_threads(1)
    PAGE.mkdir(parents=True, exist_ok=True)
    if not options.draw:
        settings = {**training_settings(options), "batch_size": options.batch_size}
        settings["eval_every"] = max(options.steps // 4, 1)
        for env in options.envs:
            data = demonstrations(env, options.episodes)
            for row in options.rows:
                agent, own, _ = ROWS[row]
                run_cell(
                    plan(agent, data, settings={**settings, **own}),
                    f"energy/{folder_name(env)}/{row}",
                    EPISODES,
                    partial(measured, row=row, env=env, learned=data),
                )
    draw(PAGE)
    return 0


if __name__ == "__main__":
    print(f"offrl {offrl.__version__}, torch {torch.__version__}")
    sys.exit(main())
