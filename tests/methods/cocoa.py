"""COCOA on IQL: cases of parity, and faults."""

from typing import Any

import flat.cocoa
import numpy as np
import torch
from fault import faults
from methods.iql import EXTRACTION, REACH
from parity_case import Batches, Case, Layers, Trained

from offrl.anchors import Anchors
from offrl.datasets.offline import OfflineDataset
from offrl.datasets.replay import Replay
from offrl.dynamics import DynamicsConfig
from offrl.files import cache_folder

EPOCHS = 2
COCOA = {
    **EXTRACTION,
    "actor_schedule": "constant",
    "cocoa": True,
    "cocoa_rank": 3,
    "cocoa_hidden": (5, 4),
    "cocoa_epochs": EPOCHS,
}
SETTINGS = (*EXTRACTION, "cocoa_rank", "cocoa_hidden", "cocoa_horizon")


def flat_cocoa(
    case: Case,
    nets: dict[str, Layers],
    batches: Batches,
    dataset: OfflineDataset,
    view: Replay,
) -> Trained:
    batch = view.batch(view.index)
    learned = Anchors(batch.obs.shape[-1], batch.action.shape[-1], 1, DynamicsConfig(epochs=EPOCHS))
    learned.to(torch.float64).fit(batch, cache_folder() / "cocoa")
    model: Any = learned.dynamics
    anchors = {
        "seeker": list(learned.seeker.state_dict().values()),
        "model": [x for layer in model.layers for x in (layer.weight, layer.bias)],
        "scale": [model.mean, model.std],
    }
    episodes = [dataset.episode(e) for e in range(dataset.num_episodes)]
    returns = [float(e["reward"].astype(np.float64).sum()) for e in episodes]
    return flat.cocoa.train(nets, batches, returns, anchors, **case.settings(*SETTINGS))


CASES = {
    "iql-cocoa": Case("iql", COCOA, REACH, flat_cocoa, seed=73),
    "iql-cocoa-stacked": Case(
        "iql", {**COCOA, "cocoa_horizon": 2}, REACH, flat_cocoa, seed=73, beside=(5,)
    ),
}

EVERY = "iql-cocoa"

FAULTS = [
    *faults(
        "agents.iql.IQL.update",
        EVERY,
        ("self.composition.rows(batch)", "self.composition.rows(self.composition.anew(batch))"),
    ),
    *faults(
        "anchors.Anchors.forward",
        EVERY,
        ("anchor = obs", "anchor = 0.0 * obs"),
        ("torch.tanh(self.seeker(anchor))", "self.seeker(anchor)"),
        ("return anchor", "return obs"),
    ),
    *faults(
        "anchors.Anchors.forward",
        "iql-cocoa-stacked",
        ("range(self.horizon)", "range(1)"),
        ("self.dynamics.expected(anchor,", "self.dynamics.expected(obs,"),
    ),
    *faults(
        "anchors.AnchorTable.pair",
        EVERY,
        ("self.now[batch.index], self.then", "self.then[batch.index], self.then"),
        ("self.then[batch.index]", "self.now[batch.index]"),
        ("[batch.obs - now, now]", "[batch.obs, now]"),
        ("[batch.obs - now, now]", "[now, batch.obs - now]"),
        ("[batch.next_obs - then, then]", "[batch.next_obs - now, now]"),
        ("            batch,\n", "            replace(batch, reward=-batch.reward),\n"),
    ),
    *faults(
        "dynamics.GaussianEnsemble.expected",
        EVERY,
        ("self.predict(start, action)", "self.predict(start, 0 * action)"),
        (".mean(0)", "[0]"),
    ),
    *faults(
        "cocoa.Bilinear.forward",
        EVERY,
        (
            "self.difference(delta), self.anchor(anchor)",
            "self.difference(anchor), self.anchor(delta)",
        ),
        ("self.anchor(anchor)", "self.difference(anchor)"),
        ("(f * g)", "(f + g)"),
        ("(self.features, self.rank)).sum(-1)", "(self.rank, self.features)).sum(-2)"),
        (".sum(-1)", ".mean(-1)"),
    ),
    *faults(
        "cocoa.CompositionalTrunk.forward",
        EVERY,
        ("obs.chunk(2, -1)", "obs.chunk(2, -1)[::-1]"),
        ("[part, action]", "[part, 0 * action]"),
        ("if action is not None:", "if action is None:"),
        ("self.net(self.bilinear(*parts))", "self.net(-self.bilinear(*parts))"),
        ("return features", "return 2.0 * features"),
    ),
    *faults(
        "cocoa.AnchoredTrunk.forward",
        EVERY,
        (".chunk(2, -1)", ".chunk(2, -1)[::-1]"),
        ("return h", "return -h"),
    ),
    *faults(
        "cocoa.trunks",
        EVERY,
        ("if not config.cocoa:", "if config.cocoa:"),
        (
            "CompositionalTrunk(obs_dim, act_dim, inner, rank, hidden, learners, (2,))",
            "CompositionalTrunk(obs_dim, act_dim, hidden, rank, inner, learners, (2,))",
        ),
    ),
]

COVERED = [
    *("anchors.Anchors.forward", "anchors.AnchorTable.pair"),
    *("cocoa.CompositionalTrunk.forward", "cocoa.AnchoredTrunk.forward", "cocoa.Bilinear.forward"),
]

OTHER: dict[tuple[str, str], tuple[Any, dict[str, Any]]] = {
    ("iql", "cocoa"): (True, {"cocoa_epochs": 1}),
    ("iql", "cocoa_rank"): (2, {"cocoa": True, "cocoa_epochs": 1}),
    ("iql", "cocoa_hidden"): ((16, 8), {"cocoa": True, "cocoa_epochs": 1}),
    ("iql", "cocoa_horizon"): (2, {"cocoa": True, "cocoa_epochs": 1}),
    ("iql", "cocoa_epochs"): (2, {"cocoa": True}),
}
