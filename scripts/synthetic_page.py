"""The page of synthetic data and its pictures, from finished cells and measurements."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from results_page import read_cell

from offrl.curves import learners, read_curve
from offrl.files import read_json
from offrl.plotting import COLOURS, PAPER, SCORE
from offrl.plotting import draw as draw_curves

if TYPE_CHECKING:
    from matplotlib.axes import Axes

HORIZONS = (1, 4, 16, 31)
SENSES = {
    "step": "error of step h alone",
    "since": "error of the h steps since the start",
}


def draw(page: Path, kinds: Sequence[str], agents: Sequence[str]) -> None:
    """Write README.md and the pictures into `page`."""
    page.mkdir(parents=True, exist_ok=True)
    text = [INTRODUCTION]
    for folder in sorted(p for p in page.iterdir() if (p / "data.json").exists()):
        facts = read_json(folder / "data.json")
        text += ["", f"## {folder.name}", "", *made_by(facts)]
        cells = {
            (agent, kind): folder / kind / agent
            for agent in agents
            for kind in kinds
            if (folder / kind / agent / "cell.json").exists()
        }
        if cells:
            text += ["", *scores(cells)]
            curves = f"{folder.name}-scores.png"
            draw_scores(cells, page / curves)
            text += ["", f"![learning curves]({curves})"]
        errors = f"{folder.name}-errors.png"
        draw_errors(facts, page / errors)
        text += ["", *transitions(facts), "", *horizons(facts), "", f"![errors]({errors})"]
        discussion = folder / "discussion.md"
        if discussion.exists():
            text += ["", discussion.read_text().strip()]
    (page / "README.md").write_text("\n".join(text) + "\n")


INTRODUCTION = """\
# Synthetic data

