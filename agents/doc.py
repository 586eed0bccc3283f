"""Dichotomy of Control (DoC; Yang et al., ICLR 2023, arXiv:2210.13435).

A return that the data had by luck is asked for in vain. So actions are conditioned not on a return
but on a latent z of the future, formed so that it says what was done and nothing of how rewards
and next states then fell out:

    min_(pi, q)  E[ |pi(h_i, z) - a_i|^2 ] + alpha I,       z ~ q(z | past, future)
    I = max_u    E[ u(y_i; z, h_i, a_i) - log mean_j exp u(y_j; z, h_i, a_i) ],  y = (r, s')
    min_p        KL(q || p(z | h_t));      min_V  E[ (V(h_t, z) - R_t)^2 ]        for a fixed q

i runs over the steps t .. t + F - 1 that the latent covers, h_i is what was known when a_i was
due, its time in the episode with it, and R_t the return from t on. |.|^2 is averaged over m
components: with noise sigma in the actions alpha is 2 sigma^2 / m times the paper's beta, which
weighs I against -log pi. The reference j is the same step of the other segments of the batch; that
it does not depend on (s, a) adds to I a term in which q does not occur, but the bound is at most
the log of the batch: where (s, a) alone tells s' that well, it leaves no room for what z adds, and
alpha should be small. Acting: at the start, and every `hold` steps, latents of the prior are scored
by V, and pi follows the best of them, or the one whose value is nearest to a return that is asked
for.

Order within an update, all of one batch and one draw of noise: q for the energy; `energy_steps`
steps on the energy; one step on policy and posterior; q anew, and one step on prior and value.

Followed is the paper. Its authors' code differs in four points, none of which is repeated: there
the candidates at inference are scored by a latent that is not theirs, the energy's positive branch
has the next state twice and no reward, the prior gets no gradient, and the posterior *raises* the
bound. Departures from both: V and p see the past through a network of their own, apart from the
policy's; the future's network is read by a mean over its tokens; the energy is an inner product of
two networks; rewards and returns are standardised by the data, so that no scale is a setting; the
energy knows h_i as the policy does, without a gradient into it; V's hidden units are ReLUs (tanh
in the code); the context does not slide while
a latent is held; draws of the prior outside the ball of `mass` of it are pulled onto it, since V
is a guess there; no dropout (`offrl.attention`). The paper's discrete latents are `latents
categorical`: expectations over them are exact, and codes of less probability than `least_mass`
are never chosen. `backbone mlp` is a small form for tasks of little memory.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from offrl.agent import Agent
from offrl.checks import check_intervals
from offrl.datasets.offline import OfflineDataset, Spec
from offrl.datasets.replay import Replay
from offrl.datasets.segments import Segments
from offrl.futures import (
    SMALL_RECIPES,
    FutureConfig,
    keep_moments,
    latent_actor,
    latent_policy_of,
    segment_view,
)
from offrl.latent_models import Energy, LatentActor, Posterior, before, segment_of, with_latents
from offrl.latent_policy import LatentPolicy
from offrl.losses import contrastive_bound
from offrl.networks import Learners
from offrl.optim import adamw, clipping
from offrl.returns import real_mean, warm_up
from offrl.types import Metrics, Noise, SegmentBatch

TRAINING = {"batch_size": 64, "steps": 10_000}


@dataclass(frozen=True, kw_only=True)
class DoCConfig(FutureConfig):
    """Settings of the authors' code for continuous control."""

    information_weight: float = 1.0  # alpha, of I; 2 sigma^2 / m times the paper's beta
    energy_steps: int = 3  # of the energy for each of the policy
    features: int = 64  # n, of the energy's inner product
    lr: float = 1e-4  # learning rate
    warmup: int = 1_000  # updates over which the learning rate rises
    weight_decay: float = 1e-4
    grad_norm: float = 0.25  # at which gradients are cut; 0 cuts none

    def __post_init__(self) -> None:
        super().__post_init__()
        check_intervals(self, energy_steps="[1, inf)", features="[1, inf)", warmup="[1, inf)")
        check_intervals(self, information_weight="[0, inf)", weight_decay="[0, inf)")
        check_intervals(self, lr="(0, inf)", grad_norm="[0, inf)")


