"""ACT with a joint-embedding prediction (ACT-JEPA; Vujinovic et al., 2025, arXiv:2501.14622).

ACT whose memory must also tell what will be seen, in the terms of an encoder of its own:

    L = E[ |A_hat - A|_1 + beta KL(q(z | A, o) || N(0, I)) + lambda |p(m) - LN(e'(o_later))|_1 ]
    e' <- e' + (1 - decay) (e - e'),   decay from 0.996 to 1 along a line

with m the memory of o and z, e ACT's encoder, here of the later observations as a sequence, and
e' its average. Within an update: one step on L, then the average. Acting is ACT's; the predictor
is not used.

The paper's text is followed; sizes, lambda and the target's schedule are not in it, nor is there
code: they are the usual ones of joint-embedding prediction and ours. The target gets no gradient
and is normalised, without which both sides could agree on a constant; `target_std`, the mean
deviation of the target's components within a batch, tells whether they do. Later observations
beyond the episode's end count in neither that nor the error. What is said of ACT holds here too
(`offrl agents act`).
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
    SMALL_STYLES,
    StyleConfig,
    latent_predictor,
    style_networks,
    style_policy,
)
from offrl.styles import deviation, latent_error, plain_error, reconstruct
from offrl.types import FutureBatch, Metrics, Noise


@dataclass(frozen=True)
class ACTJEPAConfig(StyleConfig):
    """ACT's settings, and ours for the prediction."""

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
    recipes: ClassVar[Mapping[str, Mapping[str, Any]]] = {"offrl": {**SMALL_STYLES, "ahead": 4}}

    def __init__(self, spec: Spec, config: ACTJEPAConfig, learners: Learners) -> None:
        super().__init__(spec, config, learners)
        self.net, self.style = style_networks(self)
        self.predictor = latent_predictor(self)
        self.target = Average(self.net, Decay("constant", config.target_decay))
        everything = nn.ModuleList([self.net, self.style, self.predictor])
        self.net_opt = adamw(everything, config.lr, config.weight_decay)

    def view(self, dataset: OfflineDataset) -> Windows:
        return chunk_view(self, dataset, self.config.ahead)

    def noise(self, batch_size: int) -> dict[str, tuple[int, ...]]:
        return {"style": (batch_size, self.config.latent)}

    def schedule(self, step: int, steps: int) -> None:
        # 1 - decay falls to zero: of the rate itself, so that float32 keeps its digits.
        self.target.rate.fill_((1.0 - self.config.target_decay) * (1.0 - step / steps))

    def update(self, batch: FutureBatch, noise: Noise, phase: int) -> Metrics:
        metrics = self.minimize(self.net_opt, self.loss, batch, noise)
        self.target.update(self.net)
        return metrics

    def loss(self, batch: FutureBatch, noise: Noise) -> tuple[Tensor, Metrics]:
        error, divergence, memory = reconstruct(self.net, self.style, batch, noise["style"])
        with torch.no_grad():
            target = self.target.net.embed(batch.later_obs, batch.later_real)
            target = layer_norm(target, target.shape[-1:])
        latent = latent_error(self.predictor(memory), target, batch.later_real)
        loss = error + self.config.kl_weight * divergence + self.config.latent_weight * latent
        metrics = {"chunk_error": error, "divergence": divergence, "latent_error": latent}
        found = {name: value.mean(-1) for name, value in metrics.items()}
        return loss.mean(-1), {**found, "target_std": deviation(target, batch.later_real)}

    def validate(self, batch: FutureBatch) -> Metrics:
        return {"chunk_error": plain_error(self.net, batch).mean(-1)}

    def policy(self, learner: int = 0, provenance: Mapping[str, Any] | None = None) -> PlanPolicy:
        return style_policy(self, self.net, learner, provenance)
