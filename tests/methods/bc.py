"""Behaviour cloning: cases of parity, and faults."""

import flat.bc
from fault import faults
from parity_case import LR, Batches, Case, Layers, Trained, reach

from offrl.datasets.offline import OfflineDataset
from offrl.datasets.replay import Replay

REACH = reach(actor_loss="actor")


def flat_bc(
    case: Case,
    nets: dict[str, Layers],
    batches: Batches,
    dataset: OfflineDataset,
    view: Replay,
) -> Trained:
    return flat.bc.train(nets, batches, lr=case.config.lr)


def best_episodes(case: Case, dataset: OfflineDataset) -> OfflineDataset:
    ranked = sorted(range(dataset.num_episodes), key=lambda e: -dataset.returns()[e])
    chosen = sorted(ranked[: int(case.config.top_fraction * len(ranked))])
    return dataset.select(chosen, "chosen by hand")


CASES = {
    "bc": Case("bc", {"lr": LR}, REACH, flat_bc),
    "percent_bc": Case(
        "percent_bc", {"lr": LR, "top_fraction": 0.5}, REACH, flat_bc, chosen=best_episodes
    ),
    "bc-stacked": Case("bc", {"lr": LR}, REACH, flat_bc, beside=(5,)),
}

FAULTS = [
    *faults(
        "agents.bc.BC.__init__",
        "bc percent_bc",
        ("config.lr", "3e-4"),
        ("config.hidden", "config.hidden[::-1]"),
    ),
    *faults(
        "agents.bc.BC.view",
        "percent_bc",
        ("if self.config.top_fraction < 1.0:", "if False:"),
        ("dataset.top(self.config.top_fraction)", "dataset.top(0.1)"),
        ("dataset = dataset.top", "dataset.top"),
    ),
    *faults("agents.bc.BC.view", "bc", ("super().view(dataset)", "super().view(dataset.top(0.3))")),
    *faults(
        "agents.bc.BC.update",
        "bc percent_bc",
        ("return self.minimize(", "return {} and self.minimize("),
        (
            "return self.minimize(self.actor_opt, self.actor_loss, batch)",
            "return {'actor_loss': self.actor_loss(batch)[0]}",
        ),
        (
            "self.minimize(self.actor_opt, self.actor_loss, batch)",
            "(self.minimize(self.actor_opt, self.actor_loss, batch), "
            "self.minimize(self.actor_opt, self.actor_loss, batch))[0]",
        ),
    ),
    *faults(
        "agents.bc.BC.actor_loss",
        "bc percent_bc",
        ("self.actor(batch.obs)", "self.actor(batch.next_obs)"),
        ("batch.action", "batch.next_action"),
        ("batch.action", "-batch.action"),
        (".mean(-1)", ".sum(-1)"),
        (".mean(-1)", ".amax(-1)"),
    ),
]
