"""One training dataset: from its source to indexed shards.

The source's annotations are read in order by one process; images are read, checked and packed into
shards by others, a shard each at a time. Which records a shard holds does not depend on how many
they are. A preparation that is killed leaves its finished shards in a hidden directory beside the
output, and the next one goes on from them, provided that nothing it depends on has changed.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict
from multiprocessing import get_context, parent_process
from pathlib import Path
from threading import Thread
from typing import ParamSpec, TypeVar

from tqdm import tqdm

from nvlm.atomic import atomic_directory, publish_directory, temporary_path, write_text
from nvlm.data.records import BadRecord, Content, Record
from nvlm.data.shards.datasets import DatasetParams
from nvlm.data.shards.streams import annotation_paths, reason_missing, records
from nvlm.data.shards.tar import ShardReport, index_shards, report_json, shard_path, write_shard
from nvlm.errors import UserError

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

SKIPPED = "skipped.jsonl"  # the report, beside the shards
MISSING = "missing.json"  # all that there is of a dataset that can't be had, with the reason
PROGRESS = ".progress"  # what a killed preparation leaves beside its finished shards

# Images that come with their annotations (Parquet, tar) pass through memory: a shard ends early
# when it has so many bytes of them.
MAX_BYTES_HELD = 128 * 2**20


def prepare_dataset(params: DatasetParams, out: Path, metrics: Path) -> None:
    """Write shards, index and report of one dataset to ``out``, and its counts to ``metrics``.

    A record that cannot be used is left out and listed in ``skipped.jsonl``. Raises UserError, and
    leaves nothing behind, if their share is above ``max_skipped`` or no sample is left. Of a
    dataset that can't be had, which the run goes on without, ``out`` holds ``missing.json`` alone.
    """
    if reason := reason_missing(params):
        with atomic_directory(out) as directory:
            write_text(directory / MISSING, json.dumps({"reason": reason}, indent=2) + "\n")
        _write_counts(metrics, {"samples": 0, "shards": 0, "skipped": 0})
        print(reason, file=sys.stderr)
        return
    partial = temporary_path(out)
    _resume_or_clear(partial, _inputs_digest(params))
    try:
        content, reports = _write_shards(params, partial)
        counts = _check(reports, params)
        assert content is not None
        shutil.rmtree(partial / PROGRESS)
        index_shards(partial, content, params.task, reports)
        skipped = [line for report in reports for line in report.skipped]
        lines = [json.dumps(line, ensure_ascii=False) + "\n" for line in skipped]
        (partial / SKIPPED).write_text("".join(lines), encoding="utf-8")
    except UserError:
        shutil.rmtree(partial)
        raise
    except (OSError, BrokenProcessPool) as error:  # the latter: a worker was killed
        raise UserError(f"{out} cannot be written: {error}; run it again to go on") from error
    publish_directory(partial, out)
    _write_counts(metrics, counts)
    if skipped:
        print(f"{len(skipped)} records left out, see {out / SKIPPED}", file=sys.stderr)


def _write_counts(metrics: Path, counts: dict[str, int]) -> None:
    write_text(metrics, json.dumps(counts, indent=2) + "\n")


def _check(reports: list[ShardReport], params: DatasetParams) -> dict[str, int]:
    skipped = [line for report in reports for line in report.skipped]
    counts = {
        "samples": sum(report.samples for report in reports),
        "shards": sum(report.samples > 0 for report in reports),
        "skipped": len(skipped),
    }
    example = f"; the first is {skipped[0]['record']}: {skipped[0]['reason']}" if skipped else ""
    total = counts["samples"] + counts["skipped"]
    if counts["skipped"] > params.max_skipped * total:
        raise UserError(
            f"{params.requires}: {counts['skipped']} of {total} records cannot be used, more than "
            f"max_skipped = {params.max_skipped} allows{example}"
        )
    if not counts["samples"]:
        raise UserError(
            f"{params.requires}: the source {params.source} gave no usable sample{example}"
        )
    return counts


def _write_shards(
    params: DatasetParams, directory: Path
) -> tuple[type[Content] | None, list[ShardReport]]:
    """Write the shards that are not there yet; return the one type of content and all reports."""
    stream = _OneType(params)
    reports: dict[int, ShardReport] = {}
    jobs: dict[Future[ShardReport], int] = {}
    first = 0
    with (
        tqdm(total=params.samples, unit="record", disable=None) as progress,
        _executor(params.workers) as executor,
    ):
        for number, entries in enumerate(_shards(iter(stream), params.samples_per_shard)):
            kept = _kept_report(directory, number)
            if kept:
                reports[number] = kept
            else:
                job = executor.submit(_write_and_note, directory, number, first, entries)
                jobs[job] = number
            first += len(entries)
            progress.update(len(entries))
            while len(jobs) > params.workers:  # no more shards are held in memory
                _collect(jobs, reports)
        while jobs:
            _collect(jobs, reports)
    return stream.content, [reports[number] for number in sorted(reports)]


class _OneType:
    """The records of a dataset, all of which must have one type of content: Energon's rule."""

    def __init__(self, params: DatasetParams) -> None:
        self.content: type[Content] | None = None
        self._params = params

    def __iter__(self) -> Iterator[Record | BadRecord]:
        for record in records(self._params):
            if isinstance(record, Record):
                content = type(record.content)
                self.content = self.content or content
                if content is not self.content:
                    raise UserError(
                        f"{self._params.requires}: a {content.__name__} "
                        f"({record.provenance.source}) after records of type "
                        f"{self.content.__name__}: make it two datasets"
                    )
            yield record


