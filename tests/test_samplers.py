"""Samplers on a Gaussian, where every one of them has an exact solution.

Data is N(0.3, 0.5^2) with its exact denoiser, which is affine in x; so is then every sampler in
the noise that comes in. Mean and spread of the output are read off one batch with a row for each
noise set to one: no sampling error is in any figure here.
"""

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from offrl.consistency import Consistency
from offrl.denoising import Denoised, Path, Point, denoiser
from offrl.errors import ConfigError
from offrl.networks import Learners, Linear, learner_view
from offrl.processes import DDPM, EDM, Flow
from offrl.samplers import (
    SAMPLERS,
    Churn,
    ddim,
    dpm_solver_pp,
    draws,
    generate,
    heun,
    kernel,
    midpoint,
    noise_shapes,
)

M, S = 0.3, 0.5


def exact(x: Tensor, point: Point) -> Denoised:
    """E[x0 | x] for the data of this file."""
    _, a, s = (float(n) for n in point)
    x0 = M + a * S**2 / (a**2 * S**2 + s**2) * (x - a * M)
    return Denoised(x0, (x - a * x0) / s)


def moments(name: str, process: Any, path: Path, run: Any = None) -> tuple[float, float]:
    """Mean and standard deviation of the sampler's output, without sampling."""
    steps = len(path) - 1
    wanted = draws(name, steps)
    rows = torch.cat([torch.zeros(1, wanted + 1), torch.eye(wanted + 1)]).double()
    columns = rows.unbind(-1)
    run = SAMPLERS[name].run if run is None else run
    x = run(exact, path, process.prior(columns[0][:, None]), [c[:, None] for c in columns[1:]]).x
    return float(x[0]), float((x[1:] - x[0]).square().sum().sqrt())


def ode(high: float) -> tuple[float, float]:
    """The exact flow from N(0, high^2) at sigma = high down to data, with alpha = 1."""
    root = math.sqrt(S**2 + high**2)
    return M * (1 - S / root), S * high / root


def sde(high: float) -> tuple[float, float]:
    """The exact x0 given x at sigma = high, when x is from N(0, high^2)."""
    share = S**2 / (S**2 + high**2)
    return M * (1 - share), math.sqrt(share * high**2 + share**2 * high**2)


@pytest.mark.parametrize(
    ("name", "steps", "tolerance"),
    [
        ("euler", 1000, 2e-3),
        ("heun", 200, 1e-4),
        ("midpoint", 400, 1e-4),
        ("dpm1", 1000, 2e-3),
        ("dpm2", 200, 2e-4),
        ("dpm3", 200, 1e-4),
    ],
)
def test_samplers_without_noise_agree_with_the_exact_flow(
    name: str, steps: int, tolerance: float
) -> None:
    process = EDM(sigma_max=5.0)
    assert moments(name, process, process.path(steps)) == pytest.approx(ode(5.0), abs=tolerance)
    # A flow is begun with the right distribution: the data itself comes out.
    rectified = moments(name, Flow(), Flow().path(steps))
    assert rectified == pytest.approx((M, S), abs=tolerance)


@pytest.mark.parametrize("name", ["euler", "heun", "dpm1", "dpm2", "dpm3", "ddpm", "midpoint"])
def test_all_samplers_of_ddpm_end_at_the_data(name: str) -> None:
    process = DDPM(1000)
    mean, spread = moments(name, process, process.path(1000))
    assert (mean, spread) == pytest.approx((M, S), abs=3e-3)


def test_samplers_with_noise_agree_with_the_exact_posterior() -> None:
    process = EDM(sigma_max=1.0)
    assert moments("ancestral", process, process.path(1000)) == pytest.approx(sde(1.0), abs=2e-3)
    churned = moments("heun_churn", EDM(sigma_max=5.0), EDM(sigma_max=5.0).path(300))
    assert churned == pytest.approx((M, S), abs=5e-3)
    # A consistency function here is the exact flow's end, one evaluation at any level.
    path = Consistency(sigma_min=1e-9, sigma_max=80.0).path(2)

    def f(x: Tensor, point: Point) -> Denoised:
        x0 = M + S / math.sqrt(S**2 + float(point.sigma) ** 2) * (x - M)
        return Denoised(x0, (x - x0) / float(point.sigma))

    start = torch.tensor([[0.0], [80.0], [0.0]], dtype=torch.float64)
    noise = torch.tensor([[0.0], [0.0], [1.0]], dtype=torch.float64)
    one = SAMPLERS["consistency"].run(f, (path[0], path[-1]), start)
    assert float(one.x[0]) == pytest.approx(ode(80.0)[0])
    assert float(one.x[1] - one.x[0]) == pytest.approx(ode(80.0)[1])
    assert one.evaluations == 1
    two = SAMPLERS["consistency"].run(f, path, start, [noise])
    low = S / math.sqrt(S**2 + float(path[1].sigma) ** 2)
    assert float(two.x[0]) == pytest.approx(M + low * (ode(80.0)[0] - M))
    spread = float((two.x[1:] - two.x[0]).square().sum().sqrt())
    expected = low * math.sqrt(ode(80.0)[1] ** 2 + float(path[1].sigma) ** 2)
    assert spread == pytest.approx(expected)
    assert two.evaluations == 2


