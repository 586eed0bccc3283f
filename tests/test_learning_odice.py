"""ODICE on problems with known answers, its limits, and imitation where cloning gives the mean."""

from typing import Any

import numpy as np
import pytest
import torch
from fault import Fault
from known import FAST, FLIPPED, GAMMA, action_at, bandit, chain, episodes, fit
from problems import build, inputs, small_config, updates, walk
from torch import Tensor

from offrl.agent import Agent
from offrl.datasets.offline import OfflineDataset
from offrl.dice import merged_gradient
from offrl.optim import parameters_of

DICE: dict[str, Any] = {
    **FAST,
    "actor_hidden": (24, 24),
    "polyak": 0.05,
    "layer_norm": False,
    "weight_decay": 0.0,
}
RL = {**DICE, "reward_by_return_range": False}


def values(agent: Agent, states: int) -> list[float]:
    value: Any = agent.value
    found: list[float] = value(torch.eye(states, dtype=torch.float64)).mean(0).tolist()
    return found


@pytest.mark.parametrize(("scale", "expected"), [(2.0, 5 / 3), (10.0, 28 / 3)])
def test_the_value_of_a_bandit_and_the_action_that_pays(scale: float, expected: float) -> None:
    # Least (1 - l) V + l E f*(r - V): E max((r - V) / 2 + 1, 0) = (1 - l) / l = 2/3 at l = 0.6.
    # Rewards 0 and 2: both count, 1 - V = -2/3. 0 and 10: one does, ((10 - V) / 2 + 1) / 2 = 2/3.
    settings = {**RL, "dual_weight": 0.6, "reward_scale": scale}
    learner = fit("odice", bandit(), settings, 300)
    assert values(learner, 1)[0] == pytest.approx(expected, abs=0.25)
    assert action_at(learner, 1.0) > 0.4
    broken = fit("odice", bandit(), settings, 300, fault=FLIPPED)
    assert action_at(broken, 1.0) < 0.0


@pytest.mark.parametrize("gradient", ["semi", "orthogonal"])
def test_the_values_of_a_chain(gradient: str) -> None:
    # Where a state has one transition, its residual is 2 ((1 - l) / l - 1) = -2/3 by the forward
    # gradient alone: V(second) = 2 + 2/3, V(first) = 1 + 0.8 V(second) + 2/3, and V(third) =
    # (1 + 2/3) / (1 - 0.8). What the backward one adds shifts these, and keeps their order.
    settings = {**RL, "dual_weight": 0.6, "gamma": GAMMA, "polyak": 0.1, "lr": 1e-2}
    settings |= {"gradient": gradient, "eta": 0.2}
    found = values(fit("odice", chain(), settings, 600), 3)
    second, first, third = 8 / 3, 1 + 0.8 * 8 / 3 + 2 / 3, 5 / 0.6
    tolerance = 0.4 if gradient == "semi" else 2.0
    assert found == pytest.approx([first, second, third], abs=tolerance)
    assert found[1] < found[0] < found[2]
    if gradient == "semi":
        unmasked = Fault("losses.td_target", "gamma * mask * next_value", "gamma * next_value", ())
        broken = values(fit("odice", chain(), settings, 600, fault=unmasked), 3)
        assert abs(broken[1] - second) > 1.0


def fork() -> OfflineDataset:
    """At first both actions pay nothing; one leads to a state that pays 5, one to a poor state."""
    rng = np.random.default_rng(0)
    first, rich, poor = np.eye(3).tolist()
    runs: list[Any] = []
    for i in range(80):
        near, then = 0.05 * float(rng.uniform(-1, 1)), float(rng.uniform(-1, 1))
        turn, state, pay = (0.6, rich, 5.0) if i % 2 else (-0.6, poor, 0.0)
        runs.append(([(first, turn + near, 0.0), (state, then, pay)], None))
    return episodes(runs, "fork")


@pytest.mark.parametrize("gradient", ["orthogonal", "semi", "true"])
def test_what_is_paid_later_decides_now(gradient: str) -> None:
    settings = {**RL, "dual_weight": 0.5, "gradient": gradient, "gamma": 0.9}
    learner = fit("odice", fork(), settings, 400)
    assert action_at(learner, 1.0, 0.0, 0.0) > 0.4
    if gradient == "orthogonal":
        blind = Fault("dice._target", "agent.config.gamma", "0.0", ())
        broken = fit("odice", fork(), settings, 400, fault=blind)
        assert action_at(broken, 1.0, 0.0, 0.0) < 0.3


# -- limits ---------------------------------------------------------------------------------------


def state_after(count: int, **changes: Any) -> tuple[dict[str, Tensor], list[dict[str, Tensor]]]:
    agent, replay = build("odice", walk(), (0, 1), config=small_config("odice", **changes))
    metrics = updates(agent, replay, count)
    return agent.state_dict(), metrics


def test_no_backward_gradient_is_the_semi_gradient() -> None:
    none, semi = state_after(20, eta=0.0), state_after(20, gradient="semi", eta=0.7)
    for key, value in semi[0].items():
        torch.testing.assert_close(none[0][key], value, rtol=0, atol=1e-12)
    for ours, theirs in zip(none[1], semi[1], strict=True):
        assert ours.keys() == theirs.keys()
        for key in ours:
            torch.testing.assert_close(ours[key], theirs[key], rtol=0, atol=1e-12)
    other, _ = state_after(20, eta=0.7)
    assert not torch.equal(other["value.net.0.weight"], semi[0]["value.net.0.weight"])


