"""An agent that updates as the trainer makes it, to be timed or compared, and nothing else."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from offrl.datasets.offline import OfflineDataset
from offrl.networks import Learners
from offrl.plans import Plan, plan
from offrl.products import products_in
from offrl.training import Trainer
from offrl.types import Metrics

WARM_UP = 20  # updates before the clock starts, in which graphs are compiled


class Updating:
    """The agent of a plan, and the updates that it has had; nothing is written."""

    def __init__(self, planned: Plan) -> None:
        learners = Learners(planned.train.learner_seeds)
        self.agent = planned.cls(planned.dataset.spec, planned.agent_config, learners)
        nowhere = [Path()] * planned.train.seeds
        self.made = Trainer(self.agent, planned.dataset, None, planned.train, nowhere, Path())
        self.step = 0

    def run(self, steps: int) -> list[Metrics]:
        """So many more updates; their metrics, still on the device."""
        agent, config, found = self.agent, self.made.config, []
        for step in range(self.step, self.step + steps):
            batch, noise = self.made.feed.at(step)
            agent.schedule(step, config.steps)
            with products_in(config.matmul, self.made.device):
                found.append(agent.update(batch, noise, step % agent.period))
        self.step += steps
        return found


def untrained(data: OfflineDataset, folder: Path) -> str:
    """The folder of a policy that knows nothing, for agents that learn from a teacher."""
    planned = plan("bc", data, env=None, settings={"device": "cpu", "steps": 1})
    Updating(planned).agent.policy(0).save(folder / "teacher")
    return str(folder / "teacher")


def in_turns(
    a: Callable[[int], Any], b: Callable[[int], Any], steps: tuple[int, int], pairs: int
) -> list[tuple[float, float]]:
    """Processor seconds an update of both, which take turns of so many steps, in each pair."""
    return [(_seconds(a, steps[0]), _seconds(b, steps[1])) for _ in range(pairs)]


def _seconds(run: Callable[[int], Any], steps: int) -> float:
    began = time.process_time()
    run(steps)
    return (time.process_time() - began) / steps
