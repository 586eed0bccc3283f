"""Causal models: how they are read, and the log-probabilities that they give.

    l_t = log softmax(logits_(t-1))[y_t]    at the places of the answer's tokens, 0 elsewhere

Weights are safetensors alone, and code that comes with a model is refused. A model may be a folder
or a name on the Hugging Face hub; a folder of a LoRA adapter is read onto the base that it names.
"""

import inspect
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from offrl.errors import ConfigError, DataError
from offrl.lm.extra import need
from offrl.lm.losses.tokens import token_logps

Precision = Literal["float32", "bfloat16"]
Batch = Mapping[str, Any]

LOGITS = 2**24  # that a head gives at a time
_ENDS_WITH_HEAD: WeakKeyDictionary[Any, bool] = WeakKeyDictionary()


def load_model(source: str, precision: Precision = "float32") -> Any:
    """A causal model of transformers; raises ConfigError or DataError where it cannot be read."""
    transformers = need("transformers")
    path = Path(source)
    if path.exists():
        _check_folder(path)
        if (path / "adapter_config.json").exists():
            base = json.loads((path / "adapter_config.json").read_text())["base_model_name_or_path"]
            return need("peft").PeftModel.from_pretrained(load_model(base, precision), source)
    try:
        return transformers.AutoModelForCausalLM.from_pretrained(
            source,
            use_safetensors=True,
            trust_remote_code=False,
            dtype=getattr(torch, precision),
        )
    except Exception as error:  # of whatever kind the file, the hub or the network makes
        raise ConfigError(f"the model {source} cannot be read: {_sentence(error)}") from None


def load_tokenizer(source: str) -> Any:
    """The tokenizer of a model; raises ConfigError where there is none that can be read."""
    transformers = need("transformers")
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    except Exception as error:
        raise ConfigError(
            f"{source} has no tokenizer that can be read: {_sentence(error)}"
        ) from None
    return tokenizer


def check_tokenizer(model: Any, tokenizer: Any, what: str) -> None:
    """Raises ConfigError where the tokenizer has tokens that the model has no embedding for."""
    rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        raise ConfigError(
            f"the tokenizer has {len(tokenizer):,} tokens and {what} embeds {rows:,}: they do not "
            "belong together; name the tokenizer of the model"
        )


def with_lora(model: Any, rank: int, alpha: float, targets: str) -> Any:
    """The model with a LoRA adapter of this rank, and all else frozen."""
    peft = need("peft")
    names = targets if targets == "all-linear" else targets.split(",")
    config = peft.LoraConfig(
        r=rank, lora_alpha=alpha, target_modules=names, task_type="CAUSAL_LM", lora_dropout=0.0
    )
    try:
        return peft.get_peft_model(model, config)
    except ValueError as error:
        raise ConfigError(f"--lora-targets {targets}: {_sentence(error)}") from None


def is_adapted(model: Any) -> bool:
    """Whether a model has an adapter that can be switched off."""
    return hasattr(model, "disable_adapter")


def without_dropout(model: nn.Module) -> None:
    """Switch dropout off: a log-ratio should be of two policies, not of two random masks."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if isinstance(getattr(module, "attention_dropout", None), float):
            setattr(module, "attention_dropout", 0.0)  # noqa: B010  # torch types it as a tensor


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """No gradient and no dropout, and the former mode afterwards."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)


