"""Datasets by name or path: `offrl.load_dataset`."""

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from offrl.datasets.columns import Columns, load_columns
from offrl.datasets.d4rl import load_d4rl_file, load_d4rl_mapping
from offrl.datasets.download import fetch
from offrl.datasets.names import Named, named_by_file, named_sets
from offrl.datasets.offline import OfflineDataset
from offrl.datasets.origin import Bounds, Origin
from offrl.datasets.screening import OWN, OutOfBounds, TimeLimit, bounded, screen
from offrl.errors import ConfigError, DataError, near
from offrl.files import cache_folder

SHIPPED = Path(__file__).with_name("shipped")
SUFFIXES = (".hdf5", ".h5", ".npz")


def load_dataset(
    name_or_path: str | os.PathLike[str] | Mapping[str, Any],
    *,
    out_of_bounds: OutOfBounds = "refuse",
    time_limit: TimeLimit = None,
    env_id: str | None = None,
    default_env: str | None = None,
    action_bounds: Bounds | None = None,
    columns: Columns | None = None,
    download: bool = True,
    cache: str | os.PathLike[str] | None = None,
    data_dir: str | os.PathLike[str] | None = None,
) -> OfflineDataset:
    """A dataset by name or by path, ready to learn from.

    A name is a shipped set (`"hopper-medium-replay"`), one of D4RL's (`"hopper-medium-v2"`), a
    Minari id (`"D4RL/door/human-v2"`; `"minari:ID"` where a name could mean both), or a file or
    folder in `data_dir`. It is looked for in `data_dir` (default `$OFFRL_DATASETS`), in D4RL's
    folder (`$D4RL_DATASET_DIR` or `~/.d4rl/datasets`), in `cache` (default `$OFFRL_CACHE` or
    `~/.cache/offrl`), and then downloaded unless `download` is false. A path is a D4RL HDF5
    file, the folder of a Minari dataset, or an npz or HDF5 file read by `columns`. A mapping
    is D4RL's dictionary of arrays.

    Two faults are refused. Actions outside their bounds: `out_of_bounds` "clip" or "keep" loads
    them. Terminals that fall on the time limit: `time_limit` in steps makes those truncations,
    "keep" leaves them. `env_id` says for flat files what they do not hold, and `action_bounds`
    (low, high) for these and for Minari's whose own are not finite; `default_env` stands for
    `env_id` where nothing else tells the environment. All this is recorded in the provenance.
    Raises DataError or ConfigError.
    """
    steps = time_limit if isinstance(time_limit, int) else None
    origin = Origin("dictionary", None, env_id, default_env, action_bounds, steps)
    if isinstance(name_or_path, Mapping):
        dataset = load_d4rl_mapping(name_or_path, origin)
        return screen(dataset, out_of_bounds, time_limit)
    if not isinstance(name_or_path, str | os.PathLike):
        raise DataError(
            f"a dataset is a name, a path, or D4RL's dictionary of arrays; this is {name_or_path!r}"
        )
    asked = os.fspath(name_or_path)
    path, named = locate(asked, download=download, cache=cache, data_dir=data_dir)
    if path is None:
        from offrl.datasets.minari import load_minari_id

        _refuse_flat_facts(asked, env_id, columns)
        dataset = load_minari_id(asked.removeprefix("minari:"), minari_root(), download=download)
        dataset = dataset if action_bounds is None else bounded(dataset, action_bounds)
        return screen(dataset, out_of_bounds, time_limit, OWN)
    name = asked if named is not None or _is_name(asked) else path.stem
    if path.is_dir():
        _refuse_flat_facts(asked, env_id, columns)
        dataset = _load_folder(path, name if _is_name(asked) else None)
        dataset = dataset if action_bounds is None else bounded(dataset, action_bounds)
        return screen(dataset, out_of_bounds, time_limit, OWN)
    else:
        named = named or named_by_file(path.name)
        name = name if named is None else named.name
        origin = replace(origin, name=name, named=named, provenance={"file": path.name})
        if columns is not None:
            dataset = load_columns(path, columns, origin)
        else:
            dataset = load_d4rl_file(path, origin)
    return screen(dataset, out_of_bounds, time_limit)


def load_beside(dataset: OfflineDataset, name_or_path: str) -> OfflineDataset:
    """A further dataset of the same task, by the options of `load_dataset` in `dataset.reading`."""
    options = dict(dataset.reading)
    path, _ = locate(name_or_path, data_dir=options.get("data_dir"))
    if path is not None and not path.is_dir():
        return load_dataset(name_or_path, **options)
    bounds = options.pop("action_bounds", None)
    found = load_dataset(name_or_path, **options)
    low, high = found.spec.action_low, found.spec.action_high
    return found if bounds is None or np.isfinite([low, high]).all() else bounded(found, bounds)


