"""The MLP denoiser, level embeddings, and what every backbone keeps."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import layer_norm, mish

from offrl.backbones import BACKBONES, MLPDenoiser, backbone_from_spec
from offrl.embeddings import Fourier, LevelEncoder, sinusoidal
from offrl.errors import ConfigError
from offrl.networks import Learners, learner_view

BATCH, SEEDS = 3, (4, 7)
SMALL: dict[str, Any] = {"hidden": 6, "depth": 2, "features": 4, "embed_hidden": 5, "embedding": 3}
BLOCKS = ("plain", "residual", "film")
FOURIER: dict[str, Any] = {"blocks": "residual", "level": "fourier", "dropout": 0.25}


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def denoiser(learners: Learners | None = None, **changes: Any) -> Any:
    return MLPDenoiser(4, 2, 6, learners or Learners((4,)), **{**SMALL, **changes}).double()


def inputs(*lead: int) -> tuple[Tensor, Tensor, Tensor]:
    return draw(*lead, BATCH, 4, 2), draw(*lead, BATCH, seed=1), draw(*lead, BATCH, 2, 3, seed=2)


def test_sinusoidal_features_by_hand() -> None:
    # Four features: frequencies 1 and 1/10000. Six: 1, 1/100, 1/10000.
    found = sinusoidal(torch.tensor([0.0, 2.0]).double(), 4)
    expected = [[0, 0, 1, 1], [math.sin(2), math.sin(2e-4), math.cos(2), math.cos(2e-4)]]
    expected_tensor = torch.tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(found, expected_tensor, rtol=0, atol=1e-12)
    assert sinusoidal(torch.tensor(3.0).double(), 6)[1].item() == pytest.approx(math.sin(0.03))


def test_fourier_features_by_hand() -> None:
    made = Fourier(4, Learners((4, 7))).double()
    with torch.no_grad():
        made.frequency.copy_(torch.tensor([[[0.5, 0.25]], [[1.0, 0.125]]]))
    found = made(torch.tensor([[1.0], [2.0]]).double())
    # Angles pi and pi/2 for the first learner, 4 pi and pi/2 for the second.
    expected = torch.tensor([[[-1.0, 0.0, 0.0, 1.0]], [[1.0, 0.0, 0.0, 1.0]]]).double()
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    assert Fourier(400, Learners()).frequency.std().item() == pytest.approx(0.2, rel=0.15)


@pytest.mark.parametrize("size", [2, 5])
def test_odd_numbers_of_features_are_refused(size: int) -> None:
    with pytest.raises(ConfigError, match=f"{size} sinusoidal features"):
        sinusoidal(torch.zeros(1), size)
    with pytest.raises(ConfigError, match="3 Fourier features"):
        Fourier(3, Learners())


def test_a_level_is_encoded_by_two_layers() -> None:
    made = LevelEncoder(4, 5, 3, Learners()).double()
    level = draw(BATCH)
    hidden = mish(sinusoidal(level, 4) @ made.first.weight + made.first.bias)
    expected = hidden @ made.second.weight + made.second.bias
    torch.testing.assert_close(made(level), expected, rtol=0, atol=1e-12)


def test_plain_blocks_by_hand() -> None:
    net = denoiser()
    x, level, cond = inputs()
    h = torch.cat([x.flatten(1), net.level(level), cond.flatten(1)], -1)
    for layer in (net.first, net.blocks[0]):
        h = mish(h @ layer.weight + layer.bias)
    expected = (h @ net.last.weight + net.last.bias).reshape(BATCH, 4, 2)
    torch.testing.assert_close(net(x, level, cond), expected, rtol=0, atol=1e-12)


def test_residual_blocks_by_hand() -> None:
    net = denoiser(**FOURIER)
    x, level, cond = inputs()
    noise = {k: draw(*shape, seed=9) for k, shape in net.noise(BATCH).items()}
    assert {k: tuple(v.shape) for k, v in noise.items()} == {
        "dropout0": (BATCH, 6),
        "dropout1": (BATCH, 6),
    }
    # A quarter of normal numbers is below -0.6745.
    h = net.first(torch.cat([x.flatten(1), net.level(level), cond.flatten(1)], -1))
    for i, block in enumerate(net.blocks):
        d = h * (noise[f"dropout{i}"] > -0.6744897501960817) / 0.75
        d = layer_norm(d, (6,)) @ block.first.weight + block.first.bias
        h = h + mish(d) @ block.second.weight + block.second.bias
    expected = net.last(mish(h)).reshape(BATCH, 4, 2)
    torch.testing.assert_close(net(x, level, cond, noise), expected, rtol=0, atol=1e-12)
    assert not torch.allclose(net(x, level, cond), expected)


def test_film_blocks_by_hand() -> None:
    net = denoiser(blocks="film")
    x, level, cond = inputs()
    c = torch.cat([net.level(level), cond.flatten(1)], -1)
    h = net.first(x.flatten(1))
    for block in net.blocks:
        a, b = (mish(c) @ block.film.weight + block.film.bias).split(6, -1)
        g = mish(layer_norm(block.first(h), (6,)))
        h = h + mish(layer_norm(block.second((1 + a) * g + b), (6,)))
    expected = net.last(h).reshape(BATCH, 4, 2)
    torch.testing.assert_close(net(x, level, cond), expected, rtol=0, atol=1e-12)


def test_film_at_zero_is_the_identity() -> None:
    block = denoiser(blocks="film").blocks[0]
    with torch.no_grad():
        block.film.weight.zero_()
        block.film.bias.zero_()
    g = draw(BATCH, 6)
    assert torch.equal(block.modulate(g, draw(BATCH, 9)), g)


@pytest.mark.parametrize("changes", [{}, FOURIER, {"blocks": "film"}], ids=BLOCKS)
def test_a_stack_is_its_learners_alone(changes: dict[str, Any]) -> None:
    stacked = denoiser(Learners(SEEDS), **changes)
    x, level, cond = inputs(len(SEEDS))
    y = stacked(x, level, cond)
    for k, seed in enumerate(SEEDS):
        alone = denoiser(Learners((seed,)), **changes)
        view = learner_view(stacked, k)
        for name, value in alone.state_dict().items():
            assert torch.equal(view.state_dict()[name], value), name
        torch.testing.assert_close(alone(x[k], level[k], cond[k]), y[k], rtol=0, atol=1e-9)


@pytest.mark.parametrize("changes", [{}, FOURIER, {"blocks": "film"}], ids=BLOCKS)
def test_every_input_has_an_effect(changes: dict[str, Any]) -> None:
    net = denoiser(**changes)
    x, level, cond = inputs()
    y = net(x, level, cond)
    assert y.shape == x.shape
    assert torch.equal(net(x, level, cond.flatten(1)), y)
    for changed in ((x + 1, level, cond), (x, level + 1, cond), (x, level, cond + 1)):
        assert not torch.allclose(net(*changed), y)
    scaled = denoiser(**changes, level_scale=10.0)
    torch.testing.assert_close(scaled(x, level / 10, cond), y, rtol=0, atol=1e-10)


def test_the_published_sizes() -> None:
    # Locomotion: 17 observed numbers, 6 of action. Diffusion-QL: 16 -> 32 -> 16, three of 256.
    ql = MLPDenoiser(1, 6, 17, Learners())
    layers = (17 * 32 + 33 * 16) + (39 + 1) * 256 + 2 * 257 * 256 + 257 * 6
    assert sum(p.numel() for p in ql.parameters()) == layers == 144_438
    # IDQL: 64 -> 128 -> 128 with 32 frequencies, three blocks of 256 and 1024, each with a norm.
    published: dict[str, Any] = {"features": 64, "embed_hidden": 128, "embedding": 128}
    idql = MLPDenoiser(1, 6, 17, Learners(), blocks="residual", level="fourier", **published)
    layers = 32 + 65 * 128 + 129 * 128 + 152 * 256 + 3 * (512 + 257 * 1024 + 1025 * 256) + 257 * 6
    assert sum(p.numel() for p in idql.parameters()) == layers == 1_643_558


def test_residual_layers_begin_as_published() -> None:
    net = MLPDenoiser(2, 2, 60, Learners((1,)), blocks="residual", hidden=64, depth=1)
    block: Any = net.blocks[0]
    for layer, spread in ((block.first, 64**-0.5), (block.second, 256**-0.5)):
        assert layer.weight.std().item() == pytest.approx(spread, rel=0.03)
        assert layer.weight.abs().max().item() <= 2 * spread / 0.8796 + 1e-6
        assert layer.weight.abs().max().item() > 1.9 * spread / 0.8796
    bound = math.sqrt(6 / (80 + 64))
    assert 0.95 * bound < net.first.weight.abs().max().item() <= bound
    biases = [p for name, p in net.named_parameters() if name.endswith("bias")]
    assert all((b == 0).all() for b in biases)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"depth": 0}, "0 blocks of 6 units"),
        ({"dropout": 0.1}, "a dropout of 0.1 in plain blocks"),
        ({"blocks": "residual", "dropout": 1.0}, "a dropout of 1.0 in residual blocks"),
    ],
)
def test_what_cannot_work_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        denoiser(**changes)


MADE: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {
    "MLPDenoiser": ((4, 2, 6), {**SMALL, **FOURIER}),
    "UNet": ((4, 2, 6), {"channels": (4, 8), "groups": 2, "embedding": 4, "kernel": 3}),
    "CrossTransformer": ((4, 2, 2, 3), {"layers": 1, "heads": 2, "width": 4}),
    "InterleavedGPT": ((4, 2, 1, 3), {"layers": 1, "heads": 2, "width": 4}),
    "Field": ((4, 2, 6), {"hidden": [8, 8]}),
}


def test_every_backbone_is_tested_here() -> None:
    assert MADE.keys() == BACKBONES.keys()


@pytest.mark.parametrize("kind", MADE)
def test_a_spec_makes_the_same_backbone_again(kind: str) -> None:
    sizes, settings = MADE[kind]
    build: Any = BACKBONES[kind]
    net = build(*sizes, Learners((5,)), **settings)
    again: Any = backbone_from_spec(net.spec())
    again.load_state_dict(net.state_dict())
    x, level, _ = (part.float() for part in inputs())
    cond = draw(BATCH, 5 if kind == "InterleavedGPT" else 2, 3).float()
    assert torch.equal(again(x, level, cond), net(x, level, cond))
    view = learner_view(net, 0)
    assert torch.equal(view(x, level, cond), net(x, level, cond))


def test_an_unknown_backbone_is_refused_with_a_near_one() -> None:
    with pytest.raises(ConfigError, match=r"'Unet'.*did you mean 'UNet'"):
        backbone_from_spec({"type": "Unet"})


@pytest.mark.compiled
@pytest.mark.parametrize("changes", [{}, FOURIER, {"blocks": "film"}], ids=BLOCKS)
def test_compiled_equals_eager(changes: dict[str, Any]) -> None:
    net = denoiser(Learners(SEEDS), **changes)
    args = inputs(len(SEEDS))
    compiled: Any = torch.compile(net, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(*args), net(*args), rtol=0, atol=1e-12)
