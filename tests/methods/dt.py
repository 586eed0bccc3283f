"""Decision Transformer: cases of parity, and faults, also of what agents of returns share."""

from typing import Any

import flat.dt
from fault import faults
from parity_case import LR, Batches, Case, Layers, Trained, reach

from offrl.datasets.offline import OfflineDataset
from offrl.datasets.replay import Replay
from offrl.datasets.sequences import sequences

# Of gradients that are cut as often as not, of weights that shrink visibly.
RETURNS: dict[str, Any] = {
    **{"lr": LR, "warmup": 3, "weight_decay": 0.1, "return_scale": 2.0, "context": 3},
    **{"max_steps": 2},  # of three: the last two steps of an episode share a time
}
TRAINING = ("lr", "warmup", "weight_decay", "grad_norm")
OTHER = {
    ("dt", "context"): (3, {}),
    ("dt", "layers"): (2, {}),
    ("dt", "width"): (6, {}),
    ("dt", "heads"): (2, {}),
    ("dt", "activation"): ("gelu", {}),
    ("dt", "max_steps"): (10, {}),
    ("dt", "target_return"): (3.0, {}),
    ("dt", "return_scale"): (3.0, {}),
}


def return_view(case: Case, dataset: OfflineDataset) -> Replay:
    cfg = case.config
    return sequences(
        dataset,
        length=cfg.context,
        return_scale=cfg.return_scale,
        normalize_obs=cfg.normalize_obs,
    )


def flat_dt(
    case: Case,
    nets: dict[str, Layers],
    batches: Batches,
    dataset: OfflineDataset,
    view: Replay,
) -> Trained:
    return flat.dt.train(nets, batches, **case.settings("heads", "activation", *TRAINING))


def _case(**changes: Any) -> Case:
    return Case("dt", {**RETURNS, **changes}, reach(actor_loss="actor"), flat_dt, view=return_view)


CASES = {
    "dt": _case(grad_norm=0.4),
    "dt-two": _case(grad_norm=0.0, layers=2, heads=2, activation="gelu", normalize_obs=False),
}

COVERED = [f"returns.{name}" for name in ("return_view", "warm_up", "real_mean")]

_ALL = "dt dt-two"
_DT = "agents.dt.DT"
FAULTS = [
    *faults(
        f"{_DT}.__init__",
        "dt-two",
        ("layers=config.layers", "layers=1"),
        ("heads=config.heads", "heads=1"),
        ("activation=config.activation", "activation='relu'"),
        ("max_steps=config.max_steps", "max_steps=3"),
        ("config.weight_decay", "0.0"),
    ),
    *faults(f"{_DT}.__init__", "dt", ("clipping(config.grad_norm)", "clipping(0.0)")),
    *faults(
        f"{_DT}.view",
        _ALL,
        ("return_view(self.config, dataset)", "return_view(self.config, dataset.top(0.5))"),
    ),
    *faults(f"{_DT}.schedule", _ALL, ("warm_up(self.config, self.actor_opt, step)", "pass")),
    *faults(
        f"{_DT}.update",
        "dt",
        (", combine=self.clip", ", combine=lambda g, axes: g[0]"),
        ("return self.minimize(", "return {} and self.minimize("),
    ),
    *faults(
        f"{_DT}.actor_loss",
        _ALL,
        ("self.actor(batch)", "0.5 * self.actor(batch)"),
        ("batch.action)", "-batch.action)"),
        ("real_mean(error, batch.real)[None]", "error.mean()[None]"),
    ),
    *faults(
        "returns.return_view",
        "dt",
        ("length=config.context", "length=config.context - 1"),
        ("return_scale=config.return_scale", "return_scale=1.0"),
        ("normalize_obs=config.normalize_obs", "normalize_obs=False"),
        ("return sequences(\n        dataset", "return sequences(\n        dataset.top(0.5)"),
    ),
    *faults(
        "returns.warm_up",
        _ALL,
        ("config.lr * rise(step, config.warmup)", "config.lr"),
        ("config.warmup)", "10_000)"),
    ),
    *faults("optim.rise", _ALL, ("min((step + 1)", "min((step)"), ("min(", "max(")),
    *faults(
        "returns.real_mean",
        _ALL,
        ("(error * real).sum", "error.sum"),
        ("/ real.sum((-2, -1))", "/ real.shape[-1] / real.shape[-2] + 0 * real.sum((-2, -1))"),
        ("(error * real)", "(error * (1 - real))"),
    ),
    *faults(
        "datasets.sequences.Sequences.sample",
        _ALL,
        ("self.to_go[there] * self.reward_scale", "self.to_go[there]"),
        ("self.to_go[there]", "self.to_go[row][..., None]"),
        ("+ place.clamp(min=0)", "+ place.clamp(min=0).flip(-1)"),
        ("- self.first[episode][..., None]", ""),
    ),
    *faults(
        "sequence_models.steps_of",
        _ALL,
        ("batch.action[:, :-1]]", "batch.action[:, 1:]]"),
        ("batch.real[:, :-1]]", "batch.real[:, 1:]]"),
        ("[acted, batch.real, batch.real]", "[batch.real, batch.real, batch.real]"),
    ),
    *faults(
        "sequence_models.Tokens.forward",
        _ALL,
        ("steps.time - 1", "steps.time"),
        ("[before, time, time]", "[time, time, before]"),
    ),
    *faults(
        "sequence_models.ReturnTransformer.forward",
        _ALL,
        ("y[:, 2::3]", "y[:, 1::3]"),
        ("real.flatten(1, 2)", "None"),
        ("torch.tanh(self.head(", "(self.head("),
    ),
    *faults("sequence_models.ReturnTransformer._embed", _ALL, ("token + time", "token - time")),
]
