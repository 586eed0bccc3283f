"""Advantage-weighted matching written out, on values and network of IDQL's transcription."""

import torch
from flat.idql import Nets, Values, falling, matching
from flat.iql import value
from torch import Tensor


def train(
    nets: Nets,
    batches: list[dict[str, Tensor]],
    scale: float,
    total: int,
    *,
    weights: str,
    beta: float,
    max_weight: float,
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
        found = values.step_value(b, q)
        advantage = q - value(b["obs"], values.v).detach()
        weight = torch.clip(torch.exp(beta * advantage), max=max_weight)
        if weights == "filter":
            weight = torch.where(advantage > 0, 1.0, 0.0).double()
        error = matching(b, net, process, levels, dropout)
        loss = torch.mean(weight * error)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        found |= {"policy_loss": loss.detach(), "advantage": advantage.mean()}
        found |= {"weight": weight.mean(), "bc_loss": error.detach().mean()}
        found |= values.step_critic(b, scale * b["raw_reward"])
        for x, p in zip(average, net, strict=True):
            x.copy_(ema * x + (1.0 - ema) * p.detach())
        values.follow(polyak)
        history.append(found)
    return {"net": net, "average": average, **values.nets()}, history
