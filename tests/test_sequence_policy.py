"""Policies that are asked for a return: what they see, what they remember, how they are kept."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from problems import Drift
from torch import Tensor, nn

from offrl import runtime
from offrl.actors import DeterministicActor
from offrl.datasets.offline import Spec
from offrl.datasets.rollouts import Rolled
from offrl.errors import ConfigError, DataError, RunError
from offrl.evaluation import evaluate
from offrl.evaluation_cli import main
from offrl.networks import Learners
from offrl.policy import Policy, load_policy
from offrl.sequence_models import Memory, ReturnMamba, ReturnTransformer, Steps
from offrl.sequence_policy import Conditioning, SequencePolicy
from offrl.types import SequenceBatch

F32 = NDArray[np.float32]
OBS, ACT = 3, 2
SPEC = Spec((-math.inf,) * OBS, (math.inf,) * OBS, (-2.0, 0.0), (2.0, 1.0))
MEAN, STD = [1.0, -2.0, 0.5], [2.0, 0.5, 1.0]


def transformer() -> nn.Module:
    sizes: Any = {"layers": 2, "heads": 2, "width": 8, "max_steps": 15}
    return ReturnTransformer(OBS, ACT, Learners((3,)), **sizes).double()


def mamba() -> nn.Module:
    return ReturnMamba(OBS, ACT, Learners((3,)), layers=2, width=8, max_steps=15).double()


each = pytest.mark.parametrize("make", [transformer, mamba])


def policy_of(actor: nn.Module, context: int = 6, keep: int = 3) -> SequencePolicy:
    conditioning = Conditioning(context, keep, target_return=30.0, return_scale=10.0)
    return SequencePolicy(actor, SPEC, MEAN, STD, conditioning=conditioning)


class Recorder(nn.Module):
    """Answers with a hundredth of the sum of the last observation and remembers what it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Parameter(torch.ones(1))
        self.seen: list[tuple[Steps, list[int]]] = []

    def empty(self, batch: int, context: int) -> Memory:
        return (torch.zeros(batch, 1),)

    def advance(self, steps: Steps, memory: Memory, held: Tensor) -> tuple[Tensor, Memory]:
        self.seen.append((steps, held.tolist()))
        return steps.obs[:, -1].sum(-1, keepdim=True).expand(-1, ACT) / 100, memory

    def spec(self) -> dict[str, Any]:
        return {"type": "Recorder"}


def numbers(steps: int, slots: int = 2, seed: int = 0) -> tuple[F32, F32]:
    rng = np.random.default_rng(seed)
    obs = rng.normal(size=(steps, slots, OBS)).astype(np.float32)
    return obs, rng.normal(size=(steps, slots)).astype(np.float32)


def play(policy: SequencePolicy, obs: F32, reward: F32, **start: Any) -> F32:
    state, actions = policy.start(obs.shape[1], **start), []
    for t in range(len(obs)):
        action, state = policy.act(obs[t], state, reward[t - 1] if t else None)
        actions.append(action)
    return np.stack(actions)


# -- what the network is given --------------------------------------------------------------------


def test_returns_to_go_times_and_past_actions() -> None:
    actor = Recorder()
    policy = policy_of(actor, context=4, keep=1)
    obs = np.zeros((6, 1, OBS), np.float32)
    obs[:, 0, 0] = np.arange(6)
    reward = np.full((6, 1), 5.0, np.float32)
    actions = play(policy, obs, reward)
    seen = [steps for steps, _ in actor.seen]
    x = [(t - 1.0) / 2.0 + 4.0 - 0.5 for t in range(6)]
    for row in (0, 1):  # of the memory that acts, and of the next
        assert [float(steps.to_go[row, 0]) for steps in seen] == [3.0, 2.5, 2.0, 1.5, 1.0, 0.5]
        assert [int(steps.time[row, 0]) for steps in seen] == [0, 1, 2, 3, 4, 5]
        np.testing.assert_allclose(
            [float(steps.past_action[row, 0, 0]) for steps in seen],
            [0.0, *(v / 100 for v in x[:-1])],
            atol=1e-6,
        )
    # In the environment's units: -2 to 2, and 0 to 1.
    np.testing.assert_allclose(actions[:, 0, 0], 2.0 * np.array(x) / 100, atol=1e-6)
    np.testing.assert_allclose(actions[:, 0, 1], 0.5 + 0.5 * np.array(x) / 100, atol=1e-6)


