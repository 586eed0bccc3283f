"""What an action of a policy of chunks costs: evaluations of the network, and milliseconds.

A plan is one call of the policy's `act` for one observation, on one thread of the processor; the
other actions of a chunk are read from it. Networks have their first weights, on which the time
does not depend. On a machine that has other work to do, the time on the clock includes waiting;
the processor's time does not, and is what a machine at rest would show.
"""

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from cells import machine

from offrl.agents import AGENTS
from offrl.datasets.offline import Spec
from offrl.datasets.staged import spec_of
from offrl.envs.making import make
from offrl.networks import Learners
from offrl.policy import PlanPolicy

LIMIT = 10.0  # ms
WARM_UP, MOST, LEAST = 20, 300, 8  # calls of each setting
WARM_TIME, BUDGET = 1.0, 4.0  # s of the processor, after which fewer calls suffice
# Those of the recipe for offrl's tasks, and Diffusion Policy's own with its chunks.
SMALL = {"history": 2, "horizon": 8, "execute": 4, "width": 128, "depth": 3}
PUBLISHED = {"history": 2, "horizon": 16, "execute": 8, "width": 256}
BACKBONES: Mapping[str, Mapping[str, Any]] = {
    "mlp": {**SMALL, "backbone": "mlp"},
    "resnet": {**SMALL, "backbone": "resnet"},
    "film": {**SMALL, "backbone": "film"},
    "transformer": {**PUBLISHED, "backbone": "transformer", "depth": 8},
    "unet": {**PUBLISHED, "backbone": "unet", "depth": 3},
}
HEADS: Sequence[tuple[str, Mapping[str, Any]]] = (
    ("chunk_bc", {}),
    ("diffusion_policy", {"sampler": "ddpm", "sampler_steps": 100}),
    ("diffusion_policy", {"sampler": "ddim", "sampler_steps": 16}),
    ("diffusion_policy", {"sampler": "ddim", "sampler_steps": 8}),
    ("diffusion_policy", {"sampler": "dpm2", "sampler_steps": 8}),
    ("flow_bc", {"sampler": "euler", "sampler_steps": 10}),
    ("flow_bc", {"sampler": "euler", "sampler_steps": 4}),
    ("flow_bc", {"sampler": "midpoint", "sampler_steps": 4}),
    ("consistency_bc", {"sampler_steps": 2}),
    ("consistency_bc", {"sampler_steps": 1}),
)


def measure_latencies(
    env: str, backbones: Mapping[str, Mapping[str, Any]] = BACKBONES, most: int = MOST
) -> dict[str, Any]:
    """Of every head, backbone and sampler, on observations of this environment."""
    made = make(env)
    try:
        spec = spec_of(made)
    finally:
        made.close()
    rows = [
        {"agent": agent, "backbone": backbone, **sampler, **timed(spec, agent, settings, most)}
        for agent, sampler in HEADS
        for backbone, size in backbones.items()
        for settings in ({**size, **sampler},)
    ]
    return {"env": env, "machine": machine(), "load": os.getloadavg()[0], "rows": rows}


