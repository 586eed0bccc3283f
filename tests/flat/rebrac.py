"""ReBRAC written out from its equations; torch is all that it imports."""

import torch
from torch import Tensor

Layers = list[Tensor]  # W0, b0, W1, b1, ...; with LayerNorm W0, b0, g0, c0, W1, ...


def policy(obs: Tensor, layers: Layers) -> Tensor:
    x = obs
    for i in range(0, len(layers), 2):
        x = x @ layers[i] + layers[i + 1]
        if i + 2 < len(layers):
            x = torch.where(x > 0, x, 0.0)
    return torch.tanh(x)


def value(obs: Tensor, action: Tensor, layers: Layers) -> Tensor:
    x = torch.cat([obs, action], 1)
    for i in range(0, len(layers) - 2, 4):
        weight, bias, gain, shift = layers[i : i + 4]
        x = x @ weight + bias
        x = torch.where(x > 0, x, 0.0)
        mean = x.mean(1, keepdim=True)
        spread = ((x - mean) ** 2).mean(1, keepdim=True)
        x = gain * (x - mean) / torch.sqrt(spread + 1e-5) + shift
    return (x @ layers[-2] + layers[-1])[:, 0]


def train(
    nets: dict[str, Layers],
    batches: list[dict[str, Tensor]],
    *,
    beta1: float,
    beta2: float,
    policy_noise: float,
    noise_clip: float,
    policy_delay: int,
    gamma: float,
    lr: float,
    critic_lr: float,
    polyak: float,
) -> tuple[dict[str, Layers], list[dict[str, Tensor]]]:
    actor, q1, q2 = ([p.clone().requires_grad_() for p in nets[n]] for n in ("actor", "q1", "q2"))
    actor_bar, q1_bar, q2_bar = ([p.detach().clone() for p in net] for net in (actor, q1, q2))
    actor_optimizer = torch.optim.Adam(actor, lr)
    critic_optimizer = torch.optim.Adam(q1 + q2, critic_lr)
    history = []
    for t, b in enumerate(batches):
        s, a, s2 = b["obs"], b["action"], b["next_obs"]
        n = torch.clip(policy_noise * b["target_action"], -noise_clip, noise_clip)
        a2 = torch.clip(policy(s2, actor_bar) + n, -1.0, 1.0)
        penalty = beta2 * torch.sum((a2 - b["next_action"]) ** 2, 1)
        next_q = torch.minimum(value(s2, a2, q1_bar), value(s2, a2, q2_bar)) - penalty
        y = b["reward"] + gamma * b["mask"] * next_q
        first = value(s, a, q1)
        critic_loss = torch.mean((first - y) ** 2) + torch.mean((value(s, a, q2) - y) ** 2)
        critic_optimizer.zero_grad()
        torch.autograd.backward(critic_loss)
        critic_optimizer.step()
        metrics = {
            "critic_loss": critic_loss.detach(),
            "q_data": first.detach().mean(),
            "target": y.mean(),
            "penalty": (b["mask"] * penalty).mean(),
        }

        if (t + 1) % policy_delay == 0:
            for net, bar in ((actor, actor_bar), (q1, q1_bar), (q2, q2_bar)):
                for p, p_bar in zip(net, bar, strict=True):
                    p_bar.copy_(polyak * p.detach() + (1.0 - polyak) * p_bar)
            pi = policy(s, actor)
            q = torch.minimum(value(s, pi, q1), value(s, pi, q2))
            scale = 1.0 / q.abs().mean().item()
            bc_loss = torch.mean(beta1 * torch.sum((pi - a) ** 2, 1))
            actor_loss = bc_loss - torch.mean(scale * q)
            actor_optimizer.zero_grad()
            torch.autograd.backward(actor_loss)
            actor_optimizer.step()
            metrics |= {
                "actor_loss": actor_loss.detach(),
                "q": q.detach().mean(),
                "bc_loss": bc_loss.detach(),
            }
        history.append(metrics)
    trained = {
        "actor": actor,
        "q1": q1,
        "q2": q2,
        "actor_target": actor_bar,
        "q1_target": q1_bar,
        "q2_target": q2_bar,
    }
    return trained, history
