"""CQL written out from its equations; torch and BEER's penalty are all that it imports.

Every proposed action goes through every critic by itself.
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


def value(obs: Tensor, action: Tensor, layers: Layers) -> Tensor:
    return mlp(torch.cat([obs, action], 1), layers)[:, 0]


def gaussian(obs: Tensor, layers: Layers) -> tuple[Tensor, Tensor]:
    out = mlp(obs, layers)
    half = out.shape[1] // 2
    return out[:, :half], torch.exp(torch.clip(out[:, half:], -5.0, 2.0))


def log_density(u: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Of tanh(u): that of u over the slope of tanh at u."""
    density = torch.exp(-0.5 * ((u - mean) / std) ** 2) / (std * math.sqrt(2.0 * math.pi))
    return torch.log(density / (1.0 - torch.tanh(u) ** 2)).sum(1)


def policy(obs: Tensor, noise: Tensor, layers: Layers) -> tuple[Tensor, Tensor]:
    mean, std = gaussian(obs, layers)
    u = mean + std * noise
    return torch.tanh(u), log_density(u, mean, std)


def train(
    nets: dict[str, Layers],
    batches: list[dict[str, Tensor]],
    *,
    alpha: float,
    samples: int,
    lse_temperature: float,
    importance_sampling: bool,
    lagrange: bool,
    target_gap: float,
    clip_low: float,
    clip_high: float,
    max_target_backup: bool,
    backup_entropy: bool,
    bc_steps: int,
    target_entropy: float,
    gamma: float,
    lr: float,
    actor_lr: float,
    polyak: float,
    beer: float,
) -> tuple[dict[str, Layers], list[dict[str, Tensor]]]:
    actor = [p.clone().requires_grad_() for p in nets["actor"]]
    (log_w,) = (p.clone().requires_grad_() for p in nets["temperature"])
    critics = [[p.clone().requires_grad_() for p in nets[name]] for name in ("q1", "q2")]
    targets = [[p.detach().clone() for p in q] for q in critics]
    log_v = torch.zeros((), dtype=torch.float64, requires_grad=True)
    actor_optimizer = torch.optim.Adam(actor, actor_lr)
    temperature_optimizer = torch.optim.Adam([log_w], actor_lr)
    critic_optimizer = torch.optim.Adam([p for q in critics for p in q], lr)
    multiplier_optimizer = torch.optim.Adam([log_v], lr)
    history = []
    for t, b in enumerate(batches):
        s, a, s2 = b["obs"], b["action"], b["next_obs"]

        chosen, log_prob = policy(s, b["draw"], actor)
        q_chosen = torch.minimum(value(s, chosen, critics[0]), value(s, chosen, critics[1]))
        good = q_chosen
        if t < bc_steps:
            inside = torch.clip(a, -1.0 + 1e-6, 1.0 - 1e-6)
            good = log_density(torch.atanh(inside), *gaussian(s, actor))
        actor_loss = torch.mean(torch.exp(log_w.detach()) * log_prob - good)
        actor_optimizer.zero_grad()
        torch.autograd.backward(actor_loss, inputs=actor)
        actor_optimizer.step()

        temperature = torch.exp(log_w.detach())
        constraint = torch.mean(log_prob.detach()) + target_entropy * a.shape[1]
        temperature_loss = -log_w * constraint
        temperature_optimizer.zero_grad()
        torch.autograd.backward(temperature_loss)
        temperature_optimizer.step()

        with torch.no_grad():
            best = torch.full_like(b["reward"], -math.inf)
            log_best = torch.zeros_like(best)
            for noise in b["next_draw"]:
                action, log_its = policy(s2, noise, actor)
                q = torch.minimum(value(s2, action, targets[0]), value(s2, action, targets[1]))
                log_best = torch.where(q > best, log_its, log_best)
                best = torch.maximum(q, best)
            if backup_entropy:
                best = best - torch.exp(log_w) * log_best
            y = b["reward"] + gamma * b["mask"] * best
            proposed = []
            for j in range(samples):
                uniform = torch.erf(b["random"][j] / math.sqrt(2.0))  # 2 Phi(x) - 1
                log_half = torch.full_like(best, math.log(0.5)) * a.shape[1]
                proposed.append((uniform, log_half))
                proposed.append(policy(s, b["here"][j], actor))
                proposed.append(policy(s2, b["then"][j], actor))
        critic_loss = td_error = torch.zeros((), dtype=torch.float64)
        gaps = []
        for q in critics:
            predicted = value(s, a, q)
            if importance_sampling:
                terms = [value(s, action, q) - log_p for action, log_p in proposed]
            else:
                terms = [predicted] + [value(s, action, q) for action, _ in proposed]
            total = sum(torch.exp(term / lse_temperature) for term in terms)
            gap = lse_temperature * torch.log(total) - predicted
            gaps.append(torch.mean(torch.clip(gap, clip_low, clip_high)))
            weight = torch.exp(log_v.detach()) if lagrange else 1.0
            td_error = td_error + torch.mean((predicted - y) ** 2)
            critic_loss = critic_loss + alpha * weight * gaps[-1]
        critic_loss = critic_loss + td_error
        extra = {}
        if beer > 0:
            likely = policy(s2, torch.zeros_like(a), actor)[0].detach()
            excess, extra = penalty(b, b["reward"], likely, likely, critics, targets, gamma)
            extra["td_error"] = td_error.detach()
            critic_loss = critic_loss + beer * excess
        first = value(s, a, critics[0]).detach()
        critic_optimizer.zero_grad()
        torch.autograd.backward(critic_loss)
        critic_optimizer.step()

        mean_gap = (gaps[0].detach() + gaps[1].detach()) / 2.0
        if lagrange:
            extra["multiplier"] = torch.exp(log_v.detach())
            multiplier_loss = -log_v * alpha * (mean_gap - target_gap)
            multiplier_optimizer.zero_grad()
            torch.autograd.backward(multiplier_loss)
            multiplier_optimizer.step()
            extra["multiplier_loss"] = multiplier_loss.detach()
        for q, q_bar in zip(critics, targets, strict=True):
            for p, p_bar in zip(q, q_bar, strict=True):
                p_bar.copy_(polyak * p.detach() + (1.0 - polyak) * p_bar)
        history.append(
            {
                "actor_loss": actor_loss.detach(),
                "q": q_chosen.detach().mean(),
                "log_prob": log_prob.detach().mean(),
                "temperature_loss": temperature_loss.detach(),
                "temperature": temperature,
                "critic_loss": critic_loss.detach(),
                "q_data": first.mean(),
                "target": y.mean(),
                "gap": mean_gap,
                **extra,
            }
        )
    trained = {"actor": actor, "temperature": [log_w]}
    trained |= {"q1": critics[0], "q2": critics[1]}
    trained |= {"q1_target": targets[0], "q2_target": targets[1]}
    if lagrange:
        trained["multiplier"] = [log_v]
    return trained, history
