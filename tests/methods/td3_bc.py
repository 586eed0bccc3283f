"""TD3+BC: cases of parity, and faults."""

import flat.td3_bc
from fault import Fault, faults
from methods.td3 import update_faults
from parity_case import BATCH, TD3, Batches, Case, Layers, Trained, reach
from problems import ACT

from offrl.datasets.offline import OfflineDataset
from offrl.datasets.replay import Replay

REACH = reach(critic_loss="critic", actor_loss="actor critic")
NOISE = {"target_action": (BATCH, ACT)}
SETTINGS = ("alpha", "policy_noise", "noise_clip", "policy_delay", "gamma", "lr", "polyak")


def flat_td3_bc(
    case: Case,
    nets: dict[str, Layers],
    batches: Batches,
    dataset: OfflineDataset,
    view: Replay,
) -> Trained:
    return flat.td3_bc.train(nets, batches, **case.settings(*SETTINGS, "beer"))


CASES = {
    "td3_bc": Case("td3_bc", {"alpha": 1.5, **TD3}, REACH, flat_td3_bc, NOISE),
    "td3_bc-delay": Case("td3_bc", {"policy_delay": 3, **TD3}, REACH, flat_td3_bc, NOISE),
    "td3_bc-stacked": Case("td3_bc", {"alpha": 1.5, **TD3}, REACH, flat_td3_bc, NOISE, beside=(5,)),
}


def policy_faults(at: str, cases: str, stacked: str) -> list[Fault]:
    """Slips in the policy's loss, which TD3+BC and PRDC share but for the goal of the pull."""
    return [
        *faults(
            f"{at}.__init__",
            cases,
            ("with_target(actor, config.lr)", "with_target(actor, 2 * config.lr)"),
            ("with_target(critic, config.lr)", "with_target(critic, 2 * config.lr)"),
        ),
        *faults(
            f"{at}.critic_loss",
            cases,
            ("td3_critic_loss(self, batch, noise)", "td3_critic_loss(self, batch, -noise)"),
        ),
        *faults(
            f"{at}.update",
            cases,
            ("metrics |= self.minimize(self.actor_opt, self.actor_loss, batch)", "pass"),
            ("            update_targets(self)", "        update_targets(self)"),
            # The policy before the critic.
            (
                "metrics = self.minimize(self.critic_opt, self.critic_loss, batch, "
                'noise["target_action"])',
                "metrics = self.minimize(self.actor_opt, self.actor_loss, batch)",
            ),
        ),
        *faults(
            f"{at}.actor_loss",
            cases,
            ("action = self.actor(batch.obs)", "action = self.actor_target(batch.obs)"),
            ("action = self.actor(batch.obs)", "action = self.actor(batch.next_obs)"),
            ("self.critic.first(batch.obs, action)", "self.critic(batch.obs, action)[1]"),
            ("self.critic.first(batch.obs, action)", "self.critic(batch.obs, action).amin(0)"),
            ("self.critic.first(batch.obs, action)", "self.critic_target.first(batch.obs, action)"),
            ("self.critic.first(batch.obs, action)", "self.critic.first(batch.next_obs, action)"),
            (
                "self.critic.first(batch.obs, action)",
                "self.critic.first(batch.obs, action.detach())",
            ),
            ("q_loss = -q_scale", "q_loss = q_scale"),
            ("q_scale(q, self.config.alpha)", "self.config.alpha"),
            ("q_scale(q, self.config.alpha)", "q_scale(q, 2.0)"),
            ("self.config.alpha) * q.mean(-1)", "self.config.alpha) * q.sum(-1)"),
        ),
        # A mean over all axes, which mixes learners.
        *faults(
            f"{at}.actor_loss",
            stacked,
            ("self.config.alpha) * q.mean(-1)", "self.config.alpha) * q.mean()"),
            (".mean(-1)\n        q_loss", ".mean()\n        q_loss"),
            ("self.critic.first(batch.obs, action)", "self.critic(batch.obs, action)[:, 0]"),
        ),
    ]


FAULTS = [
    *update_faults("agents.td3_bc.TD3BC", "td3_bc td3_bc-delay"),
    *policy_faults("agents.td3_bc.TD3BC", "td3_bc td3_bc-delay", "td3_bc-stacked"),
    *faults(
        "agents.td3_bc.TD3BC.actor_loss",
        "td3_bc td3_bc-delay",
        ("action_error(action, batch.action)", "action_error(action, batch.next_action)"),
        ("action_error(action, batch.action)", "action_error(action.detach(), batch.action)"),
        (".mean(-1)\n        q_loss", ".sum(-1)\n        q_loss"),
        ("return q_loss + bc_loss", "return q_loss - bc_loss"),
        ("return q_loss + bc_loss", "return q_loss"),
        ('"q": q.mean(-1)', '"q": q[..., 0]'),
    ),
]
