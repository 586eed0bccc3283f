"""CQL: cases of parity, and faults."""

from dataclasses import replace

import flat.cql
from fault import faults
from methods.sac import REACH, SOFT
from parity_case import BATCH, Batches, Case, Layers, Trained, reach
from problems import ACT

from offrl.datasets.offline import OfflineDataset
from offrl.datasets.replay import Replay

SAMPLES = 3
MANY = (SAMPLES, BATCH, ACT)
NOISE = {
    "draw": (BATCH, ACT),
    "next_draw": (1, BATCH, ACT),
    "random": MANY,
    "here": MANY,
    "then": MANY,
}
CONSERVATIVE = {**SOFT, "alpha": 0.7, "samples": SAMPLES, "lse_temperature": 0.8}
SETTINGS = (
    *CONSERVATIVE,
    *("importance_sampling", "lagrange", "target_gap", "clip_low", "clip_high"),
    *("max_target_backup", "backup_entropy", "bc_steps", "beer"),
)
LAGRANGE = {"lagrange": True, "target_gap": 3.0}


def flat_cql(
    case: Case,
    nets: dict[str, Layers],
    batches: Batches,
    dataset: OfflineDataset,
    view: Replay,
) -> Trained:
    return flat.cql.train(nets, batches, **case.settings(*SETTINGS))


PLAIN = Case("cql", CONSERVATIVE, REACH, flat_cql, NOISE)
LEARNED = replace(
    PLAIN,
    changes={**CONSERVATIVE, **LAGRANGE},
    reach={**REACH, **reach(multiplier_loss="multiplier")},
    expected=[],
)
BEST = {
    "max_target_backup": True,
    "backup_entropy": True,
    "bc_steps": 3,
    "extra_critic_layers": 1,
}
# Ten values that hardly differ at first: gaps near 0.8 log 10 = 1.842. Either clip cuts a quarter.
CLIPPED = {"importance_sampling": False, "clip_low": 1.8418, "clip_high": 1.8422}
CASES = {
    "cql": PLAIN,
    "cql-lagrange": LEARNED,
    "cql-best": replace(
        PLAIN,
        changes={**CONSERVATIVE, **BEST},
        noise={**NOISE, "next_draw": MANY},
        expected=[],
    ),
    "cql-clipped": replace(PLAIN, changes={**CONSERVATIVE, **CLIPPED}, expected=[]),
    "cql-stacked": replace(LEARNED, beside=(5,), expected=[]),
}

OTHER = {
    ("cql", "samples"): (3, {}),
    ("cql", "target_gap"): (1.0, {"lagrange": True}),
    ("cql", "clip_low"): (100.0, {}),
    ("cql", "clip_high"): (-100.0, {}),
    ("cql", "bc_steps"): (5, {}),
    ("cql", "extra_critic_layers"): (1, {}),
}

