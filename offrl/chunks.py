"""What agents of action chunks have in common: settings, views, backbones, the policy handed over.

    L = E[ |net(x_t, t, o) - target|^2 ],  x_t = alpha x0 + sigma eps

with x0 a chunk of `horizon` actions that begins at the oldest of `history` observations o. These
are functions of an agent whose settings are a `ChunkConfig`; it says which process, and in which
order they are used.
Source: Diffusion Policy (Chi et al., RSS 2023, arXiv:2303.04137).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from offrl.agent import Agent
from offrl.backbones import Backbone, MLPDenoiser
from offrl.checks import check_choice, check_intervals, check_multiple, check_that
from offrl.datasets.offline import OfflineDataset
from offrl.datasets.windows import Normalize, Windows, windows
from offrl.denoising import Matched, Network, matching_error
from offrl.ema import Average, Decay
from offrl.errors import ConfigError
from offrl.execution import Execution
from offrl.generation import Generation
from offrl.networks import learner_view
from offrl.optim import adamw, set_lr, warm_cosine_rate
from offrl.past_planner import PastPlanner
from offrl.planners import ChunkPlanner
from offrl.policy import PlanPolicy, Policy, load_policy
from offrl.streams import Stream
from offrl.transformer import CrossTransformer
from offrl.types import Noise, WindowBatch
from offrl.unet import UNet

BackboneName = Literal["unet", "transformer", "mlp", "resnet", "film"]
BACKBONE_NAMES = ("unet", "transformer", "mlp", "resnet", "film")
MLP_BLOCKS: Mapping[str, Literal["plain", "residual", "film"]] = {
    "mlp": "plain",
    "resnet": "residual",
    "film": "film",
}
HEADS = 4  # of the transformer, as published
GROUPS = 8  # into which the U-Net divides its channels, as published
TIMES = 1_000.0  # by which levels that are no steps are multiplied: DDPM's steps are so many
# What recipes for the tasks of `offrl.envs`, of short episodes, have in common.
SMALL_TASKS: Mapping[str, Any] = {
    **{"history": 2, "horizon": 8, "execute": 4},
    **{"backbone": "film", "width": 128, "depth": 3, "lr": 1e-3},
}


@dataclass(frozen=True)
class PlanConfig:
    """Windows, how plans are carried out, and what every network of plans has."""

    history: int = 2  # To, observations that the policy sees
    horizon: int = 16  # Tp, actions of a plan, from that of the oldest observation on
    execute: int = 8  # Ta, actions taken before the next plan
    ensemble: float = -1.0  # m, a plan at each step, averaged by exp(-m i); below 0: none
    normalize: Normalize = "minmax"  # of observations
    normalize_action: bool = True  # to [-1, 1] by the data's range, not by the bounds
    width: int = 256  # of an MLP's layers, a transformer's tokens, the U-Net's first level
    depth: int = 3  # blocks, layers, or levels of which each has twice the channels
    lr: float = 1e-4  # learning rate

    def __post_init__(self) -> None:
        check_intervals(
            self,
            **{"history": "[1, inf)", "horizon": "[1, inf)", "execute": "[1, inf)"},
            **{"width": "[1, inf)", "depth": "[1, inf)", "lr": "(0, inf)"},
            ensemble="[-1, inf)",
        )
        check_choice(self, "normalize", ("none", "zscore", "minmax"))
        check_intervals(self, history=f"[1, {self.horizon}]")
        if self.ensemble < 0.0:
            ahead = self.horizon - self.history + 1
            plan = f"a plan of horizon {self.horizon} and history {self.history}"
            must = f"{plan} has {ahead} actions from now on, so it must be in [1, {ahead}]"
            check_that(self, "execute", self.execute <= ahead, must)
        self.execution()

    def execution(self) -> Execution:
        """How plans are carried out."""
        averaged = self.ensemble >= 0.0
        return Execution(
            horizon=self.horizon,
            history=self.history,
            execute=1 if averaged else self.execute,
            ensemble=self.ensemble if averaged else None,
        )


@dataclass(frozen=True)
class AveragedConfig(PlanConfig):
    """Training by AdamW, with an average of the network that acts."""

    warmup: int = 500  # steps in which the learning rate rises, before it falls along a cosine
    weight_decay: float = 1e-6
    beta1: float = 0.95  # of AdamW
    beta2: float = 0.999  # of AdamW
    ema_power: float = 0.75  # decay of the average: 1 - (1 + step)^-power
    ema_max: float = 0.9999  # its bound

    def __post_init__(self) -> None:
        super().__post_init__()
        check_intervals(
            self,
            **{"warmup": "[0, inf)", "weight_decay": "[0, inf)"},
            **{"beta1": "[0, 1)", "beta2": "[0, 1)"},
            **{"ema_power": "(0, inf)", "ema_max": "[0, 1]"},
        )


@dataclass(frozen=True)
class ChunkConfig(AveragedConfig):
    """A policy of chunks with one of the backbones; defaults are Diffusion Policy's."""

    mask_padding: bool = False  # leave out of the loss what lies beyond an episode's ends
    backbone: BackboneName = "unet"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice(self, "backbone", BACKBONE_NAMES)
        if self.backbone == "transformer":
            check_multiple(self, "width", HEADS, "the transformer")
        if self.backbone == "unet":
            check_multiple(self, "width", GROUPS, "the U-Net")
            check_multiple(self, "horizon", 2 ** (self.depth - 1), f"a U-Net of depth {self.depth}")


def stacks(config: Any) -> bool:
    """Whether learners share kernels: with the backbones that are MLPs."""
    return config.backbone in MLP_BLOCKS


