"""`offrl evaluate RUN...`: play trained policies and print what they earned."""

import argparse
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from offrl.arguments import Parser
from offrl.datasets.offline import Reference
from offrl.errors import ConfigError, RunError

if TYPE_CHECKING:
    from offrl.evaluation import Evaluation

ABOUT = """\
Play a trained policy and report its return.

RUN is the directory of a run, of one seed of a run, or of a policy. A run of several seeds is
evaluated seed by seed and then together; two RUNs are also compared, start by start.
"""


@dataclass(frozen=True)
class Target:
    """One policy to play, and what its run says about where."""

    path: Path
    env_id: str | None
    env_is_callable: bool
    reference: Reference | None


def main(argv: list[str]) -> int:
    """Run the command; returns its exit code."""
    args = _parser().parse_args(argv)
    groups = [find_targets(Path(run)) for run in args.runs]
    if args.video is not None:
        # MuJoCo reads its settings when it is imported, which evaluating does.
        from offrl import video

        if len(groups) > 1 or len(groups[0]) > 1:
            raise ConfigError("--video films one policy; give one run, or one seed of a run")
        video.check_target(args.video, args.force)
        video.headless()

    results = [[(target, _evaluate(target, args)) for target in targets] for targets in groups]
    if args.json:
        json.dump(_as_json(args.runs, results), sys.stdout, indent=2)
        print()
    else:
        print(_as_text(args.runs, results))
    if args.video is not None:
        _film(groups[0][0], args)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="offrl evaluate", description=ABOUT, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("runs", nargs="+", metavar="RUN")
    parser.add_argument("--env", metavar="ID", help="environment; by default the run's own")
    parser.add_argument(
        "--episodes", type=int, default=20, metavar="N", help="starts to play, each once (20)"
    )
    parser.add_argument(
        "--seed", type=int, default=0, metavar="S", help="chooses the starts (0); equal for all"
    )
    parser.add_argument(
        "--target-return",
        type=float,
        metavar="R",
        help="return to aim at, for policies conditioned on one; by default the policy's own",
    )
    parser.add_argument(
        "--video", type=Path, metavar="FILE", help="film the first start, as .mp4 or .gif"
    )
    parser.add_argument("--force", action="store_true", help="replace FILE where it exists")
    parser.add_argument("--json", action="store_true", help="print JSON, every episode in it")
    return parser


def find_targets(run: Path) -> list[Target]:
    """The policies of a run (one per seed), or the policy at `run` itself.

    Raises RunError where there is none.
    """
    from offrl import policy_format

    seeds = sorted(run.glob("seed-*"), key=_seed_of)
    if seeds and not (run / "policy").exists():
        return [target for seed in seeds for target in find_targets(seed)]
    directory = policy_format.find(run)
    config_file = next(
        (p / "config.json" for p in (directory.parent, run) if (p / "config.json").is_file()), None
    )
    if config_file is None:
        provenance = policy_format.read(directory).provenance
        return [Target(directory, provenance.get("env"), False, None)]
    config = _read_config(config_file)
    return [
        Target(
            path=directory,
            env_id=config.get("env"),
            env_is_callable=bool(config.get("env_is_callable")),
            reference=_reference(config, config_file),
        )
    ]


def _reference(config: Mapping[str, Any], path: Path) -> Reference | None:
    dataset = config.get("dataset") or {}
    found = dataset.get("reference") if isinstance(dataset, dict) else dataset
    if found is None:
        return None
    try:
        reference = Reference(**found)
        float(reference.max - reference.min)
        return reference
    except (TypeError, ValueError):
        where = "dataset" if found is dataset else "dataset.reference"
        raise RunError(
            f"{path} is damaged: {where} is {found!r}, not what a run writes; restore it"
        ) from None


def _seed_of(path: Path) -> tuple[int, str]:
    number = path.name.removeprefix("seed-")
    return (int(number) if number.isdecimal() else sys.maxsize, path.name)


def _read_config(path: Path) -> Mapping[str, Any]:
    try:
        config = json.loads(path.read_text())
    except (OSError, ValueError) as e:
        raise RunError(f"{path} cannot be read: {e}") from e
    if not isinstance(config, dict):
        raise RunError(f"{path} is not the configuration of a run")
    return config


def _environment(target: Target, asked: str | None) -> tuple[str, Reference | None]:
    from offrl.envs.references import reference_for

    if asked is not None:
        same = asked == target.env_id
        return asked, target.reference if same else reference_for(asked)
    if target.env_is_callable:
        raise ConfigError(
            f"{target.path} was trained with an environment made by the function "
            f"{target.env_id}; use offrl.evaluate(policy, function) in Python, or --env ID"
        )
    if target.env_id is None:
        raise ConfigError(
            f"{target.path}: no environment is known for this policy; name one with --env ID"
        )
    return target.env_id, target.reference or reference_for(target.env_id)


