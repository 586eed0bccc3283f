"""Everything that is trained on a device stays on it, and what is asked of devices is answered."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from elsewhere import DEVICE, Crossing, Elsewhere, There, elsewhere
from problems import ACT, OBS, Drift, narrow, small_config, stackable, walk
from torch import Tensor

from offrl import checkpoints, training
from offrl.agents import AGENTS
from offrl.cli import main
from offrl.corrupt_cli import TrainedAttacker
from offrl.devices import choose_device, home_of, sent
from offrl.errors import ConfigError, RunError
from offrl.evaluation import evaluate
from offrl.experiment import resume_run, start_run, train
from offrl.nearest import NearestAction
from offrl.networks import Learners
from offrl.plans import plan
from offrl.policy_guidance import Guidance
from offrl.synthesis import Generator, GeneratorConfig
from offrl.training import TrainConfig, Trainer

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
SETTINGS: dict[str, Any] = {
    **{"steps": 12, "batch_size": 8, "log_every": 4, "eval_every": 6, "eval_episodes": 2},
    **{"checkpoint_every": 6, "validation": 0.25},
}


@pytest.fixture
def mode(monkeypatch: pytest.MonkeyPatch) -> Iterator[Elsewhere]:
    with elsewhere(monkeypatch) as made:
        yield made


def trainer_of(name: str, folder: Path, device: str, seeds: int = 1, **changes: Any) -> Trainer:
    config = TrainConfig(steps=9, batch_size=8, device=device, precision="float64", seeds=seeds)
    agent = AGENTS[name][0](walk().spec, small_config(name, **changes), Learners(range(seeds)))
    folders = [folder / str(seed) for seed in range(seeds)]
    return Trainer(agent, walk(), walk(seed=1), config, folders, folder)


def updates(trainer: Trainer, count: int, mode: Elsewhere | None = None) -> dict[str, Tensor]:
    """The metrics of the last of them; within `mode` nothing may cross."""
    metrics = {}
    for step in range(count):
        batch, noise = trainer.feed.at(step)
        trainer.agent.schedule(step, 9)
        inputs = batch, noise, step % trainer.agent.period
        if mode is None:
            metrics = trainer.agent.update(*inputs)
        else:
            with mode.alone():
                metrics = trainer.agent.update(*inputs)
    return metrics


# -- agents --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(AGENTS))
def test_updates_stay_on_their_device(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    count = AGENTS[name][0](walk().spec, small_config(name), Learners()).period
    seeds = 2 if stackable(name) else 1
    with elsewhere(monkeypatch) as mode:
        there = trainer_of(name, tmp_path, DEVICE.type, seeds)
        metrics = updates(there, count, mode)
        entries = checkpoints.agent_entries(there.agent)
        assert all(isinstance(x, There) for x in metrics.values())
        assert all(isinstance(e.tensor, There) for e in entries.values())
        measured = results(there)
        checkpoints.save(there.folders, count, entries, [{}] * seeds, keep=1)
    # What was trained there goes on here, as if it had been trained here.
    here, loaded = (trainer_of(name, tmp_path, "cpu", seeds) for _ in range(2))
    updates(here, count)
    entries = checkpoints.agent_entries(loaded.agent)
    checkpoints.load(loaded.folders, count, entries)
    for key, entry in checkpoints.agent_entries(here.agent).items():
        torch.testing.assert_close(entries[key].tensor, entry.tensor, rtol=0, atol=1e-9, msg=key)
    assert measured == pytest.approx(results(here), rel=1e-5, abs=1e-6)


def results(trainer: Trainer) -> dict[str, float]:
    """What the last learner's validation, evaluation and policy say."""
    policy = trainer.policy(len(trainer.folders) - 1)
    values = {k: float(v.flatten()[-1]) for k, v in trainer._validate().items()}
    values["return"] = evaluate(policy, Drift, 1).mean
    action = policy.predict(np.zeros(OBS))
    return values | {f"action {i}": float(u) for i, u in enumerate(action)}


# One of each kind of view, and all that derive something from the whole of it.
KEEPERS: dict[str, dict[str, Any]] = {
    **{"prdc": {}, "odice_il": {}, "diffusion_policy": {}, "beso": {}, "ptp": {}},
    **{"act_jepa": {}, "dt": {}, "doc": {}, "preference": {}, "distill": {}},
    "iql": {"cocoa": True, "cocoa_rank": 2, "cocoa_hidden": (6, 5), "cocoa_epochs": 1},
}


