"""Files of named datasets: found where they may lie already, or downloaded and checked."""

import hashlib
import http
import json
import os
import urllib.error
import urllib.request
from collections.abc import Sequence
from io import BufferedIOBase
from pathlib import Path
from typing import IO

from tqdm import tqdm

from offrl.datasets.names import Named
from offrl.errors import DataError

BLOCK = 1 << 20
TIMEOUT = 30.0  # seconds without a byte


def fetch(
    named: Named, cache: Path, folders: Sequence[Path] = (), *, download: bool = True
) -> Path:
    """The file of a named dataset: in one of `folders`, in the cache, or downloaded to it.

    Raises DataError, saying which file to put where, when it cannot be had.
    """
    target = cache / "d4rl" / named.filename
    for path in (*(folder / named.filename for folder in folders), target):
        if path.is_file():
            _require_size(named, path)
            return path
    where = " or ".join(str(folder) for folder in (target.parent, *folders))
    by_hand = (
        f"Put the file {named.filename} from {named.url} into {where}, or into a folder named by "
        "--data-dir or OFFRL_DATASETS"
    )
    if not download:
        raise DataError(f"{named.name} is not on this machine. {by_hand}")
    try:
        _download(named, target)
    except (OSError, urllib.error.URLError) as error:
        kept = target.with_name(target.name + ".part")
        rest = f" ({kept.stat().st_size:,} bytes are kept)" if kept.exists() else ""
        raise DataError(
            f"{named.name} could not be downloaded: {error}. Try again to go on where it "
            f"stopped{rest}. {by_hand}"
        ) from error
    return target


def _require_size(named: Named, path: Path) -> None:
    size = path.stat().st_size
    if named.size is not None and size != named.size:
        raise DataError(
            f"{path} has {size:,} bytes, but {named.name} has {named.size:,}: it was cut off or is "
            "another file; delete it, or load it by its path"
        )


def _download(named: Named, target: Path) -> None:
    """Download to `<target>.part`, going on where an earlier attempt stopped; check; rename.

    Blocks are written at their own offset, so that two processes that fetch the same file at
    once write the same bytes to the same places.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(target.name + ".part")
    version = target.with_name(target.name + ".part.version")
    begin = partial.stat().st_size if partial.exists() and version.exists() else 0
    request = urllib.request.Request(named.url, headers={"User-Agent": "offrl"})
    if begin:
        request.add_header("Range", f"bytes={begin}-")
        request.add_header("If-Range", version.read_text())  # another version starts anew
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code != http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise
        version.unlink()
        return _download(named, target)
    with response:
        resumed = response.status == http.HTTPStatus.PARTIAL_CONTENT
        begin = begin if resumed else 0
        total = begin + int(response.headers.get("Content-Length") or 0)
        tag = response.headers.get("ETag") or response.headers.get("Last-Modified") or ""
        if tag and not tag.startswith("W/"):
            version.write_text(tag)
        with partial.open("r+b" if resumed else "wb") as file:
            file.seek(begin)
            _copy(response, file, begin, total, named.name)
    if total and partial.stat().st_size != total:
        raise OSError(f"{partial.stat().st_size:,} of {total:,} bytes arrived")
    version.unlink(missing_ok=True)
    _check(named, partial, target)
    os.replace(partial, target)


def _copy(source: BufferedIOBase, file: IO[bytes], begin: int, total: int, name: str) -> None:
    with tqdm(
        total=total or None,
        initial=begin,
        desc=name,
        unit="B",
        unit_scale=True,
        disable=None,  # no bar where standard error is not a terminal
    ) as bar:
        while block := source.read(BLOCK):
            file.write(block)
            bar.update(len(block))
        file.flush()
        os.fsync(file.fileno())


def _check(named: Named, partial: Path, target: Path) -> None:
    """Compare with the published checksum, or with that of the first download of this file.

    Where none is published, the first download is trusted and its checksum written beside it.
    """
    with partial.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    record = target.with_name(target.name + ".sha256.json")
    expected, whose = named.sha256, "published"
    if expected is None and record.exists():
        expected, whose = json.loads(record.read_text())["sha256"], "of the first download"
    if expected is not None and found != expected:
        partial.unlink()
        raise OSError(
            f"the file has SHA-256 {found}, but the one {whose} is {expected}; it was deleted"
        )
    if not record.exists():
        trust = "compared with the published value" if named.sha256 else "trusted on first use"
        content = {"url": named.url, "sha256": found, "trust": trust}
        record.write_text(json.dumps(content, indent=1))
