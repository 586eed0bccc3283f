import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium
import h5py
import numpy as np
import pytest

from offrl.datasets.offline import Spec
from offrl.envs import adroit, make, spaces_match
from offrl.envs.goals import FlattenKeys
from offrl.errors import ConfigError, MissingDependencyError

INF = float("inf")
Env = gymnasium.Env[Any, Any]


class Point(gymnasium.Env[Any, Any]):
    """Dictionary observations, one of them nested."""

    def __init__(self, scale: float = 1.0) -> None:
        self.scale = scale
        box = gymnasium.spaces.Box(-1.0, 1.0, (2,))
        inner = gymnasium.spaces.Dict({"far": gymnasium.spaces.Box(0.0, 9.0, (1,))})
        self.observation_space = gymnasium.spaces.Dict(
            {"observation": box, "goals": inner, "id": gymnasium.spaces.Discrete(3)}
        )
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (2,))

    def reset(self, **keywords: Any) -> tuple[Any, dict[str, Any]]:
        return {"observation": np.array([0.1, 0.2]), "goals": {"far": np.array([7.0])}}, {}


def test_by_id_by_function_and_with_keywords() -> None:
    assert make("Hopper-v5").spec.id == "Hopper-v5"  # type: ignore[union-attr]
    assert make("Hopper-v5", max_episode_steps=7).spec.max_episode_steps == 7  # type: ignore[union-attr]
    made = make(Point, scale=3.0)
    assert isinstance(made, Point) and made.scale == 3.0


@pytest.mark.usefixtures("unchecked")
def test_an_environment_itself_is_refused() -> None:
    with pytest.raises(ConfigError, match="an environment; pass a function that makes it"):
        make(Point())  # type: ignore[arg-type]


def test_unknown_ids_are_refused_with_near_ones() -> None:
    with pytest.raises(ConfigError, match=r"unknown environment 'Hoper-v5', did you mean 'Hopper"):
        make("Hoper-v5")
    with pytest.raises(ConfigError, match="cannot be made"):
        make("Hopper-v5", colour="red")
    with pytest.raises(ConfigError, match="cannot be made"):
        make("no_such_module:Robot-v0")
    with pytest.raises(ConfigError, match="returned list, not a gymnasium"):
        make(lambda: [])  # type: ignore[arg-type,return-value]


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gymnasium_robotics", None)
    known = {k: v for k, v in gymnasium.registry.items() if not k.startswith("Adroit")}
    monkeypatch.setattr(gymnasium.envs.registration, "registry", known)
    monkeypatch.setattr(gymnasium, "registry", known)
    with pytest.raises(MissingDependencyError, match=r"pip install 'offrl\[robot\]'"):
        make("AdroitHandDoor-v1")
    with pytest.raises(ConfigError, match="unknown environment"):
        make("Hoper-v5")


def test_the_bare_name_is_refused_and_the_tables_need_no_gymnasium() -> None:
    root = Path(__file__).parents[1]
    bare = [sys.executable, "-c", "import envs"]
    done = subprocess.run(bare, cwd=root, capture_output=True, text=True, check=False)
    assert "this package is offrl.envs, not envs" in done.stderr
    light = "import sys, offrl.envs.references; assert 'gymnasium' not in sys.modules"
    subprocess.run([sys.executable, "-c", light], cwd=root, check=True)


def test_dictionaries_take_the_datasets_layout() -> None:
    env = make(Point, obs_keys={"goals/far": (2, 3), "observation": (0, 2)})
    obs, _ = env.reset()
    np.testing.assert_allclose(obs, [0.1, 0.2, 7.0], rtol=1e-6)
    assert obs.dtype == np.float32
    box = gymnasium.spaces.Box(np.array([-1, -1, 0], "f4"), np.array([1, 1, 9], "f4"))
    assert env.observation_space == box


