"""`offrl lm`: data of language-model methods, and the methods themselves."""

import argparse
import inspect
import json
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, get_args

from offrl.arguments import Parser
from offrl.errors import ConfigError, near
from offrl.lm.data import Example, Examples, Form, Group, Labelled, Pair, load_examples
from offrl.lm.records import write_records

Command = Callable[[list[str]], int]


def main(argv: list[str]) -> int:
    """Run one of the sub-commands; returns the exit code."""
    usage = (
        "usage: offrl lm {train,score,demo,data,methods} ...\n\n"
        "  train    a model on preferences, labels, scored answers or demonstrations\n"
        "  score    log-probabilities of the answers of a file under a model\n"
        "  demo     learn to sort digits, from nothing to win rates\n"
        "  data     check, relabel or filter a file of preferences, labels or scored answers\n"
        "  methods  a line for each loss: the data it needs, and its twin among control methods\n"
    )
    commands = {
        "train": _from("offrl.lm_train_cli", "train"),
        "score": _from("offrl.lm_train_cli", "score"),
        "demo": _from("offrl.lm_demo_cli", "main"),
        "data": _data,
        "methods": _methods,
    }
    return _dispatch("lm", commands, usage, argv)


def _from(module: str, name: str) -> Command:
    """A command of a module that is imported when the command is used."""

    def command(argv: list[str]) -> int:
        run: Command = getattr(import_module(module), name)
        return run(argv)

    return command


def _data(argv: list[str]) -> int:
    usage = (
        "usage: offrl lm data {check,relabel,filter} FILE ...\n\n"
        "  check    what a file holds, and what of it is unusable\n"
        "  relabel  goals from scores, pairs or labels from groups, other rewards\n"
        "  filter   keep some answers or examples, and drop what is unusable\n"
    )
    commands: dict[str, Command] = {"check": _check, "relabel": _relabel, "filter": _filter}
    return _dispatch("lm data", commands, usage, argv)


