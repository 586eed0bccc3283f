"""ODICE written out from its equations; torch is all that it imports.

`train` gets rewards as logged, with the returns of the episodes, and scales them; `imitate` makes
rewards of a classifier that it trains beside. `step` is ODICE's update on rewards as given.
"""

import math

import torch
from torch import Tensor

Layers = list[Tensor]  # W0, b0, W1, b1, ...; with normalisation W0, b0, g0, c0, W1, ...


def mlp(x: Tensor, layers: Layers) -> Tensor:
    for i in range(0, len(layers), 2):
        x = x @ layers[i] + layers[i + 1]
        x = torch.where(x > 0, x, 0.0) if i + 2 < len(layers) else x
    return x


def value(x: Tensor, layers: Layers, normalised: bool) -> Tensor:
    if not normalised:
        return mlp(x, layers)[:, 0]
    for i in range(0, len(layers) - 2, 4):
        x = x @ layers[i] + layers[i + 1]
        x = x - x.mean(1, keepdim=True)
        x = x / torch.sqrt((x * x).mean(1, keepdim=True) + 1e-5)
        x = x * layers[i + 2] + layers[i + 3]
        x = torch.where(x > 0, x, 0.0)
    return (x @ layers[-2] + layers[-1])[:, 0]


def conjugate(x: Tensor) -> Tensor:
    return torch.where(x > -2.0, x + x * x / 4.0, -1.0)


def flattened(loss: Tensor, parameters: Layers) -> Tensor:
    gradients = torch.autograd.grad(loss, parameters, retain_graph=True)
    return torch.cat([g.reshape(-1) for g in gradients])


class Nets:
    """Copies of the first weights, with targets and optimisers."""

    def __init__(self, nets: dict[str, Layers], lr: float, weight_decay: float) -> None:
        def copied(name: str) -> Layers:
            return [p.clone().requires_grad_() for p in nets[name]]

        self.actor, self.log_std = copied("actor"), copied("log_std")
        names = [n for n in nets if n.startswith("value") and not n.endswith("_target")]
        self.values = {n: copied(n) for n in sorted(names)}
        self.bars = {n: [p.detach().clone() for p in v] for n, v in self.values.items()}
        self.all_of_value = [p for v in self.values.values() for p in v]
        self.policy_adam = torch.optim.Adam(
            self.actor + self.log_std, lr, weight_decay=weight_decay
        )
        self.value_adam = torch.optim.Adam(self.all_of_value, lr)

    def trained(self) -> dict[str, Layers]:
        targets = {f"{n}_target": v for n, v in self.bars.items()}
        return {"actor": self.actor, "log_std": self.log_std, **self.values, **targets}


def step(
    nets: Nets,
    b: dict[str, Tensor],
    r: Tensor,
    *,
    dual_weight: float,
    eta: float,
    gradient: str,
    max_weight: float,
    layer_norm: bool,
    squash_mean: bool,
    gamma: float,
    polyak: float,
) -> dict[str, Tensor]:
    s, a, s2, mask = b["obs"], b["action"], b["next_obs"], b["mask"]
    n = len(nets.values)
    v = [value(s, net, layer_norm) for net in nets.values.values()]
    v2 = [value(s2, net, layer_norm) for net in nets.values.values()]
    bars = nets.bars.values()
    bar = torch.stack([value(s, net, layer_norm) for net in bars]).min(0).values
    bar2 = torch.stack([value(s2, net, layer_norm) for net in bars]).min(0).values

    if gradient == "true":
        forward = [r + gamma * mask * v2[k] - v[k] for k in range(n)]
    else:
        forward = [r + gamma * mask * bar2 - v[k] for k in range(n)]
    backward = [r + gamma * mask * v2[k] - bar for k in range(n)]
    clipped = [torch.clip(e.detach(), 0.0, max_weight) for e in forward]
    weight = sum(clipped[1:], clipped[0]) / n

    def mean(terms: list[Tensor]) -> Tensor:
        return torch.stack([x.mean() for x in terms]).sum() / n

    linear_loss = (1.0 - dual_weight) * mean(v)
    forward_loss = dual_weight * mean([conjugate(e) for e in forward])
    backward_loss = dual_weight * eta * mean([conjugate(e) for e in backward])
    g0 = flattened(linear_loss, nets.all_of_value)
    gf = flattened(forward_loss, nets.all_of_value)
    total, step_on = linear_loss + forward_loss, g0 + gf
    if gradient == "orthogonal":
        gb = flattened(backward_loss, nets.all_of_value)
        step_on = step_on + gb - (gf @ gb) / max(float(gf @ gf), 1e-10) * gf
        total = total + backward_loss
    at = 0
    for p in nets.all_of_value:
        p.grad = step_on[at : at + p.numel()].reshape(p.shape)
        at += p.numel()
    nets.value_adam.step()
    for name, net in nets.values.items():
        for p, p_bar in zip(net, nets.bars[name], strict=True):
            p_bar.copy_(polyak * p.detach() + (1.0 - polyak) * p_bar)

    mu = mlp(s, nets.actor)
    mu = torch.tanh(mu) if squash_mean else mu
    spread = torch.exp(torch.clip(nets.log_std[0], -5.0, 2.0))
    z = (a - mu) / spread
    log_prob = (-0.5 * z * z - torch.log(spread) - 0.5 * math.log(2.0 * math.pi)).sum(1)
    actor_loss = -torch.mean(weight * log_prob)
    nets.policy_adam.zero_grad()
    torch.autograd.backward(actor_loss)
    nets.policy_adam.step()
    return {
        "value_loss": total.detach(),
        "value": mean(v).detach(),
        "residual": mean(forward).detach(),
        "actor_loss": actor_loss.detach(),
        "log_prob": log_prob.detach().mean(),
        "weight": weight.mean(),
        "weighted_share": (weight > 0).double().mean(),
    }


