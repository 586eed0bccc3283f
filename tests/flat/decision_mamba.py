"""Decision Mamba written out token by token, without padding; torch is all that it imports."""

import torch
from flat.dt import in_turn, norm, optimizer_of, step
from torch import Tensor

Layers = list[Tensor]
MIXER = 9  # parameters of one Mamba
LAYER = 23  # of a layer: norm, coarse, fine, merge (2), fine norm (2)


def gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1.0 + torch.erf(x / 2.0**0.5))


def silu(x: Tensor) -> Tensor:
    return x / (1.0 + torch.exp(-x))


def rms(x: Tensor, gain: Tensor) -> Tensor:
    return x / torch.sqrt(torch.mean(x * x, -1, keepdim=True) + 1e-5) * gain


def mamba(x: Tensor, p: Layers) -> Tensor:
    """(batch, tokens, width), one token after the other."""
    log_rates, skip, into, conv, conv_bias, select, step_w, step_b, out = p
    inner, states = log_rates.shape
    rank = step_w.shape[1]
    h = torch.zeros(len(x), inner, states, dtype=x.dtype)
    window = [torch.zeros(len(x), inner, dtype=x.dtype)] * conv.shape[2]
    outputs = []
    for t in range(x.shape[1]):
        both = x[:, t] @ into.T
        u, z = both[:, :inner], both[:, inner:]
        window = [*window[1:], u]
        v = conv_bias + sum((w * conv[:, 0, i] for i, w in enumerate(window)), torch.zeros(()))
        v = silu(v)
        said = v @ select.T
        delta = torch.log1p(torch.exp(said[:, :rank] @ step_w.T + step_b))
        b, c = said[:, rank : rank + states], said[:, rank + states :]
        h = torch.exp(-delta[..., None] * torch.exp(log_rates)) * h
        h = h + (delta * v)[..., None] * b[:, None]
        y = torch.sum(h * c[:, None], -1) + skip * v
        outputs.append((y * silu(z)) @ out.T)
    return torch.stack(outputs, 1)


def layer(x: Tensor, p: Layers) -> Tensor:
    """(batch, 3 steps, width) in the order return, observation, action."""
    gain, merge, merge_bias, fine_gain, fine_shift = p[0], *p[-4:]
    normed = rms(x, gain)
    coarse = mamba(normed, p[1 : 1 + MIXER])
    batch, tokens, width = x.shape
    threes = normed.reshape(batch, tokens // 3, 3, width)
    vector = merge_bias + sum(
        (threes[:, :, k] @ merge[:, :, k].T for k in range(3)), torch.zeros(())
    )
    fine = norm(mamba(vector, p[1 + MIXER : 1 + 2 * MIXER]), fine_gain, fine_shift)
    earlier = torch.cat([torch.zeros(batch, 1, width, dtype=x.dtype), fine[:, :-1]], 1)
    return x + coarse + torch.repeat_interleave(earlier, 3, 1)


def embedded(x: Tensor, p: Layers) -> Tensor:
    h = x @ p[0].T + p[1]
    return h if len(p) == 2 else h + gelu(h) @ p[2].T + p[3]


def predict(
    net: Layers, to_go: Tensor, obs: Tensor, action: Tensor, time: Tensor, linear: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Actions at the observations; at the actions the next observation and return."""
    n = 2 if linear else 4
    times, gain, shift = net[3 * n : 3 * n + 3]
    tokens = in_turn(
        embedded(to_go[..., None], net[n : 2 * n]),
        embedded(obs, net[2 * n : 3 * n]),
        embedded(action, net[:n]),
    )
    spent = torch.repeat_interleave(times[torch.clamp(time, max=len(times) - 1)], 3, 1)
    x = norm(tokens, gain, shift) + spent
    at, tail = 3 * n + 3, 1 + (2 if linear else 4) + 4
    while at + tail < len(net):
        x = layer(x, net[at : at + LAYER])
        at += LAYER
    last, *head = net[at:-4]
    x = rms(x, last)
    y = x[:, 1::3] @ head[0].T + head[1]
    y = torch.tanh(y) if linear else gelu(y) @ head[2].T + head[3]
    ws, bs, wr, br = net[-4:]
    return y, x[:, 2::3] @ ws.T + bs, (x[:, 2::3] @ wr.T + br)[..., 0]


def huber(x: Tensor) -> Tensor:
    return torch.where(torch.abs(x) < 1.0, 0.5 * x * x, torch.abs(x) - 0.5)


def by_length(b: dict[str, Tensor]) -> list[list[Tensor]]:
    """Return, observation, action and time of the rows that have the same number of steps."""
    lengths = torch.sum(b["real"], 1).long()
    names = ("to_go", "obs", "action", "time")
    return [
        [b[name][lengths == n][:, b["real"].shape[1] - n :] for name in names]
        for n in sorted(set(lengths.tolist()))
    ]


def train(
    nets: dict[str, Layers],
    batches: list[dict[str, Tensor]],
    total: int,
    *,
    embed: str,
    alpha: float,
    max_share: float,
    polyak: float,
    action_weight: float,
    obs_weight: float,
    return_weight: float,
    lr: float,
    warmup: int,
    weight_decay: float,
    grad_norm: float,
) -> tuple[dict[str, Layers], list[dict[str, Tensor]]]:
    actor = [p.clone().requires_grad_() for p in nets["actor"]]
    target = [p.clone() for p in nets["actor_target"]]
    linear = embed == "linear"
    time = 6 if linear else 12
    rates = [i for i, p in enumerate(actor) if p.ndim == 2 and p.shape[1] == 16 and i > time]
    rates = [i for i in rates if torch.equal(actor[i][0], actor[i][1])]  # log 1 .. log 16 each
    optimizer = optimizer_of(actor, [time, *rates], lr, weight_decay)
    history = []
    for t, b in enumerate(batches):
        share = min(max_share, alpha * (t + 1) / total)
        sums = torch.zeros(3, dtype=torch.float64)
        counts = torch.zeros(3, dtype=torch.float64)
        for to_go, obs, action, when in by_length(b):
            with torch.no_grad():
                past = predict(target, to_go, obs, action, when, linear)[0]
            goal = (1.0 - share) * action + share * past
            said, next_obs, next_to_go = predict(actor, to_go, obs, action, when, linear)
            errors = [
                torch.mean((said - goal) ** 2, -1),
                torch.mean(huber(next_obs[:, :-1] - obs[:, 1:]), -1),
                huber(next_to_go[:, :-1] - to_go[:, 1:]),
            ]
            sums = sums + torch.stack([torch.sum(e) for e in errors])
            counts = counts + torch.tensor([float(e.numel()) for e in errors])
        means = sums / torch.clamp(counts, min=1.0)
        weights = torch.tensor([action_weight, obs_weight, return_weight], dtype=torch.float64)
        loss = torch.sum(weights * means)
        step(optimizer, loss, t, lr, warmup, grad_norm)
        for a, p in zip(target, actor, strict=True):
            a.copy_((1.0 - polyak) * a + polyak * p.detach())
        names = ("action_loss", "obs_error", "return_error")
        measured = dict(zip(names, means.detach(), strict=True))
        measured |= {"actor_loss": loss.detach(), "share": torch.tensor(share).double()}
        history.append(measured)
    return {"actor": actor, "actor_target": target}, history
