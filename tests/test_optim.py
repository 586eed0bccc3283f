"""What the optimiser must not depend on: how a gradient lies in memory."""

import torch
from torch import nn

from offrl.networks import MLP, Learners
from offrl.optim import adam, adamw, parameters_of, set_lr


def test_a_gradient_that_lies_transposed_moves_the_same_entries() -> None:
    # The first step of Adam is lr times the sign of the gradient.
    gradient = torch.tensor([[1.0, -1.0], [2.0, -2.0], [3.0, -3.0]])
    for given in (gradient, gradient.t().contiguous().t()):
        weight = nn.Parameter(torch.zeros(3, 2))
        weight.grad = given
        adam([weight], 0.1).step()
        torch.testing.assert_close(weight.detach(), -0.1 * gradient.sign())


def test_only_weights_of_layers_decay() -> None:
    net = nn.Sequential(
        MLP([2, 3], Learners((1, 2))), nn.LayerNorm(3), nn.Linear(3, 2), nn.Embedding(2, 2)
    )
    optimizer = adamw(net, 0.1, 0.5)
    assert {id(p) for p in parameters_of(optimizer)} == {id(p) for p in net.parameters()}
    set_lr(optimizer, 0.2)
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    for p in net.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    for name, p in net.named_parameters():
        # Of a weight w and no gradient, a step leaves (1 - lr decay) w.
        kept = 0.9 if name in ("0.0.weight", "2.weight") else 1.0
        torch.testing.assert_close(p.detach(), kept * before[name])