@pytest.mark.parametrize("name", KEEPERS)
def test_data_may_stay_on_the_host(
    name: str, mode: Elsewhere, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(training, "home_of", lambda size, device: CPU)
    monkeypatch.setenv("OFFRL_CACHE", str(tmp_path))  # nothing that was learned here
    trainer = trainer_of(name, tmp_path, DEVICE.type, **KEEPERS[name])
    assert not isinstance(trainer.feed._replay.rows, There)
    updates(trainer, trainer.agent.period, mode)
    trainer._validate()


FAULTS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "a tensor of the host": (lambda batch: batch.reward * torch.ones(8), "of the host"),
    "a number of the host": (lambda batch: batch.reward * torch.tensor(0.5), "of the host"),
    "random numbers of the host": (lambda batch: torch.rand(8), "of the host"),
    "a number that is read": (lambda batch: batch.reward.mean().item(), "wait"),
    "a branch on a value": (lambda batch: 1 if batch.mask.all() else 0, "wait"),
    "a tensor that is read": (lambda batch: batch.reward.cpu(), "wait"),
    "an array": (lambda batch: np.asarray(batch.reward), "numpy"),
    "a tensor that is sent": (lambda batch: torch.zeros(8).to(batch.reward.device), "of the host"),
    "a tensor that is written": (lambda batch: batch.reward.copy_(torch.zeros(8)), "of the host"),
    "as many as a mask has": (lambda batch: batch.reward[batch.mask > 0], "wait"),
    "places of a mask": (lambda batch: batch.mask.nonzero(), "wait"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_caught(
    fault: str, mode: Elsewhere, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    trainer = trainer_of("bc", tmp_path, DEVICE.type)
    updates(trainer, 1, mode)
    planted, said = FAULTS[fault]
    sound = trainer.agent.update

    def careless(batch: Any, noise: Any, phase: int) -> Any:
        planted(batch)
        return sound(batch, noise, phase)

    monkeypatch.setattr(trainer.agent, "update", careless)
    with pytest.raises((Crossing, RuntimeError), match=said):
        updates(trainer, 1, mode)


def test_tensors_of_two_devices_do_not_meet(mode: Elsewhere) -> None:
    there = torch.ones(3).to(DEVICE)
    assert isinstance(there * torch.tensor(2.0), There)  # as CUDA allows
    with pytest.raises(Crossing, match=r"\(3,\) on the host"):
        there + torch.ones(3)


# -- runs ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["iql", "prdc"])
def test_a_run_elsewhere_ends_with_the_same_bytes(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    settings = {**SETTINGS, **narrow(name)}
    train(name, walk(), env=Drift, out=tmp_path / "here", device="cpu", **settings)
    out = tmp_path / "there"
    with elsewhere(monkeypatch):
        train(name, walk(), env=Drift, out=out, device=DEVICE.type, **settings)
        last = out / "checkpoints" / "step-000000012"
        assert state(out) == state(tmp_path / "here")
        shutil.rmtree(last)
        resume_run(out, dataset=walk(), env=Drift)
        assert state(out) == state(tmp_path / "here")
    shutil.rmtree(last)
    train(resume=out, dataset=walk(), env=Drift, device="cpu")  # where there is no such device
    assert state(out) == state(tmp_path / "here")


def state(out: Path) -> bytes:
    return (out / "checkpoints" / "step-000000012" / "state.safetensors").read_bytes()


def test_the_clock_is_read_when_the_device_has_finished(
    mode: Elsewhere, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    trainer = trainer_of("bc", tmp_path, DEVICE.type)
    sound, waits = trainer.agent.update, []

    def noted(*inputs: Any) -> Any:
        metrics = sound(*inputs)
        waits.append(mode.waits)
        return metrics

    def clock() -> float:
        assert not waits or mode.waits > waits[-1], "updates may still be under way"
        waits.clear()
        return 0.001 * mode.waits

    monkeypatch.setattr(trainer.agent, "update", noted)
    monkeypatch.setattr(training, "time", SimpleNamespace(perf_counter=clock))
    trainer.folders[0].mkdir()
    trainer.run()


def test_memory_that_runs_out_is_named_with_what_to_lower(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = (
        "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.15 GiB "
        "of which 1.19 GiB is free. Including non-PyTorch memory, this process has 77 GiB."
    )

    def update(*_: Any) -> None:
        raise torch.OutOfMemoryError(said)

    monkeypatch.setattr(AGENTS["bc"][0], "update", update)
    with pytest.raises(
        RunError, match=r"2\.00 GiB.*is free\..*batch-size \(now 8\), --seeds \(now"
    ):
        train("bc", walk(), env=Drift, out=tmp_path / "run", device="cpu", seeds=2, **SETTINGS)
    assert not (tmp_path / "run").exists()
    arguments = ["--dataset", "hopper-medium-replay", "--env", "none", "--device", "cpu"]
    assert main(["train", "--agent", "bc", "--out", str(tmp_path / "run"), *arguments]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("offrl: CUDA out of memory") and "--batch-size (now 256) or" in last


def test_memory_that_runs_out_for_a_language_model(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    runs = pytest.importorskip("offrl.lm.runs")

    def fit(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(runs, "fit", fit)
    monkeypatch.setattr(runs, "_log", lambda path: None)
    planned = runs.Plan(None, runs.objective("dpo"), [], None)
    with pytest.raises(RunError, match=r"2\.00 GiB\. .*--micro-batch \(now 8\)"):
        runs._go(planned, tmp_path, resume=False)


# -- devices -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gpu", "cpu:0", "cuda:", "cuda:x", "cuda:-1", "meta", ""])
def test_names_that_no_device_has_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"there is no device '{name}'; use auto, cpu, cuda or"):
        choose_device(name)


def test_apple_gpus_are_refused_with_the_reason() -> None:
    with pytest.raises(ConfigError, match=r"'mps' cannot be used: .*float64.*--device cpu"):
        choose_device("mps")


def test_a_missing_gpu_is_answered_with_what_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(device: Any) -> None:
        raise RuntimeError("CUDA error: invalid device ordinal\nCompile with TORCH_USE_CUDA_DSA")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda i: f"Model {i}")
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "set_device", refuse)
    said = (
        "device 'cuda:7' cannot be used: CUDA error: invalid device ordinal. There is cpu, "
        "cuda:0 (Model 0), cuda:1 (Model 1); --device auto takes what there is"
    )
    with pytest.raises(ConfigError) as refused:
        choose_device("cuda:7")
    assert str(refused.value) == said
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"There is cpu; --device auto"):
        choose_device("cuda:0")
    assert choose_device("auto") == choose_device("cpu") == CPU


def test_data_too_large_for_a_gpu_stay_on_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1_000, 4_000))
    assert home_of(500, GPU) == GPU
    assert home_of(501, GPU) == CPU
    assert home_of(10**15, CPU) == CPU
    replay = AGENTS["dt"][0](walk().spec, small_config("dt"), Learners()).view(walk())
    assert replay.nbytes > replay.rows.nbytes + replay.index.nbytes


class Host(Tensor):
    """Writes down how it is sent."""

    def pin_memory(self, *_: Any) -> "Host":  # type: ignore[override]
        CALLS.append("pinned")
        return self

    def to(self, *where: Any, **how: Any) -> "Host":  # type: ignore[override]
        CALLS.append((*where, how))
        return self


CALLS: list[Any] = []


def test_batches_are_sent_from_locked_memory() -> None:
    CALLS.clear()
    sent(torch.zeros(2).as_subclass(Host), GPU)
    assert CALLS == ["pinned", (GPU, {"non_blocking": True})]
    CALLS.clear()
    sent(torch.zeros(2).as_subclass(Host), CPU)
    assert CALLS == [(CPU, {})]


# -- beside training -----------------------------------------------------------------------------


def test_a_neighbour_search_counts_on_its_device(mode: Elsewhere) -> None:
    rng = np.random.default_rng(0)
    obs, action = (rng.normal(size=(300, n)).astype(np.float32) for n in (OBS, ACT))
    here, there = (NearestAction(obs, action, 2.0, device=d) for d in (CPU, DEVICE))
    queries = torch.from_numpy(obs[:20]), torch.from_numpy(rng.normal(size=(20, ACT)))
    index = torch.arange(20)
    asked = [x.to(DEVICE) for x in (*queries, index)]
    with mode.alone():
        found, own = there.with_own(*asked)
    expected = here.with_own(*queries, index)
    assert torch.equal(found.cpu(), expected[0]) and torch.equal(own.cpu(), expected[1])
    assert there.statistics()["certified"] == 1.0


def test_a_generator_trains_and_draws_on_its_device(mode: Elsewhere) -> None:
    config = GeneratorConfig(length=8, channels=8, steps=2, batch_size=4)
    here, there = Generator(walk(), config, 0), Generator(walk(), config, 0).to(DEVICE)
    here.fit(), there.fit()
    assert there.losses == here.losses
    policy = AGENTS["iql"][0](walk().spec, small_config("iql"), Learners()).policy()
    made = [g.make(3, policy, Guidance(), sampler_steps=2) for g in (here, there)]
    np.testing.assert_array_equal(made[0].rows, made[1].rows)


def test_an_attacker_answers_on_its_device(
    mode: Elsewhere, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    settings = {"steps": 2, "batch_size": 8, "device": "cpu", **narrow("edac")}
    planned = plan("edac", walk(), env=None, settings=settings)
    start_run(planned, tmp_path / "run")
    monkeypatch.setattr("offrl.corrupt_cli.choose_device", torch.device)
    obs = torch.from_numpy(walk().rows[:20, :OBS])
    slopes = []
    for device in (CPU, DEVICE):
        attacker = TrainedAttacker(planned, tmp_path / "run", device.type)
        noisy = obs.clone().requires_grad_()
        (slope,) = torch.autograd.grad(attacker.q(noisy, attacker.act(noisy)).sum(), noisy)
        slopes.append(slope)
    assert torch.equal(slopes[0], slopes[1])  # both on the host, where the data are
