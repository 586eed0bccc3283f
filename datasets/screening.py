"""What is refused by default, and what a user can ask for instead: two faults common in files.

Actions outside the environment's bounds (recorded before the environment clipped them), and
terminals that stand for the time limit, which would teach that no value follows there.
"""

from dataclasses import replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from offrl.datasets.offline import OfflineDataset
from offrl.datasets.rows import CHUNK
from offrl.errors import ConfigError, DataError

OutOfBounds = Literal["refuse", "clip", "keep"]
TimeLimit = int | Literal["keep"] | None
SLACK = 1e-5  # of the bounds' range: rounding, not a fault
# How other bounds are stated, by what the data are: flat columns, a Minari dataset, an object.
FLAT = (
    "; or state other bounds, with the environment (env_id, or env of offrl.train; --env ID) or "
    "with action_bounds (--action-bounds LOW HIGH)"
)
OWN = "; the bounds are the dataset's own"
OBJECT = "; or make the dataset with the bounds it has (action_bounds=(LOW, HIGH))"


def screen(
    dataset: OfflineDataset,
    out_of_bounds: OutOfBounds = "refuse",
    time_limit: TimeLimit = None,
    bounds: str = FLAT,
) -> OfflineDataset:
    """`dataset` as it may be used, or DataError. Its rows may be changed in place.

    What was clipped, kept or turned into a truncation is recorded in the provenance. What was
    kept so before, as an imported dataset's own record says, is not asked about again. `bounds`
    is what the message says of stating others.
    """
    if out_of_bounds not in ("refuse", "clip", "keep"):
        raise ConfigError(f"out_of_bounds is {out_of_bounds!r}; it must be refuse, clip or keep")
    return _screen_terminals(_screen_actions(dataset, out_of_bounds, bounds), time_limit)


def screen_object(
    dataset: OfflineDataset, out_of_bounds: OutOfBounds = "refuse", time_limit: TimeLimit = None
) -> OfflineDataset:
    """`screen` of a user's own object, whose rows stay as they are: changes are made to a copy."""
    if out_of_bounds == "clip" or isinstance(time_limit, int):
        dataset = replace(dataset, rows=dataset.rows.copy())
    return screen(dataset, out_of_bounds, time_limit, OBJECT)


def bounded(dataset: OfflineDataset, action_bounds: tuple[float, float]) -> OfflineDataset:
    """With these bounds for every component of the actions whose own are not finite.

    Raises ConfigError where the dataset states all of its bounds.
    """
    spec = dataset.spec
    low, high = np.array(spec.action_low), np.array(spec.action_high)
    if np.isfinite([low, high]).all():
        raise ConfigError(
            f"action_bounds is {action_bounds}, but {dataset.name} states bounds of its own, "
            f"{low.min():g} to {high.max():g}; leave action_bounds out (--action-bounds)"
        )
    least, most = action_pair(action_bounds)
    told = replace(
        spec,
        action_low=tuple(np.where(np.isfinite(low), low, least).tolist()),
        action_high=tuple(np.where(np.isfinite(high), high, most).tolist()),
    )
    note = f"not stated: [{least:g}, {most:g}] as asked"
    return replace(dataset, spec=told, provenance={**dataset.provenance, "action_bounds": note})


def action_pair(bounds: Any) -> tuple[float, float]:
    """Two finite numbers, the low one first; ConfigError for anything else."""
    try:
        low, high = (float(bound) for bound in bounds)
        if -np.inf < low < high < np.inf:
            return low, high
    except (TypeError, ValueError):
        pass
    raise ConfigError(
        f"action_bounds is {bounds!r}; give two finite numbers, the low one first "
        "(--action-bounds LOW HIGH)"
    )


def outside(dataset: OfflineDataset) -> tuple[int, float, float]:
    """Steps with an action outside its bounds; the least and greatest action component."""
    low, high = _bounds(dataset)
    count, least, greatest = 0, np.inf, -np.inf
    finals = dataset.starts + dataset.lengths
    for begin in range(0, len(dataset.rows), CHUNK):
        chunk = dataset.rows[begin : begin + CHUNK, dataset.obs_dim : -3]
        step = np.ones(len(chunk), np.bool_)
        step[finals[(finals >= begin) & (finals < begin + len(chunk))] - begin] = False
        if not step.any():
            continue
        over = ((chunk < low) | (chunk > high)).any(1) & step
        count += int(over.sum())
        steps = step[:, None]
        least = min(least, float(chunk.min(where=steps, initial=np.inf)))
        greatest = max(greatest, float(chunk.max(where=steps, initial=-np.inf)))
    return count, least, greatest


def at_limit(dataset: OfflineDataset, limit: int) -> NDArray[np.bool_]:
    """(num_episodes,) episodes whose end is a terminal at exactly `limit` steps."""
    reached: NDArray[np.bool_] = (dataset.lengths == limit) & _ends_in_terminal(dataset)
    return reached


def _ends_in_terminal(dataset: OfflineDataset) -> NDArray[np.bool_]:
    ends: NDArray[np.bool_] = dataset.rows[dataset.starts + dataset.lengths - 1, -2] > 0
    return ends


