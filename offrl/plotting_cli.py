"""`offrl plot RUN... --out FILE`: draw learning curves."""

from pathlib import Path

from offrl.arguments import Parser


def main(argv: list[str]) -> int:
    """Run the command; returns its exit code."""
    parser = Parser(
        prog="offrl plot",
        description="Draw learning curves: a panel per dataset, a line per agent, a band over "
        "seeds, and the data's mean return as a dotted line.",
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="directory of a run")
    parser.add_argument(
        "--out", type=Path, required=True, metavar="FILE", help="picture: .png, .pdf or .svg"
    )
    parser.add_argument(
        "--metric",
        metavar="NAME",
        help="a name in metrics.csv (eval/score where all runs have it, else eval/return)",
    )
    parser.add_argument(
        "--log-steps",
        action="store_true",
        help="a logarithmic axis of steps, for runs of very different lengths",
    )
    parser.add_argument("--force", action="store_true", help="replace FILE where it exists")
    args = parser.parse_args(argv)
    from offrl.plotting import plot

    out = plot(args.runs, args.out, args.metric, log_steps=args.log_steps, force=args.force)
    print(out)
    return 0
