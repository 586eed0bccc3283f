"""Transformers that normalise after they act, with places added to queries and keys (DETR).

    encoder layer   x <- LN(x + A(x + p, x + p, x));  x <- LN(x + W2 relu(W1 x))
    decoder layer   x <- LN(x + A(x + q, x + q, x));  x <- LN(x + A(x + q, m + p, m));
                    x <- LN(x + W2 relu(W1 x))

with A(queries, keys, values), p the places of the tokens, q those of the outputs, m the encoder's
result. There is no dropout, as in all transformers here (`offrl.attention`).
Source: DETR (Carion et al., ECCV 2020, arXiv:2005.12872), on which ACT (arXiv:2304.13705) is built.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import relu

from offrl.attention import Attention, visible


class Sublayers(nn.Module):
    """Self-attention and the two layers behind it, each normalised after it is added."""

    def __init__(self, width: int, heads: int, inner: int) -> None:
        super().__init__()
        self.attention, self.norm = Attention(width, heads), nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, inner), nn.Linear(inner, width)
        self.last_norm = nn.LayerNorm(width)

    def mix(
        self,
        x: Float[Tensor, "batch tokens width"],
        place: Float[Tensor, "tokens width"],
        real: Float[Tensor, "batch tokens"] | None,
    ) -> Float[Tensor, "batch tokens width"]:
        """Attention among the tokens; those with `real` 0 are seen by none but themselves."""
        tokens, seen = x.shape[1], None
        if real is not None:
            everything = torch.ones(tokens, tokens, dtype=torch.bool, device=x.device)
            seen = visible(everything, real) | torch.eye(tokens, dtype=torch.bool, device=x.device)
        y: Tensor = self.norm(x + attend(self.attention, x + place, x + place, x, seen))
        return y

    def last(self, x: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "batch tokens width"]:
        y: Tensor = self.last_norm(x + self.down(relu(self.up(x))))
        return y


class Encoder(nn.Module):
    """Layers over tokens whose places are given at each of them."""

    def __init__(self, width: int, heads: int, layers: int, inner: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Sublayers(width, heads, inner) for _ in range(layers))

    def forward(
        self,
        x: Float[Tensor, "batch tokens width"],
        place: Float[Tensor, "tokens width"],
        real: Float[Tensor, "batch tokens"] | None = None,
    ) -> Float[Tensor, "batch tokens width"]:
        for layer in sublayers_of(self.layers):
            x = layer.last(layer.mix(x, place, real))
        return x


class Decoder(nn.Module):
    """Learned queries that look at one another and at a memory; a LayerNorm at the end."""

    def __init__(self, queries: int, width: int, heads: int, layers: int, inner: int) -> None:
        super().__init__()
        self.query = nn.Embedding(queries, width)
        self.layers = nn.ModuleList(Sublayers(width, heads, inner) for _ in range(layers))
        self.cross = nn.ModuleList(Attention(width, heads) for _ in range(layers))
        self.cross_norm = nn.ModuleList(nn.LayerNorm(width) for _ in range(layers))
        self.norm = nn.LayerNorm(width)

    def forward(
        self,
        memory: Float[Tensor, "batch tokens width"],
        place: Float[Tensor, "tokens width"],
    ) -> Float[Tensor, "batch queries width"]:
        query = self.query.weight
        x = torch.zeros_like(query).expand(len(memory), *query.shape)
        for layer, cross, norm in zip(
            sublayers_of(self.layers), self.cross, self.cross_norm, strict=True
        ):
            x = layer.mix(x, query, None)
            assert isinstance(cross, Attention)
            x = layer.last(norm(x + attend(cross, x + query, memory + place, memory, None)))
        y: Tensor = self.norm(x)
        return y


def attend(
    attention: Attention, query: Tensor, key: Tensor, value: Tensor, seen: Tensor | None
) -> Tensor:
    """Attention whose keys and values are of different tokens."""
    y: Tensor = attention(query, attention.offer(key, value), seen)
    return y


def sublayers_of(modules: nn.ModuleList) -> list[Sublayers]:
    """The layers of a list of modules, in their order, with the type that they have."""
    return [module for module in modules if isinstance(module, Sublayers)]
