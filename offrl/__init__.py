"""Offline reinforcement learning and imitation learning for control and robotics.

The names below are looked up when first used, so that `import offrl` loads neither torch nor
MuJoCo.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from offrl.agent import Agent
    from offrl.callbacks import Callback
    from offrl.datasets.loading import load_dataset
    from offrl.datasets.offline import OfflineDataset
    from offrl.errors import OffrlError
    from offrl.evaluation import evaluate
    from offrl.experiment import Run, train
    from offrl.policy import Policy, load_policy

__version__ = "0.1.0"

__all__ = [
    "Agent",
    "Callback",
    "OfflineDataset",
    "OffrlError",
    "Policy",
    "Run",
    "__version__",
    "evaluate",
    "load_dataset",
    "load_policy",
    "train",
]

_MODULE_OF = {
    "Agent": "offrl.agent",
    "Callback": "offrl.callbacks",
    "OfflineDataset": "offrl.datasets.offline",
    "OffrlError": "offrl.errors",
    "Policy": "offrl.policy",
    "Run": "offrl.experiment",
    "evaluate": "offrl.evaluation",
    "load_dataset": "offrl.datasets.loading",
    "load_policy": "offrl.policy",
    "train": "offrl.experiment",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_MODULE_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULE_OF})
