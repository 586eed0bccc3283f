"""ODICE as imitation: cases of parity, and faults."""

import math
import tempfile
from pathlib import Path
from typing import Any

import flat.odice
import h5py
import numpy as np
import torch
from fault import faults
from parity_case import BATCH, LR, Batches, Case, Layers, Trained, reach
from problems import walk

from offrl.datasets.offline import OfflineDataset
from offrl.datasets.replay import Replay

ROOT = tempfile.TemporaryDirectory(prefix="offrl-expert-")
REACH = reach(discriminator_loss="discriminator", value_loss="value", actor_loss="actor")
COMMON = {
    "dual_weight": 0.45,
    "eta": 0.7,
    "gradient": "orthogonal",
    "max_weight": 0.8,
    "weight_decay": 0.3,
    "gamma": 0.9,
    "lr": LR,
    "discriminator_lr": 8 * LR,
    "penalty": 2.0,
    "polyak": 0.1,
    "actor_hidden": (7, 5),
    "expert_episodes": 4,
}
SETTINGS = ("mixed", "penalty", "discriminator_lr", "dual_weight", "eta", "gradient", "max_weight")
SETTINGS = (*SETTINGS, "weight_decay", "gamma", "lr", "polyak", "layer_norm", "squash_mean")


def best(case: Case, dataset: OfflineDataset) -> list[int]:
    """The expert's episodes, in recorded order."""
    returns = [float(dataset.episode(e)["reward"].sum()) for e in range(dataset.num_episodes)]
    return sorted(
        sorted(range(len(returns)), key=lambda e: -returns[e])[: case.config.expert_episodes]
    )


def chosen(case: Case, dataset: OfflineDataset) -> OfflineDataset:
    return dataset if case.config.mixed else dataset.select(best(case, dataset), "by hand")


def flat_odice_il(
    case: Case, nets: dict[str, Layers], batches: Batches, dataset: OfflineDataset, view: Replay
) -> Trained:
    cfg = case.config
    experts = [dataset.episode(e) for e in best(case, dataset)]
    obs = np.concatenate([e["obs"][:-1] for e in experts])
    action = np.concatenate([e["action"] for e in experts])
    ends = [float(e["terminated"].sum()) for e in experts]
    rate = float(np.mean(dataset.terminated))
    ratio = math.log((sum(ends) + rate) / (len(obs) + 1) / rate)
    return flat.odice.imitate(
        nets,
        batches,
        (torch.from_numpy(obs).double() - view.obs_mean) / view.obs_std,
        torch.from_numpy(action).double(),
        ratio / (1.0 - cfg.gamma),
        **case.settings(*SETTINGS),
    )


def case(*beside: int, **changes: Any) -> Case:
    settings = {**COMMON, **changes}
    mixed = settings.get("mixed", True)
    objectives = REACH if mixed else {k: v for k, v in REACH.items() if k != "discriminator_loss"}
    return Case(
        "odice_il",
        settings,
        objectives,
        flat_odice_il,
        {"expert": (BATCH,), "between": (BATCH,)} if mixed else {},
        seed=74,
        beside=beside,
        members={"value": 2},
        chosen=chosen,
    )


def expert_file() -> str:
    """Episodes of another seed, in the layout of D4RL."""
    path = Path(ROOT.name) / "expert.hdf5"
    data = walk(episodes=2, seed=9)
    with h5py.File(path, "w") as f:
        for name, column in {
            "observations": data.obs,
            "actions": data.action,
            "rewards": data.reward,
            "terminals": data.terminated,
            "timeouts": data.truncated,
        }.items():
            f[name] = column
    return str(path)


CASES = {
    "odice_il": case(),
    "odice_il-alone": case(mixed=False, max_weight=0.2),
    "odice_il-stacked": case(5),
}
OTHER = {
    ("odice_il", "gradient"): ("semi", {}),
    ("odice_il", "dual_weight"): (0.6, {}),
    ("odice_il", "max_weight"): (1e-3, {}),
    ("odice_il", "actor_hidden"): ((12, 8), {}),
    ("odice_il", "expert_episodes"): (3, {}),
    ("odice_il", "expert"): (expert_file(), {}),
}

