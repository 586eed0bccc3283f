"""AWAC written out from its equations; torch is all that it imports."""

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


def lowest(obs: Tensor, action: Tensor, critics: list[Layers]) -> Tensor:
    x = torch.cat([obs, action], 1)
    return torch.minimum(mlp(x, critics[0])[:, 0], mlp(x, critics[1])[:, 0])


def train(
    nets: dict[str, Layers],
    batches: list[dict[str, Tensor]],
    *,
    beta: float,
    max_weight: float,
    gamma: float,
    lr: float,
    polyak: float,
) -> tuple[dict[str, Layers], list[dict[str, Tensor]]]:
    actor, q1, q2, log_std = (
        [p.clone().requires_grad_() for p in nets[n]] for n in ("actor", "q1", "q2", "log_std")
    )
    q1_bar, q2_bar = ([p.detach().clone() for p in net] for net in (q1, q2))
    actor_optimizer = torch.optim.Adam(actor + log_std, lr)
    critic_optimizer = torch.optim.Adam(q1 + q2, lr)

    def spread() -> Tensor:
        return torch.exp(torch.clip(log_std[0], -5.0, 2.0))

    def act(obs: Tensor, noise: Tensor) -> Tensor:
        return torch.clip(mlp(obs, actor) + spread() * noise, -1.0, 1.0)

    history = []
    for b in batches:
        s, a, s2 = b["obs"], b["action"], b["next_obs"]
        with torch.no_grad():
            next_q = lowest(s2, act(s2, b["next_draw"]), [q1_bar, q2_bar])
            y = b["reward"] + gamma * b["mask"] * next_q
        x = torch.cat([s, a], 1)
        first, second = mlp(x, q1)[:, 0], mlp(x, q2)[:, 0]
        critic_loss = torch.mean((first - y) ** 2) + torch.mean((second - y) ** 2)
        critic_optimizer.zero_grad()
        torch.autograd.backward(critic_loss)
        critic_optimizer.step()

        with torch.no_grad():
            advantage = lowest(s, a, [q1, q2]) - lowest(s, act(s, b["draw"]), [q1, q2])
            weight = torch.clip(torch.exp(beta * advantage), max=max_weight)
        log_prob = (
            -0.5 * ((a - mlp(s, actor)) / spread()) ** 2
            - torch.log(spread())
            - 0.5 * math.log(2.0 * math.pi)
        ).sum(1)
        actor_loss = -torch.mean(weight * log_prob)
        actor_optimizer.zero_grad()
        torch.autograd.backward(actor_loss)
        actor_optimizer.step()
        for net, bar in ((q1, q1_bar), (q2, q2_bar)):
            for p, p_bar in zip(net, bar, strict=True):
                p_bar.copy_(polyak * p.detach() + (1.0 - polyak) * p_bar)
        history.append(
            {
                "critic_loss": critic_loss.detach(),
                "q_data": first.detach().mean(),
                "target": y.mean(),
                "actor_loss": actor_loss.detach(),
                "advantage": advantage.mean(),
                "log_prob": log_prob.detach().mean(),
            }
        )
    trained = {
        "actor": actor,
        "log_std": log_std,
        "q1": q1,
        "q2": q2,
        "q1_target": q1_bar,
        "q2_target": q2_bar,
    }
    return trained, history
