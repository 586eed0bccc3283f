"""`offrl lm data` and `offrl lm methods`: what they write and print, and what they refuse."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from offrl import cli
from offrl.lm.losses import METHODS
from offrl.lm.losses.groups import GROUP_METHODS

GROUPS: list[dict[str, Any]] = [
    {"prompt": "a", "completions": ["x", "y", "z"], "rewards": [0.0, 2.0, 1.0]},
    {"prompt": "b", "completions": ["x", "y"], "rewards": [1.0, 1.0]},
    {"prompt": "c", "completions": ["x"], "rewards": [1.0]},
]
SCORES = {"chosen_score": 2.0, "rejected_score": 1.0}
PAIRS: list[dict[str, Any]] = [
    {"prompt": "a", "chosen": "x", "rejected": "y", **SCORES, "ches": 3.0},
    {"prompt": "b", "chosen": "x", "rejected": "y", "chosen_score": 1, "rejected_score": 1},
    {"prompt": "b", "chosen": "x", "rejected": "x"},
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, records in (("groups", GROUPS), ("pairs", PAIRS)):
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return tmp_path


def run(folder: Path, *words: str) -> list[dict[str, Any]]:
    """The records that `offrl lm data ...` writes."""
    command, name, *rest = words
    out = folder / "out.jsonl"
    assert cli.main(["lm", "data", command, str(folder / name), *rest, "--out", str(out)]) == 0
    records = [json.loads(line) for line in out.read_text().splitlines()]
    out.unlink()
    return records


def fails(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    capsys.readouterr()
    assert cli.main(["lm", *words]) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("offrl: ") and printed.err.count("\n") == 1, printed.err
    return printed.err


# -- check --------------------------------------------------------------------------------------


def test_check_says_what_is_there_and_what_is_not_usable(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(folder / "groups.jsonl")
    assert cli.main(["lm", "data", "check", path]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == f"{path}: groups, 2 of 3 examples are usable"
    assert printed[1].startswith("  dropped: 1, a group of one where 2 answers are needed")
    assert "  answers of a group: 2 to 3" in printed
    assert "  rewards: 0 to 2, mean 1" in printed
    assert "  groups whose rewards agree: 1" in printed
    assert cli.main(["lm", "data", "check", path, "--least-answers", "1", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["form"], facts["read"], facts["usable"], facts["dropped"]) == ("groups", 3, 3, {})


def test_check_of_pairs_counts_scores_that_contradict_the_order(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["lm", "data", "check", str(folder / "pairs.jsonl")]) == 0
    printed = capsys.readouterr().out
    assert "pairs with scores: 2" in printed
    assert "pairs whose rejected answer scores at least as high: 1" in printed


def test_strict_stops_at_the_first(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = fails(capsys, "data", "check", str(folder / "pairs.jsonl"), "--strict")
    assert "pairs.jsonl, line 3: chosen and rejected are the same" in said


# -- relabel ------------------------------------------------------------------------------------


def test_goals_double_the_pairs_and_drop_ties(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = run(folder, "relabel", "pairs.jsonl", "--goals", "--template", "<{score}>")
    assert "1 pairs of equal scores left out" in capsys.readouterr().out
    up = {"prompt": "<2.0>\n\na", "chosen": "x", "rejected": "y", **SCORES, "ches": 3.0}
    down = {"prompt": "<1.0>\n\na", "chosen": "y", "rejected": "x", "ches": 3.0}
    down |= {"chosen_score": 1.0, "rejected_score": 2.0}
    assert found == [{**up, "goal": 2.0}, {**down, "goal": 1.0}]


def test_goals_of_conversations_stand_in_the_system_message(folder: Path) -> None:
    ask, answer = {"role": "user", "content": "a"}, [{"role": "assistant", "content": "b"}]
    system = {"role": "system", "content": "Be brief."}
    chat = {"prompt": [ask], "chosen": answer, "rejected": [ask], **SCORES}
    records = [chat, {**chat, "prompt": [system, ask]}]
    path = folder / "chat.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    prompts = [r["prompt"] for r in run(folder, "relabel", "chat.jsonl", "--goals")]
    goal = "Give an answer of score 2."
    assert prompts[0] == [{"role": "system", "content": goal}, ask]
    assert prompts[2] == [{"role": "system", "content": f"Be brief.\n\n{goal}"}, ask]


def test_pairs_of_groups(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (found,) = run(folder, "relabel", "groups.jsonl", "--pairs", "best-worst")
    scores = {"chosen_score": 2.0, "rejected_score": 0.0}
    assert found == {"prompt": "a", "chosen": "y", "rejected": "x", **scores}
    assert "1 groups gave no pair" in capsys.readouterr().out
    every = run(folder, "relabel", "groups.jsonl", "--pairs", "all")
    assert [(r["chosen"], r["rejected"]) for r in every] == [("y", "x"), ("y", "z"), ("z", "x")]
    far = run(folder, "relabel", "groups.jsonl", "--pairs", "all", "--margin", "1")
    assert [(r["chosen"], r["rejected"]) for r in far] == [("y", "x")]


def test_single_answers(folder: Path) -> None:
    found = run(folder, "relabel", "groups.jsonl", "--labels", "1")
    assert [r["label"] for r in found] == [False, True, True, True, True]
    found = run(folder, "relabel", "pairs.jsonl", "--unpair")
    assert [(r["completion"], r["label"]) for r in found] == [("x", True), ("y", False)] * 2
    found = run(folder, "relabel", "groups.jsonl", "--demonstrations")
    assert found[1] == {"prompt": "a", "completion": "y", "score": 2.0}


def test_rewards_are_transformed(folder: Path) -> None:
    log3 = math.log(3)
    record = {"prompt": "a", "completions": ["x", "y"], "rewards": [0.0, log3]}
    record |= {"reference_rewards": [0.0, 0.0], "model_rewards": [[0, 0], [log3, -log3]]}
    record |= {"reference_model_rewards": [[0, 0], [0, 0]]}
    (folder / "one.jsonl").write_text(json.dumps(record))
    expected: dict[tuple[str, ...], list[float]] = {
        ("par",): [0.5, 0.75],
        ("par", "-k", "2"): [0.5, 0.9],
        ("lsc",): [math.log(0.5), math.log(0.75)],
        ("and",): [math.log(0.25), math.log(3 / 16)],
        ("corrected", "--false-positive", "0.1", "--false-negative", "0.4"): [
            -0.2,
            (log3 - 0.1) / 0.5,
        ],
    }
    for words, rewards in expected.items():
        (found,) = run(folder, "relabel", "one.jsonl", "--rewards", *words)
        assert found["rewards"] == pytest.approx(rewards, rel=1e-12)
        assert found["raw_rewards"] == [0.0, log3]


# -- filter -------------------------------------------------------------------------------------


def test_a_bare_filter_writes_what_is_usable(folder: Path) -> None:
    assert run(folder, "filter", "groups.jsonl") == GROUPS[:2]
    assert run(folder, "filter", "pairs.jsonl") == PAIRS[:2]


def test_the_best_and_the_accepted(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = run(folder, "filter", "groups.jsonl", "--best", "2")
    assert [(r["completions"], r["rewards"]) for r in found] == [
        (["y", "z"], [2.0, 1.0]),
        (["x", "y"], [1.0, 1.0]),
    ]
    assert "1 answers left out" in capsys.readouterr().out
    cold = run(folder, "filter", "groups.jsonl", "--rejection", "1e-6")
    assert [r["completions"] for r in cold] == [["y"], ["x", "y"]]
    assert run(folder, "filter", "groups.jsonl", "--rejection", "1e9") == GROUPS[:2]


def test_drawing_again_follows_the_seed(folder: Path) -> None:
    words = ("filter", "groups.jsonl", "--resample", "best-worst")
    first, same = run(folder, *words), run(folder, *words)
    assert first == same
    assert {a for r in first[:1] for a in r["completions"]} <= {"x", "y"}  # z is in the middle
    seeds = [str(run(folder, *words, "--seed", str(seed))) for seed in range(8)]
    assert len(set(seeds)) > 1


def test_pairs_by_gap_and_by_a_column(folder: Path) -> None:
    assert run(folder, "filter", "pairs.jsonl", "--min-gap", "0.5") == PAIRS[:1]
    records = [{"prompt": "a", "completion": c, "ches": float(i)} for i, c in enumerate("abcd")]
    path = folder / "scored.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records[::-1]))
    assert run(folder, "filter", "scored.jsonl", "--lowest", "ches") == records[:1]
    half = run(folder, "filter", "scored.jsonl", "--lowest", "ches", "--share", "0.5")
    assert half == [records[1], records[0]]


# -- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["data", "chek"], "no command 'lm data chek', did you mean 'check'"),
        (["dat"], "no command 'lm dat', did you mean 'data'"),
        (["data", "check", "none.jsonl"], "none.jsonl does not exist"),
        (["data", "relabel", "G", "--out", "O"], "one of the arguments --goals"),
        (["data", "relabel", "G", "--goals", "--out", "O"], "--goals takes pairs, and "),
        (["data", "relabel", "P", "--pairs", "all", "--out", "O"], "--pairs takes groups"),
        (["data", "relabel", "P", "--goals", "--out", "P"], "exists and is not overwritten"),
        (["data", "relabel", "P", "--unpair", "--out", "O.txt"], "is of no known kind"),
        (
            ["data", "relabel", "P", "--unpair", "-k", "2", "--out", "O"],
            "-k has a meaning with --rewards par alone",
        ),
        (
            ["data", "filter", "P", "--share", "0.5", "--out", "O"],
            "--share has a meaning with --lowest alone",
        ),
        (
            ["data", "relabel", "P", "--goals", "--template", "{x}", "--out", "O"],
            "has no {score} alone",
        ),
        (
            ["data", "relabel", "G", "--rewards", "par", "--out", "O"],
            "group 1 has no column 'reference_rewards'; par needs it",
        ),
        (
            [*"data relabel G --rewards corrected --false-positive 1 --out O".split()],
            "error rates 1 and 0 must be at least 0",
        ),
        (["data", "filter", "G", "--rejection", "0", "--out", "O"], "beta 0 must be above 0"),
        (["data", "filter", "G", "--best", "0", "--out", "O"], "keep 1 or more"),
        (
            ["data", "filter", "P", "--lowest", "ches", "--out", "O"],
            "example 2 has no number in the column 'ches'; score the file first",
        ),
        (["data", "filter", "P", "--min-gap", "9", "--out", "O"], "nothing of"),
        (["methods", "zzz"], "of any method contains 'zzz'"),
    ],
)
def test_mistakes_are_one_line(
    words: list[str], message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = {"G": "groups.jsonl", "P": "pairs.jsonl", "O": "o.jsonl", "O.txt": "o.txt"}
    said = fails(capsys, *(str(folder / names[w]) if w in names else w for w in words))
    assert message in said
    assert not (folder / "o.jsonl").exists()


# -- help and methods ---------------------------------------------------------------------------


@pytest.mark.parametrize("words", [[], ["data"]])
def test_help(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["lm", *words]) == 2
    assert cli.main(["lm", *words, "--help"]) == 0
    assert f"usage: offrl lm {' '.join(words)}".rstrip() in capsys.readouterr().out


def test_methods_are_listed_with_their_data(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["lm", "methods"]) == 0
    printed = capsys.readouterr().out
    for methods in (*METHODS.values(), GROUP_METHODS):
        assert all(f" {name} " in printed for name in methods)
    assert "not built, and why:" in printed
    for word, name in (("Robust DPO", "rdpo"), ("dr. grpo", "centred"), ("NFT", "nft")):
        assert cli.main(["lm", "methods", word]) == 0
        printed = capsys.readouterr().out
        assert f" {name} " in printed and len(printed.splitlines()) < 6
