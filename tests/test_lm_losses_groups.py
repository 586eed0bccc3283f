"""Advantages and policy-gradient losses: coefficients as gradients, limits, and numbers by hand.

Where a test's docstring begins with "Identity", it is one of the numerical identities of the
specification of language-model losses, in its words.
"""

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from offrl.lm.losses import advantages as adv
from offrl.lm.losses import policy_gradient as pg
from offrl.lm.losses.scores import agg


def doubles(values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


GROUP = 8
REWARDS = doubles([1.0, 0, 1, 0, 0, 0, 0, 1])  # 3/8 of them right
CORRECT = REWARDS
P = REWARDS.mean()


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


LOGP = normal(GROUP, seed=1)
OFF = LOGP + 0.7 * normal(GROUP, seed=2)  # what another policy says of the same answers


def gradient(f: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    x = at.clone().requires_grad_()
    return torch.autograd.grad(f(x).sum(), x)[0]


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


# -- coefficients -------------------------------------------------------------------------------

D = doubles([-1.2, -0.25, -0.1, 0.0, 0.1, 0.3, 1.3, 1.3])
A = doubles([1.0, -1, 2, 1, -1, 1, -2, 1])
W = D.exp()


def opmd_coefficient() -> Tensor:
    return 1.0 - 0.5 * D / A


def sapo_coefficient() -> Tensor:
    k = torch.where(A > 0, doubles(1.0), doubles(1.05))
    gate = torch.sigmoid(k * (W - 1))
    return 4 * gate * (1 - gate) * W


# With ratios .30 .78 .90 1 1.1 1.35 3.67 3.67 and signs + - + + - + - +
COEFFICIENTS: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], Tensor]] = {
    "reinforce": (pg.reinforce, torch.ones(8)),
    "clipped": (pg.clipped, W * torch.tensor([1.0, 0, 1, 1, 1, 0, 1, 0])),
    "bounded": (partial(pg.clipped, bound=3.0), W * torch.tensor([1.0, 0, 1, 1, 1, 0, 0, 0])),
    "dual": (pg.dual_clipped, W * torch.tensor([1.0, 0, 1, 1, 1, 0, 0, 0])),
    "cispo": (partial(pg.cispo, high=2.0), W.clamp(max=2.0)),
    "sapo": (pg.sapo, sapo_coefficient()),
    "topr": (pg.topr, torch.where(A > 0, torch.ones(8).double(), W.clamp(max=1.0))),
    "one side": (pg.one_side_clipped, torch.tensor([1.0, 0, 1, 1, 1, 0, 1, 0])),
    "one side, weighted": (
        partial(pg.one_side_clipped, weighted=True),
        W * torch.tensor([1.0, 0, 1, 1, 1, 0, 1, 0]),
    ),
    "two side": (pg.two_side_clipped, torch.tensor([0.0, 0, 1, 1, 1, 0, 0, 0])),
    "ring": (
        partial(pg.ring_clipped, outer_high=1.5),
        torch.tensor([1.0, 0, 1, 1, 1, 0, 1, 0]),
    ),
    "opmd": (partial(pg.opmd, tau=0.5), opmd_coefficient()),
    "importance": (pg.importance_weighted, W),
    "weighted cloning": (
        lambda d, a: pg.advantage_weighted(d, a, beta=0.5, max_weight=20.0),
        (2 * A).exp().clamp(max=20.0) / A,
    ),
}


@pytest.mark.parametrize("name", COEFFICIENTS)
def test_the_coefficient_is_what_multiplies_the_gradient(name: str) -> None:
    loss, expected = COEFFICIENTS[name]
    close(gradient(lambda d: loss(d, A), D), -expected.double() * A)


@pytest.mark.parametrize("name", COEFFICIENTS)
def test_nothing_flows_into_the_advantage(name: str) -> None:
    a = A.clone().requires_grad_()
    loss = COEFFICIENTS[name][0](D.clone().requires_grad_(), a).sum()
    assert torch.autograd.grad(loss, a, allow_unused=True)[0] is None


