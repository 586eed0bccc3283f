"""COCOA's way of looking at a state: an anchor that is close to the data, and a difference.

Compositional conservatism (Song et al., ICLR 2024, arXiv:2404.04682) writes s = anchor + delta,
with anchors chosen so that both parts lie near what the data holds, and replaces each network of
a method by a bilinear one, in which parts seen apart can be put together:

    anchor(s) = where h steps of the anchor seeker lead in a learned forward model
    h_t       = sum_d f_td(s - anchor) g_td(anchor),  then the usual layers on h

Critics append the action to both parts. The losses of the method stay as they are. The seeker is
learned without rewards: from states of the data a reverse model is followed for 5 steps, with
actions 0.8 u + 0.1 N around an action u of the data that is kept throughout, and the seeker
learns by regression which action leads from there back to the data.

The models, the seeker and so the anchors depend on the data alone and are the same for every
learner of a stack, as PRDC's tree is: learner k is what its seed gives alone. f and g have
LayerNorm after each ReLU and after their last layer, as in the authors' code.

Departures from that code. The forward model does not predict rewards, of which anchors make no
use. Terminal transitions are left out, since the observation after one may not be recorded. The
roll-outs' actions are those that the paper describes (the code's default leaves u at zero). The
seeker sees its examples in a new order each epoch. First weights are those of the method that
COCOA is added to; the code has orthogonal ones.
"""

import hashlib
import os
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn
from tqdm import tqdm

from offrl.checks import check_intervals
from offrl.dynamics import CHUNK, DynamicsConfig, GaussianEnsemble
from offrl.errors import ConfigError, DataError
from offrl.networks import MLP, LayerNorm, Learners
from offrl.optim import adam
from offrl.streams import Stream
from offrl.types import Batch

M = TypeVar("M", bound=nn.Module)
Trunks = tuple["AnchoredTrunk", "CompositionalTrunk", "CompositionalTrunk"]

FORMAT = 1  # of the cached file, and of what is fitted
STARTS = 300_000  # roll-outs at most, which is how many the authors' buffer holds
STEPS = 5  # of a reverse roll-out
DIRECTION, SPREAD = 0.8, 0.1  # of its actions
SEEKER = (100, 100)
SEEKER_LR, SEEKER_BATCH, SEEKER_EPOCHS = 1e-3, 256, 50
PATIENCE, CHANGE = 5, 0.005  # epochs in which the seeker's loss changes by less than this share


@dataclass(frozen=True)
class CocoaConfig:
    """COCOA's settings, those of the paper with IQL; each method adds its own."""

    cocoa: bool = False  # see states as anchor and difference (arXiv:2404.04682)
    cocoa_rank: int = 4  # d, products summed in each feature; 32 with CQL
    cocoa_hidden: tuple[int, ...] = (64, 64)  # of f and g; the last is the number of features
    cocoa_horizon: int = 1  # h, steps of the anchor seeker
    cocoa_epochs: int = 1_000  # at most, of each dynamics model and the seeker; they stop earlier

    def __post_init__(self) -> None:
        positive = ("cocoa_rank", "cocoa_horizon", "cocoa_epochs")
        check_intervals(self, **dict.fromkeys(positive, "[1, inf)"))
        if not self.cocoa_hidden or min(self.cocoa_hidden) < 1:
            raise ConfigError(
                f"{type(self).__name__}.cocoa_hidden is {self.cocoa_hidden}; it must be one or "
                "more sizes of 1 or more"
            )


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

    chunks = rows.split(CHUNK)
    for chunk in tqdm(chunks, "COCOA: reverse roll-outs", delay=2.0, leave=False):
        here = end[chunk]
        chosen = generator.integers(len(action), size=len(chunk))
        direction = action[torch.from_numpy(chosen).to(end.device)]
        for _ in range(STEPS):
            taken = (DIRECTION * direction + SPREAD * normal(direction)).clamp(-1.0, 1.0)
            elite = generator.integers(len(reverse.elites), size=len(chunk))
            here = reverse.sample(here, taken, torch.from_numpy(elite).to(end.device), normal(here))
            states.append(here)
            actions.append(taken)
    return torch.cat(states), torch.cat(actions)


def fit_seeker(
    states: Float[Tensor, "examples obs"], actions: Float[Tensor, "examples act"], epochs: int
) -> MLP:
    """The seeker, whose tanh is the action, by least squares on these examples.

    Ends after `epochs`, or when the loss has changed by less than 0.5 % in five epochs running.
    """
    seeker = _seeker(states.shape[-1], actions.shape[-1]).to(states.device)
    optimizer = adam(seeker.parameters(), SEEKER_LR)
    before, still = float("inf"), 0
    with tqdm(desc="COCOA: anchor seeker", unit="batch", delay=2.0, leave=False) as bar:
        for epoch in range(epochs):
            order = Stream(0, "cocoa/seeker").block(epoch).permutation(len(states))
            batches = torch.from_numpy(order).to(states.device).split(SEEKER_BATCH)
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
        with tqdm(total=count, desc="COCOA: anchors", unit="state", delay=2.0, leave=False) as bar:
            for table, rows, states in todo:
                for at, state in zip(rows.split(CHUNK), states.split(CHUNK), strict=True):
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


