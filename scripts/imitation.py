"""Imitation from one expert's episode and mixed data: ODICE's and cloning's, one command.

    python scripts/imitation.py                            # missing cells, then the table
    python scripts/imitation.py --datasets walker2d-medium-replay --steps 100000
    python scripts/imitation.py --expert walker2d-expert-v2 --datasets walker2d-medium-replay
    python scripts/imitation.py --draw                     # the page of the cells that exist

The expert is the episode of highest return of each dataset, the rest is the mixed data; --expert
names another dataset, whose best episode is taken. No method reads a reward but to find it.
Finished cells are skipped and unfinished ones resumed, as by scripts/results.py.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cells import RESULTS, SHIPPED, add_training_arguments, run_cell, training_settings, write_page
from results_page import read_cell

import offrl
from offrl.agents import ODICEILConfig
from offrl.curves import learners
from offrl.datasets.offline import OfflineDataset
from offrl.errors import DataError
from offrl.files import read_json, write_json
from offrl.plans import Plan, plan
from offrl.plotting import plot

PAGE = RESULTS / "imitation"
FACTS = "imitation.json"  # beside the cells of a dataset: scores of what they learn from
ROWS = {  # folder, agent, and what the row is
    "all/odice_il": "ODICE, the expert's episode and all data",
    "expert/odice_il": "ODICE, the expert's episode alone, rewards 0",
    "expert/percent_bc": "BC, the expert's episode alone",
    "all/bc": "BC, all data",
}


def plans(
    dataset: str, expert: str, settings: dict[str, Any]
) -> tuple[str, dict[str, Any], dict[str, Plan]]:
    """Of a dataset: the folder of its cells below PAGE, what they learn from, and their runs."""
    data = offrl.load_dataset(dataset)
    source = data if not expert else offrl.load_dataset(expert)
    named = {"expert": expert} if expert else {}
    policy = ODICEILConfig()
    alike = {"hidden": policy.actor_hidden, "lr": policy.lr}
    # The smallest share takes one episode.
    one = {**alike, "top_fraction": 1.0 / source.num_episodes}
    made: dict[str, tuple[str, str, dict[str, Any]]] = {
        "all/odice_il": ("odice_il", dataset, named),
        "expert/odice_il": ("odice_il", dataset, {**named, "mixed": False, "dual_weight": 0.4}),
        "expert/percent_bc": ("percent_bc", expert or dataset, one),
        "all/bc": ("bc", dataset, alike),
    }
    runs = {
        row: plan(agent, trained_on, env=data.env_id, settings={**settings, **own})
        for row, (agent, trained_on, own) in made.items()
    }
    home = f"{data.name}-{Path(expert).stem}" if expert else data.name
    return home, facts(data, source), runs


def facts(data: OfflineDataset, source: OfflineDataset) -> dict[str, Any]:
    """Scores of the data's episodes and of the expert's, which is the best of `source`."""
    if data.reference is None:
        raise DataError(f"{data.name} has no reference returns, and this table is of scores")
    scores = data.reference.score(data.returns())
    best = int(np.argmax(source.returns()))
    return {
        "data": {"mean": float(scores.mean()), "best": float(scores.max())},
        "expert": {
            "dataset": source.name,
            "fingerprint": source.fingerprint,
            "score": float(data.reference.score(source.returns()[best])),
            "steps": int(source.lengths[best]),
        },
    }


def section(folder: Path) -> list[str]:
    """A dataset's part of the page, whose picture is drawn."""
    found = {row: read_cell(folder / row) for row in ROWS if (folder / row / "cell.json").exists()}
    if not found:
        return []
    stored = read_json(folder / FACTS)
    data, expert = stored["data"], stored["expert"]
    lines = [
        "",
        f"## {folder.name}",
        "",
        f"Scores of the data: {data['mean']:.1f} mean, {data['best']:.1f} best episode. The "
        f"expert's episode, of {expert['dataset']}: {expert['score']:.1f} in {expert['steps']:,} "
        "steps.",
        "",
        "| method | final score | 95 % interval | mean of last 10 | seeds | updates |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for row, cell in found.items():
        interval = "" if cell.interval is None else "{:.1f} to {:.1f}".format(*cell.interval)
        lines.append(
            f"| {ROWS[row]} | {cell.score:.1f} | {interval} | {cell.mean_of_last} | {cell.seeds} "
            f"| {cell.config['train']['steps']:,} |"
        )
    runs = [run for row in found for run in learners(folder / row)]
    plot(runs, PAGE / f"{folder.name}.png", force=True)
    return [*lines, "", f"![learning curves]({folder.name}.png)"]


INTRODUCTION = """\
# Imitation of one episode beside mixed data

Normalised score of the last policies on 20 common starts; mean over seeds with its 95 % interval
(Student's t over seeds). The expert is one episode, the one of highest return; what else the data
hold is not known to be good or bad. Where it is another dataset's, BC of all data does not see it.
BC has the hidden layers and the learning rate of ODICE's policy; it fits the mean by squared errors
and has no weight decay. Made by `python scripts/imitation.py`; each cell's `cell.json` has its
command, commit, machine and every return."""


def main() -> int:
    """Run missing cells, then draw."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--datasets", nargs="+", default=list(SHIPPED))
    parser.add_argument("--expert", default="", help="dataset whose best episode is the expert's")
    add_training_arguments(parser)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if not arguments.draw:
        settings = training_settings(arguments)
        for dataset in arguments.datasets:
            home, learned_from, runs = plans(dataset, arguments.expert, settings)
            (PAGE / home).mkdir(parents=True, exist_ok=True)
            write_json(PAGE / home / FACTS, learned_from)
            for row, planned in runs.items():
                run_cell(planned, f"imitation/{home}/{row}")
    PAGE.mkdir(parents=True, exist_ok=True)
    write_page(PAGE, INTRODUCTION, section)
    return 0


if __name__ == "__main__":
    print(f"offrl {offrl.__version__}, torch {torch.__version__}")
    sys.exit(main())
