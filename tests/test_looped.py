"""An agent whose learners cannot be stacked: they are trained in turn, and look as if stacked."""

import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from problems import OBS, walk
from test_registry import Own, OwnConfig

from offrl.agent import Agent
from offrl.datasets.offline import Spec
from offrl.errors import RunError
from offrl.experiment import train
from offrl.files import read_json
from offrl.networks import Learners
from offrl.types import Batch, Metrics, Noise

SETTINGS: dict[str, Any] = {
    **{"steps": 12, "batch_size": 4, "log_every": 2, "eval_every": 4, "checkpoint_every": 6},
    **{"device": "cpu", "seed": 3, "seeds": 3, "best_by": "validation/own_error"},
}


class Looped(Own):
    """Own, of one learner and no more."""

    stacked = False

    def __init__(self, spec: Spec, config: OwnConfig, learners: Learners) -> None:
        assert learners.shape == ()
        super().__init__(spec, config, learners)


class Stopping(Looped):
    """Its second learner gets a signal, as from a queue, after half of its updates."""

    signals = 0

    def update(self, batch: Batch, noise: Noise, phase: int) -> Metrics:
        if self.learners.seeds == (4,) and Stopping.signals < 6:
            Stopping.signals += 1
            if Stopping.signals == 6:
                signal.raise_signal(signal.SIGTERM)
        return super().update(batch, noise, phase)


class Failing(Looped):
    """Its second learner cannot be made to update."""

    def update(self, batch: Batch, noise: Noise, phase: int) -> Metrics:
        if self.learners.seeds == (4,):
            raise ZeroDivisionError
        return super().update(batch, noise, phase)


def run(agent: type[Agent], out: Path, **settings: Any) -> Any:
    return train(agent, walk(12), env=None, out=out, **{**SETTINGS, **settings})


def values(table: Path) -> tuple[list[str], np.ndarray[Any, Any]]:
    rows = [line.split(",") for line in table.read_text().splitlines()[1:]]
    return [",".join(row[:2]) for row in rows], np.array([float(row[2]) for row in rows])


def files(out: Path) -> dict[str, bytes]:
    """What of a run does not depend on the clock: state.json has the length of performance.csv."""
    clock = ("performance.csv", "state.json")
    return {
        str(path.relative_to(out)): path.read_bytes()
        for path in out.rglob("*")
        if path.is_file() and path.name not in clock and "tfevents" not in path.name
    }


def test_folders_and_results_are_those_of_a_stack(tmp_path: Path) -> None:
    stacked, looped = run(Own, tmp_path / "a"), run(Looped, tmp_path / "b")
    assert [f.name for f in looped.folders] == [f.name for f in stacked.folders]
    assert len(looped.policies) == len(looped.summaries) == 3
    assert sorted(files(tmp_path / "b")) == sorted(files(tmp_path / "a"))
    obs = np.ones((4, OBS), np.float32)
    for k in range(3):
        names, mine = values(looped.folders[k] / "metrics.csv")
        other_names, theirs = values(stacked.folders[k] / "metrics.csv")
        assert names == other_names
        np.testing.assert_allclose(mine, theirs, rtol=1e-5)
        np.testing.assert_allclose(
            looped.policies[k].predict(obs), stacked.policies[k].predict(obs), atol=1e-6
        )
        record = read_json(looped.folders[k] / "config.json")
        assert record["train"]["seed"] == 3 + k and record["train"]["seeds"] == 1
    assert read_json(tmp_path / "b" / "config.json")["train"]["seeds"] == 3


def test_a_learner_of_a_loop_is_its_seed_alone(tmp_path: Path) -> None:
    run(Looped, tmp_path / "loop")
    run(Looped, tmp_path / "alone", seed=4, seeds=1)
    assert files(tmp_path / "loop" / "seed-4") == files(tmp_path / "alone")


def test_a_loop_that_was_stopped_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    run(Looped, tmp_path / "whole")
    out = tmp_path / "stopped"
    with pytest.raises(RunError, match=rf"at step 6; .* Continue with: .* --resume {out}$"):
        run(Stopping, out)
    assert not (out / "seed-5" / "policy").exists()
    resumed = train(Stopping, walk(12), env=None, resume=out)
    assert len(resumed.folders) == 3
    whole, stopped = files(tmp_path / "whole"), files(out)
    assert sorted(whole) == sorted(stopped)
    # The class's name apart, which configurations and policies record.
    same = [name for name in whole if not name.endswith(("config.json", "policy.json"))]
    assert [name for name in same if whole[name] != stopped[name]] == []


def test_what_earlier_learners_reached_stays_when_a_later_one_fails(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        run(Failing, tmp_path / "run")
    assert (tmp_path / "run" / "seed-3" / "summary.json").exists()
    with pytest.raises(ZeroDivisionError):
        run(Failing, tmp_path / "first", seed=4)
    assert not (tmp_path / "first").exists()
