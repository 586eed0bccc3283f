"""Decision Mamba: cases of parity, and faults."""

from typing import Any

import flat.decision_mamba
from fault import faults
from methods.dt import RETURNS, TRAINING, return_view
from parity_case import TOTAL, Batches, Case, Layers, Trained, reach

from offrl.datasets.offline import OfflineDataset
from offrl.datasets.replay import Replay

OTHER = {
    ("decision_mamba", "context"): (3, {}),
    ("decision_mamba", "layers"): (2, {}),
    ("decision_mamba", "width"): (6, {}),
    ("decision_mamba", "max_steps"): (10, {}),
    ("decision_mamba", "embed"): ("linear", {}),
    ("decision_mamba", "target_return"): (3.0, {}),
    ("decision_mamba", "return_scale"): (3.0, {}),
    ("decision_mamba", "max_share"): (0.01, {}),
}
LOSS = ("embed", "alpha", "max_share", "polyak", "action_weight", "obs_weight", "return_weight")


def flat_decision_mamba(
    case: Case,
    nets: dict[str, Layers],
    batches: Batches,
    dataset: OfflineDataset,
    view: Replay,
) -> Trained:
    settings = case.settings(*LOSS, *TRAINING)
    return flat.decision_mamba.train(nets, batches, TOTAL, **settings)


def _case(**changes: Any) -> Case:
    return Case(
        "decision_mamba",
        # Of a share that grows through the first updates and then stays.
        {**RETURNS, "max_share": 0.3, "alpha": 1.0, "polyak": 0.1, **changes},
        reach(actor_loss="actor"),
        flat_decision_mamba,
        view=return_view,
    )


CASES = {
    "decision_mamba": _case(obs_weight=0.3, return_weight=0.2, grad_norm=0.4),
    "decision_mamba-linear": _case(embed="linear", layers=2, grad_norm=0.0, normalize_obs=False),
}

_ALL = "decision_mamba decision_mamba-linear"
_DM = "agents.decision_mamba.DecisionMamba"
FAULTS = [
    *faults(
        f"{_DM}.__init__",
        "decision_mamba-linear",
        ("layers=config.layers", "layers=1"),
        ("embed=config.embed", "embed='mlp'"),
        ("max_steps=config.max_steps", "max_steps=3"),
        ("config.weight_decay", "0.0"),
        ("target_of(self.actor)", "self.actor"),
    ),
    *faults(f"{_DM}.__init__", "decision_mamba", ("clipping(config.grad_norm)", "clipping(0.0)")),
    *faults(
        f"{_DM}.schedule",
        _ALL,
        ("warm_up(self.config, self.actor_opt, step)", "pass"),
        ("min(self.config.max_share, ", "max(self.config.max_share, "),
        ("self.config.alpha * (step + 1)", "self.config.alpha * step"),
    ),
    *faults(
        f"{_DM}.update",
        _ALL,
        ("self.compute(self.evolved_action, batch)", "batch.action"),
        ("metrics = self.minimize", "metrics = {} and self.minimize"),
        ("polyak_update(self.actor, self.actor_target, self.config.polyak)", "pass"),
        ("return metrics", "return {}"),
    ),
    *faults(f"{_DM}.update", "decision_mamba", ("combine=self.clip", "combine=lambda g, a: g[0]")),
    *faults(
        f"{_DM}.evolved_action",
        _ALL,
        ("self.actor_target(batch)", "self.actor(batch)"),
        ("batch.action + self.share", "batch.action - self.share"),
        ("self.share * (earlier - batch.action)", "0.0 * earlier"),
    ),
    *faults(
        f"{_DM}.actor_loss",
        _ALL,
        (
            "said, cfg = self.actor(batch)",
            "said, cfg = type(self.actor(batch))(*(0.5 * x for x in self.actor(batch)))",
        ),
        ("action_error(said.action, goal)", "action_error(said.action, batch.action)"),
        ("batch.real[..., :-1]", "batch.real[..., 1:]"),
        (
            "smooth_l1_loss(said.obs[:, 1:], batch.obs[:, 1:]",
            "smooth_l1_loss(said.obs[:, 1:], batch.obs[:, :-1]",
        ),
        ("said.to_go[:, 1:], batch.to_go[:, 1:]", "said.to_go[:, :-1], batch.to_go[:, 1:]"),
        (
            "real_mean(obs, known), real_mean(to_go, known)",
            "real_mean(to_go, known), real_mean(obs, known)",
        ),
        ('"action_loss": action,', '"action_loss": -action,'),
        ("cfg.action_weight * action + parts", "action + parts"),
    ),
    *faults(
        f"{_DM}.actor_loss",
        "decision_mamba",
        ("cfg.obs_weight * obs_error", "cfg.return_weight * obs_error"),
    ),
    *faults(
        "sequence_models.ReturnMamba.forward",
        _ALL,
        ("self.head(y[:, :, 2])", "self.head(y[:, :, 1])"),
        ("self.next_obs(y[:, :, 0])", "self.next_obs(y[:, :, 2])"),
    ),
    *faults(
        "mamba.TwoGrains.forward",
        _ALL,
        ("[given[:, :-1], vector, vector]", "[vector, vector, vector]"),
        ("real.flatten(1, 2), before", "torch.ones_like(real).flatten(1, 2), before"),
        ("* acted[..., None]", ""),
        ("pairs[:, :-1], normed[:, :, :1]", "normed[:, :, 1:], normed[:, :, :1]"),
    ),
    *faults(
        "mamba.Mamba.forward",
        _ALL,
        ("u * real[..., None]", "u"),
        ("softplus(self.step_size(step)) * real[..., None]", "softplus(self.step_size(step))"),
        ("y * silu(gate)", "y * gate"),
    ),
    *faults("scan.selective_scan", _ALL, ("y + skip * x", "y - skip * x")),
    *faults("scan._coefficients", _ALL, ("(delta * x)", "x")),
    *faults("scan._forwards", _ALL, ("late.addcmul_(", "late.sub_(late).addcmul_(")),
    *faults(
        "scan._backwards",
        _ALL,
        ("early.addcmul_(", "early.sub_(early).addcmul_("),
        ("lone + 1 :: 2])\n    early_a", "lone : steps - 1 : 2])\n    early_a"),
    ),
    *faults(
        "scan._Selective.backward",
        _ALL,
        ("decay[:, 1:], torch", "decay[:, :-1], torch"),
        ("g[:, 1:] *= h[:, :-1]", "g[:, 1:] *= h[:, 1:]"),
        ("g *= decay", "pass"),
        ("moved * delta[rows]", "moved"),
        ("moved * x[rows] + ", ""),
        ("slope[:, :, None] @ h", "x[rows][:, :, None] @ h"),
    ),
]
