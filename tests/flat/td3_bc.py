"""TD3+BC written out from its equations; torch and BEER's penalty are all that it imports."""

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


def policy(obs: Tensor, layers: Layers) -> Tensor:
    return torch.tanh(mlp(obs, layers))


def value(obs: Tensor, action: Tensor, layers: Layers) -> Tensor:
    return mlp(torch.cat([obs, action], 1), layers)[:, 0]


def train(
    nets: dict[str, Layers],
    batches: list[dict[str, Tensor]],
    *,
    alpha: float,
    policy_noise: float,
    noise_clip: float,
    policy_delay: int,
    gamma: float,
    lr: float,
    polyak: float,
    beer: float = 0.0,
) -> tuple[dict[str, Layers], list[dict[str, Tensor]]]:
    actor, q1, q2 = ([p.clone().requires_grad_() for p in nets[n]] for n in ("actor", "q1", "q2"))
    actor_bar, q1_bar, q2_bar = ([p.detach().clone() for p in net] for net in (actor, q1, q2))
    actor_optimizer = torch.optim.Adam(actor, lr)
    critic_optimizer = torch.optim.Adam(q1 + q2, lr)
    history = []
    for t, b in enumerate(batches):
        s, a, s2 = b["obs"], b["action"], b["next_obs"]
        n = torch.clip(policy_noise * b["target_action"], -noise_clip, noise_clip)
        a2 = torch.clip(policy(s2, actor_bar) + n, -1.0, 1.0)
        y = b["reward"] + gamma * b["mask"] * torch.minimum(
            value(s2, a2, q1_bar), value(s2, a2, q2_bar)
        )
        first = value(s, a, q1)
        critic_loss = torch.mean((first - y) ** 2) + torch.mean((value(s, a, q2) - y) ** 2)
        measured: dict[str, Tensor] = {}
        if beer > 0:
            pi, pi_bar = policy(s2, actor).detach(), policy(s2, actor_bar)
            critics, critics_bar = [q1, q2], [q1_bar, q2_bar]
            excess, measured = penalty(b, b["reward"], pi, pi_bar, critics, critics_bar, gamma)
            measured["td_error"] = critic_loss.detach()
            critic_loss = critic_loss + beer * excess
        critic_optimizer.zero_grad()
        torch.autograd.backward(critic_loss)
        critic_optimizer.step()
        metrics = {
            "critic_loss": critic_loss.detach(),
            "q_data": first.detach().mean(),
            "target": y.mean(),
            **measured,
        }

        if (t + 1) % policy_delay == 0:
            pi = policy(s, actor)
            q = value(s, pi, q1)
            scale = alpha / q.abs().mean().item()
            bc_loss = torch.mean((pi - a) ** 2)
            actor_loss = -scale * q.mean() + bc_loss
            actor_optimizer.zero_grad()
            torch.autograd.backward(actor_loss)
            actor_optimizer.step()
            for net, bar in ((actor, actor_bar), (q1, q1_bar), (q2, q2_bar)):
                for p, p_bar in zip(net, bar, strict=True):
                    p_bar.copy_(polyak * p.detach() + (1.0 - polyak) * p_bar)
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
