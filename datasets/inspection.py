"""What a dataset holds, and what may be wrong with it: `offrl data info`."""

import os
from contextlib import suppress
from pathlib import Path
from textwrap import shorten
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from offrl.datasets.offline import OfflineDataset
from offrl.datasets.rows import CHUNK
from offrl.datasets.screening import at_limit
from offrl.envs.references import returns_note
from offrl.errors import DataError

QUANTILES = (0.0, 0.25, 0.5, 0.75, 1.0)
SATURATED = 0.99  # of the way from the middle of the bounds to either end


def inspect(dataset: OfflineDataset) -> dict[str, Any]:
    """Sizes, returns, lengths, action saturation, transition counts and problems; JSON-able."""
    note = _returns_note(dataset)
    reference = dataset.reference
    returns, spec = dataset.returns(), dataset.spec
    facts: dict[str, Any] = {
        "name": dataset.name,
        "env_id": dataset.env_id,
        "time_limit": dataset.time_limit,
        "steps": dataset.num_steps,
        "episodes": dataset.num_episodes,
        "obs_dim": dataset.obs_dim,
        "act_dim": dataset.act_dim,
        "megabytes": round(_bytes(dataset) / 1e6, 1),
        "returns": _spread(returns),
        "lengths": _spread(dataset.lengths.astype(np.float64)),
        "ends": _ends(dataset),
        "reward": _spread(dataset.reward.astype(np.float64)),
        "actions": _actions(dataset),
        "transitions": len(dataset.transition_rows()),
        "d4rl_transitions": _d4rl_count(dataset),
        "problems": [*dataset.problems, *_suspicions(dataset)],
        "provenance": dict(dataset.provenance),
        "fingerprint": dataset.fingerprint,
    }
    if spec.action_kind == "discrete":
        facts["discrete_actions"] = len(spec.action_low)
    if reference is not None:
        facts["reference"] = {
            "min": reference.min,
            "max": reference.max,
            "source": reference.source,
        }
        if note is None:
            facts["scores"] = _spread(reference.score(returns))
    if note is not None:
        facts["problems"].append(note)
    return facts


def report(facts: dict[str, Any], returns: NDArray[np.float64]) -> str:
    """The facts of `inspect` as text, with a histogram of the episodes' returns."""
    limit = f", time limit {facts['time_limit']} steps" if facts["time_limit"] else ""
    d4rl = facts["d4rl_transitions"]
    lines = [
        f"{facts['name']}: environment {facts['env_id'] or 'not known'}{limit}",
        f"  size         {facts['steps']:,} steps in {facts['episodes']:,} episodes, observations "
        f"{facts['obs_dim']}, actions {facts['act_dim']}, {facts['megabytes']} MB in memory",
        f"  returns      {_line(facts['returns'])}",
    ]
    if "scores" in facts:
        r = facts["reference"]
        lines.append(f"  scores       {_line(facts['scores'])}")
        lines.append(f"               0 is {r['min']:g}, 100 is {r['max']:g}; {r['source']}")
    ends, actions = facts["ends"], facts["actions"]
    discrete = ""
    if "discrete_actions" in facts:
        discrete = f"{facts['discrete_actions']:,} discrete ones, which no agent learns from; "
    lines += [
        f"  lengths      {_line(facts['lengths'])}",
        f"  ends         {ends['terminated']:,} terminated, {ends['truncated']:,} truncated, "
        f"{ends['unmarked']:,} unmarked; final observation known in {ends['final_known']:,}",
        f"  rewards      {_line(facts['reward'])} a step",
        f"  actions      {discrete}from {actions['least']:.3g} to {actions['greatest']:.3g}; "
        f"{100 * actions['saturated']:.1f} % of components at their bounds (most in component "
        f"{actions['most_saturated']}: {100 * actions['most_saturated_share']:.1f} %)",
        f"  transitions  {facts['transitions']:,} to learn from; D4RL's qlearning_dataset: "
        + (f"{d4rl:,}" if isinstance(d4rl, int) else d4rl),
    ]
    lines.append(f"  problems     {'none found' if not facts['problems'] else ''}".rstrip())
    lines += [f"    - {problem}" for problem in facts["problems"]]
    lines += ["  origin (in full with --json)"]
    lines += [f"    {k}: {shorten(str(v), 150)}" for k, v in facts["provenance"].items()]
    lines += ["  returns by episode", *_bars(returns)]
    return "\n".join(lines)


