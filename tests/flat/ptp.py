"""Past-token prediction with a plain MLP written out; torch is all that it imports."""

import torch
from flat.diffusion_policy import Layers, denoise, follow, kept, optimizer_of, rate_at, uniform
from torch import Tensor


def features(obs: Tensor, encoder: Layers) -> Tensor:
    """Of each observation by itself: (batch, history, features)."""
    hidden = torch.relu(obs @ encoder[0] + encoder[1])
    return hidden @ encoder[2] + encoder[3]


def train(
    nets: dict[str, Layers],
    batches: list[dict[str, Tensor]],
    total: int,
    *,
    encoded: bool,
    past_steps: int,
    levels: int,
    mask_padding: bool,
    lr: float,
    warmup: float,
    weight_decay: float,
    beta1: float,
    beta2: float,
    ema_power: float,
    ema_max: float,
) -> tuple[dict[str, Layers], list[dict[str, Tensor]]]:
    net = [p.clone().requires_grad_() for p in nets["net"]]
    average = [p.detach().clone() for p in net]
    optimizer = optimizer_of(net, lr, weight_decay, (beta1, beta2))
    bars = kept(levels)
    history = []
    for t, b in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = rate_at(t, total, lr, warmup)
        k = torch.floor(uniform(b["level"]) * levels)
        bar = bars[k.long()][:, None, None]
        a, eps, obs = b["action"], b["noise"], b["obs"]
        x = torch.sqrt(bar) * a + torch.sqrt(1.0 - bar) * eps
        # Layers of the encoder, if there is one, come first.
        seen = features(obs, net[:4]) if encoded else obs
        error = (denoise(x, k, seen, net[4:] if encoded else net) - eps) ** 2
        past = obs.shape[1] - 1
        first = 0 if past_steps < 0 else past - past_steps
        real = b["real"] if mask_padding else torch.ones_like(b["real"])
        there = real[:, first:, None].expand(error[:, first:].shape)
        loss = torch.mean((there * error[:, first:]).sum((1, 2)) / there.sum((1, 2)))
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        follow(average, net, t, ema_power, ema_max)
        history.append({"loss": loss.detach()})
    return {"net": net, "average": average}, history
