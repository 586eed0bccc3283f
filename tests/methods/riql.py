"""RIQL: cases of parity, and faults."""

import flat.riql
import torch
from fault import faults
from parity_case import LR, TOTAL, Batches, Case, Layers, Trained, reach

from offrl.datasets.offline import OfflineDataset
from offrl.datasets.replay import Replay

REACH = reach(value_loss="value", critic_loss="critic", actor_loss="actor")
# Weights and targets that are cut as often as not, errors on both sides of the threshold.
ROBUST = {
    "sigma": 1.6,
    "quantile": 0.6,
    "critics": 4,
    "expectile": 0.8,
    "beta": 3.0,
    "max_weight": 1.05,
    "target_min": -0.7,
    "target_max": 0.9,
    "gamma": 0.9,
    "lr": LR,
    "polyak": 0.1,
}
SETTINGS = (*ROBUST, "actor", "actor_schedule", "normalize_obs", "normalize_with_next", "beer")


def flat_riql(
    case: Case,
    nets: dict[str, Layers],
    batches: Batches,
    dataset: OfflineDataset,
    view: Replay,
) -> Trained:
    rows, o = torch.from_numpy(dataset.rows).double(), dataset.obs_dim
    for batch in batches:
        batch["raw_obs"] = rows[batch["index"], :o]
        batch["raw_next_obs"] = rows[batch["index"] + 1, :o]
    every, after = rows[view.index, :o], rows[view.index + 1, :o]
    return flat.riql.train(nets, batches, every, after, TOTAL, **case.settings(*SETTINGS))


MEMBERS = {"critic": 4}
CASES = {
    "riql": Case("riql", ROBUST, REACH, flat_riql, members=MEMBERS, seed=91),
    "riql-gaussian": Case(
        "riql",
        {
            **ROBUST,
            "actor": "gaussian",
            "actor_schedule": "constant",
            "normalize_with_next": False,
            "critics": 3,
            "quantile": 1.0,
        },
        REACH,
        flat_riql,
        members={"critic": 3},
        seed=73,
    ),
    "riql-stacked": Case("riql", ROBUST, REACH, flat_riql, members=MEMBERS, seed=91, beside=(5,)),
}
OTHER = {
    ("riql", "critics"): (3, {}),
    ("riql", "max_weight"): (1e-3, {}),
    ("riql", "target_min"): (0.0, {}),
    ("riql", "target_max"): (0.0, {}),
    ("riql", "actor"): ("gaussian", {}),
}
COVERED = [
    "agents.riql.RIQL.target",
    "agents.riql.RIQL.advantage",
    "agents.riql.RIQL.schedule",
    "losses.ensemble_quantile",
    "losses.huber_loss",
]

