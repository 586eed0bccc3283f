"""Linear recurrences over time, computed for all steps at once.

    h_t = a_t h_(t-1) + b_t                                            (each feature by itself)

Step (a, b) and then step (c, d) are together the step (a c, b c + d): composing them is
associative. `scan` composes neighbours in pairs, scans the half as many pairs, and fills in the
places between. That is 2 T compositions at a depth of 2 log2 T, where going from step to step has
a depth of T. Nothing is divided and no logarithm is taken, so a decay may be 0.

    h_t = exp(delta_t A) h_(t-1) + delta_t b_t x_t,   y_t = c_t h_t + D x_t

is the selective state space of Mamba (Gu and Dao 2023, arXiv:2312.00752, algorithm 2): delta, b
and c depend on the input. A step of delta = 0 leaves the state as it is, which is what padding
has to do.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

CACHED = 1 << 19  # numbers of one array that a processor's cache holds with its neighbours


def scan(
    decay: Float[Tensor, "batch time *features"],
    inflow: Float[Tensor, "batch time *features"],
    state: Float[Tensor, "batch ..."] | None = None,
) -> Float[Tensor, "batch time *features"]:
    """h_1 .. h_T of the recurrence with a = decay and b = inflow, from h_0 = state, or 0.

    One step is one multiplication and one addition: what a controller pays for it is constant.
    """
    if state is not None:
        first = inflow[:, :1] + decay[:, :1] * state[:, None]
        inflow = torch.cat([first, inflow[:, 1:]], 1)
    return _scan(decay, inflow)


def _scan(a: Tensor, b: Tensor) -> Tensor:
    steps = a.shape[1]
    if steps == 1:
        return b
    pairs = steps // 2
    early_a, early_b = a[:, : 2 * pairs : 2], b[:, : 2 * pairs : 2]
    late_a, late_b = a[:, 1::2], b[:, 1::2]
    late = _scan(early_a * late_a, early_b * late_a + late_b)
    between = a[:, 2::2] * late[:, : (steps - 1) // 2] + b[:, 2::2]
    early = torch.cat([b[:, :1], between], 1)
    joined = torch.stack([early[:, :pairs], late], 2).flatten(1, 2)
    return joined if steps == 2 * pairs else torch.cat([joined, early[:, pairs:]], 1)


def selective_scan(
    x: Float[Tensor, "batch time inner"],
    delta: Float[Tensor, "batch time inner"],
    rates: Float[Tensor, "inner state"],
    b: Float[Tensor, "batch time state"],
    c: Float[Tensor, "batch time state"],
    skip: Float[Tensor, " inner"],
    state: Float[Tensor, "batch inner state"] | None = None,
) -> tuple[Float[Tensor, "batch time inner"], Float[Tensor, "batch inner state"]]:
    """y_1 .. y_T and h_T, with A = rates (negative) and D = skip, from h_0 = state, or 0.

    The states of all steps are `state` times as large as what they are made of. They are never
    kept: a few rows at a time are scanned in place, and scanned again for the gradient. In a
    compiled graph the compiler sees to that, and is given the equation as it stands.
    """
    if state is None:
        state = x.new_zeros(len(x), *rates.shape)
    if torch.compiler.is_compiling():
        decay, inflow = _coefficients(x, delta, rates, b)
        h = scan(decay, inflow, state)
        y, last = (h * c[:, :, None]).sum(-1), h[:, -1]
    else:
        y, last = _Selective.apply(x, delta, rates, b, c, state)  # type: ignore[no-untyped-call]
    return y + skip * x, last


def _coefficients(x: Tensor, delta: Tensor, rates: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Decay and inflow (batch, time, inner, state)."""
    return (delta[..., None] * rates).exp(), (delta * x)[..., None] * b[:, :, None]


