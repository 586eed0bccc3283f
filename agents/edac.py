"""Ensemble-diversified actor critic (EDAC; An et al., NeurIPS 2021, arXiv:2110.01548).

SAC-N whose critics are kept from agreeing on how the action should change:

    L_pi = E[ w log pi(a|s) - min_i Q_i(s, a) ],                a ~ pi(s)
    L_w  = -log w (E[ log pi(a|s) ] + H),                       the same a, H = -dim(a)
    y    = r + gamma (1 - terminated) (min_i Q_i'(s', a') - w log pi(a'|s')),  a' ~ pi(s')
    L_Q  = sum_i E[ (Q_i(s, a) - y)^2 ] + eta E[ ES(s, a) ]
    ES   = sum_(i != j) <g_i, g_j> / (N - 1),  g_i the direction of dQ_i(s, a) / da, of length one

so that fewer critics do: 10 where SAC-N needs 20, 50 where it needs 500. Order within an update:
the policy, its temperature w, the critics, their target; L_pi has w from before its step, L_w the
log pi of L_pi, and y the policy and w that were just stepped. That departs from the authors' code,
which forms all losses before the first step and then steps w, the policy and the critics, and from
the CORL library, which goes one by one as here but begins with w, on a draw of its own. ES is over
all pairs, as in the paper, in CORL and in the authors' code since January 2022; before that it drew
min(N, dim(a)) critics at each update. log pi is exact (both codes add 1e-6 inside the
logarithm of tanh's slope). At evaluation tanh of the mean is played.

N and eta are those of the paper's tables as CORL runs them, which has none for the random,
expert and full-replay sets and does not standardise Adroit's rewards as the paper does.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from offrl.checks import check_intervals
from offrl.critics import td_regression
from offrl.datasets.offline import Spec
from offrl.networks import Learners
from offrl.regularizers import ensemble_diversity
from offrl.representation import with_beer
from offrl.sac import SoftConfig, soft_target, value_and_slope
from offrl.soft_agent import SoftAgent
from offrl.types import Batch, Metrics


@dataclass(frozen=True)
class EDACConfig(SoftConfig):
    """Settings of the paper on HalfCheetah and Walker2d; see the recipes for the others."""

    ensemble: int = 10  # N; 50 on Hopper
    eta: float = 1.0  # multiplies ES; 5 on two of the medium-expert sets

    def __post_init__(self) -> None:
        super().__post_init__()
        check_intervals(self, ensemble="[2, inf)", eta="[0, inf)")


class EDAC(SoftAgent):
    """Soft actor-critic, pessimistic by the minimum of critics that must differ."""

    config: EDACConfig
    config_class = EDACConfig
    suits = "dense rewards, wide coverage"
    recipes: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "halfcheetah": {"ensemble": 10, "eta": 1.0},
        "halfcheetah-medium-expert": {"ensemble": 10, "eta": 5.0},
        "hopper": {"ensemble": 50, "eta": 1.0},
        "walker2d": {"ensemble": 10, "eta": 1.0},
        "walker2d-medium-expert": {"ensemble": 10, "eta": 5.0},
        "pen": {"ensemble": 20, "eta": 10.0},
        "pen-human": {"ensemble": 20, "eta": 1000.0},
        "adroit": {"ensemble": 50, "eta": 200.0},
    }

    def __init__(self, spec: Spec, config: EDACConfig, learners: Learners) -> None:
        super().__init__(spec, config, learners, critics=config.ensemble)

    def critic_loss(self, batch: Batch, noise: Tensor) -> tuple[Tensor, Metrics]:
        target = soft_target(self, batch, noise)
        q, slope, features = value_and_slope(self.critic, batch.obs, batch.action)
        loss, metrics = with_beer(self, batch, features, *td_regression(q, target))
        diversity = ensemble_diversity(slope).mean(-1)
        return loss + self.config.eta * diversity, {**metrics, "diversity": diversity}
