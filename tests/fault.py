"""A slip of the pen, to be planted in the source of a method."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Fault:
    """`old`, which stands once in the function, becomes `new`."""

    where: str  # module and function below offrl: losses.td_loss, agents.iql.IQL.update
    old: str
    new: str
    cases: tuple[str, ...]  # of parity, each of which must notice
    module: str = ""
    function: str = ""

    def __post_init__(self) -> None:
        parts = self.where.split(".")
        depth = 2 if parts[0] in ("agents", "datasets") else 1
        object.__setattr__(self, "module", ".".join(["offrl", *parts[:depth]]))
        object.__setattr__(self, "function", ".".join(parts[depth:]))

    def __str__(self) -> str:
        return f"{self.where}: {self.old!r} -> {self.new!r}"


def faults(where: str, cases: str, *changes: tuple[str, str]) -> list[Fault]:
    """Several in one function; `cases` are separated by spaces."""
    return [Fault(where, old, new, tuple(cases.split())) for old, new in changes]
