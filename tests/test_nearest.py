"""PRDC's nearest action against a float64 brute force, by every way of searching."""

import importlib
import inspect
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path

import jaxtyping
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import offrl.nearest
from offrl.errors import ConfigError, DataError
from offrl.nearest import NearestAction
from offrl.nearest_search import BlockedSearch, KeySearch, square_distance

Floats = NDArray[np.floating]
BETAS = (0.0, 0.5, 2.0, 7.5)
OBS, ACT = 11, 3


def made_data(size: int, seed: int = 0) -> tuple[Floats, Floats]:
    """States on a thin manifold, dense in places; a tenth are copies, some with another action."""
    rng = np.random.default_rng(seed)
    latent = rng.standard_normal((size, 4)) * rng.uniform(0.05, 1.5, (size, 1))
    obs = np.tanh(latent @ rng.standard_normal((4, OBS))) + 0.02 * rng.standard_normal((size, OBS))
    action = np.clip(latent @ rng.standard_normal((4, ACT)) * 0.5, -1, 1)
    action = np.clip(action + 0.4 * rng.standard_normal((size, ACT)), -1, 1)
    copies, of = rng.integers(0, size, (2, size // 10))
    obs[copies], action[copies] = obs[of], action[of]
    action[copies[::3]] = np.clip(rng.standard_normal((len(copies[::3]), ACT)), -1, 1)
    obs[: size // 50] = obs[0]
    return obs.astype(np.float32), action.astype(np.float32)


def queries(kind: str, obs: Floats, action: Floats, rng: np.random.Generator) -> Floats:
    if kind == "data":
        sigma = rng.choice([0.0, 0.05, 0.3, 1.0], (len(action), 1))
        return np.clip(action + sigma * rng.standard_normal(action.shape), -1, 1).astype("f4")
    if kind == "uniform":
        return rng.uniform(-1, 1, action.shape).astype(np.float32)
    first = rng.uniform(-1, 1, (obs.shape[1], 256)) / obs.shape[1] ** 0.5
    second = rng.uniform(-1, 1, (256, action.shape[1])) / 16
    proposed: Floats = np.tanh(np.maximum(obs @ first, 0) @ second).astype(np.float32)
    return proposed


def brute_force(
    obs: Floats, action: Floats, beta: float, q_obs: Floats, q_act: Floats
) -> NDArray[np.int64]:
    """The lowest row at the least distance, over all rows, in float64."""
    keys = np.concatenate([beta * obs.astype(np.float64), action], 1)
    length = (keys**2).sum(1)
    rows = np.empty(len(q_obs), np.int64)
    for at in range(0, len(q_obs), 128):
        part = slice(at, at + 128)
        query = np.concatenate([beta * q_obs[part].astype(np.float64), q_act[part]], 1)
        score = length - 2.0 * (query @ keys.T)
        near = score <= score.min(1, keepdims=True) + 1e-9
        for i, mask in enumerate(near):
            some = np.flatnonzero(mask)
            distance = ((keys[some] - query[i]) ** 2).sum(1)
            rows[at + i] = some[distance == distance.min()].min()
    return rows


def check(
    size: int, count: int, kind: str, beta: float, seed: int = 0, neighbours: int = 32
) -> dict[str, float]:
    """Compare `count` queries with brute force; returns the search's statistics."""
    obs, action = made_data(size)
    rng = np.random.default_rng(seed)
    index = rng.integers(0, size, count)
    query = queries(kind, obs[index], action[index], rng)
    search = NearestAction(obs, action, beta, neighbours=neighbours)
    answer, own = search.with_own(
        torch.from_numpy(obs[index]), torch.from_numpy(query), torch.from_numpy(index)
    )
    rows = brute_force(obs, action, beta, obs[index], query)
    np.testing.assert_array_equal(answer.numpy(), action[rows])
    expected = np.linalg.norm(query - action[rows], axis=1) ** 2
    mine = np.linalg.norm(query - action[index], axis=1) ** 2
    state = ((obs[index].astype("f8") - obs[rows]) ** 2).sum(1) * beta**2
    np.testing.assert_array_equal(own.numpy(), mine <= (expected + state) * (1 + 1e-6))
    return search.statistics()


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("kind", ["data", "uniform", "actor"])
def test_brute_force(kind: str, beta: float) -> None:
    share = check(20_000, 1_000, kind, beta)["certified"]
    assert share == 0 if beta == 0 else 0 < share < 1


@pytest.mark.slow
@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("kind", ["data", "uniform", "actor"])
def test_brute_force_full_size(kind: str, beta: float) -> None:
    share = check(120_000, 10_000, kind, beta)["certified"]
    assert share == 0 if beta == 0 else 0 < share < 1


def tensors(
    obs: Floats, action: Floats, dtype: torch.dtype = torch.float32
) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.from_numpy(obs).to(dtype), torch.from_numpy(action).to(dtype)


def test_answers_do_not_depend_on_what_is_filled() -> None:
    obs, action = made_data(3_000)
    rng = np.random.default_rng(1)
    index = rng.integers(0, 3_000, 512)
    near, far = (queries(k, obs[index], action[index], rng) for k in ("data", "uniform"))
    fresh = NearestAction(obs, action, 2.0)
    used = NearestAction(obs, action, 2.0, neighbours=3)
    row = torch.from_numpy(index)
    for q in (near, far, near):
        used(*tensors(obs[index], q), row)
    assert torch.equal(
        used(*tensors(obs[index], near), row), fresh(*tensors(obs[index], near), row)
    )
    assert used.statistics()["filled"] > 0.1


def test_float64_queries_and_free_ones() -> None:
    obs, action = made_data(2_000)
    rng = np.random.default_rng(2)
    q_obs, q_act = rng.standard_normal((300, OBS)), rng.uniform(-1, 1, (300, ACT))
    search = NearestAction(obs, action, 0.5)
    answer, own = search.with_own(torch.from_numpy(q_obs), torch.from_numpy(q_act))
    assert answer.dtype == own.dtype == torch.float64
    np.testing.assert_array_equal(answer, action[brute_force(obs, action, 0.5, q_obs, q_act)])
    assert own.sum() == 0
    assert search.statistics()["certified"] == 0


def test_wrong_or_unknown_rows_change_nothing() -> None:
    obs, action = made_data(2_000)
    rng = np.random.default_rng(3)
    index = rng.integers(0, 2_000, 300)
    query = queries("data", obs[index], action[index], rng)
    rows = brute_force(obs, action, 2.0, obs[index], query)
    search = NearestAction(obs, action, 2.0)
    for wrong in (rng.permutation(index), np.full(300, -1), index + 10**6):
        answer = search(*tensors(obs[index], query), torch.from_numpy(wrong))
        np.testing.assert_array_equal(answer, action[rows])
    moved = obs[index] + 1e-7 * rng.standard_normal((300, OBS)).astype(np.float32)
    rows = brute_force(obs, action, 2.0, moved, query)
    answer = search(*tensors(moved, query), torch.from_numpy(index))
    np.testing.assert_array_equal(answer, action[rows])


def test_rows_have_numbers_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offrl.nearest, "PATIENCE", np.inf)
    obs, action = made_data(500)
    rng = np.random.default_rng(4)
    numbers = 7 + 3 * rng.permutation(500)
    search = NearestAction(obs, action, 7.5, rows=numbers)
    for _ in range(3):
        search.statistics()
        answer, own = search.with_own(*tensors(obs, action), torch.from_numpy(numbers))
        np.testing.assert_array_equal(answer, action)
        assert own.mean() == 1
    assert search.statistics()["certified"] > 0.5


def test_ties_go_to_the_lowest_row() -> None:
    # Two states at distance 1 on either side, actions that mirror each other, all exact.
    obs = np.array([[0.0], [1.0], [-1.0], [5.0]], np.float32)
    action = np.array([[-1.0], [0.5], [0.25], [0.0]], np.float32)
    for order in ([0, 1, 2, 3], [0, 2, 1, 3]):
        search = NearestAction(obs[order], action[order], 1.0, neighbours=1)
        # (0, 0.375): 1.375 to its own, sqrt(1 + 1/64) to both others.
        answer, own = search.with_own(
            torch.zeros(1, 1), torch.full((1, 1), 0.375), torch.zeros(1).long()
        )
        assert float(answer) == action[order][1].item()
        assert float(own) == 0


def test_a_tie_with_a_state_outside_the_list() -> None:
    # The list of row 2 holds row 1 alone; row 0, as far as the best, is lower and must win.
    obs = np.array([[2.0], [-1.0], [0.0]], np.float32)
    action = np.array([[0.5], [-1.5], [-1.5]], np.float32)
    search = NearestAction(obs, action, 1.0, neighbours=1)
    query = torch.zeros(1, 1), torch.full((1, 1), 0.5), torch.full((1,), 2)
    for _ in range(2):
        assert float(search(*query)) == 0.5
    assert search.statistics()["certified"] == 0


def test_bounds_that_float32_would_round_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """The winner is nearer than the own row by less than float32 can tell, in and out of a list."""
    monkeypatch.setattr(sys.modules[NearestAction.__module__], "PATIENCE", np.inf)
    rng = np.random.default_rng(5)
    for neighbours in (1, 2):
        tried = 0
        while tried < 20:
            winner = rng.uniform(0.5, 0.7, 2).astype(np.float32)
            distance = float(np.linalg.norm(winner.astype(np.float64)))
            single = float(np.float32(distance))
            if single <= distance * (1 + 2e-8):
                continue
            tried += 1
            between = 0.5 * (distance + single)
            obs = np.array([[0, 0], [0.1, 0], winner], np.float32)
            action = np.array([[0], [-1], [between]], np.float32)
            search = NearestAction(obs, action, 1.0, neighbours=neighbours)
            query = torch.zeros(1, 2).double(), torch.tensor([[between]], dtype=torch.float64)
            for _ in range(2):
                answer, own = search.with_own(*query, torch.zeros(1).long())
                assert float(answer) == action[2, 0].item()
                assert float(own) == 0


@pytest.mark.parametrize("beta", [0.0, 2.0])
@pytest.mark.parametrize("size", [1, 2, 5])
def test_fewer_rows_than_neighbours(size: int, beta: float) -> None:
    obs, action = made_data(20)
    obs, action = obs[-size:], action[-size:]
    rng = np.random.default_rng(6)
    index = rng.integers(0, size, 64)
    query = queries("uniform", obs[index], action[index], rng)
    answer = NearestAction(obs, action, beta)(*tensors(obs[index], query), torch.from_numpy(index))
    rows = brute_force(obs, action, beta, obs[index], query)
    np.testing.assert_array_equal(answer, action[rows])


@pytest.mark.parametrize("beta", [0.0, 2.0])
def test_one_state_many_times(beta: float) -> None:
    obs = np.ones((2_000, OBS), np.float32)
    action = np.random.default_rng(7).uniform(-1, 1, (2_000, ACT)).astype(np.float32)
    action[1_000:] = action[0]
    index = np.arange(0, 2_000, 5)
    query = queries("data", obs[index], action[index], np.random.default_rng(8))
    search = NearestAction(obs, action, beta)
    answer, own = search.with_own(*tensors(obs[index], query), torch.from_numpy(index))
    rows = brute_force(obs, action, beta, obs[index], query)
    np.testing.assert_array_equal(answer, action[rows])
    assert 0 < own.mean() < 1


def test_a_query_that_is_not_finite_gets_nan() -> None:
    obs, action = made_data(100)
    q_obs, q_act = tensors(obs[:4].copy(), action[:4].copy())
    q_act[1, 0], q_obs[2, 3] = torch.nan, torch.inf
    search = NearestAction(obs, action, 2.0)
    for index in (torch.arange(4), None):
        answer, own = search.with_own(q_obs, q_act, index)
        assert answer.isnan().all(1).tolist() == [False, True, True, False]
        assert own[1] == own[2] == 0
    search._move(torch.device("cpu"))
    assert search(q_obs, q_act).isnan().all(1).tolist() == [False, True, True, False]


def test_stacked_learners_are_single_ones() -> None:
    obs, action = made_data(1_000)
    rng = np.random.default_rng(9)
    index = rng.integers(0, 1_000, (3, 64))
    query = queries("uniform", obs[index], action[index], rng)
    search = NearestAction(obs, action, 2.0)
    row = torch.from_numpy(index)
    answer, own = search.with_own(*tensors(obs[index], query), row)
    assert answer.shape == (3, 64, ACT) and own.shape == (3, 64)
    for k in range(3):
        single = search.with_own(*tensors(obs[index[k]], query[k]), row[k])
        assert torch.equal(answer[k], single[0]) and torch.equal(own[k], single[1])


@pytest.mark.compiled
def test_compiled_is_eager_and_has_no_gradient() -> None:
    obs, action = made_data(1_000)
    search = NearestAction(obs, action, 2.0)
    index = torch.arange(0, 1_000, 4)
    q_obs, q_act = tensors(obs[::4], np.zeros((250, ACT), np.float32))
    scale = torch.ones((), requires_grad=True)

    def loss(q_obs: torch.Tensor, q_act: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        moved = q_act + scale
        answer, own = search.with_own(q_obs, moved, index)
        return ((moved - answer) ** 2).mean() + own.mean()

    values: list[float] = []
    gradients: list[float] = []
    for f in (loss, torch.compile(loss, backend="aot_eager", fullgraph=True)):
        scale.grad = None
        value = f(q_obs, q_act, index)
        torch.autograd.backward(value)
        values.append(value.item())
        assert scale.grad is not None
        gradients.append(scale.grad.item())
    assert values[0] == values[1] and gradients[0] == gradients[1]
    with torch.no_grad():
        answer = search(q_obs, q_act + scale, index)
        expected = 2 * (q_act + scale - answer).mean()
    assert gradients[0] == pytest.approx(float(expected), rel=1e-5)


def test_operator_is_well_formed() -> None:
    obs, action = made_data(50)
    search = NearestAction(obs, action, 2.0)
    arguments = (*tensors(obs[:8], action[:8]), torch.arange(8), search._handle)
    torch.library.opcheck(torch.ops.offrl.nearest_action.default, arguments)


def test_registry_lets_go() -> None:
    search = NearestAction(*made_data(50), 2.0)
    handle = search._handle
    assert handle in offrl.nearest._searches
    del search
    assert handle not in offrl.nearest._searches


@pytest.mark.parametrize("beta", BETAS)
def test_full_searches_agree(beta: float) -> None:
    obs, action = made_data(5_000)
    rng = np.random.default_rng(10)
    index = rng.integers(0, 5_000, 300)
    query = np.concatenate(
        [queries(k, obs[index], action[index], rng) for k in ("data", "uniform")]
    )
    index = np.concatenate([index, index])
    search = NearestAction(obs, action, beta)
    key = search.keys(obs[index], query)
    full = KeySearch(search._keys)
    found = []
    for method in (full.by_tree, full.by_products, full.nearest):
        best, squared = np.full(len(key), -1), np.full(len(key), np.inf)
        method(key, best, squared)
        found.append((best, squared))
    blocked = BlockedSearch(search._keys, torch.device("cpu"), block=999)
    entry, squared_, proven = blocked.nearest(torch.from_numpy(key))
    assert proven.all()
    found.append((entry.numpy(), squared_.numpy()))
    for best, squared in found[1:]:
        np.testing.assert_array_equal(best, found[0][0])
        np.testing.assert_allclose(squared, found[0][1], rtol=1e-14, atol=0)

    rows = torch.from_numpy(index)
    by_lists = search.with_own(*tensors(obs[index], query), rows)
    search.statistics()
    search._move(torch.device("cpu"))
    by_blocks = search.with_own(*tensors(obs[index], query), rows)
    assert torch.equal(by_lists[0], by_blocks[0]) and torch.equal(by_lists[1], by_blocks[1])
    assert search.statistics()["certified"] == 1


def test_products_survive_keys_far_from_the_origin() -> None:
    rng = np.random.default_rng(11)
    keys = rng.standard_normal((20_000, 6)).astype(np.float32).astype(np.float64)
    keys[::100] *= 1e4
    query = keys[:500] + 1e-5 * rng.standard_normal((500, 6))
    full = KeySearch(keys)
    best, squared = np.full(500, -1), np.full(500, np.inf)
    full.by_products(query, best, squared)
    np.testing.assert_array_equal(best, np.arange(500))


def test_blocked_search_counts_what_it_cannot_prove() -> None:
    keys = np.zeros((200, 3))
    keys[:, 0] = 1.0 + 1e-9 * np.arange(200)
    _, _, proven = BlockedSearch(keys, torch.device("cpu")).nearest(torch.zeros(1, 3).double())
    assert not proven.any()


def test_distance_has_the_same_bits_in_any_company() -> None:
    rng = np.random.default_rng(12)
    for width in (1, 3, 7, 8, 9, 14, 23, 37, 130):
        a, b = rng.standard_normal((2, 101, width))
        together = square_distance(a, b)
        for some in (slice(0, 1), slice(50, 53), slice(3, 101, 2)):
            np.testing.assert_array_equal(square_distance(a[some], b[some]), together[some])


def used_search(cache: Path, obs: Floats, action: Floats, beta: float = 2.0) -> NearestAction:
    search = NearestAction(obs, action, beta, cache_dir=cache)
    search(*tensors(obs, np.zeros_like(action)), torch.arange(len(obs)))
    search.save()
    return search


def test_lists_are_kept_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offrl.nearest, "PATIENCE", np.inf)
    obs, action = made_data(800)
    first = used_search(tmp_path / "new", obs, action)
    files = list((tmp_path / "new").iterdir())
    assert len(files) == 1 and not files[0].name.endswith(".part")
    again = NearestAction(obs, action, 7.5, cache_dir=tmp_path / "new")
    assert again.fingerprint() == first.fingerprint()
    assert again.statistics()["filled"] == first.statistics()["filled"] > 0
    other = NearestAction(obs + 1, action, 2.0, cache_dir=tmp_path / "new")
    assert other.fingerprint() != first.fingerprint()
    assert other.statistics()["filled"] == 0
    longer = NearestAction(obs, action, 2.0, neighbours=33)
    assert longer.fingerprint() != first.fingerprint()
    assert NearestAction(obs, action, 0.0).fingerprint() is None


@pytest.mark.parametrize("damage", ["truncated", "empty", "other", "range"])
def test_damaged_lists_are_found_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    monkeypatch.setattr(offrl.nearest, "PATIENCE", np.inf)
    obs, action = made_data(400)
    used_search(tmp_path, obs, action)
    (path,) = tmp_path.iterdir()
    if damage in ("truncated", "empty"):
        path.write_bytes(path.read_bytes()[: 5_000 if damage == "truncated" else 0])
    else:
        with np.load(path) as file:
            arrays = dict(file)
        arrays["fingerprint"] = np.array("none") if damage == "other" else arrays["fingerprint"]
        arrays["index"] = arrays["index"] + (1_000 if damage == "range" else 0)
        np.savez(path, **arrays)
    with pytest.warns(UserWarning, match="found anew"):
        search = NearestAction(obs, action, 2.0, cache_dir=tmp_path)
    assert search.statistics()["filled"] == 0


def test_no_room_for_lists_costs_only_the_cache(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    obs, action = made_data(300)
    with pytest.warns(UserWarning, match="not cached"):
        used_search(tmp_path / "file", obs, action)


@pytest.fixture
def unchecked() -> Iterator[None]:
    """As a user runs it: without the shape checks of the tests, which would speak first."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"beta": -1.0}, ConfigError, "beta is -1"),
        ({"beta": np.nan}, ConfigError, "beta is nan"),
        ({"neighbours": 0}, ConfigError, "neighbours is 0"),
        ({"obs": np.zeros((0, 2), np.float32)}, DataError, "obs has shape"),
        ({"obs": np.full((4, 2), np.nan, np.float32)}, DataError, "not finite at entry 0"),
        ({"rows": np.arange(3)}, DataError, "4 obs, 4 actions and 3 rows"),
        ({"rows": np.arange(4) - 1}, DataError, "row -1 is negative"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_bad_input(change: dict[str, object], error: type[Exception], words: str) -> None:
    given = {"obs": np.zeros((4, 2), "f4"), "action": np.zeros((4, 1), "f4"), "beta": 1.0} | change
    with pytest.raises(error, match=words):
        NearestAction(**given)  # type: ignore[arg-type]


FAULTS = [
    ("nearest_table", "outside = distance[:, k]", "outside = distance[:, k] * 1.3"),
    ("nearest_table", "outside = distance[:, k]", "outside = distance[:, -1] + limit"),
    ("nearest_table", "np.minimum(outside, limit)", "np.maximum(outside, limit)"),
    ("nearest_table", "np.nextafter(x.astype(np.float32), np.float32(0.0))", "np.float32(x)"),
    ("nearest_table", "SLACK = 1e-9", "SLACK = 0.0"),
    ("nearest", "table.radius[entry[some]] > reach", "table.radius[entry[some]] < reach"),
    ("nearest", "reach = (np.sqrt(squared[some]) * (1.0 + SLACK) + away)", "reach = away"),
    ("nearest", "+ away) / self.beta", ") / self.beta"),
    ("nearest", "+ away) / self.beta", "+ away) / self.beta**2"),
    ("nearest", "self.beta * obs.astype(np.float64)", "obs.astype(np.float64)"),
    ("nearest_search", "high += self.error * length", "high -= 9 * self.error * length"),
    ("nearest_search", "lowest = np.minimum.reduceat", "lowest = np.maximum.reduceat"),
    ("nearest_search", "np.minimum(lowest, kept)", "lowest"),
    ("nearest_search", "query_ball_point(query, radius", "query_ball_point(query, 0.9 * radius"),
]


@pytest.mark.parametrize("fault", FAULTS, ids=[f"{m}: {new}" for m, _, new in FAULTS])
def test_planted_faults_are_caught(
    fault: tuple[str, str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of the certificate's and the ranking's safeguards, spoilt, fails a test above."""
    where, good, bad = fault
    for name in ("nearest_table", "nearest_search", "nearest"):
        source = inspect.getsource(importlib.import_module(f"offrl.{name}"))
        source = source.replace("offrl::nearest_action", f"offrl::planted_{FAULTS.index(fault)}")
        source = source.replace("from offrl.nearest_", "from planted.nearest_")
        if name == where:
            assert good in source
            source = source.replace(good, bad)
        module = types.ModuleType(f"planted.{name}")
        monkeypatch.setitem(sys.modules, f"planted.{name}", module)
        exec(source, module.__dict__)
    here = sys.modules[__name__]
    monkeypatch.setattr(here, "NearestAction", module.NearestAction)
    monkeypatch.setattr(here, "KeySearch", sys.modules["planted.nearest_search"].KeySearch)
    checks: list[Callable[[], object]] = [
        lambda: test_ties_go_to_the_lowest_row(),
        lambda: test_a_tie_with_a_state_outside_the_list(),
        lambda: test_bounds_that_float32_would_round_up(monkeypatch),
        lambda: test_one_state_many_times(2.0),
        lambda: test_wrong_or_unknown_rows_change_nothing(),
        lambda: test_answers_do_not_depend_on_what_is_filled(),
        lambda: test_products_survive_keys_far_from_the_origin(),
        lambda: check(5_000, 1_000, "data", 0.5, neighbours=4),
    ]
    assert any(fails(one) for one in checks)


def fails(check: Callable[[], object]) -> bool:
    try:
        check()
    except (AssertionError, IndexError, ValueError):
        return True
    return False
