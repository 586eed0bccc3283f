"""Action chunks and a joint embedding (ACT-JEPA; Vujinovic et al., 2025, arXiv:2501.14622).

A regression of the next k actions A from a memory of the last observations o that must also tell
what will be seen, in the terms of an encoder of its own:

    m = e(o),   L = E[ |d(m) - A|_1 + lambda |p(m) - sg LN(e'(o_later))|_1 ]
    e' <- e' + (1 - decay) (e - e'),   decay from 0.996 to 1 along a line

with e the context encoder, e' the target encoder, its average, here of the later observations as a
sequence, p the predictor and d the decoder of actions; |.|_1 is a mean over components. There is
no style, unlike in ACT: neither d nor p is told anything of the actions to come. Within an update:
one step on L, then the average. Acting: A = d(m), and either a plan at each step, averaged as by
ACT (`ensemble`), or all of a plan before the next; p and e' are not used.

Source: Vujinovic and Kovacevic, 2025. The four parts and L are the paper's; no code of the
authors' was found. Layers and sizes are those of ACT for states (`offrl agents act` says how they
differ from its code), so that the two agents differ by style and prediction alone. Ours are
lambda = 1, the number of later observations, and the target's schedule, the usual one of
joint-embedding prediction. So is LN: the target gets no gradient and is normalised, without which
both sides could agree on a constant; `target_std`, the mean deviation of the target's components
within a batch, tells whether they do. Later observations beyond the episode's end count in neither
that nor the error. Of several ways that demonstrators take, a regression cannot choose one.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm

from offrl.agent import Agent
from offrl.checks import check_intervals
from offrl.chunks import chunk_view
from offrl.datasets.offline import OfflineDataset, Spec
from offrl.datasets.windows import Windows
from offrl.ema import Average, Decay
from offrl.networks import Learners
from offrl.optim import adamw
from offrl.policy import PlanPolicy
from offrl.style_plans import (
    SMALL_TRANSFORMERS,
    ChunkTransformerConfig,
    chunk_decoder,
    decoder_policy,
    latent_predictor,
)
from offrl.styles import chunk_error, deviation, latent_error, plain_error
from offrl.types import FutureBatch, Metrics, Noise


@dataclass(frozen=True)
class ACTJEPAConfig(ChunkTransformerConfig):
    """ACT's settings without those of its style, and ours for the prediction."""

    ahead: int = 16  # later observations that are predicted
    latent_weight: float = 1.0  # lambda
    target_decay: float = 0.996  # of the target encoder at the first step; 1 at the last

    def __post_init__(self) -> None:
        super().__post_init__()
        check_intervals(self, ahead="[1, inf)", latent_weight="[0, inf)", target_decay="[0, 1]")


class ACTJEPA(Agent):
    """Regress chunks of actions from a memory that also foretells observations."""

    config: ACTJEPAConfig
    config_class = ACTJEPAConfig
    suits = "few demonstrations, fine movements"
    stacked = False
    measure = "chunk_error"
    recipes: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "offrl": {**SMALL_TRANSFORMERS, "ahead": 4}
    }

    def __init__(self, spec: Spec, config: ACTJEPAConfig, learners: Learners) -> None:
        super().__init__(spec, config, learners)
        self.net, self.predictor = chunk_decoder(self), latent_predictor(self)
        self.target = Average(self.net, Decay("constant", config.target_decay))
        both = nn.ModuleList([self.net, self.predictor])
        self.net_opt = adamw(both, config.lr, config.weight_decay)

    def view(self, dataset: OfflineDataset) -> Windows:
        return chunk_view(self, dataset, self.config.ahead)

    def schedule(self, step: int, steps: int) -> None:
        # 1 - decay falls to zero: of the rate itself, so that float32 keeps its digits.
        self.target.rate.fill_((1.0 - self.config.target_decay) * (1.0 - step / steps))

    def update(self, batch: FutureBatch, noise: Noise, phase: int) -> Metrics:
        metrics = self.minimize(self.net_opt, self.loss, batch)
        self.target.update(self.net)
        return metrics

    def loss(self, batch: FutureBatch) -> tuple[Tensor, Metrics]:
        memory = self.net.remember(batch.obs)
        error = chunk_error(self.net.decode(memory), batch)
        with torch.no_grad():
            target = self.target.net.embed(batch.later_obs, batch.later_real)
            target = layer_norm(target, target.shape[-1:])
        latent = latent_error(self.predictor(memory), target, batch.later_real)
        loss = (error + self.config.latent_weight * latent).mean(-1)
        metrics = {"chunk_error": error.mean(-1), "latent_error": latent.mean(-1)}
        return loss, {**metrics, "target_std": deviation(target, batch.later_real)}

    def validate(self, batch: FutureBatch) -> Metrics:
        return {"chunk_error": plain_error(self.net, batch).mean(-1)}

    def policy(self, learner: int = 0, provenance: Mapping[str, Any] | None = None) -> PlanPolicy:
        return decoder_policy(self, self.net, learner, provenance)
