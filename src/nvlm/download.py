"""Fetch a model's files at a pinned revision, and check that the model is whole.

The same check follows a download from the Hub and a copy of a local directory. What arrives is
compared with the sizes and digests that the Hub lists. An interrupted download leaves its files in
a hidden directory beside the destination, and the next one goes on from them.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from tqdm import tqdm

from nvlm.atomic import atomic_directory, write_text
from nvlm.checkpoint.format.files import link_file
from nvlm.digests import git_blob_digest, sha256_digest
from nvlm.errors import UserError

if TYPE_CHECKING:
    from huggingface_hub.hf_api import RepoSibling

Result = TypeVar("Result")

# Weights that hold no code, configuration, tokenizer, licence. No pickles and no Python files.
PATTERNS = [
    "*.safetensors",
    "*.safetensors.index.json",
    "config.json",
    "generation_config.json",
    "tokenizer*.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "LICENSE*",
]
BUSY = (429, 500, 502, 503, 504)  # statuses after which the Hub is asked again
ATTEMPTS, FIRST_PAUSE = 5, 2.0  # seconds; each pause is twice the one before


@dataclass(frozen=True, kw_only=True)
class SourceParams:
    """Where a half of the model comes from."""

    repo: str
    revision: str  # a commit, so that the same is fetched for ever; a branch is resolved, and noted
    directory: str | None  # instead of the Hub
    requires: str  # what the stage waits for
    make_vocabulary_divisible_by: int = 1  # read by the converter

    def __post_init__(self) -> None:
        if self.directory is None and not self.revision:
            raise ValueError("revision: a commit of 40 hex digits, or a branch")


def download(source: SourceParams, destination: Path) -> None:
    """Put the model of ``source`` into ``destination``, with a note of where it came from.

    The token is taken from the environment (HF_TOKEN), the Hub's address too (HF_ENDPOINT); with
    HF_HUB_OFFLINE=1 the model is taken from the Hub's cache on this machine. Raises UserError if
    none of them can give it, a file is not what the Hub lists, or the model is not whole.
    """
    with atomic_directory(destination) as partial:
        note = {"repo": source.repo, "revision": source.revision, "licence": "unknown"}
        if source.directory is not None:
            _from_directory(Path(source.directory), partial)
        elif os.environ.get("HF_HUB_OFFLINE", "0") in ("1", "true", "True", "ON"):
            note["revision"] = _from_cache(source, partial)
        else:
            note |= _from_hub(source, partial, destination)
        check_whole(partial)
        write_text(partial / "source.json", json.dumps(note, indent=1, sort_keys=True) + "\n")
    shutil.rmtree(_kept(destination), ignore_errors=True)


def check_whole(directory: Path) -> None:
    """Raise UserError unless ``directory`` has a configuration and every file of its weights."""
    if not (directory / "config.json").is_file():
        raise UserError(f"the download has no config.json: is this a model? ({directory.name})")
    index = directory / "model.safetensors.index.json"
    wanted = {"model.safetensors"}
    if index.is_file():
        wanted = set(json.loads(index.read_bytes())["weight_map"].values())
    missing = sorted(name for name in wanted if not (directory / name).is_file())
    if missing:
        raise UserError(f"the download lacks {', '.join(missing)}: run the stage again")


def _from_directory(source: Path, destination: Path) -> None:
    if not source.is_dir():
        raise UserError(f"{source} is missing: run the stage that makes it")
    for path in sorted(source.iterdir()):
        if path.is_file() and _is_needed(path.name):
            link_file(source, destination, path.name)


def _from_cache(source: SourceParams, destination: Path) -> str:
    """Copy the model from the Hub's cache, which may hold more of it; return the commit."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        cached = snapshot_download(
            source.repo, revision=source.revision, allow_patterns=PATTERNS, local_files_only=True
        )
    except LocalEntryNotFoundError as error:
        raise UserError(
            f"{source.repo} at {source.revision} is not in the cache: unset HF_HUB_OFFLINE, or "
            "name a directory"
        ) from error
    for path in sorted(Path(cached).iterdir()):
        if path.is_file() and _is_needed(path.name):
            shutil.copyfile(path, destination / path.name)  # the cache has links of its own
    return Path(cached).name


