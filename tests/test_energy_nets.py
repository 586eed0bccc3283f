"""Networks of energies, and how well energies tell states apart."""

import math
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from test_energy import draw, resnet, transformer
from torch import Tensor
from torch.nn.functional import layer_norm, mish, relu

from offrl.attention import KeyValue, blocks_of
from offrl.energy import slope
from offrl.energy_detection import receiver_curve
from offrl.energy_nets import MLPEnergy, TransformerEnergy, energy_net_from_spec
from offrl.errors import ConfigError, DataError
from offrl.networks import Learners, learner_view


def inputs(*lead: int) -> tuple[Tensor, Tensor]:
    return draw(*lead, 3, 4, 2), draw(*lead, 3, 2, 3, seed=2)


def test_the_resnet_by_hand() -> None:
    net, (x, c) = resnet(), inputs()
    h = torch.cat([c.flatten(1), x.flatten(1)], -1) @ net.first.weight + net.first.bias
    for a, b in ((0, 1), (2, 3)):
        inner = relu(h) @ net.layers[a].weight + net.layers[a].bias
        h = h + relu(inner) @ net.layers[b].weight + (net.layers[b].bias if b == 1 else 0.0)
    expected = (h @ net.readout.weight).squeeze(-1)
    torch.testing.assert_close(net(x, c), expected, rtol=0, atol=1e-12)
    first: Any = MLPEnergy(16, 2, 60, Learners(), hidden=64, depth=2)
    assert first.layers[0].weight.std().item() == pytest.approx(0.05, rel=0.05)


def test_the_transformer_by_hand() -> None:
    net, (x, c) = transformer(), inputs()
    memory = net.down(mish(net.up(net.cond_embed(c) + net.cond_position.weight)))
    h = net.embed(x) + net.position.weight
    for block in blocks_of(net.blocks):
        h = block(h, None, block.remember(memory), None)
    read = layer_norm(h, (8,)) * net.norm.weight @ net.readout.weight
    torch.testing.assert_close(net(x, c), read.mean((1, 2)), rtol=0, atol=1e-12)


@pytest.mark.parametrize("make", [transformer, resnet])
def test_candidates_are_rows_under_their_own_condition(make: Any) -> None:
    net, (_, c) = make(), inputs()
    x = draw(6, 4, 2)
    expected = net(x, c.repeat_interleave(2, 0))
    torch.testing.assert_close(net.under(c)(x), expected, rtol=0, atol=1e-12)
    with pytest.raises(ConfigError, match="5 rows of actions and 3 conditions"):
        net.under(c)(x[:5])


@pytest.mark.parametrize("make", [transformer, resnet])
def test_every_action_and_every_observation_counts(make: Any) -> None:
    net, (x, c) = make(), inputs()
    gradient, _ = slope(net.under(c), x)
    assert (gradient.abs() > 1e-9).all()
    c.requires_grad_()
    (seen,) = torch.autograd.grad(net(x, c).sum(), c)
    assert (seen.abs() > 1e-9).all()


@pytest.mark.parametrize("make", [transformer, partial(resnet, activation="silu", spread=None)])
def test_every_parameter_moves_the_slope(make: Any) -> None:
    # One that did not would have no gradient in learning through descent.
    net, (x, c) = make(), inputs()
    gradient, _ = slope(net.under(c), x)
    found = torch.autograd.grad(gradient.square().sum(), list(net.parameters()))
    names = [name for name, _ in net.named_parameters()]
    still = [n for n, g in zip(names, found, strict=True) if g.abs().max() < 1e-12]
    # All keys moved alike leave attention as it is.
    assert all(n.endswith("key.bias") for n in still), still


def test_fused_attention_would_have_no_second_derivative() -> None:
    net, (x, c) = transformer(), inputs()

    def fused(x: Tensor) -> Tensor:
        h = net.embed(x) + net.position.weight
        memory = net.cond_embed(c)
        for block in blocks_of(net.blocks):
            h = block(h, None, KeyValue(*block.remember(memory)), None)
        energy: Tensor = net.readout(net.norm(h)).mean((-1, -2))
        return energy

    gradient, _ = slope(fused, x)
    with pytest.raises(RuntimeError, match="not implemented"):
        torch.autograd.grad(gradient.sum(), list(net.parameters()), allow_unused=True)


def test_stacked_resnets_are_resnets_alone() -> None:
    seeds = (4, 7)
    net, (x, c) = resnet(Learners(seeds)), inputs(2)
    together = net(x, c)
    for k, seed in enumerate(seeds):
        alone = resnet(Learners((seed,)))(x[k], c[k])
        torch.testing.assert_close(together[k], alone, rtol=0, atol=1e-12)
        torch.testing.assert_close(learner_view(net, k)(x[k], c[k]), alone, rtol=0, atol=1e-12)


@pytest.mark.parametrize("make", [transformer, resnet])
def test_a_network_is_made_again_from_its_spec(make: Any) -> None:
    net, (x, c) = make(), inputs()
    again: Any = energy_net_from_spec(net.spec()).double()
    again.load_state_dict(net.state_dict())
    assert torch.equal(again(x, c), net(x, c))


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ConfigError, match="3 layers of 8 units"):
        MLPEnergy(4, 2, 6, Learners(), hidden=8, depth=3)
    with pytest.raises(ConfigError, match=r"type 'MLPEnergi'.*MLPEnergy"):
        energy_net_from_spec({"type": "MLPEnergi"})
    with pytest.raises(ConfigError, match="one learner"):
        TransformerEnergy(4, 2, 2, 3, Learners((1, 2)), layers=1, heads=2, width=8)


# -- detection -------------------------------------------------------------------------------------


def test_the_receivers_curve_by_hand() -> None:
    # Thresholds 4, 3, 2, 1; the two at 2 count one half against each other.
    curve = receiver_curve([1.0, 2.0], [2.0, 3.0, 4.0])
    assert curve.false_alarms.tolist() == [0, 0, 0, 0.5, 1]
    np.testing.assert_allclose(curve.hits, [0, 1 / 3, 2 / 3, 1, 1])
    pairs = [(o < s) + 0.5 * (o == s) for o in (1, 2) for s in (2, 3, 4)]
    assert curve.area == pytest.approx(sum(pairs) / 6)


def test_the_area_of_shifted_gaussians_and_of_nothing() -> None:
    rng = np.random.default_rng(0)
    n = 20_000
    ordinary, strange = rng.normal(0, 1, n), rng.normal(1.5, 1, n)
    # P(strange > ordinary) = Phi(1.5 / sqrt 2)
    expected = 0.5 * (1 + math.erf(1.5 / 2))
    assert receiver_curve(ordinary, strange).area == pytest.approx(expected, abs=0.01)
    assert receiver_curve(strange, ordinary).area == pytest.approx(1 - expected, abs=0.01)
    assert receiver_curve(np.ones(5), np.ones(3)).area == 0.5
    assert receiver_curve(np.zeros(5), np.ones(3)).area == 1.0


@pytest.mark.parametrize("wrong", [[], [float("nan")]])
def test_scores_that_are_none_are_refused(wrong: list[float]) -> None:
    with pytest.raises(DataError, match="strange states need"):
        receiver_curve([1.0], wrong)
