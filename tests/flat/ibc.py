"""Implicit BC written out; torch is all that it imports."""

import math

import torch
from torch import Tensor

Layers = list[Tensor]  # W0, b0, W1, b1, ..., the last two without a bias


def energy(obs: Tensor, actions: Tensor, net: Layers) -> Tensor:
    """(n,) of n observations and n chunks of actions, each flat."""
    weights, biases = [*net[:-2:2], *net[-2:]], net[1:-2:2]
    h = torch.cat([obs, actions], 1) @ weights[0] + biases[0]
    for i in range(1, len(weights) - 1, 2):
        inner = torch.clip(h, min=0) @ weights[i] + biases[i]
        added = torch.clip(inner, min=0) @ weights[i + 1]
        h = h + (added + biases[i + 1] if i + 1 < len(biases) else added)
    return (h @ weights[-1])[:, 0]


def excess(obs: Tensor, actions: Tensor, net: Layers, steep: float) -> Tensor:
    at = actions.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(energy(obs, at, net).sum(), at, create_graph=True)
    largest = torch.linalg.vector_norm(gradient, math.inf, 1)
    return torch.clip(largest - steep, min=0) ** 2


def refined(
    obs: Tensor,
    actions: Tensor,
    net: Layers,
    normals: Tensor,
    rate: float,
    last_rate: float,
    shake: float,
    limit: float,
    bound: float,
) -> Tensor:
    steps = len(normals)
    for i in range(steps):
        eta = (rate - last_rate) * (1 - i / (steps - 1)) ** 2 + last_rate
        at = actions.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(energy(obs, at, net).sum(), at)
        moved = eta * (0.5 * gradient + shake * normals[i])
        moved = torch.clip(moved, -limit * bound, limit * bound)
        actions = torch.clip(actions - moved, -bound, bound)
    return actions


def train(
    nets: dict[str, Layers],
    batches: list[dict[str, Tensor]],
    *,
    history: int,
    lr: float,
    lr_decay: float,
    negatives: int,
    temperature: float,
    penalty: float,
    steep: float,
    margin: float,
    method: str,
    rate: float,
    last_rate: float,
    shake: float,
    limit: float,
) -> tuple[dict[str, Layers], list[dict[str, Tensor]]]:
    net = [p.clone().requires_grad_() for p in nets["net"]]
    optimizer = torch.optim.Adam(net, lr)
    bound = 1.0 + 2.0 * margin
    rows = []
    for t, b in enumerate(batches):
        # As the optimiser holds it, in float32.
        optimizer.param_groups[0]["lr"] = float(torch.tensor(lr * lr_decay ** (t / 100)))
        obs, logged = b["obs"].flatten(1), b["action"][:, history - 1 :].flatten(1)
        seen = torch.repeat_interleave(obs, negatives, 0)
        uniform = 0.5 * (1.0 + torch.erf(b["others"].flatten(1) / math.sqrt(2.0)))
        others = bound * (2.0 * uniform - 1.0)
        if method == "langevin":
            walk = b["walk"].flatten(2)
            others = refined(seen, others, net, walk, rate, last_rate, shake, limit, bound)
        right = energy(obs, logged, net)
        wrong = energy(seen, others, net).reshape(-1, negatives)
        weights = torch.exp(-torch.cat([right[:, None], wrong], 1) / temperature)
        loss = -torch.log(weights[:, 0] / weights.sum(1))
        if penalty > 0:
            beyond = excess(seen, others, net, steep).reshape(-1, negatives).sum(1)
            beyond = beyond + excess(obs, logged, net, steep)
            loss = loss + penalty * beyond / (negatives + 1)
        optimizer.zero_grad()
        torch.autograd.backward(loss.mean())
        optimizer.step()
        rows.append(
            {
                "loss": loss.detach().mean(),
                "margin": (wrong.detach().mean(1) - right.detach()).mean(),
            }
        )
    return {"net": net}, rows
