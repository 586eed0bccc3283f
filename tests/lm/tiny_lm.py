"""A causal model of a few thousand numbers, its tokenizer, and examples for both."""

from typing import Any

import torch

from offrl.lm.data import load_examples
from offrl.lm.objectives import Objective, objective
from offrl.lm.sorting import digit_tokenizer, tiny_model
from offrl.lm.tokens import Item, tokenize
from offrl.lm.trainer import LmTrainConfig, Plan

PAIRS = [
    {"prompt": "312>", "chosen": "123", "rejected": "321"},
    {"prompt": "54>", "chosen": "45", "rejected": "5"},
    {"prompt": "9071>", "chosen": "0179", "rejected": "0197"},
    {"prompt": "28>", "chosen": "28", "rejected": "2882"},
]
GROUPS: list[dict[str, Any]] = [
    {"prompt": "312>", "completions": ["123", "321", "13"], "rewards": [1.0, 0.0, 0.5]},
    {"prompt": "54>", "completions": ["45", "5"], "rewards": [1.0, 0.0]},
    {"prompt": "971>", "completions": ["179", "9", "917", "17"], "rewards": [1.0, 0, 0.0, 1]},
    {"prompt": "28>", "completions": ["28", "82"], "rewards": [0.0, 0.0]},
]
LABELS = [
    {
        "prompt": row["prompt"],
        "completion": row["chosen" if i % 2 else "rejected"],
        "label": i % 2 == 1,
    }
    for i, row in enumerate(PAIRS)
]
DEMONSTRATIONS = [{"prompt": row["prompt"], "completion": row["chosen"]} for row in PAIRS]
# What methods without a default of their own are given.
GIVEN: dict[str, dict[str, float | str]] = {
    **{"ld_dpo": {"alpha": 0.5}, "f_dpo": {"divergence": "js"}, "cream": {"consistency": 0.8}},
    **{"online_ipo": {"preference": 0.9}, "info_nca": {"alpha": 0.1}, "nca": {"alpha": 0.1}},
    **{"copg": {"beta": 0.1}, "copg_square": {"beta": 0.1}, "grpo": {"kl": 0.1}},
}
RECORDS: dict[str, list[dict[str, Any]]] = {
    "pairs": PAIRS,
    "groups": GROUPS,
    "labels": LABELS,
    "demonstrations": DEMONSTRATIONS,
}


def model(seed: int = 0, **settings: Any) -> Any:
    torch.manual_seed(seed)
    return tiny_model(hidden=16, layers=2, heads=2, **settings).eval()


def goal(name: str) -> Objective:
    return objective(name, GIVEN.get(name))


def plan(name: str, policy: Any = None, **settings: Any) -> Plan:
    """A plan for a method on its examples; the policy differs from the reference it is given."""
    aim, policy = goal(name), model(1) if policy is None else policy
    reference = model(0) if aim.needs_reference and not hasattr(policy, "disable_adapter") else None
    config = LmTrainConfig(**{"batch": 4, "micro_batch": 4, "max_length": 32, **settings})
    return Plan(policy, aim, items(aim), digit_tokenizer(), config, reference)


def items(goal: Objective, records: list[dict[str, Any]] | None = None) -> list[Item]:
    """The examples of a method as tokens; groups come with log-probabilities of a sampler."""
    tokenizer = digit_tokenizer()
    rows = [dict(row) for row in (RECORDS[goal.form] if records is None else records)]
    if goal.form == "groups" and goal.needs_behavior != "no":
        for row in rows:
            row["behavior_logps"] = [
                [-2.4 - 0.1 * t for t in range(len(text) + 1)] for text in row["completions"]
            ]
    return tokenize(
        load_examples(rows, goal.form, least_answers=goal.least_answers),
        tokenizer,
        max_length=32,
        behavior=goal.needs_behavior,
        least_answers=goal.least_answers,
        columns=goal.columns,
    )
