"""Faults in what the methods built on IQL share."""

from fault import faults

EVERY = "iql idql awm"
STACKED = "iql-stacked"

FAULTS = [
    *faults(
        "implicit.logged_value",
        EVERY,
        (".amin(0)", ".amax(0)"),
        (".amin(0)", ".mean(0)"),
        ("agent.critic_target(", "agent.critic("),
        ("batch.obs, batch.action", "batch.next_obs, batch.action"),
        ("return q", "return -q"),
    ),
    *faults(
        "implicit.value_regression",
        EVERY,
        ("agent.value(batch.obs)", "agent.value(batch.next_obs)"),
        ("q - value, agent", "value - q, agent"),
        ("agent.config.expectile", "1 - agent.config.expectile"),
        (").mean(-1)\n", ").sum(-1)\n"),
        ("return loss,", "return -loss,"),
        ('{"value": value.mean(-1)}', "{}"),
    ),
    *faults(
        "implicit.value_regression",
        STACKED,
        (").mean(-1)\n", ").mean()\n"),
        ("value.mean(-1)", "value.mean()"),
    ),
    *faults(
        "implicit.implicit_target",
        EVERY,
        ("torch.no_grad()", "torch.enable_grad()"),
        ("agent.value(batch.next_obs)", "agent.value(batch.obs)"),
        (
            "agent.value(batch.next_obs)",
            "agent.critic_target(batch.next_obs, batch.next_action).amin(0)",
        ),
        ("batch.reward, batch.mask", "-batch.reward, batch.mask"),
        ("batch.reward, batch.mask", "batch.reward, torch.ones_like(batch.mask)"),
        ("next_value, agent.config.gamma", "next_value, 0.99"),
    ),
]

COVERED = [f"implicit.{name}" for name in ("logged_value", "value_regression", "implicit_target")]
