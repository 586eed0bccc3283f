"""Tokens a second and memory of training on preferences, beside TRL's DPOTrainer.

    python scripts/benchmark_lm.py                        # the page results/lm/benchmark.md
    python scripts/benchmark_lm.py --pairs 3 --out ""     # a look, on the screen alone

Both sides train the same model, from the same weights, on the same pairs in the same order and
batches, with the same loss and optimiser, on one thread. They take turns in one process; a turn is
one pass over the data, timed by the processor's time between the beginning of its first update and
the end of its last, which other load on the machine disturbs least. Memory is the greatest resident
size of a process of its own that makes the trainer and trains, less that of a process that makes
model, tokenizer and data alone, with the same packages imported. Needs the extra `test-lm`.
"""

import argparse
import copy
import itertools
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import date
from importlib import import_module, metadata
from pathlib import Path
from statistics import median
from typing import Any

import torch
from cells import RESULTS, machine

from offrl.lm.data import load_examples
from offrl.lm.extra import need
from offrl.lm.models import with_lora
from offrl.lm.objectives import objective
from offrl.lm.tokens import tokenize
from offrl.lm.trainer import LmTrainConfig, Plan, make_trainer
from offrl.statistics import t_interval

QUIET = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "DO_NOT_TRACK": "1"}
KINDS = {
    "copy": "a copy of the model",
    "stored": "numbers computed before",
    "adapter": "the model, its LoRA adapter off",
}
VOCABULARIES = (512, 8_192)  # where the body is the larger part, and where the head is
PAGE = RESULTS / "lm" / "benchmark.md"
RATE, BETA, RANK, LONGEST = 1e-4, 0.1, 8, 1024
SPECIAL = ("<pad>", "<eos>", "<unk>")


@dataclass(frozen=True)
class Sizes:
    """Of the model and the data."""

    vocabulary: int = 8_192
    hidden: int = 128
    layers: int = 4
    heads: int = 4
    prompt: int = 64  # tokens of the longest; the shortest has a quarter
    answer: int = 64  # the same
    batch: int = 8  # pairs of an update
    updates: int = 6  # of a turn, which has so many different batches
    precision: str = "float32"


def records(sizes: Sizes) -> list[dict[str, str]]:
    """Pairs of words drawn at random, of lengths drawn at random."""
    generator = torch.Generator().manual_seed(0)
    words = sizes.vocabulary - len(SPECIAL)

    def text(longest: int) -> str:
        length = int(torch.randint(longest // 4, longest + 1, (), generator=generator))
        drawn = torch.randint(words, (length,), generator=generator).tolist()
        return "".join(f" w{word}" for word in drawn)

    return [
        {
            "prompt": text(sizes.prompt),
            "chosen": text(sizes.answer),
            "rejected": text(sizes.answer),
        }
        for _ in range(sizes.batch * sizes.updates)
    ]


def tokens_of(rows: Sequence[Mapping[str, str]]) -> int:
    """Of both answers with their prompt and the token at their end, without padding."""
    return sum(
        len(row["prompt"].split()) + len(row[answer].split()) + 1
        for row in rows
        for answer in ("chosen", "rejected")
    )


def tokenizer_of(sizes: Sizes) -> Any:
    """A token for each word."""
    tokenizers, transformers = need("tokenizers"), need("transformers")
    words = (f"w{i}" for i in range(sizes.vocabulary - len(SPECIAL)))
    vocabulary = {token: i for i, token in enumerate((*SPECIAL, *words))}
    core = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
    )


def model_of(sizes: Sizes) -> Any:
    """A Llama with random weights, the same at each call."""
    transformers = need("transformers")
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=sizes.vocabulary,
            hidden_size=sizes.hidden,
            intermediate_size=2 * sizes.hidden,
            num_hidden_layers=sizes.layers,
            num_attention_heads=sizes.heads,
            num_key_value_heads=sizes.heads,
            max_position_embeddings=LONGEST,
            pad_token_id=0,
            eos_token_id=1,
            bos_token_id=None,
        )
    )


Side = Callable[[Sizes, str, Path, Any, Any, list[dict[str, str]]], Any]


def ours(sizes: Sizes, kind: str, out: Path, model: Any, words: Any, rows: Any) -> Any:
    """This library's trainer."""
    goal = objective("dpo", {"beta": BETA})
    items = tokenize(load_examples(rows, goal.form), words, max_length=LONGEST)
    if kind == "adapter":
        torch.manual_seed(1)
        model = with_lora(model, RANK, 2.0 * RANK, "all-linear")
    config = LmTrainConfig(
        steps=sizes.updates,
        batch=sizes.batch,
        micro_batch=sizes.batch,
        learning_rate=RATE,
        schedule="constant",
        warmup=0.0,
        max_length=LONGEST,
        precision=sizes.precision,  # type: ignore[arg-type]
        reference=kind,  # type: ignore[arg-type]
        log_every=sizes.updates,
        save_every=0,
        cpu=True,
    )
    return make_trainer(Plan(model, goal, items, words, config), out)


