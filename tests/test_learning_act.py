"""ACT on problems whose answer is known: one way to act, two ways, and what will be seen."""

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import plant_faults
import pytest
import torch
from fault import Fault
from known import Step, episodes, fit
from methods.act import TOLD
from problems import walk
from torch import Tensor

from offrl.agents import AGENTS
from offrl.datasets.offline import OfflineDataset
from offrl.feed import Feed
from offrl.networks import Learners
from offrl.policy import load_policy

SMALL: dict[str, Any] = {
    **{"history": 1, "horizon": 4, "execute": 2, "ensemble": -1.0, "width": 16, "depth": 1},
    **{"heads": 2, "inner": 32, "lr": 3e-3},
}
STYLED: dict[str, Any] = {**SMALL, "latent": 2, "kl_weight": 1e-3}
FORETOLD: dict[str, Any] = {**SMALL, "ahead": 3}
LENGTH = 6


def demonstrations(ways: tuple[float, ...], count: int = 24) -> OfflineDataset:
    """Each keeps one of these actions throughout, scaled by a number that it observes."""
    rng = np.random.default_rng(0)
    runs = []
    scales = rng.uniform(0.5, 1.0, count // len(ways))
    for scale, way in itertools.product(scales.tolist(), ways):
        steps: list[Step] = [((scale, float(t)), way * scale, 0.0) for t in range(LENGTH)]
        runs.append((steps, (scale, float(LENGTH))))
    return episodes(runs, "demonstrations")


def metrics_of(agent: Any, dataset: OfflineDataset) -> dict[str, float]:
    """Of the loss on one large batch."""
    replay = agent.view(dataset).to(torch.float64)
    batch, noise = Feed(replay, (1,), 128, agent.noise(128)).at(0)
    with torch.no_grad():
        _, metrics = agent.loss(batch, noise) if noise else agent.loss(batch)
        return {k: float(v) for k, v in metrics.items()}


@pytest.mark.parametrize(
    ("agent", "settings"), [("act", {**STYLED, "kl_weight": 1.0}), ("act_jepa", FORETOLD)]
)
def test_one_way_is_learned(agent: str, settings: dict[str, Any]) -> None:
    data = demonstrations((0.8,))
    trained = fit(agent, data, settings, 250)
    action = trained.policy().predict(np.array([[0.5, 0.0], [1.0, 2.0]]))
    np.testing.assert_allclose(action[:, 0], [0.4, 0.8], atol=0.08)


def test_two_ways_are_told_apart_by_the_style_alone() -> None:
    """A policy of one answer is off by 1 in units of the range, whatever it answers."""
    data = demonstrations((0.8, -0.8))
    with_style = fit("act", data, STYLED, 250)
    reconstructed = metrics_of(with_style, data)["chunk_error"]
    blind = Fault("styles.reconstruct", "mean + log_std.exp() * noise", "0.0 * mean", ("act",))
    without = metrics_of(fit("act", data, STYLED, 250, fault=blind), data)["chunk_error"]
    assert reconstructed < 0.15
    assert without > 0.6


def test_later_observations_are_foretold() -> None:
    data = demonstrations((0.8,))
    settings = {**FORETOLD, "target_decay": 0.99}
    trained = metrics_of(fit("act_jepa", data, settings, 250), data)
    forgetful = Fault(
        "agents.act_jepa.ACTJEPA.loss",
        "self.config.latent_weight * latent",
        "0.0 * latent",
        ("act_jepa",),
    )
    broken = metrics_of(fit("act_jepa", data, settings, 250, fault=forgetful), data)
    assert trained["latent_error"] < 0.25 < 0.5 < broken["latent_error"]
    assert trained["target_std"] > 0.1


def latent_parts(fault: Fault | None) -> tuple[list[Tensor], list[Tensor]]:
    """What is foretold and its error, of one batch, and of it with other actions to come."""
    with plant_faults.planted(fault, "act_jepa") as cls:
        data, default = walk(), AGENTS["act_jepa"][1]
        config = type(default)(**{**vars(default), **FORETOLD, "history": 2, "horizon": 5})
        agent: Any = cls(data.spec, config, Learners((0,))).to(torch.float64)
        replay = agent.view(data).to(torch.float64)
        batch: Any = Feed(replay, (0,), 16, {}).at(0)[0]
        foretold: list[Tensor] = []
        agent.predictor.register_forward_hook(lambda *given: foretold.append(given[-1]))
        found = []
        with torch.no_grad():
            for action in (batch.action, -2.0 * batch.action):
                metrics = agent.loss(replace(batch, action=action))[1]
                found.append([foretold.pop(), metrics["latent_error"]])
    return found[0], found[1]


def test_what_is_foretold_is_told_nothing_of_the_actions_to_come() -> None:
    for ours, others in zip(*latent_parts(None), strict=True):
        assert torch.equal(ours, others)
    for fault in TOLD:
        logged, changed = latent_parts(fault)
        assert not torch.equal(logged[1], changed[1]), fault


def test_a_policy_without_a_style_keeps_no_place_for_one() -> None:
    settings = {"act": STYLED, "act_jepa": FORETOLD}
    act, jepa = (fit(name, walk(), given, 0).state_dict() for name, given in settings.items())
    assert len(act["net.place.weight"]) == SMALL["history"] + 1
    assert len(jepa["net.place.weight"]) == len(jepa["predictor.place.weight"]) == SMALL["history"]
    assert "net.style.weight" in act
    assert not [name for name in jepa if "style" in name]


@pytest.mark.parametrize(
    ("agent", "settings"), [("act", STYLED), ("act_jepa", {**FORETOLD, "ahead": 2})]
)
def test_a_saved_plan_is_averaged_over_time(
    agent: str, settings: dict[str, Any], tmp_path: Any
) -> None:
    trained = fit(agent, walk(), {**settings, "ensemble": 0.01}, 2)
    policy = trained.policy()
    policy.save(tmp_path / "policy")
    loaded = load_policy(tmp_path / "policy")
    obs = np.random.default_rng(0).normal(size=(5, 3, 3)).astype(np.float32)
    ours, theirs = policy.start(3), loaded.start(3)
    for x in obs:
        action, ours = policy.act(x, ours)
        other, theirs = loaded.act(x, theirs)
        np.testing.assert_array_equal(action, other)
