"""Training of language models on preferences, labels, scored answers and demonstrations.

The loop is transformers' `Trainer` with accelerate under it, so that several processes, FSDP and
DeepSpeed come with `accelerate launch`; what is here is what it optimises. Each micro-batch gives a
sum of losses, divided by the number of items that the whole update has over all micro-batches and
processes. Reference log-probabilities are of

    copy      a frozen copy of the model as it was, or another model
    adapter   the model with its LoRA adapter switched off, so in no memory of its own
    stored    numbers of the data, computed once before training and kept beside the run

Dropout is off, except in training on demonstrations.
"""

import copy
import functools
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from offrl.errors import ConfigError, RunError
from offrl.lm.extra import need
from offrl.lm.losses.scores import Scores, seq_score
from offrl.lm.models import (
    Precision,
    answer_logits,
    answer_logps,
    core_of,
    frozen,
    is_adapted,
    without_dropout,
)
from offrl.lm.objectives import Objective, baseline, summary
from offrl.lm.scoring import with_reference
from offrl.lm.tokens import Collator, Item, pad_of
from offrl.lm.values import (
    answer_states,
    load_values,
    save_values,
    split_values,
    values_of,
    with_values,
    without_values,
)

SCHEDULES = {"linear": "linear", "cosine": "cosine", "constant": "constant_with_warmup"}
Reference = Literal["auto", "copy", "adapter", "stored"]


