"""Values of tokens: each part of the loss by hand, the heads, what they see and what they steer."""

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from offrl.errors import ConfigError, DataError
from offrl.lm.data import load_examples
from offrl.lm.losses.tokens import ilql
from offrl.lm.objectives import objective
from offrl.lm.tokens import Collator, Item, tokenize
from offrl.lm.values import (
    TokenValues,
    answer_states,
    load_values,
    save_values,
    split_values,
    steered,
    values_of,
    with_values,
    without_values,
)

# An answer of two tokens, 1 and 2, from a vocabulary of three; the reward of 1 is for the last.
LABELS, MASK = torch.tensor([[1, 2]]), torch.ones(1, 2)
REWARDS = torch.tensor([[0.0, 1.0]], dtype=torch.float64)


def doubles(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


# (head, row, token, vocabulary); of logged tokens 1 and 3, and 2 and 0.
Q = doubles([[[[0, 1, 0], [0, 0, 3]]], [[[0, 2, 0], [0, 0, 0]]]])
V = doubles([[0.5, 2.0]])


def part(**settings: Any) -> Tensor:
    """The loss whose other parts are 0: targets that are V, no term of the data unless asked."""
    given: dict[str, Any] = {"gamma": 0.5, "expectile": 0.8, "cql_weight": 0.0, **settings}
    same = V[None, ..., None].expand(2, 1, 2, 3)
    given = {"target_q": same, "q": Q, **given}
    return ilql(given.pop("q"), V, LABELS, MASK, REWARDS, **given)


def test_q_follows_the_reward_and_the_next_value() -> None:
    # y = 0 + 0.5 * 2 = 1 against 1 and 2; then y = 1 + 0, at the end, against 3 and 0.
    torch.testing.assert_close(part(), doubles([[0 + 1, 4 + 1]]))
    # Without discount y = 2: 1 + 0.
    torch.testing.assert_close(part(gamma=1.0), doubles([[1 + 0, 4 + 1]]))


def test_v_is_the_expectile_of_the_lesser_target() -> None:
    # min Q' of the logged tokens are 1.5 and 1: d = 1 and -1, weighed by 0.8 and by 0.2.
    target = doubles([[[[9, 1.5, 9], [9, 9, 1]]], [[[9, 7, 9], [9, 9, 4]]]])
    torch.testing.assert_close(part(target_q=target) - part(), doubles([[0.8, 0.2]]))
    halves = part(target_q=target, expectile=0.5) - part()
    torch.testing.assert_close(halves, doubles([[0.5, 0.5]]))  # half of the squared error


def test_the_term_of_the_data_is_the_cross_entropy_of_q() -> None:
    # Laws (1, 2, 1) / 4 and (1, 2, 5) / 8 of the logged token 1; then (1, 1, 2) / 4, twice.
    q = doubles([[[[1, 2, 1], [1, 1, 2]]], [[[1, 2, 5], [1, 1, 2]]]]).log()
    found = part(q=q, cql_weight=0.5) - part(q=q)
    torch.testing.assert_close(found, 0.5 * doubles([[math.log(2) + math.log(4), 2 * math.log(2)]]))
    # At half the temperature the laws are of the squares.
    colder = part(q=q, cql_weight=1.0, temperature=0.5) - part(q=q)
    first = math.log(6 / 4) + math.log(30 / 4)
    torch.testing.assert_close(colder, doubles([[first, 2 * math.log(6 / 4)]]))


def test_the_objective_adds_the_policys_cloning() -> None:
    logits, target = doubles([[[0, math.log(2), 0], [0, 0, math.log(6)]]]), Q + 0.25

    def loss(**given: float) -> Tensor:
        goal = objective("ilql", {"gamma": 0.5, "expectile": 0.8, **given})
        return goal.value_loss(logits, Q, target, V, LABELS, MASK, REWARDS)

    alone = ilql(Q, V, LABELS, MASK, REWARDS, target_q=target, gamma=0.5, expectile=0.8)
    torch.testing.assert_close(loss(bc_weight=0.0), alone)
    cloning = doubles([[math.log(2), math.log(8 / 6)]])
    torch.testing.assert_close(loss(bc_weight=3.0), alone + 3.0 * cloning)


OUTSIDE = {"expectile": 1.0, "gamma": 1.5, "cql_weight": -1.0, "temperature": 0.0, "polyak": 0.0}


@pytest.mark.parametrize(("name", "value"), [*OUTSIDE.items(), ("bc_weight", math.inf)])
def test_settings_that_cannot_be(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=name):
        objective("ilql", {name: value})


# -- heads ----------------------------------------------------------------------------------------


class Causal(nn.Module):
    """A causal model as transformers makes them, without a past."""

    def __init__(self, vocabulary: int = 3, hidden: int = 4) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(vocabulary, hidden), nn.Linear(hidden, vocabulary)

    def get_output_embeddings(self) -> nn.Module:
        return self.head

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, logits_to_keep: int = 0
    ) -> Any:
        return SimpleNamespace(logits=self.head(self.embed(input_ids)[:, -logits_to_keep:]))


