"""Diffusion-QL: cases of parity, and faults, also of what it shares with others that generate."""

from dataclasses import replace
from typing import Any

import flat.diffusion_ql
import torch
from fault import faults
from parity_case import BATCH, LR, TOTAL, Batches, Case, Layers, Trained, reach
from problems import ACT

from offrl.datasets.offline import OfflineDataset
from offrl.datasets.replay import Replay, transitions

REACH = reach(critic_loss="critic", policy_loss="net critic")
# Gradients that are cut and an average that moves twice in six updates.
TRAINING: dict[str, Any] = {
    **{"eta": 0.7, "levels": 3, "grad_norm": 0.5, "ema": 0.5, "ema_start": 2, "ema_every": 2},
    **{"gamma": 0.9, "lr": LR, "critic_lr": 2.0**-9, "polyak": 0.1},
    **{"width": 8, "depth": 2, "critic_hidden": (8, 6)},
}
UNCUT = {**TRAINING, "grad_norm": 50.0}
BACKUP = {**TRAINING, "backup": 3, "lr_schedule": "cosine", "standardize_reward": True}
SETTINGS = (
    *("eta", "levels", "backup", "grad_norm", "ema", "ema_start", "ema_every", "gamma", "lr"),
    *("critic_lr", "lr_schedule", "polyak", "standardize_reward"),
)


def noise(levels: int, backup: int) -> dict[str, tuple[int, ...]]:
    rows = BATCH * backup
    return {
        **{"level": (BATCH,), "noise": (BATCH, ACT), "order": ()},
        **{"policy_start": (BATCH, 1, ACT), "policy_steps": (levels - 1, BATCH, 1, ACT)},
        **{"next_start": (rows, 1, ACT), "next_steps": (levels - 1, rows, 1, ACT)},
    }


def flat_diffusion_ql(
    case: Case,
    nets: dict[str, Layers],
    batches: Batches,
    dataset: OfflineDataset,
    view: Replay,
) -> Trained:
    rewards = torch.from_numpy(dataset.rows[view.index.numpy(), -3]).double()
    return flat.diffusion_ql.train(nets, batches, rewards, TOTAL, **case.settings(*SETTINGS))


def _raw(case: Case, dataset: OfflineDataset) -> Replay:
    return replace(transitions(dataset), fingerprint="raw")


CASES = {
    "diffusion_ql": Case("diffusion_ql", UNCUT, REACH, flat_diffusion_ql, noise(3, 1), view=_raw),
    "diffusion_ql-backup": Case(
        "diffusion_ql", BACKUP, REACH, flat_diffusion_ql, noise(3, 3), view=_raw
    ),
    "diffusion_ql-uncut": Case(
        "diffusion_ql",
        {**TRAINING, "grad_norm": 0.0, "levels": 1},
        REACH,
        flat_diffusion_ql,
        {k: v for k, v in noise(1, 1).items() if not k.endswith("steps")},
        view=_raw,
    ),
    "diffusion_ql-stacked": Case(
        "diffusion_ql", TRAINING, REACH, flat_diffusion_ql, noise(3, 1), view=_raw, beside=(5,)
    ),
}

OTHER = {
    ("diffusion_ql", "levels"): (3, {}),
    ("diffusion_ql", "backup"): (3, {}),
    ("diffusion_ql", "candidates"): (4, {}),
    ("diffusion_ql", "ema_start"): (6, {}),
    ("diffusion_ql", "ema_every"): (2, {}),
    ("diffusion_ql", "grad_norm"): (0.01, {}),
    ("diffusion_ql", "lr_schedule"): ("cosine", {}),
    ("diffusion_ql", "critic_hidden"): ((16, 8), {}),
}

