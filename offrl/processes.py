"""How noise is added to what a policy generates: DDPM, EDM and rectified flow.

    process         alpha, sigma                   target                   x0_hat
    DDPM, epsilon   sqrt(abar), sqrt(1 - abar)     eps                      (x - sigma y) / alpha
    DDPM, x0        the same                       x0                       y
    DDPM, v         the same                       alpha eps - sigma x0     alpha x - sigma y
    EDM             1, sigma                       (x0 - c_skip x) / c_out  c_skip x + c_out y
    Flow            t, 1 - t                       x0 - eps                 x + (1 - t) y

with x = alpha x0 + sigma eps and y the network's output (offrl.denoising). Targets are chosen so
that every loss is a plain squared error (`offrl.denoising.matching_error`). The level that a
network is given is the step k for DDPM, ln(sigma) / 4 for EDM and t for Flow. Processes have no
state: they are settings, and every number of a batch is made on the batch's device.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from offrl.checks import check_choice, check_intervals
from offrl.denoising import Denoised, Number, Path, Point, corrupt, over
from offrl.errors import ConfigError


@dataclass(frozen=True)
class DDPM:
    """Diffusion in discrete time, variance preserving: k = 0 is nearly data, k = T - 1 noise.

        x_k = sqrt(abar_k) x0 + sqrt(1 - abar_k) eps,  abar_k = prod_{i <= k} (1 - beta_i)

    Schedules, with u_i = i / T:
        cosine   beta_i = min(1 - f(u_{i+1}) / f(u_i), 0.999), f(u) = cos^2(pi/2 (u + s) / (1 + s)),
                 s = 0.008 (arXiv:2102.09672; Diffusion Policy, T = 100)
        vp       1 - beta_i = exp(-0.1 / T - (10 - 0.1)(2 i + 1) / (2 T^2))
                 (arXiv:2011.13456 made discrete; Diffusion-QL and IDQL, T = 5)
        linear   beta from 1e-4 to 2e-2 (arXiv:2006.11239); reaches noise at T = 1000 or so only
    """

    steps: int = 100  # T, levels to train at
    schedule: Literal["cosine", "vp", "linear"] = "cosine"
    prediction: Literal["epsilon", "x0", "v"] = "epsilon"  # what the network is asked for
    spacing: Literal["trailing", "leading", "linspace"] = "trailing"  # of a sampler's levels

    def __post_init__(self) -> None:
        check_intervals(self, steps="[1, inf)")
        check_choice(self, "schedule", ("cosine", "vp", "linear"))
        check_choice(self, "prediction", ("epsilon", "x0", "v"))
        check_choice(self, "spacing", ("trailing", "leading", "linspace"))

    def alpha_bars(self, device: torch.device | None = None) -> Tensor:
        """abar_0 to abar_{T-1} in float64; made where they are needed, nothing is moved."""
        i = torch.arange(self.steps, dtype=torch.float64, device=device)
        if self.schedule == "cosine":
            quarter = math.pi / 2 / 1.008
            ends = ((torch.stack([i, i + 1]) / self.steps + 0.008) * quarter).cos().square()
            kept = (ends[1] / ends[0]).clamp(min=0.001)
        elif self.schedule == "vp":
            kept = (-0.1 / self.steps - 9.9 * (2 * i + 1) / (2 * self.steps**2)).exp()
        else:
            kept = 1.0 - (1e-4 + (2e-2 - 1e-4) * i / max(self.steps - 1, 1))
        return kept.cumprod(0)

    def draw(self, noise: Float[Tensor, "*lead"]) -> Point:
        """k uniform on 0 .. T - 1."""
        place = torch.special.ndtr(noise) * self.steps
        k = place.floor().clamp(max=self.steps - 1.0)  # ndtr rounds to 1 in the far tail
        bar = self.alpha_bars(noise.device)[k.long()]
        return Point(k, bar.sqrt().to(noise), (1.0 - bar).sqrt().to(noise))

    def path(self, steps: int) -> Path:
        """From noise to data in so many of the T steps, and data itself (abar = 1) at the end.

        trailing  ceil(T - i T / n) - 1, begins with pure noise (arXiv:2305.08891)
        leading   (n - 1 - i) floor(T / n), the usual one in `diffusers` and Diffusion Policy
        linspace  T - 1 to 0, evenly
        """
        check_steps(steps, self.steps)
        total = self.steps
        if self.spacing == "trailing":
            places = [-((i - steps) * total // steps) - 1 for i in range(steps)]
        elif self.spacing == "leading":
            places = [(steps - 1 - i) * (total // steps) for i in range(steps)]
        else:
            places = [round((total - 1) * (1 - i / max(steps - 1, 1))) for i in range(steps)]
        bars = self.alpha_bars().tolist()
        points = [Point(float(k), math.sqrt(bars[k]), math.sqrt(1.0 - bars[k])) for k in places]
        return (*points, Point(-1.0, 1.0, 0.0))

    def prior(self, noise: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """N(0, I)."""
        return noise

    def inputs(self, x: Float[Tensor, "*shape"], point: Point) -> tuple[Tensor, Number]:
        """x itself, and k."""
        return x, point.level

    def target(
        self, x0: Float[Tensor, "*shape"], noise: Float[Tensor, "*shape"], point: Point
    ) -> Float[Tensor, "*shape"]:
        """eps, x0, or v = alpha eps - sigma x0 (arXiv:2202.00512)."""
        if self.prediction == "epsilon":
            return noise
        if self.prediction == "x0":
            return x0
        _, alpha, sigma = over(point, x0)
        return alpha * noise - sigma * x0

    def split(
        self, output: Float[Tensor, "*shape"], x: Float[Tensor, "*shape"], point: Point
    ) -> Denoised:
        """(x0_hat, eps_hat) of the output."""
        _, alpha, sigma = over(point, x)
        if self.prediction == "epsilon":
            return Denoised((x - sigma * output) / alpha, output)
        if self.prediction == "x0":
            return Denoised(output, (x - alpha * output) / sigma)
        return Denoised(alpha * x - sigma * output, alpha * output + sigma * x)


@dataclass(frozen=True)
class EDM:
    """Diffusion in continuous noise, variance exploding, with Karras' preconditioning.

        D(x, sigma) = c_skip x + c_out F(c_in x, ln(sigma) / 4)
        c_skip = sigma_d^2 / (sigma^2 + sigma_d^2),  c_in = 1 / sqrt(sigma^2 + sigma_d^2)
        c_out = sigma sigma_d / sqrt(sigma^2 + sigma_d^2)

    F is matched to (x0 - c_skip x) / c_out with weight 1, which is the paper's weight
    (sigma^2 + sigma_d^2) / (sigma sigma_d)^2 on |D - x0|^2. Levels to train at are log-normal
    (arXiv:2206.00364), kept within the bounds, or log-logistic and cut at the bounds (BESO,
    arXiv:2304.02532). Begun at N(0, sigma_max^2), sampling shrinks the mean of data with spread s
    by the factor 1 - s / sqrt(s^2 + sigma_max^2): choose sigma_max well above the spread.
    """

    sigma_data: float = 0.5  # sigma_d, spread of the data
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    spacing: Literal["karras", "linear", "exponential"] = "karras"  # of a sampler's levels
    rho: float = 7.0  # of karras: even in sigma^(1 / rho)
    density: Literal["lognormal", "loglogistic"] = "lognormal"  # of levels to train at
    location: float = -1.2  # of ln(sigma) in that density; ln(sigma_d) in BESO
    scale: float = 1.2  # of ln(sigma) in that density; 0.5 in BESO

    def __post_init__(self) -> None:
        positive = ("sigma_data", "sigma_min", "rho", "scale")
        check_intervals(self, **dict.fromkeys(positive, "(0, inf)"))
        check_intervals(self, sigma_max=f"({self.sigma_min}, inf)")
        check_choice(self, "spacing", ("karras", "linear", "exponential"))
        check_choice(self, "density", ("lognormal", "loglogistic"))

    def draw(self, noise: Float[Tensor, "*lead"]) -> Point:
        """sigma of the density, within [sigma_min, sigma_max]."""
        low, high = math.log(self.sigma_min), math.log(self.sigma_max)
        z = noise
        if self.density == "loglogistic":
            first, last = (
                1 / (1 + math.exp((self.location - x) / self.scale)) for x in (low, high)
            )
            u = first + (last - first) * torch.special.ndtr(noise)
            z = u.log() - (-u).log1p()
        sigma = (self.location + self.scale * z).clamp(low, high).exp()
        return Point(sigma, torch.ones_like(sigma), sigma)

    def path(self, steps: int) -> Path:
        """sigma_max to sigma_min in so many levels, then 0.

        karras       sigma_i = (sigma_max^(1/rho) + i/(n-1) (sigma_min^(1/rho) - ...))^rho
        linear       evenly in sigma (BESO's evaluation)
        exponential  evenly in ln(sigma)
        """
        check_steps(steps)
        levels = spaced(self.sigma_max, self.sigma_min, steps, self.spacing, self.rho)
        return (*(Point(s, 1.0, s) for s in levels), Point(0.0, 1.0, 0.0))

    def prior(self, noise: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """N(0, sigma_max^2 I)."""
        return self.sigma_max * noise

    def scalings(self, sigma: Number) -> tuple[Number, Number, Number]:
        """c_skip, c_out and c_in."""
        total = sigma**2 + self.sigma_data**2
        return self.sigma_data**2 / total, sigma * self.sigma_data / total**0.5, total**-0.5

    def inputs(self, x: Float[Tensor, "*shape"], point: Point) -> tuple[Tensor, Number]:
        """c_in x, and ln(sigma) / 4."""
        return self.scalings(over(point, x).sigma)[2] * x, quarter_log(point.sigma)

    def target(
        self, x0: Float[Tensor, "*shape"], noise: Float[Tensor, "*shape"], point: Point
    ) -> Float[Tensor, "*shape"]:
        """(x0 - c_skip x) / c_out."""
        skip, out, _ = self.scalings(over(point, x0).sigma)
        return (x0 - skip * corrupt(x0, noise, point)) / out

    def split(
        self, output: Float[Tensor, "*shape"], x: Float[Tensor, "*shape"], point: Point
    ) -> Denoised:
        """(D, (x - D) / sigma)."""
        sigma = over(point, x).sigma
        skip, out, _ = self.scalings(sigma)
        x0 = skip * x + out * output
        return Denoised(x0, (x - x0) / sigma)


@dataclass(frozen=True)
class Flow:
    """Rectified flow: straight lines from noise at t = 0 to data at t = 1.

        x_t = t x0 + (1 - t) eps,  v = x0 - eps

    Sources: arXiv:2209.03003, arXiv:2210.02747; the direction of time is that of FQL
    (arXiv:2502.02538). Models of the other direction are the same with t' = 1 - t and v' = -v.
    """

    def draw(self, noise: Float[Tensor, "*lead"]) -> Point:
        """t uniform on (0, 1)."""
        t = torch.special.ndtr(noise)
        return Point(t, t, torch.special.ndtr(-noise))

    def path(self, steps: int) -> Path:
        """t = 0 to 1, evenly."""
        check_steps(steps)
        times = [i / steps for i in range(steps + 1)]
        return tuple(Point(t, t, 1.0 - t) for t in times)

    def prior(self, noise: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """N(0, I)."""
        return noise

    def inputs(self, x: Float[Tensor, "*shape"], point: Point) -> tuple[Tensor, Number]:
        """x itself, and t."""
        return x, point.level

    def target(
        self, x0: Float[Tensor, "*shape"], noise: Float[Tensor, "*shape"], point: Point
    ) -> Float[Tensor, "*shape"]:
        """x0 - eps."""
        return x0 - noise

    def split(
        self, output: Float[Tensor, "*shape"], x: Float[Tensor, "*shape"], point: Point
    ) -> Denoised:
        """(x + (1 - t) v, x - t v)."""
        _, alpha, sigma = over(point, x)
        return Denoised(x + sigma * output, x - alpha * output)


def spaced(high: float, low: float, n: int, spacing: str, rho: float = 7.0) -> list[float]:
    """n numbers from high to low, even in x ("linear"), ln x ("exponential") or x^(1/rho)."""
    back: Callable[[float], float]
    if spacing == "exponential":
        ends, back = (math.log(high), math.log(low)), math.exp
    elif spacing == "linear":
        ends, back = (high, low), float
    else:
        ends, back = (high ** (1 / rho), low ** (1 / rho)), lambda y: float(math.pow(y, rho))
    inner = [ends[0] + i / max(n - 1, 1) * (ends[1] - ends[0]) for i in range(1, n - 1)]
    return [high, *(back(y) for y in inner), low][:n]


def quarter_log(sigma: Number) -> Number:
    """ln(sigma) / 4, the level that networks of EDM and of consistency models are given."""
    return sigma.log() / 4 if isinstance(sigma, Tensor) else math.log(sigma) / 4


def check_steps(steps: int, most: int | None = None) -> None:
    """Raise ConfigError unless a sampler can have so many steps."""
    if steps < 1 or (most is not None and steps > most):
        bound = "1 or more" if most is None else f"from 1 to {most}, the steps of its training"
        raise ConfigError(f"a sampler has {steps} steps; it must be {bound}")
