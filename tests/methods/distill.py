"""Distillation of a teacher: cases of parity, and faults, also of the view that asks it."""

from typing import Any

import flat.distill
import torch
from fault import faults
from parity_case import BATCH, LR, TOTAL, Batches, Case, Layers, Trained, reach
from problems import ACT, OBS, TEACHER
from teachers import teacher

from offrl.datasets.offline import OfflineDataset, Spec
from offrl.datasets.replay import Replay, transitions
from offrl.policy import load_policy

SPEC = Spec.unbounded(OBS, ACT)
PLAIN = teacher("DeterministicActor", SPEC)
SQUASHED = teacher("SquashedGaussianActor", SPEC)
SETTINGS: dict[str, Any] = {
    **{"lr": LR, "tau": 0.7, "temperature": 1.6, "candidates": 4, "scale": 1.3, "teacher_std": 0.3},
    **{"clone": 0.05, "polyak": 0.1, "teacher": TEACHER},
}
TRAINING = ("loss", "anchor", "tau", "temperature", "candidates", "scale", "clone", "polyak", "lr")
OTHER = {
    ("distill", "teacher"): (SQUASHED, {}),
    ("distill", "loss"): ("kl", {}),
    ("distill", "anchor"): ("uniform", {}),
    ("distill", "teacher_std"): (0.2, {"teacher": PLAIN}),
    ("distill", "candidates"): (5, {}),
    ("distill", "clone"): (0.05, {"anchor": "clone"}),
    ("distill", "polyak"): (0.5, {"anchor": "ema"}),
}


def flat_distill(
    case: Case, nets: dict[str, Layers], batches: Batches, dataset: OfflineDataset, view: Replay
) -> Trained:
    """With the teacher's answers put to the batches by hand, in the units of these actions."""
    policy: Any = load_policy(case.config.teacher)
    for b in batches:
        obs = dataset.rows[b["index"].numpy(), :OBS]
        mean = torch.from_numpy(policy.predict(obs)).double()
        b["teacher_mean"], b["teacher_std"] = mean, torch.full_like(mean, case.config.teacher_std)
        if case.config.teacher == TEACHER:
            b["teacher_std"] = policy.actor.spread().double().expand_as(mean)
    return flat.distill.train(nets, batches, TOTAL, **case.settings(*TRAINING))


def taught_view(case: Case, dataset: OfflineDataset) -> Replay:
    return transitions(dataset, normalize_obs=case.config.normalize_obs)


def _case(*beside: int, **changes: Any) -> Case:
    settings = {**SETTINGS, **changes}
    kl = settings.get("loss") == "kl"
    return Case(
        "distill",
        settings,
        reach(**{"kl_loss" if kl else "adpo_loss": "actor"}),
        flat_distill,
        {} if kl else {"candidates": (BATCH, 4, ACT)},
        seed=75,
        beside=beside,
        view=taught_view,
    )


CASES = {
    "distill": _case(),
    "distill-stacked": _case(5, normalize_obs=False, anchor="ema"),
    "distill-uniform": _case(anchor="uniform", teacher=PLAIN),
    "distill-clone": _case(anchor="clone"),
    "distill-clone-stacked": _case(5, anchor="clone"),
    "distill-ema": _case(anchor="ema"),
    "distill-kl": _case(loss="kl"),
    "distill-kl-stacked": _case(5, loss="kl"),
}
COVERED = ["agents.distill._distances", "agents.distill._log_prob", "teachers.Taught.batch"]

