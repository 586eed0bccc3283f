"""Guidance of generated trajectories towards a policy: its likelihood's gradient in the actions.

    x_a <- x_a + w_i g,  g = grad_{x_a} sum_t log pi(a_t | s_t)
    w_i = c [ (1 - i / n) + b sin(pi (i + 1) / n) ],  and 0 at the last of n steps

before step i of a sampler, so that trajectories come from the data's density times a power of the
policy's likelihood. The gradient in the states is dropped on purpose: states that suit the policy
are not to be made up. g has length one over the whole trajectory unless told otherwise.
Source: policy-guided diffusion (Jackson et al., 2024, arXiv:2404.06356); the schedule and the
length are those of its authors' code, where a gradient of zero has no direction; here it is zero.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from offrl.checks import check_intervals
from offrl.denoising import Denoise, Point
from offrl.samplers import Hook

Likelihood = Callable[[Tensor], Tensor]
"""sum_t log pi(a_t | s_t) of each trajectory: (batch, time, channels) to (batch)."""


@dataclass(frozen=True)
class Guidance:
    """How strongly, and on what, a policy guides."""

    weight: float = 1.0  # c; 0 guides nowhere
    bump: float = 0.3  # b, of the sine in the schedule
    unit: bool = True  # whether the gradient of each trajectory has length one
    denoised: bool = False  # whether it is taken at the estimate of the clean trajectory

    def __post_init__(self) -> None:
        check_intervals(self, weight="[0, inf)", bump="[0, inf)")

    def rate(self, step: int, steps: int) -> float:
        """w_i of step i of n."""
        if step >= steps - 1:
            return 0.0
        falling = 1.0 - step / steps
        return self.weight * (falling + self.bump * math.sin(math.pi * (step + 1) / steps))


def action_slope(
    likelihood: Likelihood,
    x: Float[Tensor, "batch time channels"],
    actions: slice,
    unit: bool,
) -> Float[Tensor, "batch time channels"]:
    """g in the action channels and zero in all others."""

    def summed(action: Tensor) -> Tensor:
        parts = [x[..., : actions.start], action, x[..., actions.stop :]]
        return likelihood(torch.cat(parts, -1)).sum()

    slope = torch.func.grad(summed)(x[..., actions])
    if unit:
        length = slope.square().sum((-2, -1), keepdim=True).sqrt()
        slope = slope / length.clamp(min=1e-12)
    whole = torch.zeros_like(x)
    whole[..., actions] = slope
    return whole


def guided(
    likelihood: Likelihood,
    actions: slice,
    steps: int,
    guidance: Guidance,
    denoise: Denoise | None = None,
) -> Hook:
    """What a sampler of n steps calls before each of them (`before` of `offrl.samplers`).

    `denoise` is asked once more in each step where guidance is taken at the clean estimate.
    """

    def before(x: Tensor, i: int, point: Point) -> Tensor:
        rate = guidance.rate(i, steps)
        if rate == 0.0:
            return x
        at = denoise(x, point).x0 if guidance.denoised and denoise is not None else x
        return x + rate * action_slope(likelihood, at, actions, guidance.unit)

    return before
