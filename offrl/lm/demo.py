"""Preference optimisation where the best answer is known: a tiny model learns to sort digits.

    1  SFT on a demonstrator who exchanges neighbours
    2  that model answers every prompt several times; answers are scored by the share of right
       places, and compared in pairs; then some comparisons are turned round
    3  each method learns from the same file, from the same model, with the same settings
    4  on other prompts: the reward, wins against answers of the model after SFT, and
       KL = E[log pi(y|x) - log pi_sft(y|x)], both over samples of the policy

Judged by the true reward, a policy can win more and more, or it can move away from the data and
lose again: overoptimisation, which noisy comparisons make worse. The numbers are of a task of ten
digits and say how the methods behave, not which is best for a large model.
"""

import tempfile
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from offrl.lm import sorting
from offrl.lm.data import load_examples
from offrl.lm.extra import need
from offrl.lm.models import core_of
from offrl.lm.objectives import objective
from offrl.lm.scoring import score_answers
from offrl.lm.tokens import Item, pad_of, tokenize
from offrl.lm.trainer import LmTrainConfig, Plan, fit
from offrl.lm.values import steered

# Method -> settings; rdpo is told the rate of wrong labels, as it assumes.
METHODS: Mapping[str, Mapping[str, float | str]] = {
    "dpo": {},
    "rdpo": {},
    "rpo": {"beta": 0.1, "eta": 0.1},
    "chi_po": {},
    "adpo": {},
    "rloo": {},
}
# What can be asked for beside these. Targets follow as far in 100 updates as elsewhere in 1,000.
MORE: Mapping[str, Mapping[str, float | str]] = {"ilql": {"polyak": 0.05, "cql_weight": 0.01}}
METRICS = ("reward", "win", "kl")


@dataclass(frozen=True)
class DemoConfig:
    """How large the demonstration is."""

    seeds: int = 3  # repetitions of everything
    digits: int = 6  # of a prompt
    prompts: int = 400  # of the data, each with `answers` answers
    answers: int = 4  # samples of the model after SFT
    flips: tuple[float, ...] = (0.0, 0.3)  # shares of comparisons that are turned round
    methods: tuple[str, ...] = tuple(METHODS)
    sft_steps: int = 300  # updates before
    steps: int = 100  # updates of each method
    points: int = 5  # times at which each method is measured
    judged: int = 200  # prompts on which
    batch: int = 32  # examples of an update
    sft_learning_rate: float = 2e-3
    learning_rate: float = 3e-4  # of the methods
    beta: float = 16.0  # weight of the advantage where ilql decodes; 8 or 16 in its authors' runs


def run(config: DemoConfig) -> list[dict[str, Any]]:
    """Records of (seed, method, flips, step, reward, win, kl); step 0 is the model after SFT."""
    records = []
    with tempfile.TemporaryDirectory(prefix="offrl-lm-demo-") as folder:
        for seed in range(config.seeds):
            records += _seed(config, seed, Path(folder) / str(seed))
    return records


