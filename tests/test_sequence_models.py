"""Networks conditioned on returns: causal, blind to padding, and the same step by step."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from offrl.errors import ConfigError
from offrl.networks import Learners
from offrl.sequence_models import (
    ReturnMamba,
    ReturnTransformer,
    Steps,
    sequence_model_from_spec,
    steps_of,
)
from offrl.types import SequenceBatch

OBS, ACT, LENGTH = 3, 2, 6


def transformer() -> nn.Module:
    sizes: Any = {"layers": 2, "heads": 2, "width": 8, "max_steps": 20}
    return ReturnTransformer(OBS, ACT, Learners((3,)), **sizes).double()


def mamba() -> nn.Module:
    return ReturnMamba(OBS, ACT, Learners((3,)), layers=2, width=8, max_steps=20).double()


def linear_mamba() -> nn.Module:
    sizes: Any = {"layers": 1, "width": 8, "embed": "linear", "max_steps": 20}
    return ReturnMamba(OBS, ACT, Learners((3,)), **sizes).double()


MODELS = {"transformer": transformer, "mamba": mamba, "linear mamba": linear_mamba}
each = pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def sequence(batch: int = 2, length: int = LENGTH, begin: int = 4) -> SequenceBatch:
    time = begin + torch.arange(length).expand(batch, -1)
    return SequenceBatch(
        to_go=normal(batch, length),
        obs=normal(batch, length, OBS, seed=1),
        action=normal(batch, length, ACT, seed=2).tanh(),
        time=time,
        real=torch.ones(batch, length, dtype=torch.float64),
        index=torch.zeros(batch, dtype=torch.long),
    )


def changed(batch: SequenceBatch, **columns: Tensor) -> SequenceBatch:
    return SequenceBatch(**{**vars(batch), **columns})


def actions(model: nn.Module, batch: SequenceBatch) -> Tensor:
    found = model(batch)
    action: Tensor = found if isinstance(found, Tensor) else found.action
    return action.detach()


def bumped(x: Tensor, t: int) -> Tensor:
    y = x.clone()
    y[:, t] += 0.5
    return y


@each
def test_no_action_sees_what_comes_later(make: Callable[[], nn.Module]) -> None:
    model, batch = make(), sequence()
    before = actions(model, batch)
    for t in range(LENGTH):
        for field in ("to_go", "obs", "action"):
            after = actions(model, changed(batch, **{field: bumped(getattr(batch, field), t)}))
            first = t + (field == "action")  # an action cannot be seen where it is to be given
            assert torch.equal(after[:, :first], before[:, :first]), (field, t)
            same = (after[:, first:] == before[:, first:]).all(-1)
            assert not same.any(), (field, t)


def test_what_mamba_predicts_of_a_step_is_from_before_it() -> None:
    model, batch = mamba(), sequence()
    before = model(batch)
    for t in range(LENGTH):
        after = model(changed(batch, obs=bumped(batch.obs, t), to_go=bumped(batch.to_go, t)))
        for name in ("obs", "to_go"):
            mine, other = getattr(after, name), getattr(before, name)
            assert torch.equal(mine[:, : t + 1], other[:, : t + 1])
            assert t + 1 == LENGTH or not torch.equal(mine[:, t + 1], other[:, t + 1])
    # The action taken at t is the last that the prediction of step t + 1 knows.
    after = model(changed(batch, action=bumped(batch.action, 2)))
    assert torch.equal(after.obs[:, :3], before.obs[:, :3])
    assert not torch.equal(after.obs[:, 3], before.obs[:, 3])


@each
def test_padding_in_front_changes_nothing(make: Callable[[], nn.Module]) -> None:
    model, batch = make(), sequence()
    alone = actions(model, batch)
    front = {
        "to_go": normal(2, 3, seed=5),
        "obs": normal(2, 3, OBS, seed=6),
        "action": normal(2, 3, ACT, seed=7),
        "time": torch.full((2, 3), 11),
        "real": torch.zeros(2, 3, dtype=torch.float64),
    }
    padded = changed(batch, **{k: torch.cat([v, getattr(batch, k)], 1) for k, v in front.items()})
    torch.testing.assert_close(actions(model, padded)[:, 3:], alone, rtol=0, atol=1e-12)


@each
def test_steps_one_by_one_are_the_whole(make: Callable[[], nn.Module]) -> None:
    model: Any = make()
    batch = sequence()
    whole, steps = actions(model, batch), steps_of(batch)[0]
    memory = model.empty(2, LENGTH)
    for t in range(LENGTH):
        one = Steps(*(part[:, t : t + 1] for part in steps))
        action, memory = model.advance(one, memory, torch.full((2,), t))
        torch.testing.assert_close(action.detach(), played(model, whole[:, t]), rtol=0, atol=1e-12)


@each
def test_several_steps_at_once_are_the_same_steps(make: Callable[[], nn.Module]) -> None:
    model: Any = make()
    batch = sequence()
    whole, steps = actions(model, batch), steps_of(batch)[0]
    # Rows that begin anew forget: the second begins at step 2, whatever the memory holds.
    memory = tuple(normal(*part.shape, seed=i) for i, part in enumerate(model.empty(2, LENGTH)))
    first = Steps(*(part[:, :4] for part in steps))
    action, memory = model.advance(first, memory, torch.zeros(2, dtype=torch.long))
    torch.testing.assert_close(action.detach(), played(model, whole[:, 3]), rtol=0, atol=1e-12)
    rest = Steps(*(part[:, 4:] for part in steps))
    action, _ = model.advance(rest, memory, torch.tensor([4, 0]))
    torch.testing.assert_close(action[0].detach(), played(model, whole[0, 5]), rtol=0, atol=1e-12)
    late = SequenceBatch(
        **{
            k: v[..., 4:, :] if k in ("obs", "action") else v[..., 4:]
            for k, v in vars(batch).items()
            if k != "index"
        },
        index=batch.index,
    )
    alone = actions(model, late)
    torch.testing.assert_close(action[1].detach(), played(model, alone[1, 1]), rtol=0, atol=1e-12)


def played(model: nn.Module, action: Tensor) -> Tensor:
    return action.clamp(-1.0, 1.0)


def test_the_memory_that_was_given_stays_as_it_is() -> None:
    model: Any = transformer()
    steps = Steps(*(part[:, :1] for part in steps_of(sequence())[0]))
    memory = model.empty(2, LENGTH)
    model.advance(steps, memory, torch.zeros(2, dtype=torch.long))
    assert not any(part.any() for part in memory)


def test_more_steps_than_there_is_room_for_are_an_error() -> None:
    model: Any = transformer()
    steps = Steps(*(part[:, :2] for part in steps_of(sequence())[0]))
    with pytest.raises((IndexError, RuntimeError)):
        model.advance(steps, model.empty(2, 3), torch.full((2,), 2))


def test_late_steps_share_the_last_vector_of_time() -> None:
    model = transformer()
    late, later = sequence(begin=30), sequence(begin=50)
    assert torch.equal(actions(model, late), actions(model, later))
    assert not torch.equal(actions(model, late), actions(model, sequence(begin=3)))


def test_the_order_of_tokens_is_that_of_time() -> None:
    batch = sequence(length=3)
    batch.real[1, 0] = 0.0
    steps, real = steps_of(batch)
    assert not steps.past_action[:, 0].any()
    assert torch.equal(steps.past_action[:, 1:], batch.action[:, :2])
    assert real.tolist() == [
        [[0, 1, 1], [1, 1, 1], [1, 1, 1]],
        [[0, 0, 0], [0, 1, 1], [1, 1, 1]],
    ]


@each
def test_a_network_is_made_again_from_its_spec(make: Callable[[], nn.Module]) -> None:
    model: Any = make()
    again = sequence_model_from_spec(model.spec()).double()
    again.load_state_dict(model.state_dict())
    assert torch.equal(actions(again, sequence()), actions(model, sequence()))


def test_an_unknown_network_is_named() -> None:
    with pytest.raises(ConfigError, match="'ReturnMambo', which offrl does not know"):
        sequence_model_from_spec({"type": "ReturnMambo"})


def test_published_sizes() -> None:
    # Decision Transformer on Hopper: embeddings of 3 kinds and 1000 steps, a norm, 3 blocks of
    # 12 d^2 + 13 d, a norm, and the head.
    d = 128
    model = ReturnTransformer(11, 3, Learners())
    tokens = (11 + 3 + 1 + 3) * d + 1000 * d + 2 * d
    expected = tokens + 3 * (12 * d * d + 13 * d) + 2 * d + (d + 1) * 3
    assert sum(p.numel() for p in model.parameters()) == expected