def locate(
    asked: str,
    *,
    download: bool = True,
    cache: str | os.PathLike[str] | None = None,
    data_dir: str | os.PathLike[str] | None = None,
) -> tuple[Path | None, Named | None]:
    """The file or folder for a name or path, and D4RL's record; (None, None) for a Minari id.

    Raises DataError for a path that does not exist and a name that is not known.
    """
    if asked.startswith("minari:"):
        return None, None
    named = named_sets().get(asked)
    if named is None and not _is_name(asked):
        path = Path(asked).expanduser()
        if path.exists():
            return path, None
        if _is_minari_id(asked):
            return _in_folder(_data_dir(data_dir), asked), None
        raise DataError(f"{path} does not exist{near(asked, named_sets())}")
    local = _in_folder(_data_dir(data_dir), asked if named is None else named.filename)
    local = local or _in_folder(_data_dir(data_dir), asked)
    if local is not None:
        return local, named
    if named is not None:
        return fetch(named, _cache(cache), (_d4rl_dir(),), download=download), named
    if asked in shipped_names():
        return SHIPPED / asked, None
    if Path(asked).exists():
        return Path(asked), None
    if _local_minari(asked):
        return None, None
    raise DataError(
        f"unknown dataset {asked!r}{near(asked, [*shipped_names(), *named_sets()]) or '.'} "
        "`offrl data list` prints the names; paths to files and folders, and Minari ids such as "
        "'D4RL/door/human-v2', work too"
    )


def shipped_names() -> list[str]:
    """Names of the datasets that come with the package."""
    return sorted(p.parent.parent.name for p in SHIPPED.glob("*/data/metadata.json"))


def minari_root() -> Path:
    """Where minari keeps its datasets; unlike minari's own function, this makes no folder."""
    return Path(os.environ.get("MINARI_DATASETS_PATH") or Path.home() / ".minari" / "datasets")


def local_sets(
    data_dir: str | os.PathLike[str] | None = None, cache: str | os.PathLike[str] | None = None
) -> dict[str, Path]:
    """Names that are on this machine beside the shipped ones, and where."""
    found: dict[str, Path] = {}
    folders = [_data_dir(data_dir), _d4rl_dir(), _cache(cache) / "d4rl"]
    for folder in filter(None, folders):
        for name, named in named_sets().items():
            if (folder / named.filename).is_file():
                found.setdefault(name, folder / named.filename)
    own = folders[0]
    for path in sorted(own.iterdir()) if own is not None else ():
        if (path / "data" / "metadata.json").is_file():
            found.setdefault(path.name, path)
        elif path.suffix in SUFFIXES and path not in found.values():
            found.setdefault(path.stem, path)
    root = minari_root()
    for metadata in sorted(root.glob("**/data/metadata.json")):
        folder = metadata.parent.parent
        found.setdefault(str(folder.relative_to(root)), folder)
    return found


def _data_dir(data_dir: str | os.PathLike[str] | None) -> Path | None:
    chosen = data_dir if data_dir is not None else os.environ.get("OFFRL_DATASETS")
    if not chosen:
        return None
    path = Path(chosen).expanduser()
    if not path.is_dir():
        raise DataError(f"the folder of local datasets {path} does not exist")
    return path


def _cache(cache: str | os.PathLike[str] | None) -> Path:
    return cache_folder() if cache is None else Path(cache).expanduser()


def _d4rl_dir() -> Path:
    return Path(os.environ.get("D4RL_DATASET_DIR") or Path.home() / ".d4rl" / "datasets")


def _in_folder(folder: Path | None, name: str) -> Path | None:
    if folder is None:
        return None
    candidates = (folder / name, *(folder / f"{name}{suffix}" for suffix in SUFFIXES))
    return next((c for c in candidates if c.exists()), None)


def _is_name(asked: str) -> bool:
    """Whether the text can only be a name: it has no folder and no suffix of a file."""
    return os.sep not in asked and "/" not in asked and not Path(asked).suffix


def _is_minari_id(asked: str) -> bool:
    head, _, version = asked.rpartition("-v")
    return bool(head) and version.isdigit() and not asked.startswith((".", "/", "~"))


def _local_minari(name: str) -> bool:
    if not _is_minari_id(name):
        return False
    return (minari_root() / name / "data" / "metadata.json").is_file()


def _load_folder(path: Path, name: str | None) -> OfflineDataset:
    from offrl.datasets.minari import is_minari, load_minari

    if is_minari(path):
        return load_minari(path, name)
    if path.name == "data" and is_minari(path.parent):
        return load_minari(path.parent, name)
    inside = ", ".join(sorted(p.name for p in path.iterdir())[:8]) or "nothing"
    raise DataError(
        f"{path} is a folder, but not a Minari dataset (no data/metadata.json); it holds {inside}"
    )


def _refuse_flat_facts(asked: str, *facts: Any) -> None:
    if any(fact is not None for fact in facts):
        raise ConfigError(
            f"{asked} is a Minari dataset, which states its environment and columns; env_id and "
            "columns are for flat files"
        )
