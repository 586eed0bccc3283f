"""Writing so that a failure or a kill leaves the old file or the new one, never half of either."""

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from offrl.errors import RunError


def cache_folder() -> Path:
    """Where what can be made again is kept: $OFFRL_CACHE, or the user's cache folder."""
    if own := os.environ.get("OFFRL_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "offrl"


def write_json(path: Path, value: Any) -> None:
    """Replace `path` by this value as JSON, in one step."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("w") as file:
            json.dump(value, file, indent=1)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        with suppress(OSError):
            partial.unlink()
        raise


def read_json(path: Path) -> Any:
    """The value in a JSON file; RunError where it is missing or damaged."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise RunError(f"{path} does not exist") from None
    except (OSError, ValueError) as error:
        raise RunError(f"{path} cannot be read as JSON: {error}") from None


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder to fill, which takes its name only when the block has ended without an error.

    Two processes may make one of the same name at the same time: the first to end has it, the
    other gets an OSError.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    _sweep(path)
    try:
        yield partial
        for file in filter(Path.is_file, partial.rglob("*")):
            with file.open("rb") as handle:
                os.fsync(handle.fileno())
        os.replace(partial, path)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    sync_folder(path.parent)


def _sweep(path: Path) -> None:
    """Remove what processes that were killed left of this folder."""
    for left in path.parent.iterdir():
        process = left.name.removeprefix(f".{path.name}.").removesuffix(".partial")
        if left.name == f".{path.name}.{process}.partial" and process.isdecimal():
            try:
                os.kill(int(process), 0)
            except ProcessLookupError:
                shutil.rmtree(left, ignore_errors=True)
            except (OSError, OverflowError):
                pass  # another user's, or no process's name


@contextmanager
def sole_use(folder: Path) -> Iterator[None]:
    """Hold a run's folder, so that no second process continues it at the same time.

    The lock ends with the process, however it ends. Raises RunError where the folder is held, or
    is not there.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise RunError(f"{folder} cannot be opened: {error}") from None
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunError(
                f"another process is training in {folder}; wait for its end, or stop it"
            ) from None
        except OSError:
            pass  # a file system without locks
        yield
    finally:
        os.close(descriptor)


def sync_folder(path: Path) -> None:
    """Make a rename in this folder survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