@pytest.mark.parametrize(
    ("keep", "known"),
    [
        (0, [[0], [1], [2], [3], [0], [1], [2], [3], [0]]),
        (1, [[0, 0], [1, 0], [2, 0], [3, 0], [1, 0], [2, 0], [3, 0], [1, 0], [2, 0]]),
        (2, [[0, 0], [1, 0], [2, 0], [3, 1], [2, 0], [3, 1], [2, 0], [3, 1], [2, 0]]),
        (3, [[0, 0, 0, 0], [1, 0, 0, 0], [2, 1, 0, 0], *[[3, 2, 1, 0]] * 6]),
    ],
)
def test_a_full_context_goes_on_with_a_memory_that_began_later(
    keep: int, known: list[list[int]]
) -> None:
    actor = Recorder()
    policy = policy_of(actor, context=4, keep=keep)
    play(policy, *numbers(9))
    assert policy.conditioning.memories == len(known[0])
    assert [held for _, held in actor.seen] == [now * 2 for now in known]  # of two slots
    # Every control step costs the same: one step for each memory.
    assert {tuple(steps.obs.shape) for steps, _ in actor.seen} == {(2 * len(known[0]), 1, OBS)}


def seen_steps(t: int, context: int, keep: int) -> int:
    """How many steps, this one among them, are looked at in step t; from the module's rule."""
    count = 0
    for _ in range(t + 1):
        count = keep + 1 if count == context else count + 1
    return count


@each
@pytest.mark.parametrize("keep", [0, 1, 2, 3])
def test_cached_is_full_at_every_step(make: Any, keep: int) -> None:
    actor: Any = make()
    policy = policy_of(actor, context=4, keep=keep)
    obs, reward = numbers(11)
    x: Any = (obs - np.array(MEAN, np.float32)) / np.array(STD, np.float32)
    to_go = 30.0 - np.concatenate([np.zeros((1, 2)), reward[:-1].astype(np.float64).cumsum(0)])
    answers: list[Tensor] = []
    advance = actor.advance

    def listened(*given: Any) -> Any:
        found = advance(*given)
        answers.append(found[0][:: policy.conditioning.memories])
        return found

    actor.advance = listened
    state, actions = policy.start(2), []
    for t in range(len(obs)):
        _, state = policy.act(obs[t], state, reward[t - 1] if t else None)
        actions.append(state.action)
        count = seen_steps(t, 4, keep)
        window = slice(t + 1 - count, t + 1)
        batch = padded(x[window], np.array(actions[window]), to_go[window] / 10.0, t + 1 - count)
        found = actor(batch)
        full = (found if isinstance(found, Tensor) else found.action)[:, -1].clamp(-1.0, 1.0)
        torch.testing.assert_close(answers[-1], full.detach(), rtol=0, atol=1e-9)
        np.testing.assert_array_equal(state.action, answers[-1].to(torch.float32).numpy())


def padded(obs: F32, action: F32, to_go: NDArray[Any], begin: int, length: int = 6) -> Any:
    """A batch of training that ends with these steps, whose last action is not known yet."""
    count = len(obs)
    front = length - count

    def there(array: NDArray[Any], fill: float = 7.0) -> Tensor:
        x = torch.from_numpy(array).double().transpose(0, 1)
        shape = (2, front, *x.shape[2:])
        return torch.cat([torch.full(shape, fill, dtype=torch.float64), x], 1)

    action = action.copy()
    action[-1] = 9.0
    return SequenceBatch(
        to_go=there(to_go.astype(np.float32)),
        obs=there(obs),
        action=there(action),
        time=torch.cat([torch.zeros(front, dtype=torch.long), begin + torch.arange(count)])[
            None
        ].expand(2, -1),
        real=torch.cat([torch.zeros(2, front), torch.ones(2, count)], 1).double(),
        index=torch.zeros(2, dtype=torch.long),
    )


# -- slots ----------------------------------------------------------------------------------------


@each
def test_slots_are_episodes_alone_to_the_last_bit(make: Any) -> None:
    policy = policy_of(make())
    obs, reward = numbers(20, slots=3)
    alone = play(policy, obs, reward)
    state = policy.start(3)
    for t in range(20):
        if t == 4:
            state = policy.restart(state, [1])
            assert state.episode.tolist() == [0, 3, 2] and state.step.tolist() == [4, 0, 4]
        shifted = obs[t].copy()
        earned = reward[t - 1].copy()
        if t >= 4:
            shifted[1], earned[1] = obs[t - 4, 1], reward[t - 5, 1]
        action, state = policy.act(shifted, state, earned)
        np.testing.assert_array_equal(action[[0, 2]], alone[t, [0, 2]])
        if t >= 4:
            np.testing.assert_array_equal(action[1], alone[t - 4, 1])


