"""ACT and ACT-JEPA: cases of parity, and faults."""

from typing import Any

import flat.act
from fault import faults
from parity_case import LR, TOTAL, Batches, Case, Layers, Trained, reach

from offrl.datasets.offline import OfflineDataset
from offrl.datasets.replay import Replay
from offrl.datasets.windows import windows

TRAINING: dict[str, Any] = {
    **{"history": 2, "horizon": 4, "execute": 2, "ensemble": -1.0},
    **{"lr": LR, "weight_decay": 0.1},
}
SETTINGS = ("depth", "decoder_layers", "heads", "lr", "weight_decay")
STYLED = {"kl_weight": 0.5}
FORETOLD = {"ahead": 4, "latent_weight": 0.7, "target_decay": 0.5}


def chunk_view(case: Case, dataset: OfflineDataset) -> Replay:
    cfg = case.config
    return windows(
        dataset,
        history=2,
        horizon=4,
        before=1,
        after=1,
        normalize="zscore",
        normalize_action=True,
        ahead=getattr(cfg, "ahead", 0),
    )


def flat_act(
    case: Case,
    nets: dict[str, Layers],
    batches: Batches,
    dataset: OfflineDataset,
    view: Replay,
) -> Trained:
    own = ("latent_weight", "target_decay") if case.agent == "act_jepa" else ("kl_weight",)
    return flat.act.train(nets, batches, TOTAL, **case.settings(*SETTINGS, *own))


def _case(agent: str, networks: str, changes: dict[str, Any]) -> Case:
    return Case(
        agent,
        {**TRAINING, **changes},
        reach(loss=networks),
        flat_act,
        {"style": (16, 4)} if agent == "act" else {},
        view=chunk_view,
    )


CASES = {
    "act": _case("act", "net style", STYLED),
    "act-deep": _case("act", "net style", {**STYLED, "decoder_layers": 2, "depth": 1}),
    "act_jepa": _case("act_jepa", "net predictor", FORETOLD),
}

OTHER: dict[tuple[str, str], tuple[Any, dict[str, Any]]] = {
    (agent, field): (value, common)
    for agent in ("act", "act_jepa")
    for field, value, common in (
        ("execute", 1, {"ensemble": -1.0}),
        ("normalize", "none", {}),
        ("decoder_layers", 2, {}),
        ("heads", 4, {}),
        ("inner", 8, {}),
    )
}
OTHER["act", "latent"] = (3, {})
OTHER["act_jepa", "ahead"] = (3, {})
# The predictor would be told of the actions that it must do without.
TOLD = faults(
    "agents.act_jepa.ACTJEPA.loss",
    "act_jepa",
    (
        "memory = self.net.remember(batch.obs)",
        "memory = self.net.remember(batch.obs) + batch.action.mean((1, 2))[:, None, None]",
    ),
    ("self.predictor(memory)", "self.predictor(memory) + batch.action.mean()"),
)

