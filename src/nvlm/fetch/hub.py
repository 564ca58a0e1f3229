"""The Hub: what a repository lists, and one of its files, compared with that list.

The token is taken from the environment (HF_TOKEN), the Hub's address too (HF_ENDPOINT).
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from nvlm.digests import git_blob_digest, sha256_digest
from nvlm.errors import UserError

if TYPE_CHECKING:
    from huggingface_hub.hf_api import RepoSibling

Result = TypeVar("Result")
Kind = Literal["model", "dataset"]

BUSY = (408, 429, 500, 502, 503, 504)  # statuses after which a server is asked again
ATTEMPTS, FIRST_PAUSE = 5, 2.0  # seconds; each pause is twice the one before


def list_repository(kind: Kind, repo: str, revision: str) -> Any:
    """What the Hub tells of ``repo`` at ``revision``: ``sha``, ``siblings`` with their sizes and
    digests, ``card_data``. Raises UserError if it can't be had."""
    from huggingface_hub import HfApi

    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT"))
    return _asking(
        f"{repo} at {revision}",
        lambda: api.repo_info(repo, repo_type=kind, revision=revision, files_metadata=True),
    )


def licence_of(info: Any) -> str:
    """The licence that a repository's card names."""
    return str((info.card_data or {}).get("license") or "unknown")


def fetch_file(kind: Kind, repo: str, commit: str, file: RepoSibling, into: Path) -> Path:
    """Fetch one file into the directory ``into``, going on where an earlier attempt ended.

    It is compared with what the Hub lists; what differs is fetched once more. Raises UserError.
    """
    from huggingface_hub import HfApi

    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT"))
    path, where = into / file.rfilename, f"{repo} at {commit}"
    for attempt in range(2):
        _asking(
            where,
            lambda: api.hf_hub_download(
                repo, file.rfilename, repo_type=kind, revision=commit, local_dir=into
            ),
        )
        reason = _difference(path, file)
        if reason is None:
            return path
        path.unlink()
        # The Hub's client notes what it has: without the note it fetches the file again.
        note = into / ".cache" / "huggingface" / "download" / f"{file.rfilename}.metadata"
        note.unlink(missing_ok=True)
        if attempt:
            raise UserError(f"{where}: {file.rfilename} {reason}, twice: try another mirror")
    raise AssertionError("not reached")


def check_room(error: Exception, where: str) -> None:
    """Raise UserError if ``error`` says that the disk is full: asking again would not help."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        raise UserError(f"{where}: the disk is full: make room, and run the stage again to go on")


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
            check_room(error, where)
            status = getattr(getattr(error, "response", None), "status_code", None)
            final = status is not None and status not in BUSY
            if final or attempt == ATTEMPTS - 1:
                reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
                raise UserError(
                    f"{where} could not be downloaded ({reason}): run the stage again to go on"
                ) from error
            time.sleep(FIRST_PAUSE * 2**attempt)
    raise AssertionError("not reached")
