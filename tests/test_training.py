"""Runs: what they write, what is best, and how they fail."""

import os
import resource
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from children import ended, forked
from dataset_files import d4rl_arrays, write_d4rl
from problems import ACT, Drift, walk

from offrl import checkpoints, experiment
from offrl.agents import BC
from offrl.cli import main
from offrl.datasets.minari import write_minari
from offrl.datasets.offline import OfflineDataset, Spec
from offrl.errors import ConfigError, DataError, OffrlError, RunError
from offrl.experiment import resume_run, train
from offrl.files import read_json
from offrl.plans import DataConfig, plan
from offrl.policy import Policy, load_policy
from offrl.types import Batch, Metrics, Noise

SETTINGS = {
    **{"steps": 12, "batch_size": 4, "hidden": (4,), "log_every": 2, "eval_every": 4},
    **{"eval_episodes": 2, "checkpoint_every": 6, "device": "cpu"},
}


def table(folder: Path, name: str = "metrics.csv") -> dict[str, dict[int, float]]:
    """name -> step -> value."""
    found: dict[str, dict[int, float]] = {}
    header, *rows = (folder / name).read_text().splitlines()
    assert header == "step,name,value"
    for row in rows:
        step, metric, value = row.split(",")
        assert int(step) not in found.setdefault(metric, {})
        found[metric][int(step)] = float(value)
    return found


# -- without an environment ---------------------------------------------------------------------


def test_without_an_environment_validation_is_reported_and_chooses_the_best(
    tmp_path: Path,
) -> None:
    out = tmp_path / "run"
    run = train("td3_bc", walk(12), env=None, out=out, **SETTINGS)
    found = table(out)
    measured = {f"validation/{n}" for n in ("action_error", "td_error", "q")}
    assert measured <= found.keys() and not any(n.startswith("eval/") for n in found)
    assert all(list(found[name]) == [4, 8, 12] for name in measured)
    errors = found["validation/action_error"]
    (summary,) = run.summaries
    assert summary["best_by"] == "validation/action_error"
    best = summary["best"]
    assert best["step"] == min(errors, key=errors.__getitem__)
    assert best["validation/action_error"] == pytest.approx(min(errors.values()), rel=1e-6)
    assert load_policy(out / "policy-best").provenance["step"] == best["step"]
    assert load_policy(out).provenance["step"] == 12
    assert read_json(out / "config.json")["data"]["validation"] == 0.1
    assert read_json(out / "summary.json") == summary


def test_best_by_another_measure(tmp_path: Path) -> None:
    out = tmp_path / "run"
    best_by = "validation/td_error"
    run = train("iql", walk(12), env=Drift, out=out, validation=0.25, best_by=best_by, **SETTINGS)
    errors = table(out)["validation/td_error"]
    assert run.summaries[0]["best"]["step"] == min(errors, key=errors.__getitem__)
    assert {"last", "best", "mean of last 3"} <= run.summaries[0].keys()


