"""What agents of generated single actions have in common: the matching loss, samples, networks.

    l(a) = |net(x_t, t, s) - target|^2,  x_t = alpha a + sigma eps      for a logged action
    a    = clip(sampler(net, s), -1, 1)                                 from given noise

They see transitions; an action is a plan of one step. These are functions of an agent with a
`generation`; it says which process, which network, and what the losses are weighed by.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from jaxtyping import Float
from torch import Tensor

from offrl.agent import Agent
from offrl.backbones import MLPDenoiser
from offrl.checks import check_choice, check_intervals
from offrl.chunks import TIMES, chunk_policy, same_noise
from offrl.critics import Critic, Value
from offrl.denoising import Network, matching_error
from offrl.ema import Average, Decay
from offrl.execution import Execution
from offrl.generation import Generation
from offrl.networks import learner_view
from offrl.optim import adam, target_of
from offrl.policy import PlanPolicy
from offrl.processes import DDPM, Flow
from offrl.representation import held_out_error
from offrl.types import Batch, Metrics, Noise
from offrl.value_planner import ValuePlanner


class OneStep:
    """Settings of plans that are a single action."""

    def execution(self) -> Execution:
        """How plans are carried out."""
        return Execution(horizon=1)


def check_generator(config: Any) -> None:
    """Raise ConfigError unless what all generators of single actions have lies in its interval."""
    counts = ("levels", "candidates", "width", "depth")
    check_intervals(config, **dict.fromkeys(counts, "[1, inf)"))
    check_intervals(config, temperature="[0, inf)", ema="[0, 1]", gamma="[0, 1)")
    check_intervals(config, lr="(0, inf)", polyak="(0, 1]")


@dataclass(frozen=True)
class ImplicitGeneratorConfig(OneStep):
    """A generator of actions beside implicit values; each agent has its own defaults."""

    process: Literal["diffusion", "flow"] = "diffusion"
    levels: int = 5  # T, of noise, and steps of the sampler; of a flow, Euler's steps alone
    candidates: int = 64  # N, actions of which one is taken when acting
    temperature: float = 0.0  # of the choice among them by the least critic; 0 takes the best
    width: int = 256  # of the generator's residual layers, between which there are four times more
    depth: int = 3  # residual blocks
    dropout: float = 0.1  # before each block's norm
    ema: float = 0.999  # share of the average, which acts, that a step keeps
    actor_schedule: Literal["cosine", "constant"] = "cosine"  # of the generator's learning rate
    expectile: float = 0.7  # tau of L_V; 0.9 on AntMaze
    gamma: float = 0.99
    lr: float = 3e-4  # learning rate
    polyak: float = 0.005
    hidden: tuple[int, ...] = (256, 256)  # of critics and V
    normalize_obs: bool = False  # by the mean and deviation of the data
    reward_by_return_range: bool = True  # scale by 1000 / (best - worst return)
    reward_scale: float = 1.0  # factor on rewards
    reward_shift: float = 0.0  # added to them after it

    def __post_init__(self) -> None:
        check_generator(self)
        check_intervals(self, expectile="(0, 1)", dropout="[0, 1)")
        check_choice(self, "process", ("diffusion", "flow"))
        check_choice(self, "actor_schedule", ("cosine", "constant"))


def generation_of(config: ImplicitGeneratorConfig) -> Generation:
    """T levels of the vp schedule walked by DDPM, or a flow walked by Euler, as settings say."""
    if config.process == "flow":
        return Generation(Flow(), "euler", config.levels, clip=None)
    return Generation(DDPM(config.levels, "vp"), "ddpm", config.levels)


def residual_net(agent: Any) -> MLPDenoiser:
    """Residual layers, with a step at learned frequencies, or a flow's time at fixed ones."""
    cfg, flows = agent.config, agent.config.process == "flow"
    return MLPDenoiser(
        *(1, agent.act_dim, agent.obs_dim, agent.learners),
        blocks="residual",
        hidden=cfg.width,
        depth=cfg.depth,
        level="sinusoidal" if flows else "fourier",
        features=64,
        embed_hidden=128,
        embedding=128,
        dropout=cfg.dropout,
        level_scale=TIMES if flows else 1.0,
    )


def equip(agent: Any) -> None:
    """Give an agent of these settings its networks, their averages and their optimisers."""
    cfg, learners = agent.config, agent.learners
    agent.generation = generation_of(cfg)
    agent.net = residual_net(agent)
    agent.critic = Critic(agent.obs_dim, agent.act_dim, cfg.hidden, learners)
    agent.value = Value(agent.obs_dim, cfg.hidden, learners)
    agent.average = Average(agent.net, Decay("constant", high=cfg.ema))
    agent.critic_target = target_of(agent.critic)
    agent.net_opt = adam(agent.net.parameters(), cfg.lr)
    agent.critic_opt = adam(agent.critic.parameters(), cfg.lr)
    agent.value_opt = adam(agent.value.parameters(), cfg.lr)


def held_out_measures(agent: Any, batch: Batch) -> Metrics:
    """The generator's error on held-out actions, and that of the critics."""
    noise = held_out_draws(agent, batch)
    bc_loss = cloning_error(agent, agent.average.net, batch, noise).mean(-1)
    return {"bc_loss": bc_loss, **held_out_error(agent.critic_loss(batch))}


def best_action_policy(
    agent: Any, net: Any, learner: int, provenance: Mapping[str, Any] | None
) -> PlanPolicy:
    """Of the learner's generator and target critics: the `ValuePlanner` that settings ask for."""
    parts = learner_view(net, learner), learner_view(agent.critic_target, learner)
    cfg, given = agent.config, (agent.generation, agent.obs_dim, agent.act_dim)
    planner = ValuePlanner(*parts, *given, cfg.candidates, cfg.temperature)
    return chunk_policy(agent, planner, provenance)


def matching_noise(agent: Any, batch_size: int) -> dict[str, tuple[int, ...]]:
    """Of `cloning_error`: the levels, and the noise of each action, for one learner."""
    return {"level": (batch_size,), "noise": (batch_size, agent.act_dim)}


def cloning_error(
    agent: Any, net: Network, batch: Batch, noise: Noise
) -> Float[Tensor, "*seed batch"]:
    """l of each logged action, averaged over its components."""
    process = agent.generation.process
    at = process.draw(noise["level"])
    action, eps = batch.action.unsqueeze(-2), noise["noise"].unsqueeze(-2)
    return matching_error(process, net, action, eps, at, batch.obs)


def sampling_noise(agent: Any, name: str, rows: int) -> dict[str, tuple[int, ...]]:
    """Of `sampled` under this name, for so many actions of one learner."""
    shapes = agent.generation.noise((rows, 1, agent.act_dim))
    return {f"{name}_{part}": shape for part, shape in shapes.items()}


def sampled(
    agent: Any, net: Network, obs: Float[Tensor, "*seed batch obs"], noise: Noise, name: str
) -> Float[Tensor, "*seed rows act"]:
    """An action for each observation, or n beside each other where there is noise for n.

    The gradient passes through every step of the sampler.
    """
    parts = {part: noise[f"{name}_{part}"] for part in agent.generation.noise(())}
    x = agent.generation.run(agent.generation.denoiser(net, obs), parts).x
    action: Tensor = x.squeeze(-2).clamp(-1.0, 1.0)
    return action


def held_out_draws(agent: Agent, batch: Batch) -> Noise:
    """What an update of this batch would draw, the same at every validation."""
    *lead, size = batch.index.shape
    return same_noise(agent, agent.noise(size), tuple(lead))
