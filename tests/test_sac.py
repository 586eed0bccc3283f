"""Multipliers, the conservative gap, diversity and many actions a state: numbers by hand."""

import math

import pytest
import torch
from torch import Tensor

from offrl.critics import Critic
from offrl.multipliers import Multiplier
from offrl.networks import Learners
from offrl.optim import adam
from offrl.regularizers import ensemble_diversity, log_sum_exp_gap
from offrl.sac import AT_ONCE, value_and_slope, values_of_many


def tensor(*values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


# -- multipliers ----------------------------------------------------------------------------------


def test_a_multiplier_rises_while_its_constraint_is_violated() -> None:
    multiplier = Multiplier(Learners((0, 1)))
    assert multiplier().tolist() == [1.0, 1.0] and multiplier.seed_axis == 0
    optimizer = adam(multiplier.parameters(), 0.5)
    multiplier.ascent(torch.tensor([2.0, -0.1])).sum().backward()
    # -log w violation by log w: minus the violation, at any w.
    assert multiplier.log.grad is not None
    assert multiplier.log.grad.tolist() == pytest.approx([-2.0, 0.1])
    optimizer.step()  # Adam's first step is the rate times the gradient's sign
    assert multiplier().tolist() == pytest.approx([math.exp(0.5), math.exp(-0.5)], abs=1e-5)


def test_the_limit_cuts_the_value_and_lets_it_come_back() -> None:
    multiplier = Multiplier(Learners(), limit=10.0)
    with torch.no_grad():
        multiplier.log.fill_(5.0)
    assert float(multiplier().detach()) == 10.0
    multiplier.ascent(torch.tensor(-1.0)).backward()
    assert multiplier.log.grad is not None and float(multiplier.log.grad) == 1.0


# -- the conservative gap -------------------------------------------------------------------------


def test_the_gap_by_hand() -> None:
    # Values 1 and 2 of actions with densities 1/2 and 1/4, and 3 of the logged action:
    # log(e / 0.5 + e^2 / 0.25) - 3 = log(5.436564 + 29.556224) - 3 = 3.555142 - 3.
    sampled = tensor([[1.0], [2.0]])[None, 0]
    log_density = tensor(0.5, 0.25).log()[:, None]
    found = log_sum_exp_gap(sampled, log_density, tensor([3.0]))
    assert found.shape == (1, 1)
    assert float(found) == pytest.approx(0.555142, abs=1e-6)
    # With T = 2: 2 log((e / 0.5)^(1/2) + (e^2 / 0.25)^(1/2)) - 3 = 2 log(2.331644 + 5.436564) - 3.
    found = log_sum_exp_gap(sampled, log_density, tensor([3.0]), 2.0)
    assert float(found) == pytest.approx(2 * math.log(2.331644 + 5.436564) - 3, abs=1e-6)


def test_equal_values_under_the_uniform_density_have_the_gap_of_their_number() -> None:
    # 8 actions of density 1/4 in the square [-1, 1]^2: log(8 * 4 e^q) - q.
    sampled = torch.full((2, 3, 8, 5), 1.7, dtype=torch.float64)
    gap = log_sum_exp_gap(sampled, torch.full((3, 8, 5), -math.log(4.0)).double(), sampled[:, :, 0])
    torch.testing.assert_close(gap, torch.full_like(gap, math.log(32.0)), rtol=0, atol=1e-6)


def test_a_cold_sum_is_the_maximum() -> None:
    sampled = torch.randn(2, 6, 4, dtype=torch.float64)
    gap = log_sum_exp_gap(sampled, torch.zeros(6, 4).double(), torch.zeros(2, 4).double(), 1e-3)
    torch.testing.assert_close(gap, sampled.amax(-2), rtol=0, atol=2e-3)


# -- diversity ------------------------------------------------------------------------------------


def slopes(*directions: tuple[float, float]) -> Tensor:
    return tensor(*directions)[:, None]  # one sample


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (((1.0, 0.0), (3.0, 0.0)), 2.0),  # the same direction, of any length: N
        (((1.0, 0.0), (-2.0, 0.0)), -2.0),  # opposite: -N / (N - 1)
        (((1.0, 0.0), (0.0, 5.0)), 0.0),
        (
            ((1.0, 0.0), (0.0, 1.0), (1.0, 1.0)),
            2 * math.sqrt(2.0) / 2,
        ),  # cosines 0, r, r; r = 0.707
        (((1.0, 0.0), (0.0, 0.0)), 0.0),  # without a slope there is no direction
    ],
)
def test_diversity_by_hand(given: tuple[tuple[float, float], ...], expected: float) -> None:
    assert float(ensemble_diversity(slopes(*given))) == pytest.approx(expected, abs=1e-9)


