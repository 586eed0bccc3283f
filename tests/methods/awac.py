"""AWAC: cases of parity, and faults."""

from dataclasses import replace

import flat.awac
from fault import faults
from parity_case import BATCH, LR, Batches, Case, Layers, Trained, reach
from problems import ACT

from offrl.datasets.offline import OfflineDataset
from offrl.datasets.replay import Replay

REACH = reach(critic_loss="critic", actor_loss="actor")
NOISE = {"draw": (BATCH, ACT), "next_draw": (BATCH, ACT)}
# Of weights that are cut as often as not.
WEIGHTED = {"beta": 3.0, "max_weight": 1.02, "gamma": 0.9, "lr": LR, "polyak": 0.1}


def flat_awac(
    case: Case,
    nets: dict[str, Layers],
    batches: Batches,
    dataset: OfflineDataset,
    view: Replay,
) -> Trained:
    return flat.awac.train(nets, batches, **case.settings(*WEIGHTED))


PLAIN = Case("awac", WEIGHTED, REACH, flat_awac, NOISE, seed=73)
CASES = {"awac": PLAIN, "awac-stacked": replace(PLAIN, beside=(5,), expected=[])}

# Where advantages are large, the cut is reached.
OTHER = {("awac", "max_weight"): (0.5, {"beta": 10.0})}

AT = "agents.awac.AWAC"
FAULTS = [
    *faults(
        f"{AT}.__init__",
        "awac",
        ("target_of(self.critic)", "self.critic"),
        (", squash_mean=False", ""),
        ("adam(self.actor.parameters(),", "adam(self.actor.net.parameters(),"),
        ("self.critic.parameters(), config.lr", "self.critic.parameters(), 3e-4"),
    ),
    *faults(
        f"{AT}.update",
        "awac",
        ('noise["next_draw"]', '-noise["next_draw"]'),
        ('noise["next_draw"]', 'noise["draw"]'),
        ("self.minimize(self.critic_opt,", "self.minimize(self.actor_opt,"),
        ("metrics |= self.minimize(self.actor_opt", "self.minimize(self.actor_opt"),
        ('noise["draw"]', '0 * noise["draw"]'),
        (
            "polyak_update(self.critic, self.critic_target,",
            "polyak_update(self.critic_target, self.critic,",
        ),
        ("polyak_update(self.critic, self.critic_target, self.config.polyak)", "pass"),
        ("self.config.polyak", "1 - self.config.polyak"),
        ("return metrics", "return {}"),
        # The policy before the critics.
        (
            "metrics = self.minimize(self.critic_opt,",
            'metrics = self.minimize(self.actor_opt, self.actor_loss, batch, noise["draw"])\n'
            "        metrics |= self.minimize(self.critic_opt,",
        ),
    ),
    *faults(
        f"{AT}.critic_loss",
        "awac",
        ("torch.no_grad()", "torch.enable_grad()"),
        ("self.actor.sample(batch.next_obs, noise)", "self.actor.mode(batch.next_obs)"),
        ("self.actor.sample(batch.next_obs, noise)", "batch.next_action"),
        ("self.actor.sample(batch.next_obs,", "self.actor.sample(batch.obs,"),
        ("self.critic_target(batch.next_obs", "self.critic(batch.next_obs"),
        ("self.critic_target(batch.next_obs", "self.critic_target(batch.obs"),
        (".amin(0)", ".amax(0)"),
        (".amin(0)", ".mean(0)"),
        (".amin(0)", "[0]"),
        ("batch.reward, batch.mask", "-batch.reward, batch.mask"),
        ("batch.reward, batch.mask", "batch.reward, torch.ones_like(batch.mask)"),
        ("self.config.gamma", "0.99"),
        ("critic_regression(self, batch, target)", "critic_regression(self, batch, -target)"),
    ),
    *faults(
        f"{AT}.critic_loss",
        "awac-stacked",
        (".amin(0)", ".amin((0, 1)).expand_as(batch.reward)"),
    ),
    *faults(
        f"{AT}.actor_loss",
        "awac",
        ("torch.no_grad()", "torch.enable_grad()"),
        ("self.critic(batch.obs, self.actor", "self.critic_target(batch.obs, self.actor"),
        ("self.actor.sample(batch.obs, noise)", "self.actor.mode(batch.obs)"),
        ("noise)).amin(0)", "noise))[0]"),
        ("batch.action).amin(0)", "batch.action)[0]"),
        ("batch.action).amin(0)", "batch.action).amax(0)"),
        (".amin(0) - value", ".amin(0) + value"),
        (".amin(0) - value", ".amin(0)"),
        ("self.config.beta, self.config.max_weight", "self.config.beta"),
        ("self.config.beta,", "1.0,"),
        ("cloning_loss(self.actor(batch.obs),", "cloning_loss(self.actor(batch.next_obs),"),
        (
            "batch.obs), batch.action)\n        metrics",
            "batch.obs), batch.next_action)\n        metrics",
        ),
        ('"advantage": advantage.mean(-1)', '"advantage": advantage.amax(-1)'),
        ("-error.mean(-1)", "error.mean(-1)"),
        ("(weight * error)", "(weight + error)"),
        ("(weight * error)", "error"),
        ("(weight * error).mean(-1)", "(weight * error).sum(-1) / weight.sum(-1)"),
    ),
    *faults(
        f"{AT}.actor_loss",
        "awac-stacked",
        ("advantage.mean(-1)", "advantage.mean()"),
        ("-error.mean(-1)", "-error.mean()"),
        ("(weight * error).mean(-1)", "(weight * error).mean()"),
    ),
]
