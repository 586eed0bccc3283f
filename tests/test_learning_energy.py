"""Energies where the answer is known, and copies with a fault that do not find it."""

from typing import Any

import numpy as np
import pytest
from fault import Fault
from known import GOOD, bandit, episodes, fit
from numpy.typing import NDArray

from offrl.datasets.offline import OfflineDataset

PLAIN: dict[str, Any] = {"history": 1, "normalize": "none", "normalize_action": False, "depth": 2}
IBC: dict[str, Any] = {
    **{**PLAIN, "horizon": 1, "execute": 1, "width": 32, "lr": 3e-3},
    **{"negatives": 16, "candidates": 128},
}
WALK: dict[str, Any] = {"method": "langevin", "rounds": 8, "negatives": 8, "penalty": 0.1}
EBT: dict[str, Any] = {
    **{**PLAIN, "horizon": 6, "execute": 6, "backbone": "mlp", "width": 48, "lr": 5e-3},
    **{"warmup": 10, "ema_max": 0.98},
}
BACKWARDS = Fault(
    "energy.info_nce", "logged.unsqueeze(-1) - others", "others - logged.unsqueeze(-1)", ()
)
UPHILL = Fault("energy.descend", "x = x - change", "x = x + change", ())


def ways(sides: tuple[float, ...] = (-GOOD, GOOD)) -> OfflineDataset:
    """One state, and episodes of six actions that are all near one of these."""
    rng = np.random.default_rng(0)
    return episodes(
        [
            ([([1.0], s + float(rng.uniform(-0.05, 0.05)), 0.0) for _ in range(6)], [1.0])
            for s in sides * 30
        ],
        "ways",
    )


def actions(agent: Any) -> NDArray[Any]:
    """First actions of 32 plans."""
    found: NDArray[Any] = agent.policy().predict(np.ones((32, 1)), deterministic=False)
    return found.ravel()


@pytest.mark.parametrize("changes", [{}, WALK], ids=["dfo", "langevin"])
def test_ibc_takes_one_of_two_ways(changes: dict[str, Any]) -> None:
    # Regression would answer 0, where nothing was logged.
    settings, count = {**IBC, **changes}, 120 if changes else 250
    found = actions(fit("ibc", bandit(), settings, count))
    assert np.abs(np.abs(found) - GOOD).max() < 0.1
    if not changes:
        broken = actions(fit("ibc", bandit(), settings, count, fault=BACKWARDS))
        assert np.abs(np.abs(broken) - GOOD).min() > 0.1


def test_ebt_finds_the_only_way_in_two_steps() -> None:
    settings = {**EBT, "rate": 20.0}
    agent = fit("ebt", ways((GOOD,)), settings, 120)
    assert np.abs(actions(agent) - GOOD).max() < 0.1
    # With a copy that climbs in learning, plans that descend end elsewhere.
    broken = fit("ebt", ways((GOOD,)), settings, 120, fault=UPHILL)
    assert np.abs(actions(broken) - GOOD).mean() > 0.4


def test_ebt_answers_the_mean_of_two_ways_unless_descent_begins_near_one() -> None:
    mean = actions(fit("ebt", ways(), EBT, 120))
    assert np.abs(mean).max() < 0.15
    noised = {**EBT, "noised": 1.0, "sampler_steps": 24}
    found = actions(fit("ebt", ways(), noised, 250))
    assert np.mean(np.abs(found) > 0.3) > 0.75
    assert 0.2 < np.mean(found > 0) < 0.8
