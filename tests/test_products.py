"""How float32 matrices are multiplied."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from problems import Drift, walk

from offrl.agents import BC
from offrl.experiment import train
from offrl.products import may_round, products_in

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
SHAPES = [(256, 17, 256), (64, 256, 256), (2, 256, 300, 256), (6, 8, 256, 1)]


@pytest.mark.parametrize(("products", "rounded"), [("float32", False), ("bfloat16", True)])
def test_convolutions_are_rounded_as_products_are(products: str, rounded: bool) -> None:
    before = torch.backends.cudnn.allow_tf32
    with products_in(products, GPU):
        assert torch.backends.cudnn.allow_tf32 is rounded
        assert (torch.get_float32_matmul_precision() == "highest") is not rounded
    assert torch.backends.cudnn.allow_tf32 is before


@pytest.mark.parametrize("shape", SHAPES)
def test_float32_products_of_batches_are_not_rounded(shape: tuple[int, ...]) -> None:
    *stack, rows, inputs, outputs = shape
    rng = torch.Generator().manual_seed(0)
    x = torch.rand(*stack, rows, inputs, generator=rng)
    weight = torch.rand(*stack, inputs, outputs, generator=rng)
    for a, b in ((x, weight), (x, weight.mT.contiguous().mT), (x.mT.contiguous().mT, weight)):
        with products_in("float32", CPU):
            found = a @ b
        exact = a.double() @ b.double()
        assert ((found - exact).abs() / exact).max() < 1e-5  # bfloat16's factors are off by 4e-3


AMD = {"architecture": "x86_64", "avx512_bf16": True, "amx_bf16": False, "avx10_2": False}


@pytest.mark.parametrize(
    ("processor", "rounds"),
    [
        (AMD, False),
        ({**AMD, "amx_bf16": True}, True),
        ({**AMD, "avx10_2": True}, True),
        ({**AMD, "architecture": "arm64"}, True),
        ({"architecture": "x86_64", "amx_bf16": False}, True),  # nothing is known of AVX10.2
        ({}, True),
    ],
)
def test_processors_that_round_are_known(
    monkeypatch: pytest.MonkeyPatch, processor: dict[str, Any], rounds: bool
) -> None:
    assert may_round(processor) is rounds
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: processor)
    with products_in("float32", CPU):
        assert torch.get_float32_matmul_precision() == ("highest" if rounds else "medium")
    for products, device in (("float32", GPU), ("float32", None)):
        with products_in(products, device):
            assert torch.get_float32_matmul_precision() == "highest"


def test_all_that_a_run_learns_multiplies_by_the_library_for_batches(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: AMD)
    seen: dict[str, str] = {}

    def watched(name: str) -> Callable[..., Any]:
        method = getattr(BC, name)

        def call(*args: Any) -> Any:
            seen[name] = torch.get_float32_matmul_precision()
            return method(*args)

        return call

    for name in ("prepare", "update"):
        monkeypatch.setattr(BC, name, watched(name))
    settings = {"steps": 1, "batch_size": 4, "hidden": (4,), "eval_episodes": 1, "device": "cpu"}
    train("bc", walk(4), env=Drift, out=tmp_path / "run", **settings)
    assert seen == {"prepare": "medium", "update": "medium"}
    assert torch.get_float32_matmul_precision() == "highest"
