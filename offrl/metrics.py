"""What a run writes down: tables of step, name and value, and TensorBoard events.

`metrics.csv` holds what the run computed, and a run that was killed and resumed writes the same
bytes as one that never stopped. What depends on the machine, such as the rate, goes to
`performance.csv` and to TensorBoard alone.
"""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from offrl.errors import RunError
from offrl.types import Metrics

HEADERS = {
    "metrics.csv": "step,name,value",
    "evaluations.csv": "step,episode,return,length",
    "performance.csv": "step,name,value",
}
RESUMED = ("metrics.csv", "evaluations.csv")  # cut back to a checkpoint's length on resumption


class RunLog:
    """The tables and events of one learner."""

    def __init__(self, folder: Path, resume_at: int | None = None) -> None:
        from torch.utils.tensorboard.writer import SummaryWriter

        self.folder = folder
        try:
            self._files = {name: (folder / name).open("a") for name in HEADERS}
            for name, file in self._files.items():
                if file.tell() == 0:
                    file.write(HEADERS[name] + "\n")
            self._events = SummaryWriter(folder / "tensorboard", purge_step=resume_at)
        except OSError as error:
            raise RunError(f"the log of {folder} cannot be written: {error}") from None

    def table(self, name: str, rows: Iterable[tuple[Any, ...]]) -> None:
        self._files[name].writelines(",".join(_text(v) for v in row) + "\n" for row in rows)

    def scalars(self, step: int, values: Mapping[str, float], table: str = "metrics.csv") -> None:
        self.table(table, ((step, name, value) for name, value in values.items()))
        for name, value in values.items():
            self._events.add_scalar(name, value, step)

    def lengths(self) -> dict[str, int]:
        """Bytes on disk of each table that a resumed run continues."""
        self.flush()
        return {name: os.fstat(self._files[name].fileno()).st_size for name in RESUMED}

    def flush(self) -> None:
        try:
            for file in self._files.values():
                file.flush()
                os.fsync(file.fileno())
            self._events.flush()
        except OSError as error:
            raise RunError(
                f"the log of {self.folder} cannot be written: {error}. Free some space, then "
                "continue with --resume"
            ) from None

    def close(self) -> None:
        self.flush()
        for file in self._files.values():
            file.close()
        self._events.close()


def cut_back(folder: Path, lengths: Mapping[str, int]) -> None:
    """Remove what was logged after the checkpoint that a run resumes from.

    A table without a length is emptied: the run begins again.
    """
    for name in RESUMED:
        length = lengths.get(name, 0)
        path = folder / name
        if not path.exists():
            if length:
                raise RunError(f"{path} is missing; it held {length} bytes at the checkpoint")
            continue
        with path.open("r+") as file:
            file.truncate(length)


def _text(value: Any) -> str:
    return f"{value:.9g}" if isinstance(value, float) else str(value)


class Meter:
    """Means of metrics since the last log, kept on the device, one value per learner."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}

    def add(self, metrics: Metrics) -> None:
        fresh = [name for name in metrics if name not in self.sums]
        for name in fresh:
            self.sums[name] = torch.zeros_like(metrics[name])
            self.counts[name] = 0
        torch._foreach_add_([self.sums[n] for n in metrics], list(metrics.values()))
        for name in metrics:
            self.counts[name] += 1

    def take(self) -> dict[str, Tensor]:
        """The means, on the host; the meter starts again."""
        means = {n: (s / self.counts[n]).cpu() for n, s in self.sums.items()}
        self.sums, self.counts = {}, {}
        return means
