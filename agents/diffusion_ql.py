"""Diffusion Q-learning (DQL; Wang, Hunt and Zhou, ICLR 2023, arXiv:2208.06193).

A policy that is a short diffusion chain. It is held near the data by its own loss, and moved to
what is valuable through all steps of the chain:

    a'   = sampler(average, s')
    y    = r + gamma (1 - terminated) min_i Q_i'(s', a')
    L_Q  = sum_i E[ (Q_i(s, a) - y)^2 ]
    L_pi = E[ |eps(sqrt(abar_k) a + sqrt(1 - abar_k) e, k, s) - e|^2 ] - eta E[Q_i(s, a0)] / E|Q_j|,
           a0 = sampler(net, s),  (i, j) the critics in an order drawn for each update

with k one of T levels, e standard normal, and |.|^2 averaged over the components of the action.
E|Q_j| is a constant for the gradient. With `backup` of n > 1 there are n actions at each s', and of
each critic the best counts: max-Q backup. Gradients of either loss are cut to a norm, for each
learner by itself.

Order within an update, as in the authors' code: the critics; the policy, with the new critics; the
average of the policy, which moves every few steps and not at all before step `ema_start`; the
critics' targets. Acting: of `candidates` actions of the policy, not of its average, one drawn with
probability proportional to exp(min_i Q_i'(s, a)).

Departures: with `lr_schedule` "cosine" learning rates fall over the run's steps, not over epochs.
The authors choose their checkpoint by evaluations or by the loss of cloning, and state a number of
epochs by dataset; both are the run's affair here. A dataset that their table lacks gets its
suite's settings, with our choice where those differ: gradients cut at 5, and on AntMaze eta of 2
with max-Q backup.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from offrl.agent import Agent
from offrl.backbones import MLPDenoiser
from offrl.checks import check_choice, check_intervals, check_that
from offrl.critics import Critic, td_regression
from offrl.datasets.offline import Spec
from offrl.ema import Average, Decay
from offrl.generated_actions import (
    OneStep,
    best_action_policy,
    check_generator,
    cloning_error,
    held_out_draws,
    matching_noise,
    sampled,
    sampling_noise,
)
from offrl.generation import Generation
from offrl.guidance import repeated
from offrl.losses import td_target
from offrl.networks import Learners
from offrl.optim import adam, clipping, cosine_rate, polyak_update, set_lr, target_of
from offrl.policy import PlanPolicy
from offrl.processes import DDPM
from offrl.regularizers import q_scale
from offrl.types import Batch, Metrics, Noise


@dataclass(frozen=True)
class DiffusionQLConfig(OneStep):
    """The paper's settings on locomotion; see the recipes for the others."""

    eta: float = 1.0  # of the Q term, over the mean size of Q; 0.005 (Kitchen) to 4.5 (AntMaze)
    levels: int = 5  # T, of noise, and steps of the sampler
    backup: int = 1  # actions at s', the best of which counts; 10 is the paper's max-Q backup
    grad_norm: float = 5.0  # at which gradients are cut, 1 to 10 by dataset; 0 cuts none
    candidates: int = 50  # actions of which one is taken
    temperature: float = 1.0  # of the choice among them; 0 takes the best
    ema: float = 0.995  # share of the average that one move keeps
    ema_start: int = 1000  # steps before the average first moves
    ema_every: int = 5  # steps from one move to the next
    gamma: float = 0.99  # discount of a step
    lr: float = 3e-4  # of the policy; 3e-5 on Adroit
    critic_lr: float = 3e-4
    lr_schedule: Literal["constant", "cosine"] = "constant"  # of both
    polyak: float = 0.005  # share of the weights that targets take over in an update
    width: int = 256  # of the policy's layers
    depth: int = 3  # of them
    critic_hidden: tuple[int, ...] = (256, 256, 256)  # units of each layer
    normalize_obs: bool = False  # by the mean and deviation of the data
    standardize_reward: bool = False  # to mean 0 and deviation 1 over the dataset, as on Adroit
    reward_scale: float = 1.0  # factor on rewards
    reward_shift: float = 0.0  # added to them after it

    def __post_init__(self) -> None:
        check_generator(self)
        check_intervals(self, backup="[1, inf)", ema_every="[1, inf)", critic_lr="(0, inf)")
        check_intervals(self, eta="[0, inf)", grad_norm="[0, inf)", ema_start="[0, inf)")
        check_choice(self, "lr_schedule", ("constant", "cosine"))
        if self.standardize_reward:
            must = "standardize_reward is set, which finds both; leave it at"
            check_that(self, "reward_scale", self.reward_scale == 1.0, f"{must} 1")
            check_that(self, "reward_shift", self.reward_shift == 0.0, f"{must} 0")


# The authors' table: by dataset the norm of gradients, and on AntMaze eta and the backup.
TASKS = ("halfcheetah", "hopper", "walker2d")
NORMS = {"medium": (9, 9, 1), "medium-replay": (2, 4, 4), "medium-expert": (7, 5, 5)}
ANTMAZE = {
    **{"umaze": (2.0, 0.5, 1), "umaze-diverse": (3.0, 2.0, 10)},
    **{"medium-play": (2.0, 2.0, 10), "medium-diverse": (1.0, 3.0, 10)},
    **{"large-play": (10.0, 4.5, 10), "large-diverse": (7.0, 3.5, 10)},
}
REWARDS = {"reward_scale": 4.0, "reward_shift": -2.0}  # 4 (r - 0.5)
ADROIT = {"lr": 3e-5, "standardize_reward": True}


