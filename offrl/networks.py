"""Layers shared by every network, for one learner or a stack of them.

A parameter of n learners has a seed axis: `(ensemble, *seed, in, out)`. A stacked network is n
networks in one kernel, not one network with n heads: no value of one enters another. Initial
numbers are drawn per learner from its own stream, so learner k of a stack begins with the very
weights that its seed gives alone.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import ndtri
from torch import Tensor, nn
from torch.nn.functional import layer_norm

from offrl.errors import ConfigError
from offrl.streams import Stream
from offrl.types import Noise

M = TypeVar("M", bound=nn.Module)

Norm = Literal["none", "before", "after"]
"""LayerNorm in each hidden layer: none, before its activation or after it."""

Activation = Literal["relu", "mish", "gelu"]
ACTIVATIONS: Mapping[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "mish": nn.Mish,
    "gelu": partial(nn.GELU, approximate="tanh"),  # as in flax
}


@dataclass(frozen=True)
class Init:
    """First numbers of a network, where they are not those of torch.nn.Linear."""

    hidden_bias: float | None = None  # the same for every unit of the hidden layers
    last: float | None = None  # the last layer's weights and biases are from U(-last, last)


TORCH_INIT = Init()


class Learners:
    """The learners trained together: how many, and where their initial numbers come from."""

    def __init__(self, seeds: Sequence[int] = (0,)) -> None:
        if not seeds or len(set(seeds)) != len(seeds):
            raise ConfigError(f"seeds {list(seeds)} must be one or more different integers")
        self.seeds = tuple(seeds)
        self.shape: tuple[int, ...] = () if len(seeds) == 1 else (len(seeds),)
        self._generators = [Stream(seed, "init").block(0) for seed in seeds]

    def uniform(self, bound: float, shape: Sequence[int], ensemble: Sequence[int] = ()) -> Tensor:
        """U(-bound, bound), of shape (*ensemble, *seed, *shape); each learner from its stream."""
        draws = [g.uniform(-bound, bound, (*ensemble, *shape)) for g in self._generators]
        return self._stack(draws, len(ensemble))

    def normal(self, std: float, shape: Sequence[int], ensemble: Sequence[int] = ()) -> Tensor:
        """N(0, std^2), of shape (*ensemble, *seed, *shape); each learner from its stream."""
        draws = [std * g.standard_normal((*ensemble, *shape)) for g in self._generators]
        return self._stack(draws, len(ensemble))

    def _stack(self, draws: Sequence[NDArray[np.float64]], axis: int) -> Tensor:
        stacked = np.stack(draws, axis=axis) if self.shape else draws[0]
        return torch.from_numpy(stacked.astype(np.float32))


class Stacked(nn.Module):
    """A module with parameters of its own; `seed_axis` says where learners are stacked in them."""

    def __init__(self, learners: Learners, ensemble: Sequence[int] = ()) -> None:
        super().__init__()
        self.seed_axis = len(ensemble) if learners.shape else None


class Linear(Stacked):
    """y = x W + b for every member and learner; W and b from U(-bound, bound).

    W is stored (in, out). The bound is 1/sqrt(in) unless given, which is the distribution of
    torch.nn.Linear; `bias` begins b at that number instead.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        learners: Learners,
        ensemble: Sequence[int] = (),
        bound: float | None = None,
        bias: float | None = None,
    ) -> None:
        super().__init__(learners, ensemble)
        bound = inputs**-0.5 if bound is None else bound
        self.weight = nn.Parameter(learners.uniform(bound, (inputs, outputs), ensemble))
        if bias is None:
            self.bias = nn.Parameter(learners.uniform(bound, (1, outputs), ensemble))
        else:
            self.bias = nn.Parameter(torch.full((*ensemble, *learners.shape, 1, outputs), bias))

    def forward(self, x: Tensor, members: int | None = None) -> Tensor:
        """`members` computes the first ones of an ensemble alone."""
        weight: Tensor = self.weight
        bias: Tensor = self.bias
        if members is not None:
            weight, bias = weight[:members], bias[:members]
        if x.ndim == 2 and weight.ndim == 2:
            return torch.addmm(bias, x, weight)
        if x.ndim > weight.ndim:
            y: Tensor = x @ weight + bias
            return y
        # One product for all members and learners, with the bias inside it.
        stack = weight.shape[:-2]
        x = x.expand(*stack, -1, -1).flatten(0, -3)
        y = torch.baddbmm(bias.flatten(0, -3), x, weight.flatten(0, -3))
        return y.reshape(*stack, *y.shape[-2:])


