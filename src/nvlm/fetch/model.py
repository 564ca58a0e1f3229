"""Fetch a model's files at a pinned revision, and check that the model is whole.

The same check follows a download from the Hub and a copy of a local directory. What arrives is
compared with the sizes and digests that the Hub lists. An interrupted download leaves its files in
a hidden directory beside the destination, and the next one goes on from them.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from tqdm import tqdm

from nvlm.atomic import atomic_directory, write_text
from nvlm.checkpoint.format.files import link_file
from nvlm.errors import UserError
from nvlm.fetch.hub import fetch_file, licence_of, list_repository

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
# Of Megatron-LM's torch format: which iteration is the latest, and a pickle a rank, which the
# import reads without running anything of it (nvlm.checkpoint.megatron.pt_reader).
LATEST = "latest_checkpointed_iteration.txt"
RANK_FILE = re.compile(r"(?:iter_\d{7}|release)/mp_rank_\d+(?:_\d+)?/model_optim_rng\.pt")
TOKENIZER = "tokenizer/"  # of our own exports; others leave it to the decoder's repository

FORMATS = HUGGINGFACE, MEGATRON = "huggingface", "megatron"


@dataclass(frozen=True, kw_only=True)
class SourceParams:
    """Where a model, or a half of it, comes from."""

    repo: str
    revision: str  # a commit, so that the same is fetched for ever; a branch is resolved, and noted
    directory: str | None  # instead of the Hub
    requires: str  # what the stage waits for
    make_vocabulary_divisible_by: int = 1  # read by the converter
    format: str = HUGGINGFACE  # of its files; or megatron, the torch format

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise ValueError(f"format: one of {', '.join(FORMATS)}, not {self.format!r}")
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
            _from_directory(source, Path(source.directory), partial)
        elif os.environ.get("HF_HUB_OFFLINE", "0") in ("1", "true", "True", "ON"):
            note["revision"] = _from_cache(source, partial)
        else:
            note |= _from_hub(source, partial, destination)
        check_whole(partial, source.format)
        write_text(partial / "source.json", json.dumps(note, indent=1, sort_keys=True) + "\n")
    shutil.rmtree(_kept(destination), ignore_errors=True)


def check_whole(directory: Path, file_format: str = HUGGINGFACE) -> None:
    """Raise UserError unless ``directory`` has a configuration and every file of its weights.

    Of Megatron's ranks the first must be there; the import says which others lack.
    """
    if file_format == MEGATRON:
        if not any(directory.glob("*/mp_rank_00*/*.pt")):
            raise UserError(
                f"the download has no iter_NNNNNNN/mp_rank_00/model_optim_rng.pt: is this a model "
                f"in Megatron's torch format? ({directory.name})"
            )
        return
    if not (directory / "config.json").is_file():
        raise UserError(f"the download has no config.json: is this a model? ({directory.name})")
    index = directory / "model.safetensors.index.json"
    wanted = {"model.safetensors"}
    if index.is_file():
        wanted = set(json.loads(index.read_bytes())["weight_map"].values())
    missing = sorted(name for name in wanted if not (directory / name).is_file())
    if missing:
        raise UserError(f"the download lacks {', '.join(missing)}: run the stage again")


def _from_directory(source: SourceParams, directory: Path, destination: Path) -> None:
    if not directory.is_dir():
        raise UserError(f"{directory} is missing: run the stage that makes it")
    for name in _files_of(directory, source):
        link_file(directory, destination, name)


def _from_cache(source: SourceParams, destination: Path) -> str:
    """Copy the model from the Hub's cache, which may hold more of it; return the commit."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    patterns = [*PATTERNS, *([LATEST, "*.pt"] if source.format == MEGATRON else [])]
    try:
        snapshot = snapshot_download(
            source.repo, revision=source.revision, allow_patterns=patterns, local_files_only=True
        )
    except LocalEntryNotFoundError as error:
        raise UserError(
            f"{source.repo} at {source.revision} is not in the cache: unset HF_HUB_OFFLINE, or "
            "name a directory"
        ) from error
    cached = Path(snapshot)
    for name in _files_of(cached, source):
        (destination / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(cached / name, destination / name)  # the cache has links of its own
    return cached.name


def _from_hub(source: SourceParams, partial: Path, destination: Path) -> dict[str, str]:
    """Fetch and check the files; return commit and licence."""
    info = list_repository("model", source.repo, source.revision)
    kept = _kept(destination) / info.sha
    kept.mkdir(parents=True, exist_ok=True)
    files = sorted(info.siblings or [], key=lambda file: file.rfilename)
    needed = [file for file in files if is_needed(file.rfilename, source.format)]
    for file in tqdm(needed, desc=source.repo, unit="file", disable=None):
        fetch_file("model", source.repo, info.sha, file, kept)
        (partial / file.rfilename).parent.mkdir(parents=True, exist_ok=True)
        os.link(kept / file.rfilename, partial / file.rfilename)
    return {"revision": info.sha, "licence": licence_of(info)}


def _files_of(directory: Path, source: SourceParams) -> Iterator[str]:
    """The names of those files in ``directory`` that a model of the format is made of, sorted."""
    for path in sorted(directory.rglob("*")):
        name = path.relative_to(directory).as_posix()
        if is_needed(name, source.format) and path.is_file():
            yield name


def is_needed(name: str, file_format: str) -> bool:
    """Whether a repository's file is part of a model of this format.

    The name's every folder is one of the format's, so that none leads out of the destination.
    """
    if file_format == MEGATRON:
        if name == LATEST or RANK_FILE.fullmatch(name):
            return True
        name = name.removeprefix(TOKENIZER)
        if name.endswith((".safetensors", ".index.json")):
            return False  # the same weights, in Hugging Face's layout
    return "/" not in name and any(fnmatchcase(name, pattern) for pattern in PATTERNS)


def _kept(destination: Path) -> Path:
    """Where files stay while a download is not complete."""
    return destination.parent / f".{destination.name}.download.partial"
