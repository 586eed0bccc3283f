"""Behaviour cloning by rectified flow (Flow-BC; Liu et al., ICLR 2023, arXiv:2209.03003).

The policy generates a chunk of actions A under the last observations O, along lines that are
straight from noise at t = 0 to data at t = 1:

    A_t = t A + (1 - t) eps,   t uniform on (0, 1),  eps from N(0, I)
    L   = E[ |net(A_t, t, O) - (A - eps)|^2 ]
    average <- average + (1 - decay) (net - average)

Within an update: one step on L, then the average, which is what acts. Acting: from A_0 ~ N(0, I)
along dA = net dt by Euler's or the midpoint rule in a few even steps, the estimate of A,
A_t + (1 - t) net, clipped to [-1, 1] at each step.

The first of the paper's flows, before any reflow; flow matching (arXiv:2210.02747) has the same
loss. Chunks, networks, optimiser and average are Diffusion Policy's (arXiv:2303.04137), so that
the loss is all that differs between the two; ten Euler steps are those of FQL (arXiv:2502.02538)
and pi0 (arXiv:2410.24164), whose t is uniform too in FQL, and in pi0 drawn more often near noise.
The clipping is not of the paper. Networks are given 1,000 t, the range of DDPM's steps.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor

from offrl.agent import Agent
from offrl.checks import check_choice, check_intervals
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
    matching_loss,
    schedule_chunks,
    stacks,
)
from offrl.datasets.offline import OfflineDataset, Spec
from offrl.datasets.windows import Windows
from offrl.generation import Generation
from offrl.networks import Learners
from offrl.policy import PlanPolicy
from offrl.processes import Flow
from offrl.types import Metrics, Noise, WindowBatch


@dataclass(frozen=True)
class FlowBCConfig(ChunkConfig):
    """Settings of Diffusion Policy's U-Net for states, and of sampling."""

    sampler: Literal["euler", "midpoint"] = "euler"
    sampler_steps: int = 10  # evaluations of the network for a plan; even with midpoint

    def __post_init__(self) -> None:
        super().__post_init__()
        check_intervals(self, sampler_steps="[1, inf)")
        check_choice(self, "sampler", ("euler", "midpoint"))
        self.generation()

    def generation(self) -> Generation:
        """The flow with this sampler."""
        return Generation(Flow(), self.sampler, self.sampler_steps)


class FlowBC(Agent):
    """Follow straight lines from noise to chunks of actions."""

    config: FlowBCConfig
    config_class = FlowBCConfig
    suits = "demonstrations, several ways to act"
    stacked = False
    measure = "loss"
    recipes: ClassVar[Mapping[str, Mapping[str, Any]]] = {"offrl": SMALL_TASKS}

    def __init__(self, spec: Spec, config: FlowBCConfig, learners: Learners) -> None:
        super().__init__(spec, config, learners)
        self.process, self.generation = Flow(), config.generation()
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
        schedule_chunks(self.config, self.net_opt, self.average, step, steps)

    def update(self, batch: WindowBatch, noise: Noise, phase: int) -> Metrics:
        metrics = self.minimize(self.net_opt, self.loss, batch, noise)
        self.average.update(self.net)
        return metrics

    def loss(self, batch: WindowBatch, noise: Noise) -> tuple[Tensor, Metrics]:
        return matching_loss(self, self.process, self.net, batch, noise), {}

    def validate(self, batch: WindowBatch) -> Metrics:
        noise = held_out_noise(self, batch.index.shape)
        return {"loss": matching_loss(self, self.process, self.average.net, batch, noise)}

    def policy(self, learner: int = 0, provenance: Mapping[str, Any] | None = None) -> PlanPolicy:
        planner = chunk_planner(self, self.average, self.generation, learner)
        return chunk_policy(self, planner, provenance)
