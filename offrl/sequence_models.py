"""Networks that answer with an action to returns, observations and actions in the order of time.

    tokens: R_1, s_1, a_1, R_2, s_2, a_2, ...;  the output at s_t is the action of step t

A policy that acts knows everything up to s_t, and then its own action becomes the next token. So
the tokens are taken in threes (a_(t-1), R_t, s_t), each of which ends where an action is due; the
first has no action in it. Whole sequences (`forward`) and single steps (`advance`) go through the
same layers in the same threes: they differ in what the memory holds when they begin.

ReturnTransformer is the network of Decision Transformer (Chen et al., NeurIPS 2021,
arXiv:2106.01345), ReturnMamba that of Decision Mamba (Lv et al., NeurIPS 2024, arXiv:2406.05427).
"""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import gelu

from offrl.attention import GPT, Activation, Cache
from offrl.errors import ConfigError, near
from offrl.initial import redraw
from offrl.latent_models import LatentActor
from offrl.mamba import EPS, GrainState, TwoGrains
from offrl.networks import Learners
from offrl.types import SequenceBatch

SPREAD = 0.02  # of the weights of GPT's blocks when training begins
Embed = Literal["linear", "mlp"]
Memory = tuple[Tensor, ...]  # rows lead, then layers
Real = Float[Tensor, "batch steps 3"]


class Steps(NamedTuple):
    """What is known at each of several steps in a row; `past_action` is that of the one before."""

    past_action: Float[Tensor, "batch steps act"]
    to_go: Float[Tensor, "batch steps"]
    obs: Float[Tensor, "batch steps obs"]
    time: Int[Tensor, "batch steps"]


def steps_of(batch: SequenceBatch) -> tuple[Steps, Real]:
    """The steps of a batch in threes, and which tokens are real."""
    past = torch.cat([torch.zeros_like(batch.action[:, :1]), batch.action[:, :-1]], 1)
    acted = torch.cat([torch.zeros_like(batch.real[:, :1]), batch.real[:, :-1]], 1)
    real = torch.stack([acted, batch.real, batch.real], -1)
    return Steps(past, batch.to_go, batch.obs, batch.time), real


