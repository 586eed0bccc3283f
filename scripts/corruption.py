"""Measure what agents keep of their score when a share of the data is corrupted.

    python scripts/corruption.py                                  # all missing cells, then the page
    python scripts/corruption.py --agents iql riql --elements dynamics --modes random adversarial
    python scripts/corruption.py --draw                           # the page of the cells that exist

A cell is an agent on a dataset corrupted in one element, with one seed, which is that of the masks
as well as of the training, as in RIQL's paper. Finished cells are skipped, unfinished resumed.
Scores on clean data are those of scripts/results.py where they were trained as long and with the
same settings; else a cell of all seeds on the clean data is run here, under
results/corruption/<dataset>/clean. --clean runs it in any case, --no-clean never.
results/corruption/<dataset>/discussion.md, written by hand, stands below that dataset's tables.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cells import (
    RESULTS,
    WORK,
    add_training_arguments,
    kept_dataset,
    run_cell,
    training_settings,
)

import offrl
from offrl.agents import AGENTS
from offrl.corrupt_cli import ATTACKER_STEPS, attacker_for, corrupt_with_bar
from offrl.datasets.corruption import ELEMENTS, MODES, Corruption
from offrl.datasets.loading import load_dataset
from offrl.datasets.offline import OfflineDataset
from offrl.experiment import plan
from offrl.files import read_json
from offrl.statistics import Interval, t_interval

PAGE = RESULTS / "corruption"
ASKED: Mapping[str, tuple[str, ...]] = {  # agent -> elements, unless --agents or --elements say so
    "iql": ELEMENTS,
    "riql": ELEMENTS,
    "td3_bc": ("rewards", "dynamics"),
    "edac": ("rewards", "dynamics"),
}
SETTINGS: Mapping[str, Mapping[str, Any]] = {"edac": {"ensemble": 10}}  # Hopper's recipe has 50
CLEAN = "clean"  # in the place of a mode and an element
COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377")


def main() -> int:
    """Run missing cells, then draw."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--datasets", nargs="+", default=["hopper-medium-replay"])
    parser.add_argument("--agents", nargs="+", choices=list(AGENTS))
    parser.add_argument("--elements", nargs="+", choices=ELEMENTS)
    parser.add_argument("--modes", nargs="+", choices=MODES, default=["random"])
    parser.add_argument("--rate", type=float, default=0.3)
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--attacker-steps", type=int, default=ATTACKER_STEPS)
    parser.add_argument(
        "--clean",
        action=argparse.BooleanOptionalAction,
        help="cells on the clean data; by default where no comparable score is known",
    )
    add_training_arguments(parser)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if not options.draw:
        for dataset in options.datasets:
            clean = load_dataset(dataset)
            run_clean(clean, options)
            for seed in range(options.seeds):
                for mode in options.modes:
                    run_mode(clean, mode, seed, options)
    draw(PAGE, RESULTS)
    return 0


def run_clean(clean: OfflineDataset, options: argparse.Namespace) -> None:
    """The cells on the clean data of agents whose score there is not known, or of all asked for."""
    for agent in options.agents or ASKED:
        wanted = options.clean
        if wanted is None:
            wanted = comparable(RESULTS / clean.name / agent, {options.steps}) is None
        if wanted:
            settings = {**training_settings(options), **SETTINGS.get(agent, {})}
            planned = plan(agent, clean, settings=settings)
            run_cell(planned, f"corruption/{clean.name}/{CLEAN}/{agent}")


def run_mode(clean: OfflineDataset, mode: str, seed: int, options: argparse.Namespace) -> None:
    """The cells of one mode and seed, element by element."""
    agents = options.agents or list(ASKED)
    for element in options.elements or ELEMENTS:
        asked = [a for a in agents if options.elements or element in ASKED.get(a, ELEMENTS)]
        if not asked:
            continue
        corruption = Corruption((element,), mode, options.rate, options.scale, seed)
        data = corrupted(clean, corruption, options.attacker_steps)
        for agent in asked:
            settings = {**training_settings(options), "seeds": 1, "seed": seed}
            planned = plan(agent, data, settings={**settings, **SETTINGS.get(agent, {})})
            run_cell(planned, f"corruption/{clean.name}/{corruption.label}/{agent}/seed-{seed}")


def corrupted(clean: OfflineDataset, corruption: Corruption, attacker_steps: int) -> OfflineDataset:
    """The corrupted data, made once and kept, since an attack takes minutes."""
    numbers = f"{corruption.rate:g}-{corruption.scale:g}-{corruption.seed}"
    if corruption.needs_attacker:
        numbers += f"-{attacker_steps}"
    path = WORK / "corrupted" / f"{clean.name}-{corruption.label}-{numbers}"

    def make() -> OfflineDataset:
        attacker = attacker_for(clean, attacker_steps) if corruption.needs_attacker else None
        return corrupt_with_bar(clean, corruption, attacker)

    return kept_dataset(path, make)


@dataclass(frozen=True)
class Score:
    """Final scores of an agent's seeds, and what they were trained with."""

    values: tuple[float, ...]
    config: Mapping[str, Any]  # of the first seed's run

    @property
    def mean(self) -> float:
        return float(np.mean(self.values))

    @property
    def interval(self) -> Interval | None:
        return t_interval(list(self.values))

    def __str__(self) -> str:
        interval = self.interval
        spread = "" if interval is None else f" ({interval.low:.1f} to {interval.high:.1f})"
        return f"{self.mean:.1f}{spread}"


