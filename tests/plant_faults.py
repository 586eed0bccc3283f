"""Plants faults in the agents' source, one at a time, and says which ones parity notices.

    python tests/plant_faults.py [-v]

The sources are patched in memory: the module with the fault, and those that import from it, are
executed anew under their own names, and the files stay as they are. Exits with 1 where a fault
survives or where a line has none.
"""

import ast
import contextlib
import importlib.util
import sys
import types
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import parity

from offrl.agent import Agent
from offrl.agents import AGENTS

UPDATES = 6  # of a policy that is delayed by 3, two


@dataclass(frozen=True)
class Fault:
    """`old`, which stands once in the function, becomes `new`."""

    where: str  # module and function below offrl: losses.td_loss, agents.iql.IQL.update
    old: str
    new: str
    cases: tuple[str, ...]  # of parity, each of which must notice
    module: str = ""
    function: str = ""

    def __post_init__(self) -> None:
        parts = self.where.split(".")
        depth = 2 if parts[0] in ("agents", "datasets") else 1
        object.__setattr__(self, "module", ".".join(["offrl", *parts[:depth]]))
        object.__setattr__(self, "function", ".".join(parts[depth:]))

    def __str__(self) -> str:
        return f"{self.where}: {self.old!r} -> {self.new!r}"


TD3_STACKED = "td3_bc-stacked prdc-stacked"
STACKED = f"bc-stacked {TD3_STACKED} iql-stacked"


def _faults(where: str, cases: str, *changes: tuple[str, str]) -> list[Fault]:
    return [Fault(where, old, new, tuple(cases.split())) for old, new in changes]


