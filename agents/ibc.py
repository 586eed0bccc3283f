"""Implicit BC (IBC; Florence et al., CoRL 2021, arXiv:2109.00137).

The policy is the action of least energy. With the logged actions a from now on (one, as published),
the last observations O, and others a_j that are drawn or refined from U(-b, b):

    L = -log[ exp(-E(O, a) / T) / (exp(-E(O, a) / T) + sum_j exp(-E(O, a_j) / T)) ]
        + weight mean_{a, a_j} max(0, |dE/da|_inf - steep)^2

One step on L per update; the learning rate falls to `lr_decay` of itself in 100 updates, as in the
code (there at once). With `method` dfo the others are uniform, and acting resamples candidates by
exp(-E / T) while they are shaken less and less; with langevin others and candidates walk down E
with noise (`offrl.energy_planners`), and no gradient flows through their walk. The loss says little
of the policy: it rises while that gets better. Langevin's noise takes memory: a number for each
component of each of the others at each step, for 64 updates at once (`offrl.streams`), which with
Adroit's settings and 24 components are 2.5 GB for each learner.

Settings and numbers are those of the authors' code, in which -E is the network's output. The
defaults are its pushing from states, with fewer candidates when acting: 1,024 for 16,384; its batch
of 512 is in the recipe of Adroit alone. Departures: of the last candidates the best is taken
(`offrl.energy.search` says what the code takes); langevin's shakes have the same scale in learning
and acting, 1 when acting in the code whatever it is in learning; its second walk when acting, whose
rates of 1e-5 move nothing, and the spectral norm of D4RL's layers are left out. Energies may be of
several actions ahead (`horizon` beyond `history`), which is not of the paper.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from offrl.agent import Agent
from offrl.checks import check_intervals, check_multiple
from offrl.chunks import PlanConfig, chunk_policy, chunk_view, same_noise
from offrl.datasets.offline import OfflineDataset, Spec
from offrl.datasets.windows import Normalize, Windows
from offrl.energy import Energy, info_nce, slope, steepness
from offrl.energy_nets import MLPEnergy
from offrl.energy_planners import Searching, SearchPlanner
from offrl.guidance import choose, taken
from offrl.networks import Learners, learner_view
from offrl.optim import adam, set_lr
from offrl.policy import PlanPolicy
from offrl.types import Metrics, Noise, WindowBatch


@dataclass(frozen=True)
class IBCConfig(PlanConfig):
    """Settings of the authors for pushing from states; see the recipes for others."""

    horizon: int = 2  # past actions among them: horizon - history + 1 are of the energy
    execute: int = 1
    normalize: Normalize = "zscore"
    width: int = 128  # 512 on D4RL, 2,048 for particles
    depth: int = 8  # layers, an even number; 2 for particles
    lr: float = 1e-3  # learning rate
    lr_decay: float = 0.99  # factor on lr in 100 updates
    negatives: int = 256  # 8 with langevin
    temperature: float = 1.0  # T
    penalty: float = 0.0  # weight of steep slopes; 1 with langevin
    steep: float = 1.0  # largest component of a slope, beyond which it is one
    margin: float = 0.05  # of the actions' range by which candidates may lie outside of it
    method: Literal["dfo", "langevin"] = "dfo"
    candidates: int = 1_024  # when acting; 16,384 as published, 512 with langevin
    rounds: int = 3  # evaluations of dfo; steps of langevin, 100 as published
    spread: float = 0.33  # sigma of dfo's first round
    shrink: float = 0.5  # of sigma, from round to round
    rate: float = 0.1  # of langevin's first step; 0.5 on D4RL
    last_rate: float = 1e-5  # of its last
    shake: float = 1.0  # of its noise; 0.5 on D4RL
    limit: float = 0.1  # share of half the candidates' range that a step may change; 0.5 on D4RL

    def __post_init__(self) -> None:
        super().__post_init__()
        check_intervals(
            self,
            **{"lr_decay": "(0, 1]", "negatives": "[1, inf)", "penalty": "[0, inf)"},
            **{
                "steep": "[0, inf)",
                "margin": "[0, inf)",
                "limit": "(0, inf)",
                "temperature": "(0, inf)",
            },
        )
        check_multiple(self, "depth", 2, "a network of blocks of two layers")
        searching_of(self)


class IBC(Agent):
    """An energy that tells logged actions from others."""

    config: IBCConfig
    config_class = IBCConfig
    suits = "demonstrations, few action dimensions"
    recipes: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "adroit": {
            **{"history": 1, "horizon": 1, "width": 512, "depth": 8, "lr": 5e-4, "negatives": 8},
            **{"method": "langevin", "candidates": 512, "rounds": 100, "penalty": 1.0},
            **{"rate": 0.5, "shake": 0.5, "limit": 0.5, "batch_size": 512, "steps": 100_000},
        },
        "offrl": {"negatives": 64, "candidates": 512, "steps": 100_000},
    }

    def __init__(self, spec: Spec, config: IBCConfig, learners: Learners) -> None:
        super().__init__(spec, config, learners)
        self.searching, self.ahead = searching_of(config), config.horizon - config.history + 1
        sizes = self.ahead, self.act_dim, config.history * self.obs_dim
        self.net = MLPEnergy(*sizes, learners, hidden=config.width, depth=config.depth)
        self.net_opt = adam(self.net.parameters(), config.lr)

    def view(self, dataset: OfflineDataset) -> Windows:
        return chunk_view(self, dataset)

    def noise(self, batch_size: int) -> dict[str, tuple[int, ...]]:
        shape = (batch_size * self.config.negatives, self.ahead, self.act_dim)
        if self.config.method == "dfo":
            return {"others": shape}
        return {"others": shape, "walk": (self.config.rounds, *shape)}

    def schedule(self, step: int, steps: int) -> None:
        set_lr(self.net_opt, self.config.lr * self.config.lr_decay ** (step / 100))

    def update(self, batch: WindowBatch, noise: Noise, phase: int) -> Metrics:
        return self.minimize(self.net_opt, self.loss, batch, noise)

    def loss(self, batch: WindowBatch, noise: Noise) -> tuple[Tensor, Metrics]:
        cfg, logged, energy = self.config, batch.future_action, self.net.under(batch.obs)
        others = self._others(energy, noise)
        value, values = energy(logged), energy(others)
        values = values.reshape(*value.shape, cfg.negatives)
        loss = info_nce(value, values, cfg.temperature)
        if cfg.penalty:
            excess = steepness(slope(energy, others).gradient, cfg.steep)
            excess = excess.reshape(values.shape).sum(-1)
            excess = excess + steepness(slope(energy, logged).gradient, cfg.steep)
            loss = loss + cfg.penalty * excess / (cfg.negatives + 1)
        return loss.mean(-1), {"margin": (values.mean(-1) - value).mean(-1)}

    def _others(self, energy: Energy, noise: Noise) -> Tensor:
        x = self.searching.begin(noise["others"])
        if self.config.method == "dfo":
            return x
        with torch.no_grad():
            along = noise["walk"].movedim(-4, 0)
            return self.searching.walk(energy, x, along)

    @torch.no_grad()
    def validate(self, batch: WindowBatch) -> Metrics:
        """The loss with 64 uniform others, the same each time, and how far off their best is."""
        count, logged, energy = 64, batch.future_action, self.net.under(batch.obs)
        rows = (*logged.shape[:-3], count * logged.shape[-3])
        wanted = {"others": (rows[-1], *logged.shape[-2:])}
        others = self.searching.begin(same_noise(self, wanted, rows[:-1])["others"])
        value, values = energy(logged), energy(others)
        best = taken(others, choose(-values, count), count)
        return {
            "action_error": (best - logged).square().mean((-1, -2)).mean(-1),
            "loss": info_nce(value, values.reshape(*value.shape, count)).mean(-1),
        }

    def policy(self, learner: int = 0, provenance: Mapping[str, Any] | None = None) -> PlanPolicy:
        net, sizes = learner_view(self.net, learner), (self.obs_dim, self.act_dim)
        cfg = self.config
        planner = SearchPlanner(net, self.searching, *sizes, cfg.horizon, cfg.history)
        return chunk_policy(self, planner, provenance)


def searching_of(cfg: IBCConfig) -> Searching:
    """How actions are found; actions are in [-1, 1], whose range is 2."""
    bound = 1.0 + 2.0 * cfg.margin
    names = ("method", "candidates", "rounds", "temperature", "spread", "shrink")
    same = {n: getattr(cfg, n) for n in (*names, "rate", "last_rate", "shake")}
    return Searching(**same, bound=bound, limit=cfg.limit * bound)
