"""Sequences of known scores for the tests of language-model losses, and slips in their source."""

import dataclasses
import importlib.util
import types
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from offrl.lm.losses.scores import Scores

FIELDS = ("logp", "ref_logp", "old_logp", "prev_logp")


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


def single(logp: Tensor, ref: Tensor | None = None, **anchors: Tensor) -> Scores:
    """Sequences of one token: the score of a sequence is the number given."""
    given = {name: value[..., None] for name, value in anchors.items()}
    return Scores(
        logp[..., None],
        None if ref is None else ref[..., None],
        torch.ones_like(logp)[..., None],
        **given,
    )


def ragged(seed: int, *batch: int, tokens: int = 6) -> Scores:
    """Random log-probabilities under all four policies, of 1 to `tokens` tokens after a prompt."""
    values = [-draw(seed + i, *batch, tokens).square() - 0.1 for i in range(4)]
    length = 1 + (draw(seed + 4, *batch, 1).abs() * 3).long().clamp(max=tokens - 2)
    place = torch.arange(tokens)
    mask = (place >= 1) & (place <= length)  # the first token is the prompt's
    return Scores(values[0], values[1], mask.long(), values[2], values[3])


def altered(scores: Scores, change: Callable[[Tensor], Tensor]) -> Scores:
    """The same change of every tensor."""
    tensors = {f.name: getattr(scores, f.name) for f in dataclasses.fields(scores)}
    return Scores(**{k: None if v is None else change(v) for k, v in tensors.items()})


def padded(scores: Scores, left: int, right: int, value: float) -> Scores:
    """More tokens outside the mask on both sides, with this value."""

    def pad(x: Tensor) -> Tensor:
        fill = 0 if x.dtype == torch.int64 else value
        return torch.nn.functional.pad(x, (left, right), value=fill)

    return altered(scores, pad)


def tracked(scores: Scores) -> Scores:
    return dataclasses.replace(scores, logp=scores.logp.detach().clone().requires_grad_())


def gradients(loss: Tensor, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Of the loss's sum; zero where it does not depend on an input."""
    found = torch.autograd.grad(loss.sum(), inputs, allow_unused=True)
    return [torch.zeros_like(x) if g is None else g for g, x in zip(found, inputs, strict=True)]


def slope(f: Callable[..., Tensor], *at: Tensor) -> Tensor:
    """The gradient of f's sum in all arguments, in one row."""
    inputs = [x.detach().clone().requires_grad_() for x in at]
    return torch.cat([g.flatten() for g in gradients(f(*inputs), inputs)])


def faulty(name: str, function: str, old: str, new: str) -> types.ModuleType:
    """The module of offrl.lm.losses executed anew with `old` in the function become `new`."""
    spec = importlib.util.find_spec(f"offrl.lm.losses.{name}")
    assert spec is not None and spec.origin is not None
    source = Path(spec.origin).read_text()
    start = source.index(f"def {function}(")
    end = source.find("\ndef ", start)
    segment = source[start : end if end > 0 else len(source)]
    if segment.count(old) != 1:
        raise ValueError(f"{old!r} stands {segment.count(old)} times in {function}")
    module = types.ModuleType(f"faulty_{name}")
    changed = source.replace(segment, segment.replace(old, new))
    exec(compile(changed, spec.origin, "exec"), module.__dict__)
    return module
