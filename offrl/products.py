"""How float32 matrices are multiplied: how exactly, and by which of torch's libraries."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def products_in(matmul: str, batches_on: torch.device | None = None) -> Iterator[None]:
    """Matrix products of float32 tensors: 'float32', or such that 'bfloat16' factors will do.

    Sums, weights and everything else stay float32. Where 'bfloat16' will do, a processor with AMX
    rounds the factors to it; a CUDA device rounds them to TensorFloat32, which has three more bits,
    and those of convolutions too. Other processors have nothing to gain by it and round nothing.
    On these, products of whole batches are oneDNN's in either case: torch's other library, MKL,
    leaves half the width of AMD's vectors unused, but is the quicker for a few rows.
    """
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    rounded = matmul == "bfloat16"
    on_processor = batches_on is not None and batches_on.type == "cpu"
    onednn = rounded or (on_processor and not may_round(torch.cpu.get_capabilities()))
    torch.set_float32_matmul_precision("medium" if onednn else "highest")
    torch.backends.cudnn.allow_tf32 = rounded
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


def may_round(processor: Mapping[str, Any]) -> bool:
    """Whether oneDNN rounds factors of float32 products if allowed to; yes where that is not known.

    `processor` is what `torch.cpu.get_capabilities` says. Of x86, those with AMX do, and those with
    AVX10.2 may.
    """
    x86 = processor.get("architecture") == "x86_64"
    return not x86 or any(processor.get(name, True) for name in ("amx_bf16", "avx10_2"))
