"""Consistency training with a plain MLP written out; torch is all that it imports."""

import math

import torch
from flat.diffusion_policy import Layers, Run, denoise, uniform
from torch import Tensor

RHO = 7.0
LOCATION, SCALE = -1.1, 2.0  # of ln(sigma) in the density of levels


def grid(low: float, high: float, intervals: int) -> Tensor:
    ends = low ** (1 / RHO), high ** (1 / RHO)
    places = [i / intervals for i in range(intervals + 1)]
    levels = [(ends[0] + p * (ends[1] - ends[0])) ** RHO for p in places]
    return torch.tensor(levels, dtype=torch.float64)


def intervals_at(t: int, total: int, first: int, last: int) -> int:
    doubled = math.floor(t / max(math.floor(total / (math.log2(last / first) + 1)), 1))
    return min(first * 2**doubled, last)


def probability(sigma: float) -> float:
    return 0.5 * (1.0 + math.erf((math.log(sigma) - LOCATION) / (SCALE * math.sqrt(2.0))))


def interval_of(normal: Tensor, levels: Tensor) -> Tensor:
    """The number of the interval that holds the draw of a log-normal cut at the ends."""
    low, high = probability(float(levels[0])), probability(float(levels[-1]))
    u = low + (high - low) * uniform(normal)
    sigma = torch.exp(LOCATION + SCALE * math.sqrt(2.0) * torch.erfinv(2.0 * u - 1.0))
    return (torch.searchsorted(levels, sigma, right=True) - 1).clamp(0, len(levels) - 2)


def answer(x: Tensor, sigma: Tensor, obs: Tensor, net: Layers, spread: float, low: float) -> Tensor:
    s = sigma[:, None, None]
    skip = spread**2 / ((s - low) ** 2 + spread**2)
    out = (s - low) * spread / torch.sqrt(s**2 + spread**2)
    scaled = x / torch.sqrt(s**2 + spread**2)
    return skip * x + out * denoise(scaled, 1000.0 * torch.log(sigma) / 4.0, obs, net)


def train(
    nets: dict[str, Layers],
    batches: list[dict[str, Tensor]],
    total: int,
    *,
    sigma_data: float,
    sigma_min: float,
    sigma_max: float,
    first_levels: int,
    last_levels: int,
    huber: float,
    mask_padding: bool,
    **optimised: float,
) -> tuple[dict[str, Layers], list[dict[str, Tensor]]]:
    run = Run(nets, total, **optimised)
    for t, b in enumerate(batches):
        levels = grid(sigma_min, sigma_max, intervals_at(t, total, first_levels, last_levels))
        i = interval_of(b["level"], levels)
        a, eps = b["action"], b["noise"]
        found = []
        for sigma in (levels[i + 1], levels[i]):
            x = a + sigma[:, None, None] * eps
            found.append(answer(x, sigma, b["obs"], run.net, sigma_data, sigma_min))
        error = found[0] - found[1].detach()
        if mask_padding:
            error = error * b["real"][:, :, None]
        c = huber * math.sqrt(a[0].numel())
        distance = torch.sqrt((error**2).sum((1, 2)) + c**2) - c
        run.step(torch.mean(distance / (levels[i + 1] - levels[i])))
    return run.result()
