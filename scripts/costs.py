"""How many times as long as an update of TD3+BC one of each agent takes.

    python scripts/costs.py                       # of all agents
    python scripts/costs.py --agents fql idql     # of these anew

Every agent has the settings of its recipe, its batch size among them, one learner, and all else as
`offrl train` has it. It takes turns with TD3+BC in one process on one thread; the figure is the
median over pairs of turns of the ratio of processor times, which other load on the machine disturbs
least. PRDC is to find its lists of neighbours on disk, from an earlier run on the dataset.
Written to results/costs.json, and from there to the pages and into the package.
"""

import argparse
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from statistics import median
from typing import Any

import torch
from cells import RESULTS, machine
from results_page import COSTS, YARDSTICK, draw
from updating import Updating, in_turns, untrained

from offrl.agents import AGENTS
from offrl.datasets.loading import load_dataset
from offrl.datasets.offline import OfflineDataset
from offrl.files import read_json, write_json
from offrl.plans import plan
from offrl.versions import source_commit
from results import MEASURED

TURN = 0.5  # s of the processor that a turn takes at least, of whole periods
PAIRS = {False: 5, True: 2}  # of turns; of turns that take longer than LONG
LONG = 5.0  # s


def main() -> int:
    """Measure, write, draw."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--dataset", default="hopper-medium-replay")
    parser.add_argument("--agents", nargs="+", default=list(AGENTS), choices=list(AGENTS))
    options = parser.parse_args()
    torch.set_num_threads(1)
    data = load_dataset(options.dataset)
    path = RESULTS / COSTS
    found = read_json(path) if path.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        teacher = untrained(data, Path(folder))
        for name in options.agents:
            found[name] = cost(name, data, teacher)
            print(f"{name}: {found[name]}", flush=True)
            write_json(path, {name: found[name] for name in AGENTS if name in found})
    draw(RESULTS, MEASURED)
    return 0


def cost(name: str, data: OfflineDataset, teacher: str) -> dict[str, Any]:
    """The ratio with its extremes over the pairs, milliseconds, and how they were found."""
    own = updating(name, data, teacher)
    unit = updating(YARDSTICK, data, teacher)
    (steps, taken), (unit_steps, _) = turn_of(own), turn_of(unit)
    times = in_turns(own.run, unit.run, (steps, unit_steps), PAIRS[taken > LONG])
    ratios = sorted(a / b for a, b in times)
    return {
        "ratio": round(median(ratios), 2),
        "extremes": [round(ratios[0], 2), round(ratios[-1], 2)],
        "milliseconds": round(1e3 * median(a for a, _ in times), 3),
        "batch_size": own.made.config.batch_size,
        "dataset": data.name,
        "date": date.today().isoformat(),
        "commit": source_commit(),
        "machine": machine(),
    }


def updating(name: str, data: OfflineDataset, teacher: str) -> Updating:
    """The agent by its recipe, after its first updates."""
    settings = {"device": "cpu", "steps": 100_000}
    if hasattr(AGENTS[name][1], "teacher"):
        settings["teacher"] = teacher
    made = Updating(plan(name, data, env=None, settings=settings))
    made.run(made.agent.period)
    return made


def turn_of(made: Updating) -> tuple[int, float]:
    """Updates that take TURN, in whole periods, and the seconds that they took."""
    period, began = made.agent.period, time.process_time()
    steps, taken = 0, 0.0
    while taken < TURN:
        made.run(period)
        steps += period
        taken = time.process_time() - began
    return steps, taken


if __name__ == "__main__":
    sys.exit(main())
