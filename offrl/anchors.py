"""COCOA's anchors: states near the data, to which a learned policy leads in a learned model.

    anchor(s) = where h steps of the anchor seeker lead from s in a forward model

The seeker is learned without rewards: from states of the data a reverse model is followed for 5
steps, with actions 0.8 u + 0.1 N around an action u of the data that is kept throughout, and the
seeker learns by regression which action leads from there back to the data. Source: Song et al.,
ICLR 2024, arXiv:2404.04682.

The models, the seeker and so the anchors depend on the data alone and are the same for every
learner of a stack, as PRDC's tree is: learner k is what its seed gives alone.

Departures from the authors' code. The forward model does not predict rewards, of which anchors
make no use. Terminal transitions are left out, since the observation after one may not be
recorded. The roll-outs' actions are those that the paper describes (the code's default leaves u at
zero). The seeker sees its examples in a new order each epoch.

On one processor core a model takes about 40 ms a batch of 256: thirty epochs of both on 200,000
transitions are half an hour, shown by a bar, before the first update of the first run on them.
What was learned is kept in the cache; `cocoa_epochs` bounds it, and a GPU takes minutes.
"""

import hashlib
import os
import warnings
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn
from tqdm import tqdm

from offrl.dynamics import CHUNK, DynamicsConfig, GaussianEnsemble
from offrl.errors import DataError
from offrl.networks import MLP, Learners
from offrl.optim import adam, move_rates
from offrl.streams import Stream
from offrl.types import Batch

M = TypeVar("M", bound=nn.Module)

FORMAT = 2  # of the cached file, and of what is fitted
STARTS = 300_000  # roll-outs at most, which is how many the authors' buffer holds
STEPS = 5  # of a reverse roll-out
DIRECTION, SPREAD = 0.8, 0.1  # of its actions
SEEKER = (100, 100)
SEEKER_LR, SEEKER_BATCH, SEEKER_EPOCHS = 1e-3, 256, 50
PATIENCE, CHANGE = 5, 0.005  # epochs in which the seeker's loss changes by less than this share


class Anchors(nn.Module):
    """anchor(s) for one learner or a stack: a seeker and a forward model, shared by all.

    What they have learned is held in buffers: it is part of a policy and of a checkpoint, and no
    optimiser moves it. `fit` before use.
    """

    def __init__(
        self, obs_dim: int, act_dim: int, horizon: int, model: DynamicsConfig | None = None
    ) -> None:
        super().__init__()
        self.sizes, self.horizon = (obs_dim, act_dim), horizon
        self.model = model or DynamicsConfig()
        elites = replace(self.model, members=self.model.elites)
        self.seeker = _as_buffers(_seeker(obs_dim, act_dim))
        self.dynamics = _as_buffers(GaussianEnsemble(obs_dim, act_dim, elites))

    def forward(self, obs: Float[Tensor, "*lead obs"]) -> Float[Tensor, "*lead obs"]:
        anchor = obs
        for _ in range(self.horizon):
            anchor = self.dynamics.expected(anchor, torch.tanh(self.seeker(anchor)))
        return anchor

    def pair(self, obs: Float[Tensor, "*lead obs"]) -> Float[Tensor, "*lead both"]:
        """Difference and anchor, side by side; what is a pair already stays as it is."""
        if obs.shape[-1] == 2 * self.sizes[0]:
            return obs
        anchor = self(obs)
        return torch.cat([obs - anchor, anchor], -1)

    def fit(self, batch: Batch, cache_dir: Path | None) -> None:
        """Learn from all transitions of a view, on their device; kept in `cache_dir` if given.

        Raises DataError where fewer than two transitions go on after their step.
        """
        goes_on = batch.mask > 0
        if int(goes_on.sum()) < 2:
            raise DataError(
                "COCOA learns how actions move states, and this dataset has fewer than two "
                "transitions that do not end their episode"
            )
        obs, action, next_obs = (
            x[goes_on].to(torch.float32) for x in (batch.obs, batch.action, batch.next_obs)
        )
        path = None
        if cache_dir is not None:
            path = cache_dir / f"anchors-{self._key(obs, action, next_obs)[:24]}.safetensors"
        if path is not None and path.exists() and self._load(path):
            return
        forward, reverse = (GaussianEnsemble(*self.sizes, self.model, seed) for seed in (0, 1))
        forward.fit(obs, action, next_obs, "COCOA: forward dynamics")
        reverse.fit(next_obs, action, obs, "COCOA: reverse dynamics")
        states, actions = divergent_rollouts(reverse, next_obs, action)
        seeker = fit_seeker(states, actions, min(SEEKER_EPOCHS, self.model.epochs))
        self.dynamics.load_state_dict(forward.elite_state())
        self.seeker.load_state_dict(seeker.state_dict())
        if path is not None:
            self._save(path)

    def fingerprint(self) -> str:
        """Sha256 of what was learned."""
        digest = hashlib.sha256()
        for name, value in self.state_dict().items():
            digest.update(name.encode())
            digest.update(_bytes(value.to(torch.float32) if value.is_floating_point() else value))
        return digest.hexdigest()

    def _key(self, *data: Tensor) -> str:
        digest = hashlib.sha256(f"offrl anchors {FORMAT} {asdict(self.model)}".encode())
        for x in data:
            digest.update(_bytes(x))
        return digest.hexdigest()

    def _load(self, path: Path) -> bool:
        try:
            self.load_state_dict(load(path.read_bytes()))
        except (OSError, SafetensorError, RuntimeError) as error:
            warnings.warn(f"{path} cannot be used, anchors are learned anew: {error}", stacklevel=3)
            return False
        return True

    def _save(self, path: Path) -> None:
        """A full disk costs only the cache."""
        partial = path.with_name(f"{path.name}.{os.getpid()}.part")
        state = {k: v.to("cpu", copy=True).contiguous() for k, v in self.state_dict().items()}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            partial.write_bytes(save(state))
            os.replace(partial, path)
        except OSError as error:
            with suppress(OSError):
                partial.unlink()
            warnings.warn(f"anchors are not cached: {error}", stacklevel=3)


