"""Published layouts as configuration: which files, which rows, which field means what.

A layout turns the files as their publisher ships them into records. There is one adapter for all
of them; conf/data/layouts.yaml is the table of datasets. Paths of values: published.select.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any

from nvlm.data.published.contents import BOXES, build_content
from nvlm.data.published.files import FileImage, FileStore, StoredImage
from nvlm.data.published.rows import JsonTable, Located, read_rows
from nvlm.data.published.select import Row, items_of, select, text_of
from nvlm.data.records import (
    BadRecord,
    BadRecordError,
    ImageSource,
    Provenance,
    Record,
    Records,
)
from nvlm.errors import UserError

KINDS = ("caption", "question", "choice", "reading", "dialogue")
NOT_EMPTY = "*"


@dataclass(frozen=True, kw_only=True)
class Join:
    """A table whose matching row, or list of rows, a row gets under the join's name."""

    file: str  # JSON file in the dataset's directory
    rows: str  # path of the table's list or dictionary in the file
    key: str  # path in a row of the table ...
    match: str  # ... whose value equals the value at this path of the row that gets it
    many: bool = False  # a list of all matching rows, rather than the only one
    where: dict[str, str] = field(default_factory=dict)  # rows of the table to take, see Layout


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How one dataset's files become records."""

    kind: str  # caption, question, choice, reading (text in the image) or dialogue
    annotations: list[str]  # patterns of the annotation files, in the dataset's directory
    fields: dict[str, str]  # what the kind needs (nvlm.data.published.contents) -> path or template
    rows: str = ""  # path of the rows in a JSON file; "." = the whole file is one row
    join: dict[str, Join] = field(default_factory=dict)
    each: list[str] = field(default_factory=list)  # lists in a row to walk side by side
    # Which rows, or items of their lists, belong to the dataset: path -> value, which may have
    # wildcards; "*" = there is something. The others are not counted as skipped.
    where: dict[str, str] = field(default_factory=dict)
    # Those that do not: path -> text file in the dataset's directory, a value a line.
    exclude: dict[str, str] = field(default_factory=dict)
    images: list[str] = field(default_factory=lambda: ["."])  # folders or archives, in order
    image: str = ""  # template of a name in images, or path of a name, of image bytes, or of a list
    page: str = ""  # path of a page's number, where the image is a PDF document
    key: str = ""  # path of a record's unique name: records that repeat one are left out
    boxes: str = "xywh"  # or xyxy, or points of a polygon
    relative_boxes: bool = False  # boxes are shares of the image's sides, not pixels
    illegible: list[str] = field(default_factory=list)  # words that stand for what none can read

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind: {self.kind!r} should be one of {', '.join(KINDS)}")
        if self.boxes not in BOXES:
            raise ValueError(f"boxes: {self.boxes!r} should be one of {', '.join(BOXES)}")
        if not self.image and self.kind != "dialogue":
            raise ValueError(f"image: a {self.kind} needs one")


def read_layout(layout: Layout, directory: Path) -> Records:
    """The records of ``directory`` in the order of its files; what is no record as BadRecord.

    Raises UserError if there are no annotation files, or if one of them is broken as a whole.
    """
    store = FileStore(tuple(directory / root for root in layout.images))
    tables = {
        name: (
            JsonTable(directory / join.file, join.rows, join.key, partial(_all_match, join.where)),
            join,
        )
        for name, join in layout.join.items()
    }
    excluded = {path: _lines(directory / file) for path, file in layout.exclude.items()}
    seen: set[str] = set()
    for path in annotation_files(layout, directory):
        for located in read_rows(path, layout.rows):
            if isinstance(located, BadRecord):
                yield located
                continue
            try:
                parts = [
                    part
                    for part in _each(_joined(located.row, tables), layout.each)
                    if _all_match(layout.where, part) and not _is_excluded(part, excluded)
                ]
            except BadRecordError as error:
                yield BadRecord(name=located.place, reason=str(error))
                continue
            for part in parts:
                yield _record(Located(located.place, part), layout, store, path.name, seen)


