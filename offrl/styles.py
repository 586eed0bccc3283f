"""Networks of ACT and ACT-JEPA: transformers from observations to a chunk of actions.

    q(z | A, o) = N(mu, diag(sigma)^2),  [mu, 2 log sigma] = W enc([CLS, W o, W a_1, ..., W a_k])_0
    memory      = enc([W z, W o_1, ..., W o_To]);  a_i = W dec(query_i, memory)

The style z is what demonstrators do differently in the same place. It is read off the actions in
training and set to zero, the prior's mean, in use. Tokens of the style's encoder have sinusoidal
places, those of the memory and the queries learned ones.

ACT-JEPA has no style, so its memory is of the observations alone, and no q; it has a predictor:
queries for later observations look at the memory, and give what a target encoder makes of them,

    memory   = enc([W o_1, ..., W o_To])
    latent_j = W dec'(query_j, memory),   target = LN(enc'([W' o_1, ..., W' o_n]))

with enc' and W' following by an average, so that the memory must know what will be seen, and need
not know how it looks.
Sources: ACT (Zhao et al., RSS 2023, arXiv:2304.13705); ACT-JEPA (Vujinovic and Kovacevic, 2025,
arXiv:2501.14622).
"""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from offrl.cvae import divergence
from offrl.detr import Decoder, Encoder
from offrl.embeddings import sinusoidal
from offrl.initial import redraw
from offrl.networks import Learners
from offrl.types import Context, Noise, WindowBatch


class StyleEncoder(nn.Module):
    """mu and log sigma of the style of a chunk under an observation."""

    def __init__(
        self,
        *,
        obs_dim: int,
        act_dim: int,
        width: int,
        heads: int,
        layers: int,
        inner: int,
        latent: int,
    ) -> None:
        super().__init__()
        self.first = nn.Embedding(1, width)
        self.obs, self.action = nn.Linear(obs_dim, width), nn.Linear(act_dim, width)
        self.encoder = Encoder(width, heads, layers, inner)
        self.head = nn.Linear(width, 2 * latent)

    def forward(
        self,
        obs: Float[Tensor, "batch obs"],
        action: Float[Tensor, "batch horizon act"],
        real: Float[Tensor, "batch horizon"],
    ) -> tuple[Float[Tensor, "batch latent"], Float[Tensor, "batch latent"]]:
        """Actions with `real` 0 are not looked at."""
        batch = len(obs)
        first = self.first.weight.expand(batch, 1, -1)
        tokens = torch.cat([first, self.obs(obs)[:, None], self.action(action)], 1)
        place = torch.arange(tokens.shape[1], device=obs.device, dtype=tokens.dtype)
        there = torch.cat([real.new_ones(batch, 2), real], 1)
        summary = self.encoder(tokens, sinusoidal(place, tokens.shape[-1]), there)[:, 0]
        mean, log_variance = self.head(summary).chunk(2, -1)
        return mean, 0.5 * log_variance


