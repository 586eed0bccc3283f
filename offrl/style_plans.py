"""What agents that regress chunks have in common: settings, networks, policy.

The networks are those of `offrl.styles`, with a style or without one.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from offrl.agent import Agent
from offrl.checks import check_intervals, check_multiple
from offrl.chunks import PlanConfig, chunk_policy
from offrl.datasets.windows import Normalize
from offrl.initial import redraw
from offrl.networks import learner_view
from offrl.policy import PlanPolicy
from offrl.styles import ChunkDecoder, LatentPredictor, StyleEncoder

# What recipes for the tasks of `offrl.envs`, of short episodes, have in common.
SMALL_TRANSFORMERS: Mapping[str, Any] = {
    **{"horizon": 8, "lr": 1e-3, "width": 128, "inner": 512, "heads": 4, "depth": 2},
}
SMALL_STYLES: Mapping[str, Any] = {**SMALL_TRANSFORMERS, "kl_weight": 1.0}


@dataclass(frozen=True)
class ChunkTransformerConfig(PlanConfig):
    """Published settings; actions are planned at each step and averaged (arXiv:2304.13705)."""

    history: int = 1  # To, observations that the policy sees
    horizon: int = 100  # k, actions of a plan
    execute: int = 100  # actions taken before the next plan, where plans are not averaged
    ensemble: float = 0.01  # m, plans averaged by exp(-m i); below 0: none
    normalize: Normalize = "zscore"  # of observations
    width: int = 512  # of the tokens
    depth: int = 4  # layers of either encoder
    decoder_layers: int = 1  # 7 in the authors' code, which reads the first
    heads: int = 8
    inner: int = 3200  # units of the layers behind attention
    lr: float = 1e-5  # learning rate
    weight_decay: float = 1e-4

    def __post_init__(self) -> None:
        super().__post_init__()
        sizes = ("decoder_layers", "heads", "inner")
        check_intervals(self, **dict.fromkeys(sizes, "[1, inf)"))
        check_intervals(self, weight_decay="[0, inf)", width="[4, inf)")
        check_multiple(self, "width", self.heads, f"attention of {self.heads} heads")
        check_multiple(self, "width", 2, "an encoder of places by sine and cosine")


def chunk_decoder(agent: Agent, latent: int = 0) -> ChunkDecoder:
    """What acts, in a style of so many components."""
    cfg = agent.config
    return ChunkDecoder(
        agent.learners,
        obs_dim=agent.obs_dim,
        act_dim=agent.act_dim,
        history=cfg.history,
        horizon=cfg.horizon,
        encoder_layers=cfg.depth,
        decoder_layers=cfg.decoder_layers,
        latent=latent,
        **_sizes(agent),
    )


def style_encoder(agent: Agent) -> StyleEncoder:
    """What reads the style off a chunk."""
    cfg = agent.config
    style = StyleEncoder(
        obs_dim=agent.obs_dim,
        act_dim=agent.act_dim,
        layers=cfg.depth,
        latent=cfg.latent,
        **_sizes(agent),
    )
    redraw(style, agent.learners)
    return style


def latent_predictor(agent: Agent) -> LatentPredictor:
    """What tells later observations from the memory, with a decoder like that of actions."""
    cfg = agent.config
    predictor = LatentPredictor(
        history=cfg.history,
        ahead=cfg.ahead,
        layers=cfg.decoder_layers,
        **_sizes(agent),
    )
    redraw(predictor, agent.learners)
    return predictor


def _sizes(agent: Agent) -> dict[str, int]:
    """Those that all transformers of an agent share."""
    return {name: getattr(agent.config, name) for name in ("width", "heads", "inner")}


def decoder_policy(
    agent: Agent, net: ChunkDecoder, learner: int, provenance: Mapping[str, Any] | None
) -> PlanPolicy:
    """The learner's network as a policy."""
    return chunk_policy(agent, learner_view(net, learner), provenance)