COLD = {
    # Steps: spread by Euler and by Heun from sigma 80 to 0.002, spread and mean by Euler from
    # sigma 1 to 0.05, spread by DDIM with the cosine schedule. The data's are 0.5 and 0.3.
    3: (0.098, 2.047, 0.335, 0.200, 0.203),
    5: (0.234, 1.258, 0.387, 0.184, 0.335),
    10: (0.365, 0.610, 0.418, 0.175, 0.421),
    20: (0.431, 0.522, 0.432, 0.170, 0.461),
    100: (0.486, 0.501, 0.443, 0.167, 0.492),
}


@pytest.mark.parametrize("steps", COLD)
def test_few_steps_act_like_a_low_temperature(steps: int) -> None:
    wide, narrow = EDM(), EDM(sigma_min=0.05, sigma_max=1.0)
    cosine = DDPM(1000, spacing="linspace")
    mean, spread = moments("euler", narrow, narrow.path(steps))
    actual = (
        moments("euler", wide, wide.path(steps))[1],
        moments("heun", wide, wide.path(steps))[1],
        spread,
        mean,
        moments("ddim", cosine, cosine.path(steps))[1],
    )
    assert actual == pytest.approx(COLD[steps], abs=6e-4)


def output(run: Any, path: Path, x: Tensor, denoise: Any = exact, **settings: Any) -> Tensor:
    end: Tensor = run(denoise, path, x, **settings).x
    return end


def line(n: int = 5) -> Tensor:
    return torch.linspace(-2, 2, n, dtype=torch.float64)[:, None]


@pytest.mark.parametrize("process", [DDPM(50), EDM(), Flow()], ids=["ddpm", "edm", "flow"])
def test_one_step_has_four_names(process: Any) -> None:
    path = process.path(10)
    x = process.prior(line())
    once = output(ddim, path, x)
    torch.testing.assert_close(output(dpm_solver_pp, path, x, order=1), once, atol=1e-12, rtol=0)
    by_hand = x
    for (t, a, s), (u, b, q) in itertools.pairwise(path):
        now = exact(by_hand, Point(t, a, s))
        if isinstance(process, EDM):  # BESO's: (sigma' / sigma) x + (1 - sigma' / sigma) D
            by_hand = q / s * by_hand + (1 - q / s) * now.x0
        elif isinstance(process, Flow):  # Euler on the velocity field
            by_hand = by_hand + (u - t) * (now.x0 - now.eps)
        else:
            by_hand = b * now.x0 + q * now.eps
    torch.testing.assert_close(once, by_hand, atol=1e-12, rtol=0)


def test_ddim_with_all_noise_is_ddpm() -> None:
    process = DDPM(20)
    bars = [*process.alpha_bars().tolist()]
    path = process.path(20)
    x = line()
    for now, then in itertools.pairwise(path):
        k = int(float(now.level))
        bar, last = bars[k], bars[k - 1] if k else 1.0
        beta = 1 - bar / last
        belief = exact(x, now)
        mean, std = kernel(belief, now, then, 1.0)
        variance = beta * (1 - last) / (1 - bar)
        assert std**2 == pytest.approx(variance, rel=1e-9, abs=1e-15)
        expected = math.sqrt(last) * beta / (1 - bar) * belief.x0
        expected = expected + math.sqrt(bar / last) * (1 - last) / (1 - bar) * x
        torch.testing.assert_close(mean, expected, atol=1e-10, rtol=0)
    # The last step: no noise, and x0_hat itself.
    assert std == 0.0
    torch.testing.assert_close(mean, belief.x0, atol=0, rtol=0)


def test_all_noise_on_edm_is_euler_ancestral() -> None:
    now, then = Point(2.0, 1.0, 2.0), Point(1.0, 1.0, 1.0)
    mean, std = kernel(Denoised(torch.zeros(1), torch.ones(1)), now, then, 1.0)
    # sigma_up^2 = 1 (4 - 1) / 4, sigma_down^2 = 1 - 3 / 4.
    assert std == pytest.approx(math.sqrt(0.75))
    assert float(mean) == pytest.approx(0.5)


