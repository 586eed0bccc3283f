"""Generative policies on a task with several ways: success, coverage of the ways, latency.

    python scripts/generative.py                        # missing cells, latencies, then the page
    python scripts/generative.py --envs offrl/MultiReachFour-v0
    python scripts/generative.py --skip-latency         # what there is of latencies stays
    python scripts/generative.py --draw                 # the page of the cells that exist

Demonstrations are those of the task's own demonstrator, as `offrl data collect --policy scripted`
makes them, collected once. All agents have the recipe of offrl's tasks, and so the same backbone,
chunks and optimiser. Finished cells are skipped and unfinished ones resumed, as by
scripts/results.py; latencies are measured anew (scripts/latency.py).
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
from latency import latency_lines, measure_latencies
from ways import draw_ways, way_of

import offrl
from offrl.agents import AGENTS
from offrl.datasets.collection import Request, collect
from offrl.datasets.loading import load_dataset
from offrl.datasets.offline import OfflineDataset
from offrl.envs.scripted import demonstrator
from offrl.envs.tasks import TASKS
from offrl.evaluation import evaluate
from offrl.files import read_json, write_json
from offrl.planners import planner_from_spec
from offrl.plans import plan
from offrl.policy import Policy, load_policy
from offrl.statistics import t_interval

ENVS = ("offrl/MultiReach-v0",)
COMPARED = ("chunk_bc", "diffusion_policy", "flow_bc", "consistency_bc")
EPISODES, PICTURED = 100, 40  # starts of the final evaluation, and those whose ways are drawn
# Of each agent: samplers and steps that its policies are tried with beside their own.
SAMPLERS: Mapping[str, Sequence[tuple[str, int]]] = {
    "diffusion_policy": [("ddpm", 100), ("ddim", 16), ("ddim", 8), ("dpm2", 8), ("ddim", 4)],
    "flow_bc": [("euler", 10), ("midpoint", 4), ("euler", 4), ("euler", 2), ("euler", 1)],
    "consistency_bc": [("consistency", 4), ("consistency", 2), ("consistency", 1)],
}
PAGE = RESULTS / "generative"
LATENCIES = "latency.json"  # of the page's folder


def demonstrations(env: str, episodes: int) -> OfflineDataset:
    """Episodes of the environment's demonstrator, collected once and kept."""
    path = WORK / "demonstrations" / f"{folder_name(env)}-{episodes}"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        collect(Request(env, path, "scripted", episodes=episodes))
    return load_dataset(path)


def folder_name(env: str) -> str:
    """What an environment's results are kept under."""
    return re.sub(r"[^\w.]+", "-", env)


def resampled(path: Path, sampler: str, steps: int) -> Policy:
    """The policy of a run with another sampler."""
    spec = load_policy(path).actor.spec()
    generation = {**spec["generation"], "sampler": sampler, "steps": steps}
    return load_policy(path, actor=planner_from_spec({**spec, "generation": generation}))


def measured(path: Path, agent: str, env: str) -> dict[str, Any]:
    """The ways that a run's policy takes, and how it does with other samplers."""
    policy = load_policy(path)
    ways = [way_of(policy, env, start, FINAL_SEED) for start in range(PICTURED)]
    others = []
    for sampler, steps in SAMPLERS.get(agent, ()):
        found = evaluate(resampled(path, sampler, steps), env, EPISODES, FINAL_SEED)
        rates = {"success": found.success_rate, "coverage": found.mode_coverage}
        others.append({"sampler": sampler, "steps": steps, **rates})
    return {"ways": ways, "samplers": others}


def demonstrated(env: str) -> dict[str, Any]:
    """How the demonstrator does from the starts of the evaluation, with its noise, and its ways."""
    script = demonstrator(env)
    found = evaluate(script, env, EPISODES, FINAL_SEED, deterministic=False)
    ways = [way_of(script, env, start, FINAL_SEED, False) for start in range(PICTURED)]
    return {"success": found.success_rate, "coverage": found.mode_coverage, "ways": ways}


def section(folder: Path) -> list[str]:
    """An environment's part of the page."""
    cells = {a: folder / a for a in COMPARED if (folder / a / "cell.json").exists()}
    if not cells:
        return []
    stored = {agent: read_json(path / "cell.json") for agent, path in cells.items()}
    configs = {a: read_json(p / "seed-0" / "config.json") for a, p in cells.items()}
    config = next(iter(configs.values()))
    seeds = len(next(iter(stored.values()))["seeds"])
    limit = TASKS[config["env"]].steps
    data, ways = config["dataset"], read_json(folder / "demonstrations.json")
    lines = [
        "",
        f"## {config['env']}",
        "",
        f"{data['episodes']} demonstrations, {data['steps']:,} steps. From the starts of the "
        f"evaluation the demonstrator, with its noise, succeeds in {percent(ways['success'])} %, "
        f"coverage {ways['coverage']:.2f}. {of_all(config, seeds)}",
        "",
        "| agent | success, % | 95 % interval | coverage | 95 % interval | met a wall, % "
        "| time up, % | sampler | updates | updates/s |",
        "|---|--:|--:|--:|--:|--:|--:|---|--:|--:|",
    ]
    for agent, cell in stored.items():
        finals = [seed["final"] for seed in cell["seeds"]]
        success = [f["success_rate"] for f in finals]
        coverage = [f["mode_coverage"] for f in finals]
        # What fails before the time is up has touched a wall.
        late = np.mean([np.equal(f["lengths"], limit) & ~np.array(f["success"]) for f in finals])
        own = configs[agent]["agent_config"]
        sampler = own.get("sampler", "consistency" if "sampler_steps" in own else "one pass")
        steps = f" {own['sampler_steps']}" if "sampler_steps" in own else ""
        rate = float(np.mean([seed["rate"] for seed in cell["seeds"]])) * seeds
        lines.append(
            f"| `{agent}` | {percent(np.mean(success))} | {interval(success, percent)} "
            f"| {np.mean(coverage):.2f} | {interval(coverage, '{:.2f}'.format)} "
            f"| {percent(1.0 - np.mean(success) - late)} | {percent(late)} | {sampler}{steps} "
            f"| {configs[agent]['train']['steps']:,} | {rate:.0f} |"
        )
    lines += ["", f"![ways taken]({folder.name}.png)", "", *samplers(stored)]
    discussion = folder / "discussion.md"
    return lines + (["", discussion.read_text().strip()] if discussion.exists() else [])


