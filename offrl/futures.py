"""What an agent is made of whose policy chooses a latent of the future: settings, view, policy."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from offrl.checks import check_choice, check_intervals
from offrl.datasets.offline import OfflineDataset
from offrl.datasets.segments import Segments, segments
from offrl.errors import ConfigError
from offrl.latent_models import Backbone, LatentActor
from offrl.latent_policy import Choosing, LatentPolicy
from offrl.latents import Kind
from offrl.networks import learner_view

# Of the tasks of `offrl.envs.luck` and of Reacher, with noise or without: short episodes.
SMALL: Mapping[str, Any] = {
    **{"backbone": "mlp", "latents": "categorical", "latent": 4, "context": 0, "future": 8},
    **{"hold": 8, "hidden": (32, 32), "max_steps": 100, "normalize_obs": False, "features": 16},
    **{"lr": 1e-3, "warmup": 100, "grad_norm": 1.0, "weight_decay": 0.0},
    **{"batch_size": 64, "steps": 2_000},
}
BANDIT: Mapping[str, Any] = {**SMALL, "future": 1, "hold": 1, "max_steps": 1, "steps": 1_000}
# The paper's beta is 1, since actions of both components have a noise of 0.1. What matters is
# decided in an episode's first steps, which are in fewer segments the longer these are.
REACHER: Mapping[str, Any] = {
    **{**SMALL, "information_weight": 0.01, "normalize_obs": True, "max_steps": 50},
    **{"future": 3, "hold": 3},
}
SMALL_RECIPES: Mapping[str, Mapping[str, Any]] = {
    **{"luckybandit": BANDIT, "luckierbandit": BANDIT, "slipperylake": SMALL, "firmlake": SMALL},
    **{"noisyreacher": REACHER, "stillreacher": REACHER},
}


@dataclass(frozen=True, kw_only=True)
class FutureConfig:
    """Latents, the networks that read past and future, and how a latent is chosen.

    Settings of the authors' code of Dichotomy of Control (arXiv:2210.13435).
    """

    backbone: Backbone = "gpt"
    latents: Kind = "gaussian"
    latent: int = 32  # components of z, or number of codes
    context: int = 20  # K, steps before now
    future: int = 20  # F, steps that a latent covers
    hold: int = 20  # steps for which it is kept when acting, at most F
    candidates: int = 100  # draws of the prior when acting
    mass: float = 0.95  # of the prior, onto whose ball outer draws are pulled
    least_mass: float = 0.01  # probability of a code that may be chosen
    hidden: tuple[int, ...] = (256, 256)  # of all heads
    layers: int = 3  # of gpt, as the next two
    heads: int = 1
    width: int = 128
    max_steps: int = 1000  # from this step of an episode on, all have the same time
    normalize_obs: bool = True  # by the mean and deviation of the data

    def __post_init__(self) -> None:
        check_choice(self, "backbone", ("gpt", "mlp"))
        check_choice(self, "latents", ("gaussian", "categorical"))
        counts = ("latent", "future", "hold", "candidates", "layers", "heads", "width", "max_steps")
        check_intervals(self, **dict.fromkeys(counts, "[1, inf)"))
        check_intervals(self, context="[0, inf)", mass="(0, 1]", least_mass="[0, 1]")
        if self.hold > self.future:
            raise ConfigError(
                f"{type(self).__name__}.hold is {self.hold} and future {self.future}; a latent "
                "can be kept for no more steps than it covers"
            )


def latent_actor(agent: Any) -> LatentActor:
    """The policy with its prior and value, in the form that the agent's settings ask for."""
    cfg = agent.config
    names = ("backbone", "latents", "latent", "hidden", "layers", "heads", "width", "max_steps")
    form = {name: getattr(cfg, name) for name in names}
    return LatentActor(agent.obs_dim, agent.act_dim, agent.learners, past=cfg.context, **form)


def segment_view(config: FutureConfig, dataset: OfflineDataset) -> Segments:
    """Segments as the settings ask for them."""
    cfg = config
    return segments(dataset, past=cfg.context, future=cfg.future, normalize_obs=cfg.normalize_obs)


def keep_moments(actor: LatentActor, view: Segments) -> None:
    """Means and deviations of the data's rewards and returns, by which the actor reads them."""
    std = 1.0 / view.reward_scale
    actor.reward_map.copy_(torch.tensor([-view.reward_shift * std, std]))
    actor.return_map.copy_(torch.tensor([view.return_mean, view.return_std]))


def latent_policy_of(
    agent: Any, learner: int, provenance: Mapping[str, Any] | None
) -> LatentPolicy:
    """The policy of one learner, with the settings by which it chooses."""
    cfg = agent.config
    return LatentPolicy(
        learner_view(agent.actor, learner),
        agent.spec,
        agent.obs_mean,
        agent.obs_std,
        dict(provenance or {}),
        choosing=Choosing(cfg.context, cfg.hold, cfg.candidates, cfg.mass, cfg.least_mass),
    )
