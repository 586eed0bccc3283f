"""RIQL where a few rewards are wildly wrong, and where it is IQL."""

from typing import Any

import numpy as np
import pytest
import torch
from fault import Fault
from known import BAD, FAST, GOOD, action_at, episodes, fit
from problems import build, inputs, small_config, walk

from offrl.datasets.offline import OfflineDataset

RIQL: dict[str, Any] = {
    **FAST,
    "polyak": 0.05,
    "normalize_obs": False,
    "actor_schedule": "constant",
    "beta": 10.0,
    "sigma": 3.0,
    "critics": 3,
}
IQL: dict[str, Any] = {
    **FAST,
    "polyak": 0.05,
    "reward_by_return_range": False,
    "actor_schedule": "constant",
    "beta": 10.0,
}


def tempting_bandit() -> OfflineDataset:
    """One state, one step. Good actions pay 1. Bad ones pay 0, but one log in ten says 30.

    The mean of what bad actions seem to pay is 3, their median 0: who fits the mean prefers them,
    who fits something near the median does not.
    """
    rng = np.random.default_rng(0)
    runs = []
    for i in range(200):
        good = i % 2 == 0
        action = float((GOOD if good else BAD) + rng.uniform(-0.05, 0.05))
        reward = 1.0 if good else 30.0 if i % 20 == 1 else 0.0
        runs.append(([([1.0], action, reward)], None))
    return episodes(runs, "tempting bandit")


def test_a_few_false_rewards_tempt_iql_and_not_riql() -> None:
    data = tempting_bandit()
    # The bad actions' loss is least where it pulls up with 0.1 and down with 0.9: for errors
    # below 1 / sigma^2 = 1/9 the pull down is 9 q, so at q = 1/81, which is below 1.
    assert action_at(fit("riql", data, RIQL, 400), 1.0) > 0.5
    assert action_at(fit("iql", data, IQL, 400), 1.0) < 0.0


def test_without_its_threshold_riql_is_tempted_too() -> None:
    squared = Fault("losses.huber_loss", ".where(size < 1.0 / sigma**2, linear)", "", ())
    data = tempting_bandit()
    assert action_at(fit("riql", data, RIQL, 400, fault=squared), 1.0) < 0.0
    # And with a threshold of 400, which no error reaches.
    assert action_at(fit("riql", data, {**RIQL, "sigma": 0.05}, 400), 1.0) < 0.0


def test_riql_without_what_makes_it_robust_is_iql() -> None:
    # K = 2, quantile 0 and a threshold that no error reaches: the same value loss, and the same
    # loss of the critics times sigma^2 / 2, over the mean of two instead of their sum.
    sigma, data = 0.01, walk()
    iql, replay = build("iql", data, config=small_config("iql", reward_by_return_range=False))
    settings = {"sigma": sigma, "critics": 2, "quantile": 0.0, "normalize_obs": False}
    settings |= {"target_min": -1e9, "target_max": 1e9}
    riql, _ = build("riql", data, config=small_config("riql", **settings))
    for name in ("critic", "critic_target", "value"):
        getattr(riql, name).load_state_dict(getattr(iql, name).state_dict())
    batch, _ = inputs(iql, replay)
    a: Any = iql
    b: Any = riql
    q = a.target_q(batch)
    torch.testing.assert_close(b.target_q(batch), q)
    torch.testing.assert_close(b.value_loss(batch, q)[0], a.value_loss(batch, q)[0])
    ours, theirs = b.critic_loss(batch, b.target(batch))[0], a.critic_loss(batch)[0]
    torch.testing.assert_close(ours, theirs * sigma**2 / 4)


@pytest.mark.parametrize(("level", "side"), [(0.0, "amin"), (1.0, "amax")])
def test_the_ends_of_the_quantile_are_least_and_greatest_critic(level: float, side: str) -> None:
    agent, replay = build("riql", walk(), config=small_config("riql", quantile=level))
    batch, _ = inputs(agent, replay)
    riql: Any = agent
    every = riql.critic_target(batch.obs, batch.action)
    assert len(every) == 5
    assert torch.equal(riql.target_q(batch), getattr(every, side)(0))


def test_targets_are_cut_to_their_range() -> None:
    config = small_config("riql", target_min=-0.5, target_max=0.25)
    agent, replay = build("riql", walk(), config=config)
    batch, _ = inputs(agent, replay)
    riql: Any = agent
    target = riql.target(batch)
    assert target.min() == -0.5 and target.max() == 0.25


def test_normalisation_is_of_what_was_seen_and_of_what_followed() -> None:
    data = walk()
    agent, _ = build("riql", data)
    rows = data.transition_rows()
    both = np.concatenate([data.rows[rows, :3], data.rows[rows + 1, :3]]).astype(np.float64)
    np.testing.assert_allclose(agent.obs_mean.numpy(), both.mean(0), rtol=1e-6)
    np.testing.assert_allclose(agent.obs_std.numpy(), both.std(0) + 1e-3, rtol=1e-6)
