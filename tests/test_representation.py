"""BEER's bound, penalty and the rank of features, against numbers worked by hand."""

import dataclasses
import math

import pytest
import torch
from problems import ACT, OBS, build, inputs, small_config, updates, walk
from torch import Tensor

from offrl.agents import AGENTS
from offrl.critics import Critic
from offrl.networks import Learners
from offrl.optim import target_of
from offrl.representation import (
    beer_penalty,
    feature_cosine,
    feature_cosine_bound,
    representation_rank,
)
from offrl.types import Batch, Metrics


def row(*values: float) -> Tensor:
    return torch.tensor([[values]], dtype=torch.float64)


def bound(consistent: bool = False, reward: float = 2.0, **changes: Tensor) -> float:
    """phi = (3, 4), phi' = (0, 2), phi'_target = (6, 8), |w|^2 = 2, gamma = 1/2."""
    values = {
        "features": row(3.0, 4.0),
        "next_features": row(0.0, 2.0),
        "target_features": row(6.0, 8.0),
        "weight": torch.ones(1, 2, 1, dtype=torch.float64),
        **changes,
    }
    found = feature_cosine_bound(
        **values,
        reward=torch.tensor([reward], dtype=torch.float64),
        gamma=0.5,
        consistent=consistent,
    )
    assert found.shape == (1, 1)
    return float(found)


def test_the_bound_by_hand() -> None:
    # (25 + 4/4 - 4/2) / (2 * 1/2 * 5 * 10) = 24 / 50
    assert bound() == pytest.approx(0.48)
    # (25 + 100/4 - 4/2) / 50 = 48 / 50
    assert bound(consistent=True) == pytest.approx(0.96)
    # A reward that no features of these lengths could explain.
    assert bound(reward=20.0) == pytest.approx((26 - 200) / 50)


def test_the_bound_is_finite_where_features_collapse() -> None:
    zero = row(0.0, 0.0)
    for changes in ({"features": zero}, {"target_features": zero}):
        assert math.isfinite(bound(**changes))
    assert math.isfinite(bound(weight=torch.zeros(1, 2, 1, dtype=torch.float64)))


def test_the_bound_holds_where_the_bellman_equation_does() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2, 500, 6, generator=generator, dtype=torch.float64)
    following = torch.randn(2, 500, 6, generator=generator, dtype=torch.float64)
    weight = torch.randn(2, 6, 1, generator=generator, dtype=torch.float64)
    for member in range(2):
        reward = ((features - 0.9 * following) @ weight)[member, :, 0]
        one = slice(member, member + 1)
        limit = feature_cosine_bound(
            features[one], following[one], following[one], reward, weight[one], 0.9
        )
        cosine = feature_cosine(features[one], following[one])
        assert (cosine <= limit + 1e-9).all()
        # Twice the reward cannot be explained by all of them.
        strict = feature_cosine_bound(
            features[one], following[one], following[one], 2 * reward, weight[one], 0.9
        )
        assert (cosine > strict).any()


def test_the_cosine_by_hand() -> None:
    assert float(feature_cosine(row(3.0, 4.0), row(4.0, 3.0))) == pytest.approx(24 / 25)
    assert float(feature_cosine(row(0.0, 0.0), row(4.0, 3.0))) == 0.0


def test_features_of_zero_have_a_finite_gradient() -> None:
    x = row(0.0, 0.0).requires_grad_()
    feature_cosine(x, row(1.0, 2.0)).sum().backward()
    assert x.grad is not None and x.grad.isfinite().all()


def batch_of(reward: float) -> tuple[Critic, Critic, Batch]:
    agent, replay = build("iql", walk())
    batch, _ = inputs(agent, replay)
    critic = Critic(OBS, ACT, (8, 6), Learners((3,))).double()
    target = target_of(Critic(OBS, ACT, (8, 6), Learners((4,))).double())
    return critic, target, dataclasses.replace(batch, reward=reward * batch.reward)


def penalty_of(
    critic: Critic, target: Critic, batch: Batch, target_action: Tensor
) -> tuple[Tensor, Metrics]:
    """Where the policy plays at s' what was logged at s."""
    features = critic.features(batch.obs, batch.action)
    return beer_penalty(critic, target, batch, features, batch.action, target_action, 0.9)


def test_the_penalty_is_that_of_its_parts_and_only_of_what_goes_on() -> None:
    critic, target, batch = batch_of(1.0)
    penalty, measured = penalty_of(critic, target, batch, batch.next_action)
    expected = torch.zeros_like(penalty)
    for k in range(2):
        phi = critic.features(batch.obs, batch.action)[k]
        online = critic.features(batch.next_obs, batch.action)[k]
        goal = target.features(batch.next_obs, batch.next_action)[k]
        cosine = torch.cosine_similarity(phi, goal, -1)
        head = critic.head.weight[k].norm() ** 2
        limit = phi.norm(dim=-1) ** 2 + 0.81 * online.norm(dim=-1) ** 2 - batch.reward**2 / head
        limit = limit / (1.8 * phi.norm(dim=-1) * goal.norm(dim=-1))
        expected += torch.where(batch.mask > 0, (cosine - limit).clamp(min=0.0), 0.0)
        if k == 0:
            torch.testing.assert_close(measured["feature_cosine"], cosine.mean())
            torch.testing.assert_close(measured["cosine_bound"], limit.mean())
    torch.testing.assert_close(penalty, expected)
    assert (penalty[batch.mask == 0] == 0).all() and (penalty > 0).any()


