"""What a saved policy does at every logged observation: a teacher, asked once for all.

    mean   the action that it answers with, deterministic, mapped to [-1, 1]
    std    the root of E[ (a - mean)^2 ] over its own actions, for each component; for a policy
           that states no density a width that is given; never below e^-5

A Gaussian policy's std is its own. That of a squashed Gaussian, a = tanh(u), is an integral over
u by Gauss and Hermite's rule. All others count as deterministic: of a generator of actions it is
not known how likely an action is.

Logged observations are all that there is to learn from, so that asking the teacher once for each
costs what a few updates do, whatever it is, and an update has no network of the teacher's to run,
to stack or to save. Its files are part of what a run began with: `print_of` stands for them.
"""

import hashlib
import math
import os
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from offrl.actors import LOG_STD_MIN, GaussianActor, SquashedGaussianActor
from offrl.datasets.offline import OfflineDataset, Spec
from offrl.datasets.replay import Replay, transitions
from offrl.errors import ConfigError, DataError, RunError
from offrl.policy import PlanPolicy, Policy, load_policy
from offrl.policy_format import HEADER, WEIGHTS, find
from offrl.types import TaughtBatch

F32 = NDArray[np.float32]
CHUNK = 4_096  # observations asked about at once
NODES = 64  # of the rule of integration
LEAST_STD = math.exp(LOG_STD_MIN)  # that a learner's own Gaussian can have


@dataclass(frozen=True, kw_only=True)
class Taught(Replay):
    """A view of transitions in which the teacher's answers are columns beside the rows."""

    teacher_mean: Float[Tensor, "rows act"]  # 0 at rows where no transition begins
    teacher_std: Float[Tensor, "rows act"]  # 1 there
    teacher_print: str  # of the teacher's files

    def to(self, where: torch.device | str | torch.dtype) -> "Taught":
        moved = super().to(where)
        assert isinstance(moved, Taught)
        columns = {n: getattr(self, n).to(where) for n in ("teacher_mean", "teacher_std")}
        return replace(moved, **columns)

    def batch(self, row: Int[Tensor, "*lead batch"]) -> TaughtBatch:
        """The transitions that begin at these rows, and the teacher's answers there."""
        return TaughtBatch(
            **vars(super().batch(row)),
            teacher_mean=self.teacher_mean[row],
            teacher_std=self.teacher_std[row],
        )


def taught(
    dataset: OfflineDataset,
    teacher: str | os.PathLike[str],
    *,
    width: float,
    normalize_obs: bool = False,
) -> Taught:
    """The transitions of a dataset with the answers of the policy in the folder `teacher`.

    `normalize_obs` standardises observations by the dataset's moments; the teacher is given them
    as it was trained to see them. Raises RunError where there is no policy, ConfigError or
    DataError where it cannot teach these data: see `teacher_of`.
    """
    view = transitions(dataset, normalize_obs=normalize_obs)
    policy, rows = teacher_of(teacher, dataset), view.index.numpy()
    mean = np.zeros((len(dataset.rows), policy.act_dim), np.float32)
    std = np.ones_like(mean)
    for begin in range(0, len(rows), CHUNK):
        chunk = rows[begin : begin + CHUNK]
        obs = dataset.rows[chunk, : dataset.obs_dim]
        mean[chunk], std[chunk] = answers(policy, obs, width)
    return Taught(
        **{f.name: getattr(view, f.name) for f in fields(view)},
        teacher_mean=torch.from_numpy(mean),
        teacher_std=torch.from_numpy(std),
        teacher_print=print_of(teacher),
    )


def teacher_of(path: str | os.PathLike[str], dataset: OfflineDataset) -> Policy:
    """The policy in `path`, its own folder or a run's, which acts on observations of the dataset.

    Raises RunError where there is none, ConfigError for one that needs more than the observation,
    and DataError where its observations or actions are not those of the dataset.
    """
    try:
        policy = load_policy(path)
    except RunError as error:
        raise RunError(f"the teacher {error}") from None
    alone = type(policy) is Policy
    if isinstance(policy, PlanPolicy):
        alone = policy.execution.horizon == 1 and policy.execution.goal == 0
    if not alone:
        raise ConfigError(
            f"the teacher {os.fspath(path)} is a {type(policy).__name__}, whose action depends on "
            "more than the observation (earlier steps, a plan under way, a goal or a return); "
            "take a policy that answers each observation by itself"
        )
    theirs = _facts(policy.spec)
    for what, mine in _facts(dataset.spec).items():
        its = theirs[what]
        numeric = what.startswith("bounds") and np.shape(mine) == np.shape(its)
        if not (np.allclose(mine, its) if numeric else mine == its):
            raise DataError(
                f"the teacher {os.fspath(path)} has {what} {its}, but {dataset.name} has {mine}; "
                "they must be of one task"
            )
    return policy


def _facts(spec: Spec) -> dict[str, Any]:
    return {
        "obs_dim": len(spec.obs_low),
        "obs_keys": None if spec.obs_keys is None else dict(spec.obs_keys),
        "action_kind": spec.action_kind,
        "bounds of actions": (spec.action_low, spec.action_high),
    }


def answers(policy: Policy, obs: F32, width: float) -> tuple[F32, F32]:
    """Mean and deviation (n, act) of the policy's actions at raw observations (n, obs)."""
    low, high = (np.array(x, np.float32) for x in (policy.spec.action_low, policy.spec.action_high))
    middle, half = (high + low) / 2, (high - low) / 2
    action = policy.predict(obs) - middle
    mean = np.divide(action, half, out=np.zeros_like(action), where=half > 0)
    return mean, np.maximum(_deviation(policy, obs, width), np.float32(LEAST_STD))


@torch.no_grad()
def _deviation(policy: Policy, obs: F32, width: float) -> F32:
    """In [-1, 1] as the network acts."""
    actor, shape = policy.actor, (len(obs), policy.act_dim)
    if isinstance(actor, GaussianActor):
        own = actor.spread().to("cpu", torch.float32).numpy()
        return np.broadcast_to(own, shape)
    if isinstance(actor, SquashedGaussianActor):
        x = torch.from_numpy((obs - policy.obs_mean) / policy.obs_std)
        mean, log_std = (t.double() for t in actor(x.to(next(actor.parameters()))))
        nodes, weights = (
            torch.from_numpy(a).to(mean) for a in np.polynomial.hermite_e.hermegauss(NODES)
        )
        away = torch.tanh(mean[..., None] + log_std.exp()[..., None] * nodes)
        square = (away - torch.tanh(mean)[..., None]).square() @ (weights / weights.sum())
        root: F32 = square.sqrt().to("cpu", torch.float32).numpy()
        return root
    return np.full(shape, width, np.float32)


def print_of(teacher: str | os.PathLike[str]) -> str:
    """A fingerprint of the policy's files. Raises RunError where there are none."""
    folder, digest = find(teacher), hashlib.sha256()
    for name in (HEADER, WEIGHTS):
        digest.update((folder / name).read_bytes())
    return digest.hexdigest()[:16]
