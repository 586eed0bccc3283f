"""Synthetic data of a diffusion model of trajectories, guided towards a policy.

    D   trained on E[ |D(x + sigma e, sigma) - x|^2 weight(sigma) ],  EDM on whole pieces
    x   by Heun with churn from sigma_max, guided before each step (offrl.policy_guidance)

Source: policy-guided diffusion (Jackson et al., 2024, arXiv:2404.06356), whose settings are the
defaults but for the network, which is Diffusion Policy's U-Net (offrl.unet) and narrower, and the
number of steps: theirs are 1,024 channels, 256 steps of the sampler and 10,000 epochs. Theirs
makes new data every 10,000 updates of the agent; here a dataset is made once, for one policy.
The Euler step begins at the churned point, as EDM states it; at the point before in their code.
The density of a squashed policy is that of its actions; theirs leaves tanh's slope out. A policy
without a density counts as a Gaussian of deviation 1 around its action, as theirs does.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from offrl.actors import DeterministicActor, GaussianActor, SquashedGaussianActor
from offrl.checks import check_intervals, check_multiple
from offrl.datasets.offline import OfflineDataset
from offrl.denoising import Denoise, denoiser, matching_error
from offrl.ema import Average, Decay
from offrl.errors import ConfigError, DataError
from offrl.networks import Learners
from offrl.optim import adam, move_rates, set_lr, warm_cosine_rate
from offrl.policy import Policy
from offrl.policy_guidance import Guidance, Likelihood, guided
from offrl.processes import EDM
from offrl.samplers import Churn, heun
from offrl.streams import Stream
from offrl.trajectories import Trajectories, episodes_of, trajectories
from offrl.unet import UNet

MARK = "synthetic"  # of steps that nobody took
LEVELS, GROUPS = 3, 8  # of the U-Net
GuidingActor = DeterministicActor | GaussianActor | SquashedGaussianActor
Progress = Callable[[int], object]  # is told how many steps, or trajectories, have been added


@dataclass(frozen=True)
class GeneratorConfig:
    """Of the model of trajectories and of its training."""

    length: int = 32  # rows of a piece, one more than its transitions
    stride: int = 8  # rows from the beginning of one piece to that of the next
    channels: int = 64  # of the U-Net's first level; twice as many in each of two more
    steps: int = 50_000  # of training
    batch_size: int = 32
    lr: float = 2e-3  # after a tenth of the steps; it falls along a cosine
    ema: float = 0.995  # share of the average that a move keeps
    ema_every: int = 10  # steps from one move to the next

    def __post_init__(self) -> None:
        counts = ("length", "stride", "channels", "steps", "batch_size", "ema_every")
        check_intervals(self, **dict.fromkeys(counts, "[1, inf)"))
        check_intervals(self, lr="(0, inf)", ema="[0, 1]")
        check_multiple(self, "length", 2 ** (LEVELS - 1), f"a U-Net of {LEVELS} levels")
        check_multiple(self, "channels", GROUPS, f"a U-Net whose norms have {GROUPS} groups")


class Generator(nn.Module):
    """A diffusion model of the pieces of a dataset; `fit` trains it, `make` draws from it."""

    def __init__(
        self, dataset: OfflineDataset, config: GeneratorConfig | None = None, seed: int = 0
    ) -> None:
        super().__init__()
        self.config, self.seed, self.dataset = config or GeneratorConfig(), seed, dataset
        cfg = self.config
        self.view = trajectories(dataset, cfg.length, cfg.stride)
        self.process = EDM(sigma_data=1.0)
        widths = [cfg.channels * 2**i for i in range(LEVELS)]
        shape = cfg.length, self.view.x.shape[-1], 0
        self.net = UNet(
            *shape, Learners((seed,)), channels=widths, kernel=3, groups=GROUPS, level_scale=1e3
        )
        self.average = Average(self.net, Decay("constant", high=cfg.ema, every=cfg.ema_every))
        self.losses: list[float] = []

    def fit(self, progress: Progress = lambda done: None) -> None:
        """Train, on the device that the parameters are on."""
        cfg, x = self.config, self.view.x.to(next(self.net.parameters()))
        optimizer = adam(self.net.parameters(), cfg.lr)
        move_rates([optimizer], x.device)
        streams = {name: Stream(self.seed, f"generator/{name}") for name in ("rows", "noise")}
        for step in range(cfg.steps):
            set_lr(optimizer, warm_cosine_rate(cfg.lr, step, cfg.steps, max(cfg.steps // 10, 1)))
            self.average.schedule(step)
            rows = streams["rows"].block(step).integers(len(x), size=cfg.batch_size)
            batch = x[torch.from_numpy(rows).to(x.device)]
            drawn = streams["noise"].block(step)
            noise = torch.from_numpy(drawn.standard_normal(batch.shape)).to(x)
            level = torch.from_numpy(drawn.standard_normal(cfg.batch_size)).to(x)
            given = noise, self.process.draw(level), batch.new_zeros(cfg.batch_size, 0)
            loss = matching_error(self.process, self.net, batch, *given).mean()
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            self.average.update(self.net)
            if (step + 1) % 100 == 0 or step + 1 == cfg.steps:
                self.losses.append(float(loss.detach()))
            progress(1)

    @torch.no_grad()
    def make(
        self,
        count: int,
        policy: Policy | None = None,
        guidance: Guidance | None = None,
        sampler_steps: int = 64,
        seed: int = 0,
        batch_size: int = 256,
        progress: Progress = lambda done: None,
    ) -> OfflineDataset:
        """So many trajectories as a dataset, whose provenance says that and how they were made.

        Without a policy they are guided nowhere. Raises ConfigError for a policy that
        `guiding_actor` refuses.
        """
        guidance = guidance or Guidance()
        like = next(self.net.parameters())
        likelihood = None if policy is None else policy_likelihood(policy, self.view, like.device)
        stream, parts = Stream(seed, "synthesis"), []
        shape = self.view.x.shape[1:]
        for i in range(math.ceil(count / batch_size)):
            size = min(batch_size, count - i * batch_size)
            drawn = stream.block(i)

            def normal(drawn: Any = drawn, size: int = size) -> Tensor:
                return torch.from_numpy(drawn.standard_normal((size, *shape))).to(like)

            start, noise = normal(), [normal() for _ in range(sampler_steps)]
            denoise = denoiser(self.process, self.average.net, like.new_zeros(size, 0))
            x = sample(denoise, self.process, start, noise, self.view.actions, likelihood, guidance)
            parts.append(self.view.raw(x).float())
            progress(size)
        raw = torch.cat(parts)
        if not bool(raw.isfinite().all()):
            raise DataError(
                "the generator made numbers that are not finite; train it for more steps, or at a "
                "lower learning rate"
            )
        record = self._record(policy, guidance, sampler_steps, seed, count)
        made = OfflineDataset.from_episodes(
            episodes_of(raw, self.view, self.dataset),
            spec=self.dataset.spec,
            name=f"{self.dataset.name}-synthetic",
            env_id=self.dataset.env_id,
            reference=self.dataset.reference,
            provenance=record,
        )
        return replace(made, marks={MARK: np.ones(len(made.rows), bool)})

    def _record(
        self,
        policy: Policy | None,
        guidance: Guidance,
        sampler_steps: int,
        seed: int,
        count: int,
    ) -> dict[str, Any]:
        towards: Mapping[str, Any] | None = None
        if policy is not None:
            towards = {"guidance": asdict(guidance), "policy": dict(policy.provenance)}
        sentence = "not guided" if towards is None else "guided towards a policy"
        return {
            "description": f"Synthetic: {count:,} trajectories of a diffusion model of "
            f"{self.dataset.name}, {sentence} (arXiv:2404.06356). Nobody acted in any of them.",
            "synthetic": {
                "source": self.dataset.name,
                "source_fingerprint": self.dataset.fingerprint,
                "generator": {**asdict(self.config), "seed": self.seed},
                "losses": self.losses[-10:],
                "towards": towards,
                "sampler": {"steps": sampler_steps, "churn": asdict(Churn())},
                "trajectories": count,
                "seed": seed,
            },
        }


def with_source(synthetic: OfflineDataset, source: OfflineDataset) -> OfflineDataset:
    """Both in one, the synthetic episodes first; the mark `synthetic` says which steps are those.

    The authors' batches are of 240 synthetic transitions and 16 real ones.
    """
    parts = synthetic, source
    return replace(
        synthetic,
        rows=np.concatenate([part.rows for part in parts]),
        starts=np.concatenate([synthetic.starts, source.starts + len(synthetic.rows)]),
        lengths=np.concatenate([part.lengths for part in parts]),
        final_known=np.concatenate([part.final_known for part in parts]),
        name=f"{source.name}-with-synthetic",
        time_limit=source.time_limit,
        provenance={**synthetic.provenance, "real_transitions": source.num_steps},
        marks={MARK: np.concatenate([synthetic.marks[MARK], np.zeros(len(source.rows), bool)])},
    )


def sample(
    denoise: Denoise,
    process: EDM,
    start: Float[Tensor, "batch time channels"],
    noise: list[Tensor],
    actions: slice,
    likelihood: Likelihood | None,
    guidance: Guidance,
) -> Float[Tensor, "batch time channels"]:
    """Trajectories by Heun with churn, in as many steps as there are tensors of noise."""
    steps, before = len(noise), None
    if likelihood is not None and guidance.weight > 0.0:
        before = guided(likelihood, actions, steps, guidance, denoise)
    given = process.path(steps), process.prior(start), noise
    return heun(denoise, *given, before=before, churn=Churn()).x


def guiding_actor(policy: Policy, data: Trajectories | OfflineDataset) -> GuidingActor:
    """The policy's actor, which can guide trajectories like these.

    Raises ConfigError for a policy whose actions have no density here, or that was trained for
    other observations or actions.
    """
    if (policy.obs_dim, policy.act_dim) != (data.obs_dim, data.act_dim):
        raise ConfigError(
            f"the policy has observations of {policy.obs_dim} and actions of {policy.act_dim} "
            f"numbers, the dataset {data.obs_dim} and {data.act_dim}"
        )
    actor = policy.actor
    if not isinstance(actor, GuidingActor):
        raise ConfigError(
            f"a policy of {type(actor).__name__} has no likelihood of an action to guide by; take "
            "one whose actor is deterministic, Gaussian or a squashed Gaussian"
        )
    return actor


def policy_likelihood(policy: Policy, view: Trajectories, device: torch.device) -> Likelihood:
    """sum_t log pi(a_t | s_t) of standardised trajectories, for a policy of one observation."""
    actor = guiding_actor(policy, view).to(device)
    mean, std = (torch.from_numpy(x).to(device) for x in (policy.obs_mean, policy.obs_std))

    def summed(x: Tensor) -> Tensor:
        raw = view.raw(x)
        obs = (raw[..., : view.obs_dim] - mean) / std
        return log_density(actor, obs.to(x.dtype), raw[..., view.actions]).sum(-1)

    return summed


def log_density(
    actor: GuidingActor,
    obs: Float[Tensor, "batch time obs"],
    action: Float[Tensor, "batch time act"],
) -> Float[Tensor, "batch time"]:
    """log pi(a | s) up to a constant; of a deterministic actor that of N(pi(s), I)."""
    flat, given = obs.flatten(0, 1), action.flatten(0, 1)
    if isinstance(actor, SquashedGaussianActor):
        density = actor.log_prob(flat, given)
    elif isinstance(actor, GaussianActor):
        density = actor(flat).log_prob(given)
    else:
        density = -0.5 * (given - actor(flat)).square().sum(-1)
    return density.reshape(obs.shape[:-1])
