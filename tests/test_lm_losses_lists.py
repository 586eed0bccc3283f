"""Losses of lists: flat transcriptions, their identities with losses of pairs, ragged lists.

A docstring that begins with "Identity" names one of the numerical identities of the sheet that
lists these methods.
"""

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from itertools import combinations
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lm_cases import altered, draw, faulty, gradients, padded, ragged, single, slope, tracked
from torch import Tensor

from offrl.lm.losses import lists
from offrl.lm.losses.advantages import standardised
from offrl.lm.losses.contrast import cdpo, dpo
from offrl.lm.losses.lists import (
    a_star_po,
    adpo,
    boltzmann,
    copg,
    copg_square,
    info_nca,
    nca,
    optimal_value,
    ranking_consistency,
    ratio_entropy,
)
from offrl.lm.losses.margins import ipo
from offrl.lm.losses.scores import Scores
from offrl.losses import huber_loss

BETA, E = 0.3, 0.15
B, K = 7, 4
LW, LL, RW, RL = (-draw(i, B).abs() * 5 - 1 for i in range(4))
PAIR = single(torch.stack([LW, LL], 1), torch.stack([RW, RL], 1))
R1, R2 = draw(8, B), draw(9, B)
REWARDS = draw(5, B, K)
TARGET = REWARDS.softmax(-1)


