"""Each agent's update against a flat transcription of its method that imports torch alone."""

import ast
from pathlib import Path

import parity
import pytest

FLAT = sorted((Path(__file__).parent / "flat").glob("*.py"))


@pytest.mark.parametrize("case", parity.CASES)
def test_updates_equal_the_transcription(case: str) -> None:
    parity.check(case)


@pytest.mark.parametrize("path", FLAT, ids=lambda p: p.stem)
def test_transcriptions_import_torch_alone(path: Path) -> None:
    imported = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(str(node.module).split(".")[0])
    # Or each other; the rest are for annotations.
    assert imported <= {"torch", "math", "flat", "typing", "collections"}
