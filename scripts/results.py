"""Fill the table of results: every agent on every shipped set, several seeds, one command.

    python scripts/results.py                       # all missing cells, then table and curves
    python scripts/results.py --datasets hopper-medium-replay --agents prdc iql
    python scripts/results.py --draw                # table and curves of the cells that exist

A cell is an agent on a dataset with all its seeds, trained side by side. It is named by the hash
of everything that determines its numbers; a finished cell is skipped, an unfinished one resumed.
"""

import argparse
import hashlib
import json
import os
import platform
import shutil
import sys
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from results_page import draw

import offrl
from offrl.agents import AGENTS
from offrl.evaluation import evaluate
from offrl.experiment import Plan, learner_folders, plan, resume_run, start_run
from offrl.files import read_json, write_json
from offrl.policy import load_policy

ROOT = Path(__file__).resolve().parents[1]
RESULTS, WORK = ROOT / "results", ROOT / "runs" / "results"
MEASURED = ROOT / "agents" / "measured.json"
SHIPPED = ("hopper-medium-replay", "halfcheetah-medium-replay", "walker2d-medium-replay")
FINAL_EPISODES, FINAL_SEED = 20, 0  # starts of the final evaluation, common to all cells
WRITING = ("log_every", "checkpoint_every", "keep_checkpoints", "best_by")
OFF = (False, 0, None, "none", ())
KEPT = ("step,name,value", "eval/", "validation/")  # of metrics.csv, which the curves need


def main() -> int:
    """Run missing cells, then draw."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--datasets", nargs="+", default=list(SHIPPED))
    parser.add_argument("--agents", nargs="+", default=list(AGENTS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--backend", default="inductor", choices=["eager", "inductor"])
    parser.add_argument("--matmul", default="bfloat16", choices=["float32", "bfloat16"])
    parser.add_argument("--draw", action="store_true", help="only table and curves")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if not arguments.draw:
        settings = {"steps": arguments.steps, "seeds": arguments.seeds, "eval_every": 5_000}
        settings |= {"backend": arguments.backend, "matmul": arguments.matmul}
        for dataset in arguments.datasets:
            for agent in arguments.agents:
                run_cell(plan(agent, dataset, settings=settings))
    draw(RESULTS, MEASURED)
    return 0


def cell_hash(record: Mapping[str, Any]) -> str:
    """Of what determines the numbers in a run's record: settings, data, versions that compute.

    A setting that is off counts like one that the agent did not have yet, so that a new option
    leaves finished cells finished; what a run writes, and how often, is left out.
    """
    train = {k: v for k, v in record["train"].items() if k not in WRITING}
    settings = [record["agent_config"], record["data"], train]
    text = json.dumps(
        {
            "agent": record["agent"],
            "settings": [{k: v for k, v in s.items() if v not in OFF} for s in settings],
            "dataset": [record["dataset"]["fingerprint"], record["env"]],
            "versions": {k: record["versions"][k] for k in ("torch", "mujoco", "gymnasium")},
        },
        sort_keys=True,
    )
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def run_cell(planned: Plan) -> None:
    """Train or resume, evaluate the last policies, and keep what the table needs."""
    name, digest = f"{planned.dataset.name}/{planned.agent}", cell_hash(planned.record())
    target = RESULTS / planned.dataset.name / planned.agent
    if (target / "cell.json").exists() and read_json(target / "cell.json")["hash"] == digest:
        print(f"{name}: finished already ({digest})")
        return
    folder = WORK / f"{name.replace('/', '-')}-{digest}"
    run = resume_run(folder) if (folder / "config.json").exists() else start_run(planned, folder)
    seeds = []
    for path, summary in zip(run.folders, run.summaries, strict=True):
        final = evaluate(load_policy(path), str(planned.env), FINAL_EPISODES, FINAL_SEED)
        seeds.append({"summary": summary, "final": final.to_json(), "rate": _rate(path)})
    shutil.rmtree(target, ignore_errors=True)
    for path in learner_folders(target, planned.train):
        path.mkdir(parents=True)
        source = folder / path.name
        shutil.copy(source / "config.json", path)
        lines = (source / "metrics.csv").read_text().splitlines(keepends=True)
        kept = [line for line in lines if any(word in line for word in KEPT)]
        (path / "metrics.csv").write_text("".join(kept))
    write_json(
        target / "cell.json",
        {
            "hash": digest,
            "command": f"python scripts/{Path(__file__).name} {' '.join(sys.argv[1:])}".strip(),
            "commit": planned.record()["commit"],
            "date": date.today().isoformat(),
            "machine": machine(),
            "seeds": seeds,
        },
    )


def machine() -> str:
    """The class of machine, in words."""
    cores = os.cpu_count()
    return f"{cores} cores of a shared {platform.machine()} server, one thread, no GPU"


def _rate(folder: Path) -> float:
    """Median of the logged updates a second, evaluations and checkpoints left out."""
    rows = [r.split(",") for r in (folder / "performance.csv").read_text().splitlines()[1:]]
    return float(np.median([float(v) for _, n, v in rows if n == "performance/steps_per_second"]))


if __name__ == "__main__":
    print(f"offrl {offrl.__version__}, torch {torch.__version__}")
    sys.exit(main())
