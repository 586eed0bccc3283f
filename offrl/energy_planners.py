"""Planners that make actions by an energy: by descending it, or by searching it.

Both are held by a `PlanPolicy` and saved with it (`offrl.planners`). `plan` is what acts;
`inspect` makes the same plans and says of each how the energy took them (`Plan`).

An energy as a measure of doubt: a high one at the end, a small fall on the way there, or a steep
slope left, tell of a state unlike those of the data. The first is what papers show. But nothing
that an energy learns here changes when all energies of a condition grow by the same number, neither
InfoNCE nor learning by slopes; that energies of different states can be compared is an observation,
not a consequence. Fall and steepness do not depend on that number.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, NamedTuple, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from offrl.checks import as_declared, check_choice, check_intervals
from offrl.denoising import Number
from offrl.energy import Descent, Energy, descend, polynomial, search, settle, slope
from offrl.energy_nets import EnergyNet, MLPEnergy, energy_net_from_spec
from offrl.generation import by_candidate
from offrl.guidance import choose, taken
from offrl.networks import Learners, Stacked
from offrl.types import Context, Noise

LEAST_RATE = 1e-4  # of a learned descent

S = TypeVar("S", "Descending", "Searching")


class Plan(NamedTuple):
    """Plans (n, horizon, act), and what the energy says of each of them, (n,).

    `energy` is that of the plan, `fall` by how much it is lower than where the plan was begun from,
    `steep` the root mean square of the slope that is left. `evaluations` counts forward or forward
    and backward passes for each plan; those of `inspect` itself are not among them.
    """

    x: Tensor
    energy: Tensor
    fall: Tensor
    steep: Tensor
    evaluations: Number


class LearnedRate(Stacked):
    """r = max(3 r0 p, 1e-4), one for each learner; p is learned from 1/3 on.

    Adam moves p by its learning rate and r by 3 r0 times that, as Energy-Based Transformers have
    it. The gradient of p is that of r, as there too: 3 r0 times as long it would be most of the
    norm at which gradients are cut.
    """

    def __init__(self, first: float, learners: Learners) -> None:
        super().__init__(learners)
        self.first = first
        self.share = nn.Parameter(torch.full((*learners.shape, 1, 1, 1), 1.0 / 3.0))

    def forward(self) -> Float[Tensor, "*seed 1 1 1"]:
        given = self.share.detach()
        rate: Tensor = 3.0 * self.first * given + (self.share - given)
        return rate.clamp(min=LEAST_RATE)


class RatedEnergy(nn.Module):
    """An energy, and the rate at which it is descended."""

    def __init__(self, net: EnergyNet, first: float, learners: Learners) -> None:
        super().__init__()
        self.net, self.rate = net, LearnedRate(first, learners)

    def under(self, condition: Tensor) -> Energy:
        return self.net.under(condition)

    def spec(self) -> dict[str, Any]:
        return {"net": self.net.spec(), "first": self.rate.first}

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> "RatedEnergy":
        rest = {k: v for k, v in spec.items() if k != "net"}
        return cls(energy_net_from_spec(spec["net"]), **rest, learners=Learners())


@dataclass(frozen=True)
class Descending:
    """How a plan is made by descent; `offrl.energy.settle` has the rule by which it ends."""

    steps: int = 2  # at most
    flat: float = 0.0  # root mean square of a slope, below which a plan has settled
    still: float = 0.0  # change of the energy in a step, below which it has
    limit: float | None = None  # of what a step changes in each component
    spread: float = 1.0  # of the normal numbers that plans begin at
    restarts: int = 1  # of which the one of least energy is taken

    def __post_init__(self) -> None:
        check_intervals(self, steps="[1, inf)", flat="[0, inf)", still="[0, inf)")
        check_intervals(self, spread="[0, inf)", restarts="[1, inf)")
        if self.limit is not None:
            check_intervals(self, limit="(0, inf)")


class DescentPlanner(nn.Module):
    """Plans that begin at noise and go down the energy."""

    def __init__(
        self,
        net: RatedEnergy,
        descending: Descending,
        obs_dim: int,
        act_dim: int,
        horizon: int,
    ) -> None:
        super().__init__()
        self.net, self.descending = net, descending
        self.obs_dim, self.shape = obs_dim, (horizon, act_dim)

    def plan(self, context: Context, noise: Noise) -> Float[Tensor, "n horizon act"]:
        energy, found = self._descent(context, noise)
        n = self.descending.restarts
        x = found.x if n == 1 else taken(found.x, choose(-energy(found.x), n), n)
        return x.clamp(-1.0, 1.0)

    def inspect(self, context: Context, noise: Noise) -> Plan:
        """The plans of `plan`, and what the energy says of them."""
        (energy, found), n = self._descent(context, noise), self.descending.restarts
        gradient, value = slope(energy, found.x)
        index = choose(-value, n)
        steep = gradient.square().mean((-1, -2)).sqrt()
        counts = torch.as_tensor(found.evaluations).reshape(-1, n).sum(-1)
        x, value, begun, steep = (
            taken(part, index, n) for part in (found.x, value, found.energies[0], steep)
        )
        return Plan(x.clamp(-1.0, 1.0), value, begun - value, steep, counts)

    def _descent(self, context: Context, noise: Noise) -> tuple[Energy, Descent]:
        cfg = self.descending
        energy = self.net.under(context.obs)
        begin = cfg.spread * noise["start"].flatten(0, 1)
        return energy, settle(
            energy, begin, self.net.rate(), cfg.steps, cfg.flat, cfg.still, cfg.limit
        )

    def noise(self) -> dict[str, tuple[int, ...]]:
        return {"start": (self.descending.restarts, *self.shape)}

    def spec(self) -> dict[str, Any]:
        horizon, act_dim = self.shape
        return {
            "type": type(self).__name__,
            **{"obs_dim": self.obs_dim, "act_dim": act_dim, "horizon": horizon},
            **{"net": self.net.spec(), "descending": asdict(self.descending)},
        }

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> "DescentPlanner":
        net, descending = RatedEnergy.from_spec(spec["net"]), made(Descending, spec["descending"])
        return cls(net, descending, spec["obs_dim"], spec["act_dim"], spec["horizon"])


@dataclass(frozen=True)
class Searching:
    """How a plan is made from candidates, which begin uniformly within `bound`.

    With dfo they are resampled in `rounds` rounds (`offrl.energy.search`); with langevin they walk
    `rounds` steps, and the one of least energy is taken:

        a <- a - clip(eta_i (dE/da / 2 + shake z), -limit, limit),  eta from `rate` to `last_rate`
    """

    method: Literal["dfo", "langevin"] = "dfo"
    candidates: int = 16_384  # 512 with langevin
    rounds: int = 3  # 100 with langevin
    bound: float = 1.1
    temperature: float = 1.0  # of dfo's shares exp(-E / temperature)
    spread: float = 0.33  # of what dfo adds in its first round
    shrink: float = 0.5  # of that, from round to round
    rate: float = 0.1  # eta of langevin's first step
    last_rate: float = 1e-5
    shake: float = 1.0  # of the noise in langevin's steps; less is colder
    limit: float = 0.1  # of what one of them changes in each component

    def __post_init__(self) -> None:
        check_choice(self, "method", ("dfo", "langevin"))
        check_intervals(
            self,
            **{"candidates": "[1, inf)", "rounds": "[1, inf)", "bound": "(0, inf)"},
            **{"temperature": "(0, inf)", "spread": "[0, inf)", "shrink": "(0, 1]"},
            **{"rate": "(0, inf)", "last_rate": "[0, inf)", "shake": "[0, inf)"},
            limit="(0, inf)",
        )

    def begin(self, normal: Tensor) -> Tensor:
        """Actions uniform within the bound, from standard normal numbers."""
        x: Tensor = self.bound * (2.0 * torch.special.ndtr(normal) - 1.0)
        return x

    def walk(self, energy: Energy, x: Tensor, normals: Float[Tensor, "steps ..."]) -> Tensor:
        """Where Langevin's steps lead from x; `normals` have as many as are made."""
        etas = polynomial(self.rate, self.last_rate, len(normals))
        shakes = [eta * self.shake * z for eta, z in zip(etas, normals, strict=True)]
        rates = [0.5 * eta for eta in etas]
        return descend(energy, x, rates, shakes, self.limit, self.bound, detach=True).x


