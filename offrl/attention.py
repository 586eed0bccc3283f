"""Attention over tokens: causal and cross, padded, and one token at a time.

    attention(q, k, v) = softmax(q k' / sqrt(d) + mask) v          for each head of d features
    block(x): x <- x + A(LN x);  [x <- x + C(LN x, memory);]  x <- x + W2 act(W1 LN x)

Blocks normalise before they act, as minGPT's do. Networks of attention train one learner at a time
(`Agent.stacked = False`) and are plain torch modules; who builds them calls `redraw`.

There is no dropout. Torch's own draws from a hidden generator, so that a resumed run would not
end with the same bits; drawn from outside, as this library does elsewhere, the published kinds (on
attention's weights, on hidden layers and on each of a block's three terms) would want 239,000
normal numbers for each sample of Push-T.

Source: attention is all you need (arXiv:1706.03762); pre-normalised as in GPT-2.
"""

from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import gelu, relu, scaled_dot_product_attention

from offrl.errors import ConfigError

Activation = Literal["gelu", "relu"]
ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {"gelu": gelu, "relu": relu}


class KeyValue(NamedTuple):
    """What tokens offer to those that look at them."""

    key: Float[Tensor, "batch heads tokens head"]
    value: Float[Tensor, "batch heads tokens head"]


class Cache(NamedTuple):
    """Keys and values of tokens in every layer, with room for `capacity` of them in each row."""

    key: Float[Tensor, "batch layers heads capacity head"]
    value: Float[Tensor, "batch layers heads capacity head"]


def visible(
    allowed: Bool[Tensor, "queries keys"], real: Float[Tensor, "batch keys"] | None
) -> Bool[Tensor, "#batch 1 queries keys"]:
    """Which key each query sees: where it is allowed and the key is real (1), not padding (0)."""
    seen = allowed[None, None]
    return seen if real is None else seen & (real > 0)[:, None, None, :]


def causal(tokens: int, device: torch.device) -> Bool[Tensor, "tokens tokens"]:
    """A token sees itself and those before it."""
    return torch.ones(tokens, tokens, dtype=torch.bool, device=device).tril()


