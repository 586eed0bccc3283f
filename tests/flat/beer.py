"""BEER's penalty written out from its code form; torch is all that it imports."""

import torch
from torch import Tensor

Layers = list[Tensor]  # W0, b0, W1, b1, ...


def features(obs: Tensor, action: Tensor, layers: Layers) -> Tensor:
    x = torch.cat([obs, action], 1)
    for i in range(0, len(layers) - 2, 2):
        x = x @ layers[i] + layers[i + 1]
        x = torch.where(x > 0, x, 0.0)
    return x


def length(x: Tensor) -> Tensor:
    """|x|, at least 1e-6, where the gradient ends."""
    return torch.sqrt(torch.clip(torch.sum(x**2, 1), min=1e-12))


def penalty(
    batch: dict[str, Tensor],
    reward: Tensor,
    next_action: Tensor,
    target_action: Tensor,
    critics: list[Layers],
    critics_bar: list[Layers],
    gamma: float,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Summed over the critics and averaged over the batch; the first critic's cosine and bound."""
    total = torch.zeros((), dtype=torch.float64)
    measured: dict[str, Tensor] = {}
    s, a, s2 = batch["obs"], batch["action"], batch["next_obs"]
    for critic, bar in zip(critics, critics_bar, strict=True):
        phi = features(s, a, critic)
        goal = features(s2, target_action, bar).detach()
        here, there = length(phi), length(goal)
        online = torch.norm(features(s2, next_action, critic), dim=1)
        head = torch.sum(critic[-2] ** 2)
        bound = (here**2 + gamma**2 * online**2 - reward**2 / head) / (2.0 * gamma * here * there)
        cosine = torch.sum(phi * goal, 1) / (here * there)
        excess = torch.clip(cosine - bound.detach(), min=0.0)
        total = total + torch.mean(batch["mask"] * excess)
        if not measured:
            measured["feature_cosine"] = torch.mean(cosine).detach()
            measured["cosine_bound"] = torch.mean(bound).detach()
    return total, measured
