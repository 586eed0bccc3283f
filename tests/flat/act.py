"""ACT and ACT-JEPA written out from their equations; torch is all that they import."""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

Layers = list[Tensor]
Rest = Iterator[Tensor]  # of such a list, what is not read yet
Read = dict[str, Any]  # parts of a network by name


def linear(rest: Rest) -> tuple[Tensor, Tensor]:
    return next(rest), next(rest)


def sublayers(rest: Rest, count: int) -> list[Read]:
    found = []
    for _ in range(count):
        attention = [linear(rest) for _ in range(4)]
        norm, up, down, last = (linear(rest) for _ in range(4))
        found.append({"attention": attention, "norm": norm, "up": up, "down": down, "last": last})
    return found


def decoder(rest: Rest, count: int) -> Read:
    query, layers = next(rest), sublayers(rest, count)
    cross = [[linear(rest) for _ in range(4)] for _ in range(count)]
    norms = [linear(rest) for _ in range(count)]
    return {"query": query, "layers": layers, "cross": cross, "norms": norms, "norm": linear(rest)}


def of_net(net: Layers, depth: int, decoder_layers: int, styled: bool) -> Read:
    rest = iter(net)
    read: Read = {"style": linear(rest)} if styled else {}
    read |= {"obs": linear(rest), "place": next(rest)}
    read["encoder"] = sublayers(rest, depth)
    read |= {"decoder": decoder(rest, decoder_layers), "head": linear(rest)}
    return read


def of_style(net: Layers, depth: int) -> Read:
    rest = iter(net)
    read = {"first": next(rest), "obs": linear(rest), "action": linear(rest)}
    return read | {"encoder": sublayers(rest, depth), "head": linear(rest)}


def of_predictor(net: Layers, decoder_layers: int) -> Read:
    rest = iter(net)
    return {"place": next(rest), "decoder": decoder(rest, decoder_layers), "head": linear(rest)}


def apply(layer: tuple[Tensor, Tensor], x: Tensor) -> Tensor:
    return x @ layer[0].T + layer[1]


def normalise(x: Tensor, layer: tuple[Tensor, Tensor] | None = None) -> Tensor:
    spread = x.var(-1, unbiased=False, keepdim=True)
    x = (x - x.mean(-1, keepdim=True)) / torch.sqrt(spread + 1e-5)
    return x if layer is None else x * layer[0] + layer[1]


def attend(
    layers: list[tuple[Tensor, Tensor]],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    heads: int,
    hidden: Tensor | None = None,
) -> Tensor:
    """`hidden` is true where a query, (batch, query, key), must not look."""
    size = query.shape[-1] // heads
    parts = []
    q, k, v = (apply(w, x) for w, x in zip(layers, (query, key, value), strict=False))
    for h in range(heads):
        mine = slice(h * size, (h + 1) * size)
        scores = q[..., mine] @ k[..., mine].transpose(1, 2) / math.sqrt(size)
        if hidden is not None:
            scores = scores.masked_fill(hidden, -math.inf)
        parts.append(torch.softmax(scores, -1) @ v[..., mine])
    return apply(layers[3], torch.cat(parts, -1))


def mix(layer: Read, x: Tensor, place: Tensor, heads: int, hidden: Tensor | None = None) -> Tensor:
    there = x + place
    return normalise(x + attend(layer["attention"], there, there, x, heads, hidden), layer["norm"])


def last(layer: Read, x: Tensor) -> Tensor:
    inner = apply(layer["up"], x)
    return normalise(x + apply(layer["down"], inner * (inner > 0)), layer["last"])


def encode(
    layers: list[Read], x: Tensor, place: Tensor, heads: int, real: Tensor | None = None
) -> Tensor:
    hidden = None
    if real is not None:
        itself = torch.eye(x.shape[1]) > 0
        hidden = (real[:, None, :] == 0) & ~itself
    for layer in layers:
        x = last(layer, mix(layer, x, place, heads, hidden))
    return x


def decode(read: Read, memory: Tensor, place: Tensor, heads: int) -> Tensor:
    query = read["query"]
    x = torch.zeros(len(memory), *query.shape, dtype=query.dtype)
    for layer, cross, norm in zip(read["layers"], read["cross"], read["norms"], strict=True):
        x = mix(layer, x, query, heads)
        looked = attend(cross, x + query, memory + place, memory, heads)
        x = last(layer, normalise(x + looked, norm))
    return normalise(x, read["norm"])


def sinusoids(count: int, width: int) -> Tensor:
    half = width // 2
    rate = torch.exp(-math.log(10_000.0) / (half - 1) * torch.arange(half).double())
    angle = torch.arange(count).double()[:, None] * rate
    return torch.cat([torch.sin(angle), torch.cos(angle)], 1)


