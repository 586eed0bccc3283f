"""Distillation where it is known what the student becomes, and what its loss is in its limits."""

import math
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fault import Fault
from known import FAST, action_at, episodes, fit
from scipy.special import ndtri
from teachers import ROOT
from torch import Tensor

from offrl.actors import GaussianActor
from offrl.datasets.offline import OfflineDataset
from offrl.lm.losses.contrast import dpo
from offrl.lm.losses.scores import Scores
from offrl.networks import Learners
from offrl.policy import Policy
from offrl.types import TaughtBatch

SLOPE, TEACHER_STD = 0.5, 0.2  # of the teacher, whose mean is tanh(SLOPE x)
LOGGED, LOGGED_STD = -0.3, 0.3  # of the actions in the data, whatever the state
W = 0.5
SETTINGS: dict[str, Any] = {
    **{**FAST, "lr": 1e-2, "normalize_obs": False},
    **{"tau": W * 0.8, "temperature": 0.8, "clone": 0.4},
}


def linear_teacher(name: str = "linear") -> str:
    """A policy of a single layer, as a saved one."""
    path, data = Path(ROOT.name) / name, signs()
    if not path.exists():
        actor = GaussianActor(1, 1, [], Learners())
        with torch.no_grad():
            weight, bias = actor.net.parameters()
            weight[:], bias[:] = SLOPE, 0.0
            actor.spread.log_std[:] = math.log(TEACHER_STD)
        Policy(actor, data.spec).save(path)
    return str(path)


def signs() -> OfflineDataset:
    """States -1 and 1; actions LOGGED +- LOGGED_STD at both."""
    pairs = [(x, s) for x in (-1.0, 1.0) for s in (-1.0, 1.0)]
    runs = [([([x], LOGGED + s * LOGGED_STD, 0.0)], None) for x, s in pairs for _ in range(5)]
    return episodes(runs, "signs")


def taught(settings: dict[str, Any], count: int, fault: Fault | None = None) -> Any:
    named = {**SETTINGS, "teacher": linear_teacher(), **settings}
    return fit("distill", signs(), named, count, fault=fault)


def answer(x: float, anchor: str) -> tuple[float, float]:
    """Mean and deviation of the law at which the loss is least."""
    precision, mean = W / TEACHER_STD**2, math.tanh(SLOPE * x)
    own = {"teacher": 1 / TEACHER_STD**2, "clone": 1 / LOGGED_STD**2, "uniform": 0.0}[anchor]
    centre = LOGGED if anchor == "clone" else mean
    return (precision * mean + own * centre) / (precision + own), (precision + own) ** -0.5


@pytest.mark.parametrize("anchor", ["teacher", "uniform", "clone"])
def test_the_student_ends_where_the_anchor_says(anchor: str) -> None:
    learner = taught({"anchor": anchor}, 500)
    for x in (-1.0, 1.0):
        mean, std = answer(x, anchor)
        assert action_at(learner, x) == pytest.approx(mean, abs=0.02)
        assert float(learner.actor.spread().detach()) == pytest.approx(std, rel=0.05)


def test_plain_distillation_is_the_teacher() -> None:
    learner = taught({"loss": "kl"}, 500)
    assert action_at(learner, 1.0) == pytest.approx(math.tanh(SLOPE), abs=0.04)
    assert float(learner.actor.spread().detach()) == pytest.approx(TEACHER_STD, rel=0.02)


def test_an_anchor_that_follows_the_student_takes_it_to_the_teachers_mode() -> None:
    learner = taught({"anchor": "ema", "polyak": 0.1}, 500)
    for x in (-1.0, 1.0):
        assert action_at(learner, x) == pytest.approx(math.tanh(SLOPE * x), abs=0.03)
    # Its deviation falls below that of any fixed anchor's.
    assert float(learner.actor.spread().detach()) < 0.7 * answer(1.0, "teacher")[1]


@pytest.mark.parametrize(
    ("old", "new", "anchor"),
    [
        ("boltzmann(teacher,", "boltzmann(-teacher,", "uniform"),
        ("anchor = teacher\n", "anchor = 0.0 * teacher\n", "teacher"),
        ('elif cfg.anchor != "teacher"', "elif False", "clone"),
    ],
    ids=["away from the teacher", "no anchor", "another anchor"],
)
def test_broken_copies_end_elsewhere(old: str, new: str, anchor: str) -> None:
    fault = Fault("agents.distill.Distill.adpo_loss", old, new, ())
    learner = taught({"anchor": anchor}, 300, fault)
    mean, std = answer(1.0, anchor)
    found = action_at(learner, 1.0), float(learner.actor.spread().detach())
    assert abs(found[0] - mean) > 0.1 or abs(found[1] / std - 1.0) > 0.15


# -- limits -------------------------------------------------------------------------------------


def ready(settings: dict[str, Any], count: int = 0) -> tuple[Any, TaughtBatch]:
    """An agent after so many updates, and all its data."""
    learner = taught(settings, count)
    view = learner.view(signs()).to(torch.float64)
    return learner, view.sample(view.index)


