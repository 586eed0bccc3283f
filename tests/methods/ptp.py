"""Past-token prediction: cases of parity, and faults."""

import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import flat.ptp
import torch
from fault import faults
from methods.diffusion_policy import OPTIMISED, REACH, TRAINING, chunk_view
from parity_case import TOTAL, Batches, Case, Layers, Trained
from problems import small_config, walk

from offrl.agents.ptp import PTP
from offrl.datasets.offline import OfflineDataset
from offrl.datasets.replay import Replay
from offrl.networks import Learners

ROOT = tempfile.TemporaryDirectory(prefix="offrl-encoder-")
COMMON: dict[str, Any] = {**TRAINING, "history": 3}
SETTINGS = (*OPTIMISED, "levels", "mask_padding", "past_steps")


def flat_ptp(
    case: Case,
    nets: dict[str, Layers],
    batches: Batches,
    dataset: OfflineDataset,
    view: Replay,
) -> Trained:
    encoded = case.config.embedding > 0
    return flat.ptp.train(nets, batches, TOTAL, encoded=encoded, **case.settings(*SETTINGS))


def _case(changes: dict[str, Any], **settings: Any) -> Case:
    noise = {"level": (16,), "noise": (16, 4, 2)}
    everything = {**COMMON, **changes}
    return Case("ptp", everything, REACH, flat_ptp, noise, view=chunk_view, **settings)


@cache
def encoder_file() -> str:
    """The policy of an agent that has an encoder, as training begins."""
    path = Path(ROOT.name) / "policy"
    data = walk()
    agent = PTP(data.spec, small_config("ptp", embedding=3, history=1), Learners((4,)))
    agent.prepare(agent.view(data))
    agent.to(torch.float32).policy().save(path)
    return str(path)


CASES = {
    "ptp": _case({}),
    "ptp-none": _case({"past_steps": 0, "mask_padding": True, "embedding": 5}),
    "ptp-stacked": _case({"past_steps": 1, "levels": 7}, beside=(5,)),
}

OTHER = {
    ("ptp", "past_steps"): (0, {}),
    ("ptp", "samples"): (3, {}),
    ("ptp", "embedding"): (4, {}),
    ("ptp", "encoder"): (encoder_file(), {}),
}

_ALL = "ptp ptp-none ptp-stacked"
_CLASS = "agents.ptp.PTP"
COVERED = [f"{_CLASS}._error", "past_planner.asked", "past_planner.Encoded.forward"]
FAULTS = [
    *faults(
        f"{_CLASS}.update",
        _ALL,
        ("metrics = self.minimize(self.net_opt, self.loss, batch, noise)", "metrics = {}"),
        ("self.average.update(self.net)", "pass"),
        ("return metrics", "return {}"),
    ),
    *faults(
        f"{_CLASS}.loss",
        _ALL,
        ("self._error(self.net,", "-self._error(self.net,"),
        ("self._error(self.net,", "self._error(self.average.net,"),
    ),
    *faults(
        f"{_CLASS}._error",
        _ALL,
        ("asked(batch.past, ", "asked(batch.past - 1, "),
        ('draw(noise["level"]), batch.obs', 'draw(-noise["level"]), batch.obs'),
        ('noise["noise"], self', '-noise["noise"], self'),
        ("error.mean(-1)", "error.sum(-1)"),
        ("(self.process, net,", "(self.process, self.average.net,"),
    ),
    *faults(
        f"{_CLASS}._error",
        "ptp-none ptp-stacked",
        ("self.config.past_steps", "-1"),
        (
            "[past, past.new_ones(batch.real.shape[-1] - batch.past)]",
            "[past + 1.0, past[:1] + 1.0]",
        ),
        ("torch.cat([past, past.new_ones(", "torch.cat([1.0 - past, past.new_ones("),
    ),
    *faults(
        f"{_CLASS}._error",
        "ptp-none",
        ("counted * batch.real if self.config.mask_padding else counted", "counted"),
    ),
    *faults(
        f"{_CLASS}._error",
        "ptp ptp-stacked",
        ("counted * batch.real if self.config.mask_padding else counted", "counted * batch.real"),
    ),
    *faults(
        f"{_CLASS}.schedule",
        _ALL,
        ("step, steps)", "0, steps)"),
        ("schedule_chunks(", "(lambda *_: None)("),
    ),
    *faults(f"{_CLASS}.__init__", _ALL, ('"cosine"', '"vp"'), ('"epsilon"', '"v"')),
    *faults(
        f"{_CLASS}.__init__",
        "ptp-none",
        ("self.net = Encoded(encoder, head)", "pass"),
        ("token=size or None", "token=None"),
    ),
    *faults(
        "past_planner.asked",
        "ptp-stacked",
        ("range(past, 0, -1,", "range(1, past + 1,"),
        ("ago <= newest", "ago < newest"),
        ("past if steps < 0 else steps", "past"),
    ),
    *faults("past_planner.asked", "ptp", ("past if steps < 0 else steps", "steps")),
    *faults(
        "past_planner.Encoded.forward",
        "ptp-none",
        ("self.encoder(obs)", "-self.encoder(obs)"),
        ("return y", "return -y"),
    ),
]
