"""SAC-N and EDAC written out from their equations; torch and BEER's penalty are all it imports.

One critic at a time, pair after pair; the density of the squashed action as it is defined.
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


def policy(obs: Tensor, noise: Tensor, layers: Layers) -> tuple[Tensor, Tensor]:
    """Actions, and the log of their density: that of u over the slope of tanh at u."""
    out = mlp(obs, layers)
    mean, log_std = out[:, : out.shape[1] // 2], out[:, out.shape[1] // 2 :]
    std = torch.exp(torch.clip(log_std, -5.0, 2.0))
    u = mean + std * noise
    density = torch.exp(-0.5 * ((u - mean) / std) ** 2) / (std * math.sqrt(2.0 * math.pi))
    action = torch.tanh(u)
    return action, torch.log(density / (1.0 - action**2)).sum(1)


def train(
    nets: dict[str, Layers],
    batches: list[dict[str, Tensor]],
    *,
    ensemble: int,
    eta: float | None,
    target_entropy: float,
    gamma: float,
    lr: float,
    actor_lr: float,
    polyak: float,
    beer: float = 0.0,
) -> tuple[dict[str, Layers], list[dict[str, Tensor]]]:
    """`eta` is None for SAC-N, which has no such term."""
    actor = [p.clone().requires_grad_() for p in nets["actor"]]
    (log_w,) = (p.clone().requires_grad_() for p in nets["temperature"])
    critics = [[p.clone().requires_grad_() for p in nets[f"q{k + 1}"]] for k in range(ensemble)]
    targets = [[p.detach().clone() for p in q] for q in critics]
    actor_optimizer = torch.optim.Adam(actor, actor_lr)
    temperature_optimizer = torch.optim.Adam([log_w], actor_lr)
    critic_optimizer = torch.optim.Adam([p for q in critics for p in q], lr)
    history = []
    for b in batches:
        s, a, s2 = b["obs"], b["action"], b["next_obs"]

        chosen, log_prob = policy(s, b["draw"], actor)
        q_chosen = torch.stack([value(s, chosen, q) for q in critics]).min(0).values
        actor_loss = torch.mean(torch.exp(log_w.detach()) * log_prob - q_chosen)
        actor_optimizer.zero_grad()
        torch.autograd.backward(actor_loss, inputs=actor)
        actor_optimizer.step()

        entropy = -torch.mean(log_prob.detach())
        temperature = torch.exp(log_w.detach())
        temperature_loss = log_w * (entropy - target_entropy * a.shape[1])
        temperature_optimizer.zero_grad()
        torch.autograd.backward(temperature_loss)
        temperature_optimizer.step()

        with torch.no_grad():
            next_action, next_log_prob = policy(s2, b["next_draw"], actor)
            q_next = torch.stack([value(s2, next_action, q) for q in targets]).min(0).values
            soft = q_next - torch.exp(log_w) * next_log_prob
            y = b["reward"] + gamma * b["mask"] * soft
        predicted = [value(s, a, q) for q in critics]
        critic_loss = sum(torch.mean((q - y) ** 2) for q in predicted)
        extra = {}
        if beer > 0:
            likely = policy(s2, torch.zeros_like(a), actor)[0].detach()
            excess, extra = penalty(b, b["reward"], likely, likely, critics, targets, gamma)
            extra["td_error"] = critic_loss.detach()
            critic_loss = critic_loss + beer * excess
        if eta is not None:
            directions = []
            for q in critics:
                own = a.detach().clone().requires_grad_()
                total = value(s, own, q).sum()
                slope = torch.autograd.grad(total, own, create_graph=True)[0]
                # Where all units of a layer are off the slope is zero, and has no direction.
                directions.append(slope / (torch.norm(slope, dim=1, keepdim=True) + 1e-10))
            pairs = 0.0
            for i in range(ensemble):
                for j in range(ensemble):
                    if i != j:
                        pairs = pairs + (directions[i] * directions[j]).sum(1)
            diversity = torch.mean(pairs) / (ensemble - 1)
            critic_loss = critic_loss + eta * diversity
            extra["diversity"] = diversity.detach()
        critic_optimizer.zero_grad()
        torch.autograd.backward(critic_loss)
        critic_optimizer.step()
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
                "q_data": predicted[0].detach().mean(),
                "target": y.mean(),
                **extra,
            }
        )
    trained = {"actor": actor, "temperature": [log_w]}
    trained |= {f"q{k + 1}": q for k, q in enumerate(critics)}
    trained |= {f"q{k + 1}_target": q for k, q in enumerate(targets)}
    return trained, history
