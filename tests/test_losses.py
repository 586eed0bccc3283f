"""Losses, regularisers and target averages against numbers worked by hand."""

import math
from typing import Any

import pytest
import torch
from jaxtyping import TypeCheckError
from torch import Tensor

from offrl.critics import Critic
from offrl.losses import action_error, expectile_loss, smoothed_action, td_loss, td_target
from offrl.networks import MLP, Learners
from offrl.optim import adam, parameters_of, polyak_update, set_lr, target_of
from offrl.regularizers import advantage_weight, q_scale


def doubles(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_td_target_by_hand() -> None:
    # 1 + 0.9 * 1 * 10 = 10; where it ends, the reward alone; -2 + 0.9 * 1 * 0 = -2.
    target = td_target(doubles(1, 1, -2), doubles(1, 0, 1), doubles(10, 10, 0), 0.9)
    torch.testing.assert_close(target, doubles(10, 1, -2))


def test_smoothed_action_by_hand() -> None:
    # 0.2 * 1 = 0.2, within the clip. 0.2 * 4 = 0.8, cut to 0.5. 0.2 * -4 to -0.5. 0.9 + 0.5 to 1.
    action, noise = doubles(0.1, 0.1, 0.1, 0.9)[:, None], doubles(1, 4, -4, 4)[:, None]
    smoothed = smoothed_action(action, noise, 0.2, 0.5)
    torch.testing.assert_close(smoothed, doubles(0.3, 0.6, -0.4, 1.0)[:, None])


def test_td_loss_by_hand() -> None:
    # (1 - 3)^2 + (4 - 3)^2 = 5 and (0 + 1)^2 + (2 + 1)^2 = 10: a sum over critics, not a mean.
    q = torch.stack([doubles(1, 0), doubles(4, 2)])
    torch.testing.assert_close(td_loss(q, doubles(3, -1)), doubles(5, 10))


def test_losses_keep_learners_apart() -> None:
    q = torch.zeros(2, 3, 4)
    q[:, 1] = 1.0
    loss = td_loss(q, torch.zeros(3, 4))
    assert loss.shape == (3, 4)
    assert loss.sum(-1).tolist() == [0.0, 8.0, 0.0]


def test_a_transposed_target_is_a_type_error() -> None:
    with pytest.raises(TypeCheckError):
        td_loss(torch.zeros(2, 8), torch.zeros(8, 1))


def test_expectile_loss_by_hand() -> None:
    # 0.75 * 2^2 = 3 above, 0.25 * 2^2 = 1 below.
    torch.testing.assert_close(expectile_loss(doubles(2, -2, 0), 0.75), doubles(3, 1, 0))


def test_the_middle_expectile_is_half_the_squared_error() -> None:
    diff = torch.linspace(-3, 3, 13, dtype=torch.float64)
    torch.testing.assert_close(expectile_loss(diff, 0.5), 0.5 * diff.square())


def test_reversing_the_error_reverses_the_expectile() -> None:
    diff = torch.linspace(-3, 3, 13, dtype=torch.float64)
    torch.testing.assert_close(expectile_loss(-diff, 0.8), expectile_loss(diff, 0.2))


@pytest.mark.parametrize("expectile", [0.1, 0.5, 0.9])
def test_the_minimiser_of_a_coin_is_its_expectile(expectile: float) -> None:
    # Of {0, 1}: d/dv [(1 - tau) v^2 + tau (1 - v)^2] = 0 at v = tau.
    v = torch.tensor(expectile, dtype=torch.float64, requires_grad=True)
    torch.autograd.backward(expectile_loss(doubles(0, 1) - v, expectile).sum())
    assert v.grad is not None and abs(v.grad.item()) < 1e-12


def test_action_error_by_hand() -> None:
    # (0.5^2 + 1^2) / 2 = 0.625, averaged over the two components.
    error = action_error(doubles(0.5, 0)[None], doubles(0, 1)[None])
    torch.testing.assert_close(error, doubles(0.625))


def test_q_scale_by_hand() -> None:
    # mean(|2|, |-4|) = 3, and 6 / 3 = 2; one scale per learner.
    torch.testing.assert_close(q_scale(doubles(2, -4), 6.0), torch.tensor(2.0).double())
    stacked = torch.stack([doubles(2, -4), doubles(1, 1)])
    torch.testing.assert_close(q_scale(stacked, 6.0), doubles(2, 6))


def test_q_scale_makes_the_term_free_of_the_rewards_scale() -> None:
    q = doubles(1, 5, -2)
    for size in (1e-3, 1.0, 1e6):
        term = q_scale(size * q, 2.5) * (size * q).mean()
        torch.testing.assert_close(term, torch.tensor(2.5 * 4 / 8).double())


def test_q_scale_passes_no_gradient() -> None:
    # d/dq [2 mean(q)] = 1 each. Through the scale it would be 0: 6 mean(q) / mean|q| is constant.
    q = doubles(2, 4).requires_grad_()
    assert not q_scale(q, 6.0).requires_grad
    torch.autograd.backward(q_scale(q, 6.0) * q.mean(-1))
    assert q.grad is not None
    torch.testing.assert_close(q.grad, doubles(1, 1))


def test_advantage_weight_by_hand() -> None:
    # e^(2 * 0.5) = e; e^0 = 1; e^(2 * -1) = e^-2.
    weight = advantage_weight(doubles(0.5, 0, -1), beta=2.0)
    torch.testing.assert_close(weight, doubles(math.e, 1, math.exp(-2)))


def test_advantage_weight_is_cut_from_above_alone() -> None:
    # ln 100 = 4.605: 4.6 is below the cut, 4.7 above. Far out the weight stays finite.
    weight = advantage_weight(doubles(4.6, 4.7, 1e6, -1e6), beta=1.0)
    torch.testing.assert_close(weight, doubles(math.exp(4.6), 100, 100, 0))
    assert advantage_weight(doubles(3.0), 1.0, max_weight=5.0).item() == 5.0


def test_without_temperature_every_action_weighs_the_same() -> None:
    assert advantage_weight(doubles(-50, 0, 50), beta=0.0).tolist() == [1.0, 1.0, 1.0]


def test_losses_pass_gradients_to_both_sides() -> None:
    # Gradients are stopped in the agents; a loss that did so too would hide a missing stop.
    q, target = torch.ones(2, 3, requires_grad=True), torch.zeros(3, requires_grad=True)
    torch.autograd.backward(td_loss(q, target).sum())
    assert target.grad is not None and target.grad.tolist() == [-4.0, -4.0, -4.0]
    advantage = torch.zeros(3, requires_grad=True)
    torch.autograd.backward(advantage_weight(advantage, 2.0).sum())
    assert advantage.grad is not None and advantage.grad.tolist() == [2.0, 2.0, 2.0]


def test_dropout_by_hand() -> None:
    net = MLP([1, 4, 1], Learners(), dropout=0.25)
    first: Any = net[0]
    last: Any = net[2]
    with torch.no_grad():
        first.weight.copy_(torch.tensor([[1.0, 2.0, 3.0, -1.0]]))
        first.bias.zero_()
        last.weight.fill_(1.0)
        last.bias.zero_()
    # A normal number exceeds -0.6745 with probability 3/4. Kept: 1 and 3, each over 3/4; the
    # fourth unit is off by itself. (1 + 3) / 0.75 = 16 / 3.
    noise = {"dropout0": torch.tensor([[-0.67, -0.68, 2.0, 2.0]])}
    torch.testing.assert_close(net(torch.ones(1, 1), noise), torch.tensor([[16.0 / 3.0]]))
    torch.testing.assert_close(net(torch.ones(1, 1)), torch.tensor([[6.0]]))


def test_dropout_keeps_the_mean() -> None:
    net = MLP([3, 64, 64, 2], Learners(), dropout=0.3).double()
    x = torch.ones(20_000, 3, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    noise = {
        name: torch.randn(shape, generator=generator, dtype=torch.float64)
        for name, shape in net.noise(len(x)).items()
    }
    assert {k: v.shape for k, v in noise.items()} == {
        "dropout0": (20_000, 64),
        "dropout1": (20_000, 64),
    }
    kept = (noise["dropout0"] > -0.5244005).double().mean().item()  # the 0.3 quantile
    assert kept == pytest.approx(0.7, abs=0.002)
    hidden = net[1](net[0](x))
    dropped = hidden * (noise["dropout0"] > -0.5244005) / 0.7
    torch.testing.assert_close(dropped.mean(0), hidden.mean(0), rtol=0.02, atol=0)


def test_an_mlp_without_dropout_wants_no_noise() -> None:
    assert MLP([3, 8, 2], Learners()).noise(16) == {}


def test_polyak_update_by_hand() -> None:
    # 0.005 * 1 + 0.995 * 0 = 0.005, then 0.005 + 0.995 * 0.005 = 0.009975.
    net, target = torch.nn.Linear(1, 1).double(), torch.nn.Linear(1, 1).double()
    for p, t in zip(net.parameters(), target.parameters(), strict=True):
        torch.nn.init.ones_(p)
        torch.nn.init.zeros_(t)
    for expected in (0.005, 0.009975):
        polyak_update(net, target, 0.005)
        assert target.weight.item() == pytest.approx(expected, rel=1e-12)
    assert net.weight.item() == 1.0


def test_a_whole_polyak_step_copies_and_buffers_are_copied() -> None:
    net, target = torch.nn.BatchNorm1d(2), torch.nn.BatchNorm1d(2)
    torch.nn.init.constant_(net.weight, 3.0)
    assert net.running_mean is not None and target.running_mean is not None
    net.running_mean.fill_(7.0)
    polyak_update(net, target, 1.0)
    assert target.weight.tolist() == [3.0, 3.0] and target.running_mean.tolist() == [7.0, 7.0]


def test_a_target_is_a_frozen_copy() -> None:
    critic = Critic(2, 1, (4,), Learners())
    target = target_of(critic)
    assert all(not p.requires_grad for p in target.parameters())
    assert all(p.requires_grad for p in critic.parameters())
    with torch.no_grad():
        critic.head.bias.add_(1.0)
    assert not torch.equal(critic.head.bias, target.head.bias)


def test_adams_first_step_is_the_learning_rate() -> None:
    # m / (1 - b1) = g and v / (1 - b2) = g^2, so the step is lr g / |g|, up to eps.
    x = torch.nn.Parameter(doubles(1.0, 1.0))
    optimizer = adam([x], 0.25)
    assert parameters_of(optimizer)[0] is x
    x.grad = doubles(3.0, -1e-3)
    optimizer.step()
    torch.testing.assert_close(x.detach(), doubles(0.75, 1.25), rtol=0, atol=1e-5)
    rate = optimizer.param_groups[0]["lr"]
    set_lr(optimizer, 0.0)
    assert optimizer.param_groups[0]["lr"] is rate and rate.item() == 0.0
    before = x.detach().clone()
    optimizer.step()
    assert torch.equal(before, x.detach())
