"""Behaviour generation with score-based diffusion (BESO; Reuss et al., RSS 2023, arXiv:2304.02532).

Actions a of a window are denoised under its observations s and a goal g from later in the episode:

    sigma log-logistic at ln(sigma_d) with scale 0.5, cut at sigma_min and sigma_max; one a window
    L = E[ |F(c_in (a + sigma eps), s, g, ln(sigma) / 4) - (a - c_skip (a + sigma eps)) / c_out|^2 ]
    average <- average + (1 - decay) (net - average),  decay = min(ema, (1 + n) / (10 + n))

with c_skip, c_out, c_in of EDM (`offrl.processes`), over all actions of the window; F is a GPT over
[level, goals, s1, a1, s2, a2, ...] (`offrl.transformer`). Within an update: one step on L, then
the average, which acts: at each step of the environment the newest action is generated from
N(0, sigma_max^2 I) in `sampler_steps` evaluations (3), past actions being known. A share of the
goals is hidden in training, so that the same network acts without one, and by

    D = D_free + guidance (D_goal - D_free)

with any weight between and beyond (twice the evaluations). Defaults are the kitchen's, the model
conditioned on goals (guidance 1, the better one there); the authors' guided one has 1.5.

Where the paper and its code leave a choice: (a) the goal is hidden per sample; the code draws for
each component, so that no goal at all is next to never seen. (b) The learning rate falls to
`lr_decay` of itself in 100 updates, as in the code (there at once), so to 1.8 % in 40,000; 1 keeps
it. (c) sigma_max = 1 draws the mean of actions with spread s towards 0 by the share 1 - s /
sqrt(s^2 + 1): raise it where one situation allows very different actions. (d) Past actions are put
back at each step, as the code's option to keep them does: by default it moves them along, and
neither was what training showed, noise of one level on all; `past="noised"` is. (e) A goal of zeros
is not the same as none: the transformer does not see a goal that is hidden, an MLP is told. (f)
Large weights of guidance spoil the kitchen's actions: 1 is neutral, and costs nothing.

Departures: windows may begin before their episode, with steps that are not seen and do not count
in L, where the code's windows are shorter; no dropout (0.3 of attention in the kitchen; see
`offrl.attention`); weight decay spares biases and norms. `process="ddpm"` puts Diffusion Policy's
process in EDM's place, all else the same, and an MLP may take the GPT's: both are for comparison.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor

from offrl.agent import Agent
from offrl.checks import check_choice, check_intervals, check_multiple
from offrl.chunks import MLP_BLOCKS, chunk_noise, chunk_policy, held_out_noise, stacks
from offrl.datasets.offline import OfflineDataset, Spec
from offrl.datasets.windows import Goals, Normalize, Windows, goal_parts, windows
from offrl.denoising import matching_error
from offrl.ema import Average, Decay
from offrl.execution import Execution
from offrl.goal_planner import GoalPlanner, Situation, goal_backbone, goal_generation, told
from offrl.networks import Learners, learner_view
from offrl.optim import adamw, set_lr
from offrl.policy import PlanPolicy
from offrl.types import GoalBatch, Metrics, Noise


@dataclass(frozen=True)
class BESOConfig:
    """Settings of the authors' code for the kitchen; see the recipes for others."""

    history: int = 4  # observations of a window, each with its action
    goals: Literal["uniform", "geometric", "final"] = "uniform"  # which later observations
    goal_gamma: float = 0.99  # of the geometric distribution
    goal_gap: int = 1  # steps from now to the earliest goal
    goal_length: int = 2  # G, observations of a goal
    goal_dropout: float = 0.1  # probability of no goal, per sample
    process: Literal["edm", "ddpm"] = "edm"
    sigma_data: float = 0.5  # sigma_d of edm
    sigma_min: float = 0.005  # of edm; 0.05 for block pushing
    sigma_max: float = 1.0  # of edm
    spacing: Literal["linear", "exponential", "karras"] = "linear"  # of edm's levels when acting
    levels: int = 100  # T of ddpm
    sampler: Literal["ddim", "ancestral", "heun", "dpm2", "dpm3"] = "ddim"
    sampler_steps: int = 3
    guidance: float = 1.0  # lambda, weight of the goal; 1.5 (kitchen), 2 (block pushing) if guided
    past: Literal["clean", "noised"] = "clean"  # how past actions enter when acting
    normalize: Normalize = "none"  # of observations
    normalize_action: bool = False  # to [-1, 1] by the data's range, not by the bounds
    backbone: Literal["gpt", "mlp", "resnet", "film"] = "gpt"
    width: int = 360  # of tokens, or of an MLP's layers
    depth: int = 6  # layers, or blocks
    heads: int = 6  # of the GPT
    lr: float = 1e-4  # learning rate
    lr_decay: float = 0.99  # factor on lr in 100 updates
    weight_decay: float = 1e-2  # of AdamW
    ema: float = 0.999  # largest decay of the average

    def __post_init__(self) -> None:
        counts = ("history", "goal_length", "sampler_steps", "levels", "width", "depth", "heads")
        check_intervals(self, **dict.fromkeys(counts, "[1, inf)"), guidance="(-inf, inf)")
        check_intervals(self, lr_decay="(0, 1]", weight_decay="[0, inf)", ema="[0, 1]")
        check_intervals(self, goal_gamma="(0, 1)", goal_gap="[0, inf)", goal_dropout="[0, 1]")
        check_choice(self, "past", ("clean", "noised"))
        check_choice(self, "normalize", ("none", "zscore", "minmax"))
        check_choice(self, "process", ("edm", "ddpm"))
        check_choice(self, "sampler", ("ddim", "ancestral", "heun", "dpm2", "dpm3"))
        check_choice(self, "backbone", ("gpt", *MLP_BLOCKS))
        check_choice(self, "goals", ("uniform", "geometric", "final"))
        check_choice(self, "spacing", ("karras", "linear", "exponential"))
        positive = dict.fromkeys(("sigma_data", "sigma_min", "lr"), "(0, inf)")
        check_intervals(self, **positive, sigma_max=f"({self.sigma_min}, inf)")
        if self.process == "ddpm":
            check_intervals(self, sampler_steps=f"[1, {self.levels}]")
        if self.backbone == "gpt":
            check_multiple(self, "width", self.heads, f"attention of {self.heads} heads")
        goal_generation(self)

    @property
    def horizon(self) -> int:
        """Actions of a window: one for each observation."""
        return self.history

    def goal_view(self) -> Goals:
        settings = self.goals, self.goal_gamma, self.goal_gap, self.goal_length, self.goal_dropout
        return Goals(*settings)

    def execution(self) -> Execution:
        return Execution(self.history, self.history, goal=self.goal_length)


