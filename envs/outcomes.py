"""Whether an episode succeeded, and in which of several ways, as environments report it.

Gymnasium has no rule for this. Adroit, OGBench and Meta-World say `success`, Fetch and the hands
of gymnasium-robotics `is_success`. An episode counts as successful if any of its steps did.
`mode` numbers the way that was taken, below `modes`; -1 where none was taken yet.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

KEYS = ("success", "is_success")


def succeeded(info: Mapping[str, Any]) -> bool | None:
    """What one step's `info` says of success; None where it says nothing."""
    for key in KEYS:
        if key in info:
            return bool(info[key])
    return None


@dataclass(frozen=True)
class Outcome:
    """What the steps of an episode have said so far; None where they said nothing."""

    success: bool | None = None  # at any step
    mode: int | None = None  # at the last step
    modes: int | None = None

    def after(self, info: Mapping[str, Any]) -> "Outcome":
        """The outcome with one more step."""
        now = succeeded(info)
        return Outcome(
            self.success if now is None else now or bool(self.success),
            int(info["mode"]) if "mode" in info else self.mode,
            int(info["modes"]) if "modes" in info else self.modes,
        )
