"""Rewards transformed, samples selected, pairs built, and rewards that are log-ratios.

Where a test's docstring begins with "Identity", it is one of the numerical identities of the
specification of language-model losses, in its words.
"""

import math

import pytest
import torch
from torch import Tensor

from offrl.divergences import kl_full
from offrl.lm.losses import reward_models as rm
from offrl.lm.losses import transforms as tf
from offrl.lm.losses.advantages import centred, to_go
from offrl.lm.losses.policy_gradient import reinforce
from offrl.lm.losses.scores import Scores, implicit_rewards


def doubles(values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


def draws(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)).double()


# -- rewards ------------------------------------------------------------------------------------


def test_log_par_of_one_reference_is_lsc() -> None:
    """Identity: log PAR(M=1) == LSC."""
    r, ref = normal(5), normal(5, seed=1)
    torch.testing.assert_close(tf.par(r, ref[:, None]).log(), tf.lsc(r, ref))
    torch.testing.assert_close(tf.log_and(r[:, None], ref[:, None]), tf.lsc(r, ref))


def test_reward_transforms_by_hand() -> None:
    # sigmoid(log 3) = 3/4, sigmoid(-log 3) = 1/4.
    log3 = math.log(3)
    r = doubles([log3])
    torch.testing.assert_close(tf.par(r, doubles([[0.0, 2 * log3]])), doubles([0.5]))
    torch.testing.assert_close(tf.par(r / 2, doubles([[0.0]]), k=2.0), doubles([0.75]))
    torch.testing.assert_close(tf.lsc(r, doubles([0.0])), doubles([0.75]).log())
    both = tf.log_and(doubles([[log3, -log3]]), torch.zeros(1, 2).double())
    torch.testing.assert_close(both, doubles([3 / 16]).log())


def test_the_gaussian_quantile() -> None:
    refs = doubles([[1.0, 3.0], [2.0, 2.0]])
    found = tf.gaussian_quantile(refs, level=0.975)
    expected = doubles([2 + 1.959963984540054 * math.sqrt(2), 2.0])
    torch.testing.assert_close(found, expected)
    assert tf.gaussian_quantile(refs, level=0.5).tolist() == [2.0, 2.0]
    assert tf.gaussian_quantile(refs[:, :1]).tolist() == [1.0, 2.0]


FP, FN = 0.1, 0.2
SEEN = doubles([[1 - FP, FP], [FN, 1 - FN]])  # of the verdicts 0 and 1, where the truth is 0, 1


def test_the_corrected_verdict_is_unbiased() -> None:
    """Identity: backward correction unbiased."""
    corrected = tf.unbiased_reward(doubles([0.0, 1.0]), false_positive=FP, false_negative=FN)
    torch.testing.assert_close(SEEN @ corrected, doubles([0.0, 1.0]))
    clean = tf.unbiased_reward(doubles([0.0, 1.0]), false_positive=0.0, false_negative=0.0)
    assert clean.tolist() == [0.0, 1.0]


def test_forward_weights_scale_the_clean_gradient() -> None:
    """Identity: forward weights: E[w|R*] = -(1-r0-r1)(1-R*)."""
    weights = tf.forward_weights(doubles([0.0, 1.0]), false_negative=FN)
    torch.testing.assert_close(SEEN @ weights, doubles([-(1 - FP - FN), 0.0]))
    assert tf.forward_weights(doubles([0.0, 1.0]), false_negative=0.0).tolist() == [-1.0, 0.0]


def test_forward_weights_give_the_policy_gradient_of_the_truth() -> None:
    logits, truth = normal(4).requires_grad_(), doubles([1.0, 0.0, 0.0, 1.0])
    law = logits.softmax(0)
    weights = SEEN[truth.long()] @ tf.forward_weights(doubles([0.0, 1.0]), false_negative=FN)
    noisy = (law.detach() * reinforce(logits.log_softmax(0), weights)).sum()
    clean = -(1 - FP - FN) * (law * truth).sum()
    for found, expected in zip(
        torch.autograd.grad(noisy, logits), torch.autograd.grad(clean, logits), strict=True
    ):
        torch.testing.assert_close(found, expected)


def test_a_constrained_advantage_by_hand() -> None:
    task, constraint = doubles([1.0, -1.0]), doubles([0.0, 2.0])
    torch.testing.assert_close(tf.mixed_advantage(task, constraint, doubles(0.0)), task)
    found = tf.mixed_advantage(task, constraint, doubles(3.0))  # shares 1/4 and 3/4
    torch.testing.assert_close(found, doubles([0.25, 1.25]))


# -- selection ----------------------------------------------------------------------------------


