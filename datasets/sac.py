"""Data from soft actor-critic (stable-baselines3), recorded while it learns.

The replay buffer of the run *is* the data: every environment step that SAC made, in order, up to
the first evaluation that reaches a stated return. Evaluations use another environment and are
not part of it.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from stable_baselines3 import SAC
from stable_baselines3.common.callbacks import BaseCallback

from offrl.datasets.staging import Recorder, Staging
from offrl.envs import make
from offrl.errors import ConfigError, RunError
from offrl.files import read_json, write_json
from offrl.products import products_in

FIXED = ("env_id", "seed", "eval_every", "eval_episodes", "learning_starts")


@dataclass(frozen=True)
class SACConfig:
    """When to stop, and the settings that differ from stable-baselines3's defaults."""

    env_id: str
    seed: int = 0
    target_return: float = float("inf")  # stop at the first evaluation that reaches it ...
    min_steps: int = 0  # ... but not before this many steps
    max_steps: int = 1_000_000
    eval_every: int = 5_000
    eval_episodes: int = 10
    learning_starts: int = 1_000  # uniform random actions before the first gradient step
    matmul: str = "float32"  # or bfloat16: to which products' factors are rounded


class SACRun:
    """The folder of one run of SAC.

    sac.json          settings, evaluations [step, mean return], steps at which it was resumed
    episodes/         what it did, an episode a file
    actors/STEP.safetensors   its weights at each evaluation, with stable-baselines3's names
    sac.safetensors   weights and optimisers at the last evaluation, to go on from
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.staging = Staging(folder / "episodes")
        self.log_path, self.state_path = folder / "sac.json", folder / "sac.safetensors"

    def log(self, config: SACConfig) -> dict[str, Any]:
        """The log, or an empty one; ConfigError where it is that of another run."""
        if not self.log_path.exists():
            return {"config": asdict(config), "evaluations": [], "resumed_at": []}
        log: dict[str, Any] = read_json(self.log_path)
        for name in FIXED:
            if log["config"][name] != getattr(config, name):
                raise ConfigError(
                    f"{self.folder} holds a run of SAC with {name} {log['config'][name]!r}, not "
                    f"{getattr(config, name)!r}; go on with that, or choose another folder"
                )
        return log | {"config": asdict(config)}

    def actor(self, steps: int) -> Path:
        """The file of the actor as it was evaluated at `steps`."""
        return self.folder / "actors" / f"{steps:09d}.safetensors"

    def episodes_until(self, steps: int) -> int:
        """How many episodes were finished within the first `steps` steps."""
        ends = np.cumsum([len(episode["reward"]) for episode in self.staging])
        return int(np.searchsorted(ends, steps, side="right"))


def reached(log: Mapping[str, Any], target_return: float, min_steps: int = 0) -> int | None:
    """Steps of the first evaluation that reached `target_return`, not before `min_steps`."""
    for steps, score in log["evaluations"]:
        if score >= target_return and steps >= min_steps:
            return int(steps)
    return None


def collect_sac(
    config: SACConfig,
    folder: Path,
    progress: Callable[[int, float], None] | None = None,
    on_step: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """Train SAC, appending each finished episode to `folder/episodes`; resumes what is there.

    Networks and optimisers are kept at every evaluation; the replay buffer is rebuilt from the
    episodes. A resumed run goes on from the last evaluation's networks with a fresh random
    stream: it is a continued run of SAC, not the same one to the bit, and the log says so. A run
    that has stopped goes on if a higher return or more steps are asked for. `progress` is told
    the steps and return of each evaluation, `on_step` the steps so far. Raises ConfigError where
    the folder holds a run of other settings.
    """
    run = SACRun(folder)
    log = run.log(config)
    evaluated = int(log["evaluations"][-1][0]) if log["evaluations"] else 0
    if (
        reached(log, config.target_return, config.min_steps) is not None
        or evaluated >= config.max_steps
    ):
        return log | {"finished": True}
    log["finished"] = False
    done = run.staging.steps()
    if done:
        # The episode that was open at the last evaluation is not on disk, but its steps were made.
        log["resumed_at"].append(max(done, evaluated))

    env = Recorder(make(config.env_id), run.staging)
    model = SAC(
        "MlpPolicy",
        env,
        seed=config.seed + len(log["resumed_at"]) * 1_000,
        learning_starts=max(0, config.learning_starts - done),
        buffer_size=config.max_steps,
        device="cpu",
    )
    if done:
        _refill(model, run.staging)
    if run.state_path.exists():
        _load_state(model, run.state_path)

    def assess(steps: int) -> float:
        scores = evaluate_sac(model, config.env_id, config.eval_episodes, config.seed)
        score = float(np.mean(scores))
        log["evaluations"].append([steps, score])
        _save_actor(model, run.actor(steps))
        _save_state(model, run.state_path)
        write_json(run.log_path, log)
        if progress is not None:
            progress(steps, score)
        return score

    class Watch(BaseCallback):
        def _on_step(self) -> bool:
            steps = done + self.num_timesteps
            if on_step is not None:
                on_step(steps)
            due = steps % config.eval_every == 0 or steps == config.max_steps
            if not due or steps <= evaluated:
                return True
            return not (assess(steps) >= config.target_return and steps >= config.min_steps)

    # The log first: without it, what a killed run leaves could not be told from another's.
    write_json(run.log_path, log)
    if done < config.max_steps:
        with products_in(config.matmul):
            model.learn(config.max_steps - done, callback=Watch())
    else:
        assess(done)  # killed between the last step and its evaluation
    env.close()
    log["finished"] = True
    write_json(run.log_path, log)
    return log


def evaluate_sac(model: SAC, env_id: str, episodes: int, seed: int) -> list[float]:
    """Returns of the deterministic policy, each episode from its own seeded start."""
    env = make(env_id)
    returns = []
    for episode in range(episodes):
        obs, _ = env.reset(seed=10_000 + 100 * seed + episode)
        total, done = 0.0, False
        while not done:
            action, _ = model.predict(obs, deterministic=True)
            obs, reward, terminated, truncated, _ = env.step(action)
            total += float(reward)
            done = terminated or truncated
        returns.append(total)
    env.close()
    return returns


def _optimizers(model: SAC) -> dict[str, torch.optim.Optimizer]:
    optimizers = {"actor": model.actor.optimizer, "critic": model.critic.optimizer}
    if model.ent_coef_optimizer is not None:
        optimizers["ent_coef"] = model.ent_coef_optimizer
    return optimizers


def _save_actor(model: SAC, path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    actor = model.actor.state_dict()
    _replace({f"actor.{k}": v.contiguous() for k, v in actor.items()}, path)


def _replace(tensors: dict[str, torch.Tensor], path: Path) -> None:
    partial = path.with_suffix(".tmp")
    save_file(tensors, partial)
    os.replace(partial, path)


def _save_state(model: SAC, path: Path) -> None:
    tensors = {f"policy/{k}": v.contiguous() for k, v in model.policy.state_dict().items()}
    if model.log_ent_coef is not None:
        tensors["log_ent_coef"] = model.log_ent_coef.detach()
    for name, optimizer in _optimizers(model).items():
        for i, values in optimizer.state_dict()["state"].items():
            tensors |= {f"opt/{name}/{i}/{k}": torch.as_tensor(v) for k, v in values.items()}
    _replace(tensors, path)


def _load_state(model: SAC, path: Path) -> None:
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise RunError(f"{path} cannot be read: {error}") from error
    model.policy.load_state_dict(
        {k.removeprefix("policy/"): v for k, v in tensors.items() if k.startswith("policy/")}
    )
    if model.log_ent_coef is not None:
        with torch.no_grad():
            model.log_ent_coef.copy_(tensors["log_ent_coef"])
    for name, optimizer in _optimizers(model).items():
        state: dict[int, dict[str, torch.Tensor]] = {}
        for key, value in tensors.items():
            if key.startswith(f"opt/{name}/"):
                _, _, index, field = key.split("/")
                state.setdefault(int(index), {})[field] = value
        optimizer.load_state_dict(optimizer.state_dict() | {"state": state})


def _refill(model: SAC, staging: Staging) -> None:
    buffer = model.replay_buffer
    assert buffer is not None
    for episode in staging:
        length = len(episode["reward"])
        for t in range(length):
            last = t == length - 1
            buffer.add(
                episode["obs"][t],
                episode["obs"][t + 1],
                model.policy.scale_action(episode["action"][t]),
                episode["reward"][t],
                np.array([last]),
                [{"TimeLimit.truncated": bool(last and episode["truncated"])}],
            )
