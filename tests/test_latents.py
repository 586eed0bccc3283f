"""Latents of two kinds, the bound on information, and what networks with latents may see."""

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
from problems import build, inputs, small_config, walk

from offrl.datasets.segments import Segments
from offrl.latent_models import before, segment_of
from offrl.latents import Categorical, Gaussian, latents_of
from offrl.losses import contrastive_bound
from offrl.types import SegmentBatch

F = torch.float64
each = pytest.mark.parametrize("backbone", ["gpt", "mlp"])


def row(*values: float) -> torch.Tensor:
    return torch.tensor([values], dtype=F)


# -- latents --------------------------------------------------------------------------------------


def test_gaussian_by_hand() -> None:
    kind = Gaussian(2)
    q, p = row(1.0, 0.0, 0.0, math.log(2.0)), row(0.0, 0.0, 0.0, 0.0)
    z, weight = kind.draws(q, row(0.5, -1.0))
    assert z.tolist() == [[[1.5, -2.0]]] and weight.tolist() == [[1.0]]
    assert kind.draws(q, None)[0].tolist() == [[[1.0, 0.0]]]
    # 1/2 (1 + 1 - 1 - 0) and 1/2 (4 - 1) - log 2.
    assert float(kind.divergence(q, p)) == pytest.approx(0.5 + 1.5 - math.log(2.0))
    assert float(kind.divergence(q, q)) == 0.0
    torch.manual_seed(0)
    a, b = torch.randn(5, 4, dtype=F), torch.randn(5, 4, dtype=F)
    left, right = (torch.distributions.Normal(x[:, :2], x[:, 2:].exp()) for x in (a, b))
    known = torch.distributions.kl_divergence(left, right).sum(-1)
    torch.testing.assert_close(kind.divergence(a, b), known)
    assert kind.noise(7) == {"latent": (7, 2)}


def test_draws_outside_the_ball_of_the_prior_are_pulled_onto_it() -> None:
    kind = Gaussian(1)
    z, allowed = kind.candidates(row(10.0, math.log(2.0)), torch.tensor([[[1.0], [-5.0]]], dtype=F),
                                 0.95, 0.0)  # fmt: skip
    # 95 % of a normal number lie within 1.96 deviations.
    np.testing.assert_allclose(z[0, :, 0], [12.0, 10.0 - 2 * 1.959964], atol=1e-5)
    assert allowed.all()
    free, _ = kind.candidates(row(0.0, 0.0), torch.tensor([[[-50.0]]], dtype=F), 1.0, 0.0)
    assert float(free) == -50.0
    noise = torch.randn(4000, 1, 3, dtype=F, generator=torch.Generator().manual_seed(0))
    inside, _ = Gaussian(3).candidates(torch.zeros(4000, 6, dtype=F), noise, 0.8, 0.0)
    kept = (inside == noise).all(-1).double().mean()
    assert float(kept) == pytest.approx(0.8, abs=0.03)


def test_codes_by_hand() -> None:
    kind = latents_of("categorical", 3)
    q = row(0.5, 0.3, 0.2).log()
    z, weight = kind.draws(q, None)
    assert z[0].tolist() == torch.eye(3).tolist()
    np.testing.assert_allclose(weight[0], [0.5, 0.3, 0.2])
    p = row(0.25, 0.25, 0.5).log()
    expected = 0.5 * math.log(2.0) + 0.3 * math.log(1.2) + 0.2 * math.log(0.4)
    assert float(kind.divergence(q, p)) == pytest.approx(expected)
    assert kind.noise(7) == {}
    assert kind.candidates(q, None, 1.0, 0.25)[1].tolist() == [[True, True, False]]
    # The likeliest may be taken whatever is asked for.
    assert kind.candidates(q, None, 1.0, 0.9)[1].tolist() == [[True, False, False]]
    assert isinstance(kind, Categorical)


# -- the bound ------------------------------------------------------------------------------------


def test_the_bound_is_the_information_at_the_best_energy() -> None:
    """y = x of two equally likely values: log 2 nats. Half noise: by the definition."""
    for noise in (1e-12, 0.25):
        joint = torch.tensor([[0.5 - noise / 2, noise / 2], [noise / 2, 0.5 - noise / 2]], dtype=F)
        best = (joint / 0.25).log()  # log p(y | x) / p(y)
        bound = contrastive_bound(best, best[:, None, :].expand(2, 2, 2), torch.ones(2, dtype=F))
        information = (joint * (joint / 0.25).log()).sum()
        torch.testing.assert_close((joint * bound).sum(), information)
        worse = 0.7 * best
        below = contrastive_bound(worse, worse[:, None, :].expand(2, 2, 2), torch.ones(2, dtype=F))
        assert (joint * below).sum() < information
    assert contrastive_bound(row(3.0), row(3.0)[..., None], row(1.0)[..., None]).tolist() == [[0.0]]


