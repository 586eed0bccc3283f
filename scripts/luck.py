"""What was luck cannot be asked for: Dichotomy of Control beside return conditioning, one command.

    python scripts/luck.py                              # missing cells, then the page
    python scripts/luck.py --envs offrl/LuckyBandit-v0 offrl/LuckierBandit-v0
    python scripts/luck.py --draw                       # the page of the cells that exist

Data are episodes of each task's behaviour policy, as `offrl data collect --policy scripted` makes
them, collected once. DoC has its recipe for the task; Decision Transformer asks for the best return
of the data. Both are then asked for returns from the least to the best that the task or the data
know, and what they earn is drawn against what they were asked for. Finished cells are skipped and
unfinished ones resumed, as by scripts/results.py.
"""

import argparse
import re
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cells import FINAL_SEED, RESULTS, WORK, add_training_arguments, run_cell, training_settings

import offrl
from offrl.datasets.collection import Request, collect
from offrl.datasets.loading import load_dataset
from offrl.datasets.offline import OfflineDataset
from offrl.envs import make
from offrl.evaluation import evaluate, start_seed
from offrl.files import read_json
from offrl.latent_policy import LatentPolicy
from offrl.plans import plan
from offrl.policy import load_policy
from offrl.statistics import crossed_interval

PAGE = RESULTS / "luck"
AGENTS = {"dt": "Decision Transformer", "doc": "Dichotomy of Control"}
# Of each task: episodes of data, updates, starts of the final evaluation, and what is known.
TASKS: Mapping[str, tuple[int, int, int, str]] = {
    "offrl/LuckyBandit-v0": (1000, 1000, 1000, "the best is 0.9; asking for 1 gives 0.5"),
    "offrl/LuckierBandit-v0": (1000, 1000, 1000, "the best is 0.7; asking for 1 gives 0.5"),
    "offrl/SlipperyLake-v0": (300, 1500, 200, "the best is 1.00; the short way gives 0.22"),
    "offrl/FirmLake-v0": (300, 1500, 200, "without luck: the best is 1, by either way"),
    "offrl/NoisyReacher-v0": (300, 1500, 100, "heading for the target, as the script does: -9.4"),
    "offrl/StillReacher-v0": (300, 1500, 100, "without luck; the script's best: -5.4"),
}
# Decision Transformer in the size of DoC's small form.
DT: Mapping[str, Any] = {
    **{"context": 8, "layers": 1, "heads": 1, "width": 32, "max_steps": 100, "return_scale": 1.0},
    **{"lr": 1e-3, "warmup": 100, "weight_decay": 0.0, "grad_norm": 1.0, "normalize_obs": False},
    **{"batch_size": 64},
}
# On Reacher it needs more updates than DoC, and does better without its own past actions in sight,
# which it would go on with: with a context of 8 it earns less, and pays no heed to the return.
OWN: Mapping[str, Mapping[str, Any]] = {
    "Reacher": {"return_scale": 10.0, "normalize_obs": True, "context": 1, "steps": 3_000}
}
POINTS = 7  # returns that are asked for
COLOURS = {"dt": "#d55e00", "doc": "#0072b2"}  # told apart by all eyes


def folder_name(env: str) -> str:
    """What a task's results are kept under."""
    return re.sub(r"[^\w.]+", "-", env)


def data_of(env: str, episodes: int) -> OfflineDataset:
    """Episodes of the task's behaviour, collected once and kept."""
    path = WORK / "luck" / f"{folder_name(env)}-{episodes}"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        collect(Request(env, path, "scripted", episodes=episodes))
    return load_dataset(path)


def settings_of(agent: str, env: str) -> dict[str, Any]:
    """What the agent's recipe does not state."""
    if agent != "dt":
        return {}
    own = next((changes for name, changes in OWN.items() if name in env), {})
    return {**DT, **own}


