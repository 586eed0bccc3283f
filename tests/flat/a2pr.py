"""A2PR written out from its equations; torch is all that it imports."""

import torch
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


def reconstruct(obs: Tensor, action: Tensor, z: Tensor, layers: Layers) -> tuple[Tensor, ...]:
    half = len(layers) // 2
    code = mlp(torch.cat([obs, action], 1), layers[:half])
    latent = code.shape[1] // 2
    mean, log_std = code[:, :latent], torch.clip(code[:, latent:], -4.0, 15.0)
    std = torch.exp(log_std)
    decoded = mlp(torch.cat([obs, mean + std * z], 1), layers[half:])
    return torch.tanh(decoded), mean, std


def train(
    nets: dict[str, Layers],
    batches: list[dict[str, Tensor]],
    *,
    alpha: float,
    mask_weight: float,
    cvae_weight: float,
    detach_reference: bool,
    policy_noise: float,
    noise_clip: float,
    policy_delay: int,
    gamma: float,
    lr: float,
    cvae_lr: float,
    polyak: float,
) -> tuple[dict[str, Layers], list[dict[str, Tensor]]]:
    names = ("actor", "q1", "q2", "value", "cvae")
    actor, q1, q2, v, cvae = ([p.clone().requires_grad_() for p in nets[n]] for n in names)
    actor_bar, q1_bar, q2_bar = ([p.detach().clone() for p in net] for net in (actor, q1, q2))
    actor_optimizer = torch.optim.Adam(actor, lr)
    critic_optimizer = torch.optim.Adam(q1 + q2, lr)
    value_optimizer = torch.optim.Adam(v, lr)
    cvae_optimizer = torch.optim.Adam(cvae, cvae_lr)
    history = []
    for t, b in enumerate(batches):
        s, a, r, s2 = b["obs"], b["action"], b["reward"], b["next_obs"]
        n = torch.clip(policy_noise * b["target_action"], -noise_clip, noise_clip)
        a2 = torch.clip(policy(s2, actor_bar) + n, -1.0, 1.0)
        later = torch.minimum(value(s2, a2, q1_bar), value(s2, a2, q2_bar))
        y = r + gamma * b["mask"] * later
        old = mlp(s, v)[:, 0].detach()
        first = value(s, a, q1)
        critic_loss = torch.mean((first - y) ** 2) + torch.mean((value(s, a, q2) - y) ** 2)
        critic_optimizer.zero_grad()
        torch.autograd.backward(critic_loss)
        critic_optimizer.step()

        later = torch.minimum(value(s2, a2, q1), value(s2, a2, q2)).detach()
        lower = torch.minimum(y, r + gamma * b["mask"] * later)
        state_value = mlp(s, v)[:, 0]
        value_loss = torch.mean((state_value - lower) ** 2)
        value_optimizer.zero_grad()
        torch.autograd.backward(value_loss)
        value_optimizer.step()

        good = torch.where(value(s, a, q1).detach() > old, 1.0, 0.0)
        copy, mean, std = reconstruct(s, a, b["latent"], cvae)
        reconstruction = torch.mean(good[:, None] * (copy - a) ** 2)
        kl = -0.5 * torch.mean(1.0 + torch.log(std**2) - mean**2 - std**2)
        cvae_loss = cvae_weight * reconstruction + 0.5 * kl
        cvae_optimizer.zero_grad()
        torch.autograd.backward(cvae_loss)
        cvae_optimizer.step()
        metrics = {
            "critic_loss": critic_loss.detach(),
            "q_data": first.detach().mean(),
            "target": y.mean(),
            "value_loss": value_loss.detach(),
            "value": state_value.detach().mean(),
            "cvae_loss": cvae_loss.detach(),
            "reconstruction": reconstruction.detach(),
            "kl": kl.detach(),
            "better": good.mean(),
        }

        if (t + 1) % policy_delay == 0:
            pi = policy(s, actor)
            q = value(s, pi, q1)
            scale = alpha / q.abs().mean().item()
            copy, _, _ = reconstruct(s, pi, b["policy_latent"], cvae)
            copy = copy.detach() if detach_reference else copy
            a_copy = value(s, copy, q1).detach() - old
            a_data = value(s, a, q1).detach() - old
            chosen = torch.where(a_copy >= a_data, 1.0, 0.0)
            goal = chosen[:, None] * copy + (1.0 - chosen[:, None]) * a
            mask = torch.where(a_copy >= 0, 1.0, torch.where(a_data > 0, 1.0, 0.0))
            bc_loss = torch.mean(mask_weight * mask[:, None] * (pi - goal) ** 2)
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
                "mask": mask.mean(),
                "generated": chosen.mean(),
            }
        history.append(metrics)
    trained = {
        "actor": actor,
        "q1": q1,
        "q2": q2,
        "value": v,
        "cvae": cvae,
        "actor_target": actor_bar,
        "q1_target": q1_bar,
        "q2_target": q2_bar,
    }
    return trained, history
