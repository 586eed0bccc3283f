"""`offrl agents`: a line for each agent, or the page of one."""

import ast
import json
import math
import shutil
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from offrl.about import About, about_class, documentation, listed, measured, settings
from offrl.arguments import Parser

WIDEST = 110  # columns, however wide the terminal
UNMEASURED = "not measured"
EXAMPLE = "hopper-medium-replay"
INDENT: Any = {"initial_indent": "  ", "subsequent_indent": "  "}


def main(argv: list[str]) -> int:
    """Run the command; returns its exit code."""
    parser = Parser(
        "offrl agents",
        description="List the agents, or print the page of one: equations, order of updates, "
        "departures from the paper, settings, recipes, measured results.",
    )
    parser.add_argument("agent", nargs="?", help="a name, or package.module:Class of your own")
    parser.add_argument("--json", action="store_true", help="print the facts as JSON")
    options = parser.parse_args(argv)
    width = min(shutil.get_terminal_size().columns, WIDEST)
    if options.agent is None:
        agents, results = list(listed().values()), measured()
        if options.json:
            print(json.dumps([_line_facts(agent, results) for agent in agents], indent=1))
        else:
            print(list_text(agents, results, width))
        return 0
    facts = page_facts(options.agent)
    print(json.dumps(facts, indent=1) if options.json else page_text(facts, width))
    return 0


def _line_facts(about: About, results: Mapping[str, Any]) -> dict[str, Any]:
    """What the list says of an agent, and what its page begins with."""
    cost = results.get("cost", {}).get(about.name)
    seeds = "stacked" if about.stacked else "looped"
    return asdict(about) | {"stacked": about.stacked, "seeds": seeds, "cost": cost}


def list_text(agents: Sequence[About], results: Mapping[str, Any], width: int) -> str:
    """The list: paper, cost, seeds and data, a line for each agent."""
    rows = [["agent", "paper", "arXiv", "cost", "seeds", "data that it suits"]]
    for about in agents:
        facts = _line_facts(about, results)
        paper = about.paper
        rows.append(
            [
                about.name,
                f"{paper.name}, {paper.venue}" if paper else "",
                paper.arxiv if paper else "",
                "?" if facts["cost"] is None else _times(facts["cost"]["ratio"]),
                facts["seeds"],
                about.suits,
            ]
        )
    notes = [
        "cost: how many times as long as an update of TD3+BC, both by recipe; ? is not measured.",
        "seeds: --seeds n trains n learners stacked in the same kernels, or looped one by one.",
        "offrl agents NAME prints equations, settings, recipes, results; --json is for programs.",
    ]
    return "\n".join([*_table(rows, width), "", *notes])


def _times(ratio: float) -> str:
    """A ratio, with as many digits as its measurement bears."""
    return f"{ratio:.1f}" if ratio < 100 else f"{ratio:,.0f}"


def page_facts(name: str) -> dict[str, Any]:
    """All that the page of an agent shows. Raises ConfigError where there is no such agent."""
    # Imports torch, which the list does without.
    from offrl.registry import find_agent

    known, cls, config = find_agent(name)
    results = measured()
    cells = results.get("cells", {})
    return {
        **_line_facts(about_class(known, cls, config), results),
        "summary": (cls.__doc__ or "").strip().split("\n")[0].rstrip("."),
        "documentation": documentation(cls),
        "settings": [
            asdict(setting) | {"default": _finite(setting.default)} for setting in settings(config)
        ],
        "recipes": {family: dict(values) for family, values in cls.recipes.items()},
        "results": {data: cell[known] for data, cell in cells.items() if known in cell},
    }


