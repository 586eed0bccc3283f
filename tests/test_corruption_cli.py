"""`offrl data corrupt`: what it writes, the attacker that it trains, and what it refuses."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from problems import walk

from offrl import cli, corrupt_cli
from offrl.agents import AGENTS
from offrl.checkpoints import steps_in
from offrl.corrupt_cli import attacker_for
from offrl.datasets.corruption import Corruption, corrupt, masks_of
from offrl.datasets.loading import load_dataset
from offrl.datasets.minari import write_minari
from offrl.datasets.offline import OfflineDataset
from offrl.training import Interrupted

WAYS = ["--time-limit", "keep"]  # the walk's terminals are at its length
TRAINED = ["--mode", "adversarial", "--attacker-steps", "2", "--element", "dynamics"]


def clean() -> OfflineDataset:
    """Actions in [-2, 1], observations far from zero."""
    data = walk(10, 10)
    rows = data.rows.copy()
    rows[data.step_rows, 3:5] = 1.5 * rows[data.step_rows, 3:5] - 0.5
    spec = replace(data.spec, action_low=(-2.0, -2.0), action_high=(1.0, 1.0))
    return replace(data, rows=rows, spec=spec)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("OFFRL_CACHE", str(tmp_path / "cache"))
    write_minari(clean(), tmp_path / "clean")
    return tmp_path


def run(folder: Path, *arguments: str, out: str = "dirty") -> int:
    return cli.main(
        ["data", "corrupt", str(folder / "clean"), *WAYS, *arguments, "--out", str(folder / out)]
    )


def test_a_random_corruption_is_what_the_library_makes(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["--element", "dynamics", "actions", "--rate", "0.4", "--scale", "0.5", "--seed", "7"]
    assert run(folder, *more) == 0
    expected = corrupt(clean(), Corruption(("actions", "dynamics"), "random", 0.4, 0.5, 7))
    written = load_dataset(folder / "dirty", time_limit="keep")
    assert written.fingerprint == expected.fingerprint
    masks = masks_of(expected)
    for name, mask in masks_of(written).items():
        np.testing.assert_array_equal(mask, masks[name])
    assert written.name == "walk-random-actions-dynamics"
    assert written.provenance["corruption"]["corrupted"]["any"] == masks["any"].sum()
    said = capsys.readouterr().out
    assert f"of 100 transitions corrupted: actions {masks['actions'].sum()}, dynamics" in said
    assert not (folder / "cache").exists()


def test_elements_may_be_given_one_at_a_time(folder: Path) -> None:
    assert run(folder, "--element", "rewards", "--element", "actions") == 0
    written = load_dataset(folder / "dirty", time_limit="keep")
    assert list(masks_of(written)) == ["actions", "rewards", "any"]


def test_the_attacker_is_trained_once_for_all_masks(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adversarial = ["--mode", "adversarial", "--attacker-steps", "4", "--element", "dynamics"]
    assert run(folder, *adversarial) == 0
    (home,) = (folder / "cache" / "attackers").iterdir()
    assert steps_in(home / "checkpoints") == [4]
    written = load_dataset(folder / "dirty", time_limit="keep")
    record = written.provenance["corruption"]["attacker"]
    assert (record["agent"], record["steps"], record["critics"]) == ("edac", 4, 10)

    monkeypatch.setattr(corrupt_cli, "start_run", None)  # a second training would call it
    assert run(folder, *adversarial, "--seed", "1", out="other") == 0
    other = load_dataset(folder / "other", time_limit="keep")
    assert other.provenance["corruption"]["attacker"] == record
    assert not np.array_equal(masks_of(other)["any"], masks_of(written)["any"])

    # The values that it lowers are its own, in the units of the data.
    attacker = attacker_for(load_dataset(folder / "clean", time_limit="keep"), 4)
    mask = masks_of(written)["dynamics"]
    steps = written.step_rows[mask]
    before, after = (torch.from_numpy(d.following(steps)) for d in (clean(), written))
    q_before, q_after = (attacker.q(obs, attacker.act(obs)).mean() for obs in (before, after))
    assert q_after < q_before


def test_the_attacker_sees_what_its_agent_saw(folder: Path) -> None:
    data = load_dataset(folder / "clean", time_limit="keep")
    attacker = attacker_for(data, 2)
    agent = attacker.agent
    view = agent.view(data)
    batch = view.batch(view.index)
    obs, action = torch.from_numpy(data.obs), torch.from_numpy(data.action)
    torch.testing.assert_close(attacker.q(obs, action), agent.critic(batch.obs, batch.action))
    played = attacker.act(obs)
    torch.testing.assert_close(played, agent.mode(batch.obs) * 1.5 - 0.5)
    assert attacker.q(obs, action).shape == (10, 100)
    assert not any(p.requires_grad for p in agent.parameters())


def test_a_training_that_was_stopped_goes_on(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["--mode", "adversarial", "--attacker-steps", "6", "--element", "actions"]
    real = corrupt_cli.start_run

    def stopped(planned: Any, where: Path) -> Any:
        real(replace(planned, train=replace(planned.train, checkpoint_every=3)), where)
        shutil.rmtree(where / "checkpoints" / "step-000000006")
        raise Interrupted("stopped by SIGTERM at step 3; everything is saved. Continue with: x")

    monkeypatch.setattr(corrupt_cli, "start_run", stopped)
    assert run(folder, *asked) == 130
    said = capsys.readouterr().err
    assert "the attacker was stopped: stopped by SIGTERM at step 3; all of it is kept" in said
    monkeypatch.setattr(corrupt_cli, "start_run", None)
    assert run(folder, *asked) == 0
    # One that was killed before its first checkpoint begins anew.
    (home,) = (folder / "cache" / "attackers").iterdir()
    shutil.rmtree(home / "checkpoints")
    monkeypatch.setattr(corrupt_cli, "start_run", real)
    assert run(folder, *asked, out="again") == 0
    written = [load_dataset(folder / n, time_limit="keep") for n in ("dirty", "again")]
    assert written[0].fingerprint == written[1].fingerprint


def test_another_length_or_other_data_is_another_attacker(folder: Path) -> None:
    data = load_dataset(folder / "clean", time_limit="keep")
    found = {
        corrupt_cli.attacker_hash(corrupt_cli.plan("edac", d, env=None, settings={"steps": n}))
        for d, n in ((data, 3), (data, 4), (data.select([0, 1], "two"), 3))
    }
    assert len(found) == 3
    assert "edac" in AGENTS


def test_adversarial_rewards_need_no_attacker(folder: Path) -> None:
    assert run(folder, "--element", "rewards", "--mode", "adversarial") == 0
    assert not (folder / "cache").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--element", "reward"], "corruption has no element 'reward', did you mean 'rewards'?"),
        (["--element", "rewards", "--mode", "evil"], "corruption has no mode 'evil'; choose from"),
        (["--element", "rewards", "--rate", "2"], "the rate 2.0 is not a share between 0 and 1"),
        (["--element", "rewards", "--rate", "nan"], "the rate nan is not a share"),
        (["--element", "rewards", "--rate", "some"], "invalid float value: 'some'"),
        (["--element", "rewards", "--scale", "-1"], "the scale -1.0 is not a positive number"),
        ([], "the following arguments are required: --element"),
        ([*TRAINED, "--id", "no id"], "'no id' is not a Minari id: '(namespace/)name-v0'"),
    ],
)
def test_what_cannot_be_is_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert run(folder, *arguments) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1
    assert not (folder / "dirty").exists() and not (folder / "cache").exists()


def test_a_folder_that_cannot_be_written_is_refused_before_the_attack(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "file").write_text("")
    assert run(folder, *TRAINED, out="file/dirty") == 2
    said = capsys.readouterr().err
    assert "file/dirty cannot be written: " in said and said.count("\n") == 1
    assert {p.name for p in folder.iterdir()} == {"clean", "file"}  # and nothing was trained


def test_nothing_is_overwritten_and_nothing_corrupted_twice(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(folder, "--element", "rewards") == 0
    before = (folder / "dirty" / "data" / "metadata.json").read_text()
    assert run(folder, "--element", "actions") == 2
    assert "exists and is not overwritten" in capsys.readouterr().err
    assert (folder / "dirty" / "data" / "metadata.json").read_text() == before
    (folder / "clean").rename(folder / "kept")
    (folder / "dirty").rename(folder / "clean")
    assert run(folder, "--element", "actions") == 2
    assert "is corrupted already, by random-rewards" in capsys.readouterr().err


def test_the_stored_file_is_minaris(folder: Path) -> None:
    import minari

    assert run(folder, "--element", "observations", "--id", "mine/dirty-v3") == 0
    metadata = json.loads((folder / "dirty" / "data" / "metadata.json").read_text())
    assert metadata["dataset_id"] == "mine/dirty-v3"
    assert "Random corruption of observations" in metadata["description"]
    source = minari.MinariDataset(folder / "dirty" / "data")
    episode = source[0]
    assert set(episode.infos) == {
        *("next_observations", "corrupted_observations", "corrupted_any"),
    }
    clean_obs = clean().episode(0)["obs"]
    np.testing.assert_array_equal(episode.infos["next_observations"], clean_obs[1:])
    mask = episode.infos["corrupted_observations"]
    np.testing.assert_array_equal(episode.observations[:-1][~mask], clean_obs[:-1][~mask])


def test_help_names_the_elements(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["data", "corrupt", "--help"])
    said = capsys.readouterr().out
    assert "observations, actions, rewards, dynamics" in " ".join(said.split())
    cli.main(["data"])
    said = capsys.readouterr().out
    assert "corrupt corrupt a share of a dataset" in " ".join(said.split())
