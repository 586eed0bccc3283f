"""Behaviour cloning of action chunks (chunk BC; Chi et al., RSS 2023, arXiv:2303.04137).

Regression, beside which generative policies are measured. The policy answers the last observations
O with a chunk of actions A:

    L = E[ |net(0, 0, O) - A|^2 ],  averaged over the elements of the chunk
    average <- average + (1 - decay) (net - average)

Within an update: one step on L, then the average, which is what acts, in one pass of the network.
Where the data know several ways, the least L is their mean, which may be none of them.

This is not the paper's method, Diffusion Policy, but what it is compared with (as the regression
head of arXiv:2505.09561 is): the networks of Diffusion Policy with the noisy actions and the level
that they are given at zero, its chunks, optimiser and average. What differs between this agent and
`diffusion_policy`, `flow_bc` or `consistency_bc` of the same settings is the loss alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from offrl.agent import Agent
from offrl.chunks import (
    SMALL_TASKS,
    ChunkConfig,
    average_of,
    chunk_backbone,
    chunk_optimizer,
    chunk_planner,
    chunk_policy,
    chunk_view,
    schedule_chunks,
    stacks,
    valid_steps,
)
from offrl.datasets.offline import OfflineDataset, Spec
from offrl.datasets.windows import Windows
from offrl.denoising import event_mean
from offrl.networks import Learners
from offrl.planners import regressed
from offrl.policy import PlanPolicy
from offrl.types import Metrics, Noise, WindowBatch


@dataclass(frozen=True)
class ChunkBCConfig(ChunkConfig):
    """Settings of Diffusion Policy's U-Net for states."""


class ChunkBC(Agent):
    """Regression of chunks of actions."""

    config: ChunkBCConfig
    config_class = ChunkBCConfig
    suits = "demonstrations of one way to act"
    stacked = False
    measure = "loss"
    recipes: ClassVar[Mapping[str, Mapping[str, Any]]] = {"offrl": SMALL_TASKS}

    def __init__(self, spec: Spec, config: ChunkBCConfig, learners: Learners) -> None:
        super().__init__(spec, config, learners)
        self.net = chunk_backbone(self, level_scale=1.0)
        self.average = average_of(config, self.net)
        self.net_opt = chunk_optimizer(config, self.net)

    @classmethod
    def stacks(cls, config: Any) -> bool:
        return stacks(config)

    def view(self, dataset: OfflineDataset) -> Windows:
        return chunk_view(self, dataset)

    def schedule(self, step: int, steps: int) -> None:
        schedule_chunks(self.config, self.net_opt, self.average, step, steps)

    def update(self, batch: WindowBatch, noise: Noise, phase: int) -> Metrics:
        metrics = self.minimize(self.net_opt, self.loss, batch)
        self.average.update(self.net)
        return metrics

    def loss(self, batch: WindowBatch) -> tuple[Tensor, Metrics]:
        return self._error(self.net, batch), {}

    def _error(self, net: Any, batch: WindowBatch) -> Tensor:
        answer = regressed(net, batch.obs, (self.config.horizon, self.act_dim))
        error = (answer - batch.action).square()
        return event_mean(error, batch.index.ndim, valid_steps(self, batch)).mean(-1)

    def validate(self, batch: WindowBatch) -> Metrics:
        return {"loss": self._error(self.average.net, batch)}

    def policy(self, learner: int = 0, provenance: Mapping[str, Any] | None = None) -> PlanPolicy:
        return chunk_policy(self, chunk_planner(self, self.average, None, learner), provenance)
