"""Policies that choose among their own latents: what they see and keep, and their files."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from offrl import runtime
from offrl.datasets.offline import Spec
from offrl.errors import ConfigError, DataError, RunError
from offrl.latent_models import LatentActor
from offrl.latent_policy import Choosing, LatentPolicy
from offrl.networks import Learners
from offrl.policy import load_policy
from offrl.policy_base import Slots

F32 = NDArray[np.float32]
OBS, ACT, STEPS = 3, 2, 11
SPEC = Spec((-math.inf,) * OBS, (math.inf,) * OBS, (-2.0, 0.0), (2.0, 1.0))
each = pytest.mark.parametrize("backbone", ["gpt", "mlp"])


def policy_of(backbone: str = "mlp", latents: Any = "gaussian", **changes: Any) -> LatentPolicy:
    sizes: Any = {"layers": 1, "heads": 2, "width": 8, "max_steps": 15}
    actor = LatentActor(
        OBS, ACT, Learners((3,)), backbone=backbone, latents=latents, latent=4, past=2,
        hidden=(8,), **sizes,
    ).double()  # fmt: skip
    choosing = {"past": 2, "hold": 3, "candidates": 5, "mass": 0.95, "least": 0.01, **changes}
    return LatentPolicy(
        actor, SPEC, [1.0, 0.0, 0.0], [2.0, 1.0, 1.0], choosing=Choosing(**choosing)
    )


def numbers(slots: int = 3) -> tuple[F32, F32]:
    rng = np.random.default_rng(0)
    obs = rng.normal(size=(STEPS, slots, OBS)).astype(np.float32)
    return obs, rng.normal(size=(STEPS, slots)).astype(np.float32)


def play(policy: LatentPolicy, obs: F32, reward: F32, **start: Any) -> tuple[F32, list[Any]]:
    state, actions, states = policy.start(obs.shape[1], **start), [], []
    for t in range(len(obs)):
        action, state = policy.act(obs[t], state, reward[t - 1] if t else None)
        actions.append(action)
        states.append(state)
    return np.stack(actions), states


@each
def test_a_latent_is_kept_for_as_long_as_it_is_to_be(backbone: str) -> None:
    _, states = play(policy_of(backbone), *numbers())
    changes = [t for t in range(1, STEPS) if (states[t].latent != states[t - 1].latent).any()]
    assert changes == [3, 6, 9]
    promised = np.stack([state.promised for state in states])
    assert [t for t in range(1, STEPS) if (promised[t] != promised[t - 1]).any()] == [3, 6, 9]


@each
def test_slots_are_episodes_alone_to_the_last_bit(backbone: str) -> None:
    policy, (obs, reward) = policy_of(backbone), numbers()
    alone, _ = play(policy, obs, reward)
    state = policy.start(3)
    for t in range(STEPS):
        if t == 4:
            # As episode 1 again, so that its draws are the same.
            state = policy.restart(state, [1], [1])
            assert state.step.tolist() == [4, 0, 4]
        seen, earned = obs[t].copy(), reward[t - 1].copy()
        if t >= 4:
            seen[1], earned[1] = obs[t - 4, 1], reward[t - 5, 1]
        action, state = policy.act(seen, state, earned)
        np.testing.assert_array_equal(action[[0, 2]], alone[t, [0, 2]])
        if t >= 4:
            np.testing.assert_array_equal(action[1], alone[t - 4, 1])


def test_steps_before_the_context_are_forgotten_and_others_are_not() -> None:
    policy, (obs, reward) = policy_of("gpt"), numbers(1)
    _, states = play(policy, obs, reward)
    moved = obs.copy()
    moved[3] += 1.0  # latents are drawn at 6 from steps 4 and 5 on, and at 3 with 1 and 2
    _, others = play(policy, moved, reward)
    assert (states[3].latent != others[3].latent).any()
    state, other = states[5], others[5]
    same = dataclasses.replace(other, action=state.action, reward=state.reward)
    again, _ = policy.act(obs[6], same, reward[5])
    known, _ = policy.act(obs[6], state, reward[5])
    np.testing.assert_array_equal(again, known)
    nearer = dataclasses.replace(state, obs=state.obs + 1.0)
    assert (policy.act(obs[6], nearer, reward[5])[0] != known).any()


@pytest.mark.parametrize("latents", ["gaussian", "categorical"])
def test_the_best_is_taken_and_what_is_asked_for_is_neared(latents: str) -> None:
    policy, (obs, _) = policy_of(latents=latents), numbers(1)
    policy.actor.return_map[:] = policy.actor.return_map.new_tensor([5.0, 2.0])
    promises = []
    for asked in (*np.linspace(4.0, 6.0, 41), 1e6, -1e6):
        _, state = policy.act(obs[0], policy.start(1, target_return=float(asked)))
        promises.append(float(state.promised[0]))
        kept = promises[-1]
        assert all(abs(kept - asked) <= abs(other - asked) + 1e-3 for other in promises)
    _, best = policy.act(obs[0], policy.start(1))
    assert float(best.promised[0]) == pytest.approx(max(promises)) and len(set(promises)) > 1
    state = policy.start(2, target_return=[1.0, 2.0])
    assert policy.restart(state, [1], target_return=7.0).target.tolist() == [1.0, 7.0]
    assert policy.restart(state, [0]).target.tolist() == [1.0, 2.0]


@each
def test_a_file_gives_the_policy_back(backbone: str, tmp_path: Path) -> None:
    policy, (obs, reward) = policy_of(backbone), numbers()
    policy.save(tmp_path / "policy")
    loaded = load_policy(tmp_path / "policy")
    assert isinstance(loaded, LatentPolicy) and loaded.choosing == policy.choosing
    actions, _ = play(policy, obs, reward)
    np.testing.assert_array_equal(play(loaded, obs, reward)[0], actions)
    np.testing.assert_array_equal(loaded.predict(obs[0]), policy.predict(obs[0]))
    with pytest.raises(ConfigError, match=r"offrl\.load_policy, which needs torch"):
        runtime.load_policy(tmp_path / "policy")
    header = tmp_path / "policy" / "policy.json"
    record = json.loads(header.read_text())
    record["conditioning"]["hold"] = 0
    header.write_text(json.dumps(record))
    with pytest.raises(RunError, match=r"'conditioning' is damaged: Choosing.hold is 0"):
        load_policy(tmp_path / "policy")


def test_what_is_missing_or_wrong_is_named() -> None:
    policy, (obs, reward) = policy_of(), numbers()
    _, state = policy.act(obs[0], policy.start(3))
    with pytest.raises(DataError, match=r"give act\(\) the reward of the previous step"):
        policy.act(obs[1], state)
    with pytest.raises(DataError, match=r"the reward has shape \(2,\)"):
        policy.act(obs[1], state, reward[0, :2])
    with pytest.raises(DataError, match="3 observations for 2 slots"):
        policy.act(obs[0], policy.start(2))
    with pytest.raises(DataError, match=r"begin with start\(\)"):
        policy.act(obs[0], Slots(state.episode, state.step))
    with pytest.raises(ConfigError, match="takes no goal"):
        policy.start(1, goal=[0.0])
    with pytest.raises(ConfigError, match="target return is nan"):
        policy.start(1, target_return=float("nan"))
    with pytest.raises(ConfigError, match="these are discrete"):
        LatentPolicy(
            policy.actor, dataclasses.replace(SPEC, action_kind="discrete"),
            choosing=policy.choosing,
        )  # fmt: skip
    with pytest.raises(ConfigError, match=r"Choosing.mass is 0.0; it must be in \(0, 1\]"):
        policy_of(mass=0.0)


def test_without_a_past_no_reward_is_needed() -> None:
    actor = LatentActor(
        OBS, ACT, Learners((3,)), backbone="mlp", latents="categorical", latent=4, past=0,
        hidden=(8,),
    )  # fmt: skip
    policy = LatentPolicy(actor, SPEC, choosing=Choosing(0, 1, 1, 1.0, 0.0))
    obs, _ = numbers()
    _, state = policy.act(obs[0], policy.start(3))
    assert policy.act(obs[1], state)[0].shape == (3, ACT)
