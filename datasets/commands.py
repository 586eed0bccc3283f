"""`offrl data list | info | import | collect | corrupt | synthesize`."""

import argparse
import json
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from offrl.arguments import Parser
from offrl.datasets.columns import Columns
from offrl.datasets.loading import SHIPPED, load_dataset, local_sets, shipped_names
from offrl.datasets.names import named_sets
from offrl.datasets.offline import OfflineDataset
from offrl.envs.references import reference_for
from offrl.errors import ConfigError, DataError, near

ROLES = (
    *("observations", "actions", "rewards", "terminals", "timeouts"),
    *("next_observations", "episode_starts", "lengths"),
)


def main(argv: list[str]) -> int:
    """Run one of the sub-commands; returns the exit code."""
    commands = {"list": _list, "info": _info, "import": _import}
    commands |= {"collect": _collect, "corrupt": _corrupt, "synthesize": _synthesize}
    usage = (
        "usage: offrl data {list,info,import,collect,corrupt,synthesize} ...\n\n"
        "  list        names of datasets, and where each is\n"
        "  info        sizes, returns, lengths, action saturation and problems of a dataset\n"
        "  import      write any readable dataset as a Minari dataset\n"
        "  collect     make a dataset with SAC, a saved policy or a demonstrator\n"
        "  corrupt     corrupt a share of a dataset, to see what still learns from it\n"
        "  synthesize  draw a dataset from a diffusion model of another, towards a policy\n"
    )
    if not argv or argv[0] in ("-h", "--help"):
        print(usage)
        return 0 if argv else 2
    if argv[0] not in commands:
        raise ConfigError(
            f"there is no command 'data {argv[0]}'{near(argv[0], commands) or ';'} offrl data has "
            f"{', '.join(commands)}"
        )
    return commands[argv[0]](argv[1:])


def add_data_arguments(parser: argparse.ArgumentParser, flag: str | None = None) -> None:
    """The options that say how a dataset is found and read; `flag` is before its name, if any."""
    what = "name, path of a file or folder, or Minari id"
    if flag is None:
        parser.add_argument("dataset", help=what)
    else:
        parser.add_argument(flag, dest="dataset", metavar="DATASET", required=True, help=what)
    where = parser.add_argument_group("where to look")
    where.add_argument("--data-dir", metavar="DIR", help="local folder (default $OFFRL_DATASETS)")
    where.add_argument("--cache", metavar="DIR", help="downloads (default ~/.cache/offrl)")
    where.add_argument("--no-download", action="store_true", help="use what is on this machine")
    faults = parser.add_argument_group("faults that are refused unless you say what to do")
    faults.add_argument("--out-of-bounds", choices=("refuse", "clip", "keep"), default="refuse")
    faults.add_argument(
        "--time-limit",
        type=_time_limit,
        metavar="N|keep",
        help="make terminals at step N truncations, or keep them as they are",
    )
    facts = parser.add_argument_group("what flat files do not say")
    facts.add_argument("--env", metavar="ID", help="environment: bounds, time limit, references")
    facts.add_argument("--action-bounds", nargs=2, type=float, metavar=("LOW", "HIGH"))
    columns = parser.add_argument_group("columns of an npz or HDF5 file, if not D4RL's")
    for role in ROLES:
        columns.add_argument(f"--{role.replace('_', '-')}", metavar="KEY")


def load_from_arguments(options: argparse.Namespace) -> OfflineDataset:
    """The dataset that the options of `add_data_arguments` describe."""
    stated = {role: getattr(options, role) for role in ROLES if getattr(options, role) is not None}
    columns = None
    if stated:
        missing = [role for role in ROLES[:3] if role not in stated]
        if missing:
            raise ConfigError(
                "columns are stated by name, but "
                + ", ".join(f"--{role} KEY" for role in missing)
                + " is missing"
            )
        columns = Columns(**stated)
    bounds = options.action_bounds
    return load_dataset(
        options.dataset,
        out_of_bounds=options.out_of_bounds,
        time_limit=options.time_limit,
        env_id=options.env,
        action_bounds=None if bounds is None else (bounds[0], bounds[1]),
        columns=columns,
        download=not options.no_download,
        cache=options.cache,
        data_dir=options.data_dir,
    )