class LayerNorm(Stacked):
    """y = g (x - mean(x)) / sqrt(var(x) + 1e-5) + b over the features of each sample.

    g and b are of each member and learner, so that learners never mix; they begin at 1 and 0.
    Source: arXiv:1607.06450.
    """

    def __init__(self, features: int, learners: Learners, ensemble: Sequence[int] = ()) -> None:
        super().__init__(learners, ensemble)
        shape = (*ensemble, *learners.shape, 1, features)
        self.weight = nn.Parameter(torch.ones(shape))
        self.bias = nn.Parameter(torch.zeros(shape))

    def forward(self, x: Tensor, members: int | None = None) -> Tensor:
        """`members` computes the first ones of an ensemble alone."""
        weight: Tensor = self.weight
        bias: Tensor = self.bias
        if members is not None:
            weight, bias = weight[:members], bias[:members]
        return torch.addcmul(bias, layer_norm(x, x.shape[-1:]), weight)


class MLP(nn.Sequential):
    """Linear-ReLU blocks, the last layer linear unless `activate_last`.

    Dropout acts after each hidden ReLU where noise is given, LayerNorm where `norm` says;
    `activation` stands for ReLU.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        learners: Learners,
        ensemble: Sequence[int] = (),
        dropout: float = 0.0,
        norm: Norm = "none",
        init: Init = TORCH_INIT,
        activate_last: bool = False,
        activation: Activation = "relu",
    ) -> None:
        if min(sizes) < 1:
            raise ConfigError(f"a network's layers have {list(sizes)} units; each needs 1 or more")
        layers: list[nn.Module] = []
        for i, (inputs, outputs) in enumerate(pairwise(sizes)):
            if i + 2 == len(sizes) and not activate_last:
                layers.append(Linear(inputs, outputs, learners, ensemble, init.last))
                break
            layers.append(Linear(inputs, outputs, learners, ensemble, bias=init.hidden_bias))
            block: list[nn.Module] = [ACTIVATIONS[activation]()]
            if norm != "none":
                at = 0 if norm == "before" else 1
                block.insert(at, LayerNorm(outputs, learners, ensemble))
            layers.extend(block)
        super().__init__(*layers)
        self.sizes, self.dropout = tuple(sizes), dropout

    def noise(self, batch_size: int) -> dict[str, tuple[int, ...]]:
        """Shapes of the normal draws that dropout wants, for one learner."""
        if not self.dropout:
            return {}
        return {f"dropout{i}": (batch_size, n) for i, n in enumerate(self.sizes[1:-1])}

    def forward(self, x: Tensor, noise: Noise | None = None, members: int | None = None) -> Tensor:
        drops = noise is not None and self.dropout > 0
        threshold = float(ndtri(self.dropout)) if drops else 0.0
        hidden = 0
        for layer in self:
            active = isinstance(layer, nn.ReLU | nn.Mish | nn.GELU)
            x = layer(x) if active else layer(x, members)
            if noise is not None and drops and active:
                kept = (noise[f"dropout{hidden}"] > threshold).to(x)
                x = x * kept / (1.0 - self.dropout)
                hidden += 1
        return x


def learner_view(module: M, k: int) -> M:
    """Learner k alone: the same module without the seed axis, its weights shared, not copied."""
    single = copy.deepcopy(module).requires_grad_(False)
    for part, whole in zip(single.modules(), module.modules(), strict=True):
        axis = whole.seed_axis if isinstance(whole, Stacked) else None
        for name, parameter in whole.named_parameters(recurse=False):
            mine = parameter.detach() if axis is None else parameter.detach().select(axis, k)
            part.register_parameter(name, nn.Parameter(mine, requires_grad=False))
        for name, buffer in whole.named_buffers(recurse=False):
            setattr(part, name, buffer if axis is None else buffer.select(axis, k))
        if isinstance(part, Stacked):
            part.seed_axis = None
    return single


def seed_axes(module: nn.Module) -> dict[str, int | None]:
    """For each entry of the state dict, the axis along which learners are stacked, if any."""
    axes: dict[str, int | None] = {}
    for prefix, part in module.named_modules():
        axis = part.seed_axis if isinstance(part, Stacked) else None
        for name in [*part._parameters, *part._buffers]:
            axes[f"{prefix}.{name}" if prefix else name] = axis
    return axes