class BESO(Agent):
    """Denoise the next action under a goal."""

    config: BESOConfig
    config_class = BESOConfig
    suits = "play without rewards, goals to reach"
    stacked = False
    measure = "loss"
    recipes: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "kitchen": {"batch_size": 1024, "steps": 40_000},
        "offrl": {
            **{"history": 1, "goal_length": 1, "goals": "geometric", "goal_gamma": 0.9},
            **{"normalize": "minmax", "normalize_action": True, "batch_size": 128, "steps": 3_000},
            **{"backbone": "film", "width": 128, "depth": 2, "lr": 1e-3, "lr_decay": 0.95},
        },
    }

    def __init__(self, spec: Spec, config: BESOConfig, learners: Learners) -> None:
        super().__init__(spec, config, learners)
        self.achieved = goal_parts(spec)[0]
        self.generation = goal_generation(config)
        self.process: Any = self.generation.process
        self.net = goal_backbone(
            MLP_BLOCKS.get(config.backbone),
            history=config.history,
            act_dim=self.act_dim,
            obs_dim=self.obs_dim,
            goal=(config.goal_length, self.achieved.stop - self.achieved.start),
            learners=self.learners,
            **{"width": config.width, "depth": config.depth, "heads": config.heads},
            steps=config.levels if config.process == "ddpm" else None,
        )
        self.average = Average(self.net, Decay("ratio", config.ema))
        self.net_opt = adamw(self.net, config.lr, config.weight_decay)

    @classmethod
    def stacks(cls, config: Any) -> bool:
        return stacks(config)

    def view(self, dataset: OfflineDataset) -> Windows:
        cfg = self.config
        return windows(
            dataset,
            history=cfg.history,
            horizon=cfg.horizon,
            normalize=cfg.normalize,
            normalize_action=cfg.normalize_action,
            goals=cfg.goal_view(),
        )

    def noise(self, batch_size: int) -> dict[str, tuple[int, ...]]:
        return chunk_noise(self, batch_size)

    def schedule(self, step: int, steps: int) -> None:
        set_lr(self.net_opt, self.config.lr * self.config.lr_decay ** (step / 100))
        self.average.schedule(step)

    def update(self, batch: GoalBatch, noise: Noise, phase: int) -> Metrics:
        metrics = self.minimize(self.net_opt, self.loss, batch, noise)
        self.average.update(self.net)
        return metrics

    def loss(self, batch: GoalBatch, noise: Noise) -> tuple[Tensor, Metrics]:
        return self._error(self.net, batch, noise), {}

    def _error(self, net: Any, batch: GoalBatch, noise: Noise) -> Tensor:
        now = Situation(batch.obs, batch.real, batch.goal, batch.goal_real)
        network = told(net, now, self.achieved.start)
        given = batch.action, noise["noise"], self.process.draw(noise["level"]), None, batch.real
        return matching_error(self.process, network, *given).mean(-1)

    def validate(self, batch: GoalBatch) -> Metrics:
        noise = held_out_noise(self, batch.index.shape)
        return {"loss": self._error(self.average.net, batch, noise)}

    def policy(self, learner: int = 0, provenance: Mapping[str, Any] | None = None) -> PlanPolicy:
        cfg, net = self.config, learner_view(self.average.net, learner)
        sizes = self.obs_dim, self.act_dim, cfg.history, self.achieved.start
        how = cfg.guidance, cfg.past == "noised"
        return chunk_policy(self, GoalPlanner(net, self.generation, *sizes, *how), provenance)