_ALL = "odice_il odice_il-alone odice_il-stacked"
_MIXED = "odice_il odice_il-stacked"
COVERED = [
    "discriminators.discrimination_loss",
    "discriminators.slope_penalty",
    "discriminators.Discriminator.forward",
    "agents.odice_il.ODICEIL.log_ratio",
    "agents.odice_il.ODICEIL.weight",
]
FAULTS = [
    *faults(
        "agents.odice_il.ODICEIL.__init__",
        _ALL,
        ("target_of(self.value)", "self.value"),
        (", config.weight_decay", ""),
        ("adam(self.actor.parameters(), config.lr,", "adam(self.actor.parameters(), 3e-4,"),
        ("adam(self.actor.parameters()", "adam(self.actor.net.parameters()"),
        ("adam(self.value.parameters(), config.lr)", "adam(self.value.parameters(), 3e-4)"),
    ),
    *faults("agents.odice_il.ODICEIL.__init__", _MIXED, ("config.discriminator_lr", "config.lr")),
    *faults(
        "agents.odice_il.ODICEIL.view",
        "odice_il",
        ("cfg.expert_episodes", "1"),
        ("mixed=cfg.mixed", "mixed=False"),
        ("normalize_obs=cfg.normalize_obs", "normalize_obs=False"),
    ),
    *faults(
        "agents.odice_il.ODICEIL.prepare",
        _MIXED,
        ("replay.batch(replay.expert)", "replay.batch(replay.index)"),
        ("pairs.obs, pairs.action", "pairs.next_obs, pairs.action"),
        ("pairs.obs, pairs.action", "pairs.obs, -pairs.action"),
        ("end_log_ratio(replay) /", "0.0 /"),
        ("/ (1.0 - self.config.gamma)", ""),
    ),
    *faults(
        "agents.odice_il.ODICEIL.update",
        _MIXED,
        ("if self.config.mixed:", "if False:"),
        ("metrics = self.minimize(self.disc", "self.minimize(self.disc"),
        (
            "self.discriminator_loss, batch, noise",
            "self.discriminator_loss, batch, {k: -v for k, v in noise.items()}",
        ),
        ("reward = self.compute(self.log_ratio, batch)", "pass"),
        ("self.compute(self.log_ratio, batch)", "-self.log_ratio(batch).detach()"),
        ("self.compute(self.log_ratio, batch)", "self.log_ratio(batch).exp().detach()"),
        ("batch = replace(batch, reward=reward)", "pass"),
        # Rewards of the classifier as it was before its step.
        (
            "metrics = self.minimize(self.discriminator_opt, self.discriminator_loss, batch, noise)"
            "\n            reward = self.compute(self.log_ratio, batch)",
            "reward = self.compute(self.log_ratio, batch)\n            "
            "metrics = self.minimize(self.discriminator_opt, self.discriminator_loss, "
            "batch, noise)",
        ),
    ),
    *faults(
        "agents.odice_il.ODICEIL.update",
        _ALL,
        ("weight = self.compute(self.weight, batch)", "weight = -self.weight(batch).detach()"),
        ("metrics |= self.minimize(self.value_opt", "self.minimize(self.value_opt"),
        ("self.value_loss, batch, combine", "self.actor_loss, batch, weight, combine"),
        ("polyak_update(self.value, self.value_target, self.config.polyak)", "pass"),
        ("self.config.polyak", "1 - self.config.polyak"),
        ("metrics |= self.minimize(self.actor_opt", "self.minimize(self.actor_opt"),
        ("self.actor_loss, batch, weight)", "self.actor_loss, batch, 0.0 * weight + 1.0)"),
        ("return metrics", "return {}"),
        (
            "metrics |= self.minimize(self.actor_opt",
            "weight = self.weight(batch).detach(); "
            "metrics = metrics | self.minimize(self.actor_opt",
        ),
    ),
    *faults(
        "agents.odice_il.ODICEIL.update",
        "odice_il-alone",
        ("reward = torch.zeros_like(batch.reward)", "reward = batch.reward"),
        ("metrics: Metrics = {}", "metrics: Metrics = {'mixed': batch.reward.mean(-1)}"),
    ),
    *faults(
        "agents.odice_il.ODICEIL.discriminator_loss",
        _MIXED,
        ('torch.special.ndtr(noise["expert"])', 'noise["expert"].abs()'),
        ('noise["expert"]', 'noise["between"]'),
        ("len(self.expert_obs) - 1", "0"),
        ("self.expert_obs[row], self.expert_action[row]", "self.expert_obs[row], batch.action"),
        ("everyone = batch.obs, batch.action", "everyone = batch.next_obs, batch.action"),
        ("everyone = batch.obs, batch.action", "everyone = batch.obs, batch.next_action"),
        (
            "self.discriminator(*expert), self.discriminator(*everyone)",
            "self.discriminator(*everyone), self.discriminator(*expert)",
        ),
        ('torch.special.ndtr(noise["between"])', 'noise["between"]'),
        ("expert, everyone, share", "everyone, expert, share"),
        (".mean(-1)\n        loss", ".sum(-1)\n        loss"),
        ("discrimination_loss(*logits).mean(-1)", "discrimination_loss(*logits).sum(-1)"),
        ("+ self.config.penalty * slope", "+ slope"),
        ('("expert_logit", "logit")', '("logit", "expert_logit")'),
        ("return loss, {n: x.mean(-1)", "return loss, {n: x.sum(-1)"),
    ),
    *faults(
        "agents.odice_il.ODICEIL.discriminator_loss",
        "odice_il-stacked",
        ("discrimination_loss(*logits).mean(-1)", "discrimination_loss(*logits).mean()"),
        ("n: x.mean(-1)", "n: x.mean()"),
    ),
    *faults(
        "agents.odice_il.ODICEIL.log_ratio",
        _MIXED,
        (
            "self.discriminator(batch.obs, batch.action)",
            "self.discriminator(batch.next_obs, batch.action)",
        ),
        ("(1.0 - batch.mask)", "batch.mask"),
        ("self.config.gamma *", ""),
        ("* self.end_value", ""),
    ),
    *faults("agents.odice_il.ODICEIL.weight", _ALL, ("return", "return 1.0 -")),
    *faults(
        "agents.odice_il.ODICEIL.value_loss",
        _ALL,
        ("return value_losses(self, batch)", "return -value_losses(self, batch)[0], {}"),
    ),
    *faults(
        "agents.odice_il.ODICEIL.actor_loss",
        _ALL,
        (
            "weighted_regression(self, batch, weight)",
            "weighted_regression(self, batch, weight + 1)",
        ),
    ),
    *faults(
        "discriminators.Discriminator.forward",
        _MIXED,
        ("torch.cat([obs, action], -1)", "torch.cat([obs, -action], -1)"),
        ("return logit", "return 2.0 * logit"),
    ),
    *faults(
        "discriminators.discrimination_loss",
        _MIXED,
        ("softplus(-expert_logit)", "softplus(expert_logit)"),
        ("softplus(mixture_logit)", "softplus(-mixture_logit)"),
        ("+ softplus(mixture_logit)", ""),
    ),
    *faults(
        "discriminators.slope_penalty",
        _MIXED,
        ("w = share.unsqueeze(-1)", "w = 0.5"),
        ("w * e + (1.0 - w) * m", "w * e + m"),
        ("w * e + (1.0 - w) * m", "(1.0 - w) * e + w * m"),
        ("discriminator(*points).sum()", "discriminator(*points).mean()"),
        ("square().sum(-1)\n", "square().mean(-1)\n"),
        ("torch.cat(slopes, -1)", "slopes[0]"),
        ("(squares + FLAT).sqrt()", "squares"),
        ("(norm - 1.0)", "norm"),
        ("(norm - 1.0).square()", "(norm - 1.0).relu().square()"),
    ),
    *faults(
        "datasets.demonstrations.end_log_ratio",
        _MIXED,
        ("terminated[view.index]", "terminated[view.expert]"),
        ("(ends + rate)", "ends"),
        ("(len(view.expert) + 1)", "len(view.expert)"),
        ("- math.log(rate)", ""),
    ),
    *faults(
        "datasets.demonstrations._marked",
        _MIXED,
        ("np.argsort(-dataset", "np.argsort(dataset"),
        ("[:count]", ""),
    ),
    *faults(
        "datasets.demonstrations.demonstrations",
        "odice_il-alone",
        ("if not mixed:", "if mixed:"),
    ),
    *faults("datasets.demonstrations.demonstrations", "odice_il", ("if not mixed:", "if True:")),
]