def order_of(run: Callable[..., Any], steps: int, **settings: Any) -> float:
    """log2 of the ratio of errors as steps double, between two levels above 0."""
    process = EDM(sigma_min=0.2, sigma_max=2.0, spacing="exponential")
    errors = []
    for n in (steps, 2 * steps):
        path = process.path(n + 1)[:-1]
        root = math.sqrt((S**2 + 0.2**2) / (S**2 + 4.0))
        error = output(run, path, line(), **settings) - (M + root * (line() - M))
        errors.append(float(error.abs().max()))
    return math.log2(errors[0] / errors[1])


def test_samplers_have_their_order_of_convergence() -> None:
    assert order_of(ddim, 64) == pytest.approx(1.0, abs=0.1)
    assert order_of(heun, 64) == pytest.approx(2.0, abs=0.1)
    assert order_of(midpoint, 64) == pytest.approx(2.0, abs=0.1)
    # Their first steps, of lower order, hold multistep solvers to 2.
    assert order_of(dpm_solver_pp, 256, order=2) == pytest.approx(2.0, abs=0.2)


@pytest.mark.parametrize("order", [1, 3])
def test_dpm_solver_is_exact_for_polynomials_below_its_order(order: int) -> None:
    """x0_hat = lambda^(order - 1): x_s = (sigma_s / sigma_t) x + sigma_s int e^l x0_hat(l) dl."""

    def polynomial(x: Tensor, point: Point) -> Denoised:
        place = -math.log(float(point.sigma))
        x0 = torch.full_like(x, place ** (order - 1))
        return Denoised(x0, (x - x0) / float(point.sigma))

    def primitive(place: float) -> float:  # of e^l, l e^l and l^2 e^l
        return math.exp(place) * (1.0, place - 1.0, place**2 - 2.0 * place + 2.0)[order - 1]

    path = tuple(Point(s, 1.0, s) for s in (3.0, 2.0, 1.2, 0.5))
    places: list[float] = []
    x = torch.ones(1, 1).double()

    def note(x: Tensor, i: int, point: Point) -> Tensor:
        places.append(float(x))
        return x

    end = dpm_solver_pp(polynomial, path, x, before=note, order=order).x
    area = primitive(-math.log(0.5)) - primitive(-math.log(1.2))
    assert float(end) == pytest.approx(0.5 / 1.2 * places[2] + 0.5 * area, rel=1e-12)


@pytest.mark.parametrize("name", ["euler", "heun", "midpoint", "dpm1", "dpm2", "dpm3"])
def test_straight_paths_need_no_small_steps(name: str) -> None:
    # One data point: every path of the flow is a straight line to it.
    def to_the_point(x: Tensor, point: Point) -> Denoised:
        return Denoised(torch.full_like(x, M), (x - float(point.alpha) * M) / float(point.sigma))

    end = output(SAMPLERS[name].run, Flow().path(2), line(), to_the_point)
    torch.testing.assert_close(end, torch.full_like(end, M), atol=1e-12, rtol=0)
    path = (*Flow().path(2)[:2], Point(0.75, 0.75, 0.25))
    if name != "midpoint":
        end = output(SAMPLERS[name].run, path, line(), to_the_point)
        torch.testing.assert_close(end, 0.75 * M + 0.25 * line(), atol=1e-12, rtol=0)


def test_churn_by_hand() -> None:
    # Two steps from 2: by min(1 / 2, sqrt(2) - 1) to 2 sqrt(2), with 2 * 1.5 * z of noise more.
    seen: list[tuple[float, float]] = []

    def zero(x: Tensor, point: Point) -> Denoised:
        seen.append((float(point.sigma), float(x)))
        return Denoised(torch.zeros_like(x), x / float(point.sigma))

    path = (Point(2.0, 1.0, 2.0), Point(0.1, 1.0, 0.1), Point(0.0, 1.0, 0.0))
    noise = [torch.ones(1, 1).double(), torch.ones(1, 1).double()]
    churn = Churn(amount=1.0, low=0.5, high=2.0, inflation=1.5)
    heun(zero, path, torch.ones(1, 1).double(), noise, churn=churn)
    expected = [(2 * math.sqrt(2), 4.0), (0.1, 4.0 * 0.1 / (2 * math.sqrt(2)))]
    assert seen[0] == pytest.approx(expected[0])
    assert seen[1] == pytest.approx(expected[1])
    assert seen[2][0] == 0.1  # below `low` none is added
    with pytest.raises(ConfigError, match="alpha = 1"):
        heun(exact, Flow().path(2), line(), [line(), line()], churn=churn)


