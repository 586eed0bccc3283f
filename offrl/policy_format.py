"""The files of a policy: `policy.json` says what it is, `policy.safetensors` holds its numbers.

    policy/policy.json          format, version, actor, spec, provenance, sha256 of the other file;
                                of one that plans: execution, action_range;
                                of one that is asked for a return: conditioning
    policy/policy.safetensors   obs_mean, obs_std, actor/<parameter>

Bounds that are infinite are null in the JSON. Reading needs neither torch nor an agent's code.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from offrl.datasets.offline import Spec
from offrl.errors import DataError, RunError
from offrl.files import sync_folder

FORMAT, VERSION = "offrl.policy", 1
HEADER, WEIGHTS = "policy.json", "policy.safetensors"
PREFIX = "actor/"

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class PolicyFile:
    """What the two files hold. `actor` is the network's own spec, a dictionary with a `type`.

    `execution` is that of a policy that plans (`offrl.execution`), and `action_range` the actions
    of the environment that -1 and 1 stand for in it; `conditioning` is that of a policy that is
    asked for a return (`offrl.sequence_policy`).
    """

    actor: Mapping[str, Any]
    spec: Spec
    obs_mean: NDArray[np.float32]
    obs_std: NDArray[np.float32]
    weights: Arrays
    provenance: Mapping[str, Any]
    path: Path | None = None
    execution: Mapping[str, Any] | None = None
    action_range: tuple[list[float], list[float]] | None = None
    conditioning: Mapping[str, Any] | None = None


def find(path: str | os.PathLike[str]) -> Path:
    """The policy's directory: `path` itself, or `path/policy` for the directory of a run.

    Where a kill left none in the middle of a replacement, the policy that was being replaced.
    Raises RunError where there is none.
    """
    root = Path(path)
    for candidate in (root, root / "policy"):
        for place in (candidate, _beside(candidate, "old")):
            if (place / HEADER).is_file():
                return place
    if not root.exists():
        single = root.name.startswith("seed-") and (root.parent / "config.json").is_file()
        hint = f"{root.parent} is a run of one learner" if single else "give a run or a policy"
        raise RunError(f"{root}: no such directory; {hint}")
    seeds = sorted(p.name for p in root.glob("seed-*") if (p / "policy" / HEADER).is_file())
    if seeds:
        raise RunError(f"{root} holds several learners; choose one of {', '.join(seeds)}")
    message = f"{root}: no policy here (neither {HEADER} nor policy/{HEADER})"
    if (root / "config.json").is_file():
        message += f"; a run writes it at its end: finish it with offrl train --resume {root}"
        if (root / "policy-best" / HEADER).is_file():
            message += f", or give {root / 'policy-best'}, the best so far"
    raise RunError(message)


def read(path: str | os.PathLike[str]) -> PolicyFile:
    """Read a policy directory, or that of a run.

    Raises RunError where a file is missing, damaged, of another format or of a newer version.
    """
    where = find(path)
    header_file, weights_file = where / HEADER, where / WEIGHTS
    try:
        header = json.loads(header_file.read_text())
    except (OSError, ValueError) as e:
        raise RunError(f"{header_file} cannot be read: {e}") from e
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        found = header.get("format") if isinstance(header, dict) else type(header).__name__
        raise RunError(f"{header_file}: format is {found!r}, expected {FORMAT!r}")
    if header.get("version") != VERSION:
        raise RunError(
            f"{header_file}: version is {header.get('version')!r}, and this offrl reads version "
            f"{VERSION}; use the offrl that wrote it ({header.get('provenance')})"
        )
    try:
        raw = weights_file.read_bytes()
    except OSError as e:
        raise RunError(f"{weights_file} cannot be read: {e}") from e
    try:
        if hashlib.sha256(raw).hexdigest() != header["weights_sha256"]:
            raise RunError(
                f"{weights_file} is not the file that {header_file} describes: one of the two is "
                "damaged or from another policy"
            )
        tensors = load(raw)
        for name in ("actor", "provenance"):
            if not isinstance(header[name], dict):
                raise TypeError(f"the entry {name!r} is {header[name]!r}; it must be an object")
        spec = _spec_from_json(header["spec"])
        weights = {k[len(PREFIX) :]: v for k, v in tensors.items() if k.startswith(PREFIX)}
        return PolicyFile(
            actor=header["actor"],
            spec=spec,
            obs_mean=tensors["obs_mean"],
            obs_std=tensors["obs_std"],
            weights=weights,
            provenance=header["provenance"],
            path=where,
            conditioning=dict(header["conditioning"]) if "conditioning" in header else None,
            **_plan(header),
        )
    except KeyError as e:
        raise RunError(f"{where}: entry {e} is missing; the policy is damaged") from e
    except (SafetensorError, DataError, TypeError, ValueError, AttributeError, OverflowError) as e:
        raise RunError(f"{where}: the policy is damaged: {e}") from e


def write(path: str | os.PathLike[str], policy: PolicyFile, overwrite: bool = False) -> None:
    """Write a policy directory so that it is there whole or not at all.

    Raises RunError where something else stands at `path`, or a policy and not `overwrite`.
    """
    target = Path(path)
    fresh, old = _beside(target, "new"), _beside(target, "old")
    try:
        _put_back(old, target)
    except OSError as e:
        raise RunError(f"{target}: the policy cannot be written: {e}") from e
    if target.exists():
        strangers = sorted(p.name for p in target.iterdir()) if target.is_dir() else [target.name]
        strangers = [name for name in strangers if name not in (HEADER, WEIGHTS)]
        if strangers:
            raise RunError(f"{target} exists and is not a policy (it holds {strangers[0]!r})")
        if not overwrite and any(target.iterdir()):
            raise RunError(f"{target} already holds a policy; choose another directory")
    tensors = {"obs_mean": policy.obs_mean, "obs_std": policy.obs_std}
    tensors |= {PREFIX + k: np.ascontiguousarray(v) for k, v in policy.weights.items()}
    raw = save(tensors)
    header = {
        "format": FORMAT,
        "version": VERSION,
        "actor": dict(policy.actor),
        "spec": _spec_to_json(policy.spec),
        "provenance": dict(policy.provenance),
        "weights_sha256": hashlib.sha256(raw).hexdigest(),
    }
    if policy.execution is not None:
        header |= {"execution": dict(policy.execution), "action_range": policy.action_range}
    if policy.conditioning is not None:
        header |= {"conditioning": dict(policy.conditioning)}
    text = json.dumps(header, indent=2, allow_nan=False) + "\n"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        for leftover in (fresh, old):
            shutil.rmtree(leftover, ignore_errors=True)
        fresh.mkdir()
        _write_through(fresh / WEIGHTS, raw)
        _write_through(fresh / HEADER, text.encode())
        if target.exists():
            os.rename(target, old)
        os.rename(fresh, target)
        sync_folder(target.parent)
        shutil.rmtree(old, ignore_errors=True)
    except BaseException as e:
        with suppress(OSError):
            _put_back(old, target)
        shutil.rmtree(fresh, ignore_errors=True)
        if isinstance(e, OSError):
            raise RunError(f"{target}: the policy cannot be written: {e}") from e
        raise


def _beside(target: Path, kind: str) -> Path:
    """Where the new policy is written, or the old one waits, while `target` is replaced."""
    return target.parent / f".{target.name}.{kind}.tmp"


def _put_back(old: Path, target: Path) -> None:
    if (old / HEADER).is_file() and not target.exists():
        os.rename(old, target)


def _plan(header: Mapping[str, Any]) -> dict[str, Any]:
    if "execution" not in header:
        return {}
    low, high = ([float(x) for x in bound] for bound in header["action_range"])
    return {"execution": dict(header["execution"]), "action_range": (low, high)}


def _write_through(path: Path, content: bytes) -> None:
    with path.open("wb") as f:
        f.write(content)
        f.flush()
        os.fsync(f.fileno())


def _spec_to_json(spec: Spec) -> dict[str, Any]:
    def bounds(values: tuple[float, ...]) -> list[float | None]:
        return [float(v) if np.isfinite(v) else None for v in values]

    keys = None if spec.obs_keys is None else {k: list(v) for k, v in spec.obs_keys.items()}
    return {
        "obs_low": bounds(spec.obs_low),
        "obs_high": bounds(spec.obs_high),
        "action_low": bounds(spec.action_low),
        "action_high": bounds(spec.action_high),
        "action_kind": spec.action_kind,
        "obs_keys": keys,
    }


def _spec_from_json(raw: Mapping[str, Any]) -> Spec:
    def bounds(name: str, missing: float) -> tuple[float, ...]:
        return tuple(missing if v is None else float(v) for v in raw[name])

    if raw["action_kind"] not in ("box", "discrete"):
        raise ValueError(f"action_kind is {raw['action_kind']!r}, expected 'box' or 'discrete'")
    keys = raw["obs_keys"]
    return Spec(
        obs_low=bounds("obs_low", -np.inf),
        obs_high=bounds("obs_high", np.inf),
        action_low=bounds("action_low", -np.inf),
        action_high=bounds("action_high", np.inf),
        action_kind=raw["action_kind"],
        obs_keys=None if keys is None else {k: (int(a), int(b)) for k, (a, b) in keys.items()},
    )
