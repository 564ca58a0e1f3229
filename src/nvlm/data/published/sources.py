"""Where a dataset's files lie: a source that a stage has fetched, or a directory laid out by hand.

Configuration names a source by its manifest, ``data/raw/NAME.json``, which is what a stage depends
on; its files lie in ``data/raw/NAME``. A path without that suffix is the directory itself.
"""

from __future__ import annotations

import json
from pathlib import Path

from nvlm.errors import UserError

MANIFEST = ".json"


def directory_of(path: str) -> Path:
    """The directory of the files that ``path``, a manifest or the directory itself, stands for."""
    return Path(path).with_suffix("") if path.endswith(MANIFEST) else Path(path)


def why_missing(*paths: str) -> str:
    """The first sentence of the manifests among ``paths`` that says why its source is not there.

    "" if all are there. Raises UserError for a manifest that can't be read.
    """
    for path in paths:
        if not path.endswith(MANIFEST):
            continue
        try:
            manifest = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(
                f"{path} can't be read: run dvc repro fetch_data@{Path(path).stem}"
            ) from error
        if reason := manifest.get("missing", ""):
            return str(reason)
    return ""
