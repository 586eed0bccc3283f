"""The names of D4RL's datasets: where each file is, and today's environment for it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any


@dataclass(frozen=True)
class Named:
    """One D4RL name. `size` and `sha256` are None where no public record of them exists."""

    name: str
    url: str
    env_id: str  # Gymnasium's environment that is nearest to D4RL's
    differs: str | None  # why that environment is not D4RL's, where its observations differ
    time_limit: int  # steps
    size: int | None  # bytes
    sha256: str | None

    @property
    def filename(self) -> str:
        return self.url.rsplit("/", 1)[1]


@dataclass(frozen=True)
class Layout:
    """An environment known by what D4RL's files hold for it beside the usual columns."""

    env_id: str
    infos: tuple[str, ...]  # columns of the file's group `infos` that no other environment has all
    obs_dim: int
    act_dim: int
    time_limits: tuple[int, ...]  # that D4RL registers, in steps

    def time_limit(self, longest: int) -> int | None:
        """The shortest registered limit that an episode of `longest` steps keeps to."""
        return min((limit for limit in self.time_limits if limit >= longest), default=None)


@cache
def named_sets() -> Mapping[str, Named]:
    """Every known name, in the table's order."""
    table = _table()
    return MappingProxyType(
        {
            name: Named(
                name,
                table["root"] + entry["file"],
                entry["env"],
                table["differs"].get(entry["env"]),
                entry["time_limit"],
                entry.get("size"),
                entry.get("sha256"),
            )
            for name, entry in table["datasets"].items()
        }
    )


def named_by_file(filename: str) -> Named | None:
    """The first name whose file is called `filename`: several names share some files."""
    return next((n for n in named_sets().values() if n.filename == filename), None)


def layout_of(infos: Sequence[str], obs_dim: int, act_dim: int) -> Layout | None:
    """The environment whose layout a file's `infos` and dimensions match."""
    for env_id, entry in _table()["layouts"].items():
        fits = (obs_dim, act_dim) == (entry["obs_dim"], entry["act_dim"])
        if fits and set(entry["infos"]) <= set(infos):
            limits = tuple(entry["time_limits"])
            return Layout(env_id, tuple(entry["infos"]), obs_dim, act_dim, limits)
    return None


@cache
def _table() -> dict[str, Any]:
    table: dict[str, Any] = json.loads(Path(__file__).with_name("d4rl_names.json").read_text())
    return table