def test_values_by_hand() -> None:
    # w = 2, A = 1: min(2, 1.2) -> -1.2; A = -1: min(-2, -1.2) -> 2. w = 1/2: -0.5; A = -1: 0.8.
    d = doubles([2.0, 2.0, 0.5, 0.5]).log()
    a = doubles([1.0, -1.0, 1.0, -1.0])
    close(pg.clipped(d, a), doubles([-1.2, 2.0, -0.5, 0.8]))
    # TOPR: weights 1, 1, 1, 1/2; the loss is -weight A d.
    log2 = math.log(2)
    close(pg.topr(d, a), doubles([-log2, log2, log2, -0.5 * log2]))
    # CISPO, high 1.5: weights 1.5, 1.5, .5, .5
    close(pg.cispo(d, a, high=1.5), log2 * doubles([-1.5, 1.5, 0.5, -0.5]))


def test_the_gate_of_vespo_is_one_on_policy_and_falls_on_both_sides() -> None:
    mask = torch.ones(3, 2)
    d = doubles([[0.0, 0.0], [1.0, 1.0], [-1.0, -1.0]])
    a = torch.ones(3, 1).double()
    found = gradient(lambda x: pg.vespo(x, a, mask), d)
    # log weight 3 + 2 (+-2) - 3 e^(+-2), both tokens of a sequence alike.
    logs = [0.0, 7 - 3 * math.exp(2), -1 - 3 * math.exp(-2)]
    close(found, -doubles(logs).exp()[:, None].expand(3, 2))
    assert pg.vespo(d * 400, a, mask).isfinite().all()


def test_the_geometric_mean_by_hand() -> None:
    # A > 0: .5 is cut to .4, -.6 is not: mean -.1. A < 0: .5 stays, -.6 is cut to -.4: mean .05.
    d, mask = doubles([[0.5, -0.6, math.nan]] * 2), torch.tensor([[1, 1, 0]] * 2)
    a = doubles([[2.0], [-1.0]])
    expected = doubles([[-2 * math.exp(-0.1)], [math.exp(0.05)]])
    close(pg.gmpo(d, a, mask), expected)
    found = gradient(lambda x: pg.gmpo(x, a, mask), d)
    half = expected[:, 0] / 2
    close(found, torch.stack([doubles([0.0, half[0], 0.0]), doubles([half[1], 0.0, 0.0])]))


def test_one_ratio_for_a_sequence() -> None:
    d = doubles([[1.0, 2.0, math.nan], [5.0, math.inf, math.inf]])
    mask = torch.tensor([[1, 1, 0], [0, 0, 0]])
    close(pg.sequence_ratio(d, mask), doubles([[1.5], [0.0]]))
    close(pg.sequence_ratio(d, mask, mean=False), doubles([[3.0], [0.0]]))


# -- identities ---------------------------------------------------------------------------------


def test_grpo_on_policy_is_reinforce() -> None:
    """Identity: GRPO on-policy grad == REINFORCE grad."""
    a = adv.standardised(REWARDS, eps=0.0, correction=0)
    close(a, (REWARDS - P) / REWARDS.std(unbiased=False))
    found = gradient(lambda x: pg.clipped(x - LOGP, a), LOGP)
    close(found, gradient(lambda x: -a * x, LOGP))
    close(found, gradient(lambda x: pg.reinforce(x - LOGP, a), LOGP))


@pytest.mark.parametrize("standardise", [False, True])
def test_nft_on_policy_is_grpo(standardise: bool) -> None:
    """Identity: NFT(norm=1) on-policy grad == Dr.GRPO (mean baseline).

    Identity: NFT(norm=2) on-policy grad == GRPO (std-normalised).
    """
    a = adv.standardised(REWARDS, eps=0.0, correction=0) if standardise else adv.centred(REWARDS)
    weight = pg.nft_weight(P, standardise=standardise)
    found = gradient(lambda x: weight * pg.nft(x - LOGP, CORRECT, P), LOGP)
    close(found, gradient(lambda x: pg.clipped(x - LOGP, a), LOGP))


