import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from offrl import runtime
from offrl.actors import DeterministicActor, GaussianActor
from offrl.datasets.offline import Spec
from offrl.errors import ConfigError, DataError, RunError
from offrl.networks import Learners
from offrl.policy import Policy, load_policy

INF = float("inf")
SPEC = Spec((-INF,) * 4, (INF, INF, 5.0, INF), (-2.0, 0.0), (2.0, 1.0))
MEAN, STD = [1.0, -2.0, 0.5, 0.0], [2.0, 0.5, 1.0, 3.0]


def make_policy(gaussian: bool = False, **keywords: Any) -> Policy:
    kind = GaussianActor if gaussian else DeterministicActor
    return Policy(kind(4, 2, [8, 8], Learners()), SPEC, MEAN, STD, **keywords)


def output_bias(policy: Policy) -> Tensor:
    layers: Any = policy.actor.net
    bias: Tensor = layers[-1].bias
    return bias


def test_predict_normalises_acts_and_scales_by_hand() -> None:
    policy = make_policy()
    with torch.no_grad():
        for p in policy.actor.parameters():
            p.zero_()
        # Only the output bias is left: u = tanh(bias).
        output_bias(policy)[:] = torch.tensor([[np.arctanh(0.5), np.arctanh(-0.5)]])
    # -2 + (0.5 + 1) * 4 / 2 = 1;  0 + (-0.5 + 1) * 1 / 2 = 0.25.
    np.testing.assert_allclose(policy.predict([0, 0, 0, 0]), [1.0, 0.25], atol=1e-6)


def test_the_network_sees_the_normalised_observation() -> None:
    seen: list[Tensor] = []

    class Spy(DeterministicActor):
        def mode(self, obs: Tensor) -> Tensor:
            seen.append(obs)
            return super().mode(obs)

    Policy(Spy(4, 2, [8], Learners()), SPEC, MEAN, STD).predict([3.0, -2.0, 0.0, 6.0])
    # (3 - 1) / 2, (-2 + 2) / 0.5, (0 - 0.5) / 1, 6 / 3.
    np.testing.assert_allclose(seen[0].numpy(), [[1.0, 0.0, -0.5, 2.0]])


@pytest.mark.parametrize("gaussian", [False, True])
def test_one_observation_and_a_batch_agree(gaussian: bool) -> None:
    policy = make_policy(gaussian)
    obs = np.random.default_rng(0).normal(size=(5, 4))
    batch = policy.predict(obs)
    assert batch.shape == (5, 2) and batch.dtype == np.float32
    assert policy.predict(obs[0]).shape == (2,)
    np.testing.assert_allclose(batch, np.stack([policy.predict(o) for o in obs]), atol=1e-6)
    assert (batch >= SPEC.action_low).all() and (batch <= SPEC.action_high).all()


def test_a_training_actor_is_not_copied() -> None:
    policy = make_policy()
    before = policy.predict([0, 0, 0, 0])
    with torch.no_grad():
        output_bias(policy).add_(1.0)
    assert (policy.predict([0, 0, 0, 0]) != before).all()


