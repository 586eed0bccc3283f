"""Collecting: rollouts and SAC, killed and resumed, on an environment of ten steps."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import tiny_env
import torch
from numpy.typing import NDArray
from stable_baselines3 import SAC as Learner
from tiny_env import ENV_ID, LIMIT, Drift

from offrl.actors import DeterministicActor, GaussianActor
from offrl.cli import main
from offrl.datasets.collection import Request, collect
from offrl.datasets.loading import load_dataset
from offrl.datasets.qualities import RULES, check_quality, targets
from offrl.datasets.rollouts import Act, Rolled, Uniform, load_any_policy, roll_out
from offrl.datasets.sac import (
    SACConfig,
    SACRun,
    _load_state,
    _refill,
    _save_state,
    collect_sac,
    reached,
)
from offrl.datasets.staged import spec_of
from offrl.datasets.staging import Recorder, Staging
from offrl.errors import ConfigError, DataError, RunError
from offrl.networks import Learners
from offrl.policy import Policy

SPEC = spec_of(Drift())
SAC = SACConfig(ENV_ID, seed=3, max_steps=120, eval_every=40, eval_episodes=2, learning_starts=20)


class Killed(Exception):
    pass


def _episode(steps: int, start: float = 0.0) -> dict[str, NDArray[Any]]:
    return {
        "obs": np.full((steps + 1, 2), start, np.float32),
        "action": np.zeros((steps, 1), np.float32),
        "reward": np.ones(steps),
        "terminated": np.asarray(False),
        "truncated": np.asarray(True),
    }


def _bytes(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}


def _arrays(path: Path, gain: float) -> Path:
    np.savez(
        path,
        w0=np.array([[gain, 0.0]]),
        b0=np.zeros(1),
        hidden=np.array("relu"),
        output=np.array("clip"),
    )
    return path


# Staging and recording


def test_staging_keeps_finished_episodes_in_order(tmp_path: Path) -> None:
    staging = Staging(tmp_path / "e")
    for steps in (3, 5):
        staging.append(_episode(steps))
    (tmp_path / "e" / "episode_000007.tmp").write_bytes(b"half an episode")
    again = Staging(tmp_path / "e")
    again.append(_episode(7))
    assert [len(e["reward"]) for e in Staging(tmp_path / "e")] == [3, 5, 7]
    assert (len(again), again.steps()) == (3, 15)
    assert not list((tmp_path / "e").glob("*.tmp"))


def test_a_damaged_episode_is_named(tmp_path: Path) -> None:
    staging = Staging(tmp_path)
    staging.append(_episode(3))
    file = staging.files[0]
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(DataError, match=r"episode_000000\.npz cannot be read.*[Rr]emove"):
        staging.steps()


def test_recorder_keeps_what_the_environment_received_and_returned(tmp_path: Path) -> None:
    env = Recorder(Drift(), Staging(tmp_path))
    first, _ = env.reset(seed=0)
    env.step(np.array([0.5], np.float32))  # reset before its end: dropped
    first, _ = env.reset(seed=1)
    rewards, seen = [], [first]
    for _ in range(LIMIT):
        obs, reward, terminated, _, _ = env.step(np.array([2.0], np.float32))
        rewards.append(reward)
        seen.append(obs)
        if terminated:
            break
    (episode,) = list(env.staging)
    assert np.array_equal(episode["obs"], np.array(seen))
    assert np.array_equal(episode["reward"], np.array(rewards))
    assert np.array_equal(episode["action"], np.full((len(rewards), 1), 2.0, np.float32))
    assert bool(episode["terminated"]) and not bool(episode["truncated"])


def test_observations_of_another_shape_are_refused(tmp_path: Path) -> None:
    env = Recorder(Drift(), Staging(tmp_path))
    env.reset(seed=0)
    env.step(np.array([0.5], np.float32))
    env.env.step = lambda action: (np.zeros(5), 0.0, False, False, {})  # type: ignore[method-assign]
    with pytest.raises(RunError, match=r"observed \(5,\) at step 2 of an episode that began with"):
        env.step(np.array([0.5], np.float32))


def test_an_end_at_the_time_limit_is_an_end(tmp_path: Path) -> None:
    env = Recorder(gymnasium.wrappers.TimeLimit(Drift(), 3), Staging(tmp_path))
    env.reset(seed=0)
    inside: Any = env.unwrapped
    for x in (0.0, 0.0, 0.9):  # in the third step beyond 1, and at the limit
        inside.x = x
        _, _, terminated, truncated, _ = env.step(np.array([2.0], np.float32))
    assert terminated and truncated
    (episode,) = list(env.staging)
    assert bool(episode["terminated"]) and not bool(episode["truncated"])


# Rollouts


class KilledAt:
    """Uniform actions until the third step of episode `number`, then death."""

    def __init__(self, number: int) -> None:
        self.number, self.uniform = number, Uniform(SPEC, 0)

    def episode(self, number: int) -> Act:
        act = self.uniform.episode(number)
        taken = 0

        def counted(obs: NDArray[Any], reward: float) -> NDArray[np.float32]:
            nonlocal taken
            taken += 1
            if number == self.number and taken == 3:
                raise Killed
            return act(obs, reward)

        return counted


def test_a_killed_rollout_resumes_to_the_same_bytes(tmp_path: Path) -> None:
    roll_out(ENV_ID, Uniform(SPEC, 0), Staging(tmp_path / "whole"), 60, seed=5)
    with pytest.raises(Killed):
        roll_out(ENV_ID, KilledAt(4), Staging(tmp_path / "killed"), 60, seed=5)
    assert len(Staging(tmp_path / "killed")) == 4
    roll_out(ENV_ID, Uniform(SPEC, 0), Staging(tmp_path / "killed"), 60, seed=5)
    assert _bytes(tmp_path / "killed") == _bytes(tmp_path / "whole")
    assert 60 <= Staging(tmp_path / "whole").steps() < 60 + LIMIT


def test_samples_of_our_policy_resume_to_the_same_bytes(tmp_path: Path) -> None:
    policy = Policy(GaussianActor(2, 1, (8,), Learners([0])), SPEC, seed=1)
    for name, stops in (("whole", (40,)), ("stopped", (15, 40))):
        for steps in stops:
            again = Policy(policy.actor, SPEC, seed=1)
            roll_out(ENV_ID, Rolled(again, False), Staging(tmp_path / name), steps, seed=5)
    assert _bytes(tmp_path / "stopped") == _bytes(tmp_path / "whole")
    actions = np.concatenate([e["action"] for e in Staging(tmp_path / "whole")])
    assert actions.std() > 0.1


def test_uniform_actions_fill_the_bounds() -> None:
    act = Uniform(SPEC, 0).episode(0)
    actions = np.concatenate([act(np.zeros(2), 0.0) for _ in range(2_000)])
    assert -2.0 <= actions.min() < -1.9 and 1.9 < actions.max() <= 2.0
    assert abs(actions.mean()) < 0.15


def test_a_policy_directory_is_rolled_out_and_checked(tmp_path: Path) -> None:
    policy = Policy(DeterministicActor(2, 1, (8,), Learners([0])), SPEC)
    policy.save(tmp_path / "policy")
    loaded = load_any_policy(tmp_path, ENV_ID, SPEC, 0)
    assert np.array_equal(loaded.predict(np.ones(2)), policy.predict(np.ones(2)))
    with pytest.raises(ConfigError, match="does not match"):
        load_any_policy(tmp_path, "Pendulum-v1", SPEC, 0)
    (tmp_path / "p.pkl").write_bytes(b"")
    with pytest.raises(RunError, match="not a policy that offrl reads"):
        load_any_policy(tmp_path / "p.pkl", ENV_ID, SPEC, 0)


# SAC


def test_a_killed_sac_keeps_its_episodes_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[int] = []
    learn = Learner.learn

    def watched(self: Any, *args: Any, **kwargs: Any) -> Any:
        held.append(self.replay_buffer.size())
        return learn(self, *args, **kwargs)

    monkeypatch.setattr(Learner, "learn", watched)

    def die(steps: int) -> None:
        if steps == 70:
            raise Killed

    with pytest.raises(Killed):
        collect_sac(SAC, tmp_path, on_step=die)
    run = SACRun(tmp_path)
    before, staged = _bytes(tmp_path / "episodes"), run.staging.steps()
    assert 40 < staged <= 70
    seen: list[int] = []
    log = collect_sac(SAC, tmp_path, on_step=seen.append)
    after = _bytes(tmp_path / "episodes")
    assert {name: after[name] for name in before} == before and len(after) > len(before)
    assert (seen[0], seen[-1]) == (staged + 1, 120)
    assert log["resumed_at"] == [staged] and log["finished"]
    assert held == [0, staged]
    assert [steps for steps, _ in log["evaluations"]] == [40, 80, 120]
    assert all(run.actor(steps).exists() for steps in (40, 80, 120))
    assert collect_sac(SAC, tmp_path, on_step=seen.append) == log and seen[-1] == 120


def test_a_resumed_sac_goes_on_with_its_networks(tmp_path: Path) -> None:
    idle = replace(SAC, learning_starts=1_000)  # no update, so that the networks stay as they were
    collect_sac(replace(idle, max_steps=40), tmp_path)
    collect_sac(idle, tmp_path)
    run = SACRun(tmp_path)
    first, last = (run.actor(steps).read_bytes() for steps in (40, 120))
    assert first == last
    (tmp_path / "sac.safetensors").unlink()
    collect_sac(replace(idle, max_steps=160), tmp_path)
    assert run.actor(160).read_bytes() != first


def test_what_sac_resumes_from_is_what_it_had(tmp_path: Path) -> None:
    def model(seed: int) -> Any:
        torch.manual_seed(seed)
        return Learner("MlpPolicy", Drift(), seed=seed, learning_starts=5, device="cpu")

    trained, fresh = model(0), model(1)
    trained.learn(20)
    _save_state(trained, tmp_path / "s.safetensors")
    _load_state(fresh, tmp_path / "s.safetensors")
    fresh.replay_buffer = trained.replay_buffer
    fresh.set_logger(trained.logger)
    for one in (trained, fresh):  # the next update is the same only if the optimisers are too
        np.random.seed(0)  # noqa: NPY002, what stable-baselines3 draws batches from
        torch.manual_seed(0)
        one.train(3, 16)
    for (name, a), b in zip(
        trained.policy.state_dict().items(), fresh.policy.state_dict().values(), strict=True
    ):
        assert torch.equal(a, b), name
    assert torch.equal(trained.log_ent_coef, fresh.log_ent_coef)


def test_sac_refills_its_replay_buffer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    staging = Staging(tmp_path)
    staging.append(_episode(2, 0.5) | {"action": np.array([[1.0], [-2.0]], np.float32)})
    ended = {"terminated": np.asarray(True), "truncated": np.asarray(False)}
    staging.append(_episode(1) | ended)
    model = Learner("MlpPolicy", Drift(), buffer_size=5, device="cpu")
    _refill(model, staging)
    buffer: Any = model.replay_buffer
    assert buffer.size() == 3
    assert buffer.actions[:3, 0, 0].tolist() == [0.5, -1.0, 0.0]  # in [-1, 1], as SAC stores them
    assert buffer.dones[:3, 0].tolist() == [0, 1, 1]
    assert buffer.timeouts[:3, 0].tolist() == [0, 1, 0]
    assert buffer.observations[:3, 0, 0].tolist() == [0.5, 0.5, 0.0]


def test_a_run_of_other_settings_is_refused(tmp_path: Path) -> None:
    (tmp_path / "sac.json").write_text(
        json.dumps({"config": {**vars(SAC), "seed": 9}, "evaluations": [], "resumed_at": []})
    )
    with pytest.raises(ConfigError, match=r"with seed 9, not 3; go on with that, or choose"):
        collect_sac(SAC, tmp_path)


def test_the_first_evaluation_that_reaches_a_return(tmp_path: Path) -> None:
    log = {"evaluations": [[10, 1.0], [20, 5.0], [30, 2.0], [40, 6.0]]}
    assert reached(log, 5.0) == 20
    assert reached(log, 5.0, min_steps=25) == 40
    assert reached(log, 6.5) is None
    run = SACRun(tmp_path)
    for steps in (4, 6, 3):
        run.staging.append(_episode(steps))
    assert [run.episodes_until(n) for n in (3, 4, 9, 10, 12, 13)] == [0, 1, 1, 2, 2, 3]


# Datasets of each quality


def _request(tmp_path: Path, **changes: Any) -> Request:
    settings: dict[str, Any] = {
        "sac_steps": 120, "eval_every": 40, "eval_episodes": 2, "steps": 25, "target_return": -1e6
    }  # fmt: skip
    return Request(ENV_ID, **(settings | {"out": tmp_path / "set"} | changes))


def test_medium_replay_is_the_run_up_to_its_evaluation(tmp_path: Path) -> None:
    sac = tmp_path / "sac"
    request = _request(tmp_path, quality="medium-replay", steps=None, sac_folder=sac)
    dataset = collect(request)
    recorded = list(Staging(sac / "episodes"))
    ends = np.cumsum([len(e["reward"]) for e in recorded])
    kept = int((ends <= 40).sum())
    assert kept == len(recorded) == dataset.num_episodes  # SAC stopped at its first evaluation
    for e, raw in enumerate(recorded):
        ours = dataset.episode(e)
        assert np.array_equal(ours["obs"], raw["obs"])
        assert np.array_equal(ours["reward"], raw["reward"].astype(np.float32))
        assert bool(ours["terminated"][-1]) == bool(raw["terminated"])
    made = dataset.provenance
    assert made["rule"] == RULES["medium-replay"] and made["evaluations"][0][0] == 40
    assert not request.staging.exists()

    # The run goes on to its end; what was medium before is medium still.
    full = collect(
        _request(
            tmp_path, quality="full-replay", steps=None, target_return=None, sac_folder=sac,
            out=tmp_path / "full",
        )
    )  # fmt: skip
    assert 100 <= full.num_steps <= 120
    again = collect(
        _request(
            tmp_path, quality="medium-replay", steps=None, sac_folder=sac, out=tmp_path / "again"
        )
    )
    assert np.array_equal(again.rows, dataset.rows)
    assert again.provenance["evaluations"] == made["evaluations"]
    assert (made["resumed_at_steps"], again.provenance["resumed_at_steps"]) == ([], [])
    assert len(full.provenance["resumed_at_steps"]) == 1


def test_medium_expert_is_half_of_each(tmp_path: Path) -> None:
    sac = tmp_path / "sac"
    both = collect(_request(tmp_path, quality="medium-expert", sac_folder=sac, steps=60))
    policies = both.provenance["policies"]
    assert (policies["medium"]["steps"], policies["expert"]["steps"]) == (40, 120)
    medium = collect(
        _request(tmp_path, quality="medium", sac_folder=sac, steps=30, out=tmp_path / "medium")
    )
    expert = collect(
        _request(
            tmp_path, quality="expert", sac_folder=sac, steps=30, target_return=None,
            out=tmp_path / "expert",
        )
    )  # fmt: skip
    assert np.array_equal(both.rows, np.concatenate([medium.rows, expert.rows]))
    assert medium.provenance["policies"]["medium"] == policies["medium"]
    assert not np.array_equal(medium.obs[0], expert.obs[0])  # each has starts of its own


def test_sac_that_falls_short_says_by_how_much_and_goes_on(tmp_path: Path) -> None:
    short = _request(tmp_path, quality="medium", target_return=1e6, sac_steps=40)
    with pytest.raises(DataError, match=r"40 steps and its best evaluation was .*--sac-steps"):
        collect(short)
    assert not short.out.exists()
    with pytest.raises(DataError, match=r"SAC made 80 steps"):
        collect(_request(tmp_path, quality="medium", target_return=1e6, sac_steps=80))
    log = json.loads((short.staging / "sac" / "sac.json").read_text())
    assert [steps for steps, _ in log["evaluations"]] == [40, 80]
    log["evaluations"] = [[40, 3.25], [80, 1.0]]
    (short.staging / "sac" / "sac.json").write_text(json.dumps(log))
    with pytest.raises(DataError, match=r"its best evaluation was 3\.2, below 1000000\.0"):
        collect(_request(tmp_path, quality="medium", target_return=1e6, sac_steps=80))


def test_the_rules_of_d4rl() -> None:
    assert targets("medium-replay", "HalfCheetah-v5", None, None).medium == 12135.0 / 3
    assert targets("expert", "Hopper-v5", None, None).expert == 3234.3
    assert targets("expert", ENV_ID, None, None).expert == float("inf")
    assert targets("medium-expert", "Hopper-v5", 7.0, 9.0) == targets("medium", ENV_ID, 7.0, 9.0)
    with pytest.raises(ConfigError, match=r"no expert reference .*--target-return"):
        targets("medium", ENV_ID, None, None)
    with pytest.raises(ConfigError, match=r"unknown quality 'medum', did you mean 'medium'"):
        check_quality("medum")


# The command


def _cli(*words: Any) -> int:
    return main(["data", "collect", "--env", f"tiny_env:{ENV_ID}", *map(str, words)])


def test_the_command_writes_a_dataset_with_a_card(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "drift-random"
    assert _cli("--quality", "random", "--steps", 40, "--seed", 2, "--out", out) == 0
    dataset = load_dataset(out)
    assert f"{dataset.num_steps} steps in {dataset.num_episodes} episodes" in (
        capsys.readouterr().out
    )
    assert dataset.time_limit == LIMIT and dataset.spec.action_high == (2.0,)
    assert dataset.final_known.all() and np.abs(dataset.action).max() <= 2.0
    facts = json.loads((out / "card.json").read_text())
    assert facts["steps"] == dataset.num_steps and facts["fingerprint"] == dataset.fingerprint
    assert sum(facts["histogram"]["episodes"]) == dataset.num_episodes
    assert facts["provenance"]["seed"] == 2 and "mujoco" in facts["provenance"]["versions"]
    text = (out / "card.md").read_text()
    assert RULES["random"] in text and dataset.fingerprint in text
    assert (out / "histogram.png").stat().st_size > 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["drift-random"]

    before = (out / "card.md").read_bytes()
    assert _cli("--quality", "random", "--steps", 40, "--out", out) == 2
    assert "exists and is not overwritten" in capsys.readouterr().err
    assert (out / "card.md").read_bytes() == before


def test_the_command_rolls_plain_arrays_out(tmp_path: Path) -> None:
    policy = _arrays(tmp_path / "home.npz", -5.0)  # steps onto x = 0 and stays
    assert _cli("--policy", policy, "--steps", 30, "--out", tmp_path / "set") == 0
    dataset = load_dataset(tmp_path / "set")
    assert dataset.num_steps == 30 and (dataset.lengths == LIMIT).all()
    assert np.abs(dataset.obs[:, 0].reshape(-1, LIMIT)[:, 2:]).max() < 1e-6
    made = dataset.provenance
    assert made["policy"]["format"] == "plain arrays" and len(made["policy"]["sha256"]) == 64
    assert made["actions"] == "deterministic: the policy has no spread"


def test_a_collection_is_resumed_only_with_its_own_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    steps = 0
    step = Drift.step

    def dying(self: Drift, action: Any) -> Any:
        nonlocal steps
        steps += 1
        if steps == 35:
            raise KeyboardInterrupt
        return step(self, action)

    monkeypatch.setattr(tiny_env.Drift, "step", dying)
    out = tmp_path / "set"
    words = ("--quality", "random", "--out", out, "--steps", 60)
    assert _cli(*words) == 130
    assert "the same command goes on" in capsys.readouterr().err
    begun = _bytes(tmp_path / "set.staging" / "episodes")
    assert begun and not out.exists()

    assert _cli(*words, "--seed", 4) == 2
    assert "with seed 0, not 4" in capsys.readouterr().err
    assert _cli(*words) == 0
    assert _cli(*words[:2], "--steps", 60, "--out", tmp_path / "whole") == 0
    assert np.array_equal(load_dataset(out).rows, load_dataset(tmp_path / "whole").rows)
    assert not (tmp_path / "set.staging").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--quality", "medum"), "unknown quality 'medum', did you mean 'medium'"),
        ((), "give --quality"),
        (("--quality", "policy"), "--policy is missing"),
        (("--quality", "medium"), "--target-return R"),
        (("--quality", "medium-replay", "--steps", "9"), "follows from SAC"),
        (("--quality", "random", "--target-return", "1"), "--target-return is for the medium"),
        (("--quality", "medium", "--expert-return", "1"), "--expert-return is for the expert"),
        (("--quality", "random", "--min-steps", "1"), "which does not make random"),
        (("--quality", "random", "--deterministic"), "--deterministic"),
        (("--quality", "random", "--policy", "x.npz"), "made in another way"),
        (("--quality", "random", "--steps", "0"), "--steps is 0"),
        (("--policy", "missing.npz"), "missing.npz cannot be read"),
        (("--policy", "missing"), "no such directory"),
        (("--policy", "scripted"), "demonstrator"),
    ],
)
def test_requests_that_cannot_be_met(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], message: str
) -> None:
    assert _cli("--out", tmp_path / "set", *words) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_an_unknown_environment_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--quality", "random", "--out", str(tmp_path / "set")]
    assert main(["data", "collect", "--env", "Hoper-v5", *words]) == 2
    assert "did you mean 'Hopper-v5'" in capsys.readouterr().err
    assert main(["data", "collect", "--env", "CartPole-v1", *words]) == 2
    assert "actions are Discrete" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
