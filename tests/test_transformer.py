"""Attention and its networks: what sees what, one token at a time, and hand counts."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, layer_norm

from offrl.attention import GPT, Attention, Block, causal, visible
from offrl.errors import ConfigError
from offrl.initial import redraw
from offrl.networks import Learners
from offrl.transformer import CrossTransformer, InterleavedGPT

SMALL: dict[str, Any] = {"layers": 2, "heads": 2, "width": 8}
TOKENS = 5


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def loud(net: nn.Module) -> Any:
    """First weights are small, so that outputs barely depend on the inputs; these are not."""
    redraw(net, Learners((1,)), 0.5)
    return net.double().requires_grad_(False)


def cross(**changes: Any) -> Any:
    return loud(CrossTransformer(6, 2, 3, 4, Learners((3,)), **{**SMALL, **changes}))


def interleaved(**changes: Any) -> Any:
    return loud(InterleavedGPT(4, 2, 2, 3, Learners((3,)), **{**SMALL, **changes}))


def count(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def test_attention_is_a_loop_over_heads_and_queries() -> None:
    made, x = loud(Attention(6, 2)), draw(2, TOKENS, 6)
    q, k, v = (getattr(made, name)(x) for name in ("query", "key", "value"))
    rows = torch.zeros(2, TOKENS, 6, dtype=torch.float64)
    for b in range(2):
        for head in (slice(0, 3), slice(3, 6)):
            for t in range(TOKENS):
                scores = [float(q[b, t, head] @ k[b, s, head]) / math.sqrt(3) for s in range(t + 1)]
                weights = [math.exp(s) for s in scores]
                for s, weight in enumerate(weights):
                    rows[b, t, head] += weight / sum(weights) * v[b, s, head]
    found = made(x, made.offer(x), visible(causal(TOKENS, x.device), None))
    torch.testing.assert_close(found, made.out(rows), rtol=0, atol=1e-12)


def test_a_block_is_what_the_equation_says() -> None:
    made, x, memory = loud(Block(6, 2, cross=True)), draw(2, TOKENS, 6), draw(2, 3, 6, seed=1)

    def norm(x: Tensor) -> Tensor:
        return layer_norm(x, (6,))

    def attend(part: Attention, x: Tensor, to: Tensor) -> Tensor:
        q, k, v = (
            layer(t).reshape(2, -1, 2, 3).transpose(1, 2)
            for layer, t in ((part.query, x), (part.key, to), (part.value, to))
        )
        weights = torch.softmax(q @ k.mT / math.sqrt(3), -1)
        out: Tensor = part.out((weights @ v).transpose(1, 2).reshape(2, -1, 6))
        return out

    h = x + attend(made.attention, norm(x), norm(x))
    h = h + attend(made.cross, norm(h), memory)
    expected = h + made.down(gelu(made.up(norm(h))))
    found = made(x, None, made.remember(memory), None)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("token", range(TOKENS))
def test_gpt_is_causal(token: int) -> None:
    net, x = loud(GPT(8, 2, 2)), draw(2, TOKENS, 8)
    changed = x.clone()
    changed[:, token] += 1.0
    before, after = net(x), net(changed)
    assert torch.equal(before[:, :token], after[:, :token])
    assert (before[:, token:] != after[:, token:]).any(-1).all()


@pytest.mark.parametrize("activation", ["gelu", "relu"])
@pytest.mark.parametrize("chunks", [(1,) * TOKENS, (3, 2), (5,)])
def test_one_token_at_a_time_is_all_at_once(chunks: tuple[int, ...], activation: Any) -> None:
    net, x = loud(GPT(8, 2, 2, activation)), draw(2, TOKENS, 8)
    cache, place = net.empty(2, 7), torch.arange(TOKENS).expand(2, -1)
    outputs = []
    for tokens, places in zip(
        torch.split(x, chunks, 1), torch.split(place, chunks, 1), strict=True
    ):
        y, cache = net.step(tokens, cache, places)
        outputs.append(y)
    torch.testing.assert_close(torch.cat(outputs, 1), net(x), rtol=0, atol=1e-10)


def test_rows_of_a_cache_begin_anew_by_themselves() -> None:
    net, x = loud(GPT(8, 2, 2)), draw(2, TOKENS, 8)
    _, cache = net.step(x[:, :3], net.empty(2, 7), torch.arange(3).expand(2, -1))
    before = cache.key.clone()
    y, _ = net.step(x[:, 3:], cache, torch.tensor([[3, 4], [0, 1]]))
    torch.testing.assert_close(y[0], net(x)[0, 3:], rtol=0, atol=1e-10)
    torch.testing.assert_close(y[1], net(x[:, 3:])[1], rtol=0, atol=1e-10)
    assert torch.equal(cache.key, before)


def test_a_full_cache_refuses_tokens() -> None:
    net = loud(GPT(8, 1, 2))
    with pytest.raises((IndexError, RuntimeError)):
        net.step(draw(1, 3, 8), net.empty(1, 2), torch.arange(3)[None])


def test_padding_is_seen_by_none() -> None:
    net, x = loud(GPT(8, 2, 2)), draw(2, TOKENS, 8)
    real = torch.tensor([[0.0, 0.0, 1.0, 1.0, 1.0], [1.0, 1.0, 1.0, 1.0, 1.0]]).double()
    changed = x.clone()
    changed[0, :2] = 1e3
    y = net(x, real)
    assert torch.isfinite(y).all()
    assert torch.equal(y[0, 2:], net(changed, real)[0, 2:])
    # A GPT has no positions of its own: without its padding, the row is the same.
    torch.testing.assert_close(y[:1, 2:], net(x[:1, 2:]), rtol=0, atol=1e-12)
    torch.testing.assert_close(y[1:], net(x[1:]), rtol=0, atol=1e-12)


LEVEL = torch.tensor([0.0, 7.0], dtype=torch.float64)


@pytest.mark.parametrize("step", range(6))
def test_an_action_sees_actions_and_conditions_up_to_its_own(step: int) -> None:
    net, x, cond = cross(), draw(2, 6, 2), draw(2, 3, 4, seed=1)
    y = net(x, LEVEL, cond)
    changed = x.clone()
    changed[:, step] += 1.0
    after = net(changed, LEVEL, cond)
    assert torch.equal(after[:, :step], y[:, :step])
    assert (after[:, step:] != y[:, step:]).any(-1).all()
    if step < 3:
        seen = cond.clone()
        seen[:, step] += 1.0
        after = net(x, LEVEL, seen)
        assert torch.equal(after[:, :step], y[:, :step])
        assert (after[:, step:] != y[:, step:]).any(-1).all()


def test_without_masks_everything_is_seen() -> None:
    net, x, cond = cross(causal=False), draw(2, 6, 2), draw(2, 3, 4, seed=1)
    y = net(x, LEVEL, cond)
    changed, seen = x.clone(), cond.clone()
    changed[:, -1] += 1.0
    seen[:, -1] += 1.0
    assert (net(changed, LEVEL, cond) != y).any(-1).all()
    assert (net(x, LEVEL, seen) != y).any(-1).all()
    assert (net(x, LEVEL + 1, cond) != y).any(-1).all()


@pytest.mark.parametrize("causal", [True, False])
def test_hidden_conditions_have_no_effect(causal: bool) -> None:
    net, x, cond = cross(causal=causal), draw(2, 6, 2), draw(2, 3, 4, seed=1)
    real = torch.tensor([[0.0, 0.0, 1.0], [1.0, 1.0, 1.0]]).double()
    changed = cond.clone()
    changed[0, :2] = 1e3
    y = net(x, LEVEL, cond, real)
    assert torch.equal(y, net(x, LEVEL, changed, real))
    torch.testing.assert_close(y[1:], net(x[1:], LEVEL[1:], cond[1:]), rtol=0, atol=1e-12)


def test_kept_conditions_are_conditions() -> None:
    net, x, cond = cross(), draw(2, 6, 2), draw(2, 3, 4, seed=1)
    kept = net.remember(cond)
    for level in (LEVEL, LEVEL + 3):
        found = net(x, level, kept)
        torch.testing.assert_close(found, net(x, level, cond), rtol=0, atol=1e-12)


@pytest.mark.parametrize("step", range(4))
def test_the_interleaved_order(step: int) -> None:
    net, x, cond = interleaved(), draw(2, 4, 2), draw(2, 2 + 4, 3, seed=1)
    y = net(x, LEVEL, cond)
    assert y.shape == x.shape
    for place in (x, cond):
        at = step if place is x else 2 + step
        changed = place.clone()
        changed[:, at] += 1.0
        after = net(changed, LEVEL, cond) if place is x else net(x, LEVEL, changed)
        assert torch.equal(after[:, :step], y[:, :step])
        assert (after[:, step:] != y[:, step:]).any(-1).all()


def test_goals_and_the_level_are_seen_by_all() -> None:
    net, x, cond = interleaved(), draw(2, 4, 2), draw(2, 2 + 4, 3, seed=1)
    y = net(x, LEVEL, cond)
    for goal in range(2):
        changed = cond.clone()
        changed[:, goal] += 1.0
        assert (net(x, LEVEL, changed) != y).any(-1).all()
    assert (net(x, LEVEL + 1, cond) != y).any(-1).all()
    scaled = interleaved(level_scale=10.0)
    torch.testing.assert_close(scaled(x, LEVEL / 10, cond), y, rtol=0, atol=1e-12)


def test_hidden_goals_and_steps_have_no_effect() -> None:
    net, x, cond = interleaved(), draw(2, 4, 2), draw(2, 2 + 4, 3, seed=1)
    real = torch.ones(2, 6).double()
    real[0, :3] = 0.0  # both goals and the first observation, with its action
    changed, done = cond.clone(), x.clone()
    changed[0, :3], done[0, 0] = 1e3, 1e3
    y = net(x, LEVEL, cond, real)
    assert torch.equal(y[0, 1:], net(done, LEVEL, changed, real)[0, 1:])
    torch.testing.assert_close(y[1:], net(x[1:], LEVEL[1:], cond[1:]), rtol=0, atol=1e-12)


def test_a_shorter_window_is_the_beginning_of_a_longer_one() -> None:
    net, x, cond = interleaved(), draw(2, 4, 2), draw(2, 2 + 4, 3, seed=1)
    short = net(x[:, :2], LEVEL, cond[:, :4])
    torch.testing.assert_close(short, net(x, LEVEL, cond)[:, :2], rtol=0, atol=1e-12)


def test_the_parameters_by_hand() -> None:
    # Of width 8: attention 4 x 9 x 8, two layers 9 x 32 + 33 x 8, a norm 16.
    attention, layers, norm = 288, 552, 16
    embed = 3 * 8 + 6 * 8 + 5 * 8 + 4 * 8  # action, its positions, condition, its positions
    block = 2 * attention + layers + 3 * norm
    assert count(cross()) == embed + layers + 2 * block + norm + 9 * 2
    embed = 2 * 8 + 4 * 8 + 3 * 8 + (2 + 4) * 8  # level, condition, action, positions
    assert count(interleaved()) == embed + 2 * (attention + layers + 2 * norm) + norm + 9 * 2


def test_the_published_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("offrl.transformer.redraw", lambda *_: None)
    with torch.device("meta"):
        # Push-T: 20 observed numbers, twice; 2 of action; 16 steps. Kitchen: 60 and 9, 4 observed.
        push = CrossTransformer(16, 2, 2, 20, Learners())
        kitchen = CrossTransformer(16, 9, 4, 60, Learners(), width=768)
        # BESO's kitchen and block pushing: 30 and 9, 10 and 2.
        beso = InterleavedGPT(4, 9, 2, 30, Learners())
        blocks = InterleavedGPT(5, 2, 1, 10, Learners(), layers=4, heads=12, width=240)
    assert (count(push), count(kitchen)) == (8_965_122, 80_415_753)
    assert (count(beso), count(blocks)) == (9_380_889, 2_783_522)


def test_first_weights_are_those_of_the_seed_and_small() -> None:
    torch.manual_seed(0)
    one: Any = InterleavedGPT(4, 2, 2, 3, Learners((3,)), **SMALL)
    torch.manual_seed(1)
    two = InterleavedGPT(4, 2, 2, 3, Learners((3,)), **SMALL)
    for (name, a), b in zip(one.named_parameters(), two.parameters(), strict=True):
        assert torch.equal(a, b), name
        if name.endswith("bias"):
            assert (a == 0).all(), name
        elif "norm" in name:
            assert (a == 1).all(), name
    weights = torch.cat([b.up.weight.flatten() for b in one.gpt.blocks] + [one.position.flatten()])
    assert weights.std().item() == pytest.approx(0.02, rel=0.15)


def test_a_parameter_without_a_rule_is_refused() -> None:
    with pytest.raises(TypeError, match=r"BatchNorm1d\.weight has no rule"):
        redraw(nn.BatchNorm1d(2), Learners(), 0.02)
    with pytest.raises(TypeError, match=r"CrossTransformer\.position has no rule"):
        redraw(cross(), Learners())
    table = nn.Embedding(300, 3)
    redraw(table, Learners((2,)))
    assert table.weight.std().item() == pytest.approx(1.0, rel=0.1)


def test_a_block_without_a_memory_offers_none() -> None:
    with pytest.raises(TypeError, match="nothing but its own tokens"):
        Block(4, 2).remember(draw(1, 2, 4))


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(ConfigError, match="a width of 8 cannot be divided among 3 heads"):
        cross(heads=3)


@pytest.mark.compiled
@pytest.mark.parametrize("build", [cross, interleaved])
def test_compiled_equals_eager(build: Any) -> None:
    net = build()
    args = (
        (draw(2, 6, 2), LEVEL, draw(2, 3, 4, seed=1))
        if build is cross
        else (draw(2, 4, 2), LEVEL, draw(2, 6, 3, seed=1))
    )
    compiled: Any = torch.compile(net, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(*args), net(*args), rtol=0, atol=1e-12)
