"""Guidance on Gaussians, where it is known what should come out, and at its neutral weights."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from offrl.denoising import Denoise, Denoised, Path, Point, denoiser
from offrl.errors import ConfigError
from offrl.guidance import (
    adaptive,
    below,
    best_of,
    blend,
    bounded,
    choose,
    held,
    repeated,
    svdd,
    svdd_shapes,
    taken,
    value_gradient,
)
from offrl.processes import DDPM, EDM, Flow
from offrl.samplers import Sample, ddim, heun


def gaussian(mean: float, spread: float) -> Denoise:
    """E[x0 | x] for data N(mean, spread^2)."""

    def exact(x: Tensor, point: Point) -> Denoised:
        _, a, s = (float(n) for n in point)
        x0 = mean + a * spread**2 / (a**2 * spread**2 + s**2) * (x - a * mean)
        return Denoised(x0, (x - a * x0) / s)

    return exact


def normals(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


def mean_and_spread(denoise: Denoise, process: Any, path: Path) -> tuple[float, float]:
    """Of Heun's output, exactly: the denoisers here are affine in x."""
    start = process.prior(torch.tensor([[0.0], [1.0]]).double())
    end = heun(denoise, path, start).x
    return float(end[0]), abs(float(end[1] - end[0]))


A, B = gaussian(-0.4, 0.5), gaussian(0.7, 0.3)


@pytest.mark.parametrize("process", [DDPM(20), EDM(), Flow()], ids=["ddpm", "edm", "flow"])
def test_neutral_weights_change_nothing(process: Any) -> None:
    path, x = process.path(8), process.prior(normals(6, 1))

    def end(denoise: Denoise) -> Tensor:
        return ddim(denoise, path, x).x

    def unlike(x: Tensor) -> Tensor:
        return x.sum(-1)

    base, other = end(A), end(B)
    assert torch.equal(end(blend(A, B, 0.0)), base)
    assert torch.equal(end(blend(A, B, 1.0)), other)
    assert torch.equal(end(value_gradient(A, unlike, 0.0, event=1)), base)
    assert torch.equal(end(value_gradient(A, unlike, 0.0, through=True, event=1)), base)
    assert torch.equal(end(adaptive(A, B, 1.0, 0.9, event=1)), other)
    assert torch.equal(end(below(B, A, -1.0)), base)
    torch.testing.assert_close(end(bounded(A, 1e6)), base, atol=1e-10, rtol=0)
    nothing = held(torch.zeros(6, 1).double(), normals(6, 1), torch.tensor(False))
    assert torch.equal(ddim(A, path, x, before=nothing, after=nothing).x, base)


@pytest.mark.parametrize("weight", [-0.5, 0.5, 2.0])
def test_a_blend_of_gaussians_of_one_spread_is_their_product_form(weight: float) -> None:
    # p_a^(1 - w) p_b^w of N(-0.4, s^2) and N(0.7, s^2): mean (1 - w) -0.4 + w 0.7, spread s.
    mixed = blend(gaussian(-0.4, 0.5), gaussian(0.7, 0.5), weight)
    mean, spread = mean_and_spread(mixed, Flow(), Flow().path(200))
    assert (mean, spread) == pytest.approx((-0.4 + 1.1 * weight, 0.5), abs=1e-4)


def test_a_blend_near_data_is_the_product_of_any_two_gaussians() -> None:
    """Where there is little noise the blended score is that of p_a^(1 - w) p_b^w itself."""
    weight, sigma = 1.5, 1e-4
    precision = (1 - weight) / 0.5**2 + weight / 0.3**2
    mean = ((1 - weight) * -0.4 / 0.5**2 + weight * 0.7 / 0.3**2) / precision
    x = torch.linspace(-1, 1, 5).double()[:, None]
    eps = blend(A, B, weight)(x, Point(sigma, 1.0, sigma)).eps
    torch.testing.assert_close(-eps / sigma, -precision * (x - mean), rtol=1e-5, atol=1e-5)


def test_both_models_of_a_blend_are_counted() -> None:
    sample = ddim(blend(A, blend(A, B, 2.0), 2.0), Flow().path(4), normals(3, 1))
    assert sample.evaluations == 12


class Counted:
    """A denoiser that counts how often it is called."""

    def __init__(self, denoise: Denoise) -> None:
        self.denoise, self.calls = denoise, 0

    def __call__(self, x: Tensor, point: Point) -> Denoised:
        self.calls += 1
        return self.denoise(x, point)


