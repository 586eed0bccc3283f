"""Fill the table of results: every agent on every shipped set, several seeds, one command.

    python scripts/results.py                       # all missing cells, then table and curves
    python scripts/results.py --datasets hopper-medium-replay --agents prdc iql
    python scripts/results.py --draw                # table and curves of the cells that exist

A cell is an agent on a dataset with all its seeds, trained side by side. It is named by the hash
of everything that determines its numbers; a finished cell is skipped, an unfinished one resumed.
Agents whose settings name an expert imitate it, and those that plan chunks imitate everybody,
whatever the rewards are: scripts/imitation.py, generative.py, conditioning.py and demonstrated.py
compare those, and here they are run only where --agents asks for them.
"""

import argparse
import sys

import torch
from cells import RESULTS, ROOT, SHIPPED, add_training_arguments, run_cell, training_settings
from results_page import draw

import offrl
from offrl.agents import AGENTS
from offrl.experiment import plan

COMPARED = tuple(
    name
    for name, (_, config) in AGENTS.items()
    if not hasattr(config, "expert") and not hasattr(config, "horizon")
)
MEASURED = ROOT / "agents" / "measured.json"


def main() -> int:
    """Run missing cells, then draw."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--datasets", nargs="+", default=list(SHIPPED))
    parser.add_argument("--agents", nargs="+", default=list(COMPARED), choices=list(AGENTS))
    add_training_arguments(parser)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if not arguments.draw:
        settings = training_settings(arguments)
        for dataset in arguments.datasets:
            for agent in arguments.agents:
                planned = plan(agent, dataset, settings=settings)
                run_cell(planned, f"{planned.dataset.name}/{planned.agent}")
    draw(RESULTS, MEASURED)
    return 0


if __name__ == "__main__":
    print(f"offrl {offrl.__version__}, torch {torch.__version__}")
    sys.exit(main())
