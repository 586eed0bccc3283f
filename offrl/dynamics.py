"""Learned dynamics: an ensemble of Gaussian networks that say where an action leads.

    end - start ~ N(mu_k(x), diag(exp(l_k(x)))),  x = (start, action), standardised
    loss = sum_k E[ |end - start - mu_k|^2 exp(-l_k) + l_k ]
           + sum_layers decay |W|^2 / 2 + 0.01 sum (l_max - l_min)

E averages over transitions and components too; l_k is bounded softly by l_min and l_max, which are
learned. Given (s, a, s') the ensemble is a forward model, given (s', a, s) a reverse one: it
recovers from where an action led here. Each member learns from its own draw with replacement of
the transitions. One transition in ten, at most 1,000, is held out; a member's best weights are
kept, where better means an error smaller by 1 %, and training ends when no member has improved
for five epochs. The members with the least errors are the elites.

Sources: PETS (arXiv:1805.12114) and MBPO (arXiv:1906.08253); numbers as in the code of COCOA
(arXiv:2404.04682), which has them from OfflineRL-Kit. That code puts every member back to its
best weights after each epoch, with Adam's moments as they are; here this is done once, at the end.
"""

from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import silu, softplus
from tqdm import tqdm

from offrl.checks import check_intervals
from offrl.errors import ConfigError, DataError
from offrl.networks import Learners, Linear
from offrl.optim import adam, move_rates
from offrl.streams import Stream

LOG_VAR_MIN, LOG_VAR_MAX = -10.0, 0.5  # where the learned bounds begin
CONSTANT = 1e-12  # deviation below which a component counts as constant
CHUNK = 8_192  # rows predicted at once outside training


@dataclass(frozen=True)
class DynamicsConfig:
    """Published settings of the ensembles."""

    members: int = 7
    elites: int = 5  # members that predictions are made with
    hidden: tuple[int, ...] = (200, 200, 200, 200)
    weight_decay: tuple[float, ...] = (2.5e-5, 5e-5, 7.5e-5, 7.5e-5, 1e-4)  # by layer
    bound_weight: float = 0.01  # of l_max - l_min
    lr: float = 1e-3
    batch_size: int = 256
    holdout: float = 0.1  # share of the transitions
    patience: int = 5  # epochs without improvement before training ends
    epochs: int = 1_000  # at most

    def __post_init__(self) -> None:
        positive = ("members", "elites", "batch_size", "patience", "epochs")
        check_intervals(self, **dict.fromkeys(positive, "[1, inf)"))
        check_intervals(self, bound_weight="[0, inf)", lr="(0, inf)", holdout="(0, 1)")
        if self.elites > self.members:
            raise ConfigError(
                f"DynamicsConfig.elites is {self.elites}; it must be at most the "
                f"{self.members} members"
            )
        if len(self.weight_decay) != len(self.hidden) + 1:
            raise ConfigError(
                f"DynamicsConfig.weight_decay has {len(self.weight_decay)} entries; "
                f"{len(self.hidden)} hidden layers need {len(self.hidden) + 1}"
            )


