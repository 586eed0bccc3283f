"""The next action towards a goal, generated after those that were taken: BESO's way to act.

    D = D_free + w (D_goal - D_free),   x at past actions = alpha a + sigma eps

D_goal is told the goal and D_free is not (`offrl.guidance.blend`). A window of observations has an
action for each: those of the past are known and put back at every step of the sampler
(`offrl.guidance.held`), clean (eps = 0) or with noise of the level; the newest is generated.

What may be absent is told apart from what is zero. A transformer does not see the tokens of a goal
that is not given, nor the steps before an episode's first; an MLP has an input that says so, and
zeros in their place. Source: BESO (Reuss et al., RSS 2023, arXiv:2304.02532).
"""

import math
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import pad

from offrl.backbones import Backbone, Blocks, MLPDenoiser, backbone_from_spec
from offrl.denoising import Denoise, Network, denoiser
from offrl.generation import Generation, by_step
from offrl.guidance import blend, bounded, held
from offrl.networks import Learners
from offrl.processes import DDPM, EDM
from offrl.transformer import InterleavedGPT
from offrl.types import Context, Noise

WIDE = 1_000.0  # by which ln(sigma) / 4 is multiplied for frequencies that are made for steps


class Situation(NamedTuple):
    """What is known when actions are denoised; `real` and `goal_real` are 0 where nothing is."""

    obs: Float[Tensor, "*lead history obs"]
    real: Float[Tensor, "*lead history"]
    goal: Float[Tensor, "*lead times goal"]
    goal_real: Float[Tensor, "*lead"]


def goal_generation(config: Any) -> Generation:
    """The process of an agent's settings and its sampler: DDPM, or EDM with log-logistic levels."""
    if config.process == "ddpm":
        process = DDPM(config.levels, "cosine", "epsilon", "leading")
        return Generation(process, config.sampler, config.sampler_steps)
    edm = EDM(
        config.sigma_data,
        config.sigma_min,
        config.sigma_max,
        config.spacing,
        rho=5.0,
        density="loglogistic",
        location=math.log(config.sigma_data),
        scale=0.5,
    )
    return Generation(edm, config.sampler, config.sampler_steps, clip=None)


def goal_backbone(
    blocks: Blocks | None,
    *,
    history: int,
    act_dim: int,
    obs_dim: int,
    goal: tuple[int, int],
    learners: Learners,
    width: int,
    depth: int,
    heads: int,
    steps: int | None,
) -> Backbone:
    """A network for `told`: an MLP of these blocks, or an InterleavedGPT where they are None.

    `goal` is (times, components); `steps` is how many levels the process has, None where its
    level is ln(sigma) / 4.
    """
    times, size = goal
    if blocks is None:
        return InterleavedGPT(
            history,
            act_dim,
            times,
            obs_dim,
            learners,
            layers=depth,
            heads=heads,
            width=width,
            level_scale=1.0 if steps is None else 1.0 / steps,
        )
    known = history * (obs_dim + 1) + times * size + 1
    return MLPDenoiser(
        history,
        act_dim,
        known,
        learners,
        blocks=blocks,
        hidden=width,
        depth=depth,
        level_scale=WIDE if steps is None else 1.0,
    )


def told(net: Backbone, now: Situation, achieved: int = 0) -> Network:
    """The network under a situation: (x, level, None) -> like x.

    An InterleavedGPT is given goals as observations of which nothing is known but the components
    from `achieved` on, which they consist of; they share an embedding with the others.
    """
    return partial(_told, net, now, achieved)


def _told(
    net: Backbone, now: Situation, achieved: int, x: Tensor, level: Tensor, _: Tensor | None
) -> Tensor:
    given = now.goal_real[..., None]
    goal = given[..., None] * now.goal
    if isinstance(net, InterleavedGPT):
        rest = now.obs.shape[-1] - achieved - goal.shape[-1]
        tokens = torch.cat([pad(goal, (achieved, rest)), now.obs], -2)
        seen = torch.cat([given.expand(goal.shape[:-1]), now.real], -1)
        y: Tensor = net(x, level, tokens, seen)
        return y
    real = now.real[..., None]
    parts = (goal, given, real * now.obs, now.real)
    flat = [part.flatten(x.ndim - 2) for part in parts]
    z: Tensor = net(real * x, level, torch.cat(flat, -1))
    return z


class GoalPlanner(nn.Module):
    """A window of actions of which the last is for now, and new.

    `guidance` is w above: 1 asks the denoiser with the goal alone and 0 the one without, one
    evaluation a step each; other weights take both. The generation's bound of x0_hat is applied
    after guiding. `noised_past` puts noise on the past actions.
    """

    def __init__(
        self,
        net: Backbone,
        generation: Generation,
        obs_dim: int,
        act_dim: int,
        history: int,
        achieved: int = 0,
        guidance: float = 1.0,
        noised_past: bool = False,
    ) -> None:
        super().__init__()
        self.net, self.generation = net, generation
        self.obs_dim, self.shape, self.achieved = obs_dim, (history, act_dim), achieved
        self.guidance, self.noised_past = guidance, noised_past

    def plan(self, context: Context, noise: Noise) -> Float[Tensor, "n horizon act"]:
        newest = torch.zeros_like(noise["start"][:, :1])
        known = torch.cat([context.past_action, newest], 1)
        eps = noise["past"] if self.noised_past else torch.zeros_like(known)
        ago = torch.arange(self.shape[0] - 1, -1, -1, device=known.device)
        hook = held(known, eps, (ago > 0)[:, None])
        return self.generation.run(self._denoise(context), by_step(noise), 2, hook).x.clamp(-1, 1)

    def _denoise(self, context: Context) -> Denoise:
        toward = self._under(context, context.goal_real)
        free = self._under(context, torch.zeros_like(context.goal_real))
        if self.guidance in (0.0, 1.0):
            guided = toward if self.guidance else free
        else:
            guided = blend(free, toward, self.guidance)
        clip = self.generation.clip
        return guided if clip is None else bounded(guided, clip)

    def _under(self, context: Context, goal_real: Tensor) -> Denoise:
        now = Situation(context.obs, context.obs_real, context.goal, goal_real)
        return denoiser(self.generation.process, told(self.net, now, self.achieved))

    def noise(self) -> dict[str, tuple[int, ...]]:
        past = {"past": self.shape} if self.noised_past else {}
        return {**self.generation.noise(self.shape), **past}

    def spec(self) -> dict[str, Any]:
        history, act_dim = self.shape
        return {
            "type": type(self).__name__,
            **{"obs_dim": self.obs_dim, "act_dim": act_dim, "history": history},
            **{"achieved": self.achieved, "guidance": self.guidance},
            "noised_past": self.noised_past,
            **{"net": self.net.spec(), "generation": self.generation.spec()},
        }

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> "GoalPlanner":
        settings = {k: v for k, v in spec.items() if k not in ("type", "net", "generation")}
        net, generation = backbone_from_spec(spec["net"]), Generation.from_spec(spec["generation"])
        return cls(net, generation, **settings)
