"""Behaviour cloning by consistency models (C-BC; Ding and Jin, ICLR 2024, arXiv:2309.16984).

The policy generates a chunk of actions A under the last observations O, in one evaluation of f or
in a few. f(x, sigma) answers a noisy x with the data at the end of its path, x itself at sigma_min:

    f(x, sigma) = c_skip x + c_out net(c_in x, ln(sigma) / 4, O)   (`offrl.consistency`)
    L = E[ d(f(A + sigma' eps, sigma'), sg f(A + sigma eps, sigma)) / (sigma' - sigma) ]
    d(x, y) = sqrt(|x - y|^2 + c^2) - c,   c = huber sqrt(elements of A)
    average <- average + (1 - decay) (net - average)

with sigma' > sigma neighbours on a grid, more often where noise is small, and eps from N(0, I).
The grid has `first_levels` intervals when training begins and is doubled at equal numbers of
updates, up to `last_levels`. Within an update: one step on L, then the average, which is what acts.
Acting: f(sigma_max eps, sigma_max); for each further step noise is put back up to the next level.
There, and not in training, f is clipped to [-1, 1] at each level.

Consistency training without a teacher (arXiv:2303.01469), always in the improved form
(arXiv:2310.14189), which is an option of the authors' code: no average as a target, the
pseudo-Huber distance, the weight 1 / (sigma' - sigma), this density of levels and this grid, in
place of an average, squared distances, even levels and a grid that grows from 2 to 150 intervals.
Departures from both: sigma_max is 5 rather than 80, and the grid ends at 160 rather than 1,280
intervals, since actions lie in [-1, 1]; levels are drawn by their density's quantiles rather than
from a table, to the same probabilities. Departures from the authors' code: x is scaled by c_in and
levels are 1,000 ln(sigma) / 4, as in the code of arXiv:2303.01469. Chunks, networks, optimiser and
average are Diffusion Policy's (arXiv:2303.04137), so that the loss is all that differs from it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from offrl.agent import Agent
from offrl.checks import check_intervals
from offrl.chunks import (
    SMALL_TASKS,
    TIMES,
    ChunkConfig,
    average_of,
    chunk_backbone,
    chunk_noise,
    chunk_optimizer,
    chunk_planner,
    chunk_policy,
    chunk_view,
    held_out_noise,
    schedule_chunks,
    stacks,
    valid_steps,
)
from offrl.consistency import Consistency, grid_size, pair_weight
from offrl.datasets.offline import OfflineDataset, Spec
from offrl.datasets.windows import Windows
from offrl.denoising import corrupt, denoiser
from offrl.generation import Generation
from offrl.losses import pseudo_huber
from offrl.networks import Learners
from offrl.policy import PlanPolicy
from offrl.types import Metrics, Noise, WindowBatch


@dataclass(frozen=True)
class ConsistencyBCConfig(ChunkConfig):
    """Settings of Diffusion Policy's U-Net for states, and of consistency training on actions."""

    sigma_data: float = 0.5  # sigma_d, spread of the actions
    sigma_min: float = 0.002  # at which f is the identity
    sigma_max: float = 5.0  # of the noise that sampling begins with
    first_levels: int = 10  # s0, intervals of the grid when training begins
    last_levels: int = 160  # s1, intervals of the grid when it ends
    huber: float = 0.00054  # c / sqrt(elements), below which the distance is a parabola
    sampler_steps: int = 2  # evaluations of the network for a plan

    def __post_init__(self) -> None:
        super().__post_init__()
        check_intervals(
            self,
            **{"sampler_steps": "[1, inf)", "huber": "(0, inf)", "first_levels": "[1, inf)"},
            **{"last_levels": f"[{self.first_levels}, inf)", "sigma_data": "(0, inf)"},
            **{"sigma_min": "(0, inf)", "sigma_max": f"({self.sigma_min}, inf)"},
        )

    def process(self) -> Consistency:
        """The process with these levels."""
        return Consistency(self.sigma_data, self.sigma_min, self.sigma_max)


class ConsistencyBC(Agent):
    """Map noise to chunks of actions in one step."""

    config: ConsistencyBCConfig
    config_class = ConsistencyBCConfig
    suits = "demonstrations, several ways to act"
    stacked = False
    measure = "loss"
    recipes: ClassVar[Mapping[str, Mapping[str, Any]]] = {"offrl": SMALL_TASKS}
    levels: Tensor

    def __init__(self, spec: Spec, config: ConsistencyBCConfig, learners: Learners) -> None:
        super().__init__(spec, config, learners)
        self.process = config.process()
        self.generation = Generation(self.process, "consistency", config.sampler_steps)
        self.register_buffer("levels", torch.tensor(config.first_levels + 1.0))
        self.net = chunk_backbone(self, level_scale=TIMES)
        self.average = average_of(config, self.net)
        self.net_opt = chunk_optimizer(config, self.net)

    @classmethod
    def stacks(cls, config: Any) -> bool:
        return stacks(config)

    def view(self, dataset: OfflineDataset) -> Windows:
        return chunk_view(self, dataset)

    def noise(self, batch_size: int) -> dict[str, tuple[int, ...]]:
        return chunk_noise(self, batch_size)

    def schedule(self, step: int, steps: int) -> None:
        cfg = self.config
        schedule_chunks(cfg, self.net_opt, self.average, step, steps)
        self.levels.fill_(grid_size(step, steps, cfg.first_levels, cfg.last_levels))

    def update(self, batch: WindowBatch, noise: Noise, phase: int) -> Metrics:
        metrics = self.minimize(self.net_opt, self.loss, batch, noise)
        self.average.update(self.net)
        return metrics

    def loss(self, batch: WindowBatch, noise: Noise) -> tuple[Tensor, Metrics]:
        return self._inconsistency(self.net, batch, noise, self.levels), {}

    def _inconsistency(
        self, net: Any, batch: WindowBatch, noise: Noise, levels: Tensor | int
    ) -> Tensor:
        high, low = self.process.pair(noise["level"], levels)
        answer = denoiser(self.process, net, batch.obs)
        noisier, cleaner = (corrupt(batch.action, noise["noise"], at) for at in (high, low))
        error = answer(noisier, high).x0 - answer(cleaner, low).x0.detach()
        if (valid := valid_steps(self, batch)) is not None:
            error = valid[..., None] * error
        width = self.config.huber * (self.config.horizon * self.act_dim) ** 0.5
        return (pair_weight(high, low) * pseudo_huber(error.flatten(-2), width)).mean(-1)

    def validate(self, batch: WindowBatch) -> Metrics:
        noise, levels = held_out_noise(self, batch.index.shape), self.config.last_levels + 1
        return {"loss": self._inconsistency(self.average.net, batch, noise, levels)}

    def policy(self, learner: int = 0, provenance: Mapping[str, Any] | None = None) -> PlanPolicy:
        planner = chunk_planner(self, self.average, self.generation, learner)
        return chunk_policy(self, planner, provenance)
