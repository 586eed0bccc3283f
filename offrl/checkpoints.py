"""Checkpoints: a folder of `state.safetensors` and `state.json` for each learner.

Tensors have flat names: `critic/head.weight`, `opt/critic/critic.head.weight/exp_avg`. The state
of a learner that was trained in a stack is its slice, in the form that it has alone, so runs of
one learner and of several are interchangeable. `state.json` has the SHA-256 of the tensors' file.
"""

import hashlib
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as tensors_in
from safetensors.torch import save_file
from torch import Tensor
from torch.optim import Adam, AdamW, Optimizer

from offrl.agent import Agent
from offrl.errors import ConfigError, OffrlError, RunError
from offrl.files import new_folder, read_json, write_json
from offrl.networks import seed_axes
from offrl.optim import parameters_of

FORMAT = 1
SUM = "tensors_sha256"  # checkpoints written before there was one have none
STEP = re.compile(r"step-(\d{9})")


@dataclass(frozen=True)
class Entry:
    """A tensor of the state, and the axis along which learners are stacked in it, if any."""

    tensor: Tensor
    axis: int | None

    def of(self, learner: int) -> Tensor:
        mine = self.tensor if self.axis is None else self.tensor.select(self.axis, learner)
        return mine.detach().cpu().contiguous()


def agent_entries(agent: Agent) -> dict[str, Entry]:
    """Everything that an agent learns or moves: networks, targets, buffers, optimisers."""
    axes = seed_axes(agent)
    entries = {}
    for name, tensor in agent.state_dict().items():
        entries[name.replace(".", "/", 1)] = Entry(tensor, axes[name])
    names = {id(p): n for n, p in agent.named_parameters()}
    for opt_name, optimizer in agent.optimizers().items():
        for i, group in enumerate(optimizer.param_groups):
            entries[f"opt/{opt_name}/group{i}/lr"] = Entry(torch.as_tensor(group["lr"]), None)
            for parameter in group["params"]:
                name = names[id(parameter)]
                for key, tensor in _state_of(optimizer, parameter).items():
                    axis = axes[name] if tensor.shape == parameter.shape else None
                    entries[f"opt/{opt_name}/{name}/{key}"] = Entry(tensor, axis)
    return entries


def check_restorable(agent: Agent) -> None:
    """Raise ConfigError for an agent of which a checkpoint would lack what an optimiser moves."""
    name, optimizers = type(agent).__name__, agent.optimizers()
    names = {id(p): n for n, p in agent.named_parameters()}
    for opt_name, optimizer in optimizers.items():
        whose = f"the optimiser {opt_name!r} of {name}"
        remedy = "make it with offrl.optim.adam or adamw"
        if not isinstance(optimizer, (Adam, AdamW)) or optimizer.defaults["amsgrad"]:
            kind = type(optimizer).__name__
            if isinstance(optimizer, (Adam, AdamW)):
                kind += " with amsgrad"
            raise ConfigError(f"{whose} is {kind}, which cannot be resumed; {remedy}")
        for group in optimizer.param_groups:
            if not isinstance(group["lr"], Tensor):
                raise ConfigError(
                    f"{whose} has {group['lr']!r} as its learning rate, which must be a tensor; "
                    f"{remedy}"
                )
        if any(id(p) not in names for p in parameters_of(optimizer)):
            raise ConfigError(
                f"{whose} moves a parameter of no network that is an attribute of the agent; a "
                "checkpoint would lack it"
            )
    moved = {id(p) for optimizer in optimizers.values() for p in parameters_of(optimizer)}
    still = [n for n, p in agent.named_parameters() if p.requires_grad and id(p) not in moved]
    if still:
        raise ConfigError(
            f"{name}: no optimiser moves {still[0]!r} (of {len(still)} such parameters). Make "
            "each optimiser an attribute of the agent itself, where checkpoints find it, and "
            "freeze by requires_grad_(False) what is not to be learned"
        )


def _state_of(optimizer: Optimizer, parameter: Tensor) -> dict[str, Tensor]:
    """The optimiser's state of a parameter, made if no step has been taken yet."""
    if not optimizer.state[parameter]:
        optimizer.state[parameter] = {
            "step": torch.zeros((), device=parameter.device),
            "exp_avg": torch.zeros_like(parameter, requires_grad=False),
            "exp_avg_sq": torch.zeros_like(parameter, requires_grad=False),
        }
    state: dict[str, Tensor] = optimizer.state[parameter]
    return state


