"""Digests of files, as hubs list them."""

from __future__ import annotations

import hashlib
from pathlib import Path


def sha256_digest(path: Path) -> str:
    """The SHA-256 of a file, in hex: how the Hub lists large files."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def git_blob_digest(path: Path) -> str:
    """The SHA-1 of a file as a git blob, in hex: how the Hub lists small files."""
    digest = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
