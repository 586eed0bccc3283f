"""What Dichotomy of Control must learn where the answer is known: the bandit of its paper."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import plant_faults
import pytest
import torch
from fault import Fault
from known import episodes, fit

from offrl.agents import DoCConfig
from offrl.datasets.offline import OfflineDataset
from offrl.feed import Feed
from offrl.networks import Learners
from offrl.policy import Policy

SETTINGS: dict[str, Any] = {
    **{"backbone": "mlp", "latents": "categorical", "latent": 4, "context": 0, "future": 1},
    **{"hold": 1, "hidden": (24, 24), "features": 8, "lr": 3e-3, "warmup": 10, "grad_norm": 1.0},
    **{"weight_decay": 0.0, "normalize_obs": False, "max_steps": 1},
}
COUNT = 250
SEEDS = (0, 1, 2, 3)


def bandit(p: float, count: int = 1000) -> OfflineDataset:
    """Arms -1 and 1 that pay with probability p and 1 - p, the good one pulled with probability p.

    In exact shares: of 1,000 pulls at p = 0.1, 100 are good of which 90 pay, and 90 others pay.
    """
    runs: list[Any] = []
    for action, share, pays in ((1.0, p, 1 - p), (-1.0, 1 - p, p)):
        pulls = round(share * count)
        runs += [([([1.0], action, float(i < pays * pulls))], None) for i in range(pulls)]
    return episodes(runs, "bandit")


def stack(
    data: OfflineDataset,
    count: int,
    *,
    fault: Fault | None = None,
    weights: Sequence[tuple[int, float]] = (),
) -> Any:
    """Four learners in the same kernels; `weights` says from which step on which alpha holds."""
    with plant_faults.planted(fault, "doc") as cls:
        learner: Any = cls(data.spec, DoCConfig(**SETTINGS), Learners(SEEDS))
        replay = learner.view(data)
        learner.prepare(replay)
        feed = Feed(replay, SEEDS, 64, learner.noise(64))
        for step in range(count):
            for begin, weight in weights:
                if step == begin:
                    object.__setattr__(learner.config, "information_weight", weight)
            batch, noise = feed.at(step)
            learner.schedule(step, count)
            learner.update(batch, noise, 0)
    return learner


def earned(policy: Policy, p: float) -> float:
    """The expected return of the action, a mixture of both arms."""
    action = float(policy.predict([1.0])[0])
    return p * (1 - action) / 2 + (1 - p) * (1 + action) / 2


@pytest.mark.parametrize(("p", "least"), [(0.1, 0.88), (0.3, 0.68)])
def test_it_earns_the_best_on_the_bandit(p: float, least: float) -> None:
    learner = stack(bandit(p), 400)
    for k in range(4):
        policy: Any = learner.policy(k)
        assert earned(policy, p) > least
        # What it promises is what the arm pays, whichever it is asked for.
        for asked, arm, paid in ((1.0, 1.0, 1 - p), (0.0, -1.0, p)):
            action, state = policy.act(np.ones((1, 1)), policy.start(1, target_return=asked))
            assert action[0, 0] == pytest.approx(arm, abs=0.1)
            assert state.promised[0] == pytest.approx(paid, abs=0.12)


@pytest.mark.parametrize("p", [0.1, 0.3])
def test_asking_for_a_return_of_one_gives_a_half(p: float) -> None:
    settings = {
        **{"context": 1, "layers": 1, "width": 16, "max_steps": 2, "return_scale": 1.0},
        **{"lr": 3e-3, "warmup": 10, "grad_norm": 1.0, "normalize_obs": False, "weight_decay": 0.0},
    }
    # In batches of half the pulls, of which few pay where p is 0.1.
    learner = fit("dt", bandit(p), settings, 250, batch_size=512)
    assert earned(learner.policy(), p) == pytest.approx(0.5, abs=0.03)


def told(agent: Any, p: float) -> tuple[torch.Tensor, torch.Tensor]:
    """How far q moves with what was paid and with the arm, at most, for each learner.

    2 where two outcomes get different codes for sure, 0 where q is the same.
    """
    data = bandit(p)
    rows = []
    for arm in (data.rows[:, 1] < 0, data.rows[:, 1] > 0):
        for paid in (0.0, 1.0):
            found = np.flatnonzero(arm & (data.rows[:, -3] == paid))
            rows.append(int(np.intersect1d(found, data.step_rows)[0]))
    batch = agent.view(data).sample(torch.tensor([rows] * len(SEEDS)))
    q = agent.formed(batch).softmax(-1).detach().reshape(len(SEEDS), 2, 2, -1)
    luck = (q[:, :, 0] - q[:, :, 1]).abs().sum(-1).amax(-1)
    return luck, (q[:, 0] - q[:, 1]).abs().sum(-1).amin(-1)


# The posterior is made to tell luck in the first 60 updates: alpha is -1, as if the authors' code.
LUCKY = (0, -1.0)


def test_the_constraint_takes_luck_out_of_the_latents() -> None:
    learner = stack(bandit(0.3), 360, weights=[LUCKY, (60, 1.0)])
    luck, arm = told(learner, 0.3)
    assert float(luck.max()) < 0.2 and float(arm.min()) > 1.7
    assert all(earned(learner.policy(k), 0.3) > 0.68 for k in range(4))


def test_without_it_luck_stays() -> None:
    luck, _ = told(stack(bandit(0.3), 200, weights=[LUCKY, (60, 0.0)]), 0.3)
    assert float(luck.max()) > 1.5


def test_a_copy_that_raises_the_information_earns_luck() -> None:
    """The authors' code: posterior and energy both minimise -I."""
    raised = Fault("agents.doc.DoC.actor_loss", "error + self.config", "error - self.config", ())
    learner = stack(bandit(0.3), 200, fault=raised)
    assert float(told(learner, 0.3)[0].median()) > 1.5
    assert np.mean([earned(learner.policy(k), 0.3) for k in range(4)]) < 0.62


def test_a_copy_whose_energy_does_not_see_the_reward_lets_luck_stay() -> None:
    # It sees it while alpha is below 0, without which no latent would tell luck to begin with.
    sees = "(self.config.information_weight < 0)"
    blind = Fault(
        "agents.doc.DoC.information",
        "batch.reward[..., -n:]",
        f"{sees} * batch.reward[..., -n:]",
        (),
    )
    luck, _ = told(stack(bandit(0.3), 200, fault=blind, weights=[LUCKY, (60, 1.0)]), 0.3)
    assert float(luck.median()) > 1.5  # one of the four has not begun with it


def test_gaussian_latents_separate_the_arms() -> None:
    settings = {**SETTINGS, "latents": "gaussian", "latent": 2, "candidates": 200}
    learner: Any = fit("doc", bandit(0.3), settings, COUNT)
    view: Any = learner.view(bandit(0.3)).to(torch.float64)
    q = learner.formed(view.sample(view.index)).detach()
    mean, std = q[:, :2], q[:, 2:].exp()
    arm = view.rows[view.index][:, 1] > 0
    gap = (mean[arm].mean(0) - mean[~arm].mean(0)).abs() / std.mean(0)
    assert float(gap.max()) > 2.0
    assert earned(learner.policy(), 0.3) > 0.6
