"""The classifier's loss and the penalty of its slope, by hand, and the ratio that it finds."""

import math

import pytest
import torch
from torch import Tensor, nn

from offrl.discriminators import Discriminator, discrimination_loss, slope_penalty
from offrl.networks import Learners, learner_view
from offrl.optim import adam


def doubles(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_the_loss_by_hand() -> None:
    # c = 1 / (1 + e^-x). Logits 0 and 0: -log(1/2) twice. Logit log 3 is c = 3/4:
    # -log(3/4) for the expert's, -log(1/4) for another's.
    expert, mixture = doubles(0.0, math.log(3.0)), doubles(0.0, math.log(3.0))
    expected = doubles(2 * math.log(2.0), math.log(4 / 3) + math.log(4.0))
    torch.testing.assert_close(discrimination_loss(expert, mixture), expected, rtol=0, atol=1e-12)
    far = discrimination_loss(doubles(-1e4), doubles(1e4))
    assert far.item() == pytest.approx(2e4)


class Plane(nn.Module):
    """3 s + 4 a: of slope 5 everywhere."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(doubles(3.0, 4.0))

    def forward(self, obs: Tensor, action: Tensor) -> Tensor:
        return (torch.cat([obs, action], -1) * self.weight).sum(-1)


def test_the_penalty_by_hand_has_a_gradient() -> None:
    plane, zero, one = Plane(), torch.zeros(2, 1).double(), torch.ones(2, 1).double()
    penalty = slope_penalty(plane, (one, one), (zero, zero), doubles(0.2, 0.9))
    torch.testing.assert_close(penalty.detach(), doubles(16.0, 16.0), rtol=0, atol=1e-9)
    # d (|w| - 1)^2 / dw = 2 (|w| - 1) w / |w| = 8 (3/5, 4/5).
    (slope,) = torch.autograd.grad(penalty[0], plane.weight)
    torch.testing.assert_close(slope, doubles(4.8, 6.4), rtol=0, atol=1e-9)


def test_a_flat_classifier_has_a_finite_gradient() -> None:
    net = Discriminator(1, 1, (4,), Learners()).double()
    with torch.no_grad():
        for p in net.parameters():
            p.zero_()
    zero = torch.zeros(3, 1).double()
    penalty = slope_penalty(net, (zero, zero), (zero, zero), doubles(0.1, 0.5, 0.9))
    gradients = torch.autograd.grad(penalty.sum(), list(net.parameters()), allow_unused=True)
    assert all(g is None or bool(g.isfinite().all()) for g in gradients)
    torch.testing.assert_close(penalty.detach(), torch.ones(3).double(), rtol=0, atol=1e-5)


def test_the_penalty_is_taken_between_the_pairs_and_of_each_learner_alone() -> None:
    learners = Learners((1, 2))
    net = Discriminator(2, 1, (8, 8), learners).double()
    g = torch.Generator().manual_seed(0)
    obs, action, obs2, action2 = (
        torch.randn(2, 5, n, generator=g, dtype=torch.float64) for n in (2, 1, 2, 1)
    )
    share = torch.rand(2, 5, generator=g, dtype=torch.float64)
    together = slope_penalty(net, (obs, action), (obs2, action2), share)
    for k in range(2):
        single = learner_view(net, k).requires_grad_()
        alone = slope_penalty(single, (obs[k], action[k]), (obs2[k], action2[k]), share[k])
        torch.testing.assert_close(alone, together[k], rtol=0, atol=1e-12)
    # Share 1 is at the expert's own pairs, wherever the others are.
    ones = torch.ones_like(share)
    here = slope_penalty(net, (obs, action), (obs2, action2), ones)
    there = slope_penalty(net, (obs, action), (7 * obs2, -action2), ones)
    torch.testing.assert_close(here, there, rtol=0, atol=1e-12)


def test_the_logit_becomes_the_log_ratio() -> None:
    # Of two actions the expert takes the first in 3 of 4, everyone in 1 of 2:
    # log(3/2) = 0.405 and log(1/2) = -0.693.
    net = Discriminator(1, 1, (16,), Learners((3,))).double()
    optimizer = adam(net.parameters(), 1e-2)
    obs = torch.zeros(4, 1).double()
    expert, everyone = doubles(1, 1, 1, -1)[:, None], doubles(1, 1, -1, -1)[:, None]
    for _ in range(400):
        loss = discrimination_loss(net(obs, expert), net(obs, everyone)).mean()
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
    found = net(obs[:2], doubles(1, -1)[:, None]).detach()
    expected = doubles(math.log(1.5), math.log(0.5))
    torch.testing.assert_close(found, expected, rtol=0, atol=0.02)
