"""Reference returns of D4RL's tasks, and the families whose settings papers state together."""

import json
import re
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


OWN = "offrl"  # namespace and family of the tasks in offrl.envs


def families(name: str) -> list[str]:
    """Families of an environment id or dataset name, most specific first; empty if unknown.

    The first family of a dataset is its kind, which is its name without the version:
    hopper-medium-replay, then hopper, then locomotion. A task of offrl is its own family, by its
    name without the version, and then that of all: offrl.
    """
    if name.startswith(f"{OWN}/"):
        return [_kind(name).lower(), OWN]
    task = _task(name)
    if task is None:
        return []
    kind = [] if name in task["environments"] else [_kind(name)]
    return [*kind, *task["families"]]


def families_of(env: str | None, dataset: str) -> list[str]:
    """Families of a run: the dataset's, unless it is played in an environment of another task."""
    of_env, of_dataset = families(env) if env else [], families(dataset)
    return of_dataset if set(of_env) <= set(of_dataset) else of_env


def returns_note(name: str) -> str | None:
    """Why the returns in a dataset's file cannot be scored by its reference, where they cannot."""
    task = _task(name)
    note = None if task is None else task.get("returns")
    return None if note is None else str(note)


def _kind(name: str) -> str:
    """hopper-medium of hopper-medium-v2 and of mujoco/hopper/medium-v0."""
    parts = re.sub(r"-v\d+$", "", name).split("/")
    return "-".join(parts[1:] or parts)


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
