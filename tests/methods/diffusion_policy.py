"""Diffusion Policy: cases of parity, and faults, also of what agents of chunks share."""

from typing import Any

import flat.diffusion_policy
from fault import faults
from parity_case import LR, TOTAL, Batches, Case, Layers, Trained, reach

from offrl.datasets.offline import OfflineDataset
from offrl.datasets.replay import Replay
from offrl.datasets.windows import windows

REACH = reach(loss="net")
# Of an average that is not the network, of weights that shrink visibly.
TRAINING: dict[str, Any] = {
    **{"lr": LR, "warmup": 3, "weight_decay": 0.1, "ema_power": 0.6, "ema_max": 0.5},
}
OPTIMISED = ("lr", "warmup", "weight_decay", "beta1", "beta2", "ema_power", "ema_max")
SETTINGS = (*OPTIMISED, "levels", "prediction", "mask_padding")


def chunk_view(case: Case, dataset: OfflineDataset) -> Replay:
    """Windows as the settings of `problems.CHUNKS` ask for them."""
    cfg = case.config
    return windows(
        dataset,
        history=cfg.history,
        horizon=cfg.horizon,
        before=cfg.history - 1,
        after=cfg.execute - 1,
        normalize=cfg.normalize,
        normalize_action=cfg.normalize_action,
    )


def flat_diffusion_policy(
    case: Case,
    nets: dict[str, Layers],
    batches: Batches,
    dataset: OfflineDataset,
    view: Replay,
) -> Trained:
    return flat.diffusion_policy.train(nets, batches, TOTAL, **case.settings(*SETTINGS))


def _case(changes: dict[str, Any], **settings: Any) -> Case:
    noise = {"level": (16,), "noise": (16, 4, 2)}
    return Case(
        "diffusion_policy",
        {**TRAINING, **changes},
        REACH,
        flat_diffusion_policy,
        noise,
        view=chunk_view,
        **settings,
    )


CASES = {
    "diffusion_policy": _case({}),
    "diffusion_policy-x0": _case({"prediction": "x0", "mask_padding": True}),
    "diffusion_policy-stacked": _case({"prediction": "v", "levels": 7}, beside=(5,)),
}

COVERED = [
    f"chunks.{name}"
    for name in ("chunk_optimizer", "average_of", "schedule_chunks", "matching_loss", "valid_steps")
]

_ALL = "diffusion_policy diffusion_policy-x0 diffusion_policy-stacked"
_UPDATE = "agents.diffusion_policy.DiffusionPolicy"
FAULTS = [
    *faults(
        f"{_UPDATE}.update",
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
        f"{_UPDATE}.loss",
        _ALL,
        ("return matching_loss", "return -matching_loss"),
        ("self.net,", "self.average.net,"),
    ),
    *faults(
        "chunks.matching_loss",
        _ALL,
        ('process.draw(noise["level"])', 'process.draw(-noise["level"])'),
        ('noise["noise"], at', '-noise["noise"], at'),
        ("at, batch.obs", "at, -batch.obs"),
        (".mean(-1)", ".sum(-1)"),
    ),
    *faults("chunks.matching_loss", "diffusion_policy-stacked", (".mean(-1)", ".mean()")),
    *faults(
        "chunks.valid_steps",
        "diffusion_policy-x0",
        ("batch.real if agent.config.mask_padding else None", "None"),
    ),
    *faults(
        "chunks.valid_steps",
        "diffusion_policy diffusion_policy-stacked",
        ("batch.real if agent.config.mask_padding else None", "batch.real"),
    ),
    *faults(
        f"{_UPDATE}.schedule",
        _ALL,
        ("step, steps)", "0, steps)"),
        ("schedule_chunks(", "(lambda *_: None)("),
    ),
    *faults(
        f"{_UPDATE}.__init__",
        _ALL,
        ('"cosine"', '"vp"'),
    ),
    *faults(
        "chunks.chunk_optimizer",
        _ALL,
        ("config.lr, config.weight_decay", "config.lr, 0.0"),
        ("config.beta1, config.beta2", "config.beta2, config.beta1"),
    ),
    *faults(
        "chunks.schedule_chunks",
        _ALL,
        ("config.lr, step", "1e-4, step"),
        ("config.warmup)", "0)"),
        ("average.schedule(step)", "pass"),
    ),
    *faults(
        "chunks.average_of",
        _ALL,
        ("high=config.ema_max", "high=0.9999"),
        ("power=config.ema_power", "power=0.75"),
    ),
    *faults(
        "chunks.chunk_view",
        _ALL,
        ("min(cfg.execute - 1, ahead)", "ahead"),
        ("normalize=cfg.normalize,", 'normalize="zscore",'),
        ("normalize_action=cfg.normalize_action", "normalize_action=False"),
    ),
    *faults(
        "optim.warm_cosine_rate",
        _ALL,
        ("return lr * rise(step, warmup)", "return lr * rise(step - 1, warmup)"),
        ("step - warmup", "step"),
        ("steps - warmup", "steps"),
    ),
]
