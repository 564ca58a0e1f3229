"""Items of a JSON file that is too large to be held, through a window that slides over its text."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from nvlm.errors import UserError

_BLOCK = 2**20  # characters that are read at a time
_LARGEST_ITEM = 2**27  # characters: what is longer is no row, but a bracket that nothing closes
_NUMBER_GOES_ON = 3  # characters: 1.5e-7 may be cut at 1.5e-, which reads as 1.5 and two more
_SPACE = re.compile(r"[ \t\n\r]*")
_DECODER = json.JSONDecoder()


def read_items(path: Path, place: str) -> Iterator[tuple[str, Any, str]]:
    """Key (or position), value and text of each item of the list or dictionary at ``place``.

    ``place``: names joined by dots from the root of the file, which is "". Raises UserError.
    """
    try:
        with path.open(encoding="utf-8-sig") as file:
            yield from _items(_Window(file), place.split(".") if place else [])
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is no valid JSON: {error}") from error
    except KeyError as error:
        raise UserError(f"{path} has no {place!r} to take rows from") from error


def _items(window: _Window, steps: list[str]) -> Iterator[tuple[str, Any, str]]:
    opening = window.take("[{")
    if not opening:
        raise KeyError(steps)
    number = 0
    while not window.take("]}"):
        if number and not window.take(","):
            raise ValueError(f"no comma at character {window.position}")
        key = str(number)
        if opening == "{":
            key = window.value()[0]
            if not window.take(":"):
                raise ValueError(f"no colon at character {window.position}")
        number += 1
        if steps and key == steps[0]:
            yield from _items(window, steps[1:])
            return
        if steps:
            _skip(window)
        else:
            yield key, *window.value()
    if steps:
        raise KeyError(steps)


def _skip(window: _Window) -> None:
    """Pass over a value, an item at a time: it may be most of the file."""
    if window.peek() in ("[", "{"):
        for _ in _items(window, []):
            pass
    else:
        window.value()


class _Window:
    """A part of a text: from where it is read on, as far as the value there needs."""

    def __init__(self, file: TextIO) -> None:
        self._file, self._text, self._at = file, "", 0
        self._passed = 0  # characters of the file before the window

    @property
    def position(self) -> int:
        """Characters of the file that have been read."""
        return self._passed + self._at

    def peek(self) -> str:
        """The next character that is no space; raises ValueError at the end of the file."""
        while True:
            found = _SPACE.match(self._text, self._at)
            assert found is not None
            self._at = found.end()
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._slide():
                raise ValueError(f"it ends at character {self.position}")

    def take(self, wanted: str) -> str:
        """The next character, if it is one of ``wanted``; else nothing is read."""
        found = self.peek()
        if found not in wanted:
            return ""
        self._at += 1
        return found

    def value(self) -> tuple[Any, str]:
        """The next value and its text."""
        self.peek()
        while True:
            try:
                value, end = _DECODER.raw_decode(self._text, self._at)
            except ValueError:
                # Perhaps it goes on behind the window.
                if len(self._text) - self._at > _LARGEST_ITEM or not self._slide():
                    raise
                continue
            if end > len(self._text) - _NUMBER_GOES_ON and self._slide():  # so may a number
                continue
            text = self._text[self._at : end]
            self._at = end
            return value, text

    def _slide(self) -> bool:
        """Forget what has been read, and read on; False at the end of the file.

        The window doubles while one value needs it, so that a long one is tried a few times only.
        """
        rest = self._text[self._at :]
        more = self._file.read(max(_BLOCK, len(rest)))
        if not more:
            return False
        self._passed += self._at
        self._text, self._at = rest + more, 0
        return True
