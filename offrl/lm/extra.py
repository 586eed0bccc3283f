"""The packages of the extra `lm`, imported when they are used, and told to send nothing.

transformers and huggingface_hub report usage to their makers unless told not to; whoever wants
that sets the variables below before the start. Models are read as safetensors, and no code that
comes with a model is run.
"""

import os
import sys
from importlib import import_module, metadata
from types import ModuleType

from offrl.errors import MissingDependencyError

# What the trainers were tested with: the first version that works, and the first not tried.
TESTED = {"transformers": ("4.57", "6"), "accelerate": ("1.10", "2"), "peft": ("0.17", "1")}
QUIET = {
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


def need(name: str) -> ModuleType:
    """An optional module; raises MissingDependencyError naming the extra where it is not there."""
    for variable, value in QUIET.items():
        os.environ.setdefault(variable, value)
    try:
        module = import_module(name)
        if name == "transformers" and not sys.stderr.isatty():
            import_module("transformers.utils.logging").disable_progress_bar()
        return module
    except ImportError as error:
        raise MissingDependencyError(
            f"training and scoring language models needs {name.partition('.')[0]} ({error}); "
            "install it with: pip install 'offrl[lm]'"
        ) from None


def first_process() -> bool:
    """Whether this is the process that writes, of one or of several that were launched."""
    return os.environ.get("RANK", "0") == "0"


def versions() -> dict[str, str]:
    """Package -> version, of what a run depends on and is installed."""
    found = {}
    for name in ("torch", *TESTED):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def untested() -> list[str]:
    """A line for each package whose version is outside of what was tested."""
    lines = []
    for name, version in versions().items():
        low, high = TESTED.get(name, ("0", "1000"))
        if not _numbers(low) <= _numbers(version) < _numbers(high):
            lines.append(f"{name} {version} is outside of the tested range >={low},<{high}")
    return lines


def _numbers(version: str) -> tuple[int, ...]:
    """(4, 57) of "4.57.6": enough to compare a release with a range."""
    return tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