def theirs(sizes: Sizes, kind: str, out: Path, model: Any, words: Any, rows: Any) -> Any:
    """TRL's trainer, with its defaults but for what ours has too."""
    trl, datasets = import_module("trl"), import_module("datasets")
    adapter = None
    if kind == "adapter":
        adapter = need("peft").LoraConfig(
            r=RANK,
            lora_alpha=2.0 * RANK,
            target_modules="all-linear",
            task_type="CAUSAL_LM",
            lora_dropout=0.0,
        )
        torch.manual_seed(1)
    arguments = trl.DPOConfig(
        output_dir=str(out),
        max_steps=sizes.updates,
        per_device_train_batch_size=sizes.batch,
        learning_rate=RATE,
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=0,
        weight_decay=0.0,
        max_grad_norm=1.0,
        beta=BETA,
        max_length=LONGEST,
        precompute_ref_log_probs=kind == "stored",
        gradient_checkpointing=False,
        bf16=sizes.precision == "bfloat16",
        logging_steps=sizes.updates,
        save_strategy="no",
        seed=0,
        use_cpu=True,
        dataloader_pin_memory=False,
        report_to="none",
        disable_tqdm=True,
    )
    trainer = trl.DPOTrainer(
        model,
        # Where there is none, it is read from the folder that the model came from.
        copy.deepcopy(model) if kind == "copy" else None,
        args=arguments,
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=words,
        peft_config=adapter,
    )
    trainer.remove_callback(need("transformers").PrinterCallback)
    return trainer


SIDES: Mapping[str, Side] = {"ours": ours, "trl": theirs}


class Turns:
    """A trainer that is trained for a turn at a time."""

    def __init__(self, make: Side, sizes: Sizes, kind: str, out: Path) -> None:
        parts = model_of(sizes), tokenizer_of(sizes), records(sizes)
        self.trainer = make(sizes, kind, out, *parts)
        self.clock = clock()
        self.trainer.add_callback(self.clock)

    def __call__(self) -> tuple[float, float]:
        """Processor seconds of a turn, and the mean of its losses."""
        self.trainer.train()
        losses = [line["loss"] for line in self.trainer.state.log_history if "loss" in line]
        return self.clock.end - self.clock.begin, float(losses[-1])


def clock() -> Any:
    """A callback that knows when updates began and ended."""
    base: Any = need("transformers").TrainerCallback

    class Clock(base):  # type: ignore[misc]
        begin = end = 0.0

        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == 0:
                self.begin = time.process_time()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.end = time.process_time()

    return Clock()


def rates(sizes: Sizes, kind: str, pairs: int) -> dict[str, Any]:
    """Tokens a second of both, the ratio over pairs with its interval, and how losses differ."""
    tokens, taken, apart = tokens_of(records(sizes)), [], 0.0
    with tempfile.TemporaryDirectory(prefix="offrl-benchmark-") as folder:
        sides = [Turns(make, sizes, kind, Path(folder) / n) for n, make in SIDES.items()]
        # Adapters begin with random numbers.
        sides[1].trainer.model.load_state_dict(sides[0].trainer.model.state_dict())
        for turn in range(pairs + 1):
            # Whoever is second finds warmer caches, so they change places.
            order = (0, 1) if turn % 2 else (1, 0)
            found = {i: sides[i]() for i in order}
            apart = max(apart, abs(found[0][1] - found[1][1]))
            if turn:  # the first is a warm-up
                taken.append((found[0][0], found[1][0]))
    logs = [math.log(theirs / ours) for ours, theirs in taken]
    interval = t_interval(logs)
    return {
        "tokens": tokens,
        **{n: tokens / median(t[i] for t in taken) for i, n in enumerate(SIDES)},
        "ratio": math.exp(sum(logs) / len(logs)),
        "interval": None if interval is None else (math.exp(interval.low), math.exp(interval.high)),
        "apart": apart,
    }


# -- memory -------------------------------------------------------------------------------------


def peak() -> int:
    """Bytes of the greatest resident size of this process since it began.

    Linux's VmHWM: ru_maxrss of a child is at least what its parent had when it was started.
    """
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])


def child(side: str, kind: str, sizes: Sizes, train: bool) -> int:
    """What a process of its own does: print its peak, after training or with the parts alone."""
    # The whole of them: transformers and trl import their parts when they are first used.
    for name in ("transformers.trainer", "transformers.models.llama.modeling_llama", "peft"):
        import_module(name)
    if side == "trl":
        import_module("datasets"), import_module("trl.trainer.dpo_trainer")
    parts = model_of(sizes), tokenizer_of(sizes), records(sizes)
    with tempfile.TemporaryDirectory(prefix="offrl-benchmark-") as folder:
        if train:
            SIDES[side](sizes, kind, Path(folder), *parts).train()
    print(f"peak {peak()}")
    return 0


