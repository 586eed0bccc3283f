"""`offrl data collect`: a dataset from soft actor-critic, a saved policy, or a demonstrator.

Finished episodes are kept in OUT.staging beside the target, so that a collection that was killed
goes on where it was when the same command is given again. The target appears at the end, whole.
"""

import argparse
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

from tqdm import tqdm

from offrl.arguments import Parser
from offrl.datasets.offline import OfflineDataset, Spec
from offrl.datasets.packing import write_with_card
from offrl.datasets.qualities import (
    BY_SAC,
    NEED_MEDIUM,
    REPLAYS,
    RULES,
    Targets,
    check_quality,
    replay_facts,
    sac_facts,
    targets,
    versions,
)
from offrl.datasets.rollouts import (
    KINDS,
    Behaviour,
    Rolled,
    Uniform,
    digest,
    load_any_policy,
    roll_out,
)
from offrl.datasets.staged import spec_of, staged_dataset
from offrl.datasets.staging import Staging
from offrl.envs import make
from offrl.envs.scripted import demonstrator
from offrl.errors import ConfigError, DataError
from offrl.files import read_json, write_json
from offrl.policy_base import BasePolicy

STEPS = 100_000  # of a rollout, unless asked otherwise
SCRIPTED = "scripted"  # as --policy, the demonstrator that comes with the task


@dataclass(frozen=True)
class Request:
    """What to collect. `steps` are of rollouts; a replay is as long as SAC makes it."""

    env_id: str
    out: Path
    quality: str = "policy"
    policy: Path | None = None  # whose actions, where not SAC's
    steps: int | None = None  # at least; the last episode is finished
    episodes: int | None = None  # of a rollout, instead of steps
    seed: int = 0
    deterministic: bool = False  # the mode of a policy instead of samples
    target_return: float | None = None  # of an evaluation that makes a policy medium
    expert_return: float | None = None  # of an evaluation that makes it expert
    min_steps: int = 0  # of SAC before a policy may be medium or expert
    sac_steps: int = 1_000_000  # at most
    sac_folder: Path | None = None  # of SAC's run, kept and gone on with by later collections
    eval_every: int = 5_000
    eval_episodes: int = 10

    @property
    def staging(self) -> Path:
        """Where episodes wait beside the target."""
        return self.out.with_name(f"{self.out.name}.staging")

    def identity(self) -> dict[str, Any]:
        """What a resumed collection must have in common with the one it resumes, JSON-able."""
        return {
            "env_id": self.env_id,
            "quality": self.quality,
            "policy_sha256": None if self.policy is None else digest(self.policy),
            "seed": self.seed,
            "deterministic": self.deterministic,
            "target_return": self.target_return,
            "expert_return": self.expert_return,
            "min_steps": self.min_steps,
        }


def collect(request: Request) -> OfflineDataset:
    """Make the dataset `request.out` and return it.

    Raises ConfigError for a request that contradicts itself or an unknown environment, DataError
    where the target exists, the staging folder holds another collection, or SAC did not reach
    its return; RunError for a policy that cannot be read.
    """
    _check(request)
    aims = targets(request.quality, request.env_id, request.target_return, request.expert_return)
    env = make(request.env_id)
    try:
        spec = spec_of(env)
    finally:
        env.close()
    if request.out.exists():
        raise DataError(f"{request.out} exists and is not overwritten; choose another folder")
    if spec.obs_keys is not None and request.quality in BY_SAC and request.policy is None:
        raise ConfigError(
            f"{request.env_id} observes a dictionary, which SAC is not trained on here; collect "
            f"with --policy, or --policy {SCRIPTED} where the task has a demonstrator"
        )
    policy = None
    if request.policy is not None:
        policy = load_any_policy(request.policy, request.env_id, spec, request.seed)
    by_sac = request.quality in BY_SAC and policy is None
    behaviour = None if by_sac else _behaviour(request, policy, spec)
    try:
        _open_staging(request)
        if behaviour is None:
            episodes, facts = _from_sac(request, aims, spec)
        else:
            episodes = _rolled(request, behaviour, "episodes", request.steps or STEPS)
            facts = _rollout_facts(request)
            if policy is not None:
                facts["policy"] |= policy.provenance
                if not getattr(policy, "has_spread", True):
                    facts["actions"] = "deterministic: the policy has no spread"
        dataset = staged_dataset(episodes, request.env_id, name=request.out.name, provenance=facts)
    except OSError as error:
        raise DataError(f"{request.staging} cannot be written: {error}") from error
    names = {"random": "uniform actions", "scripted": "scripted demonstrator"}
    rolled = names.get(request.quality, "saved policy")
    algorithm = "SAC" if "evaluations" in facts else rolled
    written = write_with_card(dataset, request.out, algorithm_name=algorithm)
    shutil.rmtree(request.staging)
    return written


def _behaviour(request: Request, policy: BasePolicy | None, spec: Spec) -> Behaviour:
    if policy is not None:
        return Rolled(policy, request.deterministic)
    if request.quality == "scripted":
        return Rolled(demonstrator(request.env_id, request.seed), request.deterministic)
    return Uniform(spec, request.seed)


