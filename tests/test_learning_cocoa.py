"""States that are new combinations of what was seen: what COCOA's critics make of them."""

from dataclasses import replace
from typing import Any

import numpy as np
import plant_faults
import pytest
import torch
from fault import Fault
from known import IQL, episodes
from torch import Tensor

from offrl.agents.iql import IQLConfig
from offrl.feed import Feed
from offrl.networks import Learners
from offrl.types import Batch

PLACES = {-2: 1.0, -1: -1.0, 0: 0.5, 1: 1.5, 2: -0.5}  # g, by number of the place
SEEN = 0.0  # differences up to here are seen at every place, those above at place 0 alone


def reward(place: int, difference: float) -> float:
    return PLACES[place] * (1.0 + 0.5 * difference)


class Places:
    """Anchors that are known: the middle of the nearest of the places, which are 1 apart."""

    def pair(self, obs: Tensor) -> Tensor:
        anchor = obs.round()
        return torch.cat([obs - anchor, anchor], -1)

    def rows(self, batch: Batch) -> Batch:
        return replace(batch, obs=self.pair(batch.obs), next_obs=self.pair(batch.next_obs))


def data() -> Any:
    """Steps that end at once, whose reward is g(place) f(difference)."""
    rng = np.random.default_rng(0)
    runs = []
    for _ in range(150):
        for place in PLACES:
            difference = rng.uniform(-0.45, 0.45)
            if place != 0 and difference > SEEN:
                difference -= 0.45
            action, value = rng.uniform(-1, 1), reward(place, 2.0 * difference)
            runs.append(([([place + difference], action, value)], None))
    return episodes(runs, "places")


def new_combinations() -> tuple[Tensor, Tensor]:
    pairs = [(p, d) for p in PLACES if p != 0 for d in np.linspace(0.1, 0.45, 8)]
    obs = torch.tensor([[p + d] for p, d in pairs], dtype=torch.float64)
    return obs, torch.tensor([reward(p, 2.0 * d) for p, d in pairs], dtype=torch.float64)


def error(cocoa: bool, seed: int = 0, fault: Fault | None = None, count: int = 300) -> float:
    """Root mean square error of the first critic on new combinations."""
    settings = {**IQL, "cocoa": cocoa, "cocoa_hidden": (16, 8), "cocoa_rank": 2}
    dataset, places = data(), Places()
    with plant_faults.planted(fault, "iql") as cls:
        agent: Any = cls(dataset.spec, IQLConfig(**settings), Learners((seed,))).double()
        if cocoa:
            agent.composition = places
        replay = agent.view(dataset).to(torch.float64)
        feed = Feed(replay, (seed,), 64, agent.noise(64))
        for step in range(count):
            agent.update(*feed.at(step), 0)
    obs, expected = new_combinations()
    seen = places.pair(obs) if cocoa else obs
    with torch.no_grad():
        q = agent.critic.first(seen, torch.zeros_like(obs))
    return float((q - expected).square().mean().sqrt())


@pytest.mark.parametrize("seed", [0, 1])
def test_parts_seen_apart_are_put_together(seed: int) -> None:
    # Values are between -1.45 and 2.2: the plain critic knows nothing of what it has not seen.
    assert error(cocoa=True, seed=seed) < 0.4
    assert error(cocoa=False, seed=seed) > 0.8


def test_a_product_that_forgets_the_anchor_is_seen() -> None:
    fault = Fault("cocoa.Bilinear.forward", "self.anchor(anchor)", "self.anchor(delta)", ())
    assert error(cocoa=True, fault=fault) > 0.8