def test_kl_control_is_inference() -> None:
    """Identity: KL-RL objective == beta log Z - beta KL(pi||posterior)."""
    ref, rewards, logits, beta = normal(6), normal(6, seed=1), normal(6, seed=2), 0.3
    posterior = ref.log_softmax(0) + rewards / beta
    objective = (logits.softmax(0) * rewards).sum() - beta * kl_full(logits, ref, "reverse")
    bound = beta * posterior.logsumexp(0) - beta * kl_full(logits, posterior, "reverse")
    torch.testing.assert_close(objective, bound)


def test_rejection_sampling_has_the_law_of_kl_control() -> None:
    """Identity: RSO accept law == KL-RL posterior (exact, from shares of a grid of uniforms)."""
    sft, rewards, beta = normal(5).softmax(0), normal(5, seed=1), 0.8
    grid = (torch.arange(200_000) + 0.5).double() / 200_000
    accepted = tf.rejection_sampled(rewards.expand(200_000, 5), grid[:, None].expand(-1, 5))
    share = (
        tf.rejection_sampled(rewards.expand(200_000, 5), grid[:, None].expand(-1, 5), beta=beta)
        .double()
        .mean(0)
    )
    posterior = (sft.log() + rewards / beta).softmax(0)
    torch.testing.assert_close(sft * share / (sft * share).sum(), posterior, rtol=1e-4, atol=1e-5)
    assert accepted[:, rewards.argmax()].all()


def test_how_many_are_accepted_is_within_four_deviations() -> None:
    rewards, beta, n = doubles([0.0, 1.0]), 0.5, 4000
    kept = tf.rejection_sampled(rewards.expand(n, 2), draws(n, 2), beta=beta)
    p = math.exp(-2)
    assert abs(int(kept[:, 0].sum()) - n * p) < 4 * math.sqrt(n * p * (1 - p))
    assert kept[:, 1].all()


def test_the_limits_of_rejection_sampling() -> None:
    rewards, uniform = normal(3, 6), draws(3, 6)
    member = torch.tensor([[1] * 6, [1] * 4 + [0] * 2, [1] * 6])
    assert torch.equal(tf.rejection_sampled(rewards, uniform, member, beta=1e9), member != 0)
    best = tf.rejection_sampled(rewards, uniform, member, beta=1e-9)
    assert best.sum(-1).tolist() == [1, 1, 1]
    assert torch.equal(best.double().argmax(-1), tf.best_worst(rewards, member)[0])


def test_weights_of_filters_by_hand() -> None:
    r = doubles([[1.0, -2.0, 0.5, 1.0]])
    assert tf.power_weights(r).tolist() == [[1.0, 4.0, 0.25, 1.0]]
    assert tf.best_worst_weights(r).tolist() == [[1.0, 1.0, 0.0, 1.0]]
    assert tf.best_random_weights(r).tolist() == [[0.4, 0.1, 0.1, 0.4]]
    member = torch.tensor([[0, 1, 1, 0]])
    assert tf.best_worst_weights(r, member).tolist() == [[0.0, 1.0, 1.0, 0.0]]
    assert tf.best_random_weights(r, member).tolist() == [[0.0, 0.1, 0.4, 0.0]]


def test_drawing_by_weight() -> None:
    weights = doubles([[0.0, 1.0, 3.0, 0.0]])
    uniform = doubles([[0.0, 0.2, 0.25, 0.9, 0.999999]])
    assert tf.resampled(weights, uniform).tolist() == [[1, 1, 2, 2, 2]]
    even = tf.resampled(torch.zeros(1, 4).double(), doubles([[0.1, 0.3, 0.6, 0.99]]))
    assert even.tolist() == [[0, 1, 2, 3]]


def test_ches_by_hand() -> None:
    # S+ = (1, 2), S- = (3, 0): 3 - 5 = -2; normalised (.5, 1), (3, 0): 1.5 - 1.25.
    up = doubles([[[9.0, 9.0], [1.0, 0.0], [0.0, 2.0]]])
    down = doubles([[[math.nan, 7.0], [3.0, 0.0]]])
    up_mask, down_mask = torch.tensor([[0, 1, 1]]), torch.tensor([[0, 1]])
    assert tf.ches(up, up_mask, down, down_mask).tolist() == [-2.0]
    assert tf.ches(up, up_mask, down, down_mask, normalise=True).tolist() == [0.25]
    assert tf.ches(up, up_mask, up, up_mask).tolist() == [0.0]
    assert tf.ches(up, up_mask * 0, down, down_mask, normalise=True).tolist() == [0.0]


def test_the_lowest_share() -> None:
    scores = doubles([0.5, -1.0, 3.0, 0.0])
    assert tf.lowest(scores).tolist() == [False, True, False, False]
    assert tf.lowest(scores, share=0.5).tolist() == [False, True, False, True]


# -- pairs --------------------------------------------------------------------------------------


