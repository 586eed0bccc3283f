"""Preferences of segments (DPO; Rafailov et al., NeurIPS 2023, arXiv:2305.18290).

A policy learns which of two trajectory segments is preferred, without a reward, a value or a
model: the losses are those by which language models learn from preferences, a segment standing
for a completion and a step for a token. With u(x) = sum_t log pi(a_t|s_t) - log pi_ref(a_t|s_t),
x_w the preferred of a pair, x_l the other, D = u(x_w) - u(x_l) and S the logistic function:

    clone:   L = -E[ log pi(a|s) ],  then pi_ref <- pi
    prefer:  L = E[ loss(x_w, x_l) ] - bc_weight E[ mean_t log pi(a_t|s_t) of x_w ]

    dpo     -log S(beta D)                       ipo     (D - 1 / (2 beta))^2
    cdpo    (1 - e) dpo(D) + e dpo(-D)           rdpo    ((1 - e) dpo(D) - e dpo(-D)) / (1 - 2 e)
    chi_po  dpo with e^u + u for u               simpo   dpo with mean_t log pi for u, and a margin
    kto     1 - S(beta (u(x_w) - z)) + 1 - S(beta (z - u(x_l))),  z = KL(pi || pi_ref) per segment
    copg    ((r_1 - r_2) - beta (u_1 - u_2))^2 / (2 beta)
    adpo    -sum_k q_k log softmax(beta u)_k,  q = softmax(r / temperature)

r are the scores of the two segments, the others use their order alone. The first share `clone` of
the updates is behaviour cloning by maximum likelihood, on all segments alike, each followed by
pi_ref <- pi; after it the reference stays. So it is the law of the data, from which u measures,
the policy starts at it, and one training makes both: supervised learning before preference
optimisation, as for language models, and as in contrastive preference learning (arXiv:2310.13639),
which has the same loss with a constant reference. Within an update there is one step on one L.

Labels come from the true returns of segments; a share `flip` of them is wrong. Pairs are drawn
anew at each update, so that labels are as many as there are updates.

Departures: a step is an action, and its log-probability a density, so that u has no bound; the
deviation of the policy is held above e^-5. KTO's z is the closed form for Gaussians of what its
authors estimate from mismatched completions. copg and adpo are given what they regress on or
distil in units of the segments' deviation. A beta suits a loss and a length: simpo averages over
the steps and wants about `segment` times the beta of dpo.

No paper states settings for these environments; the recipe's are of probes of up to 10,000 updates.
Trained on segments of 25 steps a hopper fell at once, on 100 it did not. At u = 0 dpo puts the mean
beta segment / (2 bc_weight) of the way from rejected to preferred beyond the preferred: where that
was 5, walkers fell; from 1.25 to 0.25 all were alike. No setting, nor cloning, moved a halfcheetah.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import Module

from offrl.actors import GaussianActor
from offrl.agent import Agent
from offrl.checks import check_choice, check_intervals
from offrl.datasets.offline import OfflineDataset, Spec
from offrl.datasets.pairs import SegmentPairs, segment_pairs
from offrl.divergences import gaussian_kl
from offrl.lm.losses.contrast import cdpo, chi_po, dpo, rdpo, simpo
from offrl.lm.losses.lists import adpo, boltzmann, copg_square
from offrl.lm.losses.margins import ipo
from offrl.lm.losses.scores import Scores, bc_term, seq_score
from offrl.lm.losses.unary import kto
from offrl.networks import Learners
from offrl.optim import adam, polyak_update, target_of
from offrl.types import Metrics, Noise, SegmentPairBatch

# Losses of pairs, and the setting that each of their options is.
PAIRS: Mapping[str, tuple[Callable[..., Tensor], Mapping[str, str]]] = {
    "dpo": (dpo, {"beta": "beta"}),
    "ipo": (ipo, {"tau": "beta"}),
    "cdpo": (cdpo, {"beta": "beta", "smoothing": "wrong"}),
    "rdpo": (rdpo, {"beta": "beta", "flip": "wrong"}),
    "chi_po": (chi_po, {"beta": "beta"}),
    "simpo": (simpo, {"beta": "beta", "gamma": "margin"}),
}
LOSSES = (*PAIRS, "kto", "copg", "adpo")


@dataclass(frozen=True)
class PreferenceConfig:
    """DPO's beta, and settings of this library."""

    loss: Literal["dpo", "ipo", "cdpo", "rdpo", "chi_po", "simpo", "kto", "copg", "adpo"] = "dpo"
    beta: float = 0.1  # how dear it is to leave the reference; tau of ipo, 1 / tau of adpo
    wrong: float = 0.1  # e, the share of wrong labels that cdpo and rdpo suppose
    margin: float = 0.5  # by which simpo wants the preferred segment to be ahead
    temperature: float = 0.5  # of adpo's target
    bc_weight: float = 0.0  # of cloning the preferred segment beside the loss, as RPO has it
    clone: float = 0.5  # share of the updates that fit the reference
    segment: int = 25  # steps of a segment
    flip: float = 0.0  # share of the labels that are wrong
    normalize_obs: bool = True  # by the mean and deviation of the data
    lr: float = 3e-4  # learning rate
    hidden: tuple[int, ...] = (256, 256)  # units of each layer

    def __post_init__(self) -> None:
        check_choice(self, "loss", LOSSES)
        check_intervals(
            self,
            beta="(0, inf)",
            wrong="[0, 0.5)",
            margin="[0, inf)",
            temperature="(0, inf)",
            bc_weight="[0, inf)",
            clone="[0, 1]",
            segment="[1, inf)",
            flip="[0, 0.5]",
            lr="(0, inf)",
        )


