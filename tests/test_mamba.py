"""Mamba and its two grains: written out step by step, causal, and blind to padding."""

import math

import torch
from torch import Tensor
from torch.nn.functional import layer_norm, rms_norm, silu, softplus

from offrl.mamba import KERNEL, STATE, GrainState, Mamba, MambaState, TwoGrains
from offrl.networks import Learners

WIDTH = 6


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def ones(x: Tensor) -> Tensor:
    return torch.ones(x.shape[:2], dtype=x.dtype)


def mamba() -> Mamba:
    return Mamba(WIDTH, Learners((3,))).double()


def grains() -> TwoGrains:
    layer = TwoGrains(WIDTH, Learners((3,))).double()
    with torch.no_grad():
        layer.norm.weight.copy_(1.0 + 0.1 * normal(WIDTH))
        layer.fine_norm.bias.copy_(normal(WIDTH))
    return layer


def by_hand(net: Mamba, x: Tensor) -> Tensor:
    """One row, token after token, as the recurrence is stated."""
    p = dict(net.named_parameters())
    inner, rank = net.inner, net.rank
    h = torch.zeros(inner, STATE, dtype=x.dtype)
    window: list[Tensor] = []
    outputs: list[Tensor] = []
    for token in x:
        u, z = torch.split(p["into.weight"] @ token, inner)
        window = [*window, u][-KERNEL:]
        conv = p["conv.bias"].clone()
        for back, past in enumerate(reversed(window)):
            conv = conv + p["conv.weight"][:, 0, KERNEL - 1 - back] * past
        v = silu(conv)
        step, b, c = torch.split(p["select.weight"] @ v, [rank, STATE, STATE])
        delta = softplus(p["step_size.weight"] @ step + p["step_size.bias"])
        decay = torch.exp(-delta[:, None] * p["log_rates"].exp())
        h = decay * h + (delta * v)[:, None] * b
        y = h @ c + p["skip"] * v
        outputs.append(p["out.weight"] @ (y * silu(z)))
    return torch.stack(outputs)


def test_the_block_is_the_recurrence_as_it_is_stated() -> None:
    net, x = mamba(), normal(2, 11, WIDTH)
    y, _ = net(x, ones(x), net.empty(2))
    for row in range(2):
        torch.testing.assert_close(y[row], by_hand(net, x[row]), rtol=0, atol=1e-12)


def test_first_numbers_are_those_of_the_reference() -> None:
    net = Mamba(32, Learners((3,)))
    delta = softplus(net.step_size.bias.detach())
    assert 1e-3 <= delta.min() < 3e-3 and 4e-2 < delta.max() <= 1e-1 + 1e-6
    assert abs(float(delta.log().mean()) - math.log(1e-2)) < 0.4
    assert net.rank == 2 and net.inner == 64
    assert torch.equal((-net.log_rates.exp()).detach()[5].round(), -torch.arange(1.0, 17.0))
    assert (net.skip == 1).all()
    for layer, n in ((net.into, 32), (net.conv, 4), (net.select, 64), (net.step_size, 2)):
        spread = float(layer.weight.detach().abs().max()) * n**0.5
        assert 0.8 < spread <= 1.0
    again, other = Mamba(32, Learners((3,))), Mamba(32, Learners((4,)))
    for name, value in net.named_parameters():
        assert torch.equal(value, dict(again.named_parameters())[name]), name
    assert not torch.equal(net.into.weight, other.into.weight)


def test_token_by_token_is_the_whole() -> None:
    net, x = mamba(), normal(2, 9, WIDTH)
    whole, last = net(x, ones(x), net.empty(2))
    state = net.empty(2)
    for t in range(9):
        y, state = net(x[:, t : t + 1], ones(x[:, :1]), state)
        torch.testing.assert_close(y[:, 0], whole[:, t], rtol=0, atol=1e-12)
    for mine, other in zip(state, last, strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-12)


def test_padding_in_front_changes_nothing() -> None:
    net, x = mamba(), normal(1, 8, WIDTH)
    alone, last = net(x, ones(x), net.empty(1))
    padded = torch.cat([normal(1, 5, WIDTH, seed=1), x], 1)
    real = torch.cat([torch.zeros(1, 5, dtype=x.dtype), ones(x)], 1)
    y, padded_last = net(padded, real, net.empty(1))
    torch.testing.assert_close(y[:, 5:], alone, rtol=0, atol=1e-12)
    torch.testing.assert_close(padded_last.scan, last.scan, rtol=0, atol=1e-12)
    assert isinstance(last, MambaState)