def _evaluate(target: Target, args: argparse.Namespace) -> "Evaluation":
    env_id, reference = _environment(target, args.env)
    from offrl.evaluation import evaluate
    from offrl.policy import load_policy

    policy = load_policy(target.path)
    return evaluate(
        policy,
        env_id,
        args.episodes,
        args.seed,
        reference=reference,
        target_return=args.target_return,
    )


def _film(target: Target, args: argparse.Namespace) -> None:
    from offrl.policy import load_policy
    from offrl.video import record

    env_id, _ = _environment(target, args.env)
    filmed = record(
        load_policy(target.path),
        env_id,
        args.video,
        args.seed,
        force=args.force,
        target_return=args.target_return,
    )
    print(
        f"{os.fspath(args.video)}: start 0, return {filmed.mean:.1f}, "
        f"{int(filmed.lengths[0])} steps",
        file=sys.stderr if args.json else sys.stdout,
    )


Results = list[list[tuple[Target, "Evaluation"]]]


def _together(group: list[tuple[Target, "Evaluation"]]) -> dict[str, Any]:
    """What the learners of one run say together; each counts once, by its mean."""
    from offrl.statistics import iqm, t_interval

    means = [result.mean for _, result in group]
    interval = t_interval(means)
    scores = [result.score for _, result in group if result.score is not None]
    rates = [result.success_rate for _, result in group if result.success_rate is not None]
    return {
        "learners": len(group),
        "mean": float(np.mean(means)),
        "ci95": interval and [interval.low, interval.high],
        "iqm": float(iqm(means)),
        "score": float(np.mean(scores)) if len(scores) == len(group) else None,
        "success_rate": float(np.mean(rates)) if len(rates) == len(group) else None,
    }


def _difference(results: Results) -> dict[str, Any] | None:
    """First run minus second; None unless there are two of the same task.

    `ci95` covers other starts of these learners, `ci95_learners` other learners at these starts.
    """
    from offrl.statistics import paired_difference, welch_interval

    if len(results) != 2 or len({r.env_id for group in results for _, r in group}) != 1:
        return None
    a, b = (np.mean([r.returns for _, r in group], axis=0) for group in results)
    if len(a) < 2:
        return None
    mean, interval = paired_difference(a, b)
    own, other = ([r.mean for _, r in group] for group in results)
    between = welch_interval(own, other)
    return {
        "mean": mean,
        "ci95": [interval.low, interval.high],
        "ci95_learners": between and [between.low, between.high],
    }


def _as_json(runs: list[str], results: Results) -> dict[str, Any]:
    entries = []
    for run, group in zip(runs, results, strict=True):
        evaluations = [{"policy": str(t.path)} | r.to_json() for t, r in group]
        entry: dict[str, Any] = {"run": run, "evaluations": evaluations}
        if len(group) > 1:
            entry["together"] = _together(group)
        entries.append(entry)
    return {"runs": entries, "difference": _difference(results)}


def _as_text(runs: list[str], results: Results) -> str:
    lines = []
    for run, group in zip(runs, results, strict=True):
        for target, result in group:
            lines += [str(target.path), *(f"  {line}" for line in str(result).splitlines()), ""]
        if len(group) > 1:
            together = _together(group)
            low, high = together["ci95"]
            score = together["score"]
            lines += [
                f"{run}, {len(group)} learners, the mean of each counted once",
                f"    return  {together['mean']:.1f}   95 % interval over learners "
                f"{low:.1f} to {high:.1f}   interquartile mean {together['iqm']:.1f}",
            ]
            lines += [] if score is None else [f"    score   {score:.1f}"]
            rate = together["success_rate"]
            lines += [] if rate is None else [f"    success {100 * rate:.1f} %"]
            lines.append("")
    difference = _difference(results)
    if difference is not None:
        low, high = difference["ci95"]
        lines += [
            f"{runs[0]} minus {runs[1]}, start by start",
            f"    return  {difference['mean']:+.1f}   95 % interval over starts {low:+.1f} to "
            f"{high:+.1f}: these learners, had other starts been played",
        ]
        if difference["ci95_learners"]:
            low, high = difference["ci95_learners"]
            margin = " " * len(f"    return  {difference['mean']:+.1f}   ")
            lines.append(
                f"{margin}95 % interval over learners {low:+.1f} to {high:+.1f} (Welch's t): these "
                "starts, had other seeds been trained"
            )
        lines.append("")
    return "\n".join(lines).rstrip()
