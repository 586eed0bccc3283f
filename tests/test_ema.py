"""Moving averages against numbers worked by hand, and as state of an agent."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from offrl.ema import Average, Decay
from offrl.errors import ConfigError
from offrl.networks import MLP, Learners, seed_axes


@pytest.mark.parametrize(
    ("step", "decay"),
    # 1 - 2^-0.75, 1 - 11^-0.75, 1 - 1001^-0.75 and 1 - 10001^-0.75.
    [(0, 0.0), (1, 0.405396), (10, 0.834439), (1_000, 0.994381), (10_000, 0.999000)],
)
def test_the_power_rule_by_hand(step: int, decay: float) -> None:
    assert 1.0 - Decay(after=0).rate(step) == pytest.approx(decay, abs=1e-6)
    # The authors count from the second step on, and copy at the first two.
    assert 1.0 - Decay().rate(step + 1) == pytest.approx(decay, abs=1e-6)
    assert Decay().rate(0) == 1.0


def test_the_bounds_and_the_stretch_of_the_power_rule() -> None:
    assert Decay().rate(10**9) == pytest.approx(1e-4, rel=1e-12)
    assert Decay(low=0.5, after=0).rate(1) == 0.5
    assert Decay(low=0.5, after=0).rate(0) == 1.0
    assert Decay(after=0, inv_gamma=10.0).rate(10) == pytest.approx(2.0**-0.75)
    assert Decay(after=0, power=2 / 3).rate(31_622) == pytest.approx(1e-3, rel=1e-3)


def test_the_other_rules_by_hand() -> None:
    # BESO's first average has decay (1 + 1) / (10 + 1); at 0.999 it stops.
    ratio = Decay("ratio", high=0.999)
    assert 1.0 - ratio.rate(0) == pytest.approx(2 / 11)
    assert 1.0 - ratio.rate(98) == pytest.approx(100 / 109)
    assert 1.0 - ratio.rate(10**6) == pytest.approx(0.999)
    assert Decay("constant", high=0.995).rate(0) == pytest.approx(0.005)


def test_an_average_that_starts_late_and_moves_every_few_steps() -> None:
    late = Decay("constant", high=0.995, start=1000, every=5)
    moves = [step for step in range(1012) if late.rate(step) > 0.0]
    assert moves == [1000, 1005, 1010]
    assert late.rate(1005) == pytest.approx(0.005)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"high": 1.5}, r"Decay\.high is 1\.5; it must be in \[0, 1\]"),
        ({"power": 0.0}, r"Decay\.power is 0\.0"),
        ({"after": -1}, r"Decay\.after is -1"),
        ({"start": -1}, r"Decay\.start is -1"),
        ({"every": 0}, r"Decay\.every is 0"),
    ],
)
def test_settings_are_checked(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Decay(**change)


class Drifting(nn.Module):
    """A network of one number and a counter."""

    seen: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, dtype=torch.float64))
        self.register_buffer("seen", torch.zeros(1))


def test_an_average_of_three_steps_by_hand() -> None:
    net = Drifting()
    average: Any = Average(net, Decay(after=0)).double()
    expected = 0.0
    for step, value in enumerate((8.0, -4.0, 6.0)):
        with torch.no_grad():
            net.weight.fill_(value)
            net.seen += 1
        average.schedule(step)
        average.update(net)
        expected += (1.0 + step) ** -0.75 * (value - expected)
    torch.testing.assert_close(average.net.weight.item(), expected, rtol=0, atol=1e-12)
    assert average.net.seen.item() == 3.0
    assert net.weight.item() == 6.0


def test_an_average_is_state_and_takes_no_gradient() -> None:
    average = Average(MLP([2, 3], Learners((1, 2))), Decay())
    state = average.state_dict()
    assert state.keys() == {"rate", "net.0.weight", "net.0.bias"}
    assert not any(p.requires_grad for p in average.parameters())
    assert seed_axes(average) == {"rate": None, "net.0.weight": 0, "net.0.bias": 0}


def test_each_learner_of_a_stack_has_its_own_average() -> None:
    stacked: Any = MLP([2, 3], Learners((1, 2)))
    alone: Any = MLP([2, 3], Learners((2,)))
    averages: list[Average[Any]] = [Average(net, Decay(after=0)) for net in (stacked, alone)]
    for average, net in zip(averages, (stacked, alone), strict=True):
        with torch.no_grad():
            net[0].weight.mul_(3.0)
        average.schedule(4)
        average.update(net)
    torch.testing.assert_close(averages[0].net[0].weight[1], averages[1].net[0].weight)


def test_a_large_decay_keeps_its_digits() -> None:
    net = Drifting()
    average = Average(net, Decay("constant", high=0.9999)).float()
    rate: Tensor = average.rate
    assert rate.dtype == torch.float32
    assert rate.item() == pytest.approx(1e-4, rel=1e-7)
