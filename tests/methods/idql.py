"""IDQL, its flow form and AWM: cases of parity, and faults."""

from typing import Any

import flat.awm
import flat.idql
import numpy as np
from fault import Fault, faults
from parity_case import BATCH, LR, TOTAL, Batches, Case, Layers, Trained, reach
from problems import ACT

from offrl.datasets.offline import OfflineDataset
from offrl.datasets.replay import Replay

REACH = reach(policy_loss="net", value_loss="value", critic_loss="critic")
WIDTH, DEPTH = 8, 2
# An average that is not the network.
TRAINING: dict[str, Any] = {
    **{"levels": 3, "ema": 0.6, "expectile": 0.8, "gamma": 0.9, "lr": LR, "polyak": 0.1},
    **{"width": WIDTH, "depth": DEPTH, "dropout": 0.3},
}
FLOW = {**TRAINING, "process": "flow", "dropout": 0.0, "actor_schedule": "constant"}
# Weights that are cut as often as not.
WEIGHTED = {**TRAINING, "beta": 3.0, "max_weight": 0.8, "dropout": 0.0}
NOISE = {"level": (BATCH,), "noise": (BATCH, ACT)}
DROPOUT = {**NOISE, **{f"dropout{i}": (BATCH, WIDTH) for i in range(DEPTH)}}
SETTINGS = (
    *("process", "levels", "dropout", "ema", "actor_schedule", "expectile", "gamma", "lr"),
    "polyak",
)
OWN = ("weights", "beta", "max_weight")


def scale_of(case: Case, dataset: OfflineDataset) -> float:
    if not case.config.reward_by_return_range:
        return 1.0
    episodes = [dataset.episode(e) for e in range(dataset.num_episodes)]
    returns = [float(e["reward"].astype(np.float64).sum()) for e in episodes]
    return 1000.0 / (max(returns) - min(returns))


def flat_idql(
    case: Case,
    nets: dict[str, Layers],
    batches: Batches,
    dataset: OfflineDataset,
    view: Replay,
) -> Trained:
    scale = scale_of(case, dataset)
    return flat.idql.train(nets, batches, scale, TOTAL, **case.settings(*SETTINGS))


def flat_awm(
    case: Case,
    nets: dict[str, Layers],
    batches: Batches,
    dataset: OfflineDataset,
    view: Replay,
) -> Trained:
    scale = scale_of(case, dataset)
    return flat.awm.train(nets, batches, scale, TOTAL, **case.settings(*SETTINGS, *OWN))


FILTER = {**WEIGHTED, "weights": "filter", "process": "diffusion"}
FILTER |= {"actor_schedule": "constant"}
DROPPED = {**WEIGHTED, "dropout": 0.1}
CASES = {
    "idql": Case("idql", TRAINING, REACH, flat_idql, DROPOUT, seed=73),
    "ifql": Case("ifql", FLOW, REACH, flat_idql, NOISE, seed=73),
    "idql-stacked": Case("idql", TRAINING, REACH, flat_idql, DROPOUT, seed=73, beside=(5,)),
    "awm": Case("awm", DROPPED, REACH, flat_awm, DROPOUT, seed=73),
    "awm-filter": Case("awm", FILTER, REACH, flat_awm, NOISE, seed=76),
    "awm-stacked": Case("awm", WEIGHTED, REACH, flat_awm, NOISE, seed=73, beside=(5,)),
}

OTHER = {
    **{(name, "levels"): (3, {}) for name in ("idql", "ifql", "awm")},
    **{(name, "candidates"): (4, {}) for name in ("idql", "ifql", "awm")},
    ("idql", "process"): ("flow", {}),
    ("ifql", "process"): ("diffusion", {}),
    ("awm", "process"): ("diffusion", {}),
    ("ifql", "expectile"): (0.7, {}),
    ("ifql", "actor_schedule"): ("cosine", {}),
    ("awm", "weights"): ("filter", {}),
    # Large weights make the cut bite, and its effect visible.
    ("awm", "max_weight"): (1e-3, {"beta": 10.0}),
}


def both(at: str, cases: str, minimized: str) -> list[Fault]:
    """Slips in what both agents write out."""
    step = f"self.minimize(self.net_opt, self.policy_loss, {minimized})"
    return [
        *faults(
            f"{at}.update",
            cases,
            ("q = self.compute(self.target_q, batch)", "q = self.target_q(batch) * batch.mask"),
            ("self.value_loss, batch, q)", "self.value_loss, batch, -q)"),
            (step, "{}"),
            ("metrics |= self.minimize(self.critic_opt, self.critic_loss, batch)", "pass"),
            ("self.average.update(self.net)", "pass"),
            ("polyak_update(self.critic, self.critic_target, self.config.polyak)", "pass"),
            ("self.config.polyak", "1 - self.config.polyak"),
            ("return metrics", "return {}"),
            (
                "q = self.compute(self.target_q, batch)",
                "q = self.compute(self.target_q, batch); "
                "self.minimize(self.critic_opt, self.critic_loss, batch)",
            ),
        ),
        *faults(
            f"{at}.target_q", cases, ("logged_value(self, batch)", "-logged_value(self, batch)")
        ),
        *faults(
            f"{at}.value_loss",
            cases,
            ("value_regression(self, batch, q)", "value_regression(self, batch, -q)"),
        ),
        *faults(
            f"{at}.critic_loss",
            cases,
            ("self.critic(batch.obs, batch.action)", "self.critic(batch.next_obs, batch.action)"),
            ("implicit_target(self, batch)", "-implicit_target(self, batch)"),
        ),
        *faults(
            f"{at}.schedule",
            cases,
            ('if self.config.actor_schedule == "cosine":', "if False:"),
            ("self.config.lr, step", "3e-4, step"),
        ),
    ]


