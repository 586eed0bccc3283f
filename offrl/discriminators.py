"""Telling an expert's transitions from all others, and the ratio of densities that follows."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import softplus

from offrl.networks import MLP, Learners

FLAT = 1e-12  # added to a squared slope, so that a root of zero has a gradient


class Discriminator(nn.Module):
    """The logit of how likely (s, a) is the expert's rather than the mixture's.

    At the least `discrimination_loss` the logit is log d_expert(s, a) / d_mixture(s, a).
    """

    def __init__(
        self, obs_dim: int, act_dim: int, hidden: Sequence[int], learners: Learners
    ) -> None:
        super().__init__()
        self.net = MLP([obs_dim + act_dim, *hidden, 1], learners)

    def forward(
        self, obs: Float[Tensor, "*seed batch obs"], action: Float[Tensor, "*seed batch act"]
    ) -> Float[Tensor, "*seed batch"]:
        logit: Tensor = self.net(torch.cat([obs, action], -1)).squeeze(-1)
        return logit


def discrimination_loss(
    expert_logit: Float[Tensor, "*seed batch"], mixture_logit: Float[Tensor, "*seed batch"]
) -> Float[Tensor, "*seed batch"]:
    """-log c(expert) - log(1 - c(mixture)), c the logistic function of the logit.

    Source: generative adversarial imitation (arXiv:1606.03476), as SMODICE and DemoDICE use it.
    """
    return softplus(-expert_logit) + softplus(mixture_logit)


def slope_penalty(
    discriminator: nn.Module,
    expert: tuple[Float[Tensor, "*seed batch obs"], Float[Tensor, "*seed batch act"]],
    mixture: tuple[Float[Tensor, "*seed batch obs"], Float[Tensor, "*seed batch act"]],
    share: Float[Tensor, "*seed batch"],
) -> Float[Tensor, "*seed batch"]:
    """(|d logit / d(s, a)| - 1)^2 at share * expert + (1 - share) * mixture.

    The penalty of WGAN-GP (arXiv:1704.00028, eq. 3), which keeps the ratio smooth between the
    expert's pairs and those near them. It is differentiable: the inner gradient is part of it.
    """
    w = share.unsqueeze(-1)
    points = [
        (w * e + (1.0 - w) * m).detach().requires_grad_()
        for e, m in zip(expert, mixture, strict=True)
    ]
    slopes = torch.autograd.grad(discriminator(*points).sum(), points, create_graph=True)
    squares = torch.cat(slopes, -1).square().sum(-1)
    norm = (squares + FLAT).sqrt()
    return (norm - 1.0).square()
