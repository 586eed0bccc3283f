"""A file is the old one or the new one, whatever happens in between."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from offrl.errors import RunError
from offrl.files import cache_folder, new_folder, read_json, write_json


def test_json_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"x": 1})
    with pytest.raises(TypeError):
        write_json(path, {"x": [1] * 10_000, "y": object()})
    assert read_json(path) == {"x": 1}
    assert list(tmp_path.iterdir()) == [path]
    write_json(path, [2])
    assert path.read_text() == json.dumps([2], indent=1) + "\n"


@pytest.mark.parametrize("content", ["", "{", '{"a": 1}}', "\udcff"])
def test_damaged_json_is_named(content: str, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(RunError, match=r"config\.json cannot be read as JSON"):
        read_json(path)


def test_missing_json_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"config\.json does not exist"):
        read_json(tmp_path / "config.json")
    with pytest.raises(RunError, match="cannot be read"):
        read_json(tmp_path)


def test_a_folder_appears_only_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "run"
    with pytest.raises(ZeroDivisionError), new_folder(path) as partial:
        (partial / "a").write_text("half")
        assert not path.exists()
        raise ZeroDivisionError
    assert list(path.parent.iterdir()) == []
    with new_folder(path) as partial:
        (partial / "below").mkdir()
        (partial / "below" / "a").write_text("whole")
    assert (path / "below" / "a").read_text() == "whole"
    assert list(path.parent.iterdir()) == [path]


def test_a_folder_takes_no_other_s_place(tmp_path: Path) -> None:
    path = tmp_path / "run"
    path.mkdir()
    (path / "mine").write_text("mine")
    with pytest.raises(OSError, match="not empty"), new_folder(path) as partial:
        (partial / "a").write_text("a")
    assert [p.name for p in tmp_path.rglob("*")] == ["run", "mine"]


def test_what_a_killed_process_left_is_swept_away(tmp_path: Path) -> None:
    with subprocess.Popen(["true"]) as ended:
        pass
    for name in (f".run.{ended.pid}.partial", f".run.{os.getpid()}.partial"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "old").write_text("old")
    with new_folder(tmp_path / "run") as partial:
        (partial / "new").write_text("new")
    assert [p.name for p in sorted(tmp_path.rglob("*"))] == ["run", "new"]


def test_what_another_process_is_filling_is_left_alone(tmp_path: Path) -> None:
    kept = [f".run.{os.getppid()}.partial", ".run.x.partial", f".run.{10**30}.partial"]
    kept += [f".run-2.{2**22}.partial"]  # of another folder
    for name in kept:
        (tmp_path / name).mkdir()
    with new_folder(tmp_path / "run"):
        pass
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([*kept, "run"])


def test_the_cache_goes_where_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    monkeypatch.delenv("OFFRL_CACHE", raising=False)
    assert cache_folder() == Path("/x/offrl")
    monkeypatch.setenv("OFFRL_CACHE", "/y")
    assert cache_folder() == Path("/y")
