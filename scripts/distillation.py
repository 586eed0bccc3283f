"""Students of a saved policy: ADPO under its anchors beside plain distillation, one command.

    python scripts/distillation.py --teacher runs/iql/seed-0    # missing cells, then the page
    python scripts/distillation.py                              # trains the teacher first
    python scripts/distillation.py --draw                       # the page of the cells that exist

Students see the states of one dataset and no reward; they are judged by their returns on the
starts on which the teacher's are measured, and by how far their actions are from the teacher's.
Finished cells are skipped and unfinished ones resumed, as by scripts/results.py.
"""

import argparse
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cells import (
    FINAL_EPISODES,
    FINAL_SEED,
    RESULTS,
    WORK,
    add_training_arguments,
    cell_hash,
    run_cell,
    training_settings,
    write_page,
)

import offrl
from offrl.curves import learners
from offrl.datasets.offline import OfflineDataset
from offrl.divergences import gaussian_kl
from offrl.evaluation import evaluate
from offrl.experiment import resume_run, start_run
from offrl.files import read_json, write_json
from offrl.plans import plan
from offrl.policy import load_policy
from offrl.statistics import t_interval
from offrl.teachers import answers, print_of, teacher_of

PAGE = RESULTS / "distillation"
FACTS = "teacher.json"  # beside the cells of a teacher: what it is and what it earns
COMPARED_AT = 5_000  # logged observations
ROWS: Mapping[str, tuple[str, Mapping[str, Any]]] = {  # folder -> what the row is, its settings
    "kl": ("plain distillation, KL(teacher, student)", {"loss": "kl"}),
    "teacher": ("ADPO, anchored at the teacher", {"anchor": "teacher"}),
    "uniform": ("ADPO, without an anchor", {"anchor": "uniform"}),
    "clone": ("ADPO, anchored at the law of the data", {"anchor": "clone"}),
    "ema": ("ADPO, anchored at the student", {"anchor": "ema"}),
}


def trained(agent: str, dataset: str, settings: Mapping[str, Any]) -> Path:
    """The run of a teacher of one seed, which is trained or resumed if it is not finished."""
    planned = plan(agent, dataset, settings={**settings, "seeds": 1})
    folder = WORK / f"distillation-{planned.agent}-{cell_hash(planned.record())}"
    if not (folder / "policy").exists():
        if (folder / "config.json").exists():
            resume_run(folder)
        else:
            start_run(planned, folder)
    return folder


def facts(teacher: Path, data: OfflineDataset) -> dict[str, Any]:
    """Where the teacher is from, and what it earns on the starts common to all."""
    policy = teacher_of(teacher, data)
    final = evaluate(policy, str(data.env_id), FINAL_EPISODES, FINAL_SEED)
    known = {k: policy.provenance.get(k) for k in ("agent", "dataset", "seed", "step")}
    _, std = answers(policy, seen(data), float("nan"))
    stated = float(std.mean()) if np.isfinite(std).all() else None
    return {"teacher": known, "print": print_of(teacher), "std": stated, "final": final.to_json()}


