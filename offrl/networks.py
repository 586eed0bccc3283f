"""Backbones shared by every agent, for one learner or a stack of them.

A parameter of n learners has a seed axis: `(ensemble, *seed, in, out)`. A stacked network is n
networks in one kernel, not one network with n heads: no value of one enters another. Initial
numbers are drawn per learner from its own stream, so learner k of a stack begins with the very
weights that its seed gives alone.
"""

import copy
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Float
from scipy.special import ndtri
from torch import Tensor, nn
from torch.distributions import Independent, Normal

from offrl.errors import ConfigError, near
from offrl.streams import Stream
from offrl.types import Noise

M = TypeVar("M", bound=nn.Module)

LOG_STD_MIN, LOG_STD_MAX = -5.0, 2.0


class Learners:
    """The learners trained together: how many, and where their initial numbers come from."""

    def __init__(self, seeds: Sequence[int] = (0,)) -> None:
        if not seeds or len(set(seeds)) != len(seeds):
            raise ConfigError(f"seeds {list(seeds)} must be one or more different integers")
        self.seeds = tuple(seeds)
        self.shape: tuple[int, ...] = () if len(seeds) == 1 else (len(seeds),)
        self._generators = [Stream(seed, "init").block(0) for seed in seeds]

    def uniform(self, bound: float, shape: Sequence[int], ensemble: Sequence[int] = ()) -> Tensor:
        """U(-bound, bound), of shape (*ensemble, *seed, *shape); each learner from its stream."""
        draws = [g.uniform(-bound, bound, (*ensemble, *shape)) for g in self._generators]
        stacked = np.stack(draws, axis=len(ensemble)) if self.shape else draws[0]
        return torch.from_numpy(stacked.astype(np.float32))


class Stacked(nn.Module):
    """A module with parameters of its own; `seed_axis` says where learners are stacked in them."""

    def __init__(self, learners: Learners, ensemble: Sequence[int] = ()) -> None:
        super().__init__()
        self.seed_axis = len(ensemble) if learners.shape else None


class Linear(Stacked):
    """y = x W + b for every member and learner; W and b from U(-1/sqrt(in), 1/sqrt(in)).

    W is stored (in, out). The distribution is that of torch.nn.Linear.
    """

    def __init__(
        self, inputs: int, outputs: int, learners: Learners, ensemble: Sequence[int] = ()
    ) -> None:
        super().__init__(learners, ensemble)
        bound = inputs**-0.5
        self.weight = nn.Parameter(learners.uniform(bound, (inputs, outputs), ensemble))
        self.bias = nn.Parameter(learners.uniform(bound, (1, outputs), ensemble))

    def forward(self, x: Tensor, members: int | None = None) -> Tensor:
        """`members` computes the first ones of an ensemble alone."""
        weight: Tensor = self.weight
        bias: Tensor = self.bias
        if members is not None:
            weight, bias = weight[:members], bias[:members]
        if x.ndim == 2 and weight.ndim == 2:
            return torch.addmm(bias, x, weight)
        if weight.ndim == 3:
            return torch.baddbmm(bias, x.expand(weight.shape[0], -1, -1), weight)
        y: Tensor = x @ weight + bias
        return y


class MLP(nn.Sequential):
    """Linear-ReLU blocks, the last layer linear; dropout after each ReLU where noise is given."""

    def __init__(
        self,
        sizes: Sequence[int],
        learners: Learners,
        ensemble: Sequence[int] = (),
        dropout: float = 0.0,
    ) -> None:
        if min(sizes) < 1:
            raise ConfigError(f"a network's layers have {list(sizes)} units; each needs 1 or more")
        layers: list[nn.Module] = []
        for i, (inputs, outputs) in enumerate(pairwise(sizes)):
            layers.append(Linear(inputs, outputs, learners, ensemble))
            if i + 2 < len(sizes):
                layers.append(nn.ReLU())
        super().__init__(*layers)
        self.sizes, self.dropout = tuple(sizes), dropout

    def noise(self, batch_size: int) -> dict[str, tuple[int, ...]]:
        """Shapes of the normal draws that dropout wants, for one learner."""
        if not self.dropout:
            return {}
        return {f"dropout{i}": (batch_size, n) for i, n in enumerate(self.sizes[1:-1])}

    def forward(self, x: Tensor, noise: Noise | None = None, members: int | None = None) -> Tensor:
        drops = noise is not None and self.dropout > 0
        threshold = float(ndtri(self.dropout)) if drops else 0.0
        hidden = 0
        for layer in self:
            x = layer(x, members) if isinstance(layer, Linear) else layer(x)
            if noise is not None and drops and isinstance(layer, nn.ReLU):
                kept = (noise[f"dropout{hidden}"] > threshold).to(x)
                x = x * kept / (1.0 - self.dropout)
                hidden += 1
        return x


