"""What keeps a policy near the data: weights and scales that tie a policy term to the critic.

Pure functions; like the losses they detach nothing but where the definition itself says so.
"""

from jaxtyping import Float
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