class Residual(nn.Module):
    """h + W2 gelu(h) with h = W1 x: the embedding of Decision Mamba."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(inputs, width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        y: Tensor = h + self.second(gelu(h))
        return y


class Tokens(nn.Module):
    """Actions, returns and observations as vectors, and the time of each as one.

    Steps from number `max_steps` - 1 on share a vector of time.
    """

    def __init__(
        self, obs_dim: int, act_dim: int, width: int, max_steps: int, embed: Embed = "linear"
    ) -> None:
        super().__init__()
        layer = nn.Linear if embed == "linear" else Residual
        self.action, self.to_go = layer(act_dim, width), layer(1, width)
        self.obs = layer(obs_dim, width)
        self.time = nn.Embedding(max_steps, width)
        self.norm = nn.LayerNorm(width)

    def forward(
        self, steps: Steps
    ) -> tuple[Float[Tensor, "batch steps 3 width"], Float[Tensor, "batch steps 3 width"]]:
        now = self.to_go(steps.to_go[..., None]), self.obs(steps.obs)
        last = self.time.num_embeddings - 1
        time = self.time(steps.time.clamp(max=last))
        before = self.time((steps.time - 1).clamp(0, last))
        tokens = torch.stack([self.action(steps.past_action), *now], 2)
        return tokens, torch.stack([before, time, time], 2)


class ReturnTransformer(nn.Module):
    """action = tanh(W GPT(LN(token + time))), with causal blocks that see no padding.

    Published for locomotion: 3 layers, 1 head, width 128, ReLU.
    """

    def __init__(
        self,
        obs_dim: int,
        act_dim: int,
        learners: Learners,
        *,
        layers: int = 3,
        heads: int = 1,
        width: int = 128,
        activation: Activation = "relu",
        max_steps: int = 1000,
    ) -> None:
        super().__init__()
        self.settings: dict[str, Any] = {
            **{"obs_dim": obs_dim, "act_dim": act_dim, "layers": layers, "heads": heads},
            **{"width": width, "activation": activation, "max_steps": max_steps},
        }
        self.tokens = Tokens(obs_dim, act_dim, width, max_steps)
        self.gpt = GPT(width, layers, heads, activation)
        self.head = nn.Linear(width, act_dim)
        redraw(self.tokens, learners)
        redraw(self.gpt, learners, SPREAD)
        redraw(self.head, learners)

    def forward(self, batch: SequenceBatch) -> Float[Tensor, "batch steps act"]:
        """The action of each step; those of padded steps mean nothing."""
        steps, real = steps_of(batch)
        y = self.gpt(self._embed(steps).flatten(1, 2), real.flatten(1, 2))
        return torch.tanh(self.head(y[:, 2::3]))

    def empty(self, batch: int, context: int) -> Memory:
        """Room for the keys and values of `context` steps."""
        return self.gpt.empty(batch, 3 * context)

    def advance(
        self, steps: Steps, memory: Memory, held: Int[Tensor, " batch"]
    ) -> tuple[Float[Tensor, "batch act"], Memory]:
        """The action of the last of these steps, which follow `held` ones in the memory.

        Where a row holds none, its memory counts as empty and the first past action for nothing.
        """
        x = self._embed(steps).flatten(1, 2)
        ahead = torch.arange(x.shape[1], device=x.device) - 1
        place = 3 * held[:, None] + ahead
        # An action that there is not goes to the last place, which no token looks at: the action
        # that would follow the last step of a full context is never needed.
        place = place.where(place >= 0, memory[0].shape[3] - 1)
        y, memory = self.gpt.step(x, Cache(*memory), place)
        return torch.tanh(self.head(y[:, -1])), memory

    def _embed(self, steps: Steps) -> Tensor:
        token, time = self.tokens(steps)
        x: Tensor = self.tokens.norm(token + time)
        return x

    def spec(self) -> dict[str, Any]:
        return {"type": type(self).__name__, **self.settings}


class Predicted(NamedTuple):
    """Of each step its action, and of what the tokens before it said: its observation and return.

    The action is not bounded where the embedding is `mlp`. The first step of a sequence is not
    predicted, whatever stands there.
    """

    action: Float[Tensor, "batch steps act"]
    obs: Float[Tensor, "batch steps obs"]
    to_go: Float[Tensor, "batch steps"]


class ReturnMamba(nn.Module):
    """Layers of two grains over LN(token) + time, and an RMSNorm.

    With `linear` embeddings the action is tanh(W x), with `mlp` ones W2 gelu(W1 x), as in the
    authors' code. Published: 24 layers, width 768.
    """

    def __init__(
        self,
        obs_dim: int,
        act_dim: int,
        learners: Learners,
        *,
        layers: int = 4,
        width: int = 128,
        embed: Embed = "mlp",
        max_steps: int = 1000,
    ) -> None:
        super().__init__()
        self.settings: dict[str, Any] = {
            **{"obs_dim": obs_dim, "act_dim": act_dim, "layers": layers, "width": width},
            **{"embed": embed, "max_steps": max_steps},
        }
        self.bounded = embed == "linear"
        self.tokens = Tokens(obs_dim, act_dim, width, max_steps, embed)
        self.layers = nn.ModuleList(TwoGrains(width, learners) for _ in range(layers))
        self.norm = nn.RMSNorm(width, eps=EPS)
        hidden = (
            nn.Identity() if self.bounded else nn.Sequential(nn.Linear(width, width), nn.GELU())
        )
        self.head = nn.Sequential(hidden, nn.Linear(width, act_dim))
        self.next_obs, self.next_to_go = nn.Linear(width, obs_dim), nn.Linear(width, 1)
        for part in (self.tokens, self.head, self.next_obs, self.next_to_go):
            redraw(part, learners)

    def forward(self, batch: SequenceBatch) -> Predicted:
        steps, real = steps_of(batch)
        y, _ = self._through(steps, real, self.empty(len(real), steps.obs.shape[1]))
        action = self.head(y[:, :, 2])
        action = torch.tanh(action) if self.bounded else action
        return Predicted(action, self.next_obs(y[:, :, 0]), self.next_to_go(y[:, :, 0])[..., 0])

    def empty(self, batch: int, context: int) -> Memory:
        """A state of constant size, whatever the context."""
        states = [layer.empty(batch) for layer in layers_of(self.layers)]
        return tuple(torch.stack(part, 1) for part in zip(*states, strict=True))

    def advance(
        self, steps: Steps, memory: Memory, held: Int[Tensor, " batch"]
    ) -> tuple[Float[Tensor, "batch act"], Memory]:
        """The action of the last of these steps, which follow `held` ones in the memory.

        Where a row holds none, its memory counts as empty and the first past action for nothing.
        """
        holds = (held > 0).to(steps.obs.dtype)
        one = torch.ones_like(steps.to_go)
        real = torch.stack([torch.cat([holds[:, None], one[:, 1:]], 1), one, one], -1)
        kept = tuple(part * holds.reshape(-1, *[1] * (part.ndim - 1)) for part in memory)
        y, memory = self._through(steps, real, kept)
        action = self.head(y[:, -1, 2])
        return torch.tanh(action) if self.bounded else action.clamp(-1.0, 1.0), memory

    def _through(self, steps: Steps, real: Tensor, memory: Memory) -> tuple[Tensor, Memory]:
        token, time = self.tokens(steps)
        x, states = self.tokens.norm(token) + time, []
        for i, layer in enumerate(layers_of(self.layers)):
            x, state = layer(x, real, GrainState(*(part[:, i] for part in memory)))
            states.append(state)
        return self.norm(x), tuple(torch.stack(part, 1) for part in zip(*states, strict=True))

    def spec(self) -> dict[str, Any]:
        return {"type": type(self).__name__, **self.settings}


def layers_of(modules: nn.ModuleList) -> list[TwoGrains]:
    """The layers of a list of modules, in their order, with the type that they have."""
    return [module for module in modules if isinstance(module, TwoGrains)]


SEQUENCE_MODELS: Mapping[str, type[ReturnTransformer] | type[ReturnMamba] | type[LatentActor]] = {
    "ReturnTransformer": ReturnTransformer,
    "ReturnMamba": ReturnMamba,
    "LatentActor": LatentActor,
}


def sequence_model_from_spec(spec: Mapping[str, Any]) -> nn.Module:
    """The network, for one learner, that `spec()` described; its weights are still to be loaded.

    Raises ConfigError for a type that offrl does not have, TypeError for a spec that lacks an
    entry or has one too many.
    """
    kind = str(spec.get("type", ""))
    if kind not in SEQUENCE_MODELS:
        raise ConfigError(
            f"the policy's network is of type {kind!r}, which offrl does not know"
            f"{near(kind, SEQUENCE_MODELS)}; pass its class as load_policy(path, actor=...)"
        )
    return SEQUENCE_MODELS[kind](
        **{k: v for k, v in spec.items() if k != "type"}, learners=Learners()
    )
