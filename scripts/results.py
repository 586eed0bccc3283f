"""Fill the table of results: every agent on every shipped set, several seeds, one command.

    python scripts/results.py                       # all missing cells, then table and curves
    python scripts/results.py --datasets hopper-medium-replay --agents prdc iql
    python scripts/results.py --actions             # measure the time of an action anew, too
    python scripts/results.py --draw                # table and curves of the cells that exist

A cell is an agent on a dataset with all its seeds, trained side by side. It is named by the hash
of everything that determines its numbers; a finished cell is skipped, an unfinished one resumed.
Settings are those of the recipes but for cells.SETTINGS, which the page names: SAC-N and EDAC have
ten critics. Agents whose settings name an expert or a teacher imitate it, and those that plan
chunks imitate everybody, whatever the rewards are: scripts/imitation.py, distillation.py,
generative.py, conditioning.py and demonstrated.py compare those. Those that are asked for a return
are scripts/sequences.py's and luck.py's. Here all of these are run only where --agents asks for
them.
"""

import argparse
import sys
from dataclasses import replace

import torch
from cells import (
    RESULTS,
    ROOT,
    SETTINGS,
    SHIPPED,
    add_training_arguments,
    run_cell,
    training_settings,
)
from latency import stepped
from results_page import ACTIONS, draw

import offrl
from offrl.agents import AGENTS
from offrl.curves import learners
from offrl.datasets.loading import load_dataset
from offrl.files import read_json, write_json
from offrl.networks import Learners
from offrl.plans import plan

COMPARED = tuple(
    name
    for name, (_, config) in AGENTS.items()
    if not any(hasattr(config, name) for name in ("expert", "teacher", "horizon", "context"))
)
STEPS = (20, 200)  # control steps before the time is taken, and while it is
MEASURED = ROOT / "agents" / "measured.json"


def main() -> int:
    """Run missing cells, then draw."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--datasets", nargs="+", default=list(SHIPPED))
    parser.add_argument("--agents", nargs="+", default=list(COMPARED), choices=list(AGENTS))
    parser.add_argument("--actions", action="store_true", help="measure all times of actions anew")
    add_training_arguments(parser)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if not arguments.draw:
        settings = training_settings(arguments)
        for dataset in arguments.datasets:
            for agent in arguments.agents:
                own = SETTINGS.get(agent, {})
                planned = plan(agent, dataset, settings={**settings, **own})
                run_cell(planned, f"{planned.dataset.name}/{planned.agent}")
        time_actions(anew=arguments.actions)
    draw(RESULTS, MEASURED)
    return 0


def time_actions(anew: bool) -> None:
    """What an action of every cell's policy costs; of those already known too, where `anew`."""
    path = RESULTS / ACTIONS
    known = {} if anew or not path.exists() else read_json(path)
    for dataset in SHIPPED:
        spec = load_dataset(dataset).spec
        for name in AGENTS:
            folder = RESULTS / dataset / name
            if (folder / "cell.json").exists() and name not in known.get(dataset, {}):
                cls, default = AGENTS[name]
                stored = read_json(learners(folder)[0] / "config.json")["agent_config"]
                settings = {k: tuple(v) if isinstance(v, list) else v for k, v in stored.items()}
                agent = cls(spec, replace(default, **settings), Learners((0,)))
                known.setdefault(dataset, {})[name] = stepped(agent.policy(), *STEPS)
    write_json(path, known)


if __name__ == "__main__":
    print(f"offrl {offrl.__version__}, torch {torch.__version__}")
    sys.exit(main())