def answer_logits(model: nn.Module, batch: Batch, core: nn.Module) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, labels and mask of (row, token), token t for the t-th after the shortest prompt.

    `core` is the model without what wraps it, whose signature says what it takes. Positions before
    the first answer are computed by the body of the model and skip its head where it allows that.
    """
    first, ids = int(batch["first"]), batch["input_ids"]
    logits, keep = _head_output(model, batch, core), ids.shape[1] - first + 1
    return logits[:, -keep:-1], ids[:, first:], batch["mask"][:, first:]


def answer_logps(model: nn.Module, batch: Batch, core: nn.Module) -> tuple[Tensor, Tensor]:
    """l and mask of (row, token), both 0 outside of the answers; places as in `answer_logits`.

    Logits are made for the tokens of answers alone, LOGITS at a time, and where there are more
    they are not kept: the backward pass makes them again. A model that does something with its
    logits after its head has them all made and kept.
    """
    first, ids = int(batch["first"]), batch["input_ids"]
    mask = batch["mask"][:, first:]
    inside = mask != 0
    labels = ids[:, first:][inside]
    if ends_with_head(model, batch, core):
        with _picking(core, inside, labels):
            picked = _head_output(model, batch, core)
    else:
        picked = token_logps(answer_logits(model, batch, core)[0][inside], labels)
    return picked.new_zeros(mask.shape).masked_scatter(inside, picked), mask


def _head_output(model: nn.Module, batch: Batch, core: nn.Module) -> Tensor:
    """What the model calls logits, from the place before the first answer to the end at least."""
    ids, takes = batch["input_ids"], inspect.signature(core.forward).parameters
    options: dict[str, Any] = {}
    if "logits_to_keep" in takes:
        options["logits_to_keep"] = ids.shape[1] - int(batch["first"]) + 1
    if "use_cache" in takes:
        options["use_cache"] = False
    out: Tensor = model(input_ids=ids, attention_mask=batch["attention_mask"], **options).logits
    return out


@contextmanager
def _picking(core: Any, inside: Tensor, labels: Tensor) -> Iterator[None]:
    """The head gives log-probabilities of the labels at these places instead of logits."""
    head, keep = core.get_output_embeddings(), inside.shape[1] + 1
    plain = head.forward
    rows = max(LOGITS // head.out_features, 1)

    def of(states: Tensor, wanted: Tensor) -> Tensor:
        return token_logps(plain(states), wanted)

    def forward(states: Tensor) -> Tensor:
        states = states[:, -keep:-1][inside]
        parts = list(zip(torch.split(states, rows), torch.split(labels, rows), strict=True))
        if len(parts) == 1 or not torch.is_grad_enabled():
            return torch.cat([of(*part) for part in parts])
        again: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False}
        return torch.cat([checkpoint(of, *part, **again) for part in parts])

    with computing(head, forward):
        yield


@contextmanager
def computing(part: Any, forward: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Within, this part of a model computes `forward`; after it what it did before."""
    before, own = part.forward, "forward" in vars(part)
    part.forward = forward
    try:
        yield
    finally:
        del part.forward
        if own:
            part.forward = before


def ends_with_head(model: nn.Module, batch: Batch, core: Any) -> bool:
    """Whether logits are what the head gives: numbers that it is made to give come out as such.

    Some models scale or bound them afterwards.
    """
    if core not in _ENDS_WITH_HEAD:
        head = core.get_output_embeddings()
        size = getattr(head, "out_features", None)
        if size is None:
            return False
        # Whole numbers that bfloat16 has too.
        told = torch.arange(size, device=batch["input_ids"].device) % 201 - 100
        small = {name: batch[name][:1, :2] for name in ("input_ids", "attention_mask")}
        hook = head.register_forward_hook(lambda _, __, out: told.to(out.dtype).expand_as(out))
        try:
            with frozen(model):
                given = _head_output(model, {**small, "first": 1}, core)
        finally:
            hook.remove()
        _ENDS_WITH_HEAD[core] = bool((given == told).all())
    return _ENDS_WITH_HEAD[core]


def answer_hidden(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """The last layer's state from which each token is predicted, and the mask; places as above."""
    first = int(batch["first"])
    out = model(
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
        output_hidden_states=True,
    )
    return out.hidden_states[-1][:, first - 1 : -1], batch["mask"][:, first:]


def core_of(model: Any) -> Any:
    """The model of transformers inside an adapter."""
    return model.get_base_model() if is_adapted(model) else model


def _check_folder(path: Path) -> None:
    if not path.is_dir():
        raise ConfigError(f"{path} is a file; a model is a folder, or a name on the hub")
    if not any((path / name).exists() for name in ("config.json", "adapter_config.json")):
        raise ConfigError(f"{path} holds no config.json; it is not a model of transformers")
    if not any(path.glob("*.safetensors")):
        raise DataError(
            f"{path} holds no .safetensors file; pickled weights are not read, since they can run "
            "code: write the model again with safe_serialization=True"
        )


def _sentence(error: Exception) -> str:
    """The first sentence of somebody else's message, on one line."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text.split(". ")[0][:300]
