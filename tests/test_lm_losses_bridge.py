"""A robot's policy learns from preferences between trajectories by language-model losses."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from offrl.actors import GaussianActor
from offrl.lm.losses.contrast import chi_po, dpo, rdpo
from offrl.lm.losses.lists import adpo, boltzmann, copg_square
from offrl.lm.losses.scores import Scores
from offrl.lm.losses.unary import kto, kto_baseline
from offrl.networks import Learners

SEEDS, BATCH, STEPS = (3, 4, 5), 32, 4


def draw(seed: int, shape: tuple[int, ...]) -> Tensor:
    """One stream per seed, so that a learner sees the same data alone and in a stack."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).double()


def best(obs: Tensor) -> Tensor:
    return 0.6 + 0.2 * obs[..., :1].tanh()


def segments(seeds: tuple[int, ...], where: int) -> tuple[Tensor, Tensor]:
    """Observations and actions of BATCH segments for each learner; lengths are STEPS or less."""
    obs = torch.stack([draw(10 * s + where, (BATCH, STEPS, 2)) for s in seeds])
    act = torch.stack([draw(10 * s + where + 1, (BATCH, STEPS, 1)) for s in seeds]) * 0.5
    return (obs, act) if len(seeds) > 1 else (obs[0], act[0])


def logp(actor: GaussianActor, obs: Tensor, act: Tensor) -> Tensor:
    flat = actor(obs.flatten(-3, -2)).log_prob(act.flatten(-3, -2))
    return flat.unflatten(-1, act.shape[-3:-1])


def returns(obs: Tensor, act: Tensor, mask: Tensor) -> Tensor:
    return -((act - best(obs)).square().sum(-1) * mask).sum(-1)


def pick(keep: Tensor, x: Tensor, y: Tensor) -> Tensor:
    return x.where(keep.reshape(*keep.shape, *[1] * (x.ndim - keep.ndim)), y)


def train(
    seeds: tuple[int, ...], name: str, updates: int = 15, sign: float = 1.0
) -> tuple[Tensor, Tensor]:
    """The actor's mean error of each learner before and after, and its parameters in one row."""
    actor = GaussianActor(2, 1, (16,), Learners(seeds)).double()
    reference = copy.deepcopy(actor)
    optimiser = torch.optim.Adam(actor.parameters(), lr=6e-3)
    mask = (torch.arange(STEPS) < torch.tensor([[STEPS], [2]]).repeat(BATCH // 2, 1)).double()
    one, two = segments(seeds, 0), segments(seeds, 5)
    mask = mask.expand(one[1].shape[:-1])
    rewards = sign * torch.stack([returns(*x, mask) for x in (one, two)], -1)
    prefer = rewards[..., 0] > rewards[..., 1]
    chosen = [pick(prefer, x, y) for x, y in zip(one, two, strict=True)]
    rejected = [pick(prefer, y, x) for x, y in zip(one, two, strict=True)]

    def score(data: list[Tensor] | tuple[Tensor, Tensor]) -> Scores:
        obs, act = data
        return Scores(logp(actor, obs, act), logp(reference, obs, act).detach(), mask)

    def group() -> Scores:
        a, b = score(one), score(two)
        assert a.ref_logp is not None and b.ref_logp is not None
        return Scores(
            torch.stack([a.logp, b.logp], -2),
            torch.stack([a.ref_logp, b.ref_logp], -2),
            torch.stack([mask, mask], -2),
        )

    def loss() -> Tensor:
        if name == "adpo":
            return adpo(group(), boltzmann(rewards, temperature=0.2), tau=2.0)
        if name == "copg":
            return copg_square(group(), rewards, beta=0.2)
        if name == "kto":
            first, second = score(one), score(two)
            z = kto_baseline(Scores(first.logp, first.ref_logp, mask))
            return kto(first, prefer, baseline=z, beta=0.5) + kto(
                second, ~prefer, baseline=z, beta=0.5
            )
        pair = {"dpo": dpo, "chi_po": chi_po}[name]
        return pair(score(chosen), score(rejected), beta=0.5)

    def error() -> Tensor:
        obs, _ = segments(seeds, 20)
        flat = obs.flatten(-3, -2)
        return (actor(flat).mean - best(flat)).square().mean((-2, -1)).detach()

    before = error()
    for _ in range(updates):
        optimiser.zero_grad()
        loss().mean(-1).sum().backward()
        optimiser.step()
    return before, error()


@pytest.mark.parametrize("name", ["dpo", "chi_po", "kto", "adpo", "copg"])
def test_preferences_alone_bring_the_policy_to_better_actions(name: str) -> None:
    before, after = train(SEEDS, name)
    assert (after < 0.5 * before).all(), (before, after)


def test_turned_labels_lead_away() -> None:
    before, after = train(SEEDS, "dpo", sign=-1.0)
    assert (after > before).all()


@pytest.mark.parametrize("name", ["kto", "adpo"])
def test_learners_in_a_stack_learn_as_each_would_alone(name: str) -> None:
    stacked = train(SEEDS, name, updates=5)[1]
    alone = torch.stack([train((seed,), name, updates=5)[1] for seed in SEEDS])
    torch.testing.assert_close(stacked, alone, rtol=1e-9, atol=1e-9)


@pytest.mark.compiled
def test_losses_can_be_lifted_into_one_graph() -> None:
    """No branch on a tensor's value, no transfer: value and gradient as when run line by line."""
    pair, ref = [draw(0, (4, 5)), draw(1, (4, 5))], draw(2, (4, 2, 5))
    mask, rewards = torch.ones(4, 2, 5), draw(3, (4, 2))

    def loss(both: Scores, one: Scores, two: Scores) -> Tensor:
        listed = copg_square(both, rewards, beta=0.2)
        return (listed + rdpo(one, two) + chi_po(one, two)).mean()

    def value_and_gradients(f: Callable[..., Tensor]) -> tuple[Tensor, ...]:
        leaves = [x.clone().requires_grad_() for x in (torch.stack(pair, 1), *pair)]
        singles = [Scores(leaves[i + 1], ref[:, i], mask[:, i]) for i in range(2)]
        value = f(Scores(leaves[0], ref, mask), *singles)
        return value.detach(), *torch.autograd.grad(value, leaves)

    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    found, expected = value_and_gradients(compiled), value_and_gradients(loss)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