def _dispatch(name: str, commands: dict[str, Command], usage: str, argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        print(usage)
        return 0 if argv else 2
    if argv[0] not in commands:
        raise ConfigError(
            f"there is no command '{name} {argv[0]}'{near(argv[0], commands) or ';'} offrl {name} "
            f"has {', '.join(commands)}"
        )
    return commands[argv[0]](argv[1:])


def _parser(name: str, description: str) -> Parser:
    parser = Parser(f"offrl lm data {name}", description=description)
    parser.add_argument("file", help="JSON lines or Parquet, or a folder of such files")
    parser.add_argument(
        "--form", choices=get_args(Form), help="what it holds (default: by columns)"
    )
    parser.add_argument("--strict", action="store_true", help="stop at what would be dropped")
    parser.add_argument(
        "--least-answers",
        type=int,
        default=2,
        metavar="N",
        help="answers that a group must have (2; methods without a baseline take 1)",
    )
    return parser


def _load(options: argparse.Namespace) -> Examples:
    return load_examples(
        Path(options.file),
        options.form,
        refuse=options.strict,
        least_answers=options.least_answers,
    )


def _check(argv: list[str]) -> int:
    parser = _parser("check", "What a file holds, and what of it is unusable and why.")
    parser.add_argument("--json", action="store_true", help="print the facts as JSON")
    options = parser.parse_args(argv)
    examples = _load(options)
    report, facts = examples.report, _facts(examples.rows)
    if options.json:
        counts = {"form": report.form, "read": report.read, "usable": report.kept}
        lost = {"dropped": report.dropped, "answers_dropped": report.answers}
        print(json.dumps({**counts, **lost, **facts}, indent=1))
        return 0
    print("\n".join([*report.lines(), *(f"  {name}: {value}" for name, value in facts.items())]))
    return 0


def _relabel(argv: list[str]) -> int:
    parser = _parser("relabel", "Make new examples from those of a file, by their rewards.")
    parser.add_argument("--out", required=True, metavar="FILE", help="new .jsonl or .parquet")
    ways = parser.add_mutually_exclusive_group(required=True)
    ways.add_argument(
        "--goals",
        action="store_true",
        help="pairs: each twice, with the chosen and with the rejected score as its goal",
    )
    ways.add_argument(
        "--pairs", choices=("best-worst", "all"), help="groups: pairs of answers that differ"
    )
    ways.add_argument(
        "--labels",
        type=float,
        metavar="REWARD",
        help="groups: single answers, welcome from this reward on",
    )
    ways.add_argument(
        "--demonstrations", action="store_true", help="groups: single answers, to be imitated"
    )
    ways.add_argument("--unpair", action="store_true", help="pairs: single answers")
    ways.add_argument(
        "--rewards",
        choices=("par", "lsc", "and", "corrected"),
        help="groups: rewards bounded by references, or freed of a verifier's errors",
    )
    more = parser.add_argument_group("settings of these")
    more.add_argument("--template", help="of a goal, with {score} in it")
    more.add_argument(
        "--margin", type=float, help="by which rewards of a pair differ (more than 0)"
    )
    more.add_argument("-k", type=float, help="steepness of par (1)")
    more.add_argument("--level", type=float, help="quantile of the references of lsc and and (.85)")
    more.add_argument("--false-positive", type=float, metavar="RATE", help="of corrected (0)")
    more.add_argument("--false-negative", type=float, metavar="RATE", help="of corrected (0)")
    options = parser.parse_args(argv)
    settings = _settings(options)
    examples = _load(options)
    from offrl.lm import curation

    note = ""
    made: Sequence[Example]
    if options.goals:
        made, ties = curation.with_goals(_of(examples, Pair, "--goals"), **settings)
        note = f"; {ties:,} pairs of equal scores left out" if ties else ""
    elif options.unpair:
        made = curation.unpaired(_of(examples, Pair, "--unpair"))
    elif options.pairs:
        groups = _of(examples, Group, "--pairs")
        made, without = curation.paired(groups, options.pairs, **settings)
        note = f"; {without:,} groups gave no pair" if without else ""
    elif options.labels is not None:
        made = curation.labelled(_of(examples, Group, "--labels"), options.labels)
    elif options.demonstrations:
        made = curation.demonstrated(_of(examples, Group, "--demonstrations"))
    else:
        groups = _of(examples, Group, "--rewards")
        made = curation.with_rewards(groups, options.rewards, **settings)
    return _write(options, examples, made, note)


def _filter(argv: list[str]) -> int:
    parser = _parser("filter", "Write what is usable of a file, or a part of it.")
    parser.add_argument("--out", required=True, metavar="FILE", help="new .jsonl or .parquet")
    ways = parser.add_mutually_exclusive_group()
    ways.add_argument(
        "--rejection",
        type=float,
        metavar="BETA",
        help="groups: answers accepted with probability e^((reward - best) / BETA)",
    )
    ways.add_argument("--best", type=int, metavar="N", help="groups: the N best answers")
    ways.add_argument(
        "--resample",
        choices=("power", "best-worst", "best-random"),
        help="groups: answers drawn anew by weight of their rewards",
    )
    ways.add_argument(
        "--min-gap", type=float, metavar="GAP", help="pairs: scores at least this far apart"
    )
    ways.add_argument(
        "--lowest", metavar="COLUMN", help="the examples with the lowest numbers, such as ches"
    )
    more = parser.add_argument_group("settings of these")
    more.add_argument("--share", type=float, help="of --lowest, of all examples (.05)")
    more.add_argument("--seed", type=int, help="of what is drawn (0)")
    options = parser.parse_args(argv)
    settings = _settings(options)
    examples = _load(options)
    from offrl.lm import curation

    made: Sequence[Example] = examples.rows
    left, what = 0, "answers"
    if options.rejection is not None:
        groups = _of(examples, Group, "--rejection")
        made, left = curation.rejection_sampled(groups, options.rejection, **settings)
    elif options.best is not None:
        made, left = curation.best_of(_of(examples, Group, "--best"), options.best)
    elif options.resample:
        groups = _of(examples, Group, "--resample")
        made = curation.resampled(groups, options.resample, **settings)
    elif options.min_gap is not None:
        made, left = curation.far_apart(_of(examples, Pair, "--min-gap"), options.min_gap)
        what = "pairs"
    elif options.lowest:
        made, left = curation.lowest(examples.rows, options.lowest, **settings)
        what = "examples"
    return _write(options, examples, made, f"; {left:,} {what} left out" if left else "")


# Which settings belong to which way of relabelling or filtering.
SETTINGS = {
    "template": ("goals",),
    "margin": ("pairs",),
    "k": ("rewards=par",),
    "level": ("rewards=lsc", "rewards=and"),
    "false_positive": ("rewards=corrected",),
    "false_negative": ("rewards=corrected",),
    "share": ("lowest",),
    "seed": ("rejection", "resample"),
}


def _settings(options: argparse.Namespace) -> dict[str, Any]:
    """The settings that were given, each with the way that it belongs to."""
    given = {name: getattr(options, name, None) for name in SETTINGS}
    given = {name: value for name, value in given.items() if value is not None}
    for name in given:
        for way in SETTINGS[name]:
            option, _, value = way.partition("=")
            chosen = getattr(options, option, None)
            if chosen == value or (not value and chosen not in (None, False)):
                break
        else:
            ways = " or ".join("--" + way.replace("=", " ") for way in SETTINGS[name])
            dashes = "-" if len(name) == 1 else "--"
            raise ConfigError(f"{dashes}{name.replace('_', '-')} has a meaning with {ways} alone")
    return given


def _of(examples: Examples, kind: type[Any], option: str) -> list[Any]:
    if not isinstance(examples.rows[0], kind):
        forms = {"Pair": "pairs", "Group": "groups"}
        raise ConfigError(
            f"{option} takes {forms[kind.__name__]}, and {examples.report.source} holds "
            f"{examples.form}"
        )
    return list(examples.rows)


def _write(
    options: argparse.Namespace, examples: Examples, made: Sequence[Example], note: str
) -> int:
    if not made:
        raise ConfigError(f"nothing of {options.file} is left, so nothing is written{note}")
    count = write_records(Path(options.out), (row.record() for row in made))
    print("\n".join(examples.report.lines()))
    print(f"{options.out}: {count:,} examples{note}")
    return 0


def _facts(rows: Sequence[Example]) -> dict[str, Any]:
    """What is worth knowing of usable examples."""
    groups = [row for row in rows if isinstance(row, Group)]
    pairs = [row for row in rows if isinstance(row, Pair)]
    labels = [row for row in rows if isinstance(row, Labelled)]
    if groups:
        sizes = [len(group.rewards) for group in groups]
        rewards = [reward for group in groups for reward in group.rewards]
        return {
            "answers": sum(sizes),
            "answers of a group": f"{min(sizes)} to {max(sizes)}",
            "rewards": f"{min(rewards):g} to {max(rewards):g}, mean {_mean(rewards):g}",
            "groups whose rewards agree": sum(len(set(group.rewards)) == 1 for group in groups),
            "groups with behavior_logps": sum(g.behavior_logps is not None for g in groups),
        }
    if pairs:
        gaps = [
            pair.chosen_score - pair.rejected_score
            for pair in pairs
            if pair.chosen_score is not None and pair.rejected_score is not None
        ]
        return {
            "pairs with scores": len(gaps),
            "pairs whose rejected answer scores at least as high": sum(gap <= 0 for gap in gaps),
        }
    return {"welcome": sum(row.label for row in labels)} if labels else {}


def _mean(numbers: Sequence[float]) -> float:
    return sum(numbers) / len(numbers)


def _methods(argv: list[str]) -> int:
    parser = Parser("offrl lm methods", description="Losses: what they need, and their twins.")
    parser.add_argument(
        "match", nargs="?", default="", help="only those whose name or text contains this"
    )
    options = parser.parse_args(argv)
    from offrl.lm.losses import LEFT_OUT, METHODS, describe
    from offrl.lm.losses.groups import GROUP_METHODS

    word, lines = options.match.lower(), []
    for family, methods in METHODS.items():
        for name, method in methods.items():
            card = describe(method)
            if word in f"{name} {inspect.getdoc(method)}".lower():
                lines.append((family, name, card.data or DATA[family], card.twin))
    for name, group in GROUP_METHODS.items():
        if word in f"{name} {group.paper}":
            data = "groups with rewards" + (
                "" if group.any_data else ", sampler's log-probabilities"
            )
            lines.append(("group", name, data, f"arXiv:{group.paper}"))
    if not lines:
        raise ConfigError(f"neither name nor text of any method contains {options.match!r}")
    widths = [max(len(line[i]) for line in lines) for i in range(3)]
    for family, name, data, twin in lines:
        print(f"{family:{widths[0]}}  {name:{widths[1]}}  {data:{widths[2]}}  {twin}".rstrip())
    if not word:
        print("\nnot built, and why:")
        print("\n".join(f"  {name}: {reason}" for name, reason in LEFT_OUT.items()))
    return 0


# What the families need whose functions are parts of a loss.
DATA = {
    "advantage": "groups with rewards",
    "policy_gradient": "sampler's log-probabilities, advantages",
    "mask": "log-probabilities or entropies of tokens",
    "regularizer": "anchor's log-probabilities, or entropies",
    "transform": "groups with rewards, or pairs",
    "reward_model": "outcomes, or log-probabilities of two models",
}
