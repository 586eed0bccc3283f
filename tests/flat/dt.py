"""Decision Transformer written out in the order of its tokens; torch is all that it imports."""

import torch
from torch import Tensor

Layers = list[Tensor]
BLOCK = 16  # parameters of a transformer's block
EMBED = 9  # of the embeddings: action, return, observation, time, norm


def norm(x: Tensor, gain: Tensor, shift: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / torch.sqrt((centred**2).mean(-1, keepdim=True) + 1e-5) * gain + shift


def in_turn(to_go: Tensor, obs: Tensor, action: Tensor) -> Tensor:
    """R_1, s_1, a_1, R_2, ... of vectors (batch, steps, width) each."""
    batch, steps, width = obs.shape
    return torch.stack([to_go, obs, action], 2).reshape(batch, 3 * steps, width)


def attend(x: Tensor, p: Layers, heads: int, hidden: Tensor) -> Tensor:
    size = x.shape[-1] // heads
    outputs = []
    q, k, v = (x @ p[i].T + p[i + 1] for i in (0, 2, 4))
    for h in range(heads):
        part = slice(h * size, (h + 1) * size)
        score = q[..., part] @ k[..., part].transpose(1, 2) / size**0.5
        score = torch.where(hidden, -1e30, score)
        outputs.append(torch.softmax(score, -1) @ v[..., part])
    return torch.cat(outputs, -1) @ p[6].T + p[7]


def blocks(net: Layers, x: Tensor, real: Tensor, heads: int, activation: str) -> Tensor:
    """Blocks and a last norm over three tokens a step."""
    tokens = x.shape[1]
    real = torch.repeat_interleave(real, 3, 1)
    order = torch.arange(tokens)
    hidden = (order[None, :, None] < order[None, None, :]) | (real[:, None, :] == 0)
    hidden = hidden & (order[:, None] != order[None, :])
    for at in range(0, len(net) - 2, BLOCK):
        p = net[at : at + BLOCK]
        x = x + attend(norm(x, p[0], p[1]), p[2:10], heads, hidden)
        h = norm(x, p[10], p[11]) @ p[12].T + p[13]
        h = torch.where(h > 0, h, 0.0) if activation == "relu" else torch.nn.functional.gelu(h)
        x = x + h @ p[14].T + p[15]
    return norm(x, net[-2], net[-1])


def predict(net: Layers, b: dict[str, Tensor], *, heads: int, activation: str) -> Tensor:
    """(batch, steps, act)."""
    wa, ba, wr, br, ws, bs, times, gain, shift = net[:EMBED]
    time = times[torch.clamp(b["time"], max=len(times) - 1)]
    to_go = b["to_go"][..., None] @ wr.T + br + time
    obs, action = b["obs"] @ ws.T + bs + time, b["action"] @ wa.T + ba + time
    x = norm(in_turn(to_go, obs, action), gain, shift)

    x = blocks(net[EMBED:-2], x, b["real"], heads, activation)
    w, bias = net[-2:]
    return torch.tanh(x[:, 1::3] @ w.T + bias)


def over_real(error: Tensor, real: Tensor) -> Tensor:
    """Mean of (batch, steps, n) over what is real."""
    count = max(float(real.sum()), 1.0) * error.shape[-1]
    return torch.sum(error * real[..., None]) / count


def optimizer_of(net: Layers, kept: list[int], lr: float, decay: float) -> torch.optim.AdamW:
    """All parameters shrink but those that are kept, and vectors."""
    still = [i for i, p in enumerate(net) if i in kept or p.ndim < 2]
    groups = [
        {"params": [p for i, p in enumerate(net) if i not in still], "weight_decay": decay},
        {"params": [net[i] for i in still], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr)


def step(
    optimizer: torch.optim.AdamW, loss: Tensor, t: int, lr: float, warmup: int, grad_norm: float
) -> None:
    optimizer.zero_grad()
    torch.autograd.backward(loss)
    for group in optimizer.param_groups:
        group["lr"] = float(torch.tensor(lr * min((t + 1) / warmup, 1.0)))
    if grad_norm:
        everything = [p for group in optimizer.param_groups for p in group["params"]]
        torch.nn.utils.clip_grad_norm_(everything, grad_norm)
    optimizer.step()


def train(
    nets: dict[str, Layers],
    batches: list[dict[str, Tensor]],
    *,
    heads: int,
    activation: str,
    lr: float,
    warmup: int,
    weight_decay: float,
    grad_norm: float,
) -> tuple[dict[str, Layers], list[dict[str, Tensor]]]:
    actor = [p.clone().requires_grad_() for p in nets["actor"]]
    optimizer = optimizer_of(actor, [6], lr, weight_decay)
    history = []
    for t, b in enumerate(batches):
        error = (predict(actor, b, heads=heads, activation=activation) - b["action"]) ** 2
        loss = over_real(error, b["real"])
        step(optimizer, loss, t, lr, warmup, grad_norm)
        history.append({"actor_loss": loss.detach()})
    return {"actor": actor}, history