def draw_histogram(dataset: OfflineDataset, path: Path) -> None:
    """A picture of the distribution of episode returns. Raises DataError if `path` exists."""
    if path.exists():
        raise DataError(f"{path} exists and is not overwritten; choose another file")
    from matplotlib.figure import Figure

    returns = dataset.returns()
    figure = Figure(figsize=(5.0, 3.0), dpi=150, layout="constrained")
    axes = figure.subplots()
    edges = return_edges(returns, min(50, max(10, dataset.num_episodes // 10)))
    axes.hist(returns, bins=edges.tolist(), color="#4477aa")
    axes.axvline(float(returns.mean()), color="black", linestyle="--", linewidth=1)
    axes.set_title(
        f"{dataset.name}: {dataset.num_episodes:,} episodes, mean {returns.mean():,.0f}", fontsize=9
    )
    axes.set_xlabel("return")
    axes.set_ylabel("episodes")
    if dataset.reference is not None and _returns_note(dataset) is None:
        reference = dataset.reference
        span = reference.max - reference.min

        def returns_of(score: ArrayLike) -> NDArray[np.float64]:
            return reference.min + np.asarray(score, np.float64) * span / 100.0

        top = axes.secondary_xaxis("top", functions=(reference.score, returns_of))
        top.set_xlabel("score", fontsize=8)
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        figure.savefig(partial, format=path.suffix.lstrip(".") or "png")
        os.replace(partial, path)
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be written: {error}") from error
    finally:
        with suppress(OSError):  # which would hide the error that is under way
            partial.unlink()


def _bytes(dataset: OfflineDataset) -> int:
    columns = [dataset.rows, *dataset.marks.values()]
    columns += [] if dataset.next_obs is None else [dataset.next_obs]
    return sum(column.nbytes for column in columns)


def _returns_note(dataset: OfflineDataset) -> str | None:
    return returns_note(dataset.provenance.get("d4rl_name", dataset.name))


def _spread(values: NDArray[np.float64]) -> dict[str, float]:
    quartiles = np.quantile(values, QUANTILES)
    names = ("min", "lower_quartile", "median", "upper_quartile", "max")
    return {
        "mean": float(values.mean()),
        "std": float(values.std()),
        **{n: float(q) for n, q in zip(names, quartiles, strict=True)},
    }


def _line(spread: dict[str, float]) -> str:
    mean, std, low, high, median = (
        f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
        for value in (spread[key] for key in ("mean", "std", "min", "max", "median"))
    )
    return f"mean {mean} (std {std}), from {low} to {high}, median {median}"


def _ends(dataset: OfflineDataset) -> dict[str, int]:
    last = dataset.rows[dataset.starts + dataset.lengths - 1]
    terminated, truncated = last[:, -2] > 0, last[:, -1] > 0
    return {
        "terminated": int(terminated.sum()),
        "truncated": int((truncated & ~terminated).sum()),
        "unmarked": int((~truncated & ~terminated).sum()),
        "final_known": int(dataset.final_known.sum()),
    }


def _actions(dataset: OfflineDataset) -> dict[str, Any]:
    low, high = (np.array(b) for b in (dataset.spec.action_low, dataset.spec.action_high))
    if dataset.spec.action_kind == "discrete":
        low, high = np.array([0.0]), np.array([len(low) - 1.0])
    middle, half = (high + low) / 2, SATURATED * (high - low) / 2
    count = np.zeros(dataset.act_dim)
    least, greatest = np.full(dataset.act_dim, np.inf), np.full(dataset.act_dim, -np.inf)
    rows = dataset.step_rows
    for begin in range(0, len(rows), CHUNK):
        chunk = dataset.rows[rows[begin : begin + CHUNK], dataset.obs_dim : -3]
        count += (np.abs(chunk - middle) >= half).sum(0)
        least, greatest = np.minimum(least, chunk.min(0)), np.maximum(greatest, chunk.max(0))
    share = count / len(rows)
    return {
        "least": float(least.min()),
        "greatest": float(greatest.max()),
        "saturated": float(share.mean()),
        "saturated_by_component": share.tolist(),
        "most_saturated": int(share.argmax()),
        "most_saturated_share": float(share.max()),
        "never_moves": np.flatnonzero(least == greatest).tolist(),
    }


def _d4rl_count(dataset: OfflineDataset) -> int | str:
    try:
        return len(dataset.d4rl_transitions()["rewards"])
    except DataError as error:
        return str(error)


def _suspicions(dataset: OfflineDataset) -> list[str]:
    """Faults that reading does not refuse, a sentence each."""
    found = []
    rows = dataset.step_rows
    low, high = np.full(dataset.obs_dim, np.inf), np.full(dataset.obs_dim, -np.inf)
    for begin in range(0, len(rows), CHUNK):
        chunk = dataset.rows[rows[begin : begin + CHUNK], : dataset.obs_dim]
        low, high = np.minimum(low, chunk.min(0)), np.maximum(high, chunk.max(0))
    constant = np.flatnonzero(low == high).tolist()
    if constant:
        found.append(f"observation components {constant} never change")
    still = _actions(dataset)["never_moves"]
    if still:
        found.append(f"action components {still} never change")
    single = int((dataset.lengths == 1).sum())
    if single:
        found.append(f"{single} episodes have one step")
    rewards = dataset.rows[rows, -3]
    if rewards.min() == rewards.max():
        found.append(f"every reward is {rewards[0]:g}: returns say nothing about behaviour")
    lost = dataset.num_steps - len(dataset.transition_rows())
    if lost:
        found.append(
            f"{lost} steps are not learnt from: they are last in an episode that does not "
            "terminate, and the observation that followed was not recorded"
        )
    limit = dataset.time_limit
    if limit is not None:
        over = int((dataset.lengths > limit).sum())
        if over:
            found.append(f"{over} episodes are longer than the time limit of {limit} steps")
        early = int(((dataset.lengths < limit) & ~at_limit(dataset, limit) & _cut(dataset)).sum())
        if early:
            found.append(f"{early} episodes were cut before the time limit of {limit} steps")
    return found


def _cut(dataset: OfflineDataset) -> NDArray[np.bool_]:
    cut: NDArray[np.bool_] = dataset.rows[dataset.starts + dataset.lengths - 1, -2] == 0
    return cut


def return_edges(returns: NDArray[np.float64], bins: int) -> NDArray[np.float64]:
    """Of equal bins from the least return to the greatest, or about the one that all have."""
    low, high = float(returns.min()), float(returns.max())
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        half = max(0.5, 1e-3 * abs(low))
        low, high = low - half, high + half
    edges: NDArray[np.float64] = np.linspace(low, high, bins + 1)
    return edges


def _bars(returns: NDArray[np.float64], bins: int = 12, width: int = 50) -> list[str]:
    edges = return_edges(returns, bins)
    counts, _ = np.histogram(returns, bins=edges)
    most = max(1, int(counts.max()))
    return [
        f"    {edges[i]:>10,.1f} to {edges[i + 1]:>10,.1f} {'#' * -(-width * int(c) // most)} {c}"
        for i, c in enumerate(counts)
    ]
