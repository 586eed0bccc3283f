"""Diffusion-QL written out; torch and the plain denoiser are all that it imports."""

import math

import torch
from flat.diffusion_policy import denoise, mish, uniform
from torch import Tensor

Layers = list[Tensor]  # W0, b0, W1, b1, ...


def value(obs: Tensor, action: Tensor, layers: Layers) -> Tensor:
    x = torch.cat([obs, action], 1)
    for i in range(0, len(layers) - 2, 2):
        x = mish(x @ layers[i] + layers[i + 1])
    return (x @ layers[-2] + layers[-1])[:, 0]


def predicted(x: Tensor, level: Tensor, obs: Tensor, net: Layers) -> Tensor:
    return denoise(x[:, None], level, obs[:, None], net)[:, 0]


def rates(levels: int) -> list[float]:
    """beta_1 to beta_T."""
    low, high = 0.1, 10.0
    return [
        1.0 - math.exp(-low / levels - 0.5 * (high - low) * (2 * i - 1) / levels**2)
        for i in range(1, levels + 1)
    ]


def sample(
    obs: Tensor, net: Layers, start: Tensor, steps: Tensor | None, betas: list[float]
) -> Tensor:
    bars = [1.0]
    for beta in betas:
        bars.append(bars[-1] * (1.0 - beta))
    x, total = start[:, 0], len(betas)
    for i in range(total, 0, -1):
        eps = predicted(x, torch.full((len(x),), i - 1.0).double(), obs, net)
        x0 = (x - math.sqrt(1.0 - bars[i]) * eps) / math.sqrt(bars[i])
        x0 = torch.clip(x0, -1.0, 1.0)
        beta, bar, before = betas[i - 1], bars[i], bars[i - 1]
        mean = beta * math.sqrt(before) * x0 + (1.0 - before) * math.sqrt(1.0 - beta) * x
        x = mean / (1.0 - bar)
        if i > 1:
            assert steps is not None
            spread = math.sqrt(beta * (1.0 - before) / (1.0 - bar))
            x = x + spread * steps[total - i, :, 0]
    return x


def train(
    nets: dict[str, Layers],
    batches: list[dict[str, Tensor]],
    rewards: Tensor,
    total: int,
    *,
    eta: float,
    levels: int,
    backup: int,
    grad_norm: float,
    ema: float,
    ema_start: int,
    ema_every: int,
    gamma: float,
    lr: float,
    critic_lr: float,
    lr_schedule: str,
    polyak: float,
    standardize_reward: bool,
) -> tuple[dict[str, Layers], list[dict[str, Tensor]]]:
    net, q1, q2 = ([p.clone().requires_grad_() for p in nets[n]] for n in ("net", "q1", "q2"))
    average, q1_bar, q2_bar = ([p.detach().clone() for p in x] for x in (net, q1, q2))
    net_optimizer = torch.optim.Adam(net, lr)
    critic_optimizer = torch.optim.Adam(q1 + q2, critic_lr)
    betas, history = rates(levels), []
    for t, b in enumerate(batches):
        if lr_schedule == "cosine":
            share = (1.0 + math.cos(math.pi * t / total)) / 2.0
            # As the optimisers hold them, in float32.
            net_optimizer.param_groups[0]["lr"] = float(torch.tensor(lr * share))
            critic_optimizer.param_groups[0]["lr"] = float(torch.tensor(critic_lr * share))
        s, a, s2 = b["obs"], b["action"], b["next_obs"]
        reward = b["raw_reward"]
        if standardize_reward:
            reward = (reward - rewards.mean()) / rewards.std()

        many = torch.repeat_interleave(s2, backup, 0)
        a2 = sample(many, average, b["next_start"], b.get("next_steps"), betas)
        best = [value(many, a2, q).reshape(-1, backup).max(1).values for q in (q1_bar, q2_bar)]
        y = (reward + gamma * b["mask"] * torch.minimum(*best)).detach()
        first, second = value(s, a, q1), value(s, a, q2)
        critic_loss = torch.mean((first - y) ** 2) + torch.mean((second - y) ** 2)
        critic_optimizer.zero_grad()
        torch.autograd.backward(critic_loss)
        if grad_norm > 0:
            torch.nn.utils.clip_grad_norm_(q1 + q2, grad_norm)
        critic_optimizer.step()

        k = torch.floor(uniform(b["level"]) * levels)
        bars = torch.cumprod(1.0 - torch.tensor(betas, dtype=torch.float64), 0)[k.long()][:, None]
        noisy = torch.sqrt(bars) * a + torch.sqrt(1.0 - bars) * b["noise"]
        bc_loss = torch.mean((predicted(noisy, k, s, net) - b["noise"]) ** 2)
        pi = sample(s, net, b["policy_start"], b.get("policy_steps"), betas)
        up, size = value(s, pi, q1), value(s, pi, q2)
        if b["order"] <= 0:
            up, size = size, up
        q_loss = -eta * torch.mean(up) / torch.mean(torch.abs(size)).detach()
        policy_loss = bc_loss + q_loss
        net_optimizer.zero_grad()
        torch.autograd.backward(policy_loss)
        if grad_norm > 0:
            torch.nn.utils.clip_grad_norm_(net, grad_norm)
        net_optimizer.step()

        if t >= ema_start and t % ema_every == 0:
            for x, p in zip(average, net, strict=True):
                x.copy_(ema * x + (1.0 - ema) * p.detach())
        for q, bar in ((q1, q1_bar), (q2, q2_bar)):
            for p, p_bar in zip(q, bar, strict=True):
                p_bar.copy_(polyak * p.detach() + (1.0 - polyak) * p_bar)
        history.append(
            {
                "critic_loss": critic_loss.detach(),
                "q_data": first.detach().mean(),
                "target": y.mean(),
                "policy_loss": policy_loss.detach(),
                "bc_loss": bc_loss.detach(),
                "q_loss": q_loss.detach(),
                "q": up.detach().mean(),
            }
        )
    trained = {"net": net, "average": average, "q1": q1, "q2": q2}
    return {**trained, "q1_target": q1_bar, "q2_target": q2_bar}, history
