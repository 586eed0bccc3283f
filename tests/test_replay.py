"""Episodes in memory, and the transitions that agents are given of them."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from problems import build, walk

from offrl.datasets.loading import load_dataset
from offrl.datasets.offline import OfflineDataset, Reference, Spec
from offrl.datasets.replay import STD_EPS, transitions
from offrl.errors import DataError


def episode(
    length: int, first: float, *, terminated: bool = False, final: bool = True, reward: float = 1.0
) -> dict[str, Any]:
    """Observation components count from `first` in steps of one, so that each row is known."""
    steps = np.arange(length + final, dtype=np.float32)[:, None]
    return {
        "obs": first + steps + np.array([0.0, 0.5], np.float32),
        "action": (first + np.arange(length, dtype=np.float32)[:, None]) / 100,
        "reward": np.full(length, reward, np.float32),
        "terminated": terminated,
        "truncated": not terminated,
    }


def three() -> OfflineDataset:
    """Ends by termination, by truncation, and cut with its last observation unknown."""
    return OfflineDataset.from_episodes(
        [
            episode(3, 10.0, terminated=True),
            episode(2, 20.0),
            episode(4, 30.0, final=False),
        ],
        name="three",
    )


# -- episodes -------------------------------------------------------------------------------------


def test_rows_hold_one_more_observation_than_steps() -> None:
    data = three()
    assert data.rows.shape == (3 + 2 + 4 + 3, 2 + 1 + 3) and data.rows.dtype == np.float32
    assert data.starts.tolist() == [0, 4, 7] and data.lengths.tolist() == [3, 2, 4]
    assert (data.num_steps, data.num_episodes, len(data)) == (9, 3, 9)
    assert data.final_known.tolist() == [True, True, False]
    assert data.rows[:, 0].tolist() == [10, 11, 12, 13, 20, 21, 22, 30, 31, 32, 33, 33]
    assert data.rows[[3, 6, 11], 2:].tolist() == [[0.0] * 4] * 3
    assert data.obs[:, 0].tolist() == [10, 11, 12, 20, 21, 30, 31, 32, 33]
    np.testing.assert_allclose(data.action[:, 0] * 100, data.obs[:, 0], rtol=1e-6)
    assert np.flatnonzero(data.terminated).tolist() == [2]
    assert np.flatnonzero(data.truncated).tolist() == [4, 8]
    assert data.returns().tolist() == [3.0, 2.0, 4.0]
    assert data.returns().dtype == np.float64


def test_an_episode_comes_back_as_it_went_in() -> None:
    data = three()
    for e, raw in enumerate(
        [episode(3, 10.0, terminated=True), episode(2, 20.0), episode(4, 30.0, final=False)]
    ):
        found = data.episode(e)
        for name in ("obs", "action", "reward"):
            np.testing.assert_array_equal(found[name], raw[name])
        assert found["terminated"][-1] == raw["terminated"]
        assert found["terminated"][:-1].sum() == found["truncated"][:-1].sum() == 0


def flat() -> dict[str, Any]:
    """Five steps in D4RL's layout: two that terminate, three that time out."""
    return {
        "observations": np.array([[0], [1], [5], [6], [7]], np.float32),
        "actions": np.array([[0.1], [0.2], [0.3], [0.4], [0.5]], np.float32),
        "rewards": np.array([1, 2, 3, 4, 5], np.float32),
        "terminals": np.array([0, 1, 0, 0, 0], np.float32),
        "timeouts": np.array([0, 0, 0, 0, 1], np.float32),
    }


def test_flat_columns_are_cut_at_terminals_and_timeouts() -> None:
    data = OfflineDataset.from_arrays(**flat())
    assert data.lengths.tolist() == [2, 3] and data.final_known.tolist() == [False, False]
    assert data.returns().tolist() == [3.0, 12.0]
    # The terminal needs no next observation; the time-out's was never recorded.
    assert data.transition_rows().tolist() == [0, 1, 3, 4]


def test_stored_next_observations_make_every_step_a_transition() -> None:
    following = np.array([[1], [2], [6], [7], [8]], np.float32)
    data = OfflineDataset.from_arrays(**flat(), next_observations=following)
    assert data.final_known.tolist() == [True, True]
    assert data.rows[[2, 6], 0].tolist() == [2.0, 8.0]
    replay = transitions(data)
    batch = replay.batch(replay.index)
    assert batch.next_obs[:, 0].tolist() == [1, 2, 6, 7, 8]


