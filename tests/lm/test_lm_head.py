"""Log-probabilities without logits that are kept: the same numbers, of any kind of head."""

from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("transformers")

import tiny_lm
import transformers

from offrl.lm import models
from offrl.lm.losses.tokens import token_logps
from offrl.lm.models import answer_logps, core_of, with_lora
from offrl.lm.tokens import Collator

pytestmark = pytest.mark.filterwarnings("ignore:.*will be removed in v6:FutureWarning")


def batch() -> dict[str, Any]:
    return Collator(0)(tiny_lm.items(tiny_lm.goal("dpo")))


def by_hand(model: Any) -> Tensor:
    """From logits of every place."""
    given = batch()
    ids, first = given["input_ids"], given["first"]
    logits = model(input_ids=ids, attention_mask=given["attention_mask"]).logits
    logps = token_logps(logits[:, first - 1 : -1], ids[:, first:])
    return torch.where(given["mask"][:, first:] != 0, logps, 0.0)


def gradients(value: Tensor, model: Any) -> Tensor:
    trained = [p for p in model.parameters() if p.requires_grad]
    weights = torch.linspace(-1.0, 1.0, value.numel()).reshape(value.shape)
    return torch.cat([g.flatten() for g in torch.autograd.grad((weights * value).sum(), trained)])


@pytest.mark.parametrize("adapter", [False, True])
@pytest.mark.parametrize("rows", [100, 3])
def test_numbers_and_gradients_are_those_of_all_logits(
    adapter: bool, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_lm.model(1)
    vocabulary = model.config.vocab_size
    monkeypatch.setattr(models, "LOGITS", rows * vocabulary)
    if adapter:
        pytest.importorskip("peft")
        model = with_lora(model, 2, 4.0, "all-linear")
    kept: list[tuple[int, ...]] = []

    def noted(tensor: Tensor) -> Tensor:
        kept.append(tuple(tensor.shape))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(noted, lambda tensor: tensor):
        logp, _ = answer_logps(model, batch(), core_of(model))
    wide = [shape for shape in kept if len(shape) > 1 and shape[-1] == vocabulary]
    assert bool(wide) == (rows == 100)
    expected = by_hand(model)
    torch.testing.assert_close(logp, expected, rtol=1e-5, atol=1e-6)
    mine, yours = gradients(logp, model), gradients(expected, model)
    torch.testing.assert_close(mine, yours, rtol=1e-4, atol=1e-5 * float(yours.abs().max()))
    with torch.no_grad():
        again, _ = answer_logps(model, batch(), core_of(model))
    torch.testing.assert_close(again, expected, rtol=1e-5, atol=1e-6)
    assert "forward" not in vars(core_of(model).get_output_embeddings())


def test_what_a_model_does_with_its_logits_is_done() -> None:
    torch.manual_seed(0)
    plain = tiny_lm.model(0).config
    shape = {name: getattr(plain, name) for name in ("vocab_size", "hidden_size", "eos_token_id")}
    shape |= {"num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2}
    config = transformers.GraniteConfig(
        **shape, intermediate_size=16, pad_token_id=0, bos_token_id=None, logits_scaling=0.1
    )
    model = transformers.GraniteForCausalLM(config).eval()
    logp, _ = answer_logps(model, batch(), model)
    torch.testing.assert_close(logp, by_hand(model), rtol=1e-5, atol=1e-6)
