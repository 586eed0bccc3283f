"""Learning curves of runs, read and averaged.

Runs that differ in more than their seed, be it in a setting, in the environment played in or in the
data, are lines apart, each named by what differs.

A line is the mean over seeds at the steps that all of them have. Its band is the 95 % bootstrap
interval of that mean over seeds; of two or three seeds, for which the bootstrap says no more than
that, it is their range.
"""

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from offrl.datasets.offline import Reference
from offrl.errors import RunError, near
from offrl.statistics import mean, stratified_bootstrap

FINGERPRINT = 8  # digits of the data's that a name shows
BOOTSTRAP_SEEDS = 4  # from this many seeds on, the bootstrap is narrower than the range


@dataclass(frozen=True, eq=False)
class RunCurve:
    """One metric of one learner, by step, and what its run was."""

    path: Path
    agent: str
    dataset: str
    seed: int
    settings: Mapping[str, Any]  # of trainer and agent, the seed left out
    origin: Mapping[str, Any]  # the environment, how the data were read, and their fingerprint
    steps: NDArray[np.int64]  # (evaluations,)
    values: NDArray[np.float64]  # (evaluations,)
    behaviour: float | None  # mean return of the data
    reference: Reference | None


@dataclass(frozen=True, eq=False)
class Line:
    """The curves of one agent's seeds together; a band where there are two or more."""

    label: str
    steps: NDArray[np.int64]
    mean: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    seeds: int


def learners(run: Path) -> list[Path]:
    """The directories of a run's learners: its `seed-*`, or itself.

    Raises RunError where it is not a run.
    """
    seeds = [p for p in run.glob("seed-*") if (p / "config.json").is_file()]
    if seeds:
        return sorted(seeds, key=lambda p: (len(p.name), p.name))
    if not (run / "config.json").is_file():
        missing = "no such directory" if not run.is_dir() else "not a run: it has no config.json"
        raise RunError(f"{run}: {missing}")
    return [run]


def read_curve(folder: Path, metric: str) -> RunCurve:
    """One metric of the learner in `folder`.

    Raises RunError where a file is missing or damaged, or has no such metric.
    """
    config_file = folder / "config.json"
    try:
        config = json.loads(config_file.read_text())
        dataset, train = config["dataset"], config["train"]
        reference = dataset.get("reference")
        settings = {k: v for k, v in train.items() if k not in ("seed", "seeds")}
        rows = _read_metrics(folder)
        points = {step: value for step, name, value in rows if name == metric}
        if not points:
            names = sorted({name for _, name, _ in rows})
            raise RunError(
                f"{folder / 'metrics.csv'} has no metric {metric!r}{near(metric, names)} (it has "
                f"{', '.join(names) or 'no rows yet'}); --metric NAME draws another"
            )
        steps = np.array(sorted(points), np.int64)
        return RunCurve(
            path=folder,
            agent=config["agent"],
            dataset=dataset["name"],
            seed=train["seed"],
            settings=settings | config["agent_config"],
            origin=_origin(config),
            steps=steps,
            values=np.array([points[s] for s in steps.tolist()], np.float64),
            behaviour=dataset.get("behaviour_return_mean"),
            reference=reference and Reference(**reference),
        )
    except KeyError as e:
        raise RunError(f"{config_file} has no entry {e}; it is not that of a run") from e
    except (OSError, ValueError, TypeError, AttributeError) as e:
        raise RunError(f"{config_file} cannot be read: {e}") from e


def _origin(config: Mapping[str, Any]) -> dict[str, Any]:
    """Where a run was played and what on; data of one name can be other data.

    The fingerprint stands for where the data lay, and no split needs a seed where there is none.
    """
    read = {k: v for k, v in (config.get("data") or {}).items() if k != "data_dir"}
    if not read.get("validation"):
        read.pop("split_seed", None)
    fingerprint = str(config["dataset"].get("fingerprint") or "")[:FINGERPRINT]
    return {"env": config.get("env"), **read, "data": fingerprint}


def _read_metrics(folder: Path) -> list[tuple[int, str, float]]:
    path = folder / "metrics.csv"
    try:
        text = path.read_text()
    except (OSError, ValueError) as e:
        raise RunError(f"{path} cannot be read: {e}; has the run been started?") from e
    # A run that is still going may have written half of its last line.
    table = list(csv.reader(text[: text.rfind("\n") + 1].splitlines()))
    if not table or table[0] != ["step", "name", "value"]:
        raise RunError(f"{path}: the first line must be step,name,value")
    rows = []
    for number, row in enumerate(table[1:], start=2):
        try:
            step, name, value = row
            rows.append((int(step), name, float(value)))
        except ValueError as e:
            raise RunError(f"{path}, line {number}: {','.join(row)!r} is not a row: {e}") from e
    return rows


def has_metric(folder: Path, metric: str) -> bool:
    """Whether the learner in `folder` logged the metric. Raises RunError as `read_curve`."""
    return any(name == metric for _, name, _ in _read_metrics(folder))


def lines(curves: Sequence[RunCurve]) -> list[Line]:
    """The curves of one dataset as a line per agent, and per setting in which its runs differ.

    A line's name says its environment and data too where not all curves have the same. Raises
    RunError where a seed occurs twice, or seeds have no step in common.
    """
    groups: dict[str, list[RunCurve]] = {}
    for curve in curves:
        groups.setdefault(_label(curve, curves), []).append(curve)
    return [_line(label, group) for label, group in groups.items()]


def _label(curve: RunCurve, curves: Sequence[RunCurve]) -> str:
    agents = [c.settings for c in curves if c.agent == curve.agent]
    parts = [
        *_differing(curve.settings, agents),
        *_differing(curve.origin, [c.origin for c in curves]),
    ]
    return f"{curve.agent} ({', '.join(parts)})" if parts else curve.agent


def _differing(own: Mapping[str, Any], others: Sequence[Mapping[str, Any]]) -> list[str]:
    """Name and value of what not all others have as well."""
    return [
        f"{name} {'none' if value is None else value}"
        for name, value in own.items()
        if any(other.get(name) != value for other in others)
    ]


def _line(label: str, group: Sequence[RunCurve]) -> Line:
    seen: dict[int, Path] = {}
    for curve in group:
        if curve.seed in seen:
            raise RunError(
                f"{seen[curve.seed]} and {curve.path} are both seed {curve.seed} of {label} on "
                f"{curve.dataset}: a run must be counted once"
            )
        seen[curve.seed] = curve.path
    steps = set(group[0].steps.tolist()).intersection(*(c.steps.tolist() for c in group))
    if not steps:
        raise RunError(f"the runs of {label} on {group[0].dataset} have no evaluated step together")
    common = np.array(sorted(steps), np.int64)
    table = np.stack([c.values[np.isin(c.steps, common)] for c in group])
    low, high = _band(table)
    return Line(label, common, table.mean(0), low, high, len(group))


def _band(table: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    finite = np.isfinite(table).all(0)
    low, high = table.min(0), table.max(0)
    if len(table) >= BOOTSTRAP_SEEDS:
        for i in np.flatnonzero(finite):
            interval = stratified_bootstrap([table[:, i]], mean, resamples=2000)
            low[i], high[i] = interval.low, interval.high
    return low, high
