"""Hooks into a run: derive from `Callback` and pass instances to `offrl.train`."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from offrl.evaluation import Evaluation


class Callback:
    """Does nothing; override what you need. `folder` is the learner's run directory."""

    def on_log(self, step: int, folder: Path, values: Mapping[str, float]) -> None:
        """Training metrics were logged, means since the last log."""

    def on_evaluation(
        self, step: int, folder: Path, values: Mapping[str, float], evaluation: "Evaluation | None"
    ) -> None:
        """A learner was evaluated: `values` by name; every episode, with an environment."""

    def on_checkpoint(self, step: int, folder: Path) -> None:
        """A learner's checkpoint is complete on disk."""