@dataclass(frozen=True)
class LmTrainConfig:
    """Settings of the optimisation, the same for all methods."""

    steps: int = 0  # updates; 0 for as many as `epochs` takes
    epochs: float = 1.0  # passes over the data
    batch: int = 64  # examples of an update, over all processes
    micro_batch: int = 8  # examples of a device at a time
    learning_rate: float = 1e-6  # AdamW's; some 1e-5 with LoRA, 1e-4 with ilql's new heads
    schedule: Literal["linear", "cosine", "constant"] = "linear"  # after the warm-up
    warmup: float = 0.1  # share of the updates
    weight_decay: float = 0.0  # AdamW's
    grad_norm: float = 1.0  # greatest norm of the gradient; 0 for none
    max_length: int = 1024  # tokens of prompt and answer; the constant of dr_grpo
    precision: Precision = "float32"  # of the computation; weights stay as they are
    gradient_checkpointing: bool = False  # less memory, a second pass
    lora: int = 0  # rank of an adapter; 0 trains the model itself
    lora_alpha: float = 0.0  # its scale times the rank; 0 for twice the rank
    lora_targets: str = "all-linear"  # modules, with commas between
    reference: Reference = "auto"  # copy, adapter or stored; auto is adapter with LoRA, else copy
    log_every: int = 10  # updates
    save_every: int = 500  # updates between checkpoints, of which two are kept; 0 for none
    seed: int = 0  # of the order of the data and of new weights
    cpu: bool = False  # stay on the CPU where there is a GPU

    def __post_init__(self) -> None:
        for name in ("batch", "micro_batch", "max_length", "log_every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 1")
        whole = ("steps", "lora", "save_every", "seed")
        for name in (*whole, "lora_alpha", "weight_decay", "grad_norm"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 0")
        for name in ("learning_rate", "epochs"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be above 0")
        if not 0 <= self.warmup <= 1:
            raise ConfigError(f"warmup is {self.warmup}; it is a share of the updates, 0 to 1")


@dataclass(frozen=True)
class Plan:
    """What `fit` trains: the model may have an adapter, the reference may be None."""

    model: Any
    objective: Objective
    items: Sequence[Item]
    tokenizer: Any
    config: LmTrainConfig = field(default_factory=LmTrainConfig)
    reference: Any = None  # another model than the one trained; its copy where None


def fit(plan: Plan, out: Path, *, resume: bool = False, callbacks: Sequence[Any] = ()) -> Any:
    """Train; returns transformers' trainer, whose `model` and `state` are of the end.

    `out/checkpoints` holds its checkpoints. With `resume` training goes on from the last of them,
    in the same order of the data. Raises ConfigError where the settings do not fit each other, and
    RunError where there is no checkpoint to go on from.
    """
    trainer = make_trainer(plan, out)
    for callback in callbacks:
        trainer.add_callback(callback)
    last = None
    if resume:
        folder = out / "checkpoints"
        last = need("transformers.trainer_utils").get_last_checkpoint(str(folder))
        if last is None:
            raise RunError(f"{folder} holds no checkpoint to go on from")
    trainer.train(resume_from_checkpoint=last)
    return trainer


def make_trainer(plan: Plan, out: Path) -> Any:
    """The trainer of a plan, ready for `.train()`."""
    transformers, config, goal = need("transformers"), plan.config, plan.objective
    need("accelerate")
    check_plan(plan)
    if goal.form != "demonstrations":
        without_dropout(plan.model)
    if goal.has_values:
        with_values(plan.model)
    on_cpu = config.cpu or not torch.accelerator.is_available()
    steps_per_epoch = math.ceil(len(plan.items) / config.batch)
    steps = config.steps or math.ceil(config.epochs * steps_per_epoch)
    arguments = transformers.TrainingArguments(
        output_dir=str(out / "checkpoints"),
        max_steps=steps,
        per_device_train_batch_size=config.micro_batch,
        learning_rate=config.learning_rate,
        lr_scheduler_type={"constant": "constant_with_warmup"}.get(
            config.schedule, config.schedule
        ),
        warmup_steps=math.ceil(config.warmup * steps),
        weight_decay=config.weight_decay,
        max_grad_norm=config.grad_norm,
        bf16=config.precision == "bfloat16",
        logging_steps=min(config.log_every, steps),
        save_strategy="steps" if config.save_every else "no",
        save_steps=config.save_every or steps,
        save_total_limit=2,
        seed=config.seed,
        use_cpu=on_cpu,
        dataloader_pin_memory=not on_cpu,
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_drop_last=goal.mismatched,
        # Heads of values are no part of the model's output, so would be taken for unused.
        ddp_find_unused_parameters=False if goal.has_values else None,
    )
    share = config.micro_batch * arguments.world_size
    if config.batch % share:
        raise ConfigError(
            f"batch is {config.batch}, which {arguments.world_size} processes with a micro_batch "
            f"of {config.micro_batch} do not divide; make it a multiple of {share}"
        )
    arguments.gradient_accumulation_steps = config.batch // share
    kind = _reference_kind(plan)
    items, pad, reference = list(plan.items), pad_of(plan.tokenizer), None
    if kind in ("copy", "stored"):
        reference = plan.reference
        if reference is None and kind == "copy":
            reference = copy.deepcopy(plan.model)
        if reference is not None:
            reference.requires_grad_(False).eval().to(arguments.device)
    if kind == "stored":
        path = out / "reference.safetensors"
        asked = plan.model.to(arguments.device) if reference is None else reference
        with arguments.main_process_first():  # the others read what it writes
            items = with_reference(items, asked, pad, config.micro_batch, path)
        reference = None
    if config.gradient_checkpointing:
        # After the reference was copied; not by re-entry, which needs inputs with a gradient.
        core = core_of(plan.model)
        old = core.gradient_checkpointing_enable  # before 5.20
        getattr(core, "activation_checkpointing_enable", old)({"use_reentrant": False})
    trainer = _trainer_class()(
        model=plan.model,
        args=arguments,
        train_dataset=items,
        data_collator=Collator(pad, goal.counted, goal.mismatched, goal.has_values),
        processing_class=plan.tokenizer,
    )
    # Whoever wants to see what is logged adds a callback that prints it.
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.take(goal, reference, kind, config.max_length)
    if goal.has_values:
        trainer.add_callback(_following(float(goal.options["polyak"])))
    return trainer


def check_plan(plan: Plan) -> None:
    """Raise ConfigError for settings that do not go with the method or with each other."""
    _reference_kind(plan)
    goal, config = plan.objective, plan.config
    if goal.mismatched and config.micro_batch < 2:
        raise ConfigError(
            f"{goal.name} estimates a baseline from answers under the prompts of others, so a "
            "micro_batch of 1 has none; make it 2 or more"
        )
    if goal.mismatched and len(plan.items) < config.micro_batch:
        raise ConfigError(
            f"{goal.name} needs whole micro-batches: {len(plan.items)} examples are fewer than a "
            f"micro_batch of {config.micro_batch}"
        )


def _reference_kind(plan: Plan) -> str:
    """How the reference's log-probabilities are had: "none", or a kind of Reference."""
    goal, kind = plan.objective, plan.config.reference
    if not goal.needs_reference:
        if plan.reference is not None or kind != "auto":
            raise ConfigError(f"{goal.name} with these settings compares with no reference")
        return "none"
    if kind == "auto":
        return "adapter" if is_adapted(plan.model) and plan.reference is None else "copy"
    if kind == "adapter" and (not is_adapted(plan.model) or plan.reference is not None):
        raise ConfigError(
            "reference 'adapter' is the model with its adapter off: it needs lora, and no other "
            "model as reference"
        )
    if kind == "stored" and (goal.needs_logits or goal.mismatched):
        raise ConfigError(
            f"{goal.name} needs more of the reference than log-probabilities of the answers, so "
            "they cannot be stored; use copy or adapter"
        )
    return kind


@contextmanager
def _referring(model: nn.Module, bare: Any, other: Any) -> Iterator[tuple[nn.Module, nn.Module]]:
    """The reference and its core: another model, or this one with its adapter off."""
    if other is not None:
        yield other, core_of(other)
        return
    with bare.disable_adapter():
        yield model, core_of(bare)


def _following(polyak: float) -> Any:
    """A callback that moves the targets of the values after every update."""
    base: Any = need("transformers").TrainerCallback

    class Follow(base):  # type: ignore[misc]
        def on_step_end(
            self, args: Any, state: Any, control: Any, model: Any = None, **_: Any
        ) -> None:
            values_of(model).follow(polyak)

    return Follow()


# -- the trainer --------------------------------------------------------------------------------


@functools.cache
def _trainer_class() -> Any:
    """A subclass of transformers' Trainer, made when that package is there."""
    base: Any = need("transformers").Trainer

    class LossTrainer(base):  # type: ignore[misc]
        """The Trainer with an objective; it counts items over a whole update."""

        goal: Objective
        reference: Any
        kind: str
        longest: int

        def take(self, goal: Objective, reference: Any, kind: str, longest: int) -> None:
            self.goal, self.reference, self.kind, self.longest = goal, reference, kind, longest
            self.watched: dict[str, list[Tensor]] = {}
            # compute_loss divides by the items of the update, so that nothing else must.
            self.model_accepts_loss_kwargs = True

        def get_batch_samples(
            self, epoch_iterator: Any, num_batches: int, device: torch.device
        ) -> tuple[list[Any], Any]:
            batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
            if not batches:
                return batches, None
            count = torch.stack([batch["count"] for batch in batches]).sum().to(device)
            return batches, self.accelerator.gather(count).sum()

        def compute_loss(
            self,
            model: nn.Module,
            inputs: dict[str, Any],
            return_outputs: bool = False,
            num_items_in_batch: Tensor | None = None,
        ) -> Any:
            core = core_of(self.accelerator.unwrap_model(model))
            total = inputs["count"] if num_items_in_batch is None else num_items_in_batch
            if self.goal.has_values:
                loss, outputs = self._value_loss(model, inputs, core)
            elif self.goal.needs_logits:
                loss, outputs = self._token_loss(model, inputs, core)
            else:
                loss, outputs = self._sequence_loss(model, inputs, core)
            # The mean over processes that follows is of sums.
            loss = loss * self.accelerator.num_processes / total
            return (loss, outputs) if return_outputs else loss

        def _value_loss(
            self, model: nn.Module, inputs: dict[str, Any], core: nn.Module
        ) -> tuple[Tensor, Any]:
            logits, labels, mask, hidden = answer_states(model, inputs, core)
            heads, rewards = values_of(core), inputs["token_rewards"][:, -labels.shape[1] :]
            (q, value), target = heads(hidden), heads.target(hidden)
            inside = mask != 0
            logged = q.detach().gather(-1, labels[None, ..., None].expand(len(q), -1, -1, 1))
            self._watch(
                {
                    "q": logged[..., 0].amin(0)[inside].mean(),
                    "value": value.detach()[inside].mean(),
                }
            )
            loss = self.goal.value_loss(logits, q, target, value, labels, mask, rewards)
            return loss.sum(), logits

        def _token_loss(
            self, model: nn.Module, inputs: dict[str, Any], core: nn.Module
        ) -> tuple[Tensor, Any]:
            logits, labels, mask = answer_logits(model, inputs, core)
            ref_logits = None
            if self.kind != "none":
                with self._reference(model) as (reference, ref_core), frozen(reference):
                    ref_logits = answer_logits(reference, inputs, ref_core)[0]
            return self.goal.token_loss(logits, labels, mask, ref_logits).sum(), logits

        def _sequence_loss(
            self, model: nn.Module, inputs: dict[str, Any], core: nn.Module
        ) -> tuple[Tensor, Any]:
            other = inputs.pop("mismatched", None)
            logp, mask = answer_logps(model, inputs, core)
            first, place = int(inputs["first"]), inputs["place"]
            ref = inputs["ref_logp"][:, first:] if "ref_logp" in inputs else None
            z0 = None
            if self.kind in ("copy", "adapter"):
                with self._reference(model) as (reference, ref_core), frozen(reference):
                    ref, _ = answer_logps(reference, inputs, ref_core)
                    if other is not None:
                        other_ref, _ = answer_logps(reference, other, ref_core)
            if other is not None:
                with frozen(model):
                    other_logp, other_mask = answer_logps(model, other, core)
                u = Scores(other_logp, other_ref, other_mask)
                z0 = self._shared_baseline(u)
            old = inputs["old_logp"][:, first:][place] if "old_logp" in inputs else None
            member = inputs["member"][..., None]
            scores = Scores(
                logp[place], None if ref is None else ref[place], mask[place] * member, old
            )
            self._watch(summary(scores, inputs, self.goal.form))
            return self.goal.loss(scores, inputs, self.longest, z0).sum(), scores

        def _shared_baseline(self, mismatched: Scores) -> Tensor:
            """kto's constant: of the micro-batches of all processes."""
            shared = self.accelerator.gather(seq_score(mismatched).detach())[..., None]
            return baseline(Scores(shared, torch.zeros_like(shared), torch.ones_like(shared)))

        def _reference(self, model: nn.Module) -> Any:
            return _referring(model, self.accelerator.unwrap_model(model), self.reference)

        def _watch(self, numbers: dict[str, Tensor]) -> None:
            for name, number in numbers.items():
                self.watched.setdefault(name, []).append(number.detach())

        def _save(self, output_dir: Any = None, state_dict: Any = None) -> None:
            if not self.goal.has_values:
                super()._save(output_dir, state_dict)
                return
            whole = self.model.state_dict() if state_dict is None else state_dict
            heads, rest = split_values(whole)
            super()._save(output_dir, rest)
            if self.args.should_save:
                save_values(heads, Path(output_dir or self.args.output_dir))

        def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
            if not self.goal.has_values:
                super()._load_from_checkpoint(resume_from_checkpoint, model)
                return
            within = self.model if model is None else model
            with without_values(within):
                super()._load_from_checkpoint(resume_from_checkpoint, model)
            load_values(resume_from_checkpoint, within)

        def log(self, logs: dict[str, float], *more: Any) -> None:
            if "loss" in logs:
                means = {name: torch.stack(v).mean().item() for name, v in self.watched.items()}
                logs |= means
                self.watched = {}
            super().log(logs, *more)

    return LossTrainer
