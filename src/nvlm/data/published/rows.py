"""Rows of annotation files: JSON, JSON Lines, Parquet, webdataset tars, tables, lines of commas.

Files of many gigabytes and millions of rows are common: whatever the form, little more than a row
is held at a time.
"""

from __future__ import annotations

import csv
import json
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nvlm.data.published.json_items import read_items
from nvlm.data.published.select import Row, select
from nvlm.data.records import BadRecord, BadRecordError
from nvlm.errors import UserError

WHOLE_FILE = "."  # as the place of rows: the file is one row

# Rows that are made into Python objects at a time: one of documents can have dozens of page images.
_PARQUET_ROWS = 8
_PARQUET_BUFFER = 2**20  # bytes of a column that are read ahead, rather than all of a row group's


@dataclass(frozen=True)
class Located:
    """A row and where it stands, for messages."""

    place: str
    row: Row


def read_rows(path: Path, rows: str) -> Iterator[Located | BadRecord]:
    """The rows of the annotation file ``path``, by the form that its name tells.

    JSON: the items of the list or dictionary at the path ``rows`` ("" = the root); a row that is no
    dictionary becomes ``{"_value": it}``; ``_key`` is its key. Tars: the parts of a sample by
    extension, ``json`` and ``txt`` decoded. Tables (.csv): a row a line, by the names in the first.
    Lines of commas (.txt): one row, ``{"lines": [[field]]}``.
    Every row has ``_stem``, the file's name without its last extension, and ``_folder``, the name
    of the folder that it lies in.
    """
    reader = _READERS.get(path.suffix)
    if reader is None:
        raise UserError(f"{path}: annotations should be one of {', '.join(sorted(_READERS))}")
    for key, value in reader(path, rows):
        place = f"{path.name}, {key}"
        if isinstance(value, ValueError):
            yield BadRecord(name=place, reason=str(value))
            continue
        row = value if isinstance(value, dict) else {"_value": value}
        names = {"_key": key, "_stem": path.stem, "_folder": path.parent.name}
        yield Located(place, {**row, **names})


class JsonTable:
    """Those rows of a JSON file that ``keep`` wants, by a key; held as text, parsed when asked for.

    As Python objects they would take some ten times as much memory.
    """

    def __init__(self, path: Path, rows: str, key: str, keep: Callable[[Row], bool]) -> None:
        self._texts: dict[str, list[str]] = {}
        for name, value, text in read_items(path, rows):
            row = {**value, "_key": name} if isinstance(value, dict) else {"_key": name}
            if not keep(row):
                continue
            try:
                self._texts.setdefault(str(select(row, key)), []).append(text)
            except BadRecordError as error:
                raise UserError(f"{path}, {name}: {error}") from error

    def __getitem__(self, key: Any) -> list[Row]:
        """All rows that have ``key``, in the file's order."""
        return [json.loads(text) for text in self._texts.get(str(key), [])]


def _read_json(path: Path, rows: str) -> Iterator[tuple[str, Any]]:
    if rows == WHOLE_FILE:
        try:
            yield "", json.loads(path.read_text(encoding="utf-8-sig"))
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{path} cannot be read: {error}") from error
        except (ValueError, RecursionError) as error:
            yield "", ValueError(f"no valid JSON ({error})")
        return
    for key, value, _ in read_items(path, rows):
        yield key, value


def _read_json_lines(path: Path, rows: str) -> Iterator[tuple[str, Any]]:
    with path.open("rb") as lines:  # decoded a line at a time: a bad one costs itself alone
        for number, line in enumerate(lines, start=1):
            if line.strip():
                try:
                    yield f"line {number}", json.loads(line.decode("utf-8-sig"))
                except (ValueError, RecursionError) as error:
                    yield f"line {number}", ValueError(f"no valid JSON ({error})")


def _read_parquet(path: Path, rows: str) -> Iterator[tuple[str, Any]]:
    from pyarrow import ArrowException, parquet

    try:
        number = 0
        with parquet.ParquetFile(path, buffer_size=_PARQUET_BUFFER, pre_buffer=False) as file:
            for batch in file.iter_batches(batch_size=_PARQUET_ROWS, use_threads=False):
                for row in batch.to_pylist():
                    yield f"row {number}", row
                    number += 1
    except (OSError, ArrowException) as error:
        raise UserError(f"{path} is no whole Parquet file: {error}") from error


def _read_tar(path: Path, rows: str) -> Iterator[tuple[str, Any]]:
    """Consecutive members that share their name up to the first dot are one sample."""
    key: tuple[str, str] | None = None
    sample: dict[str, Any] = {}
    try:
        with tarfile.open(path, "r:*") as tar:
            for member in tar:
                if not member.isfile():
                    continue
                directory, _, name = member.name.rpartition("/")
                stem, _, part = name.partition(".")
                if (directory, stem) != key and sample:
                    yield str(sample["__key__"]), _decoded(sample)
                    sample = {}
                key = (directory, stem)
                extracted = tar.extractfile(member)
                assert extracted is not None
                sample |= {"__key__": stem, part.lower(): extracted.read()}
    except (OSError, tarfile.TarError) as error:
        raise UserError(f"{path} is no whole tar archive: {error}") from error
    if sample:
        yield str(sample["__key__"]), _decoded(sample)


def _decoded(sample: dict[str, Any]) -> Any:
    """``sample`` with JSON and text parts decoded, or the ValueError that one of them raises."""
    try:
        if "json" in sample:
            sample["json"] = json.loads(sample["json"])
        if "txt" in sample:
            sample["txt"] = sample["txt"].decode()
    except (ValueError, RecursionError) as error:
        return ValueError(f"no valid JSON or text ({error})")
    return sample


def _read_table(path: Path, rows: str) -> Iterator[tuple[str, Any]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            table = csv.DictReader(file, restkey="", restval=None)
            for row in table:
                place = f"line {table.line_num}"
                if "" in row or None in row.values():
                    wanted = len(table.fieldnames or [])
                    yield place, ValueError(f"a line should have {wanted} fields, as the first one")
                else:
                    yield place, row
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} is no table of commas in UTF-8: {error}") from error


def _read_lines(path: Path, rows: str) -> Iterator[tuple[str, Any]]:
    # Some files begin with a byte order mark. Each line is parsed by itself: RCTW does not double
    # the quotes inside its texts, and one would swallow the lines that follow.
    try:
        with path.open(encoding="utf-8-sig") as file:
            fields = [next(csv.reader([line]), []) for line in file]
    except (UnicodeDecodeError, csv.Error) as error:
        yield "", ValueError(f"no lines of text ({error})")
        return
    yield "", {"lines": [line for line in fields if line]}


_READERS = {
    ".json": _read_json,
    ".jsonl": _read_json_lines,
    ".parquet": _read_parquet,
    ".tar": _read_tar,
    ".txt": _read_lines,
    ".csv": _read_table,
}
