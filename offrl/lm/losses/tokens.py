"""Losses of tokens: supervised learning, its reweighted forms, and the values of ILQL.

    l_t = log softmax(logits_t)[y_t]

The first group take the logits, the labels and the mask of the completion and return one value per
token, 0 outside the mask: `agg` of offrl.lm.losses.scores makes one number of them. Labels outside
the mask may be anything, -100 included; logits and labels stand at the same position, shifted
already.
"""

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from offrl.divergences import at_least_float32, kl_full
from offrl.lm.losses.scores import masked
from offrl.losses import expectile_loss, td_loss, td_target
from offrl.regularizers import log_sum_exp_gap


def token_logps(
    logits: Float[Tensor, "*batch token vocab"], labels: Int[Tensor, "*batch token"]
) -> Float[Tensor, "*batch token"]:
    """log softmax(logits)[label] in float32 or wider; a negative label counts as token 0."""
    log_law = at_least_float32(logits).log_softmax(-1)
    return log_law.gather(-1, labels.clamp(min=0)[..., None])[..., 0]


# -- supervised learning ------------------------------------------------------------------------


def sft(
    logits: Float[Tensor, "*batch token vocab"],
    labels: Int[Tensor, "*batch token"],
    mask: Shaped[Tensor, "*batch token"],
) -> Float[Tensor, "*batch token"]:
    """Supervised fine-tuning: -l_t.

    Data: demonstrations. Twin: behaviour cloning.
    Source: the likelihood itself, derived.
    """
    return masked(-token_logps(logits, labels), mask)


def dft(
    logits: Float[Tensor, "*batch token vocab"],
    labels: Int[Tensor, "*batch token"],
    mask: Shaped[Tensor, "*batch token"],
) -> Float[Tensor, "*batch token"]:
    """Dynamic fine-tuning: -sg[pi(y_t)] l_t, whose gradient is that of -pi(y_t).

    Tokens that the model finds unlikely move it little. ASFT's authors warn that low precision can
    undo the weights.
    Data: demonstrations. Twin: reward-weighted regression with the policy's own probability.
    Source: arXiv:2508.05629; read in TRL 1.10's code.
    """
    logp = token_logps(logits, labels)
    return masked(-logp.detach().exp() * logp, mask)


def asft(
    logits: Float[Tensor, "*batch token vocab"],
    labels: Int[Tensor, "*batch token"],
    mask: Shaped[Tensor, "*batch token"],
    ref_logits: Float[Tensor, "*batch token vocab"],
    *,
    weight: float = 0.05,
) -> Float[Tensor, "*batch token"]:
    """Anchored supervised fine-tuning: dft + weight KL(ref || pi) of the whole vocabulary.

    Data: demonstrations, logits of the reference. Twin: reward-weighted regression with BRAC's
    forward KL.
    Source: arXiv:2509.23753; read in its authors' code (0.1 there, 0.05 in its README).
    """
    anchor = masked(kl_full(logits, ref_logits, "forward"), mask)
    return dft(logits, labels, mask) + weight * anchor


def otr(
    logits: Float[Tensor, "*batch token vocab"],
    labels: Int[Tensor, "*batch token"],
    mask: Shaped[Tensor, "*batch token"],
    *,
    sampled: Int[Tensor, "*batch token samples"],
    wrong_reward: float,
) -> Float[Tensor, "*batch token"]:
    """One-token rollout: -mean_k r_k log pi(a_k), r = 1 where a_k is the label, else c <= 0.

    a_k are samples of the policy at every position, so that this is dft by Monte Carlo: the
    expected gradient is 1 - c times dft's, exactly. Neither c nor the number of samples nor their
    temperature could be established, hence no defaults.
    Data: demonstrations. Twin: the one-step policy gradient of a bandit.
    Source: arXiv:2509.26313, abstract and summaries; the expectation derived, and checked.
    """
    logp = at_least_float32(logits).log_softmax(-1).gather(-1, sampled)
    reward = torch.full_like(logp, wrong_reward).masked_fill(sampled == labels[..., None], 1.0)
    return masked(-(reward * logp).mean(-1), mask)


# -- values of tokens ---------------------------------------------------------------------------


def next_values(
    value: Float[Tensor, "*batch token"], mask: Shaped[Tensor, "*batch token"]
) -> Float[Tensor, "*batch token"]:
    """V at the next token of a completion in one piece, 0 after its last: the episode's end."""
    shifted = masked(value, mask)[..., 1:]
    return torch.cat([shifted, torch.zeros_like(value[..., :1])], -1)


def ilql(
    q: Float[Tensor, "ensemble *batch token vocab"],
    value: Float[Tensor, "*batch token"],
    labels: Int[Tensor, "*batch token"],
    mask: Shaped[Tensor, "*batch token"],
    rewards: Float[Tensor, "*batch token"],
    *,
    target_q: Float[Tensor, "ensemble *batch token vocab"],
    expectile: float = 0.7,
    gamma: float = 0.99,
    cql_weight: float = 1.0,
    temperature: float = 1.0,
) -> Float[Tensor, "*batch token"]:
    """Implicit language Q-learning: IQL's critics and CQL's term, one value and Q per token.

        sum_k (Q_k(y_t) - sg[r_t + gamma V_(t+1)])^2              with V = 0 after the last token
        + |tau - 1(d < 0)| d^2,    d = sg[min_k Q'_k(y_t)] - V_t
        + cql_weight sum_k (log sum_a e^(Q_k(a) / T) - Q_k(y_t) / T)

    Q' are targets that follow slowly (Polyak 0.005); the policy for decoding is trained apart, by
    sft. The paper sweeps the weight of the last term.
    Data: offline trajectories with a reward per token. Twin: IQL with CQL, the same code.
    Source: arXiv:2206.11871; read in its authors' code.
    """
    logged = labels.clamp(min=0)[..., None].expand(*q.shape[:-1], 1)
    data, target = q.gather(-1, logged)[..., 0], target_q.gather(-1, logged)[..., 0]
    alive = torch.ones_like(rewards)  # next_values knows the end
    backup = td_target(rewards, alive, next_values(value, mask), gamma).detach()
    choices = q.movedim(-1, -2)
    uniform = choices.new_zeros(()).expand(choices.shape[1:])
    conservative = log_sum_exp_gap(choices, uniform, data, temperature)
    loss = (
        td_loss(data, backup)
        + expectile_loss(target.amin(0).detach() - value, expectile)
        + cql_weight / temperature * conservative.sum(0)
    )
    return masked(loss, mask)


def ilql_logits(
    policy_logits: Float[Tensor, "*batch vocab"],
    q: Float[Tensor, "ensemble *batch vocab"],
    value: Float[Tensor, "*batch"],
    *,
    beta: float,
) -> Float[Tensor, "*batch vocab"]:
    """log pi_bc(a) + beta (min_k Q_k(a) - V): what ILQL decodes from; beta = 0 is cloning.

    Source: arXiv:2206.11871; read in its authors' code.
    """
    advantage = q.amin(0) - value[..., None]
    return at_least_float32(policy_logits).log_softmax(-1) + beta * advantage