def gradient(learner: Any, loss: Tensor) -> Tensor:
    parts = torch.autograd.grad(loss.sum(), list(learner.actor.parameters()))
    return torch.cat([p.flatten() for p in parts])


def the_same(batch: TaughtBatch, row: np.ndarray[Any, Any]) -> Tensor:
    """These draws as the candidates of every state."""
    return torch.from_numpy(row)[None, :, None].expand(len(batch.obs), -1, -1)


def test_two_candidates_at_a_low_temperature_are_dpo() -> None:
    learner, batch = ready({"candidates": 2, "temperature": 1e-9, "tau": 2.5, "anchor": "ema"}, 20)
    noise = torch.from_numpy(np.random.default_rng(0).normal(size=(len(batch.obs), 2, 1)))
    action = batch.teacher_mean[:, None] + batch.teacher_std[:, None] * noise
    # The teacher prefers the one that is nearer to its mean.
    first = noise[:, 0].abs() < noise[:, 1].abs()
    chosen = torch.where(first, action[:, 0], action[:, 1])
    rejected = torch.where(first, action[:, 1], action[:, 0])

    def scores(a: Tensor) -> Scores:
        laws = learner.actor(batch.obs), learner.reference(batch.obs)
        logp, ref_logp = (law.log_prob(a)[:, None] for law in laws)
        return Scores(logp, ref_logp, torch.ones_like(logp))

    expected = dpo(scores(chosen), scores(rejected), beta=1 / 2.5).mean()
    found = learner.adpo_loss(batch, noise)[0]
    assert float(expected.detach()) != pytest.approx(math.log(2.0), rel=1e-3)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(
        gradient(learner, found), gradient(learner, expected), rtol=1e-9, atol=1e-12
    )


def test_many_wide_candidates_have_the_gradient_of_the_divergence() -> None:
    settings = {"anchor": "uniform", "tau": 1.0, "temperature": 1.0}
    learner, batch = ready({**settings, "scale": 10.0}, 20)
    # A grid over 60 of the teacher's deviations: the softmaxes are the two densities themselves.
    grid = the_same(batch, np.linspace(-6.0, 6.0, 4001))
    found = gradient(learner, learner.adpo_loss(batch, grid)[0])
    expected = gradient(learner, learner.kl_loss(batch)[0])
    assert float(expected.norm()) > 0.1
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)


def test_an_even_target_anchored_at_the_teacher_has_the_gradient_of_the_divergence() -> None:
    learner, batch = ready({"temperature": 1e12, "tau": 1.0, "loss": "kl"}, 120)
    with torch.no_grad():  # within the teacher's deviation, so that no ratio is large
        learner.actor.spread.log_std[:] = math.log(0.9 * TEACHER_STD)
    # The quantiles of the teacher's own law.
    count = 20_001
    quantiles = the_same(batch, ndtri((np.arange(count) + 0.5) / count))
    expected = gradient(learner, learner.kl_loss(batch)[0])
    found = gradient(learner, learner.adpo_loss(batch, quantiles)[0])
    assert float(expected.norm()) > 1e-3
    assert float((found - expected).norm() / expected.norm()) < 0.02


@pytest.mark.parametrize(
    ("changes", "rests"),
    [
        ({"anchor": "teacher", "temperature": 1e12}, True),
        ({"anchor": "teacher"}, False),
        ({"anchor": "uniform", "tau": 0.7, "temperature": 0.7}, True),
        ({"anchor": "uniform", "tau": 0.7, "temperature": 1.4}, False),
        ({"loss": "kl"}, True),
    ],
    ids=str,
)
def test_the_teacher_itself_has_no_gradient_whatever_the_candidates(
    changes: dict[str, Any], rests: bool
) -> None:
    learner, batch = ready({**changes, "hidden": ()})
    with torch.no_grad():
        weight, bias = learner.actor.net.parameters()
        weight[:], bias[:] = SLOPE, 0.0
        learner.actor.spread.log_std[:] = math.log(TEACHER_STD)
    exact = {
        "teacher_mean": learner.actor.mean(batch.obs).detach(),
        "teacher_std": learner.actor.spread().detach().expand_as(batch.teacher_std),
    }
    # The file's answers are of single precision.
    for name, value in exact.items():
        torch.testing.assert_close(getattr(batch, name), value, rtol=0, atol=1e-6)
    batch = replace(batch, **exact)
    noise = torch.from_numpy(np.random.default_rng(1).normal(size=(len(batch.obs), 16, 1)))
    loss, metrics = learner.kl_loss(batch)
    assert float(loss.detach()) == pytest.approx(0.0, abs=1e-15)
    if "loss" not in changes:
        loss, metrics = learner.adpo_loss(batch, noise)
    assert float(metrics["teacher_error"].detach()) == 0.0
    assert (float(gradient(learner, loss).abs().max()) < 1e-9) == rests
    assert {f.name for f in fields(batch)} >= set(exact)