@torch.no_grad()
def divergent_rollouts(
    reverse: GaussianEnsemble,
    end: Float[Tensor, "transitions obs"],
    action: Float[Tensor, "transitions act"],
) -> tuple[Float[Tensor, "examples obs"], Float[Tensor, "examples act"]]:
    """States beyond the data, and in each the action by which the data is approached.

    From `end` states the reverse model is followed STEPS times, each time with the action
    clip(0.8 u + 0.1 N, -1, 1); u is one of `action`, drawn once for each roll-out.
    """
    generator = Stream(0, "cocoa/rollouts").block(0)
    rows = torch.from_numpy(generator.permutation(len(end))[:STARTS]).to(end.device)
    states, actions = [], []

    def normal(like: Tensor) -> Tensor:
        drawn = generator.standard_normal(tuple(like.shape), dtype=np.float32)
        return torch.from_numpy(drawn).to(like.device)

    with _bar("COCOA: reverse roll-outs", "state", len(rows)) as bar:
        for chunk in torch.split(rows, CHUNK):
            here = end[chunk]
            chosen = generator.integers(len(action), size=len(chunk))
            direction = action[torch.from_numpy(chosen).to(end.device)]
            for _ in range(STEPS):
                taken = (DIRECTION * direction + SPREAD * normal(direction)).clamp(-1.0, 1.0)
                elite = generator.integers(len(reverse.elites), size=len(chunk))
                here = reverse.sample(
                    here, taken, torch.from_numpy(elite).to(end.device), normal(here)
                )
                states.append(here)
                actions.append(taken)
            bar.update(len(chunk))
    return torch.cat(states), torch.cat(actions)


def fit_seeker(
    states: Float[Tensor, "examples obs"], actions: Float[Tensor, "examples act"], epochs: int
) -> MLP:
    """The seeker, whose tanh is the action, by least squares on these examples.

    Ends after `epochs`, or when the loss has changed by less than 0.5 % in five epochs running.
    """
    seeker = _seeker(states.shape[-1], actions.shape[-1]).to(states.device)
    optimizer = adam(seeker.parameters(), SEEKER_LR)
    move_rates([optimizer], states.device)
    before, still = float("nan"), 0  # which no loss is near
    with _bar("COCOA: anchor seeker", "batch") as bar:
        for epoch in range(epochs):
            order = Stream(0, "cocoa/seeker").block(epoch).permutation(len(states))
            batches = torch.split(torch.from_numpy(order).to(states.device), SEEKER_BATCH)
            total = torch.zeros((), device=states.device)
            for rows in batches:
                loss = (torch.tanh(seeker(states[rows])) - actions[rows]).square().mean()
                optimizer.zero_grad()
                torch.autograd.backward(loss)
                optimizer.step()
                total += loss.detach() * len(rows)
                bar.update()
            mean = float(total) / len(states)
            bar.set_description(
                f"COCOA: anchor seeker, epoch {epoch + 1}, error {mean:.4g}", refresh=False
            )
            still = still + 1 if abs(before - mean) <= CHANGE * before else 0
            before = mean
            if still >= PATIENCE:
                break
    return seeker.requires_grad_(False)


class AnchorTable:
    """The anchors of every row of a view, so that training works each of them out once."""

    @torch.no_grad()
    def __init__(self, anchors: Anchors, batch: Batch) -> None:
        """`batch` is that of all transitions of the view."""
        index, shape = batch.index, (int(batch.index.max()) + 2, batch.obs.shape[-1])
        obs = batch.obs.new_full(shape, torch.nan)
        obs[index] = batch.obs
        self.now, self.then = torch.zeros_like(obs), torch.zeros_like(obs)
        # What follows a step is mostly the observation of the next.
        known = (obs[index + 1] == batch.next_obs).all(-1)
        other = ~known
        todo = [(self.now, index, batch.obs), (self.then, index[other], batch.next_obs[other])]
        count = sum(len(rows) for _, rows, _ in todo)
        with _bar("COCOA: anchors", "state", count) as bar:
            for table, rows, states in todo:
                parts = torch.split(rows, CHUNK), torch.split(states, CHUNK)
                for at, state in zip(*parts, strict=True):
                    table[at] = anchors(state)
                    bar.update(len(at))
        self.then[index[known]] = self.now[index[known] + 1]

    def pair(self, batch: Batch) -> Batch:
        """The batch with each observation as difference and anchor; rows are those of the view."""
        now, then = self.now[batch.index], self.then[batch.index]
        return replace(
            batch,
            obs=torch.cat([batch.obs - now, now], -1),
            next_obs=torch.cat([batch.next_obs - then, then], -1),
        )


def _bar(name: str, unit: str, total: int | None = None) -> "tqdm[None]":
    return tqdm(desc=name, unit=unit, total=total, delay=2.0, mininterval=1.0, leave=False)


def _seeker(obs_dim: int, act_dim: int) -> MLP:
    return MLP([obs_dim, *SEEKER, act_dim], Learners(), norm="after")


def _as_buffers(module: M) -> M:
    for part in module.modules():
        for name, parameter in list(part.named_parameters(recurse=False)):
            delattr(part, name)
            part.register_buffer(name, parameter.detach())
    return module


def _bytes(x: Tensor) -> bytes:
    return x.detach().cpu().contiguous().numpy().tobytes()
