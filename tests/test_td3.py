"""What TD3's relatives share, by hand."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from problems import ACT, OBS
from torch import Tensor, nn

from offrl.agents.td3_bc import TD3BC, TD3BCConfig
from offrl.datasets.offline import Spec
from offrl.errors import ConfigError
from offrl.losses import action_distance
from offrl.networks import Learners
from offrl.regularizers import advantage_mask, dual_reference
from offrl.td3 import TD3Config, next_action, target_value, update_targets
from offrl.types import Batch


def doubles(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_action_distance_by_hand() -> None:
    # 0.5^2 + 1^2 = 1.25, summed over the two components: twice the mean of `action_error`.
    distance = action_distance(doubles(0.5, 0)[None], doubles(0, 1)[None])
    torch.testing.assert_close(distance, doubles(1.25))


# Advantages of the generated and of the logged action, the mask, and which action is the goal.
ADVANTAGES = [
    (2.0, 1.0, 1.0, "generated"),
    (1.0, 2.0, 1.0, "logged"),
    (1.0, -1.0, 1.0, "generated"),
    (-1.0, 1.0, 1.0, "logged"),
    (-1.0, -2.0, 0.0, "generated"),
    (-2.0, -1.0, 0.0, "logged"),
    (0.0, -1.0, 1.0, "generated"),  # the comparison of the generated one includes 0,
    (-1.0, 0.0, 0.0, "logged"),  # that of the logged one does not,
    (-1.0, -1.0, 0.0, "generated"),  # and a tie is generated
]


@pytest.mark.parametrize(("generated", "logged", "mask", "goal"), ADVANTAGES)
def test_the_mask_is_an_or_and_the_goal_is_the_better(
    generated: float, logged: float, mask: float, goal: str
) -> None:
    advantages = doubles(generated)[None], doubles(logged)[None]
    assert advantage_mask(*advantages).tolist() == [[mask]]
    actions = {"generated": doubles(0.1, 0.2)[None, None], "logged": doubles(-0.3, 0.4)[None, None]}
    found = dual_reference(actions["generated"], actions["logged"], *advantages)
    assert torch.equal(found, actions[goal])


def test_no_gradient_reaches_the_advantages() -> None:
    advantages = [doubles(1.0, -1.0).requires_grad_(), doubles(0.5, 0.5).requires_grad_()]
    assert not advantage_mask(*advantages).requires_grad
    actions = [doubles(0.1, 0.2)[:, None].requires_grad_() for _ in range(2)]
    goal = dual_reference(*actions, *advantages)
    slopes = torch.autograd.grad(goal.sum(), [*actions, *advantages], allow_unused=True)
    assert [None if g is None else g.flatten().tolist() for g in slopes] == [
        [1.0, 0.0],
        [0.0, 1.0],
        None,
        None,
    ]


class Sum(nn.Module):
    """Two critics, a + 1 and a + 3."""

    def forward(self, obs: Tensor, action: Tensor) -> Tensor:
        return action.squeeze(-1) + doubles(1.0, 3.0)[:, None]


def pieces(mask: float, noise: float) -> tuple[Any, Batch, Tensor]:
    """An agent whose target policy plays 0.9, and whose critics are a + 1 and a + 3."""
    column = doubles(0.0)[:, None]
    agent = SimpleNamespace(
        config=TD3Config(policy_noise=0.5, noise_clip=0.2, gamma=0.5),
        act_dim=1,
        actor=None,
        actor_target=lambda obs: torch.full_like(obs, 0.9),
        critic=None,
        critic_target=Sum(),
    )
    scalar = doubles(2.0)
    batch = Batch(
        column, column, scalar, doubles(mask), column, column, torch.zeros(1, dtype=torch.int64)
    )
    return agent, batch, doubles(noise)[:, None]


@pytest.mark.parametrize(
    ("noise", "action"),
    # 0.5 * 0.1 = 0.05 is added; -0.5 is cut to -0.2; 0.9 + 0.2 is cut to 1.
    [(0.1, 0.95), (-1.0, 0.7), (1.0, 1.0)],
)
def test_the_target_action_by_hand(noise: float, action: float) -> None:
    agent, batch, drawn = pieces(1.0, noise)
    torch.testing.assert_close(next_action(agent, batch, drawn), doubles(action)[:, None])


@pytest.mark.parametrize(
    ("mask", "penalty", "expected"),
    # The smaller critic gives 0.9 + 1; 2 + 0.5 * 1.9 = 2.95, and 0.5 * 0.4 less with a penalty.
    [(1.0, None, 2.95), (1.0, 0.4, 2.75), (0.0, None, 2.0), (0.0, 0.4, 2.0)],
)
def test_the_target_by_hand(mask: float, penalty: float | None, expected: float) -> None:
    agent, batch, drawn = pieces(mask, 0.0)
    action = next_action(agent, batch, drawn)
    less = None if penalty is None else doubles(penalty)
    found = target_value(agent, agent.critic_target, batch, action, less)
    torch.testing.assert_close(found, doubles(expected))


def test_both_targets_move() -> None:
    config = TD3BCConfig(hidden=(4,), polyak=0.25)
    agent = TD3BC(Spec.unbounded(OBS, ACT), config, Learners())
    with torch.no_grad():
        for net in (agent.actor, agent.critic):
            for parameter in net.parameters():
                parameter += 1.0
    before = [p.clone() for t in (agent.actor_target, agent.critic_target) for p in t.parameters()]
    update_targets(agent)
    after = [p for t in (agent.actor_target, agent.critic_target) for p in t.parameters()]
    for old, new in zip(before, after, strict=True):
        torch.testing.assert_close(new, old + 0.25)


@pytest.mark.parametrize("field", ["policy_noise", "noise_clip", "gamma", "polyak"])
def test_what_is_out_of_range_is_named(field: str) -> None:
    with pytest.raises(ConfigError, match=rf"TD3Config\.{field} is -1"):
        TD3Config(**{field: -1.0})
