"""From noise to data: samplers as functions of a denoiser, a path and noise.

Every sampler is a function (denoise, path, x, noise, before, after) -> Sample. It walks along the
path from its first point to its last in a fixed number of steps, whatever the process: it sees
only pairs (x0_hat, eps_hat) (offrl.denoising). One step of Euler covers all families,

    x_s = alpha_s x0_hat + sigma_s eps_hat        (`move`)

since along the probability-flow equation dx = x0_hat d(alpha) + eps_hat d(sigma). It is DDIM for
DDPM (arXiv:2010.02502), Euler in sigma for EDM, Euler on the velocity for straight flows, and
DPM-Solver-1. Leaving a share of the noise to chance gives `kernel`, which is DDPM's posterior for
eta = 1 and Euler-ancestral for EDM. Few steps of a first-order sampler act like a low temperature:
they shrink the spread (a test has the figures), so compare samplers on a measure of spread too.

The last point is data (sigma = 0), where no denoiser is asked anything. All randomness comes in:
`x` is where to begin (`process.prior(normal)`) and `noise` holds standard normal tensors shaped
like x, as many as `draws(name, steps)` says; `noise_shapes` has the shapes for an agent's `noise`.
`before(x, i, point)` and `after(x, i, point)` return the x to go on with at the beginning and at
the end of step i, for known entries and the like.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

from offrl.checks import check_intervals
from offrl.denoising import Denoise, Denoised, Number, Path, Point, Process
from offrl.errors import ConfigError, near
from offrl.types import Noise

Hook = Callable[[Tensor, int, Point], Tensor]
_Step = Callable[[int, Tensor, Point, Point], tuple[Tensor, Number]]


class Sample(NamedTuple):
    """What a sampler returns.

    `evaluations` counts the network's evaluations for each sample: an integer, or a tensor
    (*seed, batch) where the denoiser decides it for each sample (adaptive guidance).
    """

    x: Tensor
    evaluations: Number


def move(denoised: Denoised, then: Point) -> Tensor:
    """alpha_s x0_hat + sigma_s eps_hat: one Euler step, to a point of the same path."""
    return then.alpha * denoised.x0 + then.sigma * denoised.eps


def kernel(denoised: Denoised, now: Point, then: Point, eta: float) -> tuple[Tensor, float]:
    """Mean and spread of x_s given x_t, with the share eta of DDPM's noise.

        std = min(eta sqrt(sigma_ts^2 / sigma_t^2) sigma_s, sigma_s),
        sigma_ts^2 = sigma_t^2 - (alpha_t / alpha_s)^2 sigma_s^2
        mean = alpha_s x0_hat + sqrt(sigma_s^2 - std^2) eps_hat

    eta = 1 is the posterior of x_s given x_t and x0, whose variance is beta (1 - abar_prev) /
    (1 - abar) for DDPM (arXiv:2006.11239, eq. 7) and sigma_up^2 of Euler-ancestral for EDM; eta = 0
    is `move`. Source: arXiv:2010.02502, eq. 16.
    """
    (alpha_t, sigma_t), (alpha_s, sigma_s) = _rates(now), _rates(then)
    added = max(sigma_t**2 - (alpha_t / alpha_s * sigma_s) ** 2, 0.0)
    std = min(eta * math.sqrt(added) / sigma_t * sigma_s, sigma_s)
    return alpha_s * denoised.x0 + math.sqrt(sigma_s**2 - std**2) * denoised.eps, std


def ddim(
    denoise: Denoise,
    path: Path,
    x: Float[Tensor, "*shape"],
    noise: Sequence[Tensor] = (),
    before: Hook | None = None,
    after: Hook | None = None,
    eta: float = 0.0,
) -> Sample:
    """Euler for eta = 0, DDPM or Euler-ancestral for eta = 1, by `kernel`. n evaluations.

    For eta > 0 noise has n - 1 tensors: none is added in the last step.
    """
    return _walk(partial(_ddim_step, denoise, noise, eta), path, x, before, after)


@dataclass(frozen=True)
class Churn:
    """Noise that `heun` puts back before a step, on paths with alpha = 1 (arXiv:2206.00364)."""

    amount: float = 80.0  # S_churn; sigma grows by min(amount / n, sqrt(2) - 1) of itself
    low: float = 0.05  # S_tmin, below which none is added
    high: float = 50.0  # S_tmax, above which none is added
    inflation: float = 1.003  # S_noise, by which the noise is larger than it should be

    def __post_init__(self) -> None:
        check_intervals(self, amount="[0, inf)", low="[0, inf)", inflation="(0, inf)")
        check_intervals(self, high=f"[{self.low}, inf)")


def heun(
    denoise: Denoise,
    path: Path,
    x: Float[Tensor, "*shape"],
    noise: Sequence[Tensor] = (),
    before: Hook | None = None,
    after: Hook | None = None,
    churn: Churn | None = None,
) -> Sample:
    """An Euler step, then the trapezoid of both ends' slopes; Euler alone into sigma = 0.

    2 n - 1 evaluations, second order. With `churn` noise has n tensors, and the step begins at
    the point with more noise, both for Euler and for the trapezoid. Source: arXiv:2206.00364,
    algorithms 1 and 2. From a large sigma_max 3 to 5 steps overshoot the spread.
    """
    return _walk(partial(_heun_step, denoise, noise, churn, len(path) - 1), path, x, before, after)


def midpoint(
    denoise: Denoise,
    path: Path,
    x: Float[Tensor, "*shape"],
    noise: Sequence[Tensor] = (),
    before: Hook | None = None,
    after: Hook | None = None,
) -> Sample:
    """Steps over two intervals of the path, by the slope at the point between them.

    Second order, with as many evaluations as Euler has on the same path, whose number of steps
    is even (else ConfigError). On a flow this is the midpoint rule in t.
    """
    draws("midpoint", len(path) - 1)  # refuses an odd number
    return _walk(partial(_midpoint_step, denoise, path), path[::2], x, before, after)


def dpm_solver_pp(
    denoise: Denoise,
    path: Path,
    x: Float[Tensor, "*shape"],
    noise: Sequence[Tensor] = (),
    before: Hook | None = None,
    after: Hook | None = None,
    order: int = 2,
) -> Sample:
    """DPM-Solver++ of order 1 to 3 in its multistep form. n evaluations.

    With lambda = ln(alpha / sigma), h = lambda_s - lambda_t, phi_1 = e^-h - 1,
    phi_2 = phi_1 / h + 1, phi_3 = phi_2 / h - 1/2, and D1, D2 the first and second derivatives of
    x0_hat by lambda / h, from differences to the steps before:

        x_s = (sigma_s / sigma_t) x - alpha_s phi_1 x0_hat                          (1)
              - alpha_s phi_1 D1 / 2                                                (2, added)
              + alpha_s phi_2 D1 - alpha_s phi_3 D2                                 (3, added to 1)

    The order grows from 1 with the steps taken and falls to 1 towards sigma = 0, where h is
    infinite. Order 2 is advised with guidance and 3 without. Source: arXiv:2211.01095. The authors'
    code, and `diffusers`, have half of this D2 in order 3, which is then no longer exact for an
    x0_hat that is quadratic in lambda; a test holds that this one is.
    """
    if order not in (1, 2, 3):
        raise ConfigError(f"dpm_solver_pp has order {order!r}; it must be 1, 2 or 3")
    falls = len(path) - 1 if _rates(path[-1])[1] == 0.0 else None
    return _walk(partial(_dpm_solver_pp_step, denoise, order, falls, []), path, x, before, after)


def consistency(
    denoise: Denoise,
    path: Path,
    x: Float[Tensor, "*shape"],
    noise: Sequence[Tensor] = (),
    before: Hook | None = None,
    after: Hook | None = None,
) -> Sample:
    """x0 = f(x) at each point but the last, with noise put back in between. n evaluations.

        x_s = alpha_s x0_hat + sqrt(sigma_s^2 - sigma_end^2) z

    noise has n - 1 tensors. Source: arXiv:2303.01469, algorithm 1, where sigma_end = sigma_min.
    """
    step = partial(_consistency_step, denoise, noise, len(path) - 1, _rates(path[-1])[1])
    return _walk(step, path, x, before, after)


@dataclass(frozen=True)
class Sampler:
    """A sampler by name, and how much noise it wants."""

    run: Callable[..., Sample]
    noisy: bool = False  # a tensor of noise for each step but the last
    to_the_last: bool = False  # and one for the last step too
    in_pairs: bool = False  # of steps, whose number must be even


SAMPLERS: Mapping[str, Sampler] = {
    "ddpm": Sampler(partial(ddim, eta=1.0), noisy=True),
    "ancestral": Sampler(partial(ddim, eta=1.0), noisy=True),
    "ddim": Sampler(ddim),
    "euler": Sampler(ddim),
    "heun": Sampler(heun),
    "heun_churn": Sampler(partial(heun, churn=Churn()), noisy=True, to_the_last=True),
    "midpoint": Sampler(midpoint, in_pairs=True),
    "dpm1": Sampler(partial(dpm_solver_pp, order=1)),
    "dpm2": Sampler(partial(dpm_solver_pp, order=2)),
    "dpm3": Sampler(partial(dpm_solver_pp, order=3)),
    "consistency": Sampler(consistency, noisy=True),
}
"""By the names that settings use. DDPM and ancestral, DDIM and Euler are one function each."""


def sampler(name: str) -> Sampler:
    """The sampler of this name. Raises ConfigError."""
    if name not in SAMPLERS:
        raise ConfigError(
            f"no sampler {name!r}{near(name, SAMPLERS)}; there are {', '.join(SAMPLERS)}"
        )
    return SAMPLERS[name]


def draws(name: str, steps: int) -> int:
    """How many tensors of noise the sampler wants for a path of so many steps.

    Raises ConfigError where it cannot have so many.
    """
    chosen = sampler(name)
    if chosen.in_pairs and steps % 2:
        raise ConfigError(f"{name} takes an even number of steps; this path has {steps}")
    return steps - (not chosen.to_the_last) if chosen.noisy else 0


def noise_shapes(name: str, steps: int, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """What `generate` wants for samples of this shape, (batch, ...), for one learner.

    "start" is where to begin; "steps" has a first axis of as many steps as want noise.
    """
    wanted = draws(name, steps)
    return {"start": shape} | ({"steps": (wanted, *shape)} if wanted else {})


def generate(
    name: str,
    process: Process,
    denoise: Denoise,
    path: Path,
    noise: Noise,
    event: int = 2,
    hook: Hook | None = None,
) -> Sample:
    """A sample from the process's prior on, with the noise of `noise_shapes`.

    Noise is (*seed, batch, ...) in "start" and (*seed, steps, batch, ...) in "steps", as training
    draws it; `event` is the number of axes of a sample after the batch. `hook` is called before
    and after each step.
    """
    start = noise["start"]
    along = noise["steps"].unbind(start.ndim - event - 1) if "steps" in noise else ()
    return sampler(name).run(denoise, path, process.prior(start), along, hook, hook)


def _walk(step: _Step, path: Path, x: Tensor, before: Hook | None, after: Hook | None) -> Sample:
    total: Number = 0
    for i, (now, then) in enumerate(pairwise(path)):
        x = x if before is None else before(x, i, now)
        x, evaluations = step(i, x, now, then)
        x = x if after is None else after(x, i, then)
        total = total + evaluations
    return Sample(x, total)


def _churned(
    churn: Churn, x: Tensor, now: Point, noise: Tensor, steps: int
) -> tuple[Tensor, Point]:
    alpha, sigma = _rates(now)
    if alpha != 1.0:
        raise ConfigError("churn needs a process with alpha = 1, such as EDM")
    if not churn.low <= sigma <= churn.high:
        return x, now
    more = sigma * (1.0 + min(churn.amount / steps, math.sqrt(2.0) - 1.0))
    x = x + churn.inflation * math.sqrt(more**2 - sigma**2) * noise
    return x, Point(more, 1.0, more)


def _rates(point: Point) -> tuple[float, float]:
    """alpha and sigma of a point of a path, which are Python numbers already."""
    return float(point.alpha), float(point.sigma)


def _log_snr(point: Point) -> float:
    alpha, sigma = _rates(point)
    if alpha == 0.0 or sigma == 0.0:
        return -math.inf if alpha == 0.0 else math.inf
    return math.log(alpha / sigma)


def _ddim_step(
    denoise: Denoise,
    noise: Sequence[Tensor],
    eta: float,
    i: int,
    x: Tensor,
    now: Point,
    then: Point,
) -> tuple[Tensor, Number]:
    denoised = denoise(x, now)
    mean, std = kernel(denoised, now, then, eta)
    return mean if std == 0.0 else mean + std * noise[i], denoised.evaluations


def _heun_step(
    denoise: Denoise,
    noise: Sequence[Tensor],
    churn: Churn | None,
    steps: int,
    i: int,
    x: Tensor,
    now: Point,
    then: Point,
) -> tuple[Tensor, Number]:
    if churn is not None:
        x, now = _churned(churn, x, now, noise[i], steps)
    first = denoise(x, now)
    end = move(first, then)
    if _rates(then)[1] == 0.0:
        return end, first.evaluations
    second = denoise(end, then)
    (alpha_t, sigma_t), (alpha_s, sigma_s) = _rates(now), _rates(then)
    x = x + (alpha_s - alpha_t) * 0.5 * (first.x0 + second.x0)
    x = x + (sigma_s - sigma_t) * 0.5 * (first.eps + second.eps)
    return x, first.evaluations + second.evaluations


def _midpoint_step(
    denoise: Denoise,
    path: Path,
    i: int,
    x: Tensor,
    now: Point,
    then: Point,
) -> tuple[Tensor, Number]:
    middle = path[2 * i + 1]
    first = denoise(x, now)
    second = denoise(move(first, middle), middle)
    (alpha_t, sigma_t), (alpha_s, sigma_s) = _rates(now), _rates(then)
    x = x + (alpha_s - alpha_t) * second.x0 + (sigma_s - sigma_t) * second.eps
    return x, first.evaluations + second.evaluations


def _dpm_solver_pp_step(
    denoise: Denoise,
    order: int,
    falls: int | None,
    seen: list[tuple[float, Tensor]],
    i: int,
    x: Tensor,
    now: Point,
    then: Point,
) -> tuple[Tensor, Number]:
    x0, _, evaluations = denoise(x, now)
    seen.append((_log_snr(now), x0))
    (alpha_t, sigma_t), (alpha_s, sigma_s) = _rates(now), _rates(then)
    x = sigma_s / sigma_t * x + alpha_s * (1.0 - sigma_s * alpha_t / (alpha_s * sigma_t)) * x0
    usable = min(order, i + 1, order if falls is None else falls - i)
    if usable == 1:
        return x, evaluations
    (place1, x1), (place, _) = seen[-2:]
    h = _log_snr(then) - place
    phi = math.expm1(-h)
    r0 = (place - place1) / h
    slope = (x0 - x1) / r0
    if usable == 2:
        return x - 0.5 * alpha_s * phi * slope, evaluations
    place2, x2 = seen[-3]
    r1 = (place1 - place2) / h
    change = slope - (x1 - x2) / r1
    phi2 = phi / h + 1.0
    x = x + alpha_s * phi2 * (slope + r0 / (r0 + r1) * change)
    return x - alpha_s * (phi2 / h - 0.5) * 2.0 / (r0 + r1) * change, evaluations


def _consistency_step(
    denoise: Denoise,
    noise: Sequence[Tensor],
    steps: int,
    end: float,
    i: int,
    x: Tensor,
    now: Point,
    then: Point,
) -> tuple[Tensor, Number]:
    x0, _, evaluations = denoise(x, now)
    if i == steps - 1:
        return x0, evaluations
    alpha_s, sigma_s = _rates(then)
    return alpha_s * x0 + math.sqrt(sigma_s**2 - end**2) * noise[i], evaluations
