"""Diffusion Policy (DP; Chi et al., RSS 2023, arXiv:2303.04137).

The policy generates a chunk of actions A under the last observations O, and carries out its part:

    A_k = sqrt(abar_k) A + sqrt(1 - abar_k) eps,   k uniform on 0 .. T - 1,  eps from N(0, I)
    L   = E[ |net(A_k, k, O) - eps|^2 ]
    average <- average + (1 - decay) (net - average)

with T levels of the cosine schedule. Within an update: one step on L, then the average, which is
what acts. Acting: from A_T ~ N(0, I) along the levels by DDPM, all of them, or by DDIM in a few,
the estimate of A clipped to [-1, 1] at each step; of the plan's actions, `execute` from now on are
taken before the next plan.

The state version with observations as conditions, as the authors recommend it; the defaults are
those of its U-Net. Settings and numbers are those of the authors' code. Departures: transformers
have no dropout (0.01 to 0.3 as published; see `offrl.attention`); weight decay, 1e-6 with the
U-Net, spares biases and norms with every backbone, in the authors' code with the transformer
alone; the learning rate of the first step is lr / warmup rather than 0; a run's length is counted
in steps and not in epochs. With `clip` the noise estimate is formed anew from the clipped actions,
which makes no difference to DDPM; DDIM in the authors' code keeps the one of before.
`prediction` and `mask_padding` are not of the paper, whose loss is on eps and on padded steps too.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor

from offrl.agent import Agent
from offrl.checks import check_choice, check_intervals
from offrl.chunks import (
    SMALL_TASKS,
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
from offrl.processes import DDPM
from offrl.types import Metrics, Noise, WindowBatch


@dataclass(frozen=True)
class DiffusionPolicyConfig(ChunkConfig):
    """Settings of the authors' U-Net for states; see the recipes for others."""

    levels: int = 100  # T, of noise
    prediction: Literal["epsilon", "x0", "v"] = "epsilon"  # what the network is asked for
    sampler: Literal["ddpm", "ddim", "dpm2", "dpm3"] = "ddpm"
    sampler_steps: int = 100  # of the levels, when acting; 8 with ddim

    def __post_init__(self) -> None:
        super().__post_init__()
        check_intervals(self, levels="[1, inf)", sampler_steps=f"[1, {self.levels}]")
        check_choice(self, "prediction", ("epsilon", "x0", "v"))
        check_choice(self, "sampler", ("ddpm", "ddim", "dpm2", "dpm3"))


class DiffusionPolicy(Agent):
    """Denoise chunks of actions."""

    config: DiffusionPolicyConfig
    config_class = DiffusionPolicyConfig
    suits = "demonstrations, several ways to act"
    stacked = False
    measure = "loss"
    recipes: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "kitchen": {
            **{"backbone": "transformer", "width": 768, "depth": 8, "history": 4},
            **{"weight_decay": 1e-3, "warmup": 1000, "beta1": 0.9, "beta2": 0.95},
        },
        # Few steps of a small network are more exact with x0.
        "offrl": {**SMALL_TASKS, "prediction": "x0", "sampler": "ddim", "sampler_steps": 8},
    }

    def __init__(self, spec: Spec, config: DiffusionPolicyConfig, learners: Learners) -> None:
        super().__init__(spec, config, learners)
        self.process = DDPM(config.levels, "cosine", config.prediction, "leading")
        self.generation = Generation(self.process, config.sampler, config.sampler_steps)
        self.net = chunk_backbone(self, level_scale=1.0)
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
