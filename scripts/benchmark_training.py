"""Updates a second of each agent against a plain loop, and of stacked learners against singles.

    python scripts/benchmark_training.py                     # each agent: eager, compiled
    python scripts/benchmark_training.py --whole prdc td3_bc # two agents over a whole run, in turn

A processor that rounds factors to bfloat16 where it may is timed with such products too. Both sides
take turns in one process on one thread; the figure is the median over pairs of the ratio of
processor times, which other load on the machine disturbs least. PRDC begins with what lists of
neighbours it finds in the folder that OFFRL_CACHE names, or with none.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from plain_loops import loop
from updating import WARM_UP, Updating, in_turns

from offrl.datasets.loading import load_dataset
from offrl.datasets.offline import OfflineDataset
from offrl.plans import plan
from offrl.products import may_round

BATCH = 256
VARIANTS = [("eager", "float32"), ("inductor", "float32")]
if may_round(torch.cpu.get_capabilities()):
    VARIANTS.append(("inductor", "bfloat16"))


def ours(
    name: str, data: OfflineDataset, backend: str, matmul: str, learners: int = 1, **own: Any
) -> Updating:
    """An agent by its recipe, but for the size of its batches and settings of its own."""
    settings = {"batch_size": BATCH, "backend": backend, "matmul": matmul, "seeds": learners}
    return Updating(plan(name, data, env=None, settings={**settings, **own, "device": "cpu"}))


def paired(
    a: Callable[[int], Any], b: Callable[[int], Any], steps: int, pairs: int
) -> tuple[float, float, float]:
    """Median milliseconds a step of both, and the median ratio b / a over the pairs."""
    a(WARM_UP), b(WARM_UP)
    times = in_turns(a, b, (steps, steps), pairs)
    per_step = [1e3 * median(t[i] for t in times) for i in (0, 1)]
    return per_step[0], per_step[1], median(t[1] / t[0] for t in times)


def main() -> int:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--dataset", default="halfcheetah-medium-replay")
    parser.add_argument("--agents", nargs="+", default=["bc", "td3_bc", "iql", "prdc"])
    parser.add_argument("--steps", type=int, default=200, help="updates a turn")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--whole", nargs=2, metavar=("A", "B"), help="two agents, in turn")
    parser.add_argument("--updates", type=int, default=100_000, help="length of a whole run")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    data = load_dataset(arguments.dataset)
    # Lists of neighbours that an earlier run left on disk would hide what making them costs.
    os.environ.setdefault("OFFRL_CACHE", tempfile.mkdtemp())
    if arguments.whole:
        whole(data, arguments.whole, arguments.updates)
        return 0
    print(f"{data.name}, batch {BATCH}, one thread, {torch.__version__}; ms of processor time\n")
    print("| agent | variant | plain or alone | ours | times as fast |")
    print("|---|---|---|---|---|")
    for name in arguments.agents:
        for backend, matmul in VARIANTS:
            made = ours(name, data, backend, matmul)
            update = loop(name, made.agent.view(data))

            def plain(n: int, update: Callable[[], None] = update) -> None:
                for _ in range(n):
                    update()

            mine, theirs, ratio = paired(made.run, plain, arguments.steps, arguments.pairs)
            row = f"{backend}, {matmul} products"
            print(f"| {name} | {row} | {theirs:.2f} | {mine:.2f} | {ratio:.2f} |", flush=True)
        stacked = ours(name, data, *VARIANTS[-1], learners=3)
        single = ours(name, data, *VARIANTS[-1])
        mine, alone, _ = paired(stacked.run, single.run, arguments.steps, arguments.pairs)
        row = "three learners stacked, against one after another"
        print(f"| {name} | {row} | {3 * alone:.2f} | {mine:.2f} | {3 * alone / mine:.2f} |")
    return 0


def whole(data: OfflineDataset, names: list[str], updates: int) -> None:
    """Two agents over a whole run in turns of 1000 updates, the first 5000 apart."""
    a, b = (ours(name, data, "eager", "float32") for name in names)
    times = in_turns(a.run, b.run, (1_000, 1_000), updates // 1_000)
    print(f"{data.name}, {updates:,} updates, eager, float32; ms of processor time an update\n")
    print(f"| updates | {names[0]} | {names[1]} | ratio |")
    print("|---|---|---|---|")
    for label, part in (("0 to 5k", times[:5]), ("5k on", times[5:]), ("all", times)):
        left, right = (1e3 * sum(t[i] for t in part) / len(part) for i in (0, 1))
        print(f"| {label} | {left:.2f} | {right:.2f} | {left / right:.2f} |")


if __name__ == "__main__":
    sys.exit(main())