def consistency(path: Path, env: str, asked: Sequence[float], episodes: int) -> dict[str, Any]:
    """What a run's policy earns when it is asked for each of these returns.

    Of a policy with latents also the value of what it chose at the starts: what it promised.
    """
    policy = load_policy(path)
    got = [
        evaluate(policy, env, episodes, FINAL_SEED, target_return=float(target)).mean
        for target in asked
    ]
    found: dict[str, Any] = {"asked": list(map(float, asked)), "got": got}
    if isinstance(policy, LatentPolicy):
        made = make(env)
        seeds = [start_seed(FINAL_SEED, i) for i in range(episodes)]
        obs = np.stack([made.reset(seed=seed)[0] for seed in seeds]).astype(np.float32)
        made.close()
        states = [policy.act(obs, policy.start(episodes, target_return=t))[1] for t in asked]
        found["promised"] = [float(state.promised.mean()) for state in states]
    return {"consistency": found}


def asked_returns(data: OfflineDataset) -> list[float]:
    """Returns from the least to the best of the data."""
    returns = data.returns()
    found: list[float] = np.linspace(returns.min(), returns.max(), POINTS).round(4).tolist()
    return found


def section(env: str) -> list[str]:
    """A task's part of the page."""
    folder = PAGE / folder_name(env)
    cells = {a: folder / a for a in AGENTS if (folder / a / "cell.json").exists()}
    if not cells:
        return []
    stored = {agent: read_json(path / "cell.json") for agent, path in cells.items()}
    first = next(iter(cells.values()))
    config = read_json(first / "seed-0" / "config.json")
    data = config["dataset"]
    lines = [
        "",
        f"## {env.removeprefix('offrl/')}",
        "",
        f"{data['episodes']} episodes of the behaviour, mean return "
        f"{data['behaviour_return_mean']:.2f}, best {data['behaviour_return_max']:.2f}. Known: "
        f"{TASKS[env][3]}.",
        "",
        "| agent | return | 95 % interval | of each seed | starts | updates |",
        "|---|--:|--:|---|--:|--:|",
    ]
    for agent, cell in stored.items():
        finals = [seed["final"]["mean"] for seed in cell["seeds"]]
        steps = read_json(cells[agent] / "seed-0" / "config.json")["train"]["steps"]
        found = crossed_interval([seed["final"]["returns"] for seed in cell["seeds"]])
        interval = "" if found is None else f"{found.low:.2f} to {found.high:.2f}"
        each = ", ".join(f"{value:.2f}" for value in finals)
        count = cell["seeds"][0]["final"]["episodes"]
        lines.append(
            f"| `{agent}` | {np.mean(finals):.2f} | {interval} | {each} | {count} | {steps:,} |"
        )
    if stored.keys() == AGENTS.keys():
        dt, doc = (
            np.array([seed["final"]["returns"] for seed in stored[agent]["seeds"]])
            for agent in AGENTS
        )
        if dt.shape == doc.shape and (between := crossed_interval(doc - dt)):
            lines += [
                "",
                f"`doc` less `dt`, start by start: {(doc - dt).mean():.2f} "
                f"({between.low:.2f} to {between.high:.2f}).",
            ]
    return lines


def various(folder: Path) -> bool:
    """Whether a task has cells, and its data more than one return to ask for."""
    cells = [read_json(path) for path in folder.glob("*/cell.json")]
    asked = [cell["seeds"][0]["consistency"]["asked"] for cell in cells]
    return any(min(returns) < max(returns) for returns in asked)


