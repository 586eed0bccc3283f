"""Flow Q-learning (FQL; Park, Li and Levine, ICML 2025, arXiv:2502.02538).

A flow that clones, and a student that makes an action of noise in one pass, pulled to what the
flow makes of the same noise and pushed up the critics. No gradient passes through a sampler, and
none of many candidates has to be chosen:

    y    = r + gamma (1 - terminated) agg_i Q_i'(s', clip(mu(s', z'))),  agg the mean or the least
    L_Q  = sum_i E[ (Q_i(s, a) - y)^2 ]
    L_BC = E[ |v(s, x_t, t) - (a - x)|^2 ],  x_t = (1 - t) x + t a,  x and z from N(0, I)
    L_d  = E[ |mu(s, z) - clip(flow(s, z))|^2 ],  flow: n Euler steps of v, a constant
    L_pi = L_BC + alpha L_d - lambda E[ mean_i Q_i(s, clip(mu(s, z))) ]

|.|^2 is averaged over the components of the action; clip is to [-1, 1]; lambda is 1, or with
`normalize_q` 1 / E|mean_i Q_i|, a constant. alpha then no longer depends on the rewards' scale:
the authors advise it for new tasks, with alpha from 0.03 to 10.

The authors minimise L_Q + L_pi at once. So here: y, then flow and student with the critics of
before, then the critics, then their targets. There is no target of the student and no average of
the flow. Acting: the student with a z of the episode and the step.

Departures: layers begin as torch.nn.Linear, by Xavier's bound there; L_Q is a sum over the critics
and a mean there, which Adam does not notice. Locomotion is not among the paper's tasks: there
`normalize_q` with alpha of 1 is our choice, as are the settings of `offrl`'s own tasks.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from offrl.agent import Agent
from offrl.checks import check_choice, check_intervals
from offrl.chunks import chunk_policy
from offrl.critics import Critic, td_regression
from offrl.datasets.offline import Spec
from offrl.fields import Field
from offrl.generated_actions import (
    OneStep,
    cloning_error,
    held_out_draws,
    matching_noise,
    sampled,
)
from offrl.generation import Generation
from offrl.losses import action_error, td_target
from offrl.networks import Learners, learner_view
from offrl.optim import adam, polyak_update, target_of
from offrl.policy import PlanPolicy
from offrl.processes import Flow
from offrl.regularizers import q_scale
from offrl.representation import held_out_error
from offrl.types import Batch, Metrics, Noise
from offrl.value_planner import StudentPlanner


@dataclass(frozen=True)
class FQLConfig(OneStep):
    """The authors' defaults; alpha is by task, see the recipes."""

    alpha: float = 10.0  # of L_d; 3 to 30,000 by task
    normalize_q: bool = False  # divide the Q term by the mean size of Q
    q_agg: Literal["mean", "min"] = "mean"  # of the critics in y
    flow_steps: int = 10  # n, of Euler
    gamma: float = 0.99  # 0.995 on the longest tasks of OGBench
    lr: float = 3e-4  # learning rate
    polyak: float = 0.005  # share of the weights that targets take over in an update
    hidden: tuple[int, ...] = (512, 512, 512, 512)  # of flow and student
    critic_hidden: tuple[int, ...] = (512, 512, 512, 512)  # units of each layer
    normalize_obs: bool = False  # by the mean and deviation of the data
    reward_scale: float = 1.0  # factor on rewards
    reward_shift: float = 0.0  # added to them after it

    def __post_init__(self) -> None:
        check_intervals(self, alpha="[0, inf)", flow_steps="[1, inf)", lr="(0, inf)")
        check_intervals(self, gamma="[0, 1)", polyak="(0, 1]")
        check_choice(self, "q_agg", ("mean", "min"))


D4RL = {"steps": 500_000}  # of the authors' commands
# alpha by dataset of Adroit: human, cloned and expert, in thousands; the authors' commands.
ADROIT = {
    "pen": (10, 10, 3),
    "door": (30, 30, 30),
    "hammer": (30, 10, 30),
    "relocate": (10, 30, 30),
}