def _check(request: Request) -> None:
    check_quality(request.quality)
    quality = request.quality
    labels = ("policy", "medium", "expert")
    if request.policy is not None and quality not in labels:
        raise ConfigError(
            f"--policy rolls out one policy; as its quality name one of {', '.join(labels)}, not "
            f"{quality!r}, which is made in another way"
        )
    by_sac = quality in BY_SAC and request.policy is None
    refused = {
        "--policy is missing for --quality policy": quality == "policy" and not request.policy,
        f"--steps: the length of {quality} follows from SAC; see --min-steps": (
            quality in REPLAYS and request.steps is not None
        ),
        f"--deterministic: the actions of {quality} are not those of one policy": (
            quality in (*REPLAYS, "random") and request.deterministic
        ),
        "--steps and --episodes both say how long a rollout is; give one of them": (
            request.steps is not None and request.episodes is not None
        ),
        f"--episodes counts those of one rollout, which {quality} is not": (
            by_sac and request.episodes is not None
        ),
        "--target-return is for the medium policy of SAC": (
            request.target_return is not None and not (by_sac and quality in NEED_MEDIUM)
        ),
        "--expert-return is for the expert policy of SAC": (
            request.expert_return is not None
            and not (by_sac and quality in ("expert", "medium-expert", "full-replay"))
        ),
        f"--min-steps and --sac are of SAC, which does not make {quality}": (
            not by_sac and (request.min_steps > 0 or request.sac_folder is not None)
        ),
    }
    for message, wrong in refused.items():
        if wrong:
            raise ConfigError(message)
    for name in ("steps", "episodes", "sac_steps", "eval_every", "eval_episodes"):
        value = getattr(request, name)
        if value is not None and value < 1:
            raise ConfigError(f"--{name.replace('_', '-')} is {value}; it must be at least 1")


def _open_staging(request: Request) -> None:
    request.staging.mkdir(parents=True, exist_ok=True)
    record = request.staging / "request.json"
    asked = request.identity()
    if not record.exists():
        write_json(record, asked)
        return
    begun = read_json(record)
    for name, value in asked.items():
        if begun.get(name) != value:
            raise DataError(
                f"{request.staging} holds a collection with {name} {begun.get(name)!r}, not "
                f"{value!r}; finish it with its own settings, or remove that folder"
            )


Episodes = Iterable[dict[str, Any]]


def _rolled(request: Request, behaviour: Behaviour, part: str, steps: int) -> Episodes:
    staging = Staging(request.staging / part)
    wanted = request.episodes
    total = steps if wanted is None else wanted
    done = min(staging.steps() if wanted is None else len(staging), total)
    unit = "step" if wanted is None else "episode"
    with tqdm(total=total, initial=done, desc=part, unit=unit, disable=None) as bar:

        def progress(length: int, earned: float) -> None:
            bar.update(min(length if wanted is None else 1, total - bar.n))
            bar.set_postfix_str(f"last return {earned:.1f}")

        roll_out(
            *(request.env_id, behaviour, staging, steps, request.seed, part, progress),
            episodes=wanted,
        )
    return staging


def _from_sac(request: Request, aims: Targets, spec: Spec) -> tuple[Episodes, dict[str, Any]]:
    from offrl.datasets.foreign import sac_policy
    from offrl.datasets.sac import SACRun

    folder = request.sac_folder or request.staging / "sac"
    quality = request.quality
    if quality in REPLAYS:
        log, until = _run_sac(request, folder, aims, expert=quality == "full-replay")
        run = SACRun(folder)
        kept = run.episodes_until(until)
        episodes = list(islice(run.staging, kept))
        if not episodes:
            raise DataError(f"{folder}: no episode ended within the {until:,} steps of {quality}")
        steps = sum(len(e["reward"]) for e in episodes)
        return episodes, replay_facts(quality, log, steps, until)

    parts = ("medium", "expert") if quality == "medium-expert" else (quality,)
    rolled, policies = [], {}
    for part in parts:
        log, until = _run_sac(request, folder, aims, expert=part == "expert")
        file = SACRun(folder).actor(until)
        policy = sac_policy(file, spec, seed=request.seed)
        share = -(-(request.steps or STEPS) // len(parts))
        rolled.append(_rolled(request, Rolled(policy, request.deterministic), part, share))
        policies[part] = {"steps": until, "sha256": digest(file)}
    facts = sac_facts(log, until) | _rollout_facts(request)
    return chain(*rolled), facts | {"policies": policies}


def _run_sac(
    request: Request, folder: Path, aims: Targets, *, expert: bool
) -> tuple[dict[str, Any], int]:
    """Go on with SAC up to its target; the log, and the steps at which the policy is that."""
    from offrl.datasets.sac import SACConfig, collect_sac, reached

    aim = aims.expert if expert else aims.medium
    config = SACConfig(
        request.env_id,
        seed=request.seed,
        target_return=aim,
        min_steps=request.min_steps,
        max_steps=request.sac_steps,
        eval_every=request.eval_every,
        eval_episodes=request.eval_episodes,
    )
    with tqdm(total=request.sac_steps, desc="SAC", unit="step", disable=None) as bar:

        def on_step(steps: int) -> None:
            bar.update(steps - bar.n)

        def evaluated(steps: int, score: float) -> None:
            tqdm.write(f"SAC at {steps:,} steps: return {score:.1f} of {aim:.1f}", sys.stderr)

        log = collect_sac(config, folder, evaluated, on_step)
    until = reached(log, aim, request.min_steps)
    if until is None and not expert:
        best = max(score for _, score in log["evaluations"])
        raise DataError(
            f"SAC made {request.sac_steps:,} steps and its best evaluation was {best:.1f}, below "
            f"{aim:.1f}. Give more --sac-steps to go on from there, or a lower --target-return in "
            "a new folder"
        )
    return log, int(log["evaluations"][-1][0]) if until is None else until


def _rollout_facts(request: Request) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "rule": RULES[request.quality if request.policy is None else "policy"],
        "quality": request.quality,
        "env_id": request.env_id,
        "seed": request.seed,
        "versions": versions(),
    }
    if request.quality == "scripted":
        facts["actions"] = "without noise" if request.deterministic else "with its noise"
    elif request.quality != "random":
        facts["actions"] = "the policy's mode" if request.deterministic else "sampled"
    if request.policy is not None:
        facts["policy"] = {"name": request.policy.name, "sha256": digest(request.policy)}
    return facts


