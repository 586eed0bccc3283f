"""Learning curves of runs, drawn for a paper: a panel per dataset, a line per agent.

What a line and its band are, `offrl.curves` says; a single seed has a line alone. Where there are
more lines than colours, panels are larger and each line has its name at its end.
"""

import os
import textwrap
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from offrl.curves import (
    BOOTSTRAP_SEEDS,
    Line,
    RunCurve,
    has_metric,
    learners,
    lines,
    read_curve,
)
from offrl.errors import ConfigError, RunError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

RETURN, SCORE = "eval/return", "eval/score"
SUFFIXES = (".png", ".pdf", ".svg")
SHORT = 0.9  # share of the longest line's steps up to which one ends early

# Okabe and Ito's colours, told apart with every common kind of colour blindness; no yellow,
# which is too faint for a line. Line styles tell the curves apart without any colour.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
STYLES = ("-", (0, (5, 1.5)), (0, (1, 1)), (0, (5, 1, 1, 1)), (0, (3, 1, 1, 1, 1, 1)))
PAPER: Any = {
    "font.size": 9,
    "axes.labelsize": 9,
    "axes.titlesize": 9,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "pdf.fonttype": 42,  # publishers refuse Type 3 fonts
    "svg.fonttype": "none",
    "svg.hashsalt": "offrl",  # the same picture is the same file
}
PANEL = (3.3, 2.3)  # inches; one fits a column of a two-column page
CROWDED_PANEL = (6.6, 4.0)  # for more lines than COLOURS; the width of a page
COLUMNS = 3
NOTE_WIDTH = 16  # characters of the legend's title that fit an inch
MARGINS = 0.9  # inches of a panel's height that are title, ticks and label
LEGEND_ROWS, LEGEND_ROW = 2, 0.17  # that fit below the panels; inches for each further one
ENTRY, CHARACTER = 0.5, 0.062  # inches of the legend: an entry without its name; a character of it
NAME_HEIGHT = 0.14  # inches between the names at the lines' ends


def plot(
    runs: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    metric: str | None = None,
    *,
    log_steps: bool = False,
    force: bool = False,
) -> Path:
    """Draw the learning curves of `runs` into `out`, a .png, .pdf or .svg; returns its path.

    A run is the directory of one learner or of several. `metric` is a name of metrics.csv; by
    default the normalised score where every run has one, the return otherwise. `log_steps` makes
    the axis of steps logarithmic, for runs of very different lengths; step 0 is not on it. Raises
    RunError where a run has no such metric, or `out` exists and not `force`.
    """
    target = Path(out)
    if target.suffix not in SUFFIXES:
        raise ConfigError(f"{target}: a picture's name must end in {', '.join(SUFFIXES)}")
    if target.exists() and not force:
        raise RunError(f"{target} exists already; choose another name, or --force to replace it")
    folders = [folder for run in runs for folder in learners(Path(run))]
    if metric is None:
        metric = SCORE if all(has_metric(folder, SCORE) for folder in folders) else RETURN
    figure = draw([read_curve(folder, metric) for folder in folders], metric, log_steps)
    _write(figure, target)
    return target


