"""Train every agent on a device, and compare with the CPU: losses, resumption, speed, memory.

    python scripts/check_device.py                              # all agents, on the GPU
    python scripts/check_device.py --device cuda:1 --agents iql prdc
    python scripts/check_device.py --backends eager             # where nothing can be compiled

For each agent, on the same batches from the same seed:

- in float64, the metrics of the first updates on the device are those of the CPU;
- in float64, a run that is resumed on the device ends as one that was not stopped;
- in float32, eager and compiled, the first metrics are the CPU's to rounding, and all are finite;
  the updates after them are timed.

Prints a table and ends with 1 where anything failed or differed.
"""

import argparse
import math
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from updating import WARM_UP, Updating, untrained

from offrl.agents import AGENTS
from offrl.datasets.loading import load_dataset
from offrl.datasets.offline import OfflineDataset
from offrl.devices import choose_device
from offrl.errors import OffrlError
from offrl.experiment import resume_run, start_run
from offrl.plans import Plan, plan
from offrl.types import Metrics

SHARE = 0.05  # of the episodes of the dataset: enough to draw batches from
COMPARED = 5  # updates; later on rounding alone drives two computations apart
EXACT, ROUNDED = 1e-6, 5e-2  # greatest relative difference in float64 and in float32
FLOOR = {EXACT: 1e-3, ROUNDED: 0.1}  # sizes below which a difference counts as if of this size
MEBIBYTE = 1 << 20

Values = list[dict[str, float]]


@dataclass(frozen=True)
class Row:
    """What was found of an agent under one backend."""

    rate: float  # updates a second
    memory: float  # MiB at the most; 0 on the CPU
    apart: float  # greatest relative difference of a metric from the CPU's in float32


class Check:
    """One agent on one device."""

    def __init__(self, planned: Plan, device: torch.device, folder: Path) -> None:
        self.planned, self.device, self.folder = planned, device, folder

    def of(self, device: str, precision: str, backend: str = "eager") -> Plan:
        """The same run elsewhere."""
        settings: dict[str, Any] = {"device": device, "precision": precision, "backend": backend}
        return replace(self.planned, train=replace(self.planned.train, **settings))

    def first(self, precision: str) -> Values:
        """The first metrics on the CPU."""
        return read(Updating(self.of("cpu", precision)).run(COMPARED))

    def exact(self) -> float:
        """How far the device is from the CPU in float64."""
        made = Updating(self.of(str(self.device), "float64"))
        return apart(read(made.run(COMPARED)), self.first("float64"), EXACT)

    def resumed(self) -> float:
        """How far a resumed run is from one that was not stopped, in float64."""
        out = self.folder / "run"
        planned = self.of(str(self.device), "float64")
        start_run(planned, out)
        last = out / "checkpoints" / f"step-{planned.train.steps:09d}"
        straight = load_file(last / "state.safetensors")
        shutil.rmtree(last)
        resume_run(out, dataset=planned.dataset)
        again = load_file(last / "state.safetensors")
        # The entry that is furthest off stands for a tensor, beside its greatest entry.
        size = {k: float(v.abs().max()) for k, v in straight.items()}
        off = {k: size[k] + float((again[k] - v).abs().max()) for k, v in straight.items()}
        return apart([off], [size], EXACT)

    def timed(self, backend: str, count: int, expected: Values) -> Row:
        """Speed, memory and accuracy in float32."""
        made = Updating(self.of(str(self.device), "float32", backend))
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        found = read(made.run(WARM_UP))
        began = time.perf_counter()
        later = made.run(count)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        seconds = time.perf_counter() - began
        far = apart(found[:COMPARED], expected, ROUNDED)
        finite = all(math.isfinite(v) for values in read(later) for v in values.values())
        memory = 0.0
        if self.device.type == "cuda":
            memory = torch.cuda.max_memory_allocated(self.device) / MEBIBYTE
        return Row(count / seconds, memory, far if finite else math.inf)


def read(metrics: Sequence[Metrics]) -> Values:
    """On the host, for which the device has to finish."""
    return [{name: float(value) for name, value in each.items()} for each in metrics]


def apart(found: Values, expected: Values, tolerance: float) -> float:
    """Greatest |a - b| / max(|b|, floor); infinite where a value is missing or not finite."""
    greatest = 0.0
    for a, b in zip(found, expected, strict=True):
        if a.keys() != b.keys():
            return math.inf
        for name, value in a.items():
            difference = abs(value - b[name]) / max(abs(b[name]), FLOOR[tolerance])
            greatest = max(greatest, difference if math.isfinite(difference) else math.inf)
    return greatest


def checked(name: str, data: OfflineDataset, options: Any, teacher: str, folder: Path) -> bool:
    """Print the rows of an agent; whether everything was as it should be."""
    device = choose_device(options.device)
    folder.mkdir()
    settings: Mapping[str, Any] = {
        **dict.fromkeys(("steps", "eval_every"), 2 * WARM_UP),
        **dict.fromkeys(("log_every", "checkpoint_every"), WARM_UP),
        **{"batch_size": options.batch_size, "device": str(device)},
        **({"teacher": teacher} if hasattr(AGENTS[name][1], "teacher") else {}),
    }
    check = Check(plan(name, data, env=None, settings=settings), device, folder)
    exact, resumed, expected = check.exact(), check.resumed(), check.first("float32")
    good = exact <= EXACT and resumed <= EXACT
    for backend in options.backends:
        row = check.timed(backend, options.updates, expected)
        good &= row.apart <= ROUNDED
        equal = f"{exact:.0e} | {row.apart:.0e} | {resumed:.0e}"
        cells = f"{row.rate:.0f} | {equal} | {row.memory:.0f} | {'yes' if good else 'NO'}"
        print(f"| {name} | {backend} | {cells} |", flush=True)
    return good


def main(argv: Sequence[str] | None = None) -> int:
    """Print a Markdown table; 1 where anything failed or differed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--device", default="cuda", help="cuda, cuda:N or cpu (cuda)")
    parser.add_argument("--agents", nargs="+", default=list(AGENTS), choices=list(AGENTS))
    parser.add_argument("--backends", nargs="+", default=["eager", "inductor"])
    parser.add_argument("--dataset", default="hopper-medium-replay")
    parser.add_argument("--updates", type=int, default=300, help="to be timed (300)")
    parser.add_argument("--batch-size", type=int, default=256)
    options = parser.parse_args(argv)
    try:
        device = choose_device(options.device)
        data = load_dataset(options.dataset).split(SHARE, 0)[1]
    except OffrlError as error:
        parser.error(str(error))
    there = torch.cuda.get_device_name(device) if device.type == "cuda" else "the processor"
    print(f"{data.name}, batch {options.batch_size}, {there}, torch {torch.__version__}\n")
    print("| agent | backend | updates/s | float64 | float32 | resumed | peak MiB | equal |")
    print("|---|---|---|---|---|---|---|---|")
    failed = []
    with tempfile.TemporaryDirectory() as made:
        learned = untrained(data, Path(made))
        for name in options.agents:
            try:
                good = checked(name, data, options, learned, Path(made) / name)
            except Exception as error:  # of whatever kind: the others are to be checked too
                traceback.print_exc()
                reason = (str(error).splitlines() or [""])[0]
                print(f"| {name} | {type(error).__name__}: {reason} | | | | | | NO |", flush=True)
                good = False
            if not good:
                failed.append(name)
    if failed:
        print(f"\nfailed: {', '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
