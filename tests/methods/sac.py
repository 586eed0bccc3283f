"""What the methods built on soft actor-critic share: settings of their cases, and faults."""

from fault import faults
from parity_case import BATCH, LR, reach
from problems import ACT

REACH = reach(actor_loss="actor critic", temperature_loss="temperature", critic_loss="critic")
NOISE = {"draw": (BATCH, ACT), "next_draw": (BATCH, ACT)}
# Of a temperature and targets that move.
SOFT = {"target_entropy": -0.4, "gamma": 0.9, "lr": LR, "actor_lr": 4 * LR, "polyak": 0.1}
SETTINGS = (*SOFT, "ensemble")

SEVERAL = "sac_n edac"  # whose critics are more than one
EVERY = f"{SEVERAL} sac_n-one"
ALL = f"{EVERY} cql"
STACKED = "sac_n-stacked edac-stacked"
AT = "soft_agent.SoftAgent"


FAULTS = [
    *faults(
        "sac.soft_networks",
        EVERY,
        ("learners, ACTOR_INIT", "learners"),
        ("init=CRITIC_INIT", "norm='after'"),
        ("Multiplier(learners)", "Multiplier(learners, 0.1)"),
        ("target_of(critic)", "critic"),
    ),
    *faults(
        f"{AT}.__init__",
        ALL,
        ("self.actor.parameters(), config.actor_lr", "self.actor.parameters(), config.lr"),
        ("self.actor.parameters(),", "self.critic.parameters(),"),
        ("self.temperature.parameters(), config.actor_lr", "self.temperature.parameters(), 0.1"),
        ("self.critic.parameters(), config.lr", "self.critic.parameters(), config.actor_lr"),
    ),
    *faults(
        f"{AT}.update",
        EVERY,
        ('noise["draw"]', '-noise["draw"]'),
        ('noise["draw"]', 'noise["next_draw"]'),
        ('noise["next_draw"]', '-noise["next_draw"]'),
        ("metrics = self.policy_steps(", "metrics = {}; self.policy_steps("),
        ("metrics | self.critic_steps", "self.critic_steps"),
        ('metrics | self.critic_steps(batch, noise["next_draw"])', "metrics"),
    ),
    *faults(
        f"{AT}.actor_loss",
        ALL,
        ("self, batch, noise)\n", "self, batch, 0 * noise)\n"),
    ),
    *faults(
        f"{AT}.temperature_loss",
        ALL,
        ("soft_temperature_loss(self, log_prob)", "soft_temperature_loss(self, -log_prob)"),
    ),
    *faults(
        f"{AT}.policy_steps",
        ALL,
        ("self.minimize(self.actor_opt,", "self.minimize(self.critic_opt,"),
        ('metrics["log_prob"]', '-metrics["log_prob"]'),
        ('metrics["log_prob"]', 'metrics["q"]'),
        (
            "metrics | self.minimize(self.temperature_opt, self.temperature_loss, log_prob)",
            "metrics",
        ),
        ("return metrics | ", "return "),
    ),
    *faults(
        f"{AT}.critic_steps",
        ALL,
        ("self.minimize(self.critic_opt,", "self.minimize(self.actor_opt,"),
        (
            "polyak_update(self.critic, self.critic_target,",
            "polyak_update(self.critic_target, self.critic,",
        ),
        ("polyak_update(self.critic, self.critic_target, self.config.polyak)", "pass"),
        ("self.config.polyak", "0.005"),
        ("return metrics", "return {}"),
    ),
    *faults(
        "sac.soft_actor_loss",
        EVERY,
        ("agent.actor.draw(batch.obs", "agent.actor.draw(batch.next_obs"),
        ("agent.critic(batch.obs, action)", "agent.critic_target(batch.obs, action)"),
        ("agent.critic(batch.obs, action)", "agent.critic(batch.obs, action.detach())"),
        ("agent.critic(batch.obs, action)", "agent.critic(batch.next_obs, action)"),
        ("entropy_cost(agent, log_prob) - q", "entropy_cost(agent, log_prob) + q"),
        ("entropy_cost(agent, log_prob) - q", "log_prob - q"),
        ("entropy_cost(agent, log_prob) - q", "-q"),
        ("- q).mean(-1)", "- q).sum(-1)"),
        ('"q": q.mean(-1)', '"q": q.amax(-1)'),
        ("log_prob.mean(-1)", "log_prob.sum(-1)"),
    ),
    *faults(
        "sac.soft_actor_loss",
        SEVERAL,
        (".amin(0)", "[0]"),
        (".amin(0)", ".amax(0)"),
        (".amin(0)", ".mean(0)"),
    ),
    *faults(
        "sac.soft_temperature_loss",
        EVERY,
        ("log_prob + agent", "log_prob - agent"),
        ("log_prob + agent.config.target_entropy * agent.act_dim", "log_prob - agent.act_dim"),
        (" * agent.act_dim", ""),
        ("agent.temperature.ascent(violation)", "agent.temperature.ascent(-violation)"),
        ("agent.temperature()}", "agent.temperature.log}"),
    ),
    *faults(
        "sac.entropy_cost",
        EVERY,
        (".detach()", ""),
        ("agent.temperature()", "agent.temperature.log"),
        ("weight.unsqueeze(-1) * log_prob", "weight.unsqueeze(-1) + log_prob"),
    ),
    *faults(
        "sac.soft_target",
        EVERY,
        ("agent.actor.draw(batch.next_obs", "agent.actor.draw(batch.obs"),
        ("agent.critic_target(batch", "agent.critic(batch"),
        ("(batch.next_obs, action)", "(batch.next_obs, batch.next_action)"),
        ("(batch.next_obs, action)", "(batch.obs, action)"),
        ("q - entropy_cost", "q + entropy_cost"),
        ("q - entropy_cost(agent, log_prob)", "q"),
        ("batch.reward, batch.mask", "batch.reward, torch.ones_like(batch.mask)"),
        ("batch.reward, batch.mask", "-batch.reward, batch.mask"),
        ("agent.config.gamma", "0.99"),
    ),
    *faults(
        "sac.soft_target",
        SEVERAL,
        (".amin(0)", "[0]"),
        (".amin(0)", ".amax(0)"),
        (".amin(0)", ".mean(0)"),
    ),
    # Means over all axes, which mix learners.
    *faults(
        "sac.soft_actor_loss",
        STACKED,
        ("- q).mean(-1)", "- q).mean()"),
        ('"q": q.mean(-1)', '"q": q.mean()'),
        ("log_prob.mean(-1)", "log_prob.mean()"),
        (".amin(0)", ".amin((0, 1)).expand_as(log_prob)"),
    ),
    *faults(
        "sac.soft_target",
        STACKED,
        (".amin(0)", ".amin((0, 1)).expand_as(log_prob)"),
    ),
    *faults(
        "multipliers.Multiplier.forward",
        EVERY,
        ("self.log.exp()", "self.log"),
        ("self.log.exp()", "self.log.exp().square()"),
    ),
    *faults(
        "multipliers.Multiplier.ascent",
        EVERY,
        ("-self.log", "self.log"),
        ("-self.log", "-self()"),
    ),
    *faults(
        "actors.SquashedGaussianActor.forward",
        EVERY,
        ("mean, log_std = self.net(obs)", "log_std, mean = self.net(obs)"),
    ),
    *faults(
        "actors.SquashedGaussianActor.draw",
        EVERY,
        ("_squashed(mean, log_std, noise)", "_squashed(mean, log_std.detach(), noise)"),
        ("_squashed(mean, log_std, noise)", "_squashed(mean, log_std, -noise)"),
    ),
    *faults(
        "actors._squashed",
        EVERY,
        ("mean + log_std.exp() * noise", "mean + log_std * noise"),
        ("- log_std - 0.5", "- 0.5"),
        ("-0.5 * noise.square()", "0.5 * noise.square()"),
        ("- 0.5 * math.log(2.0 * math.pi)", ""),
        ("2.0 * (math.log(2.0)", "(math.log(2.0)"),
        ("- u - softplus", "+ u - softplus"),
        ("(normal - log_slope)", "(normal + log_slope)"),
        ("(normal - log_slope)", "normal"),
        ("(normal - log_slope)", "(normal - log_slope.detach())"),
        (".sum(-1)", ".mean(-1)"),
        ("torch.tanh(u)", "u"),
    ),
]

COVERED = [
    f"sac.{name}"
    for name in (
        *("soft_actor_loss", "soft_temperature_loss", "entropy_cost", "soft_target"),
        "value_and_slope",
    )
]
COVERED += [
    f"{AT}.{name}"
    for name in ("update", "policy_steps", "critic_steps", "actor_loss", "temperature_loss")
]
COVERED += ["actors._squashed", "regularizers.ensemble_diversity"]
