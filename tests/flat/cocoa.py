"""IQL with COCOA's networks, written out from the equations; torch is all that it imports.

A side of a bilinear network is a list W, b, gain, shift, W, b, gain, shift, ...; a critic is the
two sides and its own layers W, b, ...
"""

import math

import torch
from torch import Tensor

Layers = list[Tensor]


def norm(x: Tensor, gain: Tensor, shift: Tensor) -> Tensor:
    center = x - x.mean(1, keepdim=True)
    return gain * center / torch.sqrt((center**2).mean(1, keepdim=True) + 1e-5) + shift


def side(x: Tensor, layers: Layers) -> Tensor:
    for i in range(0, len(layers), 4):
        weight, bias, gain, shift = layers[i : i + 4]
        x = x @ weight + bias
        if i + 4 < len(layers):
            x = torch.where(x > 0, x, 0.0)
        x = norm(x, gain, shift)
    return x


def network(delta: Tensor, anchor: Tensor, layers: Layers, inner: int, rank: int) -> Tensor:
    """`inner` layers before the last on each side, then the plain ones."""
    count = 4 * (inner + 1)
    f, g = side(delta, layers[:count]), side(anchor, layers[count : 2 * count])
    x = torch.stack(
        [
            (f[:, t * rank : (t + 1) * rank] * g[:, t * rank : (t + 1) * rank]).sum(1)
            for t in range(f.shape[1] // rank)
        ],
        1,
    )
    plain = layers[2 * count :]
    for i in range(0, len(plain), 2):
        x = x @ plain[i] + plain[i + 1]
        if i + 2 < len(plain):
            x = torch.where(x > 0, x, 0.0)
    return x


def anchor_of(obs: Tensor, seeker: Layers, model: Layers, scale: Layers, horizon: int) -> Tensor:
    """`seeker` has LayerNorm after each ReLU; `model` is W, b, ... by member, without bounds."""
    mean, std = scale
    for _ in range(horizon):
        x = obs
        for i in range(0, len(seeker) - 2, 4):
            x = torch.clip(x @ seeker[i] + seeker[i + 1], min=0.0)
            x = norm(x, seeker[i + 2], seeker[i + 3])
        action = torch.tanh(x @ seeker[-2] + seeker[-1])
        ends = []
        for k in range(len(model[0])):
            y = (torch.cat([obs, action], 1) - mean) / std
            for i in range(0, len(model), 2):
                y = y @ model[i][k] + model[i + 1][k]
                if i + 2 < len(model):
                    y = y / (1.0 + torch.exp(-y))
            ends.append(obs + y[:, : obs.shape[1]])
        obs = sum(ends) / len(ends)  # type: ignore[assignment]
    return obs


def train(
    nets: dict[str, Layers],
    batches: list[dict[str, Tensor]],
    returns: list[float],
    anchors: dict[str, Layers],
    *,
    cocoa_rank: int,
    cocoa_hidden: tuple[int, ...],
    cocoa_horizon: int,
    expectile: float,
    beta: float,
    max_weight: float,
    gamma: float,
    lr: float,
    polyak: float,
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
    inner = len(cocoa_hidden)

    def of(parts: tuple[Tensor, Tensor], layers: Layers) -> Tensor:
        return network(parts[0], parts[1], layers, inner, cocoa_rank)

    history = []
    for b in batches:
        a = b["action"]
        pairs, beside = [], []
        for s in (b["obs"], b["next_obs"]):
            anchor = anchor_of(
                s, anchors["seeker"], anchors["model"], anchors["scale"], cocoa_horizon
            )
            pairs.append((s - anchor, anchor))
            beside.append((torch.cat([s - anchor, a], 1), torch.cat([anchor, a], 1)))
        here, then, with_action = pairs[0], pairs[1], beside[0]
        q_bar = torch.minimum(of(with_action, q1_bar)[:, 0], of(with_action, q2_bar)[:, 0])

        v_s = of(here, v)[:, 0]
        u = q_bar - v_s
        value_loss = torch.mean(torch.where(u < 0, 1.0 - expectile, expectile) * u**2)
        value_optimizer.zero_grad()
        torch.autograd.backward(value_loss)
        value_optimizer.step()

        advantage = q_bar - of(here, v)[:, 0].detach()
        weight = torch.clip(torch.exp(beta * advantage), max=max_weight)
        mean = torch.tanh(of(here, actor))
        spread = torch.exp(torch.clip(log_std[0], -5.0, 2.0))
        log_prob = (
            -0.5 * ((a - mean) / spread) ** 2 - torch.log(spread) - 0.5 * math.log(2.0 * math.pi)
        ).sum(1)
        actor_loss = -torch.mean(weight * log_prob)
        actor_optimizer.zero_grad()
        torch.autograd.backward(actor_loss)
        actor_optimizer.step()

        y = reward_scale * b["raw_reward"] + gamma * b["mask"] * of(then, v)[:, 0].detach()
        first, second = of(with_action, q1)[:, 0], of(with_action, q2)[:, 0]
        critic_loss = torch.mean((first - y) ** 2) + torch.mean((second - y) ** 2)
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
