"""Faults in what several methods call."""

from fault import faults

# Cases, by what their methods have in common.
BC = "bc"
TD3 = "td3_bc prdc"
IQL = "iql riql"
VALUES = f"{TD3} {IQL}"
EVERY = f"{VALUES} {BC}"
TD3_STACKED = "td3_bc-stacked prdc-stacked"
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
        (".clamp(-1.0, 1.0)", ""),
        (".clamp(-1.0, 1.0)", ".clamp(-0.5, 0.5)"),
        ("(action +", "(action -"),
    ),
    *faults(
        "losses.td_loss",
        f"{TD3} iql",
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
        f"{TD3} {BC}",
        (".mean(-1)", ".sum(-1)"),
        (".square()", ".abs()"),
        ("(action - goal)", "(action + goal)"),
    ),
    *faults(
        "regularizers.q_scale",
        TD3,
        (".detach()", ""),
        (".abs()", ""),
        (".mean(-1)", ".sum(-1)"),
        ("return alpha / ", "return alpha * "),
    ),
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