def read_score(folder: Path) -> Score | None:
    """Of an agent's folder: cells of one seed each, or a cell of several; None without any."""
    cells = [folder] if (folder / "cell.json").exists() else sorted(folder.glob("seed-*"))
    cells = [cell for cell in cells if (cell / "cell.json").exists()]
    if not cells:
        return None
    seeds = [seed for cell in cells for seed in read_json(cell / "cell.json")["seeds"]]
    config = next(path for cell in cells for path in sorted(cell.glob("**/config.json")))
    return Score(tuple(seed["final"]["score"] for seed in seeds), read_json(config))


def draw(page: Path, results: Path) -> None:
    """Write README.md and a picture for each dataset and mode into `page`."""
    lines = [INTRODUCTION]
    for folder in sorted(p for p in page.glob("*") if p.is_dir()):
        for mode in MODES:
            table = {
                agent: {e: read_score(folder / f"{mode}-{e}" / agent) for e in ELEMENTS}
                for agent in AGENTS
            }
            table = {agent: row for agent, row in table.items() if any(row.values())}
            if not table:
                continue
            homes = (folder / CLEAN, results / folder.name)
            clean = {agent: clean_score(homes, agent, row) for agent, row in table.items()}
            picture = f"{folder.name}-{mode}.png"
            draw_bars(table, clean, page / picture, f"{folder.name}, {mode} corruption")
            lines += section(folder.name, mode, table, clean)
            lines += ["", f"![scores by element]({picture})"]
        discussion = folder / "discussion.md"
        if discussion.exists():
            lines += ["", discussion.read_text().strip()]
    (page / "README.md").write_text("\n".join(lines) + "\n")


Row = Mapping[str, Score | None]

INTRODUCTION = """\
# Corrupted data

Normalised score, 100 (return - min) / (max - min) with D4RL's references, of the last policies on
20 starts of the clean environment, common to all; mean over seeds with its 95 % interval (Student's
t over seeds), and the share of the score on clean data that is left, which was trained as long and
with the same settings. Each seed has masks, noise and a training of its own. The protocol is that
of RIQL (`offrl data corrupt --help`). Made by `python scripts/corruption.py`; each cell's
`cell.json` has its command, commit, machine and every return."""


def clean_score(homes: Sequence[Path], agent: str, row: Row) -> Score | None:
    """The score on clean data of the first of these folders that has a comparable one."""
    steps = {score.config["train"]["steps"] for score in row.values() if score}
    found = (comparable(home / agent, steps) for home in homes)
    return next((score for score in found if score), None)


def comparable(folder: Path, steps: Set[int]) -> Score | None:
    """The score on clean data, where it was trained as long and with the settings used here."""
    found = read_score(folder)
    if found is None or steps != {found.config["train"]["steps"]}:
        return None
    used = found.config["agent_config"]
    return found if used == {**used, **SETTINGS.get(folder.name, {})} else None


def section(
    dataset: str, mode: str, table: Mapping[str, Row], clean: Mapping[str, Score | None]
) -> list[str]:
    """A dataset's table for one mode of corruption."""
    some = next(score for row in table.values() for score in row.values() if score)
    train = some.config["train"]
    lines = ["", f"## {dataset}, {mode}", ""]
    lines += [f"{train['steps']:,} updates, {train['backend']}, {train['matmul']} products.", ""]
    lines += [f"| agent | clean | {' | '.join(ELEMENTS)} |", f"|---|{'--:|' * 5}"]
    for agent, row in table.items():
        cells = []
        for score in row.values():
            known, kept = clean[agent], ""
            if score and known and known.mean > 0:
                kept = f", {100 * score.mean / known.mean:.0f} %"
            cells.append(f"{score}{kept}" if score else "")
        lines.append(f"| `{agent}` | {clean[agent] or ''} | {' | '.join(cells)} |")
    notes = [
        f"`{agent}` with {', '.join(f'{k} {v}' for k, v in SETTINGS[agent].items())}"
        for agent in table
        if agent in SETTINGS
    ]
    return [*lines, "", f"Not by the recipe: {'; '.join(notes)}."] if notes else lines


def draw_bars(
    table: Mapping[str, Row], clean: Mapping[str, Score | None], path: Path, title: str
) -> None:
    """Bars by element and agent, with intervals; a line where the agent's clean score is."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.0, 3.6), dpi=150, layout="constrained")
    axes = figure.subplots()
    width = 0.8 / len(table)
    for k, (agent, row) in enumerate(table.items()):
        colour, known = COLOURS[k % len(COLOURS)], clean[agent]
        label: str | None = agent
        for i, score in enumerate(row.values()):
            if score is None:
                continue
            place = i - 0.4 + (k + 0.5) * width
            half = 0.0 if score.interval is None else score.interval.high - score.mean
            axes.bar(
                place, score.mean, 0.9 * width, yerr=half, color=colour, label=label, capsize=2
            )
            label = None
            if known is not None:
                ends = (place - width / 2, place + width / 2)
                axes.plot(ends, (known.mean, known.mean), color="black", linewidth=1.2)
    axes.set_xticks(range(len(ELEMENTS)), ELEMENTS)
    axes.set_xlim(-0.5, len(ELEMENTS) - 0.5)
    axes.set_ylabel("score")
    axes.set_title(f"{title} (line: on clean data)", fontsize=9)
    axes.legend(fontsize=8, frameon=False)
    partial = path.with_name(f".{path.name}.partial")
    figure.savefig(partial, format="png")
    partial.replace(path)


if __name__ == "__main__":
    print(f"offrl {offrl.__version__}, torch {torch.__version__}")
    sys.exit(main())
