"""The projection of one gradient on the normal plane of another, and the step that uses it."""

from typing import Any

import pytest
import torch
from problems import build, inputs, walk
from torch import Tensor, nn

from offrl.losses import chi_square_conjugate
from offrl.networks import Learners, Linear
from offrl.optim import adam, orthogonal_add, parameters_of


def doubles(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_the_conjugate_of_chi_square_by_hand() -> None:
    # w = max(x/2 + 1, 0). x = 0: w = 1, 0 - 0. x = 2: w = 2, 4 - 1 = 3 = 2 + 4/4.
    # x = -1: w = 1/2, -1/2 - 1/4 = -3/4 = -1 + 1/4. x = -2: w = 0, -1. x = -3 and below: -1.
    x = doubles(0.0, 2.0, -1.0, -2.0, -3.0, -50.0)
    expected = doubles(0.0, 3.0, -0.75, -1.0, -1.0, -1.0)
    torch.testing.assert_close(chi_square_conjugate(x), expected, rtol=0, atol=1e-15)


def test_the_conjugate_is_x_plus_a_quarter_of_its_square_and_its_slope_the_best_ratio() -> None:
    x = torch.linspace(-6, 6, 49, dtype=torch.float64, requires_grad=True)
    value = chi_square_conjugate(x)
    above = x.detach() >= -2
    expected = torch.where(above, x + x.square() / 4, -torch.ones_like(x)).detach()
    torch.testing.assert_close(value.detach(), expected, rtol=0, atol=1e-12)
    (slope,) = torch.autograd.grad(value.sum(), x)
    torch.testing.assert_close(slope, (x.detach() / 2 + 1).clamp(min=0), rtol=0, atol=1e-12)
    # And it is the conjugate: the largest x w - (w - 1)^2 over w >= 0.
    w = torch.linspace(0, 6, 6001, dtype=torch.float64)
    largest = (x.detach()[:, None] * w - (w - 1).square()).amax(-1)
    torch.testing.assert_close(value.detach(), largest, rtol=0, atol=1e-6)


def test_the_projection_by_hand_is_over_all_parameters_together() -> None:
    # g = (1, 2 | 2), h = (3, 0 | 3): <g, h> = 9, |g|^2 = 9, so h - 1 g = (2, -2 | 1) and
    # g + that = (3, 0 | 3). Each tensor by itself would give (3, 0) - 3/5 (1, 2) and (3) - (3).
    g = [doubles(1.0, 2.0), doubles(2.0)]
    merged = orthogonal_add(g, [doubles(3.0, 0.0), doubles(3.0)], [None, None])
    torch.testing.assert_close(merged, [doubles(3.0, 0.0), doubles(3.0)], rtol=0, atol=1e-15)
    # h = (0, 1 | 2): <g, h> = 6, h - 2/3 g = (-2/3, -1/3 | 2/3), g + that = (1/3, 5/3 | 8/3).
    merged = orthogonal_add(g, [doubles(0.0, 1.0), doubles(2.0)], [None, None])
    expected = [doubles(1 / 3, 5 / 3), doubles(8 / 3)]
    torch.testing.assert_close(merged, expected, rtol=0, atol=1e-15)


def random_gradients(seed: int, *shapes: tuple[int, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes]


# A twin network of three learners: (ensemble, seed, in, out), and a spread: (seed, 1, act).
SHAPES: tuple[tuple[int, ...], ...] = ((2, 3, 4, 5), (2, 3, 1, 5), (3, 1, 6))
AXES: list[int | None] = [1, 1, 0]


def inner(a: list[Tensor], b: list[Tensor]) -> Tensor:
    return torch.stack([(x * y).sum() for x, y in zip(a, b, strict=True)]).sum()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
def test_what_is_added_is_orthogonal(dtype: torch.dtype) -> None:
    g = [x.to(dtype) for x in random_gradients(0, *SHAPES)]
    h = [x.to(dtype) for x in random_gradients(1, *SHAPES)]
    merged = orthogonal_add(g, h, [None] * 3)
    added = [m - x for m, x in zip(merged, g, strict=True)]
    size = (inner(added, added) * inner(g, g)).sqrt()
    assert inner(added, g).abs() / size < 1e-5
    assert inner(h, g).abs() / size > 1e-3


def test_gradients_that_are_orthogonal_already_are_summed() -> None:
    g, h = [doubles(1.0, 0.0), doubles(2.0)], [doubles(0.0, 3.0), doubles(0.0)]
    merged = orthogonal_add(g, h, [None, None])
    torch.testing.assert_close(merged, [doubles(1.0, 3.0), doubles(2.0)], rtol=0, atol=0)


def test_opposed_gradients_do_not_cancel() -> None:
    g = random_gradients(2, *SHAPES)
    merged = orthogonal_add(g, [-0.7 * x for x in g], [None] * 3)
    torch.testing.assert_close(merged, g, rtol=0, atol=1e-12)


def test_a_zero_main_gradient_leaves_the_other() -> None:
    h = random_gradients(3, *SHAPES)
    merged = orthogonal_add([torch.zeros_like(x) for x in h], h, AXES)
    assert all(torch.equal(m, x) for m, x in zip(merged, h, strict=True))


def test_stacked_learners_are_projected_each_alone() -> None:
    g, h = random_gradients(4, *SHAPES), random_gradients(5, *SHAPES)
    g[0][:, 1], g[1][:, 1], g[2][1] = 0.0, 0.0, 0.0  # one learner without a direction
    together = orthogonal_add(g, h, AXES)
    for k in range(3):
        axes = list(zip(g, h, AXES, strict=True))
        alone = orthogonal_add(
            [x.select(a, k) for x, _, a in axes if a is not None],
            [y.select(a, k) for _, y, a in axes if a is not None],
            [None] * 3,
        )
        for whole, single, axis in zip(together, alone, AXES, strict=True):
            assert axis is not None
            torch.testing.assert_close(whole.select(axis, k), single, rtol=0, atol=1e-12)


def split_agent(seeds: tuple[int, ...], backend: str = "eager") -> Any:
    """BC whose loss is given in two parts, the first and the second component's error."""
    agent, replay = build("bc", walk(), seeds)
    agent.backend = backend
    return agent, replay


def parts(agent: Any) -> Any:
    def two_losses(batch: Any) -> Any:
        error = (agent.actor(batch.obs) - batch.action).square().mean(-2)
        return error.movedim(-1, 0), {}

    return two_losses


def summed(apart: Any, axes: Any) -> list[Tensor]:
    return [sum(g) for g in zip(*apart, strict=True)]  # type: ignore[misc]


def test_gradients_that_are_summed_are_the_gradient_of_the_sum() -> None:
    for seeds in ((0,), (0, 1)):
        split, replay = split_agent(seeds)
        whole, _ = split_agent(seeds)
        batch, _ = inputs(split, replay)

        def one_loss(batch: Any, whole: Any = whole) -> Any:
            return parts(whole)(batch)[0].sum(0), {}

        metrics = split.minimize(split.actor_opt, parts(split), batch, combine=summed)
        expected = whole.minimize(whole.actor_opt, one_loss, batch)
        torch.testing.assert_close(metrics["two_losses"], expected["one_loss"], rtol=0, atol=1e-12)
        assert metrics["two_losses"].shape == split.learners.shape
        for p, q in zip(split.parameters(), whole.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=0, atol=1e-12)


def test_combine_is_told_where_learners_are_stacked() -> None:
    seen = []

    def first(apart: Any, axes: Any) -> Any:
        seen.append(list(axes))
        return apart[0]

    for seeds in ((0,), (0, 1)):
        agent, replay = split_agent(seeds)
        batch, _ = inputs(agent, replay)
        agent.minimize(agent.actor_opt, parts(agent), batch, combine=first)
    count = len(parameters_of(agent.actor_opt))
    assert seen == [[None] * count, [0] * count]


@pytest.mark.compiled
def test_a_combined_gradient_is_compiled_with_its_losses() -> None:
    def orthogonal(apart: Any, axes: Any) -> list[Tensor]:
        return orthogonal_add(*apart, axes)

    trained = []
    for backend in ("eager", "aot_eager"):
        agent, replay = split_agent((0, 1), backend)
        batch, _ = inputs(agent, replay)
        objective = parts(agent)
        for _ in range(3):
            agent.minimize(agent.actor_opt, objective, batch, combine=orthogonal)
        trained.append(list(agent.parameters()))
    for p, q in zip(*trained, strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-9)


def test_weight_decay_is_added_to_the_gradient() -> None:
    # L2: the first step is lr sign(g + w x), here of 0 + 0.5 x: every weight moves towards zero
    # by the rate, however small. AdamW would shrink by lr w x instead.
    net: nn.Module = Linear(2, 1, Learners())
    before = [p.detach().clone() for p in net.parameters()]
    optimizer = adam(net.parameters(), 1e-3, 0.5)
    for p in net.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    for p, old in zip(net.parameters(), before, strict=True):
        torch.testing.assert_close(p.detach(), old - 1e-3 * old.sign(), rtol=0, atol=1e-6)
