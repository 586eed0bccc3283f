"""Cells of the tables of results: a run with its seeds, named by what determines its numbers.

A cell is named by the hash of everything that determines its numbers; a finished cell is skipped,
an unfinished one resumed.
"""

import argparse
import hashlib
import json
import os
import platform
import re
import shutil
import sys
from collections.abc import Callable, Mapping
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch

from offrl.datasets.loading import load_dataset
from offrl.datasets.minari import write_minari
from offrl.datasets.offline import OfflineDataset
from offrl.evaluation import evaluate
from offrl.experiment import learner_folders, resume_run, start_run
from offrl.files import read_json, write_json
from offrl.plans import Plan, in_use
from offrl.policy import load_policy
from offrl.teachers import print_of

ROOT = Path(__file__).resolve().parents[1]
RESULTS, WORK = ROOT / "results", ROOT / "runs" / "results"
FINAL_EPISODES, FINAL_SEED = 20, 0  # starts of the final evaluation, common to all cells
SHIPPED = ("hopper-medium-replay", "halfcheetah-medium-replay", "walker2d-medium-replay")
SETTINGS: Mapping[str, Mapping[str, Any]] = {  # of the tables' cells, instead of the recipes'
    "edac": {"ensemble": 10},  # Hopper's recipe has 50, which cost five times as much
    "sac_n": {"ensemble": 10},  # Hopper's has 200
}
WRITING = ("log_every", "checkpoint_every", "keep_checkpoints", "best_by")
KEPT = ("step,name,value", "eval/", "validation/")  # of metrics.csv, which the curves need


def add_training_arguments(parser: argparse.ArgumentParser) -> None:
    """What every table's cells are trained with, and whether they are."""
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--backend", default="inductor", choices=["eager", "inductor"])
    parser.add_argument("--matmul", default="bfloat16", choices=["float32", "bfloat16"])
    parser.add_argument("--draw", action="store_true", help="only the page, of existing cells")


def training_settings(options: argparse.Namespace) -> dict[str, Any]:
    """Settings of a cell that has all its seeds, from those arguments."""
    asked = ("seeds", "steps", "backend", "matmul")
    return {"eval_every": 5_000, **{name: getattr(options, name) for name in asked}}


def kept_dataset(path: Path, make: Callable[[], OfflineDataset]) -> OfflineDataset:
    """A dataset that is made once and then read from `path`, so that cells can be resumed."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_minari(make(), path)
    return load_dataset(path)


def cell_hash(record: Mapping[str, Any]) -> str:
    """Of what determines the numbers in a run's record: settings, data, versions that compute.

    A setting that is off, with those that begin with its name, counts like one that the agent did
    not have yet, so that a new option leaves finished cells finished; what a run writes, and how
    often, is left out.
    """
    train = {k: v for k, v in record["train"].items() if k not in WRITING}
    own = dict(record["agent_config"])
    if own.get("teacher"):
        own["teacher"] = print_of(own["teacher"])  # wherever it lies
    settings = [own, record["data"], train]
    text = json.dumps(
        {
            "agent": record["agent"],
            "settings": [in_use(s) for s in settings],
            "dataset": [record["dataset"]["fingerprint"], record["env"]],
            "versions": {k: record["versions"][k] for k in ("torch", "mujoco", "gymnasium")},
        },
        sort_keys=True,
    )
    return hashlib.sha256(portable(text).encode()).hexdigest()[:12]


def portable(text: str) -> str:
    """With paths inside the checkout relative to it: a cell is the same wherever it is made."""
    return text.replace(f"{ROOT}{os.sep}", "")


def published(record: str) -> str:
    """A run's record without a word of the machine: of other paths, the last part."""
    return re.sub(r'"/(?:[^"]*/)?([^"/]+)"', r'"\1"', portable(record))


def run_cell(
    planned: Plan,
    name: str,
    episodes: int | None = None,
    measure: Callable[[Path], Mapping[str, Any]] | None = None,
) -> None:
    """Train or resume, evaluate the last policies, and keep in results/NAME what a table needs.

    The evaluation is of so many episodes, or of FINAL_EPISODES. `measure` says more of a policy
    given the folder of its run, and is no part of what names the cell. How data was corrupted
    stands in the cell, as the data has it.
    """
    digest, target = cell_hash(planned.record()), RESULTS / name
    if (target / "cell.json").exists() and read_json(target / "cell.json")["hash"] == digest:
        print(f"{name}: finished already ({digest})")
        return
    folder = WORK / f"{name.replace('/', '-')}-{digest}"
    if (folder / "config.json").exists():
        run = resume_run(folder, dataset=None if planned.source else planned.dataset)
    else:
        run = start_run(planned, folder)
    seeds = []
    for path, summary in zip(run.folders, run.summaries, strict=True):
        count = episodes or FINAL_EPISODES
        final = evaluate(load_policy(path), str(planned.env), count, FINAL_SEED)
        more = {} if measure is None else dict(measure(path))
        seeds.append({"summary": summary, "final": final.to_json(), "rate": _rate(path), **more})
    shutil.rmtree(target, ignore_errors=True)
    targets, sources = (learner_folders(f, planned.train) for f in (target, folder))
    for path, source in zip(targets, sources, strict=True):
        path.mkdir(parents=True)
        (path / "config.json").write_text(published((source / "config.json").read_text()))
        lines = (source / "metrics.csv").read_text().splitlines(keepends=True)
        kept = [line for line in lines if any(word in line for word in KEPT)]
        (path / "metrics.csv").write_text("".join(kept))
    corruption = planned.dataset.provenance.get("corruption")
    write_json(
        target / "cell.json",
        {
            "hash": digest,
            "command": f"python scripts/{Path(sys.argv[0]).name} {' '.join(sys.argv[1:])}".strip(),
            "commit": planned.record()["commit"],
            "date": date.today().isoformat(),
            "machine": machine(),
            **({} if corruption is None else {"corruption": corruption}),
            "seeds": seeds,
        },
    )


def write_page(page: Path, introduction: str, section: Callable[[Path], list[str]]) -> None:
    """README.md of a table's folder: a section for each folder in it, then what is said by hand."""
    text = [introduction]
    for folder in sorted(p for p in page.iterdir() if p.is_dir()):
        if lines := section(folder):
            discussion = folder / "discussion.md"
            said = ["", discussion.read_text().strip()] if discussion.exists() else []
            text += lines + said
    (page / "README.md").write_text("\n".join(text) + "\n")


def machine() -> str:
    """The class of machine, in words."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return f"{os.cpu_count()} cores of a shared {platform.machine()} server, one thread, {gpu}"


def _rate(folder: Path) -> float:
    """Median of the logged updates a second, evaluations and checkpoints left out."""
    rows = [r.split(",") for r in (folder / "performance.csv").read_text().splitlines()[1:]]
    return float(np.median([float(v) for _, n, v in rows if n == "performance/steps_per_second"]))
