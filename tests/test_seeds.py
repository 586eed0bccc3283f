"""Several learners at once are the same learners alone."""

from pathlib import Path

import numpy as np
import pytest
import torch
from problems import build, feed_of, stackable, updates, walk

from offrl import checkpoints
from offrl.agents import AGENTS
from offrl.networks import learner_view
from offrl.policy import PlanPolicy
from offrl.types import Batch

NAMES = sorted(filter(stackable, AGENTS))  # the others: tests/test_looped.py
SEEDS = (5, 6, 9)


@pytest.mark.parametrize("name", NAMES)
def test_first_weights_batches_and_noise_are_the_same_numbers(name: str) -> None:
    stacked, replay = build(name, walk(), SEEDS)
    batch, noise = feed_of(stacked, replay).at(70)
    for k, seed in enumerate(SEEDS):
        alone, own = build(name, walk(), (seed,))
        mine = {key: e.of(k) for key, e in checkpoints.agent_entries(stacked).items()}
        for key, entry in checkpoints.agent_entries(alone).items():
            assert torch.equal(mine[key], entry.of(0)), key
        single_batch, single_noise = feed_of(alone, own).at(70)
        for field in vars(batch):
            assert torch.equal(getattr(batch, field)[k], getattr(single_batch, field)), field
        assert noise.keys() == single_noise.keys()
        assert all(torch.equal(noise[key][k], single_noise[key]) for key in noise)


@pytest.mark.parametrize("name", NAMES)
def test_parameters_agree_after_100_updates(name: str) -> None:
    stacked, replay = build(name, walk(), SEEDS)
    updates(stacked, replay, 100)
    for k, seed in enumerate(SEEDS):
        alone, own = build(name, walk(), (seed,))
        updates(alone, own, 100)
        mine = {key: e.of(k) for key, e in checkpoints.agent_entries(stacked).items()}
        for key, entry in checkpoints.agent_entries(alone).items():
            # Means of squared gradients may be large; parameters are not.
            rtol = 1e-9 if key.endswith("exp_avg_sq") else 0.0
            torch.testing.assert_close(
                mine[key], entry.of(0), rtol=rtol, atol=1e-9, msg=lambda m, key=key: f"{key}: {m}"
            )


@pytest.mark.parametrize("name", NAMES)
def test_a_learners_policy_is_its_slice(name: str) -> None:
    stacked, replay = build(name, walk(), SEEDS)
    updates(stacked, replay, 4)
    batch, _ = feed_of(stacked, replay).at(0)
    if isinstance(stacked.policy(), PlanPolicy):
        obs = (batch.obs[0] if isinstance(batch, Batch) else batch.obs[0, :, -1]).numpy()
        for k, seed in enumerate(SEEDS):
            alone, own = build(name, walk(), (seed,))
            updates(alone, own, 4)
            expected = alone.policy().predict(obs)
            np.testing.assert_allclose(stacked.policy(k).predict(obs), expected, rtol=0, atol=1e-6)
        return
    obs = batch.obs.flatten(1, -2)
    together = stacked.mode(obs)
    for k in range(len(SEEDS)):
        actor = learner_view(stacked.actor, k)
        torch.testing.assert_close(actor.mode(obs[k]), together[k], rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_one_learner_of_a_stack_goes_on_alone(name: str, tmp_path: Path) -> None:
    stacked, replay = build(name, walk(), SEEDS)
    updates(stacked, replay, 10)
    folders = [tmp_path / str(s) for s in SEEDS]
    entries = checkpoints.agent_entries(stacked)
    checkpoints.save(folders, 10, entries, [{} for _ in SEEDS], keep=1)
    updates(stacked, replay, 10, start=10)

    alone, own = build(name, walk(), (SEEDS[1],))
    checkpoints.load(folders[1:2], 10, checkpoints.agent_entries(alone))
    updates(alone, own, 10, start=10)
    mine = {key: e.of(1) for key, e in checkpoints.agent_entries(stacked).items()}
    for key, entry in checkpoints.agent_entries(alone).items():
        torch.testing.assert_close(mine[key], entry.of(0), rtol=0, atol=1e-9)
