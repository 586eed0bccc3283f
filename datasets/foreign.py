"""Policies that others trained, as policies of ours: weights are read, code never is.

    plain arrays (.npz)       w0 (out, in), b0 (out,), w1, b1, ...; `hidden` relu or tanh;
                              `output` tanh or clip; optional obs_mean, obs_var, obs_clip, obs_eps
    stable-baselines3 (.zip)  `policy.pth` of SAC, TQC, TD3, DDPG, PPO, A2C, TRPO with MlpPolicy

The zip's weights are read by torch's restricted reader, which makes tensors and nothing else. Its
pickled settings are not opened: the network follows from the names and shapes of the weights, and
the activation from the readable part of `data`. Statistics of VecNormalize are in another file,
pickled; such a policy is passed as plain arrays.
"""

import io
import json
import pickle
import re
import warnings
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file

from offrl.datasets.offline import Spec
from offrl.errors import RunError
from offrl.policy_base import F32, BasePolicy

Layer = tuple[F32, F32]  # weight (out, in), bias (out,)
Arrays = Mapping[str, NDArray[Any]]

ACTIVATIONS: dict[str, Callable[[F32], F32]] = {
    "relu": lambda x: np.maximum(x, 0.0),
    "tanh": lambda x: np.tanh(x),
}
SAC_LOG_STD = (-20.0, 2.0)  # as stable-baselines3 clamps it
READ = "offrl reads MlpPolicy of SAC, TQC, TD3, DDPG, PPO, A2C and TRPO"


@dataclass(frozen=True)
class Network:
    """An MLP whose last layer is the mean of the action.

    With `squash`, action = tanh(mean + spread noise) in [-1, 1]; without, mean + spread noise in
    the environment's own units, clipped to its bounds.
    """

    layers: tuple[Layer, ...]
    hidden: str
    squash: bool
    log_std: F32 | Layer | None = None  # of the noise: constant, or a layer beside the mean's


