"""Distillation by anchored preferences (ADPO; Wang, 2025, arXiv:2510.18913).

A student learns from a teacher what to do at logged states, without a reward and without the
teacher's data. The teacher is a policy that was saved, known by its action m_T and the deviation
s_T from it at each state: pi_T = N(m_T, s_T^2), see `offrl.teachers`. Of K actions near the
teacher's, the student is to prefer those that the teacher prefers, and as much:

    a_k = m_T(s) + scale s_T(s) eps_k,                          eps ~ N(0, 1)
    q_k = softmax_k( log pi_T(a_k|s) / temperature )
    adpo: L = -E[ sum_k q_k log softmax_k( (log pi(a_k|s) - log pi_ref(a_k|s)) / tau ) ]
    kl:   L =  E[ KL(pi_T(.|s) || pi(.|s)) ]                    plain distillation

adpo asks for log pi = log pi_ref + tau log q + constant at every state, so that the anchor pi_ref
decides where the student ends, with w = tau / temperature:

    teacher   pi_ref = pi_T                    pi ~ pi_T^(1 + w)
    uniform   pi_ref = 1                       pi ~ pi_T^w
    clone     pi_ref = the law of the data     pi ~ pi_ref pi_T^w
    ema       pi_ref = the student, slowly     pi ~ pi_T^w', w' growing to the least deviation

For Gaussians the precisions add up, 1 / s^2 = 1 / s_ref^2 + w / s_T^2, and the mean is m_T, but
with `clone`, where it lies between the data and the teacher, weighted by them. A student of w = 1
under a uniform anchor is the teacher. With a high temperature q is even, and under the teacher's
anchor, with a scale of 1, the loss is the KL's with a control variate: its minimum is the
teacher, where its gradient has no noise. Two actions at a low temperature are DPO, beta = 1 / tau,
on pairs that the teacher labels; many actions, spread wide, with tau = temperature = 1 and a
uniform anchor, have the gradient of the KL.

Order within an update: one step on L; then, with `ema`, pi_ref moves towards pi. With `clone` the
first share of the updates is behaviour cloning by maximum likelihood on the logged actions, each
followed by pi_ref <- pi, and after it pi_ref stays.

The paper's versions differ, and of its distillation no version's code was found. By the abstract
of v3 a fixed anchor, the teacher, is best offline (HalfCheetah-v5: return 206.7, which is 387 % of
that teacher's); that of v6 has 279.3 against -309.0 by plain distillation; v7's says nothing of
it. How candidates are drawn, q's temperature, K and tau there are not known to us: they are this
library's choice, and so are the recipe and what plain distillation is. The student's deviation
does not depend on the state, a teacher's may; a teacher without a density, such as a
deterministic one, counts as N(its action, teacher_std^2).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.distributions import Normal

from offrl.actors import GaussianActor
from offrl.agent import Agent
from offrl.checks import check_choice, check_intervals, check_that, make_lasting
from offrl.datasets.offline import OfflineDataset, Spec
from offrl.datasets.replay import Replay
from offrl.divergences import gaussian_kl
from offrl.errors import DataError
from offrl.lm.losses.lists import adpo, boltzmann
from offrl.lm.losses.scores import Scores
from offrl.losses import action_error, cloning_loss
from offrl.networks import Learners
from offrl.optim import adam, polyak_update, target_of
from offrl.teachers import Taught, taught
from offrl.types import Metrics, Noise, TaughtBatch

ANCHORS = ("teacher", "uniform", "clone", "ema")


@dataclass(frozen=True)
class DistillConfig:
    """Settings of this library; the paper's are not known to it."""

    teacher: str = ""  # folder of a run or of a policy, the one to learn from
    loss: Literal["adpo", "kl"] = "adpo"  # kl is plain distillation, which has no anchor
    anchor: Literal["teacher", "uniform", "clone", "ema"] = "teacher"  # pi_ref of adpo
    tau: float = 1.0  # of adpo: how far from the anchor q leads
    temperature: float = 1.0  # beta_q, of q: the lower, the more the best candidate counts
    candidates: int = 16  # K, actions for each state
    scale: float = 1.0  # of the candidates about the teacher's action, in its deviations
    teacher_std: float = 0.1  # s_T of a teacher that states none; actions are in [-1, 1]
    clone: float = 0.5  # share of the updates that fit the reference, with that anchor
    polyak: float = 0.005  # how far the reference moves in one update, with the anchor ema
    normalize_obs: bool = True  # by the mean and deviation of the data
    lr: float = 3e-4  # learning rate
    hidden: tuple[int, ...] = (256, 256)  # units of each layer

    def __post_init__(self) -> None:
        check_choice(self, "loss", ("adpo", "kl"))
        check_choice(self, "anchor", ANCHORS)
        check_intervals(
            self,
            tau="(0, inf)",
            temperature="(0, inf)",
            candidates="[2, inf)",
            scale="(0, inf)",
            teacher_std="(0, inf)",
            clone="[0, 1]",
            polyak="(0, 1]",
            lr="(0, inf)",
        )
        make_lasting(self, "teacher")


