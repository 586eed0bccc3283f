"""The same numbers as TRL's GRPO trainer, on the same inputs; skipped where TRL is not installed.

Differences in definition: CISPO and VESPO of TRL multiply their weights with l, these with l - lo,
so the values differ by a constant and the gradients do not; LUSPO is the sum over tokens of a loss
that is the same on all of them, with the mean ratio of the sequence.
"""

import os
import warnings
from collections import defaultdict
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
from torch import Tensor

from offrl.lm.losses import advantages
from offrl.lm.losses import policy_gradient as pg
from offrl.lm.losses.groups import GROUP_METHODS, GroupMethod, by_advantage, group_loss
from offrl.lm.losses.masks import high_entropy, near_policy
from offrl.lm.losses.scores import Scores, agg

os.environ.setdefault("HF_HUB_OFFLINE", "1")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    trl = pytest.importorskip("trl")
    GRPOTrainer = trl.GRPOTrainer

B, G, T, LONGEST = 3, 4, 5, 7
MASK = (
    torch.arange(T) < torch.tensor([[5, 3, 1, 4], [2, 5, 5, 1], [3, 3, 4, 2]])[..., None]
).long()
REWARDS = torch.tensor([[1.0, 0, 0, 1], [0, 0, 1, 0], [0.5, 1, 0, 0]], dtype=torch.float64)
ADVANTAGES = advantages.standardised(REWARDS)


def draw(seed: int) -> Tensor:
    return torch.randn(B, G, T, generator=torch.Generator().manual_seed(seed)).double()


LOGP = -draw(0).abs() - 0.05
OLD, REF, ENTROPY = LOGP + 0.3 * draw(1), LOGP + 0.5 * draw(2), draw(3).abs()


def trainer(loss_type: str, **settings: Any) -> Any:
    """What `_compute_loss` reads of a trainer, around given log-probabilities."""
    options = {
        **{"use_bias_correction_kl": False, "delta": None, "steps_per_generation": 1},
        **{"sapo_temperature_pos": 1.0, "sapo_temperature_neg": 1.05},
        **{"vespo_k_pos": 2.0, "vespo_lambda_pos": 3.0, "vespo_k_neg": 3.0},
        **{"vespo_lambda_neg": 2.0, "entropy_coef": 0.0, "use_adaptive_entropy": False},
    }
    fake = MagicMock()
    fake.args = SimpleNamespace(**{**options, **settings})
    fake.loss_type, fake.beta = loss_type, settings.get("beta", 0.0)
    fake.epsilon_low, fake.epsilon_high = 0.2, settings.get("epsilon_high", 0.2)
    fake.importance_sampling_level = settings.get("level", "token")
    fake.off_policy_mask_threshold = settings.get("threshold")
    fake.top_entropy_quantile = settings.get("entropy_share", 1.0)
    fake.aux_loss_enabled = fake.use_vllm = fake._entropy_bonus_enabled = False
    fake.max_completion_length = LONGEST
    fake.current_gradient_accumulation_steps = fake.accelerator.num_processes = 1
    fake.accelerator.gather = fake.accelerator.reduce = lambda x, **_: x
    fake.accelerator.pad_across_processes = lambda x, **_: x
    fake._metrics = {"train": defaultdict(list), "eval": defaultdict(list)}
    fake.model.training = True
    for name in ("get_off_policy_mask", "get_gamma_weights"):
        setattr(fake, name, getattr(GRPOTrainer, name))
    fake.get_high_entropy_mask = partial(GRPOTrainer.get_high_entropy_mask, fake)
    return fake


def theirs(loss_type: str, **settings: Any) -> tuple[Tensor, Tensor]:
    """Value and gradient in the log-probabilities."""
    fake, logp = trainer(loss_type, **settings), LOGP.flatten(0, 1).requires_grad_()
    fake._get_per_token_logps_and_entropies = lambda *_, **__: (
        logp,
        ENTROPY.flatten(0, 1),
        None,
    )
    ids = torch.zeros(B * G, T, dtype=torch.int64)
    inputs = {
        **{"prompt_ids": ids[:, :1], "prompt_mask": ids[:, :1] + 1, "completion_ids": ids},
        **{"completion_mask": MASK.flatten(0, 1), "advantages": ADVANTAGES.flatten()},
        **{"old_per_token_logps": OLD.flatten(0, 1), "ref_per_token_logps": REF.flatten(0, 1)},
        "num_items_in_batch": MASK.sum(),
    }
    loss = GRPOTrainer._compute_loss(fake, fake.model, inputs)
    (gradient,) = torch.autograd.grad(loss, logp)
    return loss.detach(), gradient.unflatten(0, (B, G))


