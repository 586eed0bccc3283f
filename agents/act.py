"""Action chunking with transformers (ACT; Zhao et al., RSS 2023, arXiv:2304.13705).

A conditional variational auto-encoder of the next k actions A under an observation o:

    L = E[ |A_hat - A|_1 + beta KL(q(z | A, o) || N(0, I)) ],   A_hat = net(o, z),  z ~ q

One step on L per update. Acting: z = 0, and either a plan at each step whose actions for one and
the same time are averaged with weights exp(-m i), the oldest first (`ensemble`), or all of a plan
before the next.

The version for states: the memory's tokens are the style and the observation. Followed is the
paper; in the authors' code the answer is that of the first of seven decoder layers, so the others
do nothing and one layer here is the network that was measured. Departures: no dropout
(`offrl.attention`; 0.1 as published); actions are scaled to [-1, 1] by their range and not
standardised; the error is averaged over the real actions of each chunk, where the code divides by
the length of the padded chunk and makes late ones count less; the ensemble knows from the step
which plans there are, where the code takes an action of exactly zero for none; layers begin as
torch.nn.Linear; weight decay spares biases and norms; batches are the trainer's 256, of 8 there
(`--batch-size`). With z = 0 the policy is a regression: of
several ways that demonstrators take, it cannot choose one.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from offrl.agent import Agent
from offrl.checks import check_intervals
from offrl.chunks import chunk_view
from offrl.datasets.offline import OfflineDataset, Spec
from offrl.datasets.windows import Windows
from offrl.networks import Learners
from offrl.optim import adamw
from offrl.policy import PlanPolicy
from offrl.style_plans import (
    SMALL_STYLES,
    ChunkTransformerConfig,
    chunk_decoder,
    decoder_policy,
    style_encoder,
)
from offrl.styles import plain_error, reconstruct
from offrl.types import Metrics, Noise, WindowBatch


@dataclass(frozen=True)
class ACTConfig(ChunkTransformerConfig):
    """Settings of the authors' code for its simulated tasks."""

    latent: int = 32  # components of the style z
    kl_weight: float = 10.0  # beta

    def __post_init__(self) -> None:
        super().__post_init__()
        check_intervals(self, latent="[1, inf)", kl_weight="[0, inf)")


class ACT(Agent):
    """Regress chunks of actions, given what the demonstrator did differently."""

    config: ACTConfig
    config_class = ACTConfig
    suits = "few demonstrations, fine movements"
    stacked = False
    measure = "chunk_error"
    recipes: ClassVar[Mapping[str, Mapping[str, Any]]] = {"offrl": SMALL_STYLES}

    def __init__(self, spec: Spec, config: ACTConfig, learners: Learners) -> None:
        super().__init__(spec, config, learners)
        self.net, self.style = chunk_decoder(self, config.latent), style_encoder(self)
        both = nn.ModuleList([self.net, self.style])
        self.net_opt = adamw(both, config.lr, config.weight_decay)

    def view(self, dataset: OfflineDataset) -> Windows:
        return chunk_view(self, dataset)

    def noise(self, batch_size: int) -> dict[str, tuple[int, ...]]:
        return {"style": (batch_size, self.config.latent)}

    def update(self, batch: WindowBatch, noise: Noise, phase: int) -> Metrics:
        return self.minimize(self.net_opt, self.loss, batch, noise)

    def loss(self, batch: WindowBatch, noise: Noise) -> tuple[Tensor, Metrics]:
        error, divergence = reconstruct(self.net, self.style, batch, noise["style"])
        loss = (error + self.config.kl_weight * divergence).mean(-1)
        return loss, {"chunk_error": error.mean(-1), "divergence": divergence.mean(-1)}

    def validate(self, batch: WindowBatch) -> Metrics:
        return {"chunk_error": plain_error(self.net, batch).mean(-1)}

    def policy(self, learner: int = 0, provenance: Mapping[str, Any] | None = None) -> PlanPolicy:
        return decoder_policy(self, self.net, learner, provenance)
