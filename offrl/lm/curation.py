"""Examples made from examples: relabelled by reward, paired, filtered, their rewards transformed.

Each function takes examples and returns new ones with a count of what it left out. The formulas are
those of `offrl.lm.losses.transforms`; here are the files' columns. Chance comes from a stream of
its own seed, so the same command gives the same file.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from offrl.errors import ConfigError, DataError
from offrl.lm.data import Demonstration, Example, Group, Labelled, Pair, Text
from offrl.lm.losses import transforms
from offrl.streams import Stream

GOAL = "Give an answer of score {score:g}."

Weights = Callable[[Tensor], Tensor]
WEIGHTS: dict[str, Weights] = {
    "power": transforms.power_weights,
    "best-worst": transforms.best_worst_weights,
    "best-random": transforms.best_random_weights,
}


def with_goals(pairs: Sequence[Pair], template: str = GOAL) -> tuple[list[Pair], int]:
    """Each pair twice, with the score to reach in its prompt: the chosen's, and the rejected's.

    With the second goal the rejected answer is the right one, so the two change places. Pairs of
    equal scores would ask for both orders at once and are left out. The goal stands in front of a
    string and in the system message of a conversation. Raises DataError where scores are missing.
    Source: reward-augmented data (arXiv:2410.08067), read in the authors' code, which keeps ties.
    Twin: return-conditioned policies.
    """
    try:
        template.format(score=0.5)
    except (KeyError, IndexError, ValueError) as error:
        raise ConfigError(f"the template {template!r} has no {{score}} alone: {error}") from None
    made, ties = [], 0
    for number, pair in enumerate(pairs, 1):
        high, low = pair.chosen_score, pair.rejected_score
        if high is None or low is None:
            raise DataError(
                f"pair {number} has no chosen_score and rejected_score; goals are made from them"
            )
        if high == low:
            ties += 1
            continue
        up = _with_goal(pair.prompt, template.format(score=high))
        down = _with_goal(pair.prompt, template.format(score=low))
        made.append(replace(pair, prompt=up, more={**pair.more, "goal": high}))
        swapped = Pair(down, pair.rejected, pair.chosen, low, high, {**pair.more, "goal": low})
        made.append(swapped)
    return made, ties


def paired(
    groups: Sequence[Group], how: str = "best-worst", margin: float = 0.0
) -> tuple[list[Pair], int]:
    """Pairs of each group's answers whose rewards differ by more than `margin`, with both scores.

    `how` is best-worst, one pair a group, or all. The count is of groups that gave no pair.
    """
    if how not in ("best-worst", "all"):
        raise ConfigError(f"pairs are made by 'best-worst' or 'all', not by {how!r}")
    made: list[Pair] = []
    without = 0
    for group in groups:
        rewards = _rewards(group)
        if how == "all":
            places = transforms.pairs_above(rewards, margin=margin).nonzero().tolist()
        else:
            up, down, gap = transforms.best_worst(rewards)
            places = [[int(up), int(down)]] if float(gap) > margin else []
        without += not places
        for i, j in places:
            scores = group.rewards[i], group.rewards[j]
            made.append(Pair(group.prompt, group.completions[i], group.completions[j], *scores))
    return made, without


def labelled(groups: Sequence[Group], threshold: float) -> list[Labelled]:
    """Each answer alone, welcome where its reward is at least `threshold`."""
    return [
        Labelled(group.prompt, text, reward >= threshold, {"score": reward})
        for group in groups
        for text, reward in zip(group.completions, group.rewards, strict=True)
    ]


def demonstrated(groups: Sequence[Group]) -> list[Demonstration]:
    """Each answer alone, to be imitated: filtered cloning, after `best_of` or rejection."""
    return [
        Demonstration(group.prompt, text, {"score": reward})
        for group in groups
        for text, reward in zip(group.completions, group.rewards, strict=True)
    ]


def unpaired(pairs: Sequence[Pair]) -> list[Labelled]:
    """Both answers of each pair alone: the chosen one welcome, the rejected one not."""
    answers = [((pair.chosen, True), (pair.rejected, False)) for pair in pairs]
    return [
        Labelled(pair.prompt, text, label)
        for pair, both in zip(pairs, answers, strict=True)
        for text, label in both
    ]


def with_rewards(groups: Sequence[Group], rule: str, **options: float) -> list[Group]:
    """Groups with their rewards transformed by one of REWARDS; the old ones go to `raw_rewards`.

    par and lsc read the column reference_rewards, the rewards of reference answers to the prompt;
    and reads model_rewards, for each answer the rewards of several models, and
    reference_model_rewards, for each reference answer the same. Raises DataError where a column is
    missing or of another shape.
    """
    if rule not in REWARDS:
        raise ConfigError(
            f"there is no transform of rewards {rule!r}; there are {', '.join(REWARDS)}"
        )
    made = []
    for number, group in enumerate(groups, 1):
        try:
            rewards = REWARDS[rule](group, **options).tolist()
        except KeyError as column:
            raise DataError(f"group {number} has no column {column}; {rule} needs it") from None
        except (TypeError, ValueError, RuntimeError) as error:
            raise DataError(f"group {number}: rewards cannot be transformed: {error}") from None
        more = {**group.more, "raw_rewards": list(group.rewards)}
        made.append(replace(group, rewards=tuple(rewards), more=more))
    return made


def _par(group: Group, k: float = 1.0) -> Tensor:
    references = _table(group.more["reference_rewards"], 1)
    return transforms.par(_rewards(group), references.expand(len(group.rewards), -1), k=k)


def _lsc(group: Group, level: float = 0.85) -> Tensor:
    references = _table(group.more["reference_rewards"], 1)
    reference = transforms.gaussian_quantile(references, level=level)
    return transforms.lsc(_rewards(group), reference.expand(len(group.rewards)))


def _and(group: Group, level: float = 0.85) -> Tensor:
    rewards = _table(group.more["model_rewards"], 2)
    references = _table(group.more["reference_model_rewards"], 2)
    reference = transforms.gaussian_quantile(references.T, level=level)
    return transforms.log_and(rewards, reference.expand(rewards.shape))


def _corrected(group: Group, false_positive: float = 0.0, false_negative: float = 0.0) -> Tensor:
    if false_positive + false_negative >= 1 or min(false_positive, false_negative) < 0:
        raise ConfigError(
            f"error rates {false_positive:g} and {false_negative:g} must be at least 0 and less "
            "than 1 together"
        )
    return transforms.unbiased_reward(
        _rewards(group), false_positive=false_positive, false_negative=false_negative
    )


REWARDS: dict[str, Callable[..., Tensor]] = {
    "par": _par,
    "lsc": _lsc,
    "and": _and,
    "corrected": _corrected,
}


def rejection_sampled(
    groups: Sequence[Group], beta: float, seed: int = 0
) -> tuple[list[Group], int]:
    """Groups of the answers that RSO accepts; the count is of those it rejects."""
    if not beta > 0:
        raise ConfigError(f"beta {beta:g} must be above 0")
    generator, made, rejected = Stream(seed, "lm/rejection").block(0), [], 0
    for group in groups:
        uniform = torch.from_numpy(generator.random(len(group.rewards)))
        kept = transforms.rejection_sampled(_rewards(group), uniform, beta=beta)
        places = kept.nonzero()[:, 0].tolist()
        rejected += len(group.rewards) - len(places)
        made.append(group.taking(places))
    return made, rejected


def best_of(groups: Sequence[Group], n: int) -> tuple[list[Group], int]:
    """The n best answers of each group, best first; the count is of the others."""
    if n < 1:
        raise ConfigError(f"the best {n} answers are none; keep 1 or more")
    made = [group.taking(_rewards(group).argsort(descending=True)[:n].tolist()) for group in groups]
    left = sum(len(group.rewards) for group in groups) - sum(len(group.rewards) for group in made)
    return made, left


def resampled(groups: Sequence[Group], weights: str, seed: int = 0) -> list[Group]:
    """Each group drawn anew with replacement, by weights of its rewards: PF-PPO."""
    if weights not in WEIGHTS:
        raise ConfigError(f"there are no weights {weights!r}; there are {', '.join(WEIGHTS)}")
    generator, made = Stream(seed, "lm/resample").block(0), []
    for group in groups:
        uniform = torch.from_numpy(generator.random(len(group.rewards)))
        places = transforms.resampled(WEIGHTS[weights](_rewards(group)), uniform)
        made.append(group.taking(places.tolist()))
    return made


def far_apart(pairs: Sequence[Pair], margin: float) -> tuple[list[Pair], int]:
    """Pairs whose scores differ by at least `margin`; the count is of the others."""
    kept = []
    for number, pair in enumerate(pairs, 1):
        if pair.chosen_score is None or pair.rejected_score is None:
            raise DataError(f"pair {number} has no chosen_score and rejected_score to compare")
        if pair.chosen_score - pair.rejected_score >= margin:
            kept.append(pair)
    return kept, len(pairs) - len(kept)


def lowest(rows: Sequence[Example], column: str, share: float = 0.05) -> tuple[list[Example], int]:
    """The `share` of the examples with the lowest numbers in `column`: CHES's filter, of `ches`.

    The paper keeps .05. Raises DataError where an example has no such number.
    """
    if not 0 < share <= 1:
        raise ConfigError(f"the share {share:g} must be above 0 and at most 1")
    numbers = []
    for number, row in enumerate(rows, 1):
        value = row.more.get(column)
        if isinstance(value, bool) or not isinstance(value, int | float) or value != value:
            raise DataError(
                f"example {number} has no number in the column {column!r}; score the file first"
            )
        numbers.append(float(value))
    kept = transforms.lowest(torch.tensor(numbers, dtype=torch.float64), share=share)
    left = [row for row, keep in zip(rows, kept.tolist(), strict=True) if keep]
    return left, len(rows) - len(left)


def _with_goal(prompt: Text, goal: str) -> Text:
    if isinstance(prompt, str):
        return f"{goal}\n\n{prompt}"
    if prompt and prompt[0]["role"] == "system":
        first = {**prompt[0], "content": f"{prompt[0]['content']}\n\n{goal}"}
        return [first, *prompt[1:]]
    return [{"role": "system", "content": goal}, *prompt]


def _rewards(group: Group) -> Tensor:
    return torch.tensor(group.rewards, dtype=torch.float64)


def _table(values: object, axes: int) -> Tensor:
    table = torch.tensor(values, dtype=torch.float64)
    if table.ndim != axes or not table.numel() or not bool(table.isfinite().all()):
        kind = "a list of finite numbers" if axes == 1 else "lists of finite numbers, all as long"
        raise ValueError(f"the column must be {kind}")
    return table
