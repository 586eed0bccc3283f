"""Consistency training: cases of parity, and faults."""

from typing import Any

import flat.consistency_bc
from fault import faults
from methods.diffusion_policy import OPTIMISED, REACH, TRAINING, chunk_view
from parity_case import TOTAL, Batches, Case, Layers, Trained

from offrl.datasets.offline import OfflineDataset
from offrl.datasets.replay import Replay

# Of a grid that is doubled within the updates that faults are tried with.
GRID: dict[str, Any] = {
    **{"sigma_data": 0.6, "sigma_min": 0.05, "sigma_max": 3.0},
    **{"first_levels": 2, "last_levels": 256, "huber": 0.03},
}


def flat_consistency_bc(
    case: Case,
    nets: dict[str, Layers],
    batches: Batches,
    dataset: OfflineDataset,
    view: Replay,
) -> Trained:
    return flat.consistency_bc.train(
        nets, batches, TOTAL, **case.settings(*OPTIMISED, *GRID, "mask_padding")
    )


def _case(changes: dict[str, Any], **settings: Any) -> Case:
    noise = {"level": (16,), "noise": (16, 4, 2)}
    return Case(
        "consistency_bc",
        {**TRAINING, **GRID, **changes},
        REACH,
        flat_consistency_bc,
        noise,
        view=chunk_view,
        **settings,
    )


CASES = {
    "consistency_bc": _case({}),
    "consistency_bc-masked": _case({"mask_padding": True}),
    "consistency_bc-stacked": _case({}, beside=(5,)),
}

OTHER = {
    ("consistency_bc", "sigma_data"): (0.3, {}),
    ("consistency_bc", "first_levels"): (4, {}),
    # So long a way that the grid is doubled within a dozen of a hundred updates.
    ("consistency_bc", "last_levels"): (40_960, {"first_levels": 2}),
}

_ALL = "consistency_bc consistency_bc-masked consistency_bc-stacked"
_CLASS = "agents.consistency_bc.ConsistencyBC"
FAULTS = [
    *faults(
        f"{_CLASS}.update",
        _ALL,
        ("metrics = self.minimize(self.net_opt, self.loss, batch, noise)", "metrics = {}"),
        ("self.average.update(self.net)", "pass"),
        (
            "metrics = self.minimize(self.net_opt, self.loss, batch, noise)\n"
            "        self.average.update(self.net)",
            "self.average.update(self.net)\n"
            "        metrics = self.minimize(self.net_opt, self.loss, batch, noise)",
        ),
        ("return metrics", "return {}"),
    ),
    *faults(
        f"{_CLASS}.loss",
        _ALL,
        ("self._inconsistency(self.net,", "-self._inconsistency(self.net,"),
        ("self.net,", "self.average.net,"),
        ("noise, self.levels", "noise, 11.0"),
    ),
    *faults(
        f"{_CLASS}._inconsistency",
        _ALL,
        ('self.process.pair(noise["level"]', 'self.process.pair(-noise["level"]'),
        (
            'self.process.pair(noise["level"], levels)',
            'self.process.pair(noise["level"], levels - 1)',
        ),
        ("net, batch.obs)", "net, -batch.obs)"),
        ("for at in (high, low)", "for at in (high, high)"),
        ('noise["noise"], at', '-noise["noise"], at'),
        ("low).x0.detach()", "low).x0"),
        ("answer(cleaner, low)", "answer(cleaner, high)"),
        ("self.config.huber * (", "self.config.huber + 0.0 * ("),
        ("pair_weight(high, low) * ", ""),
        (".mean(-1)", ".sum(-1)"),
    ),
    *faults(f"{_CLASS}._inconsistency", "consistency_bc-stacked", (".mean(-1)", ".mean()")),
    *faults(
        f"{_CLASS}._inconsistency",
        "consistency_bc-masked",
        ("error = valid[..., None] * error", "pass"),
        ("is not None", "is None"),
    ),
    *faults(
        f"{_CLASS}.schedule",
        _ALL,
        ("self.average, step", "self.average, 0"),
        ("grid_size(step", "grid_size(0"),
        ("cfg.first_levels, cfg.last_levels", "cfg.first_levels"),
    ),
    *faults(f"{_CLASS}.__init__", _ALL, ("level_scale=TIMES", "level_scale=1.0")),
    *faults("losses.pseudo_huber", _ALL, (".square()", ".abs()"), (".sum(-1)", ".mean(-1)")),
]