def save(
    folders: Sequence[Path],
    step: int,
    entries: Mapping[str, Entry],
    scalars: Sequence[Mapping[str, Any]],
    keep: int,
) -> None:
    """Write one checkpoint per learner, then remove all but the newest `keep` of each.

    Raises RunError where the disk is full or cannot be written; older checkpoints stay.
    """
    for learner, folder in enumerate(folders):
        path = folder / f"step-{step:09d}"
        if path.exists():
            continue
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with new_folder(path) as partial:
                tensors = {k: e.of(learner) for k, e in entries.items()}
                save_file(tensors, partial / "state.safetensors")
                digest = hashlib.sha256((partial / "state.safetensors").read_bytes()).hexdigest()
                facts = {"format": FORMAT, "step": step, SUM: digest}
                state = {**facts, **scalars[learner]}
                write_json(partial / "state.json", state)
        except (OSError, SafetensorError) as error:
            raise RunError(
                f"the checkpoint {path} could not be written: {error}. Earlier ones, if there are "
                "any, are untouched: free some space, then continue with --resume"
            ) from None
    for folder in folders:
        for old in steps_in(folder)[:-keep]:
            # One that cannot be removed does no harm, and is tried again at the next checkpoint.
            shutil.rmtree(folder / f"step-{old:09d}", ignore_errors=True)


def steps_in(folder: Path) -> list[int]:
    """Steps of the complete checkpoints in a folder, ascending."""
    if not folder.is_dir():
        return []
    return sorted(int(m[1]) for p in folder.iterdir() if (m := STEP.fullmatch(p.name)))


def before_the_first(folders: Sequence[Path], every: int) -> bool:
    """Whether the learners' first checkpoint, due by step `every`, was never finished.

    A kill or a full disk while it is written leaves it to some of the learners. Where one that has
    none lost what it had, the others have two, or a later one.
    """
    found = [steps_in(folder) for folder in folders]
    return not all(found) and all(len(s) < 2 and max(s, default=0) <= every for s in found)


def latest_common_step(folders: Sequence[Path]) -> int:
    """The newest step at which every learner has a checkpoint.

    A kill while several learners are being written leaves some of them one checkpoint ahead.
    Raises RunError where there is none.
    """
    found = [set(steps_in(folder)) for folder in folders]
    common = set.intersection(*found)
    if not common:
        empty = [f"{f} has none" for f, steps in zip(folders, found, strict=True) if not steps]
        raise RunError(
            f"the learners have no checkpoint in common{': ' + empty[0] if empty else ''}; restore "
            "the missing ones, or start the run again"
        )
    return max(common)


def _remedy(folders: Sequence[Path], step: int) -> str:
    """What to do about a damaged checkpoint, if every learner has an older one."""
    older = set.intersection(*(set(steps_in(folder)) for folder in folders)) - {step}
    if not older:
        return ""
    return f". Remove step-{step:09d} to go on from step {max(older):,}"


def drop_after(folders: Sequence[Path], step: int) -> None:
    """Remove checkpoints that are newer than this step.

    A run that goes on from here writes them anew, with tables of other lengths: timings differ
    each time. Raises RunError where one cannot be removed.
    """
    for folder in folders:
        for newer in (s for s in steps_in(folder) if s > step):
            path = folder / f"step-{newer:09d}"
            try:
                shutil.rmtree(path)
            except OSError as error:
                raise RunError(
                    f"{path} is of a step that this run has not come back to, and cannot be "
                    f"removed: {error}. Remove it, then continue with --resume"
                ) from None


def load(folders: Sequence[Path], step: int, entries: Mapping[str, Entry]) -> list[dict[str, Any]]:
    """Copy a checkpoint of every learner into the tensors of `entries`; returns the scalars.

    Raises RunError where a file is damaged, or does not hold exactly these tensors.
    """
    loaded, scalars = [], []
    for folder in folders:
        path = folder / f"step-{step:09d}"
        try:
            state = read_json(path / "state.json")
        except OffrlError as error:
            raise RunError(f"{error}{_remedy(folders, step)}") from None
        if not isinstance(state, dict) or "format" not in state:
            raise RunError(
                f"{path / 'state.json'} is damaged: it is not the state of a learner"
                f"{_remedy(folders, step)}"
            )
        if state["format"] != FORMAT:
            raise RunError(
                f"{path} has checkpoint format {state['format']!r}; this version reads {FORMAT}"
            )
        try:
            raw = (path / "state.safetensors").read_bytes()
            if state.get(SUM) not in (None, hashlib.sha256(raw).hexdigest()):
                raise RunError(
                    f"{path / 'state.safetensors'} is damaged: it is not the file that state.json "
                    f"describes{_remedy(folders, step)}"
                )
            loaded.append(tensors_in(raw))
        except (OSError, SafetensorError) as error:
            raise RunError(
                f"{path / 'state.safetensors'} cannot be read: {error}{_remedy(folders, step)}"
            ) from None
        if loaded[-1].keys() != entries.keys():
            different = sorted(loaded[-1].keys() ^ entries.keys())
            raise RunError(
                f"{path} was made by other settings: {len(different)} tensors differ, the first "
                f"is {different[0]!r}"
            )
        scalars.append(state)
    for name, entry in entries.items():
        parts = [tensors[name] for tensors in loaded]
        value = parts[0] if entry.axis is None else torch.stack(parts, entry.axis)
        if value.shape != entry.tensor.shape:
            raise RunError(
                f"{folders[0]}: {name} has shape {tuple(value.shape)} in the checkpoint and "
                f"{tuple(entry.tensor.shape)} in the agent"
            )
        with torch.no_grad():
            entry.tensor.copy_(value)
    return scalars
