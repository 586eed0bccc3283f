"""A policy from preferences between segments alone, beside methods that are given rewards.

    python scripts/preferences.py                           # missing cells, then table and bars
    python scripts/preferences.py --rows dpo dpo-20 --datasets walker2d-medium-replay
    python scripts/preferences.py --draw                    # the page of the cells that exist

Of two segments the one of higher true return is preferred, and a share of the labels is wrong. The
other methods are trained for as many updates; where results/<dataset>/<agent> has such a run by
the recipe, it is taken from there. Finished cells are skipped and unfinished ones resumed, as by
scripts/results.py. results/preferences/<dataset>/discussion.md, written by hand, stands below that
dataset's table.
"""

import argparse
import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cells import RESULTS, add_training_arguments, run_cell, training_settings
from results_page import Cell, read_cell

import offrl
from offrl.files import read_json
from offrl.plans import Plan, plan
from offrl.plotting import COLOURS, PAPER

DATASETS = ("hopper-medium-replay",)
PAGE = RESULTS / "preferences"
AGENT = "preference"


@dataclass(frozen=True)
class Found:
    """A finished cell, and the score of each of its seeds."""

    cell: Cell
    scores: tuple[float, ...]


@dataclass(frozen=True)
class Row:
    """What is trained: the agent, what differs from its recipe, and what it is told of rewards."""

    text: str
    told: str
    agent: str = AGENT
    settings: Mapping[str, Any] = field(default_factory=dict)


RIGHT, FLIPPED = "order of two segments", "order of two segments, 20 % wrong"
WRONG = {"flip": 0.2}
ROWS = {
    "dpo": Row("DPO", RIGHT),
    "dpo-20": Row("DPO", FLIPPED, settings=WRONG),
    "rdpo-20": Row(
        "rDPO, which knows the share", FLIPPED, settings={"loss": "rdpo", "wrong": 0.2, **WRONG}
    ),
    "chi_po-20": Row("chi-PO", FLIPPED, settings={"loss": "chi_po", **WRONG}),
    "clone": Row("the reference alone", "nothing", settings={"clone": 1.0}),
    "bc": Row("BC", "nothing", "bc"),
    "percent_bc": Row("10 % BC", "order of all episodes", "percent_bc"),
    "iql": Row("IQL", "every reward", "iql"),
}


def main() -> int:
    """Run missing cells, then draw."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--datasets", nargs="+", default=list(DATASETS))
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=list(ROWS))
    add_training_arguments(parser)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for dataset in () if options.draw else options.datasets:
        data = offrl.load_dataset(dataset)
        for name in options.rows:
            row = ROWS[name]
            settings = {**training_settings(options), **row.settings}
            planned = plan(row.agent, data, settings=settings)
            shared = RESULTS / data.name / row.agent
            if row.agent != AGENT and same_run(shared, planned):
                print(f"{name}: as in {shared.parent.name}/{row.agent}")
                continue
            run_cell(planned, f"preferences/{data.name}/{name}/{row.agent}")
    draw(PAGE, RESULTS)
    return 0


def same_run(folder: Path, planned: Plan) -> bool:
    """Whether a finished cell has as many updates and seeds, and this agent's settings."""
    if not (folder / "cell.json").exists():
        return False
    cell = read_cell(folder)
    train, own = cell.config["train"], json.loads(json.dumps(asdict(planned.agent_config)))
    asked = [planned.train.steps, planned.train.batch_size, planned.train.seeds]
    found = [train["steps"], train["batch_size"], cell.seeds]
    used = cell.config["agent_config"]
    return asked == found and used == {k: v for k, v in own.items() if k in used}


def draw(page: Path, results: Path) -> None:
    """Write README.md and a picture for each dataset into `page`."""
    page.mkdir(parents=True, exist_ok=True)
    text = [INTRODUCTION]
    for folder in sorted(p for p in page.iterdir() if p.is_dir()):
        if found := cells_of(folder, results / folder.name):
            picture = f"{folder.name}.png"
            text += section(folder, found)
            draw_bars(found, page / picture)
            text += ["", f"![scores]({picture})"]
    (page / "README.md").write_text("\n".join(text) + "\n")


