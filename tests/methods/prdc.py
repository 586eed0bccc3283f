"""PRDC: cases of parity, and faults."""

import flat.prdc
from fault import faults
from methods.td3 import update_faults
from methods.td3_bc import NOISE, REACH, SETTINGS, policy_faults
from parity_case import TD3, Batches, Case, Layers, Trained

from offrl.datasets.offline import OfflineDataset
from offrl.datasets.replay import Replay


def flat_prdc(
    case: Case,
    nets: dict[str, Layers],
    batches: Batches,
    dataset: OfflineDataset,
    view: Replay,
) -> Trained:
    everything = view.batch(view.index)
    settings = case.settings(*SETTINGS, "beta")
    return flat.prdc.train(nets, batches, everything.obs, everything.action, **settings)


CASES = {
    "prdc": Case("prdc", {"alpha": 1.5, "beta": 0.8, **TD3}, REACH, flat_prdc, NOISE),
    "prdc-actions": Case("prdc", {"beta": 0.0, "policy_delay": 1, **TD3}, REACH, flat_prdc, NOISE),
    "prdc-stacked": Case(
        "prdc", {"alpha": 1.5, "beta": 0.8, **TD3}, REACH, flat_prdc, NOISE, beside=(5,)
    ),
}

FAULTS = [
    *update_faults("agents.prdc.PRDC", "prdc"),
    *policy_faults("agents.prdc.PRDC", "prdc", "prdc-stacked"),
    *faults(
        "agents.prdc.PRDC.prepare",
        "prdc",
        ("self.config.beta", "1.0"),
        ("data.obs.cpu()", "data.next_obs.cpu()"),
        ("data.action.cpu()", "data.next_action.cpu()"),
        ("replay.batch(replay.index)", "replay.batch(replay.index[::2])"),
        ("rows=replay.index.cpu()", "rows=None"),
    ),
    *faults(
        "agents.prdc.PRDC.actor_loss",
        "prdc",
        (
            "self.nearest.with_own(batch.obs, action, batch.index)",
            "batch.action, torch.ones_like(q)",
        ),
        (
            "self.nearest.with_own(batch.obs, action,",
            "self.nearest.with_own(batch.obs, batch.action,",
        ),
        ("self.nearest.with_own(batch.obs,", "self.nearest.with_own(batch.next_obs,"),
        ("action, batch.index)", "action, None)"),
        ("action_error(action, neighbour)", "action_error(action.detach(), neighbour)"),
        ("action_error(action, neighbour)", "action_error(batch.action, neighbour)"),
        (".mean(-1)\n        q_loss", ".sum(-1)\n        q_loss"),
        ("return q_loss + constraint", "return q_loss - constraint"),
        ("return q_loss + constraint", "return q_loss"),
        ('"own_row": own.mean(-1)', '"own_row": 1 - own.mean(-1)'),
    ),
]