def test_nft_off_policy_by_hand() -> None:
    # q = 1/2, w = 1/2: right -log w = log 2; wrong -log((1 - 1/4) / (1/2)) = -log 1.5 with slope
    # q w / (1 - q w) = 1/3. w = 1.5: (1 - .75) / .5 = .5 is raised to 1, slope .75 / .5 = 1.5.
    q = doubles(0.5)
    d = doubles([0.5, 0.5, 1.5]).log()
    correct = torch.tensor([1, 0, 0])
    expected = doubles([math.log(2), -math.log(1.5), 0.0])
    close(pg.nft(d, correct, q), expected)
    slope = doubles([-1.0, 1 / 3, 1.5])
    close(gradient(lambda x: pg.nft(x, correct, q), d), slope)
    # q = 1/4, w = 2: (1 - 1/2) / (3/4) is raised to 1, slope (1/2) / (3/4).
    quarter, two, wrong = doubles([0.25]), doubles([2.0]).log(), torch.tensor([0])
    close(pg.nft(two, wrong, quarter), doubles([0.0]))
    close(gradient(lambda x: pg.nft(x, wrong, quarter), two), doubles([2 / 3]))
    only_right = gradient(lambda x: pg.nft(x, correct, q, negative=0.0), d)
    close(only_right, doubles([-1.0, 0, 0]))


@pytest.mark.parametrize("q", [0.0, 1.0])
def test_nft_is_finite_where_all_or_none_is_right(q: float) -> None:
    q_ = doubles(q)
    d = doubles([-30.0, 0.0, 30.0])
    for correct in (torch.ones(3), torch.zeros(3)):
        assert gradient(lambda x, c=correct: pg.nft(x, c, q_), d).isfinite().all()


def test_topr_on_policy_is_reinforce() -> None:
    """Identity: TOPR on-policy grad == REINFORCE."""
    sign = 2 * REWARDS - 1
    found = gradient(lambda x: pg.topr(x - LOGP, sign), LOGP)
    close(found, gradient(lambda x: -sign * x, LOGP))


def test_topr_of_positives_is_supervised_learning() -> None:
    """Identity: TOPR positives only == SFT (off-policy)."""
    found = gradient(lambda x: pg.topr(x - OFF, REWARDS), LOGP)
    close(found, gradient(lambda x: -REWARDS * x, LOGP))
    sign = 2 * REWARDS - 1  # and so it is where negatives have the weight 0
    found = gradient(lambda x: pg.topr(x - OFF, sign, negative=(0.0, 0.0)), LOGP)
    close(found, gradient(lambda x: -REWARDS * x, LOGP))


def test_topr_without_bounds_is_importance_sampling() -> None:
    """Identity: TOPR with [0,inf] both sides == full IS."""
    sign, free = 2 * REWARDS - 1, (0.0, math.inf)
    found = gradient(lambda x: pg.topr(x - OFF, sign, positive=free, negative=free), LOGP)
    close(found, gradient(lambda x: -(x - OFF).exp() * sign, LOGP))
    close(found, gradient(lambda x: pg.importance_weighted(x - OFF, sign), LOGP))


def test_the_share_of_positives_of_a_baseline() -> None:
    """Identity: TOPR effective positive share."""
    rewards = doubles([1.0] * 3 + [-1.0] * 7)
    a = adv.fixed_baseline(rewards, baseline=0.25).abs()
    q, c = 0.3, 0.25
    assert (a[:3].sum() / a.sum()).item() == pytest.approx(q * (1 - c) / (1 + (1 - 2 * q) * c))


def test_positive_and_negative_reinforcement_are_reinforce() -> None:
    """Identity: PSR+NSR == REINFORCE(+-1)."""
    sign = 2 * REWARDS - 1
    both = adv.positive_only(REWARDS) + adv.negative_only(REWARDS)
    close(both, sign)
    close(adv.weighted_reinforce(REWARDS, positive=1.0), sign)
    close(pg.reinforce(LOGP, both), -sign * LOGP)
    close(adv.weighted_reinforce(REWARDS), 1.1 * REWARDS - 1.0)