def test_diversity_is_the_sum_of_pairs() -> None:
    slope = torch.randn(5, 2, 7, 3, dtype=torch.float64)
    cosine = torch.nn.functional.cosine_similarity(slope[:, None], slope[None], dim=-1)
    off = cosine.sum((0, 1)) - cosine.diagonal().sum(-1)
    torch.testing.assert_close(ensemble_diversity(slope), off / 4, rtol=0, atol=1e-9)


# -- values of many actions, and slopes -----------------------------------------------------------


@pytest.mark.parametrize("seeds", [(0,), (0, 1)], ids=["one", "two"])
def test_many_actions_a_state_are_those_of_single_passes(seeds: tuple[int, ...]) -> None:
    lead = () if len(seeds) == 1 else (2,)
    critic = Critic(3, 2, (8, 8), Learners(seeds), ensemble=3).to(torch.float64)
    obs = torch.randn(*lead, 5, 3, dtype=torch.float64)
    count = 2 * AT_ONCE + 1  # three passes on a processor
    actions = torch.randn(*lead, count, 5, 2, dtype=torch.float64)
    found = values_of_many(critic, obs, actions)
    assert found.shape == (3, *lead, count, 5)
    for j in range(count):
        single = critic(obs, actions[..., j, :, :])
        torch.testing.assert_close(found[..., j, :], single, rtol=0, atol=1e-12)


@pytest.mark.parametrize("seeds", [(0,), (0, 1)], ids=["one", "two"])
def test_slopes_are_those_of_each_member_alone(seeds: tuple[int, ...]) -> None:
    lead = () if len(seeds) == 1 else (2,)
    critic = Critic(3, 2, (8, 8), Learners(seeds), ensemble=3).to(torch.float64)
    obs = torch.randn(*lead, 5, 3, dtype=torch.float64)
    action = torch.randn(*lead, 5, 2, dtype=torch.float64)
    q, slope, features = value_and_slope(critic, obs, action)
    torch.testing.assert_close(features, critic.features(obs, action), rtol=0, atol=1e-12)
    torch.testing.assert_close(q, critic(obs, action), rtol=0, atol=1e-12)
    for k in range(3):
        own = action.clone().requires_grad_()
        (alone,) = torch.autograd.grad(critic(obs, own)[k].sum(), own)
        torch.testing.assert_close(slope[k], alone, rtol=0, atol=1e-12)


def test_the_gradient_of_diversity_is_that_of_differences() -> None:
    critic = Critic(3, 2, (8, 8), Learners(), ensemble=3).to(torch.float64)
    obs, action = torch.randn(6, 3).double(), torch.randn(6, 2).double()

    def diversity() -> Tensor:
        return ensemble_diversity(value_and_slope(critic, obs, action)[1]).mean()

    weight = critic.head.weight
    (gradient,) = torch.autograd.grad(diversity(), weight)
    step = 1e-6
    for entry in [(0, 1, 0), (2, 5, 0)]:
        with torch.no_grad():
            weight[entry] += step
        above = float(diversity().detach())
        with torch.no_grad():
            weight[entry] -= 2 * step
        below = float(diversity().detach())
        with torch.no_grad():
            weight[entry] += step
        assert float(gradient[entry]) == pytest.approx((above - below) / (2 * step), abs=1e-6)
