"""How true transitions are to the simulator: of data that were made up, and of a learned model.

    step h    |s_h - sim(s_(h-1), a_(h-1))|           each step alone, from where it began
    since 0   |s_h - sim^h(s_0, a_0 .. a_(h-1))|      the whole way, from where the trajectory began

|.| is the root mean square over the components, each divided by the standard deviation of its
one-step differences in the logged data, so that "nothing moves" is wrong by about 1. A learned
one-step model is unrolled from the same s_0 under the same actions, and measured alike.

An observation of Hopper, HalfCheetah or Walker2d is the whole state but for the horizontal
position, on which neither motion nor reward depends. The velocities of Hopper and Walker2d are
cut at 10 there: a state with a velocity of 9.5 or more is not known, and its steps are left out.
"""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from offrl.datasets.offline import OfflineDataset
from offrl.dynamics import DynamicsConfig, GaussianEnsemble
from offrl.envs import make
from offrl.errors import DataError
from offrl.trajectories import begins

STRIDE = 8  # rows from the beginning of one piece of logged data to that of the next
F64 = NDArray[np.float64]
# Of each environment: the velocity from which on an observation may not be the state.
EDGES: Mapping[str, float] = {"Hopper": 9.5, "Walker2d": 9.5, "HalfCheetah": 1e2}


class Simulator:
    """An environment that is put into the state that an observation stands for."""

    def __init__(self, env_id: str | None) -> None:
        name = str(env_id).split("-")[0]
        if name not in EDGES:
            raise DataError(
                f"the state of {env_id} is not known from its observations; take a dataset of "
                f"{', '.join(EDGES)}"
            )
        self.edge = EDGES[name]
        made: Any = make(str(env_id))
        made.reset(seed=0)
        self.env = made.unwrapped
        self.positions = int(self.env.model.nq) - 1

    def known(self, obs: NDArray[Any]) -> NDArray[np.bool_]:
        """Whether observations (..., obs) say what the state is."""
        speed = np.abs(obs[..., self.positions :]).max(-1)
        found: NDArray[np.bool_] = np.isfinite(obs).all(-1) & (speed < self.edge)
        return found

    def play(self, start: NDArray[Any], actions: NDArray[Any]) -> tuple[F64, F64]:
        """Observations (n, steps, obs) and rewards (n, steps) that follow; ends are no ends here.

        `start` is (n, obs), `actions` (n, steps, act). NaN where the start is not known.
        """
        n, steps = actions.shape[:2]
        obs, reward = np.full((n, steps, start.shape[1]), np.nan), np.full((n, steps), np.nan)
        for i in np.flatnonzero(self.known(start)):
            state = start[i].astype(np.float64)
            self.env.set_state(
                np.concatenate([[0.0], state[: self.positions]]), state[self.positions :]
            )
            for t in range(steps):
                obs[i, t], reward[i, t], *_ = self.env.step(actions[i, t].astype(np.float64))
        return obs, reward


def one_step_scale(dataset: OfflineDataset) -> tuple[F64, float]:
    """Standard deviations of the differences of one step, by component, and of the rewards."""
    rows = dataset.transition_rows()
    change = dataset.following(rows) - dataset.rows[rows, : dataset.obs_dim]
    return change.std(0, dtype=np.float64), float(dataset.rows[rows, -3].std(dtype=np.float64))


def error(found: NDArray[Any], true: NDArray[Any], scale: F64) -> F64:
    """Root mean square over the components (last axis), in units of `scale`."""
    size: F64 = np.sqrt(np.square((found - true) / scale).mean(-1))
    return size


def learned_model(
    dataset: OfflineDataset, config: DynamicsConfig, seed: int, path: Path
) -> GaussianEnsemble:
    """An ensemble that says which observation and reward follow, learned once and kept in `path`.

    The reward is one more component of where a transition leads; at its beginning it is 0.
    """
    model = GaussianEnsemble(dataset.obs_dim + 1, dataset.act_dim, config, seed)
    if path.exists():
        model.load_state_dict(load_file(path))
        return model.requires_grad_(False)
    rows, o, a = dataset.transition_rows(), dataset.obs_dim, dataset.act_dim
    now, then = dataset.rows[rows], dataset.following(rows)
    start = np.concatenate([now[:, :o], np.zeros_like(now[:, :1])], -1)
    end = np.concatenate([then, now[:, -3:-2]], -1)
    tensors = [torch.from_numpy(x) for x in (start, now[:, o : o + a], end)]
    model.fit(tensors[0], tensors[1], tensors[2], "one-step model")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}")
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, partial)
    partial.rename(path)
    return model


