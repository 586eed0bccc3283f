"""Random numbers by seed, purpose and position, batches of every row, and the feed of updates."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from problems import walk

from offrl.datasets.replay import Replay, Sampler, transitions
from offrl.feed import Feed
from offrl.streams import BLOCK, NoiseStream, Stream


def numbers(stream: Stream, block: int, count: int = 50) -> list[float]:
    drawn: list[float] = stream.block(block).random(count).tolist()
    return drawn


def test_a_block_is_the_same_whatever_came_before() -> None:
    fresh, used = Stream(3, "batch"), Stream(3, "batch")
    for other in (0, 9, 4, 5):
        used.block(other).standard_normal(1_000)
    assert numbers(fresh, 5) == numbers(used, 5) == numbers(used, 5)


def test_blocks_seeds_and_purposes_differ() -> None:
    drawn = [
        tuple(numbers(Stream(seed, purpose), block))
        for seed in (0, 1, 12)
        for purpose in ("batch", "init", "noise/a", "noise/b")
        for block in (0, 1, 2, 21)
    ]
    assert len(set(drawn)) == len(drawn)
    # Not one number is shared either, as it would be by streams that are shifted copies.
    everything = np.concatenate([np.array(d) for d in drawn])
    assert len(np.unique(everything)) == everything.size


def test_a_block_does_not_run_into_the_next() -> None:
    # The block's number is the highest word of the counter: 2^192 draws lie between two blocks.
    first = Stream(0, "batch").block(0).random(200_000)
    second = numbers(Stream(0, "batch"), 1, 10)
    assert not np.isin(second, first).any()


def test_numbers_are_those_of_philox_under_a_stated_key() -> None:
    import hashlib

    key = np.frombuffer(hashlib.sha256(b"offrl/batch/7").digest()[:16], np.uint64)
    generator = np.random.Generator(
        np.random.Philox(key=key, counter=np.array([0, 0, 0, 2], np.uint64))
    )
    assert numbers(Stream(7, "batch"), 2) == generator.random(50).tolist()


def test_noise_is_standard_normal_and_separate_by_name() -> None:
    stream = NoiseStream(0, {"a": (40, 5), "b": (40, 5)})
    drawn = stream.block(0)
    assert drawn.keys() == {"a", "b"}
    for values in drawn.values():
        assert values.shape == (BLOCK, 40, 5) and values.dtype == np.float32
        assert abs(values.mean()) < 0.04 and values.std() == pytest.approx(1.0, abs=0.03)
    correlation = np.corrcoef(drawn["a"].ravel(), drawn["b"].ravel())[0, 1]
    assert abs(correlation) < 0.04
    alone = NoiseStream(0, {"b": (40, 5)}).block(0)
    assert np.array_equal(alone["b"], drawn["b"])


def batches(size: int, count: int, seed: int = 0, batch_size: int = 64) -> NDArray[np.int64]:
    sampler = Sampler(seed, size, batch_size)
    return np.concatenate([sampler.block(i) for i in range(count)])


@pytest.mark.parametrize("size", [7, 100, 1_001])
def test_every_transition_is_drawn_as_often(size: int) -> None:
    drawn = batches(size, 6)
    assert drawn.shape == (6 * BLOCK, 64)
    counts = np.bincount(drawn.ravel(), minlength=size)
    assert len(counts) == size and (counts > 0).all()
    # Chi-squared has mean size - 1 and variance 2 (size - 1); five deviations never happen.
    expected = drawn.size / size
    statistic = float(((counts - expected) ** 2 / expected).sum())
    assert abs(statistic - (size - 1)) < 5 * np.sqrt(2 * (size - 1))


def test_draws_are_independent() -> None:
    # Two draws of a batch agree as often as two of different steps: once in `size`.
    drawn = batches(50, 6)
    within = (drawn[:, :-1] == drawn[:, 1:]).mean()
    between = (drawn[:-1] == drawn[1:]).mean()
    assert within == pytest.approx(0.02, abs=0.005)
    assert between == pytest.approx(0.02, abs=0.005)
    assert (batches(50, 1, seed=1) == batches(50, 1, seed=2)).mean() == pytest.approx(
        0.02, abs=0.01
    )


def feed(replay: Replay, seeds: tuple[int, ...]) -> Feed:
    return Feed(replay, seeds, 8, {"n": (8, 2)})


def test_a_feed_has_no_memory() -> None:
    replay = transitions(walk())
    straight, jumping = feed(replay, (4,)), feed(replay, (4,))
    wanted = [straight.at(step) for step in range(BLOCK + 3)]
    for step in (BLOCK + 2, 0, 5, BLOCK, 4):
        batch, noise = jumping.at(step)
        assert torch.equal(batch.index, wanted[step][0].index)
        assert torch.equal(batch.obs, wanted[step][0].obs)
        assert torch.equal(noise["n"], wanted[step][1]["n"])
    first = {tuple(batch.index.tolist()) for batch, _ in wanted}
    assert len(first) == len(wanted)


def test_a_feed_gives_what_the_streams_give() -> None:
    replay = transitions(walk())
    batch, noise = feed(replay, (4,)).at(BLOCK + 3)
    places = Sampler(4, len(replay), 8).block(1)[3]
    assert torch.equal(batch.index, replay.index[torch.from_numpy(places)])
    expected = NoiseStream(4, {"n": (8, 2)}).block(1)["n"][3]
    assert torch.equal(noise["n"], torch.from_numpy(expected))


def test_learners_have_their_own_batches_and_noise() -> None:
    replay = transitions(walk())
    batch, noise = feed(replay, (4, 9)).at(2)
    assert batch.obs.shape == (2, 8, 3) and noise["n"].shape == (2, 8, 2)
    for k, seed in enumerate((4, 9)):
        alone, own = feed(replay, (seed,)).at(2)
        for name, value in vars(alone).items():
            assert torch.equal(getattr(batch, name)[k], value), name
        assert torch.equal(noise["n"][k], own["n"])
    assert not torch.equal(batch.index[0], batch.index[1])


def test_noise_follows_the_replays_float_type() -> None:
    batch, noise = feed(transitions(walk()).to(torch.float64), (4,)).at(0)
    assert noise["n"].dtype == batch.obs.dtype == batch.mask.dtype == torch.float64
    assert batch.index.dtype == torch.int64