def annotation_files(layout: Layout, directory: Path) -> list[Path]:
    """The annotation files, sorted within each pattern; UserError for a pattern without any."""
    files: list[Path] = []
    for pattern in layout.annotations:
        found = sorted(directory.glob(pattern))
        if not found:
            raise UserError(
                f"{directory / pattern} is missing: put the dataset's annotations there"
            )
        files += found
    return files


def _record(
    located: Located, layout: Layout, store: FileStore, file: str, seen: set[str]
) -> Record | BadRecord:
    row = located.row
    try:
        key = str(select(row, layout.key)) if layout.key else None
        if key is not None and key in seen:
            raise BadRecordError(f"a second record of the key {key!r}")
        record = Record(
            images=tuple(_images(row, layout, store)),
            content=build_content(layout.kind, row, layout.fields, layout.boxes, layout.illegible),
            provenance=Provenance(source=file, key=key),
            relative_boxes=layout.relative_boxes,
        )
    except BadRecordError as error:
        return BadRecord(name=located.place, reason=str(error))
    if key is not None:
        seen.add(key)
    return record


def _images(row: Row, layout: Layout, store: FileStore) -> Iterator[ImageSource]:
    if "{" in layout.image:
        yield FileImage(store, text_of(row, layout.image))
        return
    if not layout.image:
        return
    top = layout.image.partition(".")[0]
    if layout.kind == "dialogue" and top not in row:  # a conversation about no image
        return
    page = int(select(row, layout.page)) if layout.page else None
    value = select(row, layout.image)
    for number, image in enumerate(value if isinstance(value, list) else [value]):
        if isinstance(image, str):
            yield FileImage(store, image)
        elif image is not None:
            data = image.get("bytes") if isinstance(image, dict) else image
            if not isinstance(data, bytes):
                raise BadRecordError(f"{layout.image} holds no image")
            name = image.get("path") if isinstance(image, dict) else None
            yield StoredImage(data, str(name or f"{layout.image} {number}"), page)


def _joined(row: Row, tables: dict[str, tuple[JsonTable, Join]]) -> Row:
    for name, (table, join) in tables.items():
        found = table[select(row, join.match)]
        if not join.many and len(found) != 1:
            raise BadRecordError(f"{len(found)} rows of {join.file} for {join.match}")
        row = {**row, name: found if join.many else found[0]}
    return row


def _all_match(where: dict[str, str], row: Row) -> bool:
    return all(_matches(row, path, wanted) for path, wanted in where.items())


def _matches(row: Row, path: str, wanted: str) -> bool:
    try:
        value = select(row, path)
    except BadRecordError:
        return False
    return bool(value) if wanted == NOT_EMPTY else fnmatchcase(str(value), wanted)


def _is_excluded(row: Row, excluded: dict[str, set[str]]) -> bool:
    return any(str(select(row, path)) in values for path, values in excluded.items())


def _lines(path: Path) -> set[str]:
    try:
        return {line.strip() for line in path.read_text(encoding="utf-8").splitlines()}
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path} cannot be read: it should list what to leave out, a line each ({error})"
        ) from error


def _each(row: Row, paths: list[str]) -> Iterator[Row]:
    """``row``, or as often as its lists have items, with those in place of the lists."""
    if not paths:
        yield row
        return
    lists = [list(items_of(select(row, path))) for path in paths]
    if len({len(items) for items in lists}) > 1:
        raise BadRecordError(f"{' and '.join(paths)} differ in length")
    names = [path.rpartition(".")[2] for path in paths]
    for number, items in enumerate(zip(*lists, strict=True)):
        values: dict[str, Any] = dict(zip(names, (value for _, value in items), strict=True))
        yield {**row, **values, "_index": number, "_item": items[0][0]}