@pytest.mark.parametrize("gaussian", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_save_and_load_give_the_same_policy(
    tmp_path: Path, gaussian: bool, dtype: torch.dtype
) -> None:
    policy = make_policy(gaussian, provenance={"agent": "bc", "step": 3})
    policy.actor.to(dtype)
    policy.save(tmp_path / "run" / "policy")
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == ["policy"]
    obs = np.random.default_rng(0).normal(size=(5, 4))
    for path in (tmp_path / "run", tmp_path / "run" / "policy", str(tmp_path / "run")):
        loaded = load_policy(path)
        assert loaded.spec == SPEC
        assert loaded.provenance == {"agent": "bc", "step": 3}
        assert repr(loaded) == "Policy(obs 4, action 2, agent bc, step 3)"
        np.testing.assert_array_equal(loaded.predict(obs), policy.predict(obs))


def test_random_actions_belong_to_their_episode_and_step() -> None:
    policy = make_policy(gaussian=True)
    obs = np.random.default_rng(0).normal(size=(3, 4))
    state = policy.start(3)
    first, state = policy.act(obs, state, deterministic=False)
    second, state = policy.act(obs, state, deterministic=False)
    assert (first != second).any(1).all() and (first[0] != first[1]).any()
    # Episode 1 from its beginning in another slot, beside another episode 7, repeats itself.
    again = policy.restart(state, [0, 2], episodes=[1, 7])
    replay, _ = policy.act(obs[[1, 1, 1]], again, deterministic=False)
    np.testing.assert_allclose(replay[0], first[1], atol=1e-6)
    assert (replay[2] != first).any(1).all()
    # A restart without numbers goes on with episodes that were not yet played.
    assert policy.restart(state, [1]).episode.tolist() == [0, 3, 2]
    # A policy of another seed draws other numbers, and the mode uses none.
    other = Policy(policy.actor, SPEC, MEAN, STD, seed=1)
    assert (other.act(obs, other.start(3), deterministic=False)[0] != first).any()
    np.testing.assert_array_equal(other.predict(obs), policy.predict(obs))
    assert (policy.predict(obs, deterministic=False) != policy.predict(obs)).any()


@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_the_bounds_hold_to_the_last_bit(sign: float) -> None:
    g = np.random.default_rng(0)
    low = g.uniform(-1, 0, 500).astype(np.float32)
    high = g.uniform(0.1, 1, 500).astype(np.float32)
    spec = Spec((-INF,) * 4, (INF,) * 4, tuple(low.tolist()), tuple(high.tolist()))
    policy = Policy(DeterministicActor(4, 500, [8], Learners()), spec)
    with torch.no_grad():
        output_bias(policy).fill_(50.0 * sign)
    action = policy.predict([0, 0, 0, 0])
    np.testing.assert_allclose(action, high if sign > 0 else low, atol=1e-6)
    assert (action <= high).all() and (action >= low).all()


def test_random_actions_have_the_actors_spread() -> None:
    actor = GaussianActor(4, 2, [8], Learners())
    with torch.no_grad():
        actor.spread.log_std[:] = torch.tensor([[-3.0, -2.0]])
    unit = Spec((-INF,) * 4, (INF,) * 4, (-1.0,) * 2, (1.0,) * 2)
    policy = Policy(actor, unit)
    n = 4000
    actions, _ = policy.act(np.zeros((n, 4)), policy.start(n), deterministic=False)
    np.testing.assert_allclose(actions.std(0), np.exp([-3.0, -2.0]), rtol=0.05)
    np.testing.assert_allclose(actions.mean(0), policy.predict(np.zeros(4)), atol=0.01)


def test_discrete_actions_are_the_argmax() -> None:
    spec = Spec((-INF,) * 4, (INF,) * 4, (0.0,) * 3, (1.0,) * 3, action_kind="discrete")
    policy = Policy(DeterministicActor(4, 3, [8], Learners()), spec)
    with torch.no_grad():
        for p in policy.actor.parameters():
            p.zero_()
        output_bias(policy)[:] = torch.tensor([[0.1, 0.9, -0.5]])
    assert policy.predict([0, 0, 0, 0]) == 1
    assert policy.predict(np.zeros((2, 4))).tolist() == [1, 1]


def test_dictionary_observations() -> None:
    spec = Spec(
        (-INF,) * 4, (INF,) * 4, (-1.0,) * 2, (1.0,) * 2, obs_keys={"goal": (2, 4), "obs": (0, 2)}
    )
    policy = Policy(DeterministicActor(4, 2, [8], Learners()), spec)
    flat = policy.predict([1.0, 2.0, 3.0, 4.0])
    np.testing.assert_array_equal(policy.predict({"goal": [3, 4], "obs": [1, 2]}), flat)
    batch = policy.predict({"goal": np.array([[3, 4]] * 2), "obs": np.array([[1, 2]] * 2)})
    np.testing.assert_allclose(batch, [flat, flat], atol=1e-6)
    with pytest.raises(DataError, match="no key 'goal', did you mean 'goals'"):
        policy.predict({"goals": [3, 4], "obs": [1, 2]})
    with pytest.raises(DataError, match=r"observation\['goal'\], entry 1 is nan"):
        policy.predict({"goal": [3, np.nan], "obs": [1, 2]})
    with pytest.raises(DataError, match=r"observation\['obs'\] has shape \(3,\)"):
        policy.predict({"goal": [3, 4], "obs": [1, 2, 3]})
    with pytest.raises(DataError, match="differ in their number of rows"):
        policy.predict({"goal": [3, 4], "obs": [[1, 2], [1, 2]]})
    with pytest.raises(DataError, match="trained on vectors of 4 entries"):
        make_policy().predict({"goal": [3, 4], "obs": [1, 2]})


def test_entries_of_any_shape_are_parts_of_one_observation() -> None:
    keys = {"grip": (0, 1), "q": (1, 4), "turn": (4, 8)}
    spec = Spec((-INF,) * 8, (INF,) * 8, (-1.0,), (1.0,), obs_keys=keys)
    policy = Policy(DeterministicActor(8, 1, [8], Learners()), spec)
    q, turn = np.arange(3.0), np.arange(4.0).reshape(2, 2)
    expected = policy.predict([0.5, *q, *turn.ravel()])
    for grip in (0.5, [0.5], [[0.5]]):
        found = policy.predict({"grip": grip, "q": q, "turn": turn})
        np.testing.assert_array_equal(found, expected)
    batch = {"grip": [0.5] * 3, "q": [q] * 3, "turn": [turn] * 3}
    assert policy.predict(batch).shape == (3, 1)
    np.testing.assert_allclose(policy.act(batch, policy.start(3))[0], [expected] * 3, atol=1e-6)
    alone = {key: np.asarray(value)[:1] for key, value in batch.items()}
    assert policy.act(alone, policy.start(1))[0].shape == (1, 1)
    # Rows of entries that are vectors: a batch of one stays a batch.
    assert policy.predict({"grip": [[0.5]], "q": [q], "turn": [turn.ravel()]}).shape == (1, 1)
    with pytest.raises(
        DataError, match=r"observation\['turn'\] has shape \(3, 3\); expected \(4,\)"
    ):
        policy.predict({"grip": 0.5, "q": q, "turn": np.eye(3)})


@pytest.mark.parametrize(
    ("obs", "message"),
    [
        ([1.0, 2.0, 3.0], r"shape \(3,\); expected \(4,\) or \(n, 4\)"),
        (np.zeros((2, 5)), r"shape \(2, 5\); expected \(n, 4\)"),
        (np.zeros((1, 2, 4)), r"shape \(1, 2, 4\); expected \(4,\) or \(n, 4\)"),
        ([[1, 2, 3, 4], [1, 2, np.inf, 4]], r"observation\[1, 2\] is inf"),
        ([1, np.nan, 3, 4], r"observation\[1\] is nan"),
        (["a", "b", "c", "d"], "expected numbers"),
        (["1", "2", "3", "4"], "of type <U1; expected numbers"),
        (np.zeros(4, complex), "of type complex128; expected numbers"),
        (np.zeros(4, "datetime64[s]"), "of type datetime64.*expected numbers"),
        (np.array([1.0, None, 2.0, 3.0], object), "of type object; expected numbers"),
        (np.ma.masked_array(np.zeros(4), mask=[0, 1, 1, 0]), "has masked values; expected numbers"),
        ([1.0, 2.0, 1e300, 4.0], r"has the value 1e\+300, too large for float32"),
        ([1.0, 3e38, 3.0, 4.0], r"observation\[1\] is 3e\+38, which is too large: normalised"),
    ],
)
def test_unusable_observations_are_refused(obs: Any, message: str, tmp_path: Path) -> None:
    policy = make_policy()
    policy.save(tmp_path / "policy")
    for kind in (policy, runtime.load_policy(tmp_path / "policy")):
        with pytest.raises(DataError, match=message):
            kind.predict(obs)


def test_an_observation_may_be_a_tensor_with_a_gradient() -> None:
    policy, obs = make_policy(), torch.arange(4.0)
    expected = policy.predict(obs.numpy())
    np.testing.assert_array_equal(policy.predict(obs.requires_grad_()), expected)
    unmasked = np.ma.masked_array(np.arange(4.0), mask=[0] * 4)
    np.testing.assert_array_equal(policy.predict(unmasked), expected)


def test_a_diverged_policy_says_so() -> None:
    policy = make_policy()
    with torch.no_grad():
        output_bias(policy).fill_(torch.nan)
    with pytest.raises(RunError, match="training diverged"):
        policy.predict([0, 0, 0, 0])


def test_unusable_states_are_refused() -> None:
    policy = make_policy()
    with pytest.raises(DataError, match="2 observations for 3 slots"):
        policy.act(np.zeros((2, 4)), policy.start(3))
    with pytest.raises(DataError, match=r"expected \(n, 4\)"):
        policy.act(np.zeros(4), policy.start(1))
    with pytest.raises(ConfigError, match="no goal and no target return"):
        policy.start(1, target_return=90.0)


def test_unusable_parts_are_refused() -> None:
    actor = DeterministicActor(4, 2, [8], Learners())
    with pytest.raises(ConfigError, match="obs_mean has 3 entries, observations 4"):
        Policy(actor, SPEC, [0.0] * 3)
    with pytest.raises(ConfigError, match=r"obs_std\[2\] is 0"):
        Policy(actor, SPEC, MEAN, [1, 1, 0, 1])
    with pytest.raises(ConfigError, match="obs_dim is 5, and the dataset's is 4"):
        Policy(DeterministicActor(5, 2, [8], Learners()), SPEC)
    with pytest.raises(ConfigError, match="bounds are not finite"):
        Policy(actor, Spec((0.0,) * 4, (1.0,) * 4, (-INF,) * 2, (INF,) * 2))
    with pytest.raises(ConfigError, match="needs the methods mode, sample and spec"):
        Policy(nn.Linear(4, 2), SPEC)


def test_saving_never_replaces_what_it_should_not(tmp_path: Path) -> None:
    policy = make_policy()
    policy.save(tmp_path / "policy")
    with pytest.raises(RunError, match="already holds a policy"):
        policy.save(tmp_path / "policy")
    with torch.no_grad():
        output_bias(policy).add_(1.0)
    policy.save(tmp_path / "policy", overwrite=True)
    np.testing.assert_array_equal(
        load_policy(tmp_path / "policy").predict([0] * 4), policy.predict([0] * 4)
    )
    assert [p.name for p in tmp_path.iterdir()] == ["policy"]
    (tmp_path / "policy" / "notes.txt").write_text("mine")
    with pytest.raises(RunError, match=r"not a policy \(it holds 'notes.txt'\)"):
        policy.save(tmp_path / "policy", overwrite=True)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(RunError, match="is not a policy"):
        policy.save(tmp_path / "file", overwrite=True)
    with pytest.raises(RunError, match="cannot be written"):
        policy.save(tmp_path / "file" / "policy")


@pytest.mark.parametrize("failing", [0, 1])
def test_a_failed_save_leaves_the_old_policy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    policy = make_policy()
    policy.save(tmp_path / "policy")
    before = policy.predict([0] * 4)
    rename, calls = os.rename, []

    def sometimes(source: Path, target: Path) -> None:
        calls.append(source)
        if len(calls) == failing + 1:
            raise OSError("disk is gone")
        rename(source, target)

    monkeypatch.setattr(os, "rename", sometimes)
    with torch.no_grad():
        output_bias(policy).add_(1.0)
    with pytest.raises(RunError, match="cannot be written: disk is gone"):
        policy.save(tmp_path / "policy", overwrite=True)
    np.testing.assert_array_equal(load_policy(tmp_path / "policy").predict([0] * 4), before)
    assert [p.name for p in tmp_path.iterdir()] == ["policy"]


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit])
def test_a_stopped_save_leaves_the_old_policy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: type[BaseException]
) -> None:
    policy = make_policy()
    policy.save(tmp_path / "policy")
    rename = os.rename

    def stopped(source: Path, target: Path) -> None:
        rename(source, target)
        if target.name == ".policy.old.tmp":
            raise stop

    monkeypatch.setattr(os, "rename", stopped)
    with pytest.raises(stop):
        policy.save(tmp_path / "policy", overwrite=True)
    assert [p.name for p in tmp_path.iterdir()] == ["policy"]
    load_policy(tmp_path / "policy")