class Attention(nn.Module):
    """Heads of attention, projected back. Raises ConfigError where they do not fit the width."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        if heads < 1 or width % heads:
            raise ConfigError(f"a width of {width} cannot be divided among {heads} heads")
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)

    def offer(
        self,
        x: Float[Tensor, "batch tokens width"],
        value: Float[Tensor, "batch tokens width"] | None = None,
    ) -> KeyValue:
        """Keys of x, and values of it too unless these are of something else."""
        return KeyValue(
            self._split(self.key(x)), self._split(self.value(x if value is None else value))
        )

    def forward(
        self,
        x: Float[Tensor, "batch queries width"],
        offered: KeyValue,
        seen: Bool[Tensor, "#batch 1 queries keys"] | None,
    ) -> Float[Tensor, "batch queries width"]:
        query = self._split(self.query(x))
        found = scaled_dot_product_attention(query, offered.key, offered.value, attn_mask=seen)
        y: Tensor = self.out(found.transpose(1, 2).flatten(2))
        return y

    def _split(self, x: Tensor) -> Tensor:
        return x.reshape(*x.shape[:-1], self.heads, -1).transpose(1, 2)


class Block(nn.Module):
    """Self-attention, attention to a memory where `cross`, and two layers, each added to x."""

    def __init__(
        self, width: int, heads: int, cross: bool = False, activation: Activation = "gelu"
    ) -> None:
        super().__init__()
        self.act = ACTIVATIONS[activation]
        self.norm, self.attention = nn.LayerNorm(width), Attention(width, heads)
        self.cross_norm = nn.LayerNorm(width) if cross else None
        self.cross = Attention(width, heads) if cross else None
        self.last_norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(
        self,
        x: Float[Tensor, "batch tokens width"],
        seen: Bool[Tensor, "#batch 1 tokens tokens"] | None,
        memory: KeyValue | None = None,
        memory_seen: Bool[Tensor, "#batch 1 tokens keys"] | None = None,
    ) -> Float[Tensor, "batch tokens width"]:
        normed = self.norm(x)
        x = x + self.attention(normed, self.attention.offer(normed), seen)
        if self.cross is not None and self.cross_norm is not None and memory is not None:
            x = x + self.cross(self.cross_norm(x), memory, memory_seen)
        return self._last(x)

    def remember(self, memory: Float[Tensor, "batch keys width"]) -> KeyValue:
        """What tokens outside offer to this block. Raises TypeError unless it is a `cross` one."""
        if self.cross is None:
            raise TypeError("this block looks at nothing but its own tokens")
        return self.cross.offer(memory)

    def step(
        self,
        x: Float[Tensor, "batch new width"],
        known: KeyValue,
        place: Int[Tensor, "batch new"],
        seen: Bool[Tensor, "batch 1 new capacity"],
    ) -> Float[Tensor, "batch new width"]:
        """New tokens alone, whose keys and values are written at `place` among those known."""
        normed = self.norm(x)
        for old, new in zip(known, self.attention.offer(normed), strict=True):
            old.scatter_(2, place[:, None, :, None].expand_as(new), new)
        return self._last(x + self.attention(normed, known, seen))

    def _last(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.down(self.act(self.up(self.last_norm(x))))
        return y


def blocks_of(modules: nn.ModuleList) -> list[Block]:
    """The blocks of a list of modules, in their order, with the type that they have."""
    return [module for module in modules if isinstance(module, Block)]


class GPT(nn.Module):
    """Causal blocks over tokens that are embedded already, and a LayerNorm.

    Positions and what tokens stand for are the caller's: several kinds may alternate in time.
    A padded token is seen by none but itself, so that every row of the softmax has an entry.
    """

    def __init__(
        self, width: int, layers: int, heads: int, activation: Activation = "gelu"
    ) -> None:
        super().__init__()
        self.width, self.heads = width, heads
        self.blocks = nn.ModuleList(
            Block(width, heads, activation=activation) for _ in range(layers)
        )
        self.norm = nn.LayerNorm(width)

    def forward(
        self,
        x: Float[Tensor, "batch tokens width"],
        real: Float[Tensor, "batch tokens"] | None = None,
    ) -> Float[Tensor, "batch tokens width"]:
        seen = visible(causal(x.shape[1], x.device), real)
        if real is not None:
            seen = seen | torch.eye(x.shape[1], dtype=torch.bool, device=x.device)
        for block in blocks_of(self.blocks):
            x = block(x, seen)
        y: Tensor = self.norm(x)
        return y

    def empty(self, batch: int, capacity: int) -> Cache:
        """A cache without tokens, where the parameters are and of their type."""
        weight = self.norm.weight
        shape = (batch, len(self.blocks), self.heads, capacity, self.width // self.heads)
        room = torch.zeros(shape, device=weight.device, dtype=weight.dtype)
        return Cache(room, room)

    @torch.no_grad()
    def step(
        self,
        x: Float[Tensor, "batch new width"],
        cache: Cache,
        place: Int[Tensor, "batch new"],
    ) -> tuple[Float[Tensor, "batch new width"], Cache]:
        """Outputs for new tokens at these places of each row, and the cache with them in it.

        A token sees what stands at its place and before it. The past is not computed again: the
        cost grows with the new tokens, not with their square. The cache that was given stays as it
        is. A place beyond its capacity is an IndexError or a RuntimeError.
        """
        seen = torch.arange(cache.key.shape[3], device=x.device) <= place[:, None, :, None]
        known = Cache(cache.key.clone(), cache.value.clone())
        for i, block in enumerate(blocks_of(self.blocks)):
            x = block.step(x, KeyValue(known.key[:, i], known.value[:, i]), place, seen)
        y: Tensor = self.norm(x)
        return y, known
