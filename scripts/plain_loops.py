"""The updates that a user would write in plain PyTorch: what the benchmark compares with.

Modules of torch.nn.Linear, one optimiser a network, batches gathered from numpy arrays, `.item()`
for what is logged, targets moved parameter by parameter. Sizes are those of the agents' recipes.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial import KDTree
from torch import Tensor, nn
from torch.distributions import Normal, TanhTransform, TransformedDistribution
from torch.nn import functional as F

from offrl.datasets.replay import Replay

Columns = tuple[NDArray[Any], ...]
CRITICS = 10  # of EDAC


def loop(name: str, replay: Replay) -> Callable[[], None]:
    """One update of the plain loop of this name."""
    kind = Soft if hasattr(Soft, name) else Plain
    update: Callable[[], None] = getattr(kind(replay, name), name)
    return update


def net(inputs: int, outputs: int, depth: int = 2, norm: bool = False) -> nn.Sequential:
    """Hidden layers of 256, with LayerNorm after each ReLU where asked."""
    layers: list[nn.Module] = []
    for _ in range(depth):
        layers += [nn.Linear(inputs, 256), nn.ReLU(), *([nn.LayerNorm(256)] * norm)]
        inputs = 256
    return nn.Sequential(*layers, nn.Linear(256, outputs))


def move(source: nn.Module, target: nn.Module) -> None:
    """The usual loop over parameters."""
    for p, t in zip(source.parameters(), target.parameters(), strict=True):
        t.data.copy_(0.005 * p.data + 0.995 * t.data)


class Loop:
    """The data of a plain loop, and what every one does."""

    q: list[nn.Sequential]
    q_target: list[nn.Sequential]

    def __init__(self, replay: Replay) -> None:
        batch = replay.batch(replay.index)
        names = ("obs", "action", "reward", "mask", "next_obs", "next_action")
        self.columns: Columns = tuple(getattr(batch, n).numpy().copy() for n in names)
        self.obs, self.act = self.columns[0].shape[1], self.columns[1].shape[1]
        self.rng = np.random.default_rng(0)
        self.log: dict[str, float] = {}

    def sample(self) -> list[Tensor]:
        rows = self.rng.integers(len(self.columns[0]), size=256)
        return [torch.from_numpy(c[rows]) for c in self.columns]

    def take(self, optimizer: torch.optim.Optimizer, loss: Tensor, name: str) -> None:
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        self.log[name] = loss.item()

    def move_critics(self) -> None:
        for source, target in zip(self.q, self.q_target, strict=True):
            move(source, target)


class Plain(Loop):
    """Loops whose policy is deterministic, or has one spread for all states."""

    def __init__(self, replay: Replay, name: str) -> None:
        super().__init__(replay)
        obs, act = self.obs, self.act
        depth, norm = 3 if name in ("rebrac", "awac") else 2, name == "rebrac"
        self.actor, self.actor_target = net(obs, act, depth), net(obs, act, depth)
        self.q = [net(obs + act, 1, depth, norm) for _ in range(2)]
        self.q_target = [net(obs + act, 1, depth, norm) for _ in range(2)]
        self.value = net(obs, 1)
        self.log_std = nn.Parameter(torch.zeros(act))
        self.actor_opt = torch.optim.Adam([*self.actor.parameters(), self.log_std], 3e-4)
        self.q_opt = torch.optim.Adam([p for q in self.q for p in q.parameters()], 3e-4)
        self.value_opt = torch.optim.Adam(self.value.parameters(), 3e-4)
        self.updates = 0
        self.tree: KDTree | None = None

    def both(self, nets: list[nn.Sequential], s: Tensor, a: Tensor) -> list[Tensor]:
        x = torch.cat([s, a], 1)
        return [q(x).squeeze(1) for q in nets]

    def bc(self) -> None:
        s, a, *_ = self.sample()
        self.take(self.actor_opt, F.mse_loss(torch.tanh(self.actor(s)), a), "actor")

    def td3(self, goal: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        s, a, r, mask, s2, _ = self.sample()
        a2 = self.smoothed(s2)
        with torch.no_grad():
            y = r + 0.99 * mask * torch.min(*self.both(self.q_target, s2, a2))
        self.regress(s, a, y)
        self.updates += 1
        if self.updates % 2 == 0:
            pi = torch.tanh(self.actor(s))
            q = self.q[0](torch.cat([s, pi], 1))
            scale = 2.5 / q.abs().mean().detach()
            loss = -scale * q.mean() + F.mse_loss(pi, goal(s, a, pi))
            self.take(self.actor_opt, loss, "actor")
            move(self.actor, self.actor_target)
            self.move_critics()

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

    def rebrac(self) -> None:
        s, a, r, mask, s2, logged = self.sample()
        a2 = self.smoothed(s2)
        with torch.no_grad():
            penalty = 0.01 * ((a2 - logged) ** 2).sum(1)
            y = r + 0.99 * mask * (torch.min(*self.both(self.q_target, s2, a2)) - penalty)
        self.regress(s, a, y)
        self.updates += 1
        if self.updates % 2 == 0:
            pi = torch.tanh(self.actor(s))
            q = torch.min(*self.both(self.q, s, pi))
            distance = ((pi - a) ** 2).sum(1)
            loss = (0.01 * distance - q / q.abs().mean().detach()).mean()
            self.take(self.actor_opt, loss, "actor")
            move(self.actor, self.actor_target)
            self.move_critics()

    def iql(self) -> None:
        s, a, r, mask, s2, _ = self.sample()
        with torch.no_grad():
            q = torch.min(*self.both(self.q_target, s, a))
        u = q - self.value(s).squeeze(1)
        weight = torch.abs(0.7 - (u < 0).float())
        self.take(self.value_opt, (weight * u**2).mean(), "value")
        with torch.no_grad():
            advantage = q - self.value(s).squeeze(1)
            y = r + 0.99 * mask * self.value(s2).squeeze(1)
        self.clone(torch.tanh(self.actor(s)), a, advantage)
        self.regress(s, a, y)
        self.move_critics()

    def awac(self) -> None:
        s, a, r, mask, s2, _ = self.sample()
        with torch.no_grad():
            y = r + 0.99 * mask * torch.min(*self.both(self.q_target, s2, self.drawn(s2)))
        self.regress(s, a, y)
        with torch.no_grad():
            value = torch.min(*self.both(self.q, s, self.drawn(s)))
            advantage = torch.min(*self.both(self.q, s, a)) - value
        self.clone(self.actor(s), a, advantage)
        self.move_critics()

    @torch.no_grad()
    def smoothed(self, s: Tensor) -> Tensor:
        a = torch.tanh(self.actor_target(s))
        return (a + (torch.randn_like(a) * 0.2).clamp(-0.5, 0.5)).clamp(-1, 1)

    @torch.no_grad()
    def drawn(self, s: Tensor) -> Tensor:
        mean = self.actor(s)
        action: Tensor = mean + self.log_std.clamp(-5, 2).exp() * torch.randn_like(mean)
        return action.clamp(-1, 1)

    def regress(self, s: Tensor, a: Tensor, y: Tensor) -> None:
        q1, q2 = self.both(self.q, s, a)
        self.take(self.q_opt, F.mse_loss(q1, y) + F.mse_loss(q2, y), "critic")

    def clone(self, mean: Tensor, a: Tensor, advantage: Tensor) -> None:
        policy: Any = Normal(mean, self.log_std.clamp(-5, 2).exp())
        weight = torch.exp(3.0 * advantage).clamp(max=100.0)
        self.take(self.actor_opt, -(weight * policy.log_prob(a).sum(1)).mean(), "actor")


class Many(nn.Module):
    """A linear layer of each of ten critics, in one product, as public code has it too."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        bound = inputs**-0.5
        self.weight = nn.Parameter(torch.empty(CRITICS, inputs, outputs).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(CRITICS, 1, outputs).uniform_(-bound, bound))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight + self.bias


