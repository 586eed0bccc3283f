"""Optimisers and target averages, elementwise, so that stacked learners never mix."""

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

M = TypeVar("M", bound=nn.Module)


def adam(parameters: Iterable[nn.Parameter], lr: float) -> Adam:
    """Adam (arXiv:1412.6980) in one fused kernel, its learning rate a tensor on the device."""
    return Adam(list(parameters), lr=torch.tensor(lr), fused=True)


def set_lr(optimizer: Optimizer, lr: float) -> None:
    """Change the learning rate in place, so that a captured graph sees it."""
    for group in optimizer.param_groups:
        group["lr"].fill_(lr)


def move_rates(optimizers: Iterable[Optimizer], device: torch.device) -> None:
    """Learning rates go where the parameters went."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["lr"].to(device)


@contextmanager
def products_in(precision: str) -> Iterator[None]:
    """Matrix products of float32 tensors with factors rounded to 'bfloat16', or 'float32'.

    Sums, weights and everything else stay float32. Where the processor has no such products,
    nothing changes.
    """
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium" if precision == "bfloat16" else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


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