def test_validation_covers_every_held_out_transition(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outs = []
    for chunk in (7, 4_096):
        monkeypatch.setattr("offrl.training.VALIDATION_CHUNK", chunk)
        train("bc", walk(12), env=None, out=tmp_path / str(chunk), **SETTINGS)
        outs.append(table(tmp_path / str(chunk))["validation/action_error"])
    assert outs[0] == pytest.approx(outs[1], rel=1e-5)
    _, held_out = walk(12).split(0.1, 0)
    policy = load_policy(tmp_path / "7")
    error = np.mean((policy.predict(held_out.obs) - held_out.action) ** 2)
    # A policy clips its actions and walk's bounds are the default ones, so the two agree.
    assert outs[0][12] == pytest.approx(float(error), rel=1e-4)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"env": None, "best_by": "eval/return"}, "no environment to evaluate in"),
        ({"env": Drift, "best_by": "validation/action_error"}, "no episodes are held out"),
        ({"env": None, "best_by": "validation/td_error"}, "BC does not measure"),
        ({"env": None, "best_by": "loss"}, "best_by is 'loss'"),
        ({"env": None, "steps": "12"}, "TrainConfig.steps is '12'; it must be int"),
        ({"env": None, "steps": 1.5}, "TrainConfig.steps is 1.5; it must be int"),
        ({"env": None, "seeds": True}, "TrainConfig.seeds is True; it must be int"),
        ({"env": None, "lr": "fast"}, "BCConfig.lr is 'fast'; it must be float"),
        ({"env": None, "lr": float("nan")}, r"BCConfig.lr is nan; it must be in \(0, inf\)"),
        ({"env": None, "hidden": 4}, "hidden is 4; it must be a sequence of int"),
        ({"env": None, "hidden": [4, 0]}, "each needs 1 or more"),
        ({"env": None, "normalize_obs": 1}, "normalize_obs is 1; it must be bool"),
        ({"env": None, "expectile": 0.7}, "have no setting 'expectile'"),
        ({"env": None, "validation": 0.01}, "rounds to 0"),
        ({"env": lambda: "no environment"}, "returned str, not a gymnasium.Env"),
        ({"env": "Pendulum-v1"}, "Pendulum-v1 does not match the dataset"),
        ({"resume": "run"}, "resume takes no other setting"),
        ({"agent": None}, "no agent was given"),
        ({"dataset": None}, "no dataset was given"),
    ],
)
def test_mistakes_in_python_leave_nothing(
    settings: dict[str, Any], said: str, tmp_path: Path
) -> None:
    arguments = {"agent": "bc", "dataset": walk(), **SETTINGS, "out": tmp_path / "run", **settings}
    with pytest.raises(OffrlError, match=said):
        train(**arguments)
    assert list(tmp_path.iterdir()) == []


def loud(steps: int = 60) -> OfflineDataset:
    """Actions up to 2 where the bounds are [-1, 1], and terminals that are all at step 10."""
    rng = np.random.default_rng(0)
    return OfflineDataset.from_arrays(
        observations=rng.normal(size=(steps, 3)),
        actions=rng.uniform(-2.0, 2.0, (steps, 2)),
        rewards=rng.normal(size=steps),
        terminals=np.arange(steps) % 10 == 9,
        name="loud",
    )


def test_a_dataset_in_memory_is_screened_like_a_file(tmp_path: Path) -> None:
    data = loud()
    rows, fingerprint = data.rows.copy(), data.fingerprint
    with pytest.raises(
        DataError, match=r"loud: .*outside \[-1, 1\].*make the dataset with the bounds"
    ):
        plan("bc", data, env=None)
    with pytest.raises(DataError, match=r"6 of the 6 terminals are at step 10"):
        plan("bc", data, env=None, data=DataConfig(out_of_bounds="clip"))
    asked = DataConfig(out_of_bounds="clip", time_limit=10)
    planned = plan("bc", data, env=None, data=asked)
    assert np.abs(planned.dataset.action).max() == 1.0
    assert planned.dataset.truncated.sum() == 6 and not planned.dataset.terminated.any()
    assert planned.record()["dataset"]["fingerprint"] != fingerprint
    # What the user holds is as it was.
    np.testing.assert_array_equal(data.rows, rows)
    kept = plan("bc", data, env=None, data=DataConfig(out_of_bounds="keep", time_limit="keep"))
    assert kept.dataset.rows is data.rows
    with pytest.raises(ConfigError, match=r"loud states bounds of its own, -1 to 1; leave"):
        plan("bc", data, env=None, data=DataConfig(action_bounds=(-2.0, 2.0)))


def test_bounds_that_data_do_not_state_are_told(tmp_path: Path) -> None:
    spec = Spec((-np.inf,) * 3, (np.inf,) * 3, (-np.inf, -1.0), (np.inf, 3.0))
    data = replace(walk(), spec=spec)
    write_minari(data, tmp_path / "free")
    settings: dict[str, Any] = {**SETTINGS, "env": None}
    for dataset in (data, tmp_path / "free"):
        with pytest.raises(DataError, match=r"bounds \[-inf, inf\].*--action-bounds LOW HIGH"):
            train("bc", dataset, out=tmp_path / "no", **settings)
        told = plan("bc", dataset, env=None, data=DataConfig(action_bounds=(-2.0, 2.0))).dataset
        assert (told.spec.action_low, told.spec.action_high) == ((-2.0, -1.0), (2.0, 3.0))
        assert told.provenance["action_bounds"] == "not stated: [-2, 2] as asked"
    run = train(
        "bc", tmp_path / "free", out=tmp_path / "run", action_bounds=(-2.0, 2.0), **settings
    )
    assert load_policy(run.folders[0]).spec.action_high == (2.0, 3.0)