def draw(curves: Sequence[RunCurve], metric: str, log_steps: bool = False) -> "Figure":
    """The figure of these curves, a panel per dataset in the order of their first run."""
    import matplotlib
    from matplotlib.figure import Figure

    if not curves:
        raise RunError("there is no run to draw")
    panels: dict[str, list[RunCurve]] = {}
    for curve in curves:
        panels.setdefault(curve.dataset, []).append(curve)
    by_panel = {name: lines(group) for name, group in panels.items()}
    labels = list(dict.fromkeys(line.label for group in by_panel.values() for line in group))

    crowded = len(labels) > len(COLOURS)
    panel = CROWDED_PANEL if crowded else PANEL
    columns = min(1 if crowded else COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    with matplotlib.rc_context(PAPER):
        size = (panel[0] * columns, panel[1] * rows + 0.5)
        figure = Figure(figsize=size, layout="constrained")
        grid = figure.subplots(rows, columns, squeeze=False)
        for axes in grid.flat[len(panels) :]:
            axes.set_visible(False)
        for i, (axes, name) in enumerate(zip(grid.flat, panels, strict=False)):
            _panel(axes, by_panel[name], labels)
            _steps(axes, by_panel[name], log_steps)
            _behaviour(axes, panels[name], metric)
            if crowded:
                _names(axes, by_panel[name], labels, panel[1])
            axes.set_title(name)
            if i % columns == 0:
                axes.set_ylabel(_axis_name(metric))
            if i + columns >= len(panels):
                axes.set_xlabel("gradient steps")
        handles = {
            label: handle
            for axes in grid.flat[: len(panels)]
            for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
            if not crowded or label not in labels
        }
        width = int((size[0] - ENTRY) / CHARACTER)
        entries = [textwrap.fill(label, width) for label in handles]
        legend_columns = _legend_columns(entries, 2 * columns + 1, size[0])
        further = -(-len(entries) // legend_columns) - LEGEND_ROWS
        figure.set_figheight(size[1] + LEGEND_ROW * max(further, 0))
        # Below the panels, where it can hide nothing.
        figure.legend(
            handles.values(),
            entries,
            loc="outside lower center",
            ncols=legend_columns,
            frameon=False,
            title=_note(by_panel, curves if metric == SCORE else [], panel[0] * columns),
            title_fontsize=7.5,
            handlelength=2.4,
            columnspacing=1.4,
        )
    return figure


def _legend_columns(entries: Sequence[str], most: int, inches: float) -> int:
    """As many as fit side by side, each as wide as its longest name."""
    lengths = [max(map(len, entry.split("\n"))) for entry in entries]
    for columns in range(min(most, len(entries)), 1, -1):
        longest = [max(part) for part in np.array_split(lengths, columns)]
        if sum(ENTRY + CHARACTER * length for length in longest) <= inches:
            return columns
    return 1


def _panel(axes: "Axes", group: Sequence[Line], labels: Sequence[str]) -> None:
    from matplotlib.ticker import MaxNLocator

    shade = 0.18 if len(labels) <= len(COLOURS) else 0.07
    for line in group:
        i = labels.index(line.label)
        colour = COLOURS[i % len(COLOURS)]
        marker = "o" if len(line.steps) == 1 else None
        if line.seeds > 1:
            axes.fill_between(
                line.steps, line.low, line.high, color=colour, alpha=shade, linewidth=0
            )
        axes.plot(
            line.steps,
            line.mean,
            color=colour,
            linestyle=STYLES[i % len(STYLES)],
            linewidth=1.3,
            marker=marker,
            markersize=3,
            label=line.label,
        )
    axes.yaxis.set_major_locator(MaxNLocator(5))


def _steps(axes: "Axes", group: Sequence[Line], log: bool) -> None:
    """The axis of steps, as far as the longest line."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    last = max(int(line.steps[-1]) for line in group)
    if log:
        first = min((int(s) for line in group for s in line.steps if s > 0), default=1)
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 3.0)))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlim(first / 1.1, max(last, first) * 1.05)
    else:
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.set_xlim(0, last * 1.02)
    axes.xaxis.set_major_formatter(FuncFormatter(_thousands))


def _behaviour(axes: "Axes", group: Sequence[RunCurve], metric: str) -> None:
    """Each data's own mean return, on the metric's scale, and an axis that shows zero."""
    if metric not in (RETURN, SCORE):
        return
    values = []
    for curve in group:
        value = curve.behaviour
        if value is not None and metric == SCORE:
            value = None if curve.reference is None else float(curve.reference.score(value))
        if value is not None:
            values.append(value)
    for value in dict.fromkeys(values):
        axes.axhline(value, color="0.35", linewidth=0.9, linestyle=(0, (2, 2)), label="data (mean)")
    low, high = axes.get_ylim()
    axes.set_ylim(min(low, 0.0), max(high, 0.0))


def _names(axes: "Axes", group: Sequence[Line], labels: Sequence[str], height: float) -> None:
    """The lines' names to the right of their ends, moved apart until none hides another."""
    low, high = axes.get_ylim()
    gap = (high - low) * NAME_HEIGHT / (height - MARGINS)
    ends = []
    for line in group:
        drawn = np.flatnonzero(np.isfinite(line.mean))[-1:]
        ends += [(float(line.mean[i]), int(line.steps[i]), line.label) for i in drawn]
    ends.sort()
    right = max((step for _, step, _ in ends), default=0)
    places = _within(_apart([e[0] for e in ends], gap), gap, low, high)
    for (value, step, name), place in zip(ends, places, strict=True):
        colour = COLOURS[labels.index(name) % len(COLOURS)]
        # Dots across the panel, so that the way to a name is not read as a line that goes on.
        style = "-" if step > SHORT * right else (0, (1, 6))
        axes.annotate(
            name,
            (step, value),
            (1.04, place),
            textcoords=axes.get_yaxis_transform(),
            annotation_clip=False,
            verticalalignment="center",
            color=colour,
            fontsize=8,
            arrowprops={
                **{"arrowstyle": "-", "color": colour, "linewidth": 0.5, "shrinkA": 0},
                "relpos": (0.0, 0.5),  # from where the name begins, or it crosses other names
                "linestyle": style,
            },
        )


def _apart(places: Sequence[float], gap: float) -> list[float]:
    """Ascending places, moved as little as it takes to be `gap` apart."""
    # Names that touch become one block, centred on the mean of where they would stand.
    blocks: list[list[float]] = []
    centres: list[float] = []
    for place in places:
        blocks.append([place])
        centres.append(place)
        while len(blocks) > 1:
            room = gap * (len(blocks[-1]) + len(blocks[-2])) / 2
            if centres[-1] - centres[-2] >= room:
                break
            blocks[-2:] = [blocks[-2] + blocks[-1]]
            centres[-2:] = [sum(blocks[-1]) / len(blocks[-1])]
    return [
        centre + gap * (i - (len(block) - 1) / 2)
        for centre, block in zip(centres, blocks, strict=True)
        for i in range(len(block))
    ]


def _within(places: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Ascending places that are `gap` apart, moved between two bounds; beyond `low` if it must."""
    raised = [max(place, low + i * gap) for i, place in enumerate(places)]
    last = len(raised) - 1
    return [min(place, high - (last - i) * gap) for i, place in enumerate(raised)]


def _axis_name(metric: str) -> str:
    known = {RETURN: "return", SCORE: "normalised score"}
    return known.get(metric, metric.replace("_", " "))


def _note(by_panel: Mapping[str, Sequence[Line]], scored: Sequence[RunCurve], inches: float) -> str:
    """What lines, bands and scores are, in words that fit the width."""
    counts = sorted({line.seeds for group in by_panel.values() for line in group})
    number = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    parts = [f"mean of {number} seeds" if counts[-1] > 1 else "one seed"]
    if any(1 < count < BOOTSTRAP_SEEDS for count in counts):
        parts.append("band: range of the seeds")
    if counts[-1] >= BOOTSTRAP_SEEDS:
        which = "band" if len(counts) == 1 else f"from {BOOTSTRAP_SEEDS} seeds on"
        parts.append(f"{which}: 95 % bootstrap interval")
    sources = sorted({c.reference.source for c in scored if c.reference is not None})
    parts += [f"score references: {source}" for source in sources]
    wrapped = textwrap.wrap("; ".join(parts), width=int(NOTE_WIDTH * inches))
    return "\n".join(wrapped)


def _thousands(value: float, _: object = None) -> str:
    if abs(value) >= 1e6:
        return f"{value / 1e6:g}M"
    return f"{value / 1e3:g}k" if abs(value) >= 1e3 else f"{value:g}"


def _write(figure: "Figure", target: Path) -> None:
    import matplotlib

    partial = target.with_name(f".{target.stem}.partial{target.suffix}")
    undated = {".pdf": {"CreationDate": None}, ".svg": {"Date": None}, ".png": {}}[target.suffix]
    try:
        with matplotlib.rc_context(PAPER):
            figure.savefig(partial, dpi=200, metadata=undated)
        os.replace(partial, target)
    except OSError as e:
        raise RunError(f"{target} cannot be written: {e}") from e
    finally:
        with suppress(OSError):  # which would hide the error that is under way
            partial.unlink()