def test_what_is_not_real_is_no_reference() -> None:
    score = row(1.0, 2.0, 900.0)
    found = contrastive_bound(torch.tensor([5.0], dtype=F), score, row(1.0, 1.0, 0.0))
    assert float(found) == pytest.approx(5.0 - math.log((math.e + math.e**2) / 2))
    assert contrastive_bound(torch.tensor([5.0], dtype=F), score, row(0.0, 0.0, 0.0)).isfinite()


# -- what networks see ----------------------------------------------------------------------------


def made(backbone: str, **changes: Any) -> tuple[Any, SegmentBatch]:
    config = small_config("doc", backbone=backbone, context=2, future=3, hold=3, **changes)
    agent, replay = build("doc", walk(6, 8), config=config)
    batch: Any = inputs(agent, replay)[0]
    return agent, batch


def changed(batch: SegmentBatch, step: int, *names: str) -> SegmentBatch:
    """With other numbers in these fields from `step` on."""
    new = {}
    for name in names:
        value = getattr(batch, name).clone()
        value[:, step:] += 3.0
        new[name] = value
    return dataclasses.replace(batch, **new)


@each
def test_nothing_of_the_future_reaches_what_acts(backbone: str) -> None:
    agent, batch = made(backbone)
    z = torch.randn(len(batch.real), 2, 3, dtype=F)
    now = 2
    h = agent.actor.history(segment_of(batch), 3)
    action = agent.actor.acts(h, z)
    past = agent.actor.planner.history(before(batch, now), 1)[:, 0]
    prior, value = agent.actor.planner.prior(past), agent.actor.planner(past, z)
    for i in range(3):
        # Of step i of the latent its observation is known, and all that came before.
        later = changed(batch, now + i, "action", "reward", "next_obs")
        later = changed(later, now + i + 1, "obs")
        again = agent.actor.acts(agent.actor.history(segment_of(later), 3), z)
        assert torch.equal(again[:, : i + 1], action[:, : i + 1])
        moved = changed(batch, now + i, "obs")
        moved = agent.actor.acts(agent.actor.history(segment_of(moved), 3), z)
        assert (moved[:, i] != action[:, i]).any()
    later = changed(changed(batch, now, "action", "reward", "next_obs"), now + 1, "obs")
    past = agent.actor.planner.history(before(later, now), 1)[:, 0]
    assert torch.equal(agent.actor.planner.prior(past), prior)
    assert torch.equal(agent.actor.planner(past, z), value)
    assert (agent.formed(later) != agent.formed(batch)).any(-1).all()


@each
def test_padding_has_no_part_in_any_loss(backbone: str) -> None:
    agent, batch = made(backbone, latents="categorical")
    gone = batch.real == 0
    assert gone[:, :2].any() and gone[:, 2:].any()
    filled = {
        name: getattr(batch, name).where(~gone[..., None], 5.0)
        for name in ("obs", "action", "next_obs")
    }
    filled["reward"] = batch.reward.where(~gone, 5.0)
    other = dataclasses.replace(batch, **filled)
    q = agent.formed(batch)
    torch.testing.assert_close(agent.formed(other), q, rtol=0, atol=1e-12)
    for loss in (agent.actor_loss, lambda b, n: agent.energy_loss(b, n, q.detach())):
        torch.testing.assert_close(loss(other, {})[0], loss(batch, {})[0], rtol=0, atol=1e-12)


@each
def test_the_policy_is_the_network_of_training(backbone: str) -> None:
    """Step by step, under the latents that it chose, it answers as on a segment of the data."""
    agent, _ = made(backbone)
    data, policy = walk(3, 8, seed=4), agent.policy()
    view: Any = agent.view(data).to(F)
    assert isinstance(view, Segments)
    obs = data.obs.reshape(3, 8, -1)
    reward = data.reward.reshape(3, 8)
    mean, std = agent.actor.reward_map
    state, actions, latents = policy.start(3), [], []
    for t in range(8):
        x = obs[:, t] * agent.obs_std.numpy() + agent.obs_mean.numpy()
        action, state = policy.act(x, state, reward[:, t - 1] if t else None)
        actions.append(action)
        latents.append(state.latent)
    for t in range(6):
        begin = t - t % 3
        rows = torch.from_numpy(data.starts + begin)
        batch = view.sample(rows)
        # Played were the policy's own actions, and observations as the network sees them.
        played = torch.zeros_like(batch.action)
        seen = torch.zeros_like(batch.obs)
        earned = torch.zeros_like(batch.reward)
        for j in range(-2, 3):
            if 0 <= begin + j < 8:
                played[:, 2 + j] = torch.from_numpy(actions[begin + j]).double()
                seen[:, 2 + j] = torch.from_numpy(obs[:, begin + j]).double()
                earned[:, 2 + j] = (torch.from_numpy(reward[:, begin + j]).double() - mean) / std
        batch = dataclasses.replace(batch, obs=seen, action=played, reward=earned)
        h = agent.actor.history(segment_of(batch), 3)
        z = torch.from_numpy(latents[t]).double()[:, None]
        expected = agent.actor.acts(h, z)[:, t - begin, 0]
        np.testing.assert_allclose(actions[t], expected.detach(), atol=1e-5)
        np.testing.assert_array_equal(latents[t], latents[begin])
