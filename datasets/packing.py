"""A Minari dataset with its card, whole or not at all; packed if its size matters."""

import json
import os
from pathlib import Path

import h5py
import numpy as np

from offrl.datasets.cards import write_card
from offrl.datasets.minari import load_minari, write_minari
from offrl.datasets.offline import OfflineDataset
from offrl.errors import DataError
from offrl.files import new_folder

LEVEL = 9  # of gzip: the slowest and smallest; written once, read often


def write_with_card(
    dataset: OfflineDataset,
    path: Path,
    *,
    dataset_id: str | None = None,
    algorithm_name: str | None = None,
    compress: bool = False,
) -> OfflineDataset:
    """Write the new folder `path` and return the dataset as it reads back from there.

    The provenance's `rule` becomes Minari's description. Raises DataError if `path` exists, or
    if what was written reads back as something else.
    """
    if path.exists():
        raise DataError(f"{path} exists and is not overwritten; choose another folder")
    try:
        with new_folder(path) as partial:
            inner = write_minari(
                dataset,
                partial / "set",
                dataset_id=dataset_id,
                description=dataset.provenance.get("rule"),
                algorithm_name=algorithm_name,
            )
            (inner / "data").rename(partial / "data")
            inner.rmdir()
            if compress:
                pack(partial)
            written = load_minari(partial, dataset.name)
            if not np.array_equal(written.rows, dataset.rows):
                raise DataError(f"{path}: what was written does not read back as what was given")
            write_card(written, partial)
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error}") from error
    return written


def pack(folder: Path) -> int:
    """Compress `data/main_data.hdf5` of a Minari dataset without loss; returns its bytes.

    One chunk a column and episode, bytes of equal significance side by side (HDF5's shuffle
    filter), then gzip: the sign and exponent bytes of neighbouring steps are alike. Readers
    need nothing new, because h5py undoes both filters by itself.
    """
    path = folder / "data" / "main_data.hdf5"
    partial = path.with_suffix(".tmp")
    try:
        with (
            h5py.File(path) as old,
            h5py.File(partial, "w", libver=("v110", "v110"), track_order=True) as new,
        ):
            for key in old:
                _copy(old[key], new.create_group(key, track_times=False))
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    size = path.stat().st_size
    about = folder / "data" / "metadata.json"
    metadata = json.loads(about.read_text()) | {"dataset_size": round(size / 1e6, 1)}
    about.write_text(json.dumps(metadata, indent=1) + "\n")
    return size


def _copy(old: h5py.Group, new: h5py.Group) -> None:
    new.attrs.update(old.attrs)
    for key, item in old.items():
        if isinstance(item, h5py.Group):
            _copy(item, new.create_group(key, track_times=False))
            continue
        copy = new.create_dataset(
            key,
            data=item[()],
            chunks=item.shape,
            shuffle=item.dtype.itemsize > 1,
            compression="gzip",
            compression_opts=LEVEL,
            track_times=False,
        )
        copy.attrs.update(item.attrs)
