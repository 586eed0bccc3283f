"""Policies of chunks on tasks of the field: Fetch, and people's demonstrations of a door.

    python scripts/demonstrated.py --door door-human.hdf5   # missing cells, then the page
    python scripts/demonstrated.py --envs FetchReach-v4
    python scripts/demonstrated.py --draw                   # the page of the cells that exist

Demonstrations of Fetch are a script's, as `offrl data collect --policy scripted` makes them; those
of the door are a file of Adroit's. Policies that generate chunks, and the regression beside them,
have networks of one size in a task; energies have their own. All are trained for as many updates.
Finished cells are skipped and unfinished ones resumed, as by scripts/results.py.
"""

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cells import RESULTS, add_training_arguments, run_cell, training_settings, write_page
from generative import demonstrations, interval, percent
from results_page import changed_settings

import offrl
from offrl.curves import learners
from offrl.datasets.loading import load_dataset
from offrl.files import read_json
from offrl.plans import plan
from offrl.statistics import t_interval

PAGE = RESULTS / "demonstrated"
FETCH, DOOR = "FetchReach-v4", "AdroitHandDoor-v1"
EPISODES = {FETCH: 50, DOOR: 20}  # starts of the final evaluation
COUNT = 40  # demonstrations of Fetch
NETWORK: Mapping[str, Any] = {"backbone": "film", "depth": 3, "lr": 1e-3}
CHUNKS: Mapping[str, Mapping[str, Any]] = {
    FETCH: {**NETWORK, "width": 128, "history": 1, "horizon": 8, "execute": 4},
    DOOR: {**NETWORK, "width": 512, "history": 2, "horizon": 16, "execute": 8},
}
COMPARED: Mapping[str, Mapping[str, Any]] = {  # agent -> settings beside those of all
    "chunk_bc": {},
    "diffusion_policy": {"prediction": "x0", "sampler": "ddim", "sampler_steps": 8},
    "flow_bc": {},
    "consistency_bc": {},
}
# Implicit BC as its authors have it on Adroit, but for what an update costs: half of the width and
# depth, a fifth of the walk and half of the others' batch. EBT learned from noised chunks, the one
# of the two that reaches the target in scripts/energy.py.
LANGEVIN: Mapping[str, Any] = {
    **{"history": 1, "horizon": 1, "execute": 1, "width": 256, "depth": 4, "lr": 5e-4},
    **{"method": "langevin", "negatives": 8, "candidates": 64, "rounds": 20, "penalty": 1.0},
    **{"rate": 0.5, "shake": 0.5, "limit": 0.5, "batch_size": 64},
}
DESCENT: Mapping[str, Any] = {
    **{"backbone": "mlp", "width": 256, "depth": 4, "lr": 1e-3, "noised": 1.0, "sampler_steps": 8}
}
ENERGIES: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    FETCH: {"ibc": LANGEVIN, "ebt": {**DESCENT, "history": 1, "horizon": 8, "execute": 4}},
    DOOR: {"ibc": LANGEVIN, "ebt": {**DESCENT, "history": 2, "horizon": 16, "execute": 8}},
}
AGENTS = (*COMPARED, "ibc", "ebt")
SHOWN = ("backbone", "depth", "width", "horizon", "execute")  # in columns of the table


def section(folder: Path) -> list[str]:
    """A task's part of the page."""
    names = [name for name in AGENTS if (folder / name / "cell.json").exists()]
    if not names:
        return []
    configs = {name: read_json(learners(folder / name)[0] / "config.json") for name in names}
    config = configs[names[0]]
    data, train = config["dataset"], config["train"]
    lines = [
        "",
        f"## {config['env']}",
        "",
        f"{data['episodes']} demonstrations, {data['steps']:,} steps, mean return "
        f"{data['behaviour_return_mean']:.1f}. {train['steps']:,} updates.",
        "",
        "| agent | success, % | 95 % interval | return | 95 % interval | seeds | network "
        "| batch | actions of a plan | executed |",
        "|---|--:|--:|--:|--:|--:|---|--:|--:|--:|",
    ]
    for name in names:
        finals = [seed["final"] for seed in read_json(folder / name / "cell.json")["seeds"]]
        success, returns = ([f[key] for f in finals] for key in ("success_rate", "mean"))
        found = t_interval(returns)
        spread = "" if found is None else f"{found.low:.1f} to {found.high:.1f}"
        own = configs[name]["agent_config"]
        network = f"{own.get('backbone', 'mlp')}, {own['depth']} of {own['width']}"
        lines.append(
            f"| `{name}` | {percent(np.mean(success))} | {interval(success, percent)} "
            f"| {np.mean(returns):.1f} | {spread} | {len(finals)} | {network} "
            f"| {configs[name]['train']['batch_size']} | {own['horizon']} | {own['execute']} |"
        )
    changed = [
        f"`{name}` with {text}"
        for name in names
        if (text := changed_settings(name, configs[name], SHOWN))
    ]
    return [*lines, "", f"Other settings than the agents' defaults: {'; '.join(changed)}."]


INTRODUCTION = """\
# Demonstrations on tasks of the field

Success is the share of starts, common to all, at some step of which the environment says so; means
over seeds with their 95 % intervals (Student's t over seeds, that of success cut at the ends of
its range). Made by `python scripts/demonstrated.py`; each cell's `cell.json` has its command,
commit, machine and every return."""


def main() -> int:
    """Run missing cells, then draw."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--door", help="file of demonstrations of AdroitHandDoor-v1")
    parser.add_argument("--envs", nargs="+", default=list(CHUNKS), choices=list(CHUNKS))
    parser.add_argument("--agents", nargs="+", default=list(AGENTS), choices=list(AGENTS))
    add_training_arguments(parser)
    parser.set_defaults(steps=4_000, backend="eager")
    options = parser.parse_args()
    if DOOR in options.envs and not (options.door or options.draw):
        parser.error(f"name a file of demonstrations of {DOOR} by --door, or other --envs")
    torch.set_num_threads(1)
    PAGE.mkdir(parents=True, exist_ok=True)
    for env in [] if options.draw else options.envs:
        data = load_dataset(options.door) if env == DOOR else demonstrations(env, COUNT)
        common = {**training_settings(options), "eval_every": options.steps, "batch_size": 128}
        for agent in options.agents:
            own = ENERGIES[env].get(agent) or {**CHUNKS[env], **COMPARED[agent]}
            settings = {**common, **own}
            planned = plan(agent, data, env, "none", settings=settings)
            run_cell(planned, f"demonstrated/{env}/{agent}", EPISODES[env])
    write_page(PAGE, INTRODUCTION, section)
    return 0


if __name__ == "__main__":
    print(f"offrl {offrl.__version__}, torch {torch.__version__}")
    sys.exit(main())
