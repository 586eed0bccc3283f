"""ODICE: cases of parity, and faults."""

from typing import Any

import flat.odice
import numpy as np
from fault import faults
from parity_case import LR, Batches, Case, Layers, Trained, reach

from offrl.datasets.offline import OfflineDataset
from offrl.datasets.replay import Replay

REACH = reach(value_loss="value", actor_loss="actor")
# Of weights that are cut as often as not, of a decay that shows in six updates.
COMMON = {
    "dual_weight": 0.6,
    "eta": 0.7,
    "gradient": "orthogonal",
    "max_weight": 40.0,
    "weight_decay": 0.3,
    "gamma": 0.9,
    "lr": LR,
    "polyak": 0.1,
    "actor_hidden": (7, 5),
}
SETTINGS = ("dual_weight", "eta", "gradient", "max_weight", "weight_decay", "gamma", "lr")
SETTINGS = (*SETTINGS, "polyak", "layer_norm", "squash_mean")
MEMBERS = {"value": 2}


def flat_odice(
    case: Case, nets: dict[str, Layers], batches: Batches, dataset: OfflineDataset, view: Replay
) -> Trained:
    episodes = [dataset.episode(e) for e in range(dataset.num_episodes)]
    returns = [float(e["reward"].astype(np.float64).sum()) for e in episodes]
    return flat.odice.train(nets, batches, returns, **case.settings(*SETTINGS))


def case(*beside: int, members: int = 2, **changes: Any) -> Case:
    settings = {**COMMON, **changes}
    return Case(
        "odice", settings, REACH, flat_odice, seed=74, beside=beside, members={"value": members}
    )


CASES = {
    "odice": case(),
    "odice-single": case(twin=False, layer_norm=False, squash_mean=True, members=1),
    "odice-semi": case(gradient="semi"),
    "odice-true": case(gradient="true"),
    "odice-stacked": case(5),
}
OTHER = {
    ("odice", "gradient"): ("semi", {}),
    ("odice", "max_weight"): (1e-3, {}),
    ("odice", "actor_hidden"): ((12, 8), {}),
}