class ChunkDecoder(nn.Module):
    """A chunk for observations and a style: what acts, and the whole of a saved policy.

    With `latent` 0 there is no style, nor a token for it.
    """

    def __init__(
        self,
        learners: Learners,
        *,
        obs_dim: int,
        act_dim: int,
        history: int,
        horizon: int,
        width: int,
        heads: int,
        encoder_layers: int,
        decoder_layers: int,
        inner: int,
        latent: int,
    ) -> None:
        super().__init__()
        self.settings: dict[str, Any] = {
            **{"obs_dim": obs_dim, "act_dim": act_dim, "history": history, "horizon": horizon},
            **{"width": width, "heads": heads, "inner": inner, "latent": latent},
            **{"encoder_layers": encoder_layers, "decoder_layers": decoder_layers},
        }
        self.obs_dim, self.act_dim, self.latent = obs_dim, act_dim, latent
        self.style = nn.Linear(latent, width) if latent else None
        self.obs = nn.Linear(obs_dim, width)
        self.place = nn.Embedding((1 if latent else 0) + history, width)
        self.encoder = Encoder(width, heads, encoder_layers, inner)
        self.decoder = Decoder(horizon, width, heads, decoder_layers, inner)
        self.head = nn.Linear(width, act_dim)
        redraw(self, learners)

    def remember(
        self,
        obs: Float[Tensor, "batch history obs"],
        style: Float[Tensor, "batch latent"] | None = None,
    ) -> Float[Tensor, "batch tokens width"]:
        """The memory that decoders look at; without a style, that of style zero."""
        tokens = self.obs(obs)
        if self.style is not None:
            style = obs.new_zeros(len(obs), self.latent) if style is None else style
            tokens = torch.cat([self.style(style)[:, None], tokens], 1)
        memory: Tensor = self.encoder(tokens, self.place.weight)
        return memory

    def embed(
        self, obs: Float[Tensor, "batch ahead obs"], real: Float[Tensor, "batch ahead"]
    ) -> Float[Tensor, "batch ahead width"]:
        """What the encoder makes of a sequence of observations; those with `real` 0 are hidden."""
        time = torch.arange(obs.shape[1], device=obs.device, dtype=obs.dtype)
        tokens = self.obs(obs)
        latent: Tensor = self.encoder(tokens, sinusoidal(time, tokens.shape[-1]), real)
        return latent

    def decode(
        self, memory: Float[Tensor, "batch tokens width"]
    ) -> Float[Tensor, "batch horizon act"]:
        action: Tensor = self.head(self.decoder(memory, self.place.weight))
        return action

    def forward(
        self, obs: Float[Tensor, "batch history obs"]
    ) -> Float[Tensor, "batch horizon act"]:
        """The chunk of style zero."""
        return self.decode(self.remember(obs))

    def plan(self, context: Context, noise: Noise) -> Float[Tensor, "n horizon act"]:
        """The chunk of style zero, kept in [-1, 1]."""
        chunk: Tensor = self(context.obs)
        return chunk.clamp(-1.0, 1.0)

    def noise(self) -> dict[str, tuple[int, ...]]:
        return {}

    def spec(self) -> dict[str, Any]:
        return {"type": type(self).__name__, **self.settings}

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> "ChunkDecoder":
        return cls(Learners(), **{k: v for k, v in spec.items() if k != "type"})


class LatentPredictor(nn.Module):
    """What later observations will be to the target encoder, told from a memory without a style."""

    def __init__(
        self, *, history: int, ahead: int, width: int, heads: int, layers: int, inner: int
    ) -> None:
        super().__init__()
        self.place = nn.Embedding(history, width)
        self.decoder = Decoder(ahead, width, heads, layers, inner)
        self.head = nn.Linear(width, width)

    def forward(
        self, memory: Float[Tensor, "batch tokens width"]
    ) -> Float[Tensor, "batch ahead width"]:
        latent: Tensor = self.head(self.decoder(memory, self.place.weight))
        return latent


def plain_error(net: ChunkDecoder, batch: WindowBatch) -> Tensor:
    """|a_hat - a| with style zero, as the policy acts: (batch,), over the actions that are real."""
    return chunk_error(net(batch.obs), batch)


def chunk_error(action: Float[Tensor, "batch horizon act"], batch: WindowBatch) -> Tensor:
    """|a_hat - a|, the mean over the components of a chunk's real actions: (batch,)."""
    apart = (action - batch.action).abs().mean(-1)
    return (batch.real * apart).sum(-1) / batch.real.sum(-1)


def reconstruct(
    net: ChunkDecoder,
    encoder: StyleEncoder,
    batch: WindowBatch,
    noise: Float[Tensor, "batch latent"],
) -> tuple[Tensor, Tensor]:
    """What ACT's loss is made of: |a_hat - a|, and the divergence of q from p.

    The error is that of `chunk_error`; the divergence KL(q || N(0, I)), (batch,), is a sum over
    the components of the style.
    """
    mean, log_std = encoder(batch.obs[:, -1], batch.action, batch.real)
    action = net.decode(net.remember(batch.obs, mean + log_std.exp() * noise))
    return chunk_error(action, batch), net.latent * divergence(mean, log_std)


def latent_error(
    found: Float[Tensor, "batch ahead width"],
    target: Float[Tensor, "batch ahead width"],
    real: Float[Tensor, "batch ahead"],
) -> Float[Tensor, " batch"]:
    """|found - target|, the mean over the components of the real ones; 0 where none is real."""
    apart = (found - target).abs().mean(-1)
    return (real * apart).sum(-1) / real.sum(-1).clamp(min=1.0)


def deviation(
    target: Float[Tensor, "batch ahead width"], real: Float[Tensor, "batch ahead"]
) -> Float[Tensor, ""]:
    """Mean over the components of their standard deviation over the real ones of a batch."""
    weight = (real / real.sum().clamp(min=1.0)).unsqueeze(-1)
    mean = (weight * target).sum((0, 1))
    return (weight * (target - mean).square()).sum((0, 1)).sqrt().mean()