def gradients(gradient: str, seeds: tuple[int, ...] = (0,)) -> list[list[Tensor]]:
    """Of each loss of the values at the first weights, where targets and networks are equal."""
    config = small_config("odice", gradient=gradient, eta=1.0, twin=False)
    agent, replay = build("odice", walk(), seeds, config=config)
    batch, _ = inputs(agent, replay)
    losses, _ = agent.value_loss(batch)  # type: ignore[operator]
    parameters = parameters_of(agent.optimizers()["value"])
    return [list(torch.autograd.grad(x.sum(), parameters, retain_graph=True)) for x in losses]


def test_forward_and_backward_are_the_two_halves_of_the_true_gradient() -> None:
    _, forward, backward = gradients("orthogonal")
    _, whole = gradients("true")
    for f, b, t in zip(forward, backward, whole, strict=True):
        torch.testing.assert_close(f + b, t, rtol=0, atol=1e-12)
        assert b.abs().max() > 0


def test_what_is_added_to_the_forward_gradient_is_orthogonal_to_it() -> None:
    linear, forward, backward = gradients("orthogonal", (0, 1))
    merged = merged_gradient([linear, forward, backward], [1] * len(linear))
    for k in range(2):
        flat = [
            torch.cat([x[:, k].flatten() for x in part])
            for part in (linear, forward, backward, list(merged))
        ]
        added = flat[3] - flat[0] - flat[1]
        size = added.norm() * flat[1].norm()
        assert (added @ flat[1]).abs() / size < 1e-10
        assert (flat[2] @ flat[1]).abs() / size > 1e-3


def test_a_high_lambda_starves_the_policy_and_the_metrics_say_so() -> None:
    # Rewards 0 and 1 at l = 0.6: V = 1/2 + 2/3, and no residual is positive.
    settings = {**RL, "dual_weight": 0.6}
    learner, replay = build("odice", bandit(), config=small_config("odice", **settings))
    shares = [float(m["weighted_share"]) for m in updates(learner, replay, 300)]
    assert shares[0] > 0.4 and shares[-1] == 0.0


# -- imitation ------------------------------------------------------------------------------------

AMPLITUDE = 0.6


def signs() -> OfflineDataset:
    """The expert acts by the sign of its state, others by a coin; rewards mark the expert."""
    rng = np.random.default_rng(0)
    runs: list[Any] = []
    for e in range(21):
        expert = e == 20
        s = rng.uniform(-1, 1, 7)
        coin = np.ones(6) if expert else np.where(rng.random(6) < 0.5, 1.0, -1.0)
        action = AMPLITUDE * coin * np.sign(s[:-1])
        steps = [([float(x)], float(a), float(expert)) for x, a in zip(s, action, strict=False)]
        runs.append((steps, [float(s[-1])]))
    return episodes(runs, "signs")


IL: dict[str, Any] = {
    **DICE,
    "discriminator_lr": 3e-3,
    "gamma": 0.5,
    "penalty": 1.0,
    "normalize_obs": False,
}
TURNED = Fault(
    "discriminators.discrimination_loss",
    "softplus(-expert_logit) + softplus(mixture_logit)",
    "softplus(expert_logit) + softplus(-mixture_logit)",
    (),
)


def test_one_expert_episode_among_coins_is_imitated_where_cloning_gives_the_mean() -> None:
    data = signs()
    cloned = fit("bc", data, {**FAST, "normalize_obs": False}, 400)
    imitated = fit("odice_il", data, IL, 400)
    for state in (-0.7, 0.7):
        assert abs(action_at(cloned, state)) < 0.35
        assert action_at(imitated, state) * np.sign(state) > 0.4
    broken = fit("odice_il", data, IL, 400, fault=TURNED)
    assert action_at(broken, 0.7) < 0.2 and action_at(broken, -0.7) > -0.2


def test_the_expert_alone_is_cloned() -> None:
    learner = fit("odice_il", signs(), {**IL, "mixed": False, "dual_weight": 0.4}, 400)
    for state in (-0.7, 0.7):
        assert action_at(learner, state) * np.sign(state) > 0.4


def astray() -> OfflineDataset:
    """A state where the expert never is: one action stays in it, the other ends the episode."""
    rng = np.random.default_rng(0)
    home, away = np.eye(2).tolist()
    runs: list[Any] = [([(home, AMPLITUDE, 1.0)] * 20, home)]
    for i in range(40):
        steps = [(away, AMPLITUDE + 0.05 * float(rng.uniform(-1, 1)), 0.0) for _ in range(4)]
        if i % 2:
            runs.append((steps, away))
        else:
            runs.append(([*steps[:1], (away, -AMPLITUDE, 0.0)], None))
    return episodes(runs, "astray")


def test_ending_is_no_way_out_of_where_the_expert_never_is() -> None:
    settings = {**IL, "gamma": 0.9}
    assert action_at(fit("odice_il", astray(), settings, 400), 0.0, 1.0) > 0.3
    worth_nothing = Fault(
        "agents.odice_il.ODICEIL.log_ratio", "* self.end_value", "* 0.0 * self.end_value", ()
    )
    broken = fit("odice_il", astray(), settings, 400, fault=worth_nothing)
    assert action_at(broken, 0.0, 1.0) < 0.2
