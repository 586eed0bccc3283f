"""EBT-Policy: cases of parity, and faults."""

from typing import Any

import flat.ebt
from fault import faults
from methods.diffusion_policy import chunk_view
from parity_case import LR, TOTAL, Batches, Case, Layers, Trained, reach

from offrl.datasets.offline import OfflineDataset
from offrl.datasets.replay import Replay

REACH = reach(loss="net")
# Of gradients that are cut and of an average that is not the network.
TRAINING: dict[str, Any] = {
    **{"lr": LR, "warmup": 3, "weight_decay": 0.1, "ema_power": 0.6, "ema_max": 0.5},
    **{"grad_norm": 0.05, "rate": 4.0, "descent_steps": 3, "depth": 4},
}
SETTINGS = (
    *("lr", "warmup", "weight_decay", "beta1", "beta2", "ema_power", "ema_max", "grad_norm"),
    *("stage", "descent_steps", "rate", "rate_spread", "langevin", "limit", "noised"),
)
SECOND: dict[str, Any] = {"stage": "s2", "rate_spread": 2.0, "langevin": 0.2, "noised": 0.6}
CHUNK = (16, 4, 2)


def flat_ebt(
    case: Case,
    nets: dict[str, Layers],
    batches: Batches,
    dataset: OfflineDataset,
    view: Replay,
) -> Trained:
    return flat.ebt.train(nets, batches, TOTAL, **case.settings(*SETTINGS))


def _case(changes: dict[str, Any], noise: dict[str, Any], **settings: Any) -> Case:
    made = {**TRAINING, **changes}
    drawn = {"start": CHUNK, **noise}
    return Case("ebt", made, REACH, flat_ebt, drawn, view=chunk_view, **settings)


CASES = {
    "ebt": _case({"limit": 0.3}, {}),
    "ebt-second": _case(SECOND, {"level": (16,), "rate": (16,), "shakes": (3, *CHUNK)}),
    "ebt-stacked": _case({}, {}, beside=(5,)),
}

OTHER = {
    ("ebt", "backbone"): ("transformer", {"width": 16}),
    ("ebt", "depth"): (4, {}),
    ("ebt", "stage"): ("s2", {}),
    ("ebt", "descent_steps"): (3, {}),
    ("ebt", "grad_norm"): (0.01, {}),
    ("ebt", "beta2"): (0.9, {}),
    ("ebt", "rate_spread"): (2.0, {}),
    ("ebt", "limit"): (1e-3, {}),
    ("ebt", "restarts"): (2, {}),
}

_ALL = "ebt ebt-second ebt-stacked"
_EBT = "agents.ebt.EBT"
FAULTS = [
    *faults(
        f"{_EBT}.update",
        _ALL,
        (
            "metrics = self.minimize(self.net_opt, self.loss, batch, noise, combine=self.clip)",
            "metrics = {}",
        ),
        ("self.average.update(self.net)", "pass"),
        (
            "metrics = self.minimize(self.net_opt, self.loss, batch, noise, combine=self.clip)\n"
            "        self.average.update(self.net)",
            "self.average.update(self.net)\n"
            "        metrics = self.minimize(self.net_opt, self.loss, batch, noise, "
            "combine=self.clip)",
        ),
        ("return metrics", "return {}"),
    ),
    *faults(
        f"{_EBT}.loss",
        _ALL,
        ("self.net.under(batch.obs)", "self.net.under(-batch.obs)"),
        ("self.net.rate()\n", "self.net.rate().detach()\n"),
        ("self._start(batch, noise)", "-self._start(batch, noise)"),
        ("range(cfg.descent_steps)", "range(2)"),
        ("descend(energy, x, [rate],", "descend(energy, x, [-rate],"),
        ("x = found.x\n", "pass\n"),
        ("errors.append(self._error(x, batch))", "errors.append(self._error(-x, batch))"),
        ("energies.append(found", "energies.append(-found"),
        ("return loss[None]", "return -loss[None]"),
        ('"last_loss": errors[-1]', '"last_loss": errors[0]'),
        ("energies[0] - energy(x).mean(-1)", "energy(x).mean(-1) - energies[0]"),
        ("energy(x).mean(-1)", "energies[-1]"),
    ),
    *faults(
        f"{_EBT}.loss",
        "ebt ebt-stacked",
        ("if cfg.rate_spread > 1.0:", "if True:"),
        ('detach=cfg.stage == "s1"', "detach=False"),
        ('errors[-1] if cfg.stage == "s2" else torch.stack(errors).mean(0)', "errors[-1]"),
        ("torch.stack(errors).mean(0)", "torch.stack(errors).sum(0)"),
    ),
    *faults(f"{_EBT}.loss", "ebt", ("cfg.limit or None", "None")),
    *faults(
        f"{_EBT}.loss",
        "ebt-second",
        ("if cfg.rate_spread > 1.0:", "if False:"),
        ("rate / cfg.rate_spread, rate", "rate, rate"),
        ('ndtr(noise["rate"])', 'ndtr(-noise["rate"])'),
        ("x + cfg.langevin * noise", "x - cfg.langevin * noise"),
        ('detach=cfg.stage == "s1"', "detach=True"),
        ('errors[-1] if cfg.stage == "s2" else', ""),
        (".select(-4, i)", ".select(-4, 0)"),
    ),
    *faults(
        f"{_EBT}.loss", "ebt-stacked", ("found.energies[0].mean(-1)", "found.energies[0].mean()")
    ),
    *faults(
        f"{_EBT}._error",
        _ALL,
        ('smooth_l1_loss(x, batch.action, reduction="none")', "(x - batch.action).square()"),
        (".mean((-1, -2))", ".sum((-1, -2))"),
    ),
    *faults(f"{_EBT}._error", "ebt-stacked", (".mean((-1, -2)).mean(-1)", ".mean()")),
    *faults(
        f"{_EBT}._start",
        "ebt-second",
        ("if not self.config.noised:", "if True:"),
        (" / self.config.noised)", ")"),
        (".clamp(max=1.0)", ""),
        ("(1.0 - level) * batch.action", "level * batch.action"),
    ),
    *faults(
        f"{_EBT}.schedule",
        _ALL,
        ("step, steps)", "0, steps)"),
        ("schedule_chunks(", "(lambda *_: None)("),
    ),
    *faults(
        f"{_EBT}.__init__",
        _ALL,
        ("config.weight_decay, betas", "0.0, betas"),
        ("config.beta1, config.beta2", "config.beta2, config.beta1"),
        ("config.rate, learners", "1.0, learners"),
        ("clipping(config.grad_norm)", "clipping(0.0)"),
    ),
    *faults(
        "energy_planners.LearnedRate.forward",
        _ALL,
        ("3.0 * self.first * given", "self.first * given / given"),
        ("(self.share - given)", "3.0 * self.first * (self.share - given)"),
        ("given = self.share.detach()", "given = self.share"),
        (".clamp(min=LEAST_RATE)", ".clamp(min=100.0)"),
    ),
    *faults(
        "energy.descend",
        _ALL,
        ("x = x - change", "x = x + change"),
        ("energies.append(value)", "energies.append(energy(x))"),
    ),
    *faults("energy.descend", "ebt ebt-stacked", ("x.detach() if detach else x", "x")),
    *faults("energy.descend", "ebt", ("change.clamp(-limit, limit)", "change")),
]
