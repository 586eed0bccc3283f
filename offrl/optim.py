"""Optimisers, target averages and merged gradients, so that stacked learners never mix."""

import copy
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Adam, AdamW, Optimizer

from offrl.networks import Linear

M = TypeVar("M", bound=nn.Module)

# Gradients, one sequence per loss, and the axis of each parameter along which learners are stacked.
Combine = Callable[[Sequence[Sequence[Tensor]], Sequence[int | None]], Sequence[Tensor]]

SMALLEST_SQUARE = 1e-10  # of a gradient's norm, below which it is no direction to project on


def adam(parameters: Iterable[nn.Parameter], lr: float, weight_decay: float = 0.0) -> Adam:
    """Adam (arXiv:1412.6980) in one fused kernel, its learning rate a tensor on the device.

    `weight_decay` times the parameter is added to its gradient: Adam with an L2 term, not AdamW.
    """
    optimizer = Adam(list(parameters), lr=torch.tensor(lr), weight_decay=weight_decay, fused=True)
    optimizer.register_step_pre_hook(_lay_out)
    return optimizer


def adamw(
    net: nn.Module, lr: float, weight_decay: float, betas: tuple[float, float] = (0.9, 0.999)
) -> AdamW:
    """AdamW (arXiv:1711.05101) for a whole network, in the form of `adam`.

    Only the weights of layers and kernels shrink, by lr weight_decay of themselves in each step;
    biases, norms, embeddings and learned positions do not, as has been the custom since minGPT.
    """
    kinds = Linear, nn.Linear, nn.Conv1d, nn.ConvTranspose1d
    shrink = [part.weight for part in net.modules() if isinstance(part, kinds)]
    ids = {id(p) for p in shrink}
    rest = [p for p in net.parameters() if id(p) not in ids]
    groups = [
        {"params": part, "weight_decay": decay, "lr": torch.tensor(lr)}
        for part, decay in ((shrink, weight_decay), (rest, 0.0))
        if part
    ]
    optimizer = AdamW(groups, lr=lr, betas=betas, fused=True)
    optimizer.register_step_pre_hook(_lay_out)
    return optimizer


def _lay_out(optimizer: Optimizer, *_: Any) -> None:
    # On a CPU the fused kernel reads a gradient in the order of its memory, whatever its strides:
    # one that lies transposed, as that of a slope may, would move the wrong entries.
    for parameter in parameters_of(optimizer):
        if parameter.grad is not None:
            parameter.grad = parameter.grad.contiguous()


def set_lr(optimizer: Optimizer, lr: float) -> None:
    """Change the learning rate in place, so that a captured graph sees it."""
    for group in optimizer.param_groups:
        group["lr"].fill_(lr)


def cosine_rate(lr: float, step: int, steps: int) -> float:
    """lr (1 + cos(pi step / steps)) / 2: from lr at the first step to 0 after the last."""
    return lr * 0.5 * (1.0 + math.cos(math.pi * step / steps))


def rise(step: int, warmup: int) -> float:
    """(step + 1) / warmup in the first `warmup` steps, from then on 1; always 1 where it is 0."""
    return min((step + 1) / max(warmup, 1), 1.0)


def warm_cosine_rate(lr: float, step: int, steps: int, warmup: int) -> float:
    """lr (step + 1) / warmup in the first `warmup` steps, from then on lr down a cosine to 0."""
    if step < warmup:
        return lr * rise(step, warmup)
    return cosine_rate(lr, step - warmup, max(steps - warmup, 1))


def move_rates(optimizers: Iterable[Optimizer], device: torch.device) -> None:
    """Learning rates go where the parameters went."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["lr"].to(device)


def parameters_of(optimizer: Optimizer) -> list[Tensor]:
    """Everything that the optimiser moves, in its own order."""
    return [p for group in optimizer.param_groups for p in group["params"]]


def target_of(net: M) -> M:
    """A frozen copy, to be moved only by `polyak_update`."""
    return copy.deepcopy(net).requires_grad_(False)


@torch.no_grad()
def polyak_update(net: nn.Module, target: nn.Module, polyak: float) -> None:
    """target <- polyak net + (1 - polyak) target; buffers are copied."""
    torch._foreach_lerp_(list(target.parameters()), list(net.parameters()), polyak)
    for b, c in zip(net.buffers(), target.buffers(), strict=True):
        c.copy_(b)


def clip_norm(
    gradient: Sequence[Tensor], seed_axes: Sequence[int | None], most: float
) -> list[Tensor]:
    """g min(1, most / (|g| + 1e-6)) for each learner; `most` of 0 leaves g as it is.

    As in `orthogonal_add` a learner's gradient is one vector of all its parameters together.
    torch.nn.utils.clip_grad_norm_ would give the learners of a stack one norm between them.
    Source: arXiv:1211.5063; the 1e-6 is torch's.
    """
    if not most:
        return list(gradient)
    share = (most / (_dot(gradient, gradient, seed_axes).sqrt() + 1e-6)).clamp(max=1.0)
    return [_of_learners(share, g, axis) * g for g, axis in zip(gradient, seed_axes, strict=True)]


def clipping(most: float) -> Combine:
    """What makes of the gradient of an only loss one whose norm is at most this (`clip_norm`)."""

    def clip(
        gradients: Sequence[Sequence[Tensor]], seed_axes: Sequence[int | None]
    ) -> Sequence[Tensor]:
        return clip_norm(gradients[0], seed_axes, most)

    return clip


def orthogonal_add(
    main: Sequence[Tensor], aux: Sequence[Tensor], seed_axes: Sequence[int | None]
) -> list[Tensor]:
    """g_main + g_aux - (<g_main, g_aux> / max(|g_main|^2, 1e-10)) g_main, for each learner.

    A gradient is one vector of all parameters together, all members of an ensemble among them.
    `seed_axes` gives, for each parameter, the axis along which learners are stacked; each has an
    inner product of its own. A zero g_main leaves g_aux as it is.
    Source: ODICE (arXiv:2402.00348); the bound is that of its authors' code.
    """
    square = _dot(main, main, seed_axes).clamp(min=SMALLEST_SQUARE)
    coefficient = _dot(main, aux, seed_axes) / square
    return [
        g + h - _of_learners(coefficient, g, axis) * g
        for g, h, axis in zip(main, aux, seed_axes, strict=True)
    ]


def _of_learners(numbers: Tensor, like: Tensor, axis: int | None) -> Tensor:
    """A number per learner with the axes of a parameter, to multiply it by."""
    return numbers.reshape([-1 if i == axis else 1 for i in range(like.ndim)])


def _dot(a: Sequence[Tensor], b: Sequence[Tensor], seed_axes: Sequence[int | None]) -> Tensor:
    """<a, b> over all tensors: a number per learner, or one where there is no seed axis."""
    products = [
        (x * y).sum() if axis is None else (x * y).movedim(axis, 0).flatten(1).sum(-1)
        for x, y, axis in zip(a, b, seed_axes, strict=True)
    ]
    return torch.stack(products).sum(0)