def memory(side: str, kind: str, sizes: Sizes, *, train: bool) -> int:
    """Peak of such a process, in bytes."""
    given = json.dumps({"side": side, "kind": kind, "train": train, "sizes": asdict(sizes)})
    command = [sys.executable, __file__, "--child", given]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stderr}")
    return int(done.stdout.rpartition("peak ")[2])


# -- the page -----------------------------------------------------------------------------------


def main() -> int:
    """Measure, print and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=list(KINDS))
    parser.add_argument("--pairs", type=int, default=10, help="turns of each side that count")
    parser.add_argument("--out", default=str(PAGE), help='the page; "" for none')
    parser.add_argument("--child", help=argparse.SUPPRESS)
    for field in fields(Sizes):
        default: Any = field.default
        many: dict[str, Any] = {"default": default}
        if field.name == "vocabulary":
            many = {"default": list(VOCABULARIES), "nargs": "+"}
        parser.add_argument(f"--{field.name}", type=type(default), **many)
    options = parser.parse_args()
    torch.set_num_threads(1)
    os.environ.update(QUIET)
    if options.child:
        given = json.loads(options.child)
        return child(given["side"], given["kind"], Sizes(**given["sizes"]), given["train"])
    given = {field.name: getattr(options, field.name) for field in fields(Sizes)}
    models = [Sizes(**{**given, "vocabulary": number}) for number in options.vocabulary]
    lines = heading(models[0], options.pairs)
    for sizes, kind in itertools.product(models, options.kinds):
        used = {
            side: memory(side, kind, sizes, train=True) - memory(side, kind, sizes, train=False)
            for side in SIDES
        }
        lines.append(row_of(sizes, kind, rates(sizes, kind, options.pairs), used))
        print(lines[-1], flush=True)
    text = "\n".join(lines) + "\n"
    if options.out:
        Path(options.out).write_text(text + discussion(Path(options.out)))
    return 0


def heading(sizes: Sizes, pairs: int) -> list[str]:
    """What was measured, and of what."""
    named = ("torch", "transformers", "accelerate", "peft", "trl")
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in named)
    lengths = f"prompts of {sizes.prompt // 4} to {sizes.prompt} tokens, "
    lengths += f"answers of {sizes.answer // 4} to {sizes.answer}"
    return [
        "# Speed and memory of DPO beside TRL",
        "",
        f"`python scripts/{' '.join([Path(sys.argv[0]).name, *sys.argv[1:]])}` on {machine()}, "
        f"{date.today().isoformat()}; {versions}.",
        "",
        f"A Llama of {sizes.layers} layers of {sizes.hidden} units, {sizes.precision}; {lengths}; "
        f"{sizes.batch} pairs an update, padded to the longest. Turns of {sizes.updates} updates, "
        f"{pairs} of each side that alternate in one process, after one to warm up; the ratio is "
        "the geometric mean over pairs of turns with its 95 % interval (Student's t of the "
        "logarithms). Tokens are those of prompts and answers without padding, seconds of the "
        "processor. Memory is the greatest "
        "resident size of a process that trains one turn, less that of one with the same packages, "
        "model, tokenizer and data that does not. Losses of a turn differ by at most the last "
        "column.",
        "",
        "| vocabulary, parameters | reference | ours, tokens/s | TRL, tokens/s | times as fast "
        "| ours, MiB | TRL, MiB | of TRL's | losses apart |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|",
    ]


def row_of(sizes: Sizes, kind: str, rate: Mapping[str, Any], used: Mapping[str, int]) -> str:
    """A line of the table."""
    low, high = rate["interval"] or (math.nan, math.nan)
    parameters = sum(p.numel() for p in model_of(sizes).parameters())
    return (
        f"| {sizes.vocabulary:,}, {parameters / 1e6:.1f} M | `{kind}`: {KINDS[kind]} "
        f"| {rate['ours']:.0f} | {rate['trl']:.0f} "
        f"| {rate['ratio']:.2f} ({low:.2f} to {high:.2f}) | {used['ours'] / 2**20:.0f} "
        f"| {used['trl'] / 2**20:.0f} | {100 * used['ours'] / used['trl']:.0f} % "
        f"| {rate['apart']:.1g} |"
    )


def discussion(page: Path) -> str:
    """What was written by hand below the table, kept where the page is made anew."""
    kept = page.with_name("benchmark-discussion.md")
    return "\n" + kept.read_text() if kept.exists() else ""


if __name__ == "__main__":
    sys.exit(main())
