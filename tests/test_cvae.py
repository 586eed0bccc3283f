"""The behaviour model: its divergence by hand, its limits, and learners that never mix."""

import math

import pytest
import torch
from torch import Tensor

from offrl.cvae import CVAE, divergence
from offrl.networks import Learners, learner_view
from offrl.optim import adam

HIDDEN = (24, 24)


def doubles(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize(
    ("mean", "log_std", "expected"),
    [
        # The prior itself.
        ((0.0, 0.0), (0.0, 0.0), 0.0),
        # mu^2 / 2 = 2 and 0, and their mean.
        ((2.0, 0.0), (0.0, 0.0), 1.0),
        # sigma = e: (e^2 - 1) / 2 - 1 in one of two components.
        ((0.0, 0.0), (1.0, 0.0), ((math.e**2 - 1) / 2 - 1) / 2),
        # sigma = 1/2, twice: (1/4 - 1) / 2 + log 2.
        ((0.0, 0.0), (-math.log(2), -math.log(2)), math.log(2) - 0.375),
    ],
)
def test_divergence_by_hand(
    mean: tuple[float, ...], log_std: tuple[float, ...], expected: float
) -> None:
    found = divergence(doubles(*mean)[None], doubles(*log_std)[None])
    torch.testing.assert_close(found, doubles(expected))


def test_divergence_is_that_of_torch() -> None:
    normal = torch.distributions.Normal
    mean, log_std = torch.randn(2, 7, 3, generator=torch.Generator().manual_seed(0)).double()
    theirs = torch.distributions.kl_divergence(normal(mean, log_std.exp()), normal(0.0, 1.0))
    torch.testing.assert_close(divergence(mean, log_std), theirs.mean(-1))


def model(seeds: tuple[int, ...] = (0,), obs: int = 2, act: int = 1) -> CVAE:
    return CVAE(obs, act, HIDDEN, Learners(seeds), latent=2 * act).double()


def test_the_deviation_is_cut() -> None:
    cvae = model()
    with torch.no_grad():
        cvae.encoder[-1].bias += torch.tensor([0.0, 0.0, 100.0, -100.0])  # type: ignore[operator]
    mean, log_std = cvae.encode(torch.ones(3, 2).double(), torch.zeros(3, 1).double())
    assert mean.abs().max() < 10
    assert log_std.tolist() == [[15.0, -4.0]] * 3


def test_noise_moves_the_reconstruction_and_not_the_divergence() -> None:
    cvae, obs, action = model(), torch.ones(4, 2).double(), torch.zeros(4, 1).double()
    mean, _ = cvae.encode(obs, action)
    still, first = cvae(obs, action, torch.zeros(4, 2).double())
    moved, second = cvae(obs, action, torch.ones(4, 2).double())
    torch.testing.assert_close(still, cvae.decode(obs, mean))
    assert not torch.allclose(still, moved) and torch.equal(first, second)
    assert moved.abs().max() <= 1.0


def trained(weight: float, steps: int = 300) -> tuple[CVAE, Tensor, Tensor]:
    """On one state in which two actions are logged; `weight` is that of the divergence."""
    cvae = model(obs=1)
    optimizer = adam(cvae.parameters(), 1e-2)
    obs, action = torch.ones(64, 1).double(), doubles(0.6, -0.6).repeat(32)[:, None]
    noise = torch.Generator().manual_seed(0)
    for _ in range(steps):
        drawn = torch.randn(64, 2, generator=noise).double()
        found, gap = cvae(obs, action, drawn)
        loss = (found - action).square().mean() + weight * gap.mean()
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
    return cvae, obs, action


def test_without_divergence_it_reconstructs() -> None:
    cvae, obs, action = trained(0.0)
    found, _ = cvae(obs, action, torch.zeros(64, 2).double())
    torch.testing.assert_close(found, action, rtol=0, atol=0.05)


def test_with_nothing_but_divergence_it_gives_the_mean() -> None:
    # The latent forgets the action, and the best guess is the mean of the two, 0.
    cvae, obs, action = trained(100.0)
    found, gap = cvae(obs, action, torch.zeros(64, 2).double())
    assert gap.mean() < 1e-3
    torch.testing.assert_close(found, torch.zeros_like(found), rtol=0, atol=0.1)


def test_samples_of_the_prior_are_the_data_s_actions() -> None:
    cvae, obs, _ = trained(0.01)
    latent = torch.randn(64, 2, generator=torch.Generator().manual_seed(1)).double()
    found = cvae.decode(obs, latent)
    near = (found.abs() - 0.6).abs() < 0.15
    assert near.double().mean() > 0.7
    assert (found > 0).any() and (found < 0).any()


def test_learners_never_mix() -> None:
    stacked = model((3, 8))
    obs, action, noise = (torch.randn(2, 5, n).double() for n in (2, 1, 2))
    found, gap = stacked(obs, action, noise)
    for k, seed in enumerate((3, 8)):
        for alone in (learner_view(stacked, k), model((seed,))):
            own, own_gap = alone(obs[k], action[k], noise[k])
            torch.testing.assert_close(found[k], own)
            torch.testing.assert_close(gap[k], own_gap)
    (gradient,) = torch.autograd.grad(found[0].sum() + gap[0].sum(), [stacked.decoder[0].weight])  # type: ignore[list-item]
    assert gradient[0].abs().sum() > 0 and gradient[1].abs().sum() == 0