def test_bounds_of_arrays() -> None:
    arrays = d4rl_arrays([(10, "timeout")], next_observations=False)
    made = OfflineDataset.from_arrays(*arrays.values(), action_bounds=(-2.0, 2.0))
    assert made.spec == Spec.unbounded(3, 2, (-2.0, 2.0))
    assert made.spec.action_low == (-2.0, -2.0) and made.spec.action_high == (2.0, 2.0)
    episode = {"obs": np.zeros((3, 1)), "action": np.zeros((2, 1)), "reward": np.zeros(2)}
    assert OfflineDataset.from_episodes([episode], action_bounds=(0.0, 5.0)).spec.action_high == (
        5.0,
    )
    with pytest.raises(DataError, match="low bound"):
        OfflineDataset.from_episodes([episode], action_bounds=(5.0, 0.0))


def pendulum(loudness: float = 2.0) -> dict[str, Any]:
    """D4RL's columns of a task whose actions are in [-2, 2]."""
    arrays = d4rl_arrays([(10, "timeout")] * 4, act_dim=1)
    return {**arrays, "actions": loudness * arrays["actions"]}


@pytest.mark.parametrize("loudness", [2.0, 0.4])
def test_the_environment_of_a_run_bounds_a_flat_file(loudness: float) -> None:
    data = plan("bc", pendulum(loudness), env="Pendulum-v1").dataset
    assert (data.spec.action_low, data.spec.action_high) == ((-2.0,), (2.0,))
    assert data.env_id == "Pendulum-v1"


def test_every_remedy_of_actions_out_of_bounds_works(tmp_path: Path) -> None:
    path = str(write_d4rl(tmp_path / "swing.hdf5", pendulum()))
    with pytest.raises(DataError, match=r"--out-of-bounds clip\|keep.*--env ID.*--action-bounds"):
        plan("bc", path)
    ways: list[dict[str, Any]] = [{"out_of_bounds": "clip"}, {"out_of_bounds": "keep"}]
    for way in [*ways, {"action_bounds": (-2.0, 2.0)}]:
        planned = plan("bc", path, env="none", data=DataConfig(**way))
        assert planned.dataset.spec.action_high == ((2.0,) if "action_bounds" in way else (1.0,))
    with pytest.raises(
        ConfigError, match=r"action_bounds is \(2.0, -2.0\); give two finite numbers"
    ):
        plan("bc", path, data=DataConfig(action_bounds=(2.0, -2.0)))


def test_the_command_takes_the_bounds_that_it_asks_for(tmp_path: Path) -> None:
    path = str(write_d4rl(tmp_path / "swing.hdf5", pendulum()))
    words = ["train", "--agent", "bc", "--dataset", path, "--env", "none", "--hidden", "4"]
    words += ["--steps", "2", "--batch-size", "4", "--device", "cpu", "--out", str(tmp_path / "a")]
    assert main([*words, "--action-bounds", "-2", "2"]) == 0
    assert read_json(tmp_path / "a" / "config.json")["data"]["action_bounds"] == [-2, 2]
    train(resume=tmp_path / "a")


@pytest.mark.parametrize(("episodes", "held_out"), [(1, 0), (2, 1), (3, 1), (5, 1), (6, 1)])
def test_a_few_episodes_train_without_an_environment(episodes: int, held_out: int) -> None:
    data = walk(episodes)
    share = plan("bc", data, env=None).data.validation
    assert share is not None and round(share * episodes) == held_out
    if held_out:
        assert data.split(share, seed=0)[1].num_episodes == held_out


def test_a_single_episode_trains(tmp_path: Path) -> None:
    run = train("bc", walk(1), env=None, out=tmp_path / "run", **SETTINGS)
    assert run.summaries[0]["step"] == 12


def test_data_without_a_single_transition_are_refused(tmp_path: Path) -> None:
    arrays = d4rl_arrays([(1, "timeout")] * 6, next_observations=False)
    with pytest.raises(DataError, match="no transition to learn from"):
        train("bc", arrays, env=None, out=tmp_path / "run", **SETTINGS)
    assert list(tmp_path.iterdir()) == []


