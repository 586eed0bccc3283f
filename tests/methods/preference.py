"""Preferences of segments: cases of parity, and faults, also of the view of pairs."""

from typing import Any

import flat.preference
from fault import faults
from parity_case import LR, TOTAL, Batches, Case, Layers, Trained, reach

from offrl.datasets.offline import OfflineDataset
from offrl.datasets.pairs import segment_pairs
from offrl.datasets.replay import Replay

# A gap that no loss is flat or linear at; four updates of cloning, then preferences.
SETTINGS: dict[str, Any] = {
    **{"lr": LR, "beta": 0.7, "wrong": 0.2, "margin": 0.3, "temperature": 0.8, "bc_weight": 0.2},
    **{"clone": 0.1, "segment": 2, "flip": 0.3},
}
TRAINING = ("loss", "beta", "wrong", "margin", "temperature", "bc_weight", "clone", "lr")
# The divergence from the reference is of second order in the step.
FAR: dict[str, Any] = {"clone": 0.0, "lr": 2.0**-5}
LATE: dict[str, Any] = {"clone": 0.0}  # 12 updates of preferences
OTHER = {
    ("preference", "loss"): ("ipo", LATE),
    ("preference", "beta"): (0.5, LATE),
    ("preference", "wrong"): (0.3, {**LATE, "loss": "cdpo"}),
    ("preference", "margin"): (1.0, {**LATE, "loss": "simpo"}),
    ("preference", "temperature"): (2.0, {**LATE, "loss": "adpo"}),
    ("preference", "bc_weight"): (1.0, LATE),
    ("preference", "clone"): (0.05, {}),
    ("preference", "segment"): (5, {}),
    ("preference", "flip"): (0.5, LATE),
}


def pair_view(case: Case, dataset: OfflineDataset) -> Replay:
    cfg = case.config
    return segment_pairs(
        dataset, length=cfg.segment, flip=cfg.flip, normalize_obs=cfg.normalize_obs
    )


def flat_preference(
    case: Case,
    nets: dict[str, Layers],
    batches: Batches,
    dataset: OfflineDataset,
    view: Replay,
) -> Trained:
    return flat.preference.train(nets, batches, TOTAL, **case.settings(*TRAINING))


def _case(loss: str, objective: str = "preference_loss", **changes: Any) -> Case:
    beside = changes.pop("beside", ())
    changes = {**SETTINGS, "loss": loss, **changes}
    reaching = reach(**{objective: "actor"})
    return Case("preference", changes, reaching, flat_preference, view=pair_view, beside=beside)


CASES = {
    "preference": _case("dpo"),
    "preference-clone": _case("dpo", "clone_loss", clone=1.0),
    "preference-stacked": _case("kto", beside=(5,), segment=4, normalize_obs=False, **FAR),
    "preference-clone-stacked": _case("dpo", "clone_loss", clone=1.0, beside=(5,), segment=4),
    "preference-kto": _case("kto", **FAR),
    **{
        f"preference-{loss}": _case(loss)
        for loss in ("ipo", "cdpo", "rdpo", "chi_po", "simpo", "copg", "adpo")
    },
}
COVERED = [
    "agents.preference.Preference.loss_of_pairs",
    "agents.preference.Preference.divergence",
    "agents.preference.Preference.log_prob",
    "agents.preference._in_order",
    "divergences.gaussian_kl",
]

