"""Finished episodes on disk, one file each, so that a killed collection loses only the open one."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from offrl.envs.outcomes import Outcome, succeeded
from offrl.errors import DataError, RunError


class Staging:
    """A folder of finished episodes; each is written beside its name, then renamed into place."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        for leftover in folder.glob("*.tmp"):
            leftover.unlink()
        self.files = sorted(folder.glob("episode_*.npz"))

    def __len__(self) -> int:
        return len(self.files)

    def append(self, episode: dict[str, NDArray[Any]]) -> None:
        path = self.folder / f"episode_{len(self.files):06d}.npz"
        partial = path.with_suffix(".tmp")
        with partial.open("wb") as file:
            np.savez(file, **episode)  # type: ignore[arg-type]
            file.flush()
            os.fsync(file.fileno())
        partial.rename(path)
        self.files.append(path)

    def __iter__(self) -> Iterator[dict[str, NDArray[Any]]]:
        for path in self.files:
            try:
                with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                    episode = {k: arrays[k] for k in arrays.files}
            except (OSError, ValueError, EOFError, BadZipFile) as error:
                raise DataError(
                    f"{path} cannot be read: {error}. Remove it and the episodes after it"
                ) from error
            yield episode

    def steps(self) -> int:
        """Transitions on disk."""
        return sum(len(e["reward"]) for e in self)


class Recorder(gym.Wrapper[Any, Any, Any, Any]):
    """Passes each finished episode of an environment to a staging folder.

    What is recorded is what the environment itself received and returned: the action as it
    arrives here, the reward as it leaves. An episode that is reset before its end is dropped.
    Where the environment says whether a step succeeded, `success` has an entry a step; where it
    numbers the ways, `mode` is the one taken of `modes`.
    """

    def __init__(self, env: gym.Env[Any, Any], staging: Staging) -> None:
        super().__init__(env)
        self.staging = staging
        self._columns: dict[str, list[Any]] = {}
        self._outcome = Outcome()

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        obs, info = self.env.reset(**kwargs)
        self._columns = {"obs": [obs], "action": [], "reward": [], "success": []}
        self._outcome = Outcome()
        return obs, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        obs, reward, terminated, truncated, info = self.env.step(action)
        first = np.shape(self._columns["obs"][0])
        if np.shape(obs) != first:
            raise RunError(
                f"the environment observed {np.shape(obs)} at step {len(self._columns['obs'])} of "
                f"an episode that began with {first}; every observation must be of its space"
            )
        for name, value in (("obs", obs), ("action", action), ("reward", reward)):
            self._columns[name].append(np.array(value))
        self._columns["success"].append(succeeded(info))
        self._outcome = self._outcome.after(info)
        if terminated or truncated:
            self.staging.append(
                {
                    "obs": np.asarray(self._columns["obs"], np.float32),
                    "action": np.asarray(self._columns["action"], np.float32),
                    "reward": np.asarray(self._columns["reward"], np.float64),
                    "terminated": np.asarray(terminated),
                    "truncated": np.asarray(truncated and not terminated),
                    **self._reported(),
                }
            )
        return obs, reward, terminated, truncated, info

    def _reported(self) -> dict[str, NDArray[Any]]:
        """What the infos said of the episode; empty where they said nothing."""
        reported = {"mode": self._outcome.mode, "modes": self._outcome.modes}
        found = {k: np.asarray(v, np.int64) for k, v in reported.items() if v is not None}
        if self._outcome.success is not None:
            found["success"] = np.array([bool(step) for step in self._columns["success"]])
        return found
