"""Checkpoints that are damaged, foreign or missing, and the tables that go with them."""

import errno
import json
import os
import shutil
import signal
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from children import ended, forked
from problems import build, walk
from test_resume import results
from torch import Tensor

from offrl import checkpoints
from offrl.errors import ConfigError, OffrlError, RunError
from offrl.experiment import resume_run, train
from offrl.files import read_json, sole_use, write_json
from offrl.metrics import RunLog, cut_back

SETTINGS = {
    **{"steps": 12, "batch_size": 4, "hidden": (4,), "log_every": 2, "eval_every": 4},
    **{"checkpoint_every": 6, "validation": 0.25, "device": "cpu"},
}
LAST = "checkpoints/step-000000012"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    train("bc", walk(), env=None, out=out, **SETTINGS)
    return out


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def edit(path: Path, **changes: object) -> None:
    write_json(path, {k: v for k, v in {**read_json(path), **changes}.items() if v is not ...})


def set_entries(path: Path, part: str, **changes: object) -> None:
    """As `edit`, within one part of the file."""
    inside = {**read_json(path)[part], **changes}
    edit(path, **{part: {k: v for k, v in inside.items() if v is not ...}})


def shorten(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


def flip(path: Path) -> None:
    raw = path.read_bytes()
    path.write_bytes(raw[:-3] + bytes([raw[-3] ^ 1]) + raw[-2:])


def without_sum(run: Path) -> Path:
    """As it was written before checkpoints had sums of their tensors."""
    edit(run / LAST / "state.json", tensors_sha256=...)
    return run


DAMAGED: dict[str, tuple[Callable[[Path], object], str]] = {
    "no config": (lambda r: (r / "config.json").unlink(), "is not a run: it has no config.json"),
    "half a config": (lambda r: shorten(r / "config.json"), "config.json cannot be read as JSON"),
    "a list": (lambda r: write_json(r / "config.json", []), "config.json is damaged"),
    "no agent": (lambda r: edit(r / "config.json", agent=...), "has no 'agent'"),
    "other agent": (lambda r: edit(r / "config.json", agent="bcc"), "did you mean 'bc'"),
    "no settings": (lambda r: edit(r / "config.json", train=3), "has no 'train'"),
    "odd data": (lambda r: edit(r / "config.json", data={"x": 1}), "is not of this version"),
    "odd setting": (lambda r: edit(r / "config.json", train={"step": 1}), "no setting 'step'"),
    "text": (lambda r: edit(r / "config.json", train={"steps": "9"}), "steps is '9'"),
    "no rate": (
        lambda r: set_entries(r / "config.json", "agent_config", lr=...),
        "config.json is damaged: its 'agent_config' has no 'lr'",
    ),
    "no seed": (  # whose default is 0, and not for being off
        lambda r: set_entries(r / "config.json", "train", seed=...),
        "its 'train' has no 'seed'",
    ),
    "no length": (
        lambda r: set_entries(r / "config.json", "train", steps=...),
        "config.json is damaged: its 'train' has no 'steps'",
    ),
    "half a checkpoint": (
        lambda r: shorten(r / LAST / "state.safetensors"),
        "safetensors is damaged: it is not the file .*Remove step-000000012 to go on from step 6",
    ),
    "half a checkpoint of before sums": (
        lambda r: shorten(without_sum(r) / LAST / "state.safetensors"),
        "state.safetensors cannot be read: .*Remove step-000000012 to go on from step 6",
    ),
    "one bit": (lambda r: flip(r / LAST / "state.safetensors"), "safetensors is damaged"),
    "no tensors": (lambda r: (r / LAST / "state.safetensors").unlink(), "cannot be read"),
    "half a state": (
        lambda r: shorten(r / LAST / "state.json"),
        "state.json cannot be read .*to go on from step 6",
    ),
    "a number": (lambda r: write_json(r / LAST / "state.json", 3), "state.json is damaged"),
    "no meter": (lambda r: edit(r / LAST / "state.json", meter=...), "its entry 'meter' is not"),
    "no evaluations": (
        lambda r: edit(r / LAST / "state.json", evaluations=None),
        "step 12 in .*: its entry 'evaluations' is not what a run writes; remove its folder",
    ),
    "other evaluations": (lambda r: edit(r / LAST / "state.json", evaluations=[[4]]), "'evaluat"),
    "a list of tables": (lambda r: edit(r / LAST / "state.json", tables=[1]), "entry 'tables' is"),
    "no lengths": (lambda r: edit(r / LAST / "state.json", tables={"metrics.csv": ""}), "'tables'"),
    "half a best": (lambda r: edit(r / LAST / "state.json", best=[4]), "entry 'best' is not"),
    "odd means": (lambda r: edit(r / LAST / "state.json", meter={"loss": 1.0}), "entry 'meter' is"),
    "odd prints": (lambda r: edit(r / LAST / "state.json", prepared=[]), "entry 'prepared' is"),
    "newer": (lambda r: edit(r / LAST / "state.json", format=9), "format 9; this version reads 1"),
    "no table": (lambda r: (r / "metrics.csv").unlink(), "metrics.csv is missing; it held"),
    "half a table": (lambda r: shorten(r / "metrics.csv"), "metrics.csv has"),
    "other sizes": (
        lambda r: set_entries(r / "config.json", "agent_config", hidden=[5]),
        "has shape",
    ),
    "other layers": (
        lambda r: set_entries(r / "config.json", "agent_config", hidden=[4, 4]),
        "was made by other settings: .* tensors differ",
    ),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_run_is_refused_by_the_name_of_what_is_wrong(case: str, run: Path) -> None:
    damage, said = DAMAGED[case]
    damage(run)
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    with pytest.raises(OffrlError, match=said) as refused:
        resume_run(run, dataset=walk())
    assert "\n" not in str(refused.value)
    assert {p: p.read_bytes() for p in run.rglob("*") if p.is_file()} == before


def test_a_checkpoint_without_a_sum_is_read(run: Path, finished: Path) -> None:
    without_sum(run)
    (run / "policy/policy.safetensors").unlink()
    resume_run(run, dataset=walk())
    assert results(run) == results(finished)


def test_going_back_to_the_checkpoint_before(run: Path, finished: Path) -> None:
    shutil.rmtree(run / LAST)
    resume_run(run, dataset=walk())
    assert results(run) == results(finished)


def test_starting_again_without_any_checkpoint(run: Path, finished: Path) -> None:
    shutil.rmtree(run / "checkpoints")
    (run / "metrics.csv").unlink()
    resume_run(run, dataset=walk())
    assert results(run) == results(finished)
    assert (run / "metrics.csv").read_bytes() == (finished / "metrics.csv").read_bytes()


def begin_stacked(out: Path, **changes: object) -> None:
    train("bc", walk(), env=None, out=out, seeds=2, **{**SETTINGS, **changes})


def killed_at_the_second_learner(out: Path) -> None:
    written = []
    make = checkpoints.new_folder

    def deadly(path: Path) -> AbstractContextManager[Path]:
        written.append(path)
        if len(written) == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return make(path)

    checkpoints.new_folder = deadly
    begin_stacked(out)


def full_at_the_second_learner(out: Path) -> None:
    save = checkpoints.save_file
    saved = []

    def full(tensors: dict[str, Tensor], path: Path) -> None:
        saved.append(path)
        if len(saved) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        save(tensors, path)

    checkpoints.save_file = full
    begin_stacked(out)


@pytest.mark.parametrize("end", [killed_at_the_second_learner, full_at_the_second_learner])
def test_a_first_checkpoint_of_some_learners_is_made_anew(
    end: Callable[[Path], None], tmp_path: Path
) -> None:
    out, straight = tmp_path / "run", tmp_path / "straight"
    status = ended(forked(end, out))
    found = [checkpoints.steps_in(out / f"seed-{s}" / "checkpoints") for s in (0, 1)]
    assert status and found == [[6], []]
    begin_stacked(straight)
    resume_run(out, dataset=walk())
    assert results(out) == results(straight)


def test_policies_that_were_lost_are_written_again(run: Path, finished: Path) -> None:
    shutil.rmtree(run / "policy")
    (run / ".policy.old.tmp").mkdir()  # what a kill between two renames leaves
    (run / ".policy.new.tmp").mkdir()
    resume_run(run, dataset=walk())
    for name in ("policy.json", "policy.safetensors"):
        assert (run / "policy" / name).read_bytes() == (finished / "policy" / name).read_bytes()
    assert not list(run.glob(".policy*"))


def test_performance_goes_on_where_the_checkpoint_was(run: Path) -> None:
    with (run / "performance.csv").open("a") as file:
        file.write("14,performance/steps_per_second,1\n16,perfor")  # as a kill may leave it
    shutil.rmtree(run / LAST)
    resume_run(run, dataset=walk())
    rows = [r.split(",") for r in (run / "performance.csv").read_text().splitlines()]
    assert rows[0] == ["step", "name", "value"]
    assert [int(r[0]) for r in rows[1:]] == [2, 4, 6, 8, 10, 12]
    assert all(float(r[2]) > 0 for r in rows[1:])


def test_a_learner_without_its_checkpoint_is_named(tmp_path: Path) -> None:
    begin_stacked(tmp_path / "run")
    begin_stacked(tmp_path / "one", keep_checkpoints=1)
    for name in ("one", "run"):
        shutil.rmtree(tmp_path / name / "seed-1" / "checkpoints")
        with pytest.raises(RunError, match="seed-1/checkpoints has none"):
            resume_run(tmp_path / name, dataset=walk())
    shutil.rmtree(tmp_path / "run" / "seed-1")
    with pytest.raises(RunError, match="seed-1 cannot be opened"):
        resume_run(tmp_path / "run", dataset=walk())


def test_a_run_that_goes_on_elsewhere_is_left_alone(run: Path) -> None:
    shutil.rmtree(run / LAST)
    with sole_use(run), pytest.raises(RunError, match="another process is training in"):
        resume_run(run, dataset=walk())
    resume_run(run, dataset=walk())


def test_only_the_newest_checkpoints_are_kept(tmp_path: Path) -> None:
    agent, _ = build("bc", walk())
    entries, folder = checkpoints.agent_entries(agent), tmp_path / "checkpoints"
    for step in (1, 2, 3, 4):
        checkpoints.save([folder], step, entries, [{}], keep=2)
    assert checkpoints.steps_in(folder) == [3, 4]
    assert checkpoints.steps_in(tmp_path / "nowhere") == []
    assert sorted(p.name for p in (folder / "step-000000004").iterdir()) == [
        *("state.json", "state.safetensors")
    ]


def test_the_newest_step_that_all_have(tmp_path: Path) -> None:
    agent, _ = build("bc", walk())
    entries = checkpoints.agent_entries(agent)
    a, b = tmp_path / "a", tmp_path / "b"
    checkpoints.save([a, b], 1, entries, [{}, {}], keep=2)
    checkpoints.save([a], 2, entries, [{}], keep=2)
    assert checkpoints.latest_common_step([a, b]) == 1
    shutil.rmtree(a / "step-000000001")
    with pytest.raises(RunError, match="no checkpoint in common"):
        checkpoints.latest_common_step([a, b])


def test_a_table_is_cut_back_to_its_length(tmp_path: Path) -> None:
    log = RunLog(tmp_path)
    log.scalars(1, {"train/x": 0.1, "train/y": float(10**12)})
    lengths = log.lengths()
    log.scalars(2, {"train/x": 0.2})
    log.close()
    cut_back(tmp_path, lengths)
    expected = "step,name,value\n1,train/x,0.1\n1,train/y,1e+12\n"
    assert (tmp_path / "metrics.csv").read_text() == expected
    cut_back(tmp_path, {})
    assert (tmp_path / "metrics.csv").read_text() == ""
    json.dumps(lengths)


def test_settings_that_are_off_may_be_newer_than_the_run(tmp_path: Path) -> None:
    run, straight = tmp_path / "run", tmp_path / "straight"
    train("iql", walk(), env=None, out=straight, **SETTINGS)
    shutil.copytree(straight, run)
    settings = read_json(run / "config.json")["agent_config"]
    newer = {name: ... for name in settings if name.startswith(("beer", "cocoa"))}
    assert settings["cocoa"] is False and settings["beer"] == 0 and len(newer) > 2
    set_entries(run / "config.json", "agent_config", **newer)
    shutil.rmtree(run / LAST)
    resume_run(run, dataset=walk())
    assert results(run) == results(straight)


def test_a_run_goes_on_in_its_own_environment(run: Path) -> None:
    with pytest.raises(ConfigError, match="is evaluated in 'none', not in 'Hopper-v5'"):
        resume_run(run, dataset=walk(), env="Hopper-v5")
    edit(run / "config.json", env="Hopper-v5")
    for other in ("Hopper-v4", "none", None, lambda: None):
        with pytest.raises(ConfigError, match="is evaluated in 'Hopper-v5', not in"):
            resume_run(run, dataset=walk(), env=other)
    with pytest.raises(ConfigError, match="Hopper-v5 does not match the dataset"):
        resume_run(run, dataset=walk(), env="Hopper-v5")
