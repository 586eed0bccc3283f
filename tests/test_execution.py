"""Plans carried out one action at a time: by hand, slot by slot, and from a file."""

import dataclasses
import json
import math
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from problems import Drift, walk
from torch import Tensor, nn

from offrl import runtime
from offrl.agent import Agent
from offrl.datasets.offline import OfflineDataset, Spec
from offrl.datasets.windows import Goals, Windows, windows
from offrl.errors import ConfigError, DataError, RunError
from offrl.evaluation import evaluate
from offrl.execution import Execution, due, ensembled, next_action, real_of
from offrl.experiment import train
from offrl.networks import Learners, Linear, Stacked, learner_view
from offrl.optim import adam
from offrl.policy import PlanPolicy, Policy, load_policy
from offrl.policy_base import _ADVANCE, MOST_NOISE
from offrl.streams import Stream
from offrl.types import Context, GoalBatch, Metrics, Noise

F32 = NDArray[np.float32]
SPEC = Spec((-math.inf,) * 2, (math.inf,) * 2, (-2.0, 0.0), (2.0, 1.0))
MEAN, STD = [1.0, -2.0], [2.0, 0.5]


class Net(nn.Module):
    """A linear plan of all that is known, plus a tenth of its noise."""

    def __init__(
        self, obs_dim: int, act_dim: int, history: int, horizon: int, goal: int, size: int
    ) -> None:
        super().__init__()
        self.arguments = dict(
            obs_dim=obs_dim, act_dim=act_dim, history=history, horizon=horizon, goal=goal, size=size
        )
        self.shape = horizon, act_dim
        known = history * (obs_dim + 1) + (history - 1) * (act_dim + 1) + goal * size + 1
        self.layer = Linear(known, horizon * act_dim, Learners())
        self.seen: list[Context] = []

    def plan(self, context: Context, noise: Noise) -> Tensor:
        self.seen.append(context)
        parts = [getattr(context, f.name).flatten(1) for f in dataclasses.fields(context)[:-1]]
        known = torch.cat([*parts, context.goal_real[:, None]], 1)
        mean = torch.tanh(self.layer(known)).unflatten(1, self.shape)
        return mean + 0.1 * noise["a"] + 0.1 * noise["b"][:, None]

    def noise(self) -> dict[str, tuple[int, ...]]:
        return {"a": self.shape, "b": self.shape[1:]}

    def spec(self) -> dict[str, Any]:
        return {"type": "Net", **self.arguments}


class Clock(nn.Module):
    """Plan number c, made when the last observation is c, says (c + j / 100) / 100 for step j."""

    def __init__(self, horizon: int, history: int = 1) -> None:
        super().__init__()
        self.horizon, self.history = horizon, history
        self.one = nn.Parameter(torch.ones(1))
        self.seen: list[Context] = []

    def plan(self, context: Context, noise: Noise) -> Tensor:
        assert noise == {}
        self.seen.append(context)
        ahead = torch.arange(self.horizon) - (self.history - 1)
        said = (context.obs[:, -1, :1] + ahead / 100) / 100
        return said[..., None] * self.one

    def noise(self) -> dict[str, tuple[int, ...]]:
        return {}

    def spec(self) -> dict[str, Any]:
        return {"type": "Clock"}


def clocked(execution: Execution) -> tuple[PlanPolicy, Clock]:
    actor = Clock(execution.horizon, execution.history)
    return PlanPolicy(actor, Spec.unbounded(1, 1), execution=execution), actor


def played(policy: PlanPolicy, observations: Sequence[float]) -> list[float]:
    """A hundred times each action of one episode."""
    state, actions = policy.start(1), []
    for o in observations:
        action, state = policy.act(np.full((1, 1), o, np.float32), state)
        actions.append(float(action[0, 0]) * 100)
    return actions


def net_policy(execution: Execution, size: int = 2, spec: Spec = SPEC, seed: int = 0) -> PlanPolicy:
    e, o = execution, len(spec.obs_low)
    actor = Net(o, len(spec.action_low), e.history, e.horizon, e.goal, size)
    mean, std = (MEAN, STD) if o == 2 else (None, None)
    return PlanPolicy(actor, spec, mean, std, {"agent": "net"}, seed, execution=e)


