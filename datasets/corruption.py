"""Corrupting a share of the data on purpose, to see what still learns from it: RIQL's protocol.

Observations, actions, rewards or dynamics (what followed a step) are corrupted, at a share `rate`
of the transitions, by noise in the units of each component's deviation over the data, `sigma`:

    random       x + U(-scale, scale) sigma;           reward: U(-30 scale, 30 scale) in its place
    adversarial  x + delta sigma, delta least in value; reward: -scale r

delta lowers the mean of an attacker's critics: Q(s + delta sigma, a) for observations,
Q(s, a + delta sigma) for actions, Q(s~, pi(s~)) with s~ = s' + delta sigma for dynamics. It begins
at 2 scale sigma (U(0, 1) - 1/2) and takes 100 first steps of Adam of size 0.01 scale, each of a
new Adam and so nearly a step by sign, with delta cut to [-scale, scale] after each. Rows are
attacked in ten parts, whose means the steps see.
Source: RIQL (arXiv:2310.12955, appendix) and its authors' code.

Elements are corrupted in the order observations, actions, rewards, dynamics, whatever the order
they are asked in, each with a mask of its own and on what the ones before have left. Masks and
random noise are drawn from numpy's RandomState(seed), the attack's first delta from a generator
of torch with the same seed, both in the authors' order, so that data with D4RL's transitions is
corrupted where theirs is. Actions are not cut to their bounds, terminals and time limits stay as
they are, and nothing is made consistent again: that is the corruption.

Departures. The authors keep attacked data in a file whose name lacks the seed, so a second seed
trains on the first one's masks; here nothing attacked is kept but the result, and its seed is
with it. Their deviations are summed in float32, here in float64. As published, their attack on
dynamics passes on what the policy returns as a pair, and stops; here pi is the policy's mode.

What corrupted data is. Episodes stay what they were: a reward belongs to its episode, whose
return a method may rank or scale by, and a time limit stays one. But what followed step t is no
longer the observation of step t + 1, be it the one or the other that was corrupted. So the data
gets a column of what followed (`OfflineDataset.next_obs`), where otherwise the row after says it;
one-step episodes would have said it as well, at twice the rows and without returns. The action of
the next step, for methods that use it, is that of the log as it now stands. Which steps were
corrupted is in the marks `corrupted_ELEMENT` and `corrupted_any`.
"""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from offrl.datasets.offline import OfflineDataset
from offrl.datasets.rows import F32, F64, I64
from offrl.datasets.screening import outside
from offrl.envs.references import families_of
from offrl.errors import ConfigError, DataError, near

ELEMENTS = ("observations", "actions", "rewards", "dynamics")  # in the order of corruption
MODES = ("random", "adversarial")
REWARD_RANGE = 30.0  # of random rewards, times the scale
STEPS, STEP_SIZE, PARTS = 100, 0.01, 10  # of an attack
ADAM_EPS = 1e-8
BATCH = 4_096  # rows whose gradient is formed at once; the numbers do not depend on it

Progress = Callable[[float], None]  # is told the share of the attack that is done


@runtime_checkable
class Attacker(Protocol):
    """Whose values the noise lowers, in the units of the data."""

    def q(
        self, obs: Float[Tensor, "batch obs"], action: Float[Tensor, "batch act"]
    ) -> Float[Tensor, "ensemble batch"]:
        """Values of every critic."""

    def act(self, obs: Float[Tensor, "batch obs"]) -> Float[Tensor, "batch act"]:
        """The policy's action."""

    def record(self) -> dict[str, Any]:
        """What it is, for the data's provenance."""


@dataclass(frozen=True)
class Corruption:
    """What is corrupted, and how; ConfigError where it cannot be."""

    elements: tuple[str, ...]  # of ELEMENTS, in any order
    mode: str = "random"
    rate: float = 0.3  # share of the transitions
    scale: float = 1.0  # epsilon, in deviations of each component
    seed: int = 0

    def __post_init__(self) -> None:
        for element in self.elements:
            _known("element", element, ELEMENTS)
        _known("mode", self.mode, MODES)
        if not self.elements:
            raise ConfigError(f"no element to corrupt was named; choose from {', '.join(ELEMENTS)}")
        if not 0.0 <= self.rate <= 1.0:
            raise ConfigError(f"the rate {self.rate} is not a share between 0 and 1")
        if not (self.scale > 0.0 and math.isfinite(self.scale)):
            raise ConfigError(f"the scale {self.scale} is not a positive number")
        if not 0 <= self.seed < 2**32:
            raise ConfigError(f"the seed {self.seed} is not between 0 and 2^32 - 1")
        ordered = tuple(element for element in ELEMENTS if element in self.elements)
        object.__setattr__(self, "elements", ordered)

    @property
    def label(self) -> str:
        """random-observations-rewards: added to the data's name."""
        return "-".join((self.mode, *self.elements))

    @property
    def needs_attacker(self) -> bool:
        return self.mode == "adversarial" and self.elements != ("rewards",)


