"""Whole methods on scored groups: equal to their flat formulas, and what must not change them."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from offrl.errors import ConfigError
from offrl.lm.losses.groups import GROUP_METHODS, group_loss
from offrl.lm.losses.scores import Scores

B, G, T = 2, 3, 4
MASK = torch.tensor(
    [[[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]], [[1, 1, 1, 0], [1, 1, 1, 1], [0, 0, 0, 0]]]
)
REWARDS = torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]], dtype=torch.float64)
ALL = sorted(GROUP_METHODS)


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


LOGP, OLD, REF = (-draw(B, G, T, seed=i).abs() - 0.1 for i in range(3))
OLD = LOGP + 0.3 * draw(B, G, T, seed=4)


def scores(logp: Tensor = LOGP, mask: Tensor = MASK, old: Tensor | None = OLD) -> Scores:
    return Scores(logp, REF[: len(logp)] if logp.shape == REF.shape else None, mask, old)


def value(name: str, s: Scores, rewards: Tensor = REWARDS, member: Tensor | None = None) -> Tensor:
    return group_loss(s, rewards, member, method=GROUP_METHODS[name], max_length=5)


def slope(name: str, logp: Tensor = LOGP) -> Tensor:
    x = logp.clone().requires_grad_()
    return torch.autograd.grad(value(name, scores(x)).sum(), x)[0]


def flat(name: str) -> float:
    """Loops over answers and tokens, for the methods that TRL or a paper spells out so."""
    parts, tokens = [], 0
    for b in range(B):
        mean = REWARDS[b].mean().item()
        spread = REWARDS[b].std().item() + 1e-4
        for g in range(G):
            a = REWARDS[b, g].item() - mean
            n = int(MASK[b, g].sum())
            d = (LOGP - OLD)[b, g, :n].tolist()
            tokens += n
            if name in ("grpo", "dapo"):
                high = 1.28 if name == "dapo" else 1.2
                terms = [
                    -min(math.exp(x) * a / spread, min(max(math.exp(x), 0.8), high) * a / spread)
                    for x in d
                ]
            elif name == "dr_grpo":
                terms = [-min(math.exp(x) * a, min(max(math.exp(x), 0.8), 1.2) * a) for x in d]
            elif name == "reinforce":
                terms = [-a * x for x in d]
            elif name == "opmd":
                terms = [(a - sum(d)) ** 2 / 2] if n else []
            else:
                sign = REWARDS[b, g].item() - 0.5
                weight = 1.0 if sign > 0 else min(math.exp(sum(d)), 1.0)
                terms = [-weight * sign * sum(d)] if n else []
            parts.append((sum(terms), max(n, 1)))
    if name == "grpo":
        return sum(s / n for s, n in parts) / (B * G)
    if name == "dr_grpo":
        return sum(s for s, _ in parts) / (B * G * 5)
    return sum(s for s, _ in parts) / (tokens if name in ("dapo", "reinforce") else B * G)


@pytest.mark.parametrize("name", ["grpo", "dr_grpo", "dapo", "reinforce", "opmd", "topr"])
def test_a_method_is_its_flat_formula(name: str) -> None:
    assert value(name, scores()).item() == pytest.approx(flat(name), rel=1e-12)


@pytest.mark.parametrize("name", ALL)
def test_what_is_masked_or_no_member_changes_nothing(name: str) -> None:
    """Padding, truncation's right edge, an empty answer, and answers that fill up a group."""
    expected, gradient = value(name, scores()), slope(name)
    assert gradient.isfinite().all() and not gradient[MASK == 0].any()
    junk = torch.where(MASK != 0, LOGP, math.nan)
    wide = torch.full((B, G + 2, T + 1), math.inf).double()
    mask, rewards = torch.ones(B, G + 2, T + 1), torch.full((B, G + 2), math.nan).double()
    old, member = wide.clone(), torch.zeros(B, G + 2)
    wide[:, :G, :T], old[:, :G, :T], rewards[:, :G], member[:, :G] = junk, OLD, REWARDS, 1
    mask[:, :G] = torch.nn.functional.pad(MASK, (0, 1))
    found = value(name, Scores(wide, None, mask, old), rewards, member)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("name", ALL)
