"""Policies with one action per observation, or a Gaussian of them; actions are in [-1, 1]."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import Independent, Normal
from torch.nn.functional import softplus

from offrl.cocoa import trunk_from_spec
from offrl.errors import ConfigError, near
from offrl.networks import MLP, TORCH_INIT, Init, Learners, Stacked
from offrl.types import Noise

LOG_STD_MIN, LOG_STD_MAX = -5.0, 2.0
INSIDE = 1e-6  # how far inside the bounds a logged action is put before it is un-squashed


class DeterministicActor(nn.Module):
    """a = tanh(f(s)); actions live in [-1, 1]."""

    def __init__(
        self,
        obs_dim: int,
        act_dim: int,
        hidden: Sequence[int],
        learners: Learners,
        dropout: float = 0.0,
        init: Init = TORCH_INIT,
    ) -> None:
        super().__init__()
        self.net = MLP([obs_dim, *hidden, act_dim], learners, dropout=dropout, init=init)

    def forward(
        self, obs: Float[Tensor, "*seed batch obs"], noise: Noise | None = None
    ) -> Float[Tensor, "*seed batch act"]:
        return torch.tanh(self.net(obs, noise))

    def mode(self, obs: Float[Tensor, "*seed batch obs"]) -> Float[Tensor, "*seed batch act"]:
        action: Tensor = self(obs)
        return action

    def sample(
        self, obs: Float[Tensor, "*seed batch obs"], noise: Float[Tensor, "*seed batch act"]
    ) -> Float[Tensor, "*seed batch act"]:
        """The mode: this policy has no spread, whatever the noise."""
        return self.mode(obs)

    def spec(self) -> dict[str, Any]:
        return _actor_spec(self, self.net)


class GaussianActor(nn.Module):
    """pi(a|s) = N(tanh(f(s)), diag(exp(log_std))^2), the spread independent of s.

    The distribution is not squashed, so that logged actions on the bounds keep a finite
    likelihood; actions are clamped to [-1, 1]. Without `squash_mean` the mean is f(s) itself.
    `trunk` stands before the layers: a module with attributes `features` and `spec` that maps obs
    to (*seed, batch, features).
    """

    def __init__(
        self,
        obs_dim: int,
        act_dim: int,
        hidden: Sequence[int],
        learners: Learners,
        dropout: float = 0.0,
        init: Init = TORCH_INIT,
        squash_mean: bool = True,
        trunk: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.squash_mean = squash_mean
        self.net = _net([obs_dim, *hidden, act_dim], learners, dropout, init, trunk)
        self.spread = Spread(act_dim, learners)

    def forward(
        self, obs: Float[Tensor, "*seed batch obs"], noise: Noise | None = None
    ) -> "Independent[Normal]":
        mean = self.mean(obs, noise)
        return Independent(Normal(mean, self.spread().expand_as(mean), validate_args=False), 1)

    def mean(
        self, obs: Float[Tensor, "*seed batch obs"], noise: Noise | None = None
    ) -> Float[Tensor, "*seed batch act"]:
        mean: Tensor = self.net(obs, noise)
        return torch.tanh(mean) if self.squash_mean else mean

    def mode(self, obs: Float[Tensor, "*seed batch obs"]) -> Float[Tensor, "*seed batch act"]:
        action: Tensor = self.mean(obs).clamp(-1.0, 1.0)
        return action

    def sample(
        self, obs: Float[Tensor, "*seed batch obs"], noise: Float[Tensor, "*seed batch act"]
    ) -> Float[Tensor, "*seed batch act"]:
        action: Tensor = (self.mean(obs) + self.spread() * noise).clamp(-1.0, 1.0)
        return action

    def spec(self) -> dict[str, Any]:
        described = _actor_spec(self, self.net)
        return described if self.squash_mean else described | {"squash_mean": False}


class Spread(Stacked):
    """A learned standard deviation per action component, exp(log_std), log_std in [-5, 2]."""

    def __init__(self, act_dim: int, learners: Learners) -> None:
        super().__init__(learners)
        self.log_std = nn.Parameter(torch.zeros(*learners.shape, 1, act_dim))

    def forward(self) -> Float[Tensor, "*seed 1 act"]:
        std: Tensor = self.log_std.clamp(LOG_STD_MIN, LOG_STD_MAX).exp()
        return std


class SquashedGaussianActor(nn.Module):
    """a = tanh(u), u ~ N(mean(s), diag(exp(log_std(s)))^2): the policy of soft actor-critic.

        log pi(a|s) = sum_i [ log N(u_i) - log(1 - tanh(u_i)^2) ]

    Mean and log_std are the two halves of one network's output; log_std is clamped to [-5, 2].
    The last term is 2 (log 2 - u - log(1 + exp(-2u))), which is exact at every u. Source:
    arXiv:1801.01290, appendix C. Samples are differentiable in the network, given their noise.
    `trunk` as in GaussianActor.
    """

    def __init__(
        self,
        obs_dim: int,
        act_dim: int,
        hidden: Sequence[int],
        learners: Learners,
        init: Init = TORCH_INIT,
        trunk: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.net = _net([obs_dim, *hidden, 2 * act_dim], learners, 0.0, init, trunk)

    def forward(
        self, obs: Float[Tensor, "*seed batch obs"]
    ) -> tuple[Float[Tensor, "*seed batch act"], Float[Tensor, "*seed batch act"]]:
        """Mean and log standard deviation of u."""
        mean, log_std = self.net(obs).chunk(2, -1)
        return mean, log_std.clamp(LOG_STD_MIN, LOG_STD_MAX)

    def mode(self, obs: Float[Tensor, "*seed batch obs"]) -> Float[Tensor, "*seed batch act"]:
        """tanh of the mean, as is customary; the density's own maximum lies elsewhere."""
        return torch.tanh(self(obs)[0])

    def sample(
        self, obs: Float[Tensor, "*seed batch obs"], noise: Float[Tensor, "*seed batch act"]
    ) -> Float[Tensor, "*seed batch act"]:
        action: Tensor = self.draw(obs, noise)[0]
        return action

    def draw(
        self, obs: Float[Tensor, "*seed batch obs"], noise: Float[Tensor, "*seed batch act"]
    ) -> tuple[Float[Tensor, "*seed batch act"], Float[Tensor, "*seed batch"]]:
        """The actions that the noise makes, and their log-probabilities."""
        mean, log_std = self(obs)
        return _squashed(mean, log_std, noise)

    def draw_many(
        self, obs: Float[Tensor, "*seed batch obs"], noise: Float[Tensor, "*seed n batch act"]
    ) -> tuple[Float[Tensor, "*seed n batch act"], Float[Tensor, "*seed n batch"]]:
        """n actions for each observation, for which the network is evaluated once."""
        mean, log_std = self(obs)
        return _squashed(mean.unsqueeze(-3), log_std.unsqueeze(-3), noise)

    def log_prob(
        self, obs: Float[Tensor, "*seed batch obs"], action: Float[Tensor, "*seed batch act"]
    ) -> Float[Tensor, "*seed batch"]:
        """Of given actions; those on the bounds count as 1e-6 inside, where it is finite."""
        mean, log_std = self(obs)
        u = torch.atanh(action.clamp(INSIDE - 1.0, 1.0 - INSIDE))
        return _squashed(mean, log_std, (u - mean) / log_std.exp())[1]

    def spec(self) -> dict[str, Any]:
        described = _actor_spec(self, self.net)
        return described | {"act_dim": described["act_dim"] // 2}


def _squashed(mean: Tensor, log_std: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    u = mean + log_std.exp() * noise
    normal = -0.5 * noise.square() - log_std - 0.5 * math.log(2.0 * math.pi)
    log_slope = 2.0 * (math.log(2.0) - u - softplus(-2.0 * u))
    return torch.tanh(u), (normal - log_slope).sum(-1)


Actors = DeterministicActor | GaussianActor | SquashedGaussianActor
ACTORS: Mapping[str, type[Actors]] = {
    "DeterministicActor": DeterministicActor,
    "GaussianActor": GaussianActor,
    "SquashedGaussianActor": SquashedGaussianActor,
}


class Behind(nn.Module):
    """A policy's layers behind a trunk, with the attributes that they have alone."""

    def __init__(self, trunk: nn.Module, layers: MLP, obs_dim: int) -> None:
        super().__init__()
        self.trunk, self.layers = trunk, layers
        self.sizes = (obs_dim, *layers.sizes[1:])

    def noise(self, batch_size: int) -> dict[str, tuple[int, ...]]:
        return self.layers.noise(batch_size)

    def forward(self, obs: Tensor, noise: Noise | None = None) -> Tensor:
        x: Tensor = self.layers(self.trunk(obs), noise)
        return x


def _net(
    sizes: Sequence[int], learners: Learners, dropout: float, init: Init, trunk: nn.Module | None
) -> MLP | Behind:
    if trunk is None:
        return MLP(sizes, learners, dropout=dropout, init=init)
    inputs = int(trunk.features)  # type: ignore[arg-type]
    layers = MLP([inputs, *sizes[1:]], learners, dropout=dropout, init=init)
    return Behind(trunk, layers, sizes[0])


def _actor_spec(actor: nn.Module, net: MLP | Behind) -> dict[str, Any]:
    obs_dim, *hidden, act_dim = net.sizes
    described = {
        "type": type(actor).__name__,
        "obs_dim": obs_dim,
        "act_dim": act_dim,
        "hidden": hidden,
    }
    if isinstance(net, Behind):
        described["trunk"] = net.trunk.spec()  # type: ignore[operator]
    return described


def actor_from_spec(spec: Mapping[str, Any]) -> Actors:
    """The actor, for one learner, that `spec()` described; its weights are still to be loaded."""
    kind = spec.get("type", "")
    if kind not in ACTORS:
        raise ConfigError(
            f"the policy's actor is of type {kind!r}, which offrl does not know"
            f"{near(str(kind), ACTORS)}; pass its class as load_policy(path, actor=...)"
        )
    sizes = spec["obs_dim"], spec["act_dim"], spec["hidden"]
    if kind == "DeterministicActor":
        return DeterministicActor(*sizes, Learners())
    trunk = trunk_from_spec(spec["trunk"]) if "trunk" in spec else None
    if kind == "GaussianActor":
        squash_mean = spec.get("squash_mean", True)
        return GaussianActor(*sizes, Learners(), squash_mean=squash_mean, trunk=trunk)
    return SquashedGaussianActor(*sizes, Learners(), trunk=trunk)
