"""Policies of chunks on tasks of the field: Fetch, and people's demonstrations of a door.

    python scripts/demonstrated.py --door door-human.hdf5   # missing cells, then the page
    python scripts/demonstrated.py                          # Fetch alone
    python scripts/demonstrated.py --draw                   # the page of the cells that exist

Demonstrations of Fetch are a script's, as `offrl data collect --policy scripted` makes them; those
of the door are a file of Adroit's. All networks of a task are of one size and trained alike.
Finished cells are skipped and unfinished ones resumed, as by scripts/results.py.
"""

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cells import RESULTS, add_training_arguments, run_cell, training_settings
from generative import demonstrations, interval, percent

import offrl
from offrl.datasets.loading import load_dataset
from offrl.datasets.offline import OfflineDataset
from offrl.experiment import plan
from offrl.files import read_json
from offrl.plotting import learners
from offrl.statistics import t_interval

PAGE = RESULTS / "demonstrated"
FETCH, DOOR = "FetchReach-v4", "AdroitHandDoor-v1"
EPISODES = {FETCH: 50, DOOR: 20}  # starts of the final evaluation
COUNT = 40  # demonstrations of Fetch
NETWORK = {"backbone": "film", "width": 128, "depth": 3, "lr": 1e-3, "batch_size": 128}
CHUNKS: Mapping[str, Mapping[str, Any]] = {
    FETCH: {"history": 1, "horizon": 8, "execute": 4},
    DOOR: {"history": 2, "horizon": 16, "execute": 8},
}
COMPARED: Mapping[str, Mapping[str, Any]] = {  # agent -> settings beside those of all
    "chunk_bc": {},
    "diffusion_policy": {"prediction": "x0", "sampler": "ddim", "sampler_steps": 8},
    "flow_bc": {},
    "consistency_bc": {},
}


def section(folder: Path) -> list[str]:
    """A task's part of the page."""
    names = [name for name in COMPARED if (folder / name / "cell.json").exists()]
    if not names:
        return []
    config = read_json(learners(folder / names[0])[0] / "config.json")
    data, own, train = config["dataset"], config["agent_config"], config["train"]
    lines = [
        "",
        f"## {config['env']}",
        "",
        f"{data['episodes']} demonstrations, {data['steps']:,} steps, mean return "
        f"{data['behaviour_return_mean']:.1f}. Backbone `{own['backbone']}` of {own['depth']} "
        f"blocks of {own['width']} units, chunks of {own['horizon']} actions of which "
        f"{own['execute']} are executed, {train['steps']:,} updates of {train['batch_size']} "
        "windows.",
        "",
        "| agent | success, % | 95 % interval | return | 95 % interval | seeds |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for name in names:
        finals = [seed["final"] for seed in read_json(folder / name / "cell.json")["seeds"]]
        success, returns = ([f[key] for f in finals] for key in ("success_rate", "mean"))
        found = t_interval(returns)
        spread = "" if found is None else f"{found.low:.1f} to {found.high:.1f}"
        lines.append(
            f"| `{name}` | {percent(np.mean(success))} | {interval(success, percent)} "
            f"| {np.mean(returns):.1f} | {spread} | {len(finals)} |"
        )
    discussion = folder / "discussion.md"
    return lines + (["", discussion.read_text().strip()] if discussion.exists() else [])


INTRODUCTION = """\
# Demonstrations on tasks of the field

Success is the share of starts, common to all, at some step of which the environment says so; means
over seeds with their 95 % intervals (Student's t over seeds, that of success cut at the ends of
its range). Made by `python scripts/demonstrated.py`; each cell's `cell.json` has its command,
commit, machine and every return."""


def draw(page: Path) -> None:
    """Write README.md into `page`."""
    text = [INTRODUCTION]
    for folder in sorted(p for p in page.iterdir() if p.is_dir()):
        text += section(folder)
    (page / "README.md").write_text("\n".join(text) + "\n")


def main() -> int:
    """Run missing cells, then draw."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--door", help="file of demonstrations of AdroitHandDoor-v1")
    parser.add_argument("--agents", nargs="+", default=list(COMPARED), choices=list(COMPARED))
    add_training_arguments(parser)
    parser.set_defaults(steps=4_000, backend="eager", matmul="float32")
    options = parser.parse_args()
    torch.set_num_threads(1)
    PAGE.mkdir(parents=True, exist_ok=True)
    tasks: dict[str, OfflineDataset] = {}
    if not options.draw:
        tasks[FETCH] = demonstrations(FETCH, COUNT)
    if options.door and not options.draw:
        tasks[DOOR] = load_dataset(options.door)
    for env, data in tasks.items():
        common = {**training_settings(options), "eval_every": options.steps, **NETWORK}
        for agent in options.agents:
            settings = {**common, **CHUNKS[env], **COMPARED[agent]}
            planned = plan(agent, data, env, "none", settings=settings)
            run_cell(planned, f"demonstrated/{env}/{agent}", EPISODES[env])
    draw(PAGE)
    return 0


if __name__ == "__main__":
    print(f"offrl {offrl.__version__}, torch {torch.__version__}")
    sys.exit(main())