def cells_of(folder: Path, shared: Path) -> dict[str, Found]:
    """The cells of a dataset, and of other agents those of `shared` that are as long."""
    found: dict[str, Found] = {}
    lengths = set()
    for name, row in ROWS.items():
        places = [folder / name / row.agent] + [shared / row.agent] * (row.agent != AGENT)
        for place in (p for p in places if (p / "cell.json").exists()):
            cell = read_cell(place)
            steps = cell.config["train"]["steps"]
            if row.agent == AGENT:
                lengths.add(steps)
            if name not in found and steps in lengths:
                seeds = read_json(place / "cell.json")["seeds"]
                found[name] = Found(cell, tuple(s["final"]["score"] for s in seeds))
    return found


def section(folder: Path, found: Mapping[str, Found]) -> list[str]:
    """A dataset's part of the page."""
    cell = next(f.cell for f in found.values() if f.cell.agent == AGENT)
    own, train, data = (cell.config[k] for k in ("agent_config", "train", "dataset"))
    span = data["reference"]["max"] - data["reference"]["min"]
    mean, best = (
        100 * (data[f"behaviour_return_{kind}"] - data["reference"]["min"]) / span
        for kind in ("mean", "max")
    )
    lines = [
        "",
        f"## {folder.name}",
        "",
        f"Scores of the data: {mean:.1f} mean, {best:.1f} best episode. A label is of two segments "
        f"of {own['segment']} steps, {train['batch_size']} labels an update, drawn anew each time; "
        f"beta {own['beta']:g}, weight of cloning the preferred segment {own['bc_weight']:g}; "
        f"{reference_share(found)}.",
        "",
        "| method | told of rewards | final score | 95 % interval | mean of last 10 | seeds "
        "| updates | updates/s |",
        "|---|---|--:|--:|--:|--:|--:|--:|",
    ]
    for name, cell in ((name, f.cell) for name, f in found.items()):
        interval = "" if cell.interval is None else "{:.1f} to {:.1f}".format(*cell.interval)
        lines.append(
            f"| {ROWS[name].text} | {ROWS[name].told} | {cell.score:.1f} | {interval} "
            f"| {cell.mean_of_last} | {cell.seeds} | {cell.config['train']['steps']:,} "
            f"| {cell.rate:.0f} |"
        )
    discussion = folder / "discussion.md"
    return lines + (["", discussion.read_text().strip()] if discussion.exists() else [])


def reference_share(found: Mapping[str, Found]) -> str:
    """How much of a training fits the reference, of the cells that go on from there."""
    cells = [f.cell for f in found.values() if f.cell.agent == AGENT]
    shares = {cell.config["agent_config"]["clone"] for cell in cells}
    parts = " or ".join(f"{100 * share:g} %" for share in sorted(shares - {1.0}))
    return f"the first {parts} of the updates fit the reference" if parts else "reference alone"


def draw_bars(found: Mapping[str, Found], target: Path) -> None:
    """Mean score of each row as a bar, its seeds as dots."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(PAPER):
        figure = Figure(figsize=(6.6, 0.6 + 0.27 * len(found)), layout="constrained")
        axes = figure.subplots()
        places = np.arange(len(found))[::-1]
        for place, (cell, scores) in zip(
            places, ((f.cell, f.scores) for f in found.values()), strict=True
        ):
            colour = COLOURS[5] if cell.agent == AGENT else COLOURS[4]
            axes.barh(place, cell.score, 0.7, color=colour, lw=0)
            axes.plot(scores, [place] * len(scores), "o", ms=3, color=COLOURS[0], clip_on=False)
        labels = [f"{ROWS[name].text} [{ROWS[name].told}]" for name in found]
        axes.set_yticks(places, labels)
        axes.set(xlabel="score; dots are seeds [told of rewards]")
        figure.savefig(target, dpi=160, metadata={"Software": None})


INTRODUCTION = """\
# Preferences instead of rewards

Normalised score, 100 (return - min) / (max - min) with D4RL's references, of the last policies on
20 starts common to all rows; mean over seeds with its 95 % interval (Student's t over seeds).
`preference` is told of pairs of segments which has the higher return, never a reward; of some rows
a share of these labels is wrong. All rows of a table have as many updates. Made by
`python scripts/preferences.py`; each cell's `cell.json` has its command, commit, machine and every
return."""


if __name__ == "__main__":
    print(f"offrl {offrl.__version__}, torch {torch.__version__}")
    sys.exit(main())
