"""Dichotomy of Control, step by step and sample by sample."""

import math
from typing import NamedTuple

import torch
from flat.dt import BLOCK, EMBED, blocks, in_turn, norm, over_real, step
from torch import Tensor

Layers = list[Tensor]
Batch = dict[str, Tensor]
NET = 6  # weights and biases of two hidden layers and the last
READER = EMBED + BLOCK + 2  # parameters of a transformer of one block that reads the past


class Form(NamedTuple):
    past: int
    heads: int  # of a transformer
    max_steps: int


def mlp(net: Layers, x: Tensor) -> Tensor:
    for i in (0, 2):
        x = torch.relu(x @ net[i] + net[i + 1])
    return x @ net[4] + net[5]


def told(b: Batch, i: int) -> Tensor:
    one = torch.ones_like(b["reward"][:, i : i + 1])
    x = torch.cat([b["obs"][:, i], b["action"][:, i], b["reward"][:, i : i + 1], one], 1)
    return x * b["real"][:, i : i + 1]


def read(net: Layers, b: Batch, heads: int) -> Tensor:
    """What a transformer knows at each of s, a and r, (batch, steps, 3, width)."""
    ws, bs, wa, ba, wr, br, times, gain, shift = net[:EMBED]
    time = times[torch.clamp(b["time"], max=len(times) - 1)]
    obs, action = b["obs"] @ ws.T + bs + time, b["action"] @ wa.T + ba + time
    reward = b["reward"][..., None] @ wr.T + br + time
    x = norm(in_turn(obs, action, reward), gain, shift)
    x = blocks(net[EMBED:], x, b["real"], heads, "relu")
    return x.reshape(len(x), -1, 3, x.shape[2])


def histories(net: Layers, b: Batch, form: Form) -> list[Tensor]:
    """What is known at each step from now on when its action is due; no net: as it was told."""
    steps = range(form.past, b["obs"].shape[1])
    if net:
        tokens = read(net, b, form.heads)
        return [tokens[:, i, 0] for i in steps]
    found = []
    for i in steps:
        known = [*(told(b, j) for j in range(i - form.past, i)), b["obs"][:, i]]
        if form.max_steps > 1:
            share = b["time"][:, i : i + 1] / (form.max_steps - 1)
            known.append(torch.clamp(share, max=1).to(known[-1].dtype))
        found.append(torch.cat(known, 1))
    return found


def posterior(net: Layers, b: Batch, form: Form) -> Tensor:
    reader, head = net[:-NET], net[-NET:]
    if reader:
        tokens = read(reader, b, form.heads)[:, form.past :]
        real = b["real"][:, form.past :, None, None]
        return mlp(head, torch.sum(tokens * real, (1, 2)) / (3 * torch.sum(real, (1, 2))))
    ahead = [told(b, i) for i in range(form.past, b["obs"].shape[1])]
    return mlp(head, torch.cat([histories([], b, form)[0], *ahead], 1))


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
    net: Layers, b: Batch, drawn: list[tuple[Tensor, Tensor]], known: list[Tensor]
) -> Tensor:
    bounds, past = [], b["obs"].shape[1] - len(known)
    for i, h in enumerate(known, past):
        outcome = torch.cat([b["reward"][:, i : i + 1], b["next_obs"][:, i]], 1)
        right = mlp(net[NET:], outcome)
        given = torch.cat([h.detach(), b["action"][:, i]], 1)
        at_step = torch.zeros(len(given), dtype=given.dtype)
        for z, weight in drawn:
            left = mlp(net[:NET], torch.cat([given, z], 1))
            u = left @ right.T / math.sqrt(left.shape[1])
            others = u[:, b["real"][:, i] > 0]
            mean = torch.log(torch.mean(torch.exp(others), 1)) if others.shape[1] else 0.0
            at_step = at_step + weight * (torch.diagonal(u) - mean)
        bounds.append(at_step)
    return over_real(torch.stack(bounds, 1)[..., None], b["real"][:, past:])