class DoC(Agent):
    """Prediction of the action that goes with what was meant, not with what came of it."""

    config: DoCConfig
    config_class = DoCConfig
    suits = "returns of which a part is luck"
    actor: LatentActor
    recipes: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "locomotion": TRAINING,
        **SMALL_RECIPES,
    }

    def __init__(self, spec: Spec, config: DoCConfig, learners: Learners) -> None:
        super().__init__(spec, config, learners)
        self.actor = latent_actor(self)
        self.posterior = Posterior(self.actor, learners, config.future, config.hidden)
        context = self.actor.history.size + self.act_dim + config.latent
        self.energy = Energy(context, self.obs_dim, config.features, config.hidden, learners)
        acting = nn.ModuleList([self.actor.history, self.actor.head, self.posterior])
        self.actor_opt = adamw(acting, config.lr, config.weight_decay)
        self.energy_opt = adamw(self.energy, config.lr, config.weight_decay)
        self.planner_opt = adamw(self.actor.planner, config.lr, config.weight_decay)
        self.clip = clipping(config.grad_norm)

    @classmethod
    def stacks(cls, config: DoCConfig) -> bool:
        return config.backbone == "mlp"

    def view(self, dataset: OfflineDataset) -> Segments:
        return segment_view(self.config, dataset)

    def prepare(self, replay: Replay) -> None:
        super().prepare(replay)
        assert isinstance(replay, Segments)
        keep_moments(self.actor, replay)

    def noise(self, batch_size: int) -> dict[str, tuple[int, ...]]:
        return self.actor.latents.noise(batch_size)

    def schedule(self, step: int, steps: int) -> None:
        for optimizer in (self.actor_opt, self.energy_opt, self.planner_opt):
            warm_up(self.config, optimizer, step)

    def update(self, batch: SegmentBatch, noise: Noise, phase: int) -> Metrics:
        q = self.compute(self.formed, batch)
        metrics: Metrics = {}
        for _ in range(self.config.energy_steps):
            metrics |= self.minimize(
                self.energy_opt, self.energy_loss, batch, noise, q, combine=self.clip
            )
        metrics |= self.minimize(self.actor_opt, self.actor_loss, batch, noise, combine=self.clip)
        q = self.compute(self.formed, batch)
        metrics |= self.minimize(
            self.planner_opt, self.planner_loss, batch, noise, q, combine=self.clip
        )
        return metrics

    def formed(self, batch: SegmentBatch) -> Tensor:
        """Parameters of q."""
        q: Tensor = self.posterior(segment_of(batch))
        return q

    def information(self, batch: SegmentBatch, h: Tensor, z: Tensor, weight: Tensor) -> Tensor:
        """The bound I, mean over the steps that the latents cover."""
        n = self.config.future
        known = with_latents(torch.cat([h.detach(), batch.action[..., -n:, :]], -1), z)
        reward, next_obs = batch.reward[..., -n:], batch.next_obs[..., -n:, :]
        real = batch.real[..., -n:]
        pair, score = self.energy(known, reward, next_obs)
        others = real.transpose(-2, -1)[..., None, :, None, :]
        bound = contrastive_bound(pair, score, others)
        return real_mean((weight[..., None, :] * bound).sum(-1), real)

    def energy_loss(self, batch: SegmentBatch, noise: Noise, q: Tensor) -> tuple[Tensor, Metrics]:
        z, weight = self.actor.latents.draws(q, noise.get("latent"))
        with torch.no_grad():
            h = self.actor.history(segment_of(batch), self.config.future)
        return -self.information(batch, h, z, weight)[None], {}

    def actor_loss(self, batch: SegmentBatch, noise: Noise) -> tuple[Tensor, Metrics]:
        z, weight = self.actor.latents.draws(self.formed(batch), noise.get("latent"))
        h = self.actor.history(segment_of(batch), self.config.future)
        error = self.acted(batch, h, z, weight)
        information = self.information(batch, h, z, weight)
        loss = error + self.config.information_weight * information
        return loss[None], {"action_error": error, "information": information}

    def acted(self, batch: SegmentBatch, h: Tensor, z: Tensor, weight: Tensor) -> Tensor:
        """Mean squared error of the actions that the latents cover."""
        n = self.config.future
        found = self.actor.acts(h, z) - batch.action[..., -n:, None, :]
        error = (weight[..., None, :] * found.square().mean(-1)).sum(-1)
        return real_mean(error, batch.real[..., -n:])

    def planner_loss(self, batch: SegmentBatch, noise: Noise, q: Tensor) -> tuple[Tensor, Metrics]:
        z, weight = self.actor.latents.draws(q, noise.get("latent"))
        planner = self.actor.planner
        h = planner.history(before(batch, self.config.context), 1)[..., 0, :]
        divergence = self.actor.latents.divergence(q, planner.prior(h)).mean(-1)
        error = (planner(h, z) - batch.to_go[..., None]).square()
        value_loss = (weight * error).sum(-1).mean(-1)
        metrics = {"divergence": divergence, "value_loss": value_loss}
        return (divergence + value_loss)[None], metrics

    def validate(self, batch: SegmentBatch) -> Metrics:
        """The error of actions under the latents of held-out segments, the mean of a Gaussian."""
        z, weight = self.actor.latents.draws(self.formed(batch), None)
        h = self.actor.history(segment_of(batch), self.config.future)
        return {"action_error": self.acted(batch, h, z, weight)}

    def policy(self, learner: int = 0, provenance: Mapping[str, Any] | None = None) -> LatentPolicy:
        return latent_policy_of(self, learner, provenance)