def test_numbers_of_numpy_and_whole_numbers_are_taken(tmp_path: Path) -> None:
    settings = {**SETTINGS, "steps": np.int64(4), "lr": np.float32(0.5), "hidden": [4]}
    train("bc", walk(12), env=None, out=tmp_path / "a", seed=np.int32(3), **settings)
    config = read_json(tmp_path / "a" / "config.json")
    assert (config["train"]["steps"], config["train"]["seed"]) == (4, 3)
    train("td3_bc", walk(12), env=None, out=tmp_path / "b", alpha=2, **SETTINGS)
    assert read_json(tmp_path / "b" / "config.json")["agent_config"]["alpha"] == 2.0


def test_d4rl_s_dictionary_is_a_dataset(tmp_path: Path) -> None:
    arrays = d4rl_arrays([(10, "timeout")] * 10)
    train("bc", arrays, env=None, out=tmp_path / "run", **SETTINGS)
    assert read_json(tmp_path / "run" / "config.json")["dataset"]["source"] is None
    with pytest.raises(RunError, match="dataset in memory; pass it as dataset="):
        train(resume=tmp_path / "run")
    train(resume=tmp_path / "run", dataset=arrays)


# -- what a run writes --------------------------------------------------------------------------


def test_the_summary_holds_last_best_and_the_mean_of_the_last_ten(tmp_path: Path) -> None:
    settings = {**SETTINGS, "steps": 24, "eval_every": 2}
    run = train("bc", walk(), env=Drift, out=tmp_path / "run", **settings)
    returns = table(tmp_path / "run")["eval/return"]
    assert list(returns) == list(range(2, 25, 2))
    values = list(returns.values())
    (summary,) = run.summaries
    assert summary["last"]["eval/return"] == pytest.approx(values[-1], rel=1e-6)
    assert summary["mean of last 10"]["eval/return"] == pytest.approx(np.mean(values[-10:]))
    assert summary["best"]["eval/return"] == pytest.approx(max(values), rel=1e-6)
    assert returns[summary["best"]["step"]] == max(values)
    episodes = (tmp_path / "run" / "evaluations.csv").read_text().splitlines()
    assert episodes[0] == "step,episode,return,length" and len(episodes) == 1 + 12 * 2


