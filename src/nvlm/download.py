"""Fetch a model's files at a pinned revision, and check that the model is whole.

The same check follows a download from the Hub and a copy of a local directory.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from nvlm.atomic import atomic_directory, write_text
from nvlm.checkpoint.files import link_file
from nvlm.errors import UserError

# Weights that hold no code, configuration, tokenizer, licence. No pickles and no Python files.
PATTERNS = [
    "*.safetensors",
    "*.safetensors.index.json",
    "config.json",
    "generation_config.json",
    "tokenizer*",
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
    revision: str  # a commit, so that the same is fetched for ever
    directory: str | None  # instead of the Hub
    requires: str  # what the stage waits for
    make_vocabulary_divisible_by: int = 1  # read by the converter

    def __post_init__(self) -> None:
        is_commit = len(self.revision) == 40 and set(self.revision) <= set("0123456789abcdef")
        if self.directory is None and not is_commit:
            raise ValueError(f"revision: {self.revision!r} should be a commit of 40 hex digits")


def download(source: SourceParams, destination: Path) -> None:
    """Put the model of ``source`` into ``destination``, with a note of where it came from.

    Raises UserError if the Hub or the directory can't give it, or the model is not whole.
    """
    with atomic_directory(destination) as partial:
        if source.directory is None:
            _from_hub(source, partial)
        else:
            _from_directory(Path(source.directory), partial)
        check_whole(partial)
        note = {"repo": source.repo, "revision": source.revision}
        write_text(partial / "source.json", json.dumps(note, indent=1, sort_keys=True) + "\n")


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
        if path.is_file() and any(path.match(pattern) for pattern in PATTERNS):
            link_file(source, destination, path.name)


def _from_hub(source: SourceParams, destination: Path) -> None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

    where = f"{source.repo} at {source.revision}"
    try:
        snapshot_download(
            source.repo,
            revision=source.revision,
            allow_patterns=PATTERNS,
            local_dir=destination,
        )
    except GatedRepoError as error:
        raise UserError(
            f"{where} is gated: accept its licence on the Hub and set HF_TOKEN"
        ) from error
    except RepositoryNotFoundError as error:
        raise UserError(f"{where} is not on the Hub, or is private: set HF_TOKEN") from error
    except (HfHubHTTPError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{where} could not be downloaded ({reason}): run the stage again") from error
    shutil.rmtree(destination / ".cache", ignore_errors=True)