def doubles(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def u(s: Scores) -> Tensor:
    assert s.ref_logp is not None
    return ((s.logp - s.ref_logp) * s.mask).sum(-1)


def o(s: Scores) -> Tensor:
    assert s.old_logp is not None
    return ((s.logp - s.old_logp) * s.mask).sum(-1)


def big(s: Scores) -> Tensor:
    return (s.logp * s.mask).sum(-1)


def of_pairs(f: Callable[[int, int], Tensor]) -> Tensor:
    """The mean over all pairs of a list."""
    return torch.stack([f(i, j) for i, j in combinations(range(K), 2)]).mean(0)


def flat_copg(s: Scores, beta: float) -> Tensor:
    e = (REWARDS - beta * u(s)).detach()
    logp = big(s)
    return of_pairs(lambda i, j: -(e[:, i] - e[:, j]) * (logp[:, i] - logp[:, j]))


def flat_square(s: Scores, beta: float) -> Tensor:
    e = REWARDS - beta * o(s)
    return of_pairs(lambda i, j: (e[:, i] - e[:, j]).square() / (2 * beta))


Loss = Callable[[Any, Scores], Tensor]
LOSSES: dict[str, tuple[Loss, Callable[[Scores], Tensor]]] = {
    "adpo": (
        lambda m, s: m.adpo(s, TARGET, tau=0.7, against="old"),
        lambda s: -(TARGET * (o(s) / 0.7).log_softmax(-1)).sum(-1),
    ),
    "info_nca": (
        lambda m, s: m.info_nca(s, REWARDS, alpha=0.6, beta=0.2),
        lambda s: -((REWARDS / 0.6).softmax(-1) * (0.2 * u(s)).log_softmax(-1)).sum(-1),
    ),
    "nca": (
        lambda m, s: m.nca(s, REWARDS, alpha=0.6, beta=0.2),
        lambda s: (
            -((REWARDS / 0.6).softmax(-1) * F.logsigmoid(0.2 * u(s))).sum(-1)
            - F.logsigmoid(-0.2 * u(s)).mean(-1)
        ),
    ),
    "copg": (lambda m, s: m.copg(s, REWARDS, beta=0.3), lambda s: flat_copg(s, 0.3)),
    "copg_square": (
        lambda m, s: m.copg_square(s, REWARDS, beta=0.3, against="old"),
        lambda s: flat_square(s, 0.3),
    ),
    "a_star_po": (
        lambda m, s: m.a_star_po(s, REWARDS, value=R1, beta=0.05),
        lambda s: (0.05 * u(s) - REWARDS + R1[:, None]).square().mean(-1),
    ),
    "ratio_entropy": (
        lambda m, s: m.ratio_entropy(s),
        lambda s: -(u(s).softmax(-1) * u(s).log_softmax(-1)).sum(-1),
    ),
}


def agree(name: str, module: Any = lists) -> None:
    loss, flat = LOSSES[name]
    scores = tracked(ragged(20, B, K))
    found, expected = loss(module, scores), flat(scores)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(*(gradients(x, [scores.logp])[0] for x in (found, expected)))


@pytest.mark.parametrize("name", LOSSES)
def test_each_loss_is_its_transcription(name: str) -> None:
    agree(name)


FAULTS = [
    ("adpo", "adpo", ") / tau, member", ") * tau, member"),
    ("adpo", "adpo", "against=against", 'against="ref"'),
    ("adpo", "_log_law", "log_softmax", "softmax"),
    ("info_nca", "info_nca", "1.0 / beta", "beta"),
    ("info_nca", "boltzmann", "rewards / temperature", "rewards"),
    ("nca", "nca", "-better -", "-better +"),
    ("nca", "nca", "F.logsigmoid(-z)", "F.logsigmoid(z)"),
    ("copg", "copg", "rewards - beta", "rewards + beta"),
    ("copg", "copg", "return -2.0", "return 2.0"),
    ("copg", "copg", 'against="none"', 'against="ref"'),
    ("copg_square", "copg_square", ".sum(-1) - 1)", ".sum(-1))"),
    ("copg_square", "copg_square", " / beta", ""),
    ("a_star_po", "a_star_po", ") - value", ") + value"),
    ("a_star_po", "_mean", "inside.sum(-1)", "1 + inside.sum(-1)"),
    ("ratio_entropy", "ratio_entropy", "return -", "return "),
]


@pytest.mark.parametrize(("name", "function", "old", "new"), FAULTS)
def test_every_slip_is_noticed(name: str, function: str, old: str, new: str) -> None:
    with pytest.raises(AssertionError):
        agree(name, faulty("lists", function, old, new))


def test_every_loss_is_transcribed() -> None:
    parts = {"boltzmann", "optimal_value", "ranking_consistency"}
    public = {n for n, v in vars(lists).items() if getattr(v, "__module__", "") == lists.__name__}
    assert {n for n in public if not n.startswith("_")} - parts == set(LOSSES)


# -- what holds of every loss of lists -----------------------------------------------------------


def of_list(name: str, scores: Scores, rewards: Tensor, member: Tensor | None = None) -> Tensor:
    if name == "adpo":
        target = boltzmann(rewards, member, temperature=1.0)
        return adpo(scores, target, member)
    if name == "a_star_po":
        value = optimal_value(rewards, member)
        return a_star_po(scores, rewards, member, value=value)
    if name == "ratio_entropy":
        return ratio_entropy(scores, member)
    call: Callable[..., Tensor] = {
        "info_nca": partial(info_nca, alpha=0.5),
        "nca": partial(nca, alpha=0.5),
        "copg": partial(copg, beta=0.3),
        "copg_square": partial(copg_square, beta=0.3),
    }[name]
    return call(scores, rewards, member)


@pytest.mark.parametrize("name", LOSSES)
def test_absent_members_do_not_count(name: str) -> None:
    scores = ragged(20, B, K)
    expected = of_list(name, scores, REWARDS)

    def wider(x: Tensor) -> Tensor:
        fill = torch.full_like(x[:, :1], 0 if x.dtype == torch.int64 else math.nan)
        return torch.cat([x, fill], 1)

    more = tracked(altered(scores, wider))
    member = torch.arange(K + 1).expand(B, -1) < K
    rewards = torch.cat([REWARDS, torch.full((B, 1), math.nan).double()], 1)
    loss = of_list(name, more, rewards, member)
    torch.testing.assert_close(loss, expected)
    (gradient,) = gradients(loss, [more.logp])
    assert gradient.isfinite().all() and not gradient[:, K].any()


@pytest.mark.parametrize("name", LOSSES)
def test_padding_and_order_do_not_count(name: str) -> None:
    scores = ragged(20, B, K)
    expected = of_list(name, scores, REWARDS)
    longer = padded(scores, 1, 2, math.nan)
    torch.testing.assert_close(of_list(name, longer, REWARDS), expected)
    lists_, members = torch.tensor([3, 0, 6, 1, 5, 2, 4]), torch.tensor([2, 0, 3, 1])
    mixed = altered(scores, lambda x: x[lists_][:, members])
    shuffled = of_list(name, mixed, REWARDS[lists_][:, members])
    torch.testing.assert_close(shuffled, expected[lists_])


@pytest.mark.parametrize("name", ["adpo", "info_nca", "copg", "copg_square", "ratio_entropy"])
def test_a_list_of_one_compares_nothing(name: str) -> None:
    scores = tracked(ragged(20, B, 1))
    loss = of_list(name, scores, REWARDS[:, :1])
    assert loss.abs().max() < 1e-12
    assert gradients(loss, [scores.logp])[0].abs().max() < 1e-12


@pytest.mark.parametrize("name", LOSSES)
def test_empty_completions_give_finite_losses(name: str) -> None:
    scores = tracked(ragged(20, B, K))
    empty = dataclasses.replace(scores, mask=torch.zeros_like(scores.mask))
    loss = of_list(name, empty, REWARDS)
    assert loss.isfinite().all()
    assert not gradients(loss, [scores.logp])[0].any()


def test_where_the_policy_is_the_reference_lists_are_uniform() -> None:
    scores = ragged(20, B, K)
    still = dataclasses.replace(scores, ref_logp=scores.logp)
    for name in ("adpo", "info_nca", "ratio_entropy"):
        loss = of_list(name, still, REWARDS)
        torch.testing.assert_close(loss, torch.full((B,), math.log(K)).double())


# -- identities ----------------------------------------------------------------------------------


def test_adpo_of_two_is_dpo() -> None:
    """Identity: ADPO K=2 hard q,tau==DPO(beta=1/tau)."""
    hard = doubles(1, 0).expand(B, 2)
    expected = dpo(single(LW, RW), single(LL, RL), beta=BETA)
    torch.testing.assert_close(adpo(PAIR, hard, tau=1 / BETA), expected)


def test_adpo_of_two_with_a_soft_target_is_cdpo() -> None:
    """Identity: ADPO K=2 soft q==cDPO."""
    soft = doubles(1 - E, E).expand(B, 2)
    expected = cdpo(single(LW, RW), single(LL, RL), beta=BETA, smoothing=E)
    torch.testing.assert_close(adpo(PAIR, soft, tau=1 / BETA), expected)


def test_adpo_of_the_vocabulary_is_supervised_learning() -> None:
    """Identity: ADPO full-vocab uniform ref tau=1 one-hot==SFT."""
    logits, label = draw(1, B, 9), torch.arange(B)
    uniform = single(logits, torch.zeros(B, 9).double())
    loss = adpo(uniform, F.one_hot(label, 9).double(), tau=1.0)
    torch.testing.assert_close(loss, F.cross_entropy(logits, label, reduction="none"))


def test_adpo_with_a_teacher_is_distillation() -> None:
    """Identity: ADPO uniform ref soft q==KD forward KL (grad)."""
    logits, teacher = draw(1, B, 9), draw(2, B, 9).softmax(-1)

    def student(z: Tensor) -> Tensor:
        return adpo(single(z, torch.zeros_like(z)), teacher, tau=1.0)

    def distilled(z: Tensor) -> Tensor:
        return F.kl_div(z.log_softmax(-1), teacher, reduction="none").sum(-1)

    torch.testing.assert_close(slope(student, logits), slope(distilled, logits))


def test_adpo_is_stationary_at_the_regularised_optimum() -> None:
    """Identity: ADPO with q=softmax(R/beta), tau=1: grad 0 at KL-optimal policy."""
    ref, rewards = draw(3, B, 9).log_softmax(-1), draw(4, B, 9)
    target = boltzmann(rewards, temperature=BETA)

    def loss(z: Tensor) -> Tensor:
        return adpo(single(z.log_softmax(-1), ref), target, tau=1.0)

    assert slope(loss, ref + rewards / BETA).abs().max() < 1e-12
    assert slope(loss, ref).abs().max() > 1e-2


def two(a: Tensor, b: Tensor) -> Scores:
    return single(torch.stack([a, b], 1), torch.stack([RW, RL], 1))


def gradient_of(
    f: Callable[..., Tensor], rewards: tuple[Tensor, Tensor], **options: float
) -> Tensor:
    return slope(lambda a, b: f(two(a, b), torch.stack(rewards, 1), **options), LW, LL)


def test_copg_of_quarters_is_ipo() -> None:
    """Identity: CoPG(R=+-1/4) grad == (beta/2)*grad IPO(tau=beta)."""
    quarter = torch.full((B,), 0.25).double()
    squared = slope(lambda a, b: ipo(single(a, RW), single(b, RL), tau=BETA), LW, LL)
    torch.testing.assert_close(
        gradient_of(copg, (quarter, -quarter), beta=BETA), BETA / 2 * squared
    )


def test_all_forms_of_copg_have_one_gradient() -> None:
    """Identity: CoPG surrogate grad == squared-form grad; and

    CoPG supervised-friendly loss with R_{beta/2} has same grad.
    """
    found = gradient_of(copg, (R1, R2), beta=BETA)
    torch.testing.assert_close(found, gradient_of(copg_square, (R1, R2), beta=BETA))

    def friendly(a: Tensor, b: Tensor) -> Tensor:
        e1, e2 = R1 - BETA / 2 * (a - RW), R2 - BETA / 2 * (b - RL)
        return -((e1 - e2) * (a - RW) + (e2 - e1) * (b - RL))

    torch.testing.assert_close(found, slope(friendly, LW, LL))


@pytest.mark.parametrize("size", [2, 5])
def test_both_forms_of_copg_have_one_gradient_in_groups(size: int) -> None:
    scores, rewards = tracked(ragged(20, B, size)), draw(6, B, size)
    a = gradients(copg(scores, rewards, beta=BETA), [scores.logp])
    b = gradients(copg_square(scores, rewards, beta=BETA), [scores.logp])
    torch.testing.assert_close(a, b)


def test_copg_without_regulariser_is_twice_rloo() -> None:
    """Identity: CoPG(beta=0)==2*RLOO(k=2)."""

    def rloo(a: Tensor, b: Tensor) -> Tensor:
        return -0.5 * ((R1 - R2) * a + (R2 - R1) * b)

    found = gradient_of(copg, (R1, R2), beta=0.0)
    torch.testing.assert_close(found, 2 * slope(rloo, LW, LL))


def test_copg_is_the_difference_of_two_regressions_on_the_value() -> None:
    """Identity: CoPG square == (A*PO residual difference)^2/(2beta)."""
    rewards, value = torch.stack([R1, R2], 1), torch.full((B,), 5.0).double()

    def residual(member: int, sign: float) -> Tensor:
        scores = altered(PAIR, lambda x: x[:, member : member + 1])
        square = a_star_po(scores, rewards[:, member : member + 1], value=value, beta=BETA)
        of = BETA * u(scores)[:, 0] - rewards[:, member] + value
        torch.testing.assert_close(square, of.square())
        return sign * of

    expected = (residual(0, 1.0) + residual(1, -1.0)).square() / (2 * BETA)
    torch.testing.assert_close(copg_square(PAIR, rewards, beta=BETA), expected)


def test_a_robust_residual_bounds_what_one_reward_can_do() -> None:
    scores, rewards = tracked(ragged(20, B, K)), REWARDS.clone()
    rewards[:, 0] += 1e6
    bounded = partial(huber_loss, sigma=1.0)
    robust = copg_square(scores, rewards, beta=1.0, residual=bounded)
    assert gradients(robust, [scores.logp])[0].abs().max() < 3.0
    plain = copg_square(scores, rewards, beta=1.0)
    assert gradients(plain, [scores.logp])[0].abs().max() > 1e5


def test_nca_of_a_pair_is_that_of_trl() -> None:
    hard = doubles(1e3, 0).expand(B, 2)
    w, r = BETA * (LW - RW), BETA * (LL - RL)
    ls = F.logsigmoid
    expected = -ls(w) - 0.5 * ls(-w) - 0.5 * ls(-r)
    torch.testing.assert_close(nca(PAIR, hard, alpha=1.0, beta=BETA), expected)


# -- numbers worked by hand ----------------------------------------------------------------------


def test_boltzmann_by_hand() -> None:
    # e^(log 3 / 1) : 1 = 3 : 1; at half the temperature 9 : 1.
    rewards = doubles(math.log(3), 0)
    torch.testing.assert_close(boltzmann(rewards, temperature=1.0), doubles(0.75, 0.25))
    torch.testing.assert_close(boltzmann(rewards, temperature=0.5), doubles(0.9, 0.1))


def test_the_target_of_adpos_authors_is_invariant_to_the_rewards_scale() -> None:
    def target(r: Tensor) -> Tensor:
        return boltzmann(standardised(r, eps=1e-8), temperature=0.5)

    torch.testing.assert_close(target(REWARDS), target(3.0 * REWARDS + 1.0))


def test_the_optimal_value_by_hand() -> None:
    # T log((e^0 + e^log 3) / 2) = log 2 at T = 1; the greatest at T -> 0, the mean at infinity.
    rewards = doubles(0, math.log(3))
    assert optimal_value(rewards, temperature=1.0).item() == pytest.approx(math.log(2))
    assert optimal_value(rewards, temperature=1e-3).item() == pytest.approx(math.log(3), abs=1e-3)
    assert optimal_value(rewards, temperature=1e4).item() == pytest.approx(
        math.log(3) / 2, abs=1e-4
    )
    member = torch.tensor([True, False])
    assert optimal_value(rewards, member, temperature=1.0).item() == pytest.approx(0.0)


def test_copg_square_by_hand() -> None:
    # R = 2, 0, 1 without regulariser's part: mean 1, (1 + 1 + 0) / (2 * 0.5) = 2.
    scores = single(torch.zeros(1, 3).double(), torch.zeros(1, 3).double())
    assert copg_square(scores, doubles(2, 0, 1)[None], beta=0.5).item() == pytest.approx(2.0)


def test_ranking_consistency_by_hand() -> None:
    # Of three pairs two agree and one does not: tau = 1/3, C = 2/3.
    a, b = doubles(1, 2, 3), doubles(1, 3, 2)
    assert ranking_consistency(a, b).item() == pytest.approx(2 / 3)
    assert ranking_consistency(a, a).item() == 1.0
    assert ranking_consistency(a, -a).item() == 0.0
    assert ranking_consistency(a, torch.zeros(3).double()).item() == 0.5
    assert ranking_consistency(a[:1], b[:1]).item() == 0.5
    rows = torch.stack([a, a]), torch.stack([b, a])
    torch.testing.assert_close(ranking_consistency(*rows), doubles(2 / 3, 1))


def test_the_entropy_of_ratios_by_hand() -> None:
    # One answer of probability 3/4 and one of 1/4.
    scores = single(doubles(math.log(3), 0)[None], torch.zeros(1, 2).double())
    expected = -0.75 * math.log(0.75) - 0.25 * math.log(0.25)
    assert ratio_entropy(scores).item() == pytest.approx(expected)