RECEDING = Execution(horizon=6, history=2, execute=3)
ENSEMBLED = Execution(horizon=5, history=2, ensemble=0.3)
ZERO = Execution(horizon=6, history=3, execute=2, pad="zero", goal=2)


# -- receding horizon -----------------------------------------------------------------------------


def test_a_plan_is_carried_out_from_now_on_and_then_renewed() -> None:
    policy, actor = clocked(Execution(horizon=4, history=2, execute=3))
    actions = played(policy, range(1, 8))
    np.testing.assert_allclose(actions, [1.0, 1.01, 1.02, 4.0, 4.01, 4.02, 7.0], atol=1e-4)
    assert len(actor.seen) == 3


def test_what_is_seen_is_normalised_repeated_at_first_and_newest_last() -> None:
    policy = net_policy(Execution(horizon=4, history=3))
    state = policy.start(1)
    for o in ([3.0, -2.0], [5.0, -1.5], [7.0, -1.0], [9.0, -0.5]):
        _, state = policy.act(np.array([o]), state)
    seen = [context.obs[0].tolist() for context in policy.actor.seen]
    a, b, c, d = [1.0, 0.0], [2.0, 1.0], [3.0, 2.0], [4.0, 3.0]  # ([3, -2] - mean) / std, ...
    assert seen == [[a, a, a], [a, a, b], [a, b, c], [b, c, d]]
    real = [context.obs_real[0].tolist() for context in policy.actor.seen]
    assert real == [[0, 0, 1], [0, 1, 1], [1, 1, 1], [1, 1, 1]]
    zero = net_policy(Execution(horizon=4, history=3, pad="zero"))
    _, state = zero.act(np.array([[3.0, -2.0]]), zero.start(1))
    zero.act(np.array([[5.0, -1.5]]), state)
    assert zero.actor.seen[1].obs[0].tolist() == [[0, 0], a, b]


def test_past_actions_are_those_that_were_executed() -> None:
    policy, actor = clocked(Execution(horizon=3, history=3))
    # The last plan is beyond the bounds: what is executed is 1.
    played(policy, [10.0, 20.0, 500.0, 40.0])
    past = [context.past_action[0, :, 0].tolist() for context in actor.seen]
    np.testing.assert_allclose(past, [[0, 0], [0, 0.1], [0.1, 0.2], [0.2, 1.0]], atol=1e-6)
    real = [context.past_real[0].tolist() for context in actor.seen]
    assert real == [[0, 0], [0, 1], [1, 1], [1, 1]]


def test_past_actions_are_in_the_units_of_plans() -> None:
    policy = net_policy(RECEDING)
    state = policy.start(1)
    actions = []
    for _ in range(4):
        action, state = policy.act(np.zeros((1, 2)), state)
        actions.append(action[0])
    low, high = np.array(SPEC.action_low), np.array(SPEC.action_high)
    u = 2 * (actions[2] - low) / (high - low) - 1
    np.testing.assert_allclose(policy.actor.seen[1].past_action[0, -1], u, atol=1e-6)


def test_an_action_range_stands_for_the_bounds() -> None:
    actor = Clock(1)
    ranged = PlanPolicy(
        actor, Spec.unbounded(1, 1), action_range=([-0.2], [0.6]), execution=Execution(horizon=1)
    )
    # u = 0.5: 0.2 + 0.5 * 0.4; u = 5 is clipped at the spec's bound, beyond the range.
    assert ranged.predict([50.0])[0] == pytest.approx(0.4)
    assert ranged.predict([500.0])[0] == 1.0
    state = ranged.start(1)
    assert ranged._from_units(ranged.act([[50.0]], state)[0])[0, 0] == pytest.approx(0.5)


# -- temporal ensembling --------------------------------------------------------------------------


