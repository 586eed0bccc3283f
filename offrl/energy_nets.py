"""Networks that give one number, an energy, to a chunk of actions under a condition.

    net.under(condition)      an `offrl.energy.Energy`: rows of actions -> energies
    net(x, condition)         the same at once
    x          (*seed, rows, horizon, act)     rows are samples, or n candidates of each in a row
    condition  (*seed, batch, tokens, cond)    observations, normalised; `rows` is a multiple of
                                               `batch`, and what depends on them is computed once

`MLPEnergy` is Implicit BC's pre-activation ResNet, for one learner or a stack, E = w' h with

    h = W [c, x] + b;  h <- h + W2 f(W1 f(h) + b1) + b2, depth / 2 times

f being relu and first numbers N(0, 0.05^2) in its code, which calls -E the network's output. What
learns by slopes takes silu, since those of a net of relus do not depend on its biases. A
`TransformerEnergy` has blocks of attention over all actions of the chunk, and across to the
observations, and

    E = mean over actions of w' LN(x)

as Energy-Based Transformers that look both ways; conditions enter as in `CrossTransformer`, so that
a diffusion policy beside it differs in what is learned, not in what is seen. Attention is the
plain one: the fused kernels have no second derivative, which learning through slopes needs.

An energy has no constant that could be learned: what comes last has no bias, nor has the layer or
the norm before it, since neither losses nor slopes would depend on one.

Sources: Implicit BC (arXiv:2109.00137); Energy-Based Transformers (arXiv:2507.02092).
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import mish, relu, silu

from offrl.attention import Block, KeyValue, blocks_of
from offrl.energy import Energy
from offrl.errors import ConfigError, near
from offrl.initial import redraw
from offrl.networks import Learners, Linear, Stacked

Activation = Literal["relu", "silu"]
ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {"relu": relu, "silu": silu}
SPREAD = 0.05  # of Implicit BC's first numbers


class MLPEnergy(nn.Module):
    """Implicit BC's ResNet on the whole chunk. Raises ConfigError unless `depth` is even.

    Published: 128 units and depth 8 for pushing, 512 and 8 for D4RL, 2,048 and 2 for particles.
    `spread` is that of the first numbers; None for torch.nn.Linear's.
    """

    def __init__(
        self,
        horizon: int,
        act_dim: int,
        cond_dim: int,
        learners: Learners,
        *,
        hidden: int = 128,
        depth: int = 8,
        activation: Activation = "relu",
        spread: float | None = SPREAD,
    ) -> None:
        super().__init__()
        if hidden < 1 or depth < 2 or depth % 2:
            raise ConfigError(
                f"an energy of {depth} layers of {hidden} units; there must be units, and an even "
                "number of layers, 2 or more"
            )
        self.settings: dict[str, Any] = {
            **{"horizon": horizon, "act_dim": act_dim, "cond_dim": cond_dim},
            **{"hidden": hidden, "depth": depth, "activation": activation},
        }
        self.cond_dim, self.act = cond_dim, ACTIVATIONS[activation]
        self.first = _layer(cond_dim + horizon * act_dim, hidden, learners, spread)
        layers: list[nn.Module]
        layers = [_layer(hidden, hidden, learners, spread) for _ in range(depth - 1)]
        self.layers = nn.ModuleList([*layers, Product(hidden, hidden, learners, spread)])
        self.readout = Product(hidden, 1, learners, spread)

    def under(self, condition: Float[Tensor, "*seed batch tokens cond"]) -> Energy:
        weight, bias = self.first.weight, self.first.bias
        begin = condition.flatten(-2) @ weight[..., : self.cond_dim, :] + bias
        return partial(self._energy, begin)

    def forward(
        self,
        x: Float[Tensor, "*seed rows horizon act"],
        condition: Float[Tensor, "*seed batch tokens cond"],
    ) -> Float[Tensor, "*seed rows"]:
        return self.under(condition)(x)

    def _energy(
        self, begin: Float[Tensor, "*seed batch hidden"], x: Float[Tensor, "*seed rows horizon act"]
    ) -> Float[Tensor, "*seed rows"]:
        flat = x.flatten(-2)
        h = _for_rows(begin, flat, -2) + flat @ self.first.weight[..., self.cond_dim :, :]
        for i in range(0, len(self.layers), 2):
            h = h + self.layers[i + 1](self.act(self.layers[i](self.act(h))))
        energy: Tensor = self.readout(h).squeeze(-1)
        return energy

    def spec(self) -> dict[str, Any]:
        return {"type": type(self).__name__, **self.settings}


class TransformerEnergy(nn.Module):
    """Attention among all actions of a chunk, and to the observations. One learner."""

    def __init__(
        self,
        horizon: int,
        act_dim: int,
        cond_tokens: int,
        cond_dim: int,
        learners: Learners,
        *,
        layers: int = 4,
        heads: int = 4,
        width: int = 128,
    ) -> None:
        super().__init__()
        self.settings: dict[str, Any] = {
            **{"horizon": horizon, "act_dim": act_dim},
            **{"cond_tokens": cond_tokens, "cond_dim": cond_dim},
            **{"layers": layers, "heads": heads, "width": width},
        }
        self.embed, self.position = nn.Linear(act_dim, width), nn.Embedding(horizon, width)
        self.cond_embed = nn.Linear(cond_dim, width)
        self.cond_position = nn.Embedding(cond_tokens, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.blocks = nn.ModuleList(Block(width, heads, cross=True) for _ in range(layers))
        self.norm = nn.LayerNorm(width, bias=False)
        self.readout = Product(width, 1, learners)
        redraw(self, learners)

    def under(self, condition: Float[Tensor, "batch tokens cond"]) -> Energy:
        x = self.cond_embed(condition) + self.cond_position.weight[: condition.shape[1]]
        x = self.down(mish(self.up(x)))
        offers = [block.remember(x) for block in blocks_of(self.blocks)]
        return partial(self._energy, offers)

    def forward(
        self, x: Float[Tensor, "rows horizon act"], condition: Float[Tensor, "batch tokens cond"]
    ) -> Float[Tensor, " rows"]:
        return self.under(condition)(x)

    def _energy(
        self, offers: list[KeyValue], x: Float[Tensor, "rows horizon act"]
    ) -> Float[Tensor, " rows"]:
        h = self.embed(x) + self.position.weight
        with sdpa_kernel(SDPBackend.MATH):
            for block, (key, value) in zip(blocks_of(self.blocks), offers, strict=True):
                h = block(h, None, KeyValue(_for_rows(key, h, 0), _for_rows(value, h, 0)), None)
        energy: Tensor = self.readout(self.norm(h)).mean((-1, -2))
        return energy

    def spec(self) -> dict[str, Any]:
        return {"type": type(self).__name__, **self.settings}


class Product(Stacked):
    """x W, without a constant; W from N(0, spread^2), or with the deviation of torch's layers."""

    def __init__(
        self, inputs: int, outputs: int, learners: Learners, spread: float | None = None
    ) -> None:
        super().__init__(learners)
        spread = (3 * inputs) ** -0.5 if spread is None else spread
        self.weight = nn.Parameter(learners.normal(spread, (inputs, outputs)))

    def forward(self, x: Float[Tensor, "*lead inputs"]) -> Float[Tensor, "*lead outputs"]:
        y: Tensor = x @ self.weight
        return y