def main(argv: list[str]) -> int:
    """Run the command; returns its exit code."""
    options = _parser().parse_args(argv)
    if options.policy == SCRIPTED:
        if options.quality not in (None, SCRIPTED):
            raise ConfigError(
                f"--policy {SCRIPTED} is the task's demonstrator, whose quality is {SCRIPTED}, not "
                f"{options.quality!r}; a file of that name is ./{SCRIPTED}"
            )
        options.policy, options.quality = None, SCRIPTED
    elif options.policy is not None:
        options.policy = Path(options.policy)
    quality = options.quality or ("policy" if options.policy else None)
    if quality is None:
        raise ConfigError(f"give --quality, one of {', '.join(RULES)}, or --policy")
    request = Request(**{k: v for k, v in vars(options).items() if k != "quality"}, quality=quality)
    try:
        dataset = collect(request)
    except KeyboardInterrupt:
        if request.staging.exists():
            print(
                f"offrl: finished episodes are in {request.staging}; the same command goes on",
                file=sys.stderr,
            )
        raise
    returns = dataset.returns()
    print(
        f"{request.out}: {dataset.num_steps:,} steps in {dataset.num_episodes:,} episodes, return "
        f"{returns.mean():.1f} mean, {returns.max():.1f} best"
    )
    return 0


def _parser() -> argparse.ArgumentParser:
    width = max(map(len, RULES)) + 4
    rules = [
        textwrap.fill(
            f"{name:{width - 2}}{rule}",
            96,
            initial_indent="  ",
            subsequent_indent=" " * width,
        )
        for name, rule in RULES.items()
    ]
    parser = Parser(
        "offrl data collect",
        description=(
            "Make a dataset with soft actor-critic (SAC, of stable-baselines3), a saved policy, "
            "or the demonstrator of a task."
        ),
        epilog="qualities, as D4RL means them:\n" + "\n".join(rules),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add: Callable[..., Any] = parser.add_argument
    add("--env", dest="env_id", required=True, metavar="ID", help="environment, e.g. Hopper-v5")
    add("--out", type=Path, required=True, metavar="DIR", help="new folder of the dataset")
    add("--quality", metavar="Q", help="see below; with --policy a label: medium or expert")
    add(
        *("--policy",),
        metavar="PATH",
        help=f"{KINDS}; or the word {SCRIPTED}, the demonstrator that comes with the task",
    )
    add("--steps", type=int, metavar="N", help=f"at least, of rollouts ({STEPS:,})")
    add("--episodes", type=int, metavar="N", help="of a rollout, instead of --steps")
    add("--seed", type=int, default=0, metavar="S", help="of SAC, starts and actions (0)")
    add("--deterministic", action="store_true", help="the policy's mode instead of samples")
    sac = parser.add_argument_group("SAC").add_argument
    sac("--target-return", type=float, metavar="R", help="what makes a policy medium")
    sac("--expert-return", type=float, metavar="R", help="what makes a policy expert")
    sac("--min-steps", type=int, default=0, metavar="N", help="before either can be reached (0)")
    sac("--sac-steps", type=int, default=1_000_000, metavar="N", help="at most (1,000,000)")
    sac("--eval-every", type=int, default=5_000, metavar="N", help="steps (5,000)")
    sac("--eval-episodes", type=int, default=10, metavar="N", help="of each evaluation (10)")
    sac(
        *("--sac",),
        dest="sac_folder",
        type=Path,
        metavar="DIR",
        help="keep SAC's run here and go on with it: several sets from one run, as D4RL's",
    )
    return parser
