"""What agents of generated single actions have in common: the matching loss, and samples.

    l(a) = |net(x_t, t, s) - target|^2,  x_t = alpha a + sigma eps      for a logged action
    a    = clip(sampler(net, s), -1, 1)                                 from given noise

They see transitions; an action is a plan of one step. These are functions of an agent with a
`generation`; it says which process, which network, and what the losses are weighed by.
"""

from typing import Any

from jaxtyping import Float
from torch import Tensor

from offrl.agent import Agent
from offrl.chunks import same_noise
from offrl.denoising import Network, matching_error
from offrl.execution import Execution
from offrl.types import Batch, Noise


class OneStep:
    """Settings of plans that are a single action."""

    def execution(self) -> Execution:
        """How plans are carried out."""
        return Execution(horizon=1)


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
