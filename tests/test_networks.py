"""Networks against plain loops, for one learner and for several."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from offrl.actors import DeterministicActor, GaussianActor, Spread, actor_from_spec
from offrl.critics import Critic, Value
from offrl.errors import ConfigError
from offrl.networks import MLP, Learners, Linear, learner_view, seed_axes
from offrl.streams import Stream

OBS, ACT, BATCH, HIDDEN = 3, 2, 7, (8, 5)
SEEDS = (4, 7, 11)


def plain(net: nn.Module, x: Tensor, *place: int) -> Tensor:
    """The network as torch.nn.functional layers on one member's and one learner's weights."""
    layers = [m for m in net.modules() if isinstance(m, Linear)]
    for i, layer in enumerate(layers):
        weight = layer.weight[place] if place else layer.weight.detach()
        bias = layer.bias[place] if place else layer.bias.detach()
        x = nn.functional.linear(x, weight.T, bias[0])
        if i + 1 < len(layers):
            x = torch.relu(x)
    return x


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("ensemble", [(), (2,)])
@pytest.mark.parametrize("seeds", [(4,), SEEDS])
def test_mlp_equals_a_loop(seeds: tuple[int, ...], ensemble: tuple[int, ...]) -> None:
    learners = Learners(seeds)
    net = MLP([OBS, *HIDDEN, ACT], learners, ensemble).double()
    x = draw(*learners.shape, BATCH, OBS)
    y = net(x)
    assert y.shape == (*ensemble, *learners.shape, BATCH, ACT)
    for member in [(k,) for k in range(2)] if ensemble else [()]:
        for k in range(len(seeds)):
            learner = (k,) if learners.shape else ()
            expected = plain(net, x[learner], *member, *learner)
            torch.testing.assert_close(y[*member, *learner], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("ensemble", [(), (2,)])
@pytest.mark.parametrize("seeds", [(4,), SEEDS])
def test_nothing_in_nothing_out(seeds: tuple[int, ...], ensemble: tuple[int, ...]) -> None:
    learners = Learners(seeds)
    net = MLP([OBS, *HIDDEN, ACT], learners, ensemble)
    assert net(torch.zeros(*learners.shape, 0, OBS)).shape == (*ensemble, *learners.shape, 0, ACT)


@pytest.mark.parametrize("kind", ["mish", "gelu"])
def test_other_activations_than_relu(kind: Any) -> None:
    mlp = MLP([3, 4, 2], Learners((4, 5)), norm="after", activation=kind)
    x = torch.randn(2, 7, 3)
    first, _, norm, last = mlp
    h = first(x)
    curve = {
        "mish": lambda h: h * torch.tanh(torch.log1p(h.exp())),
        "gelu": lambda h: 0.5 * h * (1 + torch.tanh(0.7978845608 * (h + 0.044715 * h**3))),
    }[kind]
    torch.testing.assert_close(mlp(x), last(norm(curve(h))))


@pytest.mark.parametrize("shape", [(BATCH, 3), (2, BATCH, 3)])
def test_each_way_of_multiplying_is_the_same(shape: tuple[int, ...]) -> None:
    for ensemble in ((), (2,)):
        layer = Linear(3, 4, Learners(), ensemble).double()
        x = draw(*shape)
        torch.testing.assert_close(layer(x), x @ layer.weight + layer.bias, rtol=0, atol=1e-12)


@pytest.mark.parametrize("seeds", [(4,), SEEDS])
def test_critic_and_value_equal_a_loop(seeds: tuple[int, ...]) -> None:
    learners = Learners(seeds)
    critic = Critic(OBS, ACT, HIDDEN, learners, ensemble=3).double()
    value = Value(OBS, HIDDEN, learners).double()
    obs, action = draw(*learners.shape, BATCH, OBS), draw(*learners.shape, BATCH, ACT)
    q, v = critic(obs, action), value(obs)
    assert q.shape == (3, *learners.shape, BATCH) and v.shape == (*learners.shape, BATCH)
    for k in range(len(seeds)):
        place = (k,) if learners.shape else ()
        for member in range(3):
            x = torch.cat([obs[place], action[place]], -1)
            expected = plain(critic, x, member, *place)[:, 0]
            torch.testing.assert_close(q[member, *place], expected, rtol=0, atol=1e-12)
        expected = plain(value, obs[place], *place)[:, 0]
        torch.testing.assert_close(v[place], expected, rtol=0, atol=1e-12)


def test_members_and_learners_begin_apart() -> None:
    critic = Critic(OBS, ACT, HIDDEN, Learners(SEEDS))
    weight = critic.head.weight.detach().flatten(0, 1)  # members by learners
    distances = torch.cdist(weight.flatten(1), weight.flatten(1))
    assert (distances + torch.eye(len(weight)) > 1e-3).all()


@pytest.mark.parametrize(
    "build",
    [
        lambda learners: MLP([OBS, *HIDDEN, ACT], learners),
        lambda learners: Critic(OBS, ACT, HIDDEN, learners),
        lambda learners: Value(OBS, HIDDEN, learners),
        lambda learners: DeterministicActor(OBS, ACT, HIDDEN, learners),
        lambda learners: GaussianActor(OBS, ACT, HIDDEN, learners),
    ],
    ids=["mlp", "critic", "value", "deterministic", "gaussian"],
)
def test_seed_k_of_a_stack_is_seed_k_alone(build: Any) -> None:
    stacked = build(Learners(SEEDS))
    for k, seed in enumerate(SEEDS):
        view, alone = learner_view(stacked, k), build(Learners((seed,)))
        assert view.state_dict().keys() == alone.state_dict().keys()
        for name, value in alone.state_dict().items():
            assert torch.equal(view.state_dict()[name], value), name


def test_networks_built_in_turn_differ() -> None:
    learners = Learners((0,))
    first, second = Value(OBS, HIDDEN, learners), Value(OBS, HIDDEN, learners)
    assert not torch.equal(next(first.parameters()), next(second.parameters()))


def test_first_weights_come_from_the_seeds_stream() -> None:
    layer = Linear(9, 2, Learners((5,)))
    expected = Stream(5, "init").block(0).uniform(-1 / 3, 1 / 3, (9, 2)).astype("float32")
    assert layer.weight.detach().numpy().tobytes() == expected.tobytes()


def test_normal_first_numbers_come_from_the_same_stream() -> None:
    drawn = Learners((5,)).normal(0.5, (9, 2))
    expected = (0.5 * Stream(5, "init").block(0).standard_normal((9, 2))).astype("float32")
    assert drawn.numpy().tobytes() == expected.tobytes()
    stacked = Learners((4, 5)).normal(0.5, (9, 2), (1,))
    assert stacked.shape == (1, 2, 9, 2) and torch.equal(stacked[0, 1], drawn)


def test_first_weights_are_spread_as_torchs_own() -> None:
    ours, theirs = Linear(100, 400, Learners((0,))), nn.Linear(100, 400)
    for mine, other in ((ours.weight, theirs.weight), (ours.bias, theirs.bias)):
        assert mine.abs().max() <= 0.1 and other.abs().max() <= 0.1
        assert mine.std().item() == pytest.approx(0.1 / math.sqrt(3), rel=0.1)
        assert abs(mine.mean().item()) < 0.01


@pytest.mark.parametrize("seeds", [(), (1, 1)])
def test_seeds_must_be_different(seeds: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="one or more different integers"):
        Learners(seeds)


@pytest.mark.parametrize("seeds", [(4,), SEEDS])
def test_features_are_what_the_head_is_given(seeds: tuple[int, ...]) -> None:
    learners = Learners(seeds)
    critic = Critic(OBS, ACT, HIDDEN, learners).double()
    obs, action = draw(*learners.shape, BATCH, OBS), draw(*learners.shape, BATCH, ACT)
    features = critic.features(obs, action)
    assert features.shape == (2, *learners.shape, BATCH, HIDDEN[-1])
    assert (features >= 0).all() and (features > 0).any()
    q = (features @ critic.head.weight + critic.head.bias).squeeze(-1)
    torch.testing.assert_close(critic(obs, action), q, rtol=0, atol=1e-12)
    (gradient,) = torch.autograd.grad(features.sum(), [next(critic.trunk.parameters())])
    assert gradient.abs().sum() > 0


class Product(nn.Module):
    """A trunk from outside: the products of every observation with every action component."""

    features = OBS * ACT

    def forward(self, obs: Tensor, action: Tensor) -> Tensor:
        products = (obs[..., :, None] * action[..., None, :]).flatten(-2)
        return torch.stack([products, -products])


@pytest.mark.parametrize("seeds", [(4,), SEEDS])
def test_a_trunk_from_outside_is_used(seeds: tuple[int, ...]) -> None:
    learners = Learners(seeds)
    critic = Critic(OBS, ACT, HIDDEN, learners, trunk=Product()).double()
    assert {n for n, _ in critic.named_parameters()} == {"head.weight", "head.bias"}
    obs, action = draw(*learners.shape, BATCH, OBS), draw(*learners.shape, BATCH, ACT)
    q = critic(obs, action)
    for k in range(len(seeds)):
        place = (k,) if learners.shape else ()
        x = torch.einsum("bo,ba->boa", obs[place], action[place]).flatten(1)
        for member, sign in ((0, 1.0), (1, -1.0)):
            head = critic.head.weight[member, *place], critic.head.bias[member, *place]
            expected = (sign * x @ head[0] + head[1])[:, 0]
            torch.testing.assert_close(q[member, *place], expected, rtol=0, atol=1e-12)


def test_the_deterministic_actor_is_a_squashed_mlp() -> None:
    actor = DeterministicActor(OBS, ACT, HIDDEN, Learners()).double()
    obs = draw(BATCH, OBS)
    expected = torch.tanh(plain(actor, obs))
    torch.testing.assert_close(actor(obs), expected, rtol=0, atol=1e-12)
    assert torch.equal(actor.mode(obs), actor(obs))
    assert torch.equal(actor.sample(obs, draw(BATCH, ACT)), actor(obs))
    assert actor.mode(1e6 * obs).abs().max() <= 1.0


@pytest.mark.parametrize("seeds", [(4,), SEEDS])
def test_the_gaussian_actors_likelihood_by_hand(seeds: tuple[int, ...]) -> None:
    learners = Learners(seeds)
    actor = GaussianActor(OBS, ACT, HIDDEN, learners).double()
    with torch.no_grad():
        actor.spread.log_std.copy_(torch.tensor([-1.0, 0.5]))
    obs, action = draw(*learners.shape, BATCH, OBS), draw(*learners.shape, BATCH, ACT)
    log_prob = actor(obs).log_prob(action)
    mean, std = actor.mode(obs), torch.tensor([-1.0, 0.5]).double().exp()
    # log N(a; m, s) = -((a - m) / s)^2 / 2 - ln s - ln(2 pi) / 2, added up over components.
    terms = -0.5 * ((action - mean) / std).square() - std.log() - 0.5 * math.log(2 * math.pi)
    torch.testing.assert_close(log_prob, terms.sum(-1), rtol=0, atol=1e-12)


def test_the_gaussian_actor_samples_around_its_mode() -> None:
    actor = GaussianActor(OBS, ACT, HIDDEN, Learners()).double()
    obs, noise = draw(BATCH, OBS), draw(BATCH, ACT)
    with torch.no_grad():
        actor.spread.log_std.fill_(math.log(0.1))
    torch.testing.assert_close(
        actor.sample(obs, noise), (actor.mode(obs) + 0.1 * noise).clamp(-1, 1), rtol=0, atol=1e-12
    )
    assert actor.sample(obs, 1e3 * noise).abs().max() == 1.0


def test_the_spread_is_clamped_and_starts_at_one() -> None:
    spread = Spread(3, Learners())
    assert spread().tolist() == [[1.0, 1.0, 1.0]]
    with torch.no_grad():
        spread.log_std.copy_(torch.tensor([[-9.0, 0.0, 9.0]]))
    expected = torch.tensor([[math.exp(-5), 1.0, math.exp(2)]])
    torch.testing.assert_close(spread(), expected)


@pytest.mark.parametrize("kind", [DeterministicActor, GaussianActor])
def test_dropout_takes_its_noise_from_outside(kind: Any) -> None:
    actor = kind(OBS, ACT, HIDDEN, Learners(), 0.5).double()
    shapes = actor.net.noise(BATCH)
    assert shapes == {"dropout0": (BATCH, 8), "dropout1": (BATCH, 5)}
    obs = draw(BATCH, OBS)
    all_kept = {k: torch.full(s, 9.0, dtype=torch.float64) for k, s in shapes.items()}
    none_kept = {k: -v for k, v in all_kept.items()}

    def mean(output: Any) -> Tensor:
        found: Tensor = output.mean if kind is GaussianActor else output
        return found

    bias = torch.tanh(actor.net[-1].bias).expand(BATCH, ACT)
    torch.testing.assert_close(mean(actor(obs, none_kept)), bias, rtol=0, atol=1e-12)
    assert not torch.equal(mean(actor(obs, all_kept)), actor.mode(obs))
    assert torch.equal(mean(actor(obs)), actor.mode(obs))


@pytest.mark.parametrize("kind", [DeterministicActor, GaussianActor])
def test_a_spec_makes_the_same_actor_again(kind: Any) -> None:
    actor = kind(OBS, ACT, HIDDEN, Learners((9,)))
    spec = actor.spec()
    assert spec == {"type": kind.__name__, "obs_dim": OBS, "act_dim": ACT, "hidden": [8, 5]}
    again = actor_from_spec(spec)
    again.load_state_dict(actor.state_dict())
    obs = draw(BATCH, OBS).float()
    assert torch.equal(again.mode(obs), actor.mode(obs))


def test_an_unknown_actor_is_refused_with_a_near_one() -> None:
    with pytest.raises(ConfigError, match=r"'GausianActor'.*did you mean 'GaussianActor'"):
        actor_from_spec({"type": "GausianActor"})


def test_names_and_shapes_of_an_actors_weights() -> None:
    actor = GaussianActor(OBS, ACT, HIDDEN, Learners())
    assert {k: tuple(v.shape) for k, v in actor.state_dict().items()} == {
        "net.0.weight": (3, 8),
        "net.0.bias": (1, 8),
        "net.2.weight": (8, 5),
        "net.2.bias": (1, 5),
        "net.4.weight": (5, 2),
        "net.4.bias": (1, 2),
        "spread.log_std": (1, 2),
    }


def test_a_learners_view_shares_the_weights() -> None:
    actor: Any = GaussianActor(OBS, ACT, HIDDEN, Learners(SEEDS))
    view = learner_view(actor, 1)
    obs = draw(BATCH, OBS).float()
    expected = actor.mode(obs.expand(3, -1, -1))[1]
    torch.testing.assert_close(view.mode(obs), expected)
    with torch.no_grad():
        actor.net[4].bias[1] += 0.5
        actor.spread.log_std[1] -= 1.0
    assert torch.equal(view.net[4].bias, actor.net[4].bias[1])
    assert torch.equal(view.spread.log_std, actor.spread.log_std[1])
    assert view.net[4].bias.data_ptr() == actor.net[4].bias[1].data_ptr()
    assert not any(p.requires_grad for p in view.parameters())
    assert all(p.requires_grad for p in actor.parameters())


def test_the_view_of_a_learner_alone_shares_too() -> None:
    actor: Any = DeterministicActor(OBS, ACT, HIDDEN, Learners())
    view = learner_view(actor, 0)
    with torch.no_grad():
        actor.net[0].weight += 1.0
    assert torch.equal(view.net[0].weight, actor.net[0].weight)
    assert all(p.requires_grad for p in actor.parameters())


@pytest.mark.parametrize("seeds", [(4,), SEEDS])
def test_seed_axes_name_the_learners_axis(seeds: tuple[int, ...]) -> None:
    learners = Learners(seeds)
    module = nn.ModuleDict(
        {
            "critic": Critic(OBS, ACT, HIDDEN, learners),
            "actor": GaussianActor(OBS, ACT, HIDDEN, learners),
            "plain": nn.BatchNorm1d(2),
        }
    )
    axes = seed_axes(module)
    assert axes.keys() == module.state_dict().keys()
    for name, value in module.state_dict().items():
        if len(seeds) == 1 or name.startswith("plain"):
            assert axes[name] is None, name
        else:
            assert axes[name] == (1 if name.startswith("critic") else 0), name
            assert value.shape[axes[name]] == len(seeds), name


def test_a_batch_of_the_wrong_width_is_a_type_error() -> None:
    from jaxtyping import TypeCheckError

    critic = Critic(OBS, ACT, HIDDEN, Learners())
    with pytest.raises(TypeCheckError):
        critic(torch.zeros(4, OBS), torch.zeros(5, ACT))


class Outside(nn.Module):
    """A trunk of somebody else, which knows nothing of members."""

    def __init__(self, trunk: nn.Module) -> None:
        super().__init__()
        self.trunk, self.features = trunk, trunk.features

    def forward(self, obs: Tensor, action: Tensor) -> Tensor:
        x: Tensor = self.trunk(obs, action)
        return x


@pytest.mark.parametrize("outside", [False, True])
def test_the_first_member_alone_is_the_first_of_all(outside: bool) -> None:
    critic = Critic(OBS, ACT, HIDDEN, Learners(SEEDS)).double()
    if outside:
        critic.trunk = Outside(critic.trunk)
    obs = torch.randn(len(SEEDS), BATCH, OBS, dtype=torch.float64)
    action = torch.randn(len(SEEDS), BATCH, ACT, dtype=torch.float64)
    torch.testing.assert_close(critic.first(obs, action), critic(obs, action)[0])