def corrupt(
    dataset: OfflineDataset,
    corruption: Corruption,
    attacker: Attacker | None = None,
    progress: Progress | None = None,
) -> OfflineDataset:
    """A corrupted copy, with its masks as marks and its corruption in the provenance.

    Raises DataError for data that is corrupted already, whose mask would no longer say which
    numbers are the log's, and for discrete actions where noise would be added to them or to what
    they are chosen from; ConfigError where an attacker is needed and none is given.
    """
    check_corruptible(dataset, corruption)
    if corruption.needs_attacker and attacker is None:
        raise ConfigError(
            f"adversarial {' and '.join(corruption.elements)} need an attacker, whose value the "
            "noise lowers"
        )
    work = _Work(dataset, corruption, attacker, progress or (lambda done: None))
    for element in corruption.elements:
        work.corrupt(element)
    return work.result()


def check_corruptible(dataset: OfflineDataset, corruption: Corruption) -> None:
    """Raise DataError where this dataset cannot be corrupted in this way."""
    if "corruption" in dataset.provenance:
        raise DataError(
            f"{dataset.name} is corrupted already, by {dataset.provenance['corruption']['label']}; "
            "corrupt the clean data, with several elements at once if need be"
        )
    noisy = "actions" in corruption.elements or corruption.needs_attacker
    if noisy and dataset.spec.action_kind == "discrete":
        raise DataError(
            f"{dataset.name} has discrete actions, to which no noise can be added and which no "
            "attacker is trained on; corrupt observations, rewards or dynamics at random"
        )
    if not len(dataset.transition_rows()):
        raise DataError(f"{dataset.name} has no transition to corrupt")


def masks_of(dataset: OfflineDataset) -> dict[str, NDArray[np.bool_]]:
    """(num_steps,) which steps were corrupted, by element, and under `any` in any; or nothing."""
    prefix, steps = "corrupted_", dataset.step_rows
    return {
        name.removeprefix(prefix): mark[steps]
        for name, mark in dataset.marks.items()
        if name.startswith(prefix)
    }


def families_of_data(env: str | None, dataset: OfflineDataset) -> list[str]:
    """The families of a run by which recipes are chosen, most specific first.

    Corrupted data is of the families of the clean data, and before them of the same with mode and
    first element: hopper-random-dynamics comes before hopper.
    """
    record = dataset.provenance.get("corruption")
    if record is None:
        return families_of(env, dataset.name)
    families = families_of(env, record["clean"]["name"])
    how = f"{record['mode']}-{record['elements'][0]}"
    return [*(f"{family}-{how}" for family in families), *families]


