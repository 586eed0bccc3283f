"""Plants faults in the methods' source, one at a time, and says which ones parity notices.

    python tests/plant_faults.py [-v]

The faults are those of the files in tests/methods. The sources are patched in memory: the module
with the fault, and those between it and the agent, are executed anew under their own names, and
the files stay as they are. Exits with 1 where a fault survives or where a line has none.
"""

import ast
import contextlib
import importlib.util
import sys
import types
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import parity
from fault import Fault

from offrl.agent import Agent
from offrl.agents import AGENTS

UPDATES = 6  # of a policy that is delayed by 3, two

FAULTS: list[Fault] = []
EXEMPT: dict[tuple[str, str], str] = {}  # lines without a fault of their own, and why
COVERED: list[str] = []  # functions in shared rooms, each line of which has a fault
for _method in parity.METHODS.values():
    FAULTS += _method.FAULTS
    EXEMPT |= getattr(_method, "EXEMPT", {})
    COVERED += getattr(_method, "COVERED", [])


def patched(fault: Fault) -> str:
    """The source of the fault's module, with the fault."""
    source, segment, _ = _function(fault.module, fault.function)
    count = segment.count(fault.old)
    if count != 1:
        raise ValueError(f"{fault}: the text stands {count} times in the function")
    assert source.count(segment) == 1
    return source.replace(segment, segment.replace(fault.old, fault.new))


@contextlib.contextmanager
def planted(fault: Fault | None, agent: str) -> Iterator[type[Agent]]:
    """The agent's class with the fault in it, executed anew; the real modules come back after."""
    original = AGENTS[agent][0]
    faulty = "offrl.agent" if fault is None else fault.module
    names = _between(original.__module__, faulty)
    before = {name: sys.modules[name] for name in names}
    try:
        for name in names:
            source = _source(name) if fault is None or name != faulty else patched(fault)
            module = types.ModuleType(name)
            sys.modules[name] = module
            exec(compile(source, f"<{name}>", "exec"), vars(module))
        yield getattr(sys.modules[original.__module__], original.__name__)
    finally:
        sys.modules.update(before)


@cache
def _between(module: str, fault: str) -> list[str]:
    """Modules from the faulty one up to this, in an order in which each finds those it needs.

    A module that takes a name from a faulty one holds the old one until it is executed anew.
    """
    order: list[str] = []
    reaches: dict[str, bool] = {}

    def visit(name: str) -> bool:
        if name not in reaches:
            reaches[name] = name in (module, fault, "offrl.agent")
            below = [visit(other) for other in _imported(name)]
            reaches[name] |= any(below)
            if reaches[name]:
                order.append(name)
        return reaches[name]

    visit(module)
    if fault not in order:
        raise ValueError(f"{module} uses nothing of {fault}")
    return order


@cache
def _imported(module: str) -> list[str]:
    """Of this package, what a module imports at its top."""
    found = [n for n in ast.parse(_source(module)).body if isinstance(n, ast.ImportFrom)]
    return [str(n.module) for n in found if str(n.module).startswith("offrl.")]


def noticed(fault: Fault | None, case: str) -> str | None:
    """How the comparison with the transcription ends: the error that it raises, or None."""
    with planted(fault, parity.CASES[case].agent) as cls:
        try:
            parity.check(case, cls, UPDATES)
        except Exception as error:
            return f"{type(error).__name__}: {str(error).splitlines()[0]}"
    return None


def methods() -> dict[str, type[Agent]]:
    """The classes that the table of agents names, by module."""
    return {cls.__module__.removeprefix("offrl."): cls for cls, _ in AGENTS.values()}


def uncovered(module: str, cls: type[Agent]) -> list[str]:
    """Lines of `update` and of the objectives, which return losses, that no fault touches."""
    tree = ast.parse(_source(f"offrl.{module}"))
    (body,) = (n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == cls.__name__)
    checked = [
        n.name
        for n in body.body
        if isinstance(n, ast.FunctionDef)
        and (n.name in ("update", "target_q") or "_loss" in n.name)
    ]
    return [line for name in checked for line in untouched(f"{module}.{cls.__name__}.{name}")]


def untouched(where: str) -> list[str]:
    """Lines of a function, named as by Fault.where, that no fault touches."""
    place = Fault(where, "", "", ())
    _, segment, node = _function(place.module, place.function)
    touched: set[int] = set()
    for fault in (f for f in FAULTS if f.where == where):
        first = segment[: segment.index(fault.old)].count("\n")
        touched |= set(range(first, first + fault.old.rstrip("\n").count("\n") + 1))
    lines = segment.splitlines()
    missing = []
    for statement in ast.walk(node):
        if not isinstance(statement, ast.stmt) or statement is node or _is_text(statement):
            continue
        last = statement.end_lineno or statement.lineno
        if isinstance(statement, ast.If | ast.With):
            last = statement.lineno
        span = set(range(statement.lineno - node.lineno, last - node.lineno + 1))
        text = lines[min(span)].strip()
        if not span & touched and (where, text) not in EXEMPT:
            missing.append(f"{where}: {text}")
    return missing


def _is_text(statement: ast.stmt) -> bool:
    """A docstring."""
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


@cache
def _source(module: str) -> str:
    spec = importlib.util.find_spec(module)
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).read_text()


@cache
def _function(module: str, function: str) -> tuple[str, str, ast.FunctionDef]:
    """The module's source, the function's part of it, and its tree."""
    source = _source(module)
    body: list[ast.stmt] = ast.parse(source).body
    for name in function.split("."):
        (node,) = (
            n for n in body if isinstance(n, ast.ClassDef | ast.FunctionDef) and n.name == name
        )
        body = node.body
    assert isinstance(node, ast.FunctionDef)
    lines = source.splitlines(keepends=True)[node.lineno - 1 : node.end_lineno]
    return source, "".join(lines), node


def main(argv: list[str]) -> int:
    import torch

    torch.set_num_threads(1)
    survivors, crashes = 0, 0
    for case in parity.CASES:
        if (error := noticed(None, case)) is not None:
            print(f"{case} fails without any fault: {error}")
            return 1
    for fault in FAULTS:
        for case in fault.cases:
            error = noticed(fault, case)
            survivors += error is None
            crashes += error is not None and not error.startswith("AssertionError")
            if error is None or "-v" in argv:
                print(f"{'SURVIVED' if error is None else 'noticed '} {case:12} {fault}")
                print(f"{'':9}{error or ''}" if error else "", end="\n" if error else "")
    lines = [line for module, cls in methods().items() for line in uncovered(module, cls)]
    lines += [line for where in COVERED for line in untouched(where)]
    for line in lines:
        print(f"no fault in {line}")
    total = sum(len(f.cases) for f in FAULTS)
    print(f"{len(FAULTS)} faults, {total} trials: {survivors} survived, {crashes} crashed")
    return int(survivors > 0 or bool(lines))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
