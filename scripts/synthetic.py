"""Train on data that a diffusion model made up: policy-guided, unguided, and the logged data.

    python scripts/synthetic.py                                # all that is missing, then the page
    python scripts/synthetic.py --dataset walker2d-medium-replay --generator-steps 50000
    python scripts/synthetic.py --draw                         # the page of what exists

A diffusion model of the trajectories of --dataset is trained once (offrl.synthesis). Each agent is
trained on the logged data alone; its first seed's policy is the target that guided data is made
towards. Then it is trained on unguided data, on guided data, and on guided and logged data
together, for equally many updates. Synthetic sets have as many transitions as the logged one, or
--size. What both kinds of data say of the dynamics is compared with the simulator, beside a learned
one-step model (scripts/fidelity.py). Everything made is kept under runs/; finished cells are
skipped and unfinished ones resumed, as by scripts/results.py.
"""

import argparse
import hashlib
import json
import math
import os
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import fidelity
import torch
from cells import (
    RESULTS,
    SHIPPED,
    WORK,
    add_training_arguments,
    cell_hash,
    kept_dataset,
    run_cell,
    training_settings,
)
from synthetic_page import draw
from tqdm import tqdm

import offrl
from offrl.datasets.loading import load_dataset
from offrl.datasets.offline import OfflineDataset
from offrl.datasets.replay import RETURN_RANGE, action_maps
from offrl.dynamics import DynamicsConfig
from offrl.errors import RunError
from offrl.files import read_json, write_json
from offrl.plans import Plan, plan
from offrl.policy import Policy, load_policy
from offrl.policy_guidance import Guidance
from offrl.synthesis import GeneratorConfig, log_density, with_source
from offrl.synthesize_cli import generator_for

AGENTS = ("td3_bc", "iql")
KINDS = ("logged", "unguided", "guided", "both")
PAGE = RESULTS / "synthetic"