@pytest.mark.parametrize(("shape", "power"), [((1.0, 1.0), 0.0), ((1.5, 1.5), 0.5)])
def test_bnpo_is_reinforce_or_grpo(shape: tuple[float, float], power: float) -> None:
    """Identity: BNPO alpha=beta=1 weight 1 (REINFORCE mean baseline).

    Identity: BNPO alpha=beta=3/2 weight == (pi/8)/std (GRPO up to constant).
    """
    rewards = doubles([[1.0] * k + [0.0] * (10 - k) for k in (1, 3, 5, 9)])
    p = rewards.mean(-1, keepdim=True)
    scale = (math.pi / 8) ** (2 * power) / (p * (1 - p)) ** power
    close(adv.beta_normalised(rewards, shape=shape), scale * (rewards - p))
    if power:
        close(
            adv.beta_normalised(rewards, shape=shape),
            math.pi / 8 * adv.standardised(rewards, eps=0.0, correction=0),
        )


def test_bnpo_of_a_lopsided_shape_by_hand() -> None:
    # Beta(p; 2, 1) = 2 p, at p = 1/4: 1/2, so the weight is 2.
    rewards = doubles([[1.0, 0, 0, 0]])
    close(adv.beta_normalised(rewards, shape=(2.0, 1.0)), 2 * adv.centred(rewards))


def test_bnpo_matches_moments() -> None:
    # p = 1/4 and 3/4: m = 1/2, v = 1/8, k = 1, so a = b = 1 + 1/6; and Beta(p; 7/6, 7/6).
    rewards = doubles([[1.0, 0, 0, 0], [1, 1, 1, 0]])
    a = 7 / 6
    density = math.exp(math.lgamma(2 * a) - 2 * math.lgamma(a)) * (0.25 * 0.75) ** (a - 1)
    found = adv.beta_normalised(rewards)
    close(found, adv.centred(rewards) / density)
    close(adv.beta_normalised(3 * rewards - 1, low=-1.0, high=2.0), found)
    one = adv.beta_normalised(rewards[:1])  # a single prompt: plain
    close(one, adv.centred(rewards[:1]))
    solved = doubles([[1.0, 1], [0, 0], [1, 0]])
    assert adv.beta_normalised(solved).isfinite().all()


def test_asymre_tends_to_its_closed_form() -> None:
    """Identity: AsymRE limit == (a-c)^+/b, sum=1 (V<V^mu)."""
    mu = normal(5, seed=3).softmax(0)
    rewards = doubles([1.0, 0.2, 0.7, 0.0, 0.9])
    value = 0.5 * (mu * rewards).sum()
    # The advantage over the law mu has its baseline at E_mu[r] + shift, not at the plain mean.
    shift = (value - rewards.mean()).item()
    a = adv.shifted(rewards, shift=shift)
    close(a, rewards - value)
    logits = torch.zeros(5).double()
    for _ in range(3000):
        logits = logits - 4.0 * gradient(lambda z: mu * pg.reinforce(z.log_softmax(0), a), logits)
    weight = mu * a
    low, high = -5.0, 5.0
    for _ in range(100):
        middle = (low + high) / 2
        above = (weight - middle).clamp(min=0).sum() > weight.sum()
        low, high = (middle, high) if above else (low, middle)
    limit = (weight - low).clamp(min=0) / weight.sum()
    torch.testing.assert_close(logits.softmax(0), limit, rtol=0, atol=1e-4)
    assert (limit < 1e-9).any()  # what is bad enough is dropped altogether


def test_opmd_at_the_sampler_is_reinforce() -> None:
    """Identity: OPMD squared surrogate grad at pi=pi_old == REINFORCE mean-baseline grad."""
    a = adv.centred(REWARDS)
    found = gradient(lambda x: pg.opmd(x - LOGP, a, tau=0.5), LOGP)
    close(found, gradient(lambda x: -a * x, LOGP))