class Preference(Agent):
    """Clone the data, then tell preferred segments from others."""

    config: PreferenceConfig
    config_class = PreferenceConfig
    suits = "preferences instead of rewards"
    measure = "preference_loss"
    actor: GaussianActor
    recipes: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "locomotion": {
            **{"batch_size": 4, "steps": 100_000},
            **{"segment": 100, "clone": 0.3, "bc_weight": 10.0},
        }
    }

    def __init__(self, spec: Spec, config: PreferenceConfig, learners: Learners) -> None:
        super().__init__(spec, config, learners)
        self.actor = GaussianActor(self.obs_dim, self.act_dim, config.hidden, learners)
        self.reference = target_of(self.actor)
        self.actor_opt = adam(self.actor.parameters(), config.lr)
        self.cloning = False  # whether the next update does; follows from its number

    def view(self, dataset: OfflineDataset) -> SegmentPairs:
        cfg = self.config
        return segment_pairs(
            dataset, length=cfg.segment, flip=cfg.flip, normalize_obs=cfg.normalize_obs
        )

    def schedule(self, step: int, steps: int) -> None:
        self.cloning = step < self.config.clone * steps

    def update(self, batch: SegmentPairBatch, noise: Noise, phase: int) -> Metrics:
        if self.cloning:
            metrics = self.minimize(self.actor_opt, self.clone_loss, batch)
            polyak_update(self.actor, self.reference, 1.0)
            return metrics
        return self.minimize(self.actor_opt, self.preference_loss, batch)

    def clone_loss(self, batch: SegmentPairBatch) -> tuple[Tensor, Metrics]:
        logp = (self.log_prob(self.actor, batch) * batch.real).sum((-3, -2, -1))
        return -logp / batch.real.sum((-3, -2, -1)), {}

    def preference_loss(self, batch: SegmentPairBatch) -> tuple[Tensor, Metrics]:
        logp, ref_logp = self.log_prob(self.actor, batch), self.log_prob(self.reference, batch)
        chosen, rejected = _in_order(batch, logp, ref_logp)
        loss = self.loss_of_pairs(batch, Scores(logp, ref_logp, batch.real), chosen, rejected)
        loss = loss + self.config.bc_weight * bc_term(chosen, "mean")
        ahead, behind = seq_score(chosen), seq_score(rejected)
        accuracy = (ahead > behind).to(loss).mean(-1)
        metrics = {"accuracy": accuracy, "log_ratio": (0.5 * (ahead + behind)).mean(-1)}
        return loss.mean(-1), metrics

    def loss_of_pairs(
        self, batch: SegmentPairBatch, both: Scores, chosen: Scores, rejected: Scores
    ) -> Tensor:
        cfg = self.config
        if cfg.loss == "kto":
            z, good = self.divergence(batch), torch.ones_like(batch.index, dtype=torch.bool)
            desired = kto(chosen, good, baseline=z, beta=cfg.beta)
            return desired + kto(rejected, ~good, baseline=z, beta=cfg.beta)
        if cfg.loss == "copg":
            return copg_square(both, batch.score, beta=cfg.beta)
        if cfg.loss == "adpo":
            target = boltzmann(batch.score, temperature=cfg.temperature)
            return adpo(both, target, tau=1.0 / cfg.beta)
        function, options = PAIRS[cfg.loss]
        return function(chosen, rejected, **{k: getattr(cfg, v) for k, v in options.items()})

    def divergence(self, batch: SegmentPairBatch) -> Tensor:
        """z: KL(pi || pi_ref) summed over a segment, its mean over the batch; no gradient."""
        obs = batch.obs.flatten(-4, -2)
        pi, ref = self.actor, self.reference
        kl = gaussian_kl(pi.mean(obs), pi.spread(), ref.mean(obs), ref.spread()).detach()
        of_segment = (kl.reshape(batch.real.shape) * batch.real).sum(-1)
        return of_segment.mean((-2, -1))[..., None]

    @staticmethod
    def log_prob(actor: Module, batch: SegmentPairBatch) -> Tensor:
        logp: Tensor = actor(batch.obs.flatten(-4, -2)).log_prob(batch.action.flatten(-4, -2))
        return logp.reshape(batch.real.shape)

    def validate(self, batch: SegmentPairBatch) -> Metrics:
        loss, metrics = self.preference_loss(batch)
        return {"preference_loss": loss, "accuracy": metrics["accuracy"]}


def _in_order(batch: SegmentPairBatch, *logp: Tensor) -> tuple[Scores, Scores]:
    """The preferred segments and the others: log-probabilities of policy and reference, mask."""
    first = (batch.score[..., 0] >= batch.score[..., 1])[..., None]
    pairs = [x.unbind(-2) for x in (*logp, batch.real)]
    chosen = [torch.where(first, one, two) for one, two in pairs]
    rejected = [torch.where(first, two, one) for one, two in pairs]
    return Scores(*chosen), Scores(*rejected)
