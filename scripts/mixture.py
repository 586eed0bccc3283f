"""Train on mostly bad data with a little that is good: A2PR's claim, tried beside other methods.

    python scripts/mixture.py                       # missing cells, then table and curves
    python scripts/mixture.py --poor lowest --size 30000 --datasets walker2d-medium-replay
    python scripts/mixture.py --draw                # the page of the cells that exist

A set is made of the best episodes of a dataset, --best of its --size steps, and of poor ones: a
uniformly random policy's, played in the dataset's environment, or with --poor lowest the
dataset's own of lowest return. Episodes stay whole, so that each part has a few steps more. Sets
are made once, by --data-seed alone. Finished cells are skipped and unfinished ones resumed, as by
scripts/results.py.
"""

import argparse
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
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
from results_page import Cell, read_cell, section

import offrl
from offrl.agents import AGENTS
from offrl.curves import learners
from offrl.datasets.collection import Request, collect
from offrl.datasets.loading import load_dataset
from offrl.datasets.offline import OfflineDataset
from offrl.datasets.rows import I64
from offrl.errors import ConfigError, DataError
from offrl.files import read_json, write_json
from offrl.plans import plan
from offrl.plotting import plot
from offrl.statistics import crossed_interval

DATASETS = ("hopper-medium-replay", "walker2d-medium-replay")
COMPARED = ("td3_bc", "prdc", "a2pr", "iql", "percent_bc")
CLAIM = ("a2pr", "td3_bc")  # the first is said to be the better on such data
POOR = {
    "random": "of a policy with uniform actions",
    "lowest": "of the dataset's episodes of lowest return",
}
PAGE = RESULTS / "mixture"
FACTS = "mixture.json"  # beside the cells of a set: what it is made of


def main() -> int:
    """Run missing cells, then draw."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--datasets", nargs="+", default=list(DATASETS))
    parser.add_argument("--agents", nargs="+", default=list(COMPARED), choices=list(AGENTS))
    parser.add_argument("--poor", default="random", choices=list(POOR))
    parser.add_argument("--best", type=float, default=0.1, help="share of the steps (0.1)")
    parser.add_argument("--size", type=int, default=100_000, help="steps of the set (100,000)")
    parser.add_argument("--data-seed", type=int, default=0, help="of the random policy")
    add_training_arguments(parser)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if not options.draw:
        for dataset in options.datasets:
            source = load_dataset(dataset)
            data = made(source, options.poor, options.best, options.size, options.data_seed)
            (PAGE / data.name).mkdir(parents=True, exist_ok=True)
            write_json(PAGE / data.name / FACTS, data.provenance["mixture"])
            for agent in options.agents:
                settings = {**training_settings(options), **settings_of(agent, data)}
                planned = plan(agent, data, settings=settings)
                run_cell(planned, f"mixture/{data.name}/{agent}")
    draw(PAGE)
    return 0


def settings_of(agent: str, data: OfflineDataset) -> dict[str, Any]:
    """What an agent has instead of its recipe: %BC imitates as many episodes as are good."""
    if agent != "percent_bc":
        return {}
    good = data.provenance["mixture"]["best"]["episodes"]
    # The half is cut off, and keeps a rounded share from losing an episode.
    return {"top_fraction": round((good + 0.5) / data.num_episodes, 6)}


def made(source: OfflineDataset, poor: str, best: float, size: int, seed: int) -> OfflineDataset:
    """The mixture, made once and kept under a name that says all of this."""
    name = f"{source.name}-{poor}-{best:g}-{size}-{seed}"

    def make() -> OfflineDataset:
        return replace(mixture(source, poor, best, size, seed), name=name)

    return kept_dataset(WORK / "mixtures" / name, make)


def mixture(source: OfflineDataset, poor: str, best: float, size: int, seed: int) -> OfflineDataset:
    """`best` of `size` steps from the source's episodes of highest return, the rest poor.

    Its steps are marked `best` or not, and the provenance's `mixture` says what either part is.
    Raises ConfigError for a share that is not between 0 and 1, and DataError where the source is
    too small, has no environment, or is not laid out like what its environment gives.
    """
    if not 0.0 < best < 1.0:
        raise ConfigError(f"--best is {best}; it is a share of the steps, between 0 and 1")
    wanted = round(best * size)
    order = np.argsort(-source.returns(), kind="stable")
    good = first_steps(source, order, wanted)
    good_part = source.select(np.sort(good), "the episodes of highest return")
    if poor == "random":
        poor_part = random_part(source, size - wanted, seed)
    else:
        rest = order[::-1][: source.num_episodes - len(good)]
        low = first_steps(source, rest, size - wanted)
        poor_part = source.select(np.sort(low), "the episodes of lowest return")
    facts = {
        "source": {"name": source.name, "fingerprint": source.fingerprint},
        "poor": {"kind": POOR[poor], **summary(poor_part), "seed": seed},
        "best": summary(good_part),
    }
    return replace(join(poor_part, good_part), provenance={"mixture": facts})


def first_steps(data: OfflineDataset, order: I64, steps: int) -> I64:
    """The first episodes, in this order, that have so many steps together."""
    lengths = data.lengths[order].cumsum()
    if not len(order) or lengths[-1] < steps:
        raise DataError(
            f"{data.name} has {int(lengths[-1]) if len(order) else 0:,} steps of which "
            f"{steps:,} were to be taken; give a smaller --size"
        )
    return order[: int(np.searchsorted(lengths, steps)) + 1]


def random_part(source: OfflineDataset, steps: int, seed: int) -> OfflineDataset:
    """Episodes with uniform actions in the source's environment, collected once and kept."""
    if source.env_id is None:
        raise DataError(f"{source.name} names no environment to play in; use --poor lowest")
    env = re.sub(r"[^\w.]+", "-", source.env_id)
    path = WORK / "mixtures" / f"{env}-random-{steps}-{seed}"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        collect(Request(source.env_id, path, "random", steps=steps, seed=seed))
    return load_dataset(path)


