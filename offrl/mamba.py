"""Mamba over tokens, at one grain or at two, and from any state on.

    u, z = W_in x;  v = silu(conv(u));  delta, b, c = W_x v;  delta = softplus(W_d delta + bias)
    Mamba(x) = W_out (selective_scan(v, delta, A, b, c, D) * silu(z))

The convolution looks back over 4 tokens, feature by feature, and the scan (`offrl.scan`) over all:
what both need of the past is a state of constant size, so that a further token costs the same
however many came before. Padding in front of the first token leaves that state empty.

Source: Mamba (Gu and Dao 2023, arXiv:2312.00752) with the first numbers of its reference code.

`TwoGrains` is the layer of Decision Mamba (Lv et al., NeurIPS 2024, arXiv:2406.05427): one Mamba
over all tokens (coarse), and one over whole steps of return, observation and action (fine), each
step made one vector by a convolution of its three tokens,

    x <- x + Mamba_coarse(RMSNorm x) + spread(LN Mamba_fine(conv RMSNorm x))

where `spread` gives the vector of a step to the three tokens of the next one. The authors' code
zeroes the last token and then tiles the vectors of all steps three times, so that token p gets
that of step p mod T: in half of the steps of training the answer is among the inputs.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import silu, softplus

from offrl.initial import redraw
from offrl.networks import Learners
from offrl.scan import selective_scan

EXPAND, STATE, KERNEL = 2, 16, 4  # inner features per feature, states per inner one, tokens
STEP_MIN, STEP_MAX = 1e-3, 1e-1  # between which the first delta are
EPS = 1e-5  # of RMSNorm


class MambaState(NamedTuple):
    """What a Mamba knows of the tokens so far."""

    recent: Float[Tensor, "batch past inner"]
    scan: Float[Tensor, "batch inner state"]


class Mamba(nn.Module):
    """The block above, for one learner; A begins at -1 .. -16 and D at 1."""

    def __init__(self, width: int, learners: Learners) -> None:
        super().__init__()
        self.inner, self.rank = EXPAND * width, math.ceil(width / 16)
        self.into = nn.Linear(width, 2 * self.inner, bias=False)
        self.conv = nn.Conv1d(self.inner, self.inner, KERNEL, groups=self.inner)
        self.select = nn.Linear(self.inner, self.rank + 2 * STATE, bias=False)
        self.step_size = nn.Linear(self.rank, self.inner)
        self.out = nn.Linear(self.inner, width, bias=False)
        redraw(self, learners)
        with torch.no_grad():
            share = 0.5 + learners.uniform(0.5, (self.inner,))
            first = torch.exp(math.log(STEP_MIN) + share * math.log(STEP_MAX / STEP_MIN))
            # softplus^-1, so that delta is this where the input is 0.
            self.step_size.bias.copy_(first + torch.log(-torch.expm1(-first)))
        rates = torch.arange(1.0, STATE + 1.0).log()
        self.log_rates = nn.Parameter(rates.expand(self.inner, STATE).clone())
        self.skip = nn.Parameter(torch.ones(self.inner))

    def empty(self, batch: int) -> MambaState:
        """The state before the first token."""
        like = self.skip
        return MambaState(
            like.new_zeros(batch, KERNEL - 1, self.inner), like.new_zeros(batch, self.inner, STATE)
        )

    def forward(
        self,
        x: Float[Tensor, "batch tokens width"],
        real: Float[Tensor, "batch tokens"],
        state: MambaState,
    ) -> tuple[Float[Tensor, "batch tokens width"], MambaState]:
        """Outputs for tokens that follow those in the state, and the state after them.

        Tokens before the first one are not real (0); between two that are there is no padding.
        """
        u, gate = self.into(x).chunk(2, -1)
        seen = torch.cat([state.recent, u * real[..., None]], 1)
        v = silu(self.conv(seen.transpose(1, 2)).transpose(1, 2))
        step, b, c = self.select(v).split([self.rank, STATE, STATE], -1)
        delta = softplus(self.step_size(step)) * real[..., None]
        rates = -self.log_rates.exp()
        y, last = selective_scan(v, delta, rates, b, c, self.skip, state.scan)
        return self.out(y * silu(gate)), MambaState(seen[:, x.shape[1] :], last)


class GrainState(NamedTuple):
    """What a layer of two grains knows of the tokens so far."""

    recent: Float[Tensor, "batch past inner"]
    scan: Float[Tensor, "batch inner state"]
    fine_recent: Float[Tensor, "batch past inner"]
    fine_scan: Float[Tensor, "batch inner state"]
    pair: Float[Tensor, "batch 2 width"]  # return and observation of the step that is open
    given: Float[Tensor, "batch 1 width"]  # what the open step has had of the fine grain


class TwoGrains(nn.Module):
    """A layer over tokens in threes: the action of a step, then return and observation of the next.

    These are the tokens in the order of time, cut so that each three ends with what a policy knows
    when it acts. The step before a three is whole once its action is there.
    """

    def __init__(self, width: int, learners: Learners) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(width, eps=EPS)
        self.coarse, self.fine = Mamba(width, learners), Mamba(width, learners)
        self.merge = nn.Conv1d(width, width, 3, stride=3)
        self.fine_norm = nn.LayerNorm(width)
        redraw(self.merge, learners)

    def empty(self, batch: int) -> GrainState:
        """The state before the first token."""
        width = self.merge.in_channels
        room = self.fine.skip.new_zeros(batch, 3, width)
        coarse, fine = self.coarse.empty(batch), self.fine.empty(batch)
        return _joined(coarse, fine, room[:, :2], room[:, 2:])

    def forward(
        self,
        x: Float[Tensor, "batch steps 3 width"],
        real: Float[Tensor, "batch steps 3"],
        state: GrainState,
    ) -> tuple[Float[Tensor, "batch steps 3 width"], GrainState]:
        """Outputs for threes that follow those in the state, and the state after them."""
        normed = self.norm(x)
        before = MambaState(state.recent, state.scan)
        mixed, coarse = self.coarse(normed.flatten(1, 2), real.flatten(1, 2), before)

        acted = real[..., 0]  # the step before this three is whole, and not padding
        pairs = torch.cat([state.pair[:, None], normed[:, :, 1:]], 1)
        steps = torch.cat([pairs[:, :-1], normed[:, :, :1]], 2)
        merged = self.merge(steps.flatten(1, 2).transpose(1, 2)).transpose(1, 2)
        moved, fine = self.fine(merged, acted, MambaState(state.fine_recent, state.fine_scan))
        vector = self.fine_norm(moved) * acted[..., None]
        given = torch.cat([state.given, vector], 1)
        spread = torch.stack([given[:, :-1], vector, vector], 2)

        y = x + mixed.unflatten(1, x.shape[1:3]) + spread
        return y, _joined(coarse, fine, pairs[:, -1], given[:, -1:])


def _joined(coarse: MambaState, fine: MambaState, pair: Tensor, given: Tensor) -> GrainState:
    return GrainState(coarse.recent, coarse.scan, fine.recent, fine.scan, pair, given)
