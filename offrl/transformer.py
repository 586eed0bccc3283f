"""Transformers that denoise chunks of actions: with cross-attention, and as an interleaved GPT.

CrossTransformer, of Diffusion Policy (Chi et al., RSS 2023, arXiv:2303.04137) and PTP (Torne et
al., CoRL 2025, arXiv:2505.09561):

    memory token = W2 mish(W1 (token + position)),  tokens = [sinusoidal(level), conditions]
    x = W action + position;  decoder blocks over x and the memory;  output = W LN(x)

Action t sees actions up to t, the level, and conditions up to t. InterleavedGPT, of BESO (Reuss et
al., RSS 2023, arXiv:2304.02532):

    tokens = [W level, goals, s1, a1, s2, a2, ...];  output t = W LN(GPT(tokens) at a_t)

Goals and observations share an embedding, and an action has the position of its observation.
Weights begin as N(0, 0.02^2) and biases at 0, as in both codes. Departures: there is no dropout,
for the reason given in `offrl.attention`; BESO's table of positions has one row more, which its
code never reads; Diffusion Policy's option to encode conditions by attention, unused in
its published settings, is left out, so that conditions can be kept over the steps of a sampler.

Both are callables (x, level, condition) as all backbones are (`offrl.backbones`).
"""

from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import mish

from offrl.attention import GPT, Block, KeyValue, blocks_of, causal, visible
from offrl.embeddings import sinusoidal
from offrl.initial import redraw
from offrl.networks import Learners

SPREAD = 0.02  # of the weights when training begins


class Memory(NamedTuple):
    """Keys and values of condition tokens in every layer: the same for all levels."""

    key: Float[Tensor, "layers batch heads tokens head"]
    value: Float[Tensor, "layers batch heads tokens head"]


