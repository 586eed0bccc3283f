"""Policies of others: plain arrays, and what stable-baselines3 saves, without its pickles."""

import json
import pickle
import zipfile
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tiny_env import Drift

from offrl.datasets.foreign import load_arrays, load_sb3
from offrl.datasets.offline import Spec
from offrl.datasets.rollouts import Rolled, load_any_policy, roll_out
from offrl.datasets.staged import spec_of
from offrl.datasets.staging import Staging
from offrl.envs import make
from offrl.errors import RunError

SPEC = spec_of(Drift())  # two observations, one action in [-2, 2]
OBS = np.array([[0.3, 0.7], [-1.5, 0.2], [4.0, -3.0]], np.float32)

PLAIN: dict[str, Any] = {
    "w0": np.array([[1.0, 2.0], [-1.0, 0.5]]),
    "b0": np.array([0.5, -0.25]),
    "w1": np.array([[2.0, -3.0]]),
    "b1": np.array([0.1]),
    "hidden": np.array("relu"),
    "output": np.array("clip"),
}


def _saved(path: Path, **changes: Any) -> Path:
    arrays = {k: v for k, v in (PLAIN | changes).items() if v is not None}
    np.savez(path, **arrays)
    return path


# Plain arrays


def test_plain_arrays_by_hand(tmp_path: Path) -> None:
    policy = load_arrays(_saved(tmp_path / "p.npz"), SPEC)
    # h = relu(0.2 + 0.5 * 2 + 0.5, -0.2 + 0.25 - 0.25) = (1.7, 0); 2 * 1.7 + 0.1 is clipped
    assert policy.predict(np.array([0.2, 0.5])).tolist() == [2.0]
    # h = relu(-0.6 + 0.2 + 0.5, 0.6 + 0.05 - 0.25) = (0.1, 0.4); 0.2 - 1.2 + 0.1
    assert policy.predict(np.array([-0.6, 0.1])) == pytest.approx([-0.9], abs=1e-6)
    squashed = load_arrays(_saved(tmp_path / "t.npz", output=np.array("tanh")), SPEC)
    assert squashed.predict(np.array([-0.6, 0.1])) == pytest.approx([2 * np.tanh(-0.9)], abs=1e-6)


def test_plain_arrays_normalise_then_clip(tmp_path: Path) -> None:
    moments = {
        "obs_mean": np.array([1.0, 0.0]),
        "obs_var": np.array([3.0, 0.0]),
        "obs_eps": np.array(1.0),
        "obs_clip": np.array(2.0),
        "hidden": np.array("tanh"),
    }
    policy = load_arrays(_saved(tmp_path / "p.npz", **moments), SPEC)
    # x = ((-0.2 - 1) / 2, 0.1 / 1) = (-0.6, 0.1); a far observation counts as (-2, 2)
    h = np.tanh([0.1, 0.4])
    assert policy.predict(np.array([-0.2, 0.1])) == pytest.approx(
        [2 * h[0] - 3 * h[1] + 0.1], abs=1e-6
    )
    h = np.tanh([-2.0 + 4.0 + 0.5, 2.0 + 1.0 - 0.25])
    assert policy.predict(np.array([-99.0, 99.0])) == pytest.approx(
        [2 * h[0] - 3 * h[1] + 0.1], abs=1e-6
    )


def test_plain_arrays_have_no_spread(tmp_path: Path) -> None:
    policy = load_arrays(_saved(tmp_path / "p.npz"), SPEC)
    assert not policy.has_spread
    assert np.array_equal(policy.predict(OBS), policy.predict(OBS, deterministic=False))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"b1": None}, "has no b1"),
        ({"w0": None, "w1": None}, "has no w0"),
        ({"hidden": np.array("gelu")}, "hidden is 'gelu'; it must be relu or tanh"),
        ({"output": None}, "output is 'missing'; it must be tanh or clip"),
        ({"w1": np.ones((1, 3))}, "layer 1 takes 3 numbers, the one before gives 2"),
        ({"b0": np.ones(3)}, r"w0 is \(2, 2\) and b0 \(3,\)"),
        ({"w0": np.full((2, 2), np.nan)}, "not finite"),
        ({"w0": np.ones((2, 5))}, "takes 5 observations .* has 2 and 1"),
        ({"w0": np.array([[{}]], object)}, "cannot be read as an .npz"),
    ],
)
def test_damaged_plain_arrays(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RunError, match=message):
        load_arrays(_saved(tmp_path / "p.npz", **changes), SPEC)


