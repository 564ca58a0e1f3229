"""``data/sources.lock``: what a first fetch got, where no publisher says what it should be.

Committed, a line an address, sorted. Every later fetch, on any machine, is held to it.
"""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nvlm.atomic import write_text
from nvlm.errors import UserError


@dataclass(frozen=True)
class SourcesLock:
    """The lock file at ``path``; several processes may read and write it at once."""

    path: Path

    def get(self, address: str) -> dict[str, Any] | None:
        """What is written about ``address``: ``bytes`` and ``sha256``, or ``commit``."""
        return self._read().get(address)

    def hold(self, address: str, **values: Any) -> None:
        """Write ``values`` about ``address``; UserError if something else is written there."""
        with self._alone():
            entries = self._read()
            if entries.setdefault(address, values) != values:
                raise UserError(
                    f"{address} is {_spelt(values)}, and {self.path} says "
                    f"{_spelt(entries[address])}: its publisher has changed it; remove its line "
                    "to take what is there now"
                )
            lines = [
                json.dumps({"address": name, **entry}) + "\n"
                for name, entry in sorted(entries.items())
            ]
            write_text(self.path, "".join(lines))

    def _read(self) -> dict[str, dict[str, Any]]:
        if not self.path.is_file():
            return {}
        entries = {}
        for number, line in enumerate(self.path.read_text(encoding="utf-8").splitlines(), 1):
            try:
                entry = json.loads(line)
                entries[entry.pop("address")] = entry
            except (ValueError, KeyError, AttributeError, TypeError) as error:
                raise UserError(
                    f"{self.path}, line {number} is no entry of a lock: take the file from git"
                ) from error
        return entries

    @contextmanager
    def _alone(self) -> Iterator[None]:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.with_name(f".{self.path.name}.partial.wait").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _spelt(values: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())