def test_best_and_worst() -> None:
    r = doubles([[1.0, 3.0, 3.0, -1.0], [9.0, 2.0, 4.0, -9.0], [5.0, 5.0, 5.0, 5.0]])
    member = torch.tensor([[1, 1, 1, 1], [0, 1, 1, 0], [0, 0, 0, 0]])
    up, down, gap = tf.best_worst(r, member)
    assert (up.tolist()[:2], down.tolist()[:2], gap.tolist()) == ([1, 2], [3, 1], [4.0, 2.0, 0.0])
    assert tf.best_worst(r[2:])[2].tolist() == [0.0]  # all alike: no pair


def test_pairs_above_a_margin() -> None:
    found = tf.pairs_above(doubles([0.0, 1.0, 3.0]), torch.tensor([1, 1, 1]), margin=1.0)
    assert found.tolist() == [[False] * 3, [False] * 3, [True, True, False]]
    found = tf.pairs_above(doubles([0.0, 1.0, 3.0]), torch.tensor([1, 1, 0]))
    assert found.tolist() == [[False] * 3, [True, False, False], [False] * 3]


# -- rewards that are log-ratios ----------------------------------------------------------------


def scores(logp: Tensor, ref: Tensor, mask: Tensor | None = None) -> Scores:
    return Scores(logp, ref, torch.ones_like(logp) if mask is None else mask)


def test_rewards_of_tokens_add_up_to_the_log_ratio() -> None:
    """Identity: token implicit rewards telescope to sequence log-ratio."""
    logp, ref = normal(1, 11), normal(1, 11, seed=1)
    returns = to_go(implicit_rewards(scores(logp, ref), beta=0.3), torch.ones(1, 11))
    torch.testing.assert_close(returns[:, 0], 0.3 * (logp - ref).sum(-1))


def test_primes_loss_by_hand() -> None:
    # beta u = log 3: S = 3/4.
    logp = doubles([[math.log(3), 99.0]] * 3)
    mask = torch.tensor([[1, 0]] * 3)
    found = rm.prime(scores(logp, 0 * logp, mask), doubles([1.0, 0.0, 0.5]), beta=1.0)
    right, wrong = -math.log(0.75), -math.log(0.25)
    torch.testing.assert_close(found, doubles([right, wrong, (right + wrong) / 2]))


def test_the_outcome_is_predicted_by_the_mean() -> None:
    logits, mask = doubles([[2.0, 0.0, math.nan]]), torch.tensor([[1, 1, 0]])
    found = rm.token_outcome(logits, mask, doubles([1.0]))
    assert found.item() == pytest.approx(math.log(1 + math.exp(-1)))


def test_rto_by_hand() -> None:
    # scale .5 (1, 9) clipped to (.5, 1); less .1 (2, -1); and 7 on the last.
    mask, zero = torch.tensor([[1, 1, 0]]), torch.zeros(1, 3).double()
    found = rm.rto(
        doubles([[2.0, -1.0, 5.0]]),
        doubles([[1.0, 9.0, math.inf]]),
        zero,
        doubles([7.0]),
        mask,
        scale=0.5,
        clip=1.0,
        kl=0.1,
    )
    torch.testing.assert_close(found, doubles([[0.3, 8.1, 0.0]]))


def test_the_density_ratio_is_a_sum() -> None:
    mask = torch.tensor([[1, 0, 1]])
    found = rm.density_ratio(doubles([[1.0, 9.0, 2.0]]), doubles([[0.5, 1.0, 0.0]]), mask)
    assert found.tolist() == [2.5]


def test_ideal_points() -> None:
    prototypes = doubles([[1.0, 0.0], [0.0, 1.0]])
    even = rm.ideal_point(doubles([[0.0, 0.0]]), prototypes)
    torch.testing.assert_close(even, doubles([[0.5, 0.5]]))
    chosen, rejected = doubles([[1.0, 1.0]]), doubles([[0.0, 1.0]])
    # Distances: .5 and .5; then (0 - ideal (1, 0)): 2 - 1.
    assert rm.pal(even, chosen, rejected).item() == pytest.approx(math.log(2))
    first = rm.ideal_point(doubles([[900.0, 0.0]]), prototypes)
    assert rm.pal(first, chosen, rejected).item() == pytest.approx(math.log(1 + math.exp(-1)))
    found = rm.pal_product(first, chosen, rejected, scale=2.0).item()
    assert found == pytest.approx(math.log(1 + math.exp(-2)))
    one = rm.ideal_point(normal(3, 1), normal(1, 4))  # one prototype: the user does not matter
    torch.testing.assert_close(one, one[:1].expand(3, 4))


def test_centred_rewards_do_not_see_the_shift_of_a_transform() -> None:
    r = normal(2, 4)
    torch.testing.assert_close(
        centred(tf.unbiased_reward(r, false_positive=FP, false_negative=FN)) * (1 - FP - FN),
        centred(r),
    )
