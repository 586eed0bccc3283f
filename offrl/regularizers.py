"""What keeps a policy near the data: weights and scales that tie a policy term to the critic.

Pure functions; like the losses they detach nothing but where the definition itself says so.
"""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def q_scale(q: Float[Tensor, "*seed batch"], alpha: float) -> Float[Tensor, "*seed"]:
    """lambda = alpha / mean|Q|, a constant, which makes the Q term free of the reward's scale.

    Source: TD3+BC (arXiv:2106.06860, eq. 5). The gradient does not pass through lambda.
    """
    return alpha / q.detach().abs().mean(-1)


def advantage_weight(
    advantage: Float[Tensor, "*seed batch"], beta: float, max_weight: float = 100.0
) -> Float[Tensor, "*seed batch"]:
    """exp(beta A), clipped from above: the weight of a logged action in policy extraction.

    Source: AWR (arXiv:1910.00177) as used by IQL (arXiv:2110.06169, eq. 7), whose authors clip
    at 100. `beta` is the inverse temperature: 0 is behaviour cloning.
    """
    return (beta * advantage).exp().clamp(max=max_weight)


def log_sum_exp_gap(
    sampled: Float[Tensor, "ensemble *seed n batch"],
    log_density: Float[Tensor, "*seed n batch"],
    data: Float[Tensor, "ensemble *seed batch"],
    temperature: float = 1.0,
) -> Float[Tensor, "ensemble *seed batch"]:
    """T log sum_j exp((Q(s, a_j) - log p(a_j)) / T) - Q(s, a), for each member.

    `sampled` are the values of n actions of density p, which makes the sum an estimate, up to the
    factor n, of the integral over all actions; `data` is the value of the logged action. Source:
    CQL (arXiv:2006.04779, eq. 4 and appendix F). The paper divides the sum by n, which lowers the
    gap by T log n and leaves its gradient as it is.
    """
    exponent = (sampled - log_density) / temperature
    return temperature * exponent.logsumexp(-2) - data


def ensemble_diversity(
    slope: Float[Tensor, "ensemble *seed batch act"],
) -> Float[Tensor, "*seed batch"]:
    """sum_(i != j) <g_i, g_j> / (N - 1), with g_i the direction of dQ_i(s, a) / da, of length one.

    N for members that agree on the best direction of the action, -N / (N - 1) at the least.
    The sum over pairs is |sum_i g_i|^2 - sum_i |g_i|^2, which costs N products rather than N^2.
    Source: EDAC (arXiv:2110.01548, eq. 4 and algorithm 1).
    """
    length: Tensor = torch.linalg.vector_norm(slope, dim=-1, keepdim=True)
    direction = slope / (length + 1e-10)
    pairs = direction.sum(0).square().sum(-1) - direction.square().sum((0, -1))
    return pairs / (len(slope) - 1)


def dual_reference(
    generated: Float[Tensor, "*seed batch act"],
    logged: Float[Tensor, "*seed batch act"],
    generated_advantage: Float[Tensor, "*seed batch"],
    logged_advantage: Float[Tensor, "*seed batch"],
) -> Float[Tensor, "*seed batch act"]:
    """Of a generated and a logged action the one with the greater advantage; a tie is generated.

    Source: A2PR (arXiv:2405.19909, section 4.2). The gradient of the choice is that of the action
    chosen; none reaches the advantages.
    """
    return generated.where((generated_advantage >= logged_advantage)[..., None], logged)


def advantage_mask(
    generated_advantage: Float[Tensor, "*seed batch"],
    logged_advantage: Float[Tensor, "*seed batch"],
) -> Float[Tensor, "*seed batch"]:
    """1 where the generated advantage is at least 0 or the logged one is above it, else 0.

    Where neither action is better than the policy's value there is nothing to be pulled to.
    Source: A2PR (arXiv:2405.19909, section 4.2), with the comparisons of its authors' code.
    """
    return ((generated_advantage >= 0) | (logged_advantage > 0)).to(logged_advantage)


def relative_support(
    log_prob: Float[Tensor, "*batch choices"], share: float
) -> Bool[Tensor, "*batch choices"]:
    """Which choices have at least `share` of the probability of the likeliest one.

    What lies outside is taken for noise, not for an option. Source: the discrete form of BCQ
    (arXiv:1910.01708, eq. 19, share 0.3), and min-p sampling of language models (arXiv:2407.01082).
    A share of 0 supports every choice.
    """
    least = math.log(share) if share > 0 else -math.inf
    support: Tensor = log_prob - log_prob.amax(-1, keepdim=True) >= least
    return support
