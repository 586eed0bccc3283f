"""Robust IQL (RIQL; Yang, Zhong, Xu, Zhang, Zhang, Han and Zhang, ICLR 2024, arXiv:2310.12955).

IQL for data of which a share was corrupted: a low quantile of K critics in place of the smaller
of two, a loss of the critics that lets a wild target pull no harder than any other, targets cut
to a range, and observations normalised.

    q    = the alpha quantile of Q_1'(s, a) .. Q_K'(s, a)
    L_V  = E[ |tau - 1(u < 0)| u^2 ],  u = q - V(s)
    y    = clip(r + gamma (1 - terminated) V(s'), -100, 1000)
    L_Q  = mean_k E[ H(y - Q_k(s, a)) ],  H(x) = sigma^2 x^2 / 2 if |x| < 1/sigma^2
                                                 |x| - 1 / (2 sigma^2)  otherwise
    L_pi = E[ min(exp(beta (q - V(s))), 100) |pi(s) - a|^2 ]

tau is `expectile`, alpha `quantile`. |.|^2 is summed over the components of the action. Order
within an update, as in the authors' code: V(s') for y and the advantage q - V(s) before V moves,
then V, then Q, then Q', then pi.

Observations are normalised by the moments of s and s' together, of the data as given: corrupted,
if it is. The last layers of the critics begin at U(-0.003, 0.003) and the biases before them at
0.1, as EDAC's. The policy is deterministic, as in the authors' code; actor="gaussian" weighs
-log pi(a | s) of a Gaussian with a linear mean instead, which they report as worse. The policy's
learning rate falls to zero along a cosine over the run, whatever its length; the paper's is 3
million updates, three times the usual.

Recipes are named ENVIRONMENT-MODE-ELEMENT, as `offrl data corrupt` names what it did to a set;
a dataset that says how it was corrupted gets its own, and one with several elements that of the
first of observations, actions, rewards and dynamics, as in the authors' code. Data that does not
say, and environments that the paper does not have, get its settings for all others: the defaults.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor

from offrl.actors import DeterministicActor, GaussianActor
from offrl.agent import Agent
from offrl.checks import check_choice, check_intervals
from offrl.critics import Critic, Value
from offrl.datasets.offline import Spec
from offrl.errors import ConfigError
from offrl.losses import cloning_loss, ensemble_quantile, expectile_loss, huber_loss, td_target
from offrl.networks import Init, Learners
from offrl.optim import adam, cosine_rate, polyak_update, set_lr, target_of
from offrl.regularizers import advantage_weight
from offrl.representation import held_out_error, with_beer
from offrl.types import Batch, Metrics, Noise

EDAC_INIT = Init(hidden_bias=0.1, last=3e-3)


@dataclass(frozen=True)
class RIQLConfig:
    """The paper's settings where nothing is known about the corruption."""

    sigma: float = 1.0  # of H: errors above 1 / sigma^2 count linearly
    quantile: float = 0.25  # alpha, of the target critics; 0 takes the least
    critics: int = 5  # K
    expectile: float = 0.7  # tau of L_V
    beta: float = 3.0  # inverse temperature of the policy's weights
    max_weight: float = 100.0  # at which those weights are cut
    target_min: float = -100.0  # below which y is cut, in units of discounted reward
    target_max: float = 1000.0  # above which it is
    actor: Literal["deterministic", "gaussian"] = "deterministic"
    actor_schedule: Literal["cosine", "constant"] = "cosine"  # of the policy's learning rate
    gamma: float = 0.99  # discount of a step
    lr: float = 3e-4  # learning rate
    polyak: float = 0.005  # share of the weights that targets take over in an update
    hidden: tuple[int, ...] = (256, 256)  # units of each layer
    beer: float = 0.0  # weight of BEER's penalty on the critics' features; 1e-3 in its paper
    normalize_obs: bool = True  # by the mean and deviation of the data
    normalize_with_next: bool = True  # by the moments of s and s' together, not of s alone
    reward_scale: float = 1.0  # factor on rewards
    reward_shift: float = 0.0  # added to them after it

    def __post_init__(self) -> None:
        check_intervals(
            self,
            sigma="(0, inf)",
            quantile="[0, 1]",
            critics="[1, inf)",
            expectile="(0, 1)",
            beta="[0, inf)",
            max_weight="(0, inf)",
            gamma="[0, 1)",
            lr="(0, inf)",
            polyak="(0, 1]",
            beer="[0, inf)",
        )
        check_choice(self, "actor", ("deterministic", "gaussian"))
        check_choice(self, "actor_schedule", ("cosine", "constant"))
        if not self.target_min < self.target_max:
            raise ConfigError(
                f"RIQLConfig.target_min is {self.target_min!r} and target_max "
                f"{self.target_max!r}; the least target must be below the greatest"
            )


