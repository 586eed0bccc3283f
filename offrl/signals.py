"""Signals that ask a run to stop: noted for the loop, which saves before it obeys."""

import signal
from types import FrameType


class Signals:
    """Notes SIGTERM and SIGINT for the loop to act on; a second Ctrl-C interrupts at once."""

    received: str | None = None

    def __enter__(self) -> "Signals":
        self._previous = {}
        for which in (signal.SIGTERM, signal.SIGINT):
            try:
                self._previous[which] = signal.signal(which, self._note)
            except ValueError:
                break  # not the main thread: signals are the caller's
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            raise KeyboardInterrupt
        self.received = signal.Signals(number).name

    def __exit__(self, *exc: object) -> None:
        for which, handler in self._previous.items():
            signal.signal(which, handler)