def test_a_kill_during_a_replacement_leaves_a_policy(tmp_path: Path) -> None:
    policy = make_policy()
    policy.save(tmp_path / "run" / "policy")
    before = policy.predict([0] * 4)
    # What a kill between the two renames leaves: the old policy aside, the new one not yet there.
    (tmp_path / "run" / "policy").rename(tmp_path / "run" / ".policy.old.tmp")
    (tmp_path / "run" / ".policy.new.tmp").mkdir()
    for path in (tmp_path / "run", tmp_path / "run" / "policy"):
        np.testing.assert_array_equal(load_policy(path).predict([0] * 4), before)
    with pytest.raises(RunError, match="already holds a policy"):
        policy.save(tmp_path / "run" / "policy")
    with torch.no_grad():
        output_bias(policy).add_(1.0)
    policy.save(tmp_path / "run" / "policy", overwrite=True)
    np.testing.assert_array_equal(
        load_policy(tmp_path / "run").predict([0] * 4), policy.predict([0] * 4)
    )
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["policy"]


def edit(path: Path, **changes: Any) -> None:
    header = json.loads((path / "policy.json").read_text()) | changes
    (path / "policy.json").write_text(json.dumps(header))


def test_unusable_files_are_refused(tmp_path: Path) -> None:
    policy = make_policy()

    def saved(name: str) -> Path:
        policy.save(tmp_path / name)
        return tmp_path / name

    with pytest.raises(RunError, match="no such directory"):
        load_policy(tmp_path / "none")
    with pytest.raises(RunError, match="no policy here"):
        load_policy(tmp_path)
    saved("several/seed-1/policy")
    with pytest.raises(RunError, match="choose one of seed-1"):
        load_policy(tmp_path / "several")
    edit(saved("newer"), version=2)
    with pytest.raises(RunError, match="version is 2, and this offrl reads version 1"):
        load_policy(tmp_path / "newer")
    edit(saved("foreign"), format="onnx")
    with pytest.raises(RunError, match="format is 'onnx'"):
        load_policy(tmp_path / "foreign")
    edit(saved("entry"), spec={"obs_low": [0.0]})
    with pytest.raises(RunError, match="is missing; the policy is damaged"):
        load_policy(tmp_path / "entry")
    (saved("json") / "policy.json").write_text("{")
    with pytest.raises(RunError, match="cannot be read"):
        load_policy(tmp_path / "json")
    weights = saved("cut") / "policy.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    with pytest.raises(RunError, match="damaged or from another policy"):
        load_policy(tmp_path / "cut")
    (saved("gone") / "policy.safetensors").unlink()
    with pytest.raises(RunError, match="cannot be read"):
        load_policy(tmp_path / "gone")
    edit(saved("actor"), actor={"type": "GausianActor"})
    with pytest.raises(ConfigError, match=r"'GausianActor'.*did you mean 'GaussianActor'"):
        load_policy(tmp_path / "actor")
    for name, value in (("actor", []), ("actor", None), ("provenance", "abc")):
        edit(saved("object"), **{name: value})
        for load in (load_policy, runtime.load_policy):
            with pytest.raises(RunError, match=f"the entry '{name}' is .*; it must be an object"):
                load(tmp_path / "object")
        shutil.rmtree(tmp_path / "object")
    bounds = json.loads((saved("swapped") / "policy.json").read_text())["spec"]
    edit(tmp_path / "swapped", spec=bounds | {"action_low": [5.0, 5.0]})
    for load in (load_policy, runtime.load_policy):
        with pytest.raises(RunError, match=r"damaged: action_low\[0\] is 5 and action_high\[0\] 2"):
            load(tmp_path / "swapped")
    sizes = {"type": "DeterministicActor", "obs_dim": 4, "act_dim": 2}
    for actor in (
        sizes,
        {**sizes, "hidden": "88"},
        {**sizes, "hidden": [10**9]},
        {**sizes, "hidden": [10**6, 10**6]},
        {**sizes, "obs_dim": 10**12, "hidden": [8, 8]},
        {**sizes, "type": [1]},
    ):
        edit(saved("sizes"), actor=actor)
        with pytest.raises(RunError, match="the entry 'actor' is damaged"):
            load_policy(tmp_path / "sizes")
        shutil.rmtree(tmp_path / "sizes")
    narrow = {"type": "DeterministicActor", "obs_dim": 4, "act_dim": 2, "hidden": [8, 6]}
    edit(saved("narrow"), actor=narrow)
    with pytest.raises(RunError, match=r"do not fit.*net.2.bias' is \(1, 8\) .* \(1, 6\)"):
        load_policy(tmp_path / "narrow")


class LinearActor(nn.Module):
    """A user's own network."""

    def __init__(self, inputs: int = 4) -> None:
        super().__init__()
        self.layer = nn.Linear(inputs, 2)

    def mode(self, obs: Tensor) -> Tensor:
        return torch.tanh(self.layer(obs))

    def sample(self, obs: Tensor, noise: Tensor) -> Tensor:
        return self.mode(obs) + 0.1 * noise

    def spec(self) -> dict[str, Any]:
        return {"type": "LinearActor", "inputs": 4}


def test_a_users_own_actor(tmp_path: Path) -> None:
    policy = Policy(LinearActor(), SPEC)
    policy.save(tmp_path / "policy")
    with pytest.raises(ConfigError, match="pass its class as load_policy"):
        load_policy(tmp_path / "policy")
    for actor in (LinearActor, LinearActor()):
        loaded = load_policy(tmp_path / "policy", actor=actor)
        np.testing.assert_array_equal(loaded.predict([1] * 4), policy.predict([1] * 4))
    with pytest.raises(ConfigError, match="cannot be made from the saved spec"):
        load_policy(tmp_path / "policy", actor=DeterministicActor)
