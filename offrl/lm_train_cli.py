"""`offrl lm train` and `offrl lm score`: language models on files of examples."""

import argparse
import os
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

from offrl.about import settings
from offrl.arguments import Parser
from offrl.errors import ConfigError
from offrl.lm.data import Form

USAGE = """usage: offrl lm train --method NAME --model PATH_OR_ID --data FILE --out DIR [settings]
       offrl lm train --resume DIR

methods, by what they need of the data:
{methods}

offrl lm train --method NAME --help shows every setting with that method's.
offrl lm methods says what each is; offrl lm data check what a file holds."""


def train(argv: list[str]) -> int:
    """Run `offrl lm train`; returns the exit code."""
    first = Parser("offrl lm train", add_help=False, allow_abbrev=False)
    first.add_argument("--method")
    first.add_argument("--resume")
    first.add_argument("-h", "--help", action="store_true")
    chosen, rest = first.parse_known_args(argv)
    if chosen.resume is not None:
        if rest or chosen.method:
            raise ConfigError(
                "--resume takes no other setting: a run goes on with those that it began with"
            )
        from offrl.lm.runs import resume

        _report(resume(Path(chosen.resume)), chosen.resume)
        return 0
    if chosen.method is None:
        if chosen.help or not argv:
            print(USAGE.format(methods=_methods()))
            return 0
        raise ConfigError("no method was named: --method NAME; offrl lm train --help lists them")
    return _train(chosen.method, argv)


def _methods() -> str:
    from offrl.lm.objectives import FORMS, names

    by_form: dict[str, list[str]] = {}
    for name, family in names().items():
        by_form.setdefault(FORMS[family], []).append(name)
    return "\n".join(f"  {form}: {' '.join(known)}" for form, known in by_form.items())


def _train(method: str, argv: list[str]) -> int:
    from offrl.lm.objectives import objective, options_of
    from offrl.lm.runs import LmRun, start
    from offrl.lm.trainer import LmTrainConfig

    names = _method_names(method)
    parser = Parser("offrl lm train", description=f"Train with {names}.", allow_abbrev=False)
    parser.add_argument("--method", required=True, help="name of a loss")
    _add_sources(parser)
    parser.add_argument("--out", required=True, metavar="DIR", help="new folder of the run")
    parser.add_argument("--reference-model", metavar="PATH_OR_ID", help="(the model as it begins)")
    own = parser.add_argument_group(f"settings of {method}")
    options = options_of(method)
    for option in options:
        default = "must be given" if option.default is None else f"{option.default}"
        what = option.about or "one of " * bool(option.choices) + ", ".join(option.choices)
        what += " a number, or a column of the data" if option.column else ""
        own.add_argument(_flag(option.name), metavar="VALUE", help=f"{what.strip()} ({default})")
    _add_config(parser.add_argument_group("settings of training"))
    given = parser.parse_args(argv)
    chosen = {
        option.name: option.parse(value)
        for option in options
        if (value := getattr(given, option.name)) is not None
    }
    objective(method, chosen)
    run = LmRun(
        method=method,
        model=given.model,
        data=given.data,
        options=chosen,
        config=LmTrainConfig(**{f.name: getattr(given, f.name) for f in fields(LmTrainConfig)}),
        tokenizer=given.tokenizer,
        reference_model=given.reference_model,
        form=given.form,
        strict=given.strict,
    )
    _report(start(run, Path(given.out)), given.out)
    return 0


def score(argv: list[str]) -> int:
    """Run `offrl lm score`; returns the exit code."""
    parser = Parser(
        "offrl lm score",
        description="Log-probabilities of the answers of a file under a model, as new columns.",
        allow_abbrev=False,
    )
    _add_sources(parser)
    parser.add_argument("--out", required=True, metavar="FILE", help="new .jsonl or .parquet")
    parser.add_argument("--reference-model", metavar="PATH_OR_ID", help="whose are written too")
    parser.add_argument(
        "--behavior",
        action="store_true",
        help="groups: write behavior_logps, token by token; the model is then the one that sampled",
    )
    parser.add_argument(
        "--beta",
        type=float,
        metavar="B",
        help="of a model that ilql trained: score log pi + B (Q - V), what it decodes from",
    )
    parser.add_argument("--ches", action="store_true", help="pairs: a column for filter --lowest")
    parser.add_argument("--max-length", type=int, default=1024, metavar="N", help="tokens (1024)")
    parser.add_argument("--micro-batch", type=int, default=8, metavar="N", help="at a time (8)")
    parser.add_argument(
        "--precision", choices=CHOICES["precision"], default="float32", help="of weights (float32)"
    )
    parser.add_argument("--cpu", action="store_true", help="stay on the CPU")
    given = parser.parse_args(argv)
    if min(given.max_length, given.micro_batch) < 1:
        raise ConfigError("--max-length and --micro-batch must be at least 1")
    if os.path.lexists(given.out):
        raise ConfigError(f"{given.out} exists and is not overwritten; choose another name")
    from offrl.lm.runs import score_file

    for line in score_file(given):
        print(line)
    return 0


def _method_names(method: str) -> str:
    """What a method is, in a sentence; raises ConfigError where there is none of that name."""
    from offrl.lm.losses import METHODS, describe
    from offrl.lm.objectives import UNTRAINED, names, objective

    if method not in names() or method in UNTRAINED:
        objective(method)
    family = names()[method]
    if family == "group":
        return f"{method}, on scored groups"
    return describe(METHODS[family][method]).summary.replace("%", "%%")


def _add_sources(parser: Parser) -> None:
    parser.add_argument("--model", required=True, metavar="PATH_OR_ID", help="folder, or hub name")
    parser.add_argument("--data", required=True, metavar="FILE", help="JSON lines or Parquet")
    parser.add_argument("--tokenizer", metavar="PATH_OR_ID", help="(of the model)")
    parser.add_argument("--form", choices=get_args(Form), help="of the data (by columns)")
    parser.add_argument("--strict", action="store_true", help="stop at what would be dropped")


def _add_config(group: argparse._ArgumentGroup) -> None:
    from offrl.lm.trainer import LmTrainConfig

    for setting in settings(LmTrainConfig()):
        about = f"{setting.comment} ({setting.default})".replace("%", "%%")
        flag, value = _flag(setting.name), setting.default
        if isinstance(value, bool):
            group.add_argument(flag, action="store_true", help=about)
            continue
        choices = CHOICES.get(setting.name)
        kind: Any = type(value)
        group.add_argument(
            flag, type=kind, default=value, choices=choices, help=about, metavar=_metavar(choices)
        )


CHOICES = {
    "schedule": ("linear", "cosine", "constant"),
    "precision": ("float32", "bfloat16"),
    "reference": ("auto", "copy", "adapter", "stored"),
}


def _metavar(choices: tuple[str, ...] | None) -> str:
    return "VALUE" if choices is None else "{" + ",".join(choices) + "}"


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _report(trainer: Any, out: str) -> None:
    if trainer.is_world_process_zero():
        print(f"{out}/model: {trainer.state.global_step:,} updates")
