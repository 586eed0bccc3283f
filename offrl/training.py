"""The training loop: draw, update, log, evaluate, save. It knows an agent, never which one.

A run is a function of its configuration: batches, noise and evaluation starts follow from seeds
and steps. What a checkpoint holds is therefore the agent, the running means, and how far the
tables had got; a run resumed from it goes on with the same bits as one that never stopped.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from tqdm import tqdm

from offrl import checkpoints
from offrl.agent import Agent
from offrl.callbacks import Callback
from offrl.checks import check_choice, check_intervals
from offrl.datasets.offline import OfflineDataset, Reference
from offrl.datasets.replay import Replay
from offrl.devices import choose_device, enough_memory, home_of
from offrl.errors import ConfigError, RunError, near
from offrl.evaluation import Evaluation, evaluate
from offrl.feed import Feed
from offrl.files import sole_use, write_json
from offrl.metrics import Meter, RunLog, cut_back
from offrl.optim import move_rates
from offrl.policy import Policy
from offrl.products import products_in
from offrl.progress import Progress, damaged_entry
from offrl.signals import Signals

EVALUATION_SEED = 1_000_000  # other starts than those of `offrl evaluate`, which judges the result
VALIDATION_CHUNK = 4_096  # transitions measured at once


@dataclass(frozen=True)
class TrainConfig:
    """How long, how often, on what."""

    steps: int = 1_000_000  # updates; the papers' length
    batch_size: int = 256  # transitions per update and learner
    seed: int = 0  # of initial weights, batches and noise; the first one with --seeds
    seeds: int = 1  # learners trained side by side, with seeds seed, seed + 1, ...
    log_every: int = 1_000  # updates
    eval_every: int = 5_000  # updates
    eval_episodes: int = 10  # per evaluation and learner
    checkpoint_every: int = 10_000  # updates
    keep_checkpoints: int = 2  # the newest ones
    best_by: str = "auto"  # eval/return, or a validation/NAME, the lower the better
    device: str = "auto"  # cpu, cuda, cuda:1; auto takes a GPU if there is one
    backend: Literal["eager", "aot_eager", "inductor"] = "eager"  # eager, or of torch.compile
    precision: Literal["float32", "float64"] = "float32"  # of weights and data
    # to which products' factors may be rounded: by AMX, and by a GPU to TensorFloat32
    matmul: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self) -> None:
        positive = [
            *("steps", "batch_size", "seeds", "log_every", "eval_every"),
            *("eval_episodes", "checkpoint_every", "keep_checkpoints"),
        ]
        check_intervals(self, **dict.fromkeys(positive, "[1, inf)"))
        check_choice(self, "backend", ("eager", "aot_eager", "inductor"))
        check_choice(self, "precision", ("float32", "float64"))
        check_choice(self, "matmul", ("float32", "bfloat16"))
        if not self.best_by.startswith("validation/"):
            check_choice(self, "best_by", ("auto", "eval/return", "validation/NAME"))

    @property
    def learner_seeds(self) -> tuple[int, ...]:
        return tuple(range(self.seed, self.seed + self.seeds))


class Interrupted(RunError):
    """A signal stopped the run after its state was saved."""

    exit_code = 130


class Trainer:
    """One run: an agent of one or several learners, its data, its folders."""

    def __init__(
        self,
        agent: Agent,
        dataset: OfflineDataset,
        validation: OfflineDataset | None,
        config: TrainConfig,
        folders: Sequence[Path],
        root: Path,  # of the run, which may have other learners than these
        make_env: Callable[[], Any] | None = None,
        reference: Reference | None = None,
        callbacks: Sequence[Callback] = (),
        provenance: Mapping[str, Any] | None = None,
    ) -> None:
        self.agent, self.config, self.folders = agent, config, list(folders)
        self.make_env, self.reference, self.callbacks = make_env, reference, list(callbacks)
        self.provenance = dict(provenance or {})
        self.root = root
        checkpoints.check_restorable(agent)
        self.best_by = self._best_by(validation)
        self.device, dtype = choose_device(config.device), getattr(torch, config.precision)
        replay = agent.view(dataset).to(dtype)
        self.fingerprint = replay.fingerprint
        held_out = None
        if validation is not None:
            held_out = _mapped_like(agent.held_out_view(validation), replay).to(dtype)
        size = replay.nbytes + (0 if held_out is None else held_out.nbytes)
        home = home_of(size, self.device)
        with enough_memory(self._remedy()):
            self.validation = None if held_out is None else held_out.to(home)
            replay = replay.to(home)
            agent.to(self.device, dtype)
            move_rates(agent.optimizers().values(), self.device)
            agent.backend = config.backend
            with products_in("float32", self.device):
                agent.prepare(replay)
            self._check_measures()
        seeds, noise = config.learner_seeds, agent.noise(config.batch_size)
        self.feed = Feed(replay, seeds, config.batch_size, noise, self.device)
        self.meter = Meter()
        self.progress = [Progress([]) for _ in seeds]
        self.step = 0
        self.policy(0)  # what it refuses is said before the first step, not at an evaluation

    def _best_by(self, validation: OfflineDataset | None) -> str:
        chosen = self.config.best_by
        if chosen == "auto":
            if self.make_env is not None:
                return "eval/return"
            known = validation is not None and self.agent.measure is not None
            return f"validation/{self.agent.measure}" if known else "none"
        if chosen.startswith("eval/") and self.make_env is None:
            raise ConfigError(f"best_by is {chosen!r}, but there is no environment to evaluate in")
        if chosen.startswith("validation/") and validation is None:
            raise ConfigError(f"best_by is {chosen!r}, but no episodes are held out (--validation)")
        return chosen

    def run(self, resume: bool = False) -> None:
        """Train to the last step; `resume` continues from the newest checkpoint.

        SIGTERM and Ctrl-C save first, then raise Interrupted. Raises RunError where a folder
        cannot be written or is in use, and where a metric is no longer finite.
        """
        with ExitStack() as opened:
            for folder in self.folders:
                opened.enter_context(sole_use(folder))
            if resume:
                self._load()
            resume_at = self.step if resume else None
            logs = [opened.enter_context(closing(RunLog(f, resume_at))) for f in self.folders]
            with enough_memory(self._remedy()):
                self._loop(logs)
            self._finish()

    def _remedy(self) -> str:
        cfg = self.config
        seeds = f", --seeds (now {cfg.seeds})" if cfg.seeds > 1 else ""
        return (
            f"Begin a new run with a lower --batch-size (now {cfg.batch_size}){seeds} or smaller "
            "networks, or on another --device; if other programs were using the GPU, wait for them "
            "and continue with --resume"
        )

    def _loop(self, logs: Sequence[RunLog]) -> None:
        steps, cfg, agent = self.config.steps, self.config, self.agent
        began, began_at = time.perf_counter(), self.step
        with Signals() as signals, self._bar() as bar:
            while self.step < steps:
                batch, noise = self.feed.at(self.step)
                agent.schedule(self.step, steps)
                with products_in(cfg.matmul, self.device):
                    metrics = agent.update(batch, noise, self.step % agent.period)
                self.meter.add(metrics)
                self.step += 1
                bar.update()

                last = self.step == steps
                if self.step % cfg.log_every == 0 or last:
                    self._log(logs)
                    now = time.perf_counter()
                    self._log_performance(logs, (self.step - began_at) / (now - began))
                    began, began_at = now, self.step
                if self.step % cfg.eval_every == 0 or last:
                    with products_in("float32"):
                        self._evaluate(logs, bar)
                    began, began_at = time.perf_counter(), self.step
                if self.step % cfg.checkpoint_every == 0 or last or signals.received:
                    self._checkpoint(logs)
                    began, began_at = time.perf_counter(), self.step
                if signals.received and not last:
                    raise Interrupted(
                        f"stopped by {signals.received} at step {self.step:,}; everything is "
                        f"saved. Continue with: offrl train --resume {self.root}"
                    )

    def _bar(self) -> "tqdm[None]":
        return tqdm(
            initial=self.step,
            total=self.config.steps,
            desc=str(self.provenance.get("agent", type(self.agent).__name__)),
            unit="step",
            mininterval=1.0,
            smoothing=0.05,
        )

    def _log(self, logs: Sequence[RunLog]) -> None:
        means = self.meter.take()
        for k, log in enumerate(logs):
            values = {f"train/{name}": _of(mean, k) for name, mean in means.items()}
            self._refuse_divergence(k, values)
            log.scalars(self.step, values)
            for callback in self.callbacks:
                callback.on_log(self.step, self.folders[k], values)

    def _refuse_divergence(self, learner: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            if not math.isfinite(value):
                folder = self.folders[learner] / "checkpoints"
                saved = checkpoints.steps_in(folder)
                where = f"{folder} has one of step {saved[-1]:,}" if saved else "there is none yet"
                raise RunError(
                    f"{name} is {value} at step {self.step:,}: training has diverged. It is not "
                    f"saved; of earlier checkpoints, {where}. Begin a new run with a smaller "
                    "learning rate, or look at the data with offrl data info"
                )

    def _log_performance(self, logs: Sequence[RunLog], rate: float) -> None:
        values = {"performance/steps_per_second": rate}
        values |= {f"performance/{k}": v for k, v in self.agent.performance().items()}
        for log in logs:
            log.scalars(self.step, values, table="performance.csv")

    def _evaluate(self, logs: Sequence[RunLog], bar: "tqdm[None]") -> None:
        validated = self._validate()
        for k, (log, progress) in enumerate(zip(logs, self.progress, strict=True)):
            values = {f"validation/{name}": _of(v, k) for name, v in validated.items()}
            policy, result = self.policy(k), None
            if self.make_env is not None:
                result = evaluate(
                    policy,
                    self.make_env,
                    self.config.eval_episodes,
                    EVALUATION_SEED,
                    reference=self.reference,
                )
                values |= self._evaluation_values(result)
                progress.evaluations.append((self.step, result.mean))
                pairs = zip(result.returns, result.lengths, strict=True)
                rows = [(self.step, i, float(r), int(n)) for i, (r, n) in enumerate(pairs)]
                log.table("evaluations.csv", rows)
            self._refuse_divergence(k, values)
            log.scalars(self.step, values)
            for callback in self.callbacks:
                callback.on_evaluation(self.step, self.folders[k], values, result)
            best = values.get(self.best_by)
            if best is not None and progress.improved_by(self.best_by, best):
                progress.best = (self.step, best)
                policy.save(self.folders[k] / "policy-best", overwrite=True)
        latest = [p.evaluations[-1][1] for p in self.progress if p.evaluations]
        if latest:
            bar.set_postfix_str(self._describe(sum(latest) / len(latest)))

    def _evaluation_values(self, result: Evaluation) -> dict[str, float]:
        values = {"eval/return": result.mean, "eval/length": float(result.lengths.mean())}
        if self.reference is not None:
            values["eval/score"] = float(self.reference.score(result.mean))
        if result.success_rate is not None:
            values["eval/success"] = result.success_rate
        return values

    def _describe(self, mean_return: float) -> str:
        if self.reference is None:
            return f"return {mean_return:.1f}"
        return f"return {mean_return:.0f}, score {float(self.reference.score(mean_return)):.1f}"

    @torch.no_grad()
    def _validate(self) -> dict[str, Tensor]:
        """Means over all held-out transitions; each learner sees all of them."""
        if self.validation is None:
            return {}
        rows, seeds = self.validation.index, self.agent.learners.shape
        totals: dict[str, Tensor] = {}
        for chunk in torch.split(rows, VALIDATION_CHUNK):
            batch = self.validation.sample(chunk.expand(*seeds, -1)).to(self.device)
            for name, value in self.agent.validate(batch).items():
                weighted = value * (len(chunk) / len(rows))
                totals[name] = totals[name] + weighted if name in totals else weighted
        return totals

    @torch.no_grad()
    def _check_measures(self) -> None:
        """Refuse before training to choose the best by what this agent does not measure."""
        if self.validation is None or not self.best_by.startswith("validation/"):
            return
        rows = self.validation.index[:1].expand(*self.agent.learners.shape, -1)
        batch = self.validation.sample(rows).to(self.device)
        measured = [f"validation/{n}" for n in self.agent.validate(batch)]
        if self.best_by not in measured:
            raise ConfigError(
                f"best_by is {self.best_by!r}, which {type(self.agent).__name__} does not measure"
                f"{near(self.best_by, measured) or ';'} it has {', '.join(measured)}"
            )

    def policy(self, learner: int) -> Policy:
        """The learner's policy as it is now."""
        seed = self.config.learner_seeds[learner]
        return self.agent.policy(learner, {**self.provenance, "seed": seed, "step": self.step})

    def _checkpoint(self, logs: Sequence[RunLog]) -> None:
        meter = {name: (s.cpu(), self.meter.counts[name]) for name, s in self.meter.sums.items()}
        for k in range(len(logs)):
            self._refuse_divergence(k, {f"train/{n}": _of(s, k) for n, (s, _) in meter.items()})
        scalars = [
            {
                "data": self.fingerprint,
                "prepared": self.agent.fingerprints(),
                "tables": log.lengths(),
                "meter": {n: [_of(s, k), count] for n, (s, count) in meter.items()},
                "evaluations": progress.evaluations,
                "best": progress.best,
            }
            for k, (log, progress) in enumerate(zip(logs, self.progress, strict=True))
        ]
        entries = checkpoints.agent_entries(self.agent)
        keep = self.config.keep_checkpoints
        checkpoints.save(self._checkpoint_folders(), self.step, entries, scalars, keep)
        self.agent.save_caches()
        for callback in self.callbacks:
            for folder in self.folders:
                callback.on_checkpoint(self.step, folder)

    def _checkpoint_folders(self) -> list[Path]:
        return [folder / "checkpoints" for folder in self.folders]

    def _load(self) -> None:
        folders = self._checkpoint_folders()
        if checkpoints.before_the_first(folders, self.config.checkpoint_every):
            # The run begins again, its tables empty.
            for folder in self.folders:
                cut_back(folder, {})
            checkpoints.drop_after(folders, 0)
            return
        step = checkpoints.latest_common_step(folders)
        states = checkpoints.load(folders, step, checkpoints.agent_entries(self.agent))
        for k, state in enumerate(states):
            wrong = damaged_entry(state)
            if wrong is None and state["meter"].keys() != states[0]["meter"].keys():
                wrong = "meter"
            if wrong is not None:
                raise RunError(
                    f"the checkpoint of step {step:,} in {folders[k]} is damaged: its entry "
                    f"{wrong!r} is not what a run writes; remove its folder to go back to the one "
                    "before"
                )
            found = {"data": state["data"], **state["prepared"]}
            expected = {"data": self.fingerprint, **self.agent.fingerprints()}
            # What one device derives and another does not is not compared.
            if any(found[n] != expected[n] for n in found.keys() & expected.keys()):
                different = [n for n in expected if n in found and found[n] != expected[n]]
                raise RunError(
                    f"{folders[k]} was made with other data: {', '.join(different)} "
                    f"{'differs' if len(different) == 1 else 'differ'} from the checkpoint's. "
                    "Restore what the run began with, or start a new one"
                )
            cut_back(self.folders[k], state["tables"])
            self.progress[k] = Progress.stored(state)
        checkpoints.drop_after(folders, step)
        like = next(self.agent.parameters())
        for name, (_, count) in states[0]["meter"].items():
            sums = [state["meter"][name][0] for state in states]
            value = torch.tensor(sums, dtype=like.dtype).to(like.device)
            self.meter.sums[name] = value.reshape(self.agent.learners.shape)
            self.meter.counts[name] = count
        self.step = step

    def _finish(self) -> None:
        for k, folder in enumerate(self.folders):
            self.policy(k).save(folder / "policy", overwrite=True)
            try:
                write_json(folder / "summary.json", self.summary(k))
            except OSError as error:
                raise RunError(
                    f"{folder / 'summary.json'} cannot be written: {error}. Make room for it, then "
                    "continue with --resume"
                ) from None

    def summary(self, learner: int) -> dict[str, Any]:
        """What a learner has reached, as `Progress.summary`."""
        return self.progress[learner].summary(self.step, self.best_by, self.reference)


def _mapped_like(view: Replay, train: Replay) -> Replay:
    """A view of held-out data under the maps that were fitted to the training data."""
    return replace(
        view,
        obs_mean=train.obs_mean,
        obs_std=train.obs_std,
        action_mid=train.action_mid,
        action_half=train.action_half,
        reward_scale=train.reward_scale,
        reward_shift=train.reward_shift,
    )


def _of(value: Tensor, learner: int) -> float:
    return float(value if value.ndim == 0 else value[learner])
