"""What an agent is: networks and optimisers, `update` on a batch, a policy to act with."""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from types import FunctionType
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim import Optimizer

from offrl.datasets.offline import OfflineDataset, Spec
from offrl.datasets.replay import Replay, transitions
from offrl.errors import ConfigError
from offrl.losses import action_error
from offrl.networks import Learners, learner_view, seed_axes
from offrl.optim import Combine, parameters_of
from offrl.policy import Policy
from offrl.representation import measured_representation
from offrl.types import Metrics, Noise

Objective = Callable[..., tuple[Tensor, Metrics]]


class Agent(nn.Module, ABC):
    """Base of all agents, none of which derives from another.

    Networks are submodules and optimisers are plain attributes, so checkpoints find every
    network, target and optimiser by walking the agent, with nothing to remember. An agent holds
    no counter and no generator: the trainer gives `update` its noise and its phase.

    Optimisers are made by `offrl.optim.adam` or `adamw`, and together have every parameter that
    requires a gradient. The trainer refuses an agent whose checkpoints would lack something: an
    optimiser in a dictionary or a list, one of another kind, or a learning rate that is a number.
    """

    period: int = 1  # updates until the same work is done again; 2 where the policy is delayed
    recipes: ClassVar[Mapping[str, Mapping[str, Any]]] = {}  # environment family -> settings
    suits: ClassVar[str] = ""  # the data that the method is for, in a few words
    stacked: ClassVar[bool] = True  # several seeds in the same kernels; else one after another
    # of `validate`, by which the best is chosen without an environment; None: by nothing
    measure: ClassVar[str | None] = "action_error"
    datasets: ClassVar[tuple[str, ...]] = ()  # settings that name a further dataset
    config_class: ClassVar[type[Any]]  # of the settings; found here for agents of your own
    actor: nn.Module
    obs_mean: Tensor
    obs_std: Tensor
    action_mid: Tensor
    action_half: Tensor

    def __init__(self, spec: Spec, config: Any, learners: Learners) -> None:
        super().__init__()
        if spec.action_kind != "box":
            raise ConfigError(
                f"{type(self).__name__} takes continuous actions; this dataset has "
                f"{spec.action_kind} actions. Whole numbers that are those of one actuator are "
                "read as such with their bounds: action_bounds (--action-bounds LOW HIGH)"
            )
        self.config, self.spec, self.learners = config, spec, learners
        self.obs_dim, self.act_dim = len(spec.obs_low), len(spec.action_low)
        self.backend = "eager"  # or a backend of torch.compile; set before the first update
        self._compiled: dict[str, Callable[..., Any]] = {}
        self.register_buffer("obs_mean", torch.zeros(self.obs_dim))
        self.register_buffer("obs_std", torch.ones(self.obs_dim))
        self.register_buffer("action_mid", torch.zeros(self.act_dim))
        self.register_buffer("action_half", torch.ones(self.act_dim))

    @classmethod
    def stacks(cls, config: Any) -> bool:
        """Whether several seeds share kernels under these settings."""
        return cls.stacked

    def view(self, dataset: OfflineDataset) -> Replay:
        """What this agent sees of a dataset: transitions, mapped as its config says.

        Each field of the config that is named like a parameter of `transitions` is passed to it.
        """
        settings = self.config_dict()
        names = list(inspect.signature(transitions).parameters)[1:]
        return transitions(dataset, **{n: settings[n] for n in names if n in settings})

    def held_out_view(self, dataset: OfflineDataset) -> Replay:
        """What this agent is measured on: held-out episodes, seen like those it learns from."""
        return self.view(dataset)

    def prepare(self, replay: Replay) -> None:
        """Derive from the data what `update` will need; once, before training or resuming."""
        for name in ("obs_mean", "obs_std", "action_mid", "action_half"):
            getattr(self, name).copy_(getattr(replay, name))

    def noise(self, batch_size: int) -> dict[str, tuple[int, ...]]:
        """Shapes of the standard normal draws that one update wants, for one learner."""
        return {}

    def schedule(self, step: int, steps: int) -> None:
        """Set what depends on the step, such as a learning rate, before update `step`."""

    @abstractmethod
    def update(self, batch: Any, noise: Noise, phase: int) -> Metrics:
        """One gradient step on every objective; returns one value per learner, on the device.

        `batch` is of the type that the view makes, and an agent names it: `Batch` for transitions.
        `phase` counts updates modulo `period`, so that each phase is one compiled graph.
        """

    def validate(self, batch: Any) -> Metrics:
        """Measures on held-out data, one value per learner; no gradient is taken."""
        error = action_error(self.mode(batch.obs), batch.action).mean(-1)
        return {"action_error": error, **measured_representation(self, batch)}

    def fingerprints(self) -> dict[str, str]:
        """What `prepare` derived, by name; a checkpoint can be resumed only with the same."""
        return {}

    def save_caches(self) -> None:
        """Keep on disk what a later run on the same data need not work out again."""

    def performance(self) -> dict[str, float]:
        """Measures of speed, such as a cache's hits: logged, but never part of the results."""
        return {}

    def mode(self, obs: Float[Tensor, "*seed batch obs"]) -> Float[Tensor, "*seed batch act"]:
        """The actions used at evaluation, in [-1, 1], for normalised observations."""
        action: Tensor = self.actor.mode(obs)  # type: ignore[operator]
        return action

    def policy(self, learner: int = 0, provenance: Mapping[str, Any] | None = None) -> Policy:
        """Learner k's policy, as it is deployed; it shares the agent's weights."""
        return Policy(
            actor=learner_view(self.actor, learner),
            obs_mean=self.obs_mean,
            obs_std=self.obs_std,
            spec=self.spec,
            provenance=dict(provenance or {}),
        )

    def minimize(
        self,
        optimizer: Optimizer,
        objective: Objective,
        *args: Any,
        combine: Combine | None = None,
    ) -> Metrics:
        """One optimiser step on each learner's own loss.

        `objective(*args)` returns the loss, one value per learner, and metrics. The losses are
        summed, which gives every learner exactly the gradient that it would have alone. Only the
        optimiser's own parameters get a gradient. Loss and gradient are one graph when compiled.
        Returns the metrics, the loss among them under the objective's name, detached.

        With `combine` the objective returns several losses, (losses, *seed). Each is
        differentiated by itself, and `combine(gradients, seed_axes)` makes of their gradients,
        in the order of the losses, the one that is stepped on. Their sum is the loss returned.
        """
        parameters = parameters_of(optimizer)
        metrics, gradients = self._gradient(objective, parameters, combine)(parameters, *args)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        optimizer.step()
        return metrics

    def compute(self, function: Callable[..., Tensor], *args: Any) -> Tensor:
        """A value that several objectives share: no gradient, compiled like them."""
        name = function.__name__
        if name not in self._compiled:
            self._compiled[name] = self._compile(function)
        with torch.no_grad():
            value: Tensor = self._compiled[name](*args)
        return value

    def _compile(self, function: Callable[..., Any]) -> Callable[..., Any]:
        if self.backend == "eager":
            return function
        # Without this setting a gradient inside the graph is refused rather than traced.
        torch._dynamo.config.trace_autograd_ops = True

        def entry(*args: Any) -> Any:
            return function(*args)

        # Graphs are kept, and counted against a limit, by code object. One of its own for each
        # function lets a process train any number of agents.
        own = FunctionType(
            entry.__code__.replace(), entry.__globals__, entry.__name__, None, entry.__closure__
        )
        compiled: Callable[..., Any] = torch.compile(
            own, backend=self.backend, fullgraph=True, dynamic=False
        )
        return compiled

    def _gradient(
        self, objective: Objective, moved: Sequence[Tensor], combine: Combine | None
    ) -> Callable[..., tuple[Metrics, Sequence[Tensor]]]:
        name = objective.__name__
        if name not in self._compiled:
            stacked = seed_axes(self)
            axis_of = {id(p): stacked[key] for key, p in self.named_parameters()}
            axes = [axis_of[id(p)] for p in moved] if combine is not None else []

            def value_and_gradient(
                parameters: list[Tensor], *args: Any
            ) -> tuple[Metrics, Sequence[Tensor]]:
                loss, metrics = objective(*args)
                gradients: Sequence[Tensor]
                if combine is None:
                    gradients = torch.autograd.grad(loss.sum(), parameters)
                else:
                    apart = [
                        torch.autograd.grad(part.sum(), parameters, retain_graph=True)
                        for part in loss.unbind(0)
                    ]
                    gradients = combine(apart, axes)
                    loss = loss.sum(0)
                return {k: v.detach() for k, v in {name: loss, **metrics}.items()}, gradients

            self._compiled[name] = self._compile(value_and_gradient)
        return self._compiled[name]

    def optimizers(self) -> dict[str, Optimizer]:
        """By name without the ending `_opt`: `critic_opt` is `critic`."""
        return {
            k.removesuffix("_opt"): v for k, v in vars(self).items() if isinstance(v, Optimizer)
        }

    def config_dict(self) -> dict[str, Any]:
        return asdict(self.config)