class Critic(nn.Module):
    """An ensemble of Q functions.

    `features` are the activations before the last, linear layer. `trunk` replaces the layers
    that make them: a module that maps (obs, action) to (ensemble, *seed, batch, features) and
    has an attribute `features`, their number.
    """

    def __init__(
        self,
        obs_dim: int,
        act_dim: int,
        hidden: Sequence[int],
        learners: Learners,
        ensemble: int = 2,
        trunk: nn.Module | None = None,
    ) -> None:
        super().__init__()
        if trunk is None:
            trunk = StateActionTrunk(obs_dim, act_dim, hidden, learners, ensemble)
        self.trunk = trunk
        self.head = Linear(int(trunk.features), 1, learners, (ensemble,))  # type: ignore[arg-type]

    def features(
        self, obs: Float[Tensor, "*seed batch obs"], action: Float[Tensor, "*seed batch act"]
    ) -> Float[Tensor, "ensemble *seed batch features"]:
        x: Tensor = self.trunk(obs, action)
        return x

    def forward(
        self, obs: Float[Tensor, "*seed batch obs"], action: Float[Tensor, "*seed batch act"]
    ) -> Float[Tensor, "ensemble *seed batch"]:
        q: Tensor = self.head(self.features(obs, action)).squeeze(-1)
        return q

    def first(
        self, obs: Float[Tensor, "*seed batch obs"], action: Float[Tensor, "*seed batch act"]
    ) -> Float[Tensor, "*seed batch"]:
        """Q of the first member; the default trunk does not compute the others."""
        if isinstance(self.trunk, StateActionTrunk):
            features = self.trunk(obs, action, members=1)
        else:
            features = self.trunk(obs, action)[:1]
        q: Tensor = self.head(features, members=1).squeeze(-1).squeeze(0)
        return q


class StateActionTrunk(nn.Module):
    """ReLU layers on the concatenation of observation and action."""

    def __init__(
        self, obs_dim: int, act_dim: int, hidden: Sequence[int], learners: Learners, ensemble: int
    ) -> None:
        super().__init__()
        self.features = hidden[-1]
        self.net = MLP([obs_dim + act_dim, *hidden], learners, (ensemble,))

    def forward(
        self,
        obs: Float[Tensor, "*seed batch obs"],
        action: Float[Tensor, "*seed batch act"],
        members: int | None = None,
    ) -> Float[Tensor, "ensemble *seed batch features"]:
        x: Tensor = self.net(torch.cat([obs, action], -1), members=members).relu()
        return x


class Value(nn.Module):
    """A state-value function."""

    def __init__(self, obs_dim: int, hidden: Sequence[int], learners: Learners) -> None:
        super().__init__()
        self.net = MLP([obs_dim, *hidden, 1], learners)

    def forward(self, obs: Float[Tensor, "*seed batch obs"]) -> Float[Tensor, "*seed batch"]:
        v: Tensor = self.net(obs).squeeze(-1)
        return v


class DeterministicActor(nn.Module):
    """a = tanh(f(s)); actions live in [-1, 1]."""

    def __init__(
        self,
        obs_dim: int,
        act_dim: int,
        hidden: Sequence[int],
        learners: Learners,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.net = MLP([obs_dim, *hidden, act_dim], learners, dropout=dropout)

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
    ) -> None:
        super().__init__()
        self.net = MLP([obs_dim, *hidden, act_dim], learners, dropout=dropout)
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


def learner_view(module: M, k: int) -> M:
    """Learner k alone: the same module without the seed axis, its weights shared, not copied."""
    single = copy.deepcopy(module).requires_grad_(False)
    for part, whole in zip(single.modules(), module.modules(), strict=True):
        axis = whole.seed_axis if isinstance(whole, Stacked) else None
        for name, parameter in whole.named_parameters(recurse=False):
            mine = parameter.detach() if axis is None else parameter.detach().select(axis, k)
            part.register_parameter(name, nn.Parameter(mine, requires_grad=False))
        for name, buffer in whole.named_buffers(recurse=False):
            setattr(part, name, buffer if axis is None else buffer.select(axis, k))
        if isinstance(part, Stacked):
            part.seed_axis = None
    return single


def seed_axes(module: nn.Module) -> dict[str, int | None]:
    """For each entry of the state dict, the axis along which learners are stacked, if any."""
    axes: dict[str, int | None] = {}
    for prefix, part in module.named_modules():
        axis = part.seed_axis if isinstance(part, Stacked) else None
        for name in [*part._parameters, *part._buffers]:
            axes[f"{prefix}.{name}" if prefix else name] = axis
    return axes
