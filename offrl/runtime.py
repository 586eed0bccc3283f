"""Saved policies in numpy alone, for a robot or a server where torch is not installed."""

import os
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np

from offrl import policy_format
from offrl.errors import ConfigError, RunError
from offrl.policy_base import F32, BasePolicy
from offrl.policy_format import PolicyFile

LOG_STD_MIN, LOG_STD_MAX = -5.0, 2.0  # the clamp of offrl.actors
ACTORS = ("DeterministicActor", "GaussianActor", "SquashedGaussianActor")


class RuntimePolicy(BasePolicy):
    """u = tanh(W_k relu(... relu(W_0 x + b_0)) + b_k), plus exp(log_std) noise where Gaussian.

    Where the Gaussian is squashed, the network gives log_std too and noise enters before tanh;
    where a Gaussian's mean is not, there is no tanh.
    Raises ConfigError for an actor of another kind, RunError where layers do not fit together.
    """

    def __init__(self, saved: PolicyFile, seed: int = 0) -> None:
        super().__init__(saved.spec, saved.obs_mean, saved.obs_std, saved.provenance, seed)
        kind = saved.actor.get("type")
        if saved.execution is not None:
            raise ConfigError(
                f"{saved.path}: the policy plans {saved.execution.get('horizon')} actions ahead "
                f"(actor {kind!r}), which offrl.runtime does not do; load it with "
                "offrl.load_policy, which needs torch"
            )
        if kind not in ACTORS:
            raise ConfigError(
                f"{saved.path}: the actor is of type {kind!r}, and offrl.runtime has "
                f"{', '.join(ACTORS)}; load it with offrl.load_policy, which needs torch"
            )
        if "trunk" in saved.actor:
            raise ConfigError(
                f"{saved.path}: the policy looks at states through learned dynamics (COCOA), which "
                "offrl.runtime does not have; load it with offrl.load_policy, which needs torch"
            )
        self._squashed = kind == "SquashedGaussianActor"
        self._squash_mean = bool(saved.actor.get("squash_mean", True))
        self._layers = _layers(saved, (1 + self._squashed) * self.act_dim)
        self._std: F32 | None = None
        if kind == "GaussianActor":
            log_std = _weight(saved, "spread.log_std", (1, self.act_dim))
            self._std = np.exp(np.clip(log_std, LOG_STD_MIN, LOG_STD_MAX))

    def _forward(self, obs: F32, noise: F32 | None) -> F32:
        x = obs
        *hidden, (weight, bias) = self._layers
        for w, b in hidden:
            x = np.maximum(x @ w + b, 0.0)
        y = x @ weight + bias
        if self._squashed:
            mean, log_std = np.split(y, 2, axis=-1)
            std = np.exp(np.clip(log_std, LOG_STD_MIN, LOG_STD_MAX))
            return np.asarray(np.tanh(mean if noise is None else mean + std * noise))
        u: F32 = np.tanh(y) if self._squash_mean else y
        if noise is not None and self._std is not None:
            u = u + self._std * noise
        return u


def load_policy(path: str | os.PathLike[str], seed: int = 0) -> RuntimePolicy:
    """The policy in `path`: its own directory, a run's, or that of one seed of a run.

    Raises RunError where files are missing, damaged or newer; ConfigError for an actor that
    needs torch.
    """
    return RuntimePolicy(policy_format.read(path), seed)


def _layers(saved: PolicyFile, last: int) -> list[tuple[F32, F32]]:
    sizes = [*_sizes(saved.actor, saved), last]
    layers = []
    for i, (inputs, outputs) in enumerate(pairwise(sizes)):
        # Every second entry of the network is a ReLU, which has no weights.
        weight = _weight(saved, f"net.{2 * i}.weight", (inputs, outputs))
        layers.append((weight, _weight(saved, f"net.{2 * i}.bias", (1, outputs))))
    return layers


def _sizes(actor: Mapping[str, Any], saved: PolicyFile) -> list[int]:
    try:
        return [actor["obs_dim"], *actor["hidden"]]
    except (KeyError, TypeError) as e:
        raise RunError(f"{saved.path}: the actor's spec {dict(actor)} is damaged: {e}") from e


def _weight(saved: PolicyFile, name: str, shape: tuple[int, ...]) -> F32:
    found = saved.weights.get(name)
    if found is None or found.shape != shape:
        there = "missing" if found is None else f"of shape {found.shape}"
        raise RunError(f"{saved.path}: weight {name!r} is {there}; expected shape {shape}")
    return found.astype(np.float32)
