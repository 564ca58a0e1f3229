"""Records: what a dataset consists of before it becomes shards, whatever it came from.

A record is an encoded image and what is said about it, in one of Energon's sample types. To bring
in a published dataset, lay it out as a directory (``read_records``) or generate records from it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

from nvlm.errors import UserError

ANNOTATIONS = "annotations.jsonl"


@dataclass(frozen=True, kw_only=True)
class Caption:
    """An image's description: Energon's CaptioningSample."""

    sample_type: ClassVar[str] = "CaptioningSample"
    field_map: ClassVar[dict[str, str]] = {"caption": "json[caption]"}

    caption: str


@dataclass(frozen=True, kw_only=True)
class Question:
    """A question with its accepted answers, one of which is drawn in training: VQASample."""

    sample_type: ClassVar[str] = "VQASample"
    field_map: ClassVar[dict[str, str]] = {"context": "json[question]", "answers": "json[answers]"}

    question: str
    answers: list[str]


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A question with options, of which number ``correct`` is right: MultiChoiceVQASample."""

    sample_type: ClassVar[str] = "MultiChoiceVQASample"
    field_map: ClassVar[dict[str, str]] = {
        "context": "json[question]",
        "choices": "json[choices]",
        "correct_choice_idx": "json[correct]",
    }

    question: str
    choices: list[str]
    correct: int  # from 0


Content = Caption | Question | Choice


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Where a record's pixels come from, so that the split can be proved afterwards."""

    source: str  # a package or a file
    split: str | None = None
    indices: tuple[int, ...] = ()  # of the pictures or scans used, within the source


@dataclass(frozen=True, kw_only=True)
class Record:
    """One sample to store."""

    image: bytes  # an encoded image, as published where there is a file of it
    content: Content
    provenance: Provenance

    def annotation(self) -> dict[str, Any]:
        """The JSON part of the stored sample; the content's field map reads it back."""
        return {**asdict(self.content), "provenance": asdict(self.provenance)}


def read_records(directory: Path) -> Iterator[Record]:
    """Records of a directory with ``annotations.jsonl`` and images.

    A line is ``{"image": path within the directory}`` and one of ``{"caption"}``,
    ``{"question", "answers"}`` or ``{"question", "choices", "correct"}``. An image that cannot be
    opened gives a record without bytes, for the caller to count. Raises UserError for a line that
    is none of these and for a path that leads out of the directory, naming file and line.
    """
    path = directory / ANNOTATIONS
    if not path.is_file():
        raise UserError(f"{path} is missing: put the dataset there, one JSON object a line")
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield _parse(line, directory, where=f"{path}, line {number}")


def _parse(line: str, directory: Path, where: str) -> Record:
    try:
        fields = json.loads(line)
        name = fields["image"]
        content = _content(fields)
        file = directory / name
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{where}: {_reason(error)}") from error
    if not file.resolve().is_relative_to(directory.resolve()):
        raise UserError(f"{where}: the path {name!r} leads out of {directory}")
    image = file.read_bytes() if file.is_file() else b""
    return Record(image=image, content=content, provenance=Provenance(source=name))


def _content(fields: dict[str, Any]) -> Content:
    """The content that ``fields`` spell; raises KeyError or ValueError when they spell none."""
    if "caption" in fields:
        return Caption(caption=_text(fields, "caption"))
    question = _text(fields, "question")
    if "choices" in fields:
        choices, correct = _texts(fields, "choices"), fields["correct"]
        if not isinstance(correct, int) or not 0 <= correct < len(choices):
            raise ValueError(f"'correct' should be the position of a choice, not {correct!r}")
        return Choice(question=question, choices=choices, correct=correct)
    return Question(question=question, answers=_texts(fields, "answers"))


def _text(fields: dict[str, Any], name: str) -> str:
    if not isinstance(fields[name], str) or not fields[name]:
        raise ValueError(f"{name!r} should be a text, not {fields[name]!r}")
    return fields[name]


def _texts(fields: dict[str, Any], name: str) -> list[str]:
    values = fields[name]
    if not isinstance(values, list) or not values or not all(isinstance(v, str) for v in values):
        raise ValueError(f"{name!r} should be a list of texts, not {values!r}")
    return values


def _reason(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"no valid JSON ({error})"
    return f"{error} is missing" if isinstance(error, KeyError) else str(error)
