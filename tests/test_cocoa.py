"""COCOA's anchors and bilinear networks."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from problems import build, small_config, updates, walk
from torch import Tensor

import offrl.anchors
from offrl import checkpoints, runtime
from offrl.actors import GaussianActor, SquashedGaussianActor, actor_from_spec
from offrl.agent import Agent
from offrl.anchors import Anchors, AnchorTable, divergent_rollouts, fit_seeker
from offrl.cocoa import AnchoredTrunk, Bilinear, Composition, CompositionalTrunk
from offrl.critics import Critic, Value
from offrl.datasets.offline import OfflineDataset
from offrl.datasets.replay import Replay, transitions
from offrl.dynamics import DynamicsConfig, GaussianEnsemble
from offrl.errors import ConfigError, DataError
from offrl.networks import Learners, learner_view
from offrl.streams import Stream
from offrl.types import Batch

SMALL = DynamicsConfig(
    members=3, elites=2, hidden=(32,), weight_decay=(0.0, 0.0), lr=3e-3, batch_size=64, epochs=30
)


def drift(size: int = 1_500) -> Replay:
    """s' = s + (0.3 a, 0.3 a'), from states within the unit square; episodes of one step."""
    rng = np.random.default_rng(0)
    start = rng.uniform(-1, 1, (size, 2)).astype(np.float32)
    action = rng.uniform(-1, 1, (size, 2)).astype(np.float32)
    end = start + np.float32(0.3) * action
    dataset = OfflineDataset.from_episodes(
        [
            {
                "obs": np.stack([start[i], end[i]]),
                "action": action[i : i + 1],
                "reward": np.zeros(1, np.float32),
                "terminated": False,
                "truncated": True,
            }
            for i in range(size)
        ],
        name="drift",
    )
    return transitions(dataset)


def everything(replay: Replay) -> Batch:
    return replay.batch(replay.index)


@pytest.fixture(scope="module")
def anchors() -> Anchors:
    found = Anchors(2, 2, 1, SMALL)
    found.fit(everything(drift()), None)
    return found


# -- anchors --------------------------------------------------------------------------------------


def outside(size: int = 400) -> Tensor:
    """States around the square, at distances up to 1 of it."""
    rng = np.random.default_rng(1)
    states = rng.uniform(-2, 2, (4 * size, 2)).astype(np.float32)
    return torch.from_numpy(states[np.abs(states).max(1) > 1.2][:size])


def test_the_seeker_moves_states_towards_the_data(anchors: Anchors) -> None:
    data = everything(drift()).obs
    before = outside()
    after = anchors(before)
    far, near = (torch.cdist(x, data).amin(1) for x in (before, after))
    assert float(near.mean()) < 0.75 * float(far.mean())
    assert float((near < far).float().mean()) > 0.85
    further = Anchors(2, 2, 3, SMALL)
    further.load_state_dict(anchors.state_dict())
    assert float(torch.cdist(further(before), data).amin(1).mean()) < float(near.mean())


def test_an_anchor_is_a_step_of_the_seeker_in_the_model(anchors: Anchors) -> None:
    obs = outside(5)
    action = torch.tanh(anchors.seeker(obs))
    once = anchors.dynamics.expected(obs, action)
    torch.testing.assert_close(anchors(obs), once)
    # The system is known: the model has learned it.
    torch.testing.assert_close(once, obs + 0.3 * action, rtol=0, atol=0.1)
    twice = Anchors(2, 2, 2, SMALL)
    twice.load_state_dict(anchors.state_dict())
    torch.testing.assert_close(twice(obs), anchors(once))


def test_anchors_are_a_function_of_the_data(anchors: Anchors) -> None:
    again = Anchors(2, 2, 1, SMALL)
    again.fit(everything(drift()), None)
    assert again.fingerprint() == anchors.fingerprint()
    assert torch.equal(again(outside(50)), anchors(outside(50)))
    other = Anchors(2, 2, 1, dataclasses.replace(SMALL, epochs=2))
    other.fit(everything(drift(300)), None)
    assert other.fingerprint() != anchors.fingerprint()


def test_what_was_learned_is_found_again_on_disk(tmp_path: Path) -> None:
    quick = dataclasses.replace(SMALL, epochs=2)
    batch = everything(drift(200))
    first = Anchors(2, 2, 1, quick)
    first.fit(batch, tmp_path)
    (file,) = tmp_path.iterdir()
    stamp = file.stat().st_mtime_ns
    second = Anchors(2, 2, 3, quick)  # the horizon is no part of what is learned
    second.fit(batch, tmp_path)
    assert second.fingerprint() == first.fingerprint()
    assert [f.stat().st_mtime_ns for f in tmp_path.iterdir()] == [stamp]

    for changed in (dataclasses.replace(batch, action=batch.action + 1e-3), batch):
        model = quick if changed is not batch else dataclasses.replace(quick, lr=1e-2)
        Anchors(2, 2, 1, model).fit(changed, tmp_path)
    assert len(list(tmp_path.iterdir())) == 3

    file.write_bytes(file.read_bytes()[:1_000])
    third = Anchors(2, 2, 1, quick)
    with pytest.warns(UserWarning, match="cannot be used, anchors are learned anew"):
        third.fit(batch, tmp_path)
    assert third.fingerprint() == first.fingerprint()


def test_terminal_transitions_are_left_out(tmp_path: Path) -> None:
    batch = everything(drift(200))
    ended = torch.zeros(200, dtype=torch.bool)
    ended[::4] = True
    mask = 1.0 - ended.float()
    wrong = torch.where(ended[:, None], 100.0 + batch.next_obs, batch.next_obs)
    found = []
    for next_obs in (batch.next_obs, wrong):
        quick = Anchors(2, 2, 1, dataclasses.replace(SMALL, epochs=2))
        quick.fit(dataclasses.replace(batch, next_obs=next_obs, mask=mask), None)
        found.append(quick.fingerprint())
    assert found[0] == found[1]
    with pytest.raises(DataError, match="fewer than two transitions that do not end"):
        quick.fit(dataclasses.replace(batch, mask=0.0 * mask), None)


def test_reverse_rollouts_keep_their_direction_and_lead_back() -> None:
    batch = everything(drift(600))
    reverse = GaussianEnsemble(2, 2, SMALL)
    reverse.fit(batch.next_obs, batch.action, batch.obs)
    # Actions that are corners, so that a direction can be told from its noise.
    corners = torch.sign(batch.action)
    states, actions = divergent_rollouts(reverse, batch.next_obs, corners)
    assert states.shape == actions.shape == (3_000, 2)
    paths, taken = states.reshape(5, 600, 2), actions.reshape(5, 600, 2)
    assert torch.equal(torch.sign(taken), torch.sign(taken[:1]).expand(5, -1, -1))
    assert float(taken.abs().max()) <= 1.0
    noise = taken.abs() - 0.8
    assert float(noise.mean()) == pytest.approx(0.0, abs=0.01)
    assert float(noise.std()) == pytest.approx(0.1, abs=0.01)
    # Forwards, each action leads to the state that the roll-out came from.
    led = (paths[1:] + 0.3 * taken[1:] - paths[:-1]).norm(dim=-1)
    assert float(led.mean()) < 0.1
    # They diverge: further from where they began with each step.
    away = paths.norm(dim=-1).mean(1)
    assert (away[1:] > away[:-1]).all()


def test_the_seeker_fits_what_it_is_shown() -> None:
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(2_000, 2, generator=generator)
    actions = torch.tanh(states @ torch.tensor([[0.5, -0.3], [0.2, 0.4]]))
    seeker = fit_seeker(states, actions, 20)
    error = (torch.tanh(seeker(states)) - actions).square().mean()
    assert float(error) < 2e-3
    assert float((torch.tanh(fit_seeker(states, actions, 1)(states)) - actions).square().mean()) > (
        float(error)
    )


def test_the_seeker_ends_after_five_epochs_without_a_change(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    drawn: list[int] = []

    class Counted(Stream):
        def block(self, index: int) -> np.random.Generator:
            drawn.append(index)
            return super().block(index)

    monkeypatch.setattr(offrl.anchors, "Stream", Counted)
    monkeypatch.setattr(offrl.anchors, "SEEKER_LR", 0.0)
    fit_seeker(torch.ones(64, 2), torch.ones(64, 1), 50)
    assert drawn == list(range(6))  # the first epoch has none before it to be like


# -- pairs ----------------------------------------------------------------------------------------


def test_a_pair_is_difference_and_anchor(anchors: Anchors) -> None:
    obs = outside(6).reshape(2, 3, 2)
    pair = anchors.pair(obs)
    delta, anchor = pair.chunk(2, -1)
    torch.testing.assert_close(anchor.reshape(6, 2), anchors(outside(6)))
    torch.testing.assert_close(delta + anchor, obs)
    assert anchors.pair(pair) is pair


def test_the_table_holds_what_would_be_worked_out_anew(anchors: Anchors) -> None:
    rng = np.random.default_rng(0)
    dataset = OfflineDataset.from_episodes(
        [
            {
                "obs": rng.normal(size=(n + 1, 2)).astype(np.float32),
                "action": rng.uniform(-1, 1, (n, 2)).astype(np.float32),
                "reward": np.zeros(n, np.float32),
                "terminated": n % 2 == 0,
                "truncated": n % 2 == 1,
            }
            for n in (4, 1, 7, 2)
        ],
        name="short",
    )
    replay = transitions(dataset, normalize_obs=True)
    for view in (replay, dataclasses.replace(replay, next_obs=0.3 * replay.rows[:, :2])):
        batch = view.batch(view.index)
        table = AnchorTable(anchors, batch)
        rows = view.index[torch.tensor([[0, 5, 3], [13, 5, 4]])]
        trunk = AnchoredTrunk(anchors, (4,), 1, Learners())
        anew = Composition(GaussianActor(2, 2, (4,), Learners(), trunk=trunk)).anew
        found, expected = table.pair(view.batch(rows)), anew(view.batch(rows))
        assert found.obs.shape == (2, 3, 4)
        for name in ("obs", "next_obs", "action", "reward"):
            torch.testing.assert_close(getattr(found, name), getattr(expected, name))


# -- bilinear networks ----------------------------------------------------------------------------


def test_the_bilinear_product_by_hand() -> None:
    net: Any = Bilinear(1, (2,), 3, Learners())
    # What f and g give, made constant: h_t = sum_d f_td g_td, with d running fastest.
    for side, values in (
        (net.difference, [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]),
        (net.anchor, [1.0, 0.0, -1.0, 0.5, 2.0, 1.0]),
    ):
        norm = side[1]
        norm.weight.data.zero_()
        norm.bias.data.copy_(torch.tensor([values]))
    h = net(torch.zeros(4, 1), torch.ones(4, 1))
    torch.testing.assert_close(h, torch.tensor([[1.0 - 3.0, 2.0 + 10.0 + 6.0]]).expand(4, 2))


def test_difference_and_anchor_go_to_their_own_networks() -> None:
    net = Bilinear(2, (8,), 2, Learners())
    delta, anchor = torch.randn(5, 2), torch.randn(5, 2)
    f = net.difference(delta).reshape(5, 8, 2)
    g = net.anchor(anchor).reshape(5, 8, 2)
    torch.testing.assert_close(net(delta, anchor), torch.einsum("btd,btd->bt", f, g))
    assert not torch.equal(net(delta, anchor), net(anchor, delta))


def test_critics_see_the_action_beside_both_parts() -> None:
    trunk = CompositionalTrunk(2, 1, (8,), 2, (6, 5), Learners((3,)), (2,))
    critic = Critic(2, 1, (6, 5), Learners((3,)), trunk=trunk)
    obs, action = torch.randn(4, 4), torch.randn(4, 1)
    bilinear = trunk.bilinear(
        torch.cat([obs[:, :2], action], -1), torch.cat([obs[:, 2:], action], -1)
    )
    features = critic.features(obs, action)
    assert bilinear.shape == (2, 4, 8) and features.shape == (2, 4, 5)
    torch.testing.assert_close(features, trunk.net(bilinear))
    assert critic(obs, action).shape == (2, 4)
    torch.testing.assert_close(critic.first(obs, action), critic(obs, action)[0])
    value = Value(
        2, (6, 5), Learners(), trunk=CompositionalTrunk(2, 0, (8,), 2, (6, 5), Learners())
    )
    assert value(obs).shape == (4,)


def test_stacked_networks_are_those_that_each_seed_gives() -> None:
    both = CompositionalTrunk(2, 1, (8, 7), 2, (6, 5), Learners((3, 4)), (2,)).double()
    obs = torch.randn(2, 9, 4, dtype=torch.float64)
    action = torch.randn(2, 9, 1, dtype=torch.float64)
    stacked = both(obs, action)
    assert stacked.shape == (2, 2, 9, 5)
    for k, seed in enumerate((3, 4)):
        alone = CompositionalTrunk(2, 1, (8, 7), 2, (6, 5), Learners((seed,)), (2,)).double()
        torch.testing.assert_close(stacked[:, k], alone(obs[k], action[k]), rtol=0, atol=1e-12)


@pytest.mark.parametrize("cls", [GaussianActor, SquashedGaussianActor])
def test_a_policy_carries_its_anchors(anchors: Anchors, cls: Any) -> None:
    learners = Learners((0, 1))
    own = Anchors(2, 2, 1, SMALL)
    own.load_state_dict(anchors.state_dict())
    actor = cls(2, 2, (6, 5), learners, trunk=AnchoredTrunk(own, (8, 4), 3, learners))
    view = learner_view(actor, 1)
    made = actor_from_spec(actor.spec())
    made.load_state_dict(view.state_dict())
    obs = outside(7)
    torch.testing.assert_close(made.mode(obs), view.mode(obs), rtol=0, atol=0)
    # Observations as they are, and as the pairs that training makes of them.
    torch.testing.assert_close(view.mode(anchors.pair(obs)), view.mode(obs))
    stacked = actor.mode(torch.stack([obs, obs]))
    torch.testing.assert_close(stacked[1], view.mode(obs))
    # No optimiser can reach what the anchors have learned.
    assert not any("anchors" in name for name, _ in actor.named_parameters())


# -- an agent that uses it ------------------------------------------------------------------------

COCOA = {"cocoa": True, "cocoa_rank": 2, "cocoa_hidden": (6, 5), "cocoa_epochs": 1}


def iql(seeds: tuple[int, ...] = (3,), dtype: torch.dtype = torch.float64) -> tuple[Agent, Replay]:
    return build("iql", walk(), seeds, dtype, small_config("iql", **COCOA))


def test_stacked_agents_are_those_that_each_seed_gives() -> None:
    both, replay = iql((3, 4))
    updates(both, replay, 4)
    held = replay.batch(replay.index[:9].expand(2, -1))
    measured = both.validate(held)
    for k, seed in enumerate((3, 4)):
        alone, _ = iql((seed,))
        updates(alone, replay, 4)
        obs = replay.batch(replay.index[:9]).obs.numpy()
        np.testing.assert_allclose(both.policy(k).predict(obs), alone.policy().predict(obs))
        for name, value in alone.validate(replay.batch(replay.index[:9])).items():
            torch.testing.assert_close(measured[name][k], value, rtol=0, atol=1e-9)


def test_a_run_resumes_to_the_bit(tmp_path: Path) -> None:
    straight, replay = iql(dtype=torch.float32)
    updates(straight, replay, 6)
    first, _ = iql(dtype=torch.float32)
    updates(first, replay, 3)
    checkpoints.save([tmp_path], 3, checkpoints.agent_entries(first), [{}], keep=1)
    second, _ = iql(dtype=torch.float32)
    assert second.fingerprints() == first.fingerprints() and "anchors" in first.fingerprints()
    checkpoints.load([tmp_path], 3, checkpoints.agent_entries(second))
    updates(second, replay, 3, start=3)
    expected = checkpoints.agent_entries(straight)
    assert any(".anchors." in name for name in expected)
    for name, entry in checkpoints.agent_entries(second).items():
        assert torch.equal(entry.tensor, expected[name].tensor), name


def test_a_policy_acts_the_same_in_a_fresh_process(tmp_path: Path) -> None:
    agent, replay = iql(dtype=torch.float32)
    updates(agent, replay, 3)
    policy = agent.policy()
    policy.save(tmp_path / "policy")
    obs = np.random.default_rng(1).normal(size=(5, 3)).astype(np.float32)
    np.save(tmp_path / "obs.npy", obs)
    code = (
        "import sys, json, numpy as np, offrl\n"
        "policy = offrl.load_policy(sys.argv[1] + '/policy')\n"
        "print(json.dumps(policy.predict(np.load(sys.argv[1] + '/obs.npy')).tolist()))\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    np.testing.assert_array_equal(
        np.array(json.loads(result.stdout), np.float32), policy.predict(obs)
    )
    with pytest.raises(ConfigError, match=r"learned dynamics \(COCOA\).*needs torch"):
        runtime.load_policy(tmp_path / "policy")


@pytest.mark.compiled
def test_compiled_graphs_equal_eager() -> None:
    trained = {}
    for backend in ("eager", "aot_eager"):
        agent, replay = iql()
        agent.backend = backend
        updates(agent, replay, 2)
        trained[backend] = agent.state_dict()
    for name, value in trained["eager"].items():
        torch.testing.assert_close(trained["aot_eager"][name], value, rtol=0, atol=1e-9)


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"IQLConfig\.cocoa_rank is 0"):
        small_config("iql", cocoa_rank=0)
    with pytest.raises(ConfigError, match=r"cocoa_hidden is \(\); it must be one or more sizes"):
        small_config("iql", cocoa_hidden=())
