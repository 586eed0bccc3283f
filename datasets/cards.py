"""The card of a dataset: what is in it and how it was made, for people and for programs."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from offrl.datasets.inspection import draw_histogram, inspect, return_edges
from offrl.datasets.offline import OfflineDataset
from offrl.files import write_json

FACTS, TEXT, PICTURE = "card.json", "card.md", "histogram.png"
BINS = 20


def card(dataset: OfflineDataset) -> dict[str, Any]:
    """The facts of `offrl data info`, and `histogram`: episodes by return, edges and counts."""
    returns = dataset.returns()
    edges = return_edges(returns, BINS)
    counts, _ = np.histogram(returns, bins=edges)
    facts = inspect(dataset)
    facts["histogram"] = {"edges": edges.tolist(), "episodes": counts.tolist()}
    return facts


def write_card(dataset: OfflineDataset, folder: Path) -> None:
    """Write `card.json`, `card.md` and `histogram.png` into `folder`.

    The dataset is best the one read back from `folder`, so that the card speaks of the file.
    """
    facts = card(dataset)
    write_json(folder / FACTS, facts)
    draw_histogram(dataset, folder / PICTURE)
    (folder / TEXT).write_text(card_text(facts))


def card_text(facts: Mapping[str, Any]) -> str:
    """The card as Markdown."""
    made, ends = facts["provenance"], facts["ends"]
    rows = [
        ("environment", f"{facts['env_id']}, time limit {facts['time_limit']} steps"),
        ("steps", f"{facts['steps']:,}"),
        ("episodes", f"{facts['episodes']:,}"),
        ("observation, action", f"{facts['obs_dim']} and {facts['act_dim']} numbers"),
        ("episode ends", f"{ends['terminated']:,} terminated, {ends['truncated']:,} truncated"),
        ("return", _spread(facts["returns"], 1)),
    ]
    if "scores" in facts:
        rows.append(("score", _spread(facts["scores"], 1)))
    rows += [
        ("length", _spread(facts["lengths"], 1)),
        ("action components at a bound", f"{100 * facts['actions']['saturated']:.1f} %"),
        ("SHA-256 of the columns", f"`{facts['fingerprint']}`"),
    ]
    lines = [f"# {facts['name']}", ""]
    if "rule" in made:
        lines += [f"{made['rule']}", ""]
    lines += ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows), ""]
    if "reference" in facts:
        r = facts["reference"]
        lines += [
            f"A score of 0 is a return of {r['min']:g} and 100 is {r['max']:g}. {r['source']}.",
            "",
        ]
    lines += [f"![Episodes by return]({PICTURE})", "", "## How it was made", ""]
    for key, value in made.items():
        if key not in ("rule", "evaluations", "description"):
            lines.append(f"- {key.replace('_', ' ')}: {_said(value)}")
    if made.get("evaluations"):
        lines += ["", "| steps of training | mean return of the evaluation |", "|---:|---:|"]
        lines += [f"| {steps:,} | {value:.1f} |" for steps, value in made["evaluations"]]
    if facts["problems"]:
        lines += ["", "## Known problems", "", *(f"- {p}" for p in facts["problems"])]
    return "\n".join(lines) + "\n"


def _spread(values: Mapping[str, float], digits: int) -> str:
    shown = {k: f"{values[k]:,.{digits}f}" for k in ("mean", "std", "min", "median", "max")}
    return (
        f"{shown['mean']} mean (std {shown['std']}), {shown['min']} to {shown['max']}, "
        f"median {shown['median']}"
    )


def _said(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{k} {_said(v)}" for k, v in value.items())
    if isinstance(value, list):
        return ", ".join(_said(v) for v in value) or "none"
    return str(value)
