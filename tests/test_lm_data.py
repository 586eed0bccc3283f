"""Files of preferences, labels and scored answers: what is read, refused, dropped and counted."""

import gzip
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from offrl.errors import ConfigError, DataError, MissingDependencyError
from offrl.lm.data import (
    Demonstration,
    Group,
    Labelled,
    Pair,
    load_examples,
    match_behavior,
)
from offrl.lm.records import read_records, write_records

PAIR = {"prompt": "2 + 2?", "chosen": "4", "rejected": "5"}
LABEL = {"prompt": "2 + 2?", "completion": "4", "label": True}
GROUP = {"prompt": "2 + 2?", "completions": ["4", "5"], "rewards": [1.0, 0.0]}
DEMONSTRATION = {"prompt": "2 + 2?", "completion": "4"}


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def lines(path: Path, *records: Any) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


# -- what is read -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("record", "form", "row"),
    [
        (PAIR, "pairs", Pair("2 + 2?", "4", "5")),
        (LABEL, "labels", Labelled("2 + 2?", "4", True)),
        (GROUP, "groups", Group("2 + 2?", ("4", "5"), (1.0, 0.0))),
        (DEMONSTRATION, "demonstrations", Demonstration("2 + 2?", "4")),
    ],
)
def test_each_form_is_known_by_its_columns_and_comes_back(
    record: dict[str, Any], form: str, row: Any, tmp_path: Path
) -> None:
    found = load_examples(lines(tmp_path / "a.jsonl", record))
    assert (found.form, found.rows) == (form, (row,))
    write_records(tmp_path / "b.jsonl", (row.record() for row in found.rows))
    assert json.loads((tmp_path / "b.jsonl").read_text()) == record


def test_other_columns_are_kept_and_known_names_of_scores_understood() -> None:
    record = {**PAIR, "score_chosen": 3, "score_rejected": 1.5, "id": "a"}
    (pair,) = load_examples([record]).rows
    assert pair == Pair("2 + 2?", "4", "5", 3.0, 1.5, {"id": "a"})
    assert record["id"] == "a"  # what was given is not changed
    again = load_examples([pair.record()]).rows
    assert again == (pair,)


def test_conversations_and_what_they_share_is_the_prompt() -> None:
    chosen = [user("hi"), {"role": "assistant", "content": "hello"}]
    rejected = [user("hi"), {"role": "assistant", "content": "what?"}]
    (pair,) = load_examples([{"chosen": chosen, "rejected": rejected}]).rows
    assert pair == Pair([user("hi")], chosen[1:], rejected[1:])
    explicit = {"prompt": [user("hi")], "chosen": chosen[1:], "rejected": rejected[1:]}
    assert load_examples([explicit]).rows == (pair,)


def test_the_same_conversation_twice_leaves_an_answer() -> None:
    both = [user("hi"), {"role": "assistant", "content": "hello"}]
    with pytest.raises(DataError, match="1, chosen and rejected are the same"):
        load_examples([{"chosen": both, "rejected": both}])


def test_a_form_can_be_stated() -> None:
    found = load_examples([LABEL], "demonstrations")
    assert found.rows == (Demonstration("2 + 2?", "4", {"label": True}),)
    with pytest.raises(ConfigError, match="no form 'pair', did you mean 'pairs'"):
        load_examples([PAIR], "pair")


def test_compressed_lines_blank_lines_and_a_byte_order_mark(tmp_path: Path) -> None:
    text = "\ufeff" + json.dumps(PAIR) + "\n\n" + json.dumps({**PAIR, "rejected": "ü"}) + "\n"
    (tmp_path / "a.jsonl").write_text(text, encoding="utf-8")
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    plain, packed = (load_examples(tmp_path / name) for name in ("a.jsonl", "b.jsonl.gz"))
    assert plain.rows == packed.rows and len(plain.rows) == 2
    assert [place for place, _ in read_records(tmp_path / "a.jsonl")] == [
        f"{tmp_path / 'a.jsonl'}, line {i}" for i in (1, 3)
    ]


def test_a_folder_is_its_files_in_order(tmp_path: Path) -> None:
    for name, answer in (("b", "y"), ("a", "x")):
        lines(tmp_path / f"{name}.jsonl", {**DEMONSTRATION, "completion": answer})
    (tmp_path / "README.md").write_text("not data")
    assert [row.completion for row in load_examples(tmp_path).rows] == ["x", "y"]
    (tmp_path / "c.parquet").write_bytes(b"")
    with pytest.raises(DataError, match="several kinds"):
        load_examples(tmp_path)


