"""Values of tokens beside a causal model's head: what ILQL learns, and decodes with.

    Q_1, Q_2, V = heads(h_t)                     h_t: the state from which the head predicts token t
    Q'          <- polyak Q + (1 - polyak) Q'    after every update
    decode from   log pi(y_t) + beta (min_k Q'_k(y_t) - V)

Each head is linear, ReLU, linear, twice as wide within: the authors' (ILQL, Snell et al., ICLR
2023, arXiv:2206.11871; read in their code). One transformer carries policy and values, so that
decoding costs one pass and one cache, and Polyak's rule moves the heads alone. Their code can do
so too, but their published runs have three transformers: one clones, one has the values, one
follows it. The policy is the model's own head, cloned on the same answers without weights of
advantages, as in those runs; its mean is over the answers' tokens, theirs over all.

Published settings, on toxicity, Wordle and visual dialogue: expectile 0.6, 0.7, 0.8, cql_weight
0.25, 1e-4, 1, beta 8, 16, 16, learning rate 1e-4, 1e-5, 1e-5, gamma 0.99 and polyak 0.005 in all.

Heads are a child of the model while it is trained or decoded from, and a file of their own beside
it, `values.safetensors`: the folder stays one that transformers reads as the cloned model.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from offrl.checks import check_intervals
from offrl.divergences import at_least_float32
from offrl.errors import ConfigError, DataError
from offrl.lm.losses.tokens import ilql_logits
from offrl.lm.models import answer_logits, computing, core_of, ends_with_head
from offrl.optim import polyak_update, target_of

FILE = "values.safetensors"
CHILD = "token_values"  # what the model calls its heads


@dataclass(frozen=True)
class Ilql:
    """Settings of ilql, checked."""

    expectile: float  # tau of L_V
    gamma: float  # of a token
    cql_weight: float  # multiplies the cross-entropy of Q / T
    temperature: float  # T
    bc_weight: float  # multiplies the policy's cross-entropy
    polyak: float

    def __post_init__(self) -> None:
        check_intervals(
            self,
            expectile="(0, 1)",
            gamma="[0, 1]",
            cql_weight="[0, inf)",
            temperature="(0, inf)",
            bc_weight="[0, inf)",
            polyak="(0, 1]",
        )


def _head(hidden: int, out: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(hidden, 2 * hidden), nn.ReLU(), nn.Linear(2 * hidden, out))


class TokenValues(nn.Module):
    """Two Q of every token, their targets, and V of the state before it."""

    def __init__(self, hidden: int, vocabulary: int) -> None:
        super().__init__()
        self.q = nn.ModuleList(_head(hidden, vocabulary) for _ in range(2))
        self.target_q = target_of(self.q)
        self.value = _head(hidden, 1)

    def forward(
        self, hidden: Float[Tensor, "*batch hidden"]
    ) -> tuple[Float[Tensor, "2 *batch vocab"], Float[Tensor, "*batch"]]:
        """Q and V, in float32 or wider."""
        q = torch.stack([head(hidden) for head in self.q])
        return at_least_float32(q), self.state_value(hidden)

    def state_value(self, hidden: Float[Tensor, "*batch hidden"]) -> Float[Tensor, "*batch"]:
        """V."""
        return at_least_float32(self.value(hidden)[..., 0])

    @torch.no_grad()
    def target(self, hidden: Float[Tensor, "*batch hidden"]) -> Float[Tensor, "2 *batch vocab"]:
        """Q', a constant."""
        return at_least_float32(torch.stack([head(hidden) for head in self.target_q]))

    def follow(self, polyak: float) -> None:
        """Move the targets."""
        polyak_update(self.q, self.target_q, polyak)


# -- heads of a model -----------------------------------------------------------------------------


def with_values(model: Any) -> TokenValues:
    """The heads of a model; new ones become a child of it where it has none.

    Raises ConfigError where the model's logits are not what its output head gives.
    """
    core = core_of(model)
    if not hasattr(core, CHILD):
        _check_head(core)
        vocabulary, hidden = _head_of(core).weight.shape
        core.add_module(CHILD, TokenValues(hidden, vocabulary).to(_head_of(core).weight))
    return values_of(core)