EVERY = "cql cql-lagrange cql-best"
AT = "agents.cql.CQL"
FAULTS = [
    *faults(
        f"{AT}.schedule",
        "cql-best",
        ("step < self", "step <= self"),
        ("step < self", "step > self"),
    ),
    *faults(
        f"{AT}.update",
        EVERY,
        ('noise["draw"]', '-noise["draw"]'),
        ('noise["draw"]', 'noise["random"][..., 0, :, :]'),
        ("metrics = self.policy_steps(", "metrics = {}; self.policy_steps("),
        ("metrics |= self.critic_steps(batch, noise)", "self.critic_steps(batch, noise)"),
        ("return metrics", "return {}"),
    ),
    *faults(
        f"{AT}.update",
        "cql-lagrange",
        ("if self.config.lagrange:", "if False:"),
        ('gap = metrics["gap"]', 'gap = -metrics["gap"]'),
        ("metrics |= self.minimize(self.multiplier_opt", "self.minimize(self.multiplier_opt"),
    ),
    *faults(
        f"{AT}.actor_loss",
        EVERY,
        ("actor_loss(batch, noise)\n", "actor_loss(batch, 0 * noise)\n"),
    ),
    *faults(
        f"{AT}.actor_loss",
        "cql-best",
        ("if self.config.bc_steps:", "if False:"),
        (
            "self.actor.log_prob(batch.obs, batch.action)",
            "self.actor.log_prob(batch.obs, -batch.action)",
        ),
        (".mean(-1)", ".sum(-1)"),
        ("loss + self.cloning * (", "loss - self.cloning * ("),
        ('metrics["q"] - log_prob', 'metrics["q"].detach() - log_prob'),
        ('metrics["q"] - log_prob', "-log_prob"),
        ("loss + self.cloning *", "loss +"),
        ("return loss, metrics", "return loss, {}"),
    ),
    *faults(
        f"{AT}.critic_loss",
        EVERY,
        ("cfg = self.config", "cfg = type(self.config)()"),
        ('noise["next_draw"]', '0 * noise["next_draw"]'),
        ("cfg.backup_entropy", "not cfg.backup_entropy"),
        (
            "proposals(self, batch, noise)",
            "proposals(self, batch, {k: -v for k, v in noise.items()})",
        ),
        ("features(batch.obs, batch.action)", "features(batch.obs, batch.next_action)"),
        ("self.critic.read(features)", "self.critic_target.read(features)"),
        ("values_of_many(self.critic, batch.obs", "values_of_many(self.critic, batch.next_obs"),
        ("values_of_many(self.critic,", "values_of_many(self.critic_target,"),
        ("log_density, data, cfg.lse_temperature", "log_density, data"),
        ("log_density, data,", "-log_density, data,"),
        ("log_density, data,", "log_density, data.detach(),"),
        (".mean(-1)\n", ".sum(-1)\n"),
        ("td_regression(data, target)", "td_regression(data, 0 * target)"),
        ("loss + cfg.alpha * weight * gap.sum(0)", "loss - cfg.alpha * weight * gap.sum(0)"),
        ("loss + cfg.alpha * weight", "loss + weight"),
        ("gap.sum(0)", "gap.amax(0)"),
        ("gap.sum(0)", "gap.mean(0)"),
        ('"gap": gap.mean(0)', '"gap": gap.sum(0)'),
    ),
    *faults(
        f"{AT}.critic_loss",
        "cql-lagrange",
        ("with torch.no_grad():", "if True:"),
        ("self.multiplier() if cfg.lagrange else 1.0", "1.0"),
        ("self.multiplier() if", "self.multiplier.log if"),
    ),
    *faults(
        f"{AT}.critic_loss",
        "cql-clipped",
        ("if not cfg.importance_sampling:", "if False:"),
        ("torch.cat([data.unsqueeze(-2), sampled], -2)", "sampled"),
        ("[data.unsqueeze(-2), sampled]", "[data.detach().unsqueeze(-2), sampled]"),
        ("torch.zeros_like(sampled[0])", "torch.ones_like(sampled[0])"),
        (".clamp(cfg.clip_low, cfg.clip_high)", ".clamp(cfg.clip_low)"),
        (".clamp(cfg.clip_low, cfg.clip_high)", ".clamp(max=cfg.clip_high)"),
    ),
    *faults(
        f"{AT}.critic_loss",
        "cql-stacked",
        (".mean(-1)\n", ".mean()\n"),
        ("gap.sum(0)", "gap.sum()"),
    ),
    *faults(
        f"{AT}.multiplier_loss",
        "cql-lagrange",
        ("self.config.alpha * (gap", "(gap"),
        ("gap - self.config.target_gap", "gap + self.config.target_gap"),
        ("self.multiplier.ascent(violation)", "self.multiplier.ascent(-violation)"),
        ('{"multiplier": self.multiplier()}', "{}"),
    ),
    *faults(
        "sac.best_target",
        EVERY,
        ("draw_many(batch.next_obs", "draw_many(batch.obs"),
        ("values_of_many(agent.critic_target,", "values_of_many(agent.critic,"),
        ("agent.critic_target, batch.next_obs", "agent.critic_target, batch.obs"),
        (".amin(0)", ".amax(0)"),
        (".amin(0)", ".mean(0)"),
        ("batch.mask, q, agent", "torch.ones_like(q), q, agent"),
        ("batch.reward, batch", "-batch.reward, batch"),
        ("agent.config.gamma", "0.99"),
    ),
    *faults(
        "sac.best_target",
        "cql-best",
        (".max(-2)", ".min(-2)"),
        ("if entropy:", "if False:"),
        ("log_prob.gather(-2, best.unsqueeze(-2)).squeeze(-2)", "log_prob[..., 0, :]"),
        ("q - entropy_cost", "q + entropy_cost"),
    ),
    *faults("sac.best_target", "cql cql-lagrange", (".amin(0)", "[0]")),
    *faults("sac.best_target", "cql", ("if entropy:", "if True:")),
    *faults(
        "sac.proposals",
        EVERY,
        ("2.0 * torch.special.ndtr", "torch.special.ndtr"),
        ('ndtr(noise["random"]) - 1.0', 'ndtr(noise["random"])'),
        ('draw_many(batch.obs, noise["here"])', 'draw_many(batch.next_obs, noise["here"])'),
        ('noise["here"]', 'noise["then"]'),
        ('draw_many(batch.next_obs, noise["then"])', 'draw_many(batch.obs, noise["then"])'),
        ("-agent.act_dim * math.log(2.0)", "agent.act_dim * math.log(2.0)"),
        ("-agent.act_dim * math.log(2.0)", "-math.log(2.0)"),
        ("[uniform, log_here, log_then]", "[uniform, log_then, log_here]"),
        ("[random, here, then], -3", "[random, here, here], -3"),
    ),
    *faults(
        "regularizers.log_sum_exp_gap",
        EVERY,
        ("(sampled - log_density)", "(sampled + log_density)"),
        ("/ temperature", "* temperature"),
        ("temperature * exponent", "exponent"),
        ("logsumexp(-2)", "amax(-2)"),
        ("logsumexp(-2)", "mean(-2)"),
        ("- data", ""),
    ),
    *faults(
        "sac.values_of_many",
        EVERY,
        ("obs.unsqueeze(-3)", "-obs.unsqueeze(-3)"),
        (
            "q.reshape(*q.shape[:-1], some.shape[-3], -1)",
            "q.reshape(*q.shape[:-1], -1, some.shape[-3]).transpose(-1, -2)",
        ),
        ("some.flatten(-3, -2)", "some.transpose(-3, -2).flatten(-3, -2)"),
        ("found = []", "found = [critic(obs, actions[..., 0, :, :]).unsqueeze(-2)]"),
        ("torch.cat(found, -2)", "torch.cat(found[::-1], -2)"),
        ("repeated.flatten(-3, -2)", "repeated.transpose(-3, -2).flatten(-3, -2)"),
    ),
    *faults(
        "sac.soft_networks",
        "cql-best",
        ("* extra]", "* 0]"),
    ),
    *faults(
        "actors.SquashedGaussianActor.log_prob",
        "cql-best",
        ("(u - mean) / log_std.exp()", "(u - mean)"),
        ("torch.atanh(", "("),
        ("[1]", "[1].detach()"),
    ),
]

COVERED = ["regularizers.log_sum_exp_gap"]
COVERED += ["sac.values_of_many", "sac.best_target", "sac.proposals"]