def _parts(x: Tensor, states: int) -> list[slice]:
    """Rows that are scanned together: all of them where memory is fast, else what a cache holds."""
    size = len(x)
    if x.device.type == "cpu":
        size = max(1, CACHED // (x.shape[1] * x.shape[2] * states))
    return [slice(k, k + size) for k in range(0, len(x), size)]


def _forwards(a: Tensor, h: Tensor) -> None:
    """h_t <- a_t h_(t-1) + h_t in place, as `_scan`; a is spent."""
    steps = a.shape[1]
    if steps == 1:
        return
    pairs = steps // 2
    late_a, late = a[:, 1::2], h[:, 1::2]
    late.addcmul_(late_a, h[:, : 2 * pairs : 2])
    late_a.mul_(a[:, : 2 * pairs : 2])
    _forwards(late_a, late)
    h[:, 2::2].addcmul_(a[:, 2::2], late[:, : (steps - 1) // 2])


def _backwards(a: Tensor, g: Tensor) -> None:
    """g_t <- a_t g_(t+1) + g_t in place, from the last on; a is spent."""
    steps = a.shape[1]
    if steps == 1:
        return
    lone = steps % 2  # the first of an odd number has no partner
    early_a, early = a[:, lone : steps - 1 : 2], g[:, lone : steps - 1 : 2]
    early.addcmul_(early_a, g[:, lone + 1 :: 2])
    early_a.mul_(a[:, lone + 1 :: 2])
    _backwards(early_a, early)
    rest = slice(1 - lone, steps - 1, 2)
    g[:, rest].addcmul_(a[:, rest], early[:, 1 - lone :])


class _Selective(torch.autograd.Function):
    """The selective scan without its skip, with a gradient that keeps no state."""

    @staticmethod
    def forward(ctx: Any, *given: Tensor) -> tuple[Tensor, Tensor]:
        x, delta, rates, b, c, state = given
        ctx.save_for_backward(*given)
        y, last = torch.empty_like(x), torch.empty_like(state)
        for rows in _parts(x, rates.shape[1]):
            h = _states(x[rows], delta[rows], rates, b[rows], state[rows])[1]
            y[rows] = (h * c[rows, :, None]).sum(-1)
            last[rows] = h[:, -1]
        return y, last

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor, ...]:
        x, delta, rates, b, c, state = ctx.saved_tensors
        found = [torch.empty_like(part) for part in (x, delta, rates, b, c, state)]
        d_x, d_delta, d_rates, d_b, d_c, d_state = found
        d_rates.zero_()
        for rows in _parts(x, rates.shape[1]):
            decay, h = _states(x[rows], delta[rows], rates, b[rows], state[rows])
            slope = slopes[0][rows]
            d_c[rows] = (slope[:, :, None] @ h)[:, :, 0]
            # The slope of a state is what it does at its own step and through the next one.
            g = slope[..., None] * c[rows, :, None]
            g[:, -1] += slopes[1][rows]
            _backwards(torch.cat([decay[:, 1:], torch.zeros_like(decay[:, :1])], 1), g)

            d_state[rows] = decay[:, 0] * g[:, 0]
            moved = (g * b[rows, :, None]).sum(-1)  # of the inflow's factor delta x
            d_b[rows] = ((delta[rows] * x[rows])[:, :, None] @ g)[:, :, 0]
            d_x[rows] = moved * delta[rows]
            # Of the decay's exponent; the state before the first step is the one given.
            g[:, 1:] *= h[:, :-1]
            g[:, 0] *= state[rows]
            g *= decay
            d_delta[rows] = moved * x[rows] + (g * rates).sum(-1)
            # Not an einsum: a processor would copy one matrix for each row and step of it.
            d_rates += g.mul_(delta[rows][..., None]).sum((0, 1))
        return tuple(found)


def _states(
    x: Tensor, delta: Tensor, rates: Tensor, b: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """Decays, and the state after every step."""
    decay, h = _coefficients(x, delta, rates, b)
    h[:, 0].addcmul_(decay[:, 0], state)
    _forwards(decay.clone(), h)
    return decay, h
