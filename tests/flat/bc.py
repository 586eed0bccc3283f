"""Behaviour cloning written out from its equation; torch is all that it imports."""

import torch
from torch import Tensor

Layers = list[Tensor]  # W0, b0, W1, b1, ...


def mlp(x: Tensor, layers: Layers) -> Tensor:
    for i in range(0, len(layers), 2):
        x = x @ layers[i] + layers[i + 1]
        if i + 2 < len(layers):
            x = torch.where(x > 0, x, 0.0)
    return x


def train(
    nets: dict[str, Layers], batches: list[dict[str, Tensor]], *, lr: float
) -> tuple[dict[str, Layers], list[dict[str, Tensor]]]:
    actor = [p.clone().requires_grad_() for p in nets["actor"]]
    optimizer = torch.optim.Adam(actor, lr)
    history = []
    for b in batches:
        error = torch.tanh(mlp(b["obs"], actor)) - b["action"]
        loss = torch.mean(error**2)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        history.append({"actor_loss": loss.detach()})
    return {"actor": actor}, history