class _Work:
    """A copy of the data on which one element after another is corrupted."""

    def __init__(
        self,
        dataset: OfflineDataset,
        corruption: Corruption,
        attacker: Attacker | None,
        progress: Progress,
    ) -> None:
        self.dataset, self.corruption = dataset, corruption
        self.attacker, self.progress = attacker, progress
        self.numbers = np.random.RandomState(corruption.seed)
        self.generator = torch.Generator().manual_seed(corruption.seed)
        self.rows: F32 = dataset.rows.copy()
        self.at: I64 = dataset.transition_rows()
        self.next_obs = dataset.next_obs
        if {"observations", "dynamics"} & set(corruption.elements):
            self.next_obs = np.zeros((len(self.rows), dataset.obs_dim), np.float32)
            # The last step may end in an observation that is not known, and has no row after it.
            self.next_obs[dataset.step_rows] = dataset.following(dataset.step_rows)
        self.marks: dict[str, NDArray[np.bool_]] = {}
        self.parts_done = 0

    def corrupt(self, element: str) -> None:
        c = self.corruption
        mask = self.numbers.random_sample(len(self.at)) < c.rate
        chosen = self.at[mask]
        mark = np.zeros(len(self.rows), np.bool_)
        mark[chosen] = True
        self.marks[f"corrupted_{element}"] = mark
        values = self.column(element)
        if element == "rewards":
            if c.mode == "random":
                values[chosen, 0] = REWARD_RANGE * self.numbers.uniform(
                    -c.scale, c.scale, len(chosen)
                )
            else:
                values[chosen] *= -c.scale
        elif c.mode == "random":
            noise = self.numbers.uniform(-c.scale, c.scale, (len(chosen), values.shape[1]))
            values[chosen] += (noise * deviation(values, self.at)).astype(np.float32)
        else:
            values[chosen] += self.attack(element, chosen)

    def column(self, element: str) -> F32:
        """A view of the rows' numbers for this element."""
        o = self.dataset.obs_dim
        if element == "dynamics":
            assert self.next_obs is not None
            return self.next_obs
        part = {
            "observations": slice(0, o),
            "actions": slice(o, -3),
            "rewards": slice(self.rows.shape[1] - 3, self.rows.shape[1] - 2),
        }[element]
        return self.rows[:, part]

    def attack(self, element: str, chosen: I64) -> F32:
        """Noise for these rows that lowers the mean value, delta sigma."""
        attacker = self.attacker
        assert attacker is not None
        values = self.column(element)
        std = torch.from_numpy(deviation(values, self.at).astype(np.float32))
        base = torch.from_numpy(values[chosen])
        obs = torch.from_numpy(self.column("observations")[chosen])
        action = torch.from_numpy(self.column("actions")[chosen])

        def q(part: slice, delta: Tensor) -> Tensor:
            noisy = base[part] + delta * std
            if element == "observations":
                return attacker.q(noisy, action[part])
            if element == "actions":
                return attacker.q(obs[part], noisy)
            return attacker.q(noisy, attacker.act(noisy))

        delta = torch.zeros_like(base)
        size = len(base) // PARTS
        starts = [i * size for i in range(PARTS)]
        for begin, end in zip(starts, [*starts[1:], len(base)], strict=True):
            shape = (end - begin, base.shape[1])
            first = torch.rand(shape, generator=self.generator) - 0.5
            delta[begin:end] = 2.0 * self.corruption.scale * std * first
            for stop in range(begin, end, BATCH):
                part = slice(stop, min(stop + BATCH, end))
                delta[part] = self.descend(delta[part], partial(q, part), end - begin)
            self.parts_done += 1
            attacks = len(set(self.corruption.elements) - {"rewards"})
            self.progress(self.parts_done / (PARTS * attacks))
        noise: F32 = (delta * std).numpy()
        return noise

    def descend(self, delta: Tensor, q: Callable[[Tensor], Tensor], count: int) -> Tensor:
        """Lower the mean of Q over critics and the `count` rows of a part, of which these are."""
        scale = self.corruption.scale
        for _ in range(STEPS):
            with torch.enable_grad():
                free = delta.detach().requires_grad_()
                (slope,) = torch.autograd.grad(q(free).mean(0).sum() / count, free)
            step = slope / (slope.abs() + ADAM_EPS)
            delta = (delta - STEP_SIZE * scale * step).clamp(-scale, scale)
        return delta

    def result(self) -> OfflineDataset:
        dataset, c = self.dataset, self.corruption
        whichever = np.logical_or.reduce(list(self.marks.values()))
        counts = {name.removeprefix("corrupted_"): int(m.sum()) for name, m in self.marks.items()}
        share = 100.0 * counts[c.elements[0]] / len(self.at)
        sentence = (
            f"{c.mode} corruption of {', '.join(c.elements)}, each at {100 * c.rate:g} % of the "
            f"transitions, scale {c.scale:g}, seed {c.seed}, of {dataset.name}"
        )
        returns = dataset.returns()
        clean = {
            "name": dataset.name,
            "fingerprint": dataset.fingerprint,
            "return_mean": float(returns.mean()),
            "return_max": float(returns.max()),
            **{k: dataset.provenance[k] for k in ("rule",) if k in dataset.provenance},
        }
        record = {
            "label": c.label,
            **asdict(c),
            "elements": list(c.elements),
            "transitions": len(self.at),
            "corrupted": {**counts, "any": int(whichever.sum())},
            "attacker": None if self.attacker is None else self.attacker.record(),
            "clean": clean,
        }
        note = f"corrupted on purpose: {sentence} ({share:.1f} % drawn for {c.elements[0]})"
        provenance = {**dataset.provenance, "rule": f"{sentence[0].upper()}{sentence[1:]}."}
        provenance |= {"description": provenance["rule"], "corruption": record}
        made = replace(
            dataset,
            rows=self.rows,
            next_obs=self.next_obs,
            marks={**dataset.marks, **self.marks, "corrupted_any": whichever},
            name=f"{dataset.name}-{c.label}",
            provenance=provenance,
            problems=(*dataset.problems, note),
        )
        return _bounds_noted(made)


def deviation(values: F32, rows: I64) -> F64:
    """(components,) the population standard deviation of these rows."""
    return np.asarray(values[rows].std(0, dtype=np.float64))


def _known(what: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ConfigError(
            f"corruption has no {what} {value!r}{near(value, known) or ';'} choose from "
            f"{', '.join(known)}"
        )


def _bounds_noted(dataset: OfflineDataset) -> OfflineDataset:
    """With a record that actions beyond their bounds are meant, so that reading keeps them."""
    count, least, greatest = outside(dataset)
    if not count:
        return dataset
    note = {"treatment": "kept", "steps": count, "least": least, "greatest": greatest}
    return replace(dataset, provenance={**dataset.provenance, "out_of_bounds": note})
