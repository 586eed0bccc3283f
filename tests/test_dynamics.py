"""Ensembles of dynamics: what they recover of systems that are known, and how they are trained."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from offrl.dynamics import DynamicsConfig, GaussianEnsemble
from offrl.errors import ConfigError, DataError

SMALL: dict[str, Any] = {
    "members": 3,
    "elites": 2,
    "hidden": (32,),
    "weight_decay": (1e-6, 1e-6),
    "lr": 3e-3,
    "batch_size": 64,
    "epochs": 40,
}
A = torch.tensor([[0.9, 0.2], [-0.1, 0.8]])
B = torch.tensor([[0.5], [0.3]])
NOISE = 0.05


def linear_system(size: int = 2_000) -> tuple[Tensor, Tensor, Tensor]:
    """s' = A s + B a + 0.05 N, from states and actions that are spread out."""
    rng = np.random.default_rng(0)
    start = torch.from_numpy(rng.normal(0.5, 1.0, (size, 2)).astype(np.float32))
    action = torch.from_numpy(rng.uniform(-1, 1, (size, 1)).astype(np.float32))
    noise = torch.from_numpy(rng.normal(size=(size, 2)).astype(np.float32))
    return start, action, start @ A.T + action @ B.T + NOISE * noise


def small(**changes: Any) -> DynamicsConfig:
    return DynamicsConfig(**{**SMALL, **changes})


@pytest.fixture(scope="module")
def forward() -> GaussianEnsemble:
    model = GaussianEnsemble(2, 1, small())
    model.fit(*linear_system())
    return model


def test_a_linear_system_is_recovered(forward: GaussianEnsemble) -> None:
    start = torch.tensor([[0.0, 0.0], [1.0, -0.5], [0.5, 1.0]])
    action = torch.tensor([[0.5], [-1.0], [0.0]])
    found = forward.expected(start, action)
    torch.testing.assert_close(found, start @ A.T + action @ B.T, rtol=0, atol=0.04)


def test_the_deviation_is_that_of_the_noise(forward: GaussianEnsemble) -> None:
    start, action, _ = linear_system(200)
    _, std = forward.predict(start, action)
    assert std.shape == (3, 200, 2)
    assert float(std.mean()) == pytest.approx(NOISE, rel=0.25)


def test_a_reverse_model_goes_back() -> None:
    start, action, end = linear_system()
    model = GaussianEnsemble(2, 1, small())
    model.fit(end, action, start)
    found = model.expected(end[:200], action[:200])
    # The noise, seen backwards, is A^-1 of it: a deviation of about 0.06.
    assert float((found - start[:200]).square().mean().sqrt()) < 0.09


def test_a_sample_is_its_elites_mean_and_deviation(forward: GaussianEnsemble) -> None:
    start, action, _ = linear_system(4)
    mean, std = forward.predict(start, action)
    noise = torch.tensor([[1.0, -1.0], [0.0, 0.0], [2.0, 0.5], [-1.0, 3.0]])
    elite = torch.tensor([0, 1, 1, 0])
    found = forward.sample(start, action, elite, noise)
    for i, k in enumerate(forward.elites[elite].tolist()):
        torch.testing.assert_close(found[i], mean[k, i] + std[k, i] * noise[i])


def test_the_expected_end_is_the_mean_of_the_elites(forward: GaussianEnsemble) -> None:
    start, action, _ = linear_system(5)
    mean, _ = forward.predict(start, action)
    elites = forward.elites.tolist()
    best_two = forward.error.argsort()[:2].tolist()
    assert elites == best_two
    torch.testing.assert_close(forward.expected(start, action), mean[elites].mean(0))


def test_a_fit_is_a_function_of_data_and_seed(forward: GaussianEnsemble) -> None:
    again = GaussianEnsemble(2, 1, small())
    again.fit(*linear_system())
    for key, value in forward.state_dict().items():
        assert torch.equal(value, again.state_dict()[key]), key
    other = GaussianEnsemble(2, 1, small(epochs=1), seed=1)
    other.fit(*linear_system(100))
    assert not torch.equal(other.layers[0].weight, forward.layers[0].weight)


def test_training_ends_when_nothing_improves_and_the_best_is_kept() -> None:
    data = linear_system(300)
    model = GaussianEnsemble(2, 1, small(lr=0.3, patience=2, epochs=200))
    errors = model.fit(*data)
    assert len(errors) < 200
    # At this rate the error jumps about: what is kept is the best of it.
    assert float(model.error.sort().values[:2].mean()) <= min(errors) * 1.0101 + 1e-9
    last = GaussianEnsemble(2, 1, small(lr=0.3, patience=2, epochs=1))
    assert len(last.fit(*data)) == 1


def test_members_differ_and_components_that_never_vary_are_left_alone() -> None:
    start, action, end = linear_system(200)
    start, end = (torch.cat([x, torch.full((200, 1), 3.0)], -1) for x in (start, end))
    model = GaussianEnsemble(3, 1, small(epochs=5))
    model.fit(start, action, end)
    mean, _ = model.predict(start, action)
    assert float(model.std[2]) == 1.0 and mean.isfinite().all()
    assert not torch.equal(mean[0], mean[1])


def test_every_setting_has_an_effect() -> None:
    data = linear_system(150)
    changes: dict[str, Any] = {
        "members": 4,
        "elites": 1,
        "hidden": (16,),
        "weight_decay": (0.1, 0.1),
        "bound_weight": 0.5,
        "lr": 1e-2,
        "batch_size": 32,
        "holdout": 0.3,
        "epochs": 2,
    }
    base = GaussianEnsemble(2, 1, small(epochs=4))
    base.fit(*data)
    expected = base.expected(data[0], data[1])
    for name, value in changes.items():
        model = GaussianEnsemble(2, 1, small(**{"epochs": 4, name: value}))
        model.fit(*data)
        assert not torch.equal(model.expected(data[0], data[1]), expected), name


def test_wrong_settings_and_data_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"elites is 9; it must be at most the 7 members"):
        DynamicsConfig(elites=9)
    with pytest.raises(ConfigError, match=r"weight_decay has 5 entries; 1 hidden layers need 2"):
        DynamicsConfig(hidden=(8,))
    with pytest.raises(ConfigError, match=r"lr is 0\.0"):
        DynamicsConfig(lr=0.0)
    one = torch.zeros(1, 2), torch.zeros(1, 1), torch.zeros(1, 2)
    with pytest.raises(DataError, match="two transitions or more; there are 1"):
        GaussianEnsemble(2, 1, small()).fit(*one)
    start, action, end = linear_system(50)
    with pytest.raises(DataError, match="not finite"):
        GaussianEnsemble(2, 1, small(epochs=2)).fit(start, action, end * torch.inf)