def test_a_file_that_is_no_npz(tmp_path: Path) -> None:
    (tmp_path / "p.npz").write_bytes(b"PK not a zip")
    with pytest.raises(RunError, match=r"cannot be read as an \.npz"):
        load_arrays(tmp_path / "p.npz", SPEC)


@pytest.mark.parametrize(
    ("name", "expected"), [("hopper-ppo", (2438, 20)), ("hopper-ars", (3286, 30))]
)
def test_other_peoples_policies_earn_what_they_should(
    outside_data: Path, tmp_path: Path, name: str, expected: tuple[float, float]
) -> None:
    spec = spec_of(make("Hopper-v5"))
    policy = load_any_policy(outside_data / "policies" / f"{name}.npz", "Hopper-v5", spec, 0)
    returns: list[float] = []
    roll_out(
        "Hopper-v5",
        Rolled(policy, True),
        Staging(tmp_path),
        2_000,
        seed=0,
        progress=lambda _, total: returns.append(total),
    )
    assert len(returns) == 2
    assert np.abs(np.array(returns) - expected[0]).max() < expected[1]


# stable-baselines3


def _model(kind: str, **settings: Any) -> Any:
    import stable_baselines3 as sb3

    return getattr(sb3, kind)("MlpPolicy", Drift(), seed=0, device="cpu", **settings)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("SAC", {}),
        ("SAC", {"policy_kwargs": {"net_arch": [7], "activation_fn": torch.nn.Tanh}}),
        ("TD3", {}),
        ("DDPG", {"policy_kwargs": {"net_arch": [6, 5, 4]}}),
        ("PPO", {}),
        ("A2C", {"policy_kwargs": {"net_arch": [9, 8], "activation_fn": torch.nn.ReLU}}),
    ],
)
def test_what_sb3_saved_acts_as_it_does(
    tmp_path: Path, kind: str, settings: dict[str, Any]
) -> None:
    model = _model(kind, **settings)
    with torch.no_grad():  # so that the actions are not all near 0
        for name, parameter in model.policy.named_parameters():
            parameter.mul_(30.0 if name == "action_net.weight" else 1.5)
    model.save(tmp_path / "m.zip")
    policy = load_any_policy(tmp_path / "m.zip", "unused", SPEC, 0)
    expected, _ = model.predict(OBS, deterministic=True)
    assert np.abs(expected).max() > 0.02
    np.testing.assert_allclose(policy.predict(OBS), expected, atol=1e-5)


@pytest.mark.parametrize("kind", ["SAC", "PPO"])
def test_samples_have_the_spread_of_sb3(tmp_path: Path, kind: str) -> None:
    model = _model(kind)
    model.save(tmp_path / "m.zip")
    policy = load_sb3(tmp_path / "m.zip", SPEC)
    assert policy.has_spread
    obs = np.tile(OBS[:1], (20_000, 1))
    torch.manual_seed(0)
    expected, _ = model.predict(obs, deterministic=False)
    ours = policy.predict(obs, deterministic=False)
    levels = np.linspace(0.05, 0.95, 7)
    np.testing.assert_allclose(np.quantile(ours, levels), np.quantile(expected, levels), atol=0.05)