@torch.no_grad()
def unroll(
    model: GaussianEnsemble, start: NDArray[Any], actions: NDArray[Any]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """What the elites expect of these actions, each step from where the one before led."""
    obs = torch.from_numpy(np.asarray(start, np.float32))
    states, rewards = [], []
    for action in np.asarray(actions, np.float32).swapaxes(0, 1):
        state = torch.cat([obs, torch.zeros_like(obs[:, :1])], -1)
        end = model.expected(state, torch.from_numpy(np.ascontiguousarray(action)))
        obs = end[:, :-1]
        states.append(obs.numpy())
        rewards.append(end[:, -1].numpy())
    return np.stack(states, 1), np.stack(rewards, 1)


def pieces(dataset: OfflineDataset, steps: int, most: int, seed: int) -> dict[str, NDArray[Any]]:
    """At most so many pieces of `steps` steps, drawn without replacement from all of them."""
    firsts = np.random.default_rng(seed).permutation(begins(dataset, steps + 1, STRIDE))[:most]
    rows = np.sort(firsts)[:, None] + np.arange(steps)
    o, a = dataset.obs_dim, dataset.act_dim
    now, then = dataset.rows[rows], dataset.following(rows.ravel())
    return {
        "start": now[:, 0, :o],
        "action": now[..., o : o + a],
        "obs": then.reshape(*rows.shape, o),
    }


def of_transitions(
    sim: Simulator,
    dataset: OfflineDataset,
    scale: tuple[F64, float],
    model: GaussianEnsemble,
    most: int,
    seed: int,
) -> dict[str, Any]:
    """Errors of single transitions, at most so many, beside the model's at the same ones."""
    rows = dataset.transition_rows()
    rows = np.sort(np.random.default_rng(seed).permutation(rows)[:most])
    o, a = dataset.obs_dim, dataset.act_dim
    obs, action = dataset.rows[rows, :o], dataset.rows[rows, None, o : o + a]
    true, reward = (x[:, 0] for x in sim.play(obs, action))
    guess, guessed = (x[:, 0] for x in unroll(model, obs, action))
    known = sim.known(obs)
    given = dataset.rows[rows, -3]
    return {
        "transitions": len(rows),
        "left_out": float(1.0 - known.mean()),
        "data": summary(error(dataset.following(rows), true, scale[0])[known]),
        "model": summary(error(guess, true, scale[0])[known]),
        "still": summary(error(obs, true, scale[0])[known]),
        "reward": summary((np.abs(given - reward) / scale[1])[known]),
        "model_reward": summary((np.abs(guessed - reward) / scale[1])[known]),
    }


def along(
    sim: Simulator,
    dataset: OfflineDataset,
    scale: F64,
    model: GaussianEnsemble,
    steps: int,
    most: int,
    seed: int,
) -> dict[str, Any]:
    """Errors by the step of a trajectory, of the data and of the model, in both senses.

    Of trajectories that last so many steps and begin in a known state.
    """
    found = pieces(dataset, steps, most, seed)
    kept = sim.known(found["start"])
    start, action = found["start"][kept], found["action"][kept]
    true = sim.play(start, action)[0]
    own = {"data": found["obs"][kept], "model": unroll(model, start, action)[0]}
    curves: dict[str, Any] = {"trajectories": len(start)}
    for name, obs in own.items():
        before = np.concatenate([start[:, None], obs[:, :-1]], 1)
        flat = before.reshape(-1, before.shape[-1]), action.reshape(-1, 1, action.shape[-1])
        single = sim.play(*flat)[0].reshape(obs.shape)
        curves[name] = {
            "step": medians(error(obs, single, scale)),
            "since": medians(error(obs, true, scale)),
            "left_out": [float(1.0 - k.mean()) if len(k) else None for k in sim.known(before).T],
        }
    return curves


def medians(errors: F64) -> list[float | None]:
    """Over trajectories, by step; None where no state was known."""
    return [float(np.nanmedian(e)) if np.isfinite(e).any() else None for e in errors.T]


def summary(errors: F64) -> dict[str, float | None]:
    """Median, mean and ninth decile."""
    if not len(errors):
        return dict.fromkeys(("median", "mean", "ninth"))
    middle, ninth = np.quantile(errors, [0.5, 0.9])
    return {"median": float(middle), "mean": float(errors.mean()), "ninth": float(ninth)}


def model_facts(model: GaussianEnsemble) -> dict[str, Any]:
    """Of the learned model, for the page."""
    return {**asdict(model.config), "seed": model.seed, "error": model.error.tolist()}
