"""Regression of chunks of actions with a plain MLP written out; torch is all that it imports."""

import torch
from flat.diffusion_policy import Layers, Run, denoise, mean_of
from torch import Tensor


def train(
    nets: dict[str, Layers],
    batches: list[dict[str, Tensor]],
    total: int,
    *,
    mask_padding: bool,
    **optimised: float,
) -> tuple[dict[str, Layers], list[dict[str, Tensor]]]:
    run = Run(nets, total, **optimised)
    for b in batches:
        a = b["action"]
        answer = denoise(torch.zeros_like(a), torch.zeros_like(a[:, 0, 0]), b["obs"], run.net)
        run.step(mean_of((answer - a) ** 2, b["real"] if mask_padding else None))
    return run.result()
