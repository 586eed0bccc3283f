"""What a file in tests/methods states of a method: settings under which it is compared."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from problems import small_config
from torch import Tensor

from offrl.datasets.offline import OfflineDataset
from offrl.datasets.replay import Replay

BATCH = 16
TOTAL = 40  # length that the schedules are told
LR = 2.0**-10  # exact in float32, in which the optimisers hold it
# Of noise that is cut as often as not, of targets that move.
TD3 = {"policy_noise": 0.8, "noise_clip": 1.2, "gamma": 0.9, "lr": LR, "polyak": 0.1}

Layers = list[Tensor]
Trained = tuple[dict[str, Layers], list[dict[str, Tensor]]]
Batches = list[dict[str, Tensor]]


@dataclass(frozen=True)
class Case:
    """An agent under some settings, and how the transcription of its method is called.

    `flat(case, nets, batches, dataset, view)` gets the last learner's networks as lists of
    weights and biases, by attribute, the members of an ensemble each by itself (`critic` is q1,
    q2, ...; `value` of two members is value1, value2; a target ends in `_target`); each batch as
    its fields, its noise and the raw reward; the data, and their view. It returns the networks
    after training, under the same names, and the metrics of each update.
    """

    agent: str
    changes: Mapping[str, Any]
    # Of the agent's networks, what the gradient of each objective can reach.
    reach: Mapping[str, frozenset[str]]
    flat: "Callable[[Case, dict[str, Layers], Batches, OfflineDataset, Replay], Trained]"
    noise: Mapping[str, tuple[int, ...]] = field(default_factory=dict)  # that the method draws
    # One whose first critics or advantages have both signs, and either critic is the smaller.
    seed: int = 71
    beside: tuple[int, ...] = ()  # seeds of learners stacked with it; it is the last
    hidden: tuple[int, ...] = (8, 6)
    members: Mapping[str, int] = field(default_factory=lambda: {"critic": 2})  # of ensembles
    # What the agent's view leaves out, by hand.
    chosen: "Callable[[Case, OfflineDataset], OfflineDataset]" = lambda case, dataset: dataset
    # What the agent's view is, by hand, where it is not one of transitions.
    view: "Callable[[Case, OfflineDataset], Replay] | None" = None
    expected: list[Trained] = field(default_factory=list, compare=False)  # one, once worked out

    @property
    def config(self) -> Any:
        narrow = small_config(self.agent)
        own = {"hidden": self.hidden} if hasattr(narrow, "hidden") else {}
        return replace(narrow, **own, **self.changes)

    def settings(self, *names: str) -> dict[str, Any]:
        """Fields of the config, as arguments of a transcription."""
        return {name: getattr(self.config, name) for name in names}


def reach(**objectives: str) -> dict[str, frozenset[str]]:
    """Networks, separated by spaces, that the gradient of each objective can reach."""
    return {name: frozenset(nets.split()) for name, nets in objectives.items()}
