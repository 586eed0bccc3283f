"""How a network is told the noise level: frequencies of a number, and layers on them.

    sinusoidal(l) = [sin(l w_i), cos(l w_i)],  w_i = 10000^(-i / (size / 2 - 1)),  i < size / 2
    fourier(l)    = [cos(2 pi l w_i), sin(2 pi l w_i)],  w_i learned, first N(0, 0.2^2)

The number l is the process's: a step's index, a time times 1,000, or ln(sigma) / 4.
Sources: attention is all you need (arXiv:1706.03762), as in DDPM (arXiv:2006.11239) and Diffusion
Policy (arXiv:2303.04137); IDQL (arXiv:2304.10573) for the learned frequencies.
"""

import math
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import mish

from offrl.errors import ConfigError
from offrl.networks import Learners, Linear, Stacked

Features = Literal["sinusoidal", "fourier"]
SPREAD = 0.2  # of IDQL's frequencies when training begins


def sinusoidal(level: Float[Tensor, "*lead"], size: int) -> Float[Tensor, "*lead size"]:
    """sin and cos of the level at size / 2 frequencies from 1 down to 1/10000.

    Raises ConfigError unless size is even and 4 or more.
    """
    if size < 4 or size % 2:
        raise ConfigError(f"{size} sinusoidal features; there must be an even number, 4 or more")
    half = size // 2
    place = torch.arange(half, device=level.device, dtype=level.dtype)
    angle = level.unsqueeze(-1) * (-math.log(10_000.0) / (half - 1) * place).exp()
    return torch.cat([angle.sin(), angle.cos()], -1)


class Fourier(Stacked):
    """cos and sin of the level at frequencies that are learned, for each learner its own."""

    def __init__(self, size: int, learners: Learners) -> None:
        super().__init__(learners)
        if size < 2 or size % 2:
            raise ConfigError(f"{size} Fourier features; there must be an even number, 2 or more")
        self.frequency = nn.Parameter(learners.normal(SPREAD, (1, size // 2)))

    def forward(self, level: Float[Tensor, "*seed batch"]) -> Float[Tensor, "*seed batch size"]:
        angle = 2.0 * math.pi * level.unsqueeze(-1) * self.frequency
        return torch.cat([angle.cos(), angle.sin()], -1)


class LevelEncoder(nn.Module):
    """W2 mish(W1 features(l) + b1) + b2: features -> hidden -> size.

    `xavier` begins as IDQL's code does, W from U(-b, b) with b = sqrt(6 / (in + out)) and
    biases 0; otherwise as torch.nn.Linear.
    """

    def __init__(
        self,
        features: int,
        hidden: int,
        size: int,
        learners: Learners,
        kind: Features = "sinusoidal",
        xavier: bool = False,
    ) -> None:
        super().__init__()
        self.features, self.size = features, size
        self.fourier = Fourier(features, learners) if kind == "fourier" else None
        self.first = linear(features, hidden, learners, xavier)
        self.second = linear(hidden, size, learners, xavier)

    def forward(self, level: Float[Tensor, "*seed batch"]) -> Float[Tensor, "*seed batch size"]:
        x = sinusoidal(level, self.features) if self.fourier is None else self.fourier(level)
        y: Tensor = self.second(mish(self.first(x)))
        return y


def linear(inputs: int, outputs: int, learners: Learners, xavier: bool) -> Linear:
    """A layer that begins as torch's own, or with Xavier's bound and no bias."""
    if not xavier:
        return Linear(inputs, outputs, learners)
    return Linear(inputs, outputs, learners, bound=(6.0 / (inputs + outputs)) ** 0.5, bias=0.0)
