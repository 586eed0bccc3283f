import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from offrl.actors import DeterministicActor
from offrl.datasets.offline import Spec
from offrl.errors import ConfigError, RunError
from offrl.evaluation import evaluate
from offrl.evaluation_cli import find_targets, main
from offrl.networks import Learners
from offrl.policy import Policy, load_policy

REFERENCE = {"min": 0.0, "max": 50.0, "source": "a table"}


def fake_run(folder: Path, seed: int = 0, obs_dim: int = 11, **changes: Any) -> Path:
    """A run whose policy falls within a few dozen steps."""
    actor = DeterministicActor(obs_dim, 3, [16], Learners((seed,)))
    provenance = {"agent": "bc", "env": "Hopper-v5"}
    Policy(actor, Spec.unbounded(obs_dim, 3), provenance=provenance).save(folder / "policy")
    config = {"agent": "bc", "env": "Hopper-v5", "dataset": {"reference": REFERENCE}} | changes
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def as_json(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> Any:
    assert main([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_run_is_evaluated_as_in_python(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = fake_run(tmp_path / "run")
    (entry,) = as_json([str(run), "--episodes", "3", "--seed", "4"], capsys)["runs"]
    (found,) = entry["evaluations"]
    expected = evaluate(load_policy(run), "Hopper-v5", 3, 4)
    assert found["returns"] == expected.returns.tolist()
    assert (found["env"], found["episodes"], found["seed"]) == ("Hopper-v5", 3, 4)
    # The run's own references: 100 (mean - 0) / (50 - 0).
    assert found["score"] == pytest.approx(2 * expected.mean)
    assert main([str(run), "--episodes", "3", "--seed", "4"]) == 0
    text = capsys.readouterr().out
    assert f"return  {expected.mean:.1f}" in text and "100 of 50.0: a table" in text


def test_a_policy_alone_knows_its_environment(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = fake_run(tmp_path / "run")
    (run / "policy").rename(tmp_path / "policy")
    (entry,) = as_json([str(tmp_path / "policy"), "--episodes", "2"], capsys)["runs"]
    assert "D4RL" in entry["evaluations"][0]["reference"]["source"]


def test_another_environment_has_its_own_references(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = fake_run(tmp_path / "run", env="Hopper-v0")
    found = as_json([str(run), "--episodes", "2", "--env", "Hopper-v5"], capsys)
    (evaluation,) = found["runs"][0]["evaluations"]
    assert evaluation["env"] == "Hopper-v5" and "D4RL" in evaluation["reference"]["source"]


def test_seeds_together_and_runs_against_each_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for s in (2, 10, 1):
        fake_run(tmp_path / "several" / f"seed-{s}", s)
    alone = fake_run(tmp_path / "alone", 7)
    arguments = [str(tmp_path / "several"), str(alone), "--episodes", "3"]
    found = as_json(arguments, capsys)
    several, single = found["runs"]
    names = [Path(e["policy"]).parent.name for e in several["evaluations"]]
    assert names == ["seed-1", "seed-2", "seed-10"]
    means = [e["mean"] for e in several["evaluations"]]
    together = several["together"]
    assert together["learners"] == 3 and "together" not in single
    assert together["mean"] == pytest.approx(np.mean(means))
    half = 4.302653 * np.std(means, ddof=1) / 3**0.5
    assert together["ci95"][1] - together["mean"] == pytest.approx(half, rel=1e-6)
    assert together["score"] == pytest.approx(2 * np.mean(means))
    difference = np.mean(means) - single["evaluations"][0]["mean"]
    assert found["difference"]["mean"] == pytest.approx(difference)
    assert main(arguments) == 0
    text = capsys.readouterr().out
    assert "3 learners" in text and f"{difference:+.1f}" in text
    assert "over starts" in text and "Welch" not in text
    assert found["difference"]["ci95_learners"] is None  # of one learner there is no spread


def test_the_difference_of_several_seeds_has_the_spread_over_seeds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for run, seeds in (("a", (1, 2, 3)), ("b", (4, 5))):
        for s in seeds:
            fake_run(tmp_path / run / f"seed-{s}", s)
    arguments = [str(tmp_path / "a"), str(tmp_path / "b"), "--episodes", "3"]
    found = as_json(arguments, capsys)
    means = [[e["mean"] for e in run["evaluations"]] for run in found["runs"]]
    interval = stats.ttest_ind(*means, equal_var=False).confidence_interval(0.95)
    assert found["difference"]["ci95_learners"] == pytest.approx([interval.low, interval.high])
    assert main(arguments) == 0
    text = capsys.readouterr().out
    assert f"over learners {interval.low:+.1f} to {interval.high:+.1f} (Welch's t)" in text
    assert "over starts" in text


def test_what_cannot_be_evaluated_is_refused(tmp_path: Path) -> None:
    unknown = fake_run(tmp_path / "unknown", env=None)
    with pytest.raises(ConfigError, match=r"no environment is known .* --env ID"):
        main([str(unknown)])
    function = fake_run(tmp_path / "function", env="robots:make_arm", env_is_callable=True)
    with pytest.raises(ConfigError, match="made by the function robots:make_arm"):
        main([str(function)])
    wide = fake_run(tmp_path / "wide", obs_dim=17)
    with pytest.raises(ConfigError, match="observations: 11 entries, dataset 17"):
        main([str(wide)])
    with pytest.raises(ConfigError, match="unknown environment 'Hoper-v5', did you mean"):
        main([str(wide), "--env", "Hoper-v5"])
    with pytest.raises(ConfigError, match="must be at least 1"):
        main([str(wide), "--episodes", "0"])
    with pytest.raises(RunError, match="no such directory"):
        main([str(tmp_path / "none")])
    with pytest.raises(RunError, match="no policy here"):
        find_targets(tmp_path)
    damaged = {
        "x": r"dataset is 'x', not what a run writes",
        "reference": r"dataset.reference is \{'min': 1\}, not",
        "text": r"dataset.reference is \{'min': 'a', 'max': 2, 'source': 'b'\}, not",
        "list": r"dataset.reference is \[1\], not",
    }
    datasets = ["x", {"reference": {"min": 1}}]
    datasets += [{"reference": {"min": "a", "max": 2, "source": "b"}}, {"reference": [1]}]
    for (name, said), dataset in zip(damaged.items(), datasets, strict=True):
        run = fake_run(tmp_path / name, dataset=dataset)
        with pytest.raises(RunError, match=rf"config.json is damaged: {said}"):
            main([str(run)])
    (wide / "config.json").write_text("[")
    with pytest.raises(RunError, match=r"config.json cannot be read"):
        main([str(wide)])


def test_a_video_cannot_be_asked_for_in_vain(tmp_path: Path) -> None:
    run = str(fake_run(tmp_path / "run"))
    with pytest.raises(ConfigError, match="one policy"):
        main([run, run, "--video", str(tmp_path / "a.gif")])
    with pytest.raises(ConfigError, match="must end in"):
        main([run, "--video", str(tmp_path / "a.avi")])
    (tmp_path / "a.gif").write_text("mine")
    with pytest.raises(RunError, match="exists already"):
        main([run, "--video", str(tmp_path / "a.gif")])
    with pytest.raises(RunError, match="is not a directory"):
        main([run, "--video", str(tmp_path / "none" / "a.gif")])