@each
def test_a_state_can_be_gone_on_from_twice(make: Any) -> None:
    policy = policy_of(make())
    obs, reward = numbers(12)
    state = policy.start(2)
    for t in range(8):
        before = state
        _, state = policy.act(obs[t], before, reward[t])
    again, _ = policy.act(obs[7], before, reward[7])
    policy.act(obs[9], before, reward[9])
    once_more, _ = policy.act(obs[7], before, reward[7])
    np.testing.assert_array_equal(again, once_more)


def test_a_slot_keeps_its_target_unless_it_gets_another() -> None:
    policy = policy_of(Recorder())
    state = policy.start(3, target_return=[1.0, 2.0, 3.0])
    for _ in range(2):
        _, state = policy.act(np.zeros((3, OBS)), state, np.ones(3))
    assert state.to_go.tolist() == [0.0, 1.0, 2.0]
    state = policy.restart(state, [1])
    assert state.to_go.tolist() == [0.0, 2.0, 2.0]
    state = policy.restart(state, [0, 2], target_return=8.0)
    assert state.target.tolist() == [8.0, 2.0, 8.0] == state.to_go.tolist()
    assert policy.start(2).to_go.tolist() == [30.0, 30.0]


@each
def test_the_target_makes_a_difference_and_predict_is_the_first_action(make: Any) -> None:
    policy = policy_of(make())
    obs, reward = numbers(1, slots=4)
    usual = play(policy, obs, reward)[0]
    np.testing.assert_array_equal(policy.predict(obs[0]), usual)
    np.testing.assert_array_equal(play(policy, obs, reward, target_return=30.0)[0], usual)
    assert (play(policy, obs, reward, target_return=-30.0)[0] != usual).all()


# -- what is refused ------------------------------------------------------------------------------


def test_what_does_not_fit_is_refused() -> None:
    policy = policy_of(Recorder())
    state = policy.start(2)
    obs = np.zeros((2, OBS))
    _, later = policy.act(obs, state)
    with pytest.raises(DataError, match="the reward of the previous step"):
        policy.act(obs, later)
    with pytest.raises(DataError, match=r"the reward has shape \(1,\)"):
        policy.act(obs, later, [1.0])
    with pytest.raises(DataError, match="finite numbers"):
        policy.act(obs, later, [1.0, math.nan])
    with pytest.raises(DataError, match="3 observations for 2 slots"):
        policy.act(np.zeros((3, OBS)), later, [1.0, 1.0])
    with pytest.raises(ConfigError, match="takes no goal"):
        policy.start(2, goal=np.zeros(3))
    for target in (math.inf, [1.0, 2.0, 3.0]):
        with pytest.raises(ConfigError, match="expected a finite number, or 2 of them"):
            policy.start(2, target_return=target)
    with pytest.raises(DataError, match=r"begin with start\(\)"):
        policy.act(obs, policy_slots(), [0.0, 0.0])
    with pytest.raises(ConfigError, match="continuous actions; these are discrete"):
        SequencePolicy(
            Recorder(),
            dataclasses.replace(SPEC, action_kind="discrete"),
            conditioning=policy.conditioning,
        )
    with pytest.raises(ConfigError, match="needs the methods empty, advance and spec"):
        SequencePolicy(nn.Linear(1, 1), SPEC, conditioning=policy.conditioning)


