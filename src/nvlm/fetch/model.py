"""Fetch a model's files at a pinned revision, and check that the model is whole.

The same check follows a download from the Hub and a copy of a local directory. What arrives is
compared with the sizes and digests that the Hub lists. An interrupted download leaves its files in
a hidden directory beside the destination, and the next one goes on from them.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from nvlm.atomic import atomic_directory, write_text
from nvlm.checkpoint.format.files import link_file
from nvlm.errors import UserError
from nvlm.fetch.hub import fetch_file, licence_of, list_repository

if TYPE_CHECKING:
    from huggingface_hub.hf_api import RepoSibling

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
    info = list_repository("model", source.repo, source.revision)
    kept = _kept(destination) / info.sha
    kept.mkdir(parents=True, exist_ok=True)
    files = list(_needed(info.siblings or []))
    for file in tqdm(files, desc=source.repo, unit="file", disable=None):
        fetch_file("model", source.repo, info.sha, file, kept)
        os.link(kept / file.rfilename, partial / file.rfilename)
    return {"revision": info.sha, "licence": licence_of(info)}


def _needed(siblings: list[RepoSibling]) -> Iterator[RepoSibling]:
    """Those of a repository's files that a model is made of; none of them in a folder."""
    for file in sorted(siblings, key=lambda file: file.rfilename):
        if "/" not in file.rfilename and _is_needed(file.rfilename):
            yield file


def _is_needed(name: str) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in PATTERNS)


def _kept(destination: Path) -> Path:
    """Where files stay while a download is not complete."""
    return destination.parent / f".{destination.name}.download.partial"
