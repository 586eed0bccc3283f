"""The commands as a user types them: what they refuse, and what they leave behind."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dataset_files import d4rl_arrays, write_d4rl

from offrl import __version__
from offrl.cli import COMMANDS, main
from offrl.files import read_json
from offrl.train_cli import _first_sentence

EPISODES = [(10, "terminal"), (12, "timeout"), (9, "timeout")] * 4
SHORT = [
    "--steps",
    "4",
    "--batch-size",
    "4",
    "--log-every",
    "2",
    "--device",
    "cpu",
    "--hidden",
    "4",
]


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data files, sound and damaged."""
    folder = tmp_path_factory.mktemp("files")
    sound = d4rl_arrays(EPISODES)
    write_d4rl(folder / "sound.hdf5", sound)
    rewards = sound["rewards"].copy()
    rewards[5] = np.nan
    write_d4rl(folder / "nan.hdf5", {**sound, "rewards": rewards})
    write_d4rl(folder / "unequal.hdf5", {**sound, "rewards": rewards[:-3]})
    whole = (folder / "sound.hdf5").read_bytes()
    (folder / "truncated.hdf5").write_bytes(whole[: len(whole) // 2])
    # 17 and 6 entries, as HalfCheetah has them; the name says which of D4RL's sets it is.
    write_d4rl(folder / "halfcheetah-medium-v2.hdf5", d4rl_arrays(EPISODES, obs_dim=17, act_dim=6))
    return folder


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line with which a command refuses."""
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("offrl: ") and error.count("\n") == 1 and error.endswith("\n")
    return error


REFUSED = {
    "truncated": (["--dataset", "truncated.hdf5"], "truncated.hdf5 is not a whole HDF5 file"),
    "nan": (["--dataset", "nan.hdf5"], "'rewards' has 1 values that are not finite"),
    "unequal": (["--dataset", "unequal.hdf5"], "columns of unequal length"),
    "no file": (["--dataset", "nosuch.hdf5"], "nosuch.hdf5 does not exist"),
    "dataset": (["--dataset", "hoper-medium-v2"], "did you mean 'hopper-medium-v2'"),
    "the package's own folder": (["--dataset", ".."], "not a Minari dataset"),
    "agent": (["--agent", "iqll"], "there is no agent 'iqll', did you mean 'iql'"),
    "no class": (["--agent", "os:path"], "os:path is not a subclass of offrl.Agent"),
    "no module": (["--agent", "nosuch:X"], "No module named 'nosuch'"),
    "half a name": (["--agent", ":X"], "cannot be imported"),
    "setting": (["--stepz", "3"], "no setting '--stepz', did you mean '--steps'"),
    "another agent's": (["--agent", "bc", "--expectile", "0.7"], "no setting '--expectile'"),
    "leftover": (["--seed", "1", "junk"], "no setting 'junk'"),
    "recipe": (["--recipe", "locomotio"], "did you mean 'locomotion'"),
    "environment": (["--env", "Hoper-v5"], "did you mean 'Hopper-v5'"),
    "spaces": (["--env", "Pendulum-v1"], "Pendulum-v1 does not match the dataset: actions: 1"),
    "device": (["--device", "gpu"], "there is no device 'gpu'; use auto, cpu, cuda"),
    "meta": (["--device", "meta"], "there is no device 'meta'"),
    "backend": (["--backend", "jit"], "invalid choice 'jit'"),
    "text for a number": (["--steps", "many"], "--steps: invalid literal"),
    "fraction for a count": (["--steps", "1.5"], "--steps: invalid literal"),
    "no value": (["--steps"], "--steps"),
    "out of range": (["--steps", "0"], "TrainConfig.steps is 0; it must be in [1, inf)"),
    "not a number": (["--gamma", "nan"], "PRDCConfig.gamma is nan"),
    "no units": (["--hidden", "0"], "each needs 1 or more"),
    "fraction": (["--validation", "1.2"], "validation fraction of 1.2"),
    "negative fraction": (["--validation", "-1"], "validation fraction of -1"),
    "small fraction": (["--validation", "0.01"], "0.01 of 12 episodes rounds to 0"),
    "time limit": (["--time-limit", "soon"], "--time-limit"),
    "best": (["--best-by", "eval/return"], "there is no environment to evaluate in"),
    "best unknown": (["--best-by", "return"], "TrainConfig.best_by is 'return'"),
    "best unmeasured": (["--best-by", "validation/td_eror"], "'validation/td_error'"),
    "nothing held out": (
        ["--best-by", "validation/action_error", "--validation", "0"],
        "no episodes are held out",
    ),
    "resume": (["--resume", "run"], "--resume takes no other setting"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_mistake_is_one_line_and_leaves_nothing(
    case: str,
    files: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments, said = REFUSED[case]
    monkeypatch.chdir(tmp_path)
    arguments = [str(files / a) if a.endswith(".hdf5") else a for a in arguments]
    given = [] if "--agent" in arguments else ["--agent", "prdc"]
    given += [] if "--dataset" in arguments else ["--dataset", str(files / "sound.hdf5")]
    assert said in refused(["train", *given, *SHORT, *arguments, "--out", "run"], capsys)
    assert list(tmp_path.iterdir()) == []


def test_more_memory_than_there_is(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = str(files / "sound.hdf5"), str(tmp_path / "run")
    command = ["train", "--agent", "bc", "--dataset", data, "--out", out]
    assert main([*command, "--batch-size", "1000000000000"]) == 2
    *_, last = capsys.readouterr().err.splitlines()  # after the bar
    assert last.startswith("offrl: not enough memory (Unable to allocate")
    assert list(tmp_path.iterdir()) == []


def test_cuda_is_refused_where_there_is_none(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    monkeypatch.chdir(tmp_path)
    data = str(files / "sound.hdf5")
    for name in ("cuda", "cuda:0", f"cuda:{10**30}"):
        error = refused(["train", "--agent", "bc", "--dataset", data, "--device", name], capsys)
        assert f"device '{name}' cannot be used" in error and "--device auto" in error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("place", ["folder", "file", "link", "below a file", "long", "read-only"])
def test_a_place_that_is_taken_or_cannot_be_written(
    place: str, files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    if place == "folder":
        out.mkdir()
    elif place in ("file", "below a file"):
        out.write_text("mine")
    elif place == "link":
        out.symlink_to(tmp_path / "nowhere")
    elif place == "long":
        out = tmp_path / ("x" * 300)
    elif place == "read-only":
        out = Path("/proc/run")  # root, too, can make nothing here
    before = sorted(tmp_path.iterdir())
    target = out / "run" if place == "below a file" else out
    data = str(files / "sound.hdf5")
    error = refused(
        ["train", "--agent", "bc", "--dataset", data, *SHORT, "--out", str(target)], capsys
    )
    taken = place in ("folder", "file", "link")
    assert ("exists already and is not overwritten" if taken else "cannot be made") in error
    assert sorted(tmp_path.iterdir()) == before
    if place in ("file", "below a file"):
        assert out.read_text() == "mine"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["trian"], "there is no command 'trian', did you mean 'train'?"),
        (["--flag"], "there is no command '--flag'"),
        (["train", "--dataset", "x"], "no agent was named"),
        (["train", "--agent", "bc"], "--dataset"),
        (["train", "--agent"], "train: argument --agent: expected one argument"),
        (["train", "--resume"], "train: argument --resume: expected one argument"),
        (["evaluate"], "evaluate: the following arguments are required: RUN"),
        (["evaluate", "nosuch"], "nosuch: no such directory"),
        (["evaluate", "nosuch", "--episodes", "x"], "--episodes: invalid int value: 'x'"),
        (["plot", "nosuch"], "required: --out"),
        (["plot", "nosuch", "--out", "x.png"], "nosuch: no such directory"),
        (["plot", "nosuch", "--out", "x.doc"], "must end in .png, .pdf, .svg"),
        (["data", "inof"], "there is no command 'data inof', did you mean 'info'?"),
        (["data", "info"], "data info: the following arguments are required: dataset"),
        (["data", "info", "nosuch"], "unknown dataset 'nosuch'"),
        (["data", "collect"], "data collect: the following arguments are required"),
        (["demo", "--step", "x"], "invalid int value: 'x'"),
    ],
)
def test_every_command_refuses_in_one_line(
    arguments: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert said in refused(arguments, capsys)
    assert list(tmp_path.iterdir()) == []


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["--help"], ["-h"]):
        assert main(arguments) == 0
        printed = capsys.readouterr().out
        assert all(f"  {name} " in printed for name in COMMANDS)
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"offrl {__version__}\n"
    assert main(["train", "--help"]) == 0
    usage = capsys.readouterr().out
    assert "agents: bc, percent_bc, td3_bc, iql, prdc" in usage
    for arguments in (["--resume", "run", "--help"], ["-h", "--resume", "run"]):
        assert main(["train", *arguments]) == 0
        assert capsys.readouterr().out == usage


@pytest.mark.parametrize(
    ("agent", "own", "others"),
    [
        ("prdc", {"alpha", "beta", "policy-delay"}, {"expectile", "top-fraction"}),
        ("iql", {"expectile", "beta"}, {"alpha", "policy-delay", "top-fraction"}),
        ("bc", {"top-fraction"}, {"alpha", "gamma", "expectile"}),
    ],
)
def test_help_of_an_agent_shows_its_settings_and_no_others(
    agent: str, own: set[str], others: set[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["train", "--agent", agent, "--help"])
    assert not stop.value.code
    words = set(capsys.readouterr().out.replace(",", " ").split())
    shared = {"dataset", "env", "recipe", "out", "steps", "seed", "seeds", "batch-size", "device"}
    shared |= {"best-by", "checkpoint-every", "validation", "split-seed", "out-of-bounds"}
    assert {f"--{name}" for name in shared | own} <= words
    assert not {f"--{name}" for name in others} & words


def config_of(out: Path) -> Any:
    return read_json(out / "config.json")


def test_a_flag_overrides_the_recipe_even_with_the_class_default(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = str(files / "halfcheetah-medium-v2.hdf5")
    common = ["train", "--agent", "prdc", "--dataset", data, "--env", "none", *SHORT]
    assert main([*common, "--out", str(tmp_path / "a")]) == 0
    assert "prdc: recipe halfcheetah (alpha=40.0, beta=2.0)" in capsys.readouterr().out
    assert main([*common, "--alpha", "2.5", "--out", str(tmp_path / "b")]) == 0
    assert "(alpha=2.5 instead of 40.0, beta=2.0)" in capsys.readouterr().out
    assert main([*common, "--recipe", "antmaze", "--out", str(tmp_path / "c")]) == 0
    assert main([*common, "--recipe", "none", "--out", str(tmp_path / "d")]) == 0
    a, b, c, d = (config_of(tmp_path / name) for name in "abcd")
    assert (a["recipe"], a["agent_config"]["alpha"]) == ("halfcheetah", 40.0)
    assert a["recipe_values"] == {"alpha": 40.0, "beta": 2.0}
    assert (b["recipe"], b["agent_config"]["alpha"]) == ("halfcheetah", 2.5)
    assert (c["recipe"], c["agent_config"]["alpha"]) == ("antmaze", 7.5)
    assert (d["recipe"], d["agent_config"]["alpha"]) == ("none", 2.5)
    assert a["agent_config"]["hidden"] == [4]


def test_default_folders_are_numbered_and_never_overwritten(
    files: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    command = ["train", "--agent", "bc", "--dataset", str(files / "sound.hdf5"), *SHORT]
    assert main(command) == 0
    first = (tmp_path / "runs" / "sound-bc-seed0" / "metrics.csv").read_bytes()
    assert main([*command, "--lr", "0.1"]) == 0
    assert sorted(p.name for p in (tmp_path / "runs").iterdir()) == [
        *("sound-bc-seed0", "sound-bc-seed0-2")
    ]
    assert (tmp_path / "runs" / "sound-bc-seed0" / "metrics.csv").read_bytes() == first
    assert "runs/sound-bc-seed0-2: best action_error" in capsys.readouterr().out


def test_resuming_from_another_working_directory(
    files: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(files)
    out = tmp_path / "run"
    command = ["train", "--agent", "bc", "--dataset", "sound.hdf5", *SHORT]
    assert main([*command, "--out", str(out)]) == 0
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    assert main(["train", "--resume", "run"]) == 0, capsys.readouterr().err
    assert config_of(out)["dataset"]["source"] == str(files / "sound.hdf5")


def test_a_run_whose_data_has_moved_is_told_where(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = tmp_path / "data.hdf5", tmp_path / "run"
    data.write_bytes((files / "sound.hdf5").read_bytes())
    assert main(["train", "--agent", "bc", "--dataset", str(data), *SHORT, "--out", str(out)]) == 0
    moved = data.rename(tmp_path / "moved.hdf5")
    capsys.readouterr()
    assert main(["train", "--resume", str(out)]) == 2
    said = capsys.readouterr().err
    assert "run was trained on" in said and "--dataset PATH" in said and said.count("\n") == 1
    assert main(["train", "--resume", str(out), "--dataset", str(moved)]) == 0
    # Other data under that name is not the run's.
    assert main(["train", "--resume", str(out), "--dataset", "hopper-medium-replay"]) != 0


def test_a_run_in_progress_has_no_policy_yet(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    data = str(files / "sound.hdf5")
    main(["train", "--agent", "bc", "--dataset", data, *SHORT, "--out", str(out)])
    (out / "policy").rename(tmp_path / "elsewhere")
    capsys.readouterr()
    error = refused(["evaluate", str(out)], capsys)
    assert f"--resume {out}" in error and f"give {out / 'policy-best'}" in error
    assert main(["train", "--resume", str(out)]) == 0
    for file in (tmp_path / "elsewhere").iterdir():
        assert (out / "policy" / file.name).read_bytes() == file.read_bytes()


def offrl(arguments: str, folder: Path, **options: Any) -> subprocess.CompletedProcess[str]:
    """The command in a shell of its own."""
    root = str(Path(__file__).resolve().parent.parent)
    environment = {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"}
    code = "import sys; from offrl.cli import entry; sys.path[0] = sys.prefix; entry()"
    command = f'"{sys.executable}" -c "{code}" {arguments}'
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", command],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=100, **options,
    )  # fmt: skip


def test_a_reader_that_goes_away_is_no_error(tmp_path: Path) -> None:
    result = offrl("data list | head -n 1 > first", tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    assert "environment" in (tmp_path / "first").read_text()


def test_output_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full")
    result = offrl("--help > /dev/full", tmp_path)
    assert result.returncode == 2
    assert result.stderr == "offrl: [Errno 28] No space left on device\n"


COMMAND = """
import atexit, os, sys
import torch.distributed as group

class Last:
    def __del__(self):
        os.write(1, b"taken down ")

last = Last()

def main(argv):
    if argv[0] == "group":
        group.init_process_group("gloo", store=group.HashStore(), rank=0, world_size=1)
        destroy = group.destroy_process_group
        group.destroy_process_group = lambda: (os.write(1, b"ended "), destroy())
    atexit.register(lambda: print("at exit"))
    print("done", end=" ")
    return int(argv[1])
"""


@pytest.mark.parametrize(
    ("words", "printed"),
    [
        ("alone 0", "done at exit taken down "),
        ("alone 2", "done at exit taken down "),
        ("group 0", "done ended at exit"),
        ("group 2", "done at exit"),
    ],
)
def test_a_group_of_processes_ends_before_the_interpreter(
    words: str, printed: str, tmp_path: Path
) -> None:
    (tmp_path / "grouped.py").write_text(COMMAND)
    code = "import sys; from offrl import cli; cli.COMMANDS['grouped'] = ('grouped', ''); "
    code += f"sys.argv[1:] = {['grouped', *words.split()]}; cli.entry()"
    root = str(Path(__file__).resolve().parent.parent)
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": root}, capture_output=True, text=True,
    )  # fmt: skip
    assert result.returncode == int(words[-1]), result.stderr
    assert result.stdout.split() == printed.split()


def test_an_agent_in_the_working_directory(files: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from offrl.agents.bc import BC\n\nclass Mine(BC):\n    pass\n"
    )
    (tmp_path / "torch.py").write_text("raise ImportError('the wrong torch')")
    data = files / "sound.hdf5"
    result = offrl(f"train --agent mine:Mine --dataset {data} {' '.join(SHORT)}", tmp_path)
    assert "mine:Mine: its default settings" in result.stdout, result.stderr


def test_a_complaint_is_read_from_boxes_of_either_alphabet() -> None:
    drawn = [
        "╭─ Invalid choice ──────────╮",
        "│ invalid choice 'foo' for  │",
        "│ argument '--a'.           │",
        "│ ───────────────────────── │",
        "│ For full helptext, run p  │",
        "╰───────────────────────────╯",
    ]
    plain = [
        " Invalid choice            ",
        " ------------------------- ",
        "  invalid choice 'foo' for ",
        "  argument '--a'.          ",
        "  -------------------------",
        "  For full helptext, run p ",
    ]
    for box in (drawn, plain):
        assert _first_sentence("\n".join(box)) == "invalid choice 'foo' for argument '--a'"