def _bounds(dataset: OfflineDataset) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    spec = dataset.spec
    if spec.action_kind == "discrete":
        return np.zeros(1, np.float32), np.array([len(spec.action_low) - 1], np.float32)
    low, high = np.array(spec.action_low), np.array(spec.action_high)
    slack = np.where(np.isfinite(high - low), SLACK * (high - low), 0.0)
    return (low - slack).astype(np.float32), (high + slack).astype(np.float32)


def _screen_actions(
    dataset: OfflineDataset, out_of_bounds: OutOfBounds, stated: str
) -> OfflineDataset:
    count, least, greatest = outside(dataset)
    settled = "out_of_bounds" in dataset.provenance and out_of_bounds != "clip"
    if count == 0 or settled:
        return dataset
    spec = dataset.spec
    bounds = f"[{min(spec.action_low):g}, {max(spec.action_high):g}]"
    if spec.action_kind == "discrete":
        bounds = f"{{0, ..., {len(spec.action_low) - 1}}}"
    whose = f"the bounds of {dataset.env_id}" if dataset.env_id else "the bounds assumed"
    share = 100.0 * count / dataset.num_steps
    if out_of_bounds == "refuse" or spec.action_kind == "discrete":
        remedy = (
            "Give out_of_bounds='clip' to clip them (recorded rewards then belong to other "
            f"actions) or 'keep' to leave them (--out-of-bounds clip|keep){stated}"
        )
        if spec.action_kind == "discrete":
            remedy = "Repair these steps, or state another number of actions"
            if stated == FLAT:
                remedy = "Name the environment of the data: env_id (env of offrl.train; --env ID)"
        raise DataError(
            f"{dataset.name}: {count:,} of {dataset.num_steps:,} actions ({share:.1f} %) are "
            f"outside {bounds}, {whose}: they range from {least:g} to {greatest:g}. {remedy}"
        )
    if out_of_bounds == "clip":
        low, high = np.array(spec.action_low, np.float32), np.array(spec.action_high, np.float32)
        finals = dataset.starts + dataset.lengths
        for begin in range(0, len(dataset.rows), CHUNK):
            part = dataset.rows[begin : begin + CHUNK, dataset.obs_dim : -3]
            np.clip(part, low, high, out=part)
        dataset.rows[finals, dataset.obs_dim : -3] = 0.0
    done = {"clip": "clipped", "keep": "kept"}[out_of_bounds]
    note = {"treatment": done, "steps": count, "least": least, "greatest": greatest}
    sentence = (
        f"{count} actions ({share:.1f} %) are outside {bounds} ({least:g} to {greatest:g}); "
        f"they were {done}"
    )
    return _noted(dataset, {"out_of_bounds": note}, sentence)


def _screen_terminals(dataset: OfflineDataset, time_limit: TimeLimit) -> OfflineDataset:
    if isinstance(time_limit, int):
        if time_limit < 1:
            raise ConfigError(f"time_limit is {time_limit}; it must be at least 1 step, or 'keep'")
        changed = at_limit(dataset, time_limit)
        last = (dataset.starts + dataset.lengths - 1)[changed]
        dataset.rows[last, -2], dataset.rows[last, -1] = 0.0, 1.0
        dataset = replace(dataset, time_limit=time_limit)
        if not changed.any():
            return dataset
        count = int(changed.sum())
        return _noted(
            dataset,
            {"terminals_at_time_limit": {"treatment": "made truncations", "episodes": count}},
            f"{count} terminals at the time limit of {time_limit} steps were made truncations",
        )
    if time_limit not in (None, "keep"):
        raise ConfigError(f"time_limit is {time_limit!r}; it must be a number of steps, or 'keep'")
    if "terminals_at_time_limit" in dataset.provenance:
        return dataset
    terminal = _ends_in_terminal(dataset)
    known = dataset.time_limit
    limit = int(dataset.lengths.max()) if known is None else known
    suspect = int(at_limit(dataset, limit).sum())
    total = int(terminal.sum())
    if suspect == 0 or (known is None and (suspect != total or total < 2 or limit == 1)):
        return dataset
    whose = f"{dataset.env_id or dataset.name}'s time limit" if known else "the longest episode"
    found = f"{suspect} of the {total} terminals are at step {limit}, {whose}"
    if time_limit == "keep":
        note = {"treatment": "kept", "episodes": suspect}
        return _noted(dataset, {"terminals_at_time_limit": note}, f"{found}; they were kept")
    if known is not None and 2 * suspect <= total:
        return replace(dataset, problems=(*dataset.problems, found))
    raise DataError(
        f"{dataset.name}: {found}. Terminals mean that no reward can follow; these look like the "
        f"time limit. Give time_limit={limit} (--time-limit {limit}) to make them "
        "truncations, or 'keep' (--time-limit keep) if these ends are real"
    )


def _noted(dataset: OfflineDataset, record: dict[str, Any], sentence: str) -> OfflineDataset:
    return replace(
        dataset,
        provenance={**dataset.provenance, **record},
        problems=(*dataset.problems, sentence),
    )