def seen(data: OfflineDataset) -> Any:
    """Logged observations, evenly spaced."""
    obs = data.rows[data.step_rows, : data.obs_dim]
    return obs[:: max(1, len(obs) // COMPARED_AT)]


def distances(teacher: Path, data: OfflineDataset, width: float, student: Path) -> dict[str, Any]:
    """Mean squared difference of the actions, and KL(teacher, student), at logged observations."""
    both = [answers(load_policy(path), seen(data), width) for path in (teacher, student)]
    (mean, std), (own, own_std) = ([torch.from_numpy(x.copy()) for x in pair] for pair in both)
    kl = gaussian_kl(mean, std, own, own_std).mean()
    return {"error": float((mean - own).square().mean()), "kl": float(kl)}


def section(folder: Path) -> list[str]:
    """A teacher's part of the page."""
    names = [name for name in ROWS if (folder / name / "cell.json").exists()]
    if not names:
        return []
    about = read_json(folder / FACTS)
    known, final, std = about["teacher"], about["final"], about["std"]
    config = read_json(learners(folder / names[0])[0] / "config.json")
    data, own = config["dataset"], config["agent_config"]
    deviates = "deviates by {:.3f} on average" if std else "counts as deviating by {:.3f}"
    lines = [
        "",
        f"## {config['env']}, {_teacher(known)}",
        "",
        f"The teacher returns {final['mean']:.1f} ({t_interval(final['returns'])}, over starts) "
        f"and {deviates.format(std or own['teacher_std'])}. Students see the {data['steps']:,} "
        f"states of {data['name']}, whose episodes return {data['behaviour_return_mean']:.1f}.",
        "",
        "| student | return | 95 % interval | % of the teacher's | action error | KL | seeds "
        "| updates |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for name in names:
        cell = read_json(folder / name / "cell.json")
        returns = [seed["final"]["mean"] for seed in cell["seeds"]]
        error, kl = (np.mean([seed[key] for seed in cell["seeds"]]) for key in ("error", "kl"))
        steps = read_json(learners(folder / name)[0] / "config.json")["train"]["steps"]
        lines.append(
            f"| {ROWS[name][0]} | {np.mean(returns):.1f} | {t_interval(returns) or ''} "
            f"| {100 * np.mean(returns) / final['mean']:.1f} | {error:.4f} | {kl:.2f} "
            f"| {len(returns)} | {steps:,} |"
        )
    return lines


def _teacher(known: Mapping[str, Any]) -> str:
    """What a policy's provenance says of it, which may be nothing."""
    if not known["agent"]:
        return "a teacher of unknown origin"
    steps = "" if known["step"] is None else f", {known['step']:,} updates"
    data = "" if not known["dataset"] else f" on {known['dataset']}"
    return f"a teacher by `{known['agent']}`{steps}{data}"


INTRODUCTION = """\
# Students of a saved policy

Return of the last policies on 20 starts common to all; mean over seeds with its 95 % interval
(Student's t over seeds). The action error is the mean squared difference from the teacher's
actions, of components in [-1, 1], and KL that of the teacher's Gaussian from the student's, both
at logged observations; where each anchor leads in theory is on the page of `offrl agents distill`.
Made by `python scripts/distillation.py`; each cell's `cell.json` has its command, commit, machine
and every return."""


def main() -> int:
    """Run missing cells, then draw."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--dataset", default="halfcheetah-medium-replay")
    parser.add_argument("--teacher", type=Path, help="run or policy; without it one is trained")
    parser.add_argument("--agent", default="iql", help="by which the teacher is trained")
    parser.add_argument("--teacher-steps", type=int, default=100_000)
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=list(ROWS))
    add_training_arguments(parser)
    parser.set_defaults(steps=50_000)
    options = parser.parse_args()
    torch.set_num_threads(1)
    PAGE.mkdir(parents=True, exist_ok=True)
    if not options.draw:
        settings = {**training_settings(options), "eval_every": max(1, options.steps // 5)}
        data = offrl.load_dataset(options.dataset)
        teacher = options.teacher
        if teacher is None:
            own = {**settings, "steps": options.teacher_steps, "eval_every": options.teacher_steps}
            teacher = trained(options.agent, options.dataset, own)
        known = teacher_of(teacher, data).provenance.get("agent", "policy")
        folder = PAGE / f"{data.name}-{known}-{print_of(teacher)[:6]}"
        if not (folder / FACTS).exists():
            folder.mkdir(exist_ok=True)
            write_json(folder / FACTS, facts(teacher, data))
        for row in options.rows:
            stated = {**settings, **ROWS[row][1], "teacher": str(teacher.resolve())}
            planned = plan("distill", options.dataset, settings=stated)
            width = planned.agent_config.teacher_std
            measure = partial(distances, teacher, data, width)
            run_cell(planned, f"{PAGE.name}/{folder.name}/{row}", measure=measure)
    write_page(PAGE, INTRODUCTION, section)
    return 0


if __name__ == "__main__":
    print(f"offrl {offrl.__version__}, torch {torch.__version__}")
    sys.exit(main())
