"""Backbones: what stands between a noisy chunk of actions and what the process asks for.

    backbone(x, level, condition) -> like x
    x          (*seed, batch, horizon, act)   noisy actions, scaled by the process
    level      (*seed, batch)                 the process's number for the noise level
    condition  (*seed, batch, tokens, cond)   observations and goals, normalised; the first two
                                              take (*seed, batch, cond) as well

`MLPDenoiser` and `Field` (offrl.fields) stack learners; `UNet`, `CrossTransformer` and
`InterleavedGPT` train one at a time (`Agent.stacked = False`). First numbers come from the
learners' streams for all of them.

The MLP's blocks, with e the encoded level, c the condition and h of `hidden` units:

    plain     h = mish(W [x, e, c]);  h <- mish(W h)                 Diffusion-QL
    residual  h = W [x, e, c];  h <- h + W2 mish(W1 LN drop(h));     IDQL, W1 four times as wide
              then mish
    film      h = W x;  g = mish(LN W1 h);  g <- (1 + a) g + b;      the U-Net's block without time
              h <- h + mish(LN W2 g);  [a, b] = W3 mish([e, c])

each followed by a linear layer. Residual layers begin as in IDQL's code: first, last and the
level's by Xavier's bound, those of the blocks by LeCun's truncated normal, biases at 0. The others
begin as torch.nn.Linear. Sources: Diffusion-QL (arXiv:2208.06193), IDQL (arXiv:2304.10573).
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Float
from scipy.special import ndtri
from torch import Tensor, nn
from torch.nn.functional import mish

from offrl.denoising import Network
from offrl.embeddings import Features, LevelEncoder, linear
from offrl.errors import ConfigError, near
from offrl.fields import Field
from offrl.networks import LayerNorm, Learners, Linear
from offrl.transformer import CrossTransformer, InterleavedGPT, Memory
from offrl.types import Noise
from offrl.unet import UNet

Blocks = Literal["plain", "residual", "film"]
CUT = 2.0  # deviations at which LeCun's normal numbers are cut
CUT_STD = 0.87962566103423978  # the deviation of a standard normal number cut there


class MLPDenoiser(nn.Module):
    """Layers on the whole chunk at once, for one learner or a stack.

    `features`, `embedding` and `embed_hidden` are the sizes of the level's frequencies, of their
    encoding and of the layer between. `dropout` is of the residual blocks, and acts where noise is
    given. `level_scale` multiplies the level: 1 for steps, some 1,000 for times in [0, 1]. The
    defaults are Diffusion-QL's. Raises ConfigError.
    """

    def __init__(
        self,
        horizon: int,
        act_dim: int,
        cond_dim: int,
        learners: Learners,
        *,
        blocks: Blocks = "plain",
        hidden: int = 256,
        depth: int = 3,
        level: Features = "sinusoidal",
        features: int = 16,
        embed_hidden: int = 32,
        embedding: int = 16,
        dropout: float = 0.0,
        level_scale: float = 1.0,
    ) -> None:
        super().__init__()
        if min(hidden, depth, embed_hidden, embedding) < 1:
            raise ConfigError(
                f"a denoiser of {depth} blocks of {hidden} units and levels of {embedding} "
                "numbers; each must be 1 or more"
            )
        if not 0.0 <= dropout < 1.0 or (dropout and blocks != "residual"):
            raise ConfigError(
                f"a dropout of {dropout} in {blocks} blocks; it is of residual blocks, in [0, 1)"
            )
        self.settings: dict[str, Any] = {
            **{"horizon": horizon, "act_dim": act_dim, "cond_dim": cond_dim, "blocks": blocks},
            **{"hidden": hidden, "depth": depth, "level": level, "features": features},
            **{"embed_hidden": embed_hidden, "embedding": embedding, "dropout": dropout},
            **{"level_scale": level_scale},
        }
        self.level_scale, self.dropout, self.hidden = level_scale, dropout, hidden
        flax, film = blocks == "residual", blocks == "film"
        chunk, cond = horizon * act_dim, embedding + cond_dim
        self.threshold = float(ndtri(dropout)) if dropout else 0.0
        self.film, self.plain = film, blocks == "plain"
        self.level = LevelEncoder(features, embed_hidden, embedding, learners, level, flax)
        self.first = linear(chunk if film else chunk + cond, hidden, learners, flax)
        rest = depth - 1 if self.plain else depth
        kinds: dict[str, Callable[[int, int, Learners], nn.Module]]
        kinds = {"plain": _plain, "residual": _Residual, "film": _Film}
        self.blocks = nn.ModuleList(kinds[blocks](hidden, cond, learners) for _ in range(rest))
        self.last = linear(hidden, chunk, learners, flax)

    def noise(self, batch_size: int) -> dict[str, tuple[int, ...]]:
        """Shapes of the normal draws that dropout wants, for one learner."""
        if not self.dropout:
            return {}
        return {f"dropout{i}": (batch_size, self.hidden) for i in range(len(self.blocks))}

    def forward(
        self,
        x: Float[Tensor, "*seed batch horizon act"],
        level: Float[Tensor, "*seed batch"],
        condition: Float[Tensor, "*seed batch cond"] | Float[Tensor, "*seed batch tokens token"],
        noise: Noise | None = None,
    ) -> Float[Tensor, "*seed batch horizon act"]:
        """The output for each action; condition tokens are put side by side."""
        flat = x.flatten(-2)
        cond = torch.cat([self.level(level * self.level_scale), condition.flatten(x.ndim - 2)], -1)
        h = self.first(flat if self.film else torch.cat([flat, cond], -1))
        if self.plain:
            h = mish(h)
        for i, block in enumerate(self.blocks):
            if self.plain:
                h = mish(block(h))
            elif self.film:
                h = block(h, cond)
            else:
                h = h + block(self._drop(h, noise, i))
        if not self.plain and not self.film:
            h = mish(h)
        y: Tensor = self.last(h)
        return y.reshape(x.shape)

    def _drop(self, h: Tensor, noise: Noise | None, i: int) -> Tensor:
        if noise is None or not self.dropout:
            return h
        kept = (noise[f"dropout{i}"] > self.threshold).to(h)
        return h * kept / (1.0 - self.dropout)

    def spec(self) -> dict[str, Any]:
        return {"type": type(self).__name__, **self.settings}


def _plain(hidden: int, cond: int, learners: Learners) -> Linear:
    return Linear(hidden, hidden, learners)


class _Residual(nn.Module):
    """W2 mish(W1 LN(h)), the hidden layer four times as wide."""

    def __init__(self, hidden: int, cond: int, learners: Learners) -> None:
        super().__init__()
        self.norm = LayerNorm(hidden, learners)
        self.first = _lecun(hidden, 4 * hidden, learners)
        self.second = _lecun(4 * hidden, hidden, learners)

    def forward(
        self, h: Float[Tensor, "*seed batch hidden"]
    ) -> Float[Tensor, "*seed batch hidden"]:
        y: Tensor = self.second(mish(self.first(self.norm(h))))
        return y


class _Film(nn.Module):
    """Two layers with the condition between them, and a way around both."""

    def __init__(self, hidden: int, cond: int, learners: Learners) -> None:
        super().__init__()
        self.first, self.first_norm = Linear(hidden, hidden, learners), LayerNorm(hidden, learners)
        self.second, self.second_norm = (
            Linear(hidden, hidden, learners),
            LayerNorm(hidden, learners),
        )
        self.film = Linear(cond, 2 * hidden, learners)

    def forward(
        self, h: Float[Tensor, "*seed batch hidden"], cond: Float[Tensor, "*seed batch cond"]
    ) -> Float[Tensor, "*seed batch hidden"]:
        g = self.modulate(mish(self.first_norm(self.first(h))), cond)
        return h + mish(self.second_norm(self.second(g)))

    def modulate(
        self, g: Float[Tensor, "*seed batch hidden"], cond: Float[Tensor, "*seed batch cond"]
    ) -> Float[Tensor, "*seed batch hidden"]:
        """(1 + a) g + b: g itself where the condition's layer is zero."""
        film: Tensor = self.film(mish(cond))
        a, b = film.chunk(2, -1)
        return (1.0 + a) * g + b


