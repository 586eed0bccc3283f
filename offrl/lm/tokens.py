"""Examples as tokens, and batches of them.

A prompt is tokenised as the tokenizer does it by itself, special tokens included, an answer without
them and with the end-of-sequence token after it: the two stand beside each other as they do when a
model generates, and no token reaches across the border. A conversation goes through the tokenizer's
chat template; its answer is what the template adds to the prompt.

Rows are padded on the right. What cannot be used is dropped and counted: an answer that does not
fit with its prompt into `max_length`, and a text that the tokenizer does not know.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from offrl.errors import ConfigError, DataError
from offrl.lm.data import (
    Example,
    Examples,
    Group,
    Labelled,
    Pair,
    Report,
    Text,
    match_behavior,
)

Ids = tuple[int, ...]


@dataclass(frozen=True)
class Item:
    """One example: a prompt, its answers, and what is known of each."""

    prompt: Ids
    answers: tuple[Ids, ...]
    rewards: tuple[float, ...] = ()
    label: bool = False
    behavior: tuple[tuple[float, ...], ...] | None = None  # per token of each answer
    columns: Mapping[str, float] = field(default_factory=dict)
    reference: tuple[tuple[float, ...], ...] | None = None  # per token of each answer
    row: int = 0  # place among the examples
    kept: tuple[int, ...] = ()  # places of these answers among the example's
    steps: tuple[tuple[float, ...], ...] | None = None  # token_rewards of each answer


def tokenize(
    examples: Examples,
    tokenizer: Any,
    *,
    max_length: int,
    columns: Sequence[str] = (),
    behavior: str = "no",
    least_answers: int = 2,
    steps: bool = False,
) -> list[Item]:
    """The examples as tokens; what is dropped is counted in their report.

    `columns` are numbers of each example that the loss reads. `behavior` says whether the
    sampler's log-probabilities must be there for each token ("tokens"), at least as sums ("sums"),
    are used where they are there ("if there"), or are not looked at ("no"). With `steps` the
    token_rewards of groups are read where they are there. Raises DataError where one of these is
    missing or fits the tokens of this tokenizer badly, or where nothing is left, and ConfigError
    where the tokenizer cannot end an answer.
    """
    if tokenizer.eos_token_id is None:
        raise ConfigError(
            "the tokenizer has no end-of-sequence token, so that answers would never end; set "
            "eos_token in its tokenizer_config.json"
        )
    report = examples.report
    some = any(isinstance(row, Group) and row.behavior_logps is not None for row in examples.rows)
    behavior = "no" if behavior == "if there" and not some else behavior
    items = []
    for number, row in enumerate(examples.rows, 1):
        place = f"{report.source}, usable example {number}"
        item = _item(row, tokenizer, place, columns, behavior)
        if steps and isinstance(row, Group):
            item = replace(item, steps=_steps(row, item, place))
        kept = _fitting(item, tokenizer, max_length, report, place)
        if not item.rewards and not kept:
            continue
        if item.rewards and len(kept) < least_answers:
            report.drop(f"fewer than {least_answers} answers are left", place)
            continue
        items.append(replace(_taking(item, kept), row=number - 1, kept=tuple(kept)))
    report.kept = len(items)
    if not items:
        raise DataError("no usable example is left; " + "; ".join(report.lines()))
    return items


def _item(row: Example, tokenizer: Any, place: str, columns: Sequence[str], behavior: str) -> Item:
    texts: tuple[Text, ...]
    if isinstance(row, Pair):
        texts = row.chosen, row.rejected
    elif isinstance(row, Group):
        texts = row.completions
    else:
        texts = (row.completion,)
    coded = [_encode(tokenizer, row.prompt, text, place) for text in texts]
    return Item(
        coded[0][0],
        tuple(answer for _, answer in coded),
        rewards=row.rewards if isinstance(row, Group) else (),
        label=row.label if isinstance(row, Labelled) else not isinstance(row, Group),
        behavior=_behavior(row, [len(answer) for _, answer in coded], behavior, place),
        columns={name: _number(row, name, place) for name in columns},
    )


def _encode(tokenizer: Any, prompt: Text, answer: Text, place: str) -> tuple[Ids, Ids]:
    if isinstance(prompt, str) and isinstance(answer, str):
        before = list(tokenizer(prompt)["input_ids"])
        after = list(tokenizer(answer, add_special_tokens=False)["input_ids"])
        if before and before[-1] == tokenizer.eos_token_id:
            before.pop()  # some tokenizers end every text
        after.append(tokenizer.eos_token_id)
    else:
        before, after = _templated(tokenizer, prompt, answer, place)
    if not before:
        first = tokenizer.bos_token_id
        before = [tokenizer.eos_token_id if first is None else first]
    return tuple(before), tuple(after)


def _templated(
    tokenizer: Any, prompt: Text, answer: Text, place: str
) -> tuple[list[int], list[int]]:
    if not tokenizer.chat_template:
        raise DataError(
            f"{place} is a conversation and the tokenizer has no chat template; write texts, or "
            "use a model that was made for conversations"
        )
    said = prompt if isinstance(prompt, list) else [{"role": "user", "content": prompt}]
    reply = answer if isinstance(answer, list) else [{"role": "assistant", "content": answer}]
    before = tokenizer.apply_chat_template(said, add_generation_prompt=True, tokenize=False)
    whole = tokenizer.apply_chat_template([*said, *reply], tokenize=False)
    if not whole.startswith(before):
        raise DataError(
            f"{place}: the chat template writes the prompt otherwise once an answer follows, so "
            "that no answer can be cut out; write the example as texts"
        )
    rest = whole[len(before) :]
    coded = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in (before, rest)]
    return list(coded[0]), list(coded[1])


def _behavior(
    row: Example, tokens: list[int], wanted: str, place: str
) -> tuple[tuple[float, ...], ...] | None:
    """What the sampler thought of each token; a sum stands at the first token, with zeros after."""
    if wanted == "no":
        return None
    given = row.behavior_logps if isinstance(row, Group) else None
    if not isinstance(row, Group) or given is None:
        raise DataError(
            f"{place} has no behavior_logps, which this method needs; `offrl lm score --behavior` "
            "with the model that sampled writes them"
        )
    match_behavior(row, tokens, place)
    found = []
    for i, (value, count) in enumerate(zip(given, tokens, strict=True)):
        if isinstance(value, list | tuple):
            numbers = [float(number) for number in value]
        elif wanted == "sums":
            numbers = [float(value)] + [0.0] * (count - 1)
        else:
            raise DataError(
                f"{place}: behavior_logps[{i}] is one number and this method needs one for each "
                "token; `offrl lm score --behavior` writes them, rloo, topr and opmd take sums"
            )
        if not all(number <= 1e-3 for number in numbers):
            raise DataError(
                f"{place}: behavior_logps[{i}] holds {max(numbers):g}; log-probabilities are at "
                "most 0"
            )
        found.append(tuple(numbers))
    return tuple(found)


def _steps(row: Group, item: Item, place: str) -> tuple[tuple[float, ...], ...] | None:
    """What the answers' tokens were worth by themselves; None where it is not told."""
    if row.token_rewards is None:
        return None
    for i, (numbers, answer) in enumerate(zip(row.token_rewards, item.answers, strict=True)):
        if len(numbers) != len(answer):
            raise DataError(
                f"{place}: answer {i + 1} has {len(numbers)} token_rewards and {len(answer)} "
                "tokens by this tokenizer, the one that ends it included; there must be one for "
                "each"
            )
    return row.token_rewards


