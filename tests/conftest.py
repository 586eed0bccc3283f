"""What every test runs under: one thread, no screen, and shapes checked at run time."""

import os
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch loads, and by child processes
os.environ.setdefault("MPLBACKEND", "Agg")

import jaxtyping
import pytest
import torch

jaxtyping.install_import_hook("offrl", "beartype.beartype")
torch.set_num_threads(1)
# What tests derive from their data stays out of the user's cache.
_CACHE = tempfile.TemporaryDirectory(prefix="offrl-tests-")
os.environ["OFFRL_CACHE"] = _CACHE.name

_OUTSIDE = "OFFRL_TEST_DATA"


@pytest.fixture(scope="session")
def outside_data() -> Path:
    """The folder of other people's files; where there is none, what asks for it is skipped."""
    folder = os.environ.get(_OUTSIDE)
    if not folder:
        pytest.skip(f"{_OUTSIDE} is unset")
    return Path(folder)


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Users run without the type checks of the tests, and see our own message."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(autouse=True)
def _shape_checks(request: pytest.FixtureRequest) -> Iterator[None]:
    """Shape checks rest in tests marked `compiled`: torch.compile cannot trace through them."""
    if request.node.get_closest_marker("compiled") is None:
        yield
        return
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    torch.compiler.reset()
    with pytest.MonkeyPatch.context() as patch:
        for cls in _checked_dataclasses():
            patch.setattr(cls, "__init__", cls.__init__.__wrapped__)
        yield
    torch.compiler.reset()
    jaxtyping.config.update("jaxtyping_disable", before)


def _checked_dataclasses() -> set[Any]:
    """Those whose fields are checked: a graph in which one is made cannot hold the checks."""
    modules = [m for name, m in list(sys.modules.items()) if name.startswith("offrl")]
    classes = {c for m in modules for c in vars(m).values() if is_dataclass(c)}
    made = {c for c in classes if isinstance(c, type) and "__init__" in vars(c)}
    return {c for c in made if hasattr(c.__init__, "__wrapped__")}


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    skipped = terminalreporter.stats.get("skipped", [])
    missing = sum(_OUTSIDE in str(report.longrepr) for report in skipped)
    if missing:
        terminalreporter.write_line(f"{missing} tests skipped because {_OUTSIDE} is unset")