def _shards(
    stream: Iterator[Record | BadRecord], samples_per_shard: int
) -> Iterator[list[Record | BadRecord]]:
    """Consecutive records of ``stream``, a list a shard."""
    entries: list[Record | BadRecord] = []
    held = 0
    for entry in stream:
        entries.append(entry)
        held += entry.bytes_held if isinstance(entry, Record) else 0
        if len(entries) == samples_per_shard or held >= MAX_BYTES_HELD:
            yield entries
            entries, held = [], 0
    if entries:
        yield entries


class _InlineExecutor(Executor):
    """Does the work in this process, at once."""

    def submit(
        self, fn: Callable[Arguments, Result], /, *args: Arguments.args, **kwargs: Arguments.kwargs
    ) -> Future[Result]:
        future: Future[Result] = Future()
        future.set_result(fn(*args, **kwargs))
        return future


def _executor(workers: int) -> Executor:
    if not workers:
        return _InlineExecutor()
    # Not forked: this process may have threads by now.
    return ProcessPoolExecutor(
        workers, mp_context=get_context("spawn"), initializer=_end_with_parent
    )


def _end_with_parent() -> None:
    """End this worker when the process that started it is killed.

    It would otherwise go on, and write the same files as the preparation that is started next.
    """

    def watch() -> None:
        parent = parent_process()
        assert parent is not None
        parent.join()
        os._exit(1)

    Thread(target=watch, daemon=True).start()


def _collect(jobs: dict[Future[ShardReport], int], reports: dict[int, ShardReport]) -> None:
    done, _ = wait(jobs, return_when=FIRST_COMPLETED)
    for job in done:
        reports[jobs.pop(job)] = job.result()


def _write_and_note(
    directory: Path, number: int, first: int, entries: list[Record | BadRecord]
) -> ShardReport:
    """Write a shard and then its report, which says that the shard is whole."""
    report = write_shard(directory, number, first, entries)
    write_text(directory / PROGRESS / f"{number:06d}.json", report_json(report))
    return report


def _kept_report(directory: Path, number: int) -> ShardReport | None:
    """The report of a shard that an earlier run has finished."""
    path = directory / PROGRESS / f"{number:06d}.json"
    if not path.is_file():
        return None
    report = ShardReport(**json.loads(path.read_text(encoding="utf-8")))
    return report if shard_path(directory, number).is_file() == bool(report.samples) else None


def _resume_or_clear(partial: Path, digest: str) -> None:
    """Keep what an earlier run with the same inputs has left in ``partial``, and nothing else."""
    note = partial / PROGRESS / "inputs"
    if note.is_file() and note.read_text() == digest:
        return
    shutil.rmtree(partial, ignore_errors=True)
    write_text(note, digest)


def _inputs_digest(params: DatasetParams) -> str:
    """A digest of what the shards depend on: parameters, code, and the annotation files' state."""
    values = {name: value for name, value in asdict(params).items() if name != "workers"}
    digest = hashlib.sha256(json.dumps(values, sort_keys=True).encode())
    for path in sorted(Path(__file__).parents[1].rglob("*.py")):  # of nvlm.data
        digest.update(path.read_bytes())
    for path in annotation_paths(params):
        try:
            state = path.stat()
        except OSError as error:
            raise UserError(
                f"{path} cannot be read: put the dataset's annotations there ({error.strerror})"
            ) from error
        digest.update(f"{path} {state.st_size} {state.st_mtime_ns}\n".encode())
    return digest.hexdigest()
