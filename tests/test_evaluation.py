"""An environment whose returns are known: a counter that ends after a length drawn at reset."""

import json
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from numpy.typing import NDArray

from offrl.actors import DeterministicActor, GaussianActor
from offrl.datasets.offline import Reference, Spec
from offrl.envs import make
from offrl.errors import ConfigError, RunError
from offrl.evaluation import Evaluation, evaluate, start_seed
from offrl.networks import Learners
from offrl.policy import Policy
from offrl.policy_base import BasePolicy, Slots

INF = float("inf")


class Walk(gymnasium.Env[Any, Any]):
    """Observation (x, v) drawn at reset; each step pays 1 plus the first action component.

    It ends after 1 to 40 steps, a number that follows from the seed of the reset.
    """

    observation_space = gymnasium.spaces.Box(-INF, INF, (2,))
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (2,))
    resets: list[int | None]

    def __init__(self) -> None:
        self.resets = []

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.resets.append(seed)
        self.left = int(self.np_random.integers(1, 41))
        self.x = self.np_random.normal(size=2)
        return self.x, {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.left > 0, "stepped after its end"
        assert self.action_space.contains(action)
        self.left -= 1
        self.x = 0.9 * self.x + action
        return self.x, 1.0 + float(action[0]), self.left == 0, False, {}


def still(obs: Any) -> NDArray[np.float32]:
    return np.zeros(2, np.float32)


def a_policy(gaussian: bool = False) -> Policy:
    kind = GaussianActor if gaussian else DeterministicActor
    return Policy(kind(2, 2, [64, 64], Learners()), Spec.unbounded(2, 2))


def test_every_start_is_played_once_to_its_end() -> None:
    result = evaluate(still, Walk, episodes=33, seed=4, slots=5)
    expected = []
    for i in range(33):
        env = Walk()
        env.reset(seed=start_seed(4, i))
        expected.append(env.left)
    assert result.lengths.tolist() == expected == result.returns.tolist()
    assert result.starts.tolist() == [start_seed(4, i) for i in range(33)]
    assert len(set(result.starts.tolist())) == 33


def test_short_episodes_are_not_favoured() -> None:
    # The first 10 of 40 to finish would have a mean length well below that of all starts.
    lengths = evaluate(still, Walk, episodes=40).lengths.tolist()
    assert np.mean(lengths) > 15 > np.mean(sorted(lengths)[:10])


@pytest.mark.parametrize("deterministic", [True, False])
def test_the_result_of_a_start_depends_on_nothing_else(deterministic: bool) -> None:
    policy = a_policy(gaussian=True)
    whole = evaluate(policy, Walk, episodes=33, slots=8, deterministic=deterministic)
    fewer = evaluate(policy, Walk, episodes=21, slots=8, deterministic=deterministic)
    np.testing.assert_array_equal(fewer.returns, whole.returns[:21])
    one_env = evaluate(policy, Walk(), episodes=33, slots=8, deterministic=deterministic)
    np.testing.assert_array_equal(one_env.returns, whole.returns)
    other_starts = evaluate(policy, Walk, 33, 1, slots=8, deterministic=deterministic)
    assert (other_starts.returns != whole.returns).all()


def test_random_and_deterministic_actions_differ() -> None:
    policy = a_policy(gaussian=True)
    random = evaluate(policy, Walk, 5, deterministic=False)
    assert (random.returns != evaluate(policy, Walk, 5).returns).any()


def test_all_kinds_of_policy_agree() -> None:
    policy = a_policy()

    class Theirs:
        def predict(self, obs: Any, deterministic: bool = False) -> tuple[Any, None]:
            assert deterministic
            return policy.predict(obs), None

    expected = evaluate(policy, Walk, 12).returns
    for other in (Theirs(), policy.predict):
        np.testing.assert_allclose(evaluate(other, Walk, 12).returns, expected, rtol=1e-5)


class Counting(BasePolicy):
    """Plays its step within the episode, over 100: a policy whose state matters."""

    def __init__(self) -> None:
        super().__init__(Spec.unbounded(2, 2))
        self.seen: list[tuple[Any, Any]] = []

    def _forward(self, obs: Any, noise: Any) -> Any:
        raise NotImplementedError

    def act(
        self, obs: Any, state: Slots, reward: Any = None, deterministic: bool = True
    ) -> tuple[Any, Slots]:
        self.seen.append((state.step, np.array(reward)))
        action = np.zeros((len(obs), 2), np.float32)
        action[:, 0] = state.step / 100
        return action, Slots(state.episode, state.step + 1)


def test_a_slots_state_begins_anew_with_its_episode() -> None:
    policy = Counting()
    result = evaluate(policy, Walk, episodes=12, slots=3)
    # Sum over t < n of 1 + t / 100.
    expected = [n + n * (n - 1) / 200 for n in result.lengths.tolist()]
    np.testing.assert_allclose(result.returns, expected, rtol=1e-5)
    steps, rewards = (np.array(column) for column in zip(*policy.seen, strict=True))
    assert steps.shape[1] == 3 and (steps == 0).sum() == 12
    # The reward of the step before: none at first, then 1 + t / 100 of step t = 0.
    assert (rewards[steps == 0] == 0).all() and (rewards[steps == 1] == 1).any()
    # The batch keeps its shape where there are fewer episodes than slots.
    policy = Counting()
    evaluate(policy, Walk, episodes=2)
    assert {len(step) for step, _ in policy.seen} == {10}


def test_dictionary_observations_reach_the_policy_flat() -> None:
    class Goal(Walk):
        observation_space = gymnasium.spaces.Dict(  # type: ignore[assignment]
            {"x": gymnasium.spaces.Box(-INF, INF, (2,)), "g": gymnasium.spaces.Box(0, 1, (1,))}
        )

        def reset(self, **keywords: Any) -> tuple[Any, dict[str, Any]]:
            return {"x": super().reset(**keywords)[0], "g": np.array([0.5])}, {}

        def step(self, action: Any) -> Any:
            x, *rest = super().step(action)
            return {"x": x, "g": np.array([0.5])}, *rest

    spec = Spec(
        (-INF,) * 3, (INF,) * 3, (-1.0,) * 2, (1.0,) * 2, obs_keys={"x": (1, 3), "g": (0, 1)}
    )
    policy = Policy(DeterministicActor(3, 2, [16], Learners()), spec)
    result = evaluate(policy, Goal, 12)
    already_flat = evaluate(policy, lambda: make(Goal, obs_keys=spec.obs_keys), 12)
    np.testing.assert_array_equal(result.returns, already_flat.returns)
    by_dictionary = evaluate(policy.predict, Goal, 12)
    np.testing.assert_allclose(result.returns, by_dictionary.returns, rtol=1e-5)


def test_matrices_are_observed_and_executed() -> None:
    class Turn(Walk):
        observation_space = gymnasium.spaces.Dict(  # type: ignore[assignment]
            {
                "turn": gymnasium.spaces.Box(-INF, INF, (2, 2)),
                "grip": gymnasium.spaces.Box(-INF, INF, ()),
            }
        )
        action_space = gymnasium.spaces.Box(-1.0, 1.0, (2, 1))

        def _seen(self) -> dict[str, Any]:
            return {"turn": np.outer(self.x, self.x), "grip": np.float32(self.x[0])}

        def reset(self, **keywords: Any) -> tuple[Any, dict[str, Any]]:
            super().reset(**keywords)
            return self._seen(), {}

        def step(self, action: Any) -> Any:
            assert self.action_space.contains(action)
            self.left -= 1
            self.x = 0.9 * self.x + action[:, 0]
            return self._seen(), 1.0 + float(action[0, 0]), self.left == 0, False, {}

    spec = Spec(
        (-INF,) * 5, (INF,) * 5, (-1.0,) * 2, (1.0,) * 2, obs_keys={"grip": (0, 1), "turn": (1, 5)}
    )
    policy = Policy(DeterministicActor(5, 2, [16], Learners()), spec)
    result = evaluate(policy, Turn, 12)
    by_dictionary = evaluate(policy.predict, Turn, 12)
    np.testing.assert_allclose(result.returns, by_dictionary.returns, rtol=1e-5)
    assert evaluate(lambda obs: np.zeros(2, np.float32), Turn, 2).returns.tolist() == [
        float(n) for n in evaluate(policy, Turn, 2).lengths
    ]


def made(returns: list[float], reference: Reference | None = None) -> Evaluation:
    n = len(returns)
    return Evaluation(np.array(returns), np.arange(1, n + 1), np.full(n, 7), "Walk", 0, reference)


def test_numbers_by_hand() -> None:
    reference = Reference(0.0, 200.0, "a table")
    result = made([100.0, 200.0, 300.0], reference)
    assert (result.mean, result.std, result.score) == (200.0, 100.0, 100.0)
    half = 4.302653 * 100 / 3**0.5
    assert result.ci95 is not None and result.score_ci95 is not None
    assert result.ci95.low == pytest.approx(200 - half, abs=1e-4)
    assert result.score_ci95.high == pytest.approx(100 + half / 2, abs=1e-4)
    written = json.loads(json.dumps(result.to_json()))
    assert written["returns"] == [100, 200, 300] and written["starts"] == [7, 7, 7]
    assert written["score"] == 100.0 and written["reference"]["source"] == "a table"
    assert "return  200.0 ± 100.0" in str(result) and "a table" in str(result)
    alone = made([5.0])
    assert (alone.ci95, alone.score, alone.score_ci95, alone.std) == (None, None, None, 0.0)
    assert "interval" not in str(alone)
    same = made([5.0, 5.0])
    assert same.ci95 is not None and (same.ci95.low, same.ci95.high) == (5.0, 5.0)


def test_what_cannot_be_evaluated_is_refused() -> None:
    with pytest.raises(ConfigError, match="does not match the dataset: observations: 2 entries"):
        evaluate(Policy(DeterministicActor(3, 2, [8], Learners()), Spec.unbounded(3, 2)), Walk)
    with pytest.raises(ConfigError, match="str is not a policy"):
        evaluate("policy", Walk)
    with pytest.raises(ConfigError, match="must be at least 1"):
        evaluate(still, Walk, episodes=0)

    class Broken(Walk):
        def step(self, action: Any) -> Any:
            return self.x, float("nan"), False, False, {}

    with pytest.raises(RunError, match=r"reward nan at step 1 of start 0 \(seed \d+\)"):
        evaluate(still, Broken)


def test_environments_are_closed_unless_they_are_the_callers() -> None:
    closed: list[int] = []

    class Closing(Walk):
        def close(self) -> None:
            closed.append(1)

    evaluate(still, Closing, episodes=3)
    assert len(closed) == 3
    evaluate(still, Closing(), episodes=3)
    assert len(closed) == 3


class PlainArrays:
    """A policy of other people, as arrays: normalise, layers, squash."""

    def __init__(self, path: Path) -> None:
        with np.load(path, allow_pickle=False) as f:
            self.arrays = {k: f[k] for k in f}

    def __call__(self, obs: NDArray[Any]) -> NDArray[np.float32]:
        a = self.arrays
        x = (obs - a["obs_mean"]) / np.sqrt(a["obs_var"] + a["obs_eps"])
        x = np.clip(x, -a["obs_clip"], a["obs_clip"])
        for i in range(2):
            x = np.maximum(a[f"w{i}"] @ x + a[f"b{i}"], 0)
        action: NDArray[np.float32] = np.clip(a["w2"] @ x + a["b2"], -1, 1).astype(np.float32)
        return action


def test_a_policy_of_known_return(outside_data: Path) -> None:
    policy = PlainArrays(outside_data / "policies" / "hopper-ppo.npz")
    result = evaluate(policy, "Hopper-v5", episodes=3)
    # Stated by those who ran it, in the same version of the environment: 2438 +- 1.
    assert result.mean == pytest.approx(2438, abs=10) and result.lengths.tolist() == [1000] * 3
    assert result.reference is not None and "D4RL" in result.reference.source
    assert result.score == pytest.approx(100 * (result.mean + 20.272305) / 3254.572305, abs=1e-3)


def test_a_task_of_mujoco_repeats_itself() -> None:
    policy = Policy(DeterministicActor(11, 3, [32], Learners()), Spec.unbounded(11, 3))
    both = [evaluate(policy, "Hopper-v5", n, slots=3).returns for n in (7, 4)]
    np.testing.assert_array_equal(both[0][:4], both[1])
    alone = evaluate(policy, make("Hopper-v5"), 4, slots=3).returns
    np.testing.assert_array_equal(alone, both[1])


class Faulty(gymnasium.Env[Any, Any]):
    """Never ends, and has one thing wrong from its second step on."""

    observation_space = gymnasium.spaces.Box(-INF, INF, (2,))
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (2,))

    def __init__(self, fault: str) -> None:
        self.fault, self.at = fault, 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        self.at = 0
        return np.zeros(3 if self.fault == "reset" else 2, np.float32), {}

    def step(self, action: Any) -> Any:
        self.at += 1
        obs = np.zeros(5 if self.fault == "size" and self.at > 1 else 2, np.float32)
        if self.at == 1 or self.fault in ("size", "endless"):
            return obs, 1.0, False, False, {}
        if self.fault == "raises":
            raise ZeroDivisionError("integer division")
        return (obs, 1.0, False, {}) if self.fault == "four" else (obs, None, False, False, {})


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("raises", r"failed at step 2 of start 0 \(seed \d+\): ZeroDivisionError: integer"),
        ("four", r"failed at step 2 of start 0 .*: ValueError: not enough values to unpack"),
        ("none", r"failed at step 2 of start 0 .*: TypeError: float\(\) argument"),
        ("size", r"observation of shape \(5,\) at step 2 .* observation_space has shape \(2,\)"),
        ("reset", r"observation of shape \(3,\) at step 0 .* observation_space has shape \(2,\)"),
        ("endless", r"did not end the episode until step 60 of start 0 .*max_episode_steps"),
    ],
)
def test_a_fault_of_the_environment_says_where(
    fault: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("offrl.evaluation.ENDLESS", 60)
    with pytest.raises(RunError, match=said):
        evaluate(still, lambda: Faulty(fault), episodes=2)


def test_a_stated_time_limit_may_be_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("offrl.evaluation.ENDLESS", 60)
    gymnasium.register("Long-v0", lambda: Faulty("endless"), max_episode_steps=80)
    try:
        found = evaluate(still, "Long-v0", episodes=1)
    finally:
        del gymnasium.registry["Long-v0"]
    assert found.lengths.tolist() == [80]
