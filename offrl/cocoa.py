"""COCOA: networks that see a state as an anchor that is close to the data, and a difference.

Compositional conservatism (Song et al., ICLR 2024, arXiv:2404.04682) writes s = anchor + delta,
with anchors chosen so that both parts lie near what the data holds (offrl.anchors), and puts in
place of each network of a method a bilinear one, in which parts seen apart can be put together:

    h_t = sum_d f_td(s - anchor) g_td(anchor),  then the method's own layers on h

Critics append the action to both parts. The losses of the method stay as they are. f and g have
LayerNorm after each ReLU and after their last layer, as in the authors' code. First weights are
uniform, and those of the layers on h as the method has them; the code has orthogonal ones.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from offrl.anchors import Anchors, AnchorTable
from offrl.checks import check_intervals
from offrl.dynamics import DynamicsConfig
from offrl.errors import ConfigError
from offrl.files import cache_folder
from offrl.networks import MLP, TORCH_INIT, Init, LayerNorm, Learners
from offrl.types import Batch


@dataclass(frozen=True)
class CocoaConfig:
    """COCOA's settings, those of the paper with IQL; each method adds its own."""

    cocoa: bool = False  # see states as anchor and difference (arXiv:2404.04682)
    cocoa_rank: int = 4  # d, products summed in each feature; 32 with CQL
    cocoa_hidden: tuple[int, ...] = (64, 64)  # of f and g; the last is the number of features
    cocoa_horizon: int = 1  # h, steps of the anchor seeker
    cocoa_epochs: int = 1_000  # at most, of each dynamics model and the seeker; they stop earlier

    def __post_init__(self) -> None:
        positive = ("cocoa_rank", "cocoa_horizon", "cocoa_epochs")
        check_intervals(self, **dict.fromkeys(positive, "[1, inf)"))
        if not self.cocoa_hidden or min(self.cocoa_hidden) < 1:
            raise ConfigError(
                f"{type(self).__name__}.cocoa_hidden is {self.cocoa_hidden}; it must be one or "
                "more sizes of 1 or more"
            )


class Bilinear(nn.Module):
    """h_t = sum_d f_td(delta) g_td(anchor), with f and g networks of each member and learner."""

    def __init__(
        self,
        inputs: int,
        hidden: Sequence[int],
        rank: int,
        learners: Learners,
        ensemble: Sequence[int] = (),
    ) -> None:
        super().__init__()
        self.hidden, self.rank, self.features = tuple(hidden), rank, hidden[-1]

        def side() -> nn.Module:
            sizes = [inputs, *hidden, hidden[-1] * rank]
            net = MLP(sizes, learners, ensemble, norm="after")
            return nn.Sequential(net, LayerNorm(sizes[-1], learners, ensemble))

        self.difference, self.anchor = side(), side()

    def forward(
        self, delta: Float[Tensor, "*lead inputs"], anchor: Float[Tensor, "*lead inputs"]
    ) -> Float[Tensor, "*all features"]:
        f, g = self.difference(delta), self.anchor(anchor)
        h: Tensor = (f * g).unflatten(-1, (self.features, self.rank)).sum(-1)
        return h


class CompositionalTrunk(nn.Module):
    """What takes the place of a critic's or a value's layers before its head.

    Observations are pairs of difference and anchor, as `Anchors.pair` makes them; the action, for
    critics, is appended to both. `act_dim` is 0 for values.
    """

    def __init__(
        self,
        obs_dim: int,
        act_dim: int,
        inner: Sequence[int],
        rank: int,
        hidden: Sequence[int],
        learners: Learners,
        ensemble: Sequence[int] = (),
        init: Init = TORCH_INIT,
    ) -> None:
        super().__init__()
        self.features = hidden[-1]
        self.bilinear = Bilinear(obs_dim + act_dim, inner, rank, learners, ensemble)
        sizes = [inner[-1], *hidden]
        self.net = MLP(sizes, learners, ensemble, init=init, activate_last=True)

    def forward(
        self,
        obs: Float[Tensor, "*seed batch both"],
        action: Float[Tensor, "*seed batch act"] | None = None,
    ) -> Float[Tensor, "*all features"]:
        parts = obs.chunk(2, -1)
        if action is not None:
            parts = tuple(torch.cat([part, action], -1) for part in parts)
        features: Tensor = self.net(self.bilinear(*parts))
        return features


