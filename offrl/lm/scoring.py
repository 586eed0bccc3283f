"""Log-probabilities of answers under a model, for the trainer and for `offrl lm score`."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from offrl.errors import ConfigError, RunError
from offrl.lm.data import Demonstration, Example, Group, Labelled, Pair
from offrl.lm.losses.transforms import ches
from offrl.lm.models import answer_hidden, answer_logps, core_of, frozen
from offrl.lm.tokens import Collator, Item


def with_reference(
    items: Sequence[Item], reference: Any, pad: int, micro_batch: int, path: Path
) -> list[Item]:
    """The items with the reference's log-probabilities, kept in a safetensors file.

    They are computed where that file is absent. Raises RunError where it is of other data.
    """
    from safetensors import safe_open
    from safetensors.torch import save_file

    counts = [len(answer) for item in items for answer in item.answers]
    digest = hashlib.sha256(repr([(i.prompt, i.answers) for i in items]).encode()).hexdigest()
    if path.exists():
        with safe_open(path, "pt") as file:
            if (file.metadata() or {}).get("data") != digest:
                raise RunError(f"{path} is of other data; remove it, and it is computed anew")
            flat = file.get_tensor("logp")
    else:
        rows = score_answers(reference, items, pad, micro_batch)
        flat = torch.tensor([logp for row in rows for logp in row])
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.partial")
        save_file({"logp": flat}, partial, {"data": digest})
        partial.replace(path)
    pieces = iter([tuple(piece.tolist()) for piece in flat.split(counts)])
    return [replace(item, reference=tuple(next(pieces) for _ in item.answers)) for item in items]


def score_answers(
    model: Any, items: Sequence[Item], pad: int, micro_batch: int
) -> list[tuple[float, ...]]:
    """Log-probabilities of the tokens of every answer, in order."""
    collate, found = Collator(pad), []
    device = next(model.parameters()).device
    with frozen(model):
        for start in range(0, len(items), micro_batch):
            batch = _moved(collate(items[start : start + micro_batch]), device)
            logp, mask = answer_logps(model, batch, core_of(model))
            found += [
                tuple(row[inside].tolist())
                for row, inside in zip(logp.cpu(), mask.cpu() != 0, strict=True)
            ]
    return found


def ches_scores(model: Any, items: Sequence[Item], pad: int, micro_batch: int) -> list[float]:
    """CHES of every pair, from the states of the last layer."""
    collate, found = Collator(pad), []
    device = next(model.parameters()).device
    with frozen(model):
        for start in range(0, len(items), micro_batch):
            batch = _moved(collate(items[start : start + micro_batch]), device)
            hidden, mask = answer_hidden(model, batch)
            h, m = hidden[batch["place"]], mask[batch["place"]]
            found += ches(h[:, 0], m[:, 0], h[:, 1], m[:, 1]).tolist()
    return found


def _moved(batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
    return {k: v.to(device) if isinstance(v, Tensor) else v for k, v in batch.items()}


def scored(
    rows: Sequence[Example],
    items: Sequence[Item],
    logps: Sequence[tuple[float, ...]],
    reference: Sequence[tuple[float, ...]] | None = None,
    *,
    behavior: bool = False,
) -> list[dict[str, Any]]:
    """The examples' records with the log-probability of each answer, and the reference's.

        pairs                   chosen_logp, rejected_logp
        groups                  logps, a list; with `behavior` also behavior_logps, token by token
        labels, demonstrations  logp

    and the same with ref_ before logp. Raises ConfigError where `behavior` is asked of other forms.
    """
    records, next_answer = [], 0
    for item in items:
        mine = slice(next_answer, next_answer + len(item.answers))
        next_answer = mine.stop
        row = rows[item.row]
        if isinstance(row, Group):
            row = row.taking(item.kept)
        if behavior:
            if not isinstance(row, Group):
                raise ConfigError("--behavior writes behavior_logps, which groups alone have")
            row = replace(row, behavior_logps=tuple(list(logp) for logp in logps[mine]))
        record = row.record()
        for prefix, known in (("", logps), ("ref_", reference)):
            if known is not None:
                record |= _columns(row, prefix, [sum(logp) for logp in known[mine]])
        records.append(record)
    return records


def _columns(row: Example, prefix: str, sums: list[float]) -> dict[str, Any]:
    match row:
        case Pair():
            return {f"chosen_{prefix}logp": sums[0], f"rejected_{prefix}logp": sums[1]}
        case Group():
            return {f"{prefix}logps": sums}
        case Labelled() | Demonstration():
            return {f"{prefix}logp": sums[0]}


def agreement(
    items: Sequence[Item],
    logps: Sequence[tuple[float, ...]],
    reference: Sequence[tuple[float, ...]] | None,
) -> tuple[float, int]:
    """The share of pairs of answers that log L, or u, puts into their right order; and how many.

    Of pairs the chosen answer is right, of groups that of the greater reward; ties in reward are
    no pairs. NaN where there are none.
    """
    right, pairs, next_answer = 0, 0, 0
    for item in items:
        size = len(item.answers)
        places = range(next_answer, next_answer + size)
        next_answer += size
        ref = reference or [(0.0,)] * next_answer
        u = [sum(logps[i]) - sum(ref[i]) for i in places]
        worth = item.rewards or tuple(float(-i) for i in range(size))
        for i in range(size):
            for j in range(size):
                if worth[i] > worth[j]:
                    pairs += 1
                    right += u[i] > u[j]
    return (right / pairs if pairs else float("nan")), pairs