def test_ensembling_by_hand() -> None:
    rate = 0.5
    policy, actor = clocked(Execution(horizon=3, ensemble=rate))
    actions = played(policy, [1.0, 2.0, 3.0, 4.0])
    w = [math.exp(-rate * i) for i in range(3)]  # the oldest plan first
    assert actions[0] == pytest.approx(1.0, abs=1e-4)
    expected = (w[0] * 1.01 + w[1] * 2.0) / (w[0] + w[1])
    assert actions[1] == pytest.approx(expected, abs=1e-4)
    expected = (w[0] * 1.02 + w[1] * 2.01 + w[2] * 3.0) / sum(w)
    assert actions[2] == pytest.approx(expected, abs=1e-4)
    # The plan of the first step has nothing to say of the fourth.
    expected = (w[0] * 2.02 + w[1] * 3.01 + w[2] * 4.0) / sum(w)
    assert actions[3] == pytest.approx(expected, abs=1e-4)
    assert len(actor.seen) == 4


@pytest.mark.parametrize("rate", [0.0, 0.01, 500.0])
def test_constant_plans_give_constant_actions(rate: float) -> None:
    for steps in range(1, 7):
        plans = np.full((2, 4, 4, 3), 0.7, np.float32)
        action = ensembled(plans, np.full(2, steps - 1), rate)
        np.testing.assert_allclose(action, np.full((2, 3), 0.7), rtol=1e-6)


def test_an_action_of_zero_counts() -> None:
    # The older plan says exactly 0 and the newer 1: equal weights give a half, not one.
    plans = np.zeros((1, 2, 2, 1), np.float32)
    plans[0, 1, 0] = 1.0
    assert ensembled(plans, np.array([1]), 0.0).tolist() == [[0.5]]
    # At the first step the older plan was not made, whatever stands in its place.
    assert ensembled(plans, np.array([0]), 0.0).tolist() == [[1.0]]


def test_a_high_rate_trusts_the_oldest_plan() -> None:
    plans = np.zeros((1, 3, 3, 1), np.float32)
    plans[0, 0, 2], plans[0, 1, 1], plans[0, 2, 0] = 1.0, 2.0, 3.0
    assert ensembled(plans, np.array([9]), 100.0).tolist() == [[1.0]]
    assert ensembled(plans, np.array([9]), 0.0).tolist() == [[2.0]]
    assert next_action(plans, np.array([1]), Execution(3, ensemble=100.0)).tolist() == [[2.0]]


def test_small_parts_by_hand() -> None:
    step = np.array([0, 1, 2, 3])
    assert due(step, Execution(4, execute=2)).tolist() == [True, False, True, False]
    assert due(step, Execution(4, ensemble=0.1)).all()
    assert real_of(step, 2).tolist() == [[0, 0], [0, 1], [1, 1], [1, 1]]
    assert real_of(step, 0).shape == (4, 0)


# -- slots ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("execution", [RECEDING, ENSEMBLED, ZERO])
def test_slots_side_by_side_act_as_each_alone(execution: Execution) -> None:
    policy = net_policy(execution)
    rng = np.random.default_rng(0)
    observations = rng.normal(size=(7, 3, 2)).astype(np.float32)
    goal = rng.normal(size=(3, 2, 2)) if execution.goal else None
    state, together = policy.start(3, goal=goal), []
    for obs in observations:
        action, state = policy.act(obs, state)
        together.append(action)
    for k in range(3):
        alone = policy.start(1, goal=None if goal is None else goal[k])
        alone = policy.restart(alone, [0], [k])
        for t, obs in enumerate(observations):
            action, alone = policy.act(obs[k : k + 1], alone)
            np.testing.assert_allclose(action[0], together[t][k], atol=1e-6)


@pytest.mark.parametrize("execution", [RECEDING, ENSEMBLED, ZERO])
def test_a_restarted_slot_forgets_and_the_others_go_on(execution: Execution) -> None:
    policy = net_policy(execution)
    rng = np.random.default_rng(0)
    observations = rng.normal(size=(9, 2, 2)).astype(np.float32)
    undisturbed, state = policy.start(2), policy.start(2)
    fresh = policy.restart(policy.start(2), [1], [5])
    for t, obs in enumerate(observations):
        if t == 4:
            state = policy.restart(state, [1], [5])
        other, undisturbed = policy.act(obs, undisturbed)
        action, state = policy.act(obs, state)
        np.testing.assert_array_equal(action[0], other[0])
        if t >= 4:
            expected, fresh = policy.act(obs, fresh)
            np.testing.assert_array_equal(action[1], expected[1])


