"""`offrl data corrupt`, and the attacker that adversarial corruption is chosen by.

The attacker is EDAC with ten critics, trained once on the clean data and kept in the cache, under
a hash of the data and of all its settings; a stopped training goes on where it was. Those of the
paper were trained for 3 million updates on medium-replay sets with ten critics each, Hopper's as
well, for which EDAC's own recipe has fifty.
"""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from offrl import checkpoints
from offrl.arguments import Parser
from offrl.datasets.commands import (
    add_data_arguments,
    add_target_arguments,
    load_from_arguments,
    target_from_arguments,
)
from offrl.datasets.corruption import ELEMENTS, MODES, Corruption, check_corruptible, corrupt
from offrl.datasets.minari import write_minari
from offrl.datasets.offline import OfflineDataset
from offrl.devices import choose_device
from offrl.errors import RunError
from offrl.experiment import resume_run, start_run
from offrl.files import cache_folder, sole_use
from offrl.networks import Learners
from offrl.plans import DataConfig, Plan, plan
from offrl.training import Interrupted

AGENT, CRITICS, SEED = "edac", 10, 0  # of the attacker; its seed is the same for every mask
ATTACKER_STEPS = 100_000


class TrainedAttacker:
    """An agent's critics and policy, in the units of the data; it takes gradients and has none."""

    def __init__(self, planned: Plan, folder: Path, device: str) -> None:
        spec, steps = planned.dataset.spec, planned.train.steps
        self.agent = planned.cls(spec, planned.agent_config, Learners((planned.train.seed,)))
        checkpoints.load([folder / "checkpoints"], steps, checkpoints.agent_entries(self.agent))
        state = folder / "checkpoints" / f"step-{steps:09d}" / "state.safetensors"
        self._record = {
            "agent": planned.agent,
            "steps": steps,
            "critics": CRITICS,
            "seed": planned.train.seed,
            "weights": hashlib.sha256(state.read_bytes()).hexdigest(),
        }
        self.device = choose_device(device)
        self.agent.requires_grad_(False).to(self.device)
        low, high = (torch.tensor(bound) for bound in (spec.action_low, spec.action_high))
        self.middle, self.half = ((x / 2).to(self.device) for x in (high + low, high - low))

    def q(self, obs: Tensor, action: Tensor) -> Tensor:
        """Values of every critic, (ensemble, batch)."""
        scaled = (action.to(self.device) - self.middle) / self.half
        q: Tensor = self.agent.critic(self._seen(obs), scaled)  # type: ignore[operator]
        return q

    def act(self, obs: Tensor) -> Tensor:
        """The mode of the policy."""
        return self.agent.mode(self._seen(obs)) * self.half + self.middle

    def record(self) -> dict[str, Any]:
        """Agent, length, seed, and the hash of its weights."""
        return dict(self._record)

    def _seen(self, obs: Tensor) -> Tensor:
        return (obs.to(self.device) - self.agent.obs_mean) / self.agent.obs_std


def attacker_for(
    dataset: OfflineDataset, steps: int = ATTACKER_STEPS, device: str = "auto"
) -> TrainedAttacker:
    """The attacker of this clean dataset, from the cache or after a training of `steps` updates.

    Raises Interrupted where the training is stopped; the next call continues it.
    """
    settings = {"steps": steps, "seed": SEED, "ensemble": CRITICS, "device": device}
    settings |= {"eval_every": steps}
    planned = plan(AGENT, dataset, env=None, data=DataConfig(validation=0.0), settings=settings)
    folder = cache_folder() / "attackers" / f"{AGENT}-{attacker_hash(planned)}"
    if steps not in checkpoints.steps_in(folder / "checkpoints"):
        try:
            if folder.exists() and not checkpoints.steps_in(folder / "checkpoints"):
                with sole_use(folder):  # killed before there was anything to continue
                    shutil.rmtree(folder)
            if folder.exists():
                resume_run(folder, dataset=dataset, device=device)
            else:
                folder.parent.mkdir(parents=True, exist_ok=True)
                start_run(planned, folder)
        except Interrupted as error:
            raise Interrupted(
                f"the training of the attacker was stopped: {str(error).split(';')[0]}; all of it "
                "is kept, and the same command continues it"
            ) from None
        except OSError as error:
            raise RunError(f"the attacker's folder {folder} cannot be made: {error}") from None
    return TrainedAttacker(planned, folder, device)


def attacker_hash(planned: Plan) -> str:
    """Of what determines the attacker: the data, the agent's settings, and its training's."""
    record = planned.record()
    train = ("steps", "batch_size", "seed", "precision", "matmul")
    facts = {
        "agent": [record["agent"], record["agent_config"]],
        "data": record["dataset"]["fingerprint"],
        "train": {key: record["train"][key] for key in train},
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def corrupt_with_bar(
    dataset: OfflineDataset, corruption: Corruption, attacker: TrainedAttacker | None
) -> OfflineDataset:
    """`corrupt`, with a bar while an attack goes on."""
    if attacker is None:
        return corrupt(dataset, corruption)
    with tqdm(total=100, desc="attack", unit="%") as bar:
        return corrupt(
            dataset, corruption, attacker, lambda done: bar.update(round(100 * done) - bar.n)
        )


def main(argv: list[str]) -> int:
    """Corrupt a dataset and write the result; returns the exit code."""
    parser = Parser(
        "offrl data corrupt",
        description="Corrupt a share of a dataset's transitions, by RIQL's protocol, and write it "
        "with its masks and how it was made. Adversarial noise lowers the value of an attacker, "
        "which is trained first, once for each dataset.",
    )
    add_data_arguments(parser)
    what = parser.add_argument_group("corruption")
    what.add_argument(
        "--element",
        nargs="+",
        action="extend",
        required=True,
        metavar="NAME",
        help=f"one or several of {', '.join(ELEMENTS)}",
    )
    what.add_argument("--mode", default="random", help=f"{' or '.join(MODES)} (default random)")
    what.add_argument(
        "--rate", type=float, default=0.3, help="share of the transitions, of each element (0.3)"
    )
    what.add_argument(
        "--scale",
        type=float,
        default=1.0,
        help="range of the noise, in deviations of each component; of random rewards 30 times it; "
        "adversarial rewards are multiplied by minus it (1.0)",
    )
    what.add_argument("--seed", type=int, default=0, help="of masks and noise (0)")
    what.add_argument(
        "--attacker-steps",
        type=int,
        default=ATTACKER_STEPS,
        metavar="N",
        help=f"updates of the attacker's training ({ATTACKER_STEPS:,}; the paper's are 3,000,000)",
    )
    what.add_argument("--device", default="auto", help="where the attacker computes (auto)")
    add_target_arguments(parser)
    options = parser.parse_args(argv)
    out = target_from_arguments(options)
    corruption = Corruption(
        tuple(options.element), options.mode, options.rate, options.scale, options.seed
    )
    dataset = load_from_arguments(options)
    check_corruptible(dataset, corruption)
    attacker = None
    if corruption.needs_attacker:
        attacker = attacker_for(dataset, options.attacker_steps, options.device)
    made = corrupt_with_bar(dataset, corruption, attacker)
    write_minari(made, out, dataset_id=options.id, description=made.provenance["description"])
    record = made.provenance["corruption"]
    counts = ", ".join(f"{name} {n:,}" for name, n in record["corrupted"].items())
    print(f"{out}: of {record['transitions']:,} transitions corrupted: {counts}")
    return 0