def ours(
    method: GroupMethod, kl: float = 0.0, extra: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    logp = LOGP.clone().requires_grad_()
    mask = MASK if extra is None else MASK * extra
    scores = Scores(logp, REF, mask, OLD)
    loss = group_loss(scores, REWARDS, method=method, kl=kl, max_length=LONGEST)
    (gradient,) = torch.autograd.grad(loss, logp)
    return loss.detach(), gradient


def agree(mine: tuple[Tensor, Tensor], yours: tuple[Tensor, Tensor], value: bool = True) -> None:
    if value:
        torch.testing.assert_close(mine[0], yours[0])
    torch.testing.assert_close(mine[1], yours[1])


CASES: dict[str, tuple[GroupMethod, dict[str, Any]]] = {
    "grpo": (GROUP_METHODS["grpo"], {}),
    "bnpo": (replace(GROUP_METHODS["dapo"], loss=by_advantage(pg.clipped)), {}),
    "dapo": (GROUP_METHODS["dapo"], {"epsilon_high": 0.28}),
    "sapo": (GROUP_METHODS["sapo"], {}),
    "dr_grpo": (replace(GROUP_METHODS["dr_grpo"], advantage=advantages.standardised), {}),
}


@pytest.mark.parametrize("name", CASES)
def test_the_losses_of_its_table(name: str) -> None:
    method, settings = CASES[name]
    agree(ours(method), theirs(name, **settings))


@pytest.mark.parametrize("name", ["grpo", "bnpo", "dr_grpo"])
def test_the_penalty_towards_the_reference(name: str) -> None:
    agree(ours(CASES[name][0], kl=0.3), theirs(name, beta=0.3))


def test_one_ratio_for_a_sequence() -> None:
    method = replace(GROUP_METHODS["gspo"], loss=by_advantage(pg.clipped))
    agree(ours(method), theirs("grpo", level="sequence"))


def test_a_bound_on_the_ratio() -> None:
    method = replace(GROUP_METHODS["grpo"], loss=by_advantage(pg.clipped, bound=1.1))
    agree(ours(method), theirs("grpo", delta=1.1))


def test_cispo_has_the_same_gradient() -> None:
    method = replace(GROUP_METHODS["cispo"], loss=by_advantage(pg.cispo, high=1.3))
    agree(ours(method), theirs("cispo", epsilon_high=1.3), value=False)


def test_vespo_has_the_same_gradient() -> None:
    logp = LOGP.clone().requires_grad_()
    loss = pg.vespo(logp - OLD, ADVANTAGES[..., None], MASK)
    total = agg(loss.flatten(0, 1), MASK.flatten(0, 1), "token_mean")
    (gradient,) = torch.autograd.grad(total, logp)
    torch.testing.assert_close(gradient, theirs("vespo")[1])


def test_the_masks_of_its_trainer() -> None:
    method = CASES["bnpo"][0]
    far = near_policy(LOGP, OLD, ADVANTAGES[..., None], MASK, threshold=0.05)
    top = high_entropy(ENTROPY.flatten(0, 1), MASK.flatten(0, 1), share=0.4).unflatten(0, (B, G))
    assert 0 < far.sum() < MASK.sum() and 0 < top.sum() < MASK.sum()
    # TRL divides by all tokens, not by those that are left.
    for extra, settings in ((far, {"threshold": 0.05}), (top, {"entropy_share": 0.4})):
        share = extra.sum() / MASK.sum()
        value, gradient = ours(method, extra=extra)
        agree((share * value, share * gradient), theirs("bnpo", **settings))


def test_luspo_is_a_sum_over_tokens() -> None:
    logp = LOGP.clone().requires_grad_()
    ratio = pg.sequence_ratio(logp - OLD, MASK)
    loss = pg.clipped(ratio, ADVANTAGES[..., None]).expand(B, G, T)
    total = agg(loss.flatten(0, 1), MASK.flatten(0, 1), "sequence_sum")
    agree((total.detach(), torch.autograd.grad(total, logp)[0]), theirs("luspo", level="sequence"))