def test_an_old_state_can_be_played_from_again() -> None:
    policy = net_policy(ENSEMBLED)
    obs = np.random.default_rng(0).normal(size=(2, 2))
    _, state = policy.act(obs, policy.start(2))
    kept = {k: v.copy() for k, v in vars(state).items()}
    first, _ = policy.act(obs, state)
    policy.restart(state, [0])
    again, _ = policy.act(obs, state)
    np.testing.assert_array_equal(first, again)
    for name, value in vars(state).items():
        np.testing.assert_array_equal(value, kept[name])


def test_noise_belongs_to_seed_episode_and_step() -> None:
    policy, obs = net_policy(Execution(horizon=3)), np.zeros((2, 2))
    first, state = policy.act(obs, policy.start(2))
    assert (first[0] != first[1]).any()  # of two episodes
    second, _ = policy.act(obs, state)
    assert (second != first).any(1).all()
    swapped, _ = policy.act(obs, policy.restart(policy.start(2), [0, 1], [1, 0]))
    np.testing.assert_allclose(swapped, first[::-1], atol=1e-6)
    other = PlanPolicy(policy.actor, SPEC, MEAN, STD, seed=1, execution=policy.execution)
    assert (other.act(obs, other.start(2))[0] != first).any(1).all()


def test_the_noise_of_a_step_ends_before_the_next_begins() -> None:
    # As many numbers as a plan may take, in a 256th of the room: rejections are counted with them.
    part = 256
    generator = Stream(0, "policy").block(1)
    generator.standard_normal(MOST_NOISE // part, dtype=np.float32)
    position = generator.bit_generator.state["state"]["counter"][0]
    assert 0.85 * _ADVANCE / part < position < _ADVANCE / part
    greedy = Net(2, 2, 1, 4, 0, 2)
    greedy.noise = lambda: {"a": (MOST_NOISE + 1,)}  # type: ignore[method-assign]
    with pytest.raises(ConfigError, match=r"Net takes 7,340,033 random numbers, .* fewer cand"):
        PlanPolicy(greedy, SPEC, execution=Execution(4))


def test_a_prediction_is_the_first_action_of_an_episode() -> None:
    policy = net_policy(RECEDING)
    obs = np.random.default_rng(0).normal(size=(4, 2))
    batch = policy.predict(obs)
    assert batch.shape == (4, 2) and batch.dtype == np.float32
    np.testing.assert_allclose(policy.predict(obs[0]), batch[0], atol=1e-6)
    np.testing.assert_array_equal(policy.predict(obs), batch)
    drawn = policy.predict(obs, deterministic=False)
    assert (drawn != batch).any() and (policy.predict(obs, deterministic=False) != drawn).any()
    clock, _ = clocked(Execution(horizon=4, history=2, execute=2))
    assert clock.predict([3.0])[0] == pytest.approx(played(clock, [3.0])[0] / 100)


def test_evaluation_plays_a_policy_that_plans() -> None:
    from test_evaluation import Walk

    policy = net_policy(RECEDING, spec=Spec.unbounded(2, 2))
    whole = evaluate(policy, Walk, episodes=9, slots=4)
    np.testing.assert_array_equal(evaluate(policy, Walk, 5, slots=4).returns, whole.returns[:5])
    np.testing.assert_array_equal(evaluate(policy, Walk(), 9, slots=4).returns, whole.returns)
    # By hand: every start alone.
    from offrl.evaluation import start_seed

    for i in range(3):
        env, total, ended = Walk(), 0.0, False
        obs, _ = env.reset(seed=start_seed(0, i))
        state = policy.restart(policy.start(1), [0], [i])
        while not ended:
            action, state = policy.act(np.array([obs], np.float32), state)
            obs, reward, ended, _, _ = env.step(action[0])
            total += reward
        assert total == pytest.approx(whole.returns[i], rel=1e-5)


# -- goals ----------------------------------------------------------------------------------------


def test_goals_are_normalised_and_may_be_of_all_slots_or_of_each() -> None:
    policy = net_policy(ZERO)
    one, each = [[3.0, -2.0], [5.0, -1.5]], np.arange(12.0).reshape(3, 2, 2)
    np.testing.assert_allclose(policy.start(3, goal=one).goal, [[[1, 0], [2, 1]]] * 3)
    np.testing.assert_allclose(policy.start(3, goal=each).goal, (each - MEAN) / STD)
    np.testing.assert_allclose(policy.start(1, goal=[3.0, -2.0]).goal, [[[1, 0], [1, 0]]])
    state = policy.start(3, goal=each)
    policy.act(np.zeros((3, 2)), policy.restart(state, [1], goal=one))
    seen = policy.actor.seen[-1]
    np.testing.assert_allclose(seen.goal[1], [[1, 0], [2, 1]])
    np.testing.assert_allclose(seen.goal[2], state.goal[2])
    assert seen.goal_real.tolist() == [1, 1, 1]
    policy.act(np.zeros((3, 2)), policy.start(3))
    assert policy.actor.seen[-1].goal_real.tolist() == [0, 0, 0]
    assert (policy.actor.seen[-1].goal == 0).all()


def goal_spec() -> Spec:
    keys = {"achieved_goal": (0, 2), "desired_goal": (2, 4), "observation": (4, 5)}
    return dataclasses.replace(Spec.unbounded(5, 2), obs_keys=keys)


def test_a_goal_is_read_from_the_observation_that_asks_for_it() -> None:
    policy = net_policy(Execution(horizon=2, history=2, goal=1), spec=goal_spec())
    obs = np.array([[1.0, 2.0, 3.0, 4.0, 5.0], [6.0, 7.0, 8.0, 9.0, 10.0]])
    policy.act(obs, policy.restart(policy.start(2), [1], goal=[0.5, 0.25]))
    seen = policy.actor.seen[-1]
    assert seen.goal.tolist() == [[[3, 4]], [[0.5, 0.25]]]
    assert seen.goal_real.tolist() == [1, 1]
    assert seen.obs[0, -1].tolist() == [1, 2, 0, 0, 5]
    given = policy.start(2, goal=[0.5, 0.25])
    policy.act(obs, given)
    assert policy.actor.seen[-1].goal.tolist() == [[[0.5, 0.25]]] * 2
    as_dict = {"achieved_goal": obs[0, :2], "desired_goal": obs[0, 2:4], "observation": obs[0, 4:]}
    policy.predict(as_dict)
    assert policy.actor.seen[-1].goal.tolist() == [[[3, 4]]]
    # A policy that knows no goals leaves the observation whole.
    plain = net_policy(Execution(horizon=2, history=2), spec=goal_spec())
    plain.act(obs, plain.start(2))
    np.testing.assert_array_equal(plain.actor.seen[-1].obs[:, -1], obs)


# -- files ----------------------------------------------------------------------------------------

IN_A_FRESH_PROCESS = """
import sys
import numpy as np
from test_execution import Net
from offrl import load_policy
policy = load_policy(sys.argv[1], actor=Net)
given = np.load(sys.argv[2])
goal = given["goal"] if policy.execution.goal else None
state, actions = policy.start(2, goal=goal), []
for obs in given["obs"]:
    action, state = policy.act(obs, state)
    actions.append(action)
np.save(sys.argv[3], np.stack(actions))
"""


def test_a_saved_policy_acts_the_same_in_a_fresh_process(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    obs, goal = rng.normal(size=(6, 2, 2)), rng.normal(size=(2, 2, 2))
    execution = dataclasses.replace(ZERO, execute=1, ensemble=0.1)
    policy = net_policy(execution)
    policy = PlanPolicy(
        policy.actor, SPEC, MEAN, STD, action_range=([-0.3, 0.1], [0.7, 0.9]), execution=execution
    )
    state, expected = policy.start(2, goal=goal), []
    for o in obs:
        action, state = policy.act(o, state)
        expected.append(action)
    policy.save(tmp_path / "policy")
    header = json.loads((tmp_path / "policy" / "policy.json").read_text())
    assert header["execution"] == {
        **{"horizon": 6, "history": 3, "execute": 1, "ensemble": 0.1, "pad": "zero", "goal": 2}
    }
    np.savez(tmp_path / "given.npz", obs=obs, goal=goal)
    command = [sys.executable, "-c", IN_A_FRESH_PROCESS, str(tmp_path / "policy")]
    command += [str(tmp_path / "given.npz"), str(tmp_path / "actions.npy")]
    here = Path(__file__).parent
    paths = os.pathsep.join([str(here.parent), str(here)])
    subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": paths})
    np.testing.assert_array_equal(np.load(tmp_path / "actions.npy"), np.stack(expected))


def test_a_loaded_policy_is_of_its_kind(tmp_path: Path) -> None:
    policy = net_policy(ENSEMBLED)
    policy.save(tmp_path / "policy")
    loaded = load_policy(tmp_path / "policy", actor=Net)
    assert isinstance(loaded, PlanPolicy) and loaded.execution == ENSEMBLED
    assert loaded.provenance == {"agent": "net"}
    obs = np.random.default_rng(0).normal(size=(3, 2))
    np.testing.assert_array_equal(loaded.predict(obs), policy.predict(obs))
    with pytest.raises(ConfigError, match=r"plans 5 actions ahead.*load_policy, which needs torch"):
        runtime.load_policy(tmp_path / "policy")


def test_a_damaged_execution_is_refused(tmp_path: Path) -> None:
    net_policy(ENSEMBLED).save(tmp_path / "policy")
    path = tmp_path / "policy" / "policy.json"
    header = json.loads(path.read_text())
    for change in ({"history": 9}, {"speed": 1}):
        path.write_text(json.dumps({**header, "execution": {**header["execution"], **change}}))
        with pytest.raises(RunError, match="'execution' is damaged"):
            load_policy(tmp_path / "policy", actor=Net)


# -- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"horizon": 0}, "Execution.horizon is 0"),
        ({"history": 7}, r"Execution.history is 7; it must be in \[1, 6\]"),
        ({"history": 2, "execute": 6}, r"Execution.execute is 6; it must be in \[1, 5\]"),
        ({"execute": 2, "ensemble": 0.1}, "execute is 2; with an ensemble"),
        ({"ensemble": -0.1}, "Execution.ensemble is -0.1"),
        ({"pad": "edge"}, "Execution.pad is 'edge'"),
        ({"goal": -1}, "Execution.goal is -1"),
    ],
)
def test_executions_that_cannot_be_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Execution(**{"horizon": 6, **change})


