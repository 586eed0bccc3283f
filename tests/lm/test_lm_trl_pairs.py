"""The same losses and gradients as TRL's trainers, on the same model; skipped without TRL.

Differences in definition: TRL averages IPO over lengths, which is `length="mean"` here; it weighs a
token mean of the batch as the cloning term of RPO, which is a sum over each answer here; it clamps
exponents of f-divergences where these go on as a tangent, far from what is compared here.
"""

import dataclasses
import os
from pathlib import Path
from typing import Any

import pytest
import tiny_lm
import torch
from torch import Tensor

from offrl.lm.objectives import objective
from offrl.lm.sorting import digit_tokenizer
from offrl.lm.trainer import LmTrainConfig, Plan, make_trainer

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
trl = pytest.importorskip("trl")
datasets = pytest.importorskip("datasets")

pytestmark = pytest.mark.filterwarnings("default")  # what TRL itself warns of

COMMON: dict[str, Any] = {
    **{"report_to": "none", "use_cpu": True, "per_device_train_batch_size": 4},
    **{"dataloader_pin_memory": False, "bf16": False, "max_length": None},
}


def theirs(kind: str, form: str, folder: Path, **settings: Any) -> tuple[Tensor, Tensor]:
    model, more = tiny_lm.model(1), {}
    if kind != "SFT":
        more["ref_model"] = tiny_lm.model(0)
    trainer = getattr(trl, f"{kind}Trainer")(
        model,
        args=getattr(trl, f"{kind}Config")(output_dir=str(folder), **COMMON, **settings),
        train_dataset=datasets.Dataset.from_list(tiny_lm.RECORDS[form]),
        processing_class=digit_tokenizer(),
        **more,
    )
    batch = next(iter(trainer.get_train_dataloader()))
    model.train()
    value = trainer.compute_loss(model, batch)
    return value.detach(), gradient(value, model)


def ours(name: str, folder: Path, **options: float | str) -> tuple[Tensor, Tensor]:
    goal, model = objective(name, options), tiny_lm.model(1)
    config = LmTrainConfig(batch=4, micro_batch=4, cpu=True)
    plan = Plan(model, goal, tiny_lm.items(goal), digit_tokenizer(), config)
    if goal.needs_reference:
        plan = dataclasses.replace(plan, reference=tiny_lm.model(0))
    trainer = make_trainer(plan, folder)
    value = trainer.compute_loss(model, trainer.data_collator(trainer.train_dataset))
    return value.detach(), gradient(value, model)


def gradient(value: Tensor, model: Any) -> Tensor:
    parts = torch.autograd.grad(value, list(model.parameters()))
    return torch.cat([part.flatten() for part in parts])


CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "sigmoid": ("dpo", {}, {}),
    "hinge": ("hinge", {"beta": 0.1}, {}),
    "ipo": ("ipo", {"length": "mean"}, {}),
    "robust": ("rdpo", {"flip": 0.1}, {"label_smoothing": 0.1}),
    "exo_pair": ("exo", {"smoothing": 0.01}, {"label_smoothing": 0.01}),
    "sigmoid_norm": ("ln_dpo", {"beta": 0.1}, {}),
}


def agree(mine: tuple[Tensor, Tensor], yours: tuple[Tensor, Tensor]) -> None:
    torch.testing.assert_close(mine[0], yours[0], rtol=1e-4, atol=1e-6)
    scale = float(yours[1].abs().max())
    assert scale > 0
    torch.testing.assert_close(mine[1] / scale, yours[1] / scale, rtol=0, atol=1e-4)


@pytest.mark.parametrize("loss_type", CASES)
def test_pairs(loss_type: str, tmp_path: Path) -> None:
    name, options, settings = CASES[loss_type]
    yours = theirs("DPO", "pairs", tmp_path, loss_type=[loss_type], beta=0.1, **settings)
    agree(ours(name, tmp_path, **options), yours)


@pytest.mark.parametrize(
    ("divergence", "name"), [("forward_kl", "forward_kl"), ("js_divergence", "js")]
)
def test_divergences(divergence: str, name: str, tmp_path: Path) -> None:
    yours = theirs("DPO", "pairs", tmp_path, f_divergence_type=divergence, beta=0.1)
    agree(ours("f_dpo", tmp_path, divergence=name), yours)


def test_lengths(tmp_path: Path) -> None:
    yours = theirs("DPO", "pairs", tmp_path, ld_alpha=0.3, beta=0.1)
    agree(ours("ld_dpo", tmp_path, alpha=0.3), yours)


def test_labels(tmp_path: Path) -> None:
    yours = theirs("KTO", "labels", tmp_path, loss_type="apo_zero_unpaired", beta=0.1)
    agree(ours("apo_zero_unpaired", tmp_path), yours)


@pytest.mark.parametrize("loss_type", ["nll", "dft"])
def test_demonstrations(loss_type: str, tmp_path: Path) -> None:
    yours = theirs("SFT", "demonstrations", tmp_path, loss_type=loss_type)
    agree(ours({"nll": "sft"}.get(loss_type, loss_type), tmp_path), yours)