class AnchoredTrunk(nn.Module):
    """What stands before a policy's layers; it holds the anchors, which are deployed with it.

    Takes observations as they are, or as pairs.
    """

    def __init__(
        self, anchors: Anchors, inner: Sequence[int], rank: int, learners: Learners
    ) -> None:
        super().__init__()
        self.anchors = anchors
        self.bilinear = Bilinear(anchors.sizes[0], inner, rank, learners)
        self.features = self.bilinear.features

    def forward(self, obs: Float[Tensor, "*lead obs"]) -> Float[Tensor, "*lead features"]:
        h: Tensor = self.bilinear(*self.anchors.pair(obs).chunk(2, -1))
        return h

    def spec(self) -> dict[str, Any]:
        """All that `trunk_from_spec` needs beside the weights."""
        return {
            "type": "AnchoredTrunk",
            "sizes": list(self.anchors.sizes),
            "horizon": self.anchors.horizon,
            "elites": self.anchors.model.elites,
            "model_hidden": list(self.anchors.model.hidden),
            "inner": list(self.bilinear.hidden),
            "rank": self.bilinear.rank,
        }


def policy_trunk(
    config: CocoaConfig, obs_dim: int, act_dim: int, learners: Learners
) -> AnchoredTrunk | None:
    """For a policy, with anchors that are still to be learned; None without `config.cocoa`."""
    if not config.cocoa:
        return None
    model = DynamicsConfig(epochs=config.cocoa_epochs)
    anchors = Anchors(obs_dim, act_dim, config.cocoa_horizon, model)
    return AnchoredTrunk(anchors, config.cocoa_hidden, config.cocoa_rank, learners)


def value_trunk(
    config: CocoaConfig,
    obs_dim: int,
    act_dim: int,
    hidden: Sequence[int],
    learners: Learners,
    ensemble: Sequence[int] = (),
    init: Init = TORCH_INIT,
) -> CompositionalTrunk | None:
    """For critics, or for values with `act_dim` 0; None without `config.cocoa`."""
    if not config.cocoa:
        return None
    inner, rank = config.cocoa_hidden, config.cocoa_rank
    return CompositionalTrunk(obs_dim, act_dim, inner, rank, hidden, learners, ensemble, init)


def trunk_from_spec(spec: Mapping[str, Any]) -> AnchoredTrunk:
    """The policy's trunk, for one learner, that `spec()` described; without its weights."""
    hidden, elites = tuple(spec["model_hidden"]), spec["elites"]
    model = DynamicsConfig(elites, elites, hidden, weight_decay=(0.0,) * (len(hidden) + 1))
    obs_dim, act_dim = spec["sizes"]
    anchors = Anchors(obs_dim, act_dim, spec["horizon"], model)
    return AnchoredTrunk(anchors, spec["inner"], spec["rank"], Learners())


class Composition:
    """How an agent's batches become pairs; where its policy has no anchors, they stay as they are.

    The anchors are those of the policy's trunk, of which there is one copy in an agent.
    """

    def __init__(self, actor: nn.Module) -> None:
        trunk = getattr(actor.net, "trunk", None)
        self.anchors: Anchors | None = None if trunk is None else trunk.anchors
        self.table: AnchorTable | None = None

    def prepare(self, view: Callable[[], Batch]) -> None:
        """Learn the anchors from all transitions of a view, and work them out for each row."""
        if self.anchors is not None:
            batch = view().to(next(self.anchors.buffers()).device)
            self.anchors.fit(batch, cache_folder() / "cocoa")
            self.table = AnchorTable(self.anchors, batch)

    def rows(self, batch: Batch) -> Batch:
        """Pairs for transitions of the prepared view, which are looked up."""
        return batch if self.table is None else self.table.pair(batch)

    def anew(self, batch: Batch) -> Batch:
        """Pairs for any other transitions."""
        if self.anchors is None:
            return batch
        obs, next_obs = self.anchors.pair(batch.obs), self.anchors.pair(batch.next_obs)
        return replace(batch, obs=obs, next_obs=next_obs)

    def fingerprints(self) -> dict[str, str]:
        """Of what was learned."""
        return {} if self.anchors is None else {"anchors": self.anchors.fingerprint()}
