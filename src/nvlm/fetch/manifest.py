"""A source's manifest: what a stage that reads the source depends on.

Configuration names a source by its manifest, ``data/raw/NAME.json``; its files lie in
``data/raw/NAME``. A path without that suffix is a directory that a person has laid out.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from nvlm.atomic import write_text
from nvlm.errors import UserError

MANIFEST = ".json"


def directory_of(path: str) -> Path:
    """The directory of the files that ``path``, a manifest or the directory itself, stands for."""
    return Path(path).with_suffix("") if path.endswith(MANIFEST) else Path(path)


def write_manifest(
    path: Path, name: str, licence: str, files: list[dict[str, Any]], note: str
) -> None:
    """Say that ``files`` are there, whole."""
    _write(path, {"source": name, "licence": licence, "note": note, "files": files})


def write_missing(path: Path, name: str, sentence: str) -> None:
    """Say why there is no source."""
    _write(path, {"source": name, "missing": sentence})


def read_manifest(path: Path) -> dict[str, Any]:
    """``files``, or ``missing``, a sentence. Raises UserError."""
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} can't be read: run dvc repro fetch_data@{path.stem}") from error
    return content


def why_missing(*paths: str) -> str:
    """The first sentence of the manifests among ``paths`` that says why its source is not there;
    "" if all are there. Raises UserError for a manifest that can't be read."""
    manifests = [read_manifest(Path(path)) for path in paths if path.endswith(MANIFEST)]
    return next((str(each["missing"]) for each in manifests if "missing" in each), "")


def _write(path: Path, content: dict[str, Any]) -> None:
    write_text(path, json.dumps(content, indent=1) + "\n")
