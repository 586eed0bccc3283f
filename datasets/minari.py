"""Minari datasets, in and out: a local or remote id, or the folder of one.

Reading goes through the minari package, an episode at a time into the allocated rows. Writing
is done here, because minari's own writer spends some 15 kB an episode on empty chunks and time
stamps; what is written is minari's HDF5 layout, and minari reads it.
"""

import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
import h5py
import minari
import numpy as np
from gymnasium.envs.registration import EnvSpec
from gymnasium.spaces import Box
from minari.serialization import serialize_space
from numpy.typing import NDArray

from offrl.datasets.offline import OfflineDataset, Reference, Spec
from offrl.datasets.rows import allocate
from offrl.envs.references import reference_for
from offrl.errors import DataError, MissingDependencyError

METADATA, MAIN_FILE = "metadata.json", "main_data.hdf5"
NEXT_OBS = "next_observations"  # among an episode's infos, where the next row does not say it
DAMAGE = (  # what minari, h5py and json raise for files that are broken or of another kind
    *(AssertionError, AttributeError, LookupError, MemoryError),
    *(OSError, RuntimeError, TypeError, ValueError),
)
BATCH = 16  # episodes read before the file is opened anew, which empties HDF5's caches
ID = re.compile(r"(?:[-_\w][-_\w/]*[-_\w]/)?[-_\w]+-v\d+")


def is_minari(path: Path) -> bool:
    """Whether `path` is the folder of a Minari dataset."""
    return (path / "data" / METADATA).is_file()


def load_minari(path: Path, name: str | None = None) -> OfflineDataset:
    """The Minari dataset in the folder `path` (the one that holds `data/`).

    Observations are a box, or a (nested) dict of boxes, which is laid out in the order of its
    keys; the spec's `obs_keys` keeps where each part lies. Raises DataError for other spaces
    and for damaged files, MissingDependencyError for arrow storage without pyarrow.
    """
    with _readable(path):
        source = minari.MinariDataset(path / "data")
        metadata = source.storage.metadata
        boxes = _boxes(source.observation_space, path)
        keys = _obs_keys(boxes)
        spec = _spec(boxes, source.action_space, keys, path)
        info = [m for b in _batches(source) for m in source.storage.get_episode_metadata(b)]
        lengths = np.array([m["total_steps"] for m in info], np.int64)
        known = np.array([m.get("final_observation_known", True) for m in info], np.bool_)
        obs_dim = len(spec.obs_low)
        rows, starts = allocate(lengths, obs_dim, _action_columns(spec))
        ours = metadata.get("offrl", {})
        marks = {name: np.zeros(len(rows), np.bool_) for name in ours.get("marks", ())}
        next_obs = np.zeros((len(rows), obs_dim), np.float32) if ours.get("next_obs") else None
        for e, episode in enumerate(_episodes(source, path)):
            begin, steps = int(starts[e]), int(lengths[e])
            block = rows[begin : begin + steps + 1]
            _fill_obs(block, episode.observations, keys or {"": (0, obs_dim)}, path, e)
            body = block[:steps]
            try:
                body[:, obs_dim:-3] = np.asarray(episode.actions).reshape(steps, -1)
                body[:, -3], body[:, -2] = episode.rewards, episode.terminations
                body[:, -1] = episode.truncations
                for key, mark in marks.items():
                    mark[begin : begin + steps] = episode.infos[key]
                if next_obs is not None:
                    next_obs[begin : begin + steps] = episode.infos[NEXT_OBS]
            except ValueError as error:
                raise DataError(
                    f"{path}: episode {e} says it has {steps} steps, but its columns do not: "
                    f"actions {np.shape(episode.actions)}, rewards {np.shape(episode.rewards)}"
                ) from error
            except KeyError as error:
                raise DataError(f"{path}: episode {e} has no {error} among its infos") from error
    dataset_id = str(metadata["dataset_id"])
    env_spec = source.env_spec
    return OfflineDataset(
        rows,
        starts,
        lengths,
        known,
        spec,
        name=name or ours.get("name") or dataset_id,
        env_id=None if env_spec is None else env_spec.id,
        reference=_reference(metadata, dataset_id, None if env_spec is None else env_spec.id, path),
        time_limit=None if env_spec is None else env_spec.max_episode_steps,
        provenance={
            **ours.get("provenance", {}),
            "format": "minari",
            "dataset_id": dataset_id,
            **{
                key: metadata[key]
                for key in ("minari_version", "algorithm_name", "description", "code_permalink")
                if metadata.get(key)
            },
        },
        problems=tuple(ours.get("problems", ())),
        next_obs=next_obs,
        marks=marks,
    )