class NetworkPolicy(BasePolicy):
    """A policy of plain matrices; it is sampled only where it has a spread."""

    def __init__(
        self,
        network: Network,
        spec: Spec,
        *,
        obs_mean: NDArray[Any] | None = None,
        obs_std: NDArray[Any] | None = None,
        obs_clip: float = float("inf"),
        provenance: Mapping[str, Any] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(spec, obs_mean, obs_std, provenance, seed)
        self.network = network
        self.obs_clip = obs_clip

    @property
    def has_spread(self) -> bool:
        """Whether sampled actions differ from deterministic ones."""
        return self.network.log_std is not None

    def _forward(self, obs: F32, noise: F32 | None) -> F32:
        net = self.network
        x = np.clip(obs, -self.obs_clip, self.obs_clip)
        for weight, bias in net.layers[:-1]:
            x = ACTIVATIONS[net.hidden](x @ weight.T + bias)
        mean = x @ net.layers[-1][0].T + net.layers[-1][1]
        if noise is not None and net.log_std is not None:
            log_std = net.log_std
            if isinstance(log_std, tuple):
                log_std = np.clip(x @ log_std[0].T + log_std[1], *SAC_LOG_STD)
            mean = mean + np.exp(log_std) * noise
        if net.squash:
            return np.asarray(np.tanh(mean), np.float32)
        half = 0.5 * (self._high - self._low)
        return np.asarray((mean - self._low) / half - 1.0, np.float32)


def load_arrays(path: Path, spec: Spec, seed: int = 0) -> NetworkPolicy:
    """The policy in an .npz file of plain arrays, for an environment of these bounds.

    Raises RunError where arrays are missing, of the wrong shape, or pickled objects.
    """
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise RunError(f"{path} cannot be read as an .npz file of arrays: {error}") from error
    count = sum(re.fullmatch(r"w\d+", key) is not None for key in arrays)
    if not count:
        raise RunError(f"{path} has no w0: a policy is w0, b0, w1, b1, ...; it has {_keys(arrays)}")
    layers = tuple(_layer(path, arrays, f"w{i}", f"b{i}") for i in range(count))
    hidden = _choice(path, arrays, "hidden", tuple(ACTIVATIONS))
    squash = _choice(path, arrays, "output", ("tanh", "clip")) == "tanh"
    _check(path, layers, spec)
    eps = float(arrays.get("obs_eps", np.float64(0.0)))
    variance = arrays.get("obs_var")
    return NetworkPolicy(
        Network(layers, hidden, squash),
        spec,
        obs_mean=arrays.get("obs_mean"),
        obs_std=None if variance is None else np.sqrt(variance.astype(np.float64) + eps),
        obs_clip=float(arrays.get("obs_clip", np.float64(np.inf))),
        provenance={"format": "plain arrays"},
        seed=seed,
    )


def load_sb3(path: Path, spec: Spec, seed: int = 0) -> NetworkPolicy:
    """The policy in a .zip that stable-baselines3 saved, for an environment of these bounds.

    Raises RunError where the file is damaged or the network is not one of those above.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            weights = archive.read("policy.pth")
            settings = json.loads(archive.read("data"))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickle protocols; what cannot be read raises
            state = torch.load(io.BytesIO(weights), map_location="cpu", weights_only=True)
        arrays = {name: np.asarray(tensor) for name, tensor in state.items()}
    except (
        *(OSError, LookupError, ValueError, AttributeError, RuntimeError, EOFError, TypeError),
        *(zipfile.BadZipFile, pickle.UnpicklingError),
    ) as error:
        raise RunError(
            f"{path} cannot be read as a policy of stable-baselines3: {str(error).splitlines()[0]}"
        ) from error
    if not isinstance(settings, dict):
        raise RunError(f"{path}: its `data` is not a JSON object")
    if settings.get("use_sde"):
        raise RunError(f"{path}: explores by gSDE, which offrl does not read; {READ}")
    given = settings.get("policy_kwargs")
    activation = given.get("activation_fn") if isinstance(given, dict) else None
    named = re.search(r"\.(\w+)'>$", activation) if isinstance(activation, str) else None
    hidden = None if activation is None else (named[1].lower() if named else str(activation))
    return sb3_policy(path, arrays, spec, hidden=hidden, seed=seed)


def sac_policy(path: Path, spec: Spec, seed: int = 0) -> NetworkPolicy:
    """The actor that our own runs of SAC keep at an evaluation (.safetensors)."""
    try:
        arrays = load_file(path)
    except (OSError, SafetensorError) as error:
        raise RunError(f"{path} cannot be read: {error}") from error
    return sb3_policy(path, arrays, spec, seed=seed)


def sb3_policy(
    path: Path, arrays: Arrays, spec: Spec, *, hidden: str | None = None, seed: int = 0
) -> NetworkPolicy:
    """The policy with stable-baselines3's own names of weights; `path` is for messages.

    `hidden` defaults to what stable-baselines3 does: relu for SAC and TD3, tanh for PPO.
    """
    if any("features_extractor" in name for name in arrays):
        raise RunError(f"{path}: has a feature extractor with weights; {READ}")
    log_std: F32 | Layer | None = None
    if "actor.mu.weight" in arrays:
        layers = _stack(path, arrays, "actor.latent_pi", "actor.mu")
        log_std = _layer(path, arrays, "actor.log_std.weight", "actor.log_std.bias")
        kind, squash, default = "SAC", True, "relu"
    elif "actor.mu.0.weight" in arrays and "actor.log_std" not in arrays:
        layers = _stack(path, arrays, "actor.mu", None)
        kind, squash, default = "TD3", True, "relu"
    elif "action_net.weight" in arrays:
        layers = _stack(path, arrays, "mlp_extractor.policy_net", "action_net")
        if "log_std" not in arrays:
            raise RunError(f"{path}: its actions are discrete (there is no log_std); {READ}")
        log_std = np.asarray(arrays["log_std"], np.float32)
        kind, squash, default = "PPO", False, "tanh"
    else:
        raise RunError(f"{path}: its weights are those of no known actor; {READ}")
    hidden = hidden or default
    if hidden not in ACTIVATIONS:
        raise RunError(f"{path}: activation {hidden!r}; offrl reads {' and '.join(ACTIVATIONS)}")
    _check(path, layers, spec)
    provenance = {"format": f"stable-baselines3, weights named as in {kind}"}
    network = Network(layers, hidden, squash, log_std)
    return NetworkPolicy(network, spec, provenance=provenance, seed=seed)


def _stack(path: Path, arrays: Arrays, trunk: str, head: str | None) -> tuple[Layer, ...]:
    pattern = re.compile(re.escape(trunk) + r"\.(\d+)\.weight")
    places = sorted(int(m[1]) for name in arrays if (m := pattern.fullmatch(name)))
    names = [f"{trunk}.{i}" for i in places] + ([head] if head else [])
    return tuple(_layer(path, arrays, f"{n}.weight", f"{n}.bias") for n in names)


def _layer(path: Path, arrays: Arrays, weight: str, bias: str) -> Layer:
    for name in (weight, bias):
        if name not in arrays:
            raise RunError(f"{path} has no {name}; it has {_keys(arrays)}")
    try:
        w, b = (np.asarray(arrays[name], np.float32) for name in (weight, bias))
    except ValueError as error:
        raise RunError(f"{path}: {weight} or {bias} does not hold numbers: {error}") from error
    if w.ndim != 2 or b.shape != w.shape[:1]:
        raise RunError(
            f"{path}: {weight} is {w.shape} and {bias} {b.shape}; expected (out, in) and (out,)"
        )
    if not (np.isfinite(w).all() and np.isfinite(b).all()):
        raise RunError(f"{path}: {weight} or {bias} holds numbers that are not finite")
    return w, b


def _check(path: Path, layers: tuple[Layer, ...], spec: Spec) -> None:
    sizes = [layers[0][0].shape[1], *(len(b) for _, b in layers)]
    for i, (weight, _) in enumerate(layers):
        if weight.shape[1] != sizes[i]:
            raise RunError(
                f"{path}: layer {i} takes {weight.shape[1]} numbers, the one before gives "
                f"{sizes[i]}"
            )
    wanted = len(spec.obs_low), len(spec.action_low)
    if (sizes[0], sizes[-1]) != wanted:
        raise RunError(
            f"{path}: takes {sizes[0]} observations and gives {sizes[-1]} actions, but the "
            f"environment has {wanted[0]} and {wanted[1]}; choose the one it was trained in"
        )


def _choice(path: Path, arrays: Arrays, key: str, known: tuple[str, ...]) -> str:
    value = str(arrays[key]) if key in arrays else "missing"
    if value not in known:
        raise RunError(f"{path}: {key} is {value!r}; it must be {' or '.join(known)}")
    return value


def _keys(arrays: Arrays) -> str:
    return ", ".join(sorted(arrays)[:8]) or "nothing"