def test_opmd_is_reinforce_with_k2() -> None:
    """Identity: OPMD surrogate/(2tau) == -A logratio + tau/2 logratio^2 (+const)."""
    a, d = adv.centred(REWARDS), OFF - LOGP
    constant = a.square() / (2 * 0.5)
    close(pg.opmd(d, a, tau=0.5) - constant, -a * d + 0.25 * d.square())


def test_rover_on_policy_is_twice_reinforce() -> None:
    """Identity: ROVER on-policy, next-Q=0: grad == 2x REINFORCE."""
    a, none = adv.centred(REWARDS)[:, None], torch.zeros(GROUP, 1).double()
    found = gradient(lambda x: pg.rover(x - LOGP[:, None], a, none), LOGP[:, None])
    close(found, gradient(lambda x: -2 * a * x, LOGP[:, None]))


def test_rovers_next_value_by_hand() -> None:
    # Vocabulary of 2: mean log pi is (log s + log(1 - s)) / 2 of the sigmoid s of the difference.
    old = torch.zeros(1, 3, 2).double()
    logits = doubles([[[0.0, 0.0], [2.0, 0.0], [5.0, 0.0]]]).requires_grad_()
    found = pg.uniform_value(logits, old, torch.tensor([[1, 1, 0]]), scale=2.0)
    s = torch.sigmoid(doubles(2.0))
    second = 2 * ((s * (1 - s)).log() / 2 + math.log(2))
    close(found, torch.stack([second, second * 0, second * 0])[None])
    assert not found.requires_grad


def test_risk_is_a_clamp() -> None:
    """Identity: RiskPO RVaR advantage == clamp(r,ql,qh)-qh."""
    z, ql, qh = normal(1, 20), doubles([-0.4]), doubles([0.6])
    found = adv.range_value_at_risk(z, ql, qh, levels=(0.2, 0.8))
    paper = (z - ql).clamp(min=0) - (z - qh).clamp(min=0) + ql - qh
    close(0.6 * found, paper)
    close(0.6 * found, z.clamp(-0.4, 0.6) - 0.6)


def test_risk_with_tails_by_hand() -> None:
    # z = -1, 0, 1; ql = -1/2, qh = 1/2; levels 1/4, 3/4: (clamp - qh) / .5 = -2, -1, 0.
    z, q = doubles([-1.0, 0.0, 1.0]), doubles(0.5)
    found = adv.range_value_at_risk(z, -q, q, levels=(0.25, 0.75), lower_tail=1.0)
    close(found, doubles([(-2.0 - 2.0) / 2, -0.5, 0.0]))
    found = adv.range_value_at_risk(z, -q, q, levels=(0.25, 0.75), upper_tail=1.5)
    close(found, doubles([-2.0, -1.0, 1.5 * 0.5 / 0.25]))


def test_the_tracked_quantile_settles_at_its_level() -> None:
    scores = torch.arange(100.0).double()[None]
    q = doubles([50.0])
    for _ in range(400):
        q = adv.quantile_step(q, scores, level=0.2, rate=10.0)
    assert 18.0 <= q.item() <= 21.0


def test_advantage_weighted_cloning_is_minimised_by_the_posterior() -> None:
    """Identity: AWR/OREAL-style: E_ref[exp(r/b) log pi] maximised at posterior."""
    beta, ref, rewards = 0.3, normal(5, seed=4).softmax(0), normal(5, seed=5)
    optimum = ref.log() + rewards / beta
    loss = partial(pg.advantage_weighted, advantage=rewards, beta=beta, max_weight=math.inf)
    found = gradient(lambda z: ref * loss(z.log_softmax(0)), optimum)
    close(found, torch.zeros(5).double())
    off = gradient(lambda z: ref * loss(z.log_softmax(0)), ref.log())
    assert off.abs().max() > 1e-3


def test_oreal_clones_what_was_right_and_unlearns_what_was_wrong() -> None:
    a = adv.leave_one_out(REWARDS)
    found = gradient(lambda x: pg.oreal(x - OFF, CORRECT, a), LOGP)
    close(found, torch.where(CORRECT > 0, -a.abs(), 0.5 * a.abs()))
    close(found[CORRECT == 0], 0.5 * -a[CORRECT == 0])


