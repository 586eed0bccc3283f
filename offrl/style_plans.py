"""What agents that plan in a style have in common (`offrl.styles`): settings, networks, policy."""

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
SMALL_STYLES: Mapping[str, Any] = {
    **{"horizon": 8, "lr": 1e-3, "width": 128, "inner": 512, "heads": 4, "depth": 2},
    **{"kl_weight": 1.0},
}


@dataclass(frozen=True)
class StyleConfig(PlanConfig):
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
    latent: int = 32  # components of the style
    kl_weight: float = 10.0  # beta
    lr: float = 1e-5  # learning rate
    weight_decay: float = 1e-4

    def __post_init__(self) -> None:
        super().__post_init__()
        sizes = ("decoder_layers", "heads", "inner", "latent")
        check_intervals(self, **dict.fromkeys(sizes, "[1, inf)"))
        check_intervals(self, kl_weight="[0, inf)", weight_decay="[0, inf)", width="[4, inf)")
        check_multiple(self, "width", self.heads, f"attention of {self.heads} heads")
        check_multiple(self, "width", 2, "an encoder of places by sine and cosine")


def style_networks(agent: Agent) -> tuple[ChunkDecoder, StyleEncoder]:
    """What acts, and what reads the style off a chunk."""
    cfg = agent.config
    sizes = {"obs_dim": agent.obs_dim, "act_dim": agent.act_dim, "latent": cfg.latent}
    layers = {"width": cfg.width, "heads": cfg.heads, "inner": cfg.inner}
    net = ChunkDecoder(
        agent.learners,
        history=cfg.history,
        horizon=cfg.horizon,
        encoder_layers=cfg.depth,
        decoder_layers=cfg.decoder_layers,
        **sizes,
        **layers,
    )
    style = StyleEncoder(layers=cfg.depth, **sizes, **layers)
    redraw(style, agent.learners)
    return net, style


def latent_predictor(agent: Agent) -> LatentPredictor:
    """What tells later observations from the memory, with a decoder like that of actions."""
    cfg = agent.config
    predictor = LatentPredictor(
        history=cfg.history,
        ahead=cfg.ahead,
        width=cfg.width,
        heads=cfg.heads,
        layers=cfg.decoder_layers,
        inner=cfg.inner,
    )
    redraw(predictor, agent.learners)
    return predictor


def style_policy(
    agent: Agent, net: ChunkDecoder, learner: int, provenance: Mapping[str, Any] | None
) -> PlanPolicy:
    """The learner's network as a policy."""
    return chunk_policy(agent, learner_view(net, learner), provenance)
