"""Losses over all answers of a small prompt: where they are stationary, and what they follow.

A docstring that begins with "Identity" names one of the numerical identities of the sheet that
lists these methods.
"""

import itertools
from collections.abc import Callable

import torch
from lm_cases import draw, single, slope
from torch import Tensor

from offrl.divergences import kl_full
from offrl.lm.losses.contrast import chi_po, dpo
from offrl.lm.losses.lists import boltzmann, copg, copg_square, optimal_value
from offrl.lm.losses.margins import inpo, online_ipo
from offrl.lm.losses.scores import Scores, implicit_rewards, seq_score

K, BETA = 5, 0.3
REF, PREV = (draw(i, K).softmax(0) for i in (0, 1))
REWARD, LOGITS = draw(2, K), draw(3, K)
_P = torch.sigmoid(draw(4, K, K))
JUDGE = _P / (_P + _P.T)  # P(first > second)
BEST = (REF.log() + REWARD / BETA).log_softmax(0)  # pi_ref e^(r / beta)


def every_pair(logits: Tensor) -> tuple[Scores, Scores]:
    """Each answer against each."""
    logp = logits.log_softmax(0)
    first = single(logp[:, None].expand(K, K), REF.log()[:, None].expand(K, K))
    second = single(logp[None].expand(K, K), REF.log()[None].expand(K, K))
    return first, second


def test_dpo_is_stationary_at_the_regularised_optimum() -> None:
    """Identity: DPO stationary at pi_ref*exp(r/beta) under BT labels."""
    labels = torch.sigmoid(REWARD[:, None] - REWARD[None])

    def loss(z: Tensor) -> Tensor:
        return labels * dpo(*every_pair(z), beta=BETA)

    assert slope(loss, BEST).abs().max() < 1e-12
    assert slope(loss, REF.log()).abs().max() > 1e-2


def test_chi_po_is_stationary_at_the_reward_that_it_implies() -> None:
    """Identity: chiPO stationary at its own implied reward."""
    u = LOGITS.log_softmax(0) - REF.log()
    reward = BETA * (u.exp() + u)
    labels = torch.sigmoid(reward[:, None] - reward[None])

    def loss(z: Tensor) -> Tensor:
        return labels * chi_po(*every_pair(z), beta=BETA)

    assert slope(loss, LOGITS).abs().max() < 1e-12
    wrong = slope(lambda z: labels * dpo(*every_pair(z), beta=BETA), LOGITS)
    assert wrong.abs().max() > 1e-2


def test_online_ipo_follows_regularised_self_play() -> None:
    """Identity: online-IPO grad == -(4/tau) * grad[self-play pref - tau KL]."""
    tau = 0.4

    def loss(z: Tensor) -> Tensor:
        law = z.softmax(0).detach()
        pairs = online_ipo(*every_pair(z), preference=JUDGE, tau=tau)
        return law[:, None] * law[None] * pairs

    def objective(z: Tensor) -> Tensor:
        law = z.softmax(0)
        wins = (law[:, None] * law.detach()[None] * JUDGE).sum()
        return wins - tau * kl_full(z, REF.log(), "reverse")

    torch.testing.assert_close(slope(loss, LOGITS), -4 / tau * slope(objective, LOGITS))


def test_inpo_is_stationary_at_the_step_of_mirror_descent() -> None:
    """Identity: INPO loss stationary at OMD closed form."""
    eta, tau = 0.7, 0.2
    share = tau / eta
    step = share * REF.log() + (1 - share) * PREV.log() + JUDGE @ PREV / eta

    def loss(z: Tensor) -> Tensor:
        logp = z.log_softmax(0)
        first, second = (
            single(x, r, prev_logp=p)
            for x, r, p in (
                [v[:, None].expand(K, K) for v in (logp, REF.log(), PREV.log())],
                [v[None].expand(K, K) for v in (logp, REF.log(), PREV.log())],
            )
        )
        pairs = inpo(first, second, eta=eta, tau=tau, preference=JUDGE)
        return PREV[:, None] * PREV[None] * pairs

    assert slope(loss, step).abs().max() < 1e-12
    assert slope(loss, PREV.log()).abs().max() > 1e-3


