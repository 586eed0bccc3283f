"""Measure what agents keep of their score when a share of the data is corrupted.

    python scripts/corruption.py                                  # all missing cells, then the page
    python scripts/corruption.py --rows iql riql --elements dynamics --modes random adversarial
    python scripts/corruption.py --draw                           # the page of the cells that exist

A row is an agent with settings (corruption_cells.ROWS). A cell is a row on a dataset corrupted in
one element, with one seed, which is that of the masks as well as of the training, as in RIQL's
paper. Finished cells are skipped, unfinished resumed. Scores on clean data are those of
scripts/results.py where they were trained in the same way, with the row's settings and all seeds;
else a cell of all seeds on the clean data is run here, under results/corruption/<dataset>/clean.
--clean runs it in any case, --no-clean never. Other rates, scales and lengths of the attacker's
training have tables of their own. results/corruption/<dataset>/discussion.md, written by hand,
stands below that dataset's tables.
"""

import argparse
import sys

import torch
from cells import (
    RESULTS,
    WORK,
    add_training_arguments,
    kept_dataset,
    run_cell,
    training_settings,
)
from corruption_cells import ASKED, CLEAN, ROWS, clean_score, way_of
from corruption_page import draw

import offrl
from offrl.corrupt_cli import ATTACKER_STEPS, attacker_for, corrupt_with_bar
from offrl.datasets.corruption import ELEMENTS, MODES, Corruption
from offrl.datasets.loading import load_dataset
from offrl.datasets.offline import OfflineDataset
from offrl.plans import Plan, plan

PAGE = RESULTS / "corruption"


def main() -> int:
    """Run missing cells, then draw."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--datasets", nargs="+", default=["hopper-medium-replay"])
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ASKED))
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


def planned_cell(
    name: str, data: OfflineDataset, options: argparse.Namespace, seed: int | None = None
) -> Plan:
    """A row's cell on this data: of one seed, or of all."""
    row, settings = ROWS[name], training_settings(options)
    if seed is not None:
        settings |= {"seeds": 1, "seed": seed}
    return plan(row.agent, data, recipe=row.recipe, settings={**settings, **row.settings})


def run_clean(clean: OfflineDataset, options: argparse.Namespace) -> None:
    """The cells on the clean data of rows whose score there is not known, or of all asked for."""
    for name in dict.fromkeys(ROWS[row].home for row in options.rows):
        planned, wanted = planned_cell(name, clean, options), options.clean
        if wanted is None:
            record, known = planned.record(), (RESULTS / clean.name / ROWS[name].agent,)
            seeds, way = set(planned.train.learner_seeds), way_of(record["train"])
            wanted = clean_score(known, ROWS[name], way, seeds) is None
        if wanted:
            run_cell(planned, f"corruption/{clean.name}/{CLEAN}/{name}")


def run_mode(clean: OfflineDataset, mode: str, seed: int, options: argparse.Namespace) -> None:
    """The cells of one mode and seed, element by element."""
    condition = f"{mode}-rate-{options.rate:g}-scale-{options.scale:g}"
    if mode == "adversarial":
        condition += f"-attacker-{options.attacker_steps}"
    for element in options.elements or ELEMENTS:
        asked = [n for n in options.rows if options.elements or element in ROWS[n].elements]
        if not asked:
            continue
        corruption = Corruption((element,), mode, options.rate, options.scale, seed)
        data = corrupted(clean, corruption, options.attacker_steps)
        for name in asked:
            folder = f"corruption/{clean.name}/{condition}/{element}/{name}/seed-{seed}"
            run_cell(planned_cell(name, data, options, seed), folder)


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


if __name__ == "__main__":
    print(f"offrl {offrl.__version__}, torch {torch.__version__}")
    sys.exit(main())
