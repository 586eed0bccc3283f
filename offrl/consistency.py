"""Consistency models: networks that map every noisy x to the data on its path, in one step.

    f(x, sigma) = c_skip x + c_out F(c_in x, ln(sigma) / 4)
    c_skip = sigma_d^2 / ((sigma - sigma_min)^2 + sigma_d^2)
    c_out = (sigma - sigma_min) sigma_d / sqrt(sigma^2 + sigma_d^2),  c_in as in EDM

so that f(x, sigma_min) = x for every network. Training asks f for the same answer at two
neighbouring levels of a grid with the same x0 and eps (arXiv:2303.01469), in the improved form
(arXiv:2310.14189):

    L = E[ d(f(x_high, sigma_high), sg f(x_low, sigma_low)) / (sigma_high - sigma_low) ]

with d the pseudo-Huber distance (`offrl.losses.pseudo_huber`), sg a stopped gradient (the agent's
work), no second network, and a grid that is refined as training goes on (`grid_size`). For
distillation x_low is instead `offrl.samplers.move` along a teacher's answer at x_high.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from offrl.checks import check_intervals
from offrl.denoising import Denoised, Number, Path, Point, over
from offrl.processes import check_steps, quarter_log, spaced


@dataclass(frozen=True)
class Consistency:
    """The process of consistency training; variance exploding, as EDM's."""

    sigma_data: float = 0.5  # sigma_d, spread of the data
    sigma_min: float = 0.002
    sigma_max: float = 80.0  # for bounded actions 1 to 5 suffice
    rho: float = 7.0  # levels are even in sigma^(1 / rho)
    location: float = -1.1  # of ln(sigma) in the density of levels to train at
    scale: float = 2.0  # of ln(sigma) in that density

    def __post_init__(self) -> None:
        positive = ("sigma_data", "sigma_min", "rho", "scale")
        check_intervals(self, **dict.fromkeys(positive, "(0, inf)"))
        check_intervals(self, sigma_max=f"({self.sigma_min}, inf)")

    def pair(self, noise: Float[Tensor, "*lead"], size: Number) -> tuple[Point, Point]:
        """Neighbouring levels (high, low) of a grid of `size` levels, 2 or more.

        sigma_i = (sigma_min^(1/rho) + i/(size - 1) (sigma_max^(1/rho) - sigma_min^(1/rho)))^rho,
        and low is level i with probability proportional to Phi((ln sigma_{i+1} - location) / scale)
        - Phi((ln sigma_i - location) / scale): a log-normal made discrete (arXiv:2310.14189,
        eq. 17). `size` may be a tensor, so that a growing grid is one graph. One standard normal
        number for each pair.
        """
        low, high = math.log(self.sigma_min), math.log(self.sigma_max)
        first, last = (_normal_cdf((x - self.location) / self.scale) for x in (low, high))
        # The continuous density cut at the ends, by its quantile; the cell of the grid that holds
        # the draw has just the probability above, and no table is needed.
        u = first + (last - first) * torch.special.ndtr(noise)
        sigma = (self.location + self.scale * torch.special.ndtri(u)).clamp(low, high).exp()
        bottom, top = self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)
        place = (sigma ** (1 / self.rho) - bottom) / (top - bottom) * (size - 1)
        i = torch.minimum(place.floor(), torch.zeros_like(place) + (size - 2))
        sigmas = [(bottom + k / (size - 1) * (top - bottom)) ** self.rho for k in (i + 1, i)]
        above, below = (Point(sigma, torch.ones_like(sigma), sigma) for sigma in sigmas)
        return above, below

    def path(self, steps: int) -> Path:
        """sigma_max and further levels, evenly in sigma^(1 / rho), sigma_min last."""
        check_steps(steps)
        levels = spaced(self.sigma_max, self.sigma_min, steps + 1, "karras", self.rho)
        return tuple(Point(sigma, 1.0, sigma) for sigma in levels)

    def prior(self, noise: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """N(0, sigma_max^2 I)."""
        return self.sigma_max * noise

    def scalings(self, sigma: Number) -> tuple[Number, Number, Number]:
        """c_skip, c_out and c_in."""
        above, spread = sigma - self.sigma_min, self.sigma_data
        scale = (sigma**2 + spread**2) ** -0.5
        return spread**2 / (above**2 + spread**2), above * spread * scale, scale

    def inputs(self, x: Float[Tensor, "*shape"], point: Point) -> tuple[Tensor, Number]:
        """c_in x, and ln(sigma) / 4."""
        return self.scalings(over(point, x).sigma)[2] * x, quarter_log(point.sigma)

    def split(
        self, output: Float[Tensor, "*shape"], x: Float[Tensor, "*shape"], point: Point
    ) -> Denoised:
        """(f, (x - f) / sigma)."""
        sigma = over(point, x).sigma
        skip, out, _ = self.scalings(sigma)
        x0 = skip * x + out * output
        return Denoised(x0, (x - x0) / sigma)


def pair_weight(high: Point, low: Point) -> Tensor:
    """1 / (sigma_high - sigma_low), of shape (*seed, batch)."""
    return torch.as_tensor(1.0 / (high.sigma - low.sigma))


def grid_size(step: int, steps: int, first: int = 10, last: int = 1280) -> int:
    """N = min(first 2^floor(step / k), last) + 1 levels at this step of training.

    k = floor(steps / (log2(last / first) + 1)): the grid is doubled at equal intervals. Source:
    arXiv:2310.14189, section 3.4. For small bounded actions `last` of 160 or less suffices.
    """
    interval = max(math.floor(steps / (math.log2(last / first) + 1)), 1)
    doublings = min(step // interval, last.bit_length())
    return int(min(first * 2**doublings, last)) + 1


def _normal_cdf(x: float) -> float:
    return 0.5 * math.erfc(-x / math.sqrt(2))
