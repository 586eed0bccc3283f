"""`offrl data list | info | import`, as a user types them."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import minari
import numpy as np
import pytest
from dataset_files import d4rl_arrays, write_d4rl

from offrl.cli import main
from offrl.datasets.inspection import inspect
from offrl.datasets.loading import load_dataset

EPISODES = [(4, "terminal"), (3, "timeout"), (5, "none"), (6, "terminal")]


@pytest.fixture(autouse=True)
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("OFFRL_CACHE", str(tmp_path / "cache"))
    for variable in ("OFFRL_DATASETS", "D4RL_DATASET_DIR", "MINARI_DATASETS_PATH"):
        monkeypatch.delenv(variable, raising=False)


def _file(tmp_path: Path) -> Path:
    arrays = d4rl_arrays(EPISODES)
    arrays["actions"][:9, 0] = 1.0
    arrays["rewards"][:4] = (1.0, 2.0, 3.0, 4.0)
    return write_d4rl(tmp_path / "four.hdf5", arrays)


def test_list_prints_names_and_where_they_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", "list", "--data-dir", str(_file(tmp_path).parent)]) == 0
    printed = capsys.readouterr().out
    for part in ("hopper-medium-replay-v2", "download, 76 MB", "antmaze-large-play-v2", "kitchen"):
        assert part in printed
    assert f"at {tmp_path / 'four.hdf5'}" in printed
    assert main(["data", "list", "pen-human"]) == 0
    printed = capsys.readouterr().out
    assert "pen-human-v1" in printed and "hopper" not in printed
    assert main(["data", "list", "no-such-thing"]) == 2


def test_info_of_equal_returns_however_large_and_of_discrete_actions(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arrays = d4rl_arrays([(3, "timeout"), (3, "timeout")])
    for reward in (1e30, 0.0):
        path = tmp_path / f"{reward:g}.npz"
        np.savez(path, **arrays | {"rewards": np.full(6, reward), "actions": np.arange(6) % 3})
        picture = tmp_path / f"{reward:g}.png"
        assert main(["data", "info", str(path), "--histogram", str(picture)]) == 0
        printed = capsys.readouterr().out
        assert "3 discrete ones, which no agent learns from; from 0 to 2" in printed
        assert printed.count("#" * 50) == 1 and picture.exists()


def test_info_prints_sizes_both_counts_and_problems(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", "info", str(_file(tmp_path))]) == 0
    printed = capsys.readouterr().out
    for part in (
        "18 steps in 4 episodes",
        "2 terminated, 1 truncated, 1 unmarked",
        "18 to learn from; D4RL's qlearning_dataset: 16",
        "1 ends of episodes are not marked",
        "25.0 % of components at their bounds (most in component 0: 50.0 %)",
        "returns by episode",
    ):
        assert part in printed


def test_an_end_with_both_flags_counts_as_terminated(tmp_path: Path) -> None:
    arrays = d4rl_arrays([(4, "both"), (3, "terminal"), (2, "timeout")])
    ends = inspect(load_dataset(write_d4rl(tmp_path / "a.hdf5", arrays)))["ends"]
    assert ends == {"terminated": 2, "truncated": 1, "unmarked": 0, "final_known": 3}


def test_info_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "info", str(_file(tmp_path)), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["steps"], facts["transitions"], facts["d4rl_transitions"]) == (18, 18, 16)
    assert facts["actions"]["saturated_by_component"][0] == 0.5
    assert facts["lengths"]["max"] == 6.0
    expected = load_dataset(_file(tmp_path)).returns()
    assert facts["returns"]["mean"] == pytest.approx(expected.mean())
    assert facts["returns"]["median"] == pytest.approx(np.median(expected))


def test_what_reading_does_not_refuse_is_listed(tmp_path: Path) -> None:
    arrays = d4rl_arrays([(4, "timeout"), (1, "timeout"), (6, "terminal")], next_observations=False)
    arrays["observations"][:, 1] = 7.0
    arrays["actions"][:, 0] = 0.5
    arrays["rewards"][:] = 2.0
    facts = inspect(load_dataset(write_d4rl(tmp_path / "a.hdf5", arrays), time_limit=5))
    problems = "\n".join(facts["problems"])
    for part in (
        "observation components [1] never change",
        "action components [0] never change",
        "1 episodes have one step",
        "every reward is 2",
        "2 steps are not learnt from",
        "1 episodes are longer than the time limit of 5 steps",
        "2 episodes were cut before the time limit of 5 steps",
    ):
        assert part in problems


def test_scores_where_there_are_references(tmp_path: Path) -> None:
    arrays = d4rl_arrays([(40, "terminal"), (30, "terminal")], obs_dim=11, act_dim=3)
    arrays["rewards"][:] = 3234.3 / 40
    facts = inspect(load_dataset(write_d4rl(tmp_path / "hopper_medium-v2.hdf5", arrays)))
    assert facts["scores"]["max"] == pytest.approx(100.0, abs=1e-4)
    arrays = d4rl_arrays([(40, "terminal"), (30, "terminal")], obs_dim=60, act_dim=9)
    name = "kitchen_microwave_kettle_light_slider-v0.hdf5"
    facts = inspect(load_dataset(write_d4rl(tmp_path / name, arrays)))
    assert "scores" not in facts
    assert "not on the reference's scale" in facts["problems"][-1]


def test_the_histogram_is_drawn_and_never_overwrites(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "returns.png"
    command = ["data", "info", str(_file(tmp_path)), "--histogram", str(picture)]
    assert main(command) == 0
    content = picture.read_bytes()
    assert content.startswith(b"\x89PNG")
    assert main(command) == 2
    assert "is not overwritten" in capsys.readouterr().err
    assert picture.read_bytes() == content
    command[-1] = str(tmp_path / "returns.tiff-or-so")
    assert main(command) == 2


def test_import_writes_what_minari_and_we_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = _file(tmp_path), tmp_path / "out"
    command = ["data", "import", str(source), "--out", str(out), "--id", "mine/four-v2"]
    assert main(command) == 0
    assert "18 steps in 4 episodes" in capsys.readouterr().out
    ours, theirs = load_dataset(out), minari.MinariDataset(out / "data")
    assert theirs.spec.dataset_id == "mine/four-v2"
    np.testing.assert_array_equal(ours.rows[:, :-1], load_dataset(source).rows[:, :-1])
    assert ours.truncated.nonzero()[0].tolist() == [6, 11]  # Minari marks every end
    assert [e.rewards.sum() for e in theirs] == pytest.approx(ours.returns().tolist(), rel=1e-6)
    assert main(command) == 2
    assert "is not overwritten" in capsys.readouterr().err


def test_import_of_stated_columns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arrays = d4rl_arrays([(5, "terminal"), (5, "terminal")])
    arrays["actions"] *= 3.0
    np.savez(
        tmp_path / "a.npz",
        o=arrays["observations"],
        a=arrays["actions"],
        r=arrays["rewards"],
        t=arrays["terminals"],
    )
    command = ["data", "import", str(tmp_path / "a.npz"), "--out", str(tmp_path / "out")]
    columns = ["--observations", "o", "--actions", "a", "--rewards", "r", "--terminals", "t"]
    refusals = [
        ([], "has no column 'observations'"),
        (columns[:2], "--actions KEY, --rewards KEY is missing"),
        (columns, "--out-of-bounds clip|keep"),
        ([*columns, "--action-bounds", "-3", "3"], "--time-limit 5"),
    ]
    for arguments, message in refusals:
        assert main([*command, *arguments]) == 2
        assert message in capsys.readouterr().err
        assert not (tmp_path / "out").exists()
    whole = [*columns, "--action-bounds", "-3", "3", "--time-limit", "5"]
    assert main([*command, *whole]) == 0
    dataset = load_dataset(tmp_path / "out")
    assert dataset.spec.action_high == (3.0, 3.0)
    assert dataset.truncated.sum() == 2 and not dataset.terminated.any()


@pytest.mark.parametrize("arguments", [["infoo"], ["info", "hopper-medum-v2"], ["list", "@"]])
def test_errors_are_one_line_without_a_traceback(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", *arguments]) == 2
    assert capsys.readouterr().err.startswith("offrl: ")


def test_reading_names_needs_no_torch(tmp_path: Path) -> None:
    script = (
        "import sys\nfrom offrl.cli import main\nmain(['data', 'list', 'hopper'])\n"
        "assert not {'torch', 'minari', 'gymnasium', 'matplotlib'} & set(sys.modules)"
    )
    done: Any = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
