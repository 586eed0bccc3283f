"""EBT-Policy (EBT; Davies et al., 2025, arXiv:2510.27545).

The policy is where a few steps down an energy lead, and the energy is what makes them lead to the
logged chunk A under the last observations O:

    A_i = A_{i-1} - r dE(O, A_{i-1})/dA,   A_0 ~ N(0, I),   i = 1 .. N
    s1:  L = mean_i |A_i - A|,  each step from an A_{i-1} that counts as given
    s2:  L = |A_N - A|,         through all steps

|.| being the smooth L1 distance, and r learned beside E; the gradient of L is one of slopes. Within
an update: one step on L, its norm cut, then the average of both, which acts. A plan is made in at
most `sampler_steps` steps, fewer where the energy settles first (`flat`, `still`); of `restarts`
the one of least energy is taken, and `DescentPlanner.inspect` says how sure it is.

The paper's code is not released. What is here follows that of Energy-Based Transformers
(arXiv:2507.02092): both stages, noise added before each step (`langevin`), a random rate from
[r / s, r s] (`rate_spread`), r >= 1e-4, and a learning rate of r of 3 r_0 times the others', while
the norm that is cut has the plain slope along r. Left out are its random number of steps and its
buffer of earlier plans. Ours: the network and its size, chunks, average and warm-up of Diffusion
Policy (500 updates; 10,000 in that code), and r_0, which is 500 for tokens and 3,000 for images
there. The metric `fall` is how much
lower the energy is after the last step than before the first.

A_0 knows nothing of A, so the best that L can learn is one chunk for each O: up to the smooth L1's
shape the mean of what was logged, as in cloning by regression. Also ours is therefore `noised`: for
this share of the samples A_0 = (1 - u) A + u eps, u uniform on (0, 1), as in denoising. Steps then
lead to what is near, several of them to one way to act among several; 0 is the method itself.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.functional import smooth_l1_loss

from offrl.agent import Agent
from offrl.checks import check_choice, check_intervals, check_multiple
from offrl.chunks import (
    HEADS,
    AveragedConfig,
    average_of,
    chunk_policy,
    chunk_view,
    same_noise,
    schedule_chunks,
)
from offrl.datasets.offline import OfflineDataset, Spec
from offrl.datasets.windows import Windows
from offrl.energy import descend
from offrl.energy_nets import MLPEnergy, TransformerEnergy
from offrl.energy_planners import Descending, DescentPlanner, RatedEnergy
from offrl.networks import Learners, learner_view
from offrl.optim import adamw, clipping
from offrl.policy import PlanPolicy
from offrl.types import Metrics, Noise, WindowBatch


@dataclass(frozen=True)
class EBTConfig(AveragedConfig):
    """A small transformer; the other settings are those of the first stage."""

    backbone: Literal["transformer", "mlp"] = "transformer"  # an mlp stacks learners
    width: int = 128
    depth: int = 4  # blocks, or an MLP's layers, an even number
    weight_decay: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.999
    grad_norm: float = 1.0  # at which gradients are cut; 0 cuts none
    stage: Literal["s1", "s2"] = "s1"
    descent_steps: int = 2  # N, in learning
    rate: float = 10.0  # r_0
    rate_spread: float = 1.0  # s, by which r is divided and multiplied at most; 2 in s2
    langevin: float = 0.0  # deviation of the noise before each step
    limit: float = 0.0  # of what a step changes in each component; 0: none
    noised: float = 0.0  # share of samples that begin at the logged chunk with noise
    sampler_steps: int = 2  # of a plan, at most
    flat: float = 0.0  # root mean square of a slope, below which a plan has settled
    still: float = 0.0  # change of the energy in a step, below which it has
    restarts: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice(self, "backbone", ("transformer", "mlp"))
        check_choice(self, "stage", ("s1", "s2"))
        counts = ("descent_steps", "rate_spread", "sampler_steps", "restarts")
        check_intervals(self, **dict.fromkeys(counts, "[1, inf)"), rate="(0, inf)")
        sizes = ("grad_norm", "langevin", "limit", "flat", "still")
        check_intervals(self, **dict.fromkeys(sizes, "[0, inf)"), noised="[0, 1]")
        if self.backbone == "mlp":
            check_multiple(self, "depth", 2, "an mlp of blocks of two layers")
        else:
            check_multiple(self, "width", HEADS, "the transformer")


class EBT(Agent):
    """An energy whose slope leads to the logged actions."""

    config: EBTConfig
    config_class = EBTConfig
    suits = "demonstrations, one way to act"
    stacked = False
    measure = "loss"
    recipes: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "offrl": {
            **{"history": 2, "horizon": 8, "execute": 4, "lr": 1e-3},
            **{"backbone": "mlp", "width": 256, "depth": 4},
        },
    }

    def __init__(self, spec: Spec, config: EBTConfig, learners: Learners) -> None:
        super().__init__(spec, config, learners)
        self.net = RatedEnergy(self._energy(), config.rate, learners)
        self.average = average_of(config, self.net)
        betas = config.beta1, config.beta2
        self.net_opt = adamw(self.net, config.lr, config.weight_decay, betas)
        self.clip = clipping(config.grad_norm)

    @classmethod
    def stacks(cls, config: Any) -> bool:
        return bool(config.backbone == "mlp")

    def view(self, dataset: OfflineDataset) -> Windows:
        return chunk_view(self, dataset)

    def noise(self, batch_size: int) -> dict[str, tuple[int, ...]]:
        cfg, shape = self.config, (batch_size, self.config.horizon, self.act_dim)
        wanted: dict[str, tuple[int, ...]] = {"start": shape}
        if cfg.noised:
            wanted["level"] = (batch_size,)
        if cfg.rate_spread > 1.0:
            wanted["rate"] = (batch_size,)
        if cfg.langevin:
            wanted["shakes"] = (cfg.descent_steps, *shape)
        return wanted

    def schedule(self, step: int, steps: int) -> None:
        schedule_chunks(self.config, self.net_opt, self.average, step, steps)

    def update(self, batch: WindowBatch, noise: Noise, phase: int) -> Metrics:
        metrics = self.minimize(self.net_opt, self.loss, batch, noise, combine=self.clip)
        self.average.update(self.net)
        return metrics

    def loss(self, batch: WindowBatch, noise: Noise) -> tuple[Tensor, Metrics]:
        cfg, energy, rate = self.config, self.net.under(batch.obs), self.net.rate()
        if cfg.rate_spread > 1.0:
            least, most = rate / cfg.rate_spread, rate * cfg.rate_spread
            rate = least + torch.special.ndtr(noise["rate"])[..., None, None] * (most - least)
        x, errors, energies = self._start(batch, noise), [], []
        for i in range(cfg.descent_steps):
            x = x + cfg.langevin * noise["shakes"].select(-4, i) if cfg.langevin else x
            found = descend(energy, x, [rate], (), cfg.limit or None, detach=cfg.stage == "s1")
            x = found.x
            errors.append(self._error(x, batch))
            energies.append(found.energies[0].mean(-1))
        loss = errors[-1] if cfg.stage == "s2" else torch.stack(errors).mean(0)
        with torch.no_grad():
            fall = energies[0] - energy(x).mean(-1)
        return loss[None], {"last_loss": errors[-1], "fall": fall}

    def _error(self, x: Tensor, batch: WindowBatch) -> Tensor:
        return smooth_l1_loss(x, batch.action, reduction="none").mean((-1, -2)).mean(-1)

    def _start(self, batch: WindowBatch, noise: Noise) -> Tensor:
        if not self.config.noised:
            return noise["start"]
        # Uniform on (0, 1) for the share of the samples, and 1 for the others.
        level = (torch.special.ndtr(noise["level"]) / self.config.noised).clamp(max=1.0)
        level = level[..., None, None]
        start: Tensor = (1.0 - level) * batch.action + level * noise["start"]
        return start

    @torch.no_grad()
    def validate(self, batch: WindowBatch) -> Metrics:
        """How far plans of the average are from the logged ones, from the same noise each time."""
        cfg, net = self.config, self.average.net
        *lead, count = batch.index.shape
        wanted = {"start": (count, cfg.horizon, self.act_dim)}
        start = same_noise(self, wanted, tuple(lead))["start"]
        rates = [net.rate()] * cfg.sampler_steps
        found = descend(net.under(batch.obs), start, rates, (), cfg.limit or None)
        return {"loss": self._error(found.x, batch), "energy": found.energies[-1].mean(-1)}

    def policy(self, learner: int = 0, provenance: Mapping[str, Any] | None = None) -> PlanPolicy:
        cfg, net = self.config, learner_view(self.average.net, learner)
        limit, restarts = cfg.limit or None, cfg.restarts
        descending = Descending(cfg.sampler_steps, cfg.flat, cfg.still, limit, 1.0, restarts)
        planner = DescentPlanner(net, descending, self.obs_dim, self.act_dim, cfg.horizon)
        return chunk_policy(self, planner, provenance)

    def _energy(self) -> MLPEnergy | TransformerEnergy:
        cfg, learners, sizes = self.config, self.learners, (self.config.horizon, self.act_dim)
        if cfg.backbone == "mlp":
            inputs, shape = cfg.history * self.obs_dim, {"hidden": cfg.width, "depth": cfg.depth}
            return MLPEnergy(*sizes, inputs, learners, **shape, activation="silu", spread=None)
        shape = {"layers": cfg.depth, "heads": HEADS, "width": cfg.width}
        return TransformerEnergy(*sizes, cfg.history, self.obs_dim, learners, **shape)