def test_tables_hold_nothing_of_the_machine(tmp_path: Path) -> None:
    for name in ("a", "b"):
        train("prdc", walk(12), env=Drift, out=tmp_path / name, validation=0.25, **SETTINGS)
    for file in ("metrics.csv", "evaluations.csv", "summary.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    assert not any(name.startswith("performance/") for name in table(tmp_path / "a"))
    speeds = table(tmp_path / "a", "performance.csv")
    assert list(speeds["performance/steps_per_second"]) == [2, 4, 6, 8, 10, 12]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_reads_the_same_values(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    out = tmp_path / "run"
    train("iql", walk(12), env=Drift, out=out, validation=0.25, **SETTINGS)
    # As after a kill between the checkpoint of step 6 and the end: steps 8 to 12 stand twice.
    for file in (out / "checkpoints" / "step-000000012").iterdir():
        file.unlink()
    (out / "checkpoints" / "step-000000012").rmdir()
    resume_run(out, dataset=walk(12), env=Drift)
    assert len(list((out / "tensorboard").iterdir())) == 2
    events = EventAccumulator(str(out / "tensorboard"))
    events.Reload()
    expected = table(out) | table(out, "performance.csv")
    assert set(events.Tags()["scalars"]) == set(expected)
    for name, values in expected.items():
        shown = {e.step: e.value for e in events.Scalars(name)}
        assert len(events.Scalars(name)) == len(shown)
        assert shown == pytest.approx(values, rel=1e-6)


def test_learners_of_one_run_have_folders_like_single_runs(tmp_path: Path) -> None:
    out = tmp_path / "run"
    run = train("bc", walk(12), env=None, out=out, seed=5, seeds=2, **SETTINGS)
    assert run.folders == (out / "seed-5", out / "seed-6")
    assert sorted(p.name for p in out.iterdir()) == ["config.json", "seed-5", "seed-6"]
    whole = read_json(out / "config.json")
    assert (whole["train"]["seed"], whole["train"]["seeds"]) == (5, 2)
    train("bc", walk(12), env=None, out=tmp_path / "alone", seed=6, **SETTINGS)
    names = {str(p.relative_to(out / "seed-6")) for p in (out / "seed-6").rglob("*")}
    alone = {str(p.relative_to(tmp_path / "alone")) for p in (tmp_path / "alone").rglob("*")}
    assert {n for n in names if "tfevents" not in n} == {n for n in alone if "tfevents" not in n}
    mine = read_json(out / "seed-6" / "config.json")
    assert mine == read_json(tmp_path / "alone" / "config.json")
    assert load_policy(out / "seed-6").provenance["seed"] == 6
    with pytest.raises(RunError, match="several learners; choose one of seed-5, seed-6"):
        load_policy(out)


def test_scores_are_those_of_the_environment_that_is_played() -> None:
    episodes = [{"obs": np.zeros((3, 11)), "action": np.zeros((2, 3)), "reward": np.ones(2)}] * 2
    ended = [{**e, "terminated": False, "truncated": True} for e in episodes]
    hopper = OfflineDataset.from_episodes(ended, env_id="Hopper-v5", name="own")
    same, other = (plan("bc", hopper, env=env) for env in ("Hopper-v5", "Walker2d-v5"))
    assert same.reference is not None and other.reference is not None
    assert same.reference.max != other.reference.max
    assert plan("bc", hopper, env="Pendulum-v1").reference is None


# -- failures -----------------------------------------------------------------------------------


@pytest.mark.parametrize("agent", ["td3_bc", "prdc"])
def test_diverged_training_keeps_the_last_checkpoint(agent: str, tmp_path: Path) -> None:
    settings = {**SETTINGS, "log_every": 12, "eval_every": 12, "checkpoint_every": 1}
    out = tmp_path / "run"
    with pytest.raises(RunError, match=r"training has diverged.* has one of step \d+") as failed:
        train(agent, walk(12), env=None, out=out, lr=1e30, **settings)
    assert "\n" not in str(failed.value)
    assert checkpoints.steps_in(out / "checkpoints")
    for values in table(out).values():
        assert np.isfinite(list(values.values())).all()
    for step in checkpoints.steps_in(out / "checkpoints"):
        state = read_json(out / "checkpoints" / f"step-{step:09d}" / "state.json")
        assert all(np.isfinite(total) for total, _ in state["meter"].values())


class NotFinite(Drift):
    """A simulator that fails, as a policy that diverges makes MuJoCo do."""

    def step(self, action: Any) -> Any:
        obs, _, *rest = super().step(action)
        return obs, float("nan"), *rest


def test_an_evaluation_that_is_not_finite(tmp_path: Path) -> None:
    settings = {**SETTINGS, "checkpoint_every": 2}
    with pytest.raises(RunError, match="gave the reward nan at step 1"):
        train("bc", walk(12), env=NotFinite, out=tmp_path / "run", **settings)
    assert checkpoints.steps_in(tmp_path / "run" / "checkpoints") == [2]


def test_a_policy_that_is_not_finite(tmp_path: Path) -> None:
    class Broken(BC):
        """Worse than its metrics tell."""

        def update(self, batch: Batch, noise: Noise, phase: int) -> Metrics:
            metrics = super().update(batch, noise, phase)
            with torch.no_grad():
                next(self.actor.parameters()).fill_(float("nan"))
            return {k: torch.zeros_like(v) for k, v in metrics.items()}

    with pytest.raises(RunError, match="actions are not finite numbers: training diverged"):
        train(Broken, walk(12), env=Drift, out=tmp_path / "run", **SETTINGS)
    with pytest.raises(RunError, match=r"validation/action_error is nan at step 4"):
        train(Broken, walk(12), env=None, out=tmp_path / "run2", **SETTINGS)


def with_files_of_at_most(size: int, run: Callable[[], object], said: Path) -> int:
    """The exit status of a child in which files that grow beyond `size` bytes fail.

    A file too large is, to the program, what a full disk is: a write that fails.
    """

    def child() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
        status = 9
        try:
            run()
            status = 0
        except OffrlError as error:
            os.write(2, f"offrl: {error}\n".encode())
            status = error.exit_code
        finally:
            os._exit(status)

    return ended(forked(_redirected, child, said))


def _redirected(child: Callable[[], None], said: Path) -> None:
    os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
    child()


def begin_large(out: Path, log_every: int = 1) -> None:
    settings = {**SETTINGS, "steps": 300, "eval_every": 100, "checkpoint_every": 50}
    settings["log_every"] = log_every
    train("iql", walk(12), env=None, out=out, **settings)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose tables outgrow its checkpoints."""
    out = tmp_path_factory.mktemp("large") / "run"
    begin_large(out)
    checkpoint = (out / "checkpoints" / "step-000000300" / "state.safetensors").stat().st_size
    assert 2 * checkpoint < (out / "metrics.csv").stat().st_size
    return out


def test_a_disk_that_is_full_before_the_first_step(tmp_path: Path) -> None:
    out, said = tmp_path / "run", tmp_path / "said"
    assert with_files_of_at_most(200, lambda: begin_large(out), said) == 2
    assert said.read_text().count("offrl: ") == 1 and "cannot be made" in said.read_text()
    assert list(tmp_path.iterdir()) == [said]


def test_a_disk_that_is_full_at_a_checkpoint(tmp_path: Path) -> None:
    out, said = tmp_path / "run", tmp_path / "said"
    assert with_files_of_at_most(4_000, lambda: begin_large(out, 300), said) == 2
    assert "could not be written" in said.read_text() and "Traceback" not in said.read_text()
    assert checkpoints.steps_in(out / "checkpoints") == []
    assert not list(out.rglob("*.partial"))
    begin_large(tmp_path / "straight", 300)
    resume_run(out, dataset=walk(12))
    for name in ("metrics.csv", "policy/policy.safetensors"):
        assert (out / name).read_bytes() == (tmp_path / "straight" / name).read_bytes()


def test_a_disk_that_fills_up_in_the_middle(large: Path, tmp_path: Path) -> None:
    out, said = tmp_path / "run", tmp_path / "said"
    limit = (large / "metrics.csv").stat().st_size // 2
    assert with_files_of_at_most(limit, lambda: begin_large(out), said) == 2
    text = said.read_text()
    assert "the log of" in text and "--resume" in text and "Traceback" not in text
    assert "Exception ignored" not in text
    saved = checkpoints.steps_in(out / "checkpoints")
    assert saved and saved[-1] < 300
    assert not (out / "policy").exists()
    resume_run(out, dataset=walk(12))
    names = ("metrics.csv", "policy/policy.safetensors", "summary.json")
    for name in (*names, "checkpoints/step-000000300/state.safetensors"):
        assert (out / name).read_bytes() == (large / name).read_bytes()


def test_an_environment_is_closed_after_it_was_compared(tmp_path: Path) -> None:
    closed: list[str] = []

    class Noted(Drift):
        action_space = gymnasium.spaces.Box(-1.0, 1.0, (ACT + 1,), np.float32)

        def close(self) -> None:
            closed.append("closed")

    with pytest.raises(ConfigError, match="does not match the dataset"):
        train("bc", walk(), env=Noted, out=tmp_path / "run", **SETTINGS)
    assert closed == ["closed"]


@pytest.mark.parametrize("stacked", [True, False])
def test_a_default_folder_that_another_run_takes_meanwhile(
    stacked: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(BC, "stacked", stacked)
    make, taken = experiment._make_folder, Path("runs") / "walk-bc-seed0"

    def late(plan: Any, folder: Path) -> None:
        if folder == taken:
            taken.mkdir(parents=True)
            (taken / "config.json").write_text("another run's")
        make(plan, folder)

    monkeypatch.setattr(experiment, "_make_folder", late)
    run = train("bc", walk(12), env=None, **{**SETTINGS, "steps": 2, "seeds": 2})
    assert run.folders == tuple(Path(f"{taken}-2/seed-{s}") for s in (0, 1))
    assert all((folder / "policy").exists() for folder in run.folders)
    assert [p.name for p in taken.iterdir()] == ["config.json"]
    with pytest.raises(RunError, match="exists already"):
        train("bc", walk(12), env=None, out=taken, **SETTINGS)


def test_what_a_policy_refuses_is_said_before_the_first_step(tmp_path: Path) -> None:
    class Silent(BC):
        def policy(self, *_: object) -> Policy:
            raise ConfigError("no such policy")

    with pytest.raises(ConfigError, match="no such policy"):
        train(Silent, walk(12), env=None, out=tmp_path / "run", **SETTINGS)
    assert list(tmp_path.iterdir()) == []