def _seed(config: DemoConfig, seed: int, folder: Path) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    tokenizer, model = sorting.digit_tokenizer(), sorting.tiny_model()
    asked = sorting.prompts(config.prompts * 4, config.digits, generator)
    shown = [{"prompt": p, "completion": sorting.disordered(p, generator, 0.3)} for p in asked]
    train = LmTrainConfig(
        steps=config.sft_steps,
        batch=config.batch,
        micro_batch=config.batch,
        learning_rate=config.sft_learning_rate,
        max_length=4 * config.digits,
        seed=seed,
        cpu=True,
        save_every=0,
    )
    fit(Plan(model, objective("sft"), _items(shown, "sft", tokenizer), tokenizer, train), folder)
    judge = Judge(model, tokenizer, sorting.prompts(config.judged, config.digits, generator))
    start = judge(model, seed)
    print(f"seed {seed}: after SFT, reward {start['reward']:.3f}", flush=True)
    groups = _answered(model, tokenizer, asked[: config.prompts], config.answers, generator)
    records = []
    for flips in config.flips:
        noisy, pairs = _turned(groups, flips, generator)
        for name in config.methods:
            options = dict({**METHODS, **MORE}.get(name, {}))
            if name == "rdpo":
                options["flip"] = flips
            goal = objective(name, options)
            # New heads of values begin as the model did.
            rate = config.sft_learning_rate if goal.has_values else config.learning_rate
            data = pairs if goal.form == "pairs" else noisy
            plan = Plan(
                _copy(model),
                goal,
                _items(data, name, tokenizer),
                tokenizer,
                replace(train, steps=config.steps, learning_rate=rate),
                model if goal.needs_reference else None,
            )
            mark: dict[str, Any] = {"seed": seed, "method": name, "flips": flips}
            records.append({**mark, "step": 0, **start})
            every = max(config.steps // config.points, 1)
            beta = config.beta if goal.has_values else None
            fit(plan, folder, callbacks=[_measure(judge, seed, every, mark, records, beta)])
            last = records[-1]
            numbers = ", ".join(f"{m} {last[m]:.3f}" for m in METRICS)
            print(f"seed {seed}, {flips:.0%} turned, {name}: {numbers}", flush=True)
    return records


def _copy(model: Any) -> Any:
    import copy

    return copy.deepcopy(model).requires_grad_(True)


def _items(records: Sequence[Mapping[str, Any]], name: str, tokenizer: Any) -> list[Item]:
    goal = objective(name)
    return tokenize(
        load_examples(records, goal.form),
        tokenizer,
        max_length=1024,
        behavior=goal.needs_behavior,
    )


def _answered(
    model: Any, tokenizer: Any, asked: Sequence[str], answers: int, generator: torch.Generator
) -> list[dict[str, Any]]:
    """Scored groups: several samples of the model for each prompt, and what it thought of them."""
    tokens = len(asked[0])
    drawn = [
        sorting.sample(model, tokenizer, asked, generator, tokens=tokens) for _ in range(answers)
    ]
    groups = []
    for prompt, texts in zip(asked, zip(*drawn, strict=True), strict=True):
        kept = [text for text in texts if text]
        rewards = [sorting.reward(prompt, text) for text in kept]
        groups.append({"prompt": prompt, "completions": kept, "rewards": rewards})
    rows = load_examples(groups)
    items = tokenize(rows, tokenizer, max_length=1024)
    logps = iter(score_answers(model, items, pad_of(tokenizer), 64))
    return [
        {
            **rows.rows[item.row].record(),
            "behavior_logps": [list(next(logps)) for _ in item.answers],
        }
        for item in items
    ]


def _turned(
    groups: Sequence[dict[str, Any]], flips: float, generator: torch.Generator
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Groups and pairs, best against worst, of which a share has its rewards turned round."""
    noisy, pairs = [], []
    for group in groups:
        rewards = group["rewards"]
        low, high = min(rewards), max(rewards)
        turned = torch.rand((), generator=generator).item() < flips
        if low == high:
            continue
        noisy.append({**group, "rewards": [low + high - r for r in rewards] if turned else rewards})
        best, worst = (group["completions"][rewards.index(r)] for r in (high, low))
        chosen, rejected = (worst, best) if turned else (best, worst)
        pairs.append({"prompt": group["prompt"], "chosen": chosen, "rejected": rejected})
    return noisy, pairs


class Judge:
    """Rewards, wins and KL of a policy on prompts of its own, against the model after SFT."""

    def __init__(self, reference: Any, tokenizer: Any, asked: Sequence[str]) -> None:
        self.reference, self.tokenizer, self.asked = reference, tokenizer, asked
        self.opponent = self._rewards(self._answers(reference, 0))

    def __call__(self, policy: Any, seed: int) -> dict[str, float]:
        """Reward, wins (half of a tie) and KL, over one sample for each prompt."""
        answers = self._answers(policy, seed + 1)
        rewards = self._rewards(answers)
        pairs = list(zip(rewards, self.opponent, strict=True))
        wins = sum((a > b) + 0.5 * (a == b) for a, b in pairs)
        items = [
            Item(
                tuple(self.tokenizer(prompt)["input_ids"]),
                ((*self.tokenizer(answer)["input_ids"], self.tokenizer.eos_token_id),),
            )
            for prompt, answer in zip(self.asked, answers, strict=True)
        ]
        own, base = (
            sum(map(sum, score_answers(model, items, pad_of(self.tokenizer), 128)))
            for model in (core_of(policy), self.reference)
        )
        count = len(self.asked)
        return {
            "reward": sum(rewards) / count,
            "win": wins / count,
            "kl": (own - base) / count,
        }

    def _answers(self, model: Any, seed: int) -> list[str]:
        generator = torch.Generator().manual_seed(seed)
        tokens = len(self.asked[0])
        return sorting.sample(model, self.tokenizer, self.asked, generator, tokens=tokens)

    def _rewards(self, answers: Sequence[str]) -> list[float]:
        return [sorting.reward(p, a) for p, a in zip(self.asked, answers, strict=True)]


def _measure(
    judge: Judge,
    seed: int,
    every: int,
    mark: dict[str, Any],
    records: list[dict[str, Any]],
    beta: float | None,
) -> Any:
    """A callback that measures the policy in the course of its training."""
    base: Any = need("transformers").TrainerCallback

    class Measure(base):  # type: ignore[misc]
        def on_step_end(
            self, args: Any, state: Any, control: Any, model: Any = None, **_: Any
        ) -> None:
            if state.global_step % every == 0:
                with nullcontext() if beta is None else steered(model, beta):
                    found = judge(model, seed)
                records.append({**mark, "step": state.global_step, **found})

    return Measure()


def table(records: Sequence[Mapping[str, Any]]) -> str:
    """The end of every method as a Markdown table: mean over seeds, least and greatest behind."""
    last = max(record["step"] for record in records)
    lines = [
        "| turned round | method | reward | wins | KL | best wins |",
        "|---|---|---|---|---|---|",
    ]
    start = [r["reward"] for r in records if r["step"] == 0]
    lines.append(f"| | after SFT | {sum(start) / len(start):.3f} | 0.500 | 0 | |")
    for flips in sorted({record["flips"] for record in records}):
        for method in dict.fromkeys(record["method"] for record in records):
            of = [r for r in records if (r["flips"], r["method"]) == (flips, method)]
            ends = [r for r in of if r["step"] == last]
            cells = [_spread([r[metric] for r in ends]) for metric in METRICS]
            by_step = {r["step"]: [q["win"] for q in of if q["step"] == r["step"]] for r in of}
            best = max(sum(wins) / len(wins) for wins in by_step.values())
            lines.append(f"| {flips:.0%} | `{method}` | {' | '.join(cells)} | {best:.3f} |")
    return "\n".join(lines)


def _spread(values: Sequence[float]) -> str:
    mean = sum(values) / len(values)
    return f"{mean:.3f}" + (f" ({min(values):.3f} to {max(values):.3f})" * (len(values) > 1))
