"""What the optimiser must not depend on: how a gradient lies in memory."""

import torch
from torch import nn

from offrl.optim import adam


def test_a_gradient_that_lies_transposed_moves_the_same_entries() -> None:
    # The first step of Adam is lr times the sign of the gradient.
    gradient = torch.tensor([[1.0, -1.0], [2.0, -2.0], [3.0, -3.0]])
    for given in (gradient, gradient.t().contiguous().t()):
        weight = nn.Parameter(torch.zeros(3, 2))
        weight.grad = given
        adam([weight], 0.1).step()
        torch.testing.assert_close(weight.detach(), -0.1 * gradient.sign())