def values_of(model: Any) -> TokenValues:
    """The heads of a model; raises ConfigError where it has none."""
    heads = getattr(core_of(model), CHILD, None)
    if not isinstance(heads, TokenValues):
        raise ConfigError("the model has no heads of values; load_values reads those of its folder")
    return heads


def split_values(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A state of a model with heads -> that of the heads, and that of the model without."""
    mark = f"{CHILD}."
    heads = {name.partition(mark)[2]: t for name, t in state.items() if mark in name}
    return heads, {name: t for name, t in state.items() if mark not in name}


@contextmanager
def without_values(model: Any) -> Iterator[None]:
    """The model as if it had no heads."""
    core = core_of(model)
    heads = values_of(core)
    delattr(core, CHILD)
    try:
        yield
    finally:
        core.add_module(CHILD, heads)


def save_values(state: Mapping[str, Tensor], folder: Path) -> None:
    """Write a state of heads beside a model, in one step."""
    from safetensors.torch import save_file

    partial = folder / f".{FILE}.partial"
    save_file({k: t.detach().cpu().contiguous() for k, t in state.items()}, partial)
    partial.replace(folder / FILE)


def load_values(folder: Path | str, model: Any) -> TokenValues:
    """The heads in a model's folder, which become a child of this model.

    Raises ConfigError where there are none or they are another model's, DataError where the file
    cannot be read.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = Path(folder) / FILE
    if not path.exists():
        raise ConfigError(
            f"{folder} holds no {FILE}, so no values to decode with; name the folder of a model "
            "that was trained with --method ilql"
        )
    try:
        state = load_file(path)
    except (OSError, SafetensorError) as error:
        raise DataError(f"{path} cannot be read: {error}") from None
    heads = with_values(model)
    try:
        heads.load_state_dict(state)
    except RuntimeError as error:
        delattr(core_of(model), CHILD)
        why = " ".join(str(error).split())[:300]
        raise ConfigError(f"{path} does not belong to this model: {why}") from None
    return heads


# -- what they see, and what they do ---------------------------------------------------------------


def _head_of(core: Any) -> Any:
    head = core.get_output_embeddings()
    if head is None:
        raise ConfigError(
            f"{type(core).__name__} has no output head, on whose states values are learned; use a "
            "causal model"
        )
    return head


def _check_head(core: Any) -> None:
    """Raise ConfigError unless what the head makes of a state are the model's logits."""
    ids = torch.zeros(1, 2, dtype=torch.long, device=_head_of(core).weight.device)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if not ends_with_head(core, batch, core):
        raise ConfigError(
            f"{type(core).__name__} changes its logits after its output head, or makes them "
            "without it; ilql adds its advantages there, so it takes models whose logits are the "
            "head's"
        )


def answer_states(
    model: nn.Module, batch: Mapping[str, Any], core: nn.Module
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Logits, labels and mask as `answer_logits` gives them, and h at the same places."""
    given: list[Tensor] = []
    hook = _head_of(core).register_forward_pre_hook(lambda _, states: given.append(states[0]))
    try:
        logits, labels, mask = answer_logits(model, batch, core)
    finally:
        hook.remove()
    return logits, labels, mask, given[-1][:, -labels.shape[1] - 1 : -1]


@contextmanager
def steered(model: Any, beta: float) -> Iterator[None]:
    """Within, the model's logits are `ilql_logits`: scores, samples and `generate` follow them.

    They are logarithms of a law up to a constant; with beta 0 the law is that of the cloned model.
    Raises ConfigError where the model has no heads, or beta is no finite number of 0 or more.
    """
    if not 0 <= beta < float("inf"):
        raise ConfigError(f"beta is {beta}; it must be a number of 0 or more")
    values, head = values_of(model), _head_of(core_of(model))
    plain = head.forward

    def forward(states: Tensor) -> Tensor:
        q, value = values.target(states), values.state_value(states)
        return ilql_logits(plain(states), q, value, beta=beta)

    with computing(head, forward):
        yield
