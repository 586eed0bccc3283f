"""Rectified flow: cases of parity, and faults."""

from typing import Any

import flat.flow_bc
from fault import faults
from methods.diffusion_policy import OPTIMISED, REACH, TRAINING, chunk_view
from parity_case import TOTAL, Batches, Case, Layers, Trained

from offrl.datasets.offline import OfflineDataset
from offrl.datasets.replay import Replay


def flat_flow_bc(
    case: Case,
    nets: dict[str, Layers],
    batches: Batches,
    dataset: OfflineDataset,
    view: Replay,
) -> Trained:
    return flat.flow_bc.train(nets, batches, TOTAL, **case.settings(*OPTIMISED, "mask_padding"))


def _case(changes: dict[str, Any], **settings: Any) -> Case:
    changes, noise = {**TRAINING, **changes}, {"level": (16,), "noise": (16, 4, 2)}
    return Case("flow_bc", changes, REACH, flat_flow_bc, noise, view=chunk_view, **settings)


CASES = {
    "flow_bc": _case({}),
    "flow_bc-masked": _case({"mask_padding": True}),
    "flow_bc-stacked": _case({}, beside=(5,)),
}

OTHER = {
    ("flow_bc", "sampler"): ("midpoint", {}),
}

_ALL = "flow_bc flow_bc-masked flow_bc-stacked"
_CLASS = "agents.flow_bc.FlowBC"
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
        ("return matching_loss", "return -matching_loss"),
        ("self.net,", "self.average.net,"),
    ),
    *faults(
        f"{_CLASS}.schedule",
        _ALL,
        ("step, steps)", "0, steps)"),
        ("schedule_chunks(", "(lambda *_: None)("),
    ),
    *faults(f"{_CLASS}.__init__", _ALL, ("level_scale=TIMES", "level_scale=1.0")),
    *faults("processes.Flow.target", _ALL, ("x0 - noise", "noise - x0")),
    *faults("processes.Flow.draw", _ALL, ("ndtr(-noise)", "ndtr(noise)")),
]
