"""What the optimiser must not depend on, and what is done to a gradient before it."""

import pytest
import torch
from torch import nn

from offrl.networks import MLP, Learners
from offrl.optim import adam, adamw, clip_norm, parameters_of, rise, set_lr


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


def test_a_learner_s_gradient_is_clipped_by_its_own_norm() -> None:
    # Two learners, of norms 5 and 0.5, in an ensemble's weight and a bias that begins with them.
    weight = torch.tensor([[[3.0], [0.3]], [[0.0], [0.4]]])  # (ensemble, seed, 1)
    bias = torch.tensor([[4.0], [0.0]])  # (seed, 1)
    clipped = clip_norm([weight, bias], [1, 0], 1.0)
    torch.testing.assert_close(clipped[0][:, 0], weight[:, 0] / 5.0)
    torch.testing.assert_close(clipped[1][0], bias[0] / 5.0)
    assert torch.equal(clipped[0][:, 1], weight[:, 1]) and torch.equal(clipped[1][1], bias[1])
    # Alone the same, and 0 leaves every gradient as it is.
    alone = clip_norm([weight[:, 0], bias[0]], [None, None], 1.0)
    torch.testing.assert_close(alone[0], clipped[0][:, 0])
    same = clip_norm([weight, bias], [1, 0], 0.0)
    assert same[0] is weight and same[1] is bias


def test_clipping_is_torch_s_for_one_learner() -> None:
    parameters = [nn.Parameter(torch.randn(3, 2)), nn.Parameter(torch.randn(2))]
    gradients = [torch.randn(3, 2), torch.randn(2)]
    for p, g in zip(parameters, gradients, strict=True):
        p.grad = g.clone()
    torch.nn.utils.clip_grad_norm_(parameters, 0.7)
    for p, ours in zip(parameters, clip_norm(gradients, [None, None], 0.7), strict=True):
        torch.testing.assert_close(ours, p.grad)


@pytest.mark.parametrize("shape", [(2, 3), (3,)])
def test_a_zero_gradient_stays_zero(shape: tuple[int, ...]) -> None:
    assert torch.equal(clip_norm([torch.zeros(shape)], [None], 1.0)[0], torch.zeros(shape))


def test_a_rate_rises_to_one_and_at_once_without_a_warm_up() -> None:
    assert [rise(step, 4) for step in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    assert rise(0, 0) == rise(7, 0) == 1.0
