"""Make a shipped dataset from the episodes that SAC recorded.

    python scripts/build_shipped.py NAME RECORDING [--capacity N]

RECORDING is the folder of `offrl.datasets.sac.collect_sac`: `episodes/*.npz` and `sac.json`. It
becomes `datasets/shipped/NAME`, in Minari's format, with a card. A dataset that is there is never
replaced: results are stated for its bytes. All of them together stay within BUDGET; where a run
took too long for that, `--capacity` keeps what a replay buffer of N steps still holds.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from offrl.datasets.loading import load_dataset
from offrl.datasets.packing import write_with_card
from offrl.datasets.qualities import replay_facts
from offrl.datasets.staged import latest, staged_dataset
from offrl.datasets.staging import Staging
from offrl.errors import DataError

SHIPPED = Path(__file__).parents[1] / "datasets" / "shipped"
BUDGET = 15_000_000  # bytes of all shipped sets in the working tree


def build(name: str, recording: Path, capacity: int | None = None) -> Path:
    """Write `SHIPPED/name` and return it; raises DataError if it exists or is too large."""
    path = SHIPPED / name
    if path.exists():
        raise DataError(f"{path} exists; results are stated for its bytes, so it is not replaced")
    log = json.loads((recording / "sac.json").read_text())
    if not log.get("finished"):
        raise DataError(f"{recording}: SAC has not finished; the set would end at a random step")
    until = int(log["evaluations"][-1][0])
    episodes: Sequence[Mapping[str, Any]] = list(Staging(recording / "episodes"))
    if capacity is not None:
        episodes = latest(episodes, capacity)
    steps = sum(len(episode["reward"]) for episode in episodes)
    recorded = staged_dataset(
        episodes,
        log["config"]["env_id"],
        name=name,
        provenance=replay_facts("medium-replay", log, steps, until, capacity),
    )
    with tempfile.TemporaryDirectory(dir=SHIPPED, prefix=".") as folder:
        made = Path(folder) / name
        write_with_card(
            recorded, made, dataset_id=f"offrl/{name}-v0", algorithm_name="SAC", compress=True
        )
        size = sum(f.stat().st_size for f in SHIPPED.rglob("*") if f.is_file())
        if size > BUDGET:
            raise DataError(f"with {name} the shipped sets take {size:,} bytes of {BUDGET:,}")
        made.rename(path)
    return path


def main(argv: list[str]) -> int:
    """Build one set and print its size."""
    parser = argparse.ArgumentParser(description="Make a shipped dataset from recorded episodes.")
    parser.add_argument("name", help="of the dataset, such as hopper-medium-replay")
    parser.add_argument("recording", type=Path, help="folder with episodes/ and sac.json")
    parser.add_argument("--capacity", type=int, metavar="N", help="steps of the replay buffer")
    options = parser.parse_args(argv)
    path = build(options.name, options.recording, options.capacity)
    size = sum(f.stat().st_size for f in path.rglob("*") if f.is_file())
    print(f"{path}: {load_dataset(options.name)!r}, {size:,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