def draw_consistency(page: Path) -> bool:
    """The curves of all tasks that have some, in consistency.png; whether any has."""
    from matplotlib.figure import Figure

    shown = [env for env in TASKS if various(page / folder_name(env))]
    if not shown:
        return False
    columns = min(len(shown), 3)
    rows = -(-len(shown) // columns)
    figure = Figure(figsize=(4.0 * columns, 3.8 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for panel in axes[len(shown) :]:
        panel.set_axis_off()
    for panel, env in zip(axes, shown, strict=False):
        spans = []
        for agent, name in AGENTS.items():
            path = page / folder_name(env) / agent / "cell.json"
            if not path.exists():
                continue
            curves = [seed["consistency"] for seed in read_json(path)["seeds"]]
            asked = np.array(curves[0]["asked"])
            got = np.array([curve["got"] for curve in curves])
            panel.fill_between(
                asked, got.min(0), got.max(0), color=COLOURS[agent], alpha=0.15, lw=0
            )
            panel.plot(asked, got.mean(0), "-o", ms=4, color=COLOURS[agent], label=name)
            if "promised" in curves[0]:
                promised = np.array([curve["promised"] for curve in curves])
                panel.plot(
                    promised.ravel(),
                    got.ravel(),
                    "x",
                    ms=5,
                    color="black",
                    label="DoC, what it promised",
                )
            spans += [asked.min(), asked.max()]
        ends = [min(spans), max(spans)]
        panel.plot(ends, ends, ":", color="grey", lw=1, label="what was asked for")
        panel.set_title(env.removeprefix("offrl/"), fontsize=10)
        panel.set_xlabel("return asked for")
        panel.set_ylabel("return earned")
        panel.grid(alpha=0.25)
    axes[0].legend(fontsize=7, loc="upper left")
    figure.savefig(page / "consistency.png", dpi=110)
    return True


def draw(page: Path) -> None:
    """Write README.md and the picture into `page`."""
    text = [INTRODUCTION]
    if draw_consistency(page):
        text += ["", CURVES, "", "![asked for and earned](consistency.png)"]
    for env in TASKS:
        text += section(env)
    discussion = page / "discussion.md"
    if discussion.exists():
        text += ["", discussion.read_text().strip()]
    (page / "README.md").write_text("\n".join(text) + "\n")


INTRODUCTION = """\
# Luck

Returns of Decision Transformer, which asks for the best return of the data, and of Dichotomy of
Control, which chooses the latent of the greatest value, on tasks in which a return may be luck and
on the same without it. Mean over seeds and over starts common to all, with a 95 % interval that
covers both (`offrl.statistics.crossed_interval`), since a start here decides what is luck; that
all seeds learned from one recording of the task is not in it. Made by `python scripts/luck.py`;
each cell's `cell.json` has its command, commit, machine and every return."""

CURVES = """\
Asked for a return on the horizontal axis, the policies earned the one on the vertical axis: mean
over seeds, and in pale the range of the seeds. DoC takes the latent whose value is nearest to what
it is asked for; a cross puts what it earned over that value, which is what it promised."""


def main() -> int:
    """Run missing cells, then draw."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--envs", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--agents", nargs="+", default=list(AGENTS), choices=list(AGENTS))
    parser.add_argument("--episodes", type=int, help="of the behaviour, instead of the task's")
    parser.add_argument("--starts", type=int, help="of evaluations, instead of the task's")
    add_training_arguments(parser)
    parser.set_defaults(seeds=4, steps=0, backend="eager", matmul="float32")
    options = parser.parse_args()
    torch.set_num_threads(1)
    PAGE.mkdir(parents=True, exist_ok=True)
    for env in [] if options.draw else options.envs:
        episodes, steps, starts, _ = TASKS[env]
        data = data_of(env, options.episodes or episodes)
        starts, steps = options.starts or starts, options.steps or steps
        settings = {**training_settings(options), "steps": steps, "eval_every": steps}
        asked = asked_returns(data)
        for agent in options.agents:
            run_cell(
                plan(agent, data, settings={**settings, **settings_of(agent, env)}),
                f"luck/{folder_name(env)}/{agent}",
                starts,
                partial(consistency, env=env, asked=asked, episodes=max(starts // 5, 1)),
            )
    draw(PAGE)
    return 0


if __name__ == "__main__":
    print(f"offrl {offrl.__version__}, torch {torch.__version__}")
    sys.exit(main())
