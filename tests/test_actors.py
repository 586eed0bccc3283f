"""The squashed Gaussian policy: densities by hand and against torch, one network for many draws."""

import math

import pytest
import torch
from torch.distributions import Normal, TransformedDistribution
from torch.distributions.transforms import TanhTransform

from offrl.actors import (
    LOG_STD_MAX,
    LOG_STD_MIN,
    GaussianActor,
    SquashedGaussianActor,
    actor_from_spec,
)
from offrl.networks import Init, Learners, learner_view


def actor(*seeds: int) -> SquashedGaussianActor:
    made = SquashedGaussianActor(3, 2, (8, 8), Learners(seeds or (0,)))
    return made.to(torch.float64)


def constant(mean: float, log_std: float) -> SquashedGaussianActor:
    """One action, whose u has the same mean and spread in every state."""
    made = SquashedGaussianActor(1, 1, (4,), Learners()).to(torch.float64)
    with torch.no_grad():
        for p in made.parameters():
            p.zero_()
        made.net[-1].bias.copy_(torch.tensor([[mean, log_std]], dtype=torch.float64))
    return made


def test_a_density_by_hand() -> None:
    # u = 0 + 1 * 0.5; log N = -0.125 - log sqrt(2 pi); a = tanh(0.5) = 0.46211716,
    # log(1 - a^2) = log 0.78644773 = -0.24022901; together -0.125 - 0.91893853 + 0.24022901.
    made, obs = constant(0.0, 0.0), torch.zeros(1, 1, dtype=torch.float64)
    action, log_prob = made.draw(obs, torch.full((1, 1), 0.5, dtype=torch.float64))
    assert float(action.detach()) == pytest.approx(0.46211716, abs=1e-8)
    assert float(log_prob.detach()) == pytest.approx(-0.80370952, abs=1e-8)
    assert float(made.log_prob(obs, action).detach()) == pytest.approx(-0.80370952, abs=1e-8)
    assert float(made.mode(obs).detach()) == 0.0


def test_the_density_is_one_in_total() -> None:
    made = constant(0.3, -0.5)
    grid = torch.linspace(-1, 1, 20_001, dtype=torch.float64)[1:-1, None]
    density = made.log_prob(torch.zeros_like(grid), grid).exp()
    assert float(density.sum().detach()) * 1e-4 == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("seeds", [(0,), (0, 1)], ids=["one", "two"])
def test_densities_are_those_of_torch(seeds: tuple[int, ...]) -> None:
    made = actor(*seeds)
    lead = made.net[0].weight.shape[:-2]
    obs = torch.randn(*lead, 50, 3, dtype=torch.float64)
    noise = torch.randn(*lead, 50, 2, dtype=torch.float64)
    mean, log_std = made(obs)
    theirs = TransformedDistribution(Normal(mean, log_std.exp()), TanhTransform(cache_size=1))
    action, log_prob = made.draw(obs, noise)
    torch.testing.assert_close(action, torch.tanh(mean + log_std.exp() * noise))
    torch.testing.assert_close(log_prob, theirs.log_prob(action).sum(-1), rtol=0, atol=1e-9)
    torch.testing.assert_close(made.log_prob(obs, action), log_prob, rtol=0, atol=1e-9)
    torch.testing.assert_close(made.sample(obs, noise), action)
    torch.testing.assert_close(made.mode(obs), torch.tanh(mean))


def test_a_density_far_out_is_exact_where_the_naive_one_is_infinite() -> None:
    # At u = 30 tanh is 1 in float64: log(1 - tanh^2) = log 4 - 2u up to e^-60.
    made = constant(30.0, 0.0)
    zero = torch.zeros(1, 1, dtype=torch.float64)
    log_prob = made.draw(zero, zero)[1]
    expected = -0.5 * math.log(2 * math.pi) - (math.log(4.0) - 60.0)
    assert float(log_prob.detach()) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("bound", [-1.0, 1.0])
def test_logged_actions_on_the_bounds_have_a_finite_density(bound: float) -> None:
    made = actor().to(torch.float32)
    log_prob = made.log_prob(torch.randn(5, 3), torch.full((5, 2), bound))
    log_prob.sum().backward()
    assert log_prob.isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in made.parameters())


def test_the_spread_is_clamped() -> None:
    for given, kept in ((-9.0, LOG_STD_MIN), (9.0, LOG_STD_MAX), (0.5, 0.5)):
        assert float(constant(0.0, given)(torch.zeros(1, 1).double())[1].detach()) == kept


