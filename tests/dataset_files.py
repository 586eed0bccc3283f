"""Dataset files written with bare h5py from each format's own layout, never by our writers."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

Arrays = dict[str, np.ndarray]


def d4rl_arrays(
    episodes: Sequence[tuple[int, str]],
    *,
    obs_dim: int = 3,
    act_dim: int = 2,
    seed: int = 0,
    next_observations: bool = True,
) -> Arrays:
    """D4RL columns of episodes given as (steps, end).

    `end` is terminal, timeout, both, or none (an end that no flag marks). Each number of an
    observation occurs once, so that a wrong neighbour is always seen.
    """
    rng = np.random.default_rng(seed)
    columns: dict[str, list[Any]] = {}
    for steps, end in episodes:
        obs = rng.normal(size=(steps + 1, obs_dim)).astype(np.float32)
        flags = np.zeros((2, steps), bool)
        flags[0, -1] = end in ("terminal", "both")
        flags[1, -1] = end in ("timeout", "both")
        part = {
            "observations": obs[:-1],
            "actions": rng.uniform(-1, 1, (steps, act_dim)).astype(np.float32),
            "rewards": rng.normal(size=steps).astype(np.float32),
            "terminals": flags[0],
            "timeouts": flags[1],
            "next_observations": obs[1:],
        }
        for key, values in part.items():
            columns.setdefault(key, []).append(values)
    arrays = {key: np.concatenate(values) for key, values in columns.items()}
    if not next_observations:
        del arrays["next_observations"]
    return arrays


def write_d4rl(path: Path, arrays: Arrays, infos: Arrays | None = None, **storage: Any) -> Path:
    with h5py.File(path, "w") as file:
        for key, values in arrays.items():
            file.create_dataset(key, data=values, **storage)
        for key, values in (infos or {}).items():
            file.create_dataset(f"infos/{key}", data=values)
    return path


def box(shape: Sequence[int], low: float, high: float, dtype: str = "float64") -> dict[str, Any]:
    """A Box as Minari's metadata.json holds it."""
    return {
        "type": "Box",
        "dtype": dtype,
        "shape": list(shape),
        "low": np.full(shape, low).tolist(),
        "high": np.full(shape, high).tolist(),
    }


def write_minari_folder(
    path: Path,
    episodes: Sequence[dict[str, Any]],
    observation_space: dict[str, Any],
    action_space: dict[str, Any],
    **metadata: Any,
) -> Path:
    """A Minari HDF5 dataset; observations of an episode are an array or a nested dict of arrays."""
    (path / "data").mkdir(parents=True)
    with h5py.File(path / "data" / "main_data.hdf5", "w") as file:
        for i, episode in enumerate(episodes):
            group = file.create_group(f"episode_{i}")
            group.attrs["id"] = i
            group.attrs["seed"] = 1000 + i
            group.attrs["total_steps"] = len(episode["rewards"])
            for key, values in episode.items():
                _write_tree(group, key, values)
    content = {
        "total_episodes": len(episodes),
        "total_steps": sum(len(e["rewards"]) for e in episodes),
        "data_format": "hdf5",
        "observation_space": json.dumps(observation_space),
        "action_space": json.dumps(action_space),
        "dataset_id": "test/made-by-hand-v3",
        "minari_version": "0.5.2",
        "author": ["nobody"],
        **metadata,
    }
    (path / "data" / "metadata.json").write_text(json.dumps(content))
    return path


def _write_tree(group: h5py.Group, key: str, values: Any) -> None:
    if isinstance(values, dict):
        inner = group.create_group(key)
        for name, part in values.items():
            _write_tree(inner, name, part)
    else:
        group.create_dataset(key, data=values, chunks=True, maxshape=(None, *values.shape[1:]))


def env_spec(env_id: str, max_episode_steps: int) -> str:
    """The `env_spec` string of Minari's metadata.json."""
    return json.dumps(
        {
            "id": env_id,
            "entry_point": "nowhere:Nothing",
            "reward_threshold": None,
            "nondeterministic": False,
            "max_episode_steps": max_episode_steps,
            "order_enforce": True,
            "disable_env_checker": False,
            "kwargs": {},
            "additional_wrappers": [],
            "vector_entry_point": None,
        }
    )


def memory_growth(small: Path, large: Path) -> tuple[int, int]:
    """Bytes by which loading `large` raises the peak of a fresh process, and the steps loaded.

    Loading `small` first takes up what code, tables and libraries themselves need. The peak is
    the kernel's VmHWM, because getrusage's begins at the size of the process that started it.
    """
    script = (
        "import re, sys\n"
        "from pathlib import Path\n"
        "from offrl.datasets.loading import load_dataset\n"
        "status = Path('/proc/self/status')\n"
        "peak = lambda: 1024 * int(re.search(r'VmHWM:\\s+(\\d+)', status.read_text())[1])\n"
        "load_dataset(sys.argv[1])\n"
        "before = peak()\n"
        "dataset = load_dataset(sys.argv[2])\n"
        "print(peak() - before, dataset.num_steps)\n"
    )
    command = [sys.executable, "-c", script, str(small), str(large)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    grown, steps = done.stdout.split()
    return int(grown), int(steps)
