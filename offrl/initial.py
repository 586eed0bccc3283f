"""First numbers of plain torch modules, drawn from a learner's own stream.

Torch gives a new layer numbers of its process-wide generator, which depend on everything drawn
before and on the build of torch. `redraw` replaces them all, so that a seed gives the same
network on every machine. Layers of `offrl.networks` have drawn theirs from the stream already.
"""

import torch
from torch import Tensor, nn

from offrl.errors import ConfigError
from offrl.networks import Learners, Stacked


@torch.no_grad()
def redraw(module: nn.Module, learners: Learners, std: float | None = None) -> None:
    """Give every parameter of `module` first numbers according to its kind.

    | kind | without std | with std |
    |---|---|---|
    | weights of Linear, Conv1d, ConvTranspose1d | U(-b, b), b = 1 / sqrt(n) | N(0, std^2) |
    | their biases | U(-b, b) | 0 |
    | LayerNorm, GroupNorm | 1, 0 | 1, 0 |
    | Embedding | N(0, 1) | N(0, std^2) |
    | parameters of a module that is not torch's, such as positions | refused | N(0, std^2) |

    n counts the inputs of one output as torch does, by the weight's second axis and what follows:
    for a transposed convolution that is outputs times kernel. The first column is thus torch's own
    distribution, the second that of minGPT and its successors. Raises ConfigError for more than
    one learner, TypeError for a parameter without a rule: it would keep an unseeded number.
    """
    if learners.shape:
        raise ConfigError(
            f"{type(module).__name__} is a network of one learner; {len(learners.seeds)} seeds "
            "need one network each"
        )
    for part in module.modules():
        if isinstance(part, Stacked):
            continue
        for name, parameter in part.named_parameters(recurse=False):
            parameter.copy_(_first(part, name, parameter, learners, std))


def _first(
    part: nn.Module, name: str, parameter: Tensor, learners: Learners, std: float | None
) -> Tensor:
    shape = tuple(parameter.shape)
    if isinstance(part, nn.LayerNorm | nn.GroupNorm):
        return torch.full(shape, 1.0 if name == "weight" else 0.0)
    if isinstance(part, nn.Linear | nn.Conv1d | nn.ConvTranspose1d):
        if std is not None:
            return learners.normal(std, shape) if name == "weight" else torch.zeros(shape)
        return learners.uniform(float(part.weight[0].numel()) ** -0.5, shape)
    if isinstance(part, nn.Embedding):
        return learners.normal(1.0 if std is None else std, shape)
    if std is None or type(part).__module__.startswith("torch."):
        raise TypeError(f"{type(part).__name__}.{name} has no rule for its first numbers")
    return learners.normal(std, shape)