_BOTH = "act act-deep"
FAULTS = [
    *faults(
        "agents.act.ACT.update",
        _BOTH,
        ("return self.minimize(self.net_opt, self.loss, batch, noise)", "return {}"),
    ),
    *faults(
        "agents.act.ACT.loss",
        _BOTH,
        ("self.config.kl_weight * divergence", "divergence"),
        ("error + self", "error - self"),
        (").mean(-1)\n", ").sum(-1)\n"),
        ('noise["style"]', '0 * noise["style"]'),
        ('"chunk_error": error.mean(-1)', '"chunk_error": error.amax(-1)'),
        ('"divergence": divergence.mean(-1)', '"divergence": error.mean(-1)'),
    ),
    *faults(
        "agents.act.ACT.__init__",
        _BOTH,
        ("config.lr, config.weight_decay", "1e-5, config.weight_decay"),
        ("config.lr, config.weight_decay", "config.lr, 1e-4"),
        ("[self.net, self.style]", "[self.net]"),
    ),
    *faults(
        "agents.act_jepa.ACTJEPA.update",
        "act_jepa",
        ("metrics = self.minimize(self.net_opt, self.loss, batch)", "metrics = {}"),
        ("self.target.update(self.net)", "pass"),
        ("return metrics", "return {}"),
        (
            "metrics = self.minimize(self.net_opt, self.loss, batch)\n"
            "        self.target.update(self.net)",
            "self.target.update(self.net)\n"
            "        metrics = self.minimize(self.net_opt, self.loss, batch)",
        ),
    ),
    *faults(
        "agents.act_jepa.ACTJEPA.schedule",
        "act_jepa",
        ("1.0 - self.config.target_decay", "self.config.target_decay * 0.9"),
        ("(1.0 - step / steps)", "1.0"),
    ),
    *faults(
        "agents.act_jepa.ACTJEPA.loss",
        "act_jepa",
        ("self.target.net.embed", "self.net.embed"),
        ("target = layer_norm(target, target.shape[-1:])", "pass"),
        (
            "batch.later_real)\n            target",
            "torch.ones_like(batch.later_real))\n            target",
        ),
        ("target, batch.later_real)\n        loss", "target, 0 * batch.later_real)\n        loss"),
        ("remember(batch.obs)", "remember(batch.obs.flip(1))"),
        ("error + self", "error - self"),
        ("self.config.latent_weight * latent", "latent"),
        (").mean(-1)\n", ").sum(-1)\n"),
        ('"chunk_error": error.mean(-1)', '"chunk_error": error.amax(-1)'),
        ('"latent_error": latent.mean(-1)', '"latent_error": latent.amax(-1)'),
        ("deviation(target, batch.later_real)", "target.std((0, 1), correction=0).mean()"),
    ),
    *TOLD,
    *faults(
        "agents.act_jepa.ACTJEPA.__init__",
        "act_jepa",
        ("config.lr, config.weight_decay", "1e-5, config.weight_decay"),
        ("[self.net, self.predictor]", "[self.net]"),
    ),
    *faults(
        "styles.reconstruct",
        _BOTH,
        ("batch.obs[:, -1]", "batch.obs[:, 0]"),
        ("log_std.exp() * noise", "noise"),
        ("net.latent * divergence", "divergence"),
    ),
    *faults(
        "styles.chunk_error",
        "act act_jepa",
        ("(batch.real * apart).sum(-1) / batch.real.sum(-1)", "apart.mean(-1)"),
        (".abs()", ".square()"),
    ),
    *faults(
        "styles.latent_error",
        "act_jepa",
        ("(real * apart).sum(-1) / real.sum(-1).clamp(min=1.0)", "apart.mean(-1)"),
        (".abs()", ".square()"),
    ),
    *faults(
        "styles.deviation",
        "act_jepa",
        ("(weight * target).sum((0, 1))", "target.mean((0, 1))"),
        ("weight * (target - mean).square()", "weight * target.square()"),
        (".sum((0, 1)).sqrt()", ".sum((0, 1))"),
    ),
    *faults(
        "styles.StyleEncoder.forward",
        _BOTH,
        ("0.5 * log_variance", "log_variance"),
        ("[:, 0]\n", "[:, 1]\n"),
        ("[real.new_ones(batch, 2), real]", "[real.new_ones(batch, 2), real * 0 + 1]"),
    ),
    *faults(
        "detr.Sublayers.mix",
        "act act_jepa",
        ("x + place, x + place, x, seen", "x, x, x, seen"),
        ("x + place, x + place, x, seen", "x + place, x + place, x + place, seen"),
        ("self.norm(x + ", "self.norm("),
    ),
    *faults(
        "detr.Decoder.forward",
        "act act_jepa",
        ("memory + place, memory, None", "memory, memory, None"),
        ("x + query, memory", "x, memory"),
        ("norm(x + attend", "norm(attend"),
        ("self.norm(x)", "x"),
    ),
]