_AT = "agents.distill.Distill"
_ALL = "distill distill-uniform distill-clone distill-ema"
FAULTS = [
    *faults(
        f"{_AT}.__init__",
        "distill-clone distill-ema",
        ("target_of(self.actor)", "self.actor"),
        ("adam(self.actor.parameters(), config.lr)", "adam(self.actor.parameters(), 3e-4)"),
        (
            "adam(self.actor.parameters(), config.lr)",
            "adam(self.actor.net.parameters(), config.lr)",
        ),
    ),
    *faults(
        f"{_AT}.view",
        "distill-uniform",
        ("width=cfg.teacher_std", "width=0.1"),
        ("normalize_obs=cfg.normalize_obs", "normalize_obs=False"),
    ),
    *faults(
        f"{_AT}.noise",
        "distill distill-ema",
        ("self.config.candidates, ", "self.config.candidates + 1, "),
    ),
    *faults(
        f"{_AT}.schedule",
        "distill-clone",
        ("self.config.clone * steps", "0.5 * steps"),
        ("step < ", "step <= "),
        ('self.config.anchor == "clone"', "False"),
    ),
    *faults(
        f"{_AT}.schedule",
        "distill-ema",
        ('self.config.anchor == "clone"', "True"),
    ),
    *faults(
        f"{_AT}.update",
        "distill-kl",
        ('cfg.loss == "kl"', 'cfg.loss != "kl"'),
        ("return self.minimize(self.actor_opt, self.kl_loss, batch)", "return {}"),
    ),
    *faults(
        f"{_AT}.update",
        "distill-clone",
        ("cfg = self.config", "cfg = type(self.config)(anchor='ema')"),
        ("if self.cloning:", "if not self.cloning:"),
        ("metrics = self.minimize(self.actor_opt, self.clone_loss, batch)", "metrics = {}"),
        ("polyak_update(self.actor, self.reference, 1.0)", "pass"),
        ("self.reference, 1.0)", "self.reference, 0.5)"),
        ("1.0)\n            return metrics", "1.0)\n            return {}"),
    ),
    *faults(
        f"{_AT}.update",
        _ALL,
        (
            'metrics = self.minimize(self.actor_opt, self.adpo_loss, batch, noise["candidates"])',
            "metrics = {}",
        ),
        ('noise["candidates"])', '-noise["candidates"])'),
        ("cfg.polyak)\n        return metrics", "cfg.polyak)\n        return {}"),
    ),
    *faults(
        f"{_AT}.update",
        "distill-ema distill-stacked",
        ('if cfg.anchor == "ema":', "if False:"),
        ("self.reference, cfg.polyak)", "self.reference, 1.0 - cfg.polyak)"),
        (
            "polyak_update(self.actor, self.reference, cfg.polyak)",
            "polyak_update(self.reference, self.actor, cfg.polyak)",
        ),
    ),
    *faults(f"{_AT}.update", "distill-clone", ('cfg.anchor == "ema"', 'cfg.anchor != "teacher"')),
    *faults(
        f"{_AT}.kl_loss",
        "distill-kl distill-kl-stacked",
        ("self.actor.mean(batch.obs)", "self.actor.mean(batch.next_obs)"),
        ("self.actor.spread()", "self.actor.spread() + 0.1"),
        ('pop("teacher_kl"), measured', 'pop("teacher_kl"), {}'),
        ('return measured.pop("teacher_kl")', 'return -measured.pop("teacher_kl")'),
    ),
    *faults(
        f"{_AT}.clone_loss",
        "distill-clone distill-clone-stacked",
        ("self.actor(batch.obs), batch.action", "self.actor(batch.obs), batch.teacher_mean"),
        ("return cloning_loss", "return -cloning_loss"),
        (".mean(-1)", ".sum(-1)"),
    ),
    *faults(f"{_AT}.clone_loss", "distill-clone-stacked", (".mean(-1)", ".mean()")),
    *faults(
        f"{_AT}.adpo_loss",
        _ALL,
        (
            "mean, std = self.config, batch.teacher_mean, batch",
            "mean, std = self.config, batch.action, batch",
        ),
        ("mean.unsqueeze(-2) + cfg", "self.actor.mean(batch.obs).detach().unsqueeze(-2) + cfg"),
        ("cfg.scale *", ""),
        ("std.unsqueeze(-2) * noise", "noise"),
        ("teacher = _log_prob(mean, std, action)", "teacher = -_log_prob(mean, std, action)"),
        (
            "teacher = _log_prob(mean, std, action)",
            "teacher = _log_prob(mean, 1.0 + 0 * std, action)",
        ),
        ("student = self.actor.mean(batch.obs),", "student = self.actor.mean(batch.next_obs),"),
        ("logp = _log_prob(*student, action)", "logp = _log_prob(*student, action.flip(-2))"),
        ("boltzmann(teacher,", "boltzmann(logp.detach(),"),
        ("boltzmann(teacher,", "boltzmann(-teacher,"),
        ("temperature=cfg.temperature", "temperature=1.0"),
        (", tau=cfg.tau", ", tau=1.0"),
        (", tau=cfg.tau", ", tau=1.0 / cfg.tau"),
        ("tau=cfg.tau).mean(-1)", "tau=cfg.tau).sum(-1)"),
        ("scores, target,", "scores, target.flip(-1),"),
        ("_distances(batch, *student)", "{}"),
    ),
    *faults(
        f"{_AT}.adpo_loss",
        "distill",
        ("anchor = teacher\n", "anchor = 0.0 * teacher\n"),
        ("anchor = teacher\n", "anchor = logp\n"),
        ('cfg.anchor == "uniform"', 'cfg.anchor != "uniform"'),
    ),
    *faults(
        f"{_AT}.adpo_loss",
        "distill-uniform",
        ("torch.zeros_like(teacher)", "teacher"),
    ),
    *faults(
        f"{_AT}.adpo_loss",
        "distill-clone distill-ema",
        ('cfg.anchor != "teacher"', "False"),
        ("self.reference.mean(batch.obs)", "self.actor.mean(batch.obs)"),
        ("self.reference.mean(batch.obs)", "self.reference.mean(batch.next_obs)"),
        ("self.reference.spread()", "self.actor.spread()"),
        ("Scores(logp[..., None], anchor[..., None]", "Scores(anchor[..., None], logp[..., None]"),
        ("torch.ones_like(logp)", "0.5 * (noise[..., 0] > 0)"),
    ),
    *faults(
        f"{_AT}.adpo_loss",
        "distill-stacked",
        ("tau=cfg.tau).mean(-1)", "tau=cfg.tau).mean()"),
    ),
    *faults(
        "agents.distill._distances",
        "distill distill-kl",
        (
            "batch.teacher_mean, batch.teacher_std, mean, std",
            "mean, std, batch.teacher_mean, batch.teacher_std",
        ),
        ("batch.teacher_std, mean, std", "1.0 + 0 * batch.teacher_std, mean, std"),
        ("action_error(mean, batch.teacher_mean)", "action_error(mean, batch.action)"),
        ("kl.mean(-1)", "kl.sum(-1)"),
        ("error.mean(-1)", "error.sum(-1)"),
    ),
    *faults(
        "agents.distill._distances",
        "distill-stacked distill-kl-stacked",
        ("kl.mean(-1)", "kl.mean()"),
        ("error.mean(-1)", "error.mean()"),
    ),
    *faults(
        "agents.distill._log_prob",
        _ALL,
        ("Normal(mean.unsqueeze(-2)", "Normal(0.0 * mean.unsqueeze(-2)"),
        ("std.unsqueeze(-2)", "2.0 * std.unsqueeze(-2)"),
        ("law.log_prob(action)", "-law.log_prob(action)"),
        ("logp.sum(-1)", "logp.mean(-1)"),
    ),
    *faults(
        "teachers.Taught.batch",
        _ALL,
        ("vars(super().batch(row))", "vars(super().batch(row - row % 2))"),
        ("teacher_mean=self.teacher_mean[row]", "teacher_mean=self.teacher_mean[row + 1]"),
        ("teacher_std=self.teacher_std[row]", "teacher_std=self.teacher_mean[row].abs() + 0.1"),
    ),
    *faults(
        "teachers.taught",
        "distill distill-uniform",
        ("mean[chunk], std[chunk] = answers(policy, obs, width)", "pass"),
        ("dataset.rows[chunk, :", "dataset.rows[chunk + 1, :"),
    ),
]