def train(
    nets: dict[str, Layers],
    batches: list[dict[str, Tensor]],
    returns: list[float],
    *,
    lr: float,
    weight_decay: float,
    **settings: float | bool | str,
) -> tuple[dict[str, Layers], list[dict[str, Tensor]]]:
    own = Nets(nets, lr, weight_decay)
    scale = 1000.0 / (max(returns) - min(returns))
    history = [step(own, b, scale * b["raw_reward"], **settings) for b in batches]  # type: ignore[arg-type]
    return own.trained(), history


def imitate(
    nets: dict[str, Layers],
    batches: list[dict[str, Tensor]],
    expert_obs: Tensor,
    expert_action: Tensor,
    end_value: float,
    *,
    mixed: bool,
    penalty: float,
    discriminator_lr: float,
    lr: float,
    weight_decay: float,
    gamma: float,
    **settings: float | bool | str,
) -> tuple[dict[str, Layers], list[dict[str, Tensor]]]:
    own = Nets(nets, lr, weight_decay)
    history = []
    classifier: Layers = []
    if mixed:
        classifier = [p.clone().requires_grad_() for p in nets["discriminator"]]
        optimizer = torch.optim.Adam(classifier, discriminator_lr)
    for b in batches:
        pairs = torch.cat([b["obs"], b["action"]], 1)
        reward, metrics = torch.zeros(len(pairs)).double(), {}
        if mixed:
            uniform = 0.5 * (1.0 + torch.erf(b["expert"] / math.sqrt(2.0)))
            row = torch.floor(uniform * len(expert_obs)).long()
            expert = torch.cat([expert_obs[row], expert_action[row]], 1)
            share = 0.5 * (1.0 + torch.erf(b["between"] / math.sqrt(2.0)))[:, None]
            between = (share * expert + (1.0 - share) * pairs).requires_grad_()
            (slope,) = torch.autograd.grad(
                mlp(between, classifier).sum(), between, create_graph=True
            )
            # Where every unit is dead the slope is zero, and its root has no gradient.
            excess = (torch.sqrt((slope**2).sum(1) + 1e-12) - 1.0) ** 2
            yes, all_of = mlp(expert, classifier)[:, 0], mlp(pairs, classifier)[:, 0]
            right = torch.sigmoid(yes).log() + (1.0 - torch.sigmoid(all_of)).log()
            loss = -right.mean() + penalty * excess.mean()
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            reward = mlp(pairs, classifier)[:, 0].detach()
            reward = reward + gamma * (1.0 - b["mask"]) * end_value
            metrics = {
                "discriminator_loss": loss.detach(),
                "expert_logit": yes.detach().mean(),
                "logit": all_of.detach().mean(),
            }
        history.append(metrics | step(own, b, reward, gamma=gamma, **settings))  # type: ignore[arg-type]
    found = own.trained()
    return (found | {"discriminator": classifier} if mixed else found), history
