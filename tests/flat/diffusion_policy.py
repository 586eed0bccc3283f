"""Diffusion Policy with a plain MLP written out; torch is all that it imports."""

import math

import torch
from torch import Tensor

Layers = list[Tensor]  # of the level's two layers, then of all others: W0, b0, W1, b1, ...
EMBEDDED = 16  # features of the level


def mish(x: Tensor) -> Tensor:
    return x * torch.tanh(torch.log1p(torch.exp(x)))


def denoise(x: Tensor, level: Tensor, obs: Tensor, net: Layers) -> Tensor:
    """(batch, horizon, act) of the same, a number each, and (batch, history, obs)."""
    half = EMBEDDED // 2
    rate = torch.exp(-math.log(10_000.0) / (half - 1) * torch.arange(half).double())
    angle = level[:, None] * rate
    e = torch.cat([torch.sin(angle), torch.cos(angle)], 1)
    e = mish(e @ net[0] + net[1]) @ net[2] + net[3]
    h = torch.cat([x.flatten(1), e, obs.flatten(1)], 1)
    for i in range(4, len(net) - 2, 2):
        h = mish(h @ net[i] + net[i + 1])
    return (h @ net[-2] + net[-1]).reshape(x.shape)


def kept(levels: int) -> Tensor:
    """abar_0 to abar_{T-1} of the cosine schedule."""
    bars, bar = [], 1.0
    for i in range(levels):
        now, then = (math.cos((u / levels + 0.008) / 1.008 * math.pi / 2) ** 2 for u in (i, i + 1))
        bar *= 1.0 - min(1.0 - then / now, 0.999)
        bars.append(bar)
    return torch.tensor(bars, dtype=torch.float64)


def uniform(normal: Tensor) -> Tensor:
    return 0.5 * (1.0 + torch.erf(normal / math.sqrt(2.0)))


def rate_at(t: int, total: int, lr: float, warmup: float) -> float:
    """As the optimiser holds it, in float32."""
    share = (t + 1) / warmup
    if t >= warmup:
        share = (1.0 + math.cos(math.pi * (t - warmup) / (total - warmup))) / 2.0
    return float(torch.tensor(lr * share))


def optimizer_of(
    net: Layers, lr: float, decay: float, betas: tuple[float, float]
) -> torch.optim.AdamW:
    """Weights shrink, biases do not."""
    groups = [
        {"params": net[::2], "weight_decay": decay},
        {"params": net[1::2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr, betas)


def follow(average: Layers, net: Layers, t: int, power: float, most: float) -> None:
    decay = 0.0 if t <= 1 else min(max(1.0 - t**-power, 0.0), most)
    for a, p in zip(average, net, strict=True):
        a.copy_(decay * a + (1.0 - decay) * p.detach())


def mean_of(error: Tensor, real: Tensor | None) -> Tensor:
    """Of all elements, or of each chunk's real ones and then of chunks."""
    if real is None:
        return torch.mean(error)
    there = real[:, :, None].expand(error.shape)
    return torch.mean((there * error).sum((1, 2)) / there.sum((1, 2)))


class Run:
    """A network, the average of it, and the steps taken so far; settings as in a ChunkConfig."""

    def __init__(
        self,
        nets: dict[str, Layers],
        total: int,
        *,
        lr: float,
        warmup: float,
        weight_decay: float,
        beta1: float,
        beta2: float,
        ema_power: float,
        ema_max: float,
    ) -> None:
        self.net = [p.clone().requires_grad_() for p in nets["net"]]
        self.average = [p.detach().clone() for p in self.net]
        self.optimizer = optimizer_of(self.net, lr, weight_decay, (beta1, beta2))
        self.total, self.lr, self.warmup = total, lr, warmup
        self.ema_power, self.ema_max = ema_power, ema_max
        self.history: list[dict[str, Tensor]] = []

    def step(self, loss: Tensor) -> None:
        t = len(self.history)
        for group in self.optimizer.param_groups:
            group["lr"] = rate_at(t, self.total, self.lr, self.warmup)
        self.optimizer.zero_grad()
        torch.autograd.backward(loss)
        self.optimizer.step()
        follow(self.average, self.net, t, self.ema_power, self.ema_max)
        self.history.append({"loss": loss.detach()})

    def result(self) -> tuple[dict[str, Layers], list[dict[str, Tensor]]]:
        return {"net": self.net, "average": self.average}, self.history


def train(
    nets: dict[str, Layers],
    batches: list[dict[str, Tensor]],
    total: int,
    *,
    levels: int,
    prediction: str,
    mask_padding: bool,
    **optimised: float,
) -> tuple[dict[str, Layers], list[dict[str, Tensor]]]:
    run, bars = Run(nets, total, **optimised), kept(levels)
    for b in batches:
        k = torch.floor(uniform(b["level"]) * levels)
        bar = bars[k.long()][:, None, None]
        alpha, sigma = torch.sqrt(bar), torch.sqrt(1.0 - bar)
        a, eps = b["action"], b["noise"]
        target = {"epsilon": eps, "x0": a, "v": alpha * eps - sigma * a}[prediction]
        error = (denoise(alpha * a + sigma * eps, k, b["obs"], run.net) - target) ** 2
        run.step(mean_of(error, b["real"] if mask_padding else None))
    return run.result()
