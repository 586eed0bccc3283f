"""Flow Q-learning written out; torch is all that it imports."""

import math

import torch
from torch import Tensor

Layers = list[Tensor]  # W0, b0, W1, b1, ...; of a critic W, b, scale and shift, then W, b


def gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)))


def field(parts: list[Tensor], layers: Layers) -> Tensor:
    x = torch.cat(parts, 1)
    for i in range(0, len(layers) - 2, 2):
        x = gelu(x @ layers[i] + layers[i + 1])
    return x @ layers[-2] + layers[-1]


def value(obs: Tensor, action: Tensor, layers: Layers) -> Tensor:
    x = torch.cat([obs, action], 1)
    for i in range(0, len(layers) - 2, 4):
        x = gelu(x @ layers[i] + layers[i + 1])
        centred = x - x.mean(1, keepdim=True)
        spread = torch.sqrt(torch.mean(centred**2, 1, keepdim=True) + 1e-5)
        x = layers[i + 2] * centred / spread + layers[i + 3]
    return (x @ layers[-2] + layers[-1])[:, 0]


def train(
    nets: dict[str, Layers],
    batches: list[dict[str, Tensor]],
    *,
    alpha: float,
    normalize_q: bool,
    q_agg: str,
    flow_steps: int,
    gamma: float,
    lr: float,
    polyak: float,
) -> tuple[dict[str, Layers], list[dict[str, Tensor]]]:
    flow, student, q1, q2 = (
        [p.clone().requires_grad_() for p in nets[n]] for n in ("flow", "student", "q1", "q2")
    )
    q1_bar, q2_bar = ([p.detach().clone() for p in q] for q in (q1, q2))
    optimizer = torch.optim.Adam(flow + student + q1 + q2, lr)
    history = []
    for b in batches:
        s, a, s2 = b["obs"], b["action"], b["next_obs"]
        with torch.no_grad():
            a2 = torch.clip(field([s2, b["next_z"][:, 0]], student), -1.0, 1.0)
            both = torch.stack([value(s2, a2, q1_bar), value(s2, a2, q2_bar)])
            later = both.min(0).values if q_agg == "min" else both.mean(0)
            y = b["reward"] + gamma * b["mask"] * later
            z = b["z_start"][:, 0]
            goal = z
            for i in range(flow_steps):
                time = torch.full((len(s), 1), i / flow_steps).double()
                goal = goal + field([s, goal, time], flow) / flow_steps
            goal = torch.clip(goal, -1.0, 1.0)

        time = 0.5 * (1.0 + torch.erf(b["level"][:, None] / math.sqrt(2.0)))
        between = time * a + (1.0 - time) * b["noise"]
        bc_loss = torch.mean((field([s, between, time], flow) - (a - b["noise"])) ** 2)
        made = field([s, z], student)
        distillation = torch.mean((made - goal) ** 2)
        kept = torch.clip(made, -1.0, 1.0)
        # The critics' values move the student; they are not moved by it.
        still = [[p.detach() for p in q] for q in (q1, q2)]
        q = (value(s, kept, still[0]) + value(s, kept, still[1])) / 2.0
        scale = 1.0 / torch.mean(torch.abs(q)).detach() if normalize_q else 1.0
        actor_loss = bc_loss + alpha * distillation - scale * torch.mean(q)

        first, second = value(s, a, q1), value(s, a, q2)
        critic_loss = torch.mean((first - y) ** 2) + torch.mean((second - y) ** 2)
        optimizer.zero_grad()
        torch.autograd.backward(actor_loss + critic_loss)
        optimizer.step()
        for net, bar in ((q1, q1_bar), (q2, q2_bar)):
            for p, p_bar in zip(net, bar, strict=True):
                p_bar.copy_(polyak * p.detach() + (1.0 - polyak) * p_bar)
        history.append(
            {
                "actor_loss": actor_loss.detach(),
                "bc_loss": bc_loss.detach(),
                "distillation": distillation.detach(),
                "q": q.detach().mean(),
                "critic_loss": critic_loss.detach(),
                "q_data": first.detach().mean(),
                "target": y.mean(),
            }
        )
    trained = {"flow": flow, "student": student, "q1": q1, "q2": q2}
    return {**trained, "q1_target": q1_bar, "q2_target": q2_bar}, history
