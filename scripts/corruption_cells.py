"""Rows of the tables of corrupted data, and the finished cells that are one row's.

results/corruption/<dataset>/<condition>/<element>/<row>/seed-<seed> is a cell on corrupted data,
results/corruption/<dataset>/clean/<row> one of all seeds on the clean data.
"""

import json
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from cells import SETTINGS

from offrl.agents import AGENTS
from offrl.curves import learners
from offrl.datasets.corruption import ELEMENTS
from offrl.files import read_json
from offrl.plans import configure, in_use
from offrl.statistics import Interval, t_interval
from offrl.training import TrainConfig

CLEAN = "clean"  # in the place of a condition and an element
ALIKE = ("steps", "batch_size", "backend", "precision", "matmul")  # of what is set side by side


@dataclass(frozen=True)
class Row:
    """An agent, with the settings that it has in these tables."""

    agent: str
    settings: Mapping[str, Any] = field(default_factory=dict)  # beside the recipe's
    recipe: str = "auto"  # by the corruption, where the agent has recipes for it
    elements: tuple[str, ...] = ELEMENTS  # unless others are asked for

    def config(self, recipe: str) -> dict[str, Any]:
        """The agent's settings by this recipe, as a file has them, without what is off."""
        cls, defaults = AGENTS[self.agent]
        values = {**cls.recipes.get(recipe, {}), **self.settings}
        _, config = configure(TrainConfig(), defaults, values)
        return in_use(json.loads(json.dumps(asdict(config))))

    @property
    def home(self) -> str:
        """The row whose clean cell this one's is: recipes for corrupted data are none of it."""
        own = (self.agent, self.settings)
        return next(name for name, row in ROWS.items() if (row.agent, row.settings) == own)


ASKED: Mapping[str, Row] = {  # unless --rows says otherwise
    # Its recipe scales rewards by the returns of the data, which corruption of rewards widens:
    # the temperature would be another one on every set. RIQL's protocol has raw rewards, too.
    "iql": Row("iql", {"reward_by_return_range": False}),
    "riql": Row("riql"),
    "riql-clean": Row("riql", recipe="locomotion"),
    "td3_bc": Row("td3_bc", elements=("rewards", "dynamics")),
    "edac": Row("edac", SETTINGS["edac"], elements=("rewards", "dynamics")),
}
ROWS: Mapping[str, Row] = {
    **ASKED,
    **{a: Row(a, SETTINGS.get(a, {})) for a in AGENTS if a not in ASKED},
}

Way = tuple[Any, ...]  # the values of ALIKE


def way_of(train: Mapping[str, Any]) -> Way:
    """How a run was trained: what must be the same of two that are compared."""
    return tuple(train[name] for name in ALIKE)


@dataclass(frozen=True)
class Trained:
    """One seed of a finished cell."""

    score: float  # normalised, of the last policy
    config: Mapping[str, Any]  # of its run, config.json
    corruption: Mapping[str, Any] | None  # of its data

    @property
    def seed(self) -> int:
        return int(self.config["train"]["seed"])

    @property
    def way(self) -> Way:
        return way_of(self.config["train"])

    def fits(self, row: Row) -> bool:
        """Whether it has the row's settings, by the recipe that was chosen for its data."""
        recipe = self.config["recipe"]
        fits = in_use(self.config["agent_config"]) == row.config(recipe)
        return fits and row.recipe in ("auto", recipe)


def read_trained(folder: Path) -> list[Trained]:
    """The seeds of a row's folder: of cells of one seed each, or of a cell of several."""
    found = []
    for cell in [folder, *sorted(folder.glob("seed-*"))]:
        if (cell / "cell.json").exists():
            stored = read_json(cell / "cell.json")
            for path, seed in zip(learners(cell), stored["seeds"], strict=True):
                config = read_json(path / "config.json")
                found.append(Trained(seed["final"]["score"], config, stored.get("corruption")))
    return found


@dataclass(frozen=True)
class Score:
    """Final scores of a row's seeds on one set, which differ in nothing else."""

    values: Mapping[int, float]  # by seed, which is that of masks and noise, too
    config: Mapping[str, Any]  # the agent's settings

    @property
    def mean(self) -> float:
        return float(np.mean(list(self.values.values())))

    @property
    def interval(self) -> Interval | None:
        return t_interval(list(self.values.values()))

    def __format__(self, sign: str) -> str:
        """Mean, interval and number of seeds; all numbers with their sign where `sign` is +."""
        low_high = self.interval
        spread = f"{low_high.low:{sign}.1f} to {low_high.high:{sign}.1f}; " if low_high else ""
        return f"{self.mean:{sign}.1f} ({spread}n = {len(self.values)})"

    def of(self, seeds: Iterable[int]) -> "Score":
        """Of these seeds alone."""
        return Score({seed: self.values[seed] for seed in seeds}, self.config)

    def minus(self, other: "Score") -> "Score | None":
        """Differences by seed, whose interval is that of pairs; None where no seed is in both."""
        shared = sorted(self.values.keys() & other.values.keys())
        gaps = {seed: self.values[seed] - other.values[seed] for seed in shared}
        return Score(gaps, self.config) if gaps else None


def score_of(trained: Sequence[Trained]) -> Score | None:
    """These seeds' scores; None without any."""
    if not trained:
        return None
    return Score({one.seed: one.score for one in trained}, trained[0].config["agent_config"])


def clean_score(homes: Sequence[Path], row: Row, way: Way, seeds: Set[int]) -> Score | None:
    """The score on clean data of the first of these folders that has a comparable one.

    Comparable is what has the row's settings, was trained in this way, and has these seeds.
    """
    for home in homes:
        found = read_trained(home)
        same = all(one.way == way and one.fits(row) for one in found)
        if found and same and seeds <= {one.seed for one in found}:
            return score_of(found)
    return None