def shifted(by: float) -> Denoise:
    """Two-dimensional, so that directions of eps_hat differ by more than a sign."""

    def denoise(x: Tensor, point: Point) -> Denoised:
        aim = torch.tensor([by, 0.2]).double()
        share = 0.25 / (0.25 + float(point.sigma) ** 2)
        x0 = aim + share * (x - aim)
        return Denoised(x0, (x - x0) / float(point.sigma))

    return denoise


def adapted(threshold: float, rows: Tensor) -> tuple[Sample, Counted]:
    base = Counted(shifted(-0.3))
    guidance = adaptive(base, shifted(0.3), 2.0, threshold, event=1)
    return ddim(guidance, EDM(sigma_min=0.05, sigma_max=5.0).path(8), rows), base


def test_adaptive_guidance_counts_what_it_skips() -> None:
    x = 5.0 * normals(6, 2)
    never, base = adapted(1.1, x)
    assert torch.as_tensor(never.evaluations).tolist() == [16] * 6
    assert base.calls == 8
    plain = ddim(
        blend(shifted(-0.3), shifted(0.3), 2.0), EDM(sigma_min=0.05, sigma_max=5.0).path(8), x
    )
    assert torch.equal(never.x, plain.x)
    always, base = adapted(-1.0, x)
    assert torch.as_tensor(always.evaluations).tolist() == [9] * 6
    assert base.calls == 1


def test_adaptive_guidance_decides_for_each_sample_as_if_alone() -> None:
    x = 5.0 * normals(2, 6, 2)
    together, base = adapted(0.998, x)
    counts = torch.as_tensor(together.evaluations)
    assert counts.shape == (2, 6)
    assert counts.unique().numel() > 1  # they differ, or this test shows nothing
    for k in range(2):
        for i in range(6):
            alone, base = adapted(0.998, x[k, i : i + 1])
            torch.testing.assert_close(alone.x[0], together.x[k, i], atol=1e-12, rtol=0)
            assert torch.as_tensor(alone.evaluations).tolist() == [int(counts[k, i])]
            assert 8 + base.calls == int(counts[k, i])  # alone, they are really skipped


def test_a_gradient_through_the_denoiser_moves_a_gaussian_exactly() -> None:
    # exp(w k x) N(m, s^2) is N(m + w k s^2, s^2): 0.3 + 2 * 0.4 * 0.25 = 0.5.
    def value(x0: Tensor) -> Tensor:
        return 0.4 * x0.sum(-1)

    guided = value_gradient(gaussian(0.3, 0.5), value, 2.0, through=True, event=1)
    expected = gaussian(0.5, 0.5)
    process = DDPM(100)
    point, x = process.path(5)[2], normals(6, 1)
    torch.testing.assert_close(guided(x, point).x0, expected(x, point).x0, atol=1e-12, rtol=0)
    torch.testing.assert_close(guided(x, point).eps, expected(x, point).eps, atol=1e-12, rtol=0)
    moments = mean_and_spread(guided, process, process.path(100))
    assert moments == pytest.approx((0.5, 0.5), abs=5e-3)


def test_a_gradient_at_the_denoised_moves_a_gaussian_as_derived() -> None:
    # y = mean - m obeys y' = y sigma / (s^2 + sigma^2) - w k sigma; from y = -m at sigma_max,
    # y(0) = -m s / root + w k s (root - s), root = sqrt(s^2 + sigma_max^2).
    m, s, high, slope = 0.3, 0.5, 2.0, 0.4
    guided = value_gradient(gaussian(m, s), lambda x0: slope * x0.sum(-1), 0.5, event=1)
    process = EDM(sigma_max=high)
    mean, spread = mean_and_spread(guided, process, process.path(200))
    root = math.sqrt(s**2 + high**2)
    assert mean == pytest.approx(m - m * s / root + 0.5 * slope * s * (root - s), abs=1e-3)
    assert spread == pytest.approx(s * high / root, abs=1e-3)


def test_a_long_gradient_is_cut_by_hand() -> None:
    # Slope (3, 4) of length 5, cut to 1: (0.6, 0.8), times w sigma^2 = 2 * 4.
    still = torch.zeros(1, 2).double()

    def zero(x: Tensor, point: Point) -> Denoised:
        return Denoised(torch.zeros_like(x), x / float(point.sigma))

    def value(x0: Tensor) -> Tensor:
        return 3 * x0[..., 0] + 4 * x0[..., 1]

    cut = value_gradient(zero, value, 2.0, max_norm=1.0, event=1)(still, Point(2.0, 1.0, 2.0))
    torch.testing.assert_close(cut.x0, torch.tensor([[4.8, 6.4]]).double())
    torch.testing.assert_close(cut.x0 + 2.0 * cut.eps, still)
    whole = value_gradient(zero, value, 2.0, max_norm=9.0, event=1)(still, Point(2.0, 1.0, 2.0))
    torch.testing.assert_close(whole.x0, torch.tensor([[24.0, 32.0]]).double())


