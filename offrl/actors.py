"""Policies with one action per observation, or a Gaussian of them; actions are in [-1, 1]."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import Independent, Normal

from offrl.errors import ConfigError, near
from offrl.networks import MLP, TORCH_INIT, Init, Learners, Stacked
from offrl.types import Noise

LOG_STD_MIN, LOG_STD_MAX = -5.0, 2.0


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
    likelihood; samples are clamped to [-1, 1].
    """

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
        self.spread = Spread(act_dim, learners)

    def forward(
        self, obs: Float[Tensor, "*seed batch obs"], noise: Noise | None = None
    ) -> "Independent[Normal]":
        mean = torch.tanh(self.net(obs, noise))
        return Independent(Normal(mean, self.spread().expand_as(mean), validate_args=False), 1)

    def mode(self, obs: Float[Tensor, "*seed batch obs"]) -> Float[Tensor, "*seed batch act"]:
        action: Tensor = torch.tanh(self.net(obs))
        return action

    def sample(
        self, obs: Float[Tensor, "*seed batch obs"], noise: Float[Tensor, "*seed batch act"]
    ) -> Float[Tensor, "*seed batch act"]:
        action: Tensor = (self.mode(obs) + self.spread() * noise).clamp(-1.0, 1.0)
        return action

    def spec(self) -> dict[str, Any]:
        return _actor_spec(self, self.net)


class Spread(Stacked):
    """A learned standard deviation per action component, exp(log_std), log_std in [-5, 2]."""

    def __init__(self, act_dim: int, learners: Learners) -> None:
        super().__init__(learners)
        self.log_std = nn.Parameter(torch.zeros(*learners.shape, 1, act_dim))

    def forward(self) -> Float[Tensor, "*seed 1 act"]:
        std: Tensor = self.log_std.clamp(LOG_STD_MIN, LOG_STD_MAX).exp()
        return std


ACTORS: Mapping[str, type[DeterministicActor] | type[GaussianActor]] = {
    "DeterministicActor": DeterministicActor,
    "GaussianActor": GaussianActor,
}


def _actor_spec(actor: nn.Module, net: MLP) -> dict[str, Any]:
    obs_dim, *hidden, act_dim = net.sizes
    return {
        "type": type(actor).__name__,
        "obs_dim": obs_dim,
        "act_dim": act_dim,
        "hidden": hidden,
    }


def actor_from_spec(spec: Mapping[str, Any]) -> DeterministicActor | GaussianActor:
    """The actor, for one learner, that `spec()` described; its weights are still to be loaded."""
    kind = spec.get("type", "")
    if kind not in ACTORS:
        raise ConfigError(
            f"the policy's actor is of type {kind!r}, which offrl does not know"
            f"{near(str(kind), ACTORS)}; pass its class as load_policy(path, actor=...)"
        )
    return ACTORS[kind](spec["obs_dim"], spec["act_dim"], spec["hidden"], Learners())