def samplers(stored: Mapping[str, Any]) -> list[str]:
    """What the same networks do with other samplers, means over seeds."""
    lines = [
        "The same networks with other samplers, means over seeds:",
        "",
        "| agent | sampler | steps | success, % | coverage |",
        "|---|---|--:|--:|--:|",
    ]
    for agent, cell in stored.items():
        for tried in zip(*(seed["samplers"] for seed in cell["seeds"]), strict=True):
            success, coverage = (np.mean([t[k] for t in tried]) for k in ("success", "coverage"))
            lines.append(
                f"| `{agent}` | {tried[0]['sampler']} | {tried[0]['steps']} | {percent(success)} "
                f"| {coverage:.2f} |"
            )
    return lines


def of_all(config: Mapping[str, Any], seeds: int) -> str:
    """The settings that the agents have in common, in a sentence."""
    own, train = config["agent_config"], config["train"]
    return (
        f"Backbone `{own['backbone']}` of {own['depth']} blocks of {own['width']} units, chunks of "
        f"{own['horizon']} actions of which {own['execute']} are executed, batches of "
        f"{train['batch_size']}, learning rate {own['lr']:g}, {seeds} seeds stacked. "
        "Updates a second are those of all seeds together."
    )


def percent(share: Any) -> str:
    """In whole percents."""
    return f"{100 * share:.0f}"


def interval(values: Sequence[float], text: Any) -> str:
    """Student's over seeds, cut at 0 and 1; nothing for one seed."""
    found = t_interval(values)
    return "" if found is None else f"{text(max(found.low, 0.0))} to {text(min(found.high, 1.0))}"


def draw(page: Path) -> None:
    """Write README.md and a picture for each environment into `page`."""
    text = [INTRODUCTION]
    for folder in sorted(p for p in page.iterdir() if p.is_dir()):
        text += section(folder)
        names = [a for a in COMPARED if (folder / a / "cell.json").exists()]
        if names:
            drawn = {n: read_json(folder / n / "cell.json")["seeds"][0]["ways"] for n in names}
            env = read_json(folder / names[0] / "seed-0" / "config.json")["env"]
            ways = read_json(folder / "demonstrations.json")["ways"]
            drawn = {"demonstrator": ways, **drawn}
            draw_ways(env, drawn, page / f"{folder.name}.png")
    if (page / LATENCIES).exists():
        text += latency_lines(read_json(page / LATENCIES))
    (page / "README.md").write_text("\n".join(text) + "\n")


INTRODUCTION = f"""\
# Generative policies

Where a task can be done in several ways, the mean of the demonstrated actions is none of them.
`chunk_bc` regresses that mean; the others generate chunks of actions, with the same network.
Success is the share of {EPISODES} starts, common to all, that reach the target; coverage is the
entropy of the ways that successful episodes took, 1 where all are equally common (see
`offrl.statistics.mode_coverage`). Means over seeds with their 95 % intervals (Student's t over
seeds, cut at the ends of the range). Made by `python scripts/generative.py`; each cell's
`cell.json` has its command, commit, machine, every return and every start."""


def main() -> int:
    """Run missing cells, measure latencies, then draw."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--envs", nargs="+", default=list(ENVS))
    parser.add_argument("--agents", nargs="+", default=list(COMPARED), choices=list(COMPARED))
    parser.add_argument("--episodes", type=int, default=200, help="of the demonstrator (200)")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--skip-latency", action="store_true")
    add_training_arguments(parser)
    parser.set_defaults(steps=8_000, backend="eager", matmul="float32")
    options = parser.parse_args()
    torch.set_num_threads(1)
    PAGE.mkdir(parents=True, exist_ok=True)
    if not options.draw:
        settings = {**training_settings(options), "batch_size": options.batch_size}
        for env in options.envs:
            data, folder = demonstrations(env, options.episodes), folder_name(env)
            (PAGE / folder).mkdir(exist_ok=True)
            write_json(PAGE / folder / "demonstrations.json", demonstrated(env))
            for agent in options.agents:
                run_cell(
                    plan(agent, data, settings={**settings, "eval_every": options.steps // 4}),
                    f"generative/{folder}/{agent}",
                    EPISODES,
                    partial(measured, agent=agent, env=env),
                )
        if not options.skip_latency:
            write_json(PAGE / LATENCIES, measure_latencies(options.envs[0]))
    draw(PAGE)
    return 0


if __name__ == "__main__":
    assert set(COMPARED) <= set(AGENTS)
    print(f"offrl {offrl.__version__}, torch {torch.__version__}")
    sys.exit(main())
