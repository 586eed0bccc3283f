import numpy as np
import pytest
from scipy import stats

from offrl.errors import DataError
from offrl.statistics import (
    crossed_interval,
    iqm,
    mean,
    mode_coverage,
    paired_difference,
    stratified_bootstrap,
    t_interval,
    welch_interval,
    wilson_interval,
)


def test_iqm_drops_a_quarter_at_each_end() -> None:
    # Eight values: two dropped below (0, 1), two above (100, 1000); (2 + 3 + 4 + 7) / 4 = 4.
    assert iqm([1000, 2, 0, 3, 4, 100, 7, 1]) == 4.0
    # Three values: floor(3 / 4) = 0 dropped.
    assert iqm([1, 2, 9]) == 4.0
    # Five: one dropped at each end; (2 + 3 + 4) / 3 = 3. Along the last axis of a table.
    np.testing.assert_allclose(iqm([[5, 4, 3, 2, -90], [0, 0, 3, 6, 6]]), [3.0, 3.0])


def test_t_interval_by_hand() -> None:
    # Mean 2, s^2 = (1 + 0 + 1) / 2 = 1, t_2(0.975) = 4.302653, half = 4.302653 / sqrt(3).
    interval = t_interval([1, 2, 3])
    assert interval is not None
    assert interval.low == pytest.approx(2 - 4.302653 / 3**0.5, abs=1e-6)
    assert interval.high == pytest.approx(2 + 4.302653 / 3**0.5, abs=1e-6)
    # t_2 at 90 % is 2.919986.
    assert t_interval([1, 2, 3], 0.9).high == pytest.approx(2 + 2.919986 / 3**0.5, abs=1e-6)  # type: ignore[union-attr]


def test_t_interval_of_equal_and_of_single_values() -> None:
    same = t_interval([5.0] * 4)
    assert same is not None and (same.low, same.high) == (5.0, 5.0)
    assert t_interval([5.0]) is None


def test_t_interval_covers_the_mean_about_95_times_in_100() -> None:
    x = np.random.default_rng(0).exponential(size=(2000, 20))
    intervals = [t_interval(row) for row in x]
    covered = np.mean([i is not None and i.low <= 1.0 <= i.high for i in intervals])
    assert 0.90 < covered < 0.97


def test_crossed_interval_by_hand() -> None:
    # Means of runs 2, 4 and of starts 1.5, 3, 4.5; left over: -+0.5, 0, +-0.5.
    values = [[0.0, 2.0, 4.0], [3.0, 4.0, 5.0]]
    of_run, of_start, rest = 3 * 2.0, 2 * 2.25, 1.0 / 2
    spread = of_run + of_start - rest
    free = spread**2 / (of_run**2 / 1 + of_start**2 / 2 + rest**2 / 2)
    half = float(stats.t.ppf(0.975, free)) * (spread / 6) ** 0.5
    found = crossed_interval(values)
    assert found is not None
    assert (found.low, found.high) == pytest.approx((3 - half, 3 + half))


def test_crossed_interval_sees_what_all_runs_share() -> None:
    starts = np.random.default_rng(0).normal(size=50)
    found, alone = crossed_interval([starts, starts]), t_interval(starts)
    assert found is not None and alone is not None
    assert (found.low, found.high) == pytest.approx((alone.low, alone.high))
    over_runs = t_interval([starts.mean(), starts.mean()])
    assert over_runs is not None and over_runs.low == over_runs.high
    runs = np.array([1.0, 2.0, 4.0])
    found, alone = crossed_interval(np.tile(runs[:, None], 7)), t_interval(runs)
    assert found is not None and alone is not None
    assert (found.low, found.high) == pytest.approx((alone.low, alone.high))


def test_crossed_interval_covers_the_mean_about_95_times_in_100() -> None:
    rng, hits = np.random.default_rng(0), 0
    for _ in range(1000):
        run, start = rng.normal(size=(4, 1)), rng.normal(size=30)
        found = crossed_interval(run + 2 * start + rng.normal(size=(4, 30)))
        assert found is not None
        hits += found.low <= 0.0 <= found.high
    assert 920 <= hits <= 985


def test_crossed_interval_of_equal_single_and_untabled_values() -> None:
    found = crossed_interval(np.ones((3, 4)))
    assert found is not None and found.low == found.high == 1.0
    assert crossed_interval([[1.0, 2.0]]) is None and crossed_interval([[1.0], [2.0]]) is None
    with pytest.raises(DataError, match=r"shape \(3,\); expected \(runs, starts\)"):
        crossed_interval([1.0, 2.0, 3.0])