class Bilinear(nn.Module):
    """h_t = sum_d f_td(delta) g_td(anchor), with f and g networks of each member and learner."""

    def __init__(
        self,
        inputs: int,
        hidden: Sequence[int],
        rank: int,
        learners: Learners,
        ensemble: Sequence[int] = (),
    ) -> None:
        super().__init__()
        self.hidden, self.rank, self.features = tuple(hidden), rank, hidden[-1]

        def side() -> nn.Module:
            sizes = [inputs, *hidden, hidden[-1] * rank]
            net = MLP(sizes, learners, ensemble, norm="after")
            return nn.Sequential(net, LayerNorm(sizes[-1], learners, ensemble))

        self.difference, self.anchor = side(), side()

    def forward(
        self, delta: Float[Tensor, "*lead inputs"], anchor: Float[Tensor, "*lead inputs"]
    ) -> Float[Tensor, "*all features"]:
        f, g = self.difference(delta), self.anchor(anchor)
        return (f * g).unflatten(-1, (self.features, self.rank)).sum(-1)


class CompositionalTrunk(nn.Module):
    """What takes the place of a critic's or a value's layers before its head.

    Observations are pairs of difference and anchor, as `Anchors.pair` makes them; the action, for
    critics, is appended to both. `act_dim` is 0 for values.
    """

    def __init__(
        self,
        obs_dim: int,
        act_dim: int,
        inner: Sequence[int],
        rank: int,
        hidden: Sequence[int],
        learners: Learners,
        ensemble: Sequence[int] = (),
    ) -> None:
        super().__init__()
        self.features = hidden[-1]
        self.bilinear = Bilinear(obs_dim + act_dim, inner, rank, learners, ensemble)
        self.net = MLP([inner[-1], *hidden], learners, ensemble, activate_last=True)

    def forward(
        self,
        obs: Float[Tensor, "*seed batch both"],
        action: Float[Tensor, "*seed batch act"] | None = None,
    ) -> Float[Tensor, "*all features"]:
        parts = obs.chunk(2, -1)
        if action is not None:
            parts = tuple(torch.cat([part, action], -1) for part in parts)
        features: Tensor = self.net(self.bilinear(*parts))
        return features


class AnchoredTrunk(nn.Module):
    """What stands before a policy's layers; it holds the anchors, which are deployed with it.

    Takes observations as they are, or as pairs.
    """

    def __init__(
        self, anchors: Anchors, inner: Sequence[int], rank: int, learners: Learners
    ) -> None:
        super().__init__()
        self.anchors = anchors
        self.bilinear = Bilinear(anchors.sizes[0], inner, rank, learners)
        self.features = self.bilinear.features

    def forward(self, obs: Float[Tensor, "*lead obs"]) -> Float[Tensor, "*lead features"]:
        h: Tensor = self.bilinear(*self.anchors.pair(obs).chunk(2, -1))
        return h

    def spec(self) -> dict[str, Any]:
        """All that `trunk_from_spec` needs beside the weights."""
        return {
            "type": "AnchoredTrunk",
            "sizes": list(self.anchors.sizes),
            "horizon": self.anchors.horizon,
            "elites": self.anchors.model.elites,
            "model_hidden": list(self.anchors.model.hidden),
            "inner": list(self.bilinear.hidden),
            "rank": self.bilinear.rank,
        }


def trunks(
    config: CocoaConfig, hidden: Sequence[int], obs_dim: int, act_dim: int, learners: Learners
) -> Trunks | tuple[None, None, None]:
    """For a policy, two critics and a value: trunks where `config.cocoa`, else None for each.

    `hidden` are the layers of the method's networks, which come after the bilinear product.
    """
    if not config.cocoa:
        return None, None, None
    inner, rank = config.cocoa_hidden, config.cocoa_rank
    model = DynamicsConfig(epochs=config.cocoa_epochs)
    anchors = Anchors(obs_dim, act_dim, config.cocoa_horizon, model)
    return (
        AnchoredTrunk(anchors, inner, rank, learners),
        CompositionalTrunk(obs_dim, act_dim, inner, rank, hidden, learners, (2,)),
        CompositionalTrunk(obs_dim, 0, inner, rank, hidden, learners),
    )


def trunk_from_spec(spec: Mapping[str, Any]) -> AnchoredTrunk:
    """The policy's trunk, for one learner, that `spec()` described; without its weights."""
    hidden, elites = tuple(spec["model_hidden"]), spec["elites"]
    model = DynamicsConfig(elites, elites, hidden, weight_decay=(0.0,) * (len(hidden) + 1))
    anchors = Anchors(*spec["sizes"], spec["horizon"], model)
    return AnchoredTrunk(anchors, spec["inner"], spec["rank"], Learners())


def pair_states(anchors: Anchors, batch: Batch) -> Batch:
    """The batch with each observation as difference and anchor, worked out here and now."""
    return replace(batch, obs=anchors.pair(batch.obs), next_obs=anchors.pair(batch.next_obs))


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