def _recipes() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {
        f"{task}-{kind}": {"alpha": 1000.0 * alpha, "q_agg": "min", **D4RL}
        for task, alphas in ADROIT.items()
        for kind, alpha in zip(("human", "cloned", "expert"), alphas, strict=True)
    }
    shifted = {"reward_shift": -1.0}
    large = {
        f"antmaze-large-{kind}": {"alpha": 3.0, **shifted, **D4RL} for kind in ("play", "diverse")
    }
    scaled = {"normalize_q": True, "alpha": 1.0}
    return (
        found
        | large
        | {
            "antmaze": {"alpha": 10.0, **shifted, **D4RL},
            "adroit": {"alpha": 10_000.0, "q_agg": "min", **D4RL},
            "locomotion": scaled,
            "offrl": scaled,
        }
    )


class FQL(Agent):
    """Clone by a flow, distil it into one step, and push that step up the critics."""

    config: FQLConfig
    config_class = FQLConfig
    suits = "several ways to act; one pass to act"
    measure = "bc_loss"
    recipes: ClassVar[Mapping[str, Mapping[str, Any]]] = _recipes()

    def __init__(self, spec: Spec, config: FQLConfig, learners: Learners) -> None:
        super().__init__(spec, config, learners)
        sizes = 1, self.act_dim, self.obs_dim, learners
        self.generation = Generation(Flow(), "euler", config.flow_steps, clip=None)
        self.flow = Field(*sizes, hidden=config.hidden)
        self.student = Field(*sizes, hidden=config.hidden, timed=False)
        critic = self.obs_dim, self.act_dim, config.critic_hidden, learners
        self.critic = Critic(*critic, norm="after", activation="gelu")
        self.critic_target = target_of(self.critic)
        both = chain(self.flow.parameters(), self.student.parameters())
        self.actor_opt = adam(both, config.lr)
        self.critic_opt = adam(self.critic.parameters(), config.lr)

    def noise(self, batch_size: int) -> dict[str, tuple[int, ...]]:
        drawn = {"z_start": (batch_size, 1, self.act_dim), "next_z": (batch_size, 1, self.act_dim)}
        return {**matching_noise(self, batch_size), **drawn}

    def update(self, batch: Batch, noise: Noise, phase: int) -> Metrics:
        target = self.compute(self.target, batch, noise["next_z"])
        goal = self.compute(self.taught, batch, noise)
        metrics = self.minimize(self.actor_opt, self.actor_loss, batch, goal, noise)
        metrics |= self.minimize(self.critic_opt, self.critic_loss, batch, target)
        polyak_update(self.critic, self.critic_target, self.config.polyak)
        return metrics

    def target(self, batch: Batch, z: Tensor) -> Tensor:
        action = self.student(z, None, batch.next_obs).squeeze(-2).clamp(-1.0, 1.0)
        q = self.critic_target(batch.next_obs, action)
        value = q.amin(0) if self.config.q_agg == "min" else q.mean(0)
        return td_target(batch.reward, batch.mask, value, self.config.gamma)

    def taught(self, batch: Batch, noise: Noise) -> Tensor:
        return sampled(self, self.flow, batch.obs, noise, "z")

    def actor_loss(self, batch: Batch, goal: Tensor, noise: Noise) -> tuple[Tensor, Metrics]:
        bc_loss = cloning_error(self, self.flow, batch, noise).mean(-1)
        action = self.student(noise["z_start"], None, batch.obs).squeeze(-2)
        distillation = action_error(action, goal).mean(-1)
        q = self.critic(batch.obs, action.clamp(-1.0, 1.0)).mean(0)
        scale = q_scale(q, 1.0) if self.config.normalize_q else torch.ones_like(distillation)
        loss = bc_loss + self.config.alpha * distillation - scale * q.mean(-1)
        return loss, {"bc_loss": bc_loss, "distillation": distillation, "q": q.mean(-1)}

    def critic_loss(self, batch: Batch, target: Tensor) -> tuple[Tensor, Metrics]:
        return td_regression(self.critic(batch.obs, batch.action), target)

    def validate(self, batch: Batch) -> Metrics:
        noise = held_out_draws(self, batch)
        held_out = held_out_error(self.critic_loss(batch, self.target(batch, noise["next_z"])))
        bc_loss = cloning_error(self, self.flow, batch, noise).mean(-1)
        return {"bc_loss": bc_loss, **held_out}

    def policy(self, learner: int = 0, provenance: Mapping[str, Any] | None = None) -> PlanPolicy:
        planner = StudentPlanner(learner_view(self.student, learner), self.obs_dim, self.act_dim)
        return chunk_policy(self, planner, provenance)
