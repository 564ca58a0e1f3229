"""One file from a web server: what broke off goes on, what is whole is compared with its digest.

Servers are not trusted with lengths: a body that ends early is asked for again from where it ended,
and a file is whole when its size and digest are those that are written down.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nvlm.errors import UserError
from nvlm.fetch import hub
from nvlm.fetch.hub import ATTEMPTS, BUSY, check_room

if TYPE_CHECKING:
    from requests import Response

CONNECT, SILENCE = 10.0, 60.0  # seconds without an answer, and without a byte of it
LONGEST_PAUSE = 300.0  # seconds that a server's Retry-After is obeyed
BLOCK = 2**20

_RANGE = re.compile(r"bytes (\d+)-")

Progress = Callable[[int], object]  # is told of bytes that have come, or are gone again if negative


@dataclass(frozen=True, kw_only=True)
class Digests:
    """What a file should be; None where nobody says."""

    bytes: int | None = None
    sha256: str | None = None
    md5: str | None = None
    git_blob: str | None = None  # SHA-1 of the file as a git blob: what GitHub lists

    @property
    def known(self) -> bool:
        """Whether the content is pinned."""
        return bool(self.sha256 or self.md5 or self.git_blob)


@dataclass(frozen=True, kw_only=True)
class Fetched:
    """A file that is here."""

    bytes: int
    sha256: str


def fetch_url(url: str, path: Path, expected: Digests, progress: Progress) -> Fetched:
    """Bring ``url`` to ``path``, going on with what is there; compare it with ``expected``.

    A file that differs is fetched once more from its beginning. Raises UserError; ``path`` then
    holds what to go on from.
    """
    for attempt in range(2):
        _download(url, path, expected.known, progress)
        found, reason = _compare(path, expected)
        if reason is None:
            return found
        progress(-found.bytes)
        path.unlink()
        if attempt:
            raise UserError(
                f"{url} {reason}, twice: the server sends something else, or its publisher has "
                "changed it; what is expected is written in conf/data or data/sources.lock"
            )
    raise AssertionError("not reached")


def _download(url: str, path: Path, pinned: bool, progress: Progress) -> None:
    """Append to ``path`` what it lacks of ``url``.

    A file that nobody pins is gone on with only where the server tells that it is still the same.
    """
    import requests
    from urllib3.exceptions import HTTPError

    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    validator = path.with_name(f"{path.name}.validator")
    if not (pinned or validator.is_file()):
        path.write_bytes(b"")
    progress(path.stat().st_size)
    failures = 0
    while True:
        held = path.stat().st_size
        pause = hub.FIRST_PAUSE * 2**failures
        try:
            with _ask(url, held, validator) as response:
                status = response.status_code
                if status == 200:
                    _keep_validator(response, validator)
                if status in (200, 206):
                    _receive(response, path, held, progress)
                    return
                if status == 416:  # nothing follows what is held, or that is no part of the file
                    if response.headers.get("Content-Range", "").endswith(f"/{held}"):
                        return
                    progress(-held)
                    path.write_bytes(b"")
                reason = f"the server answers {status}"
                if status not in (*BUSY, 416):
                    raise UserError(f"{url} could not be downloaded: {_refusal(status)}")
                pause = max(pause, _retry_after(response))
        except (requests.RequestException, HTTPError, OSError) as error:
            check_room(error, url)
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        failures = 1 if path.stat().st_size > held else failures + 1
        if failures >= ATTEMPTS:
            raise UserError(
                f"{url} could not be downloaded ({reason}): run the stage again to go on"
            )
        time.sleep(min(pause, LONGEST_PAUSE))


def _ask(url: str, held: int, validator: Path) -> Response:
    """Ask for ``url`` from byte ``held`` on, as it is: not compressed for the way. If it is another
    file by now than that of which ``validator`` tells, it comes from its beginning."""
    import requests

    headers = {"Accept-Encoding": "identity", "User-Agent": "nvlm"}
    if held:
        headers["Range"] = f"bytes={held}-"
        if validator.is_file():
            headers["If-Range"] = validator.read_text()
    return requests.get(url, headers=headers, stream=True, timeout=(CONNECT, SILENCE))


def _receive(response: Response, path: Path, held: int, progress: Progress) -> None:
    """Write the body behind the ``held`` bytes of ``path``, or from 0 if the server began there."""
    start = 0
    if response.status_code == 206:
        told = _RANGE.match(response.headers.get("Content-Range", ""))
        start = int(told[1]) if told else -1
    if start not in (0, held):
        raise OSError(f"the server sends from byte {start}, not from {held}")
    with path.open("r+b") as file:
        if start != held:
            progress(start - held)
            file.truncate(start)
        file.seek(start)
        # Read without decoding: some servers call a .gz file compressed for the way.
        while block := response.raw.read1(BLOCK, decode_content=False):
            file.write(block)
            progress(len(block))


def _keep_validator(response: Response, validator: Path) -> None:
    """Write down what tells this version of a file from another (RFC 9110, section 13.1.5)."""
    tag = response.headers.get("ETag", "")
    told = tag if tag.startswith('"') else response.headers.get("Last-Modified", "")
    validator.unlink(missing_ok=True)
    if told:
        validator.write_text(told)


def _compare(path: Path, expected: Digests) -> tuple[Fetched, str | None]:
    """What is at ``path``, and how it differs from ``expected``."""
    size = path.stat().st_size
    sums = {"sha256": hashlib.sha256(), "md5": hashlib.md5(usedforsecurity=False)}
    sums["git_blob"] = hashlib.sha1(f"blob {size}\0".encode(), usedforsecurity=False)
    wanted = {name for name in sums if getattr(expected, name)} | {"sha256"}
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            for name in wanted:
                sums[name].update(block)
    found = Fetched(bytes=size, sha256=sums["sha256"].hexdigest())
    if expected.bytes is not None and size != expected.bytes:
        return found, f"has {size} bytes, not {expected.bytes}"
    for name in sorted(wanted):
        digest = getattr(expected, name)
        if digest and sums[name].hexdigest() != digest:
            return found, f"has another {name} than {digest}"
    return found, None


def _refusal(status: int) -> str:
    if status in (401, 403):
        return f"the server refuses ({status}): its publisher may ask for a registration"
    if status in (404, 410):
        return f"it is no longer there ({status}): look for it at its publisher's"
    return f"the server answers {status}"


def _retry_after(response: Response) -> float:
    value = response.headers.get("Retry-After", "")
    return float(value) if value.isdecimal() else 0.0
