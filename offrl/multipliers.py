"""Weights that are learned so that a constraint holds: temperatures and Lagrange multipliers."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from offrl.networks import Learners, Stacked


class Multiplier(Stacked):
    """w = exp(log w) >= 0, one per learner, of a constraint "violation <= 0"; begins at 1.

    `limit` cuts the value, not the parameter, which can therefore come back from beyond it.
    """

    def __init__(self, learners: Learners, limit: float = float("inf")) -> None:
        super().__init__(learners)
        self.limit = limit
        self.log = nn.Parameter(torch.zeros(learners.shape))

    def forward(self) -> Float[Tensor, "*seed"]:
        return self.log.exp().clamp(max=self.limit)

    def ascent(self, violation: Float[Tensor, "*seed"]) -> Float[Tensor, "*seed"]:
        """-log w violation: descending it raises w where the constraint is violated.

        Dual ascent in the logarithm, as the authors of soft actor-critic do it (arXiv:1812.05905,
        section 6); its gradient, unlike that of -w violation, does not fade with w.
        """
        return -self.log * violation
