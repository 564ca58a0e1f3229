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
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from pathlib import Path

from nvlm.data.records import BadRecord, BadRecordError, Content, Dialogue, Record
from nvlm.data.shards.images import EXTENSIONS, storable
from nvlm.errors import UserError

# Bytes written at once, while as many are digested. Few, so that the processor still has them near.
WRITTEN_AT_ONCE = 2**19
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
    with _ArchiveWriter(partial) as archive:
        for place, entry in enumerate(entries, start=first):
            try:
                _add_sample(archive, f"{place:09d}", entry)
                samples += 1
            except BadRecordError as error:
                skipped.append({"record": _writable(_name(entry)), "reason": _writable(str(error))})
        digest = archive.finish()
    if samples:
        partial.rename(path)
    else:
        partial.unlink()
    return ShardReport(samples=samples, sha256=digest if samples else "", skipped=skipped)


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


class _ArchiveWriter:
    """Writes a tar archive (POSIX ustar), and digests it meanwhile in a thread of its own.

    So nothing is read back for the digest, nor copied for it. Python's tarfile gives the same bytes
    but copies each file's once more.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb")
        self._thread = ThreadPoolExecutor(1)
        self._digest = hashlib.sha256()
        self._digesting: Future[None] | None = None
        self._pending: list[bytes] = []  # neither written nor digested yet
        self._pending_bytes = self._bytes = 0

    def __enter__(self) -> _ArchiveWriter:
        return self

    def __exit__(self, *reason: object) -> None:
        self._thread.shutdown()
        self._file.close()

    def add(self, name: str, data: bytes) -> None:
        """Append a file."""
        entry = tarfile.TarInfo(name)  # time, user and group are 0 and empty
        entry.size = len(data)
        entry.mode = 0o644
        padding = bytes(-len(data) % tarfile.BLOCKSIZE)
        self._append(entry.tobuf(tarfile.USTAR_FORMAT), data, padding)

    def finish(self) -> str:
        """End the archive and flush it to the disk; return its SHA-256."""
        self._append(bytes(2 * tarfile.BLOCKSIZE))
        self._append(bytes(-self._bytes % tarfile.RECORDSIZE))
        self._write()
        self._file.flush()
        os.fsync(self._file.fileno())
        assert self._digesting is not None
        self._digesting.result()
        return self._digest.hexdigest()

    def _append(self, *parts: bytes) -> None:
        self._pending += parts
        added = sum(map(len, parts))
        self._bytes += added
        self._pending_bytes += added
        if self._pending_bytes >= WRITTEN_AT_ONCE:
            self._write()

    def _write(self) -> None:
        parts, self._pending, self._pending_bytes = self._pending, [], 0
        if self._digesting is not None:
            self._digesting.result()  # no more is held in memory
        self._digesting = self._thread.submit(self._update, parts)
        self._file.writelines(parts)

    def _update(self, parts: list[bytes]) -> None:
        for part in parts:
            self._digest.update(part)


def _add_sample(archive: _ArchiveWriter, key: str, entry: Record | BadRecord) -> None:
    """Append one sample, all of it or nothing; raises BadRecordError."""
    if isinstance(entry, BadRecord):
        raise BadRecordError(entry.reason)
    images = [
        storable(image if isinstance(image, bytes) else image.read()) for image in entry.images
    ]
    size = (images[0].width, images[0].height) if images else (0, 0)
    text = json.dumps(entry.annotation(*size), sort_keys=True, ensure_ascii=False)
    try:
        annotation = text.encode()
    except UnicodeEncodeError as error:  # JSON can spell half a surrogate pair, UTF-8 can't
        raise BadRecordError(f"the text is no Unicode text: {error.reason}") from error
    numbered = isinstance(entry.content, Dialogue)
    for number, image in enumerate(images):
        part = f"{number}.{image.extension}" if numbered else image.extension
        archive.add(f"{key}.{part}", image.data)
    archive.add(f"{key}.json", annotation)


def _writable(text: str) -> str:
    """``text`` with halves of surrogate pairs, which UTF-8 has no form for, spelt out."""
    return text.encode("utf-8", "backslashreplace").decode()


def _name(entry: Record | BadRecord) -> str:
    if isinstance(entry, BadRecord):
        return entry.name
    source = entry.provenance
    key = f", {source.key}" if source.key else ""
    images = [image.name for image in entry.images if not isinstance(image, bytes)]
    return f"{source.source}{key}" + (f" ({', '.join(images)})" if images else "")
