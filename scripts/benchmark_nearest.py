"""What the exact nearest-action search costs over a run of PRDC, beside the steps around it.

    python scripts/benchmark_nearest.py DATA [--alpha 2.5] [--steps 20000] [--neighbours 8 16 32 64]

A plain PRDC loop trains on DATA (a dataset name or path, or a folder of `.npz` episodes with `obs`,
one row longer than `action`, and `reward`). Critic and actor updates are TD3+BC's and are timed
apart from the search, in processor seconds of one thread, so the ratio (updates + search) / updates
compares PRDC with TD3+BC in the same minutes on the same machine. Everything that fills or saves
lists is part of the search. With `--mimic` nothing is trained: queries are data actions plus noise
that shrinks from 1 to 0.1 over the run, and an update is timed only now and then; a whole run takes
a few minutes then.
"""

import argparse
import itertools
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from offrl.nearest import NearestAction

Columns = tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32], NDArray[np.int64]]


def load(data: str) -> Columns:
    """Obs (one more row an episode), action, reward and the row of each transition's obs."""
    folder = Path(data)
    episodes = sorted(folder.glob("*.npz")) if folder.is_dir() else []
    if not episodes:
        import offrl

        dataset = offrl.load_dataset(data)
        rows = dataset.rows
        at = dataset.transition_rows()
        width = dataset.obs_dim
        obs, action = rows[:, :width], rows[at, width : width + dataset.act_dim]
        return obs, action, rows[at, -3], at
    parts: list[tuple[NDArray[np.float32], ...]] = []
    starts = [0]
    for name in episodes:
        with np.load(name, allow_pickle=False) as file:
            parts.append(tuple(file[key].astype(np.float32) for key in ("obs", "action", "reward")))
            starts.append(starts[-1] + len(file["obs"]))
    firsts = zip(starts, parts, strict=False)
    rows_of = [start + np.arange(len(part[1])) for start, part in firsts]
    obs, action, reward = (np.concatenate(column) for column in zip(*parts, strict=True))
    return obs, action, reward, np.concatenate(rows_of)


class Loop:
    """TD3 with a pull towards given actions, written out: the step that a search is added to."""

    def __init__(self, obs_dim: int, act_dim: int, alpha: float, learners: int) -> None:
        torch.manual_seed(0)
        self.alpha = alpha
        sizes = (obs_dim + act_dim, 256, 256, 1)
        self.critic = self.stack(sizes, 2, learners)
        self.actor = self.stack((obs_dim, 256, 256, act_dim), 1, learners)
        self.critic_target = [p.detach().clone() for p in self.critic]
        self.actor_target = [p.detach().clone() for p in self.actor]
        self.critic_opt = torch.optim.Adam(self.critic, 3e-4)
        self.actor_opt = torch.optim.Adam(self.actor, 3e-4)

    @staticmethod
    def stack(sizes: tuple[int, ...], ensemble: int, learners: int) -> list[Tensor]:
        weights: list[Tensor] = []
        for fan_in, fan_out in itertools.pairwise(sizes):
            bound = fan_in**-0.5
            for shape in ((fan_in, fan_out), (1, fan_out)):
                w = torch.empty(ensemble, learners, *shape).uniform_(-bound, bound)
                weights.append(nn.Parameter(w))
        return weights

    @staticmethod
    def forward(weights: list[Tensor], x: Tensor) -> Tensor:
        last = len(weights) - 2
        for i in range(0, len(weights), 2):
            x = x @ weights[i] + weights[i + 1]
            x = x.relu() if i < last else x
        return x

    def act(self, obs: Tensor, weights: list[Tensor]) -> Tensor:
        return self.forward(weights, obs)[0].tanh()

    def q(self, obs: Tensor, action: Tensor, weights: list[Tensor]) -> Tensor:
        return self.forward(weights, torch.cat([obs, action], -1))[..., 0]

    def critic_update(self, obs: Tensor, action: Tensor, reward: Tensor, next_obs: Tensor) -> None:
        with torch.no_grad():
            noise = (0.2 * torch.randn_like(action)).clamp(-0.5, 0.5)
            next_action = (self.act(next_obs, self.actor_target) + noise).clamp(-1, 1)
            target = reward + 0.99 * self.q(next_obs, next_action, self.critic_target).amin(0)
        loss = (self.q(obs, action, self.critic) - target).square().mean(-1).sum()
        self.critic_opt.zero_grad()
        torch.autograd.backward(loss)
        self.critic_opt.step()

    def actor_update(self, obs: Tensor, action: Tensor, reference: Tensor) -> None:
        q = self.q(obs, action, self.critic)[0]
        scale = self.alpha / q.detach().abs().mean(-1)
        loss = -scale * q.mean(-1) + (action - reference).square().mean((-1, -2))
        self.actor_opt.zero_grad()
        torch.autograd.backward(loss.sum())
        self.actor_opt.step()
        with torch.no_grad():
            torch._foreach_lerp_(self.critic_target, self.critic, 0.005)
            torch._foreach_lerp_(self.actor_target, self.actor, 0.005)


