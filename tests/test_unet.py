"""The U-Net against hand counts and a plain computation of its parts."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import conv1d, group_norm, linear

from offrl.errors import ConfigError
from offrl.networks import Learners
from offrl.unet import ResidualBlock, UNet

SMALL: dict[str, Any] = {"channels": (4, 8), "groups": 2, "embedding": 4, "kernel": 3}


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def small(**changes: Any) -> UNet:
    return UNet(8, 2, 6, Learners((3,)), **{**SMALL, **changes}).double()


def count(net: torch.nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def block(inputs: int, outputs: int, cond: int, kernel: int) -> int:
    """Two convolutions with bias and norm, scale and shift, and the way around."""
    first = (kernel * inputs + 1) * outputs + 2 * outputs
    second = (kernel * outputs + 1) * outputs + 2 * outputs
    around = (inputs + 1) * outputs if inputs != outputs else 0
    return first + second + (cond + 1) * 2 * outputs + around


def test_the_parameters_by_hand() -> None:
    # Level 4 -> 16 -> 4, down 2 -> 4 -> 8, middle 8, up 16 -> 4, all of kernel 3; condition 4 + 6.
    level = 5 * 16 + 17 * 4
    down = block(2, 4, 10, 3) + block(4, 4, 10, 3) + block(4, 8, 10, 3) + block(8, 8, 10, 3)
    between = (3 * 4 + 1) * 4 + (4 * 4 + 1) * 4
    middle, up = 2 * block(8, 8, 10, 3), block(16, 4, 10, 3) + block(4, 4, 10, 3)
    last = (3 * 4 + 1) * 4 + 2 * 4 + 5 * 2
    assert count(small()) == level + down + between + middle + up + last


def test_the_published_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("offrl.unet.redraw", lambda *_: None)
    # Push-T with key points: 2 x 20 observed numbers, 2 of action, 16 steps.
    parts = {
        "level": 525_568,
        "down": 1_293_568 + 5_333_504 + 20_104_192,
        "shrink": 196_864 + 786_944,
        "middle": 22_200_320,
        "up": 10_838_528 + 2_863_360,
        "grow": 1_049_088 + 262_400,
        "last": 328_448,
        "head": 514,
    }
    with torch.device("meta"):
        net = UNet(16, 2, 40, Learners())
    assert {name: count(part) for name, part in net.named_children()} == parts
    assert count(net) == 65_783_298


@pytest.mark.parametrize("scale", [True, False])
def test_a_block_is_what_the_equation_says(scale: bool) -> None:
    made = ResidualBlock(3, 4, 5, 3, 2, scale).double()
    x, cond = draw(2, 3, 8), draw(2, 5, seed=1)
    weights = dict(made.named_parameters())

    def half(name: str, x: Tensor) -> Tensor:
        h = conv1d(x, weights[f"{name}.conv.weight"], weights[f"{name}.conv.bias"], padding=1)
        h = group_norm(h, 2, weights[f"{name}.norm.weight"], weights[f"{name}.norm.bias"])
        return h * torch.tanh(torch.log1p(h.exp()))

    film = linear(
        cond * torch.tanh(torch.log1p(cond.exp())), weights["film.weight"], weights["film.bias"]
    )
    h = half("first", x)
    if scale:
        h = film[:, :4, None] * h + film[:, 4:, None]
    else:
        h = h + film[:, :, None]
    expected = half("second", h) + conv1d(x, weights["skip.weight"], weights["skip.bias"])
    torch.testing.assert_close(made(x, cond), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("scale", [True, False])
def test_modulation_by_one_and_zero_is_the_identity(scale: bool) -> None:
    made = ResidualBlock(4, 4, 5, 3, 2, scale).double()
    with torch.no_grad():
        made.film.weight.zero_()
        made.film.bias.zero_()
        if scale:
            made.film.bias[:4] = 1.0
    h = draw(2, 4, 8)
    assert torch.equal(made.modulate(h, draw(2, 5)), h)


def test_every_input_has_an_effect_and_samples_do_not_mix() -> None:
    net = small()
    x, level, cond = draw(3, 8, 2), torch.tensor([0.0, 3.0, 9.0]).double(), draw(3, 6)
    y = net(x, level, cond)
    assert y.shape == x.shape
    torch.testing.assert_close(net(x[1:2], level[1:2], cond[1:2])[0], y[1], rtol=0, atol=1e-12)
    assert not torch.allclose(net(x + 1, level, cond), y)
    assert not torch.allclose(net(x, level + 1, cond), y)
    assert not torch.allclose(net(x, level, cond + 1), y)
    torch.testing.assert_close(net(x, level, cond.reshape(3, 2, 3)), y, rtol=0, atol=0)
    scaled = small(level_scale=10.0)
    torch.testing.assert_close(scaled(x, level / 10, cond), y, rtol=0, atol=1e-10)


def test_first_weights_are_those_of_the_seed_and_spread_as_torchs() -> None:
    torch.manual_seed(0)
    one: Any = small(channels=(8, 16))
    torch.manual_seed(1)
    two = small(channels=(8, 16))
    for (name, a), b in zip(one.named_parameters(), two.parameters(), strict=True):
        assert torch.equal(a, b), name
    other = UNet(8, 2, 6, Learners((4,)), **{**SMALL, "channels": (8, 16)}).double()
    assert not torch.equal(other.head.weight, one.head.weight)
    for weight, inputs in ((one.shrink[0].weight, 3 * 8), (one.grow[0].weight, 4 * 8)):
        bound = 1 / math.sqrt(inputs)
        assert 0.9 * bound < weight.abs().max().item() <= bound
        assert weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.2)
    assert (one.last.norm.weight == 1).all() and (one.last.norm.bias == 0).all()


@pytest.mark.parametrize(
    ("horizon", "change", "message"),
    [
        (7, {}, r"horizon is 7; with 2 levels it must be a multiple of 2"),
        (8, {"channels": (4, 7)}, r"channels are \[4, 7\]; each must be a multiple of the 2"),
        (8, {"kernel": 4}, r"kernel is 4; it must be odd"),
    ],
)
def test_what_cannot_work_is_refused(horizon: int, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        UNet(horizon, 2, 6, Learners(), **{**SMALL, **change})


def test_several_learners_need_a_network_each() -> None:
    with pytest.raises(ConfigError, match="UNet is a network of one learner; 2 seeds"):
        UNet(8, 2, 6, Learners((1, 2)), **SMALL)


@pytest.mark.compiled
def test_compiled_equals_eager() -> None:
    net = small()
    args = draw(2, 8, 2), torch.ones(2).double(), draw(2, 6)
    compiled: Any = torch.compile(net, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(*args), net(*args), rtol=0, atol=1e-12)
