"""Steering a trained generator while it samples, without training it again.

Two kinds, and they can be stacked. Wrappers of a denoiser take denoisers and give one, so every
sampler (offrl.samplers) works with them:

    blend            D = D_a + w (D_b - D_a)          classifier-free guidance, RLG
    adaptive         the same until both agree, then D_b alone
    value_gradient   x0_hat + w sigma^2 grad Q
    below            a wrapper only where there is little noise left

Choices among samples compare candidates: `best_of` at the end, `svdd` at each step. Candidates of
sample b are the rows n b to n b + n - 1 of the batch axis (`repeated`), and the denoiser of
`offrl.denoising.denoiser` gives them the condition of b; so any number of learners may be stacked
in front of it. All randomness comes in as standard normal numbers.

The pair (x0_hat, eps_hat) stays one that x is made of. Clip after guiding, with `bounded`: large
weights leave the range of the data.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor

from offrl.denoising import Denoise, Denoised, Number, Path, Point, clipped, over
from offrl.errors import ConfigError
from offrl.samplers import Sample, kernel

Score = Callable[[Tensor], Tensor]
"""Number for each sample: x0 of shape (*seed, rows, ...) to (*seed, rows)."""


def blend(base: Denoise, other: Denoise, weight: float) -> Denoise:
    """D = D_base + w (D_other - D_base): 0 is the base, 1 the other, both to the bit.

    Classifier-free guidance (arXiv:2207.12598 with w = 1 + its w): base has no condition, other
    has one. RLG (arXiv:2508.21016): base is the reference and other the model tuned by
    reinforcement learning; w divides the weight of the divergence that it was tuned with. Both
    must share process and path. The evaluations of both are counted.
    """
    return partial(_blend, base, other, weight)


def adaptive(
    base: Denoise, other: Denoise, weight: float, threshold: float, event: int = 2
) -> Denoise:
    """Guidance for as long as it makes a difference (arXiv:2312.12487).

    Until eps_hat of both denoisers point the same way, cos(eps_base, eps_other) >= `threshold`
    over all elements of a sample, this is `blend`; from the next call on it is `other` alone, for
    that sample. A threshold above 1 never skips; one of -1 always does after the first call.
    It remembers who has finished: make one for each sample, of a fixed number of rows.

    The count is what each sample needed, 2 or 1 a call. Evaluations are really skipped when all
    rows have finished, which for one row is the count itself. To know it the host waits for the
    device at each call. When compiled there is no such branch: both are evaluated at every call,
    results and count are the same, and no time is saved.
    """
    return partial(_adaptive, base, other, weight, threshold, event, [])


def value_gradient(
    denoise: Denoise,
    value: Score,
    weight: float,
    through: bool = False,
    max_norm: float | None = None,
    event: int = 2,
) -> Denoise:
    """Steps up a value of the clean sample, such as Q(s, x0).

        x0_hat + w sigma^2 grad_{x0_hat} Q(x0_hat)                       (BESO's wrapper)
        x0_hat + w (sigma^2 / alpha) grad_x Q(x0_hat(x))                 (`through`)

    The second differentiates through the network and is that of classifier guidance: for Gaussian
    data N(m, s^2) and a linear Q with slope k its x0_hat is exactly that of N(m + w k s^2, s^2).
    The first takes the covariance of x0 given x to be sigma^2 I, which is right near data alone and
    too much before; where alpha is 0 the second has no direction and is left out. A weight of 0
    changes nothing. `max_norm` bounds the gradient's norm per sample; a gradient counts as no
    evaluation of the network. `through` cannot be put around `adaptive`, but inside it.
    """
    return partial(_value_gradient, denoise, value, weight, through, max_norm, event)


def below(guided: Denoise, plain: Denoise, noise_to_signal: float) -> Denoise:
    """`guided` where sigma / alpha is at most this, `plain` before.

    For guidance that is of no use while x is mostly noise: RLG's unguided first steps, the
    interval of arXiv:2404.07724.
    """
    return partial(_below, guided, plain, noise_to_signal)


def bounded(denoise: Denoise, bound: float) -> Denoise:
    """x0_hat kept in [-bound, bound], as `offrl.denoising.clipped`."""
    return partial(_bounded, denoise, bound)


def held(
    value: Float[Tensor, "*shape"], noise: Float[Tensor, "*shape"], known: Tensor
) -> Callable[[Tensor, int, Point], Tensor]:
    """A hook that puts known entries back: alpha value + sigma noise where `known` is true.

    Use it before and after each step, for actions already taken or a first state (in-painting;
    arXiv:2205.09991). At the end known entries are the value itself.
    """
    return partial(_held, value, noise, known)


def repeated(x: Tensor, n: int, event: int = 2) -> Tensor:
    """n candidates of each sample, one after the other along the batch axis."""
    return x.repeat_interleave(n, x.ndim - event - 1)


def choose(
    score: Float[Tensor, "*seed rows"],
    n: int,
    temperature: float = 0.0,
    noise: Float[Tensor, "*seed rows"] | None = None,
) -> Int[Tensor, "*seed batch"]:
    """Which of each sample's n candidates, 0 to n - 1.

    The best at temperature 0, the first of equals; else one drawn with probability proportional to
    exp(score / temperature), by the largest of score / temperature + g with g Gumbel numbers made
    from `noise`, one standard normal number for each candidate. An infinite temperature draws
    whatever the score. The rank alone matters at 0. Raises ConfigError without noise where it
    is needed, and for a negative temperature.
    """
    if temperature < 0.0 or (temperature > 0.0 and noise is None):
        raise ConfigError(
            f"temperature is {temperature!r}; it must be 0 or more, and with more than 0 there "
            "must be noise to choose by"
        )
    if temperature > 0.0 and noise is not None:
        gumbel = -(-torch.special.log_ndtr(noise)).log()
        score = score / temperature + gumbel
    return _by_candidate(score, n, score.ndim - 1).argmax(-1)


def taken(x: Tensor, index: Int[Tensor, "*seed batch"], n: int) -> Tensor:
    """The chosen one of each sample's n candidates, which are rows of x: n times fewer rows."""
    axis = index.ndim - 1
    candidates = _by_candidate(x, n, axis)
    place = index.reshape(index.shape + (1,) * (candidates.ndim - index.ndim))
    place = place.expand(*index.shape, 1, *x.shape[axis + 1 :])
    return candidates.gather(axis + 1, place).squeeze(axis + 1)


def best_of(
    sample: Sample,
    score: Float[Tensor, "*seed rows"],
    n: int,
    temperature: float = 0.0,
    noise: Float[Tensor, "*seed rows"] | None = None,
) -> Sample:
    """Of each sample's n candidates the one that `choose` takes; all n are counted.

    IDQL takes the best by min Q (arXiv:2304.10573), Diffusion-QL draws by softmax (temperature 1;
    arXiv:2208.06193). n = 1 changes nothing.
    """
    index = choose(score, n, temperature, noise)
    return Sample(taken(sample.x, index, n), _over_candidates(sample.evaluations, n))


def svdd_shapes(steps: int, n: int, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """Noise that `svdd` wants for samples of this shape, (batch, ...), for one learner.

    "start" is where to begin, "steps" the candidates' noise and "choice" what they are chosen by.
    """
    rows = (shape[0] * n, *shape[1:])
    return {
        "start": shape,
        "steps": (steps - 1, *rows),
        "choice": (steps - 1, rows[0]),
    }


def svdd(
    denoise: Denoise,
    path: Path,
    x: Float[Tensor, "*shape"],
    noise: Sequence[Tensor],
    choice: Sequence[Tensor],
    value: Score,
    n: int,
    temperature: float,
    eta: float = 1.0,
    first: int = 0,
    event: int = 2,
) -> Sample:
    """Soft value-based decoding (arXiv:2408.08252): each step draws n and keeps one by its value.

        x_s ~ softmax over n candidates of value(x0_hat(x_s)) / temperature,
        candidates from the sampler's own kernel (`offrl.samplers.kernel`)

    which for many candidates is nearly a draw from the data's density times
    exp(value / temperature). Steps before `first` draw one candidate: there x0_hat says little.
    `noise` has steps - 1 tensors of n rows for each sample and `choice` as many of one number for
    each row (`svdd_shapes`); the last step adds no noise and chooses nothing. With n = 1 this is
    `ddim` with the same eta, x and noise; an infinite temperature leaves the distribution as it
    is; 0 takes the best, which leaves little spread and exploits errors of the value. eta must be
    above 0 (else ConfigError).

    What is believed of the chosen candidate is what the next step needs, so that the network is
    asked n times a step: first + 1 + (steps - 1 - first) n evaluations in all, one batch a step.
    """
    steps, axis = len(path) - 1, x.ndim - event - 1
    if not eta > 0.0 or not 0 <= first < steps:
        raise ConfigError(
            f"svdd has eta {eta!r} and first {first!r}; eta must be above 0, or all candidates are "
            f"the same, and first from 0 to {steps - 1}"
        )
    denoised = denoise(x, path[0])
    total = denoised.evaluations
    for i in range(steps - 1):
        mean, std = kernel(denoised, path[i], path[i + 1], eta)
        if i < first:
            one = _by_candidate(noise[i], n, axis).select(axis + 1, 0)
            denoised = denoise(mean + std * one, path[i + 1])
            total = total + denoised.evaluations
            continue
        beliefs = denoise(repeated(mean, n, event) + std * noise[i], path[i + 1])
        index = choose(value(beliefs.x0), n, temperature, choice[i])
        total = total + _over_candidates(beliefs.evaluations, n)
        denoised = Denoised(taken(beliefs.x0, index, n), taken(beliefs.eps, index, n))
    return Sample(kernel(denoised, path[steps - 1], path[steps], eta)[0], total)


def _mixed(a: Denoised, b: Denoised, weight: float) -> Denoised:
    # lerp is exact at both ends, which a + w (b - a) is not.
    return Denoised(
        torch.lerp(a.x0, b.x0, weight),
        torch.lerp(a.eps, b.eps, weight),
        a.evaluations + b.evaluations,
    )


def _over_candidates(evaluations: Number, n: int) -> Number:
    if isinstance(evaluations, Tensor):
        return _by_candidate(evaluations, n, evaluations.ndim - 1).sum(-1)
    return evaluations * n


def _blend(base: Denoise, other: Denoise, weight: float, x: Tensor, point: Point) -> Denoised:
    return _mixed(base(x, point), other(x, point), weight)


def _adaptive(
    base: Denoise,
    other: Denoise,
    weight: float,
    threshold: float,
    event: int,
    state: list[Tensor],
    x: Tensor,
    point: Point,
) -> Denoised:
    b = other(x, point)
    if state:
        finished = state[0]  # bool, (*seed, batch)
    else:
        finished = torch.zeros(x.shape[: x.ndim - event], dtype=torch.bool, device=x.device)
        state.append(finished)
    if not torch.compiler.is_compiling() and bool(finished.all()):
        return b._replace(evaluations=finished * b.evaluations)
    a = base(x, point)
    mixed = _mixed(a, b, weight)
    alone = finished.reshape(finished.shape + (1,) * event)
    directions = a.eps.flatten(-event), b.eps.flatten(-event)
    cosine = torch.nn.functional.cosine_similarity(*directions, -1, eps=1e-30)
    state[0] = finished | (cosine >= threshold)
    return Denoised(
        torch.where(alone, b.x0, mixed.x0),
        torch.where(alone, b.eps, mixed.eps),
        b.evaluations + ~finished * a.evaluations,
    )


def _value_gradient(
    denoise: Denoise,
    value: Score,
    weight: float,
    through: bool,
    max_norm: float | None,
    event: int,
    x: Tensor,
    point: Point,
) -> Denoised:
    if weight == 0.0 or (through and isinstance(point.alpha, float) and point.alpha == 0.0):
        return denoise(x, point)
    _, alpha, sigma = over(point, x)
    scale: Number = weight * sigma**2
    if through:
        counts: list[Number] = []  # beside the graph: a gradient's companions are tensors
        slope, (x0, eps) = torch.func.grad(
            lambda x: _summed(denoise, value, point, counts, x), has_aux=True
        )(x)
        scale = scale / alpha
        denoised = Denoised(x0, eps, counts[0])
    else:
        denoised = denoise(x, point)
        slope = torch.func.grad(lambda x0: value(x0).sum())(denoised.x0)
    if max_norm is not None:
        axes = tuple(range(-event, 0))
        norm = slope.square().sum(axes, keepdim=True).sqrt()
        slope = slope * (max_norm / norm.clamp(min=max_norm))
    shift = scale * slope
    return denoised._replace(x0=denoised.x0 + shift, eps=denoised.eps - alpha / sigma * shift)


def _below(
    guided: Denoise, plain: Denoise, noise_to_signal: float, x: Tensor, point: Point
) -> Denoised:
    near_data = float(point.sigma) <= noise_to_signal * float(point.alpha)
    return guided(x, point) if near_data else plain(x, point)


def _bounded(denoise: Denoise, bound: float, x: Tensor, point: Point) -> Denoised:
    return clipped(denoise(x, point), x, point, bound)


def _held(value: Tensor, noise: Tensor, known: Tensor, x: Tensor, i: int, point: Point) -> Tensor:
    _, alpha, sigma = over(point, x)
    return torch.where(known, alpha * value + sigma * noise, x)


def _summed(
    denoise: Denoise, value: Score, point: Point, counts: list[Number], x: Tensor
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    x0, eps, evaluations = denoise(x, point)
    counts.append(evaluations)
    return value(x0).sum(), (x0, eps)


def _by_candidate(x: Tensor, n: int, axis: int) -> Tensor:
    return x.reshape(*x.shape[:axis], -1, n, *x.shape[axis + 1 :])
