"""The policy that training evaluates, saves and hands over: what is scored is what is deployed."""

import os
from collections.abc import Mapping
from typing import Any, Protocol, cast, runtime_checkable

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from offrl import policy_format
from offrl.actors import actor_from_spec
from offrl.datasets.offline import Spec
from offrl.errors import ConfigError, RunError
from offrl.policy_base import F32, BasePolicy
from offrl.policy_format import PolicyFile


@runtime_checkable
class Actor(Protocol):
    """A network that a policy can hold: any `nn.Module` with these methods.

    Observations are normalised, (n, obs); actions (n, act) in [-1, 1]; noise standard normal.
    `spec` describes the network in JSON, with its class name as `type`.
    """

    def mode(self, obs: Tensor) -> Tensor: ...
    def sample(self, obs: Tensor, noise: Tensor) -> Tensor: ...
    def spec(self) -> dict[str, Any]: ...


class Policy(BasePolicy):
    """Observation normaliser, actor and action bounds; `provenance` says where it is from.

    The actor is held, not copied: while it trains, the policy is always its newest state.
    `obs_mean` and `obs_std` (obs,) default to no normalisation. Raises ConfigError where the
    actor lacks a method, or the sizes of its spec are not those of the dataset's.
    """

    def __init__(
        self,
        actor: nn.Module,
        spec: Spec,
        obs_mean: ArrayLike | Tensor | None = None,
        obs_std: ArrayLike | Tensor | None = None,
        provenance: Mapping[str, Any] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(spec, _array(obs_mean), _array(obs_std), provenance, seed)
        if not isinstance(actor, Actor):
            raise ConfigError(
                f"{type(actor).__name__} cannot be a policy's actor: it needs the methods mode, "
                "sample and spec"
            )
        described = actor.spec()
        for name, size in (("obs_dim", self.obs_dim), ("act_dim", self.act_dim)):
            if described.get(name, size) != size:
                raise ConfigError(
                    f"the actor's {name} is {described[name]}, and the dataset's is {size}"
                )
        self.actor = actor

    @torch.no_grad()
    def _forward(self, obs: F32, noise: F32 | None) -> F32:
        like = next(cast(nn.Module, self.actor).parameters())
        x = torch.from_numpy(obs).to(like)
        u = (
            self.actor.mode(x)
            if noise is None
            else self.actor.sample(x, torch.from_numpy(noise).to(like))
        )
        action: F32 = u.to("cpu", torch.float32).numpy()
        return action

    def save(self, path: str | os.PathLike[str], overwrite: bool = False) -> None:
        """Write the directory `path` (policy.json, policy.safetensors), whole or not at all.

        Raises RunError where something stands there already; `overwrite` replaces a policy.
        """
        state = cast(nn.Module, self.actor).state_dict()
        weights = {k: v.detach().to("cpu").contiguous().numpy() for k, v in state.items()}
        saved = PolicyFile(
            self.actor.spec(), self.spec, self.obs_mean, self.obs_std, weights, self.provenance
        )
        policy_format.write(path, saved, overwrite)


def load_policy(
    path: str | os.PathLike[str],
    *,
    actor: nn.Module | type[nn.Module] | None = None,
    device: str | torch.device = "cpu",
    seed: int = 0,
) -> Policy:
    """The policy in `path`: its own directory, a run's, or that of one seed of a run.

    An actor that offrl does not have is passed as `actor`: an instance, whose weights are
    replaced, or its class, which is called with the saved spec's entries except `type`. `seed` is
    for actions drawn with `deterministic=False`.

    Raises RunError where files are missing, damaged or newer, or the weights do not fit the
    actor; ConfigError for an unknown type of actor.
    """
    saved = policy_format.read(path)
    network = _network(saved, actor)
    state = {k: torch.from_numpy(np.array(v)) for k, v in saved.weights.items()}
    expected = {k: tuple(v.shape) for k, v in network.state_dict().items()}
    found = {k: tuple(v.shape) for k, v in state.items()}
    if expected != found:
        wrong = sorted(set(expected.items()) ^ set(found.items()))[0][0]
        raise RunError(
            f"{saved.path}: the weights do not fit {type(network).__name__}: {wrong!r} is "
            f"{found.get(wrong, 'missing')} in the file and {expected.get(wrong, 'absent')} in "
            "the network"
        )
    # Assigned rather than copied, so that the policy keeps the precision it was trained in.
    network.load_state_dict(state, assign=True)
    network.eval().requires_grad_(False).to(device)
    return Policy(network, saved.spec, saved.obs_mean, saved.obs_std, saved.provenance, seed)


def _network(saved: PolicyFile, actor: nn.Module | type[nn.Module] | None) -> nn.Module:
    if actor is None:
        return actor_from_spec(saved.actor)
    if isinstance(actor, nn.Module):
        return actor
    arguments = {k: v for k, v in saved.actor.items() if k != "type"}
    try:
        return actor(**arguments)
    except TypeError as e:
        raise ConfigError(
            f"{actor.__name__} cannot be made from the saved spec {arguments}: {e}; pass an "
            "instance instead"
        ) from e


def _array(value: ArrayLike | Tensor | None) -> ArrayLike | None:
    return value.detach().cpu().numpy() if isinstance(value, Tensor) else value
