"""The conditional U-Net over time of Diffusion Policy (Chi et al., RSS 2023, arXiv:2303.04137).

    c = [W2 mish(W1 sinusoidal(level)), condition]
    block(x): h = mish(GN(conv x));  h = scale(c) h + shift(c);  h = mish(GN(conv h)) + skip(x)

scale and shift are one layer on mish(c); without `scale` the condition is only added. Channels
widen from level to level (256, 512, 1024 as published), time halves between them: two blocks and a
convolution of stride 2 on the way down, two blocks in the middle, two blocks and a transposed
convolution on the way up. First numbers are those of torch's layers.

Kept from the authors' code: the scale is the layer's output itself, not 1 plus it, so that a
published checkpoint could be read; the way up begins one level below the top, so that the
first level's output is not passed across. Left out: conditions that vary along the chunk, which
none of its published settings uses. GroupNorm rather than BatchNorm, for the average's sake
(`offrl.ema`). There is no dropout in the original either.

A callable (x, level, condition) as all backbones are (`offrl.backbones`).
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import mish

from offrl.embeddings import LevelEncoder
from offrl.errors import ConfigError
from offrl.initial import redraw
from offrl.networks import Learners


class ConvBlock(nn.Module):
    """mish(GN(conv x)), the length kept."""

    def __init__(self, inputs: int, outputs: int, kernel: int, groups: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(inputs, outputs, kernel, padding=kernel // 2)
        self.norm = nn.GroupNorm(groups, outputs)

    def forward(self, x: Float[Tensor, "batch inputs time"]) -> Float[Tensor, "batch outputs time"]:
        return mish(self.norm(self.conv(x)))


class ResidualBlock(nn.Module):
    """Two convolutions with the condition between them, and a way around both."""

    def __init__(
        self, inputs: int, outputs: int, cond: int, kernel: int, groups: int, scale: bool
    ) -> None:
        super().__init__()
        self.first = ConvBlock(inputs, outputs, kernel, groups)
        self.second = ConvBlock(outputs, outputs, kernel, groups)
        self.film = nn.Linear(cond, 2 * outputs if scale else outputs)
        self.scale = scale
        self.skip = nn.Conv1d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(
        self, x: Float[Tensor, "batch inputs time"], cond: Float[Tensor, "batch cond"]
    ) -> Float[Tensor, "batch outputs time"]:
        y: Tensor = self.second(self.modulate(self.first(x), cond)) + self.skip(x)
        return y

    def modulate(
        self, h: Float[Tensor, "batch outputs time"], cond: Float[Tensor, "batch cond"]
    ) -> Float[Tensor, "batch outputs time"]:
        """FiLM (arXiv:1709.07871): scale(c) h + shift(c), or h + shift(c)."""
        film: Tensor = self.film(mish(cond)).unsqueeze(-1)
        if not self.scale:
            return h + film
        scale, shift = film.chunk(2, 1)
        return scale * h + shift


class UNet(nn.Module):
    """Chunks of actions, denoised by convolutions along time.

    `horizon` must be a multiple of 2 for each step down (4 as published), which is checked here.
    `level_scale` multiplies the level: 1 for steps, some 1,000 for times in [0, 1].
    Raises ConfigError, also where groups do not divide the channels or the kernel is even.
    """

    def __init__(
        self,
        horizon: int,
        act_dim: int,
        cond_dim: int,
        learners: Learners,
        *,
        channels: Sequence[int] = (256, 512, 1024),
        kernel: int = 5,
        groups: int = 8,
        embedding: int = 256,
        scale: bool = True,
        level_scale: float = 1.0,
    ) -> None:
        super().__init__()
        _check(horizon, channels, kernel, groups)
        self.settings: dict[str, Any] = {
            **{"horizon": horizon, "act_dim": act_dim, "cond_dim": cond_dim},
            **{"channels": list(channels), "kernel": kernel, "groups": groups},
            **{"embedding": embedding, "scale": scale, "level_scale": level_scale},
        }
        self.level_scale = level_scale
        cond = embedding + cond_dim

        def pair(inputs: int, outputs: int) -> list[nn.Module]:
            rest = (cond, kernel, groups, scale)
            return [
                ResidualBlock(inputs, outputs, *rest),
                ResidualBlock(outputs, outputs, *rest),
            ]

        steps = list(pairwise([act_dim, *channels]))
        top, bottom = channels[0], channels[-1]
        self.level = LevelEncoder(embedding, 4 * embedding, embedding, learners)
        self.down = nn.ModuleList(nn.ModuleList(pair(a, b)) for a, b in steps)
        self.shrink = nn.ModuleList(nn.Conv1d(n, n, 3, 2, 1) for n in channels[:-1])
        self.middle = nn.ModuleList(pair(bottom, bottom))
        self.up = nn.ModuleList(nn.ModuleList(pair(2 * b, a)) for a, b in reversed(steps[1:]))
        self.grow = nn.ModuleList(
            nn.ConvTranspose1d(n, n, 4, 2, 1) for n in reversed(channels[:-1])
        )
        self.last = ConvBlock(top, top, kernel, groups)
        self.head = nn.Conv1d(top, act_dim, 1)
        redraw(self, learners)

    def forward(
        self,
        x: Float[Tensor, "batch horizon act"],
        level: Float[Tensor, " batch"],
        condition: Float[Tensor, "batch cond"] | Float[Tensor, "batch tokens token"],
    ) -> Float[Tensor, "batch horizon act"]:
        """The output for each action; condition tokens are put side by side."""
        cond = torch.cat([self.level(level * self.level_scale), condition.flatten(1)], -1)
        h = x.transpose(1, 2)
        passed: list[Tensor] = []
        for i, (first, second) in enumerate(_pairs(self.down)):
            h = second(first(h, cond), cond)
            passed.append(h)
            if i < len(self.shrink):
                h = self.shrink[i](h)
        for block in self.middle:
            h = block(h, cond)
        for i, (first, second) in enumerate(_pairs(self.up)):
            h = torch.cat([h, passed.pop()], 1)
            h = self.grow[i](second(first(h, cond), cond))
        y: Tensor = self.head(self.last(h))
        return y.transpose(1, 2)

    def spec(self) -> dict[str, Any]:
        return {"type": type(self).__name__, **self.settings}


def _pairs(levels: nn.ModuleList) -> list[tuple[nn.Module, nn.Module]]:
    return [(pair[0], pair[1]) for pair in levels]  # type: ignore[index]


def _check(horizon: int, channels: Sequence[int], kernel: int, groups: int) -> None:
    if not channels or groups < 1 or any(n < 1 or n % groups for n in channels):
        raise ConfigError(
            f"the U-Net's channels are {list(channels)}; each must be a multiple of the "
            f"{groups} groups"
        )
    if kernel < 1 or kernel % 2 == 0:
        raise ConfigError(f"the U-Net's kernel is {kernel}; it must be odd, to keep the length")
    multiple = 2 ** (len(channels) - 1)
    if horizon < 1 or horizon % multiple:
        raise ConfigError(
            f"the U-Net's horizon is {horizon}; with {len(channels)} levels it must be a multiple "
            f"of {multiple}"
        )
