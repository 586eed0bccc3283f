"""What a run's numbers depend on beside its settings: versions, and the commit of a checkout."""

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import offrl


def versions() -> dict[str, str]:
    """Of Python and of the packages that decide the numbers."""
    found = {"python": platform.python_version(), "offrl": offrl.__version__}
    for package in ("torch", "numpy", "gymnasium", "mujoco", "minari"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def source_commit() -> str | None:
    """The commit of the checkout that offrl is imported from, if it is one."""
    root = Path(offrl.__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    try:
        result = subprocess.run(
            ["git", "-C", str(root), "rev-parse", "HEAD"],
            capture_output=True, text=True, timeout=10, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip()
