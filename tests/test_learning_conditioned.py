"""Policies of goals and of memories where the answer is known, and broken copies that miss it."""

from typing import Any

import numpy as np
import pytest
from fault import Fault
from known import fit
from problems import small_config

from offrl.agent import Agent
from offrl.datasets.offline import OfflineDataset

SMALL: dict[str, Any] = {"backbone": "mlp", "width": 32, "depth": 2, "lr": 5e-3}


def recorded(runs: list[tuple[list[float], list[float]]], name: str) -> OfflineDataset:
    """Episodes of one number observed, one more than there are actions."""
    return OfflineDataset.from_episodes(
        [
            {
                "obs": np.array(obs, np.float32)[:, None],
                "action": np.array(action, np.float32)[:, None],
                "reward": np.zeros(len(action), np.float32),
                "terminated": True,
                "truncated": False,
            }
            for obs, action in runs
        ],
        name=name,
    )


# -- a fork: the action decides where one arrives ------------------------------------------------


def fork() -> OfflineDataset:
    """From 0 by an action of 0.6 to 1, by one of -0.6 to -1."""
    signs = np.random.default_rng(0).choice([-1.0, 1.0], 100).tolist()
    return recorded([([0.0, s], [0.6 * s]) for s in signs], "fork")


def towards(agent: Agent, goal: float | None) -> list[float]:
    policy, n = agent.policy(), 20
    state = policy.start(n, goal=None if goal is None else [goal])
    action, _ = policy.act(np.zeros((n, 1), np.float32), state)
    found: list[float] = action[:, 0].tolist()
    return found


FORK = {**SMALL, "history": 1, "goal_length": 1, "goal_dropout": 0.3, "lr_decay": 1.0}
FORK |= {"normalize": "minmax", "ema": 0.9, "sigma_max": 3.0, "spacing": "karras"}
FORK |= {"sampler_steps": 10}  # of three, the spread of two ways would be too small


@pytest.fixture(scope="module")
def chooser() -> Agent:
    return fit("beso", fork(), FORK, 500)


def test_beso_goes_where_it_is_asked(chooser: Agent) -> None:
    np.testing.assert_allclose(towards(chooser, 1.0), 0.6, atol=0.15)
    np.testing.assert_allclose(towards(chooser, -1.0), -0.6, atol=0.15)


def test_beso_without_a_goal_goes_either_way(chooser: Agent) -> None:
    found = np.array(towards(chooser, None))
    assert 4 <= (found > 0.3).sum() <= 16 and 4 <= (found < -0.3).sum() <= 16


def test_a_goal_turned_around_in_training_leads_astray() -> None:
    turned = Fault("agents.beso.BESO._error", "batch.goal,", "-batch.goal,", ())
    broken = fit("beso", fork(), FORK, 500, fault=turned)
    assert np.mean(towards(broken, 1.0)) < -0.4


# -- a task of memory: what was shown first is to be done last ------------------------------------


def cued(count: int = 60) -> OfflineDataset:
    """Shown is 1 or -1, then nothing; half of it is done twice, and then the whole."""
    signs = np.random.default_rng(0).choice([-1.0, 1.0], count).tolist()
    return recorded([([s, 0.0, 0.0, 0.0], [0.4 * s, 0.4 * s, 0.8 * s]) for s in signs], "cued")


MEMORY = {**SMALL, "history": 3, "horizon": 3, "execute": 1, "warmup": 1, "ema_max": 0.9}
MEMORY |= {"levels": 20, "sampler_steps": 20, "weight_decay": 0.0}


def play(agent: Agent, first: list[float], steps: int = 3) -> np.ndarray[Any, Any]:
    """Actions (steps, episodes) where nothing is shown but at first."""
    policy = agent.policy()
    state, obs, actions = policy.start(len(first)), np.array(first, np.float32)[:, None], []
    for _ in range(steps):
        action, state = policy.act(obs, state)
        actions.append(action[:, 0])
        obs = np.zeros_like(obs)
    return np.stack(actions)


def test_ptp_does_last_what_was_shown_first() -> None:
    signs = np.array([1.0, -1.0] * 5)
    agent = fit("ptp", cued(), MEMORY, 400)
    found = play(agent, signs.tolist()) * signs
    np.testing.assert_allclose(found.mean(1), [0.4, 0.4, 0.8], atol=0.1)
    # The newest action out of the loss, which then never learned what to do.
    lost = Fault("agents.ptp.PTP._error", "past.new_ones(batch", "0 * past.new_ones(batch", ())
    broken = fit("ptp", cued(), MEMORY, 400, fault=lost)
    assert np.abs(play(broken, signs.tolist()) * signs - found).max() > 0.3


# -- a habit: nothing is shown at all, and what is begun is gone on with --------------------------


def habits(count: int = 60) -> OfflineDataset:
    """0.6 five times, or -0.6 five times, and nothing to see."""
    signs = np.random.default_rng(0).choice([-1.0, 1.0], count).tolist()
    return recorded([([0.0] * 6, [0.6 * s] * 5) for s in signs], "habits")


def test_verification_goes_on_with_what_was_begun() -> None:
    agent: Any = fit("ptp", habits(), {**MEMORY, "width": 64}, 800)
    blind = play(agent, [0.0] * 24, 5)
    agent.config = small_config("ptp", **{**MEMORY, "samples": 8})
    verified = play(agent, [0.0] * 24, 5)

    def kept(actions: np.ndarray[Any, Any]) -> float:
        return float((np.sign(actions) == np.sign(actions[0])).all(0).mean())

    # Each plan by itself takes either way: one in 16 keeps its sign. Of eight plans, one that
    # agrees with what was done is missing with a probability of 1 in 256.
    assert kept(blind) < 0.5 and kept(verified) > 0.85
    assert 4 <= (verified[0] > 0).sum() <= 20
