"""A source into its directory, and the manifest that says that it is whole.

The manifest is what DVC tracks: it names every file with its size and digest, so that terabytes are
hashed once, as they arrive. A file takes its name when it is whole; a hidden directory beside the
source's notes which ones have, and holds those that have not, so that whatever interrupts a fetch,
the next one goes on from there.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from threading import Event
from typing import Any

from tqdm import tqdm

from nvlm.digests import sha256_digest
from nvlm.errors import UserError
from nvlm.fetch import github, web
from nvlm.fetch.archives import FIRST_PARTS, PART, join_parts, safe_name
from nvlm.fetch.hub import check_room, fetch_file, licence_of, list_repository
from nvlm.fetch.lock import SourcesLock
from nvlm.fetch.manifest import write_manifest, write_missing
from nvlm.fetch.sources import Archive, HubFiles, Source, WebFile
from nvlm.fetch.state import State
from nvlm.fetch.web import Fetched, Progress

MISSING = ("skip", "fail")


@dataclass(frozen=True, kw_only=True)
class FetchParams:
    """``data.fetch``: how a fetch goes about it."""

    missing: str  # what can't be fetched: skip = go on without it, fail
    files_at_once: int

    def __post_init__(self) -> None:
        if self.missing not in MISSING:
            raise ValueError(f"missing: one of {', '.join(MISSING)}, not {self.missing!r}")
        if self.files_at_once < 1:
            raise ValueError(f"files_at_once: from 1, not {self.files_at_once}")


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """A file that a source should have."""

    name: str
    bytes: int | None
    digest: str | None  # that the publisher, configuration or the lock gives
    fetch: Callable[[Path, Progress], Fetched]  # into a path


def fetch_source(
    name: str, source: Source, manifest: Path, params: FetchParams, lock: SourcesLock
) -> None:
    """Bring ``source`` to the directory ``manifest`` without its suffix, and write ``manifest``.

    What is whole is not fetched again. Raises UserError if a file can't be had, or is not what it
    should be; what has arrived stays.
    """
    directory = manifest.with_suffix("")
    if source.unavailable:
        _take_what_is_there(name, source, manifest, params)
        return
    state = State(directory)
    wanted, licence = _listed(source, lock, state.partial)
    _check_room(wanted, source, state)
    total = sum(file.bytes or 0 for file in wanted) or None
    with (
        tqdm(total=total, desc=name, unit="B", unit_scale=True, disable=None) as bar,
        ThreadPoolExecutor(params.files_at_once) as pool,
    ):
        failed = Event()

        def progress(count: int) -> None:
            if failed.is_set():
                raise UserError("stopped, since another file could not be had")
            bar.update(count)

        jobs = [pool.submit(_bring, file, source, state, progress) for file in wanted]
        try:
            for job in as_completed(jobs):
                job.result()
            _unpack_parts(source, wanted, state)
        except BaseException as error:
            failed.set()
            pool.shutdown(wait=False, cancel_futures=True)
            if isinstance(error, Exception):
                check_room(error, name)
            raise
    state.finish([file.name for file in wanted])
    write_manifest(manifest, name, licence or source.licence, state.entries(), source.note)


def _take_what_is_there(name: str, source: Source, manifest: Path, params: FetchParams) -> None:
    """For what nothing can fetch: what a person has put in place, or that there is nothing."""
    directory = manifest.with_suffix("")
    paths = sorted(path for path in directory.rglob("*") if path.is_file())
    if paths:
        files = [
            {"path": path.relative_to(directory).as_posix(), "bytes": path.stat().st_size}
            for path in paths
        ]
        write_manifest(manifest, name, source.licence, files, "put in place by hand")
        return
    sentence = f"{name} can't be fetched: {source.why_unavailable}"
    if params.missing == "fail":
        raise UserError(
            f"{sentence}: put its files into {directory}, or go on without it with "
            "data.fetch.missing=skip"
        )
    print(f"{sentence}; the run goes on without it")
    write_missing(manifest, name, sentence)


def _listed(source: Source, lock: SourcesLock, partial: Path) -> tuple[list[Wanted], str]:
    """Every file of ``source``, and the licence that the Hub's card names."""
    wanted, licence = [], ""
    if source.hub:
        listed, licence = _listed_on_hub(source.hub, lock, partial)
        wanted += listed
    if source.github:
        address = f"github:{source.github.repo}@{source.github.revision}"
        pinned = None if _is_commit(source.github.revision) else lock.get(address)
        known = source.github.revision if _is_commit(source.github.revision) else None
        found = github.list_files(source.github, pinned["commit"] if pinned else known)
        if not known:
            lock.hold(address, commit=found.commit)
        wanted += [_from_web(file, None) for file in found.files]
    wanted += [_from_web(file, lock) for file in source.web]
    for file in wanted:
        if not safe_name(file.name):
            raise UserError(f"the file {file.name!r} leads out of the source's directory")
    return sorted(wanted, key=lambda file: file.name), licence


