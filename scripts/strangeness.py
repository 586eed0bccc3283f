"""How well a policy's energy tells states outside of its data from ordinary ones.

Ordinary states are those of demonstrations that no policy learned from. Strange ones are made of
them, the same for every policy; the observations of a window are changed alike. The unit of each
component is its standard deviation in what was learned from, 0 for one that is constant there:

    moved     by 2 in a direction drawn for each
    nudged    by 0.5 in one
    shuffled  each component is that of another ordinary state, so that only together they are new

Scores are what `offrl.energy_planners.Plan` says of the plan made there: the energy, less its fall,
and the slope that is left; beside them the distance to the nearest window that was learned from,
which needs the data and no energy.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from offrl.datasets.offline import OfflineDataset
from offrl.datasets.windows import windows
from offrl.energy_detection import Curve, receiver_curve
from offrl.policy import Policy
from offrl.types import Context

F32 = NDArray[np.float32]
KINDS: Mapping[str, float] = {"moved": 2.0, "nudged": 0.5, "shuffled": 0.0}
SCORES = ("energy", "less fall", "steep", "distance")
CHUNK = 50  # states at once
POINTS = 100  # of a curve that is kept


def states(policy: Any, data: OfflineDataset, count: int) -> F32:
    """Observations (count, history, obs) in the data's units, evenly from all its windows."""
    execution = policy.execution
    view = windows(data, history=execution.history, horizon=execution.horizon)
    chosen = np.linspace(0, len(view.index) - 1, min(count, len(view.index))).astype(np.int64)
    obs: F32 = view.sample(view.index[torch.from_numpy(chosen)]).obs.numpy()
    return obs


def units(learned: F32) -> F32:
    """Standard deviations (obs,) of observations (n, history, obs); 0 of a constant component."""
    varies = np.ptp(learned, (0, 1)) > 0
    found: F32 = np.where(varies, learned.std((0, 1), dtype=np.float64), 0).astype(np.float32)
    return found


def strange(kind: str, ordinary: F32, unit: F32, generator: np.random.Generator) -> F32:
    """As many strange states of this kind."""
    if kind == "shuffled":
        made = ordinary.copy()
        for k in range(made.shape[-1]):
            made[..., k] = ordinary[generator.permutation(len(ordinary)), :, k]
        return made
    direction = generator.standard_normal((len(ordinary), 1, ordinary.shape[-1]))
    direction /= np.linalg.norm(direction, axis=-1, keepdims=True)
    moved: F32 = (ordinary + KINDS[kind] * unit * direction).astype(np.float32)
    return moved


@torch.no_grad()
def judged(policy: Any, obs: F32, generator: np.random.Generator) -> dict[str, NDArray[Any]]:
    """What the energy says of plans made at these states, and how many slopes they took."""
    planner, execution = policy.actor, policy.execution
    obs = ((obs - policy.obs_mean) / policy.obs_std).astype(np.float32)
    like, found = next(planner.parameters()), []
    for part in np.array_split(obs, max(len(obs) // CHUNK, 1)):
        n, past = len(part), execution.history - 1
        normal = {
            k: torch.from_numpy(generator.standard_normal((n, *s), np.float32)).to(like)
            for k, s in planner.noise().items()
        }
        one = torch.ones(n, execution.history).to(like)
        context = Context(
            obs=torch.from_numpy(part).to(like),
            obs_real=one,
            past_action=torch.zeros(n, past, policy.act_dim).to(like),
            past_real=one[:, 1:],
            goal=torch.zeros(n, 0, policy.obs_dim).to(like),
            goal_real=0 * one[:, 0],
        )
        plan = planner.inspect(context, normal)
        counts = torch.as_tensor(plan.evaluations).expand(n)
        found.append((plan.energy, -plan.fall, plan.steep, counts))
    columns = (torch.cat(parts).cpu().numpy() for parts in zip(*found, strict=True))
    return dict(zip((*SCORES[:3], "evaluations"), columns, strict=True))


def nearest(obs: F32, learned: F32) -> NDArray[Any]:
    """Distance of each window to the nearest that was learned from."""
    here, there = (torch.from_numpy(x.reshape(len(x), -1)) for x in (obs, learned))
    found: NDArray[Any] = torch.cdist(here, there).amin(1).numpy()
    return found


def detection(
    policy: Policy, learned: OfflineDataset, unseen: OfflineDataset, count: int
) -> dict[str, Any]:
    """Areas by kind and score, and the energy's curves, for one policy."""
    # Of two streams, so that how much noise a policy takes does not change the strange states.
    made, noise = np.random.default_rng(0), np.random.default_rng(1)
    ordinary, known = states(policy, unseen, count), states(policy, learned, 4 * count)
    unit = units(known)
    scale = np.where(unit > 0, unit, 1).astype(np.float32)  # of distances
    said = judged(policy, ordinary, noise)
    base = {**said, "distance": nearest(ordinary / scale, known / scale)}
    areas: dict[str, dict[str, float]] = {}
    curves: dict[str, dict[str, list[float]]] = {}
    for kind in KINDS:
        obs = strange(kind, ordinary, unit, made)
        far = nearest(obs / scale, known / scale)
        other = {**judged(policy, obs, noise), "distance": far}
        found: dict[str, Curve] = {s: receiver_curve(base[s], other[s]) for s in SCORES}
        areas[kind] = {name: curve.area for name, curve in found.items()}
        energy = found["energy"]
        kept = np.linspace(0, len(energy.hits) - 1, POINTS).astype(np.int64)
        curves[kind] = {
            "false_alarms": energy.false_alarms[kept].round(4).tolist(),
            "hits": energy.hits[kept].round(4).tolist(),
        }
    return {"areas": areas, "curves": curves, "evaluations": float(said["evaluations"].mean())}
