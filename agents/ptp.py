"""Past-token prediction (PTP; Torne et al., CoRL 2025, arXiv:2505.09561).

Diffusion Policy with a long memory, which also says what it did. With A the actions from the oldest
of `history` observations O on, so that history - 1 of them are past:

    A_k = sqrt(abar_k) A + sqrt(1 - abar_k) eps,   k uniform on 0 .. T - 1,  eps from N(0, I)
    L   = mean over the last `past_steps` past actions and all others of (net(A_k, k, O) - eps)^2
    average <- average + (1 - decay) (net - average)

Within an update: one step on L, then the average, which acts: of `samples` plans the one whose past
differs least from the actions executed (`offrl.past_planner`), by DDPM from A_T ~ N(0, I); one
action is taken before the next plan. `past_steps` is -1 for all (the method), 0 for none (the
baseline that the paper calls no PTP) and m for the newest m. It is one setting where the authors'
code has two, which together cut the window twice. Diffusion Policy's own loss is of all actions
too, but of its two observations only one is past.

The paper trains an encoder of images with little memory, freezes it, computes its features once
for the whole data set, and trains the head with a long memory on those. What can be had of that
from states: `embedding` is the size of an encoder of each observation, two layers that are trained
with the head; `encoder` names the saved policy of such a run, whose encoder and maps of
observations are then used as they are, the data's features computed once (the view's rows hold
them in place of observations). Without either, features are the observations, and the first two
stages have nothing to do: a long memory of states costs little anyway.

Departures: the verifier compares what has been executed from the second action on; the authors'
waits until the memory is full, which a short episode never reaches. No dropout (0.3 of attention;
see `offrl.attention`), and weight decay spares biases and norms. Frames are not left out of the
memory (the authors take every 20th on one robot). A run's length is counted in steps, not epochs.
Training is Diffusion Policy's; `mask_padding` leaves out of L what lies beyond an episode's ends.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from offrl.agent import Agent
from offrl.checks import check_choice, check_intervals, check_that, make_lasting
from offrl.chunks import (
    MLP_BLOCKS,
    BackboneName,
    ChunkConfig,
    average_of,
    chunk_backbone,
    chunk_noise,
    chunk_optimizer,
    chunk_policy,
    chunk_view,
    encoding_policy,
    held_out_noise,
    schedule_chunks,
)
from offrl.datasets.embedded import embedded
from offrl.datasets.offline import OfflineDataset, Spec
from offrl.datasets.replay import Replay
from offrl.datasets.rollouts import digest
from offrl.datasets.windows import Windows
from offrl.denoising import matching_error
from offrl.generation import Generation
from offrl.networks import Learners, learner_view
from offrl.past_planner import Encoded, Encoder, PastPlanner, asked
from offrl.policy import PlanPolicy
from offrl.processes import DDPM
from offrl.types import Metrics, Noise, WindowBatch

# For the tasks of `offrl.envs`; the memory reaches back just to the cue in those that have one.
SMALL: Mapping[str, Any] = {
    **{"history": 16, "horizon": 16, "backbone": "film", "width": 128, "depth": 2},
    **{"lr": 1e-3, "warmup": 200, "batch_size": 128},
    **{"sampler": "ddim", "sampler_steps": 8, "samples": 10},
}


@dataclass(frozen=True)
class PTPConfig(ChunkConfig):
    """The authors' settings for a long memory; see the recipes for others."""

    history: int = 16  # To; 1 or 2 where the encoder is trained
    horizon: int = 32  # Tp
    execute: int = 1  # Ta
    backbone: BackboneName = "transformer"
    depth: int = 8
    warmup: int = 1_000
    weight_decay: float = 1e-3
    beta1: float = 0.9  # of AdamW
    beta2: float = 0.95  # of AdamW
    levels: int = 100  # T, of noise
    sampler: Literal["ddpm", "ddim", "dpm2", "dpm3"] = "ddpm"
    sampler_steps: int = 100  # of the levels, when acting
    past_steps: int = -1  # past actions in the loss, the newest; -1 all, 0 none
    samples: int = 1  # plans of which the most consistent is taken; 10 in the authors' example
    embedding: int = 0  # features of an encoder that is trained too; 0: observations themselves
    encoder: str = ""  # saved policy of such a run, whose encoder is frozen, its features kept

    def __post_init__(self) -> None:
        super().__post_init__()
        check_intervals(self, levels="[1, inf)", sampler_steps=f"[1, {self.levels}]")
        check_intervals(self, past_steps=f"[-1, {self.history - 1}]", samples="[1, inf)")
        check_intervals(self, embedding="[0, inf)")
        check_choice(self, "sampler", ("ddpm", "ddim", "dpm2", "dpm3"))
        no_past = self.past_steps == 0 or self.history == 1
        few = f"past_steps {self.past_steps} and history {self.history} leave no past action to"
        must = f"{few} compare; set samples to 1"
        check_that(self, "samples", self.samples == 1 or not no_past, must)
        must = f"the encoder of {self.encoder} has features of its own; leave embedding at 0"
        check_that(self, "embedding", not (self.encoder and self.embedding), must)
        make_lasting(self, "encoder")


