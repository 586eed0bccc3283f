"""BEER's term in the critics' loss: cases of parity for a method of each family, and faults."""

from dataclasses import replace

from fault import faults
from methods import cql, edac, iql, riql, sac_n, td3_bc
from parity_case import Case


def _with_beer(case: Case, seed: int) -> Case:
    """The case with a weight at which the term is as large as the rest of the loss."""
    return replace(case, changes={**case.changes, "beer": 0.5}, seed=seed, expected=[])


CASES = {
    "td3_bc-beer": _with_beer(td3_bc.CASES["td3_bc"], 71),
    "td3_bc-beer-stacked": _with_beer(td3_bc.CASES["td3_bc-stacked"], 71),
    "iql-beer": _with_beer(iql.CASES["iql"], 73),
    "riql-beer": _with_beer(riql.CASES["riql"], 91),
    "sac_n-beer": _with_beer(sac_n.CASES["sac_n"], 71),
    "edac-beer": _with_beer(edac.CASES["edac"], 71),
    "cql-beer": _with_beer(cql.CASES["cql"], 71),
}

EVERY = "td3_bc-beer iql-beer"
STACKED = "td3_bc-beer-stacked"

FAULTS = [
    *faults(
        "representation.with_beer",
        EVERY,
        ("if not agent.config.beer:", "if agent.config.beer:"),
        (
            "_penalty(agent, batch, features)",
            "beer_penalty(agent.critic, agent.critic_target, batch, "
            "features, batch.action, batch.action, agent.config.gamma)",
        ),
        ("loss + share * agent.config.beer", "loss - agent.config.beer"),
        ("agent.config.beer * penalty", "penalty"),
        ("penalty.mean(-1)", "penalty.sum(-1)"),
        ("{**metrics, **measured}", "metrics"),
        ('measured["td_error"] = loss', "pass"),
    ),
    *faults("representation.with_beer", "riql-beer", ("share * ", "")),
    *faults(
        "agents.riql.RIQL.critic_loss",
        "riql-beer",
        (
            "with_beer(self, batch, features, loss, metrics, 1.0 / self.config.critics)",
            "loss, metrics",
        ),
        ("self, batch, features, loss", "self, batch, features.detach(), loss"),
        (", 1.0 / self.config.critics", ""),
    ),
    *faults(
        "representation.critic_regression",
        f"{EVERY} sac_n-beer",
        ("with_beer(agent, batch, features, *td", "tuple(td"),
        ("batch, features, *td", "batch, features.detach(), *td"),
    ),
    *faults(
        "agents.edac.EDAC.critic_loss",
        "edac-beer",
        ("with_beer(self, batch, features, *td", "tuple(td"),
        ("self, batch, features, *td", "self, batch, features.detach(), *td"),
    ),
    *faults("sac.value_and_slope", "edac-beer", ("slope, features\n", "slope, -features\n")),
    *faults(
        "agents.cql.CQL.critic_loss",
        "cql-beer",
        ("with_beer(self, batch, features, *td", "tuple(td"),
        ("self, batch, features, *td", "self, batch, features.detach(), *td"),
    ),
    *faults(
        "representation.with_beer",
        "td3_bc iql",
        ("return loss, metrics", "return 2.0 * loss, metrics"),
    ),
    *faults(
        "representation._penalty",
        EVERY,
        ("agent.actor.mode(batch.next_obs)", "agent.actor.mode(batch.obs)"),
        ("agent.actor.mode(batch.next_obs)", "batch.next_action"),
        ("target_actor.mode(batch.next_obs)", "batch.next_action"),
        ("agent.critic, agent.critic_target, batch", "agent.critic, agent.critic, batch"),
        ("agent.critic, agent.critic_target, batch", "agent.critic_target, agent.critic, batch"),
        ("agent.config.gamma", "0.99"),
        ("batch, features, next_action", "batch, features.detach(), next_action"),
    ),
    *faults(
        "representation._penalty",
        "td3_bc-beer",
        ('getattr(agent, "actor_target", agent.actor)', "agent.actor"),
        ("features, next_action, target_action", "features, target_action, next_action"),
    ),
    *faults(
        "representation.beer_penalty",
        EVERY,
        ("critic_target.features(batch.next_obs,", "critic_target.features(batch.obs,"),
        (
            "critic_target.features(batch.next_obs, target_action)",
            "critic.features(batch.next_obs, target_action)",
        ),
        ("with torch.no_grad():", "if True:"),
        ("batch.reward, critic.head.weight", "0 * batch.reward, critic.head.weight"),
        ("feature_cosine(features, target_features)", "feature_cosine(features, next_features)"),
        ("batch.mask * ", ""),
        ("(cosine - bound).relu()", "(bound - cosine).relu()"),
        (".sum(0)", ".mean(0)"),
        ('{"feature_cosine": cosine[0].mean(-1), "cosine_bound": bound[0].mean(-1)}', "{}"),
        ("return penalty, measured", "return 0.0 * penalty, measured"),
    ),
    *faults(
        "representation.beer_penalty",
        "td3_bc-beer",
        ("(cosine - bound).relu()", "(cosine - bound)"),
        (
            "critic.features(batch.next_obs, next_action)",
            "critic_target.features(batch.next_obs, next_action)",
        ),
    ),
    *faults(
        "representation.beer_penalty",
        STACKED,
        ("cosine[0].mean(-1)", "cosine[0].mean()"),
        ("bound[0].mean(-1)", "bound[0].mean()"),
    ),
    *faults(
        "representation.feature_cosine_bound",
        EVERY,
        ("weight.square().sum((-2, -1))", "weight.square().mean((-2, -1))"),
        ("gamma**2 * following", "gamma * following"),
        ("features.square().sum(-1) + ", ""),
        ("(size - reward", "(size + reward"),
        ("reward.square()", "reward"),
        ("/ head", ""),
        ("2.0 * max(gamma, EPS)", "2.0"),
        ("_norm(features) * _norm(target_features)", "_norm(features)"),
        ("_norm(features) * _norm(target_features)", "_norm(features) * _norm(next_features)"),
    ),
    # With IQL's rewards, a thousand apart, the features' own lengths hardly count.
    *faults(
        "representation.feature_cosine_bound",
        "td3_bc-beer",
        ("target_features if consistent", "target_features if not consistent"),
    ),
    *faults(
        "representation.feature_cosine_bound",
        STACKED,
        ("weight.square().sum((-2, -1))", "weight.square().sum((-3, -2, -1)).unsqueeze(-1)"),
    ),
    *faults(
        "representation.feature_cosine",
        EVERY,
        ("(features * other).sum(-1)", "(features * other).mean(-1)"),
        ("_norm(features) * _norm(other)", "_norm(features)"),
    ),
    *faults(
        "representation._norm",
        EVERY,
        (".sqrt()", ""),
        (".square().sum(-1)", ".abs().sum(-1)"),
    ),
]

COVERED = [
    f"representation.{name}"
    for name in (
        *("with_beer", "_penalty", "beer_penalty", "feature_cosine_bound"),
        *("feature_cosine", "_norm"),
    )
]

EXEMPT = {
    ("representation._penalty", "with torch.no_grad():"): "optimisers ask for the critics alone",
}
