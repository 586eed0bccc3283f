"""Decision Mamba (DM; Lv et al., NeurIPS 2024, arXiv:2406.05427).

Acting as the prediction of a sequence, R_1, s_1, a_1, R_2, s_2, a_2, ... with R_t the return still
to come at step t, by layers of selective state spaces at two grains (`offrl.mamba`): over single
tokens, and over whole steps. The logged action may be a poor one, so that in part the policy's own
earlier answer is learned in its place, the more the longer it has learned:

    a~ = (1 - beta) a + beta net'(..),   beta = min(0.5, alpha (step + 1) / steps)
    L  = 0.9 E[ |net_a - a~|^2 ] + 0.05 E[ h(net_s - s') ] + 0.05 E[ h(net_R - R') ]
    net' <- net' + polyak (net - net')

with h Huber's loss at 1 and the next observation and return predicted from what precedes them.
Within an update: a~, one step on L with its gradient's norm cut at 0.25, then net'.

The authors' code differs from the paper in two ways that are not repeated. There beta is set to 0
after it is worked out, and a~ would be of the network that is learning, gradient and all, which
multiplies the error by (1 - beta)^2 and nothing else; here it is of an average of earlier networks
and without gradient. And there the fine grain of step p mod K is given to token p, so that half of
the actions are seen before they are predicted; here each step's is given to the next. beta grows
with each update, there after each of 40 parts of the training.

Departures: 4 layers of width 128 in place of 24 of 768 (both are settings), which is a fair
counterpart of Decision Transformer's size; no dropout (0.1 there); AdamW's epsilon is 1e-8 (1e-6).
Acting, the context shrinks to its newest half when it is full (`offrl.sequence_policy`). The
default target is the best return of the data, the scale of returns the largest of it; both are the
authors' where a recipe states them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.functional import smooth_l1_loss

from offrl.agent import Agent
from offrl.checks import check_choice, check_intervals
from offrl.datasets.offline import OfflineDataset, Spec
from offrl.datasets.replay import Replay
from offrl.datasets.sequences import Sequences
from offrl.losses import action_error
from offrl.networks import Learners
from offrl.optim import adamw, clipping, polyak_update, target_of
from offrl.returns import (
    ReturnConfig,
    real_mean,
    return_policy,
    return_view,
    returns_of_data,
    warm_up,
)
from offrl.sequence_models import ReturnMamba
from offrl.sequence_policy import SequencePolicy
from offrl.types import Metrics, Noise, SequenceBatch

TRAINING = {"batch_size": 64, "steps": 100_000, "return_scale": 1000.0}


@dataclass(frozen=True, kw_only=True)
class DecisionMambaConfig(ReturnConfig):
    """Settings of the authors' code on locomotion, but for the size."""

    layers: int = 4  # 24 in the paper
    embed: Literal["linear", "mlp"] = "mlp"  # of tokens; linear on Hopper
    alpha: float = 0.85  # alpha_T: beta at the end, were it not bounded
    max_share: float = 0.5  # bound of beta
    polyak: float = 0.005  # rate of net'
    action_weight: float = 0.9  # of the three parts of L
    obs_weight: float = 0.05
    return_weight: float = 0.05
    warmup: int = 2_500
    weight_decay: float = 1e-5

    def __post_init__(self) -> None:
        super().__post_init__()
        shares = ("alpha", "max_share", "polyak")
        weights = ("action_weight", "obs_weight", "return_weight")
        check_intervals(self, **dict.fromkeys(shares, "[0, 1]"))
        check_intervals(self, **dict.fromkeys(weights, "[0, inf)"))
        check_choice(self, "embed", ("linear", "mlp"))


class DecisionMamba(Agent):
    """Prediction of the action that goes with a return, at two grains."""

    config: DecisionMambaConfig
    config_class = DecisionMambaConfig
    suits = "returns that actions decide; poor data"
    stacked = False
    actor: ReturnMamba
    target_return: Tensor
    return_scale: Tensor
    share: Tensor
    recipes: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "halfcheetah": {"target_return": 12_000.0, **TRAINING},
        "hopper": {"target_return": 3_600.0, "embed": "linear", **TRAINING},
        "walker2d": {"target_return": 5_000.0, **TRAINING},
        "locomotion": TRAINING,
    }

    def __init__(self, spec: Spec, config: DecisionMambaConfig, learners: Learners) -> None:
        super().__init__(spec, config, learners)
        self.actor = ReturnMamba(
            self.obs_dim,
            self.act_dim,
            learners,
            layers=config.layers,
            width=config.width,
            embed=config.embed,
            max_steps=config.max_steps,
        )
        self.actor_target = target_of(self.actor)
        self.actor_opt = adamw(self.actor, config.lr, config.weight_decay)
        self.clip = clipping(config.grad_norm)
        self.register_buffer("target_return", torch.zeros(()))
        self.register_buffer("return_scale", torch.ones(()))
        self.register_buffer("share", torch.zeros(()))  # beta

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
        self.share.fill_(min(self.config.max_share, self.config.alpha * (step + 1) / steps))

    def update(self, batch: SequenceBatch, noise: Noise, phase: int) -> Metrics:
        goal = self.compute(self.evolved_action, batch)
        metrics = self.minimize(self.actor_opt, self.actor_loss, batch, goal, combine=self.clip)
        polyak_update(self.actor, self.actor_target, self.config.polyak)
        return metrics

    def evolved_action(self, batch: SequenceBatch) -> Tensor:
        earlier: Tensor = self.actor_target(batch).action
        return batch.action + self.share * (earlier - batch.action)

    def actor_loss(self, batch: SequenceBatch, goal: Tensor) -> tuple[Tensor, Metrics]:
        said, cfg = self.actor(batch), self.config
        action = real_mean(action_error(said.action, goal), batch.real)
        # A step is predicted where the one before it is recorded.
        known = batch.real[..., :-1]
        obs = smooth_l1_loss(said.obs[:, 1:], batch.obs[:, 1:], reduction="none").mean(-1)
        to_go = smooth_l1_loss(said.to_go[:, 1:], batch.to_go[:, 1:], reduction="none")
        obs_error, return_error = real_mean(obs, known), real_mean(to_go, known)
        parts = cfg.obs_weight * obs_error + cfg.return_weight * return_error
        metrics = {
            "action_loss": action,
            "obs_error": obs_error,
            "return_error": return_error,
            "share": self.share.clone(),
        }
        return (cfg.action_weight * action + parts)[None], metrics

    def validate(self, batch: SequenceBatch) -> Metrics:
        _, measured = self.actor_loss(batch, batch.action)
        names = {"action_loss": "action_error", "obs_error": "obs_error"}
        return {name: measured[key] for key, name in names.items()} | {
            "return_error": measured["return_error"]
        }

    def policy(
        self, learner: int = 0, provenance: Mapping[str, Any] | None = None
    ) -> SequencePolicy:
        returns = self.target_return, self.return_scale
        return return_policy(self, self.config, self.actor, returns, learner, provenance)
