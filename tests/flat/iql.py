"""IQL written out from its equations; torch and BEER's penalty are all that it imports.

Rewards come as logged, with the returns of the episodes, and are scaled here.
"""

import math

import torch
from flat.beer import penalty
from torch import Tensor

Layers = list[Tensor]  # W0, b0, W1, b1, ...


def mlp(x: Tensor, layers: Layers, masks: list[Tensor] | None = None) -> Tensor:
    """ReLU layers; `masks` multiply the hidden activations."""
    for i in range(0, len(layers), 2):
        x = x @ layers[i] + layers[i + 1]
        if i + 2 < len(layers):
            x = torch.where(x > 0, x, 0.0)
            if masks is not None:
                x = x * masks[i // 2]
    return x


def value(obs: Tensor, layers: Layers) -> Tensor:
    return mlp(obs, layers)[:, 0]


def train(
    nets: dict[str, Layers],
    batches: list[dict[str, Tensor]],
    returns: list[float],
    total: int,
    *,
    expectile: float,
    beta: float,
    max_weight: float,
    dropout: float,
    actor_schedule: str,
    gamma: float,
    lr: float,
    polyak: float,
    beer: float = 0.0,
) -> tuple[dict[str, Layers], list[dict[str, Tensor]]]:
    actor, q1, q2, v, log_std = (
        [p.clone().requires_grad_() for p in nets[n]]
        for n in ("actor", "q1", "q2", "value", "log_std")
    )
    q1_bar, q2_bar = ([p.detach().clone() for p in net] for net in (q1, q2))
    actor_optimizer = torch.optim.Adam(actor + log_std, lr)
    critic_optimizer = torch.optim.Adam(q1 + q2, lr)
    value_optimizer = torch.optim.Adam(v, lr)
    reward_scale = 1000.0 / (max(returns) - min(returns))
    # A standard normal number lies above this with probability 1 - dropout.
    threshold = math.sqrt(2.0) * torch.erfinv(torch.tensor(2.0 * dropout - 1.0).double()).item()
    history = []
    for t, b in enumerate(batches):
        if actor_schedule == "cosine":
            actor_optimizer.param_groups[0]["lr"] = lr * (1.0 + math.cos(math.pi * t / total)) / 2.0
        s, a, s2 = b["obs"], b["action"], b["next_obs"]
        x = torch.cat([s, a], 1)
        q_bar = torch.minimum(mlp(x, q1_bar)[:, 0], mlp(x, q2_bar)[:, 0])

        v_s = value(s, v)
        u = q_bar - v_s
        value_loss = torch.mean(torch.where(u < 0, 1.0 - expectile, expectile) * u**2)
        value_optimizer.zero_grad()
        torch.autograd.backward(value_loss)
        value_optimizer.step()

        advantage = q_bar - value(s, v).detach()
        weight = torch.clip(torch.exp(beta * advantage), max=max_weight)
        masks = None
        if dropout > 0:
            masks = [
                (b[f"dropout{i}"] > threshold).double() / (1.0 - dropout)
                for i in range(len(actor) // 2 - 1)
            ]
        mean = torch.tanh(mlp(s, actor, masks))
        spread = torch.exp(torch.clip(log_std[0], -5.0, 2.0))
        log_prob = (
            -0.5 * ((a - mean) / spread) ** 2 - torch.log(spread) - 0.5 * math.log(2.0 * math.pi)
        ).sum(1)
        actor_loss = -torch.mean(weight * log_prob)
        actor_optimizer.zero_grad()
        torch.autograd.backward(actor_loss)
        actor_optimizer.step()

        reward = reward_scale * b["raw_reward"]
        y = reward + gamma * b["mask"] * value(s2, v).detach()
        first, second = mlp(x, q1)[:, 0], mlp(x, q2)[:, 0]
        critic_loss = torch.mean((first - y) ** 2) + torch.mean((second - y) ** 2)
        measured: dict[str, Tensor] = {}
        if beer > 0:
            pi = torch.tanh(mlp(s2, actor)).detach()
            excess, measured = penalty(b, reward, pi, pi, [q1, q2], [q1_bar, q2_bar], gamma)
            measured["td_error"] = critic_loss.detach()
            critic_loss = critic_loss + beer * excess
        critic_optimizer.zero_grad()
        torch.autograd.backward(critic_loss)
        critic_optimizer.step()
        for net, bar in ((q1, q1_bar), (q2, q2_bar)):
            for p, p_bar in zip(net, bar, strict=True):
                p_bar.copy_(polyak * p.detach() + (1.0 - polyak) * p_bar)
        history.append(
            {
                "value_loss": value_loss.detach(),
                "value": v_s.detach().mean(),
                "actor_loss": actor_loss.detach(),
                "advantage": advantage.mean(),
                "log_prob": log_prob.detach().mean(),
                "critic_loss": critic_loss.detach(),
                "q_data": first.detach().mean(),
                "target": y.mean(),
                **measured,
            }
        )
    trained = {
        "actor": actor,
        "log_std": log_std,
        "q1": q1,
        "q2": q2,
        "value": v,
        "q1_target": q1_bar,
        "q2_target": q2_bar,
    }
    return trained, history