def policy_slots() -> Any:
    from offrl.policy_base import Slots

    return Slots(np.arange(2), np.zeros(2, np.int64))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"context": 0}, r"Conditioning.context is 0; it must be in \[1, inf\)"),
        ({"keep": 6}, r"Conditioning.keep is 6; it must be in \[0, 5\]"),
        ({"return_scale": 0.0}, r"Conditioning.return_scale is 0.0; it must be in \(0, inf\)"),
        ({"target_return": math.inf}, r"Conditioning.target_return is inf"),
    ],
)
def test_conditioning_that_cannot_be(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Conditioning(**{"context": 6, "keep": 3, "target_return": 1.0, **values})


# -- files and environments -----------------------------------------------------------------------


@each
def test_a_saved_policy_acts_as_it_did(make: Any, tmp_path: Path) -> None:
    policy = policy_of(make())
    policy.save(tmp_path / "p")
    again = load_policy(tmp_path / "p")
    assert isinstance(again, SequencePolicy) and again.conditioning == policy.conditioning
    obs, reward = numbers(15)
    np.testing.assert_array_equal(play(again, obs, reward), play(policy, obs, reward))


def test_a_network_of_ones_own_is_passed(tmp_path: Path) -> None:
    policy_of(Recorder()).save(tmp_path / "p")
    assert isinstance(load_policy(tmp_path / "p", actor=Recorder), SequencePolicy)
    with pytest.raises(ConfigError, match="'Recorder', which offrl does not know"):
        load_policy(tmp_path / "p")


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    policy_of(transformer()).save(tmp_path / "p")
    header = tmp_path / "p" / "policy.json"
    whole = json.loads(header.read_text())

    def write(**entries: Any) -> None:
        header.write_text(json.dumps({**whole, **entries}))

    write(conditioning={**whole["conditioning"], "keep": 9})
    with pytest.raises(RunError, match=r"'conditioning' is damaged: Conditioning\.keep is 9"):
        load_policy(tmp_path / "p")
    write(conditioning={"context": 3})
    with pytest.raises(RunError, match="'conditioning' is damaged"):
        load_policy(tmp_path / "p")
    write(actor={"type": "ReturnTransformer"})
    with pytest.raises(RunError, match="'actor' is damaged"):
        load_policy(tmp_path / "p")


def test_the_runtime_without_torch_says_so(tmp_path: Path) -> None:
    policy_of(transformer()).save(tmp_path / "p")
    with pytest.raises(ConfigError, match="which needs torch"):
        runtime.load_policy(tmp_path / "p")


@each
def test_it_is_evaluated_towards_a_return(make: Any) -> None:
    spec = Spec.unbounded(OBS, ACT)
    conditioning = Conditioning(3, 1, target_return=0.0, return_scale=10.0)
    policy = SequencePolicy(make(), spec, conditioning=conditioning)
    usual = evaluate(policy, Drift, episodes=4, slots=2)
    one_by_one = evaluate(policy, Drift(), episodes=4, slots=2)
    np.testing.assert_array_equal(usual.returns, one_by_one.returns)
    aimed = evaluate(policy, Drift, episodes=4, slots=2, target_return=-40.0)
    assert (aimed.returns != usual.returns).all()


def test_the_command_aims_at_a_return(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes: Any = {"layers": 1, "width": 8, "max_steps": 15}
    actor = ReturnTransformer(11, 3, Learners((3,)), **sizes)
    conditioning = Conditioning(4, 2, target_return=100.0, return_scale=10.0)
    provenance = {"env": "Hopper-v5"}
    spec = Spec.unbounded(11, 3)
    policy = SequencePolicy(actor, spec, provenance=provenance, conditioning=conditioning)
    policy.save(tmp_path / "p")
    found = []
    for extra in ([], ["--target-return", "100"], ["--target-return", "-900"]):
        assert main([str(tmp_path / "p"), "--episodes", "2", "--json", *extra]) == 0
        found.append(json.loads(capsys.readouterr().out)["runs"][0]["evaluations"][0]["returns"])
    assert found[0] == found[1] != found[2]
    Policy(DeterministicActor(11, 3, [4], Learners()), spec, provenance=provenance).save(
        tmp_path / "q"
    )
    with pytest.raises(ConfigError, match="it takes no goal and no target return"):
        main([str(tmp_path / "q"), "--target-return", "100"])
    with pytest.raises(ConfigError, match="function is not conditioned on a return"):
        evaluate(lambda obs: np.zeros(3), "Hopper-v5", 1, target_return=1.0)


def test_it_can_be_collected_with(tmp_path: Path) -> None:
    actor = Recorder()
    conditioning = Conditioning(4, 2, target_return=100.0)
    policy = SequencePolicy(actor, Spec.unbounded(OBS, ACT), conditioning=conditioning)
    act = Rolled(policy, deterministic=True).episode(0)
    for reward in (0.0, 5.0, 7.0):
        act(np.zeros(OBS), reward)
    assert [float(s.to_go[0, -1]) for s, _ in actor.seen] == [100.0, 95.0, 88.0]
