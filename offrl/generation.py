"""How samples are made: a process, a sampler and its steps, as settings that a policy keeps."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from jaxtyping import Float
from torch import Tensor

from offrl.checks import as_declared, check_intervals
from offrl.consistency import Consistency
from offrl.denoising import Denoise, Network, Path, denoiser
from offrl.errors import ConfigError, near
from offrl.processes import DDPM, EDM, Flow
from offrl.samplers import Hook, Sample, generate, noise_shapes
from offrl.types import Noise

PROCESSES: Mapping[str, type[DDPM] | type[EDM] | type[Flow] | type[Consistency]] = {
    "DDPM": DDPM,
    "EDM": EDM,
    "Flow": Flow,
    "Consistency": Consistency,
}


@dataclass(frozen=True)
class Generation:
    """A process with the sampler that is used on it.

    `clip` bounds x0_hat at every step; None where it is left alone. Raises ConfigError for a
    sampler that does not exist, or for a number of steps that the process cannot have.
    """

    process: DDPM | EDM | Flow | Consistency
    sampler: str = "ddim"  # a name of offrl.samplers
    steps: int = 8  # of the sampler
    clip: float | None = 1.0
    path: Path = field(init=False, repr=False, compare=False)  # its points, which follow

    def __post_init__(self) -> None:
        if self.clip is not None:
            check_intervals(self, clip="(0, inf)")
        noise_shapes(self.sampler, self.steps, ())
        # Made once: a graph that is compiled holds its numbers and does not work them out.
        object.__setattr__(self, "path", self.process.path(self.steps))

    def noise(self, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
        """Shapes of the standard normal numbers for a sample of this shape."""
        return noise_shapes(self.sampler, self.steps, shape)

    def denoiser(
        self, network: Network, condition: Tensor | None = None, event: int = 2
    ) -> Denoise:
        """The network as the sampler sees it; `event` axes of a sample come after the batch."""
        return denoiser(self.process, network, condition, event, self.clip)

    def run(
        self, denoise: Denoise, noise: Noise, event: int = 2, hook: Hook | None = None
    ) -> Sample:
        """Samples from the noise of `offrl.samplers.generate`, with their evaluations."""
        return generate(self.sampler, self.process, denoise, self.path, noise, event, hook)

    def spec(self) -> dict[str, Any]:
        process = {"type": type(self.process).__name__, **asdict(self.process)}
        return {
            "process": process,
            "sampler": self.sampler,
            "steps": self.steps,
            "clip": self.clip,
        }

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> "Generation":
        """What `spec()` described. Raises ConfigError, TypeError for entries that do not exist."""
        settings = dict(spec)
        process = dict(settings.pop("process"))
        kind = str(process.pop("type", ""))
        if kind not in PROCESSES:
            raise ConfigError(
                f"the policy's process is of type {kind!r}, which offrl does not know"
                f"{near(kind, PROCESSES)}"
            )
        made = PROCESSES[kind](**process)
        for entry in fields(made):
            as_declared(made, entry, getattr(made, entry.name))
        return cls(made, **settings)


def by_step(
    noise: Mapping[str, Float[Tensor, "n ..."]],
) -> dict[str, Tensor]:
    """The noise of a plan, one set for each of n episodes, as samplers take it: steps first."""
    return {k: v.transpose(0, 1) if k == "steps" else v for k, v in noise.items()}


def by_candidate(noise: Mapping[str, Float[Tensor, "n ..."]]) -> dict[str, Tensor]:
    """Noise for candidates of n episodes: those of an episode become rows beside each other.

    `start` is (n, candidates, ...); all else has steps or rounds, (n, steps, candidates, ...), and
    comes with these first, as in `by_step`.
    """
    return {
        k: v.flatten(0, 1) if k == "start" else v.transpose(0, 1).flatten(1, 2)
        for k, v in noise.items()
    }
