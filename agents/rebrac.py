"""Revisited behaviour-regularised actor-critic (ReBRAC; Tarasov, Kurenkov, Nikulin and
Kolesnikov, NeurIPS 2023, arXiv:2305.09836).

TD3+BC with a penalty for leaving the data in the critic's target as well, each with a weight of
its own, deeper networks, and a critic whose hidden layers are normalised:

    a~   = clip(pi'(s') + clip(0.2 N, -0.5, 0.5), -1, 1)
    y    = r + gamma (1 - terminated) (min_i Q_i'(s', a~) - beta_2 |a~ - a'|^2)
    L_Q  = sum_i E[ (Q_i(s, a) - y)^2 ]
    L_pi = E[ beta_1 |pi(s) - a|^2 - lambda q ],  q = min_i Q_i(s, pi(s)),  lambda = 1 / E|q|

a' is the action that was logged after s'. |.|^2 is summed over the components of the action,
where TD3+BC takes the mean; lambda is a constant for the gradient. LayerNorm acts after each ReLU
of the critic; hidden biases begin at 0.1, last layers at U(-0.003, 0.003) for the critic and
U(-0.001, 0.001) for the policy.

Order within an update: the critic; on every second update also the targets of both and then the
policy, with the new critic. So the policy's target moves towards the policy as it was before this
update's step, which is what the authors' code does, while the critic's target sees the new critic.
That code takes its first policy step on the very first update, this one on the second, as TD3 does.

The last step of an episode that a time limit cut has no a': like the authors' converter of the
data, this agent's view leaves it out. The last step of an episode that terminated has none either;
there y has no second term. The authors' later code also bounds y from below by the return that
was logged; the paper does not, and neither does this. A dataset that the paper's table lacks gets
its suite's settings with beta_1 = beta_2 = 0.01, the commonest pair (AntMaze: 0.002 and 0.001).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from offrl.actors import DeterministicActor
from offrl.agent import Agent
from offrl.checks import check_intervals
from offrl.critics import Critic
from offrl.datasets.offline import OfflineDataset, Spec
from offrl.datasets.replay import Replay
from offrl.errors import DataError
from offrl.losses import action_distance
from offrl.networks import Init, Learners
from offrl.regularizers import q_scale
from offrl.representation import critic_regression, held_out_error
from offrl.td3 import (
    TD3Config,
    next_action,
    target_noise,
    target_value,
    update_targets,
    with_target,
)
from offrl.types import Batch, Metrics, Noise


@dataclass(frozen=True)
class ReBRACConfig(TD3Config):
    """Settings of the paper on locomotion, where batches are of 1024; see the recipes."""

    beta1: float = 0.01  # beta_1, of the policy's distance to the logged action
    beta2: float = 0.01  # beta_2, of the next action's distance to the logged one, in y
    lr: float = 1e-3  # of the policy; 3e-4 on AntMaze and Adroit
    critic_lr: float = 1e-3  # 5e-5 on AntMaze, 3e-4 on Adroit
    hidden: tuple[int, ...] = (256, 256, 256)  # units of each layer
    normalize_obs: bool = False  # by the mean and deviation of the data

    def __post_init__(self) -> None:
        super().__post_init__()
        check_intervals(self, beta1="[0, inf)", beta2="[0, inf)", critic_lr="(0, inf)")


# beta_1 and beta_2 by dataset: the paper's table, and the authors' configurations.
KINDS = ("random", "medium", "expert", "medium-expert", "medium-replay", "full-replay")
LOCOMOTION = {
    "halfcheetah": (
        (1e-3, 0.1),
        (1e-3, 0.01),
        (0.01, 0.01),
        (0.01, 0.1),
        (0.01, 1e-3),
        (1e-3, 0.1),
    ),
    "hopper": ((1e-3, 0.01), (0.01, 0.01), (0.1, 0.1), (0.1, 0.01), (0.05, 0.5), (0.01, 0.01)),
    "walker2d": ((0.01, 0.0), (0.05, 0.1), (0.01, 0.5), (0.01, 0.01), (0.05, 0.01), (0.01, 0.01)),
}
ANTMAZE = {
    "antmaze-umaze": (0.003, 0.002),
    "antmaze-umaze-diverse": (0.003, 0.001),
    "antmaze-medium-play": (0.001, 0.0005),
    "antmaze-medium-diverse": (0.001, 0.0),
    "antmaze-large-play": (0.002, 0.001),
    "antmaze-large-diverse": (0.002, 0.002),
}
ADROIT = {
    "pen": ((0.1, 0.5), (0.05, 0.5), (0.01, 0.01)),
    "door": ((0.1, 0.1), (0.01, 0.1), (0.05, 0.01)),
    "hammer": ((0.01, 0.5), (0.1, 0.5), (0.01, 0.01)),
    "relocate": ((0.1, 0.01), (0.1, 0.01), (0.05, 0.01)),
}


def _recipes() -> dict[str, dict[str, Any]]:
    """By dataset, and by suite for the datasets that the paper does not have."""
    locomotion = {"batch_size": 1024}
    antmaze = {"lr": 3e-4, "critic_lr": 5e-5, "gamma": 0.999, "reward_scale": 100.0}
    adroit = {"lr": 3e-4, "critic_lr": 3e-4}
    betas = {
        f"{task}-{kind}": (pair, suite)
        for table, kinds, suite in (
            (LOCOMOTION, KINDS, locomotion),
            (ADROIT, ("human", "cloned", "expert"), adroit),
        )
        for task, pairs in table.items()
        for kind, pair in zip(kinds, pairs, strict=True)
    }
    betas |= {name: (pair, antmaze) for name, pair in ANTMAZE.items()}
    recipes = {
        name: {"beta1": beta1, "beta2": beta2, **suite}
        for name, ((beta1, beta2), suite) in betas.items()
    }
    middle = {"beta1": 0.002, "beta2": 0.001}
    return {**recipes, "locomotion": locomotion, "antmaze": middle | antmaze, "adroit": adroit}


class ReBRAC(Agent):
    """TD3+BC with a penalty in the critic's target, and a deeper, normalised critic."""

    config: ReBRACConfig
    config_class = ReBRACConfig
    suits = "dense or sparse rewards; tuned weights"
    recipes: ClassVar[Mapping[str, Mapping[str, Any]]] = _recipes()

    def __init__(self, spec: Spec, config: ReBRACConfig, learners: Learners) -> None:
        super().__init__(spec, config, learners)
        self.period = config.policy_delay
        sizes = (self.obs_dim, self.act_dim, config.hidden, learners)
        actor = DeterministicActor(*sizes, init=Init(hidden_bias=0.1, last=1e-3))
        critic = Critic(*sizes, norm="after", init=Init(hidden_bias=0.1, last=3e-3))
        self.actor, self.actor_target, self.actor_opt = with_target(actor, config.lr)
        self.critic, self.critic_target, self.critic_opt = with_target(critic, config.critic_lr)

    def view(self, dataset: OfflineDataset) -> Replay:
        replay = super().view(dataset)
        last = dataset.starts + dataset.lengths - 1
        unfollowed = torch.from_numpy(last[dataset.rows[last, -2] == 0])
        index = replay.index[~torch.isin(replay.index, unfollowed)]
        if not len(index):
            raise DataError(
                f"{dataset.name} has no transition whose next action is known, which ReBRAC's "
                "targets need; use td3_bc on episodes of one step"
            )
        return replace(replay, index=index, fingerprint=f"{replay.fingerprint}/next action")

    def noise(self, batch_size: int) -> dict[str, tuple[int, ...]]:
        return target_noise(self, batch_size)

    def update(self, batch: Batch, noise: Noise, phase: int) -> Metrics:
        metrics = self.minimize(self.critic_opt, self.critic_loss, batch, noise["target_action"])
        if phase == self.period - 1:
            update_targets(self)
            metrics |= self.minimize(self.actor_opt, self.actor_loss, batch)
        return metrics

    def critic_loss(self, batch: Batch, noise: Tensor) -> tuple[Tensor, Metrics]:
        with torch.no_grad():
            action = next_action(self, batch, noise)
            penalty = self.config.beta2 * action_distance(action, batch.next_action)
            target = target_value(self, self.critic_target, batch, action, penalty)
        loss, metrics = critic_regression(self, batch, target)
        return loss, {**metrics, "penalty": (batch.mask * penalty).mean(-1)}

    def actor_loss(self, batch: Batch) -> tuple[Tensor, Metrics]:
        action = self.actor(batch.obs)
        q = self.critic(batch.obs, action).amin(0)
        bc_loss = self.config.beta1 * action_distance(action, batch.action).mean(-1)
        q_loss = -q_scale(q, 1.0) * q.mean(-1)
        return q_loss + bc_loss, {"q": q.mean(-1), "bc_loss": bc_loss}

    def validate(self, batch: Batch) -> Metrics:
        loss = self.critic_loss(batch, torch.zeros_like(batch.action))
        return {**super().validate(batch), **held_out_error(loss)}