# sigma, alpha and K on halfcheetah, walker2d and hopper: the paper's table of settings.
ENVIRONMENTS = ("halfcheetah", "walker2d", "hopper")
CORRUPTED = {
    "random-observations": ((0.1, 0.10, 5), (0.1, 0.25, 5), (0.1, 0.25, 3)),
    "random-actions": ((0.5, 0.25, 3), (0.5, 0.10, 5), (0.1, 0.25, 5)),
    "random-rewards": ((3.0, 0.25, 5), (3.0, 0.10, 5), (1.0, 0.25, 3)),
    "random-dynamics": ((3.0, 0.25, 5), (1.0, 0.25, 3), (1.0, 0.50, 5)),
    "adversarial-observations": ((0.1, 0.10, 5), (1.0, 0.25, 5), (1.0, 0.25, 5)),
    "adversarial-actions": ((1.0, 0.10, 5), (1.0, 0.10, 5), (1.0, 0.25, 5)),
    "adversarial-rewards": ((1.0, 0.10, 5), (3.0, 0.10, 5), (0.1, 0.25, 5)),
    "adversarial-dynamics": ((1.0, 0.10, 5), (1.0, 0.25, 5), (1.0, 0.50, 5)),
}


class RIQL(Agent):
    """IQL with a quantile of critics, a robust loss and normalised observations."""

    config: RIQLConfig
    config_class = RIQLConfig
    suits = "data of which a share is corrupted"
    actor: DeterministicActor | GaussianActor
    recipes: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "locomotion": {},
        **{
            f"{environment}-{how}": {"sigma": sigma, "quantile": quantile, "critics": critics}
            for how, rows in CORRUPTED.items()
            for environment, (sigma, quantile, critics) in zip(ENVIRONMENTS, rows, strict=True)
        },
    }

    def __init__(self, spec: Spec, config: RIQLConfig, learners: Learners) -> None:
        super().__init__(spec, config, learners)
        obs_dim, act_dim, hidden = self.obs_dim, self.act_dim, config.hidden
        if config.actor == "gaussian":
            self.actor = GaussianActor(obs_dim, act_dim, hidden, learners, squash_mean=False)
        else:
            self.actor = DeterministicActor(obs_dim, act_dim, hidden, learners)
        self.critic = Critic(obs_dim, act_dim, hidden, learners, config.critics, init=EDAC_INIT)
        self.value = Value(obs_dim, hidden, learners)
        self.critic_target = target_of(self.critic)
        self.actor_opt = adam(self.actor.parameters(), config.lr)
        self.critic_opt = adam(self.critic.parameters(), config.lr)
        self.value_opt = adam(self.value.parameters(), config.lr)

    def schedule(self, step: int, steps: int) -> None:
        if self.config.actor_schedule == "cosine":
            set_lr(self.actor_opt, cosine_rate(self.config.lr, step, steps))

    def update(self, batch: Batch, noise: Noise, phase: int) -> Metrics:
        target = self.compute(self.target, batch)
        q = self.compute(self.target_q, batch)
        advantage = self.compute(self.advantage, batch, q)
        metrics = self.minimize(self.value_opt, self.value_loss, batch, q)
        metrics |= self.minimize(self.critic_opt, self.critic_loss, batch, target)
        polyak_update(self.critic, self.critic_target, self.config.polyak)
        metrics |= self.minimize(self.actor_opt, self.actor_loss, batch, advantage)
        return metrics

    def target(self, batch: Batch) -> Tensor:
        cfg, next_value = self.config, self.value(batch.next_obs)
        target = td_target(batch.reward, batch.mask, next_value, cfg.gamma)
        return target.clamp(cfg.target_min, cfg.target_max)

    def target_q(self, batch: Batch) -> Tensor:
        return ensemble_quantile(self.critic_target(batch.obs, batch.action), self.config.quantile)

    def advantage(self, batch: Batch, q: Tensor) -> Tensor:
        advantage: Tensor = q - self.value(batch.obs)
        return advantage

    def value_loss(self, batch: Batch, q: Tensor) -> tuple[Tensor, Metrics]:
        value = self.value(batch.obs)
        loss = expectile_loss(q - value, self.config.expectile).mean(-1)
        return loss, {"value": value.mean(-1)}

    def critic_loss(self, batch: Batch, target: Tensor) -> tuple[Tensor, Metrics]:
        features = self.critic.features(batch.obs, batch.action)
        q = self.critic.read(features)
        loss = huber_loss(target - q, self.config.sigma).mean(0).mean(-1)
        metrics = {"q_data": q[0].mean(-1), "target": target.mean(-1)}
        return with_beer(self, batch, features, loss, metrics, 1.0 / self.config.critics)

    def actor_loss(self, batch: Batch, advantage: Tensor) -> tuple[Tensor, Metrics]:
        weight = advantage_weight(advantage, self.config.beta, self.config.max_weight)
        bc_loss = cloning_loss(self.actor(batch.obs), batch.action)
        metrics = {"advantage": advantage.mean(-1), "bc_loss": bc_loss.mean(-1)}
        return (weight * bc_loss).mean(-1), metrics

    def validate(self, batch: Batch) -> Metrics:
        loss = self.critic_loss(batch, self.target(batch))
        return {**super().validate(batch), **held_out_error(loss)}
