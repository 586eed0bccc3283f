"""Faults in what the methods built on TD3 share."""

from fault import Fault, faults

EVERY = "td3_bc td3_bc-delay prdc rebrac a2pr"
STACKED = "td3_bc-stacked prdc-stacked rebrac-stacked a2pr-stacked"

FAULTS = [
    *faults(
        "td3.with_target",
        EVERY,
        ("target_of(net)", "net"),
        ("adam(net.parameters(), lr)", "adam(net.parameters(), 2 * lr)"),
    ),
    *faults(
        "td3.next_action",
        EVERY,
        ("cfg = agent.config", "cfg = type(agent.config)()"),
        ("agent.actor_target(batch.next_obs)", "agent.actor(batch.next_obs)"),
        ("agent.actor_target(batch.next_obs)", "agent.actor_target(batch.obs)"),
        ("agent.actor_target(batch.next_obs)", "batch.next_action"),
        ("smoothed_action(action, noise, cfg.policy_noise, cfg.noise_clip)", "action"),
        ("cfg.policy_noise, cfg.noise_clip", "cfg.noise_clip, cfg.policy_noise"),
        ("noise, cfg.policy_noise", "noise, 0.2"),
        ("cfg.noise_clip)", "100.0)"),
    ),
    *faults(
        "td3.target_value",
        EVERY,
        (".amin(0)", ".amax(0)"),
        (".amin(0)", ".mean(0)"),
        (".amin(0)", "[0]"),
        ("critic(batch.next_obs, action)", "agent.critic(batch.next_obs, action)"),
        ("critic(batch.next_obs, action)", "critic(batch.obs, action)"),
        ("batch.reward, batch.mask", "-batch.reward, batch.mask"),
        ("batch.reward, batch.mask", "batch.reward, torch.ones_like(batch.mask)"),
        ("batch.reward, batch.mask", "batch.reward, 1 - batch.mask"),
        ("next_q, agent.config.gamma", "next_q, 1.0"),
        ("if penalty is None else", "if penalty is not None else"),
    ),
    *faults(
        "td3.td3_critic_loss",
        "td3_bc td3_bc-delay prdc",
        ("next_action(agent, batch, noise)", "next_action(agent, batch, 0 * noise)"),
        ("agent.critic_target, batch", "agent.critic, batch"),
        ("batch, action)", "batch, batch.next_action)"),
        ("critic_regression(agent, batch, y)", "critic_regression(agent, batch, -y)"),
    ),
    *faults(
        "td3.update_targets",
        EVERY,
        ("agent.actor, agent.actor_target,", "agent.actor_target, agent.actor,"),
        ("polyak_update(agent.actor, agent.actor_target, agent.config.polyak)", "pass"),
        ("agent.actor_target, agent.config.polyak", "agent.actor_target, 1 - agent.config.polyak"),
        ("agent.critic, agent.critic_target,", "agent.critic_target, agent.critic,"),
        ("polyak_update(agent.critic, agent.critic_target, agent.config.polyak)", "pass"),
        ("agent.critic_target, agent.config.polyak", "agent.critic_target, 0.005"),
    ),
    # Means over all axes, which mix learners.
    *faults(
        "td3.target_value",
        STACKED,
        ("amin(0)", "amin((0, 1)).expand_as(batch.reward)"),
    ),
]


def update_faults(at: str, cases: str) -> list[Fault]:
    """Slips in `__init__` and `update`, which each agent of the family writes out."""
    return [
        *faults(
            f"{at}.__init__",
            cases,
            ("self.period = config.policy_delay", "self.period = config.policy_delay + 1"),
        ),
        *faults(
            f"{at}.update",
            cases,
            ("self.minimize(self.critic_opt,", "self.minimize(self.actor_opt,"),
            ('noise["target_action"]', '-noise["target_action"]'),
            ('noise["target_action"]', '0 * noise["target_action"]'),
            ("if phase == self.period - 1:", "if True:"),
            ("if phase == self.period - 1:", "if phase != self.period - 1:"),
            ("if phase == self.period - 1:", "if phase == self.period:"),
            ("metrics |= self.minimize(self.actor_opt", "self.minimize(self.actor_opt"),
            ("update_targets(self)", "pass"),
            ("return metrics", "return {}"),
        ),
    ]


COVERED = [
    f"td3.{name}"
    for name in (
        *("with_target", "next_action", "target_value", "td3_critic_loss"),
        "update_targets",
    )
]

EXEMPT = {
    ("td3.td3_critic_loss", "with torch.no_grad():"): "the networks in it are frozen",
}
