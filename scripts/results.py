"""Fill the table of results: every agent on every shipped set, several seeds, one command.

    python scripts/results.py                       # all missing cells, then table and curves
    python scripts/results.py --datasets hopper-medium-replay --agents prdc iql
    python scripts/results.py --draw                # table and curves of the cells that exist

A cell is an agent on a dataset with all its seeds, trained side by side. It is named by the hash
of everything that determines its numbers; a finished cell is skipped, an unfinished one resumed.
"""

import argparse
import sys

import torch
from cells import RESULTS, ROOT, run_cell
from results_page import draw

import offrl
from offrl.agents import AGENTS
from offrl.experiment import plan

MEASURED = ROOT / "agents" / "measured.json"
SHIPPED = ("hopper-medium-replay", "halfcheetah-medium-replay", "walker2d-medium-replay")


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
                planned = plan(agent, dataset, settings=settings)
                run_cell(planned, f"{planned.dataset.name}/{planned.agent}")
    draw(RESULTS, MEASURED)
    return 0


if __name__ == "__main__":
    print(f"offrl {offrl.__version__}, torch {torch.__version__}")
    sys.exit(main())