def timed(spec: Spec, agent: str, settings: Mapping[str, Any], most: int = MOST) -> dict[str, Any]:
    """Evaluations for a plan, and p50 and p99 of calls that plan, in ms."""
    cls, default = AGENTS[agent]
    config = replace(default, **settings)
    policy = cls(spec, config, Learners((0,))).policy()
    assert isinstance(policy, PlanPolicy)
    evaluations = []
    policy.actor.net.register_forward_hook(lambda *_: evaluations.append(1))
    rng = np.random.default_rng(0)
    low, high = (np.array(bound, np.float32) for bound in (spec.obs_low, spec.obs_high))

    def call() -> tuple[float, float, float]:
        """Seconds of a call that plans, clock and processor; and of one that reads the plan."""
        state, obs = policy.start(1), rng.uniform(low, high)[None]
        evaluations.clear()
        begin = time.perf_counter(), time.thread_time()
        _, state = policy.act(obs, state)
        spent = time.perf_counter() - begin[0], time.thread_time() - begin[1]
        planned.append(len(evaluations))
        then = time.thread_time()
        if config.execute > 1:
            policy.act(obs, state)
        return *spent, time.thread_time() - then

    planned: list[int] = []
    begin = time.thread_time()
    for _ in range(WARM_UP):
        call()
        if time.thread_time() - begin > WARM_TIME:
            break
    calls: list[tuple[float, float, float]] = []
    begin = time.thread_time()
    while len(calls) < LEAST or (len(calls) < most and time.thread_time() - begin < BUDGET):
        calls.append(call())
    clock, processor, read = 1e3 * np.array(calls).T
    found = {
        k: np.quantile(v, (0.5, 0.99)).tolist()
        for k, v in (("clock", clock), ("processor", processor))
    }
    others = (config.execute - 1) * float(np.median(read))
    return {
        **{"evaluations": max(planned), "calls": len(calls), **found},
        "per_action": (found["processor"][0] + others) / config.execute,
        "parameters": sum(p.numel() for p in policy.actor.parameters()),
    }


def stepped(policy: Any, first: int, then: int) -> dict[str, float]:
    """Median, 99th percentile, longest and mean of the processor's time of a control step, in ms.

    An episode of one slot is played on random observations; the `then` steps after the `first`
    count.
    """
    rng, state, times = np.random.default_rng(0), policy.start(1), []
    for step in range(first + then):
        obs = rng.normal(size=(1, policy.obs_dim)).astype(np.float32)
        begin = time.thread_time()
        _, state = policy.act(obs, state, np.zeros(1))
        if step >= first:
            times.append(1e3 * (time.thread_time() - begin))
    middle, late = np.quantile(times, (0.5, 0.99)).tolist()
    longest, mean = float(np.max(times)), float(np.mean(times))
    return {"median": middle, "p99": late, "longest": longest, "mean": mean}


def latency_lines(stored: Mapping[str, Any]) -> list[str]:
    """The table, for a page."""
    sizes = {row["backbone"]: row["parameters"] for row in stored["rows"]}
    lines = [
        "",
        "## Latency",
        "",
        "One call of the policy's `act` that makes a plan, for one observation on one thread: p50 "
        "and p99 on the clock and of processor time, and processor time (p50) for an action where "
        "a plan's chunk is executed as configured. "
        f"Measured on {stored['machine']}, at a load of {stored['load']:.1f}: where the clock's "
        "numbers exceed the processor's, the call was waiting for other work on the machine. The "
        f"last column says what stays within {LIMIT:g} ms. Networks of "
        + ", ".join(f"`{k}` {v / 1e6:.2f} M" for k, v in sizes.items())
        + " parameters; the first three have the chunks and sizes of the table above, the others "
        "those of Diffusion Policy (16 actions, 8 executed).",
        "",
        "| head | sampler | backbone | evaluations | clock p50, ms | p99 | processor p50, ms | p99 "
        f"| per action | calls | {LIMIT:g} ms |",
        "|---|---|---|--:|--:|--:|--:|--:|--:|--:|---|",
    ]
    for row in stored["rows"]:
        sampler = f"{row.get('sampler', row['agent'].partition('_')[0])} {row['evaluations']}"
        lines.append(
            f"| `{row['agent']}` | {'one pass' if row['agent'] == 'chunk_bc' else sampler} "
            f"| {row['backbone']} | {row['evaluations']} "
            + "".join(f"| {v:.2f} " for k in ("clock", "processor") for v in row[k])
            + f"| {row['per_action']:.2f} | {row['calls']} | {within(row)} |"
        )
    return lines


def within(row: Mapping[str, Any]) -> str:
    """Which of a row's numbers are within the limit, the strictest first."""
    if row["clock"][1] <= LIMIT:
        return "p99"
    if row["processor"][1] <= LIMIT:
        return "p99 of processor time"
    return "p50 of processor time" if row["processor"][0] <= LIMIT else "no"


if __name__ == "__main__":
    torch.set_num_threads(1)
    for line in latency_lines(measure_latencies("offrl/MultiReach-v0")):
        print(line)
