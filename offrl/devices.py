"""Where training computes: the device that was asked for, the way to it, and its memory."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from offrl.errors import ConfigError, RunError

SHARE = 0.5  # of a GPU's free memory that data may take; networks and batches need some too
PIECES = 3  # sentences of torch's report that say how much memory was asked for and is there


def choose_device(name: str) -> torch.device:
    """The device of this name: cpu, cuda, cuda:N; 'auto' is a GPU if there is one.

    A GPU becomes the current one of the process, so that nothing is allocated on another. Raises
    ConfigError for other names, and for a GPU that is not there or does not work.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cpu":
        return torch.device("cpu")
    if name.partition(":")[0] == "mps":
        raise ConfigError(
            f"device {name!r} cannot be used: offrl needs float64, which Apple's GPUs do not have. "
            "--device cpu computes on the processor"
        )
    if not re.fullmatch(r"cuda(:[0-9]+)?", name):
        raise ConfigError(f"there is no device {name!r}; use auto, cpu, cuda or cuda:N")
    try:
        torch.cuda.current_device()  # says best what is wrong where there is none
        number = name.partition(":")[2]
        device = torch.device("cuda", int(number) if number else torch.cuda.current_device())
        torch.cuda.set_device(device)
        torch.zeros(1, device=device)
    # torch without CUDA lacks what it would call, and numbers may be too large for it.
    except (RuntimeError, AssertionError, AttributeError, ValueError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise ConfigError(
            f"device {name!r} cannot be used: {reason}. There is {', '.join(_present())}; "
            "--device auto takes what there is"
        ) from None
    return device


def _present() -> list[str]:
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return ["cpu", *(f"cuda:{i} ({torch.cuda.get_device_name(i)})" for i in range(count))]


def home_of(size: int, device: torch.device) -> torch.device:
    """Where data of this many bytes are kept: on the device, or on the host if too large for it."""
    if device.type != "cuda":
        return device
    free, _ = torch.cuda.mem_get_info(device)
    return device if size <= SHARE * free else torch.device("cpu")


def sent(x: Tensor, device: torch.device) -> Tensor:
    """x on the device.

    A copy from pageable memory to a GPU waits until the GPU has done what was asked of it before;
    one from page-locked memory takes its place in the queue.
    """
    if device.type != "cuda" or x.device.type != "cpu":
        return x.to(device)
    return x.pin_memory().to(device, non_blocking=True)


@contextmanager
def enough_memory(remedy: str) -> Iterator[None]:
    """Where a GPU's memory runs out: RunError with how much there was, and the remedy."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        said = ". ".join(str(error).splitlines()[0].split(". ")[:PIECES])
        raise RunError(f"{said.rstrip('.')}. {remedy}") from None
