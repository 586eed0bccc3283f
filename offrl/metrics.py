"""What a run writes down: tables of step, name and value, and TensorBoard events.

`metrics.csv` holds what the run computed, and a run that was killed and resumed writes the same
bytes as one that never stopped. What depends on the machine, such as the rate, goes to
`performance.csv` and to TensorBoard alone; there, too, each step stands once.
"""

import os
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
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


class RunLog:
    """The tables and events of one learner.

    `resume_at` is the step of the checkpoint that a run resumes from; what an earlier process sent
    to TensorBoard after it is hidden. Raises RunError, here and later, where the folder cannot be
    written.
    """

    def __init__(self, folder: Path, resume_at: int | None = None) -> None:
        self.folder = folder
        self._open = ExitStack()
        with self._writable():
            self._files = {n: self._open.enter_context((folder / n).open("a")) for n in HEADERS}
            for name, file in self._files.items():
                if file.tell() == 0:
                    file.write(HEADERS[name] + "\n")
            self._events = Events(folder / "tensorboard", resume_at)
            self._open.callback(self._events.close)

    def table(self, name: str, rows: Iterable[tuple[Any, ...]]) -> None:
        with self._writable():
            self._files[name].writelines(",".join(_text(v) for v in row) + "\n" for row in rows)

    def scalars(self, step: int, values: Mapping[str, float], table: str = "metrics.csv") -> None:
        self.table(table, ((step, name, value) for name, value in values.items()))
        with self._writable():
            self._events.scalars(step, values)

    def lengths(self) -> dict[str, int]:
        """Bytes on disk of each table, to which a resumed run cuts it back."""
        self.flush()
        return {name: os.fstat(file.fileno()).st_size for name, file in self._files.items()}

    def flush(self) -> None:
        with self._writable():
            for file in self._files.values():
                file.flush()
                os.fsync(file.fileno())
            self._events.flush()

    def close(self) -> None:
        with self._writable():
            self._open.close()

    @contextmanager
    def _writable(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise RunError(
                f"the log of {self.folder} cannot be written: {error}. Make room for it, then "
                "continue with --resume"
            ) from None


class Events:
    """TensorBoard's event file, written in this thread.

    The writer that comes with torch has a thread of its own, which answers a full disk with a
    traceback that no caller can catch.
    """

    def __init__(self, folder: Path, resume_at: int | None = None) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._event, self._summary = Event, Summary
        folder.mkdir(exist_ok=True)
        # One file a process; TensorBoard reads them in the order of their names.
        self._file = (folder / f"events.out.tfevents.{time.time_ns()}.{os.getpid()}").open("xb")
        self._records = RecordWriter(self._file)
        self._write(file_version="brain.Event:2")
        if resume_at is not None:
            # Hides what the files before hold of this step and later ones.
            self._write(step=resume_at + 1, session_log=SessionLog(status=SessionLog.START))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        pairs = [self._summary.Value(tag=n, simple_value=v) for n, v in values.items()]
        self._write(step=step, summary=self._summary(value=pairs))

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        self._file.close()

    def _write(self, **content: Any) -> None:
        event = self._event(wall_time=time.time(), **content)
        self._records.write(event.SerializeToString())


def cut_back(folder: Path, lengths: Mapping[str, int]) -> None:
    """Remove what was logged after the checkpoint that a run resumes from.

    A table without a length is emptied: the run begins again. Raises RunError where a table is
    shorter than it was at the checkpoint, or cannot be written.
    """
    for name in HEADERS:
        path, length = folder / name, lengths.get(name, 0)
        size = path.stat().st_size if path.exists() else 0
        if size < length:
            raise RunError(
                f"{path} {'has ' + str(size) + ' bytes' if path.exists() else 'is missing'}; it "
                f"held {length} at the checkpoint. Restore it, or start the run again"
            )
        if path.exists():
            try:
                os.truncate(path, length)
            except OSError as error:
                raise RunError(f"{path} cannot be written: {error}") from None


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
