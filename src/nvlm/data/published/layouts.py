"""Published layouts as configuration: which files, which rows, which field means what.

A layout turns the files as their publisher ships them into records. There is one adapter for all
of them; conf/data/layouts.yaml is the table of datasets. Paths of values: published.select.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import partial
from itertools import islice
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
HERE = "."


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
    # Folders or archives, in order; "." = the directory itself, and the one of images.
    images: list[str] = field(default_factory=lambda: [HERE])
    image: str = ""  # template of a name in images, or path of a name, of image bytes, or of a list
    page: str = ""  # path of a page's number, where the image is a PDF document
    key: str = ""  # path of a record's unique name: records that repeat one are left out
    boxes: str = "xywh"  # or xyxy, or points of a polygon
    relative_boxes: bool = False  # boxes are shares of the image's sides, not pixels
    illegible: list[str] = field(default_factory=list)  # words that stand for what none can read
    every: int = 1  # one row in so many is taken, of a dataset that is too large
    turns: int = 0  # questions kept of a conversation that has more, evenly chosen; 0 = all

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind: {self.kind!r} should be one of {', '.join(KINDS)}")
        if self.boxes not in BOXES:
            raise ValueError(f"boxes: {self.boxes!r} should be one of {', '.join(BOXES)}")
        if not self.image and self.kind != "dialogue":
            raise ValueError(f"image: a {self.kind} needs one")
        if self.every < 1 or self.turns < 0:
            raise ValueError("every: from 1; turns: from 0, which keeps all")
        if self.turns and self.kind != "dialogue":
            raise ValueError(f"turns: a {self.kind} has none")


def read_layout(
    layout: Layout, directory: Path, images: Path | None = None, limit: int | None = None
) -> Records:
    """At most ``limit`` records of ``directory``, in the order of its files.

    What is no record is a BadRecord. Pictures lie there or in the directory ``images``. Raises
    UserError if there are no annotation files, if one of them is broken as a whole, or if none of
    the rows has the field that should hold the image.
    """
    columns = _ImageColumns(layout)
    yield from islice(_records(layout, directory, images or directory, columns), limit)
    columns.check(directory)


def _records(layout: Layout, directory: Path, images: Path, columns: _ImageColumns) -> Records:
    store = FileStore(_roots(layout, directory, images))
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
        for located in islice(read_rows(path, layout.rows), 0, None, layout.every):
            if isinstance(located, BadRecord):
                yield located
                continue
            columns.see(located.row)
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


def _roots(layout: Layout, directory: Path, images: Path) -> tuple[Path, ...]:
    """Where pictures are looked for: each root in ``directory``, or else in ``images``."""
    roots: list[Path] = []
    for root in layout.images:
        if root == HERE:
            roots += [directory, images]
        else:
            there = directory / root
            roots.append(there if there.exists() else images / root)
    return tuple(dict.fromkeys(roots))


class _ImageColumns:
    """Whether the rows of conversations have the field that should hold their images.

    A single one without it is a conversation about no image. All without it: the field has another
    name, and what would be trained on is text about pictures that nobody sees.
    """

    def __init__(self, layout: Layout) -> None:
        named = layout.kind == "dialogue" and layout.image and "{" not in layout.image
        self._field = layout.image.partition(".")[0] if named else ""
        self._found = not self._field
        self._others: set[str] = set()

    def see(self, row: Row) -> None:
        """Take note of the fields of ``row``."""
        if not self._found:
            self._found = self._field in row
            self._others |= row.keys()

    def check(self, directory: Path) -> None:
        """Raise UserError if none of the rows has the field."""
        if not self._found and self._others:
            fields = ", ".join(sorted(name for name in self._others if name[:1] != "_"))
            raise UserError(
                f"{directory}: no row has the field {self._field!r}, which the layout names as "
                f"image: the rows have {fields}"
            )


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
            content=build_content(
                layout.kind,
                row,
                layout.fields,
                boxes=layout.boxes,
                illegible=layout.illegible,
                turns=layout.turns,
            ),
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
