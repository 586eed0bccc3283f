"""Plans that also say what was done before, and are checked by it: PTP's way to act.

    score of a sample = - mean over past steps and components of (said - executed)^2

Of `samples` plans the one that agrees best with the actions executed so far is carried out. Only
steps that have been, and that training asked for (`past_steps`, the newest), are compared; where
there is none all plans are equal and the first is taken. Actions are in [-1, 1], so that the choice
does not depend on their units. An encoder, if there is one, stands between each observation and the
network. Source: PTP (Torne et al., CoRL 2025, arXiv:2505.09561).
"""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from offrl.backbones import Backbone, backbone_from_spec, remembering
from offrl.generation import Generation, by_candidate
from offrl.guidance import best_of
from offrl.networks import MLP, Learners
from offrl.types import Context, Noise


class Encoder(nn.Module):
    """Features of each observation by itself: W2 relu(W1 o + b1) + b2."""

    def __init__(self, obs_dim: int, hidden: int, features: int, learners: Learners) -> None:
        super().__init__()
        self.net = MLP([obs_dim, hidden, features], learners)

    @property
    def features(self) -> int:
        return self.net.sizes[-1]

    def forward(
        self, obs: Float[Tensor, "*seed batch history obs"]
    ) -> Float[Tensor, "*seed batch history features"]:
        flat: Tensor = self.net(obs.flatten(-3, -2))
        return flat.reshape(*obs.shape[:-1], self.features)

    def spec(self) -> list[int]:
        """The sizes of its layers."""
        return list(self.net.sizes)


class Encoded(nn.Module):
    """A network behind an encoder, trained together."""

    def __init__(self, encoder: Encoder, head: Backbone) -> None:
        super().__init__()
        self.encoder, self.head = encoder, head

    def forward(self, x: Tensor, level: Tensor, obs: Tensor) -> Tensor:
        y: Tensor = self.head(x, level, self.encoder(obs))
        return y


class PastPlanner(nn.Module):
    """Plans that begin with the action of the oldest observation remembered.

    `past_steps` is how many of the past actions are compared, the newest; all where it is -1.
    """

    def __init__(
        self,
        net: Backbone,
        generation: Generation,
        encoder: Encoder | None,
        *,
        obs_dim: int,
        act_dim: int,
        horizon: int,
        past_steps: int = -1,
        samples: int = 1,
    ) -> None:
        super().__init__()
        self.net, self.generation, self.encoder = net, generation, encoder
        self.obs_dim, self.shape = obs_dim, (horizon, act_dim)
        self.past_steps, self.samples = past_steps, samples

    def plan(self, context: Context, noise: Noise) -> Float[Tensor, "n horizon act"]:
        obs = context.obs if self.encoder is None else self.encoder(context.obs)
        network, condition = remembering(self.net, obs, self.samples)
        denoise = self.generation.denoiser(network, condition)
        sample = self.generation.run(denoise, by_candidate(noise))
        sample = sample._replace(x=sample.x.clamp(-1.0, 1.0))
        compared = context.past_real * asked(context.past_real.shape[1], self.past_steps, obs)
        score = agreement(sample.x, context.past_action, compared)
        return best_of(sample, score, self.samples).x

    def noise(self) -> dict[str, tuple[int, ...]]:
        return self.generation.noise((self.samples, *self.shape))

    def spec(self) -> dict[str, Any]:
        horizon, act_dim = self.shape
        return {
            "type": type(self).__name__,
            **{"obs_dim": self.obs_dim, "act_dim": act_dim, "horizon": horizon},
            **{"past_steps": self.past_steps, "samples": self.samples},
            **{"net": self.net.spec(), "generation": self.generation.spec()},
            "encoder": self.encoder and self.encoder.spec(),
        }

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> "PastPlanner":
        made = ("type", "net", "generation", "encoder")
        net, generation = backbone_from_spec(spec["net"]), Generation.from_spec(spec["generation"])
        encoder = None
        if spec["encoder"] is not None:
            obs_dim, hidden, features = spec["encoder"]
            encoder = Encoder(obs_dim, hidden, features, Learners())
        settings = {k: v for k, v in spec.items() if k not in made}
        return cls(net, generation, encoder, **settings)


def asked(past: int, steps: int, like: Tensor) -> Float[Tensor, " past"]:
    """1 at the newest `steps` of the past ones, which are all where it is -1; else 0."""
    ago = torch.arange(past, 0, -1, device=like.device)
    newest = past if steps < 0 else steps
    return (ago <= newest).to(like.dtype)


def agreement(
    plans: Float[Tensor, "rows horizon act"],
    executed: Float[Tensor, "n past act"],
    compared: Float[Tensor, "n past"],
) -> Float[Tensor, " rows"]:
    """Minus the mean squared difference at the steps compared; 0 where there are none.

    The plans of one history are rows side by side, as in `offrl.guidance`.
    """
    times = len(plans) // len(executed)
    weight = compared[..., None].expand_as(executed)
    weight, done = (x.repeat_interleave(times, 0) for x in (weight, executed))
    error = (weight * (plans[:, : done.shape[1]] - done).square()).sum((1, 2))
    return -error / weight.sum((1, 2)).clamp(min=1.0)
