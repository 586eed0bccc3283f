"""Imitation from one expert's episode and mixed data: ODICE's and cloning's, one command.

    python scripts/imitation.py                            # missing cells, then the table
    python scripts/imitation.py --datasets walker2d-medium-replay --steps 100000
    python scripts/imitation.py --expert walker2d-expert-v2 --datasets walker2d-medium-replay
    python scripts/imitation.py --draw                     # the table of the cells that exist

The expert is the episode of highest return of each dataset, the rest is the mixed data; --expert
names another dataset, whose best episode is taken. No method reads a reward but to find it.
Finished cells are skipped and unfinished ones resumed, as by scripts/results.py.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from cells import RESULTS, SHIPPED, add_training_arguments, run_cell, training_settings
from results_page import Cell, read_cell

import offrl
from offrl.experiment import Plan, plan

PAGE = RESULTS / "imitation"
ROWS = {  # folder, agent, and what the row is
    "all/odice_il": "ODICE, the expert's episode and all data",
    "expert/odice_il": "ODICE, the expert's episode alone, rewards 0",
    "expert/percent_bc": "BC, the expert's episode alone",
    "all/bc": "BC, all data",
}


def plans(dataset: str, expert: str, settings: dict[str, Any]) -> Iterator[tuple[str, Plan]]:
    """The cells of a dataset: folder below results, and run."""
    data = offrl.load_dataset(dataset)
    source = data if not expert else offrl.load_dataset(expert)
    named = {"expert": expert} if expert else {}
    # The smallest share takes one episode.
    one = {"top_fraction": 1.0 / source.num_episodes}
    made: dict[str, tuple[str, str, dict[str, Any]]] = {
        "all/odice_il": ("odice_il", dataset, named),
        "expert/odice_il": ("odice_il", dataset, {**named, "mixed": False, "dual_weight": 0.4}),
        "expert/percent_bc": ("percent_bc", expert or dataset, one),
        "all/bc": ("bc", dataset, {}),
    }
    for row, (agent, trained_on, own) in made.items():
        planned = plan(agent, trained_on, env=data.env_id, settings={**settings, **own})
        yield f"imitation/{data.name}{f'-{Path(expert).stem}' if expert else ''}/{row}", planned


def section(folder: Path) -> list[str]:
    """A dataset's part of the page."""
    found: dict[str, Cell] = {
        text: read_cell(folder / row)
        for row, text in ROWS.items()
        if (folder / row / "cell.json").exists()
    }
    if not found:
        return []
    data = next(iter(found.values())).config["dataset"]
    reference = data["reference"]
    span = reference["max"] - reference["min"]
    best = 100 * (data["behaviour_return_max"] - reference["min"]) / span
    mean = 100 * (data["behaviour_return_mean"] - reference["min"]) / span
    lines = [
        "",
        f"## {folder.name}",
        "",
        f"Scores of the data: {mean:.1f} mean, {best:.1f} best episode.",
        "",
        "| method | final score | 95 % interval | mean of last 10 | seeds | updates |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for text, cell in found.items():
        interval = "" if cell.interval is None else "{:.1f} to {:.1f}".format(*cell.interval)
        lines.append(
            f"| {text} | {cell.score:.1f} | {interval} | {cell.mean_of_last} | {cell.seeds} "
            f"| {cell.config['train']['steps']:,} |"
        )
    discussion = folder / "discussion.md"
    return lines + (["", discussion.read_text().strip()] if discussion.exists() else [])


INTRODUCTION = """\
# Imitation of one episode beside mixed data

Normalised score of the last policies on 20 common starts; mean over seeds with its 95 % interval
(Student's t over seeds). The expert is one episode, the one of highest return; what else the data
hold is not known to be good or bad. BC has its own settings, a smaller network among them. Made by
`python scripts/imitation.py`; each cell's `cell.json` has its command, commit, machine and every
return."""


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
            for name, planned in plans(dataset, arguments.expert, settings):
                run_cell(planned, name)
    PAGE.mkdir(parents=True, exist_ok=True)
    text = [INTRODUCTION]
    for folder in sorted(p for p in PAGE.iterdir() if p.is_dir()):
        text += section(folder)
    (PAGE / "README.md").write_text("\n".join(text) + "\n")
    return 0


if __name__ == "__main__":
    print(f"offrl {offrl.__version__}, torch {torch.__version__}")
    sys.exit(main())
