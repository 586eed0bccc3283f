"""Processes: conversions, forward marginals, levels, and what their losses are minimised by."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from offrl.consistency import Consistency
from offrl.denoising import Point, corrupt, denoiser, matching_error, over
from offrl.errors import ConfigError
from offrl.networks import Learners, Linear, learner_view
from offrl.processes import DDPM, EDM, Flow, spaced

MATCHED = {
    "epsilon": DDPM(prediction="epsilon"),
    "x0": DDPM(prediction="x0"),
    "v": DDPM(prediction="v"),
    "vp": DDPM(5, schedule="vp"),
    "linear": DDPM(1000, schedule="linear", prediction="v"),
    "edm": EDM(),
    "beso": EDM(0.5, 0.005, 1.0, density="loglogistic", location=math.log(0.5), scale=0.5),
    "flow": Flow(),
}
each = pytest.mark.parametrize("name", MATCHED)


def normals(*shape: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


def quantiles(n: int) -> Tensor:
    """Standard normal numbers that are the n middles of equal shares of the distribution."""
    return torch.special.ndtri((torch.arange(n, dtype=torch.float64) + 0.5) / n)


def test_the_vp_schedule_has_the_published_levels() -> None:
    bars = DDPM(5, schedule="vp").alpha_bars()
    expected = [0.8041, 0.4352, 0.1585, 0.0389, 0.0064]
    torch.testing.assert_close(bars, torch.tensor(expected).double(), atol=5e-5, rtol=0)
    # sigma of the same levels with alpha = 1.
    expected = [0.49, 1.14, 2.30, 4.97, 12.45]
    ratio = ((1 - bars) / bars).sqrt()
    torch.testing.assert_close(ratio, torch.tensor(expected).double(), atol=6e-3, rtol=0)


def test_the_cosine_schedule_is_a_ratio_but_for_its_last_step() -> None:
    bars = DDPM(100).alpha_bars()

    def f(u: float) -> float:
        return math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2

    for k in (0, 49, 98):
        assert float(bars[k]) == pytest.approx(f((k + 1) / 100) / f(0), rel=1e-12)
    assert float(bars[99]) == pytest.approx(0.001 * float(bars[98]), rel=1e-12)


def test_the_linear_schedule_by_hand() -> None:
    # beta = 1e-4, 0.01005, 0.02: products of 0.9999, 0.98995 and 0.98.
    bars = DDPM(3, schedule="linear").alpha_bars()
    expected = torch.tensor([0.9999, 0.989851005, 0.9700539849], dtype=torch.float64)
    torch.testing.assert_close(bars, expected, atol=1e-12, rtol=0)


@each
def test_the_exact_output_is_read_as_the_exact_pair(name: str) -> None:
    process: Any = MATCHED[name]
    x0, eps = normals(64, 3, 2), normals(64, 3, 2, seed=1)
    point = process.draw(normals(64, seed=2))
    x = corrupt(x0, eps, point)
    read = process.split(process.target(x0, eps, point), x, point)
    torch.testing.assert_close(read.x0, x0, atol=1e-12, rtol=0)
    # eps = (x - alpha x0) / sigma divides rounding by sigma, which comes down to 0.002.
    torch.testing.assert_close(read.eps, eps, atol=1e-12, rtol=0)


@each
def test_any_output_is_read_as_a_pair_that_x_is_made_of(name: str) -> None:
    process: Any = MATCHED[name]
    x, output = normals(64, 2), normals(64, 2, seed=1)
    point = process.draw(normals(64, seed=2))
    read = process.split(output, x, point)
    error = (corrupt(read.x0, read.eps, point) - x).abs().max()
    assert error < 1e-12 * (1 + read.x0.abs().max())


def test_three_predictions_of_one_network_are_one() -> None:
    # An epsilon and its x0 and v, worked out by the table, are read alike.
    x, eps = normals(64, 2), normals(64, 2, seed=1)
    point = DDPM().draw(normals(64, seed=2))
    _, alpha, sigma = over(point, x)
    x0 = (x - sigma * eps) / alpha
    v = alpha * eps - sigma * x0
    expected = DDPM(prediction="epsilon").split(eps, x, point)
    for process, output in ((DDPM(prediction="x0"), x0), (DDPM(prediction="v"), v)):
        read = process.split(output, x, point)
        scale = float(x0.abs().max())
        torch.testing.assert_close(read.x0, expected.x0, atol=1e-12 * scale, rtol=0)
        torch.testing.assert_close(read.eps, expected.eps, atol=1e-12 * scale, rtol=0)


@pytest.mark.parametrize("schedule", ["cosine", "vp", "linear"])
def test_steps_of_noise_add_up_to_the_marginal(schedule: Any) -> None:
    # x_k = sqrt(1 - beta_k) x_{k-1} + sqrt(beta_k) z, one after the other.
    process = DDPM(50, schedule=schedule)
    bars = [1.0, *process.alpha_bars().tolist()]
    scale, variance = 1.0, 0.0
    points = {int(p.level): p for p in process.path(50)}
    for k in range(50):
        kept = bars[k + 1] / bars[k]
        scale, variance = scale * math.sqrt(kept), kept * variance + (1.0 - kept)
        assert points[k].alpha == pytest.approx(scale, rel=1e-10)
        assert points[k].sigma == pytest.approx(math.sqrt(variance), rel=1e-10)


@each
def test_corrupted_data_has_the_marginal_of_its_level(name: str) -> None:
    process: Any = MATCHED[name]
    point = process.draw(torch.full((4,), 0.3, dtype=torch.float64))
    x0, n = torch.full((4, 20_000), 0.7, dtype=torch.float64), quantiles(20_000).expand(4, -1)
    x = corrupt(x0, n, point)
    torch.testing.assert_close(x.mean(-1), 0.7 * point.alpha, atol=1e-12, rtol=0)
    torch.testing.assert_close(x.std(-1), point.sigma, atol=0, rtol=1e-3)
    if not isinstance(process, EDM | Flow):
        torch.testing.assert_close(point.alpha**2 + point.sigma**2, torch.ones(4).double())


@each
def test_a_level_of_training_and_of_a_path_is_the_same_point(name: str) -> None:
    process: Any = MATCHED[name]
    drawn = process.draw(quantiles(64))
    for i, level in enumerate(drawn.level.tolist()):
        at = Point(level, 1.0, level)
        if isinstance(process, Flow):
            at = Point(level, level, 1.0 - level)
        elif isinstance(process, DDPM):
            at = {p.level: p for p in process.path(process.steps)}[level]
        assert float(drawn.alpha[i]) == pytest.approx(float(at.alpha), rel=1e-12, abs=1e-15)
        assert float(drawn.sigma[i]) == pytest.approx(float(at.sigma), rel=1e-12, abs=1e-15)


def test_steps_to_train_at_are_uniform_and_stay_inside() -> None:
    counts = DDPM(5).draw(quantiles(100)).level
    assert torch.as_tensor(counts).long().bincount().tolist() == [20] * 5
    tails = DDPM(5).draw(torch.tensor([-40.0, 40.0]))
    assert torch.as_tensor(tails.level).tolist() == [0.0, 4.0]
    assert torch.isfinite(torch.as_tensor(tails.alpha)).all()


def test_times_to_train_at_are_uniform() -> None:
    point = Flow().draw(quantiles(4))
    expected = torch.tensor([0.125, 0.375, 0.625, 0.875], dtype=torch.float64)
    torch.testing.assert_close(point.level, expected)
    torch.testing.assert_close(point.sigma, expected.flip(0))


def test_noise_to_train_at_is_log_normal_between_its_bounds() -> None:
    z = torch.tensor([-9.0, -1.0, 0.0, 2.0, 9.0], dtype=torch.float64)
    sigma = EDM().draw(z).sigma
    expected = [0.002, math.exp(-2.4), math.exp(-1.2), math.exp(1.2), 80.0]
    torch.testing.assert_close(sigma, torch.tensor(expected).double(), rtol=1e-7, atol=0)


def test_noise_to_train_at_is_log_logistic_cut_at_its_bounds() -> None:
    # P(sigma < s) = 1 / (1 + (s / 0.5)^(-2)) = s^2 / (s^2 + 0.25), from 0.5 to 0.8.
    process = EDM(0.5, 0.5, 1.0, density="loglogistic", location=math.log(0.5), scale=0.5)
    sigma = process.draw(torch.tensor([-40.0, 0.0, 40.0], dtype=torch.float64)).sigma
    # Half way, 0.65: s^2 = 0.25 * 0.65 / 0.35.
    expected = [0.5, math.sqrt(0.25 * 0.65 / 0.35), 1.0]
    torch.testing.assert_close(sigma, torch.tensor(expected, dtype=torch.float64))


def test_preconditioning_by_hand() -> None:
    # sigma = 1.5, sigma_d = 2: the root of 2.25 + 4 is 2.5.
    skip, out, scale = EDM(sigma_data=2.0).scalings(1.5)
    assert (skip, out, scale) == pytest.approx((4 / 6.25, 3.0 / 2.5, 0.4))
    scaled, level = EDM(sigma_data=2.0).inputs(torch.tensor([[5.0]]), Point(1.5, 1.0, 1.5))
    assert float(scaled) == pytest.approx(2.0)
    assert float(level) == pytest.approx(math.log(1.5) / 4)


def test_the_target_of_edm_is_the_published_loss_with_its_weight() -> None:
    process = EDM()
    x0, eps, output = (normals(64, 2, seed=i) for i in range(3))
    point = process.draw(normals(64, seed=3))
    x, sigma = corrupt(x0, eps, point), torch.as_tensor(point.sigma)[:, None]
    weight = (sigma**2 + 0.25) / (0.5 * sigma) ** 2
    expected = weight * (process.split(output, x, point).x0 - x0).square()
    actual = (output - process.target(x0, eps, point)).square()
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-12)


@each
def test_the_loss_is_least_at_the_posterior_mean(name: str) -> None:
    """For data N(m, s^2) the best output is affine in x; quadrature makes the mean exact."""
    process: Any = MATCHED[name]
    nodes, weights = (torch.from_numpy(a) for a in np.polynomial.hermite_e.hermegauss(8))
    m, s = 0.3, 0.5
    x0 = (m + s * nodes)[:, None].expand(8, 8).reshape(-1)
    eps, weight = nodes[None].expand(8, 8).reshape(-1), torch.outer(weights, weights).reshape(-1)
    level = process.draw(torch.tensor([0.4], dtype=torch.float64))
    point = Point(*(torch.as_tensor(number).expand(64) for number in level))
    x = corrupt(x0, eps, point)
    root = weight.sqrt()
    columns = torch.stack([torch.ones(64).double(), x], -1) * root[:, None]
    best = torch.linalg.lstsq(columns, (process.target(x0, eps, point) * root)[:, None]).solution
    probe = torch.linspace(-2, 2, 64, dtype=torch.float64)
    read = process.split(best[0] + best[1] * probe, probe, point)
    _, alpha, sigma = point
    exact = m + alpha * s**2 / (alpha**2 * s**2 + sigma**2) * (probe - alpha * m)
    torch.testing.assert_close(read.x0, exact, atol=1e-9, rtol=0)


def test_spacings_of_a_sampler_by_hand() -> None:
    def steps(spacing: Any, total: int, n: int) -> list[float]:
        return [float(p.level) for p in DDPM(total, spacing=spacing).path(n)][:-1]

    assert steps("leading", 100, 8) == [84, 72, 60, 48, 36, 24, 12, 0]
    assert steps("trailing", 10, 3) == [9, 6, 3]
    assert steps("linspace", 10, 4) == [9, 6, 3, 0]
    for spacing in ("leading", "trailing", "linspace"):
        assert steps(spacing, 7, 7) == [6, 5, 4, 3, 2, 1, 0]
        assert DDPM(7, spacing=spacing).path(3)[-1][1:] == (1.0, 0.0)


def test_levels_of_edm_and_flow_by_hand() -> None:
    # rho = 2 from 9 to 1: roots 3, 2, 1.
    assert spaced(9.0, 1.0, 3, "karras", 2.0) == [9.0, 4.0, 1.0]
    assert spaced(9.0, 1.0, 3, "exponential") == pytest.approx([9.0, 3.0, 1.0])
    assert spaced(9.0, 1.0, 3, "linear") == [9.0, 5.0, 1.0]
    assert spaced(9.0, 1.0, 1, "linear") == [9.0]
    levels = [float(p.sigma) for p in EDM(0.5, 1.0, 9.0, rho=2.0).path(3)]
    assert levels == [9.0, 4.0, 1.0, 0.0]
    assert Flow().path(2) == (Point(0.0, 0.0, 1.0), Point(0.5, 0.5, 0.5), Point(1.0, 1.0, 0.0))


class Net(torch.nn.Module):
    """One linear layer of the scaled input, the level and the condition, for each learner."""

    def __init__(self, learners: Learners) -> None:
        super().__init__()
        self.layer = Linear(2 + 1 + 1, 2, learners)
        self.double()

    def forward(self, x: Tensor, level: Tensor, condition: Tensor) -> Tensor:
        y: Tensor = self.layer(torch.cat([x, level[..., None], condition], -1))
        return y


@each
def test_learners_stacked_have_the_error_that_each_has_alone(name: str) -> None:
    process: Any = MATCHED[name]
    stack = Net(Learners([3, 4]))
    x0, eps, condition = normals(2, 8, 2), normals(2, 8, 2, seed=1), normals(2, 8, 1, seed=2)
    level = normals(2, 8, seed=3)
    both = matching_error(process, stack, x0, eps, process.draw(level), condition)
    assert both.shape == (2, 8)
    for k in range(2):
        one, point = learner_view(stack, k), process.draw(level[k])
        alone = matching_error(process, one, x0[k], eps[k], point, condition[k])
        torch.testing.assert_close(both[k], alone, atol=1e-9, rtol=0)


def test_the_error_is_a_mean_over_valid_elements_by_hand() -> None:
    def network(x: Tensor, level: Tensor, condition: Tensor | None) -> Tensor:
        return torch.zeros_like(x)

    point = Flow().draw(torch.zeros(2).double())
    x0 = torch.tensor([[[1.0, 3.0], [5.0, 7.0]], [[1.0, 1.0], [2.0, 2.0]]]).double()
    eps = torch.zeros_like(x0)
    # (1 + 9 + 25 + 49) / 4 = 21 and (1 + 1 + 4 + 4) / 4 = 2.5.
    error = matching_error(Flow(), network, x0, eps, point)
    assert error.tolist() == [21.0, 2.5]
    # The first step of the first sample, (1 + 9) / 2 = 5; both of the second.
    valid = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    error = matching_error(Flow(), network, x0, eps, point, valid=valid)
    assert error.tolist() == [5.0, 2.5]
    x0[0, 1] = 100.0  # what is not valid has no influence
    assert matching_error(Flow(), network, x0, eps, point, valid=valid).tolist() == [5.0, 2.5]


def test_a_denoiser_gives_the_network_what_its_process_says() -> None:
    seen: list[Any] = []

    def network(x: Tensor, level: Tensor, condition: Tensor) -> Tensor:
        seen.append((x, level, condition))
        return torch.zeros_like(x)

    process, x = EDM(sigma_data=2.0), torch.full((3, 4, 1, 2), 5.0)
    condition = torch.arange(6.0).reshape(3, 2, 1)
    read = denoiser(process, network, condition)(x, Point(1.5, 1.0, 1.5))
    scaled, level, rows = seen[0]
    torch.testing.assert_close(scaled, torch.full_like(x, 2.0))
    torch.testing.assert_close(level, torch.full((3, 4), math.log(1.5) / 4))
    assert rows[1, :, 0].tolist() == [2.0, 2.0, 3.0, 3.0]  # candidates of one sample adjoin
    torch.testing.assert_close(read.x0, torch.full_like(x, 5.0 * 0.64))
    assert read.evaluations == 1
    with pytest.raises(ConfigError, match="3 conditions"):
        denoiser(process, network, torch.zeros(3, 3, 1))(x, Point(1.5, 1.0, 1.5))


def test_clipping_keeps_a_pair_that_x_is_made_of() -> None:
    x = torch.tensor([[5.0, 0.4]])
    denoise = denoiser(EDM(0.5), lambda x, level, _: 40.0 * x, event=1, clip=1.0)
    read = denoise(x, Point(1.5, 1.0, 1.5))
    assert read.x0.max() == 1.0
    torch.testing.assert_close(read.x0 + 1.5 * read.eps, x)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DDPM(0), r"DDPM.steps is 0; it must be in \[1, inf\)"),
        (lambda: DDPM(5).path(6), "6 steps; it must be from 1 to 5"),
        (lambda: Flow().path(0), "0 steps; it must be 1 or more"),
        (lambda: EDM(sigma_max=0.001), r"EDM.sigma_max is 0.001; it must be in \(0.002, inf\)"),
        (lambda: Consistency(rho=0.0), r"Consistency.rho is 0.0; it must be in \(0, inf\)"),
    ],
)
def test_settings_that_cannot_work_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


@pytest.mark.compiled
@pytest.mark.parametrize("name", ["v", "beso", "flow"])
def test_the_error_compiles_in_one_graph(name: str) -> None:
    process: Any = MATCHED[name]
    net = Net(Learners([0]))

    def loss(x0: Tensor, eps: Tensor, level: Tensor) -> Tensor:
        return matching_error(process, net, x0, eps, process.draw(level), x0[..., :1])

    args = normals(4, 2), normals(4, 2, seed=1), normals(4, seed=2)
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(*args), loss(*args), atol=1e-12, rtol=0)
