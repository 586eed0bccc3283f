"""Energies of actions: going down them, searching them, and learning them from actions alone.

An energy E(c, a) is low where an action, or a chunk of them, is likely under the condition c;
exp(-E) is a density up to a factor that depends on c. What follows takes an `Energy`: a callable
of the actions alone, rows (*seed, rows, ...) to (*seed, rows), which the networks of
`offrl.energy_nets` give for a condition (`under`). Rows are samples, or n candidates of each
sample one after the other, as in `offrl.guidance`.

    descend     a <- a - clip(r_i dE/da + shake_i), one rate r_i for each step
    settle      the same with one rate, each row until its energy does not change any more
    search      candidates, resampled by softmax(-E) and shaken less and less   (derivative-free)
    info_nce    -log softmax(-E)[the logged action among others]

Steps are differentiable in the energy's parameters where gradients are on: the derivative of a
slope, so attention must be the plain one (`offrl.energy_nets` sees to it). Under `torch.no_grad`
slopes are taken all the same, and nothing is kept of them. All randomness comes in as standard
normal numbers, and no function branches on a tensor's values but `settle` outside of a compiled
graph, whose results do not depend on it.

Sources: Implicit BC (arXiv:2109.00137) for search, loss and penalty; Langevin dynamics as there and
in arXiv:1903.08689; Energy-Based Transformers (arXiv:2507.02092) for learning through descent.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import softmax

from offrl.denoising import Number
from offrl.errors import ConfigError
from offrl.guidance import choose, taken
from offrl.samplers import Sample

Energy = Callable[[Tensor], Tensor]
"""Of rows of actions, (*seed, rows, ...) to (*seed, rows)."""


class Slope(NamedTuple):
    """dE/da at some actions, shaped like them, and the energies there, (*seed, rows)."""

    gradient: Tensor
    energy: Tensor


class Descent(NamedTuple):
    """The way down: where it ends, the actions after each step, and the energies before each.

    `evaluations` counts slopes for each row: an integer, or (*seed, rows) where rows differ.
    """

    x: Tensor
    points: tuple[Tensor, ...]
    energies: tuple[Tensor, ...]
    evaluations: Number


def slope(energy: Energy, x: Float[Tensor, "*shape"]) -> Slope:
    """dE/da and E of each row; one forward and one backward pass."""
    return Slope(*torch.func.grad(partial(_summed, energy), has_aux=True)(x))


def descend(
    energy: Energy,
    x: Float[Tensor, "*shape"],
    rates: Sequence[Number],
    shakes: Sequence[Tensor] = (),
    limit: float | None = None,
    bound: float | None = None,
    detach: bool = False,
) -> Descent:
    """a <- a - clip(r_i dE/da + shake_i), as many steps as there are rates.

    A rate is a number or a tensor that broadcasts with x. `shakes`, if any, are shaped like x, one
    for each step. `limit` bounds what one step changes in each component, `bound` the components
    themselves. With `detach` every step begins at actions that count as given, so that the
    derivative of a point reaches no further back than its own step.

    With shakes of deviation sqrt(2 r T), and small rates, this is Langevin's walk, whose stationary
    density is exp(-E / T): for E = k (a - m)^2 / 2 exactly N(m, s^2 / (1 - (1 - r k)^2)) for shakes
    of deviation s. Without shakes the distance to m shrinks by 1 - r k a step.
    """
    points, energies = [], []
    for i, rate in enumerate(rates):
        x = x.detach() if detach else x
        gradient, value = slope(energy, x)
        change = rate * gradient
        change = change + shakes[i] if shakes else change
        change = change if limit is None else change.clamp(-limit, limit)
        x = x - change
        x = x if bound is None else x.clamp(-bound, bound)
        points.append(x)
        energies.append(value)
    return Descent(x, tuple(points), tuple(energies), len(points))


def polynomial(first: float, last: float, steps: int, power: float = 2.0) -> tuple[float, ...]:
    """Rates from first to last: last + (first - last) (1 - i / (steps - 1))^power, i < steps.

    Source: Implicit BC's Langevin sampler, with power 2. One step has the first rate.
    """
    span = max(steps - 1, 1)
    return tuple(last + (first - last) * (1.0 - i / span) ** power for i in range(steps))


def settle(
    energy: Energy,
    x: Float[Tensor, "*shape"],
    rate: Number,
    steps: int,
    flat: float = 0.0,
    still: float = 0.0,
    limit: float | None = None,
    event: int = 2,
) -> Descent:
    """Descent in which each row stops for itself, after `steps` steps at the latest.

    A row has settled when the root mean square of its slope is below `flat`, or when its energy
    changed by less than `still` since the step before; there it stays. With both 0 none does. The
    slope by which a row is found to have settled is counted, so that a row with steps left has
    `steps` evaluations at most.

    Returns one point, where each row ends, and the first and the last energy that was seen there.
    What a row does depends on no other. Outside of a compiled graph the loop ends when all rows
    have settled, for which the host waits for the device at every step; in a graph all steps are
    computed and results are the same.
    """
    lead = x.shape[: x.ndim - event]
    moving = torch.ones(lead, dtype=torch.bool, device=x.device)
    evaluations = torch.zeros(lead, dtype=torch.long, device=x.device)
    axes = tuple(range(-event, 0))
    first = last = x.new_full(lead, torch.inf)
    for i in range(steps):
        gradient, value = slope(energy, x)
        evaluations = evaluations + moving
        settled = (gradient.square().mean(axes).sqrt() < flat) | ((value - last).abs() < still)
        first, last = (value if i == 0 else first), torch.where(moving, value, last)
        moving = moving & ~settled
        change = rate * gradient
        change = change if limit is None else change.clamp(-limit, limit)
        going = moving.reshape(*lead, *(1,) * event)
        x = torch.where(going, x - change, x)
        if not torch.compiler.is_compiling() and not bool(moving.any()):
            break
    return Descent(x, (x,), (first, last), evaluations)


def search(
    energy: Energy,
    x: Float[Tensor, "*shape"],
    n: int,
    shakes: Sequence[Tensor],
    draws: Sequence[Float[Tensor, "*seed rows"]],
    spread: float,
    shrink: float = 0.5,
    bound: float | None = None,
    temperature: float = 1.0,
    event: int = 2,
) -> Sample:
    """The best of each sample's n candidates, after rounds in which the good ones multiply.

    Each round draws n of them with probabilities softmax(-E / temperature), with replacement, and
    adds a shake of deviation spread shrink^i, i the round from 0 on, kept within `bound`. After the
    last round the one of least energy is taken. `shakes` are standard normal and shaped like x,
    the rows of which are the first candidates; `draws` are as many, a number for each row. With r
    of them there are (r + 1) n evaluations.

    Source: Implicit BC (arXiv:2109.00137), appendix B.1, which counts r + 1 rounds. The authors'
    code resamples once more at the end and takes of these the one at the place of the best before
    that; here the best itself is taken.
    """
    if len(shakes) != len(draws):
        raise ConfigError(f"search has {len(shakes)} shakes and {len(draws)} draws; give the same")
    value = energy(x)
    for i, (shake, draw) in enumerate(zip(shakes, draws, strict=True)):
        x = resampled(x, -value / temperature, n, torch.special.ndtr(draw))
        x = x + spread * shrink**i * shake
        x = x if bound is None else x.clamp(-bound, bound)
        value = energy(x)
    return Sample(taken(x, choose(-value, n), n), (len(shakes) + 1) * n)


def resampled(
    x: Float[Tensor, "*shape"],
    score: Float[Tensor, "*seed rows"],
    n: int,
    uniform: Float[Tensor, "*seed rows"],
) -> Float[Tensor, "*shape"]:
    """As many candidates of each sample, drawn from its n with probabilities softmax(score).

    `uniform` has a number in [0, 1] for each candidate to be drawn.
    """
    axis = score.ndim - 1
    by_sample = (*score.shape[:-1], -1, n)
    shares = softmax(score.reshape(by_sample), -1).cumsum(-1)
    place = torch.searchsorted(shares, uniform.reshape(by_sample).contiguous())
    place = place.clamp(max=n - 1)  # where rounding leaves the last share below 1
    candidates = x.reshape(*by_sample, *x.shape[axis + 1 :])
    place = place.reshape(place.shape + (1,) * (candidates.ndim - place.ndim))
    return candidates.gather(axis + 1, place.expand_as(candidates)).reshape(x.shape)


def info_nce(
    logged: Float[Tensor, "*seed batch"],
    others: Float[Tensor, "*seed batch n"],
    temperature: float = 1.0,
) -> Float[Tensor, "*seed batch"]:
    """-log of the logged action's share of exp(-E / T) among itself and n others.

    ln(1 + n) where all energies are equal. Source: arXiv:2109.00137, eq. 2. It does not change
    when all energies of a sample grow by the same number, so that energies of different
    conditions need not be comparable.
    """
    ahead = torch.cat([torch.zeros_like(logged).unsqueeze(-1), logged.unsqueeze(-1) - others], -1)
    return torch.logsumexp(ahead / temperature, -1)


def steepness(
    gradient: Float[Tensor, "*shape"], margin: float = 1.0, event: int = 2
) -> Float[Tensor, "*seed rows"]:
    """max(0, |dE/da|_inf - margin)^2 of each row, the norm over all its components.

    Implicit BC's penalty (arXiv:2109.00137, appendix B.3.1): it keeps Langevin's steps stable.
    """
    norm = gradient.abs().flatten(gradient.ndim - event).amax(-1)
    return (norm - margin).clamp(min=0.0).square()


def _summed(energy: Energy, x: Tensor) -> tuple[Tensor, Tensor]:
    value = energy(x)
    return value.sum(), value