# -- what is dropped ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bad", "good", "reason"),
    [
        ({**PAIR, "rejected": "4"}, PAIR, "chosen and rejected are the same"),
        ({**PAIR, "rejected": " \n"}, PAIR, "an answer is empty"),
        ({**PAIR, "chosen": [], "rejected": [user("x")]}, PAIR, "an answer is empty"),
        ({**LABEL, "completion": ""}, LABEL, "the answer is empty"),
        ({**DEMONSTRATION, "completion": ""}, DEMONSTRATION, "the answer is empty"),
        (
            {**GROUP, "completions": ["4"], "rewards": [1]},
            GROUP,
            "a group of one where 2 answers are needed",
        ),
        (
            {**GROUP, "completions": [], "rewards": []},
            GROUP,
            "a group of 0 where 2 answers are needed",
        ),
    ],
)
def test_what_teaches_nothing_is_dropped_and_counted(
    bad: dict[str, Any], good: dict[str, Any], reason: str
) -> None:
    found = load_examples([good, bad, good, bad])
    report = found.report
    assert (report.read, report.kept, len(found.rows)) == (4, 2, 2)
    assert report.dropped == {reason: 2}
    assert report.lines()[1] == f"  dropped: 2, {reason} (first: record 2)"
    with pytest.raises(DataError, match=f"record 2: {reason}; mend it"):
        load_examples([good, bad], refuse=True)
    with pytest.raises(DataError, match=f"no usable example is left.*{reason}"):
        load_examples([bad])


@pytest.mark.parametrize("reward", [math.nan, math.inf, None])
def test_an_answer_without_a_reward_leaves_its_group(reward: float | None) -> None:
    record = {"prompt": "x", "completions": ["a", "b", "c"], "rewards": [1, reward, 0]}
    record |= {"behavior_logps": [[-1.0], [-2.0], [-3.0]], "model_rewards": [[1], [2], [3]]}
    found = load_examples([record])
    expected = Group("x", ("a", "c"), (1.0, 0.0), ([-1.0], [-3.0]), {"model_rewards": [[1], [3]]})
    assert found.rows == (expected,)
    assert found.report.answers == {"a reward is not a finite number": 1}
    with pytest.raises(DataError, match="record 1: a reward is not a finite number"):
        load_examples([record], refuse=True)


def test_a_group_that_loses_all_but_one_answer_is_a_group_of_one() -> None:
    record = {**GROUP, "rewards": [1.0, math.nan]}
    with pytest.raises(DataError, match="a group of one"):
        load_examples([record])
    (group,) = load_examples([record], least_answers=1).rows
    assert group == Group("2 + 2?", ("4",), (1.0,))


# -- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"prompt": "x", "chosen": "a"}, "columns prompt, chosen, which are of no form; pairs: "),
        ({}, r"columns \(none\), which are of no form"),
        ({"chosen": "a", "rejected": "b"}, "no column 'prompt'; pairs of strings need it"),
        (
            {"chosen": [user("a")], "rejected": [user("b")]},
            "share no first message, so have no prompt",
        ),
        ({**PAIR, "chosen": 4}, "chosen is 4; it must be a string or a list of messages"),
        ({**PAIR, "prompt": [{"role": "user"}]}, "each must have a role and a content"),
        ({**PAIR, "chosen_score": "good"}, "chosen_score is 'good'; it must be a number"),
        ({**LABEL, "label": 1}, "label is 1; it must be true or false"),
        ({**GROUP, "rewards": [1.0]}, "1 rewards for 2 completions; there must be one for each"),
        ({**GROUP, "completions": "4"}, "completions is '4'; it must be a list"),
        ({**GROUP, "rewards": [True, False]}, r"rewards\[0\] is True; it must be a number"),
        ({**GROUP, "behavior_logps": [[-1.0]]}, "1 behavior_logps for 2 completions"),
    ],
)
def test_what_contradicts_its_form_is_one_error(record: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=f"record 1.*{message}"):
        load_examples([record])


def test_a_later_record_of_another_form_is_refused() -> None:
    with pytest.raises(
        DataError, match=r"record 2 has no column 'chosen' but prompt, compl.*pairs need"
    ):
        load_examples([PAIR, LABEL])
    with pytest.raises(
        DataError, match="record 1 has no column 'completion' but prompt, completions;"
    ):
        load_examples([{"prompt": "x", "completions": "y"}], "demonstrations")


