"""IQL: cases of parity, and faults."""

import flat.iql
import numpy as np
from fault import faults
from parity_case import BATCH, LR, TOTAL, Batches, Case, Layers, Trained, reach

from offrl.datasets.offline import OfflineDataset
from offrl.datasets.replay import Replay

REACH = reach(value_loss="value", actor_loss="actor", critic_loss="critic")
# Of weights that are cut as often as not.
EXTRACTION = {
    "expectile": 0.8,
    "beta": 3.0,
    "max_weight": 1.05,
    "gamma": 0.9,
    "lr": LR,
    "polyak": 0.1,
}
SETTINGS = (*EXTRACTION, "dropout", "actor_schedule", "beer")


def flat_iql(
    case: Case,
    nets: dict[str, Layers],
    batches: Batches,
    dataset: OfflineDataset,
    view: Replay,
) -> Trained:
    episodes = [dataset.episode(e) for e in range(dataset.num_episodes)]
    returns = [float(e["reward"].astype(np.float64).sum()) for e in episodes]
    return flat.iql.train(nets, batches, returns, TOTAL, **case.settings(*SETTINGS))


CASES = {
    "iql": Case("iql", EXTRACTION, REACH, flat_iql, seed=73),
    "iql-dropout": Case(
        "iql",
        {"dropout": 0.3, "actor_schedule": "constant", **EXTRACTION},
        REACH,
        flat_iql,
        {"dropout0": (BATCH, 8), "dropout1": (BATCH, 6)},
        seed=88,
    ),
    "iql-stacked": Case("iql", EXTRACTION, REACH, flat_iql, seed=73, beside=(5,)),
}

# Large weights make the cut bite, and its effect visible.
OTHER = {("iql", "max_weight"): (1e-3, {"beta": 10.0})}

_IQL_ALL = "iql iql-dropout"
FAULTS = [
    *faults(
        "agents.iql.IQL.actor_loss",
        "iql-stacked",
        ("(weight * error).mean(-1)", "(weight * error).mean()"),
        ("advantage.mean(-1)", "advantage.mean()"),
    ),
    *faults(
        "agents.iql.IQL.__init__",
        _IQL_ALL,
        ("target_of(self.critic)", "self.critic"),
        (
            "adam(self.actor.parameters(), config.lr)",
            "adam(self.actor.net.parameters(), config.lr)",
        ),
        ("adam(self.value.parameters(), config.lr)", "adam(self.value.parameters(), 3e-4)"),
        ("adam(self.critic.parameters(), config.lr)", "adam(self.critic.parameters(), 3e-4)"),
    ),
    *faults("agents.iql.IQL.__init__", "iql-dropout", (", config.dropout", "")),
    *faults(
        "agents.iql.IQL.schedule",
        "iql",
        ('if self.config.actor_schedule == "cosine":', "if False:"),
        ("self.actor_opt", "self.critic_opt"),
        ("self.config.lr, step", "3e-4, step"),
    ),
    *faults(
        "agents.iql.IQL.schedule",
        "iql-dropout",
        ('if self.config.actor_schedule == "cosine":', "if True:"),
    ),
    *faults(
        "agents.iql.IQL.update",
        _IQL_ALL,
        (
            "q = self.compute(self.target_q, batch)",
            "q = self.critic(batch.obs, batch.action).amin(0).detach()",
        ),
        ("q = self.compute(self.target_q, batch)", "q = self.target_q(batch) * batch.mask"),
        ("self.minimize(self.value_opt,", "self.minimize(self.actor_opt,"),
        ("self.minimize(self.value_opt, self.value_loss, batch, q)", "{}"),
        ("self.value_loss, batch, q)", "self.value_loss, batch, -q)"),
        ("metrics |= self.minimize(self.actor_opt", "self.minimize(self.actor_opt"),
        ("self.minimize(self.actor_opt,", "self.minimize(self.critic_opt,"),
        ("self.actor_loss, batch, q, noise)", "self.actor_loss, batch, -q, noise)"),
        ("metrics |= self.minimize(self.critic_opt, self.critic_loss, batch)", "pass"),
        ("self.minimize(self.critic_opt,", "self.minimize(self.value_opt,"),
        (
            "polyak_update(self.critic, self.critic_target,",
            "polyak_update(self.critic_target, self.critic,",
        ),
        ("polyak_update(self.critic, self.critic_target, self.config.polyak)", "pass"),
        ("self.config.polyak", "1 - self.config.polyak"),
        ("return metrics", "return {}"),
        # The critic before the value, the policy before the value, the target before its use.
        (
            "q = self.compute(self.target_q, batch)",
            "q = self.compute(self.target_q, batch); "
            "self.minimize(self.critic_opt, self.critic_loss, batch)",
        ),
        (
            "metrics = self.minimize(self.value_opt, self.value_loss, batch, q)\n"
            "        metrics |= self.minimize(self.actor_opt, self.actor_loss, batch, q, noise)",
            "metrics = self.minimize(self.actor_opt, self.actor_loss, batch, q, noise)\n"
            "        metrics |= self.minimize(self.value_opt, self.value_loss, batch, q)",
        ),
        (
            "metrics |= self.minimize(self.critic_opt, self.critic_loss, batch)\n"
            "        polyak_update(self.critic, self.critic_target, self.config.polyak)",
            "polyak_update(self.critic, self.critic_target, self.config.polyak)\n"
            "        metrics |= self.minimize(self.critic_opt, self.critic_loss, batch)",
        ),
    ),
    *faults(
        "agents.iql.IQL.update",
        "iql-dropout",
        ("self.actor_loss, batch, q, noise)", "self.actor_loss, batch, q, {})"),
    ),
    *faults(
        "agents.iql.IQL.target_q",
        _IQL_ALL,
        ("logged_value(self, batch)", "-logged_value(self, batch)"),
    ),
    *faults(
        "agents.iql.IQL.value_loss",
        _IQL_ALL,
        ("value_regression(self, batch, q)", "value_regression(self, batch, -q)"),
    ),
    *faults(
        "agents.iql.IQL.actor_loss",
        _IQL_ALL,
        ("torch.no_grad()", "torch.enable_grad()"),
        ("q - self.value(batch.obs)", "self.value(batch.obs) - q"),
        ("q - self.value(batch.obs)", "q - self.value(batch.next_obs)"),
        ("q - self.value(batch.obs)", "q"),
        ("self.config.beta, self.config.max_weight", "self.config.beta"),
        ("self.config.beta,", "1.0,"),
        ("noise), batch.action)", "noise), batch.next_action)"),
        ("self.actor(batch.obs", "self.actor(batch.next_obs"),
        ('"log_prob": -error.mean(-1)', '"log_prob": error.mean(-1)'),
        ("return (weight", "return -(weight"),
        ("(weight * error)", "(weight + error)"),
        ("(weight * error)", "error"),
        ("(weight * error).mean(-1)", "(weight * error).sum(-1) / weight.sum(-1)"),
    ),
    *faults(
        "agents.iql.IQL.actor_loss",
        "iql-dropout",
        ("self.actor(batch.obs, noise)", "self.actor(batch.obs)"),
    ),
    *faults(
        "agents.iql.IQL.critic_loss",
        _IQL_ALL,
        ("implicit_target(self, batch)", "-implicit_target(self, batch)"),
    ),
    *faults(
        "datasets.replay.transitions",
        "iql",
        ("if reward_by_return_range:", "if False:"),
        ("reward_scale *= RETURN_RANGE", "reward_scale *= 1.0"),
        ("returns.max() - returns.min()", "returns.max() + returns.min()"),
    ),
]
