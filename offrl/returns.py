"""What agents share whose policy is asked for a return: settings, view, loss and policy."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from offrl.agent import Agent
from offrl.checks import check_intervals
from offrl.datasets.offline import OfflineDataset
from offrl.datasets.sequences import Sequences, sequences
from offrl.networks import learner_view
from offrl.optim import rise, set_lr
from offrl.sequence_policy import Conditioning, SequencePolicy


@dataclass(frozen=True, kw_only=True)
class ReturnConfig:
    """Settings of Decision Transformer on locomotion."""

    context: int = 20  # K, steps of a sequence
    layers: int = 3
    width: int = 128  # of a token
    max_steps: int = 1000  # from this step of an episode on, all have the same time
    return_scale: float | None = None  # divides returns; the data's largest, unless told
    target_return: float | None = None  # asked for when acting; the best of the data unless told
    normalize_obs: bool = True  # by the mean and deviation of the data
    lr: float = 1e-4  # learning rate
    warmup: int = 10_000  # updates over which the learning rate rises
    weight_decay: float = 1e-4
    grad_norm: float = 0.25  # at which gradients are cut; 0 cuts none

    def __post_init__(self) -> None:
        counts = ("context", "layers", "width", "max_steps")
        check_intervals(self, **dict.fromkeys(counts, "[1, inf)"))
        check_intervals(self, lr="(0, inf)", warmup="[0, inf)")
        check_intervals(self, weight_decay="[0, inf)", grad_norm="[0, inf)")
        if self.return_scale is not None:
            check_intervals(self, return_scale="(0, inf)")
        if self.target_return is not None:
            check_intervals(self, target_return="(-inf, inf)")


def return_view(config: ReturnConfig, dataset: OfflineDataset) -> Sequences:
    """Sequences as the settings ask for them."""
    return sequences(
        dataset,
        length=config.context,
        return_scale=config.return_scale,
        normalize_obs=config.normalize_obs,
    )


def returns_of_data(config: ReturnConfig, view: Sequences) -> tuple[float, float]:
    """The return that a policy asks for, the data's best unless settings say, and the scale."""
    target = view.best_return if config.target_return is None else config.target_return
    return target, 1.0 / view.reward_scale


@runtime_checkable
class Warming(Protocol):
    """Settings of a learning rate that rises."""

    @property
    def lr(self) -> float: ...
    @property
    def warmup(self) -> int: ...


def warm_up(config: Warming, optimizer: torch.optim.Optimizer, step: int) -> None:
    """lr (step + 1) / warmup in the first `warmup` updates, and then lr."""
    set_lr(optimizer, config.lr * rise(step, config.warmup))


def real_mean(
    error: Float[Tensor, "*seed batch steps"], real: Float[Tensor, "*seed batch steps"]
) -> Float[Tensor, "*seed"]:
    """Mean over the real steps of a batch, each counted once; 0 where there is none."""
    return (error * real).sum((-2, -1)) / real.sum((-2, -1)).clamp(min=1.0)


def return_policy(
    agent: Agent,
    config: ReturnConfig,
    actor: nn.Module,
    returns: tuple[Tensor, Tensor],
    learner: int,
    provenance: Mapping[str, Any] | None,
) -> SequencePolicy:
    """The policy of one learner; when its context is full it goes on with half of it.

    `returns` are what `returns_of_data` found.
    """
    target_return, return_scale = (float(x) for x in returns)
    return SequencePolicy(
        learner_view(actor, learner),
        agent.spec,
        agent.obs_mean,
        agent.obs_std,
        dict(provenance or {}),
        conditioning=Conditioning(
            context=config.context,
            keep=config.context // 2,
            target_return=target_return,
            return_scale=return_scale,
        ),
    )
