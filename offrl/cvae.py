"""A conditional variational auto-encoder of actions: which actions the data takes in a state.

    q(z | s, a) = N(mu(s, a), diag(sigma(s, a))^2),  p(z) = N(0, I),  a = d(s, z) in [-1, 1]

Trained by a reconstruction error and the divergence of q from p. Noise comes from outside.
Source: auto-encoding variational Bayes (Kingma and Welling, ICLR 2014, arXiv:1312.6114), as a
model of behaviour since BCQ (Fujimoto, Meger and Precup, ICML 2019, arXiv:1812.02900).
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from offrl.networks import MLP, Learners

LOG_STD_MIN, LOG_STD_MAX = -4.0, 15.0  # of the latent; BCQ's, and kept by those that follow it


class CVAE(nn.Module):
    """Encoder and decoder, each of ReLU layers; the latent has `latent` components."""

    def __init__(
        self, obs_dim: int, act_dim: int, hidden: Sequence[int], learners: Learners, latent: int
    ) -> None:
        super().__init__()
        self.encoder = MLP([obs_dim + act_dim, *hidden, 2 * latent], learners)
        self.decoder = MLP([obs_dim + latent, *hidden, act_dim], learners)

    def encode(
        self, obs: Float[Tensor, "*seed batch obs"], action: Float[Tensor, "*seed batch act"]
    ) -> tuple[Float[Tensor, "*seed batch latent"], Float[Tensor, "*seed batch latent"]]:
        """mu(s, a) and log sigma(s, a), the latter cut to [-4, 15]."""
        mean, log_std = self.encoder(torch.cat([obs, action], -1)).chunk(2, -1)
        return mean, log_std.clamp(LOG_STD_MIN, LOG_STD_MAX)

    def decode(
        self, obs: Float[Tensor, "*seed batch obs"], latent: Float[Tensor, "*seed batch latent"]
    ) -> Float[Tensor, "*seed batch act"]:
        """d(s, z), squashed by tanh."""
        return torch.tanh(self.decoder(torch.cat([obs, latent], -1)))

    def forward(
        self,
        obs: Float[Tensor, "*seed batch obs"],
        action: Float[Tensor, "*seed batch act"],
        noise: Float[Tensor, "*seed batch latent"],
    ) -> tuple[Float[Tensor, "*seed batch act"], Float[Tensor, "*seed batch"]]:
        """The action reconstructed from z = mu + sigma noise, and the divergence of q from p."""
        mean, log_std = self.encode(obs, action)
        return self.decode(obs, mean + log_std.exp() * noise), divergence(mean, log_std)


def divergence(
    mean: Float[Tensor, "*seed batch latent"], log_std: Float[Tensor, "*seed batch latent"]
) -> Float[Tensor, "*seed batch"]:
    """KL(N(mu, sigma^2) || N(0, 1)) = (mu^2 + sigma^2 - 1) / 2 - log sigma, mean over components.

    The sum over components would be the divergence of the joint distribution; the mean is what
    BCQ and its successors weigh against an error that is a mean as well.
    """
    return (0.5 * (mean.square() + (2.0 * log_std).exp() - 1.0) - log_std).mean(-1)
