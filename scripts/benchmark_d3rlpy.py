"""Updates of agents beside those of d3rlpy, the same methods with networks of the same sizes.

    pip install d3rlpy                          # not among what offrl or its tests need
    python scripts/benchmark_d3rlpy.py          # each agent: eager, compiled, stacked

Both draw their batches from the same transitions and take turns in one process on one thread; the
figures are medians over pairs of processor times. d3rlpy is called as its own `fit` calls it,
without its logs; ours updates as the trainer does, without its logs.
"""

import argparse
import io
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from typing import Any

import numpy as np
import torch
from benchmark_training import BATCH, VARIANTS, ours, paired

from offrl.datasets.loading import load_dataset
from offrl.datasets.offline import OfflineDataset

# Names there, and what of our settings is changed to those that the other has.
AGENTS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "bc": ("BC", {}),
    "td3_bc": ("TD3PlusBC", {}),
    "iql": ("IQL", {}),
    "prdc": ("PRDC", {}),
    "rebrac": ("ReBRAC", {}),
    "awac": ("AWAC", {}),
    "cql": ("CQL", {"lagrange": True}),
}


def main() -> int:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--dataset", default="halfcheetah-medium-replay")
    parser.add_argument("--agents", nargs="+", default=list(AGENTS), choices=list(AGENTS))
    parser.add_argument("--steps", type=int, default=100, help="updates a turn")
    parser.add_argument("--pairs", type=int, default=5)
    options = parser.parse_args()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import d3rlpy
    except ImportError as error:
        parser.error(f"this needs d3rlpy ({error}): pip install d3rlpy")
    torch.set_num_threads(1)
    data = load_dataset(options.dataset)
    # Lists of neighbours that an earlier run left on disk would hide what making them costs.
    os.environ.setdefault("OFFRL_CACHE", tempfile.mkdtemp())
    print(f"{data.name}, batch {BATCH}, one thread, d3rlpy {d3rlpy.__version__}, ", end="")
    print(f"torch {torch.__version__}; ms of processor time\n")
    print("| agent | variant | d3rlpy | ours | times as fast |")
    print("|---|---|---|---|---|")
    for name in options.agents:
        settings = AGENTS[name][1]
        for backend, matmul in VARIANTS:
            made = ours(name, data, backend, matmul, **settings)
            with redirect_stdout(io.StringIO()):  # it says what it makes
                other = theirs(d3rlpy, name, data, made.agent.config.hidden)
            mine, its, ratio = paired(made.run, other, options.steps, options.pairs)
            variant = f"{backend}, {matmul} products"
            print(f"| {name} | {variant} | {its:.2f} | {mine:.2f} | {ratio:.2f} |", flush=True)
        made = ours(name, data, *VARIANTS[-1], learners=3, **settings)
        mine, its, ratio = paired(made.run, other, options.steps, options.pairs)
        variant = "the same, three learners stacked, against one after another"
        print(f"| {name} | {variant} | {3 * its:.2f} | {mine:.2f} | {3 * ratio:.2f} |", flush=True)
    return 0


def theirs(
    d3rlpy: Any, name: str, data: OfflineDataset, hidden: tuple[int, ...]
) -> Callable[[int], None]:
    """Updates of d3rlpy's algorithm of this name on the same data."""
    buffer = d3rlpy.dataset.MDPDataset(
        observations=np.asarray(data.obs, np.float32),
        actions=np.asarray(data.action, np.float32),
        rewards=np.asarray(data.reward, np.float32),
        terminals=np.asarray(data.terminated, np.float32),
        timeouts=np.asarray(data.truncated, np.float32),
    )
    config = getattr(d3rlpy.algos, f"{AGENTS[name][0]}Config")
    layers = d3rlpy.models.VectorEncoderFactory(hidden_units=list(hidden))
    encoders = {k: layers for k in config.__dataclass_fields__ if k.endswith("encoder_factory")}
    algorithm = config(batch_size=BATCH, **encoders).create(device="cpu:0")
    algorithm.build_with_dataset(buffer)
    if name == "prdc":  # what its `fit` does first, on one thread
        keys = np.concatenate([algorithm.config.beta * data.obs, data.action], 1)
        algorithm._nbsr.set_params(n_jobs=1).fit(keys)

    def run(steps: int) -> None:
        for _ in range(steps):
            algorithm.update(buffer.sample_transition_batch(BATCH))

    return run


if __name__ == "__main__":
    sys.exit(main())