@dataclass(frozen=True)
class Making:
    """How synthetic data is made: what of the options determines it."""

    config: GeneratorConfig
    trajectories: int
    sampler_steps: int
    weight: float
    seed: int

    def key(self, *more: str) -> str:
        """Names what is made like this."""
        text = json.dumps([asdict(self), *more], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


def made(source: OfflineDataset, making: Making, towards: tuple[str, str] | None) -> OfflineDataset:
    """A synthetic set, made once and kept.

    `towards` is the agent whose policy guides it, and the hash of the cell that the policy is of;
    without it nothing guides. Raises RunError where that policy is not kept any more.
    """
    label = "unguided" if towards is None else f"towards-{towards[0]}"
    name = f"{source.name}-{label}"

    def make() -> OfflineDataset:
        policy = None if towards is None else load_policy(target_folder(*towards))
        generator = generator_for(source, making.config, making.seed, "auto")
        with tqdm(total=making.trajectories, desc=name, mininterval=5.0) as bar:
            found = generator.make(
                making.trajectories,
                policy,
                Guidance(weight=making.weight),
                making.sampler_steps,
                making.seed,
                progress=bar.update,
            )
        return replace(found, name=name)

    key = making.key(source.fingerprint, *(towards or ()))
    kept = kept_dataset(WORK / "synthetic" / f"{name}-{key}", make)
    return replace(kept, name=name)


def target_folder(agent: str, digest: str) -> Path:
    """Where the policy that guides is kept; RunError where there is none."""
    folder = WORK / "synthetic" / f"target-{agent}-{digest}"
    if not folder.exists():
        raise RunError(
            f"{folder} is gone, and data guided by this policy cannot be made; delete the cell "
            f"logged/{agent} in {PAGE}, to train the policy again"
        )
    return folder


def keep_target(path: Path, agent: str, digest: str) -> Mapping[str, Any]:
    """Keep the policy of a cell's first seed, whose run this is called with first."""
    folder = WORK / "synthetic" / f"target-{agent}-{digest}"
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        load_policy(path).save(folder)
    return {}


def planned(agent: str, data: OfflineDataset, source: OfflineDataset, settings: Any) -> Plan:
    """A cell, whose rewards are scaled by what the logged episodes return.

    IQL's recipe divides rewards by the range of the returns; those of pieces of 31 steps have
    another one, which would make its temperature another one too.
    """
    own = {}
    if agent == "iql":
        returns = source.returns()
        scale = RETURN_RANGE / float(returns.max() - returns.min())
        own = {"reward_by_return_range": False, "reward_scale": scale}
    return plan(agent, data, settings={**settings, **own})


def likelihood(data: OfflineDataset, policy: Policy) -> float:
    """Mean log density of the data's actions under a policy (`offrl.synthesis.log_density`)."""
    middle, half = action_maps(data)
    obs = torch.from_numpy((data.obs - policy.obs_mean) / policy.obs_std).float()
    action = torch.from_numpy((data.action - middle) / half).float()
    with torch.no_grad():
        return float(log_density(policy.actor, obs[None], action[None]).mean())


def measure(
    sets: Mapping[str, OfflineDataset],
    source: OfflineDataset,
    targets: Mapping[str, str],
    making: Making,
    options: argparse.Namespace,
) -> dict[str, Any]:
    """What the page says of the data: dynamics errors, likelihoods, ends, rewards."""
    sim, scale = fidelity.Simulator(source.env_id), fidelity.one_step_scale(source)
    config = DynamicsConfig(epochs=options.model_epochs)
    text = json.dumps([asdict(config), source.fingerprint, making.seed], sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()[:12]
    path = WORK / "synthetic" / f"one-step-model-{digest}.safetensors"
    model = fidelity.learned_model(source, config, making.seed, path)
    steps, seed = making.config.length - 1, making.seed
    policies = {a: load_policy(target_folder(a, cell)) for a, cell in targets.items()}
    found: dict[str, Any] = {}
    for name, data in sets.items():
        found[name] = {
            "steps": data.num_steps,
            "ends": float(data.terminated.mean()),
            "reward_mean": float(data.reward.mean()),
            "likelihood": {agent: likelihood(data, p) for agent, p in policies.items()},
            **fidelity.of_transitions(sim, data, scale, model, options.measured * steps, seed),
            "along": fidelity.along(sim, data, scale[0], model, steps, options.measured, seed),
        }
    generator = sets["unguided"].provenance["synthetic"]
    facts = {"generator": generator, "weight": making.weight, "model": fidelity.model_facts(model)}
    return {"sets": found, "made": making.key(), **facts}


def with_earlier(name: str, facts: dict[str, Any]) -> dict[str, Any]:
    """These facts with those of sets that other agents had made by the same settings."""
    path = PAGE / name / "data.json"
    earlier = read_json(path) if path.exists() else {}
    if earlier.get("made") == facts["made"]:
        for data, found in earlier["sets"].items():
            known = facts["sets"].setdefault(data, found)
            known["likelihood"] = {**found["likelihood"], **known["likelihood"]}
    return facts


def arguments() -> argparse.Namespace:
    """The options, from the command line."""
    config, guidance, model = GeneratorConfig(), Guidance(), DynamicsConfig()
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--dataset", default="hopper-medium-replay", choices=SHIPPED)
    parser.add_argument("--agents", nargs="+", default=list(AGENTS), choices=AGENTS)
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS)
    parser.add_argument("--size", type=int, help="synthetic transitions (as many as logged)")
    parser.add_argument("--generator-steps", type=int, default=config.steps)
    parser.add_argument("--channels", type=int, default=config.channels, help="of the U-Net (64)")
    parser.add_argument("--length", type=int, default=config.length, help="rows of each (32)")
    parser.add_argument("--sampler-steps", type=int, default=64, help="64; 256 as published")
    parser.add_argument("--weight", type=float, default=guidance.weight, help="of guidance (1)")
    parser.add_argument("--data-seed", type=int, default=0, help="of the models and what they make")
    parser.add_argument("--model-epochs", type=int, default=model.epochs, help="at most (1,000)")
    parser.add_argument("--measured", type=int, default=500, help="trajectories of each set (500)")
    add_training_arguments(parser)
    return parser.parse_args()


def main() -> int:
    """Make what is missing, then draw."""
    options = arguments()
    torch.set_num_threads(1)
    if not options.draw:
        # The generator is kept with everything else that this makes.
        os.environ.setdefault("OFFRL_CACHE", str(WORK / "synthetic"))
        run(options)
    draw(PAGE, KINDS, AGENTS)
    return 0


def run(options: argparse.Namespace) -> None:
    """All cells and measurements of a dataset."""
    source, settings = load_dataset(options.dataset), training_settings(options)
    config = GeneratorConfig(
        length=options.length, channels=options.channels, steps=options.generator_steps
    )
    count = math.ceil((options.size or source.num_steps) / (config.length - 1))
    making = Making(config, count, options.sampler_steps, options.weight, options.data_seed)
    page = f"synthetic/{source.name}"
    targets = {}
    for agent in options.agents:
        logged = planned(agent, source, source, settings)
        targets[agent] = cell_hash(logged.record())
        keep = partial(keep_target, agent=agent, digest=targets[agent])
        run_cell(logged, f"{page}/logged/{agent}", measure=keep)
    sets = {"logged": source, "unguided": made(source, making, None)}
    sets |= {f"guided, {a}": made(source, making, (a, targets[a])) for a in options.agents}
    facts = measure(sets, source, targets, making, options)
    write_json(PAGE / source.name / "data.json", with_earlier(source.name, facts))
    for agent in options.agents:
        guided = sets[f"guided, {agent}"]
        both = replace(with_source(guided, source), name=f"{guided.name}-and-logged")
        by_kind = {"unguided": sets["unguided"], "guided": guided, "both": both}
        for kind in options.kinds:
            if kind in by_kind:
                cell = planned(agent, by_kind[kind], source, settings)
                run_cell(cell, f"{page}/{kind}/{agent}")


if __name__ == "__main__":
    print(f"offrl {offrl.__version__}, torch {torch.__version__}")
    sys.exit(main())
