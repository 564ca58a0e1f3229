"""How configuration names a value in an annotation: a path, or a text with paths in braces.

A path is a chain of steps joined by dots: a name of a dictionary, a number or a slice (``0:8``) of
a list, ``*`` for every item of a list or dictionary, and what is made of a value:

- ``@json``: what a JSON text says;
- ``@stem``, ``@suffix``: a file's name without its extension, and that extension;
- ``@split``: a text's words; ``@join``: a list's texts with commas between, as one text that was
  taken for several fields;
- ``@yes_no``: yes for 1 and true, no for 0 and false::

    answers.*.answer        {hint} {question}        train2014/{image_id:012d}.jpg
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import PurePosixPath
from typing import Any

from nvlm.data.records import BadRecordError

_PLACEHOLDER = re.compile(r"\{([^{}:]+)(?::(\w+))?\}")
_SLICE = re.compile(r"(\d*):(\d*)")

Row = dict[str, Any]


def value_of(row: Row, spec: str) -> Any:
    """The value at the path ``spec``, or the text that the template ``spec`` makes.

    Raises BadRecordError if ``row`` has no such value.
    """
    return text_of(row, spec) if "{" in spec else select(row, spec)


def text_of(row: Row, template: str) -> str:
    """``template`` with each ``{path}`` or ``{path:format}`` filled in; nothing for null."""

    def fill(found: re.Match[str]) -> str:
        value = select(row, found[1])
        try:
            return "" if value is None else format(value, found[2] or "")
        except (ValueError, TypeError) as error:
            raise BadRecordError(f"{found[1]} = {value!r}: {error}") from error

    return _PLACEHOLDER.sub(fill, template)


def select(row: Any, path: str) -> Any:
    """The value at ``path`` of ``row``; a list where the path has a ``*``."""
    return _walk(row, path.split("."), path)


def items_of(value: Any) -> Iterator[tuple[str, Any]]:
    """Key and value of a dictionary's items, or place and value of a list's."""
    if isinstance(value, dict):
        yield from value.items()
    elif isinstance(value, list):
        yield from ((str(place), item) for place, item in enumerate(value))
    else:
        raise BadRecordError(f"a list was expected, not {str(value)[:80]!r}")


def _walk(value: Any, steps: list[str], path: str) -> Any:
    for number, step in enumerate(steps):
        if step == "*":
            return [_walk(item, steps[number + 1 :], path) for _, item in items_of(value)]
        try:
            value = _step(value, step)
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise BadRecordError(f"the field {path!r} is missing ({step!r})") from error
    return value


def _step(value: Any, step: str) -> Any:
    if step in _MADE:
        return _MADE[step](value)
    if isinstance(value, list):
        if found := _SLICE.fullmatch(step):
            return value[int(found[1] or 0) : int(found[2]) if found[2] else None]
        return value[int(step)]
    return value[step]


def _yes_no(value: Any) -> str:
    return ("no", "yes")[("0", "1", "False", "True").index(str(value)) % 2]


_MADE: dict[str, Callable[[Any], Any]] = {
    "@json": json.loads,
    "@stem": lambda name: PurePosixPath(name).stem,
    "@suffix": lambda name: PurePosixPath(name).suffix,
    "@split": str.split,
    "@join": ",".join,
    "@yes_no": _yes_no,
}