def style_of(read: Read, b: dict[str, Tensor], heads: int) -> tuple[Tensor, Tensor]:
    first = read["first"].expand(len(b["obs"]), 1, -1)
    obs = apply(read["obs"], b["obs"][:, -1:])
    tokens = torch.cat([first, obs, apply(read["action"], b["action"])], 1)
    real = torch.cat([torch.ones(len(tokens), 2).double(), b["real"]], 1)
    place = sinusoids(tokens.shape[1], tokens.shape[2])
    summary = encode(read["encoder"], tokens, place, heads, real)[:, 0]
    out = apply(read["head"], summary)
    half = out.shape[1] // 2
    return out[:, :half], out[:, half:] / 2.0


def groups_of(params: Layers, embeddings: list[Tensor], decay: float) -> list[Read]:
    """Matrices of layers shrink; vectors, and tables of embeddings, do not."""
    tables = {id(e) for e in embeddings}
    shrink = [p for p in params if p.ndim == 2 and id(p) not in tables]
    ids = {id(p) for p in shrink}
    rest = [p for p in params if id(p) not in ids]
    return [
        {"params": shrink, "weight_decay": decay},
        {"params": rest, "weight_decay": 0.0},
    ]


def train(
    nets: dict[str, Layers],
    batches: list[dict[str, Tensor]],
    total: int,
    *,
    depth: int,
    decoder_layers: int,
    heads: int,
    lr: float,
    weight_decay: float,
    kl_weight: float = 0.0,
    latent_weight: float = 0.0,
    target_decay: float = 1.0,
) -> tuple[dict[str, Layers], list[dict[str, Tensor]]]:
    params = {
        name: [p.clone().requires_grad_() for p in nets[name]]
        for name in ("net", "style", "predictor")
        if name in nets
    }
    styled, foretold = "style" in params, "predictor" in params
    net = of_net(params["net"], depth, decoder_layers, styled)
    tables = [net["place"], net["decoder"]["query"]]
    if styled:
        style = of_style(params["style"], depth)
        tables += [style["first"]]
    if foretold:
        predictor = of_predictor(params["predictor"], decoder_layers)
        tables += [predictor["place"], predictor["decoder"]["query"]]
        copy = [p.detach().clone() for p in params["net"]]
        target_net = of_net(copy, depth, decoder_layers, styled)
    everything = [p for part in params.values() for p in part]
    optimizer = torch.optim.AdamW(groups_of(everything, tables, weight_decay), lr)
    history = []
    for t, b in enumerate(batches):
        tokens = apply(net["obs"], b["obs"])
        if styled:
            mean, log_std = style_of(style, b, heads)
            z = mean + torch.exp(log_std) * b["style"]
            tokens = torch.cat([apply(net["style"], z)[:, None], tokens], 1)
        memory = encode(net["encoder"], tokens, net["place"], heads)
        answer = apply(net["head"], decode(net["decoder"], memory, net["place"], heads))
        apart = torch.abs(answer - b["action"]).mean(2)
        error = (b["real"] * apart).sum(1) / b["real"].sum(1)
        loss = torch.mean(error)
        found = {"chunk_error": loss}
        if styled:
            kl = 0.5 * (mean**2 + torch.exp(2.0 * log_std) - 1.0 - 2.0 * log_std).sum(1)
            loss = loss + kl_weight * torch.mean(kl)
            found |= {"divergence": torch.mean(kl)}
        if foretold:
            later = apply(target_net["obs"], b["later_obs"])
            place = sinusoids(later.shape[1], later.shape[2])
            target = normalise(
                encode(target_net["encoder"], later, place, heads, b["later_real"])
            ).detach()
            said = apply(
                predictor["head"], decode(predictor["decoder"], memory, predictor["place"], heads)
            )
            apart = torch.abs(said - target).mean(2)
            count = torch.clip(b["later_real"].sum(1), min=1.0)
            latents = torch.mean((b["later_real"] * apart).sum(1) / count)
            loss = loss + latent_weight * latents
            spread = target[b["later_real"] > 0].std(0, unbiased=False).mean()
            found |= {"latent_error": latents, "target_std": spread}
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        if foretold:
            rate = (1.0 - target_decay) * (1.0 - t / total)
            for p, p_bar in zip(params["net"], copy, strict=True):
                p_bar.copy_(p_bar + rate * (p.detach() - p_bar))
        history.append({"loss": loss.detach(), **{k: v.detach() for k, v in found.items()}})
    return {**params, **({"target": copy} if foretold else {})}, history
