"""EDAC: cases of parity, and faults."""

import flat.edac
from fault import faults
from methods.sac import NOISE, REACH, SETTINGS, SOFT
from parity_case import Batches, Case, Layers, Trained

from offrl.datasets.offline import OfflineDataset
from offrl.datasets.replay import Replay

DIVERSE = {**SOFT, "eta": 0.7}


def flat_edac(
    case: Case,
    nets: dict[str, Layers],
    batches: Batches,
    dataset: OfflineDataset,
    view: Replay,
) -> Trained:
    return flat.edac.train(nets, batches, **case.settings(*SETTINGS, "eta", "beer"))


def _case(ensemble: int, **changes: object) -> Case:
    settings = {**DIVERSE, "ensemble": ensemble}
    return Case("edac", settings, REACH, flat_edac, NOISE, members={"critic": ensemble}, **changes)


CASES = {
    "edac": _case(3),
    "edac-two": _case(2),
    "edac-stacked": _case(3, beside=(5,)),
}

OTHER = {("edac", "ensemble"): (4, {})}

EVERY = "edac edac-two"
FAULTS = [
    *faults(
        "agents.edac.EDAC.critic_loss",
        EVERY,
        ("soft_target(self, batch, noise)", "soft_target(self, batch, 0 * noise)"),
        ("soft_target(self, batch, noise)", "-soft_target(self, batch, noise)"),
        ("batch.obs, batch.action)", "batch.obs, batch.next_action)"),
        ("batch.obs, batch.action)", "batch.next_obs, batch.action)"),
        ("value_and_slope(self.critic,", "value_and_slope(self.critic_target,"),
        ("td_regression(q, target)", "td_regression(q[:1], target)"),
        ("ensemble_diversity(slope).mean(-1)", "ensemble_diversity(slope).sum(-1)"),
        ("ensemble_diversity(slope).mean(-1)", "ensemble_diversity(slope.detach()).mean(-1)"),
        ("loss + self.config.eta * diversity", "loss - self.config.eta * diversity"),
        ("loss + self.config.eta * diversity", "loss + diversity"),
        ("loss + self.config.eta * diversity", "loss"),
        ("{**metrics,", "{"),
    ),
    *faults(
        "agents.edac.EDAC.critic_loss",
        "edac-stacked",
        (".mean(-1)", ".mean()"),
    ),
    *faults(
        "regularizers.ensemble_diversity",
        EVERY,
        ("torch.linalg.vector_norm(slope, dim=-1, keepdim=True)", "torch.ones_like(slope)"),
        ("slope / (length + 1e-10)", "slope / length.detach()"),
        ("direction.sum(0).square()", "direction.sum(0).abs()"),
        (".sum(-1) - direction", ".mean(-1) - direction"),
        ("- direction.square().sum((0, -1))", ""),
        ("- direction.square().sum((0, -1))", "- direction.square().sum(0).mean(-1)"),
    ),
    *faults(
        "regularizers.ensemble_diversity",
        "edac",
        ("(len(slope) - 1)", "len(slope)"),
        ("(len(slope) - 1)", "1"),
    ),
    *faults(
        "sac.value_and_slope",
        EVERY,
        ("StateActionTrunk", "Critic"),
        ("critic.head.weight.shape[0]", "1"),
        ("action.detach().expand", "(0 * action).expand"),
        ("critic.read(features)", "critic.read(features).flip(0)"),
        ("trunk.net(together)", "trunk.net(-together)"),
        ("torch.cat([obs.expand", "torch.cat([0 * obs.expand"),
        ("obs.expand(members, *obs.shape), own", "obs.expand(members, *obs.shape), own.detach()"),
        ("q.sum(), own, create_graph=True", "q.mean(), own, create_graph=True"),
        ("create_graph=True", "retain_graph=True"),
        ("return q, slope, features", "return q.detach(), slope, features"),
        ("return q, slope, features", "return q, slope.detach(), features"),
    ),
]