def test_a_jump_in_the_next_observations_is_an_end() -> None:
    following = np.array([[1], [2], [6], [9], [8]], np.float32)
    data = OfflineDataset.from_arrays(**flat(), next_observations=following)
    assert data.lengths.tolist() == [2, 2, 1]
    assert not data.terminated[3]
    assert len(data.problems) == 1 and "1 ends of episodes are not marked" in data.problems[0]


FLOATS = [np.float16, np.float32, np.float64]


@pytest.mark.parametrize("obs_type", FLOATS)
@pytest.mark.parametrize("next_type", FLOATS)
@pytest.mark.parametrize("scale", [0.1, 40.0])
def test_rounding_of_another_precision_is_no_end(
    obs_type: type, next_type: type, scale: float
) -> None:
    path = np.random.default_rng(0).normal(size=(31, 4)) * scale
    timeouts = np.arange(30) % 10 == 9
    columns = (np.zeros((30, 1)), np.zeros(30), np.zeros(30), timeouts)
    obs, following = path[:-1].astype(obs_type), path[1:].astype(next_type)
    data = OfflineDataset.from_arrays(obs, *columns, following)
    assert data.lengths.tolist() == [10, 10, 10] and data.problems == ()
    names = ("observations", "actions", "rewards", "terminals", "timeouts", "next_observations")
    read = load_dataset(dict(zip(names, (obs, *columns, following), strict=True)))
    assert read.lengths.tolist() == [10, 10, 10] and read.problems == ()


@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_a_small_jump_between_precisions_is_an_end(scale: float) -> None:
    path = np.full((5, 2), scale)
    following = path.astype(np.float32)
    following[1, 1] += 1e-4 * scale
    data = OfflineDataset.from_arrays(
        path, np.zeros((5, 1)), np.zeros(5), np.zeros(5), None, following
    )
    assert data.lengths.tolist() == [2, 3]


def test_column_vectors_are_columns() -> None:
    arrays = {k: v if v.ndim == 2 else v[:, None] for k, v in flat().items()}
    assert (
        OfflineDataset.from_arrays(**arrays).fingerprint
        == OfflineDataset.from_arrays(**flat()).fingerprint
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({k: v[:0] for k, v in flat().items()}, "the columns are empty"),
        ({"observations": [["a"]] * 5}, "mine: observations is of type <U1; expected numbers"),
        ({"actions": np.ones((5, 1), complex)}, "mine: actions is of type complex128"),
        ({"observations": [[1.0, 2.0], [1.0]]}, "mine: observations cannot be made an array"),
        ({"observations": np.float64(1.0)}, r"observations \(\) and actions"),
        ({"rewards": np.float64(1.0)}, r"mine: rewards has shape \(\); expected \(steps,\)"),
        ({"rewards": np.ones((5, 2))}, r"mine: rewards has shape \(5, 2\)"),
        ({"next_observations": np.ones((5, 3))}, r"next_observations have shape \(5, 3\)"),
        ({"next_observations": np.ones((4, 1))}, r"unequal length.*'next_observations': 4"),
    ],
)
def test_columns_that_cannot_be_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        OfflineDataset.from_arrays(**{**flat(), **change}, name="mine")


def test_a_single_row_is_an_episode() -> None:
    data = OfflineDataset.from_arrays(**{k: v[:1] for k, v in flat().items()})
    assert data.lengths.tolist() == [1] and data.reward.tolist() == [1.0]


@pytest.mark.parametrize("column", ["actions", "rewards", "terminals", "timeouts"])
def test_columns_of_unequal_length_are_refused(column: str) -> None:
    arrays = flat()
    arrays[column] = arrays[column][:-1]
    with pytest.raises(DataError, match=rf"mine: columns of unequal length.*'{column}': 4"):
        OfflineDataset.from_arrays(**arrays, name="mine")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"reward": np.ones(2)}, "episode 1 has obs"),
        ({"obs": np.ones((6, 2))}, "episode 1 has obs"),
        ({"obs": np.ones((4, 5))}, "observations of 5"),
        ({"obs": [["a", "b"]] * 4}, "obs of episode 1 is of type <U1; expected numbers"),
        ({"obs": [[1.0], [1.0, 2.0]]}, "obs of episode 1 cannot be made an array"),
        ({"action": 1.0}, r"episode 1 has obs .* and action \(\)"),
        ({"terminated": []}, "terminated of episode 1 is empty"),
        ({"action": np.ones((0, 1)), "obs": np.ones((1, 2)), "reward": []}, "has no step"),
        ({"reward": np.array([1.0, np.nan, 1.0])}, "nan in rewards at step 1 of episode 1"),
        ({"obs": np.full((4, 2), np.inf)}, r"8 values.*inf in observations\[0\] at step 0"),
    ],
)
def test_bad_episodes_are_refused_by_place(change: dict[str, Any], message: str) -> None:
    episodes = [episode(2, 0.0), {**episode(3, 0.0), **change}]
    with pytest.raises(DataError, match=message):
        OfflineDataset.from_episodes(episodes, name="mine")


