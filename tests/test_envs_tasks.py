"""The small tasks: what their answers are known to be, and their demonstrators."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from numpy.typing import NDArray

from offrl.cli import main
from offrl.datasets.loading import load_dataset
from offrl.datasets.staged import spec_of
from offrl.envs import make, spaces_match
from offrl.envs.goal_reaching import GoalReach
from offrl.envs.goals import flattened
from offrl.envs.memory import Recall
from offrl.envs.outcomes import Outcome
from offrl.envs.reaching import MultiReach
from offrl.envs.scripted import demonstrator
from offrl.envs.tasks import TASKS
from offrl.errors import ConfigError, DataError
from offrl.evaluation import Evaluation, evaluate

# Of these the script is a behaviour to do better than: tests/test_envs_luck.py.
LUCK = [
    name for name in TASKS if TASKS[name].entry_point.split(":")[0].endswith(("luck", "reacher"))
]
REACH, RECALL, GOAL = "offrl/MultiReach-v0", "offrl/Recall-v0", "offrl/GoalReach-v0"
Array = NDArray[Any]


@pytest.mark.parametrize("env_id", [name for name in TASKS if "Reacher" not in name])
def test_gymnasiums_checker_passes(env_id: str) -> None:
    env = make(env_id)
    check_env(env.unwrapped, skip_render_check=True)
    spaces = [env.action_space, flattened(env).observation_space]
    for space in spaces:
        assert isinstance(space, gymnasium.spaces.Box) and space.is_bounded()
    assert env.spec is not None and env.spec.max_episode_steps == TASKS[env_id].steps


@pytest.mark.parametrize("env_id", [name for name in TASKS if name not in LUCK])
def test_demonstrations_succeed_in_every_way(env_id: str) -> None:
    result = evaluate(demonstrator(env_id), env_id, 100, deterministic=False)
    assert result.success_rate is not None and result.success_rate >= 0.95
    if result.modes is not None:
        shares = np.bincount(result.modes[result.modes >= 0]) / 100
        assert result.ways == len(shares)
        np.testing.assert_allclose(shares, 1 / len(shares), atol=0.15)
        assert result.mode_coverage is not None and result.mode_coverage > 0.9


def test_the_mean_of_the_ways_runs_into_the_wall() -> None:
    script = MultiReach().script()

    def mean_action(obs: Array) -> Array:
        ways = [script.act(obs, np.array([side]), 0)[0] for side in (-1.0, 1.0)]
        return np.mean(ways, 0).astype(np.float32)

    result = evaluate(mean_action, REACH, 20)
    assert result.success_rate == 0 and result.lengths.max() < 20
    # One way alone succeeds, and covers nothing.
    above = evaluate(lambda obs: script.act(obs, np.ones(1), 0)[0], REACH, 20)
    assert (above.success_rate, above.mode_coverage) == (1.0, 0.0)
    assert above.modes is not None and (above.modes == 1).all()


def test_the_side_of_each_wall_is_a_bit_of_the_mode() -> None:
    script = MultiReach(walls=2).script()
    for mode, sides in enumerate([(-1, -1), (1, -1), (-1, 1), (1, 1)]):
        way = np.array(sides, np.float64)

        def act(obs: Array, way: Array = way) -> Array:
            return script.act(obs, way, 0)[0]

        result = evaluate(act, "offrl/MultiReachFour-v0", 3)
        assert result.success_rate == 1 and result.modes is not None
        assert result.modes.tolist() == [mode] * 3


def _recall(policy: Any) -> float:
    """The success of a function of the observation over all cues."""
    env = Recall()
    successes = []
    for cue in range(env.pads):
        obs, info = env.reset(seed=0, options={"cue": cue})
        for _ in range(Recall.limit()):
            obs, _, terminated, _, info = env.step(policy(obs))
            if terminated:
                break
        successes.append(info["success"])
    return float(np.mean(successes))


def test_without_memory_a_cue_is_guessed() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        weights, bias = rng.normal(size=(2, 7)), rng.normal(size=2)
        # Any function of the observation: all cues lead to the same pad, or to none.
        assert _recall(lambda obs, w=weights, b=bias: np.tanh(w @ obs + b)) in (0.0, 0.25)

    memory: dict[str, Any] = {}

    def oracle(obs: Array) -> Array:
        if obs[:4].any():
            memory["goal"] = Recall().places[int(obs[:4].argmax())]
        place: Array = memory["goal"]
        return place

    assert _recall(oracle) == 1.0


def test_the_gate_hides_what_was_done() -> None:
    env = Recall(delay=5, shown=2)
    rng = np.random.default_rng(0)
    seen = []
    for cue in (0, 3):
        obs, _ = env.reset(seed=0, options={"cue": cue})
        row = [obs]
        for _ in range(7):
            obs, *_ = env.step(rng.uniform(-1, 1, 2).astype(np.float32))
            row.append(obs)
        seen.append(np.array(row))
    for row, cue in zip(seen, (0, 3), strict=True):
        assert row[:, :4].any(-1).tolist() == [True] * 2 + [False] * 6 and row[1, cue] == 1
        assert row[:, 4].tolist() == [1.0] * 7 + [0.0]
    np.testing.assert_array_equal(seen[0][2:], seen[1][2:])
    made = make(RECALL, delay=30, shown=2)
    assert made.spec is not None and made.spec.max_episode_steps == 48


def test_goals_are_relabelled_with_what_was_reached() -> None:
    env = GoalReach()
    obs, info = env.reset(seed=1, options={"goal": (0.5, 0.5)})
    np.testing.assert_allclose(obs["desired_goal"], 0.5)
    assert not info["success"]
    for _ in range(5):
        obs, reward, *_, info = env.step(np.array([0.3, 0.1], np.float32))
        assert reward == env.compute_reward(obs["achieved_goal"], obs["desired_goal"], info)
        assert env.compute_reward(obs["achieved_goal"], obs["achieved_goal"]) == 1
    many = env.compute_reward(np.zeros((3, 2)), np.array([[0.05, 0.0], [0.2, 0.0], [0.0, 0.09]]))
    assert many.tolist() == [1, 0, 1]


def test_play_visits_other_goals_first() -> None:
    env, policy = flattened(make(GOAL)), demonstrator(GOAL)
    state, rooms, before = policy.start(1), 0, 0
    for episode in range(20):
        obs, _ = env.reset(seed=episode)
        state, done, track = policy.restart(state, [0], [episode]), False, [obs[:2]]
        while not done:
            actions, state = policy.act(obs[None], state, deterministic=False)
            obs, _, terminated, truncated, _ = env.step(actions[0])
            track.append(obs[:2])
            done = terminated or truncated
        path = np.array(track)
        apart = np.linalg.norm(path - obs[2:4], axis=-1)
        before += int(apart[20:35].min() > 0.3)
        rooms += int((np.sign(path[:, 0]) != np.sign(path[0, 0])).any())
    assert before >= 10 and rooms >= 10


@pytest.mark.parametrize("env_id", [REACH, GOAL])
def test_a_demonstration_follows_from_seed_and_episode(env_id: str) -> None:
    def played(seed: int, slots: int) -> Evaluation:
        return evaluate(demonstrator(env_id, seed), env_id, 6, slots=slots, deterministic=False)

    first, beside, other = played(0, 6), played(0, 2), played(1, 6)
    np.testing.assert_array_equal(first.returns, beside.returns)
    np.testing.assert_array_equal(first.lengths, beside.lengths)
    policy, again = demonstrator(env_id, 3), demonstrator(env_id, 3)
    obs = np.zeros((2, len(policy.spec.obs_low)), np.float32)
    actions = policy.act(obs, policy.start(2), deterministic=False)[0]
    np.testing.assert_array_equal(actions, again.act(obs, again.start(2), deterministic=False)[0])
    assert (actions != policy.act(obs, policy.start(2))[0]).any()
    assert (first.returns != other.returns).any() or (first.lengths != other.lengths).any()


def test_importing_registers_nothing_and_leaves_mujoco_alone() -> None:
    code = (
        "import sys, gymnasium, offrl.envs.making, offrl.envs.scripted\n"
        "assert not [i for i in gymnasium.registry if i.startswith('offrl/')]\n"
        "assert 'mujoco' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[1], check=True)


def test_what_cannot_be_made_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"did you mean 'offrl/MultiReach-v0'.*offrl/Recall-v0"):
        make("offrl/MultiReach")
    with pytest.raises(ConfigError, match="walls is 3"):
        make(REACH, walls=3)
    with pytest.raises(ConfigError, match="pads is 9; it must be at least 2 and at most 8"):
        make(RECALL, pads=9)
    with pytest.raises(ConfigError, match="delay is -1"):
        make(RECALL, delay=-1)
    with pytest.raises(ConfigError, match="cue is 4"):
        make(RECALL).reset(options={"cue": 4})
    for task in (MultiReach(), Recall(delay=0)):
        task.reset(seed=0)
        task.step(np.zeros(2))
        with pytest.raises(DataError, match=r"the action is \[nan, 0.0\]"):
            task.step(np.array([np.nan, 0.0]))
    with pytest.raises(ConfigError, match=r"no demonstrator comes with Hopper-v5.*offrl/Recall-v0"):
        demonstrator("Hopper-v5")
    with pytest.raises(ConfigError, match="goal from the observation"):
        demonstrator(RECALL).start(1, goal=np.zeros(2))


def test_what_infos_say() -> None:
    nothing = Outcome().after({})
    assert (nothing.success, nothing.mode, nothing.modes) == (None, None, None)
    fetch = Outcome().after({"is_success": 1.0}).after({"is_success": 0.0})
    assert fetch.success is True
    ways = Outcome().after({"success": False, "mode": -1, "modes": 2})
    assert ways.after({"mode": 1}) == Outcome(False, 1, 2)


# Collecting


def _collect(env_id: str, out: Path, *words: Any) -> int:
    command = ["data", "collect", "--env", env_id, "--policy", "scripted", "--out", out, *words]
    return main([str(word) for word in command])


def test_the_command_collects_demonstrations(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "reach"
    assert _collect(REACH, out, "--episodes", 30, "--seed", 2) == 0
    dataset = load_dataset(out)
    assert dataset.num_episodes == 30 and dataset.env_id == REACH and dataset.time_limit == 60
    made = dataset.provenance
    assert made["quality"] == "scripted" and made["seed"] == 2
    shares = made["share_of_episodes"]
    assert shares["success"] >= 0.95 and shares["mode_0"] + shares["mode_1"] >= 0.95
    # A mark is of steps: a way marks its whole episodes, success the last step of each.
    last = dataset.starts + dataset.lengths - 1
    assert dataset.marks["success"][last].mean() == dataset.marks["success"].sum() / 30
    np.testing.assert_array_equal(dataset.marks["success"][last], dataset.rows[last, -3] > 0)
    above = dataset.marks["mode_1"][dataset.starts]
    middle = dataset.rows[dataset.starts + dataset.lengths // 2, 1]
    np.testing.assert_array_equal(above, middle > 0)

    assert dataset.env_id is not None
    result = evaluate(demonstrator(dataset.env_id), dataset.env_id, 5)
    spaces_match(make(dataset.env_id), dataset.spec)
    assert "success 100.0 % (5 of 5)" in str(result) and "coverage" in str(result)
    assert result.to_json()["success"] == [True] * 5

    assert _collect(REACH, tmp_path / "x", "--episodes", 3, "--steps", 9) == 2
    assert "give one of them" in capsys.readouterr().err
    assert _collect(REACH, tmp_path / "x", "--quality", "expert") == 2
    assert "whose quality is scripted" in capsys.readouterr().err
    assert _collect("Hopper-v5", tmp_path / "x", "--episodes", 1) == 2
    assert "no demonstrator comes with Hopper-v5" in capsys.readouterr().err
    sac = ["data", "collect", "--env", GOAL, "--quality", "expert", "--out", str(tmp_path / "x")]
    assert main(sac) == 2
    assert "observes a dictionary" in capsys.readouterr().err


def test_dictionaries_are_collected_with_their_keys(tmp_path: Path) -> None:
    out = tmp_path / "goals"
    assert _collect(GOAL, out, "--episodes", 4) == 0
    dataset = load_dataset(out)
    keys = {"achieved_goal": (0, 2), "desired_goal": (2, 4), "observation": (4, 8)}
    assert dataset.spec.obs_keys == keys and dataset.num_steps == 240
    assert dataset.truncated.sum() == 4 and not dataset.terminated.any()
    np.testing.assert_array_equal(dataset.obs[:, :2], dataset.obs[:, 4:6])
    spaces_match(make(GOAL, obs_keys=dataset.spec.obs_keys), dataset.spec)
    reached = dataset.following(dataset.step_rows)[:, :2]
    rewards = GoalReach().compute_reward(reached, dataset.obs[:, 2:4])
    np.testing.assert_array_equal(rewards, dataset.reward)
    np.testing.assert_array_equal(dataset.marks["success"][dataset.step_rows], rewards > 0)


# Tasks of the field


def test_fetch_reaches_by_proportional_control() -> None:
    pytest.importorskip("gymnasium_robotics", reason="needs the extra `robot`")
    policy = demonstrator("FetchReach-v4")
    keys = policy.spec.obs_keys
    assert keys is not None and keys["desired_goal"] == (3, 6)
    result = evaluate(policy, "FetchReach-v4", 3, deterministic=False)
    assert result.success_rate == 1.0 and result.lengths.tolist() == [50] * 3


def test_the_human_demonstrations_of_the_door(outside_data: Path) -> None:
    pytest.importorskip("gymnasium_robotics", reason="needs the extra `robot`")
    file = outside_data / "adroit" / "door-human-rebuilt.hdf5"
    dataset = load_dataset(str(file), env_id="AdroitHandDoor-v1")
    assert (dataset.num_episodes, dataset.num_steps) == (25, 6_729)
    assert dataset.env_id == "AdroitHandDoor-v1"
    assert dataset.returns().mean() == pytest.approx(796, abs=1)
    env = make(dataset.env_id)
    spaces_match(env, dataset.spec)
    assert spec_of(env).action_low == dataset.spec.action_low
    env.reset(seed=0)
    *_, info = env.step(dataset.action[0])
    assert Outcome().after(info).success is False
