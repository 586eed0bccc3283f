"""EBT-Policy with a ResNet written out; torch is all that it imports."""

import torch
from flat.diffusion_policy import follow, rate_at, uniform
from torch import Tensor

Layers = list[Tensor]  # W0, b0, W1, b1, ..., the last two without a bias, and the rate's share


def silu(x: Tensor) -> Tensor:
    return x / (1.0 + torch.exp(-x))


def energy(obs: Tensor, actions: Tensor, net: Layers) -> Tensor:
    """(n,) of n observations and n chunks of actions, each flat."""
    weights, biases = [*net[:-3:2], *net[-3:-1]], net[1:-3:2]
    h = torch.cat([obs, actions], 1) @ weights[0] + biases[0]
    for i in range(1, len(weights) - 1, 2):
        inner = silu(h) @ weights[i] + biases[i]
        added = silu(inner) @ weights[i + 1]
        h = h + (added + biases[i + 1] if i + 1 < len(biases) else added)
    return (h @ weights[-1])[:, 0]


def smooth_l1(error: Tensor) -> Tensor:
    size = torch.abs(error)
    return torch.where(size < 1, 0.5 * error**2, size - 0.5)


def train(
    nets: dict[str, Layers],
    batches: list[dict[str, Tensor]],
    total: int,
    *,
    lr: float,
    warmup: int,
    weight_decay: float,
    beta1: float,
    beta2: float,
    ema_power: float,
    ema_max: float,
    grad_norm: float,
    stage: str,
    descent_steps: int,
    rate: float,
    rate_spread: float,
    langevin: float,
    limit: float,
    noised: float,
) -> tuple[dict[str, Layers], list[dict[str, Tensor]]]:
    # The agent's come by module: those of the network, then of the rate.
    net = [p.clone().requires_grad_() for p in nets["net"]]
    average = [p.detach().clone() for p in net]
    # Weights of layers with a bias shrink, and nothing else.
    groups = [
        {"params": net[:-3:2], "weight_decay": weight_decay},
        {"params": [*net[1:-3:2], *net[-3:]], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr, (beta1, beta2))
    history = []
    for t, b in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = rate_at(t, total, lr, warmup)
        obs, goal = b["obs"].flatten(1), b["action"].flatten(1)
        r = torch.clip(3.0 * rate * net[-1].flatten(), min=1e-4)
        if rate_spread > 1:
            r = r / rate_spread + uniform(b["rate"]) * (rate_spread - 1 / rate_spread) * r
        x = b["start"].flatten(1)
        if noised > 0:
            level = torch.clip(uniform(b["level"]) / noised, max=1)[:, None]
            x = goal + level * (x - goal)
        losses, energies = [], []
        for i in range(descent_steps):
            if langevin > 0:
                x = x + langevin * b["shakes"][i].flatten(1)
            x = x.detach() if stage == "s1" else x
            x = x if x.requires_grad else x.requires_grad_()
            e = energy(obs, x, net)
            (gradient,) = torch.autograd.grad(e.sum(), x, create_graph=True)
            change = r[:, None] * gradient
            x = x - (torch.clip(change, -limit, limit) if limit > 0 else change)
            losses.append(smooth_l1(x - goal).mean())
            energies.append(e.detach().mean())
        energies.append(energy(obs, x, net).detach().mean())
        loss = sum(losses) / len(losses) if stage == "s1" else losses[-1]
        # The last is the rate's share, r = 3 rate share, whose gradient is to be that of r.
        *first, last = torch.autograd.grad(loss, net)
        gradients = [*first, last / (3.0 * rate)]
        norm = torch.sqrt(sum((g**2).sum() for g in gradients))
        for p, g in zip(net, gradients, strict=True):
            p.grad = g * torch.clip(grad_norm / (norm + 1e-6), max=1)
        optimizer.step()
        follow(average, net, t, ema_power, ema_max)
        history.append(
            {
                "loss": loss.detach(),
                "last_loss": losses[-1].detach(),
                "fall": energies[0] - energies[-1],
            }
        )
    return {"net": net, "average": average}, history