def chunk_backbone(agent: Agent, level_scale: float, token: int | None = None) -> Backbone:
    """The network that the settings ask for; `level_scale` as in `offrl.backbones`.

    `token` numbers stand for each observation, as many as it has unless told.
    """
    cfg, horizon = agent.config, agent.config.horizon
    token = agent.obs_dim if token is None else token
    if cfg.backbone in MLP_BLOCKS:
        return MLPDenoiser(
            horizon,
            agent.act_dim,
            cfg.history * token,
            agent.learners,
            blocks=MLP_BLOCKS[cfg.backbone],
            hidden=cfg.width,
            depth=cfg.depth,
            level_scale=level_scale,
        )
    if cfg.backbone == "transformer":
        return CrossTransformer(
            horizon,
            agent.act_dim,
            cfg.history,
            token,
            agent.learners,
            layers=cfg.depth,
            heads=HEADS,
            width=cfg.width,
            level_scale=level_scale,
        )
    return UNet(
        horizon,
        agent.act_dim,
        cfg.history * token,
        agent.learners,
        channels=[cfg.width * 2**i for i in range(cfg.depth)],
        groups=GROUPS,
        level_scale=level_scale,
    )


def chunk_view(agent: Agent, dataset: OfflineDataset, later: int = 0) -> Windows:
    """The windows that the settings ask for, as Diffusion Policy cuts them.

    A window may begin history - 1 steps before its episode, and end execute - 1 behind it.
    `later` observations after now come with it, if any are asked for.
    """
    cfg = agent.config
    ahead = cfg.horizon - cfg.history
    return windows(
        dataset,
        history=cfg.history,
        horizon=cfg.horizon,
        after=ahead if cfg.ensemble >= 0.0 else min(cfg.execute - 1, ahead),
        normalize=cfg.normalize,
        normalize_action=cfg.normalize_action,
        ahead=later,
    )


def chunk_optimizer(config: ChunkConfig, net: nn.Module) -> AdamW:
    """AdamW of the network; `schedule_chunks` moves its learning rate."""
    return adamw(net, config.lr, config.weight_decay, (config.beta1, config.beta2))


def average_of(config: AveragedConfig, net: nn.Module) -> Average[Any]:
    """The average that acts, which begins as a copy of the network."""
    return Average(net, Decay(high=config.ema_max, power=config.ema_power))


def schedule_chunks(
    config: AveragedConfig, optimizer: Optimizer, average: Average[Any], step: int, steps: int
) -> None:
    """Learning rate and rate of the average for this update."""
    set_lr(optimizer, warm_cosine_rate(config.lr, step, steps, config.warmup))
    average.schedule(step)


def chunk_noise(agent: Agent, batch_size: int) -> dict[str, tuple[int, ...]]:
    """Of an update: the levels, and the noise of each chunk, for one learner."""
    return {"level": (batch_size,), "noise": (batch_size, agent.config.horizon, agent.act_dim)}


def valid_steps(agent: Agent, batch: WindowBatch) -> Tensor | None:
    """Which steps of the chunks a loss is of, (*seed, batch, horizon); None for all."""
    return batch.real if agent.config.mask_padding else None


def matching_loss(
    agent: Agent, process: Matched, net: Network, batch: WindowBatch, noise: Noise
) -> Tensor:
    """The squared error above, one value per learner, with the noise of `chunk_noise`."""
    at = process.draw(noise["level"])
    given = batch.action, noise["noise"], at, batch.obs, valid_steps(agent, batch)
    return matching_error(process, net, *given).mean(-1)


def held_out_noise(agent: Agent, shape: tuple[int, ...]) -> Noise:
    """The same numbers at every validation, for chunks of a batch (*seed, batch)."""
    return same_noise(agent, chunk_noise(agent, shape[-1]), shape[:-1])


def same_noise(agent: Agent, wanted: Mapping[str, tuple[int, ...]], lead: tuple[int, ...]) -> Noise:
    """Numbers of these shapes that are the same whenever they are asked for, for all learners."""
    stream = Stream(0, "validation").block(0)
    drawn = {k: np.asarray(stream.standard_normal(s, dtype=np.float32)) for k, s in wanted.items()}
    like = agent.obs_mean
    return {k: torch.from_numpy(v).to(like).expand((*lead, *v.shape)) for k, v in drawn.items()}


def chunk_policy(
    agent: Agent, planner: nn.Module, provenance: Mapping[str, Any] | None
) -> PlanPolicy:
    """The policy of one learner's planner, with all that it needs to act."""
    middle, half = (x.cpu().numpy() for x in (agent.action_mid, agent.action_half))
    return PlanPolicy(
        planner,
        agent.spec,
        agent.obs_mean,
        agent.obs_std,
        dict(provenance or {}),
        action_range=(middle - half, middle + half),
        execution=agent.config.execution(),
    )


def chunk_planner(
    agent: Agent, average: Average[Any], generation: Generation | None, learner: int
) -> ChunkPlanner:
    """The learner's average with its generation, None where actions are a regression."""
    net = learner_view(average.net, learner)
    return ChunkPlanner(net, generation, agent.obs_dim, agent.act_dim, agent.config.horizon)


def encoding_policy(path: str, obs_dim: int) -> Policy:
    """A saved policy that has an encoder of such observations. Raises ConfigError, RunError."""
    policy = load_policy(path)
    planner = policy.actor
    if not isinstance(planner, PastPlanner) or planner.encoder is None:
        raise ConfigError(
            f"{path} has no encoder: name the policy of a run of the same agent with an embedding "
            "(--embedding 64)"
        )
    if planner.obs_dim != obs_dim:
        raise ConfigError(
            f"the encoder of {path} takes observations of {planner.obs_dim} numbers, and these "
            f"have {obs_dim}; train one on data of this task"
        )
    return policy
