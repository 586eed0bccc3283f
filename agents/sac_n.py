"""Soft actor-critic with N critics (SAC-N; An et al., NeurIPS 2021, arXiv:2110.01548).

    L_pi = E[ w log pi(a|s) - min_(i <= N) Q_i(s, a) ],         a ~ pi(s)
    L_w  = -log w (E[ log pi(a|s) ] + H),                       the same a, H = -dim(a)
    y    = r + gamma (1 - terminated) (min_(i <= N) Q_i'(s', a') - w log pi(a'|s')),  a' ~ pi(s')
    L_Q  = sum_i E[ (Q_i(s, a) - y)^2 ]

Nothing ties the policy to the data but the minimum: of N critics it is the lower, the less they
agree, and they disagree where there are no data. Order within an update: the policy, its
temperature w, the critics, their target; L_pi has w from before its step, L_w the log pi of L_pi,
and y the policy and w that were just stepped. That departs from the authors' code, which forms all
losses before the first step, so that y has the policy and w from before theirs, and then steps w,
the policy and the critics; and from the CORL library, which goes one by one as here but begins
with w, on a draw of its own, so that L_pi has w as just stepped. log pi is exact (both add 1e-6
inside the logarithm of tanh's slope). At evaluation tanh of the mean is played.

N is that of the paper's tables as CORL runs them, which does not standardise Adroit's rewards as
the paper does.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from offrl.checks import check_intervals
from offrl.datasets.offline import Spec
from offrl.networks import Learners
from offrl.representation import critic_regression
from offrl.sac import SoftConfig, soft_target
from offrl.soft_agent import SoftAgent
from offrl.types import Batch, Metrics


@dataclass(frozen=True)
class SACNConfig(SoftConfig):
    """Settings of the paper on HalfCheetah; see the recipes for the others."""

    ensemble: int = 10  # N; 20 on Walker2d, 200 to 500 on Hopper

    def __post_init__(self) -> None:
        super().__post_init__()
        check_intervals(self, ensemble="[1, inf)")


class SACN(SoftAgent):
    """Soft actor-critic, pessimistic by the minimum of many critics."""

    config: SACNConfig
    config_class = SACNConfig
    suits = "dense rewards, wide coverage"
    recipes: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "halfcheetah": {"ensemble": 10},
        "hopper": {"ensemble": 200},
        "hopper-medium": {"ensemble": 500},
        "walker2d": {"ensemble": 20},
        "adroit": {"ensemble": 100},
    }

    def __init__(self, spec: Spec, config: SACNConfig, learners: Learners) -> None:
        super().__init__(spec, config, learners, critics=config.ensemble)

    def critic_loss(self, batch: Batch, noise: Tensor) -> tuple[Tensor, Metrics]:
        return critic_regression(self, batch, soft_target(self, batch, noise))
