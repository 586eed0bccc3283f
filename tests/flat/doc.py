"""Dichotomy of Control in its small form, step by step and sample by sample."""

import math

import torch
from flat.dt import over_real, step
from torch import Tensor

Layers = list[Tensor]
Batch = dict[str, Tensor]
NET = 6  # weights and biases of two hidden layers and the last


def mlp(net: Layers, x: Tensor) -> Tensor:
    for i in (0, 2):
        x = torch.relu(x @ net[i] + net[i + 1])
    return x @ net[4] + net[5]


def told(b: Batch, i: int) -> Tensor:
    one = torch.ones_like(b["reward"][:, i : i + 1])
    x = torch.cat([b["obs"][:, i], b["action"][:, i], b["reward"][:, i : i + 1], one], 1)
    return x * b["real"][:, i : i + 1]


def history(b: Batch, i: int, past: int) -> Tensor:
    return torch.cat([*(told(b, j) for j in range(i - past, i)), b["obs"][:, i]], 1)


def posterior(net: Layers, b: Batch, past: int, future: int) -> Tensor:
    ahead = [told(b, past + j) for j in range(future)]
    return mlp(net, torch.cat([history(b, past, past), *ahead], 1))


def gaussian(q: Tensor) -> tuple[Tensor, Tensor]:
    size = q.shape[1] // 2
    return q[:, :size], torch.clamp(q[:, size:], -5.0, 2.0)


def draws(q: Tensor, b: Batch, codes: bool) -> list[tuple[Tensor, Tensor]]:
    """Latents and their weights, (batch, latent) and (batch,) each."""
    if not codes:
        mean, log_std = gaussian(q)
        return [(mean + torch.exp(log_std) * b["latent"], torch.ones(len(q), dtype=q.dtype))]
    share = torch.softmax(q, 1)
    eye = torch.eye(q.shape[1], dtype=q.dtype)
    return [(eye[k].repeat(len(q), 1), share[:, k]) for k in range(q.shape[1])]


def kl(q: Tensor, p: Tensor, codes: bool) -> Tensor:
    if codes:
        share = torch.softmax(q, 1)
        return torch.sum(share * torch.log(share / torch.softmax(p, 1)), 1)
    (m, s), (n, t) = gaussian(q), gaussian(p)
    ratio = torch.exp(2 * s - 2 * t)
    return 0.5 * torch.sum(ratio + (m - n) ** 2 / torch.exp(2 * t) - 1 - torch.log(ratio), 1)


def information(
    net: Layers, b: Batch, drawn: list[tuple[Tensor, Tensor]], past: int, future: int
) -> Tensor:
    bounds = []
    for i in range(past, past + future):
        outcome = torch.cat([b["reward"][:, i : i + 1], b["next_obs"][:, i]], 1)
        right = mlp(net[NET:], outcome)
        known = torch.cat([history(b, i, past), b["action"][:, i]], 1)
        at_step = torch.zeros(len(known), dtype=known.dtype)
        for z, weight in drawn:
            left = mlp(net[:NET], torch.cat([known, z], 1))
            u = left @ right.T / math.sqrt(left.shape[1])
            others = u[:, b["real"][:, i] > 0]
            mean = torch.log(torch.mean(torch.exp(others), 1)) if others.shape[1] else 0.0
            at_step = at_step + weight * (torch.diagonal(u) - mean)
        bounds.append(at_step)
    return over_real(torch.stack(bounds, 1)[..., None], b["real"][:, past:])


def cloned(
    net: Layers, b: Batch, drawn: list[tuple[Tensor, Tensor]], past: int, future: int
) -> Tensor:
    errors = []
    for i in range(past, past + future):
        h = history(b, i, past)
        apart = [torch.tanh(mlp(net, torch.cat([h, z], 1))) - b["action"][:, i] for z, _ in drawn]
        squares = [torch.mean(d**2, 1) for d in apart]
        errors.append(sum(w * e for (_, w), e in zip(drawn, squares, strict=True)))
    return over_real(torch.stack(errors, 1)[..., None], b["real"][:, past:])  # type: ignore[arg-type]


def optimizer_of(net: Layers, lr: float, decay: float) -> torch.optim.AdamW:
    groups = [
        {"params": net[0::2], "weight_decay": decay},
        {"params": net[1::2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr)


def train(
    nets: dict[str, Layers],
    batches: list[Batch],
    *,
    codes: bool,
    past: int,
    future: int,
    energy_steps: int,
    information_weight: float,
    lr: float,
    warmup: int,
    weight_decay: float,
    clip: float,
) -> tuple[dict[str, Layers], list[dict[str, Tensor]]]:
    nets = {name: [p.clone().requires_grad_() for p in net] for name, net in nets.items()}
    actor, reader, energy = nets["actor"], nets["posterior"], nets["energy"]
    policy, prior, value = actor[:NET], actor[NET : 2 * NET], actor[2 * NET :]
    acting = optimizer_of([*policy, *reader], lr, weight_decay)
    raising = optimizer_of(energy, lr, weight_decay)
    planning = optimizer_of([*prior, *value], lr, weight_decay)
    history_of = []
    for t, b in enumerate(batches):
        now = history(b, past, past)

        drawn = draws(posterior(reader, b, past, future).detach(), b, codes)
        for _ in range(energy_steps):
            energy_loss = -information(energy, b, drawn, past, future)
            step(raising, energy_loss, t, lr, warmup, clip)

        drawn = draws(posterior(reader, b, past, future), b, codes)
        error = cloned(policy, b, drawn, past, future)
        bound = information(energy, b, drawn, past, future)
        actor_loss = error + information_weight * bound
        step(acting, actor_loss, t, lr, warmup, clip)

        q = posterior(reader, b, past, future).detach()
        divergence = torch.mean(kl(q, mlp(prior, now), codes))
        value_loss = torch.zeros((), dtype=now.dtype)
        for z, weight in draws(q, b, codes):
            wrong = mlp(value, torch.cat([now, z], 1))[:, 0] - b["to_go"]
            value_loss = value_loss + torch.mean(weight * wrong**2)
        step(planning, divergence + value_loss, t, lr, warmup, clip)

        metrics = {"energy_loss": energy_loss, "actor_loss": actor_loss, "action_error": error}
        metrics |= {"information": bound, "planner_loss": divergence + value_loss}
        metrics |= {"divergence": divergence, "value_loss": value_loss}
        history_of.append({name: x.detach() for name, x in metrics.items()})
    return nets, history_of