def simulate(columns: Columns, args: argparse.Namespace, neighbours: int, cache: Path) -> None:
    """One run; prints a line for its start, for the rest, and for the whole."""
    raw, action, reward, at = columns
    mean, std = raw[at].mean(0), raw[at].std(0) + 1e-3
    obs = ((raw - mean) / std).astype(np.float32)
    clock = time.process_time  # of one thread: a busy machine does not count
    start = clock()
    search = NearestAction(
        obs[at], action, args.beta, rows=at, neighbours=neighbours, cache_dir=cache
    )
    setup = clock() - start
    shape = (args.learners, 256)
    loop = Loop(obs.shape[1], action.shape[1], args.alpha, args.learners)
    rng = np.random.default_rng(0)
    states, actions = torch.from_numpy(obs), torch.from_numpy(action)
    rewards, rows = torch.from_numpy(reward), torch.from_numpy(at.astype(np.int64))

    spent: list[tuple[float, float]] = []
    own, shares, distances = [], [], []
    updates = args.steps // 2
    for update in range(updates):
        timed = not args.mimic or update % 50 == 0
        begin = clock()
        batches = [torch.from_numpy(rng.integers(0, len(at), shape)) for _ in range(2)]
        if timed:
            for b in batches:
                row = rows[b]
                loop.critic_update(states[row], actions[b], rewards[b], states[row + 1])
        b = batches[-1]
        here = states[rows[b]]
        if args.mimic:
            sigma = 0.1 ** (update / updates)
            noise = torch.from_numpy(rng.standard_normal((*shape, action.shape[1])))
            query = (actions[b] + sigma * noise.float()).clamp(-1, 1)
        if timed:
            proposed = loop.act(here, loop.actor)
        if not args.mimic:
            query = proposed.detach()
        middle = clock()
        reference, is_own = search.with_own(here, query, rows[b])
        found = clock()
        if timed:
            loop.actor_update(here, proposed, actions[b] if args.mimic else reference)
        end = clock()
        spent.append((end - found + middle - begin if timed else np.nan, found - middle))
        own.append(float(is_own.mean()))
        if (update + 1) % (updates // 10) == 0:
            shares.append(search.statistics()["certified"])
            distances.append(float((query - actions[b]).norm(dim=-1).mean()))

    times = np.array(spent) * 1e3
    early = min(2500, updates)
    print(
        f"k {neighbours:3d}  set-up {setup:.1f} s  lists {search.statistics()['filled']:.2f}  "
        f"own row {np.mean(own):.2f}"
    )
    for name, part in (("0-5k", times[:early]), ("5k-", times[early:]), ("all", times)):
        if len(part):
            base, cost = np.nanmean(part[:, 0]) / 2, part[:, 1].mean()
            extra = setup * 1e3 / len(times) if name == "all" else 0.0
            print(
                f"  steps {name:5s} TD3+BC {base:6.2f} ms a step   search {cost + extra:6.2f} ms "
                f"an actor update (worst {part[:, 1].max():.0f})   "
                f"PRDC / TD3+BC {(2 * base + cost + extra) / (2 * base):.3f}"
            )
    print("  certified, by tenths of the run:", " ".join(f"{s:.3f}" for s in shares))
    print("  distance to the own action:     ", " ".join(f"{d:.2f}" for d in distances), flush=True)


def main() -> None:
    """Measure each list length on one set."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data")
    parser.add_argument("--alpha", type=float, default=2.5)
    parser.add_argument("--beta", type=float, default=2.0)
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--learners", type=int, default=1)
    parser.add_argument("--neighbours", type=int, nargs="+", default=[8, 16, 32, 64])
    parser.add_argument("--mimic", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    columns = load(args.data)
    print(f"{args.data}: {len(columns[3]):,} rows, {columns[0].shape[1]} + {columns[1].shape[1]}")
    for neighbours in args.neighbours:
        with tempfile.TemporaryDirectory() as cache:
            simulate(columns, args, neighbours, Path(cache))


if __name__ == "__main__":
    main()
