"""Preferences of segments written out from the equations; torch is all that it imports.

Segments are compared one pair at a time and one step at a time.
"""

import math

import torch
from torch import Tensor

Layers = list[Tensor]  # W0, b0, W1, b1, ...


def mlp(x: Tensor, layers: Layers) -> Tensor:
    for i in range(0, len(layers), 2):
        x = x @ layers[i] + layers[i + 1]
        if i + 2 < len(layers):
            x = torch.where(x > 0, x, 0.0)
    return x


def density(s: Tensor, a: Tensor, layers: Layers, log_std: Tensor) -> Tensor:
    """log pi(a | s) of each row."""
    log_std = torch.clip(log_std.reshape(-1), -5.0, 2.0)
    z = (a - torch.tanh(mlp(s, layers))) / torch.exp(log_std)
    return torch.sum(-(z**2) / 2.0 - log_std - math.log(2.0 * math.pi) / 2.0, dim=1)


def train(
    nets: dict[str, Layers],
    batches: list[dict[str, Tensor]],
    total: int,
    *,
    loss: str,
    beta: float,
    wrong: float,
    margin: float,
    temperature: float,
    bc_weight: float,
    clone: float,
    lr: float,
) -> tuple[dict[str, Layers], list[dict[str, Tensor]]]:
    pi = [p.clone().requires_grad_() for p in nets["actor"]]
    (spread,) = own_spread = [p.clone().requires_grad_() for p in nets["log_std"]]
    ref = [p.clone() for p in nets["actor"]]
    ref_spread = nets["log_std"][0].clone()
    optimizer = torch.optim.Adam(pi + own_spread, lr)

    def prefer(b: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        n = len(b["score"])
        z = torch.zeros(())
        for i in range(n):
            for k in range(2):
                rows = b["real"][i, k] > 0
                s = b["obs"][i, k][rows]
                moved = torch.tanh(mlp(s, pi)) - torch.tanh(mlp(s, ref))
                var, ref_var = torch.exp(2 * spread), torch.exp(2 * ref_spread)
                kl = torch.log(ref_var / var) / 2 + (var + moved**2) / (2 * ref_var) - 0.5
                z = z + torch.sum(kl) / (2 * n)
        z = z.detach()
        losses, ahead, drift = [], [], []
        for i in range(n):
            u, mean, r = [], [], b["score"][i]
            for k in range(2):
                rows = b["real"][i, k] > 0
                s, a = b["obs"][i, k][rows], b["action"][i, k][rows]
                logp = density(s, a, pi, spread)
                u.append(torch.sum(logp - density(s, a, ref, ref_spread)))
                mean.append(torch.mean(logp))
            w = 0 if r[0] >= r[1] else 1
            gap, sigmoid = beta * (u[w] - u[1 - w]), torch.sigmoid
            if loss == "dpo":
                one = -torch.log(sigmoid(gap))
            elif loss == "ipo":
                one = (gap / beta - 1.0 / (2.0 * beta)) ** 2
            elif loss == "cdpo":
                one = -(1 - wrong) * torch.log(sigmoid(gap)) - wrong * torch.log(sigmoid(-gap))
            elif loss == "rdpo":
                one = -torch.log(sigmoid(gap)) - wrong / (1.0 - 2.0 * wrong) * gap
            elif loss == "chi_po":
                x, y = u[w], u[1 - w]
                one = -torch.log(sigmoid(beta * (torch.exp(x) + x - torch.exp(y) - y)))
            elif loss == "simpo":
                one = -torch.log(sigmoid(beta * (mean[w] - mean[1 - w]) - margin))
            elif loss == "kto":
                one = sigmoid(-beta * (u[w] - z)) + sigmoid(beta * (u[1 - w] - z))
            elif loss == "copg":
                one = (r[0] - r[1] - beta * (u[0] - u[1])) ** 2 / (2.0 * beta)
            else:
                q = sigmoid((r[0] - r[1]) / temperature)
                d = beta * (u[0] - u[1])
                one = -q * torch.log(sigmoid(d)) - (1 - q) * torch.log(sigmoid(-d))
            losses.append(one - bc_weight * mean[w])
            ahead.append((u[w] > u[1 - w]).double())
            drift.append((u[0] + u[1]).detach() / 2.0)
        return torch.stack(losses).mean(), {
            "accuracy": torch.stack(ahead).mean(),
            "log_ratio": torch.stack(drift).mean(),
        }

    history = []
    for t, b in enumerate(batches):
        cloning = t < clone * total
        metrics: dict[str, Tensor] = {}
        if cloning:
            rows = b["real"] > 0
            objective = -torch.mean(density(b["obs"][rows], b["action"][rows], pi, spread))
        else:
            objective, metrics = prefer(b)
        optimizer.zero_grad()
        torch.autograd.backward(objective)
        optimizer.step()
        if cloning:
            ref = [p.detach().clone() for p in pi]
            ref_spread = spread.detach().clone()
        name = "clone_loss" if cloning else "preference_loss"
        history.append({name: objective.detach(), **metrics})
    spreads = {"log_std": own_spread, "reference_log_std": [ref_spread]}
    return {"actor": pi, "reference": ref, **spreads}, history
