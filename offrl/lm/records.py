"""Records in files: JSON lines and Parquet, read without running anything that they contain.

A path is a file (.jsonl, .ndjson, .jsonl.gz, .parquet, .arrow) or a folder of such files, as
`datasets` saves one. JSON lines need nothing but Python; Parquet and Arrow need pyarrow, which
comes with the extra `lm`. Each record comes with its place, for messages: "train.jsonl, line 7".
"""

import gzip
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

from offrl.errors import DataError, MissingDependencyError

Record = dict[str, Any]
LINES = (".jsonl", ".ndjson", ".jsonl.gz")
TABLES = (".parquet", ".arrow")


def read_records(path: Path) -> Iterator[tuple[str, Record]]:
    """Every record of a file or folder, with its place.

    Raises DataError where nothing is there, where a line is not a JSON object, or where the file is
    damaged, and MissingDependencyError where pyarrow is needed and absent.
    """
    if path.is_dir():
        for file in _files_in(path):
            yield from read_records(file)
        return
    if not path.exists():
        raise DataError(f"{path} does not exist")
    kind = _kind(path)
    reader = {".parquet": _parquet, ".arrow": _arrow}.get(kind, _lines)
    yield from reader(path)


def write_records(path: Path, records: Iterable[Mapping[str, Any]]) -> int:
    """Write a new file in one step, of the kind that its name says; returns how many records.

    Raises DataError where something of that name exists, or where a value cannot be written.
    """
    kind = _kind(path)
    if kind not in (*LINES, ".parquet"):
        raise DataError(f"{path} cannot be written; choose a name that ends in .jsonl or .parquet")
    if path.exists():
        raise DataError(f"{path} exists and is not overwritten; choose another name")
    partial = path.with_name(f".{path.name}.partial")
    try:
        count = (_write_parquet if kind == ".parquet" else _write_lines)(partial, kind, records)
        os.replace(partial, path)
    except (TypeError, ValueError) as error:
        raise DataError(f"{path} was not written: a value cannot be stored ({error})") from None
    except OSError as error:
        raise DataError(f"{path} was not written: {error}") from None
    finally:
        with suppress(OSError):
            partial.unlink()
    return count


def _kind(path: Path) -> str:
    for suffix in (*LINES, *TABLES):
        if path.name.endswith(suffix):
            return suffix
    remedy = f"use JSON lines or Parquet, with a name that ends in one of {', '.join(LINES)}"
    raise DataError(f"{path} is of no known kind; {remedy}, {', '.join(TABLES)}")


def _files_in(folder: Path) -> list[Path]:
    files = [f for f in sorted(folder.iterdir()) if f.name.endswith((*LINES, *TABLES))]
    if not files:
        raise DataError(f"{folder} holds no file that ends in {', '.join((*LINES, *TABLES))}")
    kinds = {_kind(f) for f in files}
    if len(kinds) > 1:
        raise DataError(
            f"{folder} holds files of several kinds ({', '.join(sorted(kinds))}); name one file"
        )
    return files


def _lines(path: Path) -> Iterator[tuple[str, Record]]:
    opened = gzip.open if path.name.endswith(".gz") else open
    number = 0
    try:
        with opened(path, "rt", encoding="utf-8-sig") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield f"{path}, line {number}", _object(path, number, line)
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read after line {number}: {error}") from None


def _object(path: Path, number: int, line: str) -> Record:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        remedy = "each line must be one JSON object"
        if line.lstrip().startswith("[") and number == 1:
            remedy = "a JSON array must be written as JSON lines, one object a line"
        raise DataError(f"{path}, line {number} is not JSON ({error}); {remedy}") from None
    if not isinstance(value, dict):
        raise DataError(
            f"{path}, line {number} is a JSON {type(value).__name__}; each line must be an object "
            'like {"prompt": ..., "chosen": ..., "rejected": ...}'
        )
    return value


def _pyarrow(path: Path, module: str) -> Any:
    try:
        return import_module(module)
    except ImportError:
        raise MissingDependencyError(
            f"{path} needs pyarrow; install it with: pip install 'offrl[lm]'"
        ) from None


def _parquet(path: Path) -> Iterator[tuple[str, Record]]:
    pa, parquet = _pyarrow(path, "pyarrow"), _pyarrow(path, "pyarrow.parquet")
    try:
        with parquet.ParquetFile(path) as file:
            yield from _numbered(path, file.iter_batches())
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path} cannot be read as Parquet: {error}") from None


def _arrow(path: Path) -> Iterator[tuple[str, Record]]:
    pa = _pyarrow(path, "pyarrow")
    try:
        with pa.memory_map(str(path)) as file:
            yield from _numbered(path, pa.ipc.open_stream(file))
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path} cannot be read as an Arrow stream: {error}") from None


def _numbered(path: Path, batches: Iterable[Any]) -> Iterator[tuple[str, Record]]:
    number = 0
    for batch in batches:
        for record in batch.to_pylist():
            number += 1
            yield f"{path}, row {number}", record


def _write_lines(partial: Path, kind: str, records: Iterable[Mapping[str, Any]]) -> int:
    count = 0
    with (gzip.open if kind.endswith(".gz") else open)(partial, "wt", encoding="utf-8") as file:
        for record in records:
            file.write(json.dumps(dict(record), ensure_ascii=False, allow_nan=False) + "\n")
            count += 1
    return count


def _write_parquet(partial: Path, _: str, records: Iterable[Mapping[str, Any]]) -> int:
    pa, parquet = _pyarrow(partial, "pyarrow"), _pyarrow(partial, "pyarrow.parquet")
    rows = [dict(record) for record in records]
    try:
        parquet.write_table(pa.Table.from_pylist(rows), partial)
    except pa.ArrowException as error:
        raise ValueError(str(error)) from None
    return len(rows)
