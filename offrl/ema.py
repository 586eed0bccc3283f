"""An exponential moving average of a network's parameters, as state of the agent.

    average <- average + rate (net - average),  rate = 1 - decay
    power:     decay(n) = clip(1 - (1 + n / inv_gamma)^-power, low, high),  n = step - after
    ratio:     decay(n) = min(high, (1 + n) / (10 + n)),                    n = step + 1
    constant:  decay    = high

The power rule copies (decay 0) while n is 0 or less. Sampling with the average is what makes
diffusion policies steady. The warm-up lets a young average follow: with power 3/4 it is 0.994
after 1,000 steps, 0.999 after 10,000 and 0.9999, the bound, after 215,000. What is kept is the
rate, not the decay: in float32, 1 - 0.9999 is wrong in the fourth digit.

`step` is the training's, 0 at the first update. An agent holds an `Average`, so that checkpoints
hold its numbers, calls `schedule` in its own `schedule` and `update` after its optimiser's step;
the rate is a tensor, so a captured graph sees it. BatchNorm would not do in such a network: its
running statistics are buffers, which are copied, and belong to other parameters than the average.

Sources: Diffusion Policy (arXiv:2303.04137), whose code counts as `after = 1` does and copies at
step 0; BESO (arXiv:2304.02532) for the ratio; Diffusion-QL (arXiv:2208.06193) for averages that
start late and move every few steps; all with numbers as in the authors' code.
"""

from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

import torch
from torch import Tensor, nn

from offrl.checks import check_choice, check_intervals
from offrl.optim import target_of

M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class Decay:
    """How much of the average one step keeps."""

    rule: Literal["power", "ratio", "constant"] = "power"
    high: float = 0.9999  # the bound, and the decay itself where it is constant
    low: float = 0.0  # of the power rule
    power: float = 0.75  # 2/3 where a million steps or more are taken
    inv_gamma: float = 1.0  # steps by which the power rule is stretched
    after: int = 1  # steps before the power rule begins; until then the average is a copy
    start: int = 0  # steps in which the average, whatever the rule, stays as it began
    every: int = 1  # steps from one move of the average to the next, counted from step 0

    def __post_init__(self) -> None:
        check_choice(self, "rule", ("power", "ratio", "constant"))
        check_intervals(self, high="[0, 1]", low="[0, 1]", power="(0, inf)", inv_gamma="(0, inf)")
        check_intervals(self, after="[0, inf)", start="[0, inf)", every="[1, inf)")

    def rate(self, step: int) -> float:
        """1 - decay at this step of training; 0 where the average does not move."""
        if step < self.start or step % self.every:
            return 0.0
        if self.rule == "constant":
            return 1.0 - self.high
        if self.rule == "ratio":
            return max(1.0 - self.high, 9.0 / (11.0 + step))
        if step <= self.after:
            return 1.0
        rate: float = (1.0 + (step - self.after) / self.inv_gamma) ** -self.power
        return min(1.0 - self.low, max(1.0 - self.high, rate))


class Average(nn.Module, Generic[M]):
    """A frozen copy of a network that follows it; `net` is the average, ready to be used."""

    net: M
    rate: Tensor

    def __init__(self, net: M, decay: Decay) -> None:
        super().__init__()
        self.net, self.decay = target_of(net), decay
        self.register_buffer("rate", torch.tensor(decay.rate(0)))

    def schedule(self, step: int) -> None:
        """Set the rate of update `step`."""
        self.rate.fill_(self.decay.rate(step))

    @torch.no_grad()
    def update(self, net: M) -> None:
        """Move the average's parameters towards those of the network; buffers are copied."""
        mine: list[Tensor] = list(self.net.parameters())
        theirs: list[Tensor] = list(net.parameters())
        moved = torch._foreach_sub(theirs, mine)
        torch._foreach_mul_(moved, self.rate)
        torch._foreach_add_(mine, moved)
        for b, c in zip(net.buffers(), self.net.buffers(), strict=True):
            c.copy_(b)