class Headless(Causal):
    """One whose logits come without its head being called."""

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, logits_to_keep: int = 0
    ) -> Any:
        return SimpleNamespace(logits=self.embed(input_ids) @ self.head.weight.T)


class Scaled(Causal):
    """One that does something with what its head gives."""

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, logits_to_keep: int = 0
    ) -> Any:
        return SimpleNamespace(logits=0.5 * super().forward(input_ids).logits)


def valued() -> Causal:
    torch.manual_seed(0)
    model = Causal().double()
    heads = with_values(model)
    heads.follow(0.5)  # no change yet: targets begin as copies
    for tensor in heads.q.parameters():
        tensor.data += 0.1  # so that targets differ from here on
    return model


IDS = torch.tensor([[0, 1, 2], [2, 2, 0]])


def test_targets_begin_as_copies_follow_and_learn_nothing() -> None:
    heads = TokenValues(4, 3).double()
    hidden = torch.randn(2, 5, 4, dtype=torch.float64)
    q, value = heads(hidden)
    assert q.shape == (2, 2, 5, 3) and value.shape == (2, 5)
    assert bool((q == heads.target(hidden)).all()) and bool((q[0] != q[1]).any())
    before = [t.clone() for t in heads.target_q.parameters()]
    for tensor in heads.q.parameters():
        tensor.data += 1.0
    heads.follow(0.25)
    for old, new in zip(before, heads.target_q.parameters(), strict=True):
        torch.testing.assert_close(new, old + 0.25)
        assert not new.requires_grad
    assert not heads.target(hidden).requires_grad


def test_heads_see_the_state_from_which_a_token_is_predicted() -> None:
    model = valued()
    batch = {"first": 1, "input_ids": IDS, "attention_mask": IDS, "mask": torch.ones_like(IDS)}
    logits, labels, _, hidden = answer_states(model, batch, model)
    assert labels.tolist() == [[1, 2], [2, 0]]
    torch.testing.assert_close(hidden, model.embed(IDS)[:, :-1])
    torch.testing.assert_close(logits, model.head(hidden))
    assert hidden.requires_grad


@pytest.mark.parametrize("kind", [Headless, Scaled])
def test_models_whose_logits_are_not_the_heads_are_refused(kind: type[Causal]) -> None:
    with pytest.raises(ConfigError, match=f"{kind.__name__} changes its logits"):
        with_values(kind())


def test_steering_adds_the_advantage_by_the_targets() -> None:
    model = valued()
    plain, heads = model(IDS).logits.log_softmax(-1), values_of(model)
    hidden = model.embed(IDS)
    advantage = heads.target(hidden).amin(0) - heads.value(hidden)
    with steered(model, 2.0):
        torch.testing.assert_close(model(IDS).logits, plain + 2.0 * advantage)
        torch.testing.assert_close(model(IDS[:1]).logits, (plain + 2.0 * advantage)[:1])
    with steered(model, 0.0):
        torch.testing.assert_close(model(IDS).logits, plain)
    assert bool((model(IDS).logits.log_softmax(-1) == plain).all())
    with pytest.raises(ConfigError, match="beta is -1"), steered(model, -1.0):
        pass
    with pytest.raises(ConfigError, match="no heads"), steered(Causal(), 1.0):
        pass


