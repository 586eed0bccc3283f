"""How well a number tells two kinds of states apart: the receiver's curve and its area.

A detector raises an alarm where its score is at or above a threshold. Lowering the threshold from
infinity, the curve goes from (0, 0) to (1, 1): the share of ordinary states with a false alarm, and
that of strange ones which are found. Its area is the probability that a strange state scores higher
than an ordinary one, equal scores counting one half: 1/2 for a score that says nothing.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from offrl.errors import DataError

F64 = NDArray[np.float64]


class Curve(NamedTuple):
    """Points of a receiver's curve, from (0, 0) to (1, 1), one for each distinct score."""

    false_alarms: F64
    hits: F64
    area: float


def receiver_curve(ordinary: ArrayLike, strange: ArrayLike) -> Curve:
    """The curve of scores of ordinary states (n,) and of strange ones (m,).

    Raises DataError where one of them is empty or has a score that is no number.
    """
    scores = [np.asarray(s, np.float64).ravel() for s in (ordinary, strange)]
    for name, values in zip(("ordinary", "strange"), scores, strict=True):
        if not values.size or np.isnan(values).any():
            raise DataError(f"the {name} states need one or more scores, and each a number")
    levels = np.unique(np.concatenate(scores))[::-1]
    shares = [
        np.concatenate([[0.0], 1.0 - np.searchsorted(np.sort(s), levels, "left") / s.size])
        for s in scores
    ]
    area = float(np.trapezoid(shares[1], shares[0]))
    return Curve(shares[0], shares[1], area)