def load_minari_id(dataset_id: str, root: Path, *, download: bool) -> OfflineDataset:
    """The dataset of this id from minari's local folder `root`, else from its remote server.

    Raises DataError where the id is malformed or nowhere to be had.
    """
    if not ID.fullmatch(dataset_id):
        raise DataError(
            f"{dataset_id!r} is not a Minari id; they read '(namespace/)name-v0', for instance "
            "'D4RL/door/human-v2'"
        )
    path = root / dataset_id
    if not is_minari(path):
        by_hand = (
            f"Put its folder there (so that {path / 'data' / METADATA} exists), or set "
            "MINARI_DATASETS_PATH to the folder of your datasets"
        )
        if not download:
            raise DataError(f"the Minari dataset {dataset_id!r} is not at {path}. {by_hand}")
        try:
            minari.download_dataset(dataset_id)
        except Exception as error:  # the remote client raises errors of several libraries
            raise DataError(
                f"the Minari dataset {dataset_id!r} is not at {path} and could not be downloaded "
                f"({type(error).__name__}: {error}). {by_hand}"
            ) from error
    return load_minari(path)


def check_target(path: Path, dataset_id: str | None = None) -> None:
    """That `path` is new and can be written, and the id is one: asked before what takes long.

    A folder is made beside it and removed again. Raises DataError.
    """
    try:
        if path.exists():
            raise DataError(f"{path} exists and is not overwritten; choose another folder")
        home = next(folder for folder in path.absolute().parents if folder.exists())
        Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=home)).rmdir()
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error}") from error
    if dataset_id and not ID.fullmatch(dataset_id):
        raise DataError(f"{dataset_id!r} is not a Minari id: '(namespace/)name-v0'")