_IDQL, _AWM = "agents.idql.IDQL", "agents.awm.AWM"
FAULTS = [
    *both(_IDQL, "idql-stacked", "batch, noise"),
    *both(_AWM, "awm-stacked", "batch, q, noise"),
    *faults(f"{_IDQL}.schedule", "ifql", ('== "cosine"', '!= "cosine"')),
    *faults(
        "generated_actions.equip",
        "idql-stacked awm-stacked",
        ("high=cfg.ema", "high=0.999"),
        ("adam(agent.critic.parameters(), cfg.lr)", "adam(agent.critic.parameters(), 3e-4)"),
        ("adam(agent.value.parameters(), cfg.lr)", "adam(agent.value.parameters(), 3e-4)"),
    ),
    *faults(
        "generated_actions.equip",
        "ifql awm-filter",
        ("adam(agent.net.parameters(), cfg.lr)", "adam(agent.net.parameters(), 3e-4)"),
    ),
    *faults(
        f"{_IDQL}.update",
        "idql-stacked",
        ("metrics |= self.minimize(self.value_opt, self.value_loss, batch, q)", "pass"),
        (
            "metrics |= self.minimize(self.value_opt, self.value_loss, batch, q)\n"
            "        metrics |= self.minimize(self.critic_opt, self.critic_loss, batch)",
            "metrics |= self.minimize(self.critic_opt, self.critic_loss, batch)\n"
            "        metrics |= self.minimize(self.value_opt, self.value_loss, batch, q)",
        ),
    ),
    *faults(
        f"{_IDQL}.policy_loss",
        "idql-stacked",
        ("partial(self.net, noise=noise)", "self.net"),
        ("partial(self.net,", "partial(self.average.net,"),
        (".mean(-1), {}", ".sum(-1), {}"),
        (".mean(-1), {}", ".mean(), {}"),
    ),
    *faults(
        f"{_AWM}.update",
        "awm-stacked",
        ("self.minimize(self.value_opt, self.value_loss, batch, q)", "{}"),
        ("self.policy_loss, batch, q, noise", "self.policy_loss, batch, -q, noise"),
        (
            "metrics = self.minimize(self.value_opt, self.value_loss, batch, q)\n"
            "        metrics |= self.minimize(self.net_opt, self.policy_loss, batch, q, noise)",
            "metrics = self.minimize(self.net_opt, self.policy_loss, batch, q, noise)\n"
            "        metrics |= self.minimize(self.value_opt, self.value_loss, batch, q)",
        ),
    ),
    *faults(
        f"{_AWM}.weight",
        "awm-filter",
        ('== "filter"', '!= "filter"'),
        ("advantage > 0", "advantage < 0"),
        ("advantage > 0", "advantage < 0.3"),
    ),
    *faults(
        f"{_AWM}.weight",
        "awm-stacked",
        ("self.config.beta,", "1.0,"),
        ("self.config.max_weight)", "100.0)"),
    ),
    *faults(
        f"{_AWM}.policy_loss",
        "awm-stacked",
        ("torch.no_grad()", "torch.enable_grad()"),
        ("q - self.value(batch.obs)", "q - self.value(batch.next_obs)"),
        ("q - self.value(batch.obs)", "self.value(batch.obs) - q"),
        ("(weight * error).mean(-1)", "(weight * error).sum(-1) / weight.sum(-1)"),
        ("(weight * error).mean(-1)", "(weight * error).mean()"),
        ("self.weight(advantage)", "torch.ones_like(advantage)"),
        ('"weight": weight.mean(-1)', '"weight": weight.sum(-1)'),
        ('"bc_loss": error.mean(-1)', '"bc_loss": error.mean()'),
    ),
    *faults(
        f"{_AWM}.policy_loss",
        "awm",
        ("partial(self.net, noise=noise)", "self.net"),
    ),
    *faults(
        "generated_actions.generation_of",
        "idql",
        ('"vp"', '"cosine"'),
        ("DDPM(config.levels,", "DDPM(2 * config.levels,"),
        ('if config.process == "flow":', "if True:"),
    ),
    *faults(
        "generated_actions.residual_net",
        "idql",
        ("agent.config.process == ", "agent.config.process != "),
        ("dropout=cfg.dropout", "dropout=0.0"),
        ("hidden=cfg.width", "hidden=2 * cfg.width"),
        ("depth=cfg.depth", "depth=cfg.depth + 1"),
    ),
    *faults("generated_actions.residual_net", "ifql", ("TIMES if flows else 1.0", "1.0")),
]

COVERED = [f"{_AWM}.weight"]
