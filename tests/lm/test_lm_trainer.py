"""Trainers on a real, tiny model: what must not change a loss, and what must."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("transformers")
pytest.importorskip("accelerate")

import tiny_lm

from offrl.errors import ConfigError
from offrl.lm.losses.tokens import token_logps
from offrl.lm.models import answer_logps, with_lora
from offrl.lm.objectives import names, objective
from offrl.lm.scoring import score_answers
from offrl.lm.tokens import Collator, Item
from offrl.lm.trainer import LmTrainConfig, Plan, fit, make_trainer

# peft 0.21 uses a name that transformers 5.23 has another for.
pytestmark = pytest.mark.filterwarnings("ignore:.*will be removed in v6:FutureWarning")
METHODS = tuple(names())
# Their losses have numbers of the whole micro-batch: a KL, and the law of the rewards.
OF_THE_BATCH = {"kto", "bnpo"}
SEPARATE = tuple(name for name in METHODS if name not in OF_THE_BATCH)


def loss(
    plan: Plan, out: Path, *, cut: int = 4, order: tuple[int, ...] = (0, 1, 2, 3), wider: int = 0
) -> tuple[Tensor, Tensor]:
    """The loss of all examples in micro-batches of `cut`, and its gradient as one vector."""
    trainer = make_trainer(plan, out)
    collate = trainer.data_collator
    items = [plan_items(trainer)[i] for i in order]
    batches = [collate(items[i : i + cut]) for i in range(0, len(items), cut)]
    if wider:
        batches = [widened(batch, wider) for batch in batches]
    total = torch.stack([batch["count"] for batch in batches]).sum()
    plan.model.zero_grad()
    value = torch.zeros(())
    for batch in batches:
        part = trainer.compute_loss(plan.model, batch, num_items_in_batch=total)
        part.backward()
        value += part.detach()
    found = [p.grad.flatten() for p in plan.model.parameters() if p.grad is not None]
    return value, torch.cat(found)


def plan_items(trainer: Any) -> list[Item]:
    return list(trainer.train_dataset)


def widened(batch: dict[str, Any], more: int) -> dict[str, Any]:
    """More padding on the right of every row, whose ids count for nothing."""
    wide = dict(batch)
    for name in ("input_ids", "attention_mask", "mask", "ref_logp", "old_logp", "token_rewards"):
        if name in batch:
            fill = 7 if name == "input_ids" else 0
            wide[name] = torch.nn.functional.pad(batch[name], (0, more), value=fill)
    return wide


def same(mine: tuple[Tensor, Tensor], yours: tuple[Tensor, Tensor]) -> None:
    torch.testing.assert_close(mine[0], yours[0], rtol=2e-5, atol=2e-6)
    scale = float(yours[1].abs().max()) or 1.0
    torch.testing.assert_close(mine[1] / scale, yours[1] / scale, rtol=0, atol=3e-5)


@pytest.mark.parametrize("name", METHODS)
def test_neither_padding_nor_order_changes_a_loss(name: str, tmp_path: Path) -> None:
    plain = loss(tiny_lm.plan(name), tmp_path)
    assert float(plain[1].abs().max()) > 0
    same(loss(tiny_lm.plan(name), tmp_path, wider=3), plain)
    order = (0, 1, 2, 3) if name == "kto" else (2, 0, 3, 1)  # kto's KL pairs neighbours
    same(loss(tiny_lm.plan(name), tmp_path, order=order), plain)


@pytest.mark.parametrize("name", SEPARATE)
def test_how_an_update_is_cut_changes_nothing(name: str, tmp_path: Path) -> None:
    same(loss(tiny_lm.plan(name), tmp_path, cut=3), loss(tiny_lm.plan(name), tmp_path))


def test_accumulated_updates_reach_the_same_weights(tmp_path: Path) -> None:
    """Through the whole loop: counts, schedule and clipping included."""
    ends = []
    for micro in (1, 4):
        plan = tiny_lm.plan("dapo", micro_batch=micro, steps=3, learning_rate=1e-3, warmup=0.0)
        trainer = fit(plan, tmp_path / str(micro))
        ends.append(torch.cat([p.detach().flatten() for p in trainer.model.parameters()]))
        losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
        assert all(map(math.isfinite, losses))
    start = torch.cat([p.detach().flatten() for p in tiny_lm.model(1).parameters()])
    assert float((ends[0] - start).abs().max()) > 1e-3
    torch.testing.assert_close(ends[0], ends[1], rtol=0, atol=3e-5)


AT_THE_REFERENCE = {"dpo": math.log(2), "cdpo": math.log(2), "chi_po": math.log(2), "kto": 0.5}
AT_THE_REFERENCE |= {"ipo": 25.0, "hinge": 1.0, "apo_zero_unpaired": 0.5}


@pytest.mark.parametrize("name", AT_THE_REFERENCE)
def test_a_policy_that_is_its_reference(name: str, tmp_path: Path) -> None:
    plan = dataclasses.replace(tiny_lm.plan(name, tiny_lm.model(0)), reference=None)
    value, _ = loss(plan, tmp_path)
    assert float(value) == pytest.approx(AT_THE_REFERENCE[name], rel=1e-5)


# -- references ---------------------------------------------------------------------------------


def adapted(seed: int = 0, moved: float = 0.0) -> Any:
    pytest.importorskip("peft")
    model = with_lora(tiny_lm.model(seed), 2, 4.0, "all-linear")
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data += moved * torch.randn(parameter.shape, generator=generator)
    return model


def test_an_adapter_that_is_off_is_the_model_without_it(tmp_path: Path) -> None:
    items = tiny_lm.items(tiny_lm.goal("dpo"))
    model = adapted(moved=0.5)
    base, on = (score_answers(m, items, 0, 4) for m in (tiny_lm.model(0), model))
    with model.disable_adapter():
        off = score_answers(model, items, 0, 4)
    assert off == base and on != base
    plan = tiny_lm.plan("dpo", adapted())
    value, gradient = loss(plan, tmp_path)
    assert float(value) == pytest.approx(math.log(2), rel=1e-6) and float(gradient.norm()) > 0
    moved = loss(tiny_lm.plan("dpo", model), tmp_path)
    copied = dataclasses.replace(
        tiny_lm.plan("dpo", adapted(moved=0.5)), reference=tiny_lm.model(0)
    )
    same(moved, loss(copied, tmp_path))
    assert abs(float(moved[0]) - math.log(2)) > 1e-3


@pytest.mark.parametrize("name", ["dpo", "adpo", "grpo"])
def test_stored_numbers_are_those_of_the_model(name: str, tmp_path: Path) -> None:
    copied = loss(tiny_lm.plan(name), tmp_path)
    stored = tiny_lm.plan(name, reference="stored")
    same(loss(stored, tmp_path), copied)
    assert (tmp_path / "reference.safetensors").exists()
    # Read again rather than computed: the reference is another now.
    other = dataclasses.replace(tiny_lm.plan(name, reference="stored"), reference=tiny_lm.model(5))
    same(loss(other, tmp_path), copied)


def test_references_that_cannot_be(tmp_path: Path) -> None:
    for name, reference, words in (
        ("kto", "stored", "cannot be stored"),
        ("asft", "stored", "cannot be stored"),
        ("dpo", "adapter", "adapter off"),
        ("simpo", "copy", "no reference"),
        ("sft", "copy", "no reference"),
    ):
        plan = dataclasses.replace(tiny_lm.plan(name, reference=reference))
        with pytest.raises(ConfigError, match=words):
            make_trainer(plan, tmp_path)


# -- edges --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["dpo", "simpo", "adpo", "grpo", "dr_grpo", "rloo", "topr", "sft", "ilql"]
)
def test_an_answer_without_tokens_is_no_nan(name: str, tmp_path: Path) -> None:
    plan = tiny_lm.plan(name)
    items = list(plan.items)
    first = items[0]
    bare = (*first.answers[:-1], ())
    behavior = None if first.behavior is None else (*first.behavior[:-1], ())
    items[0] = dataclasses.replace(first, answers=bare, behavior=behavior)
    value, gradient = loss(dataclasses.replace(plan, items=items), tmp_path)
    assert value.isfinite() and gradient.isfinite().all() and float(gradient.norm()) > 0


@pytest.mark.parametrize("name", ["grpo", "rloo", "reinforce", "adpo", "copg"])
def test_a_group_of_one_teaches_nothing_where_answers_are_compared(
    name: str, tmp_path: Path
) -> None:
    plan = tiny_lm.plan(name, tiny_lm.model(0))
    one = plan.items[0]
    behavior = None if one.behavior is None else one.behavior[:1]
    alone = dataclasses.replace(
        one, answers=one.answers[:1], rewards=one.rewards[:1], behavior=behavior
    )
    value, gradient = loss(dataclasses.replace(plan, items=[alone]), tmp_path, order=(0,))
    assert value.isfinite() and gradient.isfinite().all()
    assert float(gradient.abs().max()) < 1e-5


def test_the_head_skips_prompts_and_changes_nothing() -> None:
    """Scores by hand, from logits of every place of every row alone."""
    model, items = tiny_lm.model(1), tiny_lm.items(tiny_lm.goal("dpo"))
    batch = Collator(0)(items)
    logp, mask = answer_logps(model, batch, model)
    rows = [(item.prompt, answer) for item in items for answer in item.answers]
    for row, inside, (prompt, answer) in zip(logp, mask, rows, strict=True):
        ids = torch.tensor([[*prompt, *answer]])
        with torch.no_grad():
            by_hand = token_logps(model(ids).logits[:, :-1], ids[:, 1:])[0, len(prompt) - 1 :]
        torch.testing.assert_close(row[inside != 0].detach(), by_hand, rtol=1e-5, atol=1e-6)
        assert not row[inside == 0].any()


@pytest.mark.parametrize("lora", [0, 2])
def test_checkpointed_gradients_are_the_same(lora: int, tmp_path: Path) -> None:
    policies = [adapted(moved=0.5) if lora else None for _ in range(2)]
    plain = loss(tiny_lm.plan("dpo", policies[0]), tmp_path)
    less_memory = tiny_lm.plan("dpo", policies[1], gradient_checkpointing=True)
    less_memory.model.train()
    same(loss(less_memory, tmp_path), plain)
    assert any(getattr(m, "gradient_checkpointing", False) for m in less_memory.model.modules())


def test_dropout_is_off_but_for_demonstrations(tmp_path: Path) -> None:
    for name, rate in (("dpo", 0.0), ("sft", 0.5)):
        model = tiny_lm.model(1)
        model.model.layers[0].self_attn.attention_dropout = 0.5
        make_trainer(tiny_lm.plan(name, model), tmp_path)
        assert model.model.layers[0].self_attn.attention_dropout == rate


# -- settings -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [{"batch": 0}, {"learning_rate": 0.0}, {"learning_rate": math.nan}, {"warmup": 2.0}],
    ids=str,
)
def test_settings_that_cannot_be(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(settings))):
        LmTrainConfig(**settings)


def test_batches_that_do_not_divide(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="multiple of 3"):
        make_trainer(tiny_lm.plan("dpo", batch=4, micro_batch=3), tmp_path)
    with pytest.raises(ConfigError, match="micro_batch of 1"):
        make_trainer(tiny_lm.plan("kto", micro_batch=1), tmp_path)


@pytest.mark.parametrize(
    ("name", "given", "words"),
    [
        ("dop", {}, "did you mean 'dpo'"),
        ("xpo", {}, "samples of the reference"),
        ("ilql", {"expectile": 1.0}, r"expectile is 1.0; it must be in \(0, 1\)"),
        ("dpo", {"beto": 1.0}, "did you mean 'beta'"),
        ("sft", {"beta": 1.0}, "it has none"),
        ("copg", {}, "--beta VALUE"),
    ],
)
def test_methods_and_settings_that_are_not(name: str, given: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        objective(name, given)