def test_missing_columns_and_no_episodes_are_refused() -> None:
    with pytest.raises(DataError, match=r"episode 0 has no \['reward'\]"):
        OfflineDataset.from_episodes([{"obs": np.ones((2, 1)), "action": np.ones((1, 1))}])
    with pytest.raises(DataError, match="empty"):
        OfflineDataset.from_episodes([])


def test_selection_keeps_episodes_whole_and_says_so() -> None:
    data = three()
    chosen = data.select([2, 0], "by hand")
    assert chosen.lengths.tolist() == [4, 3] and chosen.final_known.tolist() == [False, True]
    for new, old in ((0, 2), (1, 0)):
        for name, column in data.episode(old).items():
            np.testing.assert_array_equal(chosen.episode(new)[name], column)
    assert chosen.provenance["selections"] == ["by hand"]
    assert chosen.select([0], "again").provenance["selections"] == ["by hand", "again"]
    assert "selections" not in data.provenance


def test_a_split_is_by_episode_and_by_seed() -> None:
    data = OfflineDataset.from_episodes([episode(2 + e, 10.0 * e) for e in range(10)])
    train, held_out = data.split(0.3, seed=1)
    assert (train.num_episodes, held_out.num_episodes) == (7, 3)
    found = np.sort(np.concatenate([train.lengths, held_out.lengths]))
    assert found.tolist() == list(range(2, 12))
    assert data.split(0.3, seed=1)[1].fingerprint == held_out.fingerprint
    others = {data.split(0.3, seed=s)[1].fingerprint for s in range(2, 8)}
    assert len(others) > 1
    assert "validation 0.3, seed 1" in held_out.provenance["selections"][0]


@pytest.mark.parametrize(
    ("episodes", "fraction", "said"),
    [
        (3, 0.1, r"rounds to 0.* a validation of 0.33 or more \(--validation\), or 0"),
        (3, 0.9, r"rounds to 3.* a smaller one \(--validation\), or 0"),
        (1, 0.5, r"a single episode.*validation=0 \(--validation 0\)"),
    ],
)
def test_a_split_that_leaves_a_part_empty_names_the_remedy(
    episodes: int, fraction: float, said: str
) -> None:
    with pytest.raises(DataError, match=said):
        walk(episodes).split(fraction, seed=0)


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, 0.01])
def test_a_split_needs_an_episode_in_both_parts(fraction: float) -> None:
    with pytest.raises(DataError, match=r"between 0 and 1|need an episode"):
        three().split(fraction, seed=0)


def test_the_best_episodes_by_return_in_recorded_order() -> None:
    rewards = [1.0, 5.0, 2.0, 4.0, 3.0]
    data = OfflineDataset.from_episodes([episode(3, 0.0, reward=r) for r in rewards])
    assert data.top(0.4).returns().tolist() == [15.0, 12.0]
    assert data.top(0.6).returns().tolist() == [15.0, 12.0, 9.0]
    assert data.top(0.01).returns().tolist() == [15.0]
    assert data.top(1.0).returns().tolist() == data.returns().tolist()


def test_equal_returns_keep_the_earlier_episode() -> None:
    data = OfflineDataset.from_episodes([episode(2, 10.0 * e) for e in range(4)])
    assert data.top(0.5).obs[:, 0].tolist() == [0, 1, 10, 11]


def test_the_fingerprint_is_of_the_content() -> None:
    first = three()
    assert first.fingerprint == three().fingerprint and len(first.fingerprint) == 64
    renamed = dataclasses.replace(first, name="other", provenance={"a": 1})
    assert renamed.fingerprint == first.fingerprint
    changed = first.rows.copy()
    changed[0, 0] += 1e-3
    assert dataclasses.replace(first, rows=changed).fingerprint != first.fingerprint
    unknown = dataclasses.replace(first, final_known=np.array([True, False, False]))
    assert unknown.fingerprint != first.fingerprint