# -- two grains -----------------------------------------------------------------------------------


def two_by_hand(layer: TwoGrains, tokens: Tensor) -> Tensor:
    """The layer on whole steps (R, s, a) of one row, as its equation states it."""
    normed = rms_norm(tokens, (WIDTH,), layer.norm.weight, 1e-5)
    coarse = by_hand(layer.coarse, normed)
    kernel, bias = layer.merge.weight, layer.merge.bias
    assert bias is not None
    threes = normed.reshape(-1, 3, WIDTH)
    merged = torch.einsum("tkw,vwk->tv", threes, kernel) + bias
    fine = by_hand(layer.fine, merged)
    fine = layer_norm(fine, (WIDTH,), layer.fine_norm.weight, layer.fine_norm.bias)
    shifted = torch.cat([torch.zeros(1, WIDTH, dtype=fine.dtype), fine[:-1]])
    return tokens + coarse + shifted.repeat_interleave(3, 0)


def threes_of(tokens: Tensor, first: Tensor) -> Tensor:
    """(1, steps, 3, width) in threes that begin with the action before, `first` in front."""
    return torch.cat([first[None], tokens[:-1]]).reshape(1, -1, 3, WIDTH)


def layer_on(layer: TwoGrains, tokens: Tensor, seed: int = 5) -> Tensor:
    x = threes_of(tokens, normal(WIDTH, seed=seed))
    real = torch.ones(x.shape[:3], dtype=x.dtype)
    real[0, 0, 0] = 0.0
    y: Tensor = layer(x, real, layer.empty(1))[0]
    return y[0].flatten(0, 1)[1:]


def test_two_grains_are_the_equation_on_whole_steps() -> None:
    layer, tokens = grains(), normal(15, WIDTH)
    expected = two_by_hand(layer, tokens)
    torch.testing.assert_close(layer_on(layer, tokens), expected[:-1], rtol=0, atol=1e-12)
    # What stands for the action before the first step has no part in it.
    torch.testing.assert_close(layer_on(layer, tokens, 6), expected[:-1], rtol=0, atol=1e-12)


def test_no_token_sees_a_later_one() -> None:
    layer, tokens = grains(), normal(15, WIDTH)
    before = layer_on(layer, tokens)
    for changed in range(14):
        other = tokens.clone()
        other[changed] += 1.0
        after = layer_on(layer, other)
        assert torch.equal(after[:changed], before[:changed])
        assert not torch.equal(after[changed], before[changed])


def test_the_fine_grain_of_a_step_reaches_the_next_one() -> None:
    layer, tokens = grains(), normal(15, WIDTH)
    with torch.no_grad():
        layer.coarse.out.weight.zero_()
        before = layer_on(layer, tokens)
        other = tokens.clone()
        other[5] += 1.0  # the action of step 1
        moved = (layer_on(layer, other) - before).abs().sum(-1) > 0
    assert moved.tolist() == [False] * 5 + [True] * 9


def test_threes_one_by_one_are_the_whole() -> None:
    layer, tokens = grains(), normal(15, WIDTH)
    x = threes_of(tokens, normal(WIDTH, seed=5))
    real = torch.ones(1, 5, 3, dtype=x.dtype)
    real[0, 0, 0] = 0.0
    whole, last = layer(x, real, layer.empty(1))
    state = layer.empty(1)
    for t in range(5):
        y, state = layer(x[:, t : t + 1], real[:, t : t + 1], state)
        torch.testing.assert_close(y[:, 0], whole[:, t], rtol=0, atol=1e-12)
    assert isinstance(state, GrainState)
    for mine, other in zip(state, last, strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-12)


def test_padded_steps_in_front_change_nothing() -> None:
    layer, tokens = grains(), normal(12, WIDTH)
    alone = layer_on(layer, tokens)
    x = threes_of(torch.cat([normal(6, WIDTH, seed=1), tokens]), normal(WIDTH, seed=5))
    real = torch.ones(1, 6, 3, dtype=x.dtype)
    real[0, :2], real[0, 2, 0] = 0.0, 0.0
    y, _ = layer(x, real, layer.empty(1))
    torch.testing.assert_close(y[0, 2:].flatten(0, 1)[1:], alone, rtol=0, atol=1e-12)
