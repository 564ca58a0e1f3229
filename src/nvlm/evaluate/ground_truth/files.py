"""What the readers share: strict parsing, images that stay in their directory, clear errors."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from nvlm.errors import UserError
from nvlm.evaluate.question import Question, QuestionId

IMAGES = "images"
# What publishers leave out of image names, in the order in which it is tried.
EXTENSIONS = ("", ".jpg", ".png")


def only_file(directory: Path, pattern: str) -> Path:
    """The one file of ``directory`` that matches ``pattern``, since publishers' names vary."""
    found = sorted(directory.glob(pattern))
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "none"
        raise UserError(f"{directory} must hold one {pattern}, and there is: {names}")
    return found[0]


def read_json(path: Path) -> Any:
    """Parse ``path``; UserError says where it stops being JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} isn't valid JSON: {error}") from error


def read_json_lines(path: Path) -> list[Any]:
    """Parse each line of ``path``; UserError names the first line that isn't JSON."""
    records = []
    # Only "\n" ends a line: splitlines() would also cut at U+2028, which JSON strings may hold.
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
        if not line.strip():
            continue
        try:
            records.append(json.loads(line))
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}, line {number} isn't valid JSON: {error}") from error
    return records


def field(record: Any, key: str, where: str) -> Any:
    """``record[key]``; UserError names the record that lacks it."""
    if not isinstance(record, Mapping) or key not in record:
        raise UserError(f"{where}: a record has no {key!r}")
    return record[key]


def text_field(record: Any, key: str, where: str) -> str:
    """``record[key]``, which must be a string."""
    value = field(record, key, where)
    if not isinstance(value, str):
        raise UserError(f"{where}: {key!r} must be a string, not {value!r}")
    return value


def id_field(record: Any, key: str, where: str) -> QuestionId:
    """``record[key]``, which must be an integer or a string."""
    value = field(record, key, where)
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise UserError(f"{where}: {key!r} must be a number or a string, not {value!r}")
    return value


def records(value: Any, where: str) -> Sequence[Any]:
    """``value``, which must be a list."""
    if not isinstance(value, list):
        raise UserError(f"{where}: a list of records is expected, not {type(value).__name__}")
    return value


def answers(value: Any, where: str) -> tuple[str, ...]:
    """``value``, an answer or a list of them, as texts; a question without can't be scored.

    Numbers are taken as JSON spells them. Raises UserError that names ``where``.
    """
    if _is_answer(value):
        value = [value]
    if not isinstance(value, list) or not value:
        raise UserError(f"{where}: a list of answers is expected, not {value!r}")
    if not all(map(_is_answer, value)):
        raise UserError(f"{where}: answers must be strings, not {value!r}")
    return tuple(map(str, value))


def _is_answer(value: Any) -> bool:
    if isinstance(value, str):
        return True
    return isinstance(value, int | float) and not isinstance(value, bool)


class Images:
    """The ``images/`` of a benchmark, which is listed once: looking up each name takes minutes."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory / IMAGES
        self._names = {
            path.relative_to(self._directory).as_posix()
            for path in self._directory.rglob("*")
            if not path.is_dir()
        }

    def path(self, name: str) -> Path:
        """The file called ``name``, perhaps without its extension, or without ``name``'s folders.

        Only listed files are taken, so a name can't lead out of ``images/``. Raises UserError when
        there is no such file.
        """
        for candidate in (name, name.rsplit("/", 1)[-1]):
            for extension in EXTENSIONS:
                if f"{candidate}{extension}" in self._names:
                    return self._directory / f"{candidate}{extension}"
        raise UserError(
            f"{self._directory} has no image {name!r}: put it there, or prepare the task again"
        )


def without_duplicates(questions: Iterable[Question], where: Path) -> list[Question]:
    """``questions`` as a list; UserError names an id that comes twice, or an empty ground truth."""
    kept: dict[QuestionId, Question] = {}
    for question in questions:
        if question.id in kept:
            raise UserError(f"{where}: question {question.id!r} comes twice")
        kept[question.id] = question
    if not kept:
        raise UserError(f"{where} holds no questions")
    return list(kept.values())