def test_paired_difference_cancels_what_the_starts_share() -> None:
    start = np.array([0.0, 1000.0, 5000.0])
    # Differences 1, 2, 3: mean 2 and the interval of the test above, whatever the starts do.
    difference, interval = paired_difference(start + np.arange(1, 4), start)
    assert difference == pytest.approx(2.0)
    assert interval.low == pytest.approx(2 - 4.302653 / 3**0.5, abs=1e-6)
    with pytest.raises(DataError, match="cannot be paired"):
        paired_difference([1, 2], [1, 2, 3])
    with pytest.raises(DataError, match="two episodes or more"):
        paired_difference([1], [2])


def test_bootstrap_draws_within_tasks() -> None:
    # Each task's runs agree, so every resample is the same although the tasks differ.
    interval = stratified_bootstrap([[0.0] * 3, [100.0] * 3], statistic=mean)
    assert (interval.low, interval.high) == (50.0, 50.0)


def test_bootstrap_of_two_values_by_hand() -> None:
    # Means of two draws from {0, 1}: 0, 1/2, 1 with weights 1/4, 1/2, 1/4.
    interval = stratified_bootstrap([[0.0, 1.0]], statistic=mean)
    assert (interval.low, interval.high) == (0.0, 1.0)
    narrow = stratified_bootstrap([[0.0, 1.0]], statistic=mean, level=0.4)
    assert (narrow.low, narrow.high) == (0.5, 0.5)


def test_bootstrap_agrees_with_the_normal_limit_and_repeats_itself() -> None:
    x = np.random.default_rng(1).standard_normal(400)
    interval = stratified_bootstrap([x], statistic=mean)
    half = 1.959964 * x.std() / 20  # z_0.975 times the standard error
    assert interval.low == pytest.approx(x.mean() - half, abs=0.006)
    assert interval.high == pytest.approx(x.mean() + half, abs=0.006)
    assert interval == stratified_bootstrap([x], statistic=mean)
    assert interval != stratified_bootstrap([x], statistic=mean, seed=1)


@pytest.mark.parametrize("values", [[], [1.0, np.nan]])
def test_nothing_and_not_a_number_are_refused(values: list[float]) -> None:
    for function in (iqm, mean, t_interval):
        with pytest.raises(DataError):
            function(values)
    with pytest.raises(DataError):
        stratified_bootstrap([values])


def test_wilsons_interval_by_hand() -> None:
    # z = 1.959964, z^2 = 3.841459: 20 of 20 has the lower end n / (n + z^2).
    all_of_them = wilson_interval(20, 20)
    assert all_of_them.low == pytest.approx(20 / 23.841459) and all_of_them.high == 1.0
    none = wilson_interval(0, 20)
    assert (none.low, none.high) == (0.0, pytest.approx(1 - 20 / 23.841459))
    # The ends are where |p - share| = z sqrt(p (1 - p) / n).
    half = wilson_interval(7, 10)
    for end in (half.low, half.high):
        assert abs(end - 0.7) == pytest.approx(1.959964 * (end * (1 - end) / 10) ** 0.5, rel=1e-6)
    for successes, trials in ((0, 0), (3, 2), (-1, 2)):
        with pytest.raises(DataError, match="have no interval"):
            wilson_interval(successes, trials)


def test_coverage_of_modes_by_hand() -> None:
    assert mode_coverage([0, 1, 1, 0], 2) == pytest.approx(1.0)
    assert mode_coverage([1, 1], 2) == 0.0 == mode_coverage([], 2)
    assert mode_coverage([0, 1], 4) == pytest.approx(0.5)  # one bit of two
    assert mode_coverage([0, 0, 0, 1], 2) == pytest.approx(0.811278, abs=1e-6)
    with pytest.raises(DataError, match="not among 2 ways"):
        mode_coverage([0, 2], 2)
    with pytest.raises(DataError, match="two at least"):
        mode_coverage([0], 1)


def test_welchs_interval_is_scipys_and_by_hand() -> None:
    # s^2 of 1 in both, three values each: v = 1/3, n = (2/3)^2 / (2 (1/9) / 2) = 4, t_4 = 2.776445.
    found = welch_interval([1, 2, 3], [5, 6, 7])
    half = 2.776445 * (2 / 3) ** 0.5
    assert found is not None
    assert (found.low, found.high) == pytest.approx((-4 - half, -4 + half), rel=1e-6)
    a, b = [1.0, 5.0, 9.0, 2.0], [300.0, 100.0]
    found, known = welch_interval(a, b), stats.ttest_ind(a, b, equal_var=False)
    expected = known.confidence_interval(0.95)
    assert found is not None
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert welch_interval([1, 2], [3]) is None is welch_interval([1], [3, 4])
    same = welch_interval([2, 2], [1, 1, 1])
    assert same is not None and (same.low, same.high) == (1, 1)
