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

import torch
from jaxtyping import Float
from torch import Tensor


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
    """y_1 .. y_T and h_T, with A = rates (negative) and D = skip, from h_0 = state, or 0."""
    decay = (delta[..., None] * rates).exp()
    inflow = (delta * x)[..., None] * b[:, :, None]
    h = scan(decay, inflow, state)
    y = (h * c[:, :, None]).sum(-1) + skip * x
    return y, h[:, -1]