def _number(row: Example, name: str, place: str) -> float:
    value = row.record().get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value:
        raise DataError(
            f"{place}: column {name!r} is {value!r}; a setting of the method reads a number there"
        )
    return float(value)


def _fitting(item: Item, tokenizer: Any, max_length: int, report: Report, place: str) -> list[int]:
    """Which answers can be used; a pair of which one cannot is not used at all."""
    unknown = tokenizer.unk_token_id
    if unknown == tokenizer.eos_token_id:  # for which some tokenizers use the same token
        unknown = None
    reasons = []
    for answer in item.answers:
        reason = ""
        if len(item.prompt) + len(answer) > max_length:
            reason = f"prompt and answer are longer than {max_length} tokens (max_length)"
        elif unknown is not None and unknown in (*item.prompt, *answer):
            reason = "the tokenizer does not know a part of the text"
        reasons.append(reason)
    lost = [reason for reason in reasons if reason]
    if not item.rewards:
        if lost:
            report.drop(lost[0], place)
        return [] if lost else list(range(len(item.answers)))
    for reason in lost:
        report.drop(reason, place, whole=False)
    return [i for i, reason in enumerate(reasons) if not reason]


def _taking(item: Item, kept: list[int]) -> Item:
    if len(kept) == len(item.answers):
        return item
    behavior = None if item.behavior is None else tuple(item.behavior[i] for i in kept)
    steps = None if item.steps is None else tuple(item.steps[i] for i in kept)
    return replace(
        item,
        answers=tuple(item.answers[i] for i in kept),
        rewards=tuple(item.rewards[i] for i in kept),
        behavior=behavior,
        steps=steps,
    )


