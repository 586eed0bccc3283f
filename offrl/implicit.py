"""What the methods built on IQL have in common: values of the data's own actions.

    q   = min_i Q_i'(s, a)
    L_V = E[ |tau - 1(u < 0)| u^2 ],  u = q - V(s)
    y   = r + gamma (1 - terminated) V(s')

No action but a logged one is ever asked about. These are functions of an agent that has IQL's
networks; the agent says in which order they are used, and regresses its critics to y.
Source: IQL (Kostrikov, Nair and Levine, ICLR 2022, arXiv:2110.06169, eqs. 5 and 6).
"""

from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from offrl.critics import Critic, Value
from offrl.losses import expectile_loss, td_target
from offrl.types import Batch, Metrics


@runtime_checkable
class Implicit(Protocol):
    """An agent with critics, their targets and V; its settings have `expectile` and `gamma`."""

    @property
    def config(self) -> Any: ...
    @property
    def critic(self) -> Critic: ...
    @property
    def critic_target(self) -> Critic: ...
    @property
    def value(self) -> Value: ...


def logged_value(agent: Implicit, batch: Batch) -> Float[Tensor, "*seed batch"]:
    """q of each logged action."""
    q: Tensor = agent.critic_target(batch.obs, batch.action).amin(0)
    return q


def value_regression(
    agent: Implicit, batch: Batch, q: Float[Tensor, "*seed batch"]
) -> tuple[Tensor, Metrics]:
    """L_V, with mean V as a metric."""
    value = agent.value(batch.obs)
    loss = expectile_loss(q - value, agent.config.expectile).mean(-1)
    return loss, {"value": value.mean(-1)}


def implicit_target(agent: Implicit, batch: Batch) -> Float[Tensor, "*seed batch"]:
    """y, a constant."""
    with torch.no_grad():
        next_value = agent.value(batch.next_obs)
        return td_target(batch.reward, batch.mask, next_value, agent.config.gamma)
