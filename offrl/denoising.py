"""One form for every generative policy: a network's output read as data and noise.

A noising path is x_t = alpha_t x0 + sigma_t eps with eps from N(0, I). Processes (offrl.processes,
offrl.consistency) differ in alpha, in sigma and in what the network is asked for. Whatever that
is, they convert it to the pair (x0_hat, eps_hat) with x_t = alpha x0_hat + sigma eps_hat; samplers
(offrl.samplers) and guidance (offrl.guidance) see nothing else.

A `Point` is a place on a path. In training its three numbers are tensors of shape (*seed, batch),
drawn from standard normal numbers; on the way of a sampler they are Python numbers, made once by
`path`, so that nothing is looked up or moved to a device while sampling. `x` may have any axes
after the batch: (*seed, batch, act) or (*seed, batch, horizon, act).

A network is a callable (input, level, condition) -> output shaped like the input, with `level` of
shape (*seed, batch).
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from offrl.errors import ConfigError

Number = int | float | Tensor
Network = Callable[..., Tensor]


class Point(NamedTuple):
    """A place on a noising path: x = alpha x0 + sigma eps.

    `level` is the process's own coordinate: the step k of DDPM, sigma of EDM, t of Flow.
    """

    level: Number
    alpha: Number
    sigma: Number


Path = tuple[Point, ...]
"""The points of an n-step sampler, n + 1 of them from noise to data; all are Python numbers."""


class Denoised(NamedTuple):
    """What is believed of a noisy x, and what it took: x = alpha x0 + sigma eps.

    `evaluations` counts the network's evaluations for each sample: an integer, or one number per
    sample, of shape (*seed, batch), where samples differ.
    """

    x0: Tensor
    eps: Tensor
    evaluations: Number = 1


Denoise = Callable[[Tensor, Point], Denoised]
"""What samplers call and guidance wraps."""


@runtime_checkable
class Process(Protocol):
    """What sampling asks of a process."""

    def inputs(self, x: Tensor, point: Point) -> tuple[Tensor, Number]:
        """What the network sees of x, and the level that it is given, with the point's shape."""

    def split(self, output: Tensor, x: Tensor, point: Point) -> Denoised:
        """The pair (x0_hat, eps_hat) that an output stands for."""

    def prior(self, noise: Tensor) -> Tensor:
        """Where sampling begins, from standard normal noise."""

    def path(self, steps: int) -> Path:
        """The points of a sampler of so many steps. Raises ConfigError."""


@runtime_checkable
class Matched(Process, Protocol):
    """A process whose network is trained by matching a target."""

    def draw(self, noise: Tensor) -> Point:
        """Levels to train at, one for each standard normal number."""

    def target(self, x0: Tensor, noise: Tensor, point: Point) -> Tensor:
        """The output that the network is asked for."""


def corrupt(
    x0: Float[Tensor, "*shape"], noise: Float[Tensor, "*shape"], point: Point
) -> Float[Tensor, "*shape"]:
    """x_t = alpha x0 + sigma eps."""
    _, alpha, sigma = over(point, x0)
    return alpha * x0 + sigma * noise


def clipped(denoised: Denoised, x: Tensor, point: Point, bound: float) -> Denoised:
    """x0_hat kept in [-bound, bound], and the eps_hat that belongs to it.

    The pair stays one that x is made of, so that clipping means the same to every sampler. (DDPM's
    posterior mean depends on x and x0_hat alone and is as usual; DDIM as in `diffusers` keeps
    the eps_hat of before unless asked for this one.)
    """
    _, alpha, sigma = over(point, x)
    x0 = denoised.x0.clamp(-bound, bound)
    return denoised._replace(x0=x0, eps=(x - alpha * x0) / sigma)


def denoiser(
    process: Process,
    network: Network,
    condition: Tensor | None = None,
    event: int = 2,
    clip: float | None = None,
) -> Denoise:
    """The network as samplers see it, under one condition for each sample.

    `event` is the number of axes of x after the batch: 2 for (horizon, act), 1 for (act).
    `condition` is (*seed, batch, ...); where x has n times as many rows, row b of the condition
    serves the rows n b to n b + n - 1 of x, which are the candidates of sample b. `clip` is the
    bound of x0_hat, if any.
    """

    return partial(_denoise, process, network, condition, event, clip)


def matching_error(
    process: Matched,
    network: Network,
    x0: Float[Tensor, "*shape"],
    noise: Float[Tensor, "*shape"],
    point: Point,
    condition: Tensor | None = None,
    valid: Tensor | None = None,
) -> Tensor:
    """Squared error of the network's output at x_t, averaged over the axes of x after the batch.

    `valid` is 1 where x0 is to be matched and 0 where not, of shape (*seed, batch, horizon) or that
    of x0; the mean is then over the valid elements of each sample. Returns (*seed, batch), to be
    weighted and averaged by the caller. Source: arXiv:2006.11239, eq. 14; arXiv:2206.00364, eq. 8;
    arXiv:2209.03003.
    """
    x = corrupt(x0, noise, point)
    scaled, level = process.inputs(x, point)
    error = (network(scaled, level, condition) - process.target(x0, noise, point)).square()
    return event_mean(error, torch.as_tensor(point.level).ndim, valid)


def event_mean(values: Tensor, lead: int, valid: Tensor | None = None) -> Tensor:
    """The mean over all axes but the first `lead`; where `valid` is given, of valid elements.

    `valid` is 0 or 1, of the shape of `values` or of its first axes.
    """
    axes = tuple(range(lead, values.ndim))
    if valid is None:
        return values.mean(axes)
    kept: Tensor = _over(valid.to(values), values).expand_as(values)  # type: ignore[union-attr]
    return (kept * values).sum(axes) / kept.sum(axes)


def over(point: Point, x: Tensor) -> Point:
    """The point, its tensors with axes of length 1 for those that x has beyond theirs."""
    level, alpha, sigma = point
    return Point(_over(level, x), _over(alpha, x), _over(sigma, x))


def _over(number: Number, x: Tensor) -> Number:
    if not isinstance(number, Tensor):
        return number
    return number.reshape(number.shape + (1,) * (x.ndim - number.ndim))


def _condition_of(condition: Tensor | None, lead: tuple[int, ...]) -> Tensor | None:
    if condition is None or condition.shape[len(lead) - 1] == lead[-1]:
        return condition
    axis = len(lead) - 1
    times, rest = divmod(lead[-1], condition.shape[axis])
    if rest:
        raise ConfigError(
            f"{lead[-1]} samples and {condition.shape[axis]} conditions; give one condition to "
            "each sample, or the same number of candidates to each condition"
        )
    return condition.repeat_interleave(times, axis)


# Closures are partial functions of the module's own: a function made inside a compiled graph
# cannot have its shapes checked.
def _denoise(
    process: Process,
    network: Network,
    condition: Tensor | None,
    event: int,
    clip: float | None,
    x: Tensor,
    point: Point,
) -> Denoised:
    lead = x.shape[: x.ndim - event]
    scaled, number = process.inputs(x, point)
    level = number if isinstance(number, Tensor) else x.new_full(lead, number)
    output = network(scaled, level, _condition_of(condition, lead))
    denoised = process.split(output, x, point)
    return denoised if clip is None else clipped(denoised, x, point, clip)