def test_d4rls_own_transitions_with_their_quirks() -> None:
    data = OfflineDataset.from_arrays(**flat())
    found = data.d4rl_transitions()
    # The last row is left out; the terminal's next observation is the next episode's first.
    assert found["observations"][:, 0].tolist() == [0, 1, 5, 6]
    assert found["next_observations"][:, 0].tolist() == [1, 5, 6, 7]
    assert found["terminals"].tolist() == [False, True, False, False]
    timed_out = {**flat(), "timeouts": np.array([0, 0, 1, 0, 0], np.float32)}
    found = OfflineDataset.from_arrays(**timed_out).d4rl_transitions()
    assert found["observations"][:, 0].tolist() == [0, 1, 6]
    assert found["rewards"].tolist() == [1, 2, 4]


def test_scores_by_hand() -> None:
    reference = Reference(-20.0, 180.0, "made up")
    assert reference.score(80.0) == pytest.approx(50.0)
    np.testing.assert_allclose(reference.score([-20.0, 180.0, 380.0]), [0.0, 100.0, 200.0])


# -- the view -------------------------------------------------------------------------------------


def test_a_batch_at_the_ends_of_episodes() -> None:
    replay = transitions(three())
    assert replay.index.tolist() == [0, 1, 2, 4, 5, 7, 8, 9]  # not 10: what followed is unknown
    batch = replay.batch(replay.index)
    assert batch.obs[:, 0].tolist() == [10, 11, 12, 20, 21, 30, 31, 32]
    assert batch.next_obs[:, 0].tolist() == [11, 12, 13, 21, 22, 31, 32, 33]
    assert batch.mask.tolist() == [1, 1, 0, 1, 1, 1, 1, 1]
    assert batch.reward.tolist() == [1.0] * 8
    assert torch.equal(batch.index, replay.index)
    following = [0.11, 0.12, 0.0, 0.21, 0.0, 0.31, 0.32, 0.33]
    torch.testing.assert_close(batch.next_action[:, 0], torch.tensor(following))


def test_a_terminal_whose_next_observation_is_unknown_is_kept() -> None:
    data = OfflineDataset.from_episodes([episode(2, 10.0, terminated=True, final=False)])
    replay = transitions(data)
    batch = replay.batch(replay.index)
    assert batch.mask.tolist() == [1, 0]
    assert batch.next_obs[:, 0].tolist() == [11, 11]  # finite, and without weight


def test_a_batch_has_the_leading_axes_of_its_rows() -> None:
    replay = transitions(three())
    rows = replay.index[:6].reshape(2, 3)
    batch = replay.batch(rows)
    assert batch.obs.shape == (2, 3, 2) and batch.reward.shape == (2, 3)
    assert torch.equal(batch.obs[1], replay.batch(rows[1]).obs)


@pytest.mark.parametrize(("scale", "shift"), [(1.0, 0.0), (10_000.0, -1.0), (1.0, -1.0)])
def test_rewards_are_scaled_then_shifted(scale: float, shift: float) -> None:
    data = walk()
    replay = transitions(data, reward_scale=scale, reward_shift=shift)
    found = replay.to(torch.float64).batch(replay.index).reward.numpy()
    np.testing.assert_allclose(found, scale * data.reward.astype(np.float64) + shift, rtol=1e-12)


def test_rewards_by_return_range() -> None:
    data = walk()
    scaled = transitions(data, reward_by_return_range=True)
    reward = scaled.to(torch.float64).batch(scaled.index).reward.numpy()
    returns = np.add.reduceat(reward, np.cumsum(data.lengths) - data.lengths)
    assert returns.max() - returns.min() == pytest.approx(1000.0)
    both = transitions(data, reward_by_return_range=True, reward_scale=0.5, reward_shift=2.0)
    found = both.to(torch.float64).batch(both.index).reward.numpy()
    np.testing.assert_allclose(found, 0.5 * reward + 2.0, rtol=1e-9)


def test_equal_returns_are_not_divided_by() -> None:
    data = OfflineDataset.from_episodes([episode(2, 0.0), episode(2, 9.0)])
    assert transitions(data, reward_by_return_range=True).reward_scale == 1.0


def test_the_normaliser_is_numpys_over_the_states_acted_in() -> None:
    data = walk()
    replay = transitions(data, normalize_obs=True)
    mean, std = data.obs.mean(0, np.float64), data.obs.std(0, dtype=np.float64)
    np.testing.assert_allclose(replay.obs_mean, mean, rtol=1e-6)
    np.testing.assert_allclose(replay.obs_std, std + STD_EPS, rtol=1e-6)
    batch = replay.batch(replay.index)
    np.testing.assert_allclose(batch.obs, (data.obs - mean) / (std + 1e-3), atol=1e-5)
    following = data.rows[replay.index.numpy() + 1, : data.obs_dim]
    np.testing.assert_allclose(batch.next_obs, (following - mean) / (std + 1e-3), atol=1e-5)
    plain = transitions(data)
    assert plain.obs_mean.tolist() == [0.0] * 3 and plain.obs_std.tolist() == [1.0] * 3