def write_minari(
    dataset: OfflineDataset,
    path: Path,
    *,
    dataset_id: str | None = None,
    description: str | None = None,
    algorithm_name: str | None = None,
) -> Path:
    """Write `dataset` as a Minari dataset in the new folder `path`; returns `path`.

    Observations and rewards are float32, as they are in memory. The folder appears complete or
    not at all. An episode that ends without a flag is written as truncated; one whose final
    observation is unknown repeats the last and carries the attribute
    `final_observation_known = False`. Marks, and next observations that are not those of the
    row after, are written among the infos, one entry a step. Raises DataError if `path` exists
    or cannot be written, or the id is none.
    """
    dataset_id = dataset_id or _id_of(dataset.name)
    check_target(path, dataset_id)
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        (partial / "data").mkdir(parents=True)
        _write_episodes(dataset, partial / "data" / MAIN_FILE)
        metadata = _metadata(dataset, dataset_id)
        metadata["dataset_size"] = round((partial / "data" / MAIN_FILE).stat().st_size / 1e6, 1)
        metadata |= {"algorithm_name": algorithm_name} if algorithm_name else {}
        metadata |= {"description": description} if description else {}
        (partial / "data" / METADATA).write_text(json.dumps(metadata, indent=1))
        for file in (partial / "data").iterdir():
            with file.open("rb") as handle:
                os.fsync(handle.fileno())
        partial.rename(path)
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return path


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turn what minari and h5py raise for damaged or unsupported files into DataError."""
    try:
        yield
    except DataError:
        raise
    except ImportError as error:  # of pyarrow, which storage in its formats needs
        raise MissingDependencyError(f"{path} cannot be read: {error}") from error
    except DAMAGE as error:
        detail = str(error) or type(error).__name__
        raise DataError(
            f"{path}: not a Minari dataset that minari {minari.__version__} reads: {detail}"
        ) from error


def _boxes(space: gymnasium.Space[Any], path: Path) -> dict[str, Box]:
    """The boxes of an observation space by key, `a/b` for entry `b` of entry `a`; "" if alone."""
    found: dict[str, Box] = {}

    def visit(part: gymnasium.Space[Any], key: str) -> None:
        if isinstance(part, gymnasium.spaces.Dict):
            for name, inner in part.spaces.items():
                visit(inner, f"{key}/{name}" if key else name)
        elif isinstance(part, Box) and part.dtype != np.uint8:
            found[key] = part
        else:
            what = f"observation {key!r}" if key else "observation"
            raise DataError(
                f"{path}: the {what} space is {part}; observations must be vectors (a Box of "
                "numbers) or a Dict of them"
            )

    visit(space, "")
    return found


def _obs_keys(boxes: Mapping[str, Box]) -> dict[str, tuple[int, int]] | None:
    if set(boxes) == {""}:
        return None
    sizes = [int(np.prod(box.shape)) for box in boxes.values()]
    ends = np.cumsum(sizes).tolist()
    return {key: (end - n, end) for key, end, n in zip(boxes, ends, sizes, strict=True)}


def _spec(
    boxes: Mapping[str, Box],
    action: gymnasium.Space[Any],
    keys: dict[str, tuple[int, int]] | None,
    path: Path,
) -> Spec:
    low = _joined([box.low for box in boxes.values()])
    high = _joined([box.high for box in boxes.values()])
    if isinstance(action, gymnasium.spaces.Discrete) and action.start == 0:
        n = int(action.n)
        return Spec(low, high, (0.0,) * n, (1.0,) * n, "discrete", keys)
    if not isinstance(action, Box):
        raise DataError(
            f"{path}: the action space is {action}; actions must be a Box, or Discrete from 0"
        )
    return Spec(low, high, _joined([action.low]), _joined([action.high]), "box", keys)


def _joined(parts: list[NDArray[Any]]) -> tuple[float, ...]:
    return tuple(float(x) for part in parts for x in np.ravel(part))


def _action_columns(spec: Spec) -> int:
    return 1 if spec.action_kind == "discrete" else len(spec.action_low)


def _fill_obs(
    block: NDArray[np.float32], obs: Any, keys: Mapping[str, tuple[int, int]], path: Path, e: int
) -> None:
    for key, (begin, stop) in keys.items():
        values = np.asarray(_part(obs, key))
        if len(values) != len(block):
            raise DataError(
                f"{path}: episode {e} has {len(values)} observations for {len(block) - 1} steps; "
                "Minari stores one more than steps"
            )
        flat = values.reshape(len(values), -1)
        if flat.shape[1] != stop - begin:
            what = f"observations {key!r}" if key else "observations"
            raise DataError(
                f"{path}: episode {e} has {what} of {flat.shape[1]} components, and the "
                f"observation space {stop - begin}"
            )
        block[:, begin:stop] = flat


def _batches(source: minari.MinariDataset) -> Iterator[NDArray[np.int64]]:
    indices = source.episode_indices
    for begin in range(0, len(indices), BATCH):
        yield indices[begin : begin + BATCH]


def _episodes(source: minari.MinariDataset, path: Path) -> Iterator[minari.EpisodeData]:
    """One after another; DataError names the one that cannot be read."""
    for indices in _batches(source):
        batch = iter(source.iterate_episodes(indices))
        for index in indices:
            try:
                episode = next(batch)
            except DAMAGE as error:
                detail = str(error) or type(error).__name__
                raise DataError(f"{path}: episode {index} cannot be read: {detail}") from error
            yield episode


def _part(obs: Any, key: str) -> Any:
    for name in key.split("/") if key else ():
        obs = obs[name]
    return obs


def _reference(
    metadata: Mapping[str, Any], dataset_id: str, env_id: str | None, path: Path
) -> Reference | None:
    low, high = metadata.get("ref_min_score"), metadata.get("ref_max_score")
    if low is not None and high is not None:
        stated = metadata.get("offrl", {}).get("reference_source")
        try:
            return Reference(float(low), float(high), stated or "the dataset's own metadata")
        except (TypeError, ValueError, DataError):
            raise DataError(
                f"{path}: ref_min_score is {low!r} and ref_max_score {high!r}; both must be "
                "finite numbers that differ, or absent"
            ) from None
    return reference_for(dataset_id) or (None if env_id is None else reference_for(env_id))


def _write_episodes(dataset: OfflineDataset, path: Path) -> None:
    keys = dataset.spec.obs_keys
    # Compact headers and no time stamps: 100 bytes where they would be thousands. "latest" would
    # be HDF5 2.0, of which the 1.14 in most programs cannot read the booleans.
    with h5py.File(path, "w", libver=("v110", "v110"), track_order=True) as file:
        for e in range(dataset.num_episodes):
            begin, steps = int(dataset.starts[e]), int(dataset.lengths[e])
            block = dataset.rows[begin : begin + steps + 1]
            body, o = block[:steps], dataset.obs_dim
            group = file.create_group(f"episode_{e}", track_times=False)
            group.attrs["id"], group.attrs["total_steps"] = e, steps
            if not dataset.final_known[e]:
                group.attrs["final_observation_known"] = False
            action: NDArray[Any] = body[:, o:-3]
            if dataset.spec.action_kind == "discrete":
                action = action[:, 0].astype(np.int64)
            truncated = body[:, -1] > 0
            truncated[-1] |= not body[-1, -2] > 0
            columns = {
                "actions": action,
                "rewards": body[:, -3],
                "terminations": body[:, -2] > 0,
                "truncations": truncated,
            }
            if keys is None:
                columns["observations"] = block[:, :o]
            else:
                columns |= {f"observations/{k}": block[:, a:b] for k, (a, b) in keys.items()}
            stop = begin + steps
            columns |= {f"infos/{k}": mark[begin:stop] for k, mark in dataset.marks.items()}
            if dataset.next_obs is not None:
                columns[f"infos/{NEXT_OBS}"] = dataset.next_obs[begin:stop]
            for name, values in columns.items():
                group.create_dataset(name, data=values, track_times=False)


def _metadata(dataset: OfflineDataset, dataset_id: str) -> dict[str, Any]:
    spec = dataset.spec
    low, high = np.array(spec.obs_low, np.float32), np.array(spec.obs_high, np.float32)
    obs: gymnasium.Space[Any] = Box(low, high)
    if spec.obs_keys is not None:
        boxes = {k: Box(low[a:b], high[a:b]) for k, (a, b) in spec.obs_keys.items()}
        obs = _nested(boxes)
    action: gymnasium.Space[Any] = (
        gymnasium.spaces.Discrete(len(spec.action_low))
        if spec.action_kind == "discrete"
        else Box(np.array(spec.action_low, np.float32), np.array(spec.action_high, np.float32))
    )
    metadata: dict[str, Any] = {
        "total_episodes": dataset.num_episodes,
        "total_steps": dataset.num_steps,
        "data_format": "hdf5",
        "observation_space": serialize_space(obs),
        "action_space": serialize_space(action),
        "dataset_id": dataset_id,
        "minari_version": minari.__version__,
    }
    env_spec = _env_spec(dataset)
    if env_spec is not None:
        metadata["env_spec"] = env_spec
    ours: dict[str, Any] = {"name": dataset.name, "provenance": dict(dataset.provenance)}
    ours["problems"] = list(dataset.problems)
    if dataset.marks:
        ours["marks"] = list(dataset.marks)
    if dataset.next_obs is not None:
        ours["next_obs"] = True
    if dataset.reference is not None:
        metadata["ref_min_score"] = dataset.reference.min
        metadata["ref_max_score"] = dataset.reference.max
        ours["reference_source"] = dataset.reference.source
    return metadata | {"offrl": ours}


def _nested(boxes: Mapping[str, gymnasium.Space[Any]]) -> gymnasium.spaces.Dict:
    tree: dict[str, Any] = {}
    for key, box in boxes.items():
        *parents, leaf = key.split("/")
        branch = tree
        for parent in parents:
            branch = branch.setdefault(parent, {})
        branch[leaf] = box

    def space(node: dict[str, Any]) -> gymnasium.spaces.Dict:
        return gymnasium.spaces.Dict(
            {k: space(v) if isinstance(v, dict) else v for k, v in node.items()}
        )

    return space(tree)


def _env_spec(dataset: OfflineDataset) -> str | None:
    """The registered spec of the dataset's environment, with the dataset's own time limit.

    Where the environment is not installed, a bare spec that holds its id.
    """
    if dataset.env_id is None:
        return None
    registered = gymnasium.registry.get(dataset.env_id)
    spec = registered or EnvSpec(dataset.env_id, "offrl.envs:make")
    limit = dataset.time_limit or spec.max_episode_steps
    return replace(spec, max_episode_steps=limit).to_json()


def _id_of(name: str) -> str:
    base = re.sub(r"[^-_\w/]+", "-", name).strip("-/") or "dataset"
    return base if ID.fullmatch(base) else f"{base}-v0"
