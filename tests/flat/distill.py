"""Distillation by anchored preferences written out from the equations; it imports torch alone.

Candidates are gone through one state and one action at a time.
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


def density(a: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """log N(a; mean, std^2) of one action."""
    z = (a - mean) / std
    return torch.sum(-(z**2) / 2.0 - torch.log(std) - math.log(2.0 * math.pi) / 2.0)


def train(
    nets: dict[str, Layers],
    batches: list[dict[str, Tensor]],
    total: int,
    *,
    loss: str,
    anchor: str,
    tau: float,
    temperature: float,
    candidates: int,
    scale: float,
    clone: float,
    polyak: float,
    lr: float,
) -> tuple[dict[str, Layers], list[dict[str, Tensor]]]:
    pi = [p.clone().requires_grad_() for p in nets["actor"]]
    (log_std,) = own_log_std = [p.clone().requires_grad_() for p in nets["log_std"]]
    ref, ref_log_std = [p.clone() for p in nets["actor"]], nets["log_std"][0].clone()
    optimizer = torch.optim.Adam(pi + own_log_std, lr)

    def deviation(x: Tensor) -> Tensor:
        return torch.exp(torch.clip(x.reshape(-1), -5.0, 2.0))

    def closeness(b: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        mean, std = torch.tanh(mlp(b["obs"], pi)), deviation(log_std)
        away = (b["teacher_mean"] - mean) ** 2
        s2, t2 = std**2, b["teacher_std"] ** 2
        kl = torch.sum(torch.log(s2 / t2) / 2 + (t2 + away) / (2 * s2) - 0.5, dim=1)
        return torch.mean(kl), torch.mean(away)

    def one(b: dict[str, Tensor], i: int) -> Tensor:
        m, s = b["teacher_mean"][i], b["teacher_std"][i]
        mean, std = torch.tanh(mlp(b["obs"][i : i + 1], pi))[0], deviation(log_std)
        ref_mean = torch.tanh(mlp(b["obs"][i : i + 1], ref))[0]
        wanted, ahead = [], []
        for k in range(candidates):
            a = m + scale * s * b["candidates"][i, k]
            wanted.append(torch.exp(density(a, m, s) / temperature))
            before = torch.zeros(())
            if anchor == "teacher":
                before = density(a, m, s)
            elif anchor != "uniform":
                before = density(a, ref_mean, deviation(ref_log_std))
            ahead.append((density(a, mean, std) - before) / tau)
        rest = torch.log(sum(torch.exp(u) for u in ahead))  # type: ignore[arg-type]
        return -sum(w / sum(wanted) * (u - rest) for w, u in zip(wanted, ahead, strict=True))

    history = []
    for t, b in enumerate(batches):
        cloning = loss == "adpo" and anchor == "clone" and t < clone * total
        kl, error = closeness(b)
        if loss == "kl":
            objective, measured = kl, {"teacher_error": error}
        elif cloning:
            mean, std = torch.tanh(mlp(b["obs"], pi)), deviation(log_std)
            rows = range(len(mean))
            each = [density(b["action"][i], mean[i], std) for i in rows]
            objective, measured = -torch.mean(torch.stack(each)), {}
        else:
            each = [one(b, i) for i in range(len(b["obs"]))]
            objective = torch.mean(torch.stack(each))
            measured = {"teacher_kl": kl, "teacher_error": error}
        optimizer.zero_grad()
        torch.autograd.backward(objective)
        optimizer.step()
        share = 1.0 if cloning else polyak if loss == "adpo" and anchor == "ema" else 0.0
        ref = [(1 - share) * r + share * p.detach() for r, p in zip(ref, pi, strict=True)]
        ref_log_std = (1 - share) * ref_log_std + share * log_std.detach()
        name = "kl_loss" if loss == "kl" else "clone_loss" if cloning else "adpo_loss"
        history.append({name: objective.detach(), **{k: v.detach() for k, v in measured.items()}})
    found = {"actor": pi, "log_std": own_log_std}
    if loss == "adpo" and anchor in ("clone", "ema"):
        found |= {"reference": ref, "reference_log_std": [ref_log_std]}
    return found, history