def _from_hub(source: SourceParams, partial: Path, destination: Path) -> dict[str, str]:
    """Fetch and check the files; return commit and licence."""
    from huggingface_hub import HfApi

    where = f"{source.repo} at {source.revision}"
    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT"))
    info: Any = _asking(
        where, lambda: api.model_info(source.repo, revision=source.revision, files_metadata=True)
    )
    kept = _kept(destination) / info.sha
    kept.mkdir(parents=True, exist_ok=True)
    files = list(_needed(info.siblings or []))
    for file in tqdm(files, desc=source.repo, unit="file", disable=None):
        _fetch(api, source.repo, info.sha, file, kept)
        os.link(kept / file.rfilename, partial / file.rfilename)
    licence = (info.card_data or {}).get("license") or "unknown"
    return {"revision": info.sha, "licence": str(licence)}


def _needed(siblings: list[RepoSibling]) -> Iterator[RepoSibling]:
    """Those of a repository's files that a model is made of; none of them in a folder."""
    for file in sorted(siblings, key=lambda file: file.rfilename):
        if "/" not in file.rfilename and _is_needed(file.rfilename):
            yield file


def _is_needed(name: str) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in PATTERNS)


def _fetch(api: Any, repo: str, commit: str, file: RepoSibling, kept: Path) -> None:
    """Fetch one file, going on where an earlier attempt ended, and compare it with the list."""
    path, where = kept / file.rfilename, f"{repo} at {commit}"
    for attempt in range(2):
        _asking(
            where,
            lambda: api.hf_hub_download(repo, file.rfilename, revision=commit, local_dir=kept),
        )
        reason = _difference(path, file)
        if reason is None:
            return
        path.unlink()
        # The Hub's client notes what it has: without the note it fetches the file again.
        shutil.rmtree(kept / ".cache", ignore_errors=True)
        if attempt:
            raise UserError(f"{where}: {file.rfilename} {reason}, twice: try another mirror")


def _difference(path: Path, file: RepoSibling) -> str | None:
    """What is wrong with the file at ``path``, or None."""
    size = path.stat().st_size
    if file.size is not None and size != file.size:
        return f"has {size} bytes, not {file.size}"
    if file.lfs is not None:
        return None if sha256_digest(path) == file.lfs.sha256 else "has another SHA-256"
    if file.blob_id is not None and git_blob_digest(path) != file.blob_id:
        return "has another digest"
    return None


def _asking(where: str, ask: Callable[[], Result]) -> Result:
    """``ask`` the Hub; wait and ask again where it is busy or breaks off."""
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    # What the client raises for broken connections: httpx's, or its successor's.
    transport_error: type[Exception] = HfHubHTTPError.__mro__[1]
    for attempt in range(ATTEMPTS):
        try:
            return ask()
        except GatedRepoError as error:
            raise UserError(
                f"{where} is gated: accept its licence on the Hub and set HF_TOKEN"
            ) from error
        except RevisionNotFoundError as error:
            raise UserError(f"{where}: there is no such revision") from error
        except RepositoryNotFoundError as error:
            raise UserError(f"{where} is not on the Hub, or is private: set HF_TOKEN") from error
        except (HfHubHTTPError, transport_error, OSError) as error:
            status = getattr(getattr(error, "response", None), "status_code", None)
            final = status is not None and status not in BUSY
            if final or attempt == ATTEMPTS - 1:
                reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
                raise UserError(
                    f"{where} could not be downloaded ({reason}): run the stage again to go on"
                ) from error
            time.sleep(FIRST_PAUSE * 2**attempt)
    raise AssertionError("not reached")


def _kept(destination: Path) -> Path:
    """Where files stay while a download is not complete."""
    return destination.parent / f".{destination.name}.download.partial"
