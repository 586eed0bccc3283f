"""Columns of files: HDF5 and npz, read in blocks; and what a file is, by its first bytes."""

import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import h5py
import numpy as np
from numpy.typing import NDArray

from offrl.datasets.flat import Column
from offrl.errors import DataError, near

DAMAGE = (  # what h5py, zipfile and numpy raise for broken files
    *(EOFError, LookupError, OSError, RuntimeError, ValueError),
    *(zipfile.BadZipFile, zlib.error, SyntaxError, tokenize.TokenError),
)
PICKLES = {".pkl", ".pickle", ".p", ".pt", ".pth", ".joblib"}
CONVERT = (
    "Pickle files can run code when they are read and are not opened. Convert the file where you "
    "trust it, for instance with numpy.savez('data.npz', observations=..., actions=..., "
    "rewards=..., terminals=..., timeouts=...), and load that"
)


def kind_of(path: Path) -> str:
    """'hdf5' or 'npz'. Raises DataError for everything else, saying what the file seems to be."""
    try:
        with path.open("rb") as file:
            head = file.read(64)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    if head.startswith(b"version https://git-lfs"):
        raise DataError(
            f"{path} is a Git LFS pointer, not the data itself; run `git lfs pull` in the "
            "repository that it is from, or download the file"
        )
    if head.startswith(b"\x89HDF\r\n\x1a\n"):
        return "hdf5"
    if path.suffix.lower() in PICKLES or head[:1] == b"\x80":
        raise DataError(f"{path} is a pickle file. {CONVERT}")
    if head.startswith(b"PK"):
        return "npz"
    if not head:
        raise DataError(f"{path} is empty")
    raise DataError(
        f"{path} is neither HDF5 nor npz (it begins with {head[:8]!r}); known are D4RL's HDF5, "
        "the folders of Minari datasets, and columns in HDF5 or npz files"
    )


class Archive:
    """An open file of named arrays."""

    def __init__(self, path: Path, names: tuple[str, ...]) -> None:
        self.path = path
        self.names = names

    def column(self, key: str) -> Column:
        """The array of this name. Raises DataError, with the nearest names, where it is missing."""
        if key not in self.names:
            shown = ", ".join(self.names[:12]) + (", ..." if len(self.names) > 12 else "")
            raise DataError(
                f"{self.path} has no column {key!r}{near(key, self.names)} (it has: {shown}). "
                "Say which columns to read: offrl data import FILE --observations KEY --actions "
                "KEY and so on makes a dataset of them (columns=Columns(...) in Python)"
            )
        return self._open(key)

    def scalar(self, key: str) -> str | int | float | None:
        """The single value of this name; None where it is missing or is not one."""
        return None

    def _open(self, key: str) -> Column:
        raise NotImplementedError


@dataclass(frozen=True)
class HDF5Column:
    """A dataset of an HDF5 file."""

    name: str
    path: Path
    data: h5py.Dataset
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    granule: int

    def blocks(self, rows: int) -> Iterator[NDArray[Any]]:
        try:
            for begin in range(0, self.shape[0], rows):
                yield self.data[begin : begin + rows]
        except DAMAGE as error:
            raise DataError(
                f"{self.path}: column {self.name!r} is damaged ({error}); download it again"
            ) from error


class HDF5Archive(Archive):
    """The datasets of an open HDF5 file, by their paths."""

    def __init__(self, path: Path, file: h5py.File) -> None:
        names: list[str] = []
        file.visititems(lambda n, o: names.append(n) if isinstance(o, h5py.Dataset) else None)
        super().__init__(path, tuple(names))
        self.file = file

    def scalar(self, key: str) -> str | int | float | None:
        if key not in self.names:
            return None
        try:
            value = self.file[key][()]
        except DAMAGE:
            return None
        if isinstance(value, bytes):
            return value.decode(errors="replace")
        return value.item() if isinstance(value, np.number) else None

    def _open(self, key: str) -> Column:
        try:
            data = self.file[key]
            granule = data.chunks[0] if data.chunks else 1
            return HDF5Column(key, self.path, data, tuple(data.shape), data.dtype, granule)
        except DAMAGE as error:
            raise DataError(f"{self.path}: column {key!r} is damaged ({error})") from error


@dataclass(frozen=True)
class NpzColumn:
    """A member of an npz archive, decompressed as it is read."""

    name: str
    path: Path
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    granule: int = 1

    def blocks(self, rows: int) -> Iterator[NDArray[Any]]:
        row_bytes = self.dtype.itemsize * int(np.prod(self.shape[1:], dtype=np.int64))
        with _member(self.path, self.name) as (file, _, _, _):
            for begin in range(0, self.shape[0], rows):
                count = min(rows, self.shape[0] - begin)
                data = file.read(count * row_bytes)
                if len(data) != count * row_bytes:
                    raise DataError(f"{self.path}: column {self.name!r} is cut off")
                yield np.frombuffer(data, self.dtype).reshape(count, *self.shape[1:])


class NpzArchive(Archive):
    """The members of an npz archive."""

    def __init__(self, path: Path) -> None:
        try:
            with zipfile.ZipFile(path) as archive:
                members = [n.removesuffix(".npy") for n in archive.namelist()]
        except DAMAGE as error:
            raise DataError(f"{path} is not a whole npz file: {error}") from error
        super().__init__(path, tuple(members))

    def _open(self, key: str) -> Column:
        with _member(self.path, key) as (_, shape, fortran, dtype):
            if dtype.hasobject:
                raise DataError(
                    f"{self.path}: column {key!r} holds Python objects, which only pickle reads. "
                    f"{CONVERT}"
                )
            if fortran and len(shape) > 1:
                raise DataError(
                    f"{self.path}: column {key!r} is stored in Fortran order; save it again from "
                    "numpy.ascontiguousarray(...)"
                )
            return NpzColumn(key, self.path, shape, dtype)


@contextmanager
def opened(path: Path) -> Iterator[Archive]:
    """The archive at `path`. Raises DataError where it is not a readable HDF5 or npz file."""
    with ExitStack() as stack:
        if kind_of(path) == "npz":
            archive: Archive = NpzArchive(path)
        else:
            try:
                # Whole chunks are read, once each: HDF5's cache of 8 MB a column would be wasted.
                file = stack.enter_context(h5py.File(path, "r", rdcc_nbytes=0))
                archive = HDF5Archive(path, file)
            except DAMAGE as error:
                raise DataError(
                    f"{path} is not a whole HDF5 file ({error}); download or copy it again"
                ) from error
        yield archive


@contextmanager
def _member(
    path: Path, key: str
) -> Iterator[tuple[IO[bytes], tuple[int, ...], bool, np.dtype[Any]]]:
    try:
        with zipfile.ZipFile(path) as archive, archive.open(f"{key}.npy") as file:
            version = np.lib.format.read_magic(file)
            read = (
                np.lib.format.read_array_header_1_0
                if version == (1, 0)
                else np.lib.format.read_array_header_2_0
            )
            shape, fortran, dtype = read(file)
            yield file, shape, fortran, dtype
    except DAMAGE as error:
        raise DataError(f"{path}: column {key!r} cannot be read: {error}") from error
