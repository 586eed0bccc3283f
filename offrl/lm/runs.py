"""A run of language-model training in a folder: begun from names and files, continued, written.

    config.json             what was asked, the data's hash, the versions in use
    checkpoints/            transformers' own, to continue from
    log.jsonl               what it logged
    reference.safetensors   where the reference's log-probabilities are stored
    model/                  the trained model or adapter, the tokenizer, and the values of ilql

Everything of ours is safetensors or JSON. The state of the optimiser in a checkpoint is a file of
torch, which transformers reads as tensors alone; continue only runs of your own all the same.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch

from offrl.devices import enough_memory
from offrl.errors import ConfigError, RunError
from offrl.files import read_json, sole_use, write_json
from offrl.lm.data import load_examples
from offrl.lm.extra import first_process, need, untested, versions
from offrl.lm.models import check_tokenizer, is_adapted, load_model, load_tokenizer, with_lora
from offrl.lm.objectives import objective
from offrl.lm.records import write_records
from offrl.lm.scoring import agreement, ches_scores, score_answers, scored
from offrl.lm.tokens import pad_of, tokenize
from offrl.lm.trainer import LmTrainConfig, Plan, check_plan, fit
from offrl.lm.values import FILE, load_values, steered, with_values


@dataclass(frozen=True)
class LmRun:
    """What to train from what: names and files, as config.json keeps them."""

    method: str
    model: str  # folder or name on the hub
    data: str  # file or folder
    options: Mapping[str, float | str] = field(default_factory=dict)  # of the method
    config: LmTrainConfig = field(default_factory=LmTrainConfig)
    tokenizer: str | None = None  # of the model where None
    reference_model: str | None = None  # the model as it was where None
    form: str | None = None  # of the data; by columns where None
    strict: bool = False  # stop at what would be dropped


def start(run: LmRun, out: Path) -> Any:
    """Train in a new folder; returns transformers' trainer.

    Raises RunError where something stands there already, and what reading model and data raises.
    """
    if first_process() and os.path.lexists(out):
        raise RunError(
            f"{out} exists already and is not overwritten; choose another --out, or continue it "
            f"with --resume {out}"
        )
    plan = _plan(run)
    if first_process():
        out.mkdir(parents=True)
        record = {**asdict(run), "data_sha256": _digest(Path(run.data)), "versions": versions()}
        write_json(out / "config.json", record)
    return _go(plan, out, resume=False)


def resume(out: Path) -> Any:
    """Go on from the last checkpoint of a run, to what it would have been without the stop.

    Raises RunError where there is nothing to go on from, or where the data are no longer the same.
    """
    record = read_json(out / "config.json")
    known = {f.name for f in fields(LmRun)}
    try:
        settings = {k: v for k, v in record.items() if k in known}
        run = LmRun(**{**settings, "config": LmTrainConfig(**record["config"])})
    except (AttributeError, KeyError, TypeError) as error:
        raise RunError(f"{out / 'config.json'} is not of such a run: {error}") from None
    if _digest(Path(run.data)) != record.get("data_sha256"):
        raise RunError(f"{run.data} has changed since {out} was begun; start a new run")
    return _go(_plan(run), out, resume=True)


def _plan(run: LmRun) -> Plan:
    """Everything that a run needs, read and checked."""
    goal, config = objective(run.method, run.options), run.config
    for line in untested():
        _say(f"note: {line}")
    if config.lora_alpha and not config.lora:
        raise ConfigError("lora_alpha has a meaning with lora alone")
    examples = load_examples(
        Path(run.data), run.form or goal.form, refuse=run.strict, least_answers=goal.least_answers
    )
    if examples.form != goal.form:
        raise ConfigError(
            f"{goal.name} takes {goal.form}, and {run.data} is read as {examples.form}; see "
            "offrl lm data relabel"
        )
    tokenizer = load_tokenizer(run.tokenizer or run.model)
    model = load_model(run.model)
    check_tokenizer(model, tokenizer, f"the model {run.model}")
    reference = None
    if run.reference_model is not None:
        reference = load_model(run.reference_model)
        check_tokenizer(reference, tokenizer, f"the reference {run.reference_model}")
    items = tokenize(
        examples,
        tokenizer,
        max_length=config.max_length,
        columns=goal.columns,
        behavior=goal.needs_behavior,
        least_answers=goal.least_answers,
        steps=goal.has_values,
    )
    _say("\n".join(examples.report.lines()))
    if run.strict and len(items) < len(examples.rows):
        raise ConfigError("with strict nothing may be dropped; mend what is listed above")
    need("transformers").set_seed(config.seed)
    if config.lora:
        if is_adapted(model):
            raise ConfigError(f"{run.model} has an adapter already; train it without lora")
        model = with_lora(
            model, config.lora, config.lora_alpha or 2.0 * config.lora, config.lora_targets
        )
    elif is_adapted(model):
        raise ConfigError(f"{run.model} is an adapter; merge it into its model first")
    if goal.has_values and (Path(run.model) / FILE).exists():
        load_values(run.model, model)
        _say(f"going on from the values of {run.model}")
    elif goal.has_values:
        with_values(model)
        if config.learning_rate < 1e-5:
            rate = f"{config.learning_rate:g}"
            _say(f"note: new heads learn little at a rate of {rate}; 1e-4 is usual")
    plan = Plan(model, goal, items, tokenizer, config, reference)
    check_plan(plan)
    return plan


@enough_memory("Lower --micro-batch or --max-length, or compute on the processor with --cpu")
def score_file(given: Any) -> list[str]:
    """Write a file with the log-probabilities of its answers; returns what to say of it.

    `given` has the fields of `offrl lm score`. Raises what reading model and data raises.
    """
    examples = load_examples(Path(given.data), given.form, refuse=given.strict, least_answers=1)
    if given.ches and examples.form != "pairs":
        raise ConfigError(f"--ches takes pairs, and {given.data} holds {examples.form}")
    if given.behavior and examples.form != "groups":
        raise ConfigError(f"--behavior takes groups, and {given.data} holds {examples.form}")
    tokenizer = load_tokenizer(given.tokenizer or given.model)
    names = [given.model] + ([given.reference_model] if given.reference_model else [])
    there = None if given.cpu else torch.accelerator.current_accelerator(check_available=True)
    device = there or torch.device("cpu")
    items = tokenize(examples, tokenizer, max_length=given.max_length, least_answers=1)
    pad, known, unlike = pad_of(tokenizer), [], None
    for place, name in enumerate(names):
        model = load_model(name, given.precision)
        check_tokenizer(model, tokenizer, f"the model {name}")
        by_values = given.beta is not None and place == 0
        if by_values:
            load_values(name, model)
        model.to(device)
        with steered(model, given.beta) if by_values else nullcontext():
            known.append(score_answers(model, items, pad, given.micro_batch))
        if given.ches and unlike is None:
            unlike = ches_scores(model, items, pad, given.micro_batch)
    logps, reference = known[0], known[1] if len(known) > 1 else None
    records = scored(examples.rows, items, logps, reference, behavior=given.behavior)
    if unlike is not None:
        records = [{**r, "ches": value} for r, value in zip(records, unlike, strict=True)]
    write_records(Path(given.out), records)
    total = sum(map(sum, logps))
    tokens = sum(map(len, logps))
    lines = [
        *examples.report.lines(),
        f"{given.out}: {len(logps):,} answers, {total / len(logps):.4g} each, "
        f"{total / tokens:.4g} a token",
    ]
    if reference is not None:
        lines.append(
            f"log-ratio to the reference: {(total - sum(map(sum, reference))) / len(logps):.4g}"
        )
    share, pairs = agreement(items, logps, reference)
    if pairs and examples.form in ("pairs", "groups"):
        lines.append(f"answers in their right order: {share:.1%} of {pairs:,} pairs")
    return lines


def _go(plan: Plan, out: Path, *, resume: bool) -> Any:
    with sole_use(out) if first_process() else nullcontext():
        with enough_memory(_remedy(plan)):
            trainer = fit(plan, out, resume=resume, callbacks=[_log(out / "log.jsonl")])
        _save(trainer, out)
    return trainer


def _remedy(plan: Plan) -> str:
    config = plan.config
    alike = "" if plan.objective.mismatched else ", which changes nothing but speed,"
    return (
        f"Begin a new run with a lower --micro-batch (now {config.micro_batch}){alike} or "
        f"--max-length (now {config.max_length}), or with --lora or --gradient-checkpointing"
    )


def _say(text: str) -> None:
    if first_process():
        print(text)


def _save(trainer: Any, out: Path) -> None:
    """Write the trained model, in one step."""
    partial, model = out / ".model.partial", out / "model"
    trainer.save_model(str(partial))  # by all processes: some hold a part of the weights each
    if not trainer.is_world_process_zero():
        return
    (partial / "training_args.bin").unlink(missing_ok=True)  # a pickle, which nothing reads
    if model.exists():
        shutil.rmtree(model)  # of the same run, continued after its end
    os.replace(partial, model)


def _log(path: Path) -> Any:
    """A callback that prints what is logged, and keeps it as JSON lines."""
    base: Any = need("transformers").TrainerCallback

    class Log(base):  # type: ignore[misc]
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if not state.is_world_process_zero:
                return
            partial = path.with_name(f".{path.name}.partial")
            partial.write_text("".join(json.dumps(line) + "\n" for line in state.log_history))
            partial.replace(path)
            if logs and "loss" in logs:
                values = (f"{k} {v:.4g}" for k, v in logs.items() if k in SHOWN)
                print(f"{state.global_step}/{state.max_steps}: {', '.join(values)}", flush=True)

    return Log()


SHOWN = ("loss", "grad_norm", "logp", "log_ratio", "gap", "accuracy", "q", "value")


def _digest(path: Path) -> str:
    """SHA-256 of a file, or of the files of a folder by name."""
    digest = hashlib.sha256()
    files = sorted(f for f in path.iterdir() if f.is_file()) if path.is_dir() else [path]
    try:
        for file in files:
            digest.update(file.name.encode())
            with file.open("rb") as handle:
                while block := handle.read(1 << 20):
                    digest.update(block)
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error}") from None
    return digest.hexdigest()
