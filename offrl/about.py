"""What is known of an agent without training it: paper, data that it suits, settings, results.

The paper is the first sentence of the agent's module, the comments on settings are those beside
the fields: nothing is stated a second time here. `listed` reads the text of the agents' files,
because importing them loads torch, which takes longer than anyone waits for a list.
"""

import ast
import inspect
import io
import re
import sys
import textwrap
import tokenize
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from offrl.errors import RunError
from offrl.files import read_json

if TYPE_CHECKING:
    from offrl.agent import Agent

PACKAGE = "offrl.agents"
MEASURED = "measured.json"  # beside the agents; written by scripts/results.py
# "Implicit Q-learning (IQL; Kostrikov, Nair and Levine, ICLR 2022, arXiv:2110.06169)"
PAPER = re.compile(
    r"(?P<title>[^()]+?) \((?:(?P<short>[^;()]+); )?(?P<authors>[^()]+?), "
    r"(?P<venue>[^,()]*\b\d{4}), arXiv:(?P<arxiv>\d{4}\.\d{4,5})\)"
)


@dataclass(frozen=True)
class Paper:
    """Where a method was published."""

    name: str  # of the method, as short as the text has it
    authors: str
    venue: str  # with the year
    arxiv: str


@dataclass(frozen=True)
class About:
    """What the list shows of an agent."""

    name: str
    cls: str  # module:Class
    paper: Paper | None
    suits: str  # data that the method suits; empty where the class does not say
    stacked: bool  # several seeds are trained in the same kernels, not one after another
    preset: Mapping[str, Any] = field(default_factory=dict)  # what the name sets of the settings


@dataclass(frozen=True)
class Setting:
    """A field of an agent's config."""

    name: str
    type: str
    default: Any
    comment: str  # the one beside the field; empty where there is none


def paper_of(doc: str | None) -> Paper | None:
    """The paper that a docstring begins with, as `PAPER` has it; None where it does not."""
    found = PAPER.match(" ".join((doc or "").split()))
    if found is None:
        return None
    return Paper(found["short"] or found["title"], found["authors"], found["venue"], found["arxiv"])


def about_class(name: str, cls: "type[Agent]", config: Any) -> About:
    """Of a class that is imported already; `config` is what `name` stands for."""
    plain = type(config)()
    preset = {
        f.name: getattr(config, f.name)
        for f in fields(config)
        if getattr(config, f.name) != getattr(plain, f.name)
    }
    paper = paper_of(documentation(cls))
    return About(
        name, f"{cls.__module__}:{cls.__qualname__}", paper, cls.suits, cls.stacked, preset
    )


def documentation(cls: "type[Agent]") -> str:
    """The docstring of the agent's module, or of its class where the module has none."""
    module = sys.modules.get(cls.__module__)
    return inspect.cleandoc((module and module.__doc__) or cls.__doc__ or "")


def listed() -> dict[str, About]:
    """Every agent of the package by name, in the order of its table, without importing one."""
    tree = ast.parse(_file("__init__.py").read_text())
    module_of = {
        alias.name: node.module
        for node in tree.body
        if isinstance(node, ast.ImportFrom) and node.module
        for alias in node.names
    }
    table = _assigned(tree.body)["AGENTS"]
    assert isinstance(table, ast.Dict)
    found = {}
    for key, value in zip(table.keys, table.values, strict=True):
        assert isinstance(key, ast.Constant) and isinstance(value, ast.Tuple)
        cls, config = value.elts
        assert isinstance(cls, ast.Name) and isinstance(config, ast.Call)
        preset = {str(k.arg): ast.literal_eval(k.value) for k in config.keywords}
        name = str(key.value)
        found[name] = _read(name, module_of[cls.id], cls.id, preset)
    return found


def _read(name: str, module: str, cls: str, preset: Mapping[str, Any]) -> About:
    tree = ast.parse(_file(f"{module.rpartition('.')[2]}.py").read_text())
    (body,) = (n.body for n in tree.body if isinstance(n, ast.ClassDef) and n.name == cls)
    own = _assigned(body)
    suits = ast.literal_eval(own["suits"]) if "suits" in own else ""
    stacked = ast.literal_eval(own["stacked"]) if "stacked" in own else True
    return About(name, f"{module}:{cls}", paper_of(ast.get_docstring(tree)), suits, stacked, preset)


def _assigned(body: list[ast.stmt]) -> dict[str, ast.expr]:
    """What is assigned to plain names, by name."""
    found = {}
    for node in body:
        if isinstance(node, ast.AnnAssign) and node.value is not None:
            found[ast.unparse(node.target)] = node.value
        elif isinstance(node, ast.Assign):
            found |= {ast.unparse(target): node.value for target in node.targets}
    return found


def _file(name: str) -> Path:
    spec = find_spec(PACKAGE)  # which runs nothing of the package
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).with_name(name)


def settings(config: Any) -> list[Setting]:
    """The fields of a config with the comments beside them; its own before those it inherits."""
    comments: dict[str, str] = {}
    for cls in type(config).__mro__:
        if is_dataclass(cls):
            comments = {**_comments(cls), **comments}
    own = type(config).__annotations__
    return [
        Setting(
            f.name,
            f.type if isinstance(f.type, str) else inspect.formatannotation(f.type),
            getattr(config, f.name),
            comments.get(f.name, ""),
        )
        for f in sorted(fields(config), key=lambda f: f.name not in own)
    ]


def _comments(cls: type[Any]) -> dict[str, str]:
    try:
        source = textwrap.dedent(inspect.getsource(cls))
    except (OSError, TypeError):  # made at run time, or installed without its source
        return {}
    by_line = {
        token.start[0]: token.string.lstrip("# ")
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    (tree,) = ast.parse(source).body
    assert isinstance(tree, ast.ClassDef)
    return {
        ast.unparse(node.target): " ".join(
            by_line[n] for n in range(node.lineno, (node.end_lineno or 0) + 1) if n in by_line
        )
        for node in tree.body
        if isinstance(node, ast.AnnAssign)
    }


def measured() -> dict[str, Any]:
    """What `scripts/results.py` wrote of the repository's results; empty where it is absent.

    `cost`: agent -> times as long as an update of TD3+BC, and the dataset on which it was measured
    by `scripts/costs.py`. `cells`: dataset -> agent -> scores, seeds, updates, speed, date, commit,
    machine.
    Raises RunError where the file is damaged.
    """
    path = _file(MEASURED)
    if not path.exists():
        return {}
    found = read_json(path)
    if not isinstance(found, dict) or not {"cost", "cells"} <= found.keys():
        raise RunError(f"{path} has no 'cost' and 'cells'; install offrl again")
    return found