def test_the_gradient_passes_through_the_current_features_alone() -> None:
    critic, target, batch = batch_of(1.0)
    penalty, _ = penalty_of(critic, target, batch, batch.next_action)
    head, first = torch.autograd.grad(
        penalty.sum(),
        [critic.head.weight, next(critic.trunk.parameters())],
        allow_unused=True,
    )
    assert head is None  # |w| stands in the bound, a constant
    assert first is not None and first.abs().sum() > 0


def test_without_reward_nothing_is_pushed_where_lengths_agree() -> None:
    # (1 + gamma^2) / (2 gamma) >= 1 >= cos.
    critic, _, batch = batch_of(0.0)
    still = dataclasses.replace(batch, next_obs=batch.obs)
    penalty, measured = penalty_of(critic, critic, still, batch.action)
    assert not penalty.detach().any()
    assert float(measured["feature_cosine"].detach()) == pytest.approx(1.0)
    assert float(measured["cosine_bound"]) == pytest.approx(1.81 / 1.8)


def test_stacked_learners_have_their_own_penalty_and_rank() -> None:
    agent, replay = build("iql", walk(), (3, 4))
    batch, _ = inputs(agent, replay)
    critic = Critic(OBS, ACT, (8, 6), Learners((3, 4))).double()
    penalty, measured = penalty_of(critic, target_of(critic), batch, batch.next_action)
    ranks = representation_rank(critic.features(batch.obs, batch.action))
    assert penalty.shape == (2, 32) and ranks.shape == (2, 2)
    for k, seed in enumerate((3, 4)):
        alone = Critic(OBS, ACT, (8, 6), Learners((seed,))).double()
        mine = Batch(**{n: v[k] for n, v in vars(batch).items()})
        expected, own = penalty_of(alone, target_of(alone), mine, mine.next_action)
        torch.testing.assert_close(penalty[k], expected, rtol=0, atol=1e-9)
        for name, value in own.items():
            torch.testing.assert_close(measured[name][k], value, rtol=0, atol=1e-9)
        mine_ranks = representation_rank(alone.features(mine.obs, mine.action))
        assert torch.equal(ranks[:, k], mine_ranks)


@pytest.mark.parametrize(
    ("sigma", "rank"),
    [
        ((1.0, 1.0, 1.0), 3),
        ((98.0, 1.5, 0.5), 2),  # 99.5 of 100
        ((99.0, 0.5, 0.5), 1),  # 99 of 100, exactly enough
        ((1.0, 0.0, 0.0), 1),
        ((0.0, 0.0, 0.0), 0),
    ],
)
def test_the_rank_by_hand(sigma: tuple[float, ...], rank: int) -> None:
    generator = torch.Generator().manual_seed(0)
    left, _ = torch.linalg.qr(torch.randn(7, 3, generator=generator, dtype=torch.float64))
    right, _ = torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=torch.float64))
    slack = 1.0 - 1e-9  # of rounding, where the threshold is met exactly
    values = torch.tensor(sigma, dtype=torch.float64) * torch.tensor([1.0, slack, slack])
    assert float(representation_rank(left @ values.diag() @ right)) == rank


@pytest.mark.parametrize("name", ["td3_bc", "iql"])
def test_agents_report_it_where_it_is_on_and_are_unchanged_where_it_is_off(name: str) -> None:
    trained = {}
    for beer in (0.0, 1e-12, 0.5):
        agent, replay = build(name, walk(), config=small_config(name, beer=beer))
        metrics = updates(agent, replay, 4)[-1] | agent.validate(inputs(agent, replay)[0])
        reported = {"feature_cosine", "cosine_bound", "feature_rank"} & metrics.keys()
        assert len(reported) == (3 if beer else 0)
        trained[beer] = agent.state_dict()
    for key, value in trained[0.0].items():
        torch.testing.assert_close(trained[1e-12][key], value, rtol=0, atol=1e-6)
    moved = "critic.trunk.net.0.weight"
    assert not torch.equal(trained[0.5][moved], trained[0.0][moved])


@pytest.mark.parametrize("name", [n for n in AGENTS if hasattr(AGENTS[n][1], "beer")])
def test_held_out_error_is_the_critics_own_whatever_the_penalty(name: str) -> None:
    measured = {}
    for beer in (0.0, 0.5):
        agent, replay = build(name, walk(), config=small_config(name, beer=beer))
        batch, noise = inputs(agent, replay)
        measured[beer] = agent.validate(batch)
        trained = agent.update(batch, noise, 0)
        assert ("td_error" in trained) == bool(beer)
        if beer:
            assert float(trained["critic_loss"]) > float(trained["td_error"]) > 0.0
    for key in ("td_error", "q", "action_error"):
        assert torch.equal(measured[0.5][key], measured[0.0][key]), key