def add_target_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that say where a dataset is written, and under which id."""
    parser.add_argument("--out", required=True, metavar="DIR", help="new folder to write")
    parser.add_argument("--id", metavar="ID", help="Minari id (default: the name and -v0)")


def target_from_arguments(options: argparse.Namespace) -> Path:
    """The folder of `add_target_arguments`; DataError where it or the id cannot be used."""
    from offrl.datasets.minari import check_target

    out = Path(options.out)
    check_target(out, options.id)
    return out


def _time_limit(text: str) -> int | str:
    if text == "keep":
        return text
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is neither a number of steps nor 'keep'"
        ) from None


def _list(argv: list[str]) -> int:
    parser = Parser("offrl data list", description="Names of datasets.")
    parser.add_argument("match", nargs="?", default="", help="only names that contain this")
    parser.add_argument("--data-dir", metavar="DIR", help="local folder (default $OFFRL_DATASETS)")
    parser.add_argument("--cache", metavar="DIR", help="downloads (default ~/.cache/offrl)")
    options = parser.parse_args(argv)
    local = local_sets(options.data_dir, options.cache)
    lines = [(name, _shipped_env(name), "comes with the package") for name in shipped_names()]
    lines += [(name, "", f"at {path}") for name, path in local.items() if name not in named_sets()]
    for name, named in named_sets().items():
        size = f"{named.size / 1e6:,.0f} MB" if named.size else "size unknown"
        where = f"at {local[name]}" if name in local else f"download, {size}"
        lines.append((name, named.env_id + ("*" if named.differs else ""), where))
    lines = [line for line in lines if options.match in line[0]]
    if not lines:
        raise DataError(f"no dataset's name contains {options.match!r}")
    print(f"{'name':34} {'environment':24} {'0 is':>9} {'100 is':>9}  where")
    for name, env, where in lines:
        reference = reference_for(name)
        low, high = ("", "") if reference is None else (reference.min, reference.max)
        shown = [f"{x:9.1f}" if x != "" else " " * 9 for x in (low, high)]
        print(f"{name:34} {env:24} {shown[0]} {shown[1]}  {where}")
    if any(env.endswith("*") for _, env, _ in lines):
        print("* observes other numbers than the data; `offrl data info NAME` says which")
    print("Any Minari id works too, for instance D4RL/door/human-v2.")
    return 0


def _shipped_env(name: str) -> str:
    metadata = json.loads((SHIPPED / name / "data" / "metadata.json").read_text())
    return str(json.loads(metadata["env_spec"])["id"]) if "env_spec" in metadata else ""


def _info(argv: list[str]) -> int:
    parser = Parser(
        "offrl data info", description="What a dataset holds, and what may be wrong with it."
    )
    add_data_arguments(parser)
    parser.add_argument("--histogram", metavar="FILE", help="draw the returns (png, pdf, svg)")
    parser.add_argument("--json", action="store_true", help="print the facts as JSON")
    options = parser.parse_args(argv)
    from offrl.datasets.inspection import draw_histogram, inspect, report

    dataset = load_from_arguments(options)
    facts = inspect(dataset)
    print(json.dumps(facts, indent=1) if options.json else report(facts, dataset.returns()))
    if options.histogram:
        draw_histogram(dataset, Path(options.histogram))
    return 0


def _import(argv: list[str]) -> int:
    parser = Parser(
        "offrl data import",
        description="Write any readable dataset as a Minari dataset, which every later command, "
        "and minari itself, reads.",
    )
    add_data_arguments(parser)
    add_target_arguments(parser)
    options = parser.parse_args(argv)
    from offrl.datasets.minari import write_minari

    out = target_from_arguments(options)
    dataset = load_from_arguments(options)
    write_minari(dataset, out, dataset_id=options.id)
    for problem in dataset.problems:
        print(f"note: {problem}", file=sys.stderr)
    print(f"{out}: {dataset.num_steps:,} steps in {dataset.num_episodes:,} episodes")
    return 0


def _collect(argv: list[str]) -> int:
    # Collecting needs stable-baselines3 and torch, which the other commands do without.
    collect: Callable[[list[str]], int] = import_module("offrl.datasets.collection").main
    return collect(argv)


def _corrupt(argv: list[str]) -> int:
    # An attack trains an agent first, and so stands above all that data knows of.
    corrupt: Callable[[list[str]], int] = import_module("offrl.corrupt_cli").main
    return corrupt(argv)


def _synthesize(argv: list[str]) -> int:
    synthesize: Callable[[list[str]], int] = import_module("offrl.synthesize_cli").main
    return synthesize(argv)
