"""Dichotomy of Control: cases of parity, and faults."""

from typing import Any

import flat.doc
from fault import faults
from parity_case import LR, Batches, Case, Layers, Trained, reach

from offrl.datasets.offline import OfflineDataset
from offrl.datasets.replay import Replay
from offrl.datasets.segments import segments

SETTINGS: dict[str, Any] = {
    **{"backbone": "mlp", "context": 1, "future": 2, "hold": 2, "latent": 3, "features": 4},
    **{"lr": LR, "warmup": 3, "weight_decay": 0.1, "energy_steps": 2, "information_weight": 0.7},
    "max_steps": 2,
}
GPT: dict[str, Any] = {
    **{"backbone": "gpt", "context": 2, "layers": 1, "heads": 2, "width": 4, "max_steps": 3},
}
TRAINING = ("energy_steps", "information_weight", "lr", "warmup", "weight_decay", "grad_norm")
OTHER = {
    ("doc", "backbone"): ("mlp", {}),
    ("doc", "latents"): ("categorical", {}),
    ("doc", "latent"): (5, {}),
    ("doc", "context"): (3, {}),
    ("doc", "future"): (5, {}),
    ("doc", "hold"): (3, {}),
    ("doc", "energy_steps"): (2, {}),
    ("doc", "features"): (3, {}),
    ("doc", "candidates"): (5, {}),
    ("doc", "layers"): (2, {}),
    ("doc", "heads"): (2, {}),
    ("doc", "width"): (6, {}),
    ("doc", "max_steps"): (10, {}),
}


def segment_view(case: Case, dataset: OfflineDataset) -> Replay:
    cfg = case.config
    return segments(dataset, past=cfg.context, future=cfg.future, normalize_obs=cfg.normalize_obs)


def flat_doc(
    case: Case,
    nets: dict[str, Layers],
    batches: Batches,
    dataset: OfflineDataset,
    view: Replay,
) -> Trained:
    cfg = case.config
    return flat.doc.train(
        nets,
        batches,
        codes=cfg.latents == "categorical",
        form=flat.doc.Form(cfg.context, cfg.heads, cfg.max_steps),
        **case.settings(*TRAINING),
    )


REACH = reach(energy_loss="energy", actor_loss="actor posterior energy", planner_loss="actor")


def _case(noise: dict[str, Any], beside: tuple[int, ...] = (), **changes: Any) -> Case:
    return Case(
        "doc", {**SETTINGS, **changes}, REACH, flat_doc, noise, view=segment_view, beside=beside
    )


CASES = {
    "doc": _case({"latent": (16, 3)}, grad_norm=0.3),
    "doc-codes": _case({}, latents="categorical", grad_norm=0.0, normalize_obs=False, max_steps=1),
    "doc-stacked": _case({}, (5,), latents="categorical", context=0, grad_norm=0.3),
    "doc-gpt": _case({"latent": (16, 3)}, grad_norm=0.3, **GPT),
}

COVERED = ["losses.contrastive_bound"]