_AT = "agents.riql.RIQL"
_BOTH = "riql riql-gaussian"
FAULTS = [
    # A mean over all axes, which mixes learners.
    *faults(
        f"{_AT}.value_loss",
        "riql-stacked",
        (").mean(-1)\n", ").mean()\n"),
        ("value.mean(-1)", "value.mean()"),
    ),
    *faults(
        f"{_AT}.critic_loss",
        "riql-stacked",
        (".mean(0).mean(-1)", ".mean()"),
        ("q[0].mean(-1)", "q[:, 0].mean(-1)"),
        ("target.mean(-1)}", "target.mean()}"),
    ),
    *faults(
        f"{_AT}.actor_loss",
        "riql-stacked",
        ("(weight * bc_loss).mean(-1)", "(weight * bc_loss).mean()"),
        ("advantage.mean(-1)", "advantage.mean()"),
        ("bc_loss.mean(-1)}", "bc_loss.mean()}"),
    ),
    *faults(
        f"{_AT}.__init__",
        _BOTH,
        ("target_of(self.critic)", "self.critic"),
        ("adam(self.value.parameters(), config.lr)", "adam(self.value.parameters(), 3e-4)"),
        ("adam(self.critic.parameters(), config.lr)", "adam(self.critic.parameters(), 3e-4)"),
        ('if config.actor == "gaussian":', 'if config.actor != "gaussian":'),
    ),
    *faults(
        f"{_AT}.__init__",
        "riql-gaussian",
        ("squash_mean=False", "squash_mean=True"),
        ("adam(self.actor.parameters(), config.lr)", "adam(self.actor.parameters(), 3e-4)"),
        (
            "adam(self.actor.parameters(), config.lr)",
            "adam(self.actor.net.parameters(), config.lr)",
        ),
    ),
    *faults(
        f"{_AT}.schedule",
        "riql",
        ('if self.config.actor_schedule == "cosine":', "if False:"),
        ("self.actor_opt", "self.critic_opt"),
        ("self.config.lr, step", "3e-4, step"),
    ),
    *faults(
        f"{_AT}.schedule",
        "riql-gaussian",
        ('if self.config.actor_schedule == "cosine":', "if True:"),
    ),
    *faults(
        f"{_AT}.update",
        _BOTH,
        ("target = self.compute(self.target, batch)", "target = batch.reward"),
        (
            "q = self.compute(self.target_q, batch)",
            "q = self.critic(batch.obs, batch.action).amin(0).detach()",
        ),
        ("q = self.compute(self.target_q, batch)", "q = self.target_q(batch) * batch.mask"),
        ("self.compute(self.advantage, batch, q)", "-self.compute(self.advantage, batch, q)"),
        ("self.compute(self.advantage, batch, q)", "q"),
        ("self.minimize(self.value_opt,", "self.minimize(self.actor_opt,"),
        ("self.minimize(self.value_opt, self.value_loss, batch, q)", "{}"),
        ("self.value_loss, batch, q)", "self.value_loss, batch, -q)"),
        ("self.minimize(self.critic_opt,", "self.minimize(self.value_opt,"),
        ("metrics |= self.minimize(self.critic_opt", "self.minimize(self.critic_opt"),
        ("self.critic_loss, batch, target)", "self.critic_loss, batch, q)"),
        (
            "polyak_update(self.critic, self.critic_target,",
            "polyak_update(self.critic_target, self.critic,",
        ),
        ("polyak_update(self.critic, self.critic_target, self.config.polyak)", "pass"),
        ("self.config.polyak", "1 - self.config.polyak"),
        ("metrics |= self.minimize(self.actor_opt", "self.minimize(self.actor_opt"),
        ("self.minimize(self.actor_opt,", "self.minimize(self.critic_opt,"),
        ("self.actor_loss, batch, advantage)", "self.actor_loss, batch, -advantage)"),
        ("return metrics", "return {}"),
        # The target and the advantage with the new V, as IQL has them.
        (
            "target = self.compute(self.target, batch)\n"
            "        q = self.compute(self.target_q, batch)\n"
            "        advantage = self.compute(self.advantage, batch, q)\n"
            "        metrics = self.minimize(self.value_opt, self.value_loss, batch, q)\n",
            "q = self.compute(self.target_q, batch)\n"
            "        advantage = self.compute(self.advantage, batch, q)\n"
            "        metrics = self.minimize(self.value_opt, self.value_loss, batch, q)\n"
            "        target = self.compute(self.target, batch)\n",
        ),
        (
            "advantage = self.compute(self.advantage, batch, q)\n"
            "        metrics = self.minimize(self.value_opt, self.value_loss, batch, q)\n",
            "metrics = self.minimize(self.value_opt, self.value_loss, batch, q)\n"
            "        advantage = self.compute(self.advantage, batch, q)\n",
        ),
        # The targets before the critics.
        (
            "metrics |= self.minimize(self.critic_opt, self.critic_loss, batch, target)\n"
            "        polyak_update(self.critic, self.critic_target, self.config.polyak)",
            "polyak_update(self.critic, self.critic_target, self.config.polyak)\n"
            "        metrics |= self.minimize(self.critic_opt, self.critic_loss, batch, target)",
        ),
    ),
    *faults(
        f"{_AT}.target",
        _BOTH,
        ("self.value(batch.next_obs)", "self.value(batch.obs)"),
        ("cfg, next_value = self.config,", "cfg, next_value = type(self.config)(),"),
        ("batch.reward, batch.mask", "-batch.reward, batch.mask"),
        ("batch.reward, batch.mask", "batch.reward, torch.ones_like(batch.mask)"),
        ("next_value, cfg.gamma", "next_value, 0.99"),
        (".clamp(cfg.target_min, cfg.target_max)", ""),
        ("cfg.target_min, cfg.target_max", "-100.0, cfg.target_max"),
        ("cfg.target_min, cfg.target_max", "cfg.target_min, 1000.0"),
    ),
    *faults(
        f"{_AT}.target_q",
        _BOTH,
        ("self.critic_target(", "self.critic("),
        ("batch.obs, batch.action", "batch.next_obs, batch.action"),
        ("self.config.quantile", "0.25"),
        ("self.config.quantile", "1.0 - self.config.quantile"),
    ),
    *faults(
        f"{_AT}.advantage",
        _BOTH,
        ("q - self.value(batch.obs)", "self.value(batch.obs) - q"),
        ("q - self.value(batch.obs)", "q - self.value(batch.next_obs)"),
        ("return advantage", "return -advantage"),
    ),
    *faults(
        f"{_AT}.value_loss",
        _BOTH,
        ("self.value(batch.obs)", "self.value(batch.next_obs)"),
        ("q - value, self", "value - q, self"),
        ("self.config.expectile", "1 - self.config.expectile"),
        (").mean(-1)\n", ").sum(-1)\n"),
        ("return loss,", "return -loss,"),
        ('{"value": value.mean(-1)}', "{}"),
    ),
    *faults(
        f"{_AT}.critic_loss",
        _BOTH,
        ("features(batch.obs, batch.action)", "features(batch.next_obs, batch.action)"),
        ("self.critic.read(features)", "self.critic_target.read(features)"),
        ("huber_loss(target - q, self.config.sigma)", "(target - q).square()"),
        ("huber_loss(target - q", "huber_loss(target + q"),
        ("self.config.sigma", "1.0"),
        (".mean(0).mean(-1)", ".sum(0).mean(-1)"),
        (".mean(0).mean(-1)", ".mean(0).sum(-1)"),
        ("target.mean(-1)}", "target.amin(-1)}"),
        ("features, loss, metrics", "features, -loss, metrics"),
    ),
    *faults(
        f"{_AT}.actor_loss",
        _BOTH,
        ("self.config.beta, self.config.max_weight", "self.config.beta"),
        ("self.config.beta,", "1.0,"),
        ("self.actor(batch.obs)", "self.actor(batch.next_obs)"),
        ("self.actor(batch.obs), batch.action", "self.actor(batch.obs), batch.next_action"),
        ('"bc_loss": bc_loss.mean(-1)', '"bc_loss": bc_loss.sum(-1)'),
        ("(weight * bc_loss)", "(weight + bc_loss)"),
        ("(weight * bc_loss)", "bc_loss"),
        ("(weight * bc_loss).mean(-1)", "(weight * bc_loss).sum(-1) / weight.sum(-1)"),
    ),
    *faults(
        "losses.ensemble_quantile",
        "riql",
        ("level * (len(q) - 1)", "level * len(q)"),
        ("below = int(place)", "below = 0"),
        ("min(below + 1, len(q) - 1)", "below"),
        ("q.sort(0).values", "q"),
        ("q.sort(0).values", "q.sort(-1).values"),
        ("q.sort(0)", "q.sort(0, descending=True)"),
        ("place - below)", "0.5)"),
    ),
    *faults(
        "losses.ensemble_quantile",
        "riql-gaussian",
        ("min(below + 1, len(q) - 1)", "below + 1"),
        ("return ordered[below]", "return ordered[0]"),
    ),
    *faults(
        "losses.huber_loss",
        _BOTH,
        ("error.abs()", "error"),
        ("0.5 / sigma**2", "0.0"),
        ("(0.5 * sigma**2 * error", "(0.5 * error"),
        ("(0.5 * sigma**2 * error.square())", "linear"),
        ("error.square()", "error.abs()"),
        ("size < 1.0 / sigma**2", "size > 1.0 / sigma**2"),
        ("size < 1.0 / sigma**2", "size < 1.0"),
    ),
    *faults(
        "losses.action_distance",
        "riql",
        (".sum(-1)", ".mean(-1)"),
        (".square()", ".abs()"),
        ("(action - goal)", "(action + goal)"),
    ),
    *faults("losses.cloning_loss", "riql-gaussian iql", ("-policy.log_prob", "policy.log_prob")),
    *faults(
        "datasets.replay.transitions",
        "riql",
        ("dataset.obs_moments(normalize_with_next)", "dataset.obs_moments()"),
        ("std = deviation + STD_EPS", "std = deviation"),
        ("if normalize_obs:", "if False:"),
    ),
    *faults(
        "datasets.replay.transitions",
        "riql-gaussian",
        ("dataset.obs_moments(normalize_with_next)", "dataset.obs_moments(True)"),
    ),
]
