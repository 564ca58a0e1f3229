"""Rows of annotation files: JSON, JSON Lines, Parquet, webdataset tars, and lines of commas.

JSON files of millions of rows are common. Their text is held, but only one row at a time as Python
objects, which would take some ten times as much.
"""

from __future__ import annotations

import csv
import json
import re
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nvlm.data.published.select import Row, select
from nvlm.data.records import BadRecord, BadRecordError
from nvlm.errors import UserError

WHOLE_FILE = "."  # as the place of rows: the file is one row

_STRING_OR_BRACKET = re.compile(r'"(?:[^"\\]|\\.)*"|[\[\]{}]')
_SPACE = re.compile(r"[ \t\n\r]*")
_DECODER = json.JSONDecoder()
_PARQUET_ROWS = 64  # held at a time: a row of documents can have dozens of page images

Span = tuple[int, int]


@dataclass(frozen=True)
class Located:
    """A row and where it stands, for messages."""

    place: str
    row: Row


def read_rows(path: Path, rows: str) -> Iterator[Located | BadRecord]:
    """The rows of the annotation file ``path``, by the form that its name tells.

    JSON: the items of the list or dictionary at the path ``rows`` ("" = the root); a row that is no
    dictionary becomes ``{"_value": it}``; ``_key`` is its key. Tars: the parts of a sample by
    extension, ``json`` and ``txt`` decoded. Lines of commas: one row, ``{"lines": [[field]]}``.
    Every row has ``_stem``: the file's name without its last extension.
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
        yield Located(place, {**row, "_key": key, "_stem": path.stem})


class JsonTable:
    """Those rows of a JSON file that ``keep`` wants, by a key; they are parsed when asked for."""

    def __init__(self, path: Path, rows: str, key: str, keep: Callable[[Row], bool]) -> None:
        self._text = _read_text(path)
        self._spans: dict[str, list[Span]] = {}
        for name, value, span in _json_items(self._text, rows, path):
            row = {**value, "_key": name} if isinstance(value, dict) else {"_key": name}
            if not keep(row):
                continue
            try:
                self._spans.setdefault(str(select(row, key)), []).append(span)
            except BadRecordError as error:
                raise UserError(f"{path}, {name}: {error}") from error

    def __getitem__(self, key: Any) -> list[Row]:
        """All rows that have ``key``, in the file's order."""
        return [json.loads(self._text[a:b]) for a, b in self._spans.get(str(key), [])]


def _read_json(path: Path, rows: str) -> Iterator[tuple[str, Any]]:
    text = _read_text(path)
    if rows == WHOLE_FILE:
        try:
            yield "", json.loads(text)
        except (ValueError, RecursionError) as error:
            yield "", ValueError(f"no valid JSON ({error})")
        return
    for key, value, _ in _json_items(text, rows, path):
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
        for batch in parquet.ParquetFile(path).iter_batches(batch_size=_PARQUET_ROWS):
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


def _read_lines(path: Path, rows: str) -> Iterator[tuple[str, Any]]:
    # Some files begin with a byte order mark. Each line is parsed by itself: RCTW does not double
    # the quotes inside its texts, and one would swallow the lines that follow.
    try:
        with path.open(encoding="utf-8-sig") as file:
            fields = [next(csv.reader([line], skipinitialspace=True), []) for line in file]
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
    ".csv": _read_lines,
}


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error


def _json_items(text: str, rows: str, path: Path) -> Iterator[tuple[str, Any, Span]]:
    """Key (or position), value and span of the items of the container at ``rows``."""
    try:
        yield from _items(text, _skip_space(text, 0), rows.split(".") if rows else [])
    except (ValueError, IndexError, RecursionError) as error:
        raise UserError(f"{path} is no valid JSON: {error}") from error
    except KeyError as error:
        raise UserError(f"{path} has no {rows!r} to take rows from") from error


def _items(text: str, at: int, steps: list[str]) -> Iterator[tuple[str, Any, Span]]:
    opening = text[at]
    if opening not in "[{":
        raise KeyError(steps)
    at = _skip_space(text, at + 1)
    number = 0
    while text[at] not in "]}":
        key = str(number)
        if opening == "{":
            key, at = _DECODER.raw_decode(text, at)
            at = _skip_space(text, at)
            if text[at] != ":":
                raise ValueError(f"no colon at character {at}")
            at = _skip_space(text, at + 1)
        if steps and key == steps[0]:
            yield from _items(text, at, steps[1:])
            return
        if steps:
            end = _skip_value(text, at)
        else:
            value, end = _DECODER.raw_decode(text, at)
            yield key, value, (at, end)
        at = _skip_space(text, end)
        if text[at] not in ",]}":
            raise ValueError(f"no comma at character {at}")
        if text[at] == ",":
            at = _skip_space(text, at + 1)
        number += 1
    if steps:
        raise KeyError(steps)


def _skip_value(text: str, at: int) -> int:
    """The end of the value at ``at``, found without making objects of it."""
    if text[at] not in "[{":
        return int(_DECODER.raw_decode(text, at)[1])
    depth = 0
    for found in _STRING_OR_BRACKET.finditer(text, at):
        if found[0] in ("[", "{"):
            depth += 1
        elif found[0] in ("]", "}"):
            depth -= 1
            if not depth:
                return found.end()
    raise ValueError(f"nothing closes the bracket at character {at}")


def _skip_space(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    assert found is not None
    return found.end()