def test_the_normaliser_holds_for_large_offsets_and_constants() -> None:
    data = three()
    rows = data.rows.copy()
    rows[:, 0] = 1e4 + rows[:, 0] / 100
    rows[:, 1] = 3.0
    mean, std = dataclasses.replace(data, rows=rows).obs_moments()
    used = rows[data.transition_rows(), :2].astype(np.float64)
    np.testing.assert_allclose(mean, used.mean(0), rtol=1e-12)
    np.testing.assert_allclose(std, used.std(0), rtol=1e-9, atol=1e-12)


def test_actions_are_mapped_to_the_unit_box() -> None:
    inf = float("inf")
    spec = Spec((-inf,) * 2, (inf,) * 2, (-2.0,), (6.0,))
    raw = {**episode(3, 0.0), "action": np.array([[-2.0], [2.0], [6.0]], np.float32)}
    replay = transitions(OfflineDataset.from_episodes([raw], spec=spec))
    assert replay.batch(replay.index).action[:, 0].tolist() == [-1.0, 0.0, 1.0]


def bounded(low: float, high: float) -> OfflineDataset:
    """The second component of the actions has these bounds and is at the first of them."""
    inf = float("inf")
    spec = Spec((-inf,) * 2, (inf,) * 2, (-1.0, low), (1.0, high))
    raw = {**episode(3, 0.0), "action": np.array([[0.5, max(low, -9.0)]] * 3, np.float32)}
    return OfflineDataset.from_episodes([raw], spec=spec, name="bounded")


@pytest.mark.parametrize(("low", "high"), [(-np.inf, np.inf), (0.0, np.inf)])
def test_actions_without_bounds_are_refused_by_component(low: float, high: float) -> None:
    with pytest.raises(DataError, match=r"bounded: component 1 of the actions has the bounds"):
        transitions(bounded(low, high))


def test_an_action_that_cannot_change_is_zero() -> None:
    replay = transitions(bounded(2.0, 2.0))
    assert replay.batch(replay.index).action.tolist() == [[0.5, 0.0]] * 3


@pytest.mark.parametrize(
    ("bounds", "said"),
    [
        (((0.0,), (1.0,), (1.0,), (-1.0,)), r"action_low\[0\] is 1 and action_high\[0\] -1"),
        (((0.0,), (1.0,), (np.nan,), (1.0,)), r"action_low\[0\] is nan"),
        (((0.0, 2.0), (1.0, 1.0), (-1.0,), (1.0,)), r"obs_low\[1\] is 2 and obs_high\[1\] 1"),
        (((0.0,), (1.0,), (-1.0,), (1.0, 1.0)), "action_low has 1 entries and action_high 2"),
    ],
)
def test_bounds_that_cannot_be_are_refused(bounds: Any, said: str) -> None:
    with pytest.raises(DataError, match=said):
        Spec(*bounds)


def test_a_view_copies_no_rows_and_names_its_maps() -> None:
    data = walk()
    replay = transitions(data)
    assert replay.rows.data_ptr() == data.rows.ctypes.data
    views = [
        replay,
        transitions(data, normalize_obs=True),
        transitions(data, reward_scale=2.0),
        transitions(data, reward_shift=2.0),
        transitions(data, reward_by_return_range=True),
        transitions(walk(seed=1)),
    ]
    assert len({view.fingerprint for view in views}) == len(views)
    assert transitions(walk()).fingerprint == replay.fingerprint


def test_a_view_in_another_float_type_keeps_its_rows() -> None:
    replay = transitions(walk(), normalize_obs=True)
    wide = replay.to(torch.float64)
    assert wide.rows.dtype == wide.obs_mean.dtype == torch.float64
    assert wide.index.dtype == torch.int64 and wide.fingerprint == replay.fingerprint
    narrow = replay.batch(replay.index[:9]).to(torch.float64)
    assert narrow.obs.dtype == torch.float64 and narrow.index.dtype == torch.int64
    torch.testing.assert_close(wide.batch(replay.index[:9]).obs, narrow.obs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["bc", "iql"])
def test_a_policy_normalises_as_the_view_does(name: str) -> None:
    data = walk()
    agent, replay = build(name, data, dtype=torch.float32)
    batch = replay.batch(replay.index)
    expected = agent.mode(batch.obs).detach().numpy()
    np.testing.assert_allclose(agent.policy().predict(data.obs), expected, atol=1e-5)
