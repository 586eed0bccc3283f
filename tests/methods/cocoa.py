"""COCOA on IQL and CQL: cases of parity, and faults."""

from dataclasses import replace
from typing import Any

import flat.cocoa
import flat.cql
import numpy as np
import pytest
import torch
from fault import faults
from methods import cql, iql
from parity_case import Batches, Case, Layers, Trained
from torch import Tensor

from offrl.anchors import Anchors
from offrl.datasets.offline import OfflineDataset
from offrl.datasets.replay import Replay
from offrl.dynamics import DynamicsConfig
from offrl.files import cache_folder

EPOCHS = 2
COCOA = {"cocoa": True, "cocoa_rank": 3, "cocoa_hidden": (5, 4), "cocoa_epochs": EPOCHS}
IQL = {**iql.EXTRACTION, "actor_schedule": "constant", **COCOA}
SETTINGS = (*iql.EXTRACTION, "cocoa_rank", "cocoa_hidden", "cocoa_horizon")


def learned_anchors(view: Replay) -> dict[str, Layers]:
    """What the agent learns of this view, as lists of weights."""
    batch = view.batch(view.index)
    learned = Anchors(batch.obs.shape[-1], batch.action.shape[-1], 1, DynamicsConfig(epochs=EPOCHS))
    learned.to(torch.float64).fit(batch, cache_folder() / "cocoa")
    model: Any = learned.dynamics
    return {
        "seeker": list(learned.seeker.state_dict().values()),
        "model": [x for layer in model.layers for x in (layer.weight, layer.bias)],
        "scale": [model.mean, model.std],
    }


def flat_iql_cocoa(
    case: Case,
    nets: dict[str, Layers],
    batches: Batches,
    dataset: OfflineDataset,
    view: Replay,
) -> Trained:
    episodes = [dataset.episode(e) for e in range(dataset.num_episodes)]
    returns = [float(e["reward"].astype(np.float64).sum()) for e in episodes]
    anchors = learned_anchors(view)
    return flat.cocoa.train(nets, batches, returns, anchors, **case.settings(*SETTINGS))


def flat_cql_cocoa(
    case: Case,
    nets: dict[str, Layers],
    batches: Batches,
    dataset: OfflineDataset,
    view: Replay,
) -> Trained:
    """CQL's transcription on pairs, with COCOA's networks in place of its own."""
    anchors, config, size = learned_anchors(view), case.config, dataset.obs_dim
    for batch in batches:
        for name in ("obs", "next_obs"):
            obs = batch[name]
            anchor = flat.cocoa.anchor_of(obs, **anchors, horizon=config.cocoa_horizon)
            batch[name] = torch.cat([obs - anchor, anchor], 1)

    def network(x: Tensor, layers: Layers) -> Tensor:
        action = x[:, 2 * size :]
        parts = (torch.cat([x[:, a : a + size], action], 1) for a in (0, size))
        inner, rank = len(config.cocoa_hidden), config.cocoa_rank
        return flat.cocoa.network(*parts, layers, inner, rank)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flat.cql, "mlp", network)
        return cql.flat_cql(case, nets, batches, dataset, view)


CASES = {
    "iql-cocoa": Case("iql", IQL, iql.REACH, flat_iql_cocoa, seed=73),
    "iql-cocoa-stacked": Case(
        "iql", {**IQL, "cocoa_horizon": 2}, iql.REACH, flat_iql_cocoa, seed=73, beside=(5,)
    ),
    "cql-cocoa": replace(
        cql.CASES["cql"],
        changes={**cql.CASES["cql"].changes, **COCOA},
        flat=flat_cql_cocoa,
        expected=[],
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
        "agents.cql.CQL.update",
        "cql-cocoa",
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
        ("return h", "return -h"),
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
        "cocoa.policy_trunk",
        EVERY,
        ("if not config.cocoa:", "if config.cocoa:"),
    ),
    *faults(
        "cocoa.value_trunk",
        EVERY,
        ("obs_dim, act_dim, inner, rank, hidden", "obs_dim, act_dim, hidden, rank, inner"),
    ),
]

COVERED = [
    *("anchors.Anchors.forward", "anchors.AnchorTable.pair"),
    *("cocoa.CompositionalTrunk.forward", "cocoa.AnchoredTrunk.forward", "cocoa.Bilinear.forward"),
]

OTHER: dict[tuple[str, str], tuple[Any, dict[str, Any]]] = {
    (agent, field): (value, {**settings, "cocoa_epochs": 1})
    for agent in ("iql", "cql")
    for field, value, settings in (
        ("cocoa", True, {}),
        ("cocoa_rank", 2, {"cocoa": True}),
        ("cocoa_hidden", (16, 8), {"cocoa": True}),
        ("cocoa_horizon", 2, {"cocoa": True}),
    )
}
OTHER |= {(agent, "cocoa_epochs"): (2, {"cocoa": True}) for agent in ("iql", "cql")}
