"""Logging to Weights & Biases, beside the run's own tables."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from offrl.callbacks import Callback
from offrl.errors import MissingDependencyError


class WandbCallback(Callback):
    """Sends what is logged to one wandb run per learner.

    `project` is the project's name and `config` what the run is determined by. Where to send, and
    whether at all, is wandb's own matter (`WANDB_MODE=offline` keeps everything here). Raises
    MissingDependencyError without the package.
    """

    def __init__(self, project: str, config: Mapping[str, Any]) -> None:
        try:
            import wandb
        except ImportError:
            raise MissingDependencyError(
                "logging to Weights & Biases needs its package: pip install 'offrl[wandb]'"
            ) from None
        self._wandb, self._project, self._config = wandb, project, dict(config)
        self._runs: dict[Path, Any] = {}

    def on_log(self, step: int, folder: Path, values: Mapping[str, float]) -> None:
        self._run(folder).log(dict(values), step=step)

    def on_evaluation(
        self, step: int, folder: Path, values: Mapping[str, float], evaluation: Any
    ) -> None:
        self._run(folder).log(dict(values), step=step)

    def _run(self, folder: Path) -> Any:
        if folder not in self._runs:
            self._runs[folder] = self._wandb.init(
                project=self._project,
                name=str(folder),
                config=self._config,
                dir=str(folder),
                reinit="create_new",
            )
        return self._runs[folder]