def pad_of(tokenizer: Any) -> int:
    """The id that fills rows; where there is none, another does: what it fills is masked."""
    pad = tokenizer.pad_token_id
    return int(tokenizer.eos_token_id if pad is None else pad)


def _by_token(item: Item) -> list[tuple[float, ...]]:
    """The reward of each token of each answer: its own, and at the last that of the answer."""
    steps = item.steps or [(0.0,) * len(answer) for answer in item.answers]
    return [
        (*own[:-1], own[-1] + reward) if own else ()
        for own, reward in zip(steps, item.rewards, strict=True)
    ]


# -- batches ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Collator:
    """Items -> tensors of a micro-batch; one row for each answer that exists.

    input_ids, attention_mask, mask   (row, token); the mask is 1 on the answer
    place, member                     (example, answer): the row of each, and whether it exists
    ref_logp, old_logp                (row, token), 0 outside the mask, where known
    rewards (example, answer), label (example), columns by name (example)
    token_rewards                     (row, token), the answer's reward at its last token, if wanted
    first                             the first place of any answer, before which nothing counts
    count                             items whose losses are added up
    """

    pad: int
    counted: str = "examples"
    mismatched: bool = False
    token_rewards: bool = False

    def __call__(self, items: Sequence[Item]) -> dict[str, Any]:
        widest = max(len(item.answers) for item in items)
        rows = [(item.prompt, answer) for item in items for answer in item.answers]
        batch: dict[str, Any] = self._rows(rows)
        place = torch.zeros(len(items), widest, dtype=torch.long)
        member = torch.zeros(len(items), widest, dtype=torch.bool)
        rewards, next_row = torch.zeros(len(items), widest), 0
        for i, item in enumerate(items):
            size = len(item.answers)
            place[i, :size] = torch.arange(next_row, next_row + size)
            member[i, :size] = True
            if item.rewards:
                rewards[i, :size] = torch.tensor(item.rewards)
            next_row += size
        batch |= {"place": place, "member": member, "rewards": rewards}
        batch["label"] = torch.tensor([item.label for item in items])
        for name in items[0].columns:
            batch[name] = torch.tensor([item.columns[name] for item in items])
        for name, key in (("reference", "ref_logp"), ("behavior", "old_logp")):
            if getattr(items[0], name) is not None:
                known = [logps for item in items for logps in getattr(item, name)]
                batch[key] = self._beside(rows, known, batch["mask"].shape[1])
        if self.token_rewards:
            known = [numbers for item in items for numbers in _by_token(item)]
            batch["token_rewards"] = self._beside(rows, known, batch["mask"].shape[1])
        if self.mismatched and len(items) > 1:
            others = [
                (item.prompt, items[(i + 1) % len(items)].answers[0])
                for i, item in enumerate(items)
            ]
            batch["mismatched"] = self._rows(others)
        counts = {"examples": len(items), "answers": len(rows), "tokens": int(batch["mask"].sum())}
        batch["count"] = torch.tensor(counts[self.counted])
        return batch

    def _rows(self, rows: Sequence[tuple[Ids, Ids]]) -> dict[str, Any]:
        longest = max(len(prompt) + len(answer) for prompt, answer in rows)
        ids = torch.full((len(rows), longest), self.pad)
        attention, mask = torch.zeros_like(ids), torch.zeros_like(ids)
        for i, (prompt, answer) in enumerate(rows):
            end = len(prompt) + len(answer)
            ids[i, :end] = torch.tensor((*prompt, *answer))
            attention[i, :end] = 1
            mask[i, len(prompt) : end] = 1
        first = min(len(prompt) for prompt, _ in rows)
        return {"input_ids": ids, "attention_mask": attention, "mask": mask, "first": first}

    def _beside(
        self, rows: Sequence[tuple[Ids, Ids]], known: Sequence[Sequence[float]], longest: int
    ) -> Tensor:
        """Numbers of the answers' tokens, at the places of these tokens."""
        beside = torch.zeros(len(rows), longest)
        for i, ((prompt, answer), logps) in enumerate(zip(rows, known, strict=True)):
            beside[i, len(prompt) : len(prompt) + len(answer)] = torch.tensor(logps)
        return beside
