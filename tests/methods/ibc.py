"""Implicit BC: cases of parity, and faults."""

from typing import Any

import flat.ibc
from fault import faults
from methods.diffusion_policy import chunk_view
from parity_case import LR, Batches, Case, Layers, Trained, reach

from offrl.datasets.offline import OfflineDataset
from offrl.datasets.replay import Replay

REACH = reach(loss="net")
TRAINING: dict[str, Any] = {
    **{"lr": LR, "lr_decay": 0.01, "negatives": 3, "temperature": 0.02, "normalize": "minmax"},
    **{"penalty": 50.0, "steep": 1.18e-2, "margin": 0.2, "depth": 4},
}
SETTINGS = (
    *("history", "lr", "lr_decay", "negatives", "temperature", "penalty", "steep", "margin"),
    *("method", "rate", "last_rate", "shake", "limit"),
)
WALK = {"method": "langevin", "rounds": 3, "rate": 0.8, "last_rate": 0.1, "limit": 0.3}


def flat_ibc(
    case: Case,
    nets: dict[str, Layers],
    batches: Batches,
    dataset: OfflineDataset,
    view: Replay,
) -> Trained:
    return flat.ibc.train(nets, batches, **case.settings(*SETTINGS))


def _case(changes: dict[str, Any], walked: int = 0, **settings: Any) -> Case:
    # Plans of four actions under two observations: three are of the energy.
    noise = {"others": (48, 3, 2)} | ({"walk": (walked, 48, 3, 2)} if walked else {})
    made = {**TRAINING, **changes}
    return Case("ibc", made, REACH, flat_ibc, noise, view=chunk_view, **settings)


CASES = {
    "ibc": _case({}),
    "ibc-langevin": _case(WALK, 3),
    "ibc-stacked": _case({"penalty": 0.0}, beside=(5,)),
}

LANGEVIN: dict[str, Any] = {"method": "langevin", "rounds": 3}
OTHER = {
    ("ibc", "normalize"): ("minmax", {}),
    ("ibc", "depth"): (4, {}),
    ("ibc", "negatives"): (3, {}),
    ("ibc", "penalty"): (0.5, {"steep": 0.0}),
    ("ibc", "steep"): (0.0, {"penalty": 0.5}),
    ("ibc", "method"): ("langevin", {}),
    ("ibc", "candidates"): (8, {}),
    ("ibc", "rounds"): (2, {}),
    ("ibc", "shrink"): (0.7, {}),
    **{("ibc", name): (0.03, LANGEVIN) for name in ("rate", "last_rate", "shake", "limit")},
}

_ALL = "ibc ibc-langevin ibc-stacked"
_IBC = "agents.ibc.IBC"
FAULTS = [
    *faults(
        f"{_IBC}.update",
        _ALL,
        ("return self.minimize(self.net_opt, self.loss, batch, noise)", "return {}"),
    ),
    *faults(
        f"{_IBC}.loss",
        _ALL,
        ("batch.future_action", "batch.action[..., :3, :]"),
        ("self.net.under(batch.obs)", "self.net.under(-batch.obs)"),
        ("energy(logged), energy(others)", "energy(-logged), energy(others)"),
        ("info_nce(value, values, cfg.temperature)", "info_nce(value, values)"),
        ("info_nce(value, values,", "-info_nce(value, values,"),
        ("return loss.mean(-1)", "return loss.sum(-1)"),
        ("values.mean(-1) - value", "value - values.mean(-1)"),
    ),
    *faults(
        f"{_IBC}.loss",
        "ibc-stacked",
        ("return loss.mean(-1)", "return loss.mean()"),
        (".reshape(*value.shape, cfg.negatives)", ".reshape(*value.shape[:1], 3, -1).mT"),
        ("value).mean(-1)}", "value).mean()}"),
    ),
    *faults(
        f"{_IBC}.loss",
        "ibc ibc-langevin",
        ("if cfg.penalty:", "if False:"),
        ("(slope(energy, others).gradient, cfg.steep)", "(slope(energy, others).gradient)"),
        ("(slope(energy, logged).gradient, cfg.steep)", "(slope(energy, others).gradient)"),
        (".reshape(values.shape).sum(-1)", ".reshape(values.shape).mean(-1)"),
        ("excess = excess + steepness(", "steepness("),
        ("loss + cfg.penalty * excess", "loss - cfg.penalty * excess"),
        ("(cfg.negatives + 1)", "cfg.negatives"),
    ),
    *faults(
        f"{_IBC}._others",
        "ibc ibc-stacked",
        ('self.searching.begin(noise["others"])', 'noise["others"]'),
        ('if self.config.method == "dfo":', "if False:"),
    ),
    *faults(
        f"{_IBC}._others",
        "ibc-langevin",
        ('if self.config.method == "dfo":', "if True:"),
        ("self.searching.walk(energy, x, along)", "self.searching.walk(energy, x, along.flip(0))"),
    ),
    *faults(
        f"{_IBC}.schedule",
        _ALL,
        ("** (step / 100)", "** step"),
        ("self.config.lr * ", "1e-3 * "),
        ("set_lr(", "(lambda *_: None)("),
    ),
    *faults(
        f"{_IBC}.__init__",
        _ALL,
        ("adam(self.net.parameters(), config.lr)", "adam(self.net.layers.parameters(), config.lr)"),
        ("depth=config.depth", "depth=2"),
    ),
    *faults(
        "energy_planners.Searching.walk",
        "ibc-langevin",
        ("polynomial(self.rate, self.last_rate, len(normals))", "[self.rate] * len(normals)"),
        ("eta * self.shake * z", "eta * z * 0.0"),
        ("0.5 * eta", "eta"),
        ("shakes, self.limit, self.bound", "shakes, None, self.bound"),
        ("shakes, self.limit, self.bound", "shakes, self.limit, None"),
    ),
    *faults(
        "agents.ibc.searching_of",
        "ibc-langevin",
        ("limit=cfg.limit * bound", "limit=cfg.limit"),
    ),
    *faults(
        "agents.ibc.searching_of",
        _ALL,
        ("1.0 + 2.0 * cfg.margin", "1.0 + cfg.margin"),
    ),
    *faults(
        "energy.info_nce",
        _ALL,
        ("logged.unsqueeze(-1) - others", "others - logged.unsqueeze(-1)"),
        ("torch.zeros_like(logged)", "torch.ones_like(logged)"),
        ("ahead / temperature", "ahead"),
    ),
    *faults(
        "energy.steepness",
        "ibc ibc-langevin",
        (".amax(-1)", ".mean(-1)"),
        (".clamp(min=0.0)", ""),
        (".square()", ""),
        ("norm - margin", "norm"),
    ),
    *faults(
        "energy_nets.MLPEnergy._energy",
        _ALL,
        ("h = h + self.layers", "h = self.layers"),
        ("self.layers[i](self.act(h))", "self.layers[i](h)"),
        ("self.act(self.layers[i](self.act(h)))", "self.layers[i](self.act(h))"),
    ),
]
COVERED = ["energy.info_nce", "energy.steepness"]
