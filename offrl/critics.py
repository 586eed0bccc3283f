"""Value functions: of observation and action, and of the observation alone; their regression."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from offrl.errors import ConfigError
from offrl.losses import td_loss
from offrl.networks import MLP, TORCH_INIT, Activation, Init, Learners, Linear, Norm
from offrl.types import Metrics


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
        norm: Norm = "none",
        init: Init = TORCH_INIT,
        activation: Activation = "relu",
    ) -> None:
        super().__init__()
        self.settings: dict[str, Any] = {
            **{"obs_dim": obs_dim, "act_dim": act_dim, "hidden": list(hidden)},
            **{"ensemble": ensemble, "norm": norm, "activation": activation},
        }
        if trunk is None:
            sizes = obs_dim, act_dim, hidden, learners, ensemble
            trunk = StateActionTrunk(*sizes, norm, init, activation)
        self.trunk = trunk
        features = int(trunk.features)  # type: ignore[arg-type]
        self.head = Linear(features, 1, learners, (ensemble,), init.last)

    def features(
        self, obs: Float[Tensor, "*seed batch obs"], action: Float[Tensor, "*seed batch act"]
    ) -> Float[Tensor, "ensemble *seed batch features"]:
        x: Tensor = self.trunk(obs, action)
        return x

    def forward(
        self, obs: Float[Tensor, "*seed batch obs"], action: Float[Tensor, "*seed batch act"]
    ) -> Float[Tensor, "ensemble *seed batch"]:
        return self.read(self.features(obs, action))

    def read(
        self, features: Float[Tensor, "ensemble *seed batch features"]
    ) -> Float[Tensor, "ensemble *seed batch"]:
        """Q of a pair with these features."""
        q: Tensor = self.head(features).squeeze(-1)
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

    def spec(self) -> dict[str, Any]:
        """Settings of the same critic, for a file; of one whose trunk is its own."""
        return dict(self.settings)


class StateActionTrunk(nn.Module):
    """Layers on the concatenation of observation and action, ReLU unless told otherwise.

    Raises ConfigError where there are none.
    """

    def __init__(
        self,
        obs_dim: int,
        act_dim: int,
        hidden: Sequence[int],
        learners: Learners,
        ensemble: int,
        norm: Norm = "none",
        init: Init = TORCH_INIT,
        activation: Activation = "relu",
    ) -> None:
        super().__init__()
        if not hidden:
            raise ConfigError(
                f"a critic's hidden layers are {list(hidden)}; it needs one or more, since its "
                "features are those of the last"
            )
        self.features = hidden[-1]
        sizes = [obs_dim + act_dim, *hidden]
        self.net = MLP(
            *(sizes, learners, (ensemble,)),
            norm=norm,
            init=init,
            activate_last=True,
            activation=activation,
        )

    def forward(
        self,
        obs: Float[Tensor, "*seed batch obs"],
        action: Float[Tensor, "*seed batch act"],
        members: int | None = None,
    ) -> Float[Tensor, "ensemble *seed batch features"]:
        x: Tensor = self.net(torch.cat([obs, action], -1), members=members)
        return x


class Value(nn.Module):
    """A state-value function, or an ensemble of them: the stack is ensemble, then learners.

    `trunk` replaces the layers before the last: a module that maps obs to
    (*ensemble, *seed, batch, features) and has an attribute `features`, their number.
    """

    def __init__(
        self,
        obs_dim: int,
        hidden: Sequence[int],
        learners: Learners,
        ensemble: int | None = None,
        norm: Norm = "none",
        init: Init = TORCH_INIT,
        trunk: nn.Module | None = None,
    ) -> None:
        super().__init__()
        members = () if ensemble is None else (ensemble,)
        if trunk is None:
            self.net: nn.Module = MLP(
                [obs_dim, *hidden, 1], learners, members, norm=norm, init=init
            )
        else:
            features = int(trunk.features)  # type: ignore[arg-type]
            self.net = nn.Sequential(trunk, Linear(features, 1, learners, members, init.last))

    def forward(self, obs: Float[Tensor, "*seed batch obs"]) -> Float[Tensor, "*stack batch"]:
        v: Tensor = self.net(obs).squeeze(-1)
        return v


def td_regression(
    q: Float[Tensor, "ensemble *seed batch"], target: Float[Tensor, "*seed batch"]
) -> tuple[Float[Tensor, "*seed"], Metrics]:
    """sum_i E[ (Q_i - y)^2 ], with mean Q of the first critic and mean target as metrics."""
    return td_loss(q, target).mean(-1), {"q_data": q[0].mean(-1), "target": target.mean(-1)}