# -- advantages by hand -------------------------------------------------------------------------


def test_advantages_by_hand() -> None:
    r = doubles([0.0, 1.0, 2.0])
    close(adv.centred(r), doubles([-1.0, 0, 1]))
    close(adv.standardised(r, eps=0.0), doubles([-1.0, 0, 1]))
    root = math.sqrt(1.5)
    close(adv.standardised(r, eps=0.0, correction=0), root * doubles([-1.0, 0, 1]))
    close(adv.leave_one_out(r), doubles([-1.5, 0, 1.5]))
    close(adv.shifted(r), doubles([-0.9, 0.1, 1.1]))
    close(adv.exponential(r, temperature=2.0), adv.centred(r) * (adv.centred(r) / 2).exp())
    value = math.log((1 + math.e + math.e**2) / 3)
    close(adv.log_mean_exp(r), r - value)
    two = torch.stack([r, 3 * r])
    close(adv.batch_scaled(two, eps=0.0), adv.centred(two) / two.std())


def test_the_value_goes_from_the_mean_to_the_best() -> None:
    r = doubles([0.0, 1.0, 5.0])
    torch.testing.assert_close(adv.log_mean_exp(r, tau=1e5), adv.centred(r), rtol=0, atol=1e-4)
    torch.testing.assert_close(adv.log_mean_exp(r, tau=1e-3), r - 5, rtol=0, atol=1e-2)


def test_the_surplus_of_the_bad_is_dropped() -> None:
    # Mean .25: one is above it, three below; two of these go, those of the greatest uniform.
    r = doubles([1.0, 0, 0, 0])
    uniform = doubles([0.9, 0.5, 0.2, 0.7])
    close(adv.balanced(r, uniform), doubles([0.5, 0, -0.5, 0]))
    more_good = doubles([1.0, 1, 1, 0])
    close(adv.balanced(more_good, uniform), adv.centred(more_good))


RULES: dict[str, Callable[[Tensor, Tensor | None], Tensor]] = {
    "centred": adv.centred,
    "standardised": adv.standardised,
    "batch_scaled": adv.batch_scaled,
    "leave_one_out": adv.leave_one_out,
    "fixed_baseline": adv.fixed_baseline,
    "shifted": adv.shifted,
    "log_mean_exp": adv.log_mean_exp,
    "balanced": lambda r, m: adv.balanced(r, torch.linspace(0, 1, r.shape[-1]).expand(r.shape), m),
    "exponential": adv.exponential,
    "positive_only": adv.positive_only,
    "negative_only": adv.negative_only,
    "weighted_reinforce": adv.weighted_reinforce,
    "beta_normalised": adv.beta_normalised,
}


@pytest.mark.parametrize("name", RULES)
def test_members_that_do_not_exist_count_for_nothing(name: str) -> None:
    """Padding of groups, whatever stands in it, and gradients that are none."""
    rule = RULES[name]
    r = doubles([[1.0, 0, 0], [1, 1, 0]]).requires_grad_()
    short = rule(r, None)
    junk = doubles([[math.nan, math.inf], [7.0, -math.inf]])
    member = torch.tensor([[1, 1, 1, 0, 0]] * 2)
    padded = rule(torch.cat([r, junk], -1), member)
    close(padded[:, :3], short)
    assert not padded[:, 3:].any()
    assert not padded.requires_grad


ZERO_ALONE = ("centred", "standardised", "leave_one_out", "log_mean_exp", "balanced", "exponential")


@pytest.mark.parametrize("name", ZERO_ALONE)
def test_a_group_of_one_teaches_nothing(name: str) -> None:
    assert not RULES[name](torch.ones(2, 1).double(), None).any()


