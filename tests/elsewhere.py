"""A device that no machine lacks: tensors that claim to lie elsewhere, computed on the CPU.

Within `Elsewhere` torch's device `meta` stands for a GPU. A tensor that is sent or made there says
so and behaves so: it has no numpy array, no operator takes it together with a tensor of the host,
and what reads it back is counted. Its numbers are kept behind it, so that everything can be
computed, stored, and compared with the CPU's to the bit.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from offrl import nearest

DEVICE = torch.device("meta")
ATEN = torch.ops.aten
MOVES = (ATEN._to_copy.default, ATEN.copy_.default)
INDEXED = (ATEN.index.Tensor, ATEN.index_put.default, ATEN.index_put_.default)


class Crossing(AssertionError):
    """A tensor of the host where only tensors elsewhere belong."""


class There(Tensor):
    """A tensor elsewhere; `behind` has its numbers."""

    behind: Tensor

    @staticmethod
    def __new__(cls, real: Tensor) -> "There":
        there: There = Tensor._make_wrapper_subclass(
            cls,
            real.shape,
            strides=real.stride(),
            storage_offset=int(real.storage_offset()),
            dtype=real.dtype,
            device=DEVICE,
        )
        there.behind = real
        return there

    __torch_function__ = torch._C._disabled_torch_function_impl

    def tolist(self) -> Any:
        return self.cpu().tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise Crossing(f"{func} of a tensor elsewhere, outside of Elsewhere()")


class Elsewhere(TorchDispatchMode):
    """Where the device exists; `waits` counts how often the host has waited for it."""

    def __init__(self) -> None:
        super().__init__()
        self.waits = 0
        self._alone = False

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Refuse all that leaves the device or comes to it, and all that the host waits for."""
        self._alone = True
        try:
            yield
        finally:
            self._alone = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "offrl":  # an operator of ours, whose steps are to be seen as well
            with self:
                return nearest._searches[args[3]]._search(*args[:3])
        kwargs = dict(kwargs or {})
        if _is_made_of_others(func):
            with self:
                return func.decompose(*args, **kwargs)
        given = list(_tensors((args, kwargs)))
        there = [isinstance(x, There) for x in given]
        asked = kwargs.pop("device", None)
        if func in MOVES:
            goes = there[0] if asked is None else torch.device(asked) == DEVICE
        elif asked is not None:
            goes = torch.device(asked) == DEVICE
        else:
            goes = any(there)
            self._refuse_mixture(func, given)
        if any(there) and self._waits(func, given, goes):
            self.waits += 1
            if self._alone:
                raise Crossing(f"{func} makes the host wait for the device")
        if self._alone and not all(there):
            raise Crossing(f"{func} takes a tensor of the host")
        found = func(*_real(args), **_real(kwargs))
        if self._alone and not goes and any(True for _ in _tensors(found)):
            raise Crossing(f"{func} makes a tensor of the host")
        if func._schema.is_mutable:
            own = {id(x.behind): x for x in given if isinstance(x, There)}
            return _map(found, lambda x: own.get(id(x), x))
        return _map(found, There) if goes else found

    @staticmethod
    def _refuse_mixture(func: Any, given: list[Tensor]) -> None:
        """As CUDA does, which takes single numbers of the host with any tensor."""
        if not any(isinstance(x, There) for x in given):
            return
        for x in given:
            if not isinstance(x, There) and x.ndim:
                raise Crossing(
                    f"{func} of tensors on the device and of {tuple(x.shape)} on the host"
                )

    @staticmethod
    def _waits(func: Any, given: list[Tensor], goes: bool) -> bool:
        if func in MOVES:
            return not goes and isinstance(given[-1], There)
        if func in INDEXED:  # by a mask: how many entries that is, the host has to know
            return any(x.dtype in (torch.bool, torch.uint8) for x in given[1:])
        tags = torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape
        return any(tag in func.tags for tag in tags)


@contextmanager
def elsewhere(patch: pytest.MonkeyPatch) -> Iterator[Elsewhere]:
    """`Elsewhere`, in which networks move there and fused optimisers work there."""
    patch.setattr("offrl.training.choose_device", torch.device)
    optimizers = import_module("torch.optim.optimizer")
    patch.setattr(optimizers, "_get_fused_kernels_supported_devices", lambda: ["cpu", DEVICE.type])
    before = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        with Elsewhere() as mode:
            yield mode
    finally:
        torch.__future__.set_swap_module_params_on_conversion(before)


@cache
def _is_made_of_others(func: Any) -> bool:
    """Whether an operator is defined by others alone, of which some depend on the device."""
    return func.has_kernel_for_dispatch_key(torch._C.DispatchKey.CompositeImplicitAutograd)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))


def _map(value: Any, function: Any) -> Any:
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, list | tuple):
        return type(value)(_map(x, function) for x in value)
    if isinstance(value, dict):
        return {k: _map(x, function) for k, x in value.items()}
    return value


def _real(value: Any) -> Any:
    return _map(value, lambda x: x.behind if isinstance(x, There) else x)