def cloned(
    net: Layers, b: Batch, drawn: list[tuple[Tensor, Tensor]], known: list[Tensor]
) -> Tensor:
    errors, past = [], b["obs"].shape[1] - len(known)
    for i, h in enumerate(known, past):
        apart = [torch.tanh(mlp(net, torch.cat([h, z], 1))) - b["action"][:, i] for z, _ in drawn]
        squares = [torch.mean(d**2, 1) for d in apart]
        errors.append(sum(w * e for (_, w), e in zip(drawn, squares, strict=True)))
    return over_real(torch.stack(errors, 1)[..., None], b["real"][:, past:])  # type: ignore[arg-type]


def optimizer_of(reader: Layers, heads: list[Layers], lr: float, decay: float) -> torch.optim.AdamW:
    """What multiplies an input shrinks: no bias, no norm, and not the embedding of time."""
    shrinks = [p for i, p in enumerate(reader) if p.ndim == 2 and i % READER != 6]
    rest = [p for i, p in enumerate(reader) if p.ndim < 2 or i % READER == 6]
    shrinks += [p for net in heads for p in net[0::2]]
    rest += [p for net in heads for p in net[1::2]]
    groups = [
        {"params": shrinks, "weight_decay": decay},
        {"params": rest, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr)


def train(
    nets: dict[str, Layers],
    batches: list[Batch],
    *,
    codes: bool,
    form: Form,
    energy_steps: int,
    information_weight: float,
    lr: float,
    warmup: int,
    weight_decay: float,
    grad_norm: float,
) -> tuple[dict[str, Layers], list[dict[str, Tensor]]]:
    nets = {name: [p.clone().requires_grad_() for p in net] for name, net in nets.items()}
    actor, formed, energy = nets["actor"], nets["posterior"], nets["energy"]
    cut = len(formed) - NET  # parameters of a reader: READER or none
    reader, policy = actor[:cut], actor[cut : cut + NET]
    planner, (prior, value) = actor[cut + NET : -2 * NET], (actor[-2 * NET : -NET], actor[-NET:])
    acting = optimizer_of([*reader, *formed[:cut]], [policy, formed[cut:]], lr, weight_decay)
    raising = optimizer_of([], [energy], lr, weight_decay)
    planning = optimizer_of(planner, [prior, value], lr, weight_decay)
    history_of = []
    for t, b in enumerate(batches):
        drawn = draws(posterior(formed, b, form).detach(), b, codes)
        for _ in range(energy_steps):
            known = histories(reader, b, form)
            energy_loss = -information(energy, b, drawn, known)
            step(raising, energy_loss, t, lr, warmup, grad_norm)

        drawn = draws(posterior(formed, b, form), b, codes)
        known = histories(reader, b, form)
        error = cloned(policy, b, drawn, known)
        bound = information(energy, b, drawn, known)
        actor_loss = error + information_weight * bound
        step(acting, actor_loss, t, lr, warmup, grad_norm)

        q = posterior(formed, b, form).detach()
        now = histories(planner, b, form)[0]
        divergence = torch.mean(kl(q, mlp(prior, now), codes))
        value_loss = torch.zeros((), dtype=now.dtype)
        for z, weight in draws(q, b, codes):
            wrong = mlp(value, torch.cat([now, z], 1))[:, 0] - b["to_go"]
            value_loss = value_loss + torch.mean(weight * wrong**2)
        step(planning, divergence + value_loss, t, lr, warmup, grad_norm)

        metrics = {"energy_loss": energy_loss, "actor_loss": actor_loss, "action_error": error}
        metrics |= {"information": bound, "planner_loss": divergence + value_loss}
        metrics |= {"divergence": divergence, "value_loss": value_loss}
        history_of.append({name: x.detach() for name, x in metrics.items()})
    return nets, history_of
