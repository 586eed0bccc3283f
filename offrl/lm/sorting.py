"""A language task whose best answer is known, and a model small enough to learn it in a minute.

A prompt is digits and the sign ">", its answer the digits in order: "3125>" and "1235". Any answer
has a reward from 0 to 1, the share of places that are right, so that answers can be compared, and 1
is the best there is.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from offrl.lm.extra import need
from offrl.lm.models import frozen

DIGITS = "0123456789"
SPECIAL = ("<pad>", "<eos>", "<unk>")
TOKENS = (*SPECIAL, *DIGITS, ">")


def digit_tokenizer() -> Any:
    """A token for every digit and the sign, none for anything else."""
    tokenizers, transformers = need("tokenizers"), need("transformers")
    vocabulary = {token: i for i, token in enumerate(TOKENS)}
    core = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unk>"))
    every = tokenizers.Regex(".")
    core.pre_tokenizer = tokenizers.pre_tokenizers.Split(every, behavior="isolated")
    core.decoder = tokenizers.decoders.Fuse()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
    )


def tiny_model(hidden: int = 64, layers: int = 2, heads: int = 4, vocabulary: int = 0) -> Any:
    """A Llama from its configuration alone: random weights, nothing is downloaded."""
    transformers = need("transformers")
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=vocabulary or len(TOKENS),
            hidden_size=hidden,
            intermediate_size=2 * hidden,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=heads,
            max_position_embeddings=64,
            pad_token_id=TOKENS.index("<pad>"),
            eos_token_id=TOKENS.index("<eos>"),
            bos_token_id=None,
        )
    )


def prompts(count: int, length: int, generator: torch.Generator) -> list[str]:
    """Random digits and the sign."""
    drawn = torch.randint(10, (count, length), generator=generator)
    return ["".join(map(str, row)) + ">" for row in drawn.tolist()]


def best_answer(prompt: str) -> str:
    """The digits of a prompt in order."""
    return "".join(sorted(prompt.rstrip(">")))


def reward(prompt: str, answer: str) -> float:
    """The share of places that are right, of the longer of answer and best answer."""
    best = best_answer(prompt)
    right = sum(a == b for a, b in zip(answer, best, strict=False))
    return right / max(len(best), len(answer))


def disordered(prompt: str, generator: torch.Generator, rate: float) -> str:
    """The best answer with each two neighbours exchanged at this rate: a demonstrator who errs."""
    answer = list(best_answer(prompt))
    for i, drawn in enumerate(torch.rand(len(answer) - 1, generator=generator).tolist()):
        if drawn < rate:
            answer[i], answer[i + 1] = answer[i + 1], answer[i]
    return "".join(answer)


def sample(
    model: Any,
    tokenizer: Any,
    asked: Sequence[str],
    generator: torch.Generator,
    *,
    tokens: int,
) -> list[str]:
    """An answer of the model to each prompt, drawn at temperature 1; prompts are equally long."""
    device = next(model.parameters()).device
    ids = torch.tensor([tokenizer(text)["input_ids"] for text in asked], device=device)
    end, size = tokenizer.eos_token_id, ids.shape[1]
    ended = torch.zeros(len(asked), dtype=torch.bool, device=device)
    with frozen(model):
        for _ in range(tokens):
            law = model(input_ids=ids).logits[:, -1].float().softmax(-1).cpu()
            drawn: Tensor = torch.multinomial(law, 1, generator=generator)[:, 0].to(device)
            ids = torch.cat([ids, torch.where(ended, end, drawn)[:, None]], 1)
            ended |= drawn == end
            if bool(ended.all()):
                break
    return tokenizer.batch_decode(ids[:, size:], skip_special_tokens=True)  # type: ignore[no-any-return]