class Distill(Agent):
    """Learn what a saved policy does at logged states."""

    config: DistillConfig
    config_class = DistillConfig
    suits = "a policy to copy, states it may meet"
    measure = "teacher_error"
    actor: GaussianActor
    recipes: ClassVar[Mapping[str, Mapping[str, Any]]] = {"locomotion": {"steps": 50_000}}

    def __init__(self, spec: Spec, config: DistillConfig, learners: Learners) -> None:
        super().__init__(spec, config, learners)
        self.actor = GaussianActor(self.obs_dim, self.act_dim, config.hidden, learners)
        self.actor_opt = adam(self.actor.parameters(), config.lr)
        if config.loss == "adpo" and config.anchor in ("clone", "ema"):
            self.reference = target_of(self.actor)
        self.cloning = False  # whether the next update does; follows from its number

    def view(self, dataset: OfflineDataset) -> Taught:
        cfg = self.config
        must = "name the policy to learn from, by the folder of its run (--teacher)"
        check_that(cfg, "teacher", bool(cfg.teacher), must)
        return taught(dataset, cfg.teacher, width=cfg.teacher_std, normalize_obs=cfg.normalize_obs)

    def prepare(self, replay: Replay) -> None:
        super().prepare(replay)
        if not isinstance(replay, Taught):
            raise DataError("distill needs a view with a teacher's answers, as `view` makes")
        self.teacher_print = replay.teacher_print

    def fingerprints(self) -> dict[str, str]:
        return {"teacher": self.teacher_print}

    def noise(self, batch_size: int) -> dict[str, tuple[int, ...]]:
        if self.config.loss == "kl":
            return {}
        return {"candidates": (batch_size, self.config.candidates, self.act_dim)}

    def schedule(self, step: int, steps: int) -> None:
        clones = self.config.loss == "adpo" and self.config.anchor == "clone"
        self.cloning = clones and step < self.config.clone * steps

    def update(self, batch: TaughtBatch, noise: Noise, phase: int) -> Metrics:
        cfg = self.config
        if cfg.loss == "kl":
            return self.minimize(self.actor_opt, self.kl_loss, batch)
        if self.cloning:
            metrics = self.minimize(self.actor_opt, self.clone_loss, batch)
            polyak_update(self.actor, self.reference, 1.0)
            return metrics
        metrics = self.minimize(self.actor_opt, self.adpo_loss, batch, noise["candidates"])
        if cfg.anchor == "ema":
            polyak_update(self.actor, self.reference, cfg.polyak)
        return metrics

    def kl_loss(self, batch: TaughtBatch) -> tuple[Tensor, Metrics]:
        measured = _distances(batch, self.actor.mean(batch.obs), self.actor.spread())
        return measured.pop("teacher_kl"), measured

    def clone_loss(self, batch: TaughtBatch) -> tuple[Tensor, Metrics]:
        return cloning_loss(self.actor(batch.obs), batch.action).mean(-1), {}

    def adpo_loss(self, batch: TaughtBatch, noise: Tensor) -> tuple[Tensor, Metrics]:
        cfg, mean, std = self.config, batch.teacher_mean, batch.teacher_std
        action = mean.unsqueeze(-2) + cfg.scale * std.unsqueeze(-2) * noise
        teacher = _log_prob(mean, std, action)
        student = self.actor.mean(batch.obs), self.actor.spread()
        logp = _log_prob(*student, action)
        anchor = teacher
        if cfg.anchor == "uniform":
            anchor = torch.zeros_like(teacher)
        elif cfg.anchor != "teacher":
            anchor = _log_prob(self.reference.mean(batch.obs), self.reference.spread(), action)
        # A candidate is a completion of one token.
        scores = Scores(logp[..., None], anchor[..., None], torch.ones_like(logp)[..., None])
        target = boltzmann(teacher, temperature=cfg.temperature)
        return adpo(scores, target, tau=cfg.tau).mean(-1), _distances(batch, *student)

    def validate(self, batch: TaughtBatch) -> Metrics:
        return _distances(batch, self.actor.mean(batch.obs), self.actor.spread())


def _distances(batch: TaughtBatch, mean: Tensor, std: Tensor) -> Metrics:
    """KL(pi_T || pi), and the squared distance of the actions that the two answer with."""
    kl = gaussian_kl(batch.teacher_mean, batch.teacher_std, mean, std)
    error = action_error(mean, batch.teacher_mean)
    return {"teacher_kl": kl.mean(-1), "teacher_error": error.mean(-1)}


def _log_prob(mean: Tensor, std: Tensor, action: Tensor) -> Tensor:
    """log N(a_k; m, s^2) of each candidate (*seed, batch, candidates, act)."""
    law = Normal(mean.unsqueeze(-2), std.unsqueeze(-2), validate_args=False)
    logp: Tensor = law.log_prob(action)  # type: ignore[no-untyped-call]
    return logp.sum(-1)
