"""What a dataset's quality means: the rules of D4RL, stated so that they can be repeated.

Source: D4RL's scripts/generation/mujoco (Farama-Foundation/D4RL 0fce1e7) and Fu et al. 2020,
"D4RL: Datasets for Deep Data-Driven Reinforcement Learning", section 5.
"""

import math
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from offrl.envs.references import reference_for
from offrl.errors import ConfigError, near

MADE_WITH = ("gymnasium", "mujoco", "numpy", "stable-baselines3", "torch")

MEDIUM = "the first evaluation that reaches a third of the expert reference"
RULES = {
    "random": "Actions drawn uniformly from within their bounds.",
    "medium": f"Sampled actions of the policy that soft actor-critic has at {MEDIUM}.",
    "medium-replay": (
        "Every step that soft actor-critic made while it learnt, in order, up to its first "
        "evaluation that reaches a third of the expert reference: the replay buffer of the "
        "medium policy."
    ),
    "medium-expert": (
        "Half the steps sampled from the medium policy, then half from the expert, each as in "
        "the sets of these names."
    ),
    "expert": (
        "Sampled actions of the policy that soft actor-critic has at the first evaluation that "
        "reaches the expert reference, or at the end of its training."
    ),
    "full-replay": (
        "Every step that soft actor-critic made while it learnt, in order, up to its first "
        "evaluation that reaches the expert reference, or to the end of its training."
    ),
    "policy": "Actions of a saved policy.",
    "scripted": (
        "Actions of the demonstrator that comes with the task; what it decides at the start of an "
        "episode, and the noise of its actions, are drawn."
    ),
}
REPLAYS = ("medium-replay", "full-replay")
BY_SAC = ("medium", "medium-replay", "medium-expert", "expert", "full-replay")
NEED_MEDIUM = ("medium", "medium-replay", "medium-expert")


@dataclass(frozen=True)
class Targets:
    """Mean returns of an evaluation that make a policy medium and expert; infinite: never."""

    medium: float
    expert: float


def check_quality(quality: str) -> None:
    """Raises ConfigError for a quality that has no rule."""
    if quality not in RULES:
        raise ConfigError(
            f"unknown quality {quality!r}{near(quality, RULES) or ';'} it is one of "
            f"{', '.join(RULES)}"
        )


def targets(
    quality: str, env_id: str, target_return: float | None, expert_return: float | None
) -> Targets:
    """What SAC has to reach: as stated, or by the environment's reference.

    Raises ConfigError where the medium policy needs a return that nothing states.
    """
    reference = reference_for(env_id)
    if quality in NEED_MEDIUM and target_return is None and reference is None:
        raise ConfigError(
            f"no expert reference is known for {env_id}, so a third of it is not either; give the "
            "mean return of an evaluation that makes a policy medium: --target-return R"
        )
    best = float("inf") if reference is None else reference.max
    return Targets(
        best / 3 if target_return is None else target_return,
        best if expert_return is None else expert_return,
    )


def versions() -> dict[str, str]:
    """Versions of what the numbers in a collected dataset depend on."""
    return {"python": platform.python_version(), **{p: version(p) for p in MADE_WITH}}


def sac_facts(log: Mapping[str, Any], until: int) -> dict[str, Any]:
    """How a run of SAC went up to its step `until`, from the log of `collect_sac`."""
    config = log["config"]
    settings = {k: config[k] for k in ("env_id", "seed", "target_return", "min_steps")}
    if math.isinf(settings["target_return"]):  # which JSON has no word for
        settings["target_return"] = "none (trained to the end)"
    return {
        "algorithm": "SAC of stable-baselines3 with its defaults (MlpPolicy, two layers of 256)",
        **settings,
        "evaluated": (
            f"every {config['eval_every']} steps, {config['eval_episodes']} episodes of the "
            "deterministic policy in an environment of their own"
        ),
        "first_random_steps": config["learning_starts"],
        "matmul": config.get("matmul", "float32"),
        "resumed_at_steps": [steps for steps in log["resumed_at"] if steps < until],
        "evaluations": [[int(s), float(value)] for s, value in log["evaluations"] if s <= until],
    }


def replay_facts(
    quality: str, log: Mapping[str, Any], steps: int, until: int, capacity: int | None = None
) -> dict[str, Any]:
    """How a replay of `steps` steps was made, of a run of SAC up to its step `until`.

    With a `capacity`, of a buffer that holds no more than the latest so many steps.
    """
    rule, left = RULES[quality], f"{until - steps} steps of the episode that was open at the end"
    if capacity is not None:
        rule += f" The buffer holds the latest {capacity:,} steps; what is older is left out."
        left = f"{until - steps} steps: the oldest, and the episode that was open at the end"
    return {
        "rule": rule,
        "quality": quality,
        **sac_facts(log, until),
        "versions": versions(),
        **({} if capacity is None else {"capacity": capacity}),
        "left_out": left,
    }
