"""`offrl data synthesize`: a dataset that nobody acted in, from a model of another.

The model is trained once for each dataset and settings, and kept in the cache under a hash of both;
data for a second policy needs no second training.
"""

import hashlib
import json
from dataclasses import asdict

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tqdm import tqdm

from offrl.arguments import Parser
from offrl.datasets.commands import (
    add_data_arguments,
    add_target_arguments,
    load_from_arguments,
    target_from_arguments,
)
from offrl.datasets.minari import write_minari
from offrl.datasets.offline import OfflineDataset
from offrl.devices import choose_device, enough_memory
from offrl.errors import DataError, RunError
from offrl.files import cache_folder, new_folder, read_json, write_json
from offrl.policy import load_policy
from offrl.policy_guidance import Guidance
from offrl.synthesis import Generator, GeneratorConfig, guiding_actor, with_source

WEIGHTS, LOSSES = "generator.safetensors", "losses.json"


def generator_for(
    dataset: OfflineDataset, config: GeneratorConfig, seed: int, device: str
) -> Generator:
    """The generator of this dataset, from the cache or after a training."""
    made = Generator(dataset, config, seed).to(choose_device(device))
    facts = {"data": dataset.fingerprint, "config": asdict(config), "seed": seed}
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
    folder = cache_folder() / "generators" / key
    if folder.exists():
        try:
            made.load_state_dict(load_file(folder / WEIGHTS))
        except (OSError, SafetensorError, RuntimeError) as error:
            raise RunError(f"{folder} is damaged: {error}; delete it, to train anew") from None
        made.losses = list(read_json(folder / LOSSES))
        return made
    with tqdm(total=config.steps, desc="generator", unit=" steps") as bar:
        made.fit(bar.update)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with new_folder(folder) as partial:
            state = {k: v.detach().cpu().contiguous() for k, v in made.state_dict().items()}
            save_file(state, partial / WEIGHTS)
            write_json(partial / LOSSES, made.losses)
    except OSError as error:
        raise RunError(f"the generator's folder {folder} cannot be written: {error}") from None
    return made


def main(argv: list[str]) -> int:
    """Make a synthetic dataset and write it; returns the exit code."""
    parser = Parser(
        "offrl data synthesize",
        description="Train a diffusion model on trajectories of a dataset, draw new ones guided "
        "towards a policy (arXiv:2404.06356), and write them as a dataset that says so.",
    )
    add_data_arguments(parser, "--from")
    config, guidance = GeneratorConfig(), Guidance()
    what = parser.add_argument_group("what is made")
    what.add_argument("--policy", metavar="RUN", help="run or policy to guide towards (none)")
    what.add_argument(
        "--weight", type=float, default=guidance.weight, help="c, of the guidance (1.0)"
    )
    what.add_argument(
        "--denoised", action="store_true", help="take the gradient at the clean estimate"
    )
    what.add_argument("--trajectories", type=int, default=8_192, help="how many (8192)")
    what.add_argument("--sampler-steps", type=int, default=64, help="64; 256 as published")
    what.add_argument("--seed", type=int, default=0, help="of training and of what is drawn (0)")
    what.add_argument(
        "--with-source", action="store_true", help="write the dataset's own episodes too"
    )
    model = parser.add_argument_group("the model, kept in the cache")
    model.add_argument("--length", type=int, default=config.length, help="rows of each (32)")
    model.add_argument("--channels", type=int, default=config.channels, help="of its U-Net (64)")
    model.add_argument("--train-steps", type=int, default=config.steps, help="updates (50,000)")
    model.add_argument("--device", default="auto", help="where to compute (auto)")
    add_target_arguments(parser)
    options = parser.parse_args(argv)
    out = target_from_arguments(options)
    for name in ("trajectories", "sampler_steps"):
        if getattr(options, name) < 1:
            flag = name.replace("_", "-")
            raise DataError(f"--{flag} is {getattr(options, name)}; it must be 1 or more")
    guidance = Guidance(weight=options.weight, denoised=options.denoised)
    policy = None if options.policy is None else load_policy(options.policy)
    dataset = load_from_arguments(options)
    if policy is not None:
        guiding_actor(policy, dataset)  # refused before anything is trained
    config = GeneratorConfig(
        length=options.length, channels=options.channels, steps=options.train_steps
    )
    with enough_memory("Lower --channels or --length, or compute on the processor: --device cpu"):
        generator = generator_for(dataset, config, options.seed, options.device)
        with tqdm(total=options.trajectories, desc="trajectories") as bar, torch.no_grad():
            made = generator.make(
                options.trajectories,
                policy,
                guidance,
                options.sampler_steps,
                options.seed,
                progress=bar.update,
            )
    steps, ends = made.num_steps, int(made.terminated.sum())
    if options.with_source:
        made = with_source(made, dataset)
    write_minari(made, out, dataset_id=options.id, description=made.provenance["description"])
    real = f", and {made.num_steps - steps:,} real ones" if options.with_source else ""
    print(f"{out}: {steps:,} synthetic transitions, {ends:,} of them terminal{real}")
    return 0
