"""A2PR: cases of parity, and faults."""

from typing import Any

import flat.a2pr
from fault import faults
from methods.td3 import update_faults
from methods.td3_bc import SETTINGS
from parity_case import BATCH, TD3, Batches, Case, Layers, Trained, reach
from problems import ACT

from offrl.datasets.offline import OfflineDataset
from offrl.datasets.replay import Replay

REACH = reach(
    critic_loss="critic", value_loss="value", cvae_loss="cvae", actor_loss="actor critic cvae"
)
NOISE = {
    "target_action": (BATCH, ACT),
    "latent": (BATCH, 2 * ACT),
    "policy_latent": (BATCH, 2 * ACT),
}
OWN = ("mask_weight", "cvae_weight", "cvae_lr", "detach_reference")


def flat_a2pr(
    case: Case,
    nets: dict[str, Layers],
    batches: Batches,
    dataset: OfflineDataset,
    view: Replay,
) -> Trained:
    return flat.a2pr.train(nets, batches, **case.settings(*SETTINGS, *OWN))


# Weights that are not 1, and a rate of the CVAE that is not the others'.
CHANGES: dict[str, Any] = {"alpha": 1.5, "mask_weight": 0.7, "cvae_weight": 1.3, **TD3}
CHANGES |= {"cvae_lr": 2.0**-9, "critic_hidden": (7, 6), "cvae_hidden": (9,)}
DETACHED = {**CHANGES, "policy_delay": 3, "detach_reference": True}
DETACHED_REACH = reach(
    critic_loss="critic", value_loss="value", cvae_loss="cvae", actor_loss="actor critic"
)

# The first case has advantages of either sign for each action, the second some so near 0 that V
# before and after its step decide differently.
CASES = {
    "a2pr": Case("a2pr", CHANGES, REACH, flat_a2pr, NOISE),
    "a2pr-detached": Case("a2pr", DETACHED, DETACHED_REACH, flat_a2pr, NOISE, 73),
    "a2pr-stacked": Case("a2pr", CHANGES, REACH, flat_a2pr, NOISE, beside=(5,)),
}

OTHER = {
    ("a2pr", "mask_weight"): (1.0, {}),
    ("a2pr", "critic_hidden"): ((16, 8), {}),
    ("a2pr", "cvae_hidden"): ((16, 8), {}),
}

