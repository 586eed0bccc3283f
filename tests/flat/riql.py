"""RIQL written out from its equations; torch and BEER's penalty are all that it imports.

Observations come as logged, with all of them and all that followed, and are normalised here.
"""

import math

import torch
from flat.beer import penalty
from torch import Tensor

Layers = list[Tensor]  # W0, b0, W1, b1, ...


def mlp(x: Tensor, layers: Layers) -> Tensor:
    for i in range(0, len(layers), 2):
        x = x @ layers[i] + layers[i + 1]
        if i + 2 < len(layers):
            x = torch.where(x > 0, x, 0.0)
    return x


def huber(x: Tensor, sigma: float) -> Tensor:
    threshold = 1.0 / sigma**2
    inside = x.abs() < threshold
    return torch.where(inside, x**2 / (2.0 * threshold), x.abs() - threshold / 2.0)


def train(
    nets: dict[str, Layers],
    batches: list[dict[str, Tensor]],
    every_obs: Tensor,
    every_next_obs: Tensor,
    total: int,
    *,
    sigma: float,
    quantile: float,
    critics: int,
    expectile: float,
    beta: float,
    max_weight: float,
    target_min: float,
    target_max: float,
    actor: str,
    actor_schedule: str,
    gamma: float,
    lr: float,
    polyak: float,
    normalize_obs: bool,
    normalize_with_next: bool,
    beer: float = 0.0,
) -> tuple[dict[str, Layers], list[dict[str, Tensor]]]:
    names = ["actor", "value", *(f"q{k + 1}" for k in range(critics))]
    names += ["log_std"] if actor == "gaussian" else []
    own = {n: [p.clone().requires_grad_() for p in nets[n]] for n in names}
    qs = [own[f"q{k + 1}"] for k in range(critics)]
    bars = [[p.detach().clone() for p in net] for net in qs]
    pi, v = own["actor"], own["value"]
    actor_optimizer = torch.optim.Adam(pi + own.get("log_std", []), lr)
    critic_optimizer = torch.optim.Adam([p for net in qs for p in net], lr)
    value_optimizer = torch.optim.Adam(v, lr)

    mean, std = torch.zeros_like(every_obs[0]), torch.ones_like(every_obs[0])
    if normalize_obs:
        seen = torch.cat([every_obs, every_next_obs]) if normalize_with_next else every_obs
        mean, std = seen.mean(0), seen.std(0, correction=0) + 1e-3
        mean, std = mean.float().double(), std.float().double()  # as they are stored

    history = []
    for t, b in enumerate(batches):
        if actor_schedule == "cosine":
            actor_optimizer.param_groups[0]["lr"] = lr * (1.0 + math.cos(math.pi * t / total)) / 2.0
        s, s2, a = (b["raw_obs"] - mean) / std, (b["raw_next_obs"] - mean) / std, b["action"]
        x = torch.cat([s, a], 1)

        next_v = mlp(s2, v)[:, 0].detach()
        bar = torch.stack([mlp(x, net)[:, 0] for net in bars])
        q = torch.quantile(bar, quantile, dim=0)

        v_s = mlp(s, v)[:, 0]
        u = q - v_s
        value_loss = torch.mean(torch.where(u < 0, 1.0 - expectile, expectile) * u**2)
        value_optimizer.zero_grad()
        torch.autograd.backward(value_loss)
        value_optimizer.step()

        y = torch.clip(b["reward"] + gamma * b["mask"] * next_v, target_min, target_max)
        online = [mlp(x, net)[:, 0] for net in qs]
        critic_loss = torch.stack([torch.mean(huber(y - one, sigma)) for one in online]).mean()
        measured: dict[str, Tensor] = {}
        if beer > 0:
            likely, here = torch.tanh(mlp(s2, pi)).detach(), {**b, "obs": s, "next_obs": s2}
            excess, measured = penalty(here, b["reward"], likely, likely, qs, bars, gamma)
            measured["td_error"] = critic_loss.detach()
            critic_loss = critic_loss + beer * excess / critics
        critic_optimizer.zero_grad()
        torch.autograd.backward(critic_loss)
        critic_optimizer.step()
        for net, net_bar in zip(qs, bars, strict=True):
            for p, p_bar in zip(net, net_bar, strict=True):
                p_bar.copy_(polyak * p.detach() + (1.0 - polyak) * p_bar)

        weight = torch.clip(torch.exp(beta * u.detach()), max=max_weight)
        out = mlp(s, pi)
        if actor == "gaussian":
            spread = torch.exp(torch.clip(own["log_std"][0], -5.0, 2.0))
            normal = torch.distributions.Normal(out, spread)
            error = -normal.log_prob(a).sum(1)
        else:
            error = ((torch.tanh(out) - a) ** 2).sum(1)
        actor_loss = torch.mean(weight * error)
        actor_optimizer.zero_grad()
        torch.autograd.backward(actor_loss)
        actor_optimizer.step()
        history.append(
            {
                "value_loss": value_loss.detach(),
                "value": v_s.detach().mean(),
                "critic_loss": critic_loss.detach(),
                "q_data": online[0].detach().mean(),
                "target": y.mean(),
                "actor_loss": actor_loss.detach(),
                "advantage": u.detach().mean(),
                "bc_loss": error.detach().mean(),
                **measured,
            }
        )
    targets = {f"q{k + 1}_target": net for k, net in enumerate(bars)}
    return {**own, **targets}, history