def _finite(value: Any) -> Any:
    """JSON has no infinity."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def page_text(facts: Mapping[str, Any], width: int) -> str:
    """The page, for a terminal of this width."""
    name = facts["name"]
    lines = [f"{name}: {facts['summary']}" if facts["summary"] else name, ""]
    lines += _table(_head(facts), width)
    lines += ["", "METHOD", "", *_fitted(facts["documentation"] or "No description.", width)]
    lines += ["", "SETTINGS", ""]
    lines += _settings(facts["settings"], width)
    lines += ["", "RECIPES", "", *_recipes(facts["recipes"], width)]
    lines += ["", "USE", ""]
    lines += [
        f"  offrl train --agent {name} --dataset {EXAMPLE} --seeds 3 --out runs/first"
        if ":" not in name
        else f"  offrl train --agent {name} --dataset {EXAMPLE}",
        f"  offrl train --agent {name} --help    # these settings, and those of every run",
        f'  offrl.train("{name}", "{EXAMPLE}")    # from Python; settings by name',
    ]
    lines += ["", "MEASURED", "", *_results(facts["results"], width)]
    return "\n".join(lines)


def _head(facts: Mapping[str, Any]) -> list[list[str]]:
    paper, cost = facts["paper"], facts["cost"]
    rows = []
    if paper is not None:
        where = f"https://arxiv.org/abs/{paper['arxiv']}"
        rows.append(["paper", f"{paper['name']}, {paper['authors']}, {paper['venue']}, {where}"])
    rows.append(["data", facts["suits"] or "its class does not say which it suits"])
    told = UNMEASURED
    if cost is not None:
        told = (
            f"{_times(cost['ratio'])} times as long as an update of TD3+BC "
            f"(both by recipe, on {cost['dataset']})"
        )
    rows.append(["cost", told])
    how = {
        "stacked": "stacked: --seeds n trains n learners in the same kernels",
        "looped": "looped: --seeds n trains n learners one after another",
    }
    rows.append(["seeds", how[facts["seeds"]]])
    rows.append(["class", facts["cls"]])
    if facts["preset"]:
        values = ", ".join(f"{k} = {_value(v)}" for k, v in facts["preset"].items())
        rows.append(["name", f"stands for this class with {values}"])
    return [["  " + row[0], row[1]] for row in rows]


def _settings(found: Sequence[Mapping[str, Any]], width: int) -> list[str]:
    rows = [["  setting", "values", "default", ""]]
    for setting in found:
        flag, kind = f"  --{setting['name'].replace('_', '-')}", setting["type"]
        if kind.startswith("Literal["):
            kind = " ".join(map(str, ast.literal_eval(kind.removeprefix("Literal"))))
        kind = {"tuple[int, ...]": "int int ..."}.get(kind, kind)
        rows.append([flag, kind, _value(setting["default"]), setting["comment"]])
    lines = _table(rows, width)
    if any(setting["type"] == "bool" for setting in found):
        lines += ["", "  A setting that is True is switched off by --no-NAME."]
    return lines


def _recipes(recipes: Mapping[str, Mapping[str, Any]], width: int) -> list[str]:
    if not recipes:
        return ["  none: the defaults are used everywhere"]
    names = list(dict.fromkeys(name for values in recipes.values() for name in values))
    told = ["  --recipe auto takes the most specific one that the dataset or its task belongs to."]
    if not names:
        return [*told, f"  {', '.join(recipes)}: the defaults"]
    rows = [["recipe", *names]]
    for family, values in recipes.items():
        rows.append([family, *(_value(values[n]) if n in values else "-" for n in names)])
    rows = [["  " + row[0], *row[1:]] for row in rows]
    if sum(max(len(cell) for cell in column) + 2 for column in zip(*rows, strict=True)) > width:
        rows = [["  recipe", "sets"]] + [
            ["  " + family, ", ".join(f"{k} {_value(v)}" for k, v in values.items()) or "nothing"]
            for family, values in recipes.items()
        ]
    else:
        told.append("  A dash is the default.")
    return [*told, "", *_table(rows, width)]


def _results(results: Mapping[str, Mapping[str, Any]], width: int) -> list[str]:
    if not results:
        return [f"  {UNMEASURED}"]
    rows = [["  dataset", "score", "95 % interval", "best", "seeds", "updates", "made"]]
    for dataset, cell in results.items():
        interval = cell["interval"]
        rows.append(
            [
                f"  {dataset}",
                f"{cell['score']:.1f}",
                "" if interval is None else f"{interval[0]:.1f} to {interval[1]:.1f}",
                f"{cell['best']:.1f}",
                str(cell["seeds"]),
                f"{cell['updates']:,}",
                cell["date"],
            ]
        )
    changed = [f"  {d}: {cell['changed']}" for d, cell in results.items() if cell["changed"]]
    note = (
        "Normalised score of the last policy, mean over seeds; best is of the evaluations during "
        "training. results/README.md of the repository has every agent, curves and commands."
    )
    return [*_table(rows, width), *changed, "", *textwrap.wrap(note, width, **INDENT)]


def _value(value: Any) -> str:
    if isinstance(value, tuple):
        return " ".join(map(str, value)) or "()"
    return str(value) or '""'


def _table(rows: Sequence[Sequence[str]], width: int) -> list[str]:
    """Columns of equal width, the last one wrapped where it would go beyond `width`."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    used = sum(widths[:-1]) + 2 * (len(widths) - 1)
    lines = []
    for row in rows:
        first = "".join(f"{cell:<{n}}  " for cell, n in zip(row, widths[:-1], strict=False))
        parts = textwrap.wrap(row[-1], max(width - used, 24), break_on_hyphens=False) or [""]
        lines += [(first + parts[0]).rstrip(), *(" " * used + part for part in parts[1:])]
    return lines


def _fitted(text: str, width: int) -> list[str]:
    """A docstring as it is, unless a line is too long: then its paragraphs, not its equations."""
    lines = text.splitlines()
    if all(len(line) <= width for line in lines):
        return lines
    fitted = []
    for block in text.split("\n\n"):
        if block.startswith((" ", "- ")) or "\n " in block:
            fitted += [*block.splitlines(), ""]
        else:
            fitted += [*textwrap.wrap(block, width, break_on_hyphens=False), ""]
    return fitted[:-1]
