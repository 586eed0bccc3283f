"""What the methods built on soft actor-critic have in common: settings, networks, losses.

    L_pi = E[ w log pi(a|s) - min_i Q_i(s, a) ],                a ~ pi(s)
    L_w  = -log w (E[ log pi(a|s) ] + H),                       the same a, H the target entropy
    y    = r + gamma (1 - terminated) (min_i Q_i'(s', a') - w log pi(a'|s')),  a' ~ pi(s')
    L_Q  = sum_i E[ (Q_i(s, a) - y)^2 ]

w is the temperature, one number that is learned. The policy is a squashed Gaussian. These are
functions of an agent that has these networks; `offrl.soft_agent` says in which order they are
used.
Source: SAC (Haarnoja et al., 2018, arXiv:1812.05905, algorithm 1).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from offrl.actors import SquashedGaussianActor
from offrl.checks import check_intervals
from offrl.cocoa import CocoaConfig, policy_trunk, value_trunk
from offrl.critics import Critic, StateActionTrunk
from offrl.losses import td_target
from offrl.multipliers import Multiplier
from offrl.networks import Init, Learners
from offrl.optim import target_of
from offrl.types import Batch, Metrics, Noise

# Actions of a state, all learners counted, that a processor puts through a critic at a time: the
# layers' outputs, which the gradient needs again, then fit its cache and are not given back to the
# system each time.
AT_ONCE = 5
# Those of rlkit, on which the authors of CQL and of EDAC built.
ACTOR_INIT = Init(hidden_bias=0.1, last=1e-3)
CRITIC_INIT = Init(hidden_bias=0.1, last=3e-3)


@dataclass(frozen=True)
class SoftConfig:
    """Settings of soft actor-critic, and of the view of the data; each agent adds its own."""

    gamma: float = 0.99  # discount of a step
    lr: float = 3e-4  # of the critics
    actor_lr: float = 3e-4  # of the policy and of its temperature
    target_entropy: float = -1.0  # H, per component of the action
    polyak: float = 0.005  # share of the weights that targets take over in an update
    hidden: tuple[int, ...] = (256, 256, 256)  # units of each layer
    beer: float = 0.0  # weight of BEER's penalty on the critics' features; 1e-3 in its paper
    normalize_obs: bool = False  # by the mean and deviation of the data
    reward_scale: float = 1.0  # factor on rewards
    reward_shift: float = 0.0  # added to them after it

    def __post_init__(self) -> None:
        check_intervals(
            self,
            gamma="[0, 1)",
            lr="(0, inf)",
            actor_lr="(0, inf)",
            target_entropy="(-inf, inf)",
            polyak="(0, 1]",
            beer="[0, inf)",
        )


@runtime_checkable
class Soft(Protocol):
    """An agent with a squashed Gaussian policy, its temperature, critics and their target."""

    act_dim: int

    @property
    def config(self) -> SoftConfig: ...
    @property
    def actor(self) -> SquashedGaussianActor: ...
    @property
    def critic(self) -> Critic: ...
    @property
    def critic_target(self) -> Critic: ...
    @property
    def temperature(self) -> Multiplier: ...


def soft_networks(
    obs_dim: int,
    act_dim: int,
    hidden: Sequence[int],
    learners: Learners,
    ensemble: int,
    extra: int = 0,
    cocoa: CocoaConfig | None = None,
) -> tuple[SquashedGaussianActor, Critic, Multiplier, Critic]:
    """Policy, critics, temperature and the critics' target.

    Critics have `extra` hidden layers more than the policy. Both look at states as `cocoa` says.
    """
    deep = [*hidden, *[hidden[-1]] * extra]
    cocoa = cocoa or CocoaConfig()
    sizes = obs_dim, act_dim
    trunk = policy_trunk(cocoa, *sizes, learners)
    actor = SquashedGaussianActor(*sizes, hidden, learners, ACTOR_INIT, trunk=trunk)
    critics = value_trunk(cocoa, *sizes, deep, learners, (ensemble,), CRITIC_INIT)
    critic = Critic(*sizes, deep, learners, ensemble, critics, init=CRITIC_INIT)
    return actor, critic, Multiplier(learners), target_of(critic)


def soft_actor_loss(
    agent: Soft, batch: Batch, noise: Float[Tensor, "*seed batch act"]
) -> tuple[Tensor, Metrics]:
    """L_pi, with mean Q and mean log pi as metrics."""
    action, log_prob = agent.actor.draw(batch.obs, noise)
    q = agent.critic(batch.obs, action).amin(0)
    loss = (entropy_cost(agent, log_prob) - q).mean(-1)
    return loss, {"q": q.mean(-1), "log_prob": log_prob.mean(-1)}


def soft_temperature_loss(agent: Soft, log_prob: Float[Tensor, "*seed"]) -> tuple[Tensor, Metrics]:
    """L_w, from the mean log pi of the policy's loss."""
    violation = log_prob + agent.config.target_entropy * agent.act_dim
    return agent.temperature.ascent(violation), {"temperature": agent.temperature()}