def join(poor: OfflineDataset, good: OfflineDataset) -> OfflineDataset:
    """Both parts' episodes one after the other, with the good part's spaces and reference."""
    ours, theirs = (
        (part.obs_dim, part.spec.action_low, part.spec.action_high) for part in (good, poor)
    )
    if ours != theirs:
        raise DataError(
            f"{good.name} has {ours[0]} observations and actions from {ours[1]} to {ours[2]}; "
            f"its environment has {theirs[0]}, from {theirs[1]} to {theirs[2]}; use --poor lowest"
        )
    if poor.next_obs is not None or good.next_obs is not None:
        raise DataError(f"{good.name} has next observations of their own; mix the clean data")
    return replace(
        good,
        rows=np.concatenate([poor.rows, good.rows]),
        starts=np.concatenate([poor.starts, len(poor.rows) + good.starts]),
        lengths=np.concatenate([poor.lengths, good.lengths]),
        final_known=np.concatenate([poor.final_known, good.final_known]),
        marks={"best": np.arange(len(poor.rows) + len(good.rows)) >= len(poor.rows)},
    )


def summary(data: OfflineDataset) -> dict[str, Any]:
    """Size, and returns with their scores where the data has a reference."""
    returns = data.returns()
    found = {"mean": float(returns.mean()), "least": float(returns.min())}
    found["greatest"] = float(returns.max())
    facts: dict[str, Any] = {"steps": data.num_steps, "episodes": data.num_episodes}
    facts["return"] = found
    if data.reference is not None:
        facts["score"] = {
            k: round(float(data.reference.score(v)), 1) + 0.0  # no minus before a zero
            for k, v in found.items()
        }
    return facts


def draw(page: Path) -> None:
    """Write README.md and a picture for each set into `page`."""
    page.mkdir(parents=True, exist_ok=True)
    text = [INTRODUCTION]
    for folder in sorted(p for p in page.iterdir() if p.is_dir()):
        names = [name for name in AGENTS if (folder / name / "cell.json").exists()]
        if not names:
            continue
        cells = [read_cell(folder / name) for name in names]
        heading, *table = section(folder, cells)[1:]
        text += ["", heading, "", made_of(read_json(folder / FACTS)), *table]
        text += difference(folder, cells)
        runs = [run for name in names for run in learners(folder / name)]
        plot(runs, page / f"{folder.name}.png", force=True)
        text += ["", f"![learning curves]({folder.name}.png)"]
    (page / "README.md").write_text("\n".join(text) + "\n")


def difference(folder: Path, cells: Sequence[Cell]) -> list[str]:
    """What the claim's agents score apart, seed by seed and start by start, if both are there."""
    if not {*CLAIM} <= {cell.agent for cell in cells}:
        return []
    ours, theirs = (
        np.array(
            [seed["final"]["returns"] for seed in read_json(folder / a / "cell.json")["seeds"]]
        )
        for a in CLAIM
    )
    if ours.shape != theirs.shape:
        return []
    reference = cells[0].config["dataset"]["reference"]
    points = 100 * (ours - theirs) / (reference["max"] - reference["min"])
    interval = crossed_interval(points)
    between = "" if interval is None else f" ({interval})"
    return ["", f"`{CLAIM[0]}` less `{CLAIM[1]}`, start by start: {points.mean():.1f}{between}."]


def made_of(facts: Mapping[str, Any]) -> str:
    """A sentence for each part of a set."""
    poor, source = facts["poor"], facts["source"]["name"]
    return f"Poor: {counted(poor)}, {poor['kind']}. Best of {source}: {counted(facts['best'])}."


def counted(facts: Mapping[str, Any]) -> str:
    """Steps, episodes, and scores if they are known."""
    size = f"{facts['steps']:,} steps in {facts['episodes']:,} episodes"
    if "score" not in facts:
        return size
    score = facts["score"]
    return f"{size}, scores {score['least']} to {score['greatest']}, mean {score['mean']}"


INTRODUCTION = """\
# Mostly bad data with a little that is good

Normalised score, 100 (return - min) / (max - min) with D4RL's references, of the last policies on
20 starts common to all agents; mean over seeds with its 95 % interval (Student's t over seeds), the
highest mean first. The difference of two agents is paired by seed and start, and its interval
covers both (`offrl.statistics.crossed_interval`).

The good part is the best episodes that were logged, with the scores stated, and no expert's. Both
parts are drawn once: all seeds and agents learn from the same set, and no interval says what
another draw of the poor part would change. Settings are those of the recipes, but for `percent_bc`:
good episodes may be longer than poor ones, so that a tenth of the episodes would be mostly poor,
and it imitates as many episodes as the good part has. Made by `python scripts/mixture.py`; each
cell's `cell.json` has its command, commit, machine and every return."""


if __name__ == "__main__":
    print(f"offrl {offrl.__version__}, torch {torch.__version__}")
    sys.exit(main())