def _layer(inputs: int, outputs: int, learners: Learners, spread: float | None) -> Linear:
    layer = Linear(inputs, outputs, learners)
    if spread is not None:
        with torch.no_grad():
            layer.weight.copy_(learners.normal(spread, (inputs, outputs)))
            layer.bias.copy_(learners.normal(spread, (1, outputs)))
    return layer


def _for_rows(given: Tensor, x: Tensor, axis: int) -> Tensor:
    """What belongs to a condition, for each of its rows of x."""
    times, rest = divmod(x.shape[axis], given.shape[axis])
    if rest:
        raise ConfigError(
            f"{x.shape[axis]} rows of actions and {given.shape[axis]} conditions; give the same "
            "number of rows to each condition"
        )
    return given if times == 1 else given.repeat_interleave(times, axis)


EnergyNet = MLPEnergy | TransformerEnergy
ENERGY_NETS: Mapping[str, type[EnergyNet]] = {
    "MLPEnergy": MLPEnergy,
    "TransformerEnergy": TransformerEnergy,
}


def energy_net_from_spec(spec: Mapping[str, Any]) -> EnergyNet:
    """The network, for one learner, that `spec()` described; its weights are still to be loaded.

    Raises ConfigError where the type is not one of `ENERGY_NETS`.
    """
    settings = dict(spec)
    kind = str(settings.pop("type", ""))
    if kind not in ENERGY_NETS:
        raise ConfigError(
            f"the policy's energy is of type {kind!r}, which offrl does not know"
            f"{near(kind, ENERGY_NETS)}"
        )
    return ENERGY_NETS[kind](learners=Learners(), **settings)