class CrossTransformer(nn.Module):
    """Actions look back at themselves and across at the level and the conditions.

    Published: 8 layers, 4 heads, width 256 (768 for the kitchen). Without `causal` every action
    sees all actions and conditions. `level_scale` multiplies the level: 1 for steps, some 1,000
    for times in [0, 1].
    """

    def __init__(
        self,
        horizon: int,
        act_dim: int,
        cond_tokens: int,
        cond_dim: int,
        learners: Learners,
        *,
        layers: int = 8,
        heads: int = 4,
        width: int = 256,
        causal: bool = True,
        level_scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.settings: dict[str, Any] = {
            **{"horizon": horizon, "act_dim": act_dim},
            **{"cond_tokens": cond_tokens, "cond_dim": cond_dim},
            **{"layers": layers, "heads": heads, "width": width},
            **{"causal": causal, "level_scale": level_scale},
        }
        self.width, self.causal, self.level_scale = width, causal, level_scale
        self.embed = nn.Linear(act_dim, width)
        self.position = nn.Parameter(torch.zeros(horizon, width))
        self.cond_embed = nn.Linear(cond_dim, width)
        self.cond_position = nn.Parameter(torch.zeros(1 + cond_tokens, width))
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.blocks = nn.ModuleList(Block(width, heads, cross=True) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, act_dim)
        redraw(self, learners, SPREAD)

    def forward(
        self,
        x: Float[Tensor, "batch horizon act"],
        level: Float[Tensor, " batch"],
        condition: Float[Tensor, "batch tokens cond"] | Memory,
        real: Float[Tensor, "batch tokens"] | None = None,
    ) -> Float[Tensor, "batch horizon act"]:
        """The output for each action. `real` is 0 at condition tokens that none may see."""
        kept = condition if isinstance(condition, Memory) else self.remember(condition)
        token = sinusoidal(level * self.level_scale, self.width)[:, None] + self.cond_position[:1]
        level_token = self.down(mish(self.up(token)))
        seen, memory_seen = self._masks(x, kept.key.shape[3], real)
        x = self.embed(x) + self.position[: x.shape[1]]
        for i, block in enumerate(blocks_of(self.blocks)):
            offered = block.remember(level_token)
            memory = KeyValue(
                torch.cat([offered.key, kept.key[i]], 2),
                torch.cat([offered.value, kept.value[i]], 2),
            )
            x = block(x, seen, memory, memory_seen)
        y: Tensor = self.head(self.norm(x))
        return y

    def remember(self, condition: Float[Tensor, "batch tokens cond"]) -> Memory:
        """What the blocks make of the conditions, to be passed in their place at every level."""
        tokens = condition.shape[1]
        x = self.cond_embed(condition) + self.cond_position[1 : 1 + tokens]
        x = self.down(mish(self.up(x)))
        offers = [block.remember(x) for block in blocks_of(self.blocks)]
        return Memory(*(torch.stack(part) for part in zip(*offers, strict=True)))

    def _masks(
        self, x: Tensor, tokens: int, real: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None]:
        horizon, device = x.shape[1], x.device
        if real is not None:
            real = torch.cat([real.new_ones(len(real), 1), real], 1)
        if not self.causal:
            anything = torch.ones(horizon, 1 + tokens, dtype=torch.bool, device=device)
            return None, None if real is None else visible(anything, real)
        action, token = torch.arange(horizon, device=device), torch.arange(tokens, device=device)
        allowed = torch.cat([action[:, None] >= 0, action[:, None] >= token], 1)
        return visible(causal(horizon, device), None), visible(allowed, real)

    def spec(self) -> dict[str, Any]:
        return {"type": type(self).__name__, **self.settings}


class InterleavedGPT(nn.Module):
    """Observations and noisy actions in turn, after the level and the goals.

    The conditions are the goals, `goals` tokens, and then the observations, one for each action.
    Published: 6 layers, 6 heads, width 360 for the kitchen; 4, 12 and 240 for block pushing.
    `level_scale` as in CrossTransformer.
    """

    def __init__(
        self,
        horizon: int,
        act_dim: int,
        goals: int,
        cond_dim: int,
        learners: Learners,
        *,
        layers: int = 6,
        heads: int = 6,
        width: int = 360,
        level_scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.settings: dict[str, Any] = {
            **{"horizon": horizon, "act_dim": act_dim, "goals": goals, "cond_dim": cond_dim},
            **{"layers": layers, "heads": heads, "width": width, "level_scale": level_scale},
        }
        self.goals, self.level_scale = goals, level_scale
        self.level_embed = nn.Linear(1, width)
        self.cond_embed = nn.Linear(cond_dim, width)
        self.embed = nn.Linear(act_dim, width)
        self.position = nn.Parameter(torch.zeros(goals + horizon, width))
        self.gpt = GPT(width, layers, heads)
        self.head = nn.Linear(width, act_dim)
        redraw(self, learners, SPREAD)

    def forward(
        self,
        x: Float[Tensor, "batch horizon act"],
        level: Float[Tensor, " batch"],
        condition: Float[Tensor, "batch tokens cond"],
        real: Float[Tensor, "batch tokens"] | None = None,
    ) -> Float[Tensor, "batch horizon act"]:
        """The output for each action. `real` is 0 at goals and observations that none may see.

        The action of an observation that is not real is hidden with it.
        """
        goals, horizon = self.goals, x.shape[1]
        place = self.position[: goals + horizon]
        given = self.cond_embed(condition) + place
        action = self.embed(x) + place[goals:]
        turns = torch.stack([given[:, goals:], action], 2).flatten(1, 2)
        level_token = self.level_embed((level * self.level_scale)[:, None, None])
        if real is not None:
            first = real.new_ones(len(real), 1)
            real = torch.cat([first, real[:, :goals], real[:, goals:].repeat_interleave(2, 1)], 1)
        tokens = torch.cat([level_token, given[:, :goals], turns], 1)
        outputs = self.gpt(tokens, real)
        y: Tensor = self.head(outputs[:, 1 + goals :][:, 1::2])
        return y

    def spec(self) -> dict[str, Any]:
        return {"type": type(self).__name__, **self.settings}