def entropy_cost(
    agent: Soft, log_prob: Float[Tensor, "*seed batch"]
) -> Float[Tensor, "*seed batch"]:
    """w log pi, for which w is a constant."""
    weight: Tensor = agent.temperature().detach()
    return weight.unsqueeze(-1) * log_prob


@torch.no_grad()
def soft_target(
    agent: Soft, batch: Batch, noise: Float[Tensor, "*seed batch act"]
) -> Float[Tensor, "*seed batch"]:
    """y; a constant."""
    action, log_prob = agent.actor.draw(batch.next_obs, noise)
    q = agent.critic_target(batch.next_obs, action).amin(0)
    value = q - entropy_cost(agent, log_prob)
    return td_target(batch.reward, batch.mask, value, agent.config.gamma)


def best_target(
    agent: Soft, batch: Batch, noise: Float[Tensor, "*seed n batch act"], entropy: bool
) -> Float[Tensor, "*seed batch"]:
    """y of the best of n actions, by min_i Q_i', without -w log pi(a'|s') unless `entropy`."""
    action, log_prob = agent.actor.draw_many(batch.next_obs, noise)
    q, best = values_of_many(agent.critic_target, batch.next_obs, action).amin(0).max(-2)
    if entropy:
        its = log_prob.gather(-2, best.unsqueeze(-2)).squeeze(-2)
        q = q - entropy_cost(agent, its)
    return td_target(batch.reward, batch.mask, q, agent.config.gamma)


def proposals(
    agent: Soft, batch: Batch, noise: Noise
) -> tuple[Float[Tensor, "*seed n batch act"], Float[Tensor, "*seed n batch"]]:
    """Uniform actions, and ones of pi(s) and of pi(s'), with the logs of their densities.

    As many of each as the noise has under `random`, `here` and `then`. Source: CQL
    (arXiv:2006.04779, appendix F); pi(s') is its authors' code's.
    """
    random = 2.0 * torch.special.ndtr(noise["random"]) - 1.0
    here, log_here = agent.actor.draw_many(batch.obs, noise["here"])
    then, log_then = agent.actor.draw_many(batch.next_obs, noise["then"])
    uniform = torch.full_like(log_here, -agent.act_dim * math.log(2.0))
    log_density = torch.cat([uniform, log_here, log_then], -2)
    return torch.cat([random, here, then], -3), log_density


def values_of_many(
    critic: nn.Module,
    obs: Float[Tensor, "*seed batch obs"],
    actions: Float[Tensor, "*seed n batch act"],
) -> Float[Tensor, "ensemble *seed n batch"]:
    """Q of n actions for each observation, as many rows of the batch to the critic."""
    found = []
    for some in torch.split(actions, _at_once(actions), -3):
        repeated = obs.unsqueeze(-3).expand(*some.shape[:-1], -1)
        q: Tensor = critic(repeated.flatten(-3, -2), some.flatten(-3, -2))
        found.append(q.reshape(*q.shape[:-1], some.shape[-3], -1))
    return torch.cat(found, -2)


def _at_once(actions: Float[Tensor, "*seed n batch act"]) -> int:
    """How many of the n actions go through a critic together."""
    if actions.device.type != "cpu":
        return actions.shape[-3]
    return max(AT_ONCE // actions.shape[:-3].numel(), 1)


def value_and_slope(
    critic: Critic,
    obs: Float[Tensor, "*seed batch obs"],
    action: Float[Tensor, "*seed batch act"],
) -> tuple[
    Float[Tensor, "ensemble *seed batch"],
    Float[Tensor, "ensemble *seed batch act"],
    Float[Tensor, "ensemble *seed batch features"],
]:
    """Q_i(s, a), dQ_i(s, a) / da and the features of each member.

    All can be differentiated by the weights.

    Each member gets a copy of the action of its own, so that one pass back gives every slope. It
    needs the default trunk, whose members take inputs of their own.
    """
    assert isinstance(critic.trunk, StateActionTrunk), "slopes need the default trunk"
    members = critic.head.weight.shape[0]
    own = action.detach().expand(members, *action.shape).requires_grad_()
    together = torch.cat([obs.expand(members, *obs.shape), own], -1)
    features = critic.trunk.net(together)
    q = critic.read(features)
    (slope,) = torch.autograd.grad(q.sum(), own, create_graph=True)
    return q, slope, features