class GaussianEnsemble(nn.Module):
    """Members that each give the mean and the deviation of the end of a transition.

    First weights, split and order of the data follow from `seed` alone, so that a fit is a
    function of data, settings and seed on a given machine. Use after `fit`.
    """

    elites: Tensor
    error: Tensor
    mean: Tensor
    std: Tensor

    def __init__(
        self, state_dim: int, act_dim: int, config: DynamicsConfig | None = None, seed: int = 0
    ) -> None:
        super().__init__()
        self.config = config or DynamicsConfig()
        self.seed = seed
        sizes = [state_dim + act_dim, *self.config.hidden, 2 * state_dim]
        members = (self.config.members,)
        generator = Stream(seed, "dynamics/init").block(0)
        self.layers = nn.ModuleList()
        for inputs, outputs in pairwise(sizes):
            layer = Linear(inputs, outputs, Learners(), members, bias=0.0)
            first = generator.standard_normal((*members, inputs, outputs)) / (2.0 * inputs**0.5)
            layer.weight = nn.Parameter(torch.from_numpy(first.astype(np.float32)))
            self.layers.append(layer)
        self.log_var_min = nn.Parameter(torch.full((state_dim,), LOG_VAR_MIN))
        self.log_var_max = nn.Parameter(torch.full((state_dim,), LOG_VAR_MAX))
        self.register_buffer("mean", torch.zeros(sizes[0]))
        self.register_buffer("std", torch.ones(sizes[0]))
        self.register_buffer("elites", torch.arange(self.config.elites))
        self.register_buffer("error", torch.full(members, torch.inf))

    def predict(
        self, start: Float[Tensor, "*lead state"], action: Float[Tensor, "*lead act"]
    ) -> tuple[Float[Tensor, "member *lead state"], Float[Tensor, "member *lead state"]]:
        """Mean and standard deviation of the end of each transition, by every member."""
        flat = torch.cat([start, action], -1).flatten(0, -2)
        mean, log_var = self._outputs((flat - self.mean) / self.std)
        shape = (len(mean), *start.shape)
        return start + mean.reshape(shape), (0.5 * log_var).exp().reshape(shape)

    def expected(
        self, start: Float[Tensor, "*lead state"], action: Float[Tensor, "*lead act"]
    ) -> Float[Tensor, "*lead state"]:
        """The end of each transition, as the mean of the elites' means."""
        mean, _ = self.predict(start, action)
        return mean.index_select(0, self.elites).mean(0)

    def sample(
        self,
        start: Float[Tensor, "batch state"],
        action: Float[Tensor, "batch act"],
        elite: Int[Tensor, " batch"],
        noise: Float[Tensor, "batch state"],
    ) -> Float[Tensor, "batch state"]:
        """A draw of each end: of the elite with this place among them, by standard normals."""
        mean, std = self.predict(start, action)
        member, row = self.elites[elite], torch.arange(len(start), device=start.device)
        return mean[member, row] + std[member, row] * noise

    def fit(
        self,
        start: Float[Tensor, "transitions state"],
        action: Float[Tensor, "transitions act"],
        end: Float[Tensor, "transitions state"],
        name: str = "dynamics",
    ) -> list[float]:
        """Learn these transitions; returns the elites' mean error on held-out ones, by epoch.

        Runs where the tensors are, in float32, and shows a bar under `name` once it has taken
        two seconds. Raises DataError for fewer than two transitions, and where the error is not
        finite.
        """
        data = _Split(start, action, end, self.config, self.seed)
        self.to(start.device, torch.float32)
        self.mean.copy_(data.inputs.mean(0))
        deviation = data.inputs.std(0, correction=0)
        self.std.copy_(torch.where(deviation < CONSTANT, torch.ones_like(deviation), deviation))
        optimizer = adam(self.parameters(), self.config.lr)
        move_rates([optimizer], start.device)
        self.error.fill_(torch.inf)
        best = {n: p.detach().clone() for n, p in self.layers.named_parameters()}
        errors: list[float] = []
        waited = 0
        with tqdm(desc=name, unit="batch", delay=2.0, mininterval=1.0, leave=False) as bar:
            while waited < self.config.patience and len(errors) < self.config.epochs:
                for rows in data.epoch(len(errors)):
                    self._step(optimizer, data.inputs[rows], data.targets[rows])
                    bar.update()
                error = self._held_out_error(data)
                improved = error < 0.99 * self.error
                self.error.copy_(torch.where(improved, error, self.error))
                for n, p in self.layers.named_parameters():
                    best[n][improved] = p.detach()[improved]
                waited = 0 if bool(improved.any()) else waited + 1
                errors.append(float(error.sort().values[: self.config.elites].mean()))
                bar.set_description(
                    f"{name}, epoch {len(errors)}, error {errors[-1]:.4g}", refresh=False
                )
        if not torch.isfinite(self.error).all():
            raise DataError(
                f"{name} cannot be learned: the error on held-out transitions is not finite; "
                "look at the data with offrl data info"
            )
        self.layers.load_state_dict(best)
        self.elites.copy_(self.error.argsort()[: self.config.elites])
        self.requires_grad_(False)
        return errors

    def elite_state(self) -> dict[str, Tensor]:
        """The state of an ensemble whose members are this one's elites, and nobody else."""
        by_member = {f"layers.{name}" for name, _ in self.layers.named_parameters()} | {"error"}
        state = {
            name: value[self.elites] if name in by_member else value
            for name, value in self.state_dict().items()
        }
        return state | {"elites": torch.arange(len(self.elites), device=self.elites.device)}

    def _outputs(
        self, x: Float[Tensor, "*lead inputs"]
    ) -> tuple[Float[Tensor, "member batch state"], Float[Tensor, "member batch state"]]:
        *hidden, last = self.layers
        for layer in hidden:
            x = silu(layer(x))
        mean, log_var = last(x).chunk(2, -1)
        log_var = self.log_var_max - softplus(self.log_var_max - log_var)
        return mean, self.log_var_min + softplus(log_var - self.log_var_min)

    def _step(self, optimizer: torch.optim.Optimizer, x: Tensor, goal: Tensor) -> None:
        mean, log_var = self._outputs((x - self.mean) / self.std)
        fit = ((goal - mean).square() * (-log_var).exp() + log_var).mean((1, 2)).sum()
        weights = [w for name, w in self.layers.named_parameters() if name.endswith("weight")]
        pairs = zip(self.config.weight_decay, weights, strict=True)
        decay = torch.stack([0.5 * rate * w.square().sum() for rate, w in pairs]).sum()
        width = (self.log_var_max - self.log_var_min).sum()
        optimizer.zero_grad()
        loss = fit + decay + self.config.bound_weight * width
        torch.autograd.backward(loss)
        optimizer.step()

    @torch.no_grad()
    def _held_out_error(self, data: "_Split") -> Float[Tensor, " member"]:
        mean, _ = self._outputs((data.held_inputs - self.mean) / self.std)
        return (mean - data.held_targets).square().mean((1, 2))


