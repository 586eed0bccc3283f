"""ReBRAC: cases of parity, and faults."""

from dataclasses import replace

import flat.rebrac
import numpy as np
from fault import faults
from methods.td3 import update_faults
from methods.td3_bc import NOISE, REACH
from parity_case import TD3, Batches, Case, Layers, Trained

from offrl.datasets.offline import OfflineDataset
from offrl.datasets.replay import Replay

SETTINGS = ("beta1", "beta2", "policy_noise", "noise_clip", "policy_delay", "gamma", "polyak")


def flat_rebrac(
    case: Case,
    nets: dict[str, Layers],
    batches: Batches,
    dataset: OfflineDataset,
    view: Replay,
) -> Trained:
    return flat.rebrac.train(nets, batches, **case.settings(*SETTINGS, "lr", "critic_lr"))


def followed(case: Case, dataset: OfflineDataset) -> OfflineDataset:
    """The same rows, as if the end of no episode were known: what comes last is then left out."""
    unknown = np.zeros_like(dataset.final_known)
    return replace(dataset, rows=dataset.rows.copy(), final_known=unknown)


# Weights under which each term counts; a rate of the critics that is not the policy's; noise that
# is cut below the bounds of actions, since the first actions are near 0.
CHANGES = {"beta1": 0.7, "beta2": 0.4, "critic_lr": 2.0**-8, **TD3, "noise_clip": 0.6}
DELAY = {**CHANGES, "policy_delay": 3}

CASES = {
    "rebrac": Case("rebrac", CHANGES, REACH, flat_rebrac, NOISE, chosen=followed),
    "rebrac-delay": Case("rebrac", DELAY, REACH, flat_rebrac, NOISE, chosen=followed),
    "rebrac-stacked": Case(
        "rebrac", CHANGES, REACH, flat_rebrac, NOISE, chosen=followed, beside=(5,)
    ),
}

AT = "agents.rebrac.ReBRAC"
BOTH = "rebrac rebrac-delay"
FAULTS = [
    *update_faults(AT, BOTH),
    *faults(
        f"{AT}.__init__",
        BOTH,
        ('norm="after"', 'norm="before"'),
        ("with_target(actor, config.lr)", "with_target(actor, config.critic_lr)"),
        ("with_target(critic, config.critic_lr)", "with_target(critic, config.lr)"),
    ),
    *faults(
        f"{AT}.view",
        BOTH,
        ("index = replay.index[~torch.isin(replay.index, unfollowed)]", "index = replay.index"),
        ("dataset.rows[last, -2] == 0", "dataset.rows[last, -2] == 1"),
        ("dataset.lengths - 1", "dataset.lengths"),
        ("index=index,", ""),
    ),
    *faults(
        f"{AT}.update",
        BOTH,
        # The policy before the critic, and its target after its step.
        (
            "metrics = self.minimize(self.critic_opt, self.critic_loss, batch, "
            'noise["target_action"])',
            "metrics = self.minimize(self.actor_opt, self.actor_loss, batch)",
        ),
        (
            "update_targets(self)\n"
            "            metrics |= self.minimize(self.actor_opt, self.actor_loss, batch)",
            "metrics |= self.minimize(self.actor_opt, self.actor_loss, batch)\n"
            "            update_targets(self)",
        ),
    ),
    *faults(
        f"{AT}.critic_loss",
        BOTH,
        ("next_action(self, batch, noise)", "next_action(self, batch, -noise)"),
        ("next_action(self, batch, noise)", "self.actor_target(batch.next_obs)"),
        ("self.config.beta2", "self.config.beta1"),
        ("self.config.beta2", "-self.config.beta2"),
        ("action_distance(action, batch.next_action)", "action_distance(action, batch.action)"),
        ("self.critic_target, batch", "self.critic, batch"),
        ("batch, action, penalty)", "batch, action)"),
        ("batch, action, penalty)", "batch, batch.next_action, penalty)"),
        ("critic_regression(self, batch, target)", "critic_regression(self, batch, -target)"),
        ("(batch.mask * penalty)", "penalty"),
    ),
    *faults(
        f"{AT}.actor_loss",
        BOTH,
        ("action = self.actor(batch.obs)", "action = self.actor_target(batch.obs)"),
        ("action = self.actor(batch.obs)", "action = self.actor(batch.next_obs)"),
        (".amin(0)", ".amax(0)"),
        (".amin(0)", "[0]"),
        ("self.critic(batch.obs, action)", "self.critic_target(batch.obs, action)"),
        ("self.critic(batch.obs, action)", "self.critic(batch.obs, action.detach())"),
        ("self.config.beta1", "self.config.beta2"),
        ("action_distance(action, batch.action)", "action_distance(action, batch.next_action)"),
        (".mean(-1)\n        q_loss", ".sum(-1)\n        q_loss"),
        ("-q_scale(q, 1.0)", "q_scale(q, 1.0)"),
        ("-q_scale(q, 1.0)", "-q_scale(q, 2.5)"),
        ("-q_scale(q, 1.0) * q.mean(-1)", "-q.mean(-1)"),
        ("return q_loss + bc_loss", "return q_loss - bc_loss"),
        ("return q_loss + bc_loss", "return q_loss"),
        ('"q": q.mean(-1)', '"q": q[..., 0]'),
    ),
    # Means over all axes, which mix learners.
    *faults(f"{AT}.critic_loss", "rebrac-stacked", ("penalty).mean(-1)", "penalty).mean()")),
    *faults(
        f"{AT}.actor_loss",
        "rebrac-stacked",
        ("1.0) * q.mean(-1)", "1.0) * q.mean()"),
        (".mean(-1)\n        q_loss", ".mean()\n        q_loss"),
        (".amin(0)", "[:, 0]"),
    ),
    *faults(
        "losses.action_distance",
        BOTH,
        (".sum(-1)", ".mean(-1)"),
        (".square()", ".abs()"),
        ("(action - goal)", "(action + goal)"),
    ),
    *faults(
        "networks.LayerNorm.forward",
        BOTH,
        ("layer_norm(x, x.shape[-1:])", "x"),
        ("x.shape[-1:]), weight)", "x.shape[-1:]), torch.ones_like(weight))"),
        ("addcmul(bias,", "addcmul(0 * bias,"),
        ("addcmul(bias,", "addcmul(-bias,"),
    ),
]

EXEMPT = {
    (f"{AT}.critic_loss", "with torch.no_grad():"): "the networks in it are frozen",
}
