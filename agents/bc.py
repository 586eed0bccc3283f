"""Behaviour cloning, and its percentage form (%BC; Chen et al., NeurIPS 2021, arXiv:2106.01345).

    L_pi = E[ |pi(s) - a|^2 ],  averaged over the components of the action

One step on L_pi per update. With `top_fraction` below one only the episodes of highest return are
imitated, 10 % in the comparison of the Decision Transformer paper, whose episodes are ranked by
undiscounted return; some implementations rank by discounted return instead.
"""

from dataclasses import dataclass

from torch import Tensor

from offrl.actors import DeterministicActor
from offrl.agent import Agent
from offrl.checks import check_intervals
from offrl.datasets.offline import OfflineDataset, Spec
from offrl.datasets.replay import Replay
from offrl.losses import action_error
from offrl.networks import Learners
from offrl.optim import adam
from offrl.types import Batch, Metrics, Noise


@dataclass(frozen=True)
class BCConfig:
    """Settings of the behaviour-cloning baseline of TD3+BC's authors."""

    top_fraction: float = 1.0  # share of the episodes, best returns first, that is imitated
    normalize_obs: bool = True  # by the mean and deviation of the data
    lr: float = 3e-4  # learning rate
    hidden: tuple[int, ...] = (256, 256)  # units of each layer

    def __post_init__(self) -> None:
        check_intervals(self, top_fraction="(0, 1]", lr="(0, inf)")


class BC(Agent):
    """Regression of the logged action."""

    config: BCConfig
    config_class = BCConfig
    suits = "expert data, or its best episodes"

    def __init__(self, spec: Spec, config: BCConfig, learners: Learners) -> None:
        super().__init__(spec, config, learners)
        self.actor = DeterministicActor(self.obs_dim, self.act_dim, config.hidden, learners)
        self.actor_opt = adam(self.actor.parameters(), config.lr)

    def view(self, dataset: OfflineDataset) -> Replay:
        if self.config.top_fraction < 1.0:
            dataset = dataset.top(self.config.top_fraction)
        return super().view(dataset)

    def update(self, batch: Batch, noise: Noise, phase: int) -> Metrics:
        return self.minimize(self.actor_opt, self.actor_loss, batch)

    def actor_loss(self, batch: Batch) -> tuple[Tensor, Metrics]:
        return action_error(self.actor(batch.obs), batch.action).mean(-1), {}