def test_guidance_below_a_level_leaves_the_rest_alone() -> None:
    x = normals(3, 1)
    late = below(B, A, 1.0)
    assert torch.equal(late(x, Point(0.4, 0.4, 0.6)).x0, A(x, Point(0.4, 0.4, 0.6)).x0)
    assert torch.equal(late(x, Point(0.5, 0.5, 0.5)).x0, B(x, Point(0.5, 0.5, 0.5)).x0)


def test_known_entries_are_held_at_every_level() -> None:
    value, noise = torch.full((3, 2), 0.9).double(), normals(3, 2)
    known = torch.tensor([True, False])
    seen: list[tuple[Tensor, Point]] = []

    def denoise(x: Tensor, point: Point) -> Denoised:
        seen.append((x, point))
        return gaussian(0.0, 0.5)(x, point)

    hook = held(value, noise, known)
    end = ddim(denoise, Flow().path(4), normals(3, 2, seed=1), before=hook, after=hook).x
    for x, (t, a, s) in seen:
        assert t == a
        torch.testing.assert_close(x[:, 0], float(a) * value[:, 0] + float(s) * noise[:, 0])
    assert torch.equal(end[:, 0], value[:, 0])
    free = ddim(gaussian(0.0, 0.5), Flow().path(4), normals(3, 2, seed=1)).x
    torch.testing.assert_close(end[:, 1], free[:, 1])


def test_candidates_lie_side_by_side() -> None:
    x = torch.arange(12.0).reshape(2, 3, 2)
    many = repeated(x, 4, event=1)
    assert many.shape == (2, 12, 2)
    index = torch.tensor([[0, 3, 1], [2, 2, 0]])
    assert torch.equal(taken(many, index, 4), x)
    rows = torch.arange(24.0).reshape(2, 12)
    assert taken(rows, index, 4).tolist() == [[0.0, 7.0, 9.0], [14.0, 18.0, 20.0]]


def test_the_best_of_n_by_hand() -> None:
    x = torch.arange(6.0)[:, None]
    score = torch.tensor([0.0, 2.0, 1.0, 5.0, 4.0, 3.0])
    best = best_of(Sample(x, 10), score, 3)
    assert best.x[:, 0].tolist() == [1.0, 3.0]
    assert best.evaluations == 30
    for monotone in (score.exp(), 3.0 * score - 7.0, score**3):
        assert torch.equal(best_of(Sample(x, 10), monotone, 3).x, best.x)
    plain = best_of(Sample(x, 10), score, 1)
    assert torch.equal(plain.x, x)
    assert plain.evaluations == 10
    uneven = best_of(Sample(x, torch.tensor([1, 2, 3, 4, 5, 6])), score, 3).evaluations
    assert torch.as_tensor(uneven).tolist() == [6, 15]


def test_a_draw_by_score_has_the_probabilities_of_a_softmax() -> None:
    score = torch.tensor([0.0, math.log(2.0), math.log(5.0)]).double().repeat(40_000)
    noise = normals(len(score))

    def shares(temperature: float) -> list[float]:
        counts = choose(score, 3, temperature, noise).bincount(minlength=3)
        return (counts / 40_000).tolist()

    assert shares(1.0) == pytest.approx([1 / 8, 2 / 8, 5 / 8], abs=0.01)
    assert shares(2.0) == pytest.approx([0.2149, 0.3039, 0.4805], abs=0.01)
    assert shares(math.inf) == pytest.approx([1 / 3] * 3, abs=0.01)
    assert shares(1e-6) == [0.0, 0.0, 1.0]


def decoded(n: int, temperature: float, rows: int, slope: float = 1.0, **more: Any) -> Sample:
    """SVDD on N(0.3, 0.5^2), value `slope` x0, one action."""
    process, steps = DDPM(20), 20
    shapes = svdd_shapes(steps, n, (rows, 1))
    noise = {k: normals(*v, seed=i) for i, (k, v) in enumerate(shapes.items())}
    return svdd(
        gaussian(0.3, 0.5),
        process.path(steps),
        process.prior(noise["start"]),
        noise["steps"].unbind(0),
        noise["choice"].unbind(0),
        lambda x0: slope * x0[..., 0],
        n,
        temperature,
        event=1,
        **more,
    )


