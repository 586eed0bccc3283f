"""`offrl lm demo`: a tiny model learns to sort digits, by SFT and then from comparisons."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from offrl.arguments import Parser
from offrl.errors import ConfigError, RunError
from offrl.files import write_json


def main(argv: list[str]) -> int:
    """Run `offrl lm demo`; returns the exit code."""
    parser = Parser(prog="offrl lm demo", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("demo-lm"), help="new folder (demo-lm)")
    parser.add_argument("--seeds", type=int, default=3, help="repetitions of everything (3)")
    parser.add_argument("--steps", type=int, default=100, help="updates of each method (100)")
    parser.add_argument("--sft-steps", type=int, default=300, help="updates before (300)")
    parser.add_argument("--methods", help="names with commas between, ilql too (a choice of six)")
    given = parser.parse_args(argv)
    if given.out.exists():
        raise RunError(f"{given.out} exists already and is not overwritten; choose another --out")
    if min(given.seeds, given.steps, given.sft_steps) < 1:
        raise ConfigError("--seeds, --steps and --sft-steps must be at least 1")
    from offrl.lm.demo import DemoConfig, run, table
    from offrl.lm.objectives import objective

    config = DemoConfig(seeds=given.seeds, steps=given.steps, sft_steps=given.sft_steps)
    methods = tuple(given.methods.split(",")) if given.methods else config.methods
    for name in methods:
        if objective(name).form not in ("pairs", "groups"):
            raise ConfigError(f"{name} learns from neither pairs nor groups, which the demo makes")
    config = DemoConfig(
        seeds=given.seeds, steps=given.steps, sft_steps=given.sft_steps, methods=methods
    )
    records = run(config)
    given.out.mkdir(parents=True)
    write_json(given.out / "records.json", records)
    text = table(records)
    (given.out / "table.md").write_text(text + "\n")
    draw(records, given.out / "reward_kl.png")
    print(f"\n{text}\n\n{given.out / 'reward_kl.png'}: reward against KL, as training goes on")
    return 0


def draw(records: Sequence[dict[str, Any]], path: Path) -> None:
    """Reward against KL in the course of training: a panel per share of flips, a line a method."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    from offrl.plotting import COLOURS, PANEL, PAPER, STYLES

    flips = sorted({record["flips"] for record in records})
    methods = list(dict.fromkeys(record["method"] for record in records))
    steps = sorted({record["step"] for record in records})
    with rc_context(PAPER):
        figure = Figure(figsize=(PANEL[0] * len(flips), PANEL[1] * 1.3), layout="constrained")
        panels = figure.subplots(1, len(flips), sharey=True, squeeze=False)[0]
        for panel, rate in zip(panels, flips, strict=True):
            for i, method in enumerate(methods):
                at = [
                    [
                        r
                        for r in records
                        if (r["flips"], r["method"], r["step"]) == (rate, method, s)
                    ]
                    for s in steps
                ]
                x, y = ([_mean([r[key] for r in rows]) for rows in at] for key in ("kl", "reward"))
                colour, style = COLOURS[i % len(COLOURS)], STYLES[i % len(STYLES)]
                panel.plot(x, y, color=colour, linestyle=style, marker=".", label=method)
            panel.set_title(f"{rate:.0%} of the comparisons turned round")
            panel.set_xlabel("KL to the model after SFT (nats)")
        panels[0].set_ylabel("reward")
        panels[-1].legend(frameon=False)
        figure.savefig(path, dpi=200)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