def test_what_a_policy_that_plans_refuses() -> None:
    policy = net_policy(RECEDING)
    with pytest.raises(ConfigError, match="takes none"):
        policy.start(1, goal=[0.0, 0.0])
    with pytest.raises(ConfigError, match="target return"):
        policy.start(1, target_return=1.0)
    with pytest.raises(DataError, match="2 observations for 1 slots"):
        policy.act(np.zeros((2, 2)), policy.start(1))
    with pytest.raises(DataError, match=r"goal has shape \(3,\)"):
        net_policy(ZERO).start(1, goal=[0.0, 0.0, 0.0])
    with pytest.raises(DataError, match="finite"):
        net_policy(ZERO).start(1, goal=[0.0, np.nan])
    discrete = dataclasses.replace(Spec.unbounded(1, 1), action_kind="discrete")
    with pytest.raises(ConfigError, match="discrete"):
        PlanPolicy(Clock(2), discrete, execution=Execution(2))
    with pytest.raises(ConfigError, match="needs the methods plan, noise and spec"):
        PlanPolicy(nn.Linear(1, 1), Spec.unbounded(1, 1), execution=Execution(2))
    with pytest.raises(ConfigError, match=r"plans actions \(1, 3, 1\).*asks for \(1, 2, 1\)"):
        PlanPolicy(Clock(3), Spec.unbounded(1, 1), execution=Execution(2)).predict([0.0])


