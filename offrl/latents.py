"""Latents of two kinds behind one face: Gaussian vectors, and codes of which one is on.

    q = parameters (.., size)         of a distribution over latents z
    draws(q, noise)                   z_1 .. z_n with weights that sum to 1, so that
                                      E_q[f(z)] is estimated by sum_i w_i f(z_i)
    candidates(p, noise)              what may be taken when the best of a prior is looked for

A Gaussian has one draw, mu + sigma noise, of weight 1, through which gradients flow. Codes are
drawn all, each weighed by its probability: the expectation is exact, and its gradient flows through
the weights. Choosing among candidates by a value asks for care, since where the prior has no mass
a value is a guess: Gaussian candidates outside the ball that holds `mass` of the prior are pulled
onto its surface, and codes of less probability than `least` are left out.
"""

import math
from typing import Literal

import torch
from jaxtyping import Bool, Float
from scipy.special import chdtri
from torch import Tensor

Kind = Literal["gaussian", "categorical"]
LOG_STD_MIN, LOG_STD_MAX = -5.0, 2.0

Draws = tuple[Float[Tensor, "*batch draws latent"], Float[Tensor, "*batch draws"]]


class Gaussian:
    """N(mu, diag(sigma^2)) of `size` components; the parameters are mu and log sigma."""

    def __init__(self, size: int) -> None:
        self.size, self.parameters = size, 2 * size

    def noise(self, count: int) -> dict[str, tuple[int, ...]]:
        """Shapes of the standard normal numbers that `count` draws want."""
        return {"latent": (count, self.size)}

    def draws(
        self, q: Float[Tensor, "*batch parameters"], noise: Float[Tensor, "*batch latent"] | None
    ) -> Draws:
        """One draw; the mean without noise."""
        mean, log_std = _split(q)
        z = mean if noise is None else mean + log_std.exp() * noise
        return z[..., None, :], torch.ones_like(z[..., :1])

    def divergence(
        self, q: Float[Tensor, "*batch parameters"], p: Float[Tensor, "*batch parameters"]
    ) -> Float[Tensor, "*batch"]:
        """KL(q || p), summed over the components."""
        (mean, log_std), (prior_mean, prior_log_std) = _split(q), _split(p)
        distance = (2.0 * log_std).exp() + (mean - prior_mean).square()
        ratio = prior_log_std - log_std
        return (ratio + 0.5 * distance * (-2.0 * prior_log_std).exp() - 0.5).sum(-1)

    def candidates(
        self,
        p: Float[Tensor, "batch parameters"],
        noise: Float[Tensor, "batch draws latent"] | None,
        mass: float,
        least: float,
    ) -> tuple[Float[Tensor, "batch draws latent"], Bool[Tensor, "batch draws"]]:
        """mu + sigma noise with |noise| at most the radius that holds `mass`; all may be taken.

        The mean alone without noise.
        """
        mean, log_std = _split(p)
        noise = torch.zeros_like(mean[:, None]) if noise is None else noise
        radius = math.sqrt(chdtri(self.size, 1.0 - mass)) if mass < 1.0 else math.inf
        length: Tensor = torch.linalg.vector_norm(noise, dim=-1, keepdim=True)
        inside = noise * (radius / length.clamp(min=1e-12)).clamp(max=1.0)
        z = mean[:, None] + log_std.exp()[:, None] * inside
        return z, torch.ones_like(z[..., 0], dtype=torch.bool)


class Categorical:
    """One of `size` codes, as a vector with a single 1; the parameters are logits."""

    def __init__(self, size: int) -> None:
        self.size = self.parameters = size

    def noise(self, count: int) -> dict[str, tuple[int, ...]]:
        """None: all codes are drawn."""
        return {}

    def draws(
        self, q: Float[Tensor, "*batch parameters"], noise: Float[Tensor, "*batch latent"] | None
    ) -> Draws:
        """Every code with its probability."""
        codes = torch.eye(self.size, dtype=q.dtype, device=q.device)
        return codes.expand(*q.shape, self.size), q.softmax(-1)

    def divergence(
        self, q: Float[Tensor, "*batch parameters"], p: Float[Tensor, "*batch parameters"]
    ) -> Float[Tensor, "*batch"]:
        """KL(q || p)."""
        log_q = q.log_softmax(-1)
        return (log_q.exp() * (log_q - p.log_softmax(-1))).sum(-1)

    def candidates(
        self,
        p: Float[Tensor, "batch parameters"],
        noise: Tensor | None,
        mass: float,
        least: float,
    ) -> tuple[Float[Tensor, "batch draws latent"], Bool[Tensor, "batch draws"]]:
        """Every code; those of probability `least` may be taken, and the likeliest always."""
        probability = p.softmax(-1)
        allowed = (probability >= least) | (probability == probability.amax(-1, keepdim=True))
        return self.draws(p, None)[0], allowed


def latents_of(kind: Kind, size: int) -> Gaussian | Categorical:
    """Latents by name."""
    return Gaussian(size) if kind == "gaussian" else Categorical(size)


def _split(parameters: Tensor) -> tuple[Tensor, Tensor]:
    mean, log_std = parameters.chunk(2, -1)
    return mean, log_std.clamp(LOG_STD_MIN, LOG_STD_MAX)