@dataclass
class _Split:
    """Transitions as inputs and targets, split, and the order in which members see them."""

    start: Tensor
    action: Tensor
    end: Tensor
    config: DynamicsConfig
    seed: int
    inputs: Tensor = field(init=False)
    targets: Tensor = field(init=False)
    held_inputs: Tensor = field(init=False)
    held_targets: Tensor = field(init=False)
    drawn: NDArray[np.int64] = field(init=False)

    def __post_init__(self) -> None:
        size = len(self.start)
        if size < 2:
            raise DataError(f"dynamics are learned from two transitions or more; there are {size}")
        inputs = torch.cat([self.start, self.action], -1).to(torch.float32)
        targets = (self.end - self.start).to(torch.float32)
        held = max(1, min(int(size * self.config.holdout), 1_000))
        order = Stream(self.seed, "dynamics/split").block(0).permutation(size)
        rows = torch.from_numpy(order).to(inputs.device)
        self.held_inputs, self.held_targets = inputs[rows[:held]], targets[rows[:held]]
        self.inputs, self.targets = inputs[rows[held:]], targets[rows[held:]]
        generator = Stream(self.seed, "dynamics/bootstrap").block(0)
        self.drawn = generator.integers(size - held, size=(self.config.members, size - held))

    def epoch(self, number: int) -> list[Tensor]:
        """Rows (member, batch) of each batch of this epoch, every draw of a member once."""
        order = Stream(self.seed, "dynamics/order").block(number).permuted(self.drawn, axis=1)
        rows = torch.from_numpy(order).to(self.inputs.device)
        return list(torch.split(rows, self.config.batch_size, 1))
