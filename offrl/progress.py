"""What a learner has reached: its evaluations, its best, its summary, and its checkpoint's entries.

Beside its tensors, a learner's checkpoint holds what data it was made with, how far its tables had
got, its running means, its evaluations and its best. Whether those entries look as a run writes
them is asked before any of them is used.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from offrl.datasets.offline import Reference

LAST_EVALUATIONS = 10  # over which the reported running mean is taken


@dataclass
class Progress:
    """What one learner has reached; part of its checkpoint."""

    evaluations: list[tuple[int, float]]  # step and mean return of each
    best: tuple[int, float] | None = None  # step and value of the best, by the chosen metric

    @classmethod
    def stored(cls, entries: Mapping[str, Any]) -> "Progress":
        """That of a checkpoint, whose `damaged_entry` is none."""
        best = entries["best"]
        return cls(
            [(int(step), float(value)) for step, value in entries["evaluations"]],
            None if best is None else (int(best[0]), float(best[1])),
        )

    def improved_by(self, metric: str, value: float) -> bool:
        """Whether it is the best so far: the highest of an evaluation, the lowest of a loss."""
        if self.best is None:
            return True
        return value > self.best[1] if metric.startswith("eval/") else value < self.best[1]

    def summary(self, step: int, best_by: str, reference: Reference | None) -> dict[str, Any]:
        """Last, best, and mean of the last ten evaluations, under these names."""
        summary: dict[str, Any] = {"step": step, "best_by": best_by}
        if self.best is not None:
            summary["best"] = {"step": self.best[0], best_by: self.best[1]}
        if self.evaluations:
            returns = [value for _, value in self.evaluations[-LAST_EVALUATIONS:]]
            summary["last"] = {"eval/return": returns[-1]}
            name = f"mean of last {len(returns)}"
            summary[name] = {"eval/return": sum(returns) / len(returns)}
        if reference is not None:
            summary["reference"] = asdict(reference)
            for part in summary.values():
                if isinstance(part, dict) and "eval/return" in part:
                    part["eval/score"] = float(reference.score(part["eval/return"]))
        return summary


def damaged_entry(entries: Mapping[str, Any]) -> str | None:
    """The first entry of a checkpoint that is missing or is not what a run writes."""
    for name, right in _ENTRIES.items():
        if name not in entries or not right(entries[name]):
            return name
    return None


def _numbers(value: Any, count: int) -> bool:
    return (
        isinstance(value, list)
        and len(value) == count
        and all(isinstance(v, (int, float)) for v in value)
    )


_ENTRIES: Mapping[str, Callable[[Any], bool]] = {
    "data": lambda v: isinstance(v, str),
    "prepared": lambda v: isinstance(v, dict),
    "tables": lambda v: isinstance(v, dict) and all(type(n) is int for n in v.values()),
    "meter": lambda v: isinstance(v, dict) and all(_numbers(mean, 2) for mean in v.values()),
    "evaluations": lambda v: isinstance(v, list) and all(_numbers(pair, 2) for pair in v),
    "best": lambda v: v is None or _numbers(v, 2),
}
