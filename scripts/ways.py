"""The ways that a policy takes past the walls of MultiReach, played and drawn from above."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from offrl.envs.making import make
from offrl.envs.outcomes import Outcome
from offrl.envs.puck import EDGE
from offrl.envs.reaching import THICK, WIDE
from offrl.evaluation import StatefulPolicy, start_seed
from offrl.plotting import COLOURS, PAPER

UP, DOWN, FAILED = COLOURS[0], COLOURS[1], "#999999"


def way_of(
    policy: StatefulPolicy, env: str, start: int, seed: int, deterministic: bool = True
) -> dict[str, Any]:
    """Positions in m from this start of an evaluation on, whether it succeeded, and its mode."""
    made = make(env)
    try:
        obs, _ = made.reset(seed=start_seed(seed, start))
        state = policy.restart(policy.start(1), [0], [start])
        base: Any = made.unwrapped
        path, outcome, over = [base.position], Outcome(), False
        while not over:
            action, state = policy.act(obs[None], state, deterministic=deterministic)
            obs, _, terminated, truncated, info = made.step(action[0])
            outcome, over = outcome.after(info), terminated or truncated
            path.append(base.position)
    finally:
        made.close()
    rounded = np.round(path, 3).tolist()
    return {"path": rounded, "success": outcome.success, "mode": outcome.mode}


def draw_ways(env: str, ways: Mapping[str, Sequence[Mapping[str, Any]]], target: Path) -> None:
    """A panel for each policy, with the walls; a dot where a way ended without success."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    made: Any = make(env)
    walls = made.unwrapped.walls
    made.close()
    with matplotlib.rc_context(PAPER):
        figure = Figure(figsize=(2.2 * len(ways), 2.3), layout="constrained")
        panels = np.atleast_1d(figure.subplots(1, len(ways), sharey=True))
        for panel, (name, taken) in zip(panels, ways.items(), strict=True):
            for x in walls:
                panel.add_patch(
                    Rectangle((x - THICK, -WIDE), 2 * THICK, 2 * WIDE, color="#333333", lw=0)
                )
            for way in taken:
                x, y = np.transpose(way["path"])
                # With one wall the mode is its side; with more, that of the first.
                colour = (UP if way["mode"] % 2 else DOWN) if way["success"] else FAILED
                panel.plot(x, y, color=colour, lw=0.7, alpha=0.7)
                if not way["success"]:
                    panel.plot(x[-1:], y[-1:], ".", color=FAILED, ms=4)
            reached = np.mean([bool(way["success"]) for way in taken])
            panel.set_title(f"{name}\n{100 * reached:.0f} % of {len(taken)}")
            panel.set(xlim=(-0.75, EDGE), ylim=(-0.7, 0.7), aspect="equal", xlabel="x, m")
        panels[0].set_ylabel("y, m")
        figure.savefig(target, dpi=160)
