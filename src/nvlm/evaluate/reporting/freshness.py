"""Whether a score is of the checkpoint that is there now, by DVC's record of who made what."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

LOCK = Path("dvc.lock")


class Freshness:
    """What of a project's outputs was made from the present versions of what lies before it.

    A stage's entry in ``dvc.lock`` has the digest of each file when it last ran: where it read
    another version of a file than its maker left, the output is of an older state. Code does not
    count: ``stages/code`` is recorded as a directory.
    """

    def __init__(self, lock: Path) -> None:
        """Without the file ``lock`` everything counts as fresh."""
        recorded = yaml.safe_load(lock.read_text(encoding="utf-8")) if lock.is_file() else {}
        self._read: dict[str, Mapping[str, str]] = {}  # output -> what its stage read, and digests
        self._made: dict[str, str] = {}  # output -> digest
        for stage in recorded.get("stages", {}).values():
            read = _digests(stage.get("deps", []))
            for path, digest in _digests(stage.get("outs", [])).items():
                self._made[path], self._read[path] = digest, read

    def is_fresh(self, output: Path | str) -> bool:
        """Whether nothing before ``output`` was made anew since; true of what no stage made."""
        path = output.as_posix() if isinstance(output, Path) else output
        return all(
            self._made.get(read, digest) == digest and self.is_fresh(read)
            for read, digest in self._read.get(path, {}).items()
        )


def _digests(entries: list[dict[str, Any]]) -> dict[str, str]:
    return {entry["path"]: entry["md5"] for entry in entries if "md5" in entry}
