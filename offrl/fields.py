"""The network of flow Q-learning: plain layers on an action, its noise level and the observation.

    y = MLP([o, x, l])        a velocity, with the level l as the number that it is
    y = MLP([o, x])           a student of it, which makes an action of noise x in one pass

with `offrl.networks.MLP`'s layers. Source: FQL (Park, Li and Levine, arXiv:2502.02538), whose
layers are of 512 GELU units; they begin as torch.nn.Linear here and by Xavier's bound there.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from offrl.networks import MLP, Activation, Learners


class Field(nn.Module):
    """A backbone (offrl.backbones), for one learner or a stack; without `timed` no level enters."""

    def __init__(
        self,
        horizon: int,
        act_dim: int,
        cond_dim: int,
        learners: Learners,
        *,
        hidden: Sequence[int] = (512, 512, 512, 512),
        activation: Activation = "gelu",
        timed: bool = True,
    ) -> None:
        super().__init__()
        self.settings: dict[str, Any] = {
            **{"horizon": horizon, "act_dim": act_dim, "cond_dim": cond_dim},
            **{"hidden": list(hidden), "activation": activation, "timed": timed},
        }
        self.timed = timed
        sizes = [cond_dim + horizon * act_dim + timed, *hidden, horizon * act_dim]
        self.net = MLP(sizes, learners, activation=activation)

    def forward(
        self,
        x: Float[Tensor, "*seed batch horizon act"],
        level: Float[Tensor, "*seed batch"] | None,
        condition: Float[Tensor, "*seed batch cond"] | Float[Tensor, "*seed batch tokens token"],
    ) -> Float[Tensor, "*seed batch horizon act"]:
        parts = [condition.flatten(x.ndim - 2), x.flatten(-2)]
        if self.timed and level is not None:
            parts.append(level.unsqueeze(-1))
        y: Tensor = self.net(torch.cat(parts, -1))
        return y.reshape(x.shape)

    def spec(self) -> dict[str, Any]:
        return {"type": type(self).__name__, **self.settings}
