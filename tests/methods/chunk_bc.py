"""Behaviour cloning of chunks: cases of parity, and faults."""

from typing import Any

import flat.chunk_bc
from fault import faults
from methods.diffusion_policy import OPTIMISED, REACH, TRAINING, chunk_view
from parity_case import TOTAL, Batches, Case, Layers, Trained

from offrl.datasets.offline import OfflineDataset
from offrl.datasets.replay import Replay


def flat_chunk_bc(
    case: Case,
    nets: dict[str, Layers],
    batches: Batches,
    dataset: OfflineDataset,
    view: Replay,
) -> Trained:
    return flat.chunk_bc.train(nets, batches, TOTAL, **case.settings(*OPTIMISED, "mask_padding"))


def _case(changes: dict[str, Any], **settings: Any) -> Case:
    changes = {**TRAINING, **changes}
    return Case("chunk_bc", changes, REACH, flat_chunk_bc, view=chunk_view, **settings)


CASES = {
    "chunk_bc": _case({}),
    "chunk_bc-masked": _case({"mask_padding": True}),
    "chunk_bc-stacked": _case({}, beside=(5,)),
}

_ALL = "chunk_bc chunk_bc-masked chunk_bc-stacked"
_CLASS = "agents.chunk_bc.ChunkBC"
FAULTS = [
    *faults(
        f"{_CLASS}.update",
        _ALL,
        ("metrics = self.minimize(self.net_opt, self.loss, batch)", "metrics = {}"),
        ("self.average.update(self.net)", "pass"),
        ("return metrics", "return {}"),
    ),
    *faults(
        f"{_CLASS}.loss",
        _ALL,
        ("self._error(self.net,", "-self._error(self.net,"),
        ("self.net,", "self.average.net,"),
    ),
    *faults(
        f"{_CLASS}._error",
        _ALL,
        ("batch.obs, (", "-batch.obs, ("),
        ("(answer - batch.action)", "(answer + batch.action)"),
        (".square()", ".abs()"),
        (".mean(-1)", ".sum(-1)"),
    ),
    *faults(f"{_CLASS}._error", "chunk_bc-stacked", (".mean(-1)", ".mean()")),
    *faults(f"{_CLASS}._error", "chunk_bc-masked", ("valid_steps(self, batch)", "None")),
    *faults(
        f"{_CLASS}.schedule",
        _ALL,
        ("step, steps)", "0, steps)"),
        ("schedule_chunks(", "(lambda *_: None)("),
    ),
    *faults(
        "planners.regressed",
        _ALL,
        ("obs.new_zeros(*lead, *shape)", "obs.new_ones(*lead, *shape)"),
        ("obs.new_zeros(lead)", "obs.new_ones(lead)"),
    ),
    *faults(
        "denoising.event_mean",
        "chunk_bc-masked",
        ("kept * values", "values"),
        ("/ kept.sum(axes)", "/ kept.sum()"),
    ),
    *faults("denoising.event_mean", "chunk_bc", ("values.mean(axes)", "values.sum(axes)")),
]