def test_order_does_not_matter(name: str) -> None:
    prompts, answers = torch.tensor([1, 0]), torch.tensor([2, 0, 1])

    def mixed(x: Tensor) -> Tensor:
        return x[prompts][:, answers]

    found = value(name, Scores(mixed(LOGP), None, mixed(MASK), mixed(OLD)), mixed(REWARDS))
    torch.testing.assert_close(found, value(name, scores()))


# BNPO's shape comes from all prompts of the batch at once.
@pytest.mark.parametrize("name", sorted(set(ALL) - {"bnpo"}))
def test_pieces_add_up_to_the_batch(name: str) -> None:
    method = GROUP_METHODS[name]
    total = float(MASK.sum()) if method.mode == "token_mean" else float(B * G)
    pieces = [
        group_loss(
            Scores(LOGP[i : i + 1], None, MASK[i : i + 1], OLD[i : i + 1]),
            REWARDS[i : i + 1],
            method=method,
            total=total,
            max_length=5,
        )
        for i in range(B)
    ]
    torch.testing.assert_close(pieces[0] + pieces[1], value(name, scores()))


@pytest.mark.parametrize("name", ALL)
def test_learners_never_mix(name: str) -> None:
    other = draw(B, G, T, seed=9)
    stacked = Scores(
        torch.stack([LOGP, LOGP + 0.1 * other]),
        None,
        torch.stack([MASK, MASK]),
        torch.stack([OLD, OLD]),
    )
    found = value(name, stacked, torch.stack([REWARDS, 1 - REWARDS]))
    torch.testing.assert_close(found[0], value(name, scores()))
    alone = value(name, scores(LOGP + 0.1 * other), 1 - REWARDS)
    torch.testing.assert_close(found[1], alone)


@pytest.mark.parametrize("name", ALL)
def test_on_policy_every_method_moves_towards_what_was_rewarded(name: str) -> None:
    x = LOGP.clone().requires_grad_()
    (found,) = torch.autograd.grad(value(name, scores(x, old=LOGP)).sum(), x)
    up = REWARDS[..., None].expand_as(found)[MASK != 0] > 0
    moved = -found[MASK != 0]
    assert (moved[up] >= 0).all() if name != "nsr" else (moved[up] == 0).all()
    # Cloning and filtered cloning do not push down; AsymRE and AWR pull up a little.
    if name not in ("psr", "awr", "asymre"):
        assert (moved[~up] <= 0).all()
    assert moved.any()


@pytest.mark.parametrize("name", ALL)
def test_without_a_sampler_only_what_is_right_on_any_data_goes_on(name: str) -> None:
    if GROUP_METHODS[name].any_data:
        found = value(name, scores(old=None))
        x = LOGP.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(value(name, scores(x, old=None)), x)
        assert found.isfinite() and gradient.any()
    else:
        with pytest.raises(ConfigError, match="old_logp"):
            value(name, scores(old=None))


def test_the_penalty_is_k3_on_every_token() -> None:
    # Everything else is 0 where all rewards agree.
    method = replace(GROUP_METHODS["grpo"], mode="token_mean")
    found = group_loss(scores(), torch.ones(B, G).double(), method=method, kl=0.5)
    u = (LOGP - REF)[MASK != 0]
    torch.testing.assert_close(found, 0.5 * ((-u).exp() + u - 1).mean())
    with pytest.raises(ConfigError, match="ref_logp"):
        bare = Scores(LOGP, None, MASK, OLD)
        group_loss(bare, REWARDS, method=method, kl=0.5)


def test_a_group_of_one_and_a_group_that_agrees_teach_nothing() -> None:
    for name in ("grpo", "dr_grpo", "rloo", "reinforce", "nft"):
        one = Scores(LOGP[:, :1], None, MASK[:, :1], LOGP[:, :1])
        x = LOGP.clone().requires_grad_()
        if name != "nft":  # whose right answers are cloned even where all are right
            assert value(name, one, REWARDS[:, :1]).abs().item() < 1e-12
            agree = value(name, scores(x), torch.ones(B, G).double())
            assert not torch.autograd.grad(agree, x)[0].any()
        assert value(name, one, REWARDS[:, :1]).isfinite()


@pytest.mark.compiled
@pytest.mark.parametrize("name", ["bnpo", "nft", "topr"])
def test_a_loss_is_one_graph(name: str) -> None:
    """So that an agent may have it in a compiled or captured update."""

    def loss(given: Scores, rewards: Tensor) -> Tensor:
        return value(name, given, rewards)

    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(scores(), REWARDS), loss(scores(), REWARDS))
