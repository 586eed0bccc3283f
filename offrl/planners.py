"""Networks that plan chunks of actions for a `PlanPolicy`, and how a saved one is made again."""

from collections.abc import Callable, Mapping
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from offrl.backbones import Backbone, backbone_from_spec, remembering
from offrl.denoising import Network
from offrl.energy_planners import DescentPlanner, SearchPlanner
from offrl.errors import ConfigError, near
from offrl.generation import Generation, by_step
from offrl.goal_planner import GoalPlanner
from offrl.past_planner import PastPlanner
from offrl.styles import ChunkDecoder
from offrl.types import Context, Noise
from offrl.value_planner import StudentPlanner, ValuePlanner


class ChunkPlanner(nn.Module):
    """Actions generated under the last observations as they are.

    Without a generation they are what one pass of the network says (`regressed`), of no noise.
    """

    def __init__(
        self, net: Backbone, generation: Generation | None, obs_dim: int, act_dim: int, horizon: int
    ) -> None:
        super().__init__()
        self.net, self.generation = net, generation
        self.obs_dim, self.shape = obs_dim, (horizon, act_dim)

    def plan(self, context: Context, noise: Noise) -> Float[Tensor, "n horizon act"]:
        if self.generation is None:
            return regressed(self.net, context.obs, self.shape).clamp(-1.0, 1.0)
        network, condition = remembering(self.net, context.obs)
        denoise = self.generation.denoiser(network, condition)
        return self.generation.run(denoise, by_step(noise)).x.clamp(-1.0, 1.0)

    def noise(self) -> dict[str, tuple[int, ...]]:
        return {} if self.generation is None else self.generation.noise(self.shape)

    def spec(self) -> dict[str, Any]:
        horizon, act_dim = self.shape
        return {
            "type": type(self).__name__,
            **{"obs_dim": self.obs_dim, "act_dim": act_dim, "horizon": horizon},
            "net": self.net.spec(),
            "generation": self.generation and self.generation.spec(),
        }

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> "ChunkPlanner":
        net, made = backbone_from_spec(spec["net"]), spec["generation"]
        generation = None if made is None else Generation.from_spec(made)
        return cls(net, generation, spec["obs_dim"], spec["act_dim"], spec["horizon"])


def regressed(
    net: Network, obs: Float[Tensor, "*seed batch history obs"], shape: tuple[int, int]
) -> Float[Tensor, "*seed batch horizon act"]:
    """What the network says of observations alone: its noisy actions and its level are zero."""
    lead = obs.shape[:-2]
    return net(obs.new_zeros(*lead, *shape), obs.new_zeros(lead), obs)


PLANNERS: Mapping[str, Callable[[Mapping[str, Any]], nn.Module]] = {
    "ChunkPlanner": ChunkPlanner.from_spec,
    "GoalPlanner": GoalPlanner.from_spec,
    "PastPlanner": PastPlanner.from_spec,
    "ValuePlanner": ValuePlanner.from_spec,
    "StudentPlanner": StudentPlanner.from_spec,
    "ChunkDecoder": ChunkDecoder.from_spec,
    "DescentPlanner": DescentPlanner.from_spec,
    "SearchPlanner": SearchPlanner.from_spec,
}


def planner_from_spec(spec: Mapping[str, Any]) -> nn.Module:
    """The planner, for one learner, that `spec()` described; its weights are still to be loaded.

    Raises ConfigError for a type that offrl does not have, KeyError or TypeError for a spec that
    lacks an entry or has one too many.
    """
    kind = str(spec.get("type", ""))
    if kind not in PLANNERS:
        raise ConfigError(
            f"the policy's planner is of type {kind!r}, which offrl does not know"
            f"{near(kind, PLANNERS)}; pass its class as load_policy(path, actor=...)"
        )
    return PLANNERS[kind](spec)
