"""BESO with a plain MLP written out; torch is all that it imports."""

import torch
from flat.diffusion_policy import Layers, denoise, kept, optimizer_of, uniform
from torch import Tensor


def sigmas(level: Tensor, low: float, high: float, middle: float) -> Tensor:
    """A logistic number of ln(sigma) at ln(middle) with scale 1/2, cut at both ends."""
    ends = [1.0 / (1.0 + (x / middle) ** -2.0) for x in (low, high)]
    u = ends[0] + (ends[1] - ends[0]) * uniform(level)
    sigma: Tensor = middle * torch.sqrt(u / (1.0 - u))
    return sigma.clamp(low, high)


def preconditioned(
    a: Tensor, eps: Tensor, sigma: Tensor, spread: float
) -> tuple[Tensor, Tensor, Tensor]:
    """What the network sees, its level, and what it is asked for."""
    s = sigma[:, None, None]
    total = s**2 + spread**2
    x = a + s * eps
    wanted = (a - spread**2 / total * x) * torch.sqrt(total) / (s * spread)
    return x / torch.sqrt(total), torch.log(sigma) / 4.0, wanted


def follow(average: Layers, net: Layers, t: int, most: float) -> None:
    decay = min(most, (2.0 + t) / (11.0 + t))
    for a, p in zip(average, net, strict=True):
        a.copy_(decay * a + (1.0 - decay) * p.detach())


def train(
    nets: dict[str, Layers],
    batches: list[dict[str, Tensor]],
    *,
    process: str,
    levels: int,
    sigma_data: float,
    sigma_min: float,
    sigma_max: float,
    lr: float,
    lr_decay: float,
    weight_decay: float,
    ema: float,
) -> tuple[dict[str, Layers], list[dict[str, Tensor]]]:
    net = [p.clone().requires_grad_() for p in nets["net"]]
    average = [p.detach().clone() for p in net]
    optimizer = optimizer_of(net, lr, weight_decay, (0.9, 0.999))
    bars = kept(levels)
    history = []
    for t, b in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = float(torch.tensor(lr * lr_decay ** (t / 100)))
        a, eps, real = b["action"], b["noise"], b["real"]
        if process == "ddpm":
            k = torch.floor(uniform(b["level"]) * levels)
            bar = bars[k.long()][:, None, None]
            x, level, wanted = torch.sqrt(bar) * a + torch.sqrt(1.0 - bar) * eps, k, eps
        else:
            sigma = sigmas(b["level"], sigma_min, sigma_max, sigma_data)
            x, level, wanted = preconditioned(a, eps, sigma, sigma_data)
            level = 1000.0 * level
        there = real[:, :, None]
        goal, given = b["goal"].flatten(1), b["goal_real"][:, None]
        known = torch.cat([given * goal, given, (there * b["obs"]).flatten(1), real], 1)
        error = (denoise(there * x, level, known[:, None], net) - wanted) ** 2
        shares = (there * error).sum((1, 2)) / (real.sum(1) * error.shape[2])
        loss = torch.mean(shares)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        follow(average, net, t, ema)
        history.append({"loss": loss.detach()})
    return {"net": net, "average": average}, history
