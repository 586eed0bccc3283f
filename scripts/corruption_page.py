"""The page of corrupted data and its pictures, from finished cells."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from corruption_cells import CLEAN, ROWS, Score, Trained, Way, clean_score, read_trained, score_of

from offrl.agents import AGENTS
from offrl.datasets.corruption import ELEMENTS

COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377")
COMPARED = (("riql", "iql"), ("riql-clean", "iql"))  # the first less the second
PLACES = (CLEAN, *ELEMENTS)  # columns

INTRODUCTION = """\
# Corrupted data

Normalised score, 100 (return - min) / (max - min) with D4RL's references, of the last policies on
20 starts of the clean environment, common to all; mean over n seeds with its 95 % interval
(Student's t over seeds). Each seed has masks, noise and a training of its own, and all rows have
the same masks and noise for a seed. Differences are paired by seed. The clean score is one that was
trained in the same way, for as long, with the row's settings for clean data. The share of it that
is kept is left out where the clean score's interval is not above 0.

A row is an agent with settings, which stand below each table. `riql` has its paper's sigma,
quantile and number of critics for each mode, element and environment, which were tuned there;
`riql-clean` has RIQL's settings for clean data, whatever was corrupted. `iql` has raw rewards, as
in RIQL's protocol: its own recipe scales them by the returns of the data, which corruption changes,
and the temperature with them. That protocol's IQL has a deterministic policy; here it is IQL's
Gaussian, whose mean is played. The protocol is that of RIQL (`offrl data corrupt --help`). Of
bfloat16 products a processor may round the factors; one without AMX rounds none. Made by `python
scripts/corruption.py`; each cell's `cell.json` has its command, commit, machine, every return, and
how the data was corrupted."""


@dataclass(frozen=True)
class Line:
    """A row of a table: its scores by place, all trained in one way."""

    way: Way
    scores: Mapping[str, Score]  # by place
    left_out: tuple[str, ...]  # what is not in them, and why


def draw(page: Path, results: Path) -> None:
    """Write README.md and a picture for each dataset and condition into `page`."""
    page.mkdir(parents=True, exist_ok=True)
    text = [INTRODUCTION]
    for folder in sorted(p for p in page.iterdir() if p.is_dir()):
        for condition in sorted(p for p in folder.iterdir() if p.is_dir() and p.name != CLEAN):
            found = {n: {e: read_trained(condition / e / n) for e in ELEMENTS} for n in ROWS}
            found = {name: cells for name, cells in found.items() if any(cells.values())}
            if found:
                title = f"{folder.name}, {condition.name}"
                homes = (folder / CLEAN, results / folder.name)
                lines = {name: line(name, cells, homes) for name, cells in found.items()}
                text += ["", f"## {title}", *section(lines, corruptions(found))]
                if shown := {name: x for name, x in lines.items() if x.scores}:
                    picture = f"{folder.name}-{condition.name}.png"
                    draw_bars(shown, page / picture, title)
                    text += ["", f"![scores by element]({picture})"]
        discussion = folder / "discussion.md"
        if discussion.exists():
            text += ["", discussion.read_text().strip()]
    (page / "README.md").write_text("\n".join(text) + "\n")


def line(name: str, cells: Mapping[str, list[Trained]], homes: tuple[Path, Path]) -> Line:
    """A row's scores, of the seeds with its settings that were trained as most of them were."""
    row, scores, left_out = ROWS[name], {}, []
    ways = Counter(one.way for cell in cells.values() for one in cell if one.fits(row))
    way = max(ways, key=lambda way: (ways[way], way), default=())
    for element, cell in cells.items():
        kept = []
        for one in cell:
            if one.fits(row) and one.way == way:
                kept.append(one)
            else:
                why = in_words(one.way) if one.fits(row) else "settings that are not the row's"
                left_out.append(f"`{name}` on {element}, seed {one.seed}: {why}")
        if found := score_of(kept):
            scores[element] = found
    seeds = {seed for score in scores.values() for seed in score.values}
    own, shared = homes
    if scores and (clean := clean_score((own / row.home, shared / row.agent), row, way, seeds)):
        scores[CLEAN] = clean
    return Line(way, scores, tuple(left_out))


def in_words(way: Way) -> str:
    """How a run was trained."""
    steps, batch_size, backend, precision, matmul = way
    return (
        f"{steps:,} updates of batches of {batch_size}, {backend}, {precision}, {matmul} products"
    )


def corruptions(found: Mapping[str, Mapping[str, list[Trained]]]) -> list[str]:
    """What was done to the data of these cells, in words: one sentence, or as many as differ."""
    records = [
        one.corruption
        for cells in found.values()
        for cell in cells.values()
        for one in cell
        if one.corruption
    ]
    said = {
        f"Corrupted: {one['mode']}, each of the transitions with probability {one['rate']:g}, "
        f"scale {one['scale']:g}; seeds of masks and noise are those of the training."
        for one in records
    }
    attackers = {
        f"Attacker: {a['agent']} with {a['critics']} critics, {a['steps']:,} updates on the clean "
        f"data, seed {a['seed']}, weights {a['weights'][:12]}."
        for a in (one["attacker"] for one in records)
        if a
    }
    return [*sorted(said), *sorted(attackers)]


def section(lines: Mapping[str, Line], corrupted: Iterable[str]) -> list[str]:
    """The tables of a dataset under one condition."""
    text, shown = ["", " ".join(corrupted)], {n: x for n, x in lines.items() if x.scores}
    if shown:
        trained = grouped({name: in_words(x.way) for name, x in shown.items()})
        text += ["", f"Trained for {trained}.", ""]
        text += table("score", PLACES, {f"`{n}`": x.scores for n, x in shown.items()})
        text += ["", *table("corrupted - clean", ELEMENTS, falls(shown))]
        if found := comparisons(shown):
            text += ["", *table("difference", PLACES, found)]
        text += ["", "Settings, of those that the row or a recipe of its agent states:", ""]
        text += [f"- `{name}`: {settings(name, x.scores)}." for name, x in shown.items()]
    left_out = [note for x in lines.values() for note in x.left_out]
    return [*text, "", f"Left out: {'; '.join(left_out)}."] if left_out else text


def table(head: str, places: Sequence[str], rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Rows by place; what is not known is left blank."""
    text = [f"| {head} | {' | '.join(places)} |", f"|---|{'--:|' * len(places)}"]
    for name, cells in rows.items():
        text.append(f"| {name} | {' | '.join(f'{cells.get(p, str())}' for p in places)} |")
    return text


def grouped(said: Mapping[str, str]) -> str:
    """What is said of each, once; and of whom, where it is not of all."""
    groups: dict[str, list[str]] = {}
    for name, text in said.items():
        groups.setdefault(text, []).append(name)
    if len(groups) == 1:
        return next(iter(groups))
    return "; ".join(f"{', '.join(names)}: {text}" for text, names in groups.items())


def falls(lines: Mapping[str, Line]) -> dict[str, dict[str, str]]:
    """Of rows and elements, the difference to the clean score, and the share of it that is kept."""
    found: dict[str, dict[str, str]] = {}
    for name, x in lines.items():
        clean = x.scores.get(CLEAN)
        for element in ELEMENTS:
            score = x.scores.get(element)
            fall = score.minus(clean) if score and clean else None
            if score and clean and fall:
                sure = clean.interval is not None and clean.interval.low > 0
                share = 100 * score.mean / clean.of(fall.values).mean if sure else None
                kept = "" if share is None else f", {share:.0f} % kept"
                found.setdefault(f"`{name}`", {})[element] = f"{fall:+}{kept}"
    return found


def comparisons(lines: Mapping[str, Line]) -> dict[str, dict[str, str]]:
    """Differences between rows trained in the same way, and how much more than on clean data."""
    found: dict[str, dict[str, str]] = {}
    for first, second in COMPARED:
        if first not in lines or second not in lines or lines[first].way != lines[second].way:
            continue
        a, b = lines[first].scores, lines[second].scores
        gaps = {p: gap for p in PLACES if p in a and p in b and (gap := a[p].minus(b[p]))}
        name = f"`{first}` - `{second}`"
        found[name] = {place: f"{gap:+}" for place, gap in gaps.items()}
        if clean := gaps.pop(CLEAN, None):
            found[f"{name}, less that on clean data"] = {
                place: f"{more:+}" for place, gap in gaps.items() if (more := gap.minus(clean))
            }
    return found


def settings(name: str, scores: Mapping[str, Score]) -> str:
    """What the row has in each place, of what it or any recipe of its agent states."""
    (cls, defaults), own = AGENTS[ROWS[name].agent], ROWS[name].settings
    stated = {key for values in (own, *cls.recipes.values()) for key in values}
    keys = [key for key in asdict(defaults) if key in stated]
    said = {
        place: ", ".join(f"{key} {scores[place].config[key]}" for key in keys)
        for place in PLACES
        if place in scores
    }
    return grouped(said) or "as they are by default"


def draw_bars(lines: Mapping[str, Line], path: Path, title: str) -> None:
    """Bars by element and row, with intervals; a line where the row's clean score is."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.0, 3.6), dpi=150, layout="constrained")
    axes = figure.subplots()
    width = 0.8 / len(lines)
    for k, (name, x) in enumerate(lines.items()):
        colour, clean = COLOURS[k % len(COLOURS)], x.scores.get(CLEAN)
        label: str | None = name
        for i, element in enumerate(ELEMENTS):
            if element not in x.scores:
                continue
            score, place = x.scores[element], i - 0.4 + (k + 0.5) * width
            half = 0.0 if score.interval is None else score.interval.high - score.mean
            axes.bar(
                place, score.mean, 0.9 * width, yerr=half, color=colour, label=label, capsize=2
            )
            label = None
            if clean is not None:
                ends = (place - width / 2, place + width / 2)
                axes.plot(ends, (clean.mean, clean.mean), color="black", linewidth=1.2)
    axes.set_xticks(range(len(ELEMENTS)), ELEMENTS)
    axes.set_xlim(-0.5, len(ELEMENTS) - 0.5)
    axes.set_ylabel("score")
    axes.set_title(f"{title} (line: on clean data)", fontsize=9)
    axes.legend(fontsize=8, frameon=False)
    partial = path.with_name(f".{path.name}.partial")
    figure.savefig(partial, format="png")
    partial.replace(path)
