"""Windows, their padding and their goals, by hand and by what holds of any dataset."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from offrl.datasets.offline import OfflineDataset, Spec
from offrl.datasets.windows import FutureWindows, Goals, GoalWindows, Windows, windows
from offrl.errors import ConfigError, DataError
from offrl.feed import Feed
from offrl.streams import BLOCK
from offrl.types import Batch, GoalBatch, WindowBatch

INF = float("inf")


def episode(e: int, length: int, final: bool = True) -> dict[str, Any]:
    """Observation 10 e + t, action (10 e + t) / 100: each row says where it is from."""
    count = 10.0 * e + np.arange(length + 1, dtype=np.float32)[:, None]
    return {
        "obs": count[: length + final],
        "action": count[:-1] / 100,
        "reward": np.ones(length),
    }


def three() -> OfflineDataset:
    """Lengths 4, 1 and 6; what was observed after the last action of the third is not known."""
    parts = [episode(1, 4), episode(2, 1), episode(3, 6, final=False)]
    return OfflineDataset.from_episodes(parts, name="three")


def many(count: int = 12) -> OfflineDataset:
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 10, count)
    return OfflineDataset.from_episodes([episode(e, int(n)) for e, n in enumerate(lengths)])


def shown(values: Tensor, scale: float = 1.0) -> list[list[int]]:
    rounded: list[list[int]] = (values[..., 0] * scale).round().int().tolist()
    return rounded


def everything(view: Windows) -> WindowBatch:
    return view.sample(view.index)


# -- windows --------------------------------------------------------------------------------------


def test_windows_by_hand() -> None:
    # Two observations, three actions, now the second; up to one step before and one behind.
    view = windows(three(), history=2, horizon=3, before=1, after=1)
    batch = everything(view)
    assert shown(batch.obs) == [
        *[[10, 10], [10, 11], [11, 12], [12, 13]],
        [20, 20],
        *[[30, 30], [30, 31], [31, 32], [32, 33], [33, 34], [34, 35]],
    ]
    assert shown(batch.action, 100) == [
        *[[10, 10, 11], [10, 11, 12], [11, 12, 13], [12, 13, 13]],
        [20, 20, 20],
        *[[30, 30, 31], [30, 31, 32], [31, 32, 33], [32, 33, 34], [33, 34, 35], [34, 35, 35]],
    ]
    full, begins, ends = [1, 1, 1], [0, 1, 1], [1, 1, 0]
    assert batch.real.tolist() == [
        *[begins, full, full, ends],
        [0, 1, 0],
        *[begins, full, full, full, full, ends],
    ]
    # Now is the last observation, and the first action from it on is the one taken there.
    assert shown(batch.obs)[3][-1] == int(view.rows[batch.index[3], 0]) == 13
    assert batch.past == 1
    assert shown(batch.past_action, 100)[2] == [11] and shown(batch.future_action, 100)[2] == [
        *[12, 13]
    ]


def test_without_padding_windows_lie_within_their_episodes() -> None:
    batch = everything(windows(three(), history=1, horizon=3, after=0))
    assert shown(batch.action, 100) == [
        *[[10, 11, 12], [11, 12, 13]],
        *[[30, 31, 32], [31, 32, 33], [32, 33, 34], [33, 34, 35]],
    ]
    assert batch.real.min() == 1


def test_unless_told_every_step_is_the_now_of_one_window() -> None:
    data = many()
    view = windows(data, history=3, horizon=5)
    assert view.index.tolist() == data.step_rows.tolist()
    batch = everything(view)
    np.testing.assert_array_equal(batch.obs[:, -1], data.obs)
    # Real entries: for each step those before it, up to two, itself, and those after, up to two.
    before = np.concatenate([np.minimum(np.arange(n), 2) for n in data.lengths])
    behind = np.concatenate([np.minimum(np.arange(n)[::-1], 2) for n in data.lengths])
    assert batch.real.sum(-1).int().tolist() == (before + 1 + behind).tolist()


def test_padding_with_zeros_is_zero_after_the_maps() -> None:
    data = three()
    view = windows(data, history=2, horizon=3, pad="zero", normalize="minmax")
    batch = everything(view)
    assert batch.obs[0].tolist()[0] == [0.0] and batch.action[3].tolist()[-1] == [0.0]
    repeated = everything(windows(data, history=2, horizon=3, normalize="minmax"))
    seen = batch.real[:, :2, None] > 0
    assert torch.equal(batch.obs, torch.where(seen, repeated.obs, torch.zeros(1)))
    assert (repeated.obs[0, 0] == repeated.obs[0, 1]).all() and repeated.obs[0, 0] != 0


@pytest.mark.parametrize("goals", [None, Goals(length=4)])
def test_no_window_crosses_an_episode(goals: Goals | None) -> None:
    view = windows(many(), history=3, horizon=7, before=2, after=3, goals=goals)
    batch = everything(view)
    of_episode = (batch.obs[:, -1] // 10).long()
    assert ((batch.obs // 10).long() == of_episode[:, None]).all()
    assert ((batch.action * 100 + 1e-3) // 10 == of_episode[:, None]).all()
    if isinstance(batch, GoalBatch):
        given = batch.goal_real > 0
        assert given.any() and not given.all()
        assert ((batch.goal // 10).long() == of_episode[:, None])[given].all()


def test_steps_are_consecutive_where_they_are_real() -> None:
    batch = everything(windows(many(), history=4, horizon=6))
    both = (batch.real[:, 1:] * batch.real[:, :-1]) > 0
    steps = (batch.action[:, 1:] - batch.action[:, :-1])[..., 0] * 100
    torch.testing.assert_close(steps[both], torch.ones(int(both.sum())), atol=1e-3, rtol=0)
    assert (steps[~both] == 0).all()


def test_a_window_of_one_step_is_the_transition_there() -> None:
    view = windows(three())
    batch, single = everything(view), view.batch(view.index)
    assert isinstance(single, Batch)
    assert torch.equal(batch.obs[:, 0], single.obs) and torch.equal(batch.index, single.index)
    assert torch.equal(batch.action[:, 0], single.action)


def test_leading_axes_and_float_types() -> None:
    view = windows(three(), history=2, horizon=4, goals=Goals())
    rows = view.index[:6].reshape(2, 3)
    batch = view.sample(rows)
    assert batch.obs.shape == (2, 3, 2, 1) and batch.action.shape == (2, 3, 4, 1)
    for name, value in vars(view.sample(rows[1])).items():
        assert torch.equal(getattr(batch, name)[1], value), name
    wide = view.to(torch.float64)
    assert isinstance(wide, GoalWindows) and wide.first.dtype == torch.int64
    found = wide.sample(rows)
    assert isinstance(found, GoalBatch)
    assert found.obs.dtype == found.real.dtype == found.goal_real.dtype == torch.float64
    moved = batch.to(torch.float64).to("cpu")
    assert type(moved) is type(batch) and moved.index.dtype == torch.int64
    assert moved.goal.dtype == torch.float64


def test_nothing_is_copied_but_one_row_number_a_window() -> None:
    data = many()
    view = windows(data, history=3, horizon=8, goals=Goals())
    assert view.rows.data_ptr() == data.rows.ctypes.data
    own = [v for v in vars(view).values() if isinstance(v, Tensor) and v is not view.rows]
    assert sum(v.numel() for v in own) <= len(view) + 3 * data.num_episodes + 4


def test_a_views_name_tells_its_settings_apart() -> None:
    data = many()
    made = [
        *[windows(data), windows(data, horizon=2), windows(data, horizon=2, history=2)],
        *[windows(data, horizon=2, after=0), windows(data, horizon=2, history=2, before=0)],
        *[windows(data, pad="zero"), windows(data, normalize="minmax")],
        *[windows(data, normalize="zscore"), windows(data, normalize_action=True)],
        *[windows(data, goals=Goals()), windows(data, goals=Goals(dropout=0.1)), windows(three())],
    ]
    assert len({view.fingerprint for view in made}) == len(made)
    assert windows(many()).fingerprint == made[0].fingerprint


# -- maps -----------------------------------------------------------------------------------------


def ranged() -> OfflineDataset:
    """A component from -4 to 12, one that never moves, one of deviation below the least."""
    obs = np.array([[-4.0, 7.0, 0.0], [0.0, 7.0, 0.004], [12.0, 7.0, 0.0], [99.0, 99.0, 99.0]])
    action = np.array([[-0.5, 3.0], [0.0, 3.0], [0.5, 3.0]])
    spec = Spec((-INF,) * 3, (INF,) * 3, (-2.0, 0.0), (2.0, 4.0))
    return OfflineDataset.from_episodes(
        [{"obs": obs, "action": action, "reward": np.zeros(3)}], spec=spec
    )


def test_ranges_are_mapped_to_the_unit_box_and_constants_only_centred() -> None:
    view = windows(ranged(), normalize="minmax", normalize_action=True)
    assert view.obs_mean.tolist()[:2] == [4.0, 7.0] and view.obs_std.tolist()[:2] == [8.0, 1.0]
    batch = everything(view)
    # The observation after the last action, 99, is no step's and has no part in the range.
    assert batch.obs[:, 0, 0].tolist() == [-1.0, -0.5, 1.0]
    assert batch.obs[:, 0, 1].tolist() == [0.0] * 3
    torch.testing.assert_close(batch.obs[:, 0, 2], torch.tensor([-1.0, 1.0, -1.0]))
    assert batch.action[:, 0].tolist() == [[-1.0, 0.0], [0.0, 0.0], [1.0, 0.0]]
    assert everything(windows(ranged())).action[2, 0].tolist() == [0.25, 0.5]


def test_a_small_deviation_counts_as_the_least() -> None:
    view = windows(ranged(), normalize="zscore")
    expected = ranged().obs.astype(np.float64).std(0)
    np.testing.assert_allclose(view.obs_std, [expected[0], 0.01, 0.01], rtol=1e-6)
    np.testing.assert_allclose(view.obs_mean, ranged().obs.mean(0), rtol=1e-6)
    goal = everything(windows(ranged(), normalize="zscore", goals=Goals("final")))
    assert isinstance(goal, GoalBatch)
    expected_goal = (99.0 - view.obs_mean) / view.obs_std
    torch.testing.assert_close(goal.goal[:, 0], expected_goal.expand(3, 3))


def test_later_observations_by_hand() -> None:
    # The last observation of episodes 1 and 2 is known, that of the third is not.
    view = windows(three(), ahead=2)
    assert isinstance(view, FutureWindows)
    batch = view.sample(view.index)
    assert shown(batch.later_obs) == [
        *([11, 12], [12, 13], [13, 14], [14, 14]),
        *([21, 21],),
        *([31, 32], [32, 33], [33, 34], [34, 35], [35, 35], [35, 35]),
    ]
    assert batch.later_real.int().tolist() == [
        *([1, 1], [1, 1], [1, 1], [1, 0]),
        *([1, 0],),
        *([1, 1], [1, 1], [1, 1], [1, 1], [1, 0], [0, 0]),
    ]
    plain = windows(three()).sample(view.index)
    assert torch.equal(batch.obs, plain.obs) and torch.equal(batch.action, plain.action)


def test_a_view_has_goals_or_later_observations() -> None:
    with pytest.raises(ConfigError, match="ahead is 2 beside goals"):
        windows(three(), ahead=2, goals=Goals())
    with pytest.raises(ConfigError, match="ahead is -1"):
        windows(three(), ahead=-1)


# -- goals ----------------------------------------------------------------------------------------


def drawn_goals(goals: Goals, count: int = 400, data: OfflineDataset | None = None) -> GoalBatch:
    view = windows(data or many(), history=2, horizon=2, goals=goals)
    generator = np.random.default_rng(1)
    rows = view.index.repeat(count, 1)
    drawn = {k: torch.from_numpy(v) for k, v in view.draw(generator, rows.shape).items()}
    batch = view.sample(rows, drawn)
    assert isinstance(batch, GoalBatch)
    return batch


@pytest.mark.parametrize("kind", ["uniform", "geometric", "final"])
@pytest.mark.parametrize("gap", [0, 1, 3])
@pytest.mark.parametrize("length", [1, 2])
def test_a_goal_comes_later_in_the_same_episode(kind: str, gap: int, length: int) -> None:
    data = many()
    batch = drawn_goals(Goals(kind, gap=gap, length=length, gamma=0.8), 30, data)
    now = batch.obs[:, :, -1, 0]
    given = batch.goal_real > 0
    begin, end = batch.goal[..., 0, 0], batch.goal[..., -1, 0]
    assert (end - begin == length - 1)[given].all()
    assert (begin - now >= gap)[given].all() and (begin // 10 == now // 10)[given].all()
    lengths = torch.from_numpy(data.lengths)[(now // 10).long()]
    assert (end <= now // 10 * 10 + lengths)[given].all()
    # There is a goal wherever there is room for one: step + gap + length - 1 <= T.
    assert torch.equal(given, now % 10 + gap + length - 1 <= lengths)
    assert (batch.goal[~given] == 0).all()
    if kind == "final":
        assert (end == now // 10 * 10 + lengths)[given].all()


def test_an_unknown_final_observation_is_no_goal() -> None:
    batch = drawn_goals(Goals("final"), 1, three())
    assert batch.goal[0, :, 0, 0].tolist() == [14] * 4 + [21] + [35] * 5 + [0]
    assert batch.goal_real[0].tolist() == [1.0] * 10 + [0.0]


def shares(goals: Goals, length: int = 6) -> list[float]:
    """How often each later observation of one episode is the goal of its first step."""
    data = OfflineDataset.from_episodes([episode(0, length)])
    places = drawn_goals(goals, 40_000, data).goal[:, 0, 0, 0].long()
    return (torch.bincount(places, minlength=length + 1) / len(places)).tolist()


def test_uniform_goals_are_uniform() -> None:
    np.testing.assert_allclose(shares(Goals()), [0, *[1 / 6] * 6], atol=0.01)
    np.testing.assert_allclose(shares(Goals(gap=2, length=2)), [0, 0, *[1 / 4] * 4, 0], atol=0.01)


def test_geometric_goals_are_geometric_and_the_rest_is_the_last() -> None:
    first = [0.3 * 0.7**k for k in range(5)]
    expected = [0.0, *first, 0.7**5]
    np.testing.assert_allclose(shares(Goals("geometric", gamma=0.7)), expected, atol=0.01)
    # With gap 0 the present is a goal as well.
    assert shares(Goals("geometric", gamma=0.7, gap=0))[0] == pytest.approx(0.3, abs=0.01)


def test_goals_are_dropped_by_sample_and_whole() -> None:
    batch = drawn_goals(Goals("final", length=2, gap=0, dropout=0.25), 4_000)
    assert batch.goal.shape[-2] == 2
    kept = drawn_goals(Goals("final", length=2, gap=0), 4_000).goal_real > 0
    share = 1 - batch.goal_real[kept].mean()
    assert float(share) == pytest.approx(0.25, abs=0.01)
    zero = (batch.goal == 0).flatten(-2)
    whole = batch.goal_real == 0
    # Observation 0 belongs to episode 0 alone; elsewhere an entry is zero only with all others.
    elsewhere = batch.obs[..., -1, 0] >= 10
    assert torch.equal(zero.all(-1)[elsewhere], whole[elsewhere])
    assert torch.equal(zero.any(-1)[elsewhere], whole[elsewhere])
    # Two windows of a batch are dropped independently.
    pair = whole.float()[:, kept.all(0)]
    assert float((pair[:, 0] * pair[:, 1]).mean()) == pytest.approx(0.0625, abs=0.015)


@pytest.mark.parametrize(
    ("goals", "expected"),
    [
        (Goals(dropout=1.0), 4),  # the fourth of 1 .. 6
        (Goals("geometric", gamma=0.7), 2),  # 1 - 0.7^2 is the first at or above 1/2
        (Goals("geometric", gamma=0.5), 1),
        (Goals("geometric", gamma=0.999), 6),
        (Goals("final"), 6),
    ],
)
def test_held_out_goals_are_medians_and_never_dropped(goals: Goals, expected: int) -> None:
    view = windows(OfflineDataset.from_episodes([episode(0, 6)]), goals=goals)
    batch = view.sample(view.index[:1])
    assert isinstance(batch, GoalBatch)
    assert batch.goal.flatten().tolist() == [expected] and batch.goal_real.tolist() == [1.0]


def test_a_goal_is_what_was_achieved_and_replaces_what_was_desired() -> None:
    obs = np.array([[1, 2, 50, 51, 9], [3, 4, 50, 51, 9], [5, 6, 50, 51, 9]], np.float32)
    keys = {"achieved_goal": (0, 2), "desired_goal": (2, 4), "observation": (4, 5)}
    spec = dataclasses.replace(Spec.unbounded(5, 1), obs_keys=keys)
    data = OfflineDataset.from_episodes(
        [{"obs": obs, "action": np.zeros((2, 1)), "reward": np.zeros(2)}], spec=spec
    )
    batch = everything(windows(data, goals=Goals("final")))
    assert isinstance(batch, GoalBatch)
    assert batch.goal.tolist() == [[[5.0, 6.0]]] * 2
    assert batch.obs[:, 0].tolist() == [[1, 2, 0, 0, 9], [3, 4, 0, 0, 9]]
    scaled = everything(windows(data, normalize="minmax", goals=Goals("final")))
    assert isinstance(scaled, GoalBatch)
    assert scaled.goal[0].tolist() == [[3.0, 3.0]]  # (5 - 2) / 1, (6 - 3) / 1
    assert scaled.obs[0, 0].tolist() == [-1, -1, 0, 0, 0]
    assert scaled.obs.shape == (2, 1, 5) and torch.equal(
        windows(data, normalize="minmax", goals=Goals()).obs_mean, torch.tensor([2.0, 3, 2, 3, 9])
    )
    # A view without goals leaves the observation as it is.
    assert everything(windows(data)).obs[0, 0].tolist() == [1, 2, 50, 51, 9]


# -- the feed -------------------------------------------------------------------------------------


def feed(seeds: tuple[int, ...], goals: Goals | None = None) -> Feed:
    view = windows(many(), history=2, horizon=4, goals=goals)
    return Feed(view, seeds, 8, {"n": (8, 2)})


GOALS = [
    None,
    Goals(dropout=0.3),
    Goals("geometric", gamma=0.8, dropout=0.3),
]


@pytest.mark.parametrize("goals", GOALS)
def test_a_stack_is_fed_as_each_alone(goals: Goals | None) -> None:
    batch, noise = feed((4, 9), goals).at(BLOCK + 2)
    assert type(batch) is (WindowBatch if goals is None else GoalBatch)
    assert batch.obs.shape == (2, 8, 2, 1) and batch.action.shape == (2, 8, 4, 1)
    for k, seed in enumerate((4, 9)):
        alone, own = feed((seed,), goals).at(BLOCK + 2)
        for name, value in vars(alone).items():
            assert torch.equal(getattr(batch, name)[k], value), name
        assert torch.equal(noise["n"][k], own["n"])


@pytest.mark.parametrize("goals", GOALS)
def test_a_feed_has_no_memory(goals: Goals | None) -> None:
    straight, jumping = feed((4,), goals), feed((4,), goals)
    wanted = [straight.at(step)[0] for step in range(BLOCK + 3)]
    for step in (BLOCK + 2, 0, 5, BLOCK, 4):
        for name, value in vars(jumping.at(step)[0]).items():
            assert torch.equal(value, getattr(wanted[step], name)), (step, name)
    if goals is not None:
        assert len({tuple(b.goal.flatten().tolist()) for b in wanted}) == len(wanted)
        share = torch.stack([b.goal_real for b in wanted]).mean()
        assert float(share) == pytest.approx(0.7, abs=0.06)


def test_goals_change_no_window() -> None:
    plain, with_goals = feed((4,)).at(3)[0], feed((4,), Goals()).at(3)[0]
    for name, value in vars(plain).items():
        assert torch.equal(value, getattr(with_goals, name)), name


# -- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"history": 3, "horizon": 2}, "history of 3 observations and 2 actions"),
        ({"history": 0}, "1 <= history <= horizon"),
        ({"history": 2, "horizon": 4, "before": 2}, r"before is 2; .* in \[0, 1\]"),
        ({"history": 2, "horizon": 4, "after": 3}, r"after is 3; .* in \[0, 2\]"),
        ({"after": -1}, "after is -1"),
        ({"pad": "last"}, r"pad is 'last'; .*'repeat', 'zero'"),
        ({"normalize": "max"}, "normalize is 'max'"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        windows(three(), **settings)


def test_episodes_too_short_for_a_window_are_refused() -> None:
    with pytest.raises(DataError, match=r"three: a window is 7 steps.*longest episode has 6"):
        windows(three(), horizon=7, after=0)


@pytest.mark.parametrize(
    "change",
    [{"kind": "first"}, {"gamma": 1.0}, {"gap": -1}, {"length": 0}, {"dropout": 1.5}],
)
def test_goals_that_cannot_be_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"Goals.{next(iter(change))} is"):
        dataclasses.replace(Goals(), **change)
