"""GitHub: the files of a repository at a commit, with the digests that git itself keeps."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any
from urllib.parse import quote

from nvlm.errors import UserError
from nvlm.fetch import hub
from nvlm.fetch.hub import ATTEMPTS, BUSY
from nvlm.fetch.sources import GitHubFiles, WebFile

API, RAW = "https://api.github.com", "https://raw.githubusercontent.com"
TIMEOUT = 60.0  # seconds


@dataclass(frozen=True, kw_only=True)
class Listing:
    """What a commit holds of what was asked for."""

    commit: str
    files: list[WebFile]


def list_files(source: GitHubFiles, commit: str | None) -> Listing:
    """The files of ``source``, at ``commit`` or else at what its revision is now.

    GITHUB_TOKEN raises GitHub's limit of 60 questions an hour. Raises UserError.
    """
    repo = f"{API}/repos/{source.repo}"
    commit = commit or str(_get(f"{repo}/commits/{quote(source.revision)}")["sha"])
    tree = _get(f"{repo}/git/trees/{commit}?recursive=1")
    if tree.get("truncated"):
        raise UserError(f"{source.repo} has more files than GitHub lists: fetch it by hand")
    files = [
        WebFile(
            url=f"{RAW}/{source.repo}/{commit}/{quote(entry['path'])}",
            path=entry["path"],
            bytes=entry["size"],
            git_blob=entry["sha"],
        )
        for entry in tree["tree"]
        if entry["type"] == "blob"
        and any(fnmatchcase(entry["path"], pattern) for pattern in source.files)
    ]
    if not files:
        raise UserError(f"{source.repo} at {commit} has no file {' or '.join(source.files)}")
    return Listing(commit=commit, files=files)


def _get(url: str) -> Any:
    import requests

    token = os.environ.get("GITHUB_TOKEN")
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    for attempt in range(ATTEMPTS):
        try:
            response = requests.get(url, headers=headers, timeout=TIMEOUT)
            if response.status_code == 200:
                return response.json()
            reason = f"GitHub answers {response.status_code}"
            if response.status_code not in BUSY:
                break
        except (requests.RequestException, ValueError) as error:
            reason = type(error).__name__
        if attempt < ATTEMPTS - 1:
            time.sleep(hub.FIRST_PAUSE * 2**attempt)
    raise UserError(
        f"{url} could not be read ({reason}): look whether it is there; GitHub's limit (403, 429) "
        "is lifted within an hour, or with GITHUB_TOKEN"
    )
