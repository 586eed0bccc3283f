"""Examples of language-model methods: their four forms, and what is wrong with files of them.

    pairs           prompt, chosen, rejected; chosen_score and rejected_score where known
    labels          prompt, completion, label (true or false)
    groups          prompt, completions, rewards; behavior_logps and token_rewards where known
    demonstrations  prompt, completion

These are the columns of TRL's standard forms, and of scored groups, which TRL has no trainer for.
A text is a string or a conversation, a list of {"role": ..., "content": ...}. Where pairs are
conversations without a prompt, the prompt is the messages that both begin with.

What contradicts the form stops the reading with one message: a missing column, a text that is a
number, as many rewards as answers plus one. What is of the form and teaches nothing, or harms, is
dropped and counted: an empty answer, a chosen answer that is the rejected one, a reward that is
not a number, a group of one.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast, get_args

from offrl.errors import ConfigError, DataError, near
from offrl.lm.records import Record, read_records

Text = str | list[dict[str, str]]
Form = Literal["pairs", "labels", "groups", "demonstrations"]
COLUMNS: dict[Form, tuple[str, ...]] = {
    "pairs": ("prompt", "chosen", "rejected"),
    "groups": ("prompt", "completions", "rewards"),
    "labels": ("prompt", "completion", "label"),
    "demonstrations": ("prompt", "completion"),
}
# What some collections call these columns.
ALIASES = {"score_chosen": "chosen_score", "score_rejected": "rejected_score"}


@dataclass(frozen=True)
class Pair:
    """Two answers to a prompt, of which the first is preferred."""

    prompt: Text
    chosen: Text
    rejected: Text
    chosen_score: float | None = None
    rejected_score: float | None = None
    more: Record = field(default_factory=dict)  # the record's other columns

    def record(self) -> Record:
        scores = {"chosen_score": self.chosen_score, "rejected_score": self.rejected_score}
        known = {name: score for name, score in scores.items() if score is not None}
        texts = {"prompt": self.prompt, "chosen": self.chosen, "rejected": self.rejected}
        return {**texts, **known, **self.more}


@dataclass(frozen=True)
class Labelled:
    """An answer that was welcome or was not."""

    prompt: Text
    completion: Text
    label: bool
    more: Record = field(default_factory=dict)

    def record(self) -> Record:
        answer = {"prompt": self.prompt, "completion": self.completion, "label": self.label}
        return {**answer, **self.more}


@dataclass(frozen=True)
class Group:
    """Several answers to a prompt with a reward each, and what their sampler thought of them.

    `behavior_logps` has one entry per answer: the log-probabilities of its tokens, or their sum;
    `token_rewards` the rewards of its tokens, the one that ends it included, to which that of the
    answer is added at the last.
    """

    prompt: Text
    completions: tuple[Text, ...]
    rewards: tuple[float, ...]
    behavior_logps: tuple[Any, ...] | None = None
    more: Record = field(default_factory=dict)
    token_rewards: tuple[tuple[float, ...], ...] | None = None

    def record(self) -> Record:
        answers = {"completions": list(self.completions), "rewards": list(self.rewards)}
        if self.token_rewards is not None:
            answers["token_rewards"] = [list(numbers) for numbers in self.token_rewards]
        if self.behavior_logps is not None:
            answers["behavior_logps"] = list(self.behavior_logps)
        return {"prompt": self.prompt, **answers, **self.more}

    def taking(self, places: Sequence[int]) -> "Group":
        """The group of these answers, in this order, some perhaps more than once.

        Other columns that have one entry per answer go with the answers.
        """
        size = len(self.completions)
        more = {
            name: [value[i] for i in places]
            if isinstance(value, list) and len(value) == size and name in PER_ANSWER
            else value
            for name, value in self.more.items()
        }
        logps, steps = self.behavior_logps, self.token_rewards
        return Group(
            self.prompt,
            tuple(self.completions[i] for i in places),
            tuple(self.rewards[i] for i in places),
            None if logps is None else tuple(logps[i] for i in places),
            more,
            None if steps is None else tuple(steps[i] for i in places),
        )


PER_ANSWER = ("model_rewards", "raw_rewards")


@dataclass(frozen=True)
class Demonstration:
    """An answer to be imitated."""

    prompt: Text
    completion: Text
    more: Record = field(default_factory=dict)

    def record(self) -> Record:
        return {"prompt": self.prompt, "completion": self.completion, **self.more}


Example = Pair | Labelled | Group | Demonstration


@dataclass
class Report:
    """What was read of a source, and what was dropped for which reason."""

    source: str
    form: Form
    read: int = 0
    kept: int = 0
    dropped: dict[str, int] = field(default_factory=dict)  # reason -> examples
    answers: dict[str, int] = field(default_factory=dict)  # reason -> single answers of groups
    first: dict[str, str] = field(default_factory=dict)  # reason -> place of the first

    def drop(self, reason: str, place: str, whole: bool = True) -> None:
        """Count an example, or an answer of one."""
        counts = self.dropped if whole else self.answers
        counts[reason] = counts.get(reason, 0) + 1
        self.first.setdefault(reason, place)

    def lines(self) -> list[str]:
        """The report as text."""
        lines = [f"{self.source}: {self.form}, {self.kept:,} of {self.read:,} examples are usable"]
        for counts, what in ((self.dropped, "dropped"), (self.answers, "answers dropped")):
            lines += [
                f"  {what}: {number:,}, {reason} (first: {self.first[reason]})"
                for reason, number in counts.items()
            ]
        return lines


@dataclass(frozen=True)
class Examples:
    """Examples of one form, in the order of the file, and the report on their reading."""

    rows: tuple[Example, ...]
    report: Report

    @property
    def form(self) -> Form:
        return self.report.form


def load_examples(
    source: Path | str | Iterable[Any],
    form: str | None = None,
    *,
    refuse: bool = False,
    least_answers: int = 2,
) -> Examples:
    """Read a file, a folder, or any iterable of records, a `datasets.Dataset` for instance.

    Without `form` the first record's columns say it. With `refuse` what would be dropped raises
    instead. `least_answers` is how many answers a group must have; methods without a baseline of
    the group can do with 1. Raises DataError as the module's docstring says, and where nothing
    usable remains.
    """
    if form is not None and form not in get_args(Form):
        raise ConfigError(
            f"there is no form {form!r}{near(form, get_args(Form)) or ';'} the forms are "
            f"{', '.join(get_args(Form))}"
        )
    name = str(source) if isinstance(source, str | Path) else "the records given"
    report, rows = None, []
    for place, record in _records(source):
        record = {ALIASES.get(key, key): value for key, value in record.items()}
        if report is None:
            report = Report(name, cast(Form, form) if form else _form_of(record, place))
        report.read += 1
        try:
            row = _parse(record, report, place, least_answers, refuse)
        except _Unusable as reason:
            if refuse:
                raise DataError(f"{place}: {reason}; mend it, or let it be dropped") from None
            report.drop(str(reason), place)
            continue
        rows.append(row)
    if report is None:
        raise DataError(f"{name} holds no records")
    report.kept = len(rows)
    if not rows:
        raise DataError("no usable example is left; " + "; ".join(report.lines()))
    return Examples(tuple(rows), report)


def match_behavior(group: Group, tokens: Sequence[int], place: str) -> None:
    """Check that recorded log-probabilities are as many as the tokens of each answer.

    `tokens` are the counts by the tokenizer in use. Raises DataError where they differ: the sampler
    had another tokenizer, or a template that ends answers otherwise.
    """
    for i, (logps, count) in enumerate(zip(group.behavior_logps or (), tokens, strict=False)):
        if isinstance(logps, list) and len(logps) != count:
            raise DataError(
                f"{place}: answer {i + 1} has {len(logps)} behavior_logps and {count} tokens by "
                "this tokenizer; use the tokenizer of the model that sampled, or leave "
                "behavior_logps out"
            )


class _Unusable(Exception):
    """Why an example is dropped."""


def _records(source: Path | str | Iterable[Any]) -> Iterator[tuple[str, Record]]:
    if isinstance(source, str | Path):
        yield from read_records(Path(source))
        return
    for number, record in enumerate(source, 1):
        if not isinstance(record, Mapping):
            raise DataError(f"record {number} is a {type(record).__name__}; it must be a mapping")
        yield f"record {number}", dict(record)


def _form_of(record: Record, place: str) -> Form:
    for form, columns in COLUMNS.items():
        if set(columns[1:]) <= set(record):
            return form
    forms = "; ".join(f"{form}: {', '.join(columns)}" for form, columns in COLUMNS.items())
    raise DataError(
        f"{place} has the columns {', '.join(record) or '(none)'}, which are of no form; {forms}"
    )


def _parse(record: Record, report: Report, place: str, least_answers: int, refuse: bool) -> Example:
    form = report.form
    if form == "pairs" and "prompt" not in record:
        record = _with_prompt(record, place)
    for column in COLUMNS[form]:
        if column not in record:
            raise DataError(
                f"{place} has no column {column!r} but {', '.join(record) or 'none'}; {form} need "
                f"{', '.join(COLUMNS[form])}"
            )
    prompt = _text(record.pop("prompt"), "prompt", place)
    if form == "groups":
        return _group(prompt, record, report, place, least_answers, refuse)
    if form == "pairs":
        high, low = (
            _score(record.pop(column, None), column, place)
            for column in ("chosen_score", "rejected_score")
        )
        chosen, rejected = (
            _text(record.pop(column), column, place) for column in ("chosen", "rejected")
        )
        pair = Pair(prompt, chosen, rejected, high, low, record)
        if _empty(pair.chosen) or _empty(pair.rejected):
            raise _Unusable("an answer is empty")
        if pair.chosen == pair.rejected:
            raise _Unusable("chosen and rejected are the same")
        return pair
    completion = _text(record.pop("completion"), "completion", place)
    if _empty(completion):
        raise _Unusable("the answer is empty")
    if form == "demonstrations":
        return Demonstration(prompt, completion, record)
    label = record.pop("label")
    if not isinstance(label, bool):
        raise DataError(f"{place}: label is {label!r}; it must be true or false")
    return Labelled(prompt, completion, label, record)


def _group(
    prompt: Text, record: Record, report: Report, place: str, least: int, refuse: bool
) -> Group:
    completions, rewards = record.pop("completions"), record.pop("rewards")
    logps, steps = record.pop("behavior_logps", None), record.pop("token_rewards", None)
    lists = {"completions": completions, "rewards": rewards}
    lists |= {"behavior_logps": logps} if logps is not None else {}
    lists |= {"token_rewards": steps} if steps is not None else {}
    for name, value in lists.items():
        if not isinstance(value, list | tuple):
            raise DataError(f"{place}: {name} is {_shown(value)}; it must be a list")
        if len(value) != len(completions):
            raise DataError(
                f"{place}: {len(value)} {name} for {len(completions)} completions; there must be "
                "one for each"
            )
    texts = tuple(_text(text, f"completions[{i}]", place) for i, text in enumerate(completions))
    scores = tuple(_score(score, f"rewards[{i}]", place) for i, score in enumerate(rewards))
    reasons = [
        "an answer is empty" if _empty(text) else "a reward is not a finite number"
        for text, score in zip(texts, scores, strict=True)
        if _empty(text) or score is None
    ]
    if reasons and refuse:
        raise _Unusable(reasons[0])
    for reason in reasons:
        report.drop(reason, place, whole=False)
    group = Group(
        prompt,
        texts,
        tuple(math.nan if score is None else score for score in scores),
        None if logps is None else tuple(logps),
        record,
        None if steps is None else tuple(_step_rewards(s, i, place) for i, s in enumerate(steps)),
    )
    kept = [i for i, s in enumerate(group.rewards) if not (math.isnan(s) or _empty(texts[i]))]
    if len(kept) < least:
        few = "a group of one" if len(kept) == 1 else f"a group of {len(kept)}"
        raise _Unusable(f"{few} where {least} answers are needed")
    return group.taking(kept)


def _step_rewards(numbers: Any, answer: int, place: str) -> tuple[float, ...]:
    """The token_rewards of an answer; raises DataError where one is no finite number."""
    column = f"token_rewards[{answer}]"
    if not isinstance(numbers, list | tuple):
        raise DataError(f"{place}: {column} is {_shown(numbers)}; it must be a list of numbers")
    found = [_score(number, f"{column}[{t}]", place) for t, number in enumerate(numbers)]
    if None in found:
        raise DataError(
            f"{place}: {column}[{found.index(None)}] is not a finite number; mend it, or leave the "
            "answer out"
        )
    return tuple(number for number in found if number is not None)


def _with_prompt(record: Record, place: str) -> Record:
    """The record with the messages that chosen and rejected share as its prompt."""
    chosen, rejected = record.get("chosen"), record.get("rejected")
    if not (isinstance(chosen, list) and isinstance(rejected, list)):
        raise DataError(
            f"{place} has no column 'prompt'; pairs of strings need it, pairs of conversations "
            "must begin with the same messages"
        )
    same = 0
    while same < min(len(chosen), len(rejected)) - 1 and chosen[same] == rejected[same]:
        same += 1
    if same == 0:
        raise DataError(f"{place}: chosen and rejected share no first message, so have no prompt")
    rest = {"chosen": chosen[same:], "rejected": rejected[same:]}
    return {**record, "prompt": chosen[:same], **rest}


def _text(value: Any, column: str, place: str) -> Text:
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        for message in value:
            fine = isinstance(message, Mapping) and all(
                isinstance(message.get(key), str) for key in ("role", "content")
            )
            if not fine:
                raise DataError(
                    f"{place}: {column} has the message {_shown(message)}; each must have a role "
                    "and a content that are strings"
                )
        return [dict(message) for message in value]
    raise DataError(
        f"{place}: {column} is {_shown(value)}; it must be a string or a list of messages"
    )


def _score(value: Any, column: str, place: str) -> float | None:
    """A finite number; None where it is absent, NaN or infinite."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise DataError(f"{place}: {column} is {_shown(value)}; it must be a number")
    return float(value) if math.isfinite(value) else None


def _empty(text: Text) -> bool:
    if isinstance(text, str):
        return not text.strip()
    return not any(message["content"].strip() for message in text)


def _shown(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else shown[:57] + "..."