def test_many_draws_are_those_of_single_draws() -> None:
    made = actor(0, 1)
    obs = torch.randn(2, 5, 3, dtype=torch.float64)
    noise = torch.randn(2, 4, 5, 2, dtype=torch.float64)
    action, log_prob = made.draw_many(obs, noise)
    assert action.shape == (2, 4, 5, 2) and log_prob.shape == (2, 4, 5)
    for i in range(4):
        one, its = made.draw(obs, noise[:, i])
        torch.testing.assert_close(action[:, i], one, rtol=0, atol=1e-12)
        torch.testing.assert_close(log_prob[:, i], its, rtol=0, atol=1e-12)


def test_gradients_are_those_of_the_reparametrised_sample() -> None:
    # One state-free action: a = tanh(m + e^s n), so da/dm = 1 - a^2, da/ds = (1 - a^2) e^s n.
    made = constant(0.2, -0.3)
    obs, noise = torch.zeros(1, 1).double(), torch.full((1, 1), 0.7, dtype=torch.float64)
    action, log_prob = made.draw(obs, noise)
    slope = 1.0 - float(action.detach()) ** 2
    by_mean, by_log_std = torch.autograd.grad(action.sum(), made.net[-1].bias, retain_graph=True)[
        0
    ][0].tolist()
    assert by_mean == pytest.approx(slope, abs=1e-12)
    assert by_log_std == pytest.approx(slope * math.exp(-0.3) * 0.7, abs=1e-12)
    # d log pi / dm = 2 a, d log pi / ds = -1 + 2 a e^s n: the noise itself does not move.
    a = float(action.detach())
    by_mean, by_log_std = torch.autograd.grad(log_prob.sum(), made.net[-1].bias)[0][0].tolist()
    assert by_mean == pytest.approx(2 * a, abs=1e-12)
    assert by_log_std == pytest.approx(-1.0 + 2 * a * math.exp(-0.3) * 0.7, abs=1e-12)


def test_a_spec_makes_the_same_network() -> None:
    made = SquashedGaussianActor(3, 2, (8, 6), Learners(), Init(0.1, 1e-3))
    assert made.spec() == {
        "type": "SquashedGaussianActor",
        "obs_dim": 3,
        "act_dim": 2,
        "hidden": [8, 6],
    }
    again = actor_from_spec(made.spec())
    assert isinstance(again, SquashedGaussianActor)
    again.load_state_dict(made.state_dict())
    obs = torch.randn(4, 3)
    assert torch.equal(again.mode(obs), made.mode(obs))
    assert float(made.net[-1].weight.detach().abs().max()) <= 1e-3
    assert torch.equal(made.net[0].bias, torch.full_like(made.net[0].bias, 0.1))


def test_a_learner_of_a_stack_is_the_learner_alone() -> None:
    stacked, alone = actor(0, 1), actor(1)
    view = learner_view(stacked, 1)
    obs, noise = torch.randn(5, 3).double(), torch.randn(5, 2).double()
    torch.testing.assert_close(view.sample(obs, noise), alone.sample(obs, noise))


def test_a_gaussians_mean_can_go_without_tanh() -> None:
    learners = Learners((3, 4))
    plain = GaussianActor(3, 2, (8, 6), learners, squash_mean=False).double()
    squashed = GaussianActor(3, 2, (8, 6), learners).double()
    squashed.load_state_dict(plain.state_dict())
    with torch.no_grad():
        for actor in (plain, squashed):
            actor.spread.log_std.fill_(math.log(0.1))
    obs = 40.0 * torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0)).double()
    noise = torch.full((2, 5, 2), 2.0, dtype=torch.float64)
    mean = plain.mean(obs)
    assert mean.abs().max() > 1.0
    torch.testing.assert_close(squashed.mean(obs), torch.tanh(mean), rtol=0, atol=1e-12)
    assert torch.equal(plain(obs).mean, mean)
    # Actions are cut at the bounds, after the noise: a mean outside may come back inside.
    assert torch.equal(plain.mode(obs), mean.clamp(-1, 1))
    torch.testing.assert_close(
        plain.sample(obs, noise), (mean + 0.2).clamp(-1, 1), rtol=0, atol=1e-12
    )
    again = actor_from_spec(plain.spec())
    assert isinstance(again, GaussianActor) and not again.squash_mean