# -- training -------------------------------------------------------------------------------------


class Chunks(Stacked):
    """tanh of a linear map of all observations and of the goal, for one learner or several."""

    def __init__(self, obs_dim: int, act_dim: int, learners: Learners) -> None:
        super().__init__(learners)
        self.sizes = obs_dim, act_dim
        self.layer = Linear(3 * obs_dim, 4 * act_dim, learners)

    def forward(self, obs: Tensor, goal: Tensor) -> Tensor:
        known = torch.cat([obs.flatten(-2), goal.flatten(-2)], -1)
        return torch.tanh(self.layer(known)).unflatten(-1, (4, self.sizes[1]))

    def plan(self, context: Context, noise: Noise) -> Tensor:
        planned: Tensor = self(context.obs, context.goal)
        return planned

    def noise(self) -> dict[str, tuple[int, ...]]:
        return {}

    def spec(self) -> dict[str, Any]:
        return {"type": "Chunks", "obs_dim": self.sizes[0], "act_dim": self.sizes[1]}


@dataclasses.dataclass(frozen=True)
class ChunkConfig:
    """One setting."""

    lr: float = 1e-2


class ChunkCloning(Agent):
    """Imitation of four actions, from two observations and a goal."""

    config_class = ChunkConfig
    execution = Execution(horizon=4, history=2, execute=2, goal=1)

    def __init__(self, spec: Spec, config: ChunkConfig, learners: Learners) -> None:
        super().__init__(spec, config, learners)
        self.actor = Chunks(self.obs_dim, self.act_dim, learners)
        self.actor_opt = adam(self.actor.parameters(), config.lr)

    def view(self, dataset: OfflineDataset) -> Windows:
        return windows(dataset, history=2, horizon=4, normalize="minmax", goals=Goals(dropout=0.2))

    def update(self, batch: GoalBatch, noise: Noise, phase: int) -> Metrics:
        return self.minimize(self.actor_opt, self.actor_loss, batch)

    def actor_loss(self, batch: GoalBatch) -> tuple[Tensor, Metrics]:
        wrong = (self.actor(batch.obs, batch.goal) - batch.action).square().mean(-1)
        return (wrong * batch.real).mean(-1).mean(-1), {"goals": batch.goal_real.mean(-1)}

    def validate(self, batch: GoalBatch) -> Metrics:
        return {"error": self.actor_loss(batch)[0]}

    def policy(self, learner: int = 0, provenance: Mapping[str, Any] | None = None) -> Policy:
        return PlanPolicy(
            learner_view(self.actor, learner),
            self.spec,
            self.obs_mean,
            self.obs_std,
            provenance,
            execution=self.execution,
        )


