"""Tasks of luck: their answers by hand, and what their behaviours do."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from offrl.datasets.collection import Request, collect
from offrl.datasets.loading import load_dataset
from offrl.envs import make
from offrl.envs.luck import LAKE, Bandit, Lake, around, meant, shortly
from offrl.envs.noisy_reacher import NoisyReacher, Pulled
from offrl.envs.scripted import demonstrator
from offrl.errors import ConfigError
from offrl.evaluation import evaluate

Array = NDArray[Any]


def pulled(p: float, action: float, count: int = 4000) -> float:
    env = Bandit(p)
    env.reset(seed=0)
    return float(np.mean([env.step(np.array([action]))[1] for _ in range(count)]))


@pytest.mark.parametrize("p", [0.1, 0.3])
def test_an_action_is_a_mixture_of_the_arms(p: float) -> None:
    # Four deviations of the mean of 4,000 are 0.03 at most.
    assert pulled(p, 1.0) == pytest.approx(1 - p, abs=0.03)
    assert pulled(p, -1.0) == pytest.approx(p, abs=0.03)
    assert pulled(p, 0.0) == pytest.approx(0.5, abs=0.03)
    assert pulled(p, 0.5) == pytest.approx(0.25 * p + 0.75 * (1 - p), abs=0.03)


def test_among_the_lucky_both_arms_are_as_common(tmp_path: Any) -> None:
    collect(Request("offrl/LuckierBandit-v0", tmp_path / "x", "scripted", episodes=700))
    data = load_dataset(tmp_path / "x")
    good, paid = data.action[:, 0] > 0, data.reward > 0
    assert set(np.abs(data.action[:, 0]).tolist()) == {1.0} and data.terminated.all()
    assert good.mean() == pytest.approx(0.3, abs=0.05)
    assert good[paid].mean() == pytest.approx(0.5, abs=0.1)
    assert paid[good].mean() == pytest.approx(0.7, abs=0.12)


# -- the lake: expected returns by dynamic programming --------------------------------------------


def outcomes(env: Lake, cell: tuple[int, int], move: int) -> list[tuple[float, tuple[int, int]]]:
    """Where a move leads, written out from the task's description."""
    sides = [(move + 1) % 4, (move + 3) % 4]
    return [
        (1 - env.slip, env.after(cell, move)),
        *((env.slip / 2, env.after(cell, side)) for side in sides),
    ]


def worth(env: Lake, policy: Any = None, steps: int = 100) -> float:
    """The expected return of a policy, or of the best one, from the start."""
    value = np.zeros(env.cells.shape)
    for _ in range(steps):
        new = np.zeros_like(value)
        for cell in np.ndindex(*env.cells.shape):
            if env.cells[cell] in "GH":
                continue
            found = [
                sum(
                    p * (1.0 if env.cells[c] == "G" else value[c])
                    for p, c in outcomes(env, cell, m)
                )
                for m in (range(4) if policy is None else [policy(*cell)])
            ]
            new[cell] = max(found)
        value = new
    return float(value[env.start])


def test_the_returns_that_the_lake_states() -> None:
    env = Lake()
    assert worth(env, shortly) == pytest.approx(0.221, abs=5e-4)
    assert 0.9999 < worth(env, around) < worth(env) < 1.0
    assert {worth(Lake(slip=0.0), way) for way in (shortly, around, None)} == {1.0}
    assert "0.221" in str(Lake.__doc__) and "0.9999" in str(Lake.__doc__)
    # Asked for a return of 1, the majority of what led to it is the short way.
    assert 0.9 * worth(env, shortly) > 0.1 * worth(env, around)


@pytest.mark.parametrize(("policy", "expected"), [(shortly, 0.221), (around, 1.0)])
def test_playing_earns_what_was_worked_out(policy: Any, expected: float) -> None:
    moves = {0: (1.0, 0.0), 1: (0.0, 1.0), 2: (-1.0, 0.0), 3: (0.0, -1.0)}

    def act(obs: Array) -> Array:
        row, column = divmod(int(obs.argmax()), len(LAKE[0]))
        return np.array(moves[policy(row, column)], np.float32)

    result = evaluate(act, "offrl/SlipperyLake-v0", 300)
    assert result.mean == pytest.approx(expected, abs=0.08)
    assert result.modes is not None and result.modes.max() == (policy is around)


def test_directions_and_edges() -> None:
    directions = [(1.0, 0.9), (0.1, 0.2), (-1.0, 1.0), (0.1, -0.2)]
    assert [meant(np.array(a)) for a in directions] == [0, 1, 2, 3]
    env = Lake(slip=0.0)
    assert env.after((3, 0), 3) == (3, 0) == env.after((3, 0), 2) and env.after((0, 7), 1) == (0, 7)
    obs, _ = env.reset(seed=0)
    assert obs.argmax() == 24 and obs.sum() == 1
    _, reward, over, _, info = env.step(np.array([0.0, 1.0]))
    assert (env.position, reward, over, info["mode"]) == ((2, 0), 0.0, False, 0)


def test_slips_are_to_the_sides() -> None:
    env, ends = Lake(), []
    env.reset(seed=1)
    for _ in range(2000):
        env.position = (1, 1)
        env.step(np.array([1.0, 0.0]))
        ends.append(env.position)
    shares = {end: ends.count(end) / 2000 for end in set(ends)}
    assert shares == pytest.approx({(1, 2): 0.5, (0, 1): 0.25, (2, 1): 0.25}, abs=0.05)


# -- the reacher ----------------------------------------------------------------------------------


def test_noise_is_of_its_size_and_lasts() -> None:
    env = NoisyReacher(noise=0.4, correlation=0.8)
    drifts = []
    for episode in range(12):
        env.reset(seed=episode)
        for _ in range(50):
            drifts.append(env.drift)
            env.step(np.zeros(2, np.float32))
    series = np.array(drifts).reshape(12, 50, 2)
    assert series.std() == pytest.approx(0.4, abs=0.06)
    now, later = series[:, :-1].ravel(), series[:, 1:].ravel()
    assert np.corrcoef(now, later)[0, 1] == pytest.approx(0.8, abs=0.06)


def test_without_noise_it_is_gymnasiums() -> None:
    ours, theirs = make("offrl/StillReacher-v0"), make("Reacher-v5")
    a, b = ours.reset(seed=3)[0], theirs.reset(seed=3)[0]
    rng = np.random.default_rng(0)
    for _ in range(20):
        np.testing.assert_array_equal(a, b)
        action = rng.uniform(-1, 1, 2).astype(np.float32)
        (a, r, *_), (b, q, *_) = ours.step(action), theirs.step(action)
        assert r == q


def test_heading_for_the_target_pays() -> None:
    script = Pulled()

    def earned(strength: float, env: str) -> float:
        return evaluate(
            lambda obs: script.act(obs.astype(np.float32), strength, 0)[0], env, 20
        ).mean

    for env, margin in (("offrl/NoisyReacher-v0", 1.5), ("offrl/StillReacher-v0", 3.0)):
        towards, idle, away = (earned(k, env) for k in Pulled.strengths)
        assert towards > idle + margin and idle > away + 1.0


def test_what_cannot_be_made_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"p is 0\.7"):
        Bandit(0.7)
    with pytest.raises(ConfigError, match=r"slip is 1\.5"):
        Lake(1.5)
    with pytest.raises(ConfigError, match="noise is -1"):
        NoisyReacher(noise=-1.0)
    assert demonstrator("offrl/LuckyBandit-v0").spec.action_low == (-1.0,)
