"""TD3+BC: cases of parity, and faults."""

import flat.td3_bc
from fault import Fault, faults
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
    return flat.td3_bc.train(nets, batches, **case.settings(*SETTINGS))


CASES = {
    "td3_bc": Case("td3_bc", {"alpha": 1.5, **TD3}, REACH, flat_td3_bc, NOISE),
    "td3_bc-delay": Case("td3_bc", {"policy_delay": 3, **TD3}, REACH, flat_td3_bc, NOISE),
    "td3_bc-stacked": Case("td3_bc", {"alpha": 1.5, **TD3}, REACH, flat_td3_bc, NOISE, beside=(5,)),
}


def td3_faults(module: str, cls: str, cases: str) -> list[Fault]:
    """What the agents of this family have in common, planted in each file."""
    at, stacked = f"agents.{module}.{cls}", f"{module}-stacked"
    return [
        # A mean over all axes, which mixes learners.
        *faults(
            f"{at}.critic_loss",
            stacked,
            ("td_loss(q, target).mean(-1)", "td_loss(q, target).mean()"),
            ("q[0].mean(-1)", "q[0].mean()"),
            ("target.mean(-1)}", "target.mean()}"),
            ("amin(0)", "amin((0, 1)).expand_as(batch.reward)"),
        ),
        *faults(
            f"{at}.actor_loss",
            stacked,
            ("self.config.alpha) * q.mean(-1)", "self.config.alpha) * q.mean()"),
            (".mean(-1)\n        q_loss", ".mean()\n        q_loss"),
            ("self.critic.first(batch.obs, action)", "self.critic(batch.obs, action)[:, 0]"),
        ),
        *faults(
            f"{at}.__init__",
            cases,
            ("target_of(self.actor)", "self.actor"),
            ("target_of(self.critic)", "self.critic"),
            (
                "target_of(self.critic)",
                "target_of(Critic(self.obs_dim, self.act_dim, config.hidden, learners))",
            ),
            ("adam(self.actor.parameters(), config.lr)", "adam(self.critic.parameters(), 1e-3)"),
            (
                "adam(self.critic.parameters(), config.lr)",
                "adam(self.critic.parameters(), 2 * config.lr)",
            ),
            ("self.period = config.policy_delay", "self.period = config.policy_delay + 1"),
        ),
        *faults(
            f"{at}.update",
            cases,
            ("self.minimize(self.critic_opt,", "self.minimize(self.actor_opt,"),
            ("self.critic_loss, batch, noise", "self.critic_loss, batch, 0 * noise"),
            ('noise["target_action"]', '-noise["target_action"]'),
            ("if phase == self.period - 1:", "if True:"),
            ("if phase == self.period - 1:", "if phase != self.period - 1:"),
            ("if phase == self.period - 1:", "if phase == self.period:"),
            ("metrics |= self.minimize(", "self.minimize("),
            ("metrics |= self.minimize(self.actor_opt, self.actor_loss, batch)", "pass"),
            (
                "polyak_update(self.actor, self.actor_target,",
                "polyak_update(self.actor_target, self.actor,",
            ),
            ("polyak_update(self.actor, self.actor_target, self.config.polyak)", "pass"),
            ("self.actor_target, self.config.polyak", "self.actor_target, 1 - self.config.polyak"),
            (
                "polyak_update(self.critic, self.critic_target,",
                "polyak_update(self.critic_target, self.critic,",
            ),
            ("polyak_update(self.critic, self.critic_target, self.config.polyak)", "pass"),
            ("self.critic_target, self.config.polyak", "self.critic_target, 0.005"),
            ("            polyak_update(self.critic,", "        polyak_update(self.critic,"),
            ("return metrics", "return {}"),
            # The policy before the critic.
            (
                "metrics = self.minimize(self.critic_opt, self.critic_loss, batch, "
                'noise["target_action"])',
                "metrics = self.minimize(self.actor_opt, self.actor_loss, batch)",
            ),
        ),
        *faults(
            f"{at}.critic_loss",
            cases,
            ("cfg = self.config", "cfg = type(self.config)()"),
            ("self.actor_target(batch.next_obs)", "self.actor(batch.next_obs)"),
            ("self.actor_target(batch.next_obs)", "self.actor_target(batch.obs)"),
            ("self.actor_target(batch.next_obs)", "batch.next_action"),
            (
                "smoothed_action(next_action, noise, cfg.policy_noise, cfg.noise_clip)",
                "next_action",
            ),
            ("cfg.policy_noise, cfg.noise_clip", "cfg.noise_clip, cfg.policy_noise"),
            ("noise, cfg.policy_noise", "noise, 0.2"),
            ("cfg.noise_clip)", "100.0)"),
            (".amin(0)", ".amax(0)"),
            (".amin(0)", ".mean(0)"),
            (".amin(0)", "[0]"),
            ("self.critic_target(batch.next_obs", "self.critic(batch.next_obs"),
            ("self.critic_target(batch.next_obs", "self.critic_target(batch.obs"),
            ("batch.reward, batch.mask", "-batch.reward, batch.mask"),
            ("batch.reward, batch.mask", "batch.reward, torch.ones_like(batch.mask)"),
            ("batch.reward, batch.mask", "batch.reward, 1 - batch.mask"),
            ("next_q, cfg.gamma", "next_q, 1.0"),
            ("self.critic(batch.obs, batch.action)", "self.critic(batch.obs, next_action)"),
            ("self.critic(batch.obs, batch.action)", "self.critic_target(batch.obs, batch.action)"),
            (
                "self.critic(batch.obs, batch.action)",
                "self.critic(batch.obs, self.actor(batch.obs))",
            ),
            ("td_loss(q, target).mean(-1)", "td_loss(q, target).sum(-1)"),
            ("td_loss(q, target).mean(-1)", "0.5 * td_loss(q, target).mean(-1)"),
            ("q[0].mean(-1)", "q[1].mean(-1)"),
            ("target.mean(-1)}", "target.amax(-1)}"),
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
    ]


FAULTS = [
    *td3_faults("td3_bc", "TD3BC", "td3_bc td3_bc-delay"),
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

EXEMPT = {
    ("agents.td3_bc.TD3BC.critic_loss", "with torch.no_grad():"): "the networks in it are frozen",
}
