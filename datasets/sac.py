"""Data from soft actor-critic (stable-baselines3), recorded while it learns.

The replay buffer of the run *is* the data: every environment step that SAC made, in order, up to
the first evaluation that reaches a stated return. Evaluations use another environment and are
not part of it.
"""

import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from safetensors.torch import load_file, save_file
from stable_baselines3 import SAC
from stable_baselines3.common.callbacks import BaseCallback

from offrl.datasets.staging import Recorder, Staging


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


def collect_sac(
    config: SACConfig, folder: Path, progress: Callable[[int, float], None] | None = None
) -> dict[str, Any]:
    """Train SAC, appending each finished episode to `folder/episodes`; resumes what is there.

    Networks and optimisers are kept at every evaluation; the replay buffer is rebuilt from the
    episodes. A resumed run goes on from the last evaluation's networks with a fresh random
    stream: it is a continued run of SAC, not the same one to the bit, and the log says so.
    """
    staging = Staging(folder / "episodes")
    log_path, state_path = folder / "sac.json", folder / "sac.safetensors"
    log: dict[str, Any] = {"config": asdict(config), "evaluations": [], "resumed_at": []}
    done = staging.steps()
    if done:
        if not log_path.exists():
            log["resumed_at"].append(0)
        else:
            log = json.loads(log_path.read_text())
            if log["config"] != asdict(config):
                raise ValueError(f"{log_path} was made with other settings: {log['config']}")
        log["resumed_at"].append(done)
    if log.get("finished"):
        return log

    env = Recorder(gym.make(config.env_id), staging)
    model = SAC(
        "MlpPolicy",
        env,
        seed=config.seed + len(log["resumed_at"]) * 1_000,
        learning_starts=config.learning_starts if not done else 0,
        buffer_size=config.max_steps,
        device="cpu",
    )
    if done:
        _refill(model, staging)
        if state_path.exists():
            _load_state(model, state_path)

    class Stop(BaseCallback):
        def _on_step(self) -> bool:
            steps = done + self.num_timesteps
            if steps % config.eval_every:
                return True
            score = float(
                np.mean(evaluate_sac(model, config.env_id, config.eval_episodes, config.seed))
            )
            log["evaluations"].append([steps, score])
            _save_state(model, state_path)
            _write_json(log_path, log)
            if progress is not None:
                progress(steps, score)
            return not (score >= config.target_return and steps >= config.min_steps)

    model.learn(config.max_steps - done, callback=Stop())
    log["finished"] = True
    _write_json(log_path, log)
    return log


def evaluate_sac(model: SAC, env_id: str, episodes: int, seed: int) -> list[float]:
    """Returns of the deterministic policy, each episode from its own seeded start."""
    env = gym.make(env_id)
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


def _save_state(model: SAC, path: Path) -> None:
    tensors = {f"policy/{k}": v.contiguous() for k, v in model.policy.state_dict().items()}
    if model.log_ent_coef is not None:
        tensors["log_ent_coef"] = model.log_ent_coef.detach()
    for name, optimizer in _optimizers(model).items():
        for i, values in optimizer.state_dict()["state"].items():
            tensors |= {f"opt/{name}/{i}/{k}": torch.as_tensor(v) for k, v in values.items()}
    partial = path.with_suffix(".tmp")
    save_file(tensors, partial)
    os.replace(partial, path)


def _load_state(model: SAC, path: Path) -> None:
    tensors = load_file(path)
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


def _write_json(path: Path, value: Any) -> None:
    partial = path.with_suffix(".tmp")
    partial.write_text(json.dumps(value, indent=1))
    os.replace(partial, path)