# Which of a surplus goes is drawn by place, so `balanced` is not among them.
@pytest.mark.parametrize("name", sorted(set(RULES) - {"balanced"}))
def test_order_within_a_group_does_not_matter(name: str) -> None:
    r = normal(3, 6).sigmoid()
    order = torch.tensor([4, 1, 5, 0, 2, 3])
    close(RULES[name](r[:, order], None), RULES[name](r, None)[:, order])


# -- rewards of tokens --------------------------------------------------------------------------


def test_returns_from_each_token_on() -> None:
    rewards = doubles([[1.0, 2.0, 4.0, math.nan]])
    mask = torch.tensor([[1, 1, 1, 0]])
    close(adv.to_go(rewards, mask), doubles([[7.0, 6.0, 4.0, 0.0]]))
    close(adv.to_go(rewards, mask, gamma=0.5), doubles([[3.0, 4.0, 4.0, 0.0]]))


def test_whitening_is_over_the_tokens_of_the_batch() -> None:
    values = doubles([[1.0, 2.0, 99.0], [3.0, 99.0, 99.0]])
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    close(adv.whitened(values, mask, eps=0.0), doubles([[-1.0, 0, 0], [1, 0, 0]]))


def test_process_rewards_by_hand() -> None:
    # One prompt, two answers of 2 and 1 tokens; dense weights 1, outcome weight 1, G/(G-1) = 2.
    # Means of d: 2 and 4, of the group 3: tokens 2 (1 - 3), 2 (3 - 3); 2 (4 - 3).
    # Outcome 1 and 0 less the other's: 1 on the last token of the first, -1 on that of the second.
    # To go: -4 + 0 + 1 = -3, 1; 2 - 1 = 1. Mean -1/3, deviation sqrt(16/3).
    dense = doubles([[[1.0, 3.0], [4.0, 77.0]]])
    mask = torch.tensor([[[1, 1], [1, 0]]])
    outcome = doubles([[1.0, 0.0]])
    found = adv.process_rewards(dense, outcome, mask, dense_weight=1.0, outcome_weight=1.0)
    third, spread = 1 / 3, math.sqrt(16 / 3)
    expected = doubles([[[-3 + third, 1 + third], [1 + third, 0]]]) / spread
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)


# -- invariances --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", COEFFICIENTS)
def test_what_is_outside_the_mask_counts_for_nothing(name: str) -> None:
    loss = COEFFICIENTS[name][0]
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0], [0, 0, 0, 0]])  # an empty answer too
    a = doubles([[1.0], [-1.0], [2.0]])
    d = normal(3, 4, seed=6)
    junk = torch.where(mask != 0, d, math.nan)
    found = [gradient(lambda x, m=m: agg(loss(x, a), mask, m), d) for m in MODES]
    for mode, expected in zip(MODES, found, strict=True):
        close(agg(loss(junk, a), mask, mode), agg(loss(d, a), mask, mode))
        assert not expected[mask == 0].any()
        assert expected.isfinite().all()


MODES = ("sequence_mean", "sequence_sum", "token_mean", "constant")


def test_halves_of_a_batch_add_up() -> None:
    d, a = normal(4, 3), normal(4, 1, seed=7)
    mask = torch.tensor([[1, 1, 1], [1, 0, 0], [1, 1, 0], [1, 0, 0]])
    whole = agg(pg.topr(d, a), mask, "token_mean")
    parts = [
        agg(pg.topr(d[i], a[i]), mask[i], "token_mean", total=7.0)
        for i in (slice(0, 1), slice(1, 4))
    ]
    close(parts[0] + parts[1], whole)
    order = torch.tensor([2, 0, 3, 1])
    close(agg(pg.topr(d[order], a[order]), mask[order], "token_mean"), whole)


def test_half_precision_is_near() -> None:
    d, a = (0.1 * normal(64)).to(torch.bfloat16), normal(64, seed=8).to(torch.bfloat16)
    smooth = ("reinforce", "cispo", "sapo", "topr", "opmd", "importance")
    for loss, _ in (COEFFICIENTS[name] for name in smooth):
        exact = loss(d.double(), a.double())
        torch.testing.assert_close(loss(d, a).double(), exact, rtol=0.05, atol=0.05)