@pytest.mark.parametrize("temperature", [0.0, 0.5])
def test_svdd_of_one_candidate_is_the_base_sampler(temperature: float) -> None:
    shapes = svdd_shapes(20, 1, (50, 1))
    start, noise = normals(*shapes["start"]), normals(*shapes["steps"], seed=1)
    base = ddim(gaussian(0.3, 0.5), DDPM(20).path(20), start, noise.unbind(0), eta=1.0)
    one = decoded(1, temperature, 50)
    torch.testing.assert_close(one.x, base.x, atol=1e-12, rtol=0)
    assert one.evaluations == base.evaluations == 20


def test_svdd_without_preference_leaves_the_distribution() -> None:
    base = decoded(1, 1.0, 4_000).x[:, 0].sort().values
    # Kolmogorov-Smirnov: two samples of 4000 differ by 0.036 with probability 1 %.
    for sample in (decoded(4, 0.1, 4_000, slope=0.0), decoded(4, math.inf, 4_000)):
        other = sample.x[:, 0].sort().values
        ranks = torch.searchsorted(other, base) - torch.arange(4_000)
        assert ranks.abs().max() / 4_000 < 0.036
    # Steps before `first` draw one candidate, whatever the value.
    late = decoded(4, 0.0, 100, first=19)
    assert late.evaluations == 20
    torch.testing.assert_close(late.x.mean(), torch.tensor(0.3).double(), atol=0.15, rtol=0)


def test_svdd_shifts_a_gaussian_by_its_variance_over_the_temperature() -> None:
    # exp(x / 1) N(0.3, s^2) has mean 0.3 + s^2; s of the base sampler, which has 20 steps.
    base = decoded(1, 1.0, 4_000).x
    sample = decoded(16, 1.0, 4_000)
    shift = float(sample.x.mean() - base.mean())
    assert shift == pytest.approx(float(base.var()), rel=0.15)
    assert sample.evaluations == 1 + 19 * 16


def test_svdd_with_a_small_temperature_picks_the_best() -> None:
    best, cold = decoded(8, 0.0, 500), decoded(8, 1e-9, 500)
    assert torch.equal(best.x, cold.x)
    assert best.x.mean() > decoded(8, 1.0, 500).x.mean() > decoded(1, 1.0, 500).x.mean()
    assert best.x.std() < 0.9 * decoded(1, 1.0, 500).x.std()


def test_what_cannot_guide_is_refused() -> None:
    score = torch.zeros(4)
    with pytest.raises(ConfigError, match="temperature is -1"):
        choose(score, 2, -1.0)
    with pytest.raises(ConfigError, match="must be noise"):
        choose(score, 2, 1.0)
    with pytest.raises(ConfigError, match=r"eta 0\.0 and first 0"):
        decoded(2, 1.0, 3, eta=0.0)
    with pytest.raises(ConfigError, match="first 20"):
        decoded(2, 1.0, 3, first=20)


@pytest.mark.compiled
def test_guidance_compiles_in_one_graph() -> None:
    """Also adaptive guidance, which then evaluates both models and gives the same."""
    process = EDM(sigma_min=0.05, sigma_max=5.0)
    path, x = process.path(4), 5.0 * normals(6, 2)
    weight = normals(2, 2)

    def network(x: Tensor, level: Tensor, condition: Tensor | None) -> Tensor:
        return torch.tanh(x @ weight) + level[..., None]

    def sample(x: Tensor) -> tuple[Tensor, Tensor]:
        plain = denoiser(process, network, event=1)
        steep = value_gradient(plain, lambda x0: x0.sum(-1), 0.1, through=True, event=1)
        guidance = adaptive(shifted(-0.3), shifted(0.3), 2.0, 0.998, event=1)
        mixed = ddim(blend(steep, guidance, 0.5), path, x)
        return mixed.x, torch.as_tensor(mixed.evaluations)

    def decode(x: Tensor, steps: Tensor, choice: Tensor) -> Tensor:
        denoise = denoiser(process, network, event=1)
        noise, by = steps.unbind(0), choice.unbind(0)
        return svdd(denoise, path, x, noise, by, lambda x0: x0[..., 0], 3, 0.5, event=1).x

    shapes = svdd_shapes(4, 3, (6, 2))
    for function, args in (
        (sample, (x,)),
        (decode, (x, normals(*shapes["steps"]), normals(*shapes["choice"]))),
    ):
        compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
        torch.testing.assert_close(compiled(*args), function(*args), atol=1e-12, rtol=0)
