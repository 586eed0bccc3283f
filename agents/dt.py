"""Decision Transformer (DT; Chen et al., NeurIPS 2021, arXiv:2106.01345).

Acting as the prediction of a sequence: with R_t the return still to come at step t, a causal
transformer reads R_1, s_1, a_1, R_2, s_2, a_2, ... and says at each s_t which action comes next,

    L = E[ |net(R_1, s_1, a_1, .., R_t, s_t) - a_t|^2 ]

over all recorded steps of sequences of up to K, averaged over the components of the action. One
step on L per update, the gradient's norm cut at 0.25 and the learning rate rising over the first
10,000. To act, it is asked for a return; what has been earned is taken off as the episode goes on.
A return that the data had by luck is asked for in vain: luck is no action.

Settings are those of the authors' code for Gym. Departures: there is no dropout (0.1 there; see
`offrl.attention`); blocks normalise before they act, as in that code, and what follows is a plain
LayerNorm; weight decay spares biases, norms and embeddings. Padding, -10 in past actions there, is
seen by nothing here and has no value. Acting, the context shrinks to its newest half when it is
full (`offrl.sequence_policy`), where the authors drop the oldest step and compute all others
again; Conditioning(keep=K - 1) is that. The default target is the best return of the data, and the
network is given returns over the largest of the data; where a recipe states them, the authors'
first target and their 1000.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from offrl.agent import Agent
from offrl.attention import Activation
from offrl.checks import check_choice, check_intervals, check_multiple
from offrl.datasets.offline import OfflineDataset, Spec
from offrl.datasets.replay import Replay
from offrl.datasets.sequences import Sequences
from offrl.losses import action_error
from offrl.networks import Learners
from offrl.optim import adamw, clipping
from offrl.returns import (
    ReturnConfig,
    real_mean,
    return_policy,
    return_view,
    returns_of_data,
    warm_up,
)
from offrl.sequence_models import ReturnTransformer
from offrl.sequence_policy import SequencePolicy
from offrl.types import Metrics, Noise, SequenceBatch

TRAINING = {"batch_size": 64, "steps": 100_000, "return_scale": 1000.0}


@dataclass(frozen=True, kw_only=True)
class DTConfig(ReturnConfig):
    """Settings of the authors' code on locomotion."""

    heads: int = 1  # of attention
    activation: Activation = "relu"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_intervals(self, heads="[1, inf)")
        check_multiple(self, "width", self.heads, f"attention of {self.heads} heads")
        check_choice(self, "activation", ("gelu", "relu"))


class DT(Agent):
    """Prediction of the action that goes with a return."""

    config: DTConfig
    config_class = DTConfig
    suits = "returns that actions decide, not luck"
    stacked = False
    actor: ReturnTransformer
    target_return: Tensor
    return_scale: Tensor
    recipes: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "halfcheetah": {"target_return": 12_000.0, **TRAINING},
        "hopper": {"target_return": 3_600.0, **TRAINING},
        "walker2d": {"target_return": 5_000.0, **TRAINING},
        "locomotion": TRAINING,
    }

    def __init__(self, spec: Spec, config: DTConfig, learners: Learners) -> None:
        super().__init__(spec, config, learners)
        self.actor = ReturnTransformer(
            self.obs_dim,
            self.act_dim,
            learners,
            layers=config.layers,
            heads=config.heads,
            width=config.width,
            activation=config.activation,
            max_steps=config.max_steps,
        )
        self.actor_opt = adamw(self.actor, config.lr, config.weight_decay)
        self.clip = clipping(config.grad_norm)
        self.register_buffer("target_return", torch.zeros(()))
        self.register_buffer("return_scale", torch.ones(()))

    def view(self, dataset: OfflineDataset) -> Sequences:
        return return_view(self.config, dataset)

    def prepare(self, replay: Replay) -> None:
        super().prepare(replay)
        assert isinstance(replay, Sequences)
        target, scale = returns_of_data(self.config, replay)
        self.target_return.fill_(target)
        self.return_scale.fill_(scale)

    def schedule(self, step: int, steps: int) -> None:
        warm_up(self.config, self.actor_opt, step)

    def update(self, batch: SequenceBatch, noise: Noise, phase: int) -> Metrics:
        return self.minimize(self.actor_opt, self.actor_loss, batch, combine=self.clip)

    def actor_loss(self, batch: SequenceBatch) -> tuple[Tensor, Metrics]:
        error = action_error(self.actor(batch), batch.action)
        return real_mean(error, batch.real)[None], {}

    def validate(self, batch: SequenceBatch) -> Metrics:
        return {"action_error": self.actor_loss(batch)[0][0]}

    def policy(
        self, learner: int = 0, provenance: Mapping[str, Any] | None = None
    ) -> SequencePolicy:
        returns = self.target_return, self.return_scale
        return return_policy(self, self.config, self.actor, returns, learner, provenance)
