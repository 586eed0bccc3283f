"""`offrl agents`: a line for each agent, a page of each, and what both are made of."""

import json
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from test_looped import Looped

from offrl import about, agents_cli
from offrl.agents import AGENTS
from offrl.cli import main
from offrl.errors import RunError
from offrl.registry import find_agent

ROOT = Path(__file__).resolve().parents[1]
NAMES = list(AGENTS)
CELL = {
    **{"score": 44.26, "interval": [37.19, 51.33], "mean_of_last_10": 41.28, "best": 45.72},
    **{"seeds": 3, "updates": 100_000, "updates_per_second": 200.7, "changed": ""},
    **{"date": "2026-11-21", "commit": "8dba3f9", "machine": "2 cores"},
}
RESULTS = {
    "cost": {
        "prdc": {"ratio": 1.53, "dataset": "hopper-medium-replay"},
        "act": {"ratio": 5290.43, "dataset": "hopper-medium-replay"},
    },
    "cells": {"halfcheetah-medium-replay": {"prdc": CELL}},
}


@pytest.fixture(autouse=True)
def _terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "110")
    monkeypatch.setattr(agents_cli, "measured", lambda: RESULTS)


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["agents", *arguments]) == 0
    return capsys.readouterr().out


# -- what is known ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_every_agent_says_what_the_list_needs(name: str) -> None:
    cls = AGENTS[name][0]
    found = about.about_class(*find_agent(name))
    assert found.paper is not None, (
        f"the first sentence of {cls.__module__} must name its paper as in 'Implicit Q-learning "
        "(IQL; Kostrikov, Nair and Levine, ICLR 2022, arXiv:2110.06169).'"
    )
    assert 0 < len(found.paper.name) <= 8 and re.fullmatch(r"\d{4}\.\d{5}", found.paper.arxiv)
    assert re.fullmatch(r"(\w+ )?(19|20)\d\d", found.paper.venue)
    assert 0 < len(found.suits) <= 39, f"{cls.__qualname__}.suits: one short phrase"
    assert isinstance(cls.stacked, bool)


def test_the_list_read_from_the_text_is_what_the_classes_say() -> None:
    read = about.listed()
    assert list(read) == NAMES
    assert read == {name: about.about_class(*find_agent(name)) for name in NAMES}


@pytest.mark.parametrize(
    ("sentence", "expected"),
    [
        ("TD3+BC (Fujimoto and Gu, NeurIPS 2021, arXiv:2106.06860).", "TD3+BC|NeurIPS 2021"),
        ("A long\nname (LN; A, B and C,\n ICML 2023, arXiv:2306.06569), and more", "LN|ICML 2023"),
        ("Name (A et al., 2020, arXiv:2006.09359): a method.", "Name|2020"),
        ("Of its own (at all).\n\nAs in Name (A et al., 2020, arXiv:2006.09359).", None),
        ("No paper (at all).", None),
        (None, None),
    ],
)
def test_the_paper_of_a_docstring(sentence: str | None, expected: str | None) -> None:
    found = about.paper_of(sentence)
    assert (found and f"{found.name}|{found.venue}") == expected


def test_settings_come_with_the_comments_beside_them() -> None:
    found = {s.name: s for s in about.settings(AGENTS["percent_bc"][1])}
    assert found["top_fraction"].default == 0.1 and found["top_fraction"].type == "float"
    assert found["top_fraction"].comment.startswith("share of the episodes")
    assert found["hidden"].type == "tuple[int, ...]"
    # Those that a config inherits too.
    td3 = {s.name: s.comment for s in about.settings(AGENTS["prdc"][1])}
    assert td3["policy_delay"] and td3["beta"]


def test_results_are_read_where_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "measured.json"
    monkeypatch.setattr(about, "_file", lambda name: tmp_path / name)
    assert about.measured() == {}
    file.write_text(json.dumps(RESULTS))
    assert about.measured() == RESULTS
    for damaged in ("{", "[]", '{"cost": {}}'):
        file.write_text(damaged)
        with pytest.raises(RunError, match=r"measured\.json"):
            about.measured()


def test_what_is_shipped_is_of_known_agents() -> None:
    found = about.measured()
    assert found["cells"]
    for cells in (found["cost"], *found["cells"].values()):
        assert set(cells) <= set(NAMES)
    for cells in found["cells"].values():
        assert all(cell.keys() == CELL.keys() for cell in cells.values())
    assert set(found["cost"]) == set(NAMES)  # scripts/costs.py


# -- the list -----------------------------------------------------------------------------------