TD3+BC and IQL on the logged data, on trajectories that a diffusion model of that data made up
without guidance, on such guided towards a policy (policy-guided diffusion, arXiv:2404.06356), and
on guided and logged data together (`both`). As in that paper synthetic data stands in place of the
real; its code puts 16 logged transitions into each batch of 256, `both` puts about half.
The target policy is that of the agent's first seed on the logged data, and data is made once
towards its last state; the paper's is made anew every 10,000 updates, towards the policy that is
being trained. All cells of an agent are trained for equally many updates, with rewards scaled by
the returns of the logged episodes. Scores are of the last policies on 20 starts common to all;
mean over seeds with its 95 % interval (Student's t over seeds), which knows nothing of the spread
over generators: there is one. Made by `python scripts/synthetic.py`; each cell's `cell.json` has
its command, commit, machine and every return."""

ERRORS = """\
Errors of transitions against the simulator, set into the state before each: root mean square over
the components of the next observation, in standard deviations of its one-step differences in the
logged data, and of the reward, in standard deviations of the reward. `model` is an ensemble that
learned single steps from the logged data, asked at the same states and actions; `nothing moves` is
the error of the state before. Left out are steps from states that an observation does not
determine (a velocity of 9.5 or more, where Hopper's and Walker2d's are cut at 10). Log density is
the mean of the data's actions under each agent's target policy (for TD3+BC of a Gaussian of
deviation 1 around its action, up to a constant)."""

CURVES = """\
Median error after h steps since the start of a trajectory: between its state and the one to which
the simulator comes from its first state under its actions. The model is unrolled from the same
first states under the same actions, each step from where the one before led it (means of its
elites). `of step h` is the error of step h alone, the simulator set into the state before it, which
for the model is its own."""


def made_by(facts: Mapping[str, Any]) -> list[str]:
    """How the synthetic data was made."""
    made, model = facts["generator"], facts["model"]
    config, elites = made["generator"], sorted(model["error"])[: model["elites"]]
    return [
        f"The generator: a U-Net of {config['channels']} channels, {config['steps']:,} updates on "
        f"pieces of {config['length']} rows; {made['trajectories']:,} trajectories in each set, by "
        f"{made['sampler']['steps']} steps of the sampler. Guidance of weight "
        f"{facts['weight']:g}. The one-step model: {model['members']} members, of which "
        f"{model['elites']} predict, squared error on held-out transitions "
        f"{np.mean(elites):.3g}."
    ]


def scores(cells: Mapping[tuple[str, str], Path]) -> list[str]:
    """The table of what agents earn."""
    found = {key: read_cell(path) for key, path in cells.items()}
    lasting = any(cell.last is not None for cell in found.values())  # ten evaluations or more
    lines = [
        f"| agent | data | final score | 95 % interval |{' mean of last 10 |' * lasting} best | "
        "seeds | updates |",
        f"|---|---|--:|--:|{'--:|' * lasting}--:|--:|--:|",
    ]
    for (agent, kind), cell in found.items():
        interval = "" if cell.interval is None else "{:.1f} to {:.1f}".format(*cell.interval)
        mean_of_last = f" {cell.mean_of_last} |" if lasting else ""
        lines.append(
            f"| `{agent}` | {kind} | {cell.score:.1f} | {interval} |{mean_of_last} "
            f"{cell.best:.1f} | {cell.seeds} | {cell.config['train']['steps']:,} |"
        )
    return lines


def transitions(facts: Mapping[str, Any]) -> list[str]:
    """The table of single transitions."""
    agents = list(next(iter(facts["sets"].values()))["likelihood"])
    densities = " | ".join(f"log density, `{agent}`" for agent in agents)
    lines = [
        ERRORS,
        "",
        "| data | error: median | mean | model: median | mean | nothing moves | reward: median "
        f"| model: median | mean reward | ends | left out | {densities} |",
        "|---|" + "--:|" * (10 + len(agents)),
    ]
    for name, s in facts["sets"].items():
        columns = [s["data"], s["model"]]
        errors = [number(part[key]) for part in columns for key in ("median", "mean")]
        errors += [number(s[part]["median"]) for part in ("still", "reward", "model_reward")]
        shares = [f"{s['reward_mean']:.2f}", f"{100 * s['ends']:.2f} %"]
        shares += [f"{100 * s['left_out']:.0f} %"]
        density = [f"{s['likelihood'][agent]:.2f}" for agent in agents]
        lines.append(f"| {' | '.join([name, *errors, *shares, *density])} |")
    return lines


def horizons(facts: Mapping[str, Any]) -> list[str]:
    """The table of errors by the step of a trajectory."""
    last = len(next(iter(facts["sets"].values()))["along"]["data"]["step"])
    shown = [h for h in HORIZONS if h <= last]
    heads = " | ".join([*(f"h = {h}" for h in shown), *(f"of step {h}" for h in shown)])
    lines = [
        CURVES,
        "",
        f"| start and actions of | states of | trajectories | {heads} |",
        "|---|---|--:|" + "--:|" * (2 * len(shown)),
    ]
    for name, s in facts["sets"].items():
        for who, label in (("data", "the data"), ("model", "the model")):
            curve = s["along"][who]
            values = [number(curve[sense][h - 1]) for sense in ("since", "step") for h in shown]
            lines.append(
                f"| {name} | {label} | {s['along']['trajectories']} | {' | '.join(values)} |"
            )
    return lines


def number(value: float | None) -> str:
    """Three digits; nothing for what was not known."""
    return "" if value is None else f"{value:.3f}" if value >= 1e-3 else f"{value:.0e}"


def draw_scores(cells: Mapping[tuple[str, str], Path], out: Path) -> None:
    """Learning curves, a panel for each agent and a line for each kind of data."""
    curves = []
    for (agent, kind), path in cells.items():
        for curve in (read_curve(run, SCORE) for run in learners(path)):
            # The return of a synthetic piece of some rows is not that of an episode.
            behaviour = curve.behaviour if kind == "logged" else None
            shown = replace(curve, dataset=agent, agent=kind, behaviour=behaviour)
            curves.append(replace(shown, settings={}, origin={}))
    draw_curves(curves, SCORE).savefig(out, dpi=150)


def draw_errors(facts: Mapping[str, Any], out: Path) -> None:
    """Errors by horizon, a panel for each sense; dashed lines are the one-step model."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(PAPER):
        figure = Figure(figsize=(7.2, 3.4), layout="constrained")
        panels = figure.subplots(1, 2, sharey=True)
        for axes, (sense, title) in zip(panels, SENSES.items(), strict=True):
            for colour, (name, s) in zip(COLOURS, facts["sets"].items(), strict=False):
                for who, style in (("data", "-"), ("model", "--")):
                    if (name, who) == ("logged", "data"):
                        continue  # what the simulator did: its error is that of its numbers
                    label = name if who == "data" else f"{name}: one-step model"
                    line(axes, s["along"][who][sense], colour, style, label)
            axes.set_yscale("log")
            axes.set_title(title)
            axes.set_xlabel("h")
            axes.axhline(1.0, color="0.6", lw=0.8, ls=":")
        panels[0].set_ylabel("median error, deviations of a step")
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)
        figure.savefig(out, dpi=150)


def line(axes: "Axes", values: Sequence[float | None], colour: str, style: str, label: str) -> None:
    """A curve over h = 1, 2, ..., with gaps where nothing was known."""
    drawn = [np.nan if v is None else v for v in values]
    axes.plot(range(1, len(drawn) + 1), drawn, style, color=colour, lw=1.2, label=label)
