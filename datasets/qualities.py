"""What a dataset's quality means: the rules of D4RL, stated so that they can be repeated."""

import platform
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

THIRD = 3  # "medium" is SAC at its first evaluation of a third of the expert reference

MADE_WITH = ("gymnasium", "mujoco", "numpy", "stable-baselines3", "torch")

RULES = {
    "medium-replay": (
        "Every step that soft actor-critic made while it learnt, in order, up to its first "
        "evaluation that reaches a third of the expert reference: the replay buffer of the "
        "medium policy."
    ),
}


def versions() -> dict[str, str]:
    """Versions of what the numbers in a collected dataset depend on."""
    return {"python": platform.python_version(), **{p: version(p) for p in MADE_WITH}}


def sac_provenance(quality: str, log: Mapping[str, Any], steps: int) -> dict[str, Any]:
    """How a dataset of `steps` steps was made, from the log of `collect_sac`."""
    config = log["config"]
    made = int(log["evaluations"][-1][0])
    return {
        "rule": RULES[quality],
        "quality": quality,
        "algorithm": "SAC of stable-baselines3 with its defaults (MlpPolicy, two layers of 256)",
        **{k: config[k] for k in ("env_id", "seed", "target_return", "min_steps")},
        "evaluated": (
            f"every {config['eval_every']} steps, {config['eval_episodes']} episodes of the "
            "deterministic policy in an environment of their own"
        ),
        "first_random_steps": config["learning_starts"],
        "resumed_at_steps": list(log["resumed_at"]),
        "evaluations": [[int(steps), float(value)] for steps, value in log["evaluations"]],
        "versions": versions(),
        "left_out": f"{made - steps} steps of the episode that was open at the end",
    }
