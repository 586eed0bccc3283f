"""Faults in what several methods call."""

from fault import faults

# Cases, by what their methods have in common.
BC = "bc"
PULLED = "td3_bc prdc a2pr"  # to an action, by the mean over its components
TD3 = f"{PULLED} rebrac"
IQL = "iql riql"
VALUES = f"{TD3} {IQL}"
EVERY = f"{VALUES} {BC}"
REGRESSION = f"{TD3} iql awac sac_n edac cql"  # of critics, by squared errors
TD3_STACKED = "td3_bc-stacked prdc-stacked a2pr-stacked rebrac-stacked"
STACKED = f"bc-stacked {TD3_STACKED} iql-stacked riql-stacked"

FAULTS = [
    *faults(
        "losses.td_target",
        VALUES,
        ("return reward + gamma", "return reward - gamma"),
        ("return reward + gamma", "return gamma"),
        ("gamma * mask * next_value", "gamma * next_value"),
        ("gamma * mask * next_value", "mask * next_value"),
        ("gamma * mask * next_value", "gamma * (1 - mask) * next_value"),
    ),
    *faults(
        "losses.smoothed_action",
        TD3,
        ("(scale * noise).clamp(-clip, clip)", "scale * noise"),
        ("(scale * noise)", "noise"),
        (".clamp(-clip, clip)", ".clamp(0, clip)"),
        (".clamp(-1.0, 1.0)", ".clamp(-0.5, 0.5)"),
        ("(action +", "(action -"),
    ),
    # ReBRAC's policy begins near the middle of the actions, and stays there for a few updates.
    *faults("losses.smoothed_action", PULLED, (".clamp(-1.0, 1.0)", "")),
    *faults(
        "critics.td_regression",
        REGRESSION,
        ("td_loss(q, target).mean(-1)", "td_loss(q, target).sum(-1)"),
        ("td_loss(q, target).mean(-1)", "0.5 * td_loss(q, target).mean(-1)"),
        ("q[0].mean(-1)", "q[1].mean(-1)"),
        ("target.mean(-1)}", "target.amax(-1)}"),
    ),
    *faults(
        "critics.td_regression",
        f"{TD3_STACKED} iql-stacked awac-stacked sac_n-stacked edac-stacked",
        ("td_loss(q, target).mean(-1)", "td_loss(q, target).mean()"),
        ("q[0].mean(-1)", "q[0].mean()"),
        ("target.mean(-1)}", "target.mean()}"),
    ),
    *faults(
        "representation.critic_regression",
        f"{TD3} iql awac sac_n",
        ("features(batch.obs, batch.action)", "features(batch.obs, batch.next_action)"),
        ("features(batch.obs, batch.action)", "features(batch.next_obs, batch.action)"),
        ("agent.critic.features", "agent.critic_target.features"),
        ("agent.critic.read(features)", "agent.critic_target.read(features)"),
        ("td_regression(agent.critic", "td_regression(0.5 * agent.critic"),
    ),
    *faults(
        "losses.td_loss",
        REGRESSION,
        (".sum(0)", ".mean(0)"),
        (".sum(0)", ".amax(0)"),
        (".square()", ".abs()"),
        ("(q - target)", "(q + target)"),
    ),
    *faults(
        "losses.expectile_loss",
        IQL,
        ("(diff < 0)", "(diff > 0)"),
        ("(expectile - (diff < 0).to(diff)).abs()", "0.5"),
        (".abs()", ""),
        ("diff.square()", "diff.abs()"),
    ),
    *faults(
        "losses.action_error",
        f"{PULLED} {BC}",
        (".mean(-1)", ".sum(-1)"),
        (".square()", ".abs()"),
        ("(action - goal)", "(action + goal)"),
    ),
    *faults(
        "regularizers.q_scale",
        TD3,
        (".detach()", ""),
        (".mean(-1)", ".sum(-1)"),
        ("return alpha / ", "return alpha * "),
    ),
    # A2PR's values are of one sign.
    *faults("regularizers.q_scale", "td3_bc prdc rebrac", (".abs()", "")),
    *faults(
        "regularizers.advantage_weight",
        IQL,
        ("beta * advantage", "-beta * advantage"),
        ("beta * advantage", "advantage"),
        (".clamp(max=max_weight)", ""),
        (".clamp(max=max_weight)", ".clamp(min=max_weight)"),
        (".exp()", ""),
    ),
    *faults(
        "optim.polyak_update",
        VALUES,
        (
            "list(target.parameters()), list(net.parameters())",
            "list(net.parameters()), list(target.parameters())",
        ),
        ("list(net.parameters()), polyak", "list(net.parameters()), 1 - polyak"),
        ("torch._foreach_lerp_", "torch._foreach_lerp"),
    ),
    *faults(
        "optim.target_of",
        VALUES,
        ("copy.deepcopy(net)", "net"),
        ("copy.deepcopy(net)", "copy.copy(net)"),
    ),
    *faults("optim.set_lr", IQL, ('group["lr"].fill_(lr)', "pass")),
    *faults(
        "optim.cosine_rate",
        IQL,
        ("math.pi * step", "2 * math.pi * step"),
        ("lr * 0.5 *", "lr *"),
        ("1.0 + math.cos", "1.0 - math.cos"),
    ),
    *faults(
        "optim.adam",
        EVERY,
        ("lr=torch.tensor(lr)", "lr=torch.tensor(3e-4)"),
        ("weight_decay=weight_decay", "weight_decay=0.01"),
        ("fused=True", "fused=True, maximize=True"),
    ),
    *faults(
        "agent.Agent.minimize",
        EVERY,
        ("optimizer.step()", "pass"),
        ("parameter.grad = gradient", "parameter.grad = -gradient"),
        ("return metrics", "return {}"),
    ),
    *faults(
        "agent.Agent._gradient",
        EVERY,
        ("loss.sum()", "(0.0 * loss).sum()"),
        ("loss.sum()", "-loss.sum()"),
        ("v.detach()", "0.0 * v.detach()"),
    ),
    *faults("agent.Agent._gradient", STACKED, ("loss.sum()", "loss.mean()")),
    *faults("regularizers.q_scale", TD3_STACKED, (".mean(-1)", ".mean()")),
    *faults("losses.action_error", "bc-stacked", (".mean(-1)", ".mean(0)")),
    *faults(
        "networks.MLP.forward",
        "iql-dropout",
        ("> threshold", "< threshold"),
        ("/ (1.0 - self.dropout)", ""),
        ("hidden += 1", "pass"),
    ),
]

COVERED = ["critics.td_regression", "representation.critic_regression"]
