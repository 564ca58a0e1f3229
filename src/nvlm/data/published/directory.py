"""A dataset that the user lays out: ``annotations.jsonl`` beside image files."""

from __future__ import annotations

from pathlib import Path

from nvlm.data.published.contents import build_content
from nvlm.data.published.files import FileImage, FileStore
from nvlm.data.published.rows import Located, read_rows
from nvlm.data.published.select import select
from nvlm.data.records import BadRecord, BadRecordError, Provenance, Record, Records
from nvlm.errors import UserError

ANNOTATIONS = "annotations.jsonl"

# A line's content is of the first kind whose first field it has.
_KINDS = {
    "caption": ("caption",),
    "choice": ("choices", "question", "correct"),
    "question": ("question", "answers"),
    "reading": ("text",),
    "dialogue": ("turns",),
}


def read_records(directory: Path) -> Records:
    """Records of a directory with ``annotations.jsonl`` and images.

    A line is ``{"image": path within the directory}`` (for turns also a list of paths, or none) and
    one of ``{"caption"}``, ``{"question", "answers"}``, ``{"question", "choices", "correct"}``,
    ``{"text"}`` or ``{"turns": [{"from": "human" | "gpt", "value"}]}``. What is none of these is a
    BadRecord. Raises UserError if the file is missing.
    """
    path = directory / ANNOTATIONS
    if not path.is_file():
        raise UserError(f"{path} is missing: put the dataset there, one JSON object a line")
    store = FileStore((directory,))
    for located in read_rows(path, ""):
        yield located if isinstance(located, BadRecord) else _record(located, store)


def _record(located: Located, store: FileStore) -> Record | BadRecord:
    row = located.row
    try:
        kind = next((kind for kind, names in _KINDS.items() if names[0] in row), "question")
        fields = {name: name for name in _KINDS[kind]}
        named = select(row, "image") if kind != "dialogue" else row.get("image") or []
        names = named if isinstance(named, list) else [named]
        if not all(isinstance(name, str) for name in names):
            raise BadRecordError(f"'image' should be a path, not {named!r}")
        return Record(
            images=tuple(FileImage(store, name) for name in names),
            content=build_content(kind, row, fields),
            provenance=Provenance(source=", ".join(names) or ANNOTATIONS),
        )
    except BadRecordError as error:
        return BadRecord(name=located.place, reason=str(error))