def test_files_that_are_not_what_they_say(tmp_path: Path) -> None:
    cases: dict[str, tuple[bytes, str]] = {
        "a.jsonl": (b'{"prompt": \n', "line 1 is not JSON"),
        "b.jsonl": (b'[{"prompt": "x"}]\n', "must be an object"),
        "c.jsonl": (b"[\n{}]", "a JSON array must be written as JSON lines"),
        "d.jsonl": (b"\xff\xfe\n", "cannot be read after line 0"),
        "e.jsonl": (b"\n \n", "holds no records"),
        "f.jsonl.gz": (b"plain", "cannot be read"),
        "g.csv": (b"prompt,chosen", "is of no known kind"),
        "h.jsonl": (b"[" * 100_000, "line 1 is not JSON"),
    }
    for name, (content, message) in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=message) as error:
            load_examples(tmp_path / name)
        assert name in str(error.value)
    with pytest.raises(DataError, match="does not exist"):
        load_examples(tmp_path / "none.jsonl")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no file that ends in"):
        load_examples(tmp_path / "empty")
    with pytest.raises(DataError, match="record 1 is a str"):
        load_examples(["x"])


def test_log_probabilities_of_another_tokenizer_are_noticed() -> None:
    group = Group("x", ("a", "b"), (1.0, 0.0), ([-1.0, -2.0], -3.5))
    match_behavior(group, (2, 7), "row 3")  # the second has a sum, which says nothing
    with pytest.raises(DataError, match="row 3: answer 1 has 2 behavior_logps and 3 tokens"):
        match_behavior(group, (3, 7), "row 3")


# -- writing ------------------------------------------------------------------------------------


def test_nothing_is_overwritten_and_no_half_file_is_left(tmp_path: Path) -> None:
    path = lines(tmp_path / "a.jsonl", PAIR)
    with pytest.raises(DataError, match="exists and is not overwritten"):
        write_records(path, [PAIR])
    with pytest.raises(DataError, match=r"was not written: a value cannot be stored"):
        write_records(tmp_path / "b.jsonl", [PAIR, {"x": math.nan}])
    with pytest.raises(DataError, match=r"c.txt is of no known kind"):
        write_records(tmp_path / "c.txt", [PAIR])
    with pytest.raises(DataError, match=r"choose a name that ends in .jsonl or .parquet"):
        write_records(tmp_path / "c.arrow", [PAIR])
    with pytest.raises(DataError, match="was not written"):
        write_records(tmp_path / "no" / "folder.jsonl", [PAIR])
    assert [file.name for file in tmp_path.iterdir()] == ["a.jsonl"]
    assert write_records(tmp_path / "d.jsonl.gz", [PAIR, PAIR]) == 2
    assert len(load_examples(tmp_path / "d.jsonl.gz").rows) == 2


# -- Parquet and Arrow --------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow"])
def test_without_pyarrow_the_extra_is_named(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / name).write_bytes(b"PAR1")
    with pytest.raises(MissingDependencyError, match=r"needs pyarrow; install .*offrl\[lm\]"):
        load_examples(tmp_path / name)
    with pytest.raises(MissingDependencyError, match="needs pyarrow"):
        write_records(tmp_path / "new.parquet", [PAIR])
    assert [file.name for file in tmp_path.iterdir()] == [name]


def _stream(path: Path, records: list[dict[str, Any]]) -> None:
    pa = pytest.importorskip("pyarrow")
    table = pa.Table.from_pylist(records)
    with pa.ipc.new_stream(str(path), table.schema) as writer:
        writer.write_table(table)


def _parquet(path: Path, records: list[dict[str, Any]]) -> None:
    pytest.importorskip("pyarrow")
    write_records(path, records)


@pytest.mark.parametrize(("kind", "write"), [("parquet", _parquet), ("arrow", _stream)])
def test_tables_hold_the_same_examples(
    kind: str, write: Callable[[Path, list[dict[str, Any]]], None], tmp_path: Path
) -> None:
    record = {**GROUP, "behavior_logps": [[-1.0, -2.0], [-0.5]], "reference_rewards": [0.5]}
    chat = {"prompt": [user("hi")], "chosen": [user("a")], "rejected": [user("b")]}
    for number, records in enumerate(([record, record], [chat], [LABEL])):
        path = tmp_path / f"{number}.{kind}"
        write(path, records)
        assert load_examples(path).rows == load_examples(records).rows
    folder = tmp_path / "saved"
    folder.mkdir()
    write(folder / f"data-00000-of-00001.{kind}", [PAIR])
    (folder / "state.json").write_text("{}")
    assert load_examples(folder).rows == (Pair("2 + 2?", "4", "5"),)
    with pytest.raises(DataError, match="row 2: chosen and rejected are the same"):
        bad = tmp_path / f"bad.{kind}"
        write(bad, [PAIR, {**PAIR, "rejected": "4"}])
        load_examples(bad, refuse=True)
    damaged = tmp_path / f"damaged.{kind}"
    damaged.write_bytes((tmp_path / f"0.{kind}").read_bytes()[:-40][40:])
    with pytest.raises(DataError, match="cannot be read as"):
        load_examples(damaged)