_ALL = "doc doc-codes doc-stacked"
_DOC = "agents.doc.DoC"
FAULTS = [
    *faults(
        f"{_DOC}.__init__",
        _ALL,
        ("(acting, config.lr, config.weight_decay)", "(acting, config.lr, 0.0)"),
        (
            "adamw(self.energy, config.lr, config.weight_decay)",
            "adamw(self.energy, config.lr, 0.0)",
        ),
    ),
    *faults(f"{_DOC}.__init__", "doc doc-stacked", ("clipping(config.grad_norm)", "clipping(0.0)")),
    *faults(
        "futures.segment_view",
        "doc",
        ("past=cfg.context", "past=0"),
        ("normalize_obs=cfg.normalize_obs", "normalize_obs=False"),
    ),
    *faults(f"{_DOC}.schedule", _ALL, ("warm_up(self.config, optimizer, step)", "pass")),
    *faults(
        f"{_DOC}.update",
        _ALL,
        (
            "q = self.compute(self.formed, batch)\n        metrics: Metrics = {}",
            "q = -self.compute(self.formed, batch)\n        metrics: Metrics = {}",
        ),
        ("range(self.config.energy_steps)", "range(1)"),
        ("metrics |= self.minimize(\n                self", "self.minimize(\n                self"),
        ("metrics |= self.minimize(self.actor_opt", "self.minimize(self.actor_opt"),
        (
            "q = self.compute(self.formed, batch)\n        metrics |= self",
            "metrics |= self",
        ),
        ("return metrics", "return {}"),
    ),
    *faults(f"{_DOC}.formed", _ALL, ("self.posterior(", "-self.posterior(")),
    *faults(
        f"{_DOC}.information",
        _ALL,
        ("batch.action[..., -n:, :]], -1)", "0 * batch.action[..., -n:, :]], -1)"),
        ("batch.next_obs[..., -n:, :]", "batch.obs[..., -n:, :]"),
        ("batch.reward[..., -n:]", "0 * batch.reward[..., -n:]"),
        ("(pair, score, others)", "(pair, score, torch.ones_like(others))"),
        ("real_mean((weight[..., None, :] * bound).sum(-1), real)", "bound.sum(-1).mean((-2, -1))"),
    ),
    *faults(
        f"{_DOC}.energy_loss",
        _ALL,
        ("draws(q,", "draws(-q,"),
        ("h = self.actor", "h = -self.actor"),
        (
            "with torch.no_grad():",
            "z = 2.0 * z\n        if True:",
        ),
        ("-self.information(", "self.information("),
    ),
    *faults(
        f"{_DOC}.actor_loss",
        _ALL,
        ("draws(self.formed(batch),", "draws(-self.formed(batch),"),
        ("h = self.actor", "h = -self.actor"),
        ("error = self", "error = -self"),
        ("information = self.information", "information = -self.information"),
        ("error + self.config", "error - self.config"),
        ('"action_error": error', '"action_error": loss'),
    ),
    *faults(
        f"{_DOC}.acted",
        _ALL,
        ("n = self.config.future", "n = 1"),
        ("batch.action[..., -n:, None, :]", "0 * batch.action[..., -n:, None, :]"),
        ("weight[..., None, :] * found", "2.0 * weight[..., None, :] * found"),
        ("real_mean(error, batch.real[..., -n:])", "error.mean((-2, -1))"),
    ),
    *faults(
        f"{_DOC}.planner_loss",
        _ALL,
        ("draws(q,", "draws(-q,"),
        ("planner = self.actor.planner", "planner = self.actor.planner\n        q = -q"),
        ("[..., 0, :]", "[..., 0, :].abs()"),
        ("divergence(q, planner.prior(h))", "divergence(planner.prior(h), q)"),
        ("- batch.to_go", "+ batch.to_go"),
        ("weight * error", "2.0 * weight * error"),
        ('"divergence": divergence', '"divergence": value_loss'),
        ("divergence + value_loss", "divergence - value_loss"),
    ),
    *faults(
        "losses.contrastive_bound",
        _ALL,
        ("score.masked_fill(real == 0, -1e30)", "score"),
        ("real.expand_as(score).sum(-1)", "real.expand_as(score).mean(-1)"),
        ("pair - known", "pair + known"),
    ),
    *faults(
        "datasets.segments.Segments.sample",
        _ALL,
        ("next_obs=found.next_obs", "next_obs=found.obs"),
        ("(self.to_go[row] - self.return_mean)", "self.to_go[row]"),
    ),
    *faults(
        "datasets.segments.Segments.sample", "doc doc-codes", ("there == wanted", "there >= wanted")
    ),
    *faults("datasets.segments.segments", "doc", ("+ STD_EPS", "+ 0.1")),
    *faults("latents.Gaussian.draws", "doc", ("log_std.exp() * noise", "log_std * noise")),
    *faults(
        "latents.Gaussian.divergence", "doc", ("ratio + 0.5 * distance", "0.5 * distance - ratio")
    ),
    *faults("latents.Categorical.draws", "doc-codes doc-stacked", ("q.softmax(-1)", "q.sigmoid()")),
    *faults(
        "latents.Categorical.divergence",
        "doc-codes doc-stacked",
        ("log_q - p.log_softmax(-1)", "log_q - p"),
    ),
    *faults(
        "latent_models.FlatHistory.forward",
        "doc doc-codes",
        ("first - j : steps - j", "first - j + 1 : steps - j + 1"),
        ("range(self.past, 0, -1)", "range(1, self.past + 2)"),
    ),
    *faults(
        "latent_models.FlatHistory.forward",
        "doc doc-stacked",
        ("/ self.last_time", "/ 3"),
        (".clamp(max=1.0)", ""),
    ),
    *faults(
        "latent_models.FlatHistory.forward",
        "doc",
        ("[..., first:, None]", "[..., : steps - first, None]"),
    ),
    *faults(
        "latent_models.TokenHistory.forward", "doc-gpt", ("[:, -count:, 0]", "[:, -count:, 1]")
    ),
    *faults(
        "latent_models.TokenHistory.tokens",
        "doc-gpt",
        ("self.obs(segment.obs)", "self.obs(segment.obs.abs())"),
        ("self.action(segment.action)", "self.action(-segment.action)"),
        ("self.reward(segment.reward[..., None])", "self.reward(-segment.reward[..., None])"),
        (" + time[:, :, None]", ""),
        ("flatten(1, 2), real)", "flatten(1, 2))"),
    ),
    *faults(
        "latent_models.TokenReader.forward",
        "doc-gpt",
        ("(y * real).sum", "y.sum"),
        ("3.0 * real.sum", "real.sum"),
        ("[:, -self.future :]\n        real", "[:, -1:]\n        real"),
    ),
    *faults(f"{_DOC}.information", "doc-gpt", ("h.detach()", "h")),
    *faults("latent_models.told", _ALL, (" * segment.real[..., None]", "")),
    *faults("latent_models.FlatReader.forward", _ALL, ("[..., 0, :]", "[..., -1, :]")),
    *faults("latent_models.LatentActor.acts", _ALL, ("torch.tanh(", "(")),
    *faults("latent_models.Energy.forward", _ALL, ("** -0.5", "** -1.0")),
]