def many(inputs: int) -> nn.Sequential:
    """Ten critics in one module."""
    layers: list[nn.Module] = []
    for _ in range(3):
        layers += [Many(inputs, 256), nn.ReLU()]
        inputs = 256
    return nn.Sequential(*layers, Many(256, 1))


class Soft(Loop):
    """Loops of soft actor-critic: with two critics, or for EDAC with ten in one module."""

    def __init__(self, replay: Replay, name: str) -> None:
        super().__init__(replay)
        both = self.obs + self.act
        self.actor = net(self.obs, 2 * self.act, 3)
        made = [[many(both)] if name == "edac" else [net(both, 1, 3) for _ in "12"] for _ in "ab"]
        self.q, self.q_target = made
        self.log_alpha = nn.Parameter(torch.zeros(()))
        self.actor_opt = torch.optim.Adam(self.actor.parameters(), 3e-4)
        self.alpha_opt = torch.optim.Adam([self.log_alpha], 3e-4)
        self.q_opt = torch.optim.Adam([p for q in self.q for p in q.parameters()], 3e-4)

    def policy(self, s: Tensor, samples: int | None = None) -> tuple[Tensor, Tensor]:
        if samples is not None:
            s = s.unsqueeze(1).repeat(1, samples, 1)
        mean, log_std = self.actor(s).chunk(2, -1)
        normal = Normal(mean, log_std.clamp(-5, 2).exp())
        squashed: Any = TransformedDistribution(normal, TanhTransform(cache_size=1))
        action = squashed.rsample()
        return action, squashed.log_prob(action).sum(-1)

    def values(self, nets: list[nn.Sequential], s: Tensor, a: Tensor) -> Tensor:
        """Of shape (critics, batch)."""
        x = torch.cat([s, a], -1)
        return torch.cat([q(x).squeeze(-1).reshape(-1, len(x)) for q in nets])

    def act_better(self, s: Tensor) -> None:
        action, log_prob = self.policy(s)
        q = self.values(self.q, s, action).min(0).values
        loss = (self.log_alpha.exp().detach() * log_prob - q).mean()
        self.take(self.actor_opt, loss, "actor")
        violation = (log_prob - self.act).detach()
        self.take(self.alpha_opt, -(self.log_alpha * violation).mean(), "alpha")

    def edac(self) -> None:
        s, a, r, mask, s2, _ = self.sample()
        self.act_better(s)
        with torch.no_grad():
            a2, log_prob = self.policy(s2)
            value = self.values(self.q_target, s2, a2).min(0).values
            y = r + 0.99 * mask * (value - self.log_alpha.exp() * log_prob)
        loss = ((self.values(self.q, s, a) - y) ** 2).mean(1).sum()
        states = s.unsqueeze(0).repeat_interleave(CRITICS, 0)
        actions = a.unsqueeze(0).repeat_interleave(CRITICS, 0).requires_grad_()
        q = self.q[0](torch.cat([states, actions], -1)).sum()
        (slope,) = torch.autograd.grad(q, actions, create_graph=True)
        slope = (slope / (slope.norm(dim=2, keepdim=True) + 1e-10)).transpose(0, 1)
        alike = slope @ slope.transpose(1, 2) * (1 - torch.eye(CRITICS))
        loss = loss + alike.sum((1, 2)).mean() / (CRITICS - 1)
        self.take(self.q_opt, loss, "critic")
        self.move_critics()

    def cql(self) -> None:
        s, a, r, mask, s2, _ = self.sample()
        self.act_better(s)
        with torch.no_grad():
            a2, _ = self.policy(s2)
            y = r + 0.99 * mask * self.values(self.q_target, s2, a2).min(0).values
            uniform = torch.empty(len(s), 10, self.act).uniform_(-1, 1)
            proposed = [(uniform, torch.full((), self.act * math.log(0.5)))]
            proposed += [self.policy(s, 10), self.policy(s2, 10)]
        repeated = s.unsqueeze(1).repeat(1, 10, 1).reshape(-1, self.obs)
        loss = torch.zeros(())
        for critic in self.q:
            q = self.values([critic], s, a)[0]
            terms = []
            for action, log_density in proposed:
                value = self.values([critic], repeated, action.reshape(-1, self.act))
                terms.append(value.reshape(-1, 10) - log_density)
            gap = torch.logsumexp(torch.cat(terms, 1), 1) - q
            loss = loss + F.mse_loss(q, y) + 10.0 * gap.mean()
        self.take(self.q_opt, loss, "critic")
        self.move_critics()