_ALL = "odice odice-semi odice-true odice-stacked"
_TARGETS = "odice odice-semi"
COVERED = [
    f"dice.{name}"
    for name in (
        "dice_networks",
        "forward_residual",
        "backward_residual",
        "_target",
        "value_losses",
        "merged_gradient",
        "policy_weight",
        "weighted_regression",
        "_mean",
    )
]
COVERED += [
    "optim.orthogonal_add",
    "optim._of_learners",
    "optim._dot",
    "losses.chi_square_conjugate",
]
FAULTS = [
    *faults(
        "agents.odice.ODICE.__init__",
        _ALL,
        ("target_of(self.value)", "self.value"),
        (", config.weight_decay", ""),
        ("adam(self.actor.parameters(), config.lr,", "adam(self.actor.parameters(), 3e-4,"),
        ("adam(self.actor.parameters()", "adam(self.actor.net.parameters()"),
        ("adam(self.value.parameters(), config.lr)", "adam(self.value.parameters(), 3e-4)"),
        (
            "adam(self.value.parameters(), config.lr)",
            "adam(self.value.parameters(), config.lr, config.weight_decay)",
        ),
    ),
    *faults(
        "agents.odice.ODICE.update",
        _ALL,
        ("weight = self.compute(self.weight, batch)", "weight = -self.weight(batch).detach()"),
        ("self.value_loss, batch, combine", "self.actor_loss, batch, weight, combine"),
        (
            "metrics = self.minimize(self.value_opt, self.value_loss, batch, "
            "combine=merged_gradient)",
            "metrics = {}",
        ),
        (
            "polyak_update(self.value, self.value_target,",
            "polyak_update(self.value_target, self.value,",
        ),
        ("polyak_update(self.value, self.value_target, self.config.polyak)", "pass"),
        ("self.config.polyak", "1 - self.config.polyak"),
        ("metrics |= self.minimize(self.actor_opt", "self.minimize(self.actor_opt"),
        ("self.actor_loss, batch, weight)", "self.actor_loss, batch, batch.mask)"),
        ("return metrics", "return {}"),
        # The weights of the values after their step; the targets before it.
        (
            "metrics |= self.minimize(self.actor_opt",
            "weight = self.weight(batch).detach(); "
            "metrics = metrics | self.minimize(self.actor_opt",
        ),
        (
            "weight = self.compute(self.weight, batch)",
            "weight = self.compute(self.weight, batch); "
            "polyak_update(self.value, self.value_target, self.config.polyak)",
        ),
    ),
    *faults("agents.odice.ODICE.weight", _ALL, ("return", "return 1.0 -")),
    *faults(
        "agents.odice.ODICE.value_loss",
        _ALL,
        ("return value_losses(self, batch)", "return -value_losses(self, batch)[0], {}"),
    ),
    *faults(
        "agents.odice.ODICE.actor_loss",
        _ALL,
        (
            "return weighted_regression(self, batch, weight)",
            "return weighted_regression(self, batch, weight + 1.0)",
        ),
    ),
    *faults(
        "dice.dice_networks",
        "odice odice-single",
        ("if config.layer_norm else", "if not config.layer_norm else"),
        ("2 if config.twin else 1", "1 if config.twin else 2"),
        ("squash_mean=config.squash_mean", "squash_mean=not config.squash_mean"),
    ),
    *faults(
        "dice.dice_networks",
        "odice",
        ('"before" if', '"after" if'),
        ("config.actor_hidden, learners", "config.hidden, learners"),
        ("Value(obs_dim, config.hidden", "Value(obs_dim, config.actor_hidden"),
        ("ensemble=members, norm=norm", "ensemble=members"),
    ),
    *faults(
        "dice.forward_residual",
        "odice-true",
        ('== "true"', '!= "true"'),
        ("next_value = agent.value(batch.next_obs)", "next_value = agent.value(batch.obs)"),
        (
            "next_value = agent.value(batch.next_obs)",
            "next_value = agent.value(batch.next_obs).detach()",
        ),
    ),
    *faults(
        "dice.forward_residual",
        _TARGETS,
        ("agent.value_target(batch.next_obs)", "agent.value(batch.next_obs).detach()"),
        ("agent.value_target(batch.next_obs)", "agent.value(batch.next_obs)"),
        ("agent.value_target(batch.next_obs)", "agent.value_target(batch.obs)"),
        (".amin(0, keepdim=True)", ".amax(0, keepdim=True)"),
        (".amin(0, keepdim=True)", ""),
    ),
    *faults(
        "dice.forward_residual",
        _ALL,
        (") - value", ") - value.amin(0)"),
        (") - value", ") + value"),
        ("return _target(", "return -_target("),
    ),
    *faults(
        "dice.backward_residual",
        "odice odice-stacked",
        ("agent.value(batch.next_obs)", "agent.value_target(batch.next_obs)"),
        ("agent.value(batch.next_obs)", "agent.value(batch.next_obs).amin(0, keepdim=True)"),
        ("agent.value(batch.next_obs)", "agent.value(batch.obs)"),
        ("agent.value_target(batch.obs).amin(0)", "agent.value(batch.obs).amin(0)"),
        ("agent.value_target(batch.obs).amin(0)", "agent.value_target(batch.obs)"),
        ("agent.value_target(batch.obs)", "agent.value_target(batch.next_obs)"),
        ("return residual", "return -residual"),
    ),
    *faults(
        "dice._target",
        _ALL,
        ("(batch.reward, batch.mask)", "(-batch.reward, batch.mask)"),
        ("(batch.reward, batch.mask)", "(batch.reward, 0.0 * batch.mask + 1.0)"),
        ("agent.config.gamma", "0.99"),
        ("return td_target(", "return -td_target("),
    ),
    *faults(
        "dice.value_losses",
        _ALL,
        ("weight, eta = agent.config.dual_weight,", "weight, eta = 0.5,"),
        ("value = agent.value(batch.obs)", "value = agent.value(batch.next_obs)"),
        ("(agent, batch, value)", "(agent, batch, value.detach())"),
        ("(agent, batch, value)", "(agent, batch, agent.value_target(batch.obs))"),
        ("(1.0 - weight) * value", "(1.0 + weight) * value"),
        ("(1.0 - weight) * value", "-(1.0 - weight) * value"),
        ("(1.0 - weight) * value", "(1.0 - weight) * value.detach() + 0.0 * value"),
        ("weight * chi_square_conjugate(forward)", "chi_square_conjugate(forward)"),
        ("chi_square_conjugate(forward)", "chi_square_conjugate(-forward)"),
        ("chi_square_conjugate(forward)", "forward.square()"),
        ('"value": _mean(value)', '"value": -_mean(value)'),
        ('"residual": _mean(forward)', '"residual": _mean(value)'),
        ("return torch.stack([_mean(loss)", "return torch.stack([2.0 * _mean(loss)"),
    ),
    *faults(
        "dice.value_losses",
        "odice odice-stacked",
        ("= agent.config.dual_weight, agent.config.eta", "= agent.config.dual_weight, 1.0"),
        ("weight * eta * chi", "eta * chi"),
        ("weight * eta * chi", "weight * chi"),
        ("chi_square_conjugate(backward)", "chi_square_conjugate(-backward)"),
        ("backward = backward_residual(agent, batch)", "backward = forward"),
        ('if agent.config.gradient == "orthogonal":', "if False:"),
    ),
    *faults(
        "dice.value_losses",
        "odice-semi odice-true",
        ('if agent.config.gradient == "orthogonal":', "if True:"),
    ),
    *faults(
        "dice.merged_gradient",
        "odice odice-stacked",
        ("linear, forward, *backward", "forward, linear, *backward"),
        ("if backward:", "if False:"),
        (
            "orthogonal_add(forward, backward[0], seed_axes)",
            "orthogonal_add(backward[0], forward, seed_axes)",
        ),
        (
            "orthogonal_add(forward, backward[0], seed_axes)",
            "[f + b for f, b in zip(forward, backward[0])]",
        ),
        # Each parameter projected by itself.
        (
            "orthogonal_add(forward, backward[0], seed_axes)",
            "[orthogonal_add([f], [b], [x])[0] "
            "for f, b, x in zip(forward, backward[0], seed_axes)]",
        ),
        # The linear term in what is projected on.
        (
            "forward = orthogonal_add(forward, backward[0], seed_axes)",
            "both = [f + l for f, l in zip(forward, linear)]; "
            "forward = [g - l for g, l in zip("
            "orthogonal_add(both, backward[0], seed_axes), linear)]",
        ),
        ("[a + b for", "[b for"),
    ),
    *faults(
        "dice.merged_gradient",
        "odice-stacked",
        ("backward[0], seed_axes)", "backward[0], [None for _ in seed_axes])"),
    ),
    *faults(
        "dice.policy_weight",
        _ALL,
        ("= forward_residual(", "= -forward_residual("),
        ("agent.value(batch.obs)", "agent.value(batch.next_obs)"),
        (".clamp(0.0, agent.config.max_weight)", ".clamp(min=0.0)"),
        (".clamp(0.0, agent.config.max_weight)", ".clamp(max=agent.config.max_weight)"),
        (".mean(0)", ".amin(0)"),
        (".mean(0)", "[0]"),
        (".clamp(0.0, agent.config.max_weight).mean(0)", ".mean(0).clamp(0.0, 1e9)"),
        ("return residual", "return 1.0 + residual"),
    ),
    *faults(
        "dice.weighted_regression",
        _ALL,
        ("agent.actor(batch.obs)", "agent.actor(batch.next_obs)"),
        ("log_prob(batch.action)", "log_prob(batch.next_action)"),
        ('"log_prob": log_prob.mean(-1)', '"log_prob": log_prob.sum(-1)'),
        ("(weight > 0)", "(weight < 0)"),
        ("return -(weight", "return (weight"),
        ("(weight * log_prob)", "log_prob"),
        ("(weight * log_prob).mean(-1)", "(weight * log_prob).sum(-1)"),
    ),
    *faults(
        "dice.weighted_regression",
        "odice-stacked",
        ("(weight * log_prob).mean(-1)", "(weight * log_prob).mean()"),
        ('"weight": weight.mean(-1)', '"weight": weight.mean()'),
    ),
    *faults("dice._mean", _ALL, (".mean(0)", ".sum(0)"), (".mean(-1)", ".sum(-1)")),
    *faults("dice._mean", "odice-stacked", ("x.mean(-1).mean(0)", "x.mean()")),
    *faults(
        "optim.orthogonal_add",
        "odice odice-stacked",
        ("_dot(main, main, seed_axes)", "_dot(aux, aux, seed_axes)"),
        ("min=SMALLEST_SQUARE", "min=1e9"),
        ("_dot(main, aux, seed_axes)", "_dot(aux, aux, seed_axes)"),
        ("g + h - _of_learners", "g + h + _of_learners"),
        ("g + h - _of_learners", "h - _of_learners"),
        ("g + h - _of_learners", "g - _of_learners"),
    ),
    *faults("optim._of_learners", "odice-stacked", ("-1 if i == axis else 1", "1")),
    *faults(
        "optim._dot",
        "odice-stacked",
        ("movedim(axis, 0)", "movedim(0, 0)"),
        (".flatten(1).sum(-1)", ".flatten(1).sum(-1).flip(0)"),
    ),
    *faults(
        "optim._dot",
        "odice odice-stacked",
        ("torch.stack(products).sum(0)", "products[0]"),
    ),
    *faults("optim._dot", "odice", ("(x * y).sum() if", "(x + y).sum() if")),
    *faults(
        "losses.chi_square_conjugate",
        _ALL,
        ("(x / 2 + 1).clamp", "(x / 2).clamp"),
        (".clamp(min=0.0)", ""),
        ("x * ratio -", "x * ratio +"),
        ("(ratio - 1).square()", "ratio.square()"),
    ),
    *faults(
        "agent.Agent._gradient",
        _ALL,
        ("part.sum()", "-part.sum()"),
        ("combine(apart, axes)", "apart[0]"),
        ("loss = loss.sum(0)", "loss = loss[0]"),
    ),
    *faults(
        "agent.Agent._gradient",
        "odice-stacked",
        ("part.sum()", "part.mean()"),
        ("axis_of[id(p)] for p in moved", "None for p in moved"),
    ),
    *faults("optim.adam", "odice", ("weight_decay=weight_decay", "weight_decay=0.0")),
]