@pytest.mark.parametrize(
    ("obs_keys", "message"),
    [
        ({"observaton": (0, 2)}, "no key 'observaton', did you mean 'observation'"),
        ({"observation": (0, 3)}, "has 2 entries in the environment and 3 in the dataset"),
        ({"id": (0, 1)}, "only boxes can be used"),
    ],
)
def test_layouts_that_do_not_fit_are_refused(
    obs_keys: dict[str, tuple[int, int]], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        FlattenKeys(Point(), obs_keys)
    with pytest.raises(ConfigError, match="observations have the keys"):
        make("Hopper-v5", obs_keys=obs_keys)


def test_spaces_that_match_and_that_do_not() -> None:
    hopper = make("Hopper-v5")
    spaces_match(hopper, Spec.unbounded(11, 3))
    with pytest.raises(ConfigError, match=r"Hopper-v5 .* observations: 11 entries, dataset 17"):
        spaces_match(hopper, Spec.unbounded(17, 3))
    with pytest.raises(ConfigError, match="11 entries, dataset 4; actions: 3 entries, dataset 6"):
        spaces_match(hopper, Spec.unbounded(4, 6))
    narrow = Spec((-INF,) * 11, (INF,) * 11, (-1.0, -0.5, -0.4), (1.0,) * 3)
    with pytest.raises(ConfigError, match=r"low\[1\] is -1, dataset -0.5 \(and 1 more\)"):
        spaces_match(hopper, narrow)
    with pytest.raises(ConfigError, match=r"--action-bounds LOW HIGH for a flat file, the spec"):
        spaces_match(hopper, narrow)
    endless = Spec((-INF,) * 11, (INF,) * 11, (-1.0,) * 3, (1.0, INF, 1.0))
    with pytest.raises(ConfigError, match=r"action high\[1\] is 1, dataset inf"):
        spaces_match(hopper, endless)
    discrete = Spec((-INF,) * 11, (INF,) * 11, (0.0,) * 3, (1.0,) * 3, action_kind="discrete")
    with pytest.raises(ConfigError, match="dataset 3 discrete actions"):
        spaces_match(hopper, discrete)
    with pytest.raises(ConfigError, match="dataset a vector of 4 entries"):
        spaces_match(make(Point), Spec.unbounded(4, 2))
    cart = make("CartPole-v1")
    two = (0.0,) * 2, (1.0,) * 2
    spaces_match(cart, Spec((-INF,) * 4, (INF,) * 4, *two, action_kind="discrete"))
    with pytest.raises(ConfigError, match=r"observation low\[0\] is -4.8, dataset 0"):
        spaces_match(cart, Spec((0.0,) * 4, (INF,) * 4, *two, action_kind="discrete"))
    with pytest.raises(ConfigError, match="actions: Discrete"):
        spaces_match(cart, Spec.unbounded(4, 1))


def door() -> Env:
    pytest.importorskip("gymnasium_robotics", reason="needs the extra `robot`")
    return make("AdroitHandDoor-v1")


def test_replaying_human_demonstrations_gives_their_rewards(outside_data: Path) -> None:
    env = door()
    with h5py.File(outside_data / "adroit" / "door-human-rebuilt.hdf5") as f:
        data = {k: f[k][()] for k in ("observations", "actions", "rewards", "terminals")}
        ends = np.flatnonzero(f["timeouts"][()])
        state = {k: f["infos"][k][()].astype(float) for k in ("qpos", "qvel", "door_body_pos")}

    def play(rows: range, reset: bool) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """Rewards and next observations; with `reset`, each step from its recorded state."""
        rewards: list[float] = []
        observations = []
        env.reset(seed=0)
        for t in rows:
            if reset or t == rows[0]:
                env.unwrapped.set_env_state({k: v[t] for k, v in state.items()})  # type: ignore[attr-defined]
            obs, reward, terminated, truncated, _ = env.step(data["actions"][t])
            assert not terminated and truncated == (len(rewards) == 299)
            rewards.append(float(reward))
            observations.append(obs)
        return np.array(rewards), np.array(observations)

    starts, apart = [0, *(ends[:-1] + 1)], []
    assert len(starts) == 25
    for start, end in zip(starts, ends, strict=True):
        recorded = data["rewards"][start : end + 1], data["observations"][start + 1 : end + 1]
        rewards, observations = play(range(start, end + 1), reset=True)
        np.testing.assert_allclose(rewards, recorded[0], atol=5e-6)
        np.testing.assert_allclose(observations[:-1], recorded[1], atol=5e-6)
        # From the first state on: positions are stored in float32, and contacts magnify that.
        rewards, observations = play(range(start, end + 1), reset=False)
        np.testing.assert_allclose(rewards, recorded[0], atol=2e-4)
        apart.append(np.abs(observations[:-1] - recorded[1]).max())
    assert sum(gap < 5e-5 for gap in apart) >= 24 and max(apart) < 0.05


def test_doors_episodes_are_as_long_as_demonstrations() -> None:
    env = door()
    env.reset(seed=0)
    ends = [env.step(np.zeros(28, np.float32))[2:4] for _ in range(300)]
    assert not any(any(end) for end in ends[:-1]) and ends[-1] == (False, True)
    assert make("AdroitHandDoor-v1", max_episode_steps=200).spec.max_episode_steps == 200  # type: ignore[union-attr]


@pytest.mark.parametrize("env_id", adroit.TASKS)
def test_palm_far_from_the_object_costs(env_id: str) -> None:
    pytest.importorskip("gymnasium_robotics", reason="needs the extra `robot`")
    env = make(env_id)
    assert isinstance(env, adroit.D4RLReward)
    raw = gymnasium.make(env_id)
    for e in (env, raw):
        e.reset(seed=3)
    for action in np.random.default_rng(0).uniform(-1, 1, (20, *env.action_space.shape)):  # type: ignore[misc]
        obs, reward, *_ = env.step(action.astype(np.float32))
        raw_obs, raw_reward, *_ = raw.step(action.astype(np.float32))
        np.testing.assert_array_equal(obs, raw_obs)
        # gymnasium-robotics up to 1.4.2 adds 0.1 a metre; D4RL takes it away.
        assert float(raw_reward) - float(reward) == pytest.approx(0.2 * env.distance())
    assert make(env_id, reward_type="sparse").reset(seed=3)[0].shape == obs.shape


def test_measuring_the_sign_leaves_no_trace() -> None:
    first, second = door(), door()
    assert isinstance(first, adroit.D4RLReward)
    first._measure()
    a, b = first.reset(seed=5)[0], second.reset(seed=5)[0]
    np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(
        first.step(np.zeros(28, np.float32))[0], second.step(np.zeros(28, np.float32))[0]
    )


def test_a_right_or_strange_sign_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    env = door()
    assert isinstance(env, adroit.D4RLReward)
    # What the wrapper makes has D4RL's sign already: wrapping it again changes nothing.
    twice = adroit.D4RLReward(env, "site", "S_handle")
    monkeypatch.setattr(type(env.unwrapped), "step", _with_sign(-0.1))
    fixed = adroit.D4RLReward(env.env, "site", "S_handle")
    assert (twice.coefficient, fixed.coefficient) == (0.1, -0.1)
    monkeypatch.setattr(type(env.unwrapped), "step", _with_sign(0.5))
    with pytest.raises(ConfigError, match=r"AdroitHandDoor-v1 changes by 0.5 a metre"):
        adroit.D4RLReward(env.env, "site", "S_handle")


def _with_sign(coefficient: float) -> Any:
    def step(self: Any, action: Any) -> Any:
        self.do_simulation(self.act_mean, self.frame_skip)
        data = self.data
        gap = np.linalg.norm(data.site("S_grasp").xpos - data.site("S_handle").xpos)
        return None, coefficient * gap, False, False, {}

    return step
