"""What a saved policy answers at logged observations, which policies can, and how runs keep it."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from problems import ACT, HIDDEN, OBS, TEACHER, build, walk
from teachers import teacher

from offrl import train
from offrl.agents import Distill, DistillConfig
from offrl.cli import main
from offrl.datasets.offline import OfflineDataset, Spec
from offrl.datasets.replay import transitions
from offrl.errors import ConfigError, DataError, RunError
from offrl.files import read_json
from offrl.networks import Learners
from offrl.policy import load_policy
from offrl.teachers import LEAST_STD, answers, print_of, taught, teacher_of

SPEC = Spec.unbounded(OBS, ACT)
SMALL: dict[str, Any] = {"hidden": HIDDEN, "batch_size": 8, "env": None, "validation": 0.25}


def observations(count: int = 50) -> Any:
    return np.random.default_rng(3).normal(1.0, 2.0, (count, OBS)).astype(np.float32)


def test_a_gaussian_answers_with_its_mean_and_its_own_deviation() -> None:
    policy: Any = load_policy(TEACHER)
    mean, std = answers(policy, observations(), 0.3)
    assert np.array_equal(mean, policy.predict(observations()))
    assert np.array_equal(std, np.broadcast_to(policy.actor.spread().numpy(), std.shape))
    assert std[0, 0] != std[0, 1]


def test_a_policy_without_a_density_is_given_one_of_this_width() -> None:
    policy = load_policy(teacher("DeterministicActor", SPEC))
    mean, std = answers(policy, observations(), 0.3)
    assert np.array_equal(mean, policy.predict(observations()))
    assert (std == np.float32(0.3)).all()
    # Never less than a learner's own deviation can be.
    assert answers(policy, observations(), 1e-9)[1].max() == np.float32(LEAST_STD)


@pytest.mark.parametrize("stretch", [0.5, 2.0])
def test_a_squashed_gaussian_deviates_from_its_mode_by_the_integral(stretch: float) -> None:
    name = f"squashed-{stretch}"
    policy: Any = load_policy(teacher("SquashedGaussianActor", SPEC, name, stretch=stretch))
    obs = observations()
    mean, std = answers(policy, obs, 0.3)
    assert np.array_equal(mean, policy.predict(obs))
    x = torch.from_numpy((obs - policy.obs_mean) / policy.obs_std)
    u, log_std = (t.detach().double().numpy()[..., None] for t in policy.actor(x))
    # By the trapezoidal rule over ten deviations of u.
    z = np.linspace(-10.0, 10.0, 4001)
    weight = np.exp(-0.5 * z**2)
    away = np.tanh(u + np.exp(log_std) * z) - np.tanh(u)
    expected = np.sqrt((away**2 * weight).sum(-1) / weight.sum())
    np.testing.assert_allclose(std, np.maximum(expected, LEAST_STD), rtol=0.02, atol=1e-3)


def test_answers_are_in_the_units_that_an_agent_acts_in() -> None:
    wide = Spec((-np.inf,) * OBS, (np.inf,) * OBS, (-2.0, 0.0), (2.0, 6.0))
    narrow = load_policy(teacher("DeterministicActor", SPEC))
    policy = load_policy(teacher("DeterministicActor", wide, "wide"))
    obs = observations()
    np.testing.assert_allclose(answers(policy, obs, 0.1)[0], narrow.predict(obs), rtol=0, atol=1e-6)
    assert np.abs(policy.predict(obs)).max() > 2.0


def test_the_view_has_the_answers_beside_its_transitions() -> None:
    data = walk()
    view = taught(data, TEACHER, width=0.3, normalize_obs=True)
    plain, policy = transitions(data, normalize_obs=True), load_policy(TEACHER)
    assert view.fingerprint == plain.fingerprint and torch.equal(view.index, plain.index)
    rows = view.index[torch.tensor([[3, 0, 7], [1, 1, 2]])]
    batch = view.sample(rows)
    assert torch.equal(batch.obs, plain.batch(rows).obs)
    expected = policy.predict(data.rows[rows.numpy().ravel(), :OBS]).reshape(2, 3, ACT)
    np.testing.assert_allclose(batch.teacher_mean.numpy(), expected, rtol=0, atol=1e-6)  # type: ignore[attr-defined]
    outside = np.setdiff1d(np.arange(len(data.rows)), view.index.numpy())
    assert (view.teacher_mean[outside] == 0).all() and (view.teacher_std[outside] == 1).all()
    assert view.to(torch.float64).teacher_mean.dtype == torch.float64


def test_a_generator_of_single_actions_can_teach_and_longer_plans_cannot(tmp_path: Path) -> None:
    data = walk()
    for name in ("fql", "chunk_bc", "dt"):
        build(name, data, dtype=torch.float32)[0].policy().save(tmp_path / name)
    policy = teacher_of(tmp_path / "fql", data)
    mean, std = answers(policy, observations(), 0.2)
    assert np.array_equal(mean, policy.predict(observations())) and (std == np.float32(0.2)).all()
    for name, kind in (("chunk_bc", "PlanPolicy"), ("dt", "SequencePolicy")):
        with pytest.raises(ConfigError, match=f"{name} is a {kind}, whose action depends on more"):
            teacher_of(tmp_path / name, data)


def test_other_tasks_and_missing_folders_are_refused(tmp_path: Path) -> None:
    data = walk()
    wider = replace(data, spec=replace(data.spec, action_high=(1.0, 2.0)))
    with pytest.raises(DataError, match=r"has bounds of actions .* but walk has .*one task"):
        teacher_of(TEACHER, wider)
    other = teacher("GaussianActor", Spec.unbounded(OBS + 1, ACT), "other")
    with pytest.raises(DataError, match=f"other has obs_dim {OBS + 1}, but walk has {OBS}"):
        teacher_of(other, data)
    with pytest.raises(RunError, match=r"the teacher .*nothing: no such directory"):
        teacher_of(tmp_path / "nothing", data)
    agent = Distill(data.spec, DistillConfig(hidden=(8,)), Learners())
    with pytest.raises(ConfigError, match=r"DistillConfig.teacher is ''; name the policy"):
        agent.view(data)
    with pytest.raises(DataError, match="needs a view with a teacher"):
        agent.prepare(transitions(data))


def test_a_run_finds_its_teacher_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = tmp_path / "here"
    shutil.copytree(TEACHER, here / "wise")
    monkeypatch.chdir(here)
    data, out = walk(), tmp_path / "run"
    settings = {**SMALL, "teacher": "wise", "checkpoint_every": 3}
    stopped = train("distill", data, out=out, steps=3, **settings)
    assert read_json(out / "config.json")["agent_config"]["teacher"] == str(here / "wise")
    monkeypatch.chdir(tmp_path)
    assert train(resume=out, dataset=data).summaries == stopped.summaries
    # Another policy under the same name is noticed, and one that is gone.
    shutil.rmtree(here / "wise")
    shutil.copytree(teacher("DeterministicActor", SPEC), here / "wise")
    with pytest.raises(RunError, match="other data: teacher differs from the checkpoint's"):
        train(resume=out, dataset=data)
    shutil.rmtree(here / "wise")
    with pytest.raises(RunError, match="wise: no such directory"):
        train(resume=out, dataset=data)


def test_a_student_can_teach_in_turn(tmp_path: Path) -> None:
    data = walk()
    first = train("distill", data, out=tmp_path / "a", steps=4, teacher=TEACHER, **SMALL)
    named = {"teacher": str(tmp_path / "a"), "loss": "kl"}
    second = train("distill", data, out=tmp_path / "b", steps=4, **named, **SMALL)
    assert print_of(tmp_path / "a") != print_of(tmp_path / "b")
    assert second.policy.predict(observations()).shape == first.predict(observations()).shape


def test_the_command_says_what_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["train", "--agent", "distill", "--dataset", "halfcheetah-medium-replay"]
    command += ["--steps", "2", "--env", "none", "--out", str(tmp_path / "run")]
    for more, says in (
        ([], "--teacher"),
        (["--teacher", "no/such"], "the teacher no/such: no such directory"),
    ):
        assert main([*command, *more]) == 2
        lines = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
        assert says in lines[-1] and "Traceback" not in "".join(lines)
    assert not (tmp_path / "run").exists()


def test_held_out_episodes_are_asked_about_too(tmp_path: Path) -> None:
    data: OfflineDataset = walk()
    train("distill", data, out=tmp_path / "run", steps=2, eval_every=1, teacher=TEACHER, **SMALL)
    table = (tmp_path / "run" / "metrics.csv").read_text()
    assert "validation/teacher_kl" in table and "validation/teacher_error" in table
    assert read_json(tmp_path / "run" / "summary.json")["best_by"] == "validation/teacher_error"
