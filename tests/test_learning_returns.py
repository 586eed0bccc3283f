"""What agents that are asked for a return must learn on problems with a known answer."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from fault import Fault
from known import Step, episodes, fit
from problems import build, inputs, small_config, walk

from offrl.agent import Agent
from offrl.datasets.offline import OfflineDataset

SETTINGS: dict[str, Any] = {
    **{"context": 2, "layers": 1, "width": 16, "max_steps": 4},
    **{"lr": 3e-3, "warmup": 10, "grad_norm": 1.0, "normalize_obs": False},
}
AGENTS = {
    "dt": {**SETTINGS, "heads": 2},
    # The next observation and return are given little weight, so that few updates are enough.
    "decision_mamba": {**SETTINGS, "obs_weight": 0.01, "return_weight": 0.01, "max_share": 0.1},
}
COUNT = 160
each = pytest.mark.parametrize("agent", AGENTS)


def played(agent: Agent, target: float, obs: list[float], reward: float = 0.0) -> list[float]:
    """The actions of an episode with these observations, towards a return."""
    policy, actions = agent.policy(), []
    state = policy.start(1, target_return=target)
    for x in obs:
        action, state = policy.act(np.array([[x]]), state, [reward])
        actions.append(float(action[0, 0]))
    return actions


# -- what was asked for is what is done -----------------------------------------------------------


def paid_by_action() -> OfflineDataset:
    """One state, one step; an action pays itself, so a return says which action it takes."""
    rng = np.random.default_rng(0)
    runs = [([([1.0], float(a), float(a))], None) for a in rng.uniform(-0.8, 0.8, 300)]
    return episodes(runs, "paid by action")


@each
def test_asked_for_a_return_it_takes_the_action_that_pays_it(agent: str) -> None:
    learner: Any = fit(agent, paid_by_action(), AGENTS[agent], COUNT)
    for asked in (-0.6, 0.0, 0.6):
        assert played(learner, asked, [1.0])[0] == pytest.approx(asked, abs=0.12)
    # Unless told it asks for the best of the data.
    assert float(learner.target_return) == pytest.approx(0.8, abs=0.02)
    policy = learner.policy()
    assert policy.predict([1.0])[0] == pytest.approx(0.8, abs=0.12)
    # And divides by the largest, which the policy keeps.
    assert policy.conditioning.return_scale == pytest.approx(0.8, abs=0.02)


@each
def test_a_copy_that_does_not_see_the_return_takes_the_mean(agent: str) -> None:
    blind = Fault(
        "sequence_models.Tokens.forward", "self.to_go(steps.to_go", "self.to_go(0 * steps.to_go", ()
    )
    learner = fit(agent, paid_by_action(), AGENTS[agent], 60, fault=blind)
    for asked in (-0.6, 0.6):
        assert abs(played(learner, asked, [1.0])[0]) < 0.3


# -- what was seen is remembered ------------------------------------------------------------------


def recall() -> OfflineDataset:
    """The first observation says what to do at the second, which is the same in all episodes."""
    runs = []
    for i in range(200):
        cue = 1.0 if i % 2 else -1.0
        steps: list[Step] = [([cue], 0.0, 0.0), ([0.0], 0.5 * cue, 0.0)]
        runs.append((steps, None))
    return episodes(runs, "recall")


@each
def test_a_cue_is_remembered_step_by_step(agent: str) -> None:
    learner = fit(agent, recall(), AGENTS[agent], COUNT)
    for cue in (-1.0, 1.0):
        first, second = played(learner, 0.0, [cue, 0.0])
        assert abs(first) < 0.1 and second == pytest.approx(0.5 * cue, abs=0.1)


FORGETFUL = {
    "dt": Fault(
        "sequence_models.ReturnTransformer.forward",
        "real.flatten(1, 2)",
        "torch.zeros_like(real).flatten(1, 2)",
        (),
    ),
    "decision_mamba": Fault(
        "sequence_models.ReturnMamba.forward",
        "self._through(steps, real,",
        "self._through(Steps(*(0 * part for part in steps)), real,",
        (),
    ),
}


@each
def test_a_forgetful_copy_does_not(agent: str) -> None:
    learner: Any = fit(agent, recall(), AGENTS[agent], 60, fault=FORGETFUL[agent])
    batch: Any = learner.view(recall()).to(torch.float64).sample(torch.tensor([0, 3]))
    said = learner.actor(batch)
    second = (said if isinstance(said, torch.Tensor) else said.action)[:, 1, 0]
    assert float((second[0] - second[1]).abs().detach()) < 0.2


# -- padding --------------------------------------------------------------------------------------


@each
def test_the_loss_is_of_recorded_steps_alone(agent: str) -> None:
    learner: Any
    learner, replay = build(agent, walk(episodes=9, length=3))
    batch: Any = inputs(learner, replay)[0]
    hidden = batch.real == 0
    assert 0 < int(hidden.sum()) < hidden.numel()
    noise = torch.Generator().manual_seed(1)

    def scrambled(x: torch.Tensor) -> torch.Tensor:
        other = torch.randn(x.shape, generator=noise, dtype=x.dtype)
        return other.where(hidden.reshape(*hidden.shape, *[1] * (x.ndim - 2)), x)

    changes = {name: scrambled(getattr(batch, name)) for name in ("to_go", "obs", "action")}
    other = replace(batch, **changes, time=batch.time.where(~hidden, torch.tensor(3)))

    def goals(given: Any) -> tuple[torch.Tensor, ...]:
        return () if agent == "dt" else (learner.evolved_action(given),)

    loss = learner.actor_loss(batch, *goals(batch))[0]
    again = learner.actor_loss(other, *goals(other))[0]
    torch.testing.assert_close(again, loss, rtol=0, atol=1e-12)
    # Every recorded step counts once: the mean over steps, not over sequences.
    if agent == "dt":
        error = (learner.actor(batch) - batch.action).square().mean(-1)
        torch.testing.assert_close(loss[0], error[~hidden].mean())


# -- the regulariser of Decision Mamba ------------------------------------------------------------


def gradient(agent: Any, batch: Any, share: float) -> tuple[float, torch.Tensor]:
    agent.share.fill_(share)
    loss = agent.actor_loss(batch, agent.compute(agent.evolved_action, batch))[0].sum()
    parts = torch.autograd.grad(loss, list(agent.actor.parameters()), allow_unused=True)
    return float(loss.detach()), torch.cat([g.flatten() for g in parts if g is not None])


def mamba(**changes: Any) -> tuple[Any, Any]:
    config = small_config("decision_mamba", obs_weight=0.0, return_weight=0.0, **changes)
    agent, replay = build("decision_mamba", walk(), config=config)
    return agent, inputs(agent, replay)[0]


def test_evolution_is_more_than_a_factor_of_the_loss() -> None:
    # At first the average is the network: the error is (1 - beta) of what it was, the loss its
    # square, but the gradient only 1 - beta, since none goes through the average. A goal of the
    # learning network itself would give (1 - beta)^2 of both.
    agent, batch = mamba()
    plain, slope = gradient(agent, batch, 0.0)
    mixed, bent = gradient(agent, batch, 0.25)
    assert mixed == pytest.approx(0.75**2 * plain, rel=1e-12)
    torch.testing.assert_close(bent, 0.75 * slope, rtol=1e-9, atol=1e-12)
    # Later it differs in direction too.
    with torch.no_grad():
        for p in agent.actor_target.parameters():
            p.add_(0.1 * torch.sin(torch.arange(p.numel(), dtype=p.dtype)).reshape(p.shape))
    _, later = gradient(agent, batch, 0.25)
    cosine = torch.dot(later, slope) / (later.norm() * slope.norm())
    assert float(cosine) < 0.999


def test_the_share_grows_with_training_and_is_bounded() -> None:
    agent, _ = mamba(alpha=0.8, max_share=0.3)
    shares = []
    for step in (0, 24, 49, 99):
        agent.schedule(step, 100)
        shares.append(float(agent.share))
    assert shares == pytest.approx([0.008, 0.2, 0.3, 0.3])


def test_without_a_share_the_logged_action_is_the_goal() -> None:
    agent, batch = mamba(max_share=0.0)
    agent.schedule(50, 100)
    assert torch.equal(agent.evolved_action(batch), batch.action)
