"""Webdataset shards with Energon's index: the same records give the same bytes.

A tar entry carries no time, owner or host; ``energon prepare`` itself makes the index, and the one
random thing in it, the dataset's identifier, is then replaced by one derived from the shards.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
import uuid
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nvlm.data.images import EXTENSIONS, storable
from nvlm.data.records import BadRecord, BadRecordError, Content, Dialogue, Record
from nvlm.errors import UserError

COPY_BYTES = 2**20  # written at once
_NAMESPACE = uuid.UUID("6f1b3c1e-58a1-5d0e-9d0f-3a5a2f0c7a61")

# What Energon runs to make a sample of a stored dialogue. A field map cannot name a list of images.
_DIALOGUE_LOADER = '''\
"""How Energon makes a SimilarityInterleavedSample of a stored dialogue."""


def sample_loader(raw):
    images = sorted((int(part.split(".")[0]), part) for part in raw if part[0].isdigit())
    return {"images": [raw[part] for _, part in images], "texts": raw["json"]["turns"]}


def part_filter(part):
    return True
'''


@dataclass(frozen=True, kw_only=True)
class ShardReport:
    """What came of one shard."""

    samples: int
    sha256: str  # of the shard; nothing if it has no sample, and then there is no file
    skipped: list[dict[str, str]]  # {"record": ..., "reason": ...}


def shard_path(directory: Path, number: int) -> Path:
    """The file of shard ``number``."""
    return directory / f"shard-{number:06d}.tar"


def write_shard(
    directory: Path, number: int, first: int, entries: Sequence[Record | BadRecord]
) -> ShardReport:
    """Write shard ``number``, whose entries are at the places from ``first`` on in the dataset.

    A sample's key is its place. The file appears under its name when it is whole and flushed.
    """
    path = shard_path(directory, number)
    partial = path.with_suffix(".partial")
    samples, skipped = 0, []
    with _DigestingFile(partial, "wb") as file:
        with tarfile.TarFile(
            fileobj=file, mode="w", format=tarfile.USTAR_FORMAT, copybufsize=COPY_BYTES
        ) as tar:
            for place, entry in enumerate(entries, start=first):
                try:
                    _add_sample(tar, f"{place:09d}", entry)
                    samples += 1
                except BadRecordError as error:
                    skipped.append({"record": _name(entry), "reason": str(error)})
        os.fsync(file.fileno())
    if samples:
        partial.rename(path)
    else:
        partial.unlink()
    return ShardReport(
        samples=samples, sha256=file.digest.hexdigest() if samples else "", skipped=skipped
    )


def index_shards(
    directory: Path, content: type[Content], task: str, reports: Sequence[ShardReport]
) -> None:
    """Run ``energon prepare`` on the shards of ``directory``, all of which are for training.

    One worker: with several, rows of ``index.sqlite`` come in the order in which they finish.
    ``task`` becomes a subflavor, by which the loader chooses prompts. Raises UserError with
    Energon's last words if it fails.
    """
    from click import ClickException  # with energon, which takes two seconds
    from megatron.energon.tools.prepare import command as energon_prepare

    options = ["--non-interactive", "--no-progress", "--num-workers", "1"]
    options += ["--split-ratio", "1,0,0"]
    if content.field_map is None:
        options += ["--skip-dataset-yaml"]
    else:
        field_map = {"image": ",".join(EXTENSIONS), **content.field_map}
        options += ["--sample-type", content.sample_type, "--field-map", json.dumps(field_map)]
    told = io.StringIO()
    try:
        with redirect_stdout(told):
            energon_prepare.main([str(directory.absolute()), *options], standalone_mode=False)
    except (ClickException, RuntimeError, ValueError) as error:
        raise UserError(f"energon prepare failed in {directory}: {error}") from error
    if not (directory / ".nv-meta" / "split.yaml").is_file():
        raise UserError(f"energon prepare failed in {directory}: {told.getvalue().strip()[-500:]}")
    meta = directory / ".nv-meta"
    definition = ""
    if content.field_map is None:
        (meta / "sample_loader.py").write_text(_DIALOGUE_LOADER)
        definition += (
            f"sample_type:\n  __module__: megatron.energon\n  __class__: {content.sample_type}\n"
            "sample_loader: sample_loader.py:sample_loader\n"
            "part_filter: sample_loader.py:part_filter\n"
        )
    if task:
        definition += f"subflavors:\n  task: {task}\n"
    with (meta / "dataset.yaml").open("a") as file:
        file.write(definition)
    digests = " ".join(report.sha256 for report in reports if report.samples)
    (meta / "index.uuid").write_text(str(uuid.uuid5(_NAMESPACE, digests)))


def report_json(report: ShardReport) -> str:
    """The report as it is kept while a preparation goes on."""
    return json.dumps(asdict(report), ensure_ascii=False)


class _DigestingFile(io.FileIO):
    """A file that digests what is written to it, so that nothing is read back for it."""

    def __init__(self, path: Path, mode: str) -> None:
        super().__init__(path, mode)
        self.digest = hashlib.sha256()

    def write(self, data: Any, /) -> int:
        self.digest.update(data)
        return super().write(data)


def _add_sample(tar: tarfile.TarFile, key: str, entry: Record | BadRecord) -> None:
    """Append one sample, all of it or nothing; raises BadRecordError."""
    if isinstance(entry, BadRecord):
        raise BadRecordError(entry.reason)
    images = [
        storable(image if isinstance(image, bytes) else image.read()) for image in entry.images
    ]
    numbered = isinstance(entry.content, Dialogue)
    for number, image in enumerate(images):
        part = f"{number}.{image.extension}" if numbered else image.extension
        _add(tar, f"{key}.{part}", image.data)
    size = (images[0].width, images[0].height) if images else (0, 0)
    text = json.dumps(entry.annotation(*size), sort_keys=True, ensure_ascii=False)
    _add(tar, f"{key}.json", text.encode())


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    entry = tarfile.TarInfo(name)  # time, user and group are 0 and empty
    entry.size = len(data)
    entry.mode = 0o644
    tar.addfile(entry, io.BytesIO(data))


def _name(entry: Record | BadRecord) -> str:
    if isinstance(entry, BadRecord):
        return entry.name
    source = entry.provenance
    key = f", {source.key}" if source.key else ""
    images = [image.name for image in entry.images if not isinstance(image, bytes)]
    return f"{source.source}{key}" + (f" ({', '.join(images)})" if images else "")
