"""IDQL and its flow form written out; torch and what others have are all that it imports."""

import math

import torch
from flat.diffusion_policy import mish, uniform
from flat.diffusion_ql import rates
from flat.iql import mlp, value
from torch import Tensor

Layers = list[Tensor]  # W0, b0, W1, b1, ...
Nets = dict[str, Layers]
FEATURES = 64


def predicted(
    x: Tensor, level: Tensor, obs: Tensor, net: Layers, flows: bool, masks: list[Tensor]
) -> Tensor:
    """The residual network; `masks` multiply what enters the blocks, if there are any."""
    if flows:
        half = FEATURES // 2
        rate = torch.exp(-math.log(10_000.0) / (half - 1) * torch.arange(half).double())
        angle = 1000.0 * level[:, None] * rate
        e, rest = torch.cat([torch.sin(angle), torch.cos(angle)], 1), net
    else:
        angle = 2.0 * math.pi * level[:, None] * net[0]
        e, rest = torch.cat([torch.cos(angle), torch.sin(angle)], 1), net[1:]
    e = mish(e @ rest[0] + rest[1]) @ rest[2] + rest[3]
    h = torch.cat([x, e, obs], 1) @ rest[4] + rest[5]
    for i in range(6, len(rest) - 2, 6):
        scale, shift, w1, b1, w2, b2 = rest[i : i + 6]
        g = h * masks[i // 6 - 1] if masks else h
        g = g - g.mean(1, keepdim=True)
        g = scale * g / torch.sqrt(torch.mean(g**2, 1, keepdim=True) + 1e-5) + shift
        h = h + mish(g @ w1 + b1) @ w2 + b2
    return mish(h) @ rest[-2] + rest[-1]


def matching(
    b: dict[str, Tensor], net: Layers, process: str, levels: int, dropout: float
) -> Tensor:
    """The squared error of each sample, averaged over the components of its action."""
    flows, u, eps = process == "flow", uniform(b["level"]), b["noise"]
    masks: list[Tensor] = []
    if dropout > 0:
        # A standard normal number lies above this with probability 1 - dropout.
        threshold = math.sqrt(2.0) * torch.erfinv(torch.tensor(2.0 * dropout - 1.0).double())
        count = sum(key.startswith("dropout") for key in b)
        masks = [(b[f"dropout{i}"] > threshold).double() / (1.0 - dropout) for i in range(count)]
    if flows:
        level, alpha, sigma = u, u[:, None], 1.0 - u[:, None]
        target = b["action"] - eps
    else:
        level = torch.floor(u * levels)
        bars = torch.cumprod(1.0 - torch.tensor(rates(levels), dtype=torch.float64), 0)[
            level.long()
        ][:, None]
        alpha, sigma, target = torch.sqrt(bars), torch.sqrt(1.0 - bars), eps
    noisy = alpha * b["action"] + sigma * eps
    return ((predicted(noisy, level, b["obs"], net, flows, masks) - target) ** 2).mean(1)


def falling(lr: float, t: int, total: int) -> float:
    """Along a cosine, as the optimiser holds it, in float32."""
    return float(torch.tensor(lr * (1.0 + math.cos(math.pi * t / total)) / 2.0))


class Values:
    """IQL's critics and V with their optimisers."""

    def __init__(self, nets: Nets, expectile: float, gamma: float, lr: float) -> None:
        self.q1, self.q2, self.v = (
            [p.clone().requires_grad_() for p in nets[n]] for n in ("q1", "q2", "value")
        )
        self.bars = [[p.detach().clone() for p in q] for q in (self.q1, self.q2)]
        self.expectile, self.gamma = expectile, gamma
        self.critic_optimizer = torch.optim.Adam(self.q1 + self.q2, lr)
        self.value_optimizer = torch.optim.Adam(self.v, lr)

    def logged(self, b: dict[str, Tensor]) -> Tensor:
        x = torch.cat([b["obs"], b["action"]], 1)
        return torch.minimum(*(mlp(x, bar)[:, 0] for bar in self.bars))

    def step_value(self, b: dict[str, Tensor], q: Tensor) -> dict[str, Tensor]:
        v = value(b["obs"], self.v)
        u = q - v
        loss = torch.mean(torch.where(u < 0, 1.0 - self.expectile, self.expectile) * u**2)
        self.value_optimizer.zero_grad()
        torch.autograd.backward(loss)
        self.value_optimizer.step()
        return {"value_loss": loss.detach(), "value": v.detach().mean()}

    def step_critic(self, b: dict[str, Tensor], reward: Tensor) -> dict[str, Tensor]:
        y = reward + self.gamma * b["mask"] * value(b["next_obs"], self.v).detach()
        x = torch.cat([b["obs"], b["action"]], 1)
        first, second = mlp(x, self.q1)[:, 0], mlp(x, self.q2)[:, 0]
        loss = torch.mean((first - y) ** 2) + torch.mean((second - y) ** 2)
        self.critic_optimizer.zero_grad()
        torch.autograd.backward(loss)
        self.critic_optimizer.step()
        found = {"critic_loss": loss.detach(), "q_data": first.detach().mean()}
        return {**found, "target": y.mean()}

    def follow(self, polyak: float) -> None:
        for q, bar in zip((self.q1, self.q2), self.bars, strict=True):
            for p, p_bar in zip(q, bar, strict=True):
                p_bar.copy_(polyak * p.detach() + (1.0 - polyak) * p_bar)

    def nets(self) -> Nets:
        named = {"q1": self.q1, "q2": self.q2, "value": self.v}
        return {**named, "q1_target": self.bars[0], "q2_target": self.bars[1]}


def train(
    nets: Nets,
    batches: list[dict[str, Tensor]],
    scale: float,
    total: int,
    *,
    process: str,
    levels: int,
    dropout: float,
    ema: float,
    actor_schedule: str,
    expectile: float,
    gamma: float,
    lr: float,
    polyak: float,
) -> tuple[Nets, list[dict[str, Tensor]]]:
    net = [p.clone().requires_grad_() for p in nets["net"]]
    average = [p.detach().clone() for p in net]
    optimizer = torch.optim.Adam(net, lr)
    values, history = Values(nets, expectile, gamma, lr), []
    for t, b in enumerate(batches):
        if actor_schedule == "cosine":
            optimizer.param_groups[0]["lr"] = falling(lr, t, total)
        q = values.logged(b)
        loss = torch.mean(matching(b, net, process, levels, dropout))
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        found = {"policy_loss": loss.detach(), **values.step_value(b, q)}
        found |= values.step_critic(b, scale * b["raw_reward"])
        for x, p in zip(average, net, strict=True):
            x.copy_(ema * x + (1.0 - ema) * p.detach())
        values.follow(polyak)
        history.append(found)
    return {"net": net, "average": average, **values.nets()}, history
