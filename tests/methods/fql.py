"""FQL: cases of parity, and faults."""

from typing import Any

import flat.fql
from fault import faults
from parity_case import BATCH, LR, Batches, Case, Layers, Trained, reach
from problems import ACT

from offrl.datasets.offline import OfflineDataset
from offrl.datasets.replay import Replay

REACH = reach(actor_loss="flow student critic", critic_loss="critic")
TRAINING: dict[str, Any] = {
    **{"alpha": 1.5, "flow_steps": 3, "gamma": 0.9, "lr": LR, "polyak": 0.1},
    **{"critic_hidden": (8, 6)},
}
NOISE = {
    **{"level": (BATCH,), "noise": (BATCH, ACT)},
    **{"z_start": (BATCH, 1, ACT), "next_z": (BATCH, 1, ACT)},
}
SETTINGS = ("alpha", "normalize_q", "q_agg", "flow_steps", "gamma", "lr", "polyak")


def flat_fql(
    case: Case,
    nets: dict[str, Layers],
    batches: Batches,
    dataset: OfflineDataset,
    view: Replay,
) -> Trained:
    return flat.fql.train(nets, batches, **case.settings(*SETTINGS))


SCALED = {**TRAINING, "normalize_q": True, "q_agg": "min"}
CASES = {
    "fql": Case("fql", TRAINING, REACH, flat_fql, NOISE),
    "fql-scaled": Case("fql", SCALED, REACH, flat_fql, NOISE),
    "fql-stacked": Case("fql", TRAINING, REACH, flat_fql, NOISE, beside=(5,)),
}

OTHER = {
    ("fql", "q_agg"): ("min", {}),
    ("fql", "flow_steps"): (3, {}),
    ("fql", "critic_hidden"): ((16, 8), {}),
}

_AT = "agents.fql.FQL"
_ALL = "fql-stacked"
FAULTS = [
    *faults(
        f"{_AT}.update",
        _ALL,
        ('self.target, batch, noise["next_z"]', 'self.target, batch, noise["z_start"]'),
        ("goal = self.compute(self.taught, batch, noise)", "goal = batch.action"),
        (
            "metrics = self.minimize(self.actor_opt, self.actor_loss, batch, goal, noise)\n"
            "        metrics |= self.minimize(self.critic_opt, self.critic_loss, batch, target)",
            "metrics = self.minimize(self.critic_opt, self.critic_loss, batch, target)\n"
            "        metrics |= self.minimize(self.actor_opt, self.actor_loss, batch, goal, noise)",
        ),
        ("self.minimize(self.actor_opt, self.actor_loss, batch, goal, noise)", "{}"),
        ("metrics |= self.minimize(self.critic_opt, self.critic_loss, batch, target)", "pass"),
        ("polyak_update(self.critic, self.critic_target, self.config.polyak)", "pass"),
        ("self.config.polyak", "1 - self.config.polyak"),
        ("return metrics", "return {}"),
    ),
    *faults(
        f"{_AT}.target",
        _ALL,
        ("None, batch.next_obs", "None, batch.obs"),
        (".clamp(-1.0, 1.0)", ".clamp(-0.2, 0.2)"),
        ("self.critic_target(", "self.critic("),
        ("(batch.next_obs, action)", "(batch.next_obs, batch.next_action)"),
        ('== "min"', '!= "min"'),
        ("batch.reward, batch.mask", "batch.reward, torch.ones_like(batch.mask)"),
        ("self.config.gamma", "0.99"),
    ),
    *faults(f"{_AT}.target", "fql", ("q.mean(0)", "q.amin(0)")),
    *faults(f"{_AT}.target", "fql-scaled", ("q.amin(0)", "q.amax(0)")),
    *faults(
        f"{_AT}.taught",
        _ALL,
        ("self.flow, batch.obs", "self.flow, batch.next_obs"),
    ),
    *faults(
        f"{_AT}.actor_loss",
        _ALL,
        ("cloning_error(self, self.flow, batch, noise).mean(-1)", "0.0 * goal.mean((-2, -1))"),
        ('self.student(noise["z_start"]', 'self.student(noise["next_z"]'),
        ("None, batch.obs)", "None, batch.next_obs)"),
        ("action_error(action, goal)", "action_error(action, batch.action)"),
        ("action_error(action, goal)", "action_error(action.detach(), goal)"),
        ("action.clamp(-1.0, 1.0)", "action.detach()"),
        ("action.clamp(-1.0, 1.0)", "action.clamp(-0.2, 0.2)"),
        (".mean(0)", ".amin(0)"),
        ("if self.config.normalize_q else", "if not self.config.normalize_q else"),
        ("self.config.alpha *", ""),
        ("- scale * q.mean(-1)", "+ scale * q.mean(-1)"),
        ('"q": q.mean(-1)', '"q": -q.mean(-1)'),
    ),
    *faults(
        f"{_AT}.critic_loss",
        _ALL,
        ("self.critic(batch.obs, batch.action)", "self.critic(batch.next_obs, batch.action)"),
        ("batch.action), target", "batch.action), -target"),
    ),
    *faults(
        f"{_AT}.__init__",
        _ALL,
        ('"euler", config.flow_steps', '"euler", 2'),
        ("clip=None", "clip=0.3"),
        ('norm="after"', 'norm="before"'),
        ('activation="gelu"', 'activation="mish"'),
        ("both, config.lr", "both, 3e-4"),
    ),
    *faults(
        "fields.Field.forward",
        _ALL,
        ("parts.append(level.unsqueeze(-1))", "parts.append(0.0 * level.unsqueeze(-1))"),
        (
            "[condition.flatten(x.ndim - 2), x.flatten(-2)]",
            "[x.flatten(-2), condition.flatten(x.ndim - 2)]",
        ),
    ),
]

COVERED = [f"{_AT}.target", f"{_AT}.taught"]
