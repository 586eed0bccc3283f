"""Agents of one's own, by class and by name."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from problems import ACT, OBS, Drift, walk
from torch import Tensor, nn

import offrl
from offrl.agent import Agent
from offrl.datasets.offline import Spec
from offrl.errors import ConfigError, RunError
from offrl.experiment import resume_run, train
from offrl.files import read_json
from offrl.losses import action_error
from offrl.networks import Learners, Linear
from offrl.optim import adam
from offrl.policy import load_policy
from offrl.types import Batch, Metrics, Noise

OWN = {
    **{"steps": 12, "batch_size": 4, "log_every": 2, "eval_every": 4, "eval_episodes": 2},
    **{"checkpoint_every": 6, "device": "cpu"},
}


class Bias(nn.Module):
    """The smallest actor: one layer."""

    def __init__(self, obs_dim: int, act_dim: int, learners: Learners | None = None) -> None:
        super().__init__()
        self.sizes = {"obs_dim": obs_dim, "act_dim": act_dim}
        self.layer = Linear(obs_dim, act_dim, learners or Learners((0,)))

    def mode(self, obs: Tensor) -> Tensor:
        return torch.tanh(self.layer(obs))

    def sample(self, obs: Tensor, noise: Tensor) -> Tensor:
        return (self.mode(obs) + 0.1 * noise).clamp(-1, 1)

    def spec(self) -> dict[str, Any]:
        return {"type": "Bias", **self.sizes}


@dataclass(frozen=True)
class OwnConfig:
    """Two settings of its own."""

    lr: float = 1e-2
    shrink: float = 0.0  # weight decay, by hand


class Own(Agent):
    """Imitation with an actor that offrl does not have."""

    config: OwnConfig
    config_class = OwnConfig
    recipes: ClassVar[Mapping[str, Mapping[str, Any]]] = {"locomotion": {"shrink": 0.5}}

    def __init__(self, spec: Spec, config: OwnConfig, learners: Learners) -> None:
        super().__init__(spec, config, learners)
        self.actor = Bias(self.obs_dim, self.act_dim, learners)
        self.actor_opt = adam(self.actor.parameters(), config.lr)

    def update(self, batch: Batch, noise: Noise, phase: int) -> Metrics:
        return self.minimize(self.actor_opt, self.actor_loss, batch)

    def actor_loss(self, batch: Batch) -> tuple[Tensor, Metrics]:
        return action_error(self.actor.mode(batch.obs), batch.action).mean(-1), {}

    def validate(self, batch: Batch) -> Metrics:
        return {"own_error": self.actor_loss(batch)[0]}


def test_an_agent_of_one_s_own(tmp_path: Path) -> None:
    out = tmp_path / "run"
    run = offrl.train(Own, walk(12), env=Drift, out=out, seeds=2, shrink=0.25, **OWN)
    record = read_json(out / "config.json")
    assert record["agent"] == f"{__name__}:Own" and record["agent_config"]["shrink"] == 0.25
    assert record["env"].endswith(":Drift") and record["env_is_callable"]
    policy = load_policy(run.folders[0], actor=Bias)
    obs = np.ones((4, OBS), np.float32)
    assert policy.predict(obs).shape == (4, ACT)
    assert (policy.predict(obs) == run.predict(obs)).all()
    with pytest.raises(ConfigError, match="Bias"):
        load_policy(run.folders[0])
    with pytest.raises(RunError, match="pass that function as env="):
        resume_run(out, dataset=walk(12))
    by_name = f"{__name__}:Own"
    offrl.train(by_name, walk(12), env=Drift, out=tmp_path / "b", seeds=2, shrink=0.25, **OWN)
    for name in ("metrics.csv", "policy/policy.safetensors"):
        first, second = (tmp_path / r / "seed-0" / name for r in ("run", "b"))
        assert first.read_bytes() == second.read_bytes()


def test_the_best_of_one_s_own_measure(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"which Own does not measure.* validation/own_error"):
        train(Own, walk(12), env=None, out=tmp_path / "run", **OWN)
    best_by = "validation/own_error"
    run = train(Own, walk(12), env=None, out=tmp_path / "run", best_by=best_by, **OWN)
    assert run.summaries[0]["best"]["validation/own_error"] > 0


def test_a_class_that_cannot_be_imported_is_passed_again(tmp_path: Path) -> None:
    class Local(Own):
        pass

    train(Local, walk(12), env=None, out=tmp_path / "run", best_by="validation/own_error", **OWN)
    with pytest.raises(ConfigError, match="cannot be imported"):
        train(resume=tmp_path / "run", dataset=walk(12))
    train(Local, walk(12), env=None, resume=tmp_path / "run")
    with pytest.raises(RunError, match=r"is a run of .*Local, not of bc"):
        train("bc", walk(12), resume=tmp_path / "run")


def test_settings_must_not_have_the_names_of_a_run_s(tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Clash:
        seed: int = 0

    @dataclass(frozen=True)
    class Needs:
        lr: float

    class Plain:
        lr = 0.1

    for config, said in (
        (Clash, "Clash.seed has the name of a setting that every run has"),
        (Needs, "needs a default for every field"),
        (Plain, "is not a dataclass"),
    ):
        cls = type("Odd", (Own,), {"config_class": config})
        with pytest.raises(ConfigError, match=said):
            train(cls, walk(), env=None, out=tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


class InDictionary(Own):
    def __init__(self, spec: Spec, config: OwnConfig, learners: Learners) -> None:
        super().__init__(spec, config, learners)
        self.by_name = {"actor": self.actor_opt}
        del self.actor_opt


class WithMomentum(Own):
    def __init__(self, spec: Spec, config: OwnConfig, learners: Learners) -> None:
        super().__init__(spec, config, learners)
        lr = torch.tensor(config.lr)
        self.actor_opt = torch.optim.SGD(self.actor.parameters(), lr, 0.9)  # type: ignore[assignment]


class WithMaximum(Own):
    def __init__(self, spec: Spec, config: OwnConfig, learners: Learners) -> None:
        super().__init__(spec, config, learners)
        lr = torch.tensor(config.lr)
        self.actor_opt = torch.optim.Adam(self.actor.parameters(), lr, amsgrad=True)


class WithANumber(Own):
    def __init__(self, spec: Spec, config: OwnConfig, learners: Learners) -> None:
        super().__init__(spec, config, learners)
        self.actor_opt = torch.optim.Adam(self.actor.parameters(), 0.1)


class OfAnother(Own):
    def __init__(self, spec: Spec, config: OwnConfig, learners: Learners) -> None:
        super().__init__(spec, config, learners)
        self.hidden_nets = [Bias(self.obs_dim, self.act_dim, learners)]
        self.other_opt = adam(self.hidden_nets[0].parameters(), config.lr)


@pytest.mark.parametrize(
    ("cls", "said"),
    [
        (InDictionary, "InDictionary: no optimiser moves 'actor.layer"),
        (WithMomentum, "'actor' of WithMomentum is SGD, which cannot be resumed; make it with"),
        (WithMaximum, "is Adam with amsgrad, which cannot be resumed"),
        (WithANumber, "has 0.1 as its learning rate, which must be a tensor; make it with"),
        (OfAnother, "'other' of OfAnother moves a parameter of no network"),
    ],
)
def test_an_optimiser_that_checkpoints_would_lack_is_refused(
    cls: type[Own], said: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=said):
        train(cls, walk(), env=None, out=tmp_path / "run", steps=2, batch_size=4, device="cpu")
    assert list(tmp_path.iterdir()) == []
