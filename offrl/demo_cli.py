"""`offrl demo`: train two agents on a shipped dataset, play both, draw their curves."""

from pathlib import Path

from offrl.arguments import Parser
from offrl.errors import RunError
from offrl.evaluation import Evaluation, evaluate
from offrl.experiment import Run, recorded, resume_run, start_run
from offrl.plans import Plan, plan
from offrl.plotting import plot
from offrl.statistics import paired_difference

AGENTS = ("bc", "prdc")


def main(argv: list[str]) -> int:
    """Run `offrl demo`."""
    parser = Parser(prog="offrl demo", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("demo"), help="folder; continued if begun")
    parser.add_argument("--dataset", default="halfcheetah-medium-replay", help="a shipped dataset")
    parser.add_argument("--steps", type=int, default=50_000, help="updates of each agent")
    parser.add_argument("--episodes", type=int, default=20, help="common starts to play at the end")
    parser.add_argument("--seed", type=int, default=0, help="of weights, batches and noise")
    arguments = parser.parse_args(argv)
    out: Path = arguments.out
    if out.exists() and not out.is_dir():
        raise RunError(f"{out} is a file; choose another --out")
    if (out / "config.json").exists():
        raise RunError(f"{out} is the folder of a run; choose another --out")
    settings = {"steps": arguments.steps, "seed": arguments.seed, "matmul": "bfloat16"}
    results: dict[str, Evaluation] = {}
    for agent in AGENTS:
        planned = plan(agent, arguments.dataset, settings=settings)
        run = _trained(planned, out / agent)
        assert isinstance(planned.env, str)
        print(f"{agent}: playing {arguments.episodes} starts")
        results[agent] = evaluate(run.policy, planned.env, arguments.episodes)
    picture = out / "curves.png"
    plot([out / agent for agent in AGENTS], picture, force=True)
    _report(planned, results)
    print(f"learning curves: {picture}")
    return 0


def _trained(planned: Plan, folder: Path) -> Run:
    """A new run, or the rest of one that was begun here with the same settings."""
    if not (folder / "config.json").exists():
        return start_run(planned, folder)
    begun, asked = recorded(folder), planned.record()
    if any(begun[part] != asked[part] for part in ("train", "data", "dataset")):
        raise RunError(f"{folder} was begun with other settings; choose another --out")
    return resume_run(folder)


def _report(planned: Plan, results: dict[str, Evaluation]) -> None:
    data = planned.dataset
    returns = data.returns()
    print(f"\n{planned.env}, the same {len(results['bc'].returns)} starts for both:")
    print(f"  {'data':<6} mean return {returns.mean():8.1f}")
    for agent, result in results.items():
        print(f"  {agent:<6} mean return {result.mean:8.1f}   95 % interval {result.ci95}")
    if len(results["bc"].returns) > 1:
        mean, interval = paired_difference(results["prdc"].returns, results["bc"].returns)
        print(f"  prdc - bc, start by start: {mean:.1f}   95 % interval {interval}")