def test_the_list_has_a_line_for_each(capsys: pytest.CaptureFixture[str]) -> None:
    head, *lines = printed(capsys).split("\n\n")[0].splitlines()
    assert [line.split()[0] for line in lines] == NAMES
    assert all(len(line) <= 110 for line in lines)
    assert head.split()[:5] == ["agent", "paper", "arXiv", "cost", "seeds"]
    (prdc,) = (line for line in lines if line.startswith("prdc "))
    assert "PRDC, ICML 2023" in prdc and "2306.06569  1.5 " in prdc and " stacked " in prdc
    assert AGENTS["prdc"][0].suits in prdc
    (iql,) = (line for line in lines if line.startswith("iql "))
    assert " ?  " in iql


def test_the_list_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    found = {facts["name"]: facts for facts in json.loads(printed(capsys, "--json"))}
    assert list(found) == NAMES
    assert found["prdc"]["cost"] == RESULTS["cost"]["prdc"] and found["iql"]["cost"] is None
    assert found["iql"]["paper"]["arxiv"] == "2110.06169" and found["iql"]["seeds"] == "stacked"
    assert found["percent_bc"]["preset"] == {"top_fraction": 0.1}


def test_the_list_loads_no_torch() -> None:
    code = "import sys; sys.modules['torch'] = None; from offrl.cli import main; main(['agents'])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "td3_bc" in done.stdout


# -- the page -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_the_page_of_every_agent(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    page = printed(capsys, name)
    _, cls, config = find_agent(name)
    assert all(len(line) <= 110 for line in page.splitlines())
    for line in about.documentation(cls).splitlines():
        assert line in page
    for setting in about.settings(config):
        assert f"  --{setting.name.replace('_', '-')} " in page
    for family, values in cls.recipes.items():
        assert f"\n  {family} " in page or f"{family}:" in page or f"{family}," in page
        assert all(key in page for key in values)
    assert f"offrl train --agent {name} --dataset" in page
    assert [h for h in re.findall(r"^[A-Z]+$", page, re.MULTILINE)] == [
        *("METHOD", "SETTINGS", "RECIPES", "USE", "MEASURED")
    ]


@pytest.mark.parametrize("name", NAMES)
def test_the_page_in_json(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(capsys, name, "--json")
    facts = json.loads(text, parse_constant=pytest.fail)  # of what JSON does not have
    _, cls, config = find_agent(name)
    assert facts["documentation"] == about.documentation(cls)
    assert facts["recipes"] == json.loads(json.dumps(cls.recipes))
    for setting in facts["settings"]:
        value = getattr(config, setting["name"])
        value = list(value) if isinstance(value, tuple) else value
        infinite = isinstance(value, float) and not math.isfinite(value)
        assert setting["default"] == (str(value) if infinite else value)


def test_measured_results_of_the_page(capsys: pytest.CaptureFixture[str]) -> None:
    page = printed(capsys, "prdc")
    assert "1.5 times as long as an update of TD3+BC (both by recipe, on hopper-medium-" in page
    assert re.search(r"halfcheetah-medium-replay +44\.3 +37\.2 to 51\.3 +45\.7 +3 +100,000", page)
    assert "\n  cost   5,290 times as long" in printed(capsys, "act")
    assert "\n  cost   not measured\n" in printed(capsys, "iql")
    assert printed(capsys, "iql").endswith("MEASURED\n\n  not measured\n")


def test_a_narrow_terminal_wraps_words_and_leaves_equations(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    page = printed(capsys, "iql")
    (equation,) = (line for line in page.splitlines() if line.startswith("    L_pi = E["))
    assert len(equation) > 60
    method = page.split("METHOD")[1].split("SETTINGS")[0]
    assert all(len(line) <= 60 for line in method.splitlines() if not line.startswith(" "))


def test_what_a_name_sets_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    page = printed(capsys, "percent_bc")
    assert "stands for this class with top_fraction = 0.1" in page
    assert "stands for" not in printed(capsys, "bc")


def test_an_agent_of_ones_own(capsys: pytest.CaptureFixture[str]) -> None:
    own = f"{Looped.__module__}:Looped"
    page = printed(capsys, own)
    assert page.startswith(f"{own}: Own, of one learner and no more\n")
    assert "looped: --seeds n trains n learners one after another" in page
    assert "  data   its class does not say which it suits" in page and "  paper" not in page
    assert re.search(r"--shrink +float +0\.0 +weight decay, by hand", page)
    assert re.search(r"\n  locomotion +0\.5\n", page)
    facts: dict[str, Any] = json.loads(printed(capsys, own, "--json"))
    assert facts["paper"] is None and facts["seeds"] == "looped" and facts["results"] == {}


def test_an_unknown_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["agents", "iqll"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("offrl: there is no agent 'iqll', did you mean 'iql'")
    assert error.count("\n") == 1