class Payload:
    """Runs when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


def _zip(path: Path, weights: bytes, data: bytes = b"{}") -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("policy.pth", weights)
        archive.writestr("data", data)
    return path


def test_no_code_in_a_zip_runs(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    torch.save({"actor.mu.weight": Payload(mark)}, tmp_path / "w.pth")
    bad = _zip(tmp_path / "bad.zip", (tmp_path / "w.pth").read_bytes())
    with pytest.raises(RunError, match="cannot be read as a policy of stable-baselines3"):
        load_sb3(bad, SPEC)
    with pytest.raises(RunError, match="cannot be read as a policy of stable-baselines3"):
        load_sb3(_zip(tmp_path / "raw.zip", pickle.dumps(Payload(mark))), SPEC)

    import base64

    model = _model("PPO")
    model.save(tmp_path / "m.zip")
    with zipfile.ZipFile(tmp_path / "m.zip") as archive:
        weights = archive.read("policy.pth")
    planted = base64.b64encode(pickle.dumps(Payload(mark))).decode()
    data = json.dumps({"policy_class": {":serialized:": planted}}).encode()
    policy = load_sb3(_zip(tmp_path / "planted.zip", weights, data), SPEC)
    np.testing.assert_allclose(policy.predict(OBS), model.predict(OBS, None, None, True)[0], 1e-4)
    assert not mark.exists()


class Discrete(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Drift with two actions."""

    def __init__(self) -> None:
        super().__init__(Drift())
        self.action_space = gymnasium.spaces.Discrete(2)


class Picture(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Drift that observes a picture."""

    def __init__(self) -> None:
        super().__init__(Drift())
        self.observation_space = gymnasium.spaces.Box(0, 255, (36, 36, 1), np.uint8)


def test_other_networks_are_refused(tmp_path: Path) -> None:
    import stable_baselines3 as sb3

    def refused(model: Any, message: str, spec: Spec = SPEC) -> None:
        model.save(tmp_path / "m.zip")
        with pytest.raises(RunError, match=message):
            load_sb3(tmp_path / "m.zip", spec)

    refused(_model("SAC", use_sde=True), "gSDE")
    refused(sb3.PPO("MlpPolicy", Discrete(), device="cpu"), "discrete")
    refused(sb3.PPO("CnnPolicy", Picture(), device="cpu"), "feature extractor")
    refused(sb3.DQN("MlpPolicy", Discrete(), device="cpu"), "no known actor")
    gelu = {"policy_kwargs": {"activation_fn": torch.nn.GELU}}
    refused(_model("PPO", **gelu), "activation 'gelu'")
    refused(_model("TD3"), "takes 2 observations", spec_of(make("Pendulum-v1")))


def _truncate(data: bytes) -> bytes:
    return data[: len(data) // 2]


def test_damaged_zips(tmp_path: Path) -> None:
    _model("PPO").save(tmp_path / "m.zip")
    (tmp_path / "half.zip").write_bytes(_truncate((tmp_path / "m.zip").read_bytes()))
    weights = {"actor.mu.weight": torch.ones(1, 2)}
    torch.save(weights, tmp_path / "w.pth")
    lacking = _zip(tmp_path / "lacking.zip", (tmp_path / "w.pth").read_bytes())
    unread = _zip(tmp_path / "unread.zip", (tmp_path / "w.pth").read_bytes(), b"not JSON")
    for path, message in (
        (tmp_path / "half.zip", "cannot be read"),
        (tmp_path / "none.zip", "cannot be read"),
        (lacking, "has no actor.mu.bias"),
        (unread, "cannot be read"),
    ):
        with pytest.raises(RunError, match=message):
            load_sb3(path, SPEC)


def test_noise_of_an_episode_follows_from_its_number(tmp_path: Path) -> None:
    _model("SAC").save(tmp_path / "m.zip")

    def actions(*numbers: int) -> list[NDArray[np.float32]]:
        rolled = Rolled(load_sb3(tmp_path / "m.zip", SPEC, seed=4), deterministic=False)
        return [rolled.episode(n)(OBS[0], 0.0) for n in numbers]

    first, second, third = actions(0, 1, 2)
    assert actions(2)[0] == third and actions(1)[0] == second
    assert len({float(a[0]) for a in (first, second, third)}) == 3
