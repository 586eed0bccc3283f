"""Small policies, saved in a folder that goes when the tests end, that tests learn from."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from offrl.actors import ACTORS
from offrl.datasets.offline import Spec
from offrl.networks import Learners
from offrl.policy import Policy

ROOT = tempfile.TemporaryDirectory(prefix="offrl-teachers-")
HIDDEN = (8, 8)


def teacher(kind: str, spec: Spec, name: str = "", seed: int = 40, stretch: float = 2.0) -> str:
    """The folder of a policy of this kind that answers differently at every observation."""
    path = Path(ROOT.name) / (name or kind)
    if path.exists():
        return str(path)
    rng = np.random.default_rng(seed)
    obs_dim, act_dim = len(spec.obs_low), len(spec.action_low)
    actor: Any = ACTORS[kind](obs_dim, act_dim, HIDDEN, Learners((seed,)))
    with torch.no_grad():
        for parameter in actor.net.parameters():
            parameter *= stretch
        if kind == "GaussianActor":
            actor.spread.log_std[:] = torch.linspace(-1.5, -0.5, act_dim)
    moments = rng.normal(0.5, 1.0, obs_dim), rng.uniform(1.0, 2.0, obs_dim)
    Policy(actor, spec, *moments, provenance={"agent": kind}).save(path)
    return str(path)
