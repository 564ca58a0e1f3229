"""Webdataset shards with Energon's index: the same records give the same bytes.

A tar entry carries no time, owner or host; ``energon prepare`` itself makes the index, and the one
random thing in it, the dataset's identifier, is then replaced by one derived from the shards.
"""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import sys
import tarfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nvlm.data.images import EXTENSIONS
from nvlm.data.records import Content
from nvlm.errors import UserError

_NAMESPACE = uuid.UUID("6f1b3c1e-58a1-5d0e-9d0f-3a5a2f0c7a61")


class ShardWriter:
    """Writes samples to ``shard-000000.tar``, ``shard-000001.tar``, ... of a directory."""

    def __init__(self, directory: Path, samples_per_shard: int) -> None:
        self.samples = 0
        self.shards = 0
        self._directory = directory
        self._samples_per_shard = samples_per_shard
        self._tar: tarfile.TarFile | None = None

    def write(self, key: str, image: bytes, extension: str, annotation: dict[str, Any]) -> None:
        """Append one sample; ``key`` must be unique in the dataset and free of dots."""
        if self.samples % self._samples_per_shard == 0:
            self.close()
            path = self._directory / f"shard-{self.shards:06d}.tar"
            self._tar = tarfile.open(path, "w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115
            self.shards += 1
        self._add(f"{key}.{extension}", image)
        text = json.dumps(annotation, sort_keys=True, ensure_ascii=False)
        self._add(f"{key}.json", text.encode())
        self.samples += 1

    def close(self) -> None:
        """Finish the shard that is open."""
        if self._tar is not None:
            self._tar.close()
            self._tar = None

    def _add(self, name: str, data: bytes) -> None:
        entry = tarfile.TarInfo(name)  # time, user and group are 0 and empty
        entry.size = len(data)
        entry.mode = 0o644
        assert self._tar is not None
        self._tar.addfile(entry, io.BytesIO(data))


@contextmanager
def shard_writer(directory: Path, samples_per_shard: int) -> Iterator[ShardWriter]:
    """A writer that is closed at the end."""
    writer = ShardWriter(directory, samples_per_shard)
    try:
        yield writer
    finally:
        writer.close()


def index_shards(directory: Path, content: type[Content]) -> None:
    """Run ``energon prepare`` on the shards of ``directory``, all of which are for training.

    One worker: with several, rows of ``index.sqlite`` come in the order in which they finish.
    Raises UserError with Energon's last words if it fails.
    """
    field_map = {"image": ",".join(EXTENSIONS), **content.field_map}
    command = [sys.executable, "-m", "megatron.energon.cli.main", "prepare", "."]
    command += ["--non-interactive", "--no-progress", "--num-workers", "1"]
    command += ["--split-ratio", "1,0,0", "--sample-type", content.sample_type]
    command += ["--field-map", json.dumps(field_map)]
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False)
    if done.returncode:
        words = (done.stderr or done.stdout).strip().splitlines() or ["no output"]
        raise UserError(f"energon prepare failed in {directory}: {words[-1]}")
    _replace_identifier(directory)


def _replace_identifier(directory: Path) -> None:
    """Derive ``index.uuid``, a random number until now, from the shards' digests."""
    digests = []
    for path in sorted(directory.glob("shard-*.tar")):
        with path.open("rb") as file:
            digests.append(hashlib.file_digest(file, "sha256").hexdigest())
    identifier = uuid.uuid5(_NAMESPACE, " ".join(digests))
    (directory / ".nv-meta" / "index.uuid").write_text(str(identifier))
