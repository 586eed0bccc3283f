"""SAC-N: cases of parity, and faults."""

import flat.edac
from fault import faults
from methods.sac import NOISE, REACH, SETTINGS, SOFT
from parity_case import Batches, Case, Layers, Trained

from offrl.datasets.offline import OfflineDataset
from offrl.datasets.replay import Replay


def flat_sac_n(
    case: Case,
    nets: dict[str, Layers],
    batches: Batches,
    dataset: OfflineDataset,
    view: Replay,
) -> Trained:
    return flat.edac.train(nets, batches, eta=None, **case.settings(*SETTINGS, "beer"))


def _case(ensemble: int, **changes: object) -> Case:
    settings = {**SOFT, "ensemble": ensemble}
    return Case(
        "sac_n", settings, REACH, flat_sac_n, NOISE, members={"critic": ensemble}, **changes
    )


CASES = {
    "sac_n": _case(3),
    "sac_n-one": _case(1),
    "sac_n-stacked": _case(3, beside=(5,)),
}

OTHER = {("sac_n", "ensemble"): (4, {})}

FAULTS = [
    *faults(
        "agents.sac_n.SACN.critic_loss",
        "sac_n sac_n-one",
        ("soft_target(self, batch, noise)", "soft_target(self, batch, 0 * noise)"),
        ("soft_target(self, batch, noise)", "-soft_target(self, batch, noise)"),
    ),
]
