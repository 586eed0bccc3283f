"""Rectified flow with a plain MLP written out; torch is all that it imports."""

from flat.diffusion_policy import Layers, Run, denoise, mean_of, uniform
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
        t, a, eps = uniform(b["level"]), b["action"], b["noise"]
        x = t[:, None, None] * a + (1.0 - t[:, None, None]) * eps
        error = (denoise(x, 1000.0 * t, b["obs"], run.net) - (a - eps)) ** 2
        run.step(mean_of(error, b["real"] if mask_padding else None))
    return run.result()