TRAINED: dict[str, Any] = {
    **{"steps": 70, "batch_size": 4, "log_every": 35, "eval_every": 35, "checkpoint_every": 70},
    **{"device": "cpu", "eval_episodes": 2, "validation": 0.25, "best_by": "validation/error"},
}


def test_an_agent_that_plans_is_trained_like_any_other(tmp_path: Path) -> None:
    both = train(ChunkCloning, walk(12), env=Drift, out=tmp_path / "both", seeds=2, **TRAINED)
    alone = train(ChunkCloning, walk(12), env=Drift, out=tmp_path / "alone", seed=1, **TRAINED)
    mine, own = (p.actor.layer.weight for p in (both.policies[1], alone.policy))
    torch.testing.assert_close(mine, own, rtol=0, atol=1e-5)
    rows = (tmp_path / "both" / "seed-0" / "metrics.csv").read_text()
    for name in ("train/goals", "validation/error", "eval/return"):
        assert name in rows
    errors = [float(r.split(",")[2]) for r in rows.splitlines() if "validation/error" in r]
    assert errors[-1] < errors[0]
    loaded = load_policy(tmp_path / "alone", actor=Chunks(3, 2, Learners()))
    assert isinstance(loaded, PlanPolicy) and loaded.execution == ChunkCloning.execution
    obs = np.random.default_rng(0).normal(size=(5, 3))
    np.testing.assert_array_equal(loaded.predict(obs), alone.predict(obs))