def test_copg_is_stationary_at_the_optimum_whatever_law_has_sampled() -> None:
    """Identity: CoPG stationary at KL-opt for any behaviour mu."""
    behaviour = draw(6, K).softmax(0)
    pairs = behaviour[:, None] * behaviour[None]
    rewards = torch.stack([REWARD[:, None].expand(K, K), REWARD[None].expand(K, K)], -1)

    for form in (copg, copg_square):

        def loss(z: Tensor, form: Callable[..., Tensor] = form) -> Tensor:
            logp = z.log_softmax(0)
            two = [
                torch.stack([x[:, None].expand(K, K), x[None].expand(K, K)], -1)
                for x in (logp, REF.log())
            ]
            return pairs * form(single(*two), rewards, beta=BETA)

        assert slope(loss, BEST).abs().max() < 1e-12
        assert slope(loss, REF.log()).abs().max() > 1e-2


def test_the_optimal_value_is_the_likelihood_of_the_calibration() -> None:
    """Identity: VPO value identity J*(r)=-beta*E_cal[log ratio].

    For a reward of mean 0 over the calibration law; what VPO's sign makes small or great.
    """
    calibration = draw(7, K).softmax(0)
    shifted = REWARD - calibration @ REWARD
    best = (REF.log() + shifted / BETA).log_softmax(0)
    value = BETA * (REF.log() + shifted / BETA).logsumexp(0)
    scores = single(best, REF.log())
    torch.testing.assert_close(-BETA * calibration @ seq_score(scores), value)


def test_regularised_learning_is_inference() -> None:
    """Identity: KL-RL objective == beta log Z - beta KL(pi||posterior)."""
    evidence = (REF * (REWARD / BETA).exp()).sum().log()
    law = LOGITS.softmax(0)
    objective = law @ REWARD - BETA * kl_full(LOGITS, REF.log(), "reverse")
    posterior = BETA * evidence - BETA * kl_full(LOGITS, BEST, "reverse")
    torch.testing.assert_close(objective, posterior)
    # The mean over samples of the reference, here with their frequencies, estimates beta log Z.
    counts = torch.tensor([3, 1, 4, 2, 6])
    sampled = REWARD.repeat_interleave(counts)
    estimate = optimal_value(sampled, temperature=BETA)
    torch.testing.assert_close(
        estimate, BETA * ((counts / counts.sum()).double() * (REWARD / BETA).exp()).sum().log()
    )


def test_a_rejected_law_for_which_dpo_is_exact() -> None:
    """Identity: DID: log pi_ref/pi_l differences == beta log pi*/pi_ref differences."""
    best = LOGITS.log_softmax(0)
    rejected = boltzmann(REF.log() + BETA * (REF.log() - best), temperature=1.0)
    odds = REF.log() - rejected.log()
    u = seq_score(single(best, REF.log()))
    torch.testing.assert_close(odds[:, None] - odds[None], BETA * (u[:, None] - u[None]))

    def loss(z: Tensor) -> Tensor:
        return REF[:, None] * rejected[None] * dpo(*every_pair(z), beta=BETA)

    assert slope(loss, LOGITS).abs().max() < 1e-12


def test_token_rewards_are_the_return_less_the_value_of_the_prompt() -> None:
    """Identity: r-to-Q*: sum beta log-ratio == return - V*(s0), on every path of a random tree."""
    branches, depth = 3, 3
    policy, reference, reward = {}, {}, {}
    value = {leaf: torch.zeros(()).double() for leaf in paths(branches, depth)}
    for d in reversed(range(depth)):
        for i, node in enumerate(paths(branches, d)):
            reference[node] = draw(100 * d + i, branches).log_softmax(0)
            reward[node] = draw(100 * d + i + 50, branches)
            q = reward[node] + torch.stack([value[(*node, k)] for k in range(branches)])
            value[node] = BETA * (reference[node] + q / BETA).logsumexp(0)
            policy[node] = reference[node] + (q - value[node]) / BETA

    taken = paths(branches, depth)

    def along(table: dict[tuple[int, ...], Tensor]) -> Tensor:
        return torch.stack(
            [torch.stack([table[path[:t]][path[t]] for t in range(depth)]) for path in taken]
        )

    scores = Scores(along(policy), along(reference), torch.ones(len(taken), depth))
    returns = along(reward).sum(-1)
    torch.testing.assert_close(implicit_rewards(scores, beta=BETA).sum(-1), returns - value[()])


def paths(branches: int, depth: int) -> list[tuple[int, ...]]:
    return list(itertools.product(range(branches), repeat=depth))
