"""What the README shows runs, with fewer steps and episodes."""

import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import offrl
from offrl.about import listed
from offrl.cli import main
from offrl.plans import plan

TEXT = (Path(__file__).resolve().parents[1] / "README.md").read_text()
SHORTER = {
    "steps=50_000": "steps=40",
    "--steps 100000": "--steps 40",
    "episodes=20": "episodes=2",
    "--episodes 20": "--episodes 2",
}


def _shortened(text: str) -> str:
    for old, new in SHORTER.items():
        text = text.replace(old, new)
    return text


def test_the_readme_states_the_numbers_that_are_shortened() -> None:
    assert all(old in TEXT for old in SHORTER)


def test_the_table_has_every_agent_and_its_paper() -> None:
    rows = [line.split("|") for line in TEXT.splitlines() if line.startswith("| `")]
    papers = {
        name: row[3] for row in rows if len(row) == 5 for name in re.findall("`(.*?)`", row[1])
    }
    for name, about in listed().items():
        assert name in papers
        assert about.paper is not None and (
            about.paper.arxiv in papers[name] or not papers[name].strip()
        )


def test_the_python_examples_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    names: dict[str, object] = {}
    exec(compile(_shortened("\n".join(blocks)), "README.md", "exec"), names)
    assert names["action"].shape == (6,)
    assert names["actions"].shape == (5, 6)
    assert capsys.readouterr().out


def test_the_readmes_own_arrays_can_be_trained_on() -> None:
    (block,) = (
        b for b in re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL) if "from_arrays" in b
    )
    names: dict[str, Any] = {"np": np, "offrl": offrl}
    exec(compile(block, "README.md", "exec"), names)
    planned = plan("bc", names["dataset"])
    assert planned.dataset.num_episodes == 3 and planned.data.validation == 1 / 3


def test_the_commands_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    commands = re.findall(r"^    offrl (.*)$", _shortened(TEXT), re.MULTILINE)
    assert len(commands) > 5
    for command in commands:
        words = shlex.split(command, comments=True)
        if words[0] == "demo":
            continue  # has tests of its own
        try:
            code = main(words)
        except SystemExit as stop:  # of --help
            code = int(stop.code or 0)
        assert code == 0, f"offrl {command}\n{capsys.readouterr().err}"
    assert (tmp_path / "curves.png").stat().st_size > 0
