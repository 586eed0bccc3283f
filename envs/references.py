"""Reference returns of D4RL's tasks, and the families whose settings papers state together."""

import json
from functools import cache
from pathlib import Path
from typing import Any

from offrl.datasets.offline import Reference


def reference_for(name: str) -> Reference | None:
    """The returns scored 0 and 100 for an environment id or a dataset's name, if D4RL states any.

    D4RL measured them in its own environments (version 2 of Gym's MuJoCo tasks, rewards of its
    own Adroit suite); for later versions of the same task they are a common scale, not a claim.
    """
    task = _task(name)
    if task is None or task["min"] is None:
        return None
    return Reference(float(task["min"]), float(task["max"]), _table()["source"])


def families(name: str) -> list[str]:
    """Families of an environment id or dataset name, most specific first; empty if unknown."""
    task = _task(name)
    return [] if task is None else list(task["families"])


def returns_note(name: str) -> str | None:
    """Why the returns in a dataset's file cannot be scored by its reference, where they cannot."""
    task = _task(name)
    note = None if task is None else task.get("returns")
    return None if note is None else str(note)


@cache
def _table() -> dict[str, Any]:
    table: dict[str, Any] = json.loads(Path(__file__).with_name("d4rl_references.json").read_text())
    return table


@cache
def _index() -> dict[str, str]:
    return {
        name: task
        for task, entry in _table()["tasks"].items()
        for name in (*entry["environments"], *entry["datasets"])
    }


def _task(name: str) -> dict[str, Any] | None:
    key = _index().get(name)
    if key is None:
        return None
    entry: dict[str, Any] = _table()["tasks"][key]
    return entry
