"""BESO: cases of parity, and faults."""

from typing import Any

import flat.beso
from fault import faults
from methods.diffusion_policy import REACH
from parity_case import LR, Batches, Case, Layers, Trained

from offrl.datasets.offline import OfflineDataset
from offrl.datasets.replay import Replay
from offrl.datasets.windows import Goals, windows

# Of goals that are often hidden or beyond the end, of an average that is not the network.
COMMON: dict[str, Any] = {
    **{
        "lr": LR,
        "lr_decay": 0.2,
        "weight_decay": 0.1,
        "ema": 0.5,
        "goal_dropout": 0.3,
        "goal_length": 2,
    },
    **{"sigma_data": 0.4, "sigma_min": 0.1, "sigma_max": 0.9, "normalize": "minmax"},
}
SETTINGS = ("process", "levels", "sigma_data", "sigma_min", "sigma_max", "lr", "lr_decay")


def goal_view(case: Case, dataset: OfflineDataset) -> Replay:
    """Windows whose nows are all steps, with goals after them."""
    cfg = case.config
    return windows(
        dataset,
        history=cfg.history,
        horizon=cfg.history,
        before=cfg.history - 1,
        after=0,
        normalize=cfg.normalize,
        normalize_action=cfg.normalize_action,
        goals=Goals(cfg.goals, cfg.goal_gamma, cfg.goal_gap, cfg.goal_length, cfg.goal_dropout),
    )


def flat_beso(
    case: Case,
    nets: dict[str, Layers],
    batches: Batches,
    dataset: OfflineDataset,
    view: Replay,
) -> Trained:
    return flat.beso.train(nets, batches, **case.settings(*SETTINGS, "weight_decay", "ema"))


def _case(changes: dict[str, Any], **settings: Any) -> Case:
    noise = {"level": (16,), "noise": (16, 2, 2)}
    everything = {**COMMON, **changes}
    return Case("beso", everything, REACH, flat_beso, noise, view=goal_view, **settings)


CASES = {
    "beso": _case({}),
    "beso-ddpm": _case({"process": "ddpm", "levels": 7, "normalize_action": True}),
    "beso-stacked": _case({"goals": "geometric", "goal_gamma": 0.7}, beside=(5,)),
}

OTHER = {
    ("beso", "goals"): ("final", {}),
    ("beso", "goal_gamma"): (0.5, {"goals": "geometric"}),
    ("beso", "goal_gap"): (3, {}),
    ("beso", "goal_length"): (1, {}),
    ("beso", "goal_dropout"): (0.6, {}),
    ("beso", "process"): ("ddpm", {}),
    ("beso", "levels"): (50, {"process": "ddpm"}),
    ("beso", "spacing"): ("exponential", {}),
    ("beso", "sampler"): ("heun", {}),
    ("beso", "guidance"): (1.5, {}),
    ("beso", "past"): ("noised", {}),
    ("beso", "heads"): (4, {"backbone": "gpt"}),
    ("beso", "lr_decay"): (0.5, {}),
    ("beso", "sigma_data"): (0.3, {}),
    ("beso", "ema"): (0.3, {}),
}

_ALL = "beso beso-ddpm beso-stacked"
_CLASS = "agents.beso.BESO"
COVERED = [f"{_CLASS}._error", f"{_CLASS}.view", "goal_planner.told"]
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
        ("batch.goal_real)", "1.0 - batch.goal_real)"),
        ("batch.goal,", "-batch.goal,"),
        ("batch.real, batch.goal,", "batch.real.new_ones(batch.real.shape), batch.goal,"),
        ("told(net,", "told(self.average.net,"),
        ('draw(noise["level"])', 'draw(-noise["level"])'),
        ("None, batch.real", "None"),
        (".mean(-1)", ".sum(-1)"),
    ),
    *faults(f"{_CLASS}._error", "beso-stacked", (".mean(-1)", ".mean()")),
    *faults(
        f"{_CLASS}.view",
        _ALL,
        ("goals=cfg.goal_view()", "goals=Goals()"),
        ("normalize=cfg.normalize,", 'normalize="zscore",'),
        ("cfg = self.config", "cfg = BESOConfig(history=3)"),
        ("horizon=cfg.horizon", "horizon=cfg.horizon + 1"),
    ),
    *faults(f"{_CLASS}.view", "beso-ddpm", ("cfg.normalize_action", "False")),
    *faults(
        f"{_CLASS}.schedule",
        _ALL,
        ("self.config.lr *", "0.5 * self.config.lr *"),
        ("self.config.lr_decay ** (step / 100)", "1.0"),
        ("self.average.schedule(step)", "pass"),
    ),
    *faults(
        f"{_CLASS}.__init__",
        _ALL,
        ("config.weight_decay)", "0.0)"),
        ('Decay("ratio", config.ema)', 'Decay("power", config.ema)'),
    ),
    *faults(f"{_CLASS}.__init__", "beso-ddpm", ('if config.process == "ddpm"', "if False")),
    *faults(
        "goal_planner.goal_generation",
        "beso beso-stacked",
        ("location=math.log(config.sigma_data)", "location=-1.2"),
        ("scale=0.5", "scale=1.2"),
        ('density="loglogistic"', 'density="lognormal"'),
    ),
    *faults(
        "goal_planner.goal_generation",
        "beso-ddpm",
        ('"cosine"', '"vp"'),
        ('"epsilon"', '"v"'),
        ("DDPM(config.levels", "DDPM(8"),
    ),
    *faults(
        "goal_planner.told", _ALL, ("partial(_told, net, now", "partial(_told, net, now[::-1]")
    ),
    *faults(
        "goal_planner._told",
        _ALL,
        ("given[..., None] * now.goal", "now.goal * 0.0"),
        ("parts = (goal, given,", "parts = (goal, given * 0.0,"),
        ("real * now.obs, now.real)", "real * now.obs, 0.0 * now.real)"),
        ("net(real * x,", "net(x,"),
    ),
]