def _td3(module: str, cls: str, cases: str) -> list[Fault]:
    """What TD3+BC and PRDC have in common, planted in both files."""
    at, stacked = f"agents.{module}.{cls}", f"{module}-stacked"
    return [
        # A mean over all axes, which mixes learners.
        *_faults(
            f"{at}.critic_loss",
            stacked,
            ("td_loss(q, target).mean(-1)", "td_loss(q, target).mean()"),
            ("q[0].mean(-1)", "q[0].mean()"),
            ("target.mean(-1)}", "target.mean()}"),
            ("amin(0)", "amin((0, 1)).expand_as(batch.reward)"),
        ),
        *_faults(
            f"{at}.actor_loss",
            stacked,
            ("self.config.alpha) * q.mean(-1)", "self.config.alpha) * q.mean()"),
            (".mean(-1)\n        q_loss", ".mean()\n        q_loss"),
            ("self.critic.first(batch.obs, action)", "self.critic(batch.obs, action)[:, 0]"),
        ),
        *_faults(
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
        *_faults(
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
        *_faults(
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
        *_faults(
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


def _shared(td3: str, iql: str, bc: str) -> list[Fault]:
    """What the agents call."""
    values = f"{td3} {iql}"
    return [
        *_faults(
            "losses.td_target",
            values,
            ("return reward + gamma", "return reward - gamma"),
            ("return reward + gamma", "return gamma"),
            ("gamma * mask * next_value", "gamma * next_value"),
            ("gamma * mask * next_value", "mask * next_value"),
            ("gamma * mask * next_value", "gamma * (1 - mask) * next_value"),
        ),
        *_faults(
            "losses.smoothed_action",
            td3,
            ("(scale * noise).clamp(-clip, clip)", "scale * noise"),
            ("(scale * noise)", "noise"),
            (".clamp(-clip, clip)", ".clamp(0, clip)"),
            (".clamp(-1.0, 1.0)", ""),
            (".clamp(-1.0, 1.0)", ".clamp(-0.5, 0.5)"),
            ("(action +", "(action -"),
        ),
        *_faults(
            "losses.td_loss",
            values,
            (".sum(0)", ".mean(0)"),
            (".sum(0)", ".amax(0)"),
            (".square()", ".abs()"),
            ("(q - target)", "(q + target)"),
        ),
        *_faults(
            "losses.expectile_loss",
            iql,
            ("(diff < 0)", "(diff > 0)"),
            ("(expectile - (diff < 0).to(diff)).abs()", "0.5"),
            (".abs()", ""),
            ("diff.square()", "diff.abs()"),
        ),
        *_faults(
            "losses.action_error",
            f"{td3} {bc}",
            (".mean(-1)", ".sum(-1)"),
            (".square()", ".abs()"),
            ("(action - goal)", "(action + goal)"),
        ),
        *_faults(
            "regularizers.q_scale",
            td3,
            (".detach()", ""),
            (".abs()", ""),
            (".mean(-1)", ".sum(-1)"),
            ("return alpha / ", "return alpha * "),
        ),
        *_faults(
            "regularizers.advantage_weight",
            iql,
            ("beta * advantage", "-beta * advantage"),
            ("beta * advantage", "advantage"),
            (".clamp(max=max_weight)", ""),
            (".clamp(max=max_weight)", ".clamp(min=max_weight)"),
            (".exp()", ""),
        ),
        *_faults(
            "optim.polyak_update",
            values,
            (
                "list(target.parameters()), list(net.parameters())",
                "list(net.parameters()), list(target.parameters())",
            ),
            ("list(net.parameters()), polyak", "list(net.parameters()), 1 - polyak"),
            ("torch._foreach_lerp_", "torch._foreach_lerp"),
        ),
        *_faults(
            "optim.target_of",
            values,
            ("copy.deepcopy(net)", "net"),
            ("copy.deepcopy(net)", "copy.copy(net)"),
        ),
        *_faults("optim.set_lr", "iql", ('group["lr"].fill_(lr)', "pass")),
        *_faults(
            "optim.adam",
            f"{values} {bc}",
            ("lr=torch.tensor(lr)", "lr=torch.tensor(3e-4)"),
            ("fused=True", "fused=True, weight_decay=0.01"),
            ("fused=True", "fused=True, maximize=True"),
        ),
        *_faults(
            "agent.Agent.minimize",
            f"{values} {bc}",
            ("optimizer.step()", "pass"),
            ("parameter.grad = gradient", "parameter.grad = -gradient"),
            ("return metrics", "return {}"),
        ),
        *_faults(
            "agent.Agent._gradient",
            f"{values} {bc}",
            ("loss.sum()", "(0.0 * loss).sum()"),
            ("loss.sum()", "-loss.sum()"),
            ("v.detach()", "0.0 * v.detach()"),
        ),
        *_faults("agent.Agent._gradient", STACKED, ("loss.sum()", "loss.mean()")),
        *_faults("regularizers.q_scale", TD3_STACKED, (".mean(-1)", ".mean()")),
        *_faults("losses.action_error", "bc-stacked", (".mean(-1)", ".mean(0)")),
        *_faults(
            "networks.MLP.forward",
            "iql-dropout",
            ("> threshold", "< threshold"),
            ("/ (1.0 - self.dropout)", ""),
            ("hidden += 1", "pass"),
        ),
    ]


BC_FAULTS = [
    *_faults(
        "agents.bc.BC.__init__",
        "bc percent_bc",
        ("config.lr", "3e-4"),
        ("config.hidden", "config.hidden[::-1]"),
    ),
    *_faults(
        "agents.bc.BC.view",
        "percent_bc",
        ("if self.config.top_fraction < 1.0:", "if False:"),
        ("dataset.top(self.config.top_fraction)", "dataset.top(0.1)"),
        ("dataset = dataset.top", "dataset.top"),
    ),
    *_faults(
        "agents.bc.BC.view", "bc", ("super().view(dataset)", "super().view(dataset.top(0.3))")
    ),
    *_faults(
        "agents.bc.BC.update",
        "bc percent_bc",
        ("return self.minimize(", "return {} and self.minimize("),
        (
            "return self.minimize(self.actor_opt, self.actor_loss, batch)",
            "return {'actor_loss': self.actor_loss(batch)[0]}",
        ),
        (
            "self.minimize(self.actor_opt, self.actor_loss, batch)",
            "(self.minimize(self.actor_opt, self.actor_loss, batch), "
            "self.minimize(self.actor_opt, self.actor_loss, batch))[0]",
        ),
    ),
    *_faults(
        "agents.bc.BC.actor_loss",
        "bc percent_bc",
        ("self.actor(batch.obs)", "self.actor(batch.next_obs)"),
        ("batch.action", "batch.next_action"),
        ("batch.action", "-batch.action"),
        (".mean(-1)", ".sum(-1)"),
        (".mean(-1)", ".amax(-1)"),
    ),
]

TD3_BC_FAULTS = [
    *_td3("td3_bc", "TD3BC", "td3_bc td3_bc-delay"),
    *_faults(
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

PRDC_FAULTS = [
    *_td3("prdc", "PRDC", "prdc"),
    *_faults(
        "agents.prdc.PRDC.prepare",
        "prdc",
        ("self.config.beta", "1.0"),
        ("data.obs.cpu()", "data.next_obs.cpu()"),
        ("data.action.cpu()", "data.next_action.cpu()"),
        ("replay.batch(replay.index)", "replay.batch(replay.index[::2])"),
        ("rows=replay.index.cpu()", "rows=None"),
    ),
    *_faults(
        "agents.prdc.PRDC.actor_loss",
        "prdc",
        (
            "self.nearest.with_own(batch.obs, action, batch.index)",
            "batch.action, torch.ones_like(q)",
        ),
        (
            "self.nearest.with_own(batch.obs, action,",
            "self.nearest.with_own(batch.obs, batch.action,",
        ),
        ("self.nearest.with_own(batch.obs,", "self.nearest.with_own(batch.next_obs,"),
        ("action, batch.index)", "action, None)"),
        ("action_error(action, neighbour)", "action_error(action.detach(), neighbour)"),
        ("action_error(action, neighbour)", "action_error(batch.action, neighbour)"),
        (".mean(-1)\n        q_loss", ".sum(-1)\n        q_loss"),
        ("return q_loss + constraint", "return q_loss - constraint"),
        ("return q_loss + constraint", "return q_loss"),
        ('"own_row": own.mean(-1)', '"own_row": 1 - own.mean(-1)'),
    ),
]

_IQL_ALL = "iql iql-dropout"
IQL_FAULTS = [
    *_faults(
        "agents.iql.IQL.value_loss",
        "iql-stacked",
        (").mean(-1)\n", ").mean()\n"),
        ("value.mean(-1)", "value.mean()"),
    ),
    *_faults(
        "agents.iql.IQL.actor_loss",
        "iql-stacked",
        ("(weight * log_prob).mean(-1)", "(weight * log_prob).mean()"),
        ("advantage.mean(-1)", "advantage.mean()"),
    ),
    *_faults(
        "agents.iql.IQL.critic_loss",
        "iql-stacked",
        ("td_loss(q, target).mean(-1)", "td_loss(q, target).mean()"),
        ("q[0].mean(-1)", "q[:, 0].mean(-1)"),
    ),
    *_faults(
        "agents.iql.IQL.__init__",
        _IQL_ALL,
        ("target_of(self.critic)", "self.critic"),
        (
            "adam(self.actor.parameters(), config.lr)",
            "adam(self.actor.net.parameters(), config.lr)",
        ),
        ("adam(self.value.parameters(), config.lr)", "adam(self.value.parameters(), 3e-4)"),
        ("adam(self.critic.parameters(), config.lr)", "adam(self.critic.parameters(), 3e-4)"),
    ),
    *_faults("agents.iql.IQL.__init__", "iql-dropout", (", config.dropout", "")),
    *_faults(
        "agents.iql.IQL.schedule",
        "iql",
        ('if self.config.actor_schedule == "cosine":', "if False:"),
        ("self.actor_opt", "self.critic_opt"),
        ("math.pi * step", "2 * math.pi * step"),
        ("* 0.5 *", "*"),
        ("1.0 + math.cos", "1.0 - math.cos"),
    ),
    *_faults(
        "agents.iql.IQL.schedule",
        "iql-dropout",
        ('if self.config.actor_schedule == "cosine":', "if True:"),
    ),
    *_faults(
        "agents.iql.IQL.update",
        _IQL_ALL,
        (
            "q = self.compute(self.target_q, batch)",
            "q = self.critic(batch.obs, batch.action).amin(0).detach()",
        ),
        ("q = self.compute(self.target_q, batch)", "q = self.target_q(batch) * batch.mask"),
        ("self.minimize(self.value_opt,", "self.minimize(self.actor_opt,"),
        ("self.minimize(self.value_opt, self.value_loss, batch, q)", "{}"),
        ("self.value_loss, batch, q)", "self.value_loss, batch, -q)"),
        ("metrics |= self.minimize(self.actor_opt", "self.minimize(self.actor_opt"),
        ("self.minimize(self.actor_opt,", "self.minimize(self.critic_opt,"),
        ("self.actor_loss, batch, q, noise)", "self.actor_loss, batch, -q, noise)"),
        ("metrics |= self.minimize(self.critic_opt, self.critic_loss, batch)", "pass"),
        ("self.minimize(self.critic_opt,", "self.minimize(self.value_opt,"),
        (
            "polyak_update(self.critic, self.critic_target,",
            "polyak_update(self.critic_target, self.critic,",
        ),
        ("polyak_update(self.critic, self.critic_target, self.config.polyak)", "pass"),
        ("self.config.polyak", "1 - self.config.polyak"),
        ("return metrics", "return {}"),
        # The critic before the value, the policy before the value, the target before its use.
        (
            "q = self.compute(self.target_q, batch)",
            "q = self.compute(self.target_q, batch); "
            "self.minimize(self.critic_opt, self.critic_loss, batch)",
        ),
        (
            "metrics = self.minimize(self.value_opt, self.value_loss, batch, q)\n"
            "        metrics |= self.minimize(self.actor_opt, self.actor_loss, batch, q, noise)",
            "metrics = self.minimize(self.actor_opt, self.actor_loss, batch, q, noise)\n"
            "        metrics |= self.minimize(self.value_opt, self.value_loss, batch, q)",
        ),
        (
            "metrics |= self.minimize(self.critic_opt, self.critic_loss, batch)\n"
            "        polyak_update(self.critic, self.critic_target, self.config.polyak)",
            "polyak_update(self.critic, self.critic_target, self.config.polyak)\n"
            "        metrics |= self.minimize(self.critic_opt, self.critic_loss, batch)",
        ),
    ),
    *_faults(
        "agents.iql.IQL.update",
        "iql-dropout",
        ("self.actor_loss, batch, q, noise)", "self.actor_loss, batch, q, {})"),
    ),
    *_faults(
        "agents.iql.IQL.target_q",
        _IQL_ALL,
        (".amin(0)", ".amax(0)"),
        (".amin(0)", ".mean(0)"),
        ("self.critic_target(", "self.critic("),
        ("batch.obs, batch.action", "batch.next_obs, batch.action"),
        ("return q", "return -q"),
    ),
    *_faults(
        "agents.iql.IQL.value_loss",
        _IQL_ALL,
        ("self.value(batch.obs)", "self.value(batch.next_obs)"),
        ("q - value, self", "value - q, self"),
        ("self.config.expectile", "1 - self.config.expectile"),
        (").mean(-1)\n", ").sum(-1)\n"),
        ("return loss,", "return -loss,"),
        ('{"value": value.mean(-1)}', "{}"),
    ),
    *_faults(
        "agents.iql.IQL.actor_loss",
        _IQL_ALL,
        ("torch.no_grad()", "torch.enable_grad()"),
        ("q - self.value(batch.obs)", "self.value(batch.obs) - q"),
        ("q - self.value(batch.obs)", "q - self.value(batch.next_obs)"),
        ("q - self.value(batch.obs)", "q"),
        ("self.config.beta, self.config.max_weight", "self.config.beta"),
        ("self.config.beta,", "1.0,"),
        ("log_prob(batch.action)", "log_prob(batch.next_action)"),
        ("self.actor(batch.obs", "self.actor(batch.next_obs"),
        ('"log_prob": log_prob.mean(-1)', '"log_prob": log_prob.sum(-1)'),
        ("return -(weight", "return (weight"),
        ("(weight * log_prob)", "(weight + log_prob)"),
        ("(weight * log_prob)", "log_prob"),
        ("(weight * log_prob).mean(-1)", "(weight * log_prob).sum(-1) / weight.sum(-1)"),
    ),
    *_faults(
        "agents.iql.IQL.actor_loss",
        "iql-dropout",
        ("self.actor(batch.obs, noise)", "self.actor(batch.obs)"),
    ),
    *_faults(
        "agents.iql.IQL.critic_loss",
        _IQL_ALL,
        ("torch.no_grad()", "torch.enable_grad()"),
        ("self.value(batch.next_obs)", "self.value(batch.obs)"),
        (
            "self.value(batch.next_obs)",
            "self.critic_target(batch.next_obs, batch.next_action).amin(0)",
        ),
        ("batch.reward, batch.mask", "-batch.reward, batch.mask"),
        ("batch.reward, batch.mask", "batch.reward, torch.ones_like(batch.mask)"),
        ("next_value, self.config.gamma", "next_value, 0.99"),
        ("self.critic(batch.obs, batch.action)", "self.critic(batch.next_obs, batch.action)"),
        ("td_loss(q, target).mean(-1)", "td_loss(q, target).sum(-1)"),
        ("td_loss(q, target)", "td_loss(q[:1], target)"),
        ("target.mean(-1)}", "target.amin(-1)}"),
    ),
    *_faults(
        "datasets.replay.transitions",
        "iql",
        ("if reward_by_return_range:", "if False:"),
        ("reward_scale *= RETURN_RANGE", "reward_scale *= 1.0"),
        ("returns.max() - returns.min()", "returns.max() + returns.min()"),
    ),
]

FAULTS = [
    *BC_FAULTS,
    *TD3_BC_FAULTS,
    *PRDC_FAULTS,
    *IQL_FAULTS,
    *_shared(td3="td3_bc prdc", iql="iql", bc="bc"),
]

# Lines without a fault of their own, and why.
EXEMPT = {
    ("agents.td3_bc.TD3BC.critic_loss", "with torch.no_grad():"): "the networks in it are frozen",
    ("agents.prdc.PRDC.critic_loss", "with torch.no_grad():"): "the networks in it are frozen",
}


def patched(fault: Fault) -> str:
    """The source of the fault's module, with the fault."""
    source, segment, _ = _function(fault.module, fault.function)
    count = segment.count(fault.old)
    if count != 1:
        raise ValueError(f"{fault}: the text stands {count} times in the function")
    assert source.count(segment) == 1
    return source.replace(segment, segment.replace(fault.old, fault.new))


@contextlib.contextmanager
def planted(fault: Fault | None, agent: str) -> Iterator[type[Agent]]:
    """The agent's class with the fault in it, executed anew; the real modules come back after."""
    original = AGENTS[agent][0]
    names = ["offrl.agent", original.__module__]
    if fault is not None and fault.module not in names:
        names.insert(0, fault.module)
    before = {name: sys.modules[name] for name in names}
    try:
        for name in names:
            faulty = fault is not None and name == fault.module
            source = patched(fault) if fault is not None and faulty else _source(name)
            module = types.ModuleType(name)
            sys.modules[name] = module
            exec(compile(source, f"<{name}>", "exec"), vars(module))
        yield getattr(sys.modules[original.__module__], original.__name__)
    finally:
        sys.modules.update(before)


def noticed(fault: Fault | None, case: str) -> str | None:
    """How the comparison with the transcription ends: the error that it raises, or None."""
    with planted(fault, parity.CASES[case].agent) as cls:
        try:
            parity.check(case, cls, UPDATES)
        except Exception as error:
            return f"{type(error).__name__}: {str(error).splitlines()[0]}"
    return None


def uncovered(module: str, cls: str) -> list[str]:
    """Lines of `update` and of the objectives, which return losses, that no fault touches."""
    tree = ast.parse(_source(f"offrl.agents.{module}"))
    (body,) = (n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == cls)
    checked = [
        n.name
        for n in body.body
        if isinstance(n, ast.FunctionDef)
        and (n.name in ("update", "target_q") or "_loss" in n.name)
    ]
    missing = []
    for function in checked:
        where = f"agents.{module}.{cls}.{function}"
        _, segment, node = _function(f"offrl.agents.{module}", f"{cls}.{function}")
        touched: set[int] = set()
        for fault in (f for f in FAULTS if f.where == where):
            first = segment[: segment.index(fault.old)].count("\n")
            touched |= set(range(first, first + fault.old.rstrip("\n").count("\n") + 1))
        lines = segment.splitlines()
        for statement in ast.walk(node):
            if not isinstance(statement, ast.stmt) or statement is node:
                continue
            last = statement.end_lineno or statement.lineno
            if isinstance(statement, ast.If | ast.With):
                last = statement.lineno
            span = set(range(statement.lineno - node.lineno, last - node.lineno + 1))
            text = lines[min(span)].strip()
            if not span & touched and (where, text) not in EXEMPT:
                missing.append(f"{where}: {text}")
    return missing


@cache
def _source(module: str) -> str:
    spec = importlib.util.find_spec(module)
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).read_text()


@cache
def _function(module: str, function: str) -> tuple[str, str, ast.FunctionDef]:
    """The module's source, the function's part of it, and its tree."""
    source = _source(module)
    body: list[ast.stmt] = ast.parse(source).body
    for name in function.split("."):
        (node,) = (
            n for n in body if isinstance(n, ast.ClassDef | ast.FunctionDef) and n.name == name
        )
        body = node.body
    assert isinstance(node, ast.FunctionDef)
    lines = source.splitlines(keepends=True)[node.lineno - 1 : node.end_lineno]
    return source, "".join(lines), node


def main(argv: list[str]) -> int:
    import torch

    torch.set_num_threads(1)
    survivors, crashes = 0, 0
    for case in parity.CASES:
        if (error := noticed(None, case)) is not None:
            print(f"{case} fails without any fault: {error}")
            return 1
    for fault in FAULTS:
        for case in fault.cases:
            error = noticed(fault, case)
            survivors += error is None
            crashes += error is not None and not error.startswith("AssertionError")
            if error is None or "-v" in argv:
                print(f"{'SURVIVED' if error is None else 'noticed '} {case:12} {fault}")
                print(f"{'':9}{error or ''}" if error else "", end="\n" if error else "")
    lines = [
        line
        for module, cls in (("bc", "BC"), ("td3_bc", "TD3BC"), ("iql", "IQL"), ("prdc", "PRDC"))
        for line in uncovered(module, cls)
    ]
    for line in lines:
        print(f"no fault in {line}")
    total = sum(len(f.cases) for f in FAULTS)
    print(f"{len(FAULTS)} faults, {total} trials: {survivors} survived, {crashes} crashed")
    return int(survivors > 0 or bool(lines))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