def test_heads_are_written_beside_a_model_and_read_onto_it(tmp_path: Path) -> None:
    model = valued()
    heads, rest = split_values(model.state_dict())
    with without_values(model):
        assert set(rest) == set(model.state_dict())
    assert len(heads) == 5 * 4 and values_of(model)  # it has them again
    save_values(heads, tmp_path)
    again = Causal().double()
    again.load_state_dict(rest)
    load_values(tmp_path, again)
    for name, tensor in model.state_dict().items():
        assert bool((tensor == again.state_dict()[name]).all()), name
    other = Causal(hidden=5)
    with pytest.raises(ConfigError, match="does not belong to this model"):
        load_values(tmp_path, other)
    assert not hasattr(other, "token_values")
    with pytest.raises(ConfigError, match="--method ilql"):
        load_values(tmp_path / "elsewhere", again)
    (tmp_path / "values.safetensors").write_bytes(b"no tensors")
    with pytest.raises(DataError, match="cannot be read"):
        load_values(tmp_path, again)


# -- rewards of tokens ----------------------------------------------------------------------------


class Letters:
    """A tokenizer of single letters."""

    eos_token_id, unk_token_id, pad_token_id, bos_token_id = 0, None, 0, None

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        return {"input_ids": [ord(letter) for letter in text]}


GROUP: dict[str, Any] = {"prompt": "p", "completions": ["ab", "c"], "rewards": [1.0, -2.0]}


def tokens(**more: Any) -> list[Item]:
    examples = load_examples([{**GROUP, **more}], least_answers=1)
    return tokenize(examples, Letters(), max_length=4, least_answers=1, steps=True)


def test_a_reward_stands_at_the_last_token_and_tokens_may_have_their_own() -> None:
    collate = Collator(0, "tokens", token_rewards=True)
    assert collate(tokens())["token_rewards"].tolist() == [[0, 0, 0, 1], [0, 0, -2, 0]]
    own = tokens(token_rewards=[[0.25, 0, 0.5], [0, 3]])
    assert collate(own)["token_rewards"].tolist() == [[0, 0.25, 0, 1.5], [0, 0, 1, 0]]
    assert "token_rewards" not in Collator(0)(own)


def test_token_rewards_go_with_their_answers() -> None:
    steps = [[0.25, 0, 0.5], [0.0, 3.0]]
    (kept,) = tokens(token_rewards=steps, rewards=[math.nan, -2.0])
    assert kept.steps == ((0.0, 3.0),)
    longer = {"completions": ["abcd", "c"], "token_rewards": [[0.0] * 5, [0, 3]]}
    (kept,) = tokens(**longer)
    assert kept.steps == ((0.0, 3.0),)
    (row,) = load_examples([{**GROUP, "token_rewards": steps}]).rows
    assert row.record() == {**GROUP, "token_rewards": steps}


@pytest.mark.parametrize(
    ("steps", "words"),
    [
        ([[0, 0, 0]], "1 token_rewards for 2 completions"),
        ([[0, 0], [0, 0]], "answer 1 has 2 token_rewards and 3 tokens"),
        (
            [[0, 0, math.nan], [0, 0]],
            r"token_rewards\[0\]\[2\] is not a finite number|\[0\] is not",
        ),
        ([[0, 0, "1"], [0, 0]], "must be a number"),
        ([0.0, 1.0], "must be a list of numbers"),
        (0.5, "must be a list"),
    ],
    ids=str,
)
def test_token_rewards_that_cannot_be(steps: Any, words: str) -> None:
    with pytest.raises(DataError, match=words):
        tokens(token_rewards=steps)