class PTP(Agent):
    """Denoise chunks that reach back into the past."""

    config: PTPConfig
    config_class = PTPConfig
    suits = "demonstrations that need a long memory"
    stacked = False
    measure = "loss"
    recipes: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "recall": {**SMALL, "history": 10, "horizon": 10},
        "recalllong": {**SMALL, "history": 26, "horizon": 26},
        "offrl": SMALL,
    }

    def __init__(self, spec: Spec, config: PTPConfig, learners: Learners) -> None:
        super().__init__(spec, config, learners)
        self.process = DDPM(config.levels, "cosine", "epsilon", "leading")
        self.generation = Generation(self.process, config.sampler, config.sampler_steps)
        source = encoding_policy(config.encoder, self.obs_dim) if config.encoder else None
        self.encoder: Encoder | None = None if source is None else source.actor.encoder
        size = config.embedding if self.encoder is None else self.encoder.features
        head = chunk_backbone(self, level_scale=1.0, token=size or None)
        self.net: Any = head
        if config.embedding:
            encoder = Encoder(self.obs_dim, config.width, config.embedding, learners)
            self.net = Encoded(encoder, head)
        if source is not None:
            self.obs_mean.copy_(torch.from_numpy(source.obs_mean))
            self.obs_std.copy_(torch.from_numpy(source.obs_std))
        self.average = average_of(config, self.net)
        self.net_opt = chunk_optimizer(config, self.net)

    @classmethod
    def stacks(cls, config: Any) -> bool:
        return config.backbone in MLP_BLOCKS

    def view(self, dataset: OfflineDataset) -> Windows:
        view = chunk_view(self, dataset)
        if self.encoder is None:
            return view
        return embedded(view, self._features, digest(Path(self.config.encoder)))

    def _features(self, obs: Tensor) -> Tensor:
        """(rows, features) of raw observations."""
        assert self.encoder is not None
        x = (obs.to(self.obs_mean) - self.obs_mean) / self.obs_std
        features: Tensor = self.encoder(x[None])[0]
        return features

    def prepare(self, replay: Replay) -> None:
        # Observations have the maps of the encoder, if it has been trained already.
        of_obs = ["obs_mean", "obs_std"] if self.encoder is None else []
        for name in ("action_mid", "action_half", *of_obs):
            getattr(self, name).copy_(getattr(replay, name))

    def noise(self, batch_size: int) -> dict[str, tuple[int, ...]]:
        return chunk_noise(self, batch_size)

    def schedule(self, step: int, steps: int) -> None:
        schedule_chunks(self.config, self.net_opt, self.average, step, steps)

    def update(self, batch: WindowBatch, noise: Noise, phase: int) -> Metrics:
        metrics = self.minimize(self.net_opt, self.loss, batch, noise)
        self.average.update(self.net)
        return metrics

    def loss(self, batch: WindowBatch, noise: Noise) -> tuple[Tensor, Metrics]:
        return self._error(self.net, batch, noise), {}

    def _error(self, net: Any, batch: WindowBatch, noise: Noise) -> Tensor:
        past = asked(batch.past, self.config.past_steps, batch.real)
        counted = torch.cat([past, past.new_ones(batch.real.shape[-1] - batch.past)])
        counted = counted * batch.real if self.config.mask_padding else counted
        given = batch.action, noise["noise"], self.process.draw(noise["level"]), batch.obs
        error = matching_error(self.process, net, *given, counted.expand_as(batch.real))
        return error.mean(-1)

    def validate(self, batch: WindowBatch) -> Metrics:
        noise = held_out_noise(self, batch.index.shape)
        return {"loss": self._error(self.average.net, batch, noise)}

    def policy(self, learner: int = 0, provenance: Mapping[str, Any] | None = None) -> PlanPolicy:
        cfg, net = self.config, learner_view(self.average.net, learner)
        head, encoder = (net.head, net.encoder) if isinstance(net, Encoded) else (net, self.encoder)
        sizes = {"obs_dim": self.obs_dim, "act_dim": self.act_dim, "horizon": cfg.horizon}
        how = {"past_steps": cfg.past_steps, "samples": cfg.samples}
        planner = PastPlanner(head, self.generation, encoder, **sizes, **how)
        return chunk_policy(self, planner, provenance)
