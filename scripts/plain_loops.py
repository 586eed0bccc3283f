"""The updates that a user would write in plain PyTorch: what the benchmark compares with.

Modules of torch.nn.Linear, one optimiser a network, batches gathered from numpy arrays, `.item()`
for what is logged, targets moved parameter by parameter.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial import KDTree
from torch import Tensor, nn
from torch.distributions import Normal
from torch.nn import functional as F

from offrl.datasets.replay import Replay

Columns = tuple[NDArray[Any], ...]


def net(inputs: int, outputs: int) -> nn.Sequential:
    """Two hidden layers of 256."""
    hidden = [nn.Linear(inputs, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU()]
    return nn.Sequential(*hidden, nn.Linear(256, outputs))


def move(source: nn.Module, target: nn.Module) -> None:
    """The usual loop over parameters."""
    for p, t in zip(source.parameters(), target.parameters(), strict=True):
        t.data.copy_(0.005 * p.data + 0.995 * t.data)


class Plain:
    """Data and networks of one plain loop; `step` makes one update."""

    def __init__(self, replay: Replay) -> None:
        batch = replay.batch(replay.index)
        names = ("obs", "action", "reward", "mask", "next_obs")
        self.columns: Columns = tuple(getattr(batch, n).numpy().copy() for n in names)
        obs, act = self.columns[0].shape[1], self.columns[1].shape[1]
        self.rng = np.random.default_rng(0)
        self.actor, self.actor_target = net(obs, act), net(obs, act)
        self.q = [net(obs + act, 1), net(obs + act, 1)]
        self.q_target = [net(obs + act, 1), net(obs + act, 1)]
        self.value = net(obs, 1)
        self.log_std = nn.Parameter(torch.zeros(act))
        self.actor_opt = torch.optim.Adam([*self.actor.parameters(), self.log_std], 3e-4)
        self.q_opt = torch.optim.Adam([p for q in self.q for p in q.parameters()], 3e-4)
        self.value_opt = torch.optim.Adam(self.value.parameters(), 3e-4)
        self.updates = 0
        self.tree: KDTree | None = None
        self.log: dict[str, float] = {}

    def sample(self) -> list[Tensor]:
        rows = self.rng.integers(len(self.columns[0]), size=256)
        return [torch.from_numpy(c[rows]) for c in self.columns]

    def both(self, nets: list[nn.Sequential], s: Tensor, a: Tensor) -> list[Tensor]:
        x = torch.cat([s, a], 1)
        return [q(x).squeeze(1) for q in nets]

    def bc(self) -> None:
        s, a, *_ = self.sample()
        self._take(self.actor_opt, F.mse_loss(torch.tanh(self.actor(s)), a), "actor")

    def td3(self, goal: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        s, a, r, mask, s2 = self.sample()
        with torch.no_grad():
            noise = (torch.randn_like(a) * 0.2).clamp(-0.5, 0.5)
            a2 = (torch.tanh(self.actor_target(s2)) + noise).clamp(-1, 1)
            y = r + 0.99 * mask * torch.min(*self.both(self.q_target, s2, a2))
        q1, q2 = self.both(self.q, s, a)
        self._take(self.q_opt, F.mse_loss(q1, y) + F.mse_loss(q2, y), "critic")
        self.updates += 1
        if self.updates % 2 == 0:
            pi = torch.tanh(self.actor(s))
            q = self.q[0](torch.cat([s, pi], 1))
            scale = 2.5 / q.abs().mean().detach()
            loss = -scale * q.mean() + F.mse_loss(pi, goal(s, a, pi))
            self._take(self.actor_opt, loss, "actor")
            move(self.actor, self.actor_target)
            for source, target in zip(self.q, self.q_target, strict=True):
                move(source, target)

    def td3_bc(self) -> None:
        self.td3(lambda s, a, pi: a)

    def prdc(self) -> None:
        if self.tree is None:
            self.tree = KDTree(np.concatenate([2.0 * self.columns[0], self.columns[1]], 1))
        self.td3(self._nearest)

    def _nearest(self, s: Tensor, a: Tensor, pi: Tensor) -> Tensor:
        assert self.tree is not None
        _, rows = self.tree.query(torch.cat([2.0 * s, pi], 1).detach().numpy())
        return torch.from_numpy(self.columns[1][rows])

    def iql(self) -> None:
        s, a, r, mask, s2 = self.sample()
        with torch.no_grad():
            q = torch.min(*self.both(self.q_target, s, a))
        u = q - self.value(s).squeeze(1)
        weight = torch.abs(0.7 - (u < 0).float())
        self._take(self.value_opt, (weight * u**2).mean(), "value")
        with torch.no_grad():
            advantage = q - self.value(s).squeeze(1)
            y = r + 0.99 * mask * self.value(s2).squeeze(1)
        policy = Normal(torch.tanh(self.actor(s)), self.log_std.clamp(-5, 2).exp())
        weight = torch.exp(3.0 * advantage).clamp(max=100.0)
        self._take(self.actor_opt, -(weight * policy.log_prob(a).sum(1)).mean(), "actor")
        q1, q2 = self.both(self.q, s, a)
        self._take(self.q_opt, F.mse_loss(q1, y) + F.mse_loss(q2, y), "critic")
        for source, target in zip(self.q, self.q_target, strict=True):
            move(source, target)

    def _take(self, optimizer: torch.optim.Optimizer, loss: Tensor, name: str) -> None:
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        self.log[name] = loss.item()