class Net(torch.nn.Module):
    """A linear network of each learner, counting how often it is asked."""

    def __init__(self, learners: Learners) -> None:
        super().__init__()
        self.layer = Linear(2, 2, learners)
        self.asked = 0
        self.double()

    def forward(self, x: Tensor, level: Tensor, condition: Tensor | None) -> Tensor:
        self.asked += 1
        y: Tensor = self.layer(x) + level[..., None]
        return y


PROCESS: dict[str, Any] = {
    "ddpm": DDPM(),
    "ddim": DDPM(prediction="v"),
    "midpoint": Flow(),
    "dpm1": DDPM(prediction="x0"),
    "consistency": Consistency(),
}


def process_of(name: str) -> Any:
    return PROCESS.get(name, EDM())


@pytest.mark.parametrize(("name", "steps"), [(n, 6) for n in SAMPLERS] + [("heun", 1)])
def test_the_count_is_how_often_the_network_was_asked(name: str, steps: int) -> None:
    process, net = process_of(name), Net(Learners([0]))
    path = process.path(steps)
    noise = {k: torch.ones(v).double() for k, v in noise_shapes(name, steps, (3, 2)).items()}
    sample = generate(name, process, denoiser(process, net, event=1), path, noise, event=1)
    assert sample.evaluations == net.asked == (2 * steps - 1 if "heun" in name else steps)
    assert sample.x.shape == (3, 2)


@pytest.mark.parametrize("name", SAMPLERS)
def test_learners_stacked_sample_as_each_alone(name: str) -> None:
    process, stack = process_of(name), Net(Learners([3, 4]))
    path = process.path(4)
    generator = torch.Generator().manual_seed(0)
    shapes = noise_shapes(name, 4, (5, 2)).items()
    noise = {k: torch.randn(2, *v, generator=generator).double() for k, v in shapes}
    both = generate(name, process, denoiser(process, stack, event=1), path, noise, event=1).x
    for k in range(2):
        denoise = denoiser(process, learner_view(stack, k), event=1)
        mine = {key: value[k] for key, value in noise.items()}
        alone = generate(name, process, denoise, path, mine, event=1).x
        torch.testing.assert_close(both[k], alone, atol=1e-9, rtol=1e-9)


def test_hooks_see_each_step_in_order() -> None:
    seen: list[tuple[str, int, float]] = []

    def hook(word: str) -> Callable[[Tensor, int, Point], Tensor]:
        def note(x: Tensor, i: int, point: Point) -> Tensor:
            seen.append((word, i, float(point.level)))
            return x + 1.0 if word == "after" and point.sigma == 0.0 else x

        return note

    path = Flow().path(2)
    plain = ddim(exact, path, line())
    hooked = ddim(exact, path, line(), before=hook("before"), after=hook("after"))
    assert seen == [("before", 0, 0.0), ("after", 0, 0.5), ("before", 1, 0.5), ("after", 1, 1.0)]
    torch.testing.assert_close(hooked.x, plain.x + 1.0)


def test_what_cannot_be_sampled_is_refused() -> None:
    with pytest.raises(ConfigError, match="no sampler 'ddmp', did you mean 'ddpm'"):
        draws("ddmp", 3)
    with pytest.raises(ConfigError, match="even number of steps; this path has 3"):
        midpoint(exact, Flow().path(3), line())
    with pytest.raises(ConfigError, match="order 4"):
        dpm_solver_pp(exact, Flow().path(3), line(), order=4)
    with pytest.raises(ConfigError, match=r"Churn.high is 0.01; it must be in \[0.05, inf\)"):
        Churn(high=0.01)


@pytest.mark.compiled
@pytest.mark.parametrize("name", ["ddpm", "heun_churn", "dpm3", "midpoint", "consistency"])
def test_a_sampler_compiles_in_one_graph(name: str) -> None:
    process = process_of(name)
    layer = Linear(2, 2, Learners([0])).double()
    path = process.path(4)

    def network(x: Tensor, level: Tensor, condition: Tensor | None) -> Tensor:
        y: Tensor = layer(x) + level[..., None]
        return y

    def sample(noise: dict[str, Tensor]) -> Tensor:
        denoise = denoiser(process, network, event=1, clip=1.0)
        return generate(name, process, denoise, path, noise, event=1).x

    generator = torch.Generator().manual_seed(0)
    shapes = noise_shapes(name, 4, (3, 2)).items()
    noise = {k: torch.randn(*v, generator=generator).double() for k, v in shapes}
    compiled = torch.compile(sample, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(noise), sample(noise), atol=1e-12, rtol=0)
