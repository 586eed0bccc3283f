"""Processes that a test kills or starves; forked, so that they need not import anything anew."""

import multiprocessing
import threading
from collections.abc import Callable
from typing import Any

from tqdm import tqdm

Child = multiprocessing.context.ForkProcess
PATIENCE = 120  # seconds, after which a child hangs


def forked(run: Callable[..., None], *args: Any) -> Child:
    """A child that runs this."""
    child = multiprocessing.get_context("fork").Process(target=_alone, args=(run, *args))
    child.start()
    return child


def ended(child: Child) -> int:
    """The exit status of a child, waited for; one that hangs is killed, so that pytest can end."""
    child.join(PATIENCE)
    hangs = child.exitcode is None
    if hangs:
        child.kill()
        child.join()
    assert not hangs, f"the child was still running after {PATIENCE} s"
    assert child.exitcode is not None
    return child.exitcode


def _alone(run: Callable[..., None], *args: Any) -> None:
    # Progress bars share a lock with the parent, which a killed child would take with it.
    tqdm.set_lock(threading.RLock())
    run(*args)
