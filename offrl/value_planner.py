"""Planners of single actions with values behind them: the best of some, or a student's own.

Both are held by a `PlanPolicy` of one step (`offrl.planners`), so that an action is drawn with the
numbers of its episode and step.
"""

from collections.abc import Mapping
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from offrl.backbones import Backbone, backbone_from_spec
from offrl.checks import check_intervals
from offrl.critics import Critic
from offrl.generation import Generation, by_candidate
from offrl.guidance import best_of, repeated
from offrl.networks import Learners
from offrl.types import Context, Noise


class ValuePlanner(nn.Module):
    """One of `candidates` generated actions, by the least of the critics' values.

        i = argmax_i min_k Q_k(s, a_i)                          temperature 0 (IDQL)
        i with probability ~ exp(min_k Q_k(s, a_i) / T)         else (Diffusion-QL, T = 1)

    Sources: arXiv:2304.10573, arXiv:2208.06193. Raises ConfigError for settings that cannot be.
    """

    def __init__(
        self,
        net: Backbone,
        critic: Critic,
        generation: Generation,
        obs_dim: int,
        act_dim: int,
        candidates: int,
        temperature: float = 0.0,
    ) -> None:
        super().__init__()
        self.net, self.critic, self.generation = net, critic, generation
        self.obs_dim, self.act_dim = obs_dim, act_dim
        self.candidates, self.temperature = candidates, temperature
        check_intervals(self, candidates="[1, inf)", temperature="[0, inf)")

    def plan(self, context: Context, noise: Noise) -> Float[Tensor, "n 1 act"]:
        n, obs = self.candidates, context.obs[:, -1]
        drawn = by_candidate({k: v for k, v in noise.items() if k != "choice"})
        sample = self.generation.run(self.generation.denoiser(self.net, obs), drawn)
        sample = sample._replace(x=sample.x.clamp(-1.0, 1.0))
        score = self.critic(repeated(obs, n, event=1), sample.x.squeeze(-2)).amin(0)
        choice = noise["choice"].flatten() if "choice" in noise else None
        return best_of(sample, score, n, self.temperature, choice).x

    def noise(self) -> dict[str, tuple[int, ...]]:
        shapes = self.generation.noise((self.candidates, 1, self.act_dim))
        return shapes | ({"choice": (self.candidates,)} if self.temperature > 0 else {})

    def spec(self) -> dict[str, Any]:
        return {
            **{"type": type(self).__name__, "obs_dim": self.obs_dim, "act_dim": self.act_dim},
            **{"candidates": self.candidates, "temperature": self.temperature},
            **{"net": self.net.spec(), "critic": self.critic.spec()},
            "generation": self.generation.spec(),
        }

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> "ValuePlanner":
        critic = Critic(learners=Learners(), **spec["critic"])
        net, generation = backbone_from_spec(spec["net"]), Generation.from_spec(spec["generation"])
        sizes = spec["obs_dim"], spec["act_dim"], spec["candidates"], spec["temperature"]
        return cls(net, critic, generation, *sizes)


class StudentPlanner(nn.Module):
    """a = clip(mu(s, z), -1, 1) with z from N(0, I): one pass of the network (FQL)."""

    def __init__(self, net: Backbone, obs_dim: int, act_dim: int) -> None:
        super().__init__()
        self.net, self.obs_dim, self.act_dim = net, obs_dim, act_dim

    def plan(self, context: Context, noise: Noise) -> Float[Tensor, "n 1 act"]:
        action: Tensor = self.net(noise["start"], None, context.obs[:, -1])
        return action.clamp(-1.0, 1.0)

    def noise(self) -> dict[str, tuple[int, ...]]:
        return {"start": (1, self.act_dim)}

    def spec(self) -> dict[str, Any]:
        sizes = {"obs_dim": self.obs_dim, "act_dim": self.act_dim}
        return {"type": type(self).__name__, **sizes, "net": self.net.spec()}

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> "StudentPlanner":
        return cls(backbone_from_spec(spec["net"]), spec["obs_dim"], spec["act_dim"])