_AT = "agents.diffusion_ql.DiffusionQL"
_ALL = "diffusion_ql-backup"
_CRITIC_STEP = "self.minimize(self.critic_opt, self.critic_loss, batch, target, combine=self.clip)"
_POLICY_STEP = "self.minimize(self.net_opt, self.policy_loss, batch, noise, combine=self.clip)"
FAULTS = [
    *faults(
        f"{_AT}.update",
        _ALL,
        ("target = self.compute(self.target, batch, noise)", "target = 0.0 * batch.reward"),
        ("batch, target, combine=self.clip", "batch, target, combine=lambda g, axes: g[0]"),
        ("batch, noise, combine=self.clip", "batch, noise, combine=lambda g, axes: g[0]"),
        (
            "self.minimize(self.critic_opt, self.critic_loss, batch, target, combine=self.clip)",
            "{}",
        ),
        (f"metrics |= {_POLICY_STEP}", "pass"),
        ("self.critic_loss, batch, target", "self.critic_loss, batch, -target"),
        (
            f"metrics = {_CRITIC_STEP}\n        metrics |= {_POLICY_STEP}",
            f"metrics = {_POLICY_STEP}\n        metrics |= {_CRITIC_STEP}",
        ),
        ("self.average.update(self.net)", "pass"),
        ("polyak_update(self.critic, self.critic_target, self.config.polyak)", "pass"),
        ("self.config.polyak", "1 - self.config.polyak"),
        ("return metrics", "return {}"),
    ),
    *faults(
        f"{_AT}.target",
        _ALL,
        ("n = self.config.backup", "n = 2"),
        ("self.average.net, batch.next_obs", "self.net, batch.next_obs"),
        ("self.average.net, batch.next_obs", "self.average.net, batch.obs"),
        ("self.critic_target(", "self.critic("),
        ("repeated(batch.next_obs", "repeated(batch.obs"),
        (".amin(0)", ".amax(0)"),
        ("batch.reward, batch.mask", "batch.reward, torch.ones_like(batch.mask)"),
        ("self.config.gamma", "0.99"),
    ),
    *faults(
        f"{_AT}.target",
        "diffusion_ql-backup",
        ("amax(-1).amin(0)", "amin(0).amax(-1)"),
        ("amax(-1)", "mean(-1)"),
        ("(-1, (-1, n))", "(-1, (n, -1)).transpose(-1, -2)"),
    ),
    *faults(
        f"{_AT}.critic_loss",
        _ALL,
        ("self.critic(batch.obs, batch.action)", "self.critic(batch.next_obs, batch.action)"),
        ("batch.action), target", "batch.action), -target"),
        ("loss[None], metrics", "loss[None], {}"),
    ),
    *faults(
        f"{_AT}.policy_loss",
        _ALL,
        ("cloning_error(self, self.net, batch, noise).mean(-1)", "0.0 * batch.reward.mean(-1)"),
        ("cloning_error(self, self.net", "cloning_error(self, self.average.net"),
        ("sampled(self, self.net, batch.obs", "sampled(self, self.net, batch.next_obs"),
        ("sampled(self, self.net, batch.obs", "sampled(self, self.average.net, batch.obs"),
        ('noise, "policy")', 'noise, "policy").detach()'),
        ("self.critic(batch.obs, action)", "self.critic(batch.next_obs, action)"),
        ("self.critic(batch.obs, action)", "self.critic(batch.obs, batch.action)"),
        ('(noise["order"] > 0)', '(noise["order"] < 0)'),
        ("torch.where(first, q[1], q[0])", "torch.where(first, q[0], q[1])"),
        ("-q_scale(size, self.config.eta)", "q_scale(size, self.config.eta)"),
        ("self.config.eta", "1.0"),
        ("(bc_loss + q_loss)[None]", "bc_loss[None]"),
        ('"q": up.mean(-1)', '"q": size.mean(-1)'),
    ),
    *faults(
        f"{_AT}.schedule",
        _ALL,
        ("self.average.schedule(step)", "pass"),
    ),
    *faults(
        f"{_AT}.schedule",
        "diffusion_ql-backup",
        ('if self.config.lr_schedule == "cosine":', "if False:"),
        ("set_lr(self.net_opt,", "set_lr(self.critic_opt,"),
        ("self.config.critic_lr, step", "self.config.lr, step"),
    ),
    *faults(
        f"{_AT}.schedule",
        "diffusion_ql",
        ('if self.config.lr_schedule == "cosine":', "if True:"),
    ),
    *faults(
        "datasets.replay.transitions",
        "diffusion_ql-backup",
        ("if standardize_reward:", "if False:"),
        ("ddof=1", "ddof=0"),
        ("reward_scale * float(reward.mean())", "float(reward.mean())"),
    ),
    *faults(
        f"{_AT}.__init__",
        _ALL,
        ('"vp"', '"cosine"'),
        ('"ddpm"', '"ddim"'),
        ('"start": config.ema_start', '"start": 0'),
        ('"every": config.ema_every', '"every": 1'),
        ("high=config.ema", "high=0.995"),
        ('"mish"', '"relu"'),
    ),
    *faults(
        f"{_AT}.__init__",
        "diffusion_ql",
        ("adam(self.net.parameters(), config.lr)", "adam(self.net.parameters(), 3e-4)"),
        ("config.critic_lr)", "config.lr)"),
    ),
    *faults(
        f"{_AT}.__init__",
        _ALL,
        ("clipping(config.grad_norm)", "clipping(1e3)"),
        ("clipping(config.grad_norm)", "clipping(0.1)"),
    ),
    *faults(
        "optim.clipping",
        "diffusion_ql-stacked",
        ("seed_axes, most", "[None] * len(seed_axes), most"),
    ),
    *faults(
        f"{_AT}.policy_loss",
        "diffusion_ql-stacked",
        ("noise).mean(-1)", "noise).mean()"),
        ("* up.mean(-1)", "* up.mean()"),
        ('q_loss, "q": up.mean(-1)', 'q_loss, "q": up.mean()'),
    ),
    *faults(
        "optim.clip_norm",
        _ALL,
        (".sqrt()", ""),
        ("1e-6)).clamp", "1e-2)).clamp"),
    ),
    *faults("optim.clip_norm", "diffusion_ql", (".clamp(max=1.0)", "")),
    *faults("optim.clip_norm", "diffusion_ql-uncut", ("if not most:", "if most:")),
    *faults(
        "generated_actions.cloning_error",
        f"{_ALL} fql-stacked",
        ('draw(noise["level"])', 'draw(-noise["level"])'),
        ('noise["noise"].unsqueeze(-2)', '-noise["noise"].unsqueeze(-2)'),
        ("at, batch.obs", "at, batch.next_obs"),
        ("batch.action.unsqueeze", "batch.next_action.unsqueeze"),
    ),
    *faults(
        "generated_actions.sampled",
        _ALL,
        (".clamp(-1.0, 1.0)", ".clamp(-0.5, 0.5)"),
        ("(net, obs)", "(net, -obs)"),
    ),
    *faults("generated_actions.sampled", "fql-stacked", (".clamp(-1.0, 1.0)", "")),
]

COVERED = [f"{_AT}.target", f"{_AT}.schedule"]
