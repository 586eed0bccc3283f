"""Consistency models: their boundary, the levels that they are trained at, their distance."""

import math

import pytest
import torch
from torch import Tensor

from offrl.consistency import Consistency, grid_size, pair_weight
from offrl.denoising import Point, denoiser, over
from offrl.losses import pseudo_huber
from offrl.processes import EDM
from offrl.samplers import consistency, move


def quantiles(n: int) -> Tensor:
    return torch.special.ndtri((torch.arange(n, dtype=torch.float64) + 0.5) / n)


def test_the_answer_at_the_lowest_level_is_x_for_any_network() -> None:
    weight = torch.randn(3, 3, generator=torch.Generator().manual_seed(0)).double()
    process, x = Consistency(sigma_min=0.002), quantiles(12).reshape(4, 3)
    denoise = denoiser(process, lambda x, level, _: x @ weight + level[..., None], event=1)
    assert torch.equal(denoise(x, Point(0.002, 1.0, 0.002)).x0, x)
    drawn = Point(*(torch.full((4,), v, dtype=torch.float64) for v in (0.002, 1.0, 0.002)))
    assert torch.equal(denoise(x, drawn).x0, x)


def test_scalings_by_hand() -> None:
    # sigma = 3, sigma_min = 1, sigma_d = 4: roots of 9 + 16 and of 4 + 16.
    skip, out, scale = Consistency(sigma_data=4.0, sigma_min=1.0).scalings(3.0)
    assert (skip, out, scale) == pytest.approx((16 / 20, 2 * 4 / 5, 0.2))
    # Far above sigma_min they are EDM's.
    assert Consistency(sigma_min=1e-9).scalings(2.0) == pytest.approx(EDM().scalings(2.0))


@pytest.mark.parametrize("size", [2, 11, 41])
def test_pairs_are_neighbours_with_the_published_probabilities(size: int) -> None:
    process = Consistency()
    high, low = process.pair(quantiles(20_000), torch.tensor(size))
    ends = [s ** (1 / 7) for s in (0.002, 80.0)]
    step = (ends[1] - ends[0]) / (size - 1)
    grid = torch.tensor([(ends[0] + i * step) ** 7 for i in range(size)], dtype=torch.float64)
    index = torch.searchsorted(grid, torch.as_tensor(low.sigma) * (1 + 1e-9)) - 1
    torch.testing.assert_close(low.sigma, grid[index], rtol=1e-9, atol=0)
    torch.testing.assert_close(high.sigma, grid[index + 1], rtol=1e-9, atol=0)
    edges = torch.special.ndtr((grid.log() + 1.1) / 2.0).diff()
    shares = index.bincount(minlength=size - 1) / 20_000
    torch.testing.assert_close(shares.double(), edges / edges.sum(), atol=1e-4, rtol=0)
    weight = pair_weight(high, low)
    torch.testing.assert_close(weight, 1.0 / grid.diff()[index], rtol=1e-8, atol=0)


def test_draws_in_the_far_tails_stay_on_the_grid() -> None:
    high, low = Consistency().pair(torch.tensor([-40.0, 40.0]), 11)
    torch.testing.assert_close(low.sigma[0], torch.tensor(0.002))  # type: ignore[index]
    torch.testing.assert_close(high.sigma[1], torch.tensor(80.0))  # type: ignore[index]


def test_the_grid_is_doubled_at_equal_intervals() -> None:
    # log2(1280 / 10) + 1 = 8 intervals of 100 steps.
    sizes = [grid_size(step, 800) for step in (0, 99, 100, 350, 700, 799, 10_000)]
    assert sizes == [11, 11, 21, 81, 1281, 1281, 1281]
    assert [grid_size(step, 3, 10, 40) for step in (0, 1, 2)] == [11, 21, 41]


def test_pseudo_huber_by_hand() -> None:
    # |(3, 4)| = 5 with c = 12: 13 - 12. Nothing: 0. The vector, not its components.
    error = torch.tensor([[3.0, 4.0], [0.0, 0.0]])
    assert pseudo_huber(error, 12.0).tolist() == [1.0, 0.0]


def test_a_teacher_moves_x_along_its_own_path() -> None:
    # One Euler step to the neighbour with the true x0 keeps its eps.
    x0, eps = quantiles(6).reshape(3, 2), quantiles(6).flip(0).reshape(3, 2)
    high, low = Consistency().pair(quantiles(3), 11)
    at_high, at_low = (x0 + over(p, x0).sigma * eps for p in (high, low))
    denoised = denoiser(EDM(), lambda x, level, _: EDM().target(x0, eps, high), event=1)
    torch.testing.assert_close(move(denoised(at_high, high), over(low, x0)), at_low)


def test_more_levels_put_noise_back_by_hand() -> None:
    # Levels 5, 3 and sigma_min 1.8: sqrt(9 - 3.24) = 2.4.
    path = (Point(5.0, 1.0, 5.0), Point(3.0, 1.0, 3.0), Point(1.8, 1.0, 1.8))
    seen: list[float] = []

    def half(x: Tensor, level: Tensor, condition: Tensor | None) -> Tensor:
        seen.append(float(level))
        return torch.zeros_like(x)

    process = Consistency(sigma_data=math.sqrt(1.44), sigma_min=1.8, sigma_max=5.0)
    sample = consistency(
        denoiser(process, half, event=1),
        path,
        torch.full((1, 1), 10.0).double(),
        [torch.full((1, 1), 0.5).double()],
    )
    # c_skip = 1.44 / (3.2^2 + 1.44), then 1.44 / (1.2^2 + 1.44) = 1/2.
    first = 10.0 * 1.44 / (10.24 + 1.44)
    assert float(sample.x) == pytest.approx(0.5 * (first + 2.4 * 0.5))
    assert seen == pytest.approx([math.log(5.0) / 4, math.log(3.0) / 4])
    assert sample.evaluations == 2