class DiffusionQL(Agent):
    """Denoise actions, and push them up the critics through the whole chain."""

    config: DiffusionQLConfig
    config_class = DiffusionQLConfig
    suits = "several ways to act, of unequal worth"
    measure = "bc_loss"
    recipes: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        **{
            f"{task}-{kind}": {"grad_norm": float(norm)}
            for kind, norms in NORMS.items()
            for task, norm in zip(TASKS, norms, strict=True)
        },
        **{
            f"antmaze-{kind}": {"grad_norm": norm, "eta": eta, "backup": backup, **REWARDS}
            for kind, (norm, eta, backup) in ANTMAZE.items()
        },
        "antmaze-medium-play": {"grad_norm": 2.0, "eta": 2.0, "backup": 10, "lr": 1e-3, **REWARDS},
        "pen-human": {"eta": 0.15, "grad_norm": 7.0, **ADROIT},
        "pen-cloned": {"eta": 0.1, "grad_norm": 8.0, **ADROIT},
        "kitchen-complete": {"eta": 0.005, "grad_norm": 9.0},
        "locomotion": {"eta": 1.0},
        "antmaze": {"eta": 2.0, "backup": 10, **REWARDS},
        "adroit": {"eta": 0.1, "grad_norm": 8.0, **ADROIT},
        "kitchen": {"eta": 0.005, "grad_norm": 10.0},
    }

    def __init__(self, spec: Spec, config: DiffusionQLConfig, learners: Learners) -> None:
        super().__init__(spec, config, learners)
        self.generation = Generation(DDPM(config.levels, "vp"), "ddpm", config.levels)
        obs_dim, act_dim, width = self.obs_dim, self.act_dim, config.width
        self.net = MLPDenoiser(1, act_dim, obs_dim, learners, hidden=width, depth=config.depth)
        self.critic = Critic(obs_dim, act_dim, config.critic_hidden, learners, activation="mish")
        late = {"start": config.ema_start, "every": config.ema_every}
        self.average = Average(self.net, Decay("constant", high=config.ema, **late))
        self.critic_target = target_of(self.critic)
        self.net_opt = adam(self.net.parameters(), config.lr)
        self.critic_opt = adam(self.critic.parameters(), config.critic_lr)
        self.clip = clipping(config.grad_norm)

    def noise(self, batch_size: int) -> dict[str, tuple[int, ...]]:
        policy = sampling_noise(self, "policy", batch_size)
        following = sampling_noise(self, "next", batch_size * self.config.backup)
        return {**matching_noise(self, batch_size), **policy, **following, "order": ()}

    def schedule(self, step: int, steps: int) -> None:
        self.average.schedule(step)
        if self.config.lr_schedule == "cosine":
            set_lr(self.net_opt, cosine_rate(self.config.lr, step, steps))
            set_lr(self.critic_opt, cosine_rate(self.config.critic_lr, step, steps))

    def update(self, batch: Batch, noise: Noise, phase: int) -> Metrics:
        target = self.compute(self.target, batch, noise)
        metrics = self.minimize(self.critic_opt, self.critic_loss, batch, target, combine=self.clip)
        metrics |= self.minimize(self.net_opt, self.policy_loss, batch, noise, combine=self.clip)
        self.average.update(self.net)
        polyak_update(self.critic, self.critic_target, self.config.polyak)
        return metrics

    def target(self, batch: Batch, noise: Noise) -> Tensor:
        n = self.config.backup
        action = sampled(self, self.average.net, batch.next_obs, noise, "next")
        q = self.critic_target(repeated(batch.next_obs, n, event=1), action)
        best = q.unflatten(-1, (-1, n)).amax(-1).amin(0)
        return td_target(batch.reward, batch.mask, best, self.config.gamma)

    def critic_loss(self, batch: Batch, target: Tensor) -> tuple[Tensor, Metrics]:
        loss, metrics = td_regression(self.critic(batch.obs, batch.action), target)
        return loss[None], metrics

    def policy_loss(self, batch: Batch, noise: Noise) -> tuple[Tensor, Metrics]:
        bc_loss = cloning_error(self, self.net, batch, noise).mean(-1)
        action = sampled(self, self.net, batch.obs, noise, "policy")
        q = self.critic(batch.obs, action)
        first = (noise["order"] > 0)[..., None]
        up, size = torch.where(first, q[0], q[1]), torch.where(first, q[1], q[0])
        q_loss = -q_scale(size, self.config.eta) * up.mean(-1)
        metrics = {"bc_loss": bc_loss, "q_loss": q_loss, "q": up.mean(-1)}
        return (bc_loss + q_loss)[None], metrics

    def validate(self, batch: Batch) -> Metrics:
        noise = held_out_draws(self, batch)
        loss, metrics = self.critic_loss(batch, self.target(batch, noise))
        bc_loss = cloning_error(self, self.net, batch, noise).mean(-1)
        return {"bc_loss": bc_loss, "td_error": loss[0], "q": metrics["q_data"]}

    def policy(self, learner: int = 0, provenance: Mapping[str, Any] | None = None) -> PlanPolicy:
        return best_action_policy(self, self.net, learner, provenance)