def _listed_on_hub(files: HubFiles, lock: SourcesLock, partial: Path) -> tuple[list[Wanted], str]:
    address = f"hub:{files.kind}s/{files.repo}@{files.revision}"
    pinned = None if _is_commit(files.revision) else lock.get(address)
    revision = pinned["commit"] if pinned else files.revision
    info = list_repository(files.repository_kind, files.repo, revision)
    if not _is_commit(files.revision):
        lock.hold(address, commit=info.sha)
    # [ begins a set of letters in a pattern, and some subsets have it in their names.
    patterns = [pattern.replace("[", "[[]") for pattern in files.files]
    wanted = []
    for sibling in info.siblings or []:
        if not any(fnmatchcase(sibling.rfilename, pattern) for pattern in patterns):
            continue

        def fetch(path: Path, progress: Progress, sibling: Any = sibling) -> Fetched:
            kept = partial / "hub" / info.sha
            kept.mkdir(parents=True, exist_ok=True)
            got = fetch_file(files.repository_kind, files.repo, info.sha, sibling, kept)
            progress(sibling.size or 0)
            got.rename(path)
            sha256 = sibling.lfs.sha256 if sibling.lfs else sha256_digest(path)
            return Fetched(bytes=path.stat().st_size, sha256=sha256)

        digest = sibling.lfs.sha256 if sibling.lfs else sibling.blob_id
        wanted.append(
            Wanted(name=sibling.rfilename, bytes=sibling.size, digest=digest, fetch=fetch)
        )
    if not wanted:
        raise UserError(f"{files.repo} at {revision} has no file {' or '.join(files.files)}")
    return wanted, licence_of(info)


def _from_web(file: WebFile, lock: SourcesLock | None) -> Wanted:
    """A file of a web server; one that nobody pins is held to ``lock``."""
    expected = file.expected
    held = None if expected.known or lock is None else lock.get(file.url)
    if held:
        expected = replace(expected, bytes=held["bytes"], sha256=held["sha256"])

    def fetch(path: Path, progress: Progress) -> Fetched:
        got = web.fetch_url(file.url, path, expected, progress)
        if not expected.known and lock is not None:
            lock.hold(file.url, bytes=got.bytes, sha256=got.sha256)
        return got

    digest = expected.sha256 or expected.git_blob or expected.md5
    return Wanted(name=file.name, bytes=expected.bytes, digest=digest, fetch=fetch)


def _is_commit(revision: str) -> bool:
    return len(revision) == 40 and set(revision) <= set("0123456789abcdef")


def _check_room(wanted: list[Wanted], source: Source, state: State) -> None:
    lacking = [file for file in wanted if state.whole(file.name, _identity(file, source)) is None]
    needed = sum(file.bytes or 0 for file in lacking)
    # Parts are joined into a file of their own before it is unpacked.
    needed += sum(file.bytes or 0 for file in lacking if PART.fullmatch(file.name))
    needed -= sum(path.stat().st_size for path in state.partial.rglob("*") if path.is_file())
    free = shutil.disk_usage(state.partial).free
    if needed > free:
        raise UserError(
            f"{state.directory} still needs {needed / 1e9:.1f} GB and there is room for "
            f"{free / 1e9:.1f}: make room, and run the stage again to go on"
        )


def _bring(file: Wanted, source: Source, state: State, progress: Progress) -> None:
    """Fetch ``file``, unless it is there and whole; unpack it if it is an archive to unpack."""
    identity, archive = _identity(file, source), _archive(source, file.name)
    if state.whole(file.name, identity) is not None:
        progress(file.bytes or 0)
        return
    if found := state.arrived(file.name, identity):
        place, fetched = found
        progress(fetched.bytes)
    else:
        state.drop(file.name)
        place = state.place(file.name)
        fetched = file.fetch(place, progress)
        state.note(file.name, fetched, _identity(file, source, fetched.sha256) or "")
    if archive is None or PART.fullmatch(file.name):
        state.put(place, file.name)
    else:
        state.put_members(place, [file.name], archive)


def _identity(file: Wanted, source: Source, digest: str = "") -> str | None:
    """What ``file`` is, and what becomes of it; None where nobody says: it is to be fetched.

    ``digest``: of what was fetched, which the lock holds from then on.
    """
    known = file.digest or digest
    return f"{known} {_archive(source, file.name) or ''}" if known else None


def _archive(source: Source, name: str) -> Archive | None:
    for pattern, archive in source.unpack.items():
        if fnmatchcase(name, pattern.replace("[", "[[]")):
            return archive
    return None


def _unpack_parts(source: Source, wanted: list[Wanted], state: State) -> None:
    """Unpack the archives that came in parts, all of which are there by now."""
    for name in [file.name for file in wanted if file.name.endswith(FIRST_PARTS)]:
        archive = _archive(source, name)
        if archive is not None and not state.unpacked(name):
            whole_name = name.rpartition(".")[0]
            names = [file.name for file in wanted if PART.fullmatch(file.name)]
            parts = [part for part in names if part.rpartition(".")[0] == whole_name]
            whole = join_parts(state.directory, parts, state.partial / "joined.zip")
            state.put_members(whole, parts, archive)