class SearchPlanner(nn.Module):
    """Plans that are the best of many candidates; the energy is of the actions from now on."""

    def __init__(
        self,
        net: MLPEnergy,
        searching: Searching,
        obs_dim: int,
        act_dim: int,
        horizon: int,
        history: int,
    ) -> None:
        super().__init__()
        self.net, self.searching = net, searching
        self.obs_dim, self.history = obs_dim, history
        self.shape = (horizon - history + 1, act_dim)

    def plan(self, context: Context, noise: Noise) -> Float[Tensor, "n horizon act"]:
        x, _ = self._found(self.net.under(context.obs), noise)
        return torch.cat([context.past_action, x.clamp(-1.0, 1.0)], 1)

    def inspect(self, context: Context, noise: Noise) -> Plan:
        """The plans of `plan`, and what the energy says of them; `fall` is from the mean."""
        energy = self.net.under(context.obs)
        x, evaluations = self._found(energy, noise)
        begun = energy(self.searching.begin(noise["start"].flatten(0, 1)))
        gradient, value = slope(energy, x)
        fall = begun.reshape(len(value), -1).mean(-1) - value
        steep = gradient.square().mean((-1, -2)).sqrt()
        plans = torch.cat([context.past_action, x.clamp(-1.0, 1.0)], 1)
        return Plan(plans, value, fall, steep, evaluations)

    def _found(self, energy: Energy, noise: Noise) -> tuple[Tensor, Number]:
        cfg, n = self.searching, self.searching.candidates
        rows = by_candidate(noise)
        x = cfg.begin(rows["start"])
        if cfg.method == "langevin":
            x = cfg.walk(energy, x, rows["shakes"])
            return taken(x, choose(-energy(x), n), n), (cfg.rounds + 1) * n
        shakes, draws = (rows[k].unbind(0) if k in rows else () for k in ("shakes", "draws"))
        return search(
            energy, x, n, shakes, draws, cfg.spread, cfg.shrink, cfg.bound, cfg.temperature
        )

    def noise(self) -> dict[str, tuple[int, ...]]:
        cfg = self.searching
        shape = (cfg.candidates, *self.shape)
        if cfg.method == "langevin":
            return {"start": shape, "shakes": (cfg.rounds, *shape)}
        if cfg.rounds == 1:
            return {"start": shape}
        more = cfg.rounds - 1
        return {"start": shape, "shakes": (more, *shape), "draws": (more, cfg.candidates)}

    def spec(self) -> dict[str, Any]:
        ahead, act_dim = self.shape
        return {
            "type": type(self).__name__,
            **{"obs_dim": self.obs_dim, "act_dim": act_dim},
            **{"horizon": ahead + self.history - 1, "history": self.history},
            **{"net": self.net.spec(), "searching": asdict(self.searching)},
        }

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> "SearchPlanner":
        net: Any = energy_net_from_spec(spec["net"])
        sizes = spec["obs_dim"], spec["act_dim"], spec["horizon"], spec["history"]
        return cls(net, made(Searching, spec["searching"]), *sizes)


def made(cls: type[S], raw: Mapping[str, Any]) -> S:
    """Settings from a file. Raises TypeError, ConfigError where they are not what `cls` has."""
    settings = cls(**raw)
    for field in fields(settings):
        as_declared(settings, field, getattr(settings, field.name))
    return settings