_AT = "agents.preference.Preference"
_ALL = "preference preference-ipo preference-copg"
FAULTS = [
    *faults(
        f"{_AT}.__init__",
        "preference",
        ("target_of(self.actor)", "self.actor"),
        ("adam(self.actor.parameters(), config.lr)", "adam(self.actor.parameters(), 3e-4)"),
        (
            "adam(self.actor.parameters(), config.lr)",
            "adam(self.actor.net.parameters(), config.lr)",
        ),
    ),
    *faults(
        f"{_AT}.view",
        "preference",
        ("length=cfg.segment", "length=cfg.segment + 1"),
        ("flip=cfg.flip", "flip=0.0"),
        ("normalize_obs=cfg.normalize_obs", "normalize_obs=False"),
    ),
    *faults(
        f"{_AT}.schedule",
        "preference",
        ("self.config.clone * steps", "0.5 * steps"),
        ("step < ", "step <= "),
        ("step < ", "step > "),
    ),
    *faults(
        f"{_AT}.update",
        "preference",
        ("if self.cloning:", "if not self.cloning:"),
        ("if self.cloning:", "if True:"),
        ("metrics = self.minimize(self.actor_opt, self.clone_loss, batch)", "metrics = {}"),
        ("polyak_update(self.actor, self.reference, 1.0)", "pass"),
        ("self.reference, 1.0)", "self.reference, 0.5)"),
        ("polyak_update(self.actor, self.reference,", "polyak_update(self.reference, self.actor,"),
        ("return metrics", "return {}"),
        (
            "return self.minimize(self.actor_opt, self.preference_loss, batch)",
            "metrics = self.minimize(self.actor_opt, self.preference_loss, batch)\n"
            "        polyak_update(self.actor, self.reference, 1.0)\n"
            "        return metrics",
        ),
        (
            "return self.minimize(self.actor_opt, self.preference_loss, batch)",
            "return {'preference_loss': self.preference_loss(batch)[0]}",
        ),
    ),
    *faults(
        f"{_AT}.clone_loss",
        "preference-clone preference-clone-stacked",
        ("self.actor,", "self.reference,"),
        ("return -logp", "return logp"),
    ),
    *faults(
        f"{_AT}.clone_loss",
        "preference-clone-stacked",
        ("* batch.real)", ")"),
        (").sum((-3, -2, -1))\n", ").sum()\n"),
        ("/ batch.real.sum((-3, -2, -1))", "/ (0 * batch.real + 1).sum((-3, -2, -1))"),
    ),
    *faults(
        f"{_AT}.preference_loss",
        _ALL,
        ("self.log_prob(self.reference, batch)", "self.log_prob(self.actor, batch)"),
        ("_in_order(batch, logp, ref_logp)", "_in_order(batch, logp, ref_logp)[::-1]"),
        ("self.config.bc_weight *", "0.5 *"),
        ("self.config.bc_weight *", "-self.config.bc_weight *"),
        ("bc_term(chosen,", "bc_term(rejected,"),
        ('bc_term(chosen, "mean")', "bc_term(chosen)"),
        (
            "ahead, behind = seq_score(chosen), seq_score(rejected)",
            "ahead = behind = seq_score(chosen)",
        ),
        ("ahead > behind", "ahead < behind"),
        ("(0.5 * (ahead + behind))", "ahead"),
        ("return loss.mean(-1)", "return loss.sum(-1)"),
    ),
    *faults(
        f"{_AT}.preference_loss",
        "preference preference-ipo",
        ("batch.real), chosen, rejected)", "batch.real), chosen, chosen)"),
    ),
    *faults(
        f"{_AT}.preference_loss",
        "preference-copg preference-adpo",
        ("(batch, Scores(logp, ref_logp,", "(batch, Scores(logp, logp,"),
    ),
    *faults(
        f"{_AT}.preference_loss",
        "preference-stacked",
        ("return loss.mean(-1)", "return loss.mean()"),
        (".to(loss).mean(-1)", ".to(loss).mean()"),
        ("(ahead + behind)).mean(-1)", "(ahead + behind)).mean()"),
    ),
    *faults(
        f"{_AT}.loss_of_pairs",
        "preference-kto preference-stacked",
        ("cfg = self.config", "cfg = type(self.config)()"),
        ('if cfg.loss == "kto":', "if False:"),
        ("self.divergence(batch),", "0.0 * self.divergence(batch),"),
        ("kto(chosen, good, baseline=z,", "kto(chosen, ~good, baseline=z,"),
        ("desired = kto(chosen, good, baseline=z, beta=cfg.beta)", "desired = 0.0"),
        ("kto(chosen, good, baseline=z, beta=cfg.beta)", "kto(chosen, good, baseline=z)"),
        ("return desired + ", "return "),
        ("kto(rejected, ~good", "kto(rejected, good"),
    ),
    *faults(
        f"{_AT}.loss_of_pairs",
        "preference-copg",
        ('if cfg.loss == "copg":', "if False:"),
        ("batch.score, beta=cfg.beta)", "-batch.score, beta=cfg.beta)"),
        ("batch.score, beta=cfg.beta)", "batch.score, beta=0.1)"),
    ),
    *faults(
        f"{_AT}.loss_of_pairs",
        "preference-adpo",
        ('if cfg.loss == "adpo":', "if False:"),
        ("boltzmann(batch.score, temperature=cfg.temperature)", "batch.score"),
        ("temperature=cfg.temperature", "temperature=0.5"),
        ("tau=1.0 / cfg.beta", "tau=cfg.beta"),
    ),
    *faults(
        f"{_AT}.loss_of_pairs",
        _ALL.replace(" preference-copg", ""),
        ("function(chosen, rejected,", "function(rejected, chosen,"),
        ("PAIRS[cfg.loss]", "PAIRS['chi_po'][0], {}"),
        ("{k: getattr(cfg, v) for k, v in options.items()}", "{}"),
    ),
    *faults(
        f"{_AT}.loss_of_pairs",
        "preference-cdpo preference-rdpo preference-simpo",
        ("{k: getattr(cfg, v) for k, v in options.items()}", "{'beta': cfg.beta}"),
    ),
    *faults(
        f"{_AT}.divergence",
        "preference-kto preference-stacked",
        ("batch.obs.flatten(-4, -2)", "0.0 * batch.obs.flatten(-4, -2)"),
        ("pi, ref = self.actor, self.reference", "ref, pi = self.actor, self.reference"),
        (".detach()", ""),
        ("gaussian_kl(pi.mean(obs)", "gaussian_kl(ref.mean(obs)"),
        (".sum(-1)\n", ".mean(-1)\n"),
        (".mean((-2, -1))", ".sum((-2, -1))"),
    ),
    *faults(
        f"{_AT}.divergence",
        "preference-stacked",
        ("of_segment.mean((-2, -1))[..., None]", "of_segment.mean() + 0 * batch.score[..., :1, 0]"),
        ("* batch.real)", ")"),
    ),
    *faults(
        f"{_AT}.log_prob",
        _ALL,
        ("batch.obs.flatten(-4, -2)", "batch.obs.flip(-2).flatten(-4, -2)"),
        ("batch.action.flatten(-4, -2)", "batch.action.flip(-3).flatten(-4, -2)"),
        ("return logp.reshape", "return -logp.reshape"),
    ),
    *faults(
        "agents.preference._in_order",
        "preference preference-ipo",
        (">=", "<"),
        ("batch.score[..., 0]", "0.0 * batch.score[..., 0]"),
        ("for x in (*logp, batch.real)", "for x in (*logp[::-1], batch.real)"),
        ("chosen = [torch.where(first, one, two)", "chosen = [one"),
        ("rejected = [torch.where(first, two, one)", "rejected = [two"),
        ("Scores(*chosen), Scores(*rejected)", "Scores(*rejected), Scores(*chosen)"),
    ),
    *faults(
        "divergences.gaussian_kl",
        "preference-kto",
        ("std.square() + (mean - ref_mean).square()", "std.square()"),
        ("ref_std / std", "std / ref_std"),
        ("0.5 * spread", "spread"),
        (".sum(-1)", ".mean(-1)"),
    ),
    *faults(
        "datasets.pairs.SegmentPairs.sample",
        _ALL,
        ('torch.where(drawn["wrong"][..., None], score.flip(-1), score)', "score"),
        ('self.index[drawn["second"]]', "row"),
        ("[row, ", "[row + 1, "),
        ("- self.obs_mean)", "+ self.obs_mean)"),
        ("score = self.score[pair]", "score = -self.score[pair]"),
    ),
]