AT = "agents.a2pr.A2PR"
BOTH = "a2pr a2pr-detached"
FAULTS = [
    *update_faults(AT, BOTH),
    *faults(
        f"{AT}.__init__",
        BOTH,
        ("with_target(actor, lr)", "with_target(actor, 2 * lr)"),
        ("with_target(critic, lr)", "with_target(critic, 2 * lr)"),
        ("adam(self.value.parameters(), lr)", "adam(self.value.parameters(), 2 * lr)"),
        ("config.cvae_lr", "lr"),
        ("adam(self.cvae.parameters()", "adam(self.cvae.decoder.parameters()"),
    ),
    *faults(
        f"{AT}.update",
        BOTH,
        ("self.compute(self.next_action, batch,", "self.compute(self.next_action, batch, 0 *"),
        ("self.compute(self.target, batch, action)", "batch.reward"),
        ("value = self.compute(self.old_value, batch)", "value = 0 * batch.reward"),
        (
            "metrics |= self.minimize(self.value_opt, self.value_loss, batch, action, target)",
            "self.minimize(self.value_opt, self.value_loss, batch, action, target)",
        ),
        ("self.value_loss, batch, action, target", "self.value_loss, batch, batch.action, target"),
        ("self.value_loss, batch, action, target", "self.value_loss, batch, action, -target"),
        ("metrics |= self.minimize(self.cvae_opt", "self.minimize(self.cvae_opt"),
        ("batch, value, noise", "batch, 0 * value, noise"),
        ('noise["latent"]', '0 * noise["latent"]'),
        ('noise["latent"]', 'noise["policy_latent"]'),
        ('noise["policy_latent"]', 'noise["latent"]'),
        (
            "metrics |= self.minimize(self.actor_opt, self.actor_loss, batch, value, drawn)",
            "pass",
        ),
        ("            update_targets(self)", "        update_targets(self)"),
        # V before the critic, the CVAE's gate by the new V, the policy before the CVAE.
        (
            "metrics = self.minimize(self.critic_opt, self.critic_loss, batch, target)\n"
            "        metrics |= self.minimize(self.value_opt, self.value_loss, batch, action, "
            "target)",
            "metrics = self.minimize(self.value_opt, self.value_loss, batch, action, target)\n"
            "        metrics |= self.minimize(self.critic_opt, self.critic_loss, batch, target)",
        ),
        (
            "metrics |= self.minimize(self.cvae_opt, self.cvae_loss, batch, value,",
            "value = self.compute(self.old_value, batch)\n"
            "        metrics |= self.minimize(self.cvae_opt, self.cvae_loss, batch, value,",
        ),
    ),
    *faults(
        f"{AT}.target",
        BOTH,
        ("self.critic_target, batch", "self.critic, batch"),
        ("batch, action)", "batch, batch.action)"),
    ),
    *faults(
        f"{AT}.critic_loss",
        BOTH,
        ("critic_regression(self, batch, target)", "critic_regression(self, batch, -target)"),
    ),
    *faults(
        f"{AT}.value_loss",
        BOTH,
        ("torch.no_grad()", "torch.enable_grad()"),
        ("self.critic, batch", "self.critic_target, batch"),
        ("value = self.value(batch.obs)", "value = self.value(batch.next_obs)"),
        ("torch.minimum(target, online)", "torch.maximum(target, online)"),
        ("torch.minimum(target, online)", "target"),
        (".square().mean(-1)", ".square().sum(-1)"),
        (".square().mean(-1)", ".abs().mean(-1)"),
        ("return loss,", "return -loss,"),
        ("value.mean(-1)}", "value.amax(-1)}"),
    ),
    *faults(
        f"{AT}.cvae_loss",
        BOTH,
        ("> value", "< value"),
        ("batch.action) > value", "batch.next_action) > value"),
        ("self.critic.first(batch.obs", "self.critic_target.first(batch.obs"),
        ("self.cvae(batch.obs, batch.action, noise)", "self.cvae(batch.obs, batch.action, -noise)"),
        ("self.cvae(batch.obs, batch.action", "self.cvae(batch.next_obs, batch.action"),
        ("(better * action_error(action, batch.action))", "action_error(action, batch.action)"),
        ("action_error(action, batch.action)", "action_error(action, -batch.action)"),
        ("divergence.mean(-1)", "divergence.sum(-1)"),
        ("self.config.cvae_weight * reconstruction", "reconstruction"),
        ("0.5 * kl", "kl"),
        ("+ 0.5 * kl", "- 0.5 * kl"),
        ('"better": better.mean(-1)', '"better": better.sum(-1)'),
    ),
    *faults(
        f"{AT}.actor_loss",
        BOTH,
        ("action = self.actor(batch.obs)", "action = self.actor_target(batch.obs)"),
        ("action = self.actor(batch.obs)", "action = self.actor(batch.next_obs)"),
        ("q = self.critic.first(batch.obs, action)", "q = self.critic(batch.obs, action)[1]"),
        ("q = self.critic.first(batch.obs, action)", "q = self.critic(batch.obs, action).amin(0)"),
        (
            "q = self.critic.first(batch.obs, action)",
            "q = self.critic.first(batch.obs, action.detach())",
        ),
        ("self.cvae(batch.obs, action, noise)", "self.cvae(batch.obs, batch.action, noise)"),
        ("self.cvae(batch.obs, action, noise)", "self.cvae(batch.obs, action, -noise)"),
        ("if self.config.detach_reference:", "if not self.config.detach_reference:"),
        ("self.critic.first(batch.obs, generated) - value", "q - value"),
        ("generated) - value", "generated) + value"),
        ("batch.action) - value", "batch.action)"),
        (
            "mask = advantage_mask(generated_advantage, logged_advantage)",
            "mask = torch.ones_like(q)",
        ),
        (
            "batch.action, generated_advantage, logged_advantage)",
            "batch.action, logged_advantage, generated_advantage)",
        ),
        ("dual_reference(generated, batch.action,", "dual_reference(action, batch.action,"),
        ("dual_reference(generated, batch.action,", "dual_reference(generated, generated,"),
        ("self.config.mask_weight * ", ""),
        ("(mask * action_error(action, goal))", "action_error(action, goal)"),
        ("action_error(action, goal)", "action_error(action.detach(), goal)"),
        ("-q_scale(q, self.config.alpha)", "q_scale(q, self.config.alpha)"),
        ("q_scale(q, self.config.alpha)", "self.config.alpha"),
        ("self.config.alpha) * q.mean(-1)", "self.config.alpha) * q.sum(-1)"),
        ("(generated_advantage >= logged_advantage).to(q)", "mask"),
        ('"mask": mask.mean(-1)', '"mask": mask.amax(-1)'),
        ("return q_loss + bc_loss", "return q_loss - bc_loss"),
        ("return q_loss + bc_loss", "return q_loss"),
    ),
    *faults(
        f"{AT}.update",
        "a2pr-detached",
        ("batch, value, drawn)", "batch, self.value(batch.obs), drawn)"),
    ),
    *faults(f"{AT}.value_loss", "a2pr-detached", ("torch.minimum(target, online)", "online")),
    *faults(f"{AT}.actor_loss", "a2pr-detached", ("generated = generated.detach()", "pass")),
    *faults(
        f"{AT}.actor_loss",
        "a2pr",
        (
            "advantage_mask(generated_advantage, logged_advantage)",
            "advantage_mask(generated_advantage, generated_advantage)",
        ),
    ),
    # Means over all axes, which mix learners.
    *faults(
        f"{AT}.value_loss",
        "a2pr-stacked",
        (".square().mean(-1)", ".square().mean()"),
        ("value.mean(-1)}", "value.mean()}"),
    ),
    *faults(
        f"{AT}.cvae_loss",
        "a2pr-stacked",
        ("divergence.mean(-1)", "divergence.mean()"),
        ("batch.action)).mean(-1)", "batch.action)).mean()"),
    ),
    *faults(
        f"{AT}.actor_loss",
        "a2pr-stacked",
        ("goal)).mean(-1)", "goal)).mean()"),
        ("self.config.alpha) * q.mean(-1)", "self.config.alpha) * q.mean()"),
    ),
    *faults(
        "regularizers.dual_reference",
        BOTH,
        (">=", "<"),
        ("generated.where(", "logged.where("),
        ("[..., None], logged)", "[..., None], generated)"),
    ),
    *faults(
        "regularizers.advantage_mask",
        "a2pr",
        (" | ", " & "),
        ("(generated_advantage >= 0) | ", ""),
        (" | (logged_advantage > 0)", ""),
        ("generated_advantage >= 0", "generated_advantage < 0"),
        ("logged_advantage > 0", "logged_advantage < 0"),
    ),
    *faults(
        "cvae.CVAE.encode",
        BOTH,
        ("return mean, log_std", "return log_std, mean"),
        ("torch.cat([obs, action], -1)", "torch.cat([0 * obs, action], -1)"),
    ),
    *faults(
        "cvae.CVAE.decode",
        BOTH,
        ("torch.tanh(", "("),
        ("torch.cat([obs, latent], -1)", "torch.cat([obs, 0 * latent], -1)"),
    ),
    *faults(
        "cvae.CVAE.forward",
        BOTH,
        ("log_std.exp() * noise", "noise"),
        ("mean + log_std", "log_std"),
        ("divergence(mean, log_std)", "divergence(log_std, mean)"),
        ("self.encode(obs, action)", "self.encode(obs, 0 * action)"),
    ),
    *faults(
        "cvae.divergence",
        BOTH,
        (".mean(-1)", ".sum(-1)"),
        ("- log_std)", "+ log_std)"),
        ("0.5 * (", "("),
    ),
]

COVERED = [
    f"{AT}.target",
    *("regularizers.dual_reference", "regularizers.advantage_mask", "cvae.divergence"),
    *("cvae.CVAE.encode", "cvae.CVAE.decode", "cvae.CVAE.forward"),
]

EXEMPT = {
    (f"{AT}.cvae_loss", "with torch.no_grad():"): "the comparison in it has no gradient",
    (f"{AT}.actor_loss", "with torch.no_grad():"): "the comparisons in it have no gradient",
}