def _lecun(inputs: int, outputs: int, learners: Learners) -> Linear:
    """A layer whose weights have variance 1 / inputs and are cut at two deviations; biases 0."""
    layer = Linear(inputs, outputs, learners, bound=1.0, bias=0.0)
    with torch.no_grad():
        # A uniform number between the cuts' probabilities is the quantile of the cut normal.
        inside = 1.0 - 2.0 * float(torch.special.ndtr(torch.tensor(-CUT, dtype=torch.float64)))
        quantile = 0.5 + 0.5 * inside * layer.weight.double()
        layer.weight.copy_(torch.special.ndtri(quantile) * inputs**-0.5 / CUT_STD)
    return layer


Backbone = MLPDenoiser | UNet | CrossTransformer | InterleavedGPT | Field
BACKBONES: Mapping[str, type[Backbone]] = {
    "MLPDenoiser": MLPDenoiser,
    "UNet": UNet,
    "CrossTransformer": CrossTransformer,
    "InterleavedGPT": InterleavedGPT,
    "Field": Field,
}


def backbone_from_spec(spec: Mapping[str, Any]) -> Backbone:
    """The backbone, for one learner, that `spec()` described; its weights are still to be loaded.

    Raises ConfigError where the type is not one of `BACKBONES`.
    """
    settings = dict(spec)
    kind = str(settings.pop("type", ""))
    if kind not in BACKBONES:
        raise ConfigError(
            f"the policy's backbone is of type {kind!r}, which offrl does not know"
            f"{near(kind, BACKBONES)}"
        )
    return BACKBONES[kind](learners=Learners(), **settings)


def remembering(
    net: Backbone, condition: Tensor, candidates: int = 1
) -> tuple[Network, Tensor | None]:
    """The network and the condition that it is to be given at every step of a sampler.

    Where the network can, it encodes the condition (batch, tokens, token) once, for all steps and
    for the rows of all candidates, which stand as in `offrl.guidance`.
    """
    if not isinstance(net, CrossTransformer):
        return net, condition
    memory = net.remember(condition)
    rows = Memory(*(part.repeat_interleave(candidates, 1) for part in memory))
    return partial(_recall, net, rows), None


def _recall(net: CrossTransformer, memory: Memory, x: Tensor, level: Tensor, _: None) -> Tensor:
    y: Tensor = net(x, level, memory)
    return y
