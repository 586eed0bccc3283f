"""Preferences of segments where it is known how far they should move the policy."""

import math
from typing import Any

import pytest
import torch
from fault import Fault
from known import BAD, FAST, GOOD, action_at, column, episodes, fit
from problems import build, small_config, updates, walk

from offrl.datasets.offline import OfflineDataset

BETA = 0.5
SETTINGS: dict[str, Any] = {
    **{**FAST, "lr": 1e-2, "normalize_obs": False},
    **{"segment": 1, "beta": BETA, "clone": 0.3},
}


def bandit() -> OfflineDataset:
    """One state, two actions equally often; one pays 1, the other nothing: scores 1 and -1."""
    runs = [([([1.0], a, float(a > 0))], None) for _ in range(20) for a in (GOOD, BAD)]
    return episodes(runs, "two actions")


def gap(learner: Any) -> float:
    """D = u(good) - u(bad)."""
    obs, act = column(1.0, 1.0), column(GOOD, BAD)
    u = learner.actor(obs).log_prob(act) - learner.reference(obs).log_prob(act)
    return float((u[0] - u[1]).detach())


def phi(d: float) -> float:
    """e^u + u of the good action less that of the bad one, about a reference that is even."""
    return math.exp(d / 2) - math.exp(-d / 2) + d


# D at the minimum of the expected loss. Pairs of equal actions say nothing of it.
ANSWERS: dict[str, tuple[dict[str, Any], float]] = {
    "dpo": ({"flip": 0.2}, math.log(4.0) / BETA),
    "ipo": ({}, 1 / (2 * BETA)),
    "ipo-flipped": ({"flip": 0.2}, 0.6 / (2 * BETA)),
    "cdpo": ({"wrong": 0.2}, math.log(4.0) / BETA),
    "copg": ({}, 2 / BETA),
    "adpo": ({"temperature": 2.0}, 1 / BETA),
    "simpo": ({"flip": 0.2, "margin": 0.3}, (math.log(4.0) + 0.3) / BETA),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_the_policy_moves_as_far_as_the_loss_says(name: str) -> None:
    changes, answer = ANSWERS[name]
    learner = fit("preference", bandit(), {**SETTINGS, "loss": name.split("-")[0], **changes}, 300)
    assert abs(gap(learner) - answer) < 0.2 * answer, (gap(learner), answer)
    assert action_at(learner, 1.0) > 0.1


@pytest.mark.parametrize("loss", ["dpo", "rdpo", "chi_po", "kto"])
def test_right_labels_lead_to_the_better_action(loss: str) -> None:
    learner = fit("preference", bandit(), {**SETTINGS, "loss": loss}, 300)
    assert action_at(learner, 1.0) > 0.2 and gap(learner) > 1.0


def test_labels_that_are_wrong_half_the_time_teach_nothing() -> None:
    learner = fit("preference", bandit(), {**SETTINGS, "flip": 0.5}, 300)
    assert abs(gap(learner)) < 0.5
    assert abs(action_at(learner, 1.0)) < 0.15


def test_broken_copies_do_not_find_it() -> None:
    turned = Fault("agents.preference._in_order", ">=", "<", ())
    learner = fit("preference", bandit(), SETTINGS, 300, fault=turned)
    assert action_at(learner, 1.0) < -0.2
    kept = Fault("datasets.pairs.SegmentPairs.draw", "< self.flip", "< 0.0", ())
    learner = fit("preference", bandit(), {**SETTINGS, "flip": 0.2}, 300, fault=kept)
    assert gap(learner) > 1.3 * ANSWERS["dpo"][1]
    moving = Fault("agents.preference.Preference.schedule", "step <", "steps >", ())
    learner = fit("preference", bandit(), SETTINGS, 300, fault=moving)
    assert gap(learner) == 0.0


def test_cloning_alone_is_maximum_likelihood() -> None:
    learner: Any = fit("preference", bandit(), {**SETTINGS, "clone": 1.0}, 300)
    assert abs(action_at(learner, 1.0)) < 0.1
    assert abs(float(learner.actor.spread().detach()) - GOOD) < 0.1
    assert gap(learner) == 0.0


# With u = 0 everywhere, and no term of cloning.
START = {
    "dpo": math.log(2.0),
    "cdpo": math.log(2.0),
    "rdpo": math.log(2.0),
    "chi_po": math.log(2.0),
    "ipo": 1 / (4 * 0.1**2),
    "kto": 1.0,
    "adpo": math.log(2.0),
}


@pytest.mark.parametrize("clone", [0.0, 0.003])
@pytest.mark.parametrize("loss", START)
def test_the_policy_begins_at_the_reference(loss: str, clone: float) -> None:
    config = small_config("preference", loss=loss, clone=clone)
    agent, replay = build("preference", walk(), config=config)
    first = int(1000 * clone)
    history = updates(agent, replay, first + 2)
    assert all("clone_loss" in metrics for metrics in history[:first])
    assert float(history[first]["preference_loss"]) == pytest.approx(START[loss], rel=1e-9)
    assert float(history[first]["log_ratio"]) == 0.0
    assert float(history[first + 1]["log_ratio"]) != 0.0


def test_the_reference_is_fitted_and_then_stays() -> None:
    config = small_config("preference", clone=0.003)
    agent, replay = build("preference", walk(), config=config)
    own: Any = agent
    start = [p.clone() for p in own.reference.parameters()]
    updates(agent, replay, 3)
    fitted = [p.clone() for p in own.reference.parameters()]
    assert not any(torch.equal(p, q) for p, q in zip(start, fitted, strict=True))
    assert all(torch.equal(p, q) for p, q in zip(fitted, own.actor.parameters(), strict=True))
    updates(agent, replay, 3, start=3)
    assert all(torch.equal(p, q) for p, q in zip(fitted, own.reference.parameters(), strict=True))
    assert not any(torch.equal(p, q) for p, q in zip(fitted, own.actor.parameters(), strict=True))
